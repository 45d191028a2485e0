"""The backbone: sparse input equals dense input, and an untrained one returns its anchor."""

from __future__ import annotations

import pytest
import torch
from scipy import sparse

from scidiff.models.networks import Backbone, Block, LevelEmbedding, read_genes
from scidiff.models.sparse import csr_tensor


def to_csr(x: torch.Tensor) -> torch.Tensor:
    m = sparse.csr_matrix(x.numpy())
    return csr_tensor(*map(torch.from_numpy, (m.indptr, m.indices, m.data)), m.shape[1])


@pytest.fixture
def x() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(7, 11, generator=generator) * (torch.rand(7, 11, generator=generator) < 0.4)
    x[2] = 0  # a cell with nothing
    x[:, 5] = 0  # a gene that no cell has
    return x


@pytest.fixture
def backbone() -> Backbone:
    torch.manual_seed(0)
    backbone = Backbone(11, width=8, n_blocks=2)
    with torch.no_grad():
        for p in backbone.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return backbone


def test_sparse_and_dense_input_agree(backbone, x):
    level, c = torch.rand(7), torch.randn(7, 8)
    torch.testing.assert_close(backbone(to_csr(x), level, c), backbone(x, level, c))


def test_sparse_and_dense_gradients_agree(backbone, x):
    level, c = torch.rand(7), torch.randn(7, 8)
    gradients = []
    for seen in (x, to_csr(x)):
        backbone.zero_grad()
        backbone(seen, level, c).square().mean().backward()
        gradients.append({name: p.grad.clone() for name, p in backbone.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def test_reading_alone(x):
    genes = torch.randn(11, 3, dtype=torch.float32, requires_grad=True)
    torch.testing.assert_close(read_genes(to_csr(x), genes), x @ genes)
    with torch.autocast("cpu", torch.bfloat16):
        out = read_genes(to_csr(x), genes)
    out.float().sum().backward()
    torch.testing.assert_close(out.float(), x @ genes, rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(genes.grad, x.sum(0)[:, None].expand(-1, 3), rtol=2e-2, atol=2e-2)


def test_half_precision_is_close(backbone, x):
    level, c = torch.rand(7), torch.randn(7, 8)
    with torch.autocast("cpu", torch.bfloat16):
        half = backbone(to_csr(x), level, c)
    full = backbone(x, level, c)
    assert (half.float() - full).norm() < 0.03 * full.norm()


def test_an_untrained_network_says_nothing(x):
    backbone = Backbone(11, width=8, n_blocks=2)
    assert not backbone(x, torch.rand(7), torch.randn(7, 8)).any()


def test_it_learns_from_the_first_step_on(x):
    """Zero at the start must not mean zero gradients for ever."""
    backbone = Backbone(11, width=8, n_blocks=1)
    optimizer = torch.optim.SGD(backbone.parameters(), lr=0.1)
    before = {name: p.detach().clone() for name, p in backbone.named_parameters()}
    for _ in range(3):
        optimizer.zero_grad()
        (backbone(x, torch.rand(7), torch.randn(7, 8)) - 1).square().mean().backward()
        optimizer.step()
    assert all((p != before[name]).any() for name, p in backbone.named_parameters())


def test_cells_do_not_see_each_other(backbone, x):
    level, c = torch.rand(7), torch.randn(7, 8)
    together = backbone(x, level, c)
    alone = torch.cat([backbone(x[i : i + 1], level[i : i + 1], c[i : i + 1]) for i in range(7)])
    torch.testing.assert_close(alone, together)


def test_blocks_listen_to_the_context(backbone, x):
    block, h = Block(8), torch.randn(7, 8)
    torch.testing.assert_close(block(h, torch.randn(7, 8)), block(h, torch.randn(7, 8)))  # not at the start
    block = backbone.blocks[0]
    assert not torch.allclose(block(h, torch.randn(7, 8)), block(h, torch.randn(7, 8)))


def test_levels_are_told_apart():
    torch.manual_seed(0)
    out = LevelEmbedding(16)(torch.linspace(0, 2.5, 30))
    distance = torch.cdist(out, out) + 10 * torch.eye(30)
    assert distance.min() > 1e-3

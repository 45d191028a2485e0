"""Own counts against the Gamma-Poisson posterior, a numerical gradient, and planted departures."""

from __future__ import annotations

import pytest
import torch
from scipy import sparse, stats

from scidiff.models.own_counts import OwnCounts, _Update
from scidiff.models.sparse import csr_tensor
from scidiff.models.thinning import Thinning, multinomial_nll


def to_csr(x: torch.Tensor) -> torch.Tensor:
    m = sparse.csr_matrix(x.numpy())
    return csr_tensor(*map(torch.from_numpy, (m.indptr, m.indices, m.data)), m.shape[1])


def gamma(shape: torch.Tensor, n: int, generator: torch.Generator) -> torch.Tensor:
    """Return Gamma variables of mean 1, shape (n, len(shape)), reproducibly."""
    u = torch.rand(n, len(shape), generator=generator, dtype=torch.float64).numpy()
    return torch.from_numpy(stats.gamma.ppf(u, shape.numpy(), scale=1 / shape.numpy())).float()


@pytest.fixture
def cells():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 7, generator=generator, dtype=torch.float64)
    x = torch.poisson(torch.full((5, 7), 1.5, dtype=torch.float64), generator=generator)
    x[3] = 0
    own = OwnCounts(7).double()
    own.departure.data = 0.1 * torch.randn(7, generator=generator, dtype=torch.float64)
    return own, logits, x, x.sum(dim=1)


def test_it_is_the_posterior_mean_of_a_gamma(cells):
    """Of rates with prior Gamma(shape, mean p) and counts Poisson(l rate), from scipy's posterior, normalised."""
    own, logits, x, level = cells
    p, shape = torch.softmax(logits, dim=1).numpy(), own.shape.detach().numpy()
    rate = stats.gamma.mean(shape + x.numpy(), scale=1 / (shape / p + level[:, None].numpy()))
    found = own(logits, x, level).softmax(dim=1)
    torch.testing.assert_close(found, torch.from_numpy(rate / rate.sum(axis=1, keepdims=True)))


def test_sparse_cells_are_the_same(cells):
    own, logits, x, level = cells
    torch.testing.assert_close(own(logits, to_csr(x), level), own(logits, x, level))


def test_a_cell_without_molecules_is_as_predicted(cells):
    own, logits, x, level = cells
    torch.testing.assert_close(own(logits, x, level)[3], torch.log_softmax(logits, dim=1)[3])


@pytest.mark.parametrize("layout", [to_csr, lambda x: x], ids=["csr", "dense"])
def test_gradient(cells, layout):
    own, logits, x, level = cells
    seen = layout(x)
    assert torch.autograd.gradcheck(
        lambda z, shape: _Update.apply(z, shape, seen, level),
        (logits.requires_grad_(), own.shape.detach().requires_grad_()),
    )


def test_training_finds_how_far_genes_depart():
    """Genes that vary with squared variation 1 / 2, and others with 1 / 50, around a composition that is known."""
    generator = torch.Generator().manual_seed(1)
    planted = torch.tensor([2.0] * 30 + [50.0] * 30)
    rate = gamma(planted, 600, generator)
    x = to_csr(torch.poisson(8 * rate, generator=generator))
    own, process = OwnCounts(60), Thinning(empty=0, uniform=1)
    optimizer = torch.optim.Adam(own.parameters(), lr=1e-2)
    for _ in range(60):
        x_noisy, level = process.noise(x, generator=generator)
        loss = process.loss(own(torch.zeros(600, 60), x_noisy, level), x, x_noisy=x_noisy, level=level).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = own.shape.detach().view(2, 30).log().mean(dim=1).exp()
    assert found[0] == pytest.approx(2, rel=0.25)
    assert found[1] == pytest.approx(50, rel=0.5)
    # and molecules that nobody has seen are predicted as by the truth
    first, second = (to_csr(torch.poisson(8 * rate, generator=generator)) for _ in range(2))
    level = first.to_dense().sum(dim=1)
    ideal = ((first.to_dense() + planted) / (8 + planted)).log()
    gap = multinomial_nll(own(torch.zeros(600, 60), first, level), second) - multinomial_nll(ideal, second)
    assert abs(float(gap.detach().mean())) < 2e-3

"""One backbone for both noise processes: it reads genes and writes genes with the same embedding.

    h = E' x + level + c;   h <- h + block(h | level + c), n_blocks times;   raw = E (gain * norm(h)) + bias

Every gene has one vector, in ``E``, that says what seeing the gene means and what makes it likely. Sharing it halves
the parameters and, on a few thousand cells, generalises better than two matrices. The gain starts at zero: an untrained
model returns its anchor. Conditions and noise level act through adaptive layer normalisation (Peebles & Xie 2023).
"""

from __future__ import annotations

import torch
from scipy import sparse
from torch import Tensor, nn
from torch.nn import functional as F

from scidiff.models.sparse import csr_tensor, to_dense, without_zeros


class Backbone(nn.Module):
    """Return raw outputs, shape (n_cells, n_genes), from an input of that shape.

    Parameters
    ----------
    n_genes
        Genes in and out.
    width
        Length of all hidden vectors, the gene embedding's and the condition's.
    n_blocks
        Residual blocks.
    """

    def __init__(self, n_genes: int, *, width: int, n_blocks: int) -> None:
        super().__init__()
        self.genes = nn.Parameter(torch.randn(n_genes, width) * 0.02)
        self.level = LevelEmbedding(width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(n_blocks))
        self.norm = nn.LayerNorm(width)
        self.gain = nn.Parameter(torch.zeros(width))
        self.bias = nn.Parameter(torch.zeros(n_genes))

    def forward(self, x: Tensor, level: Tensor, c: Tensor) -> Tensor:
        """Return raw outputs.

        Parameters
        ----------
        x
            Network input, shape (n_cells, n_genes), dense or CSR.
        level
            Noise level on the process's own scale, shape (n_cells,), of order 1.
        c
            Condition vectors, shape (n_cells, width).
        """
        context = self.level(level) + c
        h = read_genes(x, self.genes) + context
        context = F.silu(context)
        for block in self.blocks:
            h = block(h, context)
        return F.linear(self.gain * self.norm(h), self.genes, self.bias)


def has_fast_bf16() -> bool:
    """Whether this machine multiplies matrices in bfloat16 faster than in single precision."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    return torch.cpu._is_amx_tile_supported()


def read_genes(x: Tensor, genes: Tensor) -> Tensor:
    """Return ``x @ genes``, shape (n_cells, width), for dense or CSR ``x``.

    In single precision sparse products do the least work. Where bfloat16 is fast, multiplying the zeros costs less
    than skipping them (and CPUs have no sparse kernel for it).
    """
    if x.layout == torch.strided:
        return x @ genes
    if torch.is_autocast_enabled(x.device.type):
        return to_dense(x, torch.get_autocast_dtype(x.device.type)) @ genes
    return _SparseProduct.apply(without_zeros(x), genes)


class _SparseProduct(torch.autograd.Function):
    """CSR x dense. The gradient needs the transpose as CSR: scipy makes it in one pass, where torch sorts."""

    @staticmethod
    def forward(ctx, x: Tensor, genes: Tensor) -> Tensor:
        ctx.x = x
        return x @ genes

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[None, Tensor]:
        x = ctx.x
        if x.device.type != "cpu":
            return None, x.t() @ grad
        arrays = (x.values().numpy(), x.col_indices().numpy(), x.crow_indices().numpy())
        across = sparse.csr_matrix(arrays, shape=x.shape).tocsc()
        crow, col, values = map(torch.from_numpy, (across.indptr, across.indices, across.data))
        return None, csr_tensor(crow, col, values, len(x)) @ grad


class Block(nn.Module):
    """Residual perceptron whose normalisation is shifted, scaled and gated by the context."""

    def __init__(self, width: int, *, expand: int = 2) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulate = nn.Linear(width, 3 * width)
        self.up = nn.Linear(width, expand * width)
        self.down = nn.Linear(expand * width, width)
        nn.init.zeros_(self.modulate.weight)
        nn.init.zeros_(self.modulate.bias)

    def forward(self, h: Tensor, context: Tensor) -> Tensor:
        shift, scale, gate = self.modulate(context).chunk(3, dim=-1)
        y = self.norm(h) * (1 + scale) + shift
        return h + (1 + gate) * self.down(F.silu(self.up(y)))


class LevelEmbedding(nn.Module):
    """A smooth vector for a noise level of order 1: the level and slow waves of it, through a small perceptron."""

    frequencies: Tensor

    def __init__(self, width: int, *, n_waves: int = 4) -> None:
        super().__init__()
        self.register_buffer("frequencies", 2.0 ** torch.arange(1, n_waves + 1))
        self.map = nn.Sequential(nn.Linear(1 + 2 * n_waves, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, level: Tensor) -> Tensor:
        phase = level[:, None] * self.frequencies
        return self.map(torch.cat([level[:, None], phase.sin(), phase.cos()], dim=1))

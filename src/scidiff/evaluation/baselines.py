"""What a diffusion model must beat: two closed-form generators of cells.

:class:`ConditionalMultinomial` knows each condition's mean and the noise of sequencing, and nothing of how cells of one
condition differ: L ~ depths of the condition's training cells, counts ~ Multinomial(L, composition of the condition).
:class:`GaussianPCA` knows means and linear covariances, and nothing of counts: scores ~ N(mean, covariance) of the
condition in principal components of log1p(CP10k), decoded and cut at 0.

Both see training cells only and are asked in the same words as a model. An attribute that a request leaves out is
averaged over: the training cells of every value are pooled.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scipy.sparse as sp

from scidiff.errors import InputError, closest

if TYPE_CHECKING:
    from anndata import AnnData

    from scidiff.data.schema import Schema

MAX_FIT_CELLS = 5000  # for the components only; moments use all cells


@dataclass(frozen=True)
class ConditionalMultinomial:
    """Multinomial cells with the composition and the depths of their condition.

    counts : training counts, csr (n_training, n_genes); conditions : one row per training cell; genes : their names.
    """

    counts: sp.csr_matrix = field(repr=False)
    conditions: pd.DataFrame = field(repr=False)
    genes: list[str] = field(repr=False)
    schema: Schema

    @classmethod
    def fit(cls, adata: AnnData, schema: Schema) -> ConditionalMultinomial:
        """Return the baseline for the training cells ``adata``; InputError where they have no counts."""
        from scidiff.data.cells import read_cells

        cells = read_cells(adata, schema)
        if cells.scale != "counts":
            raise InputError(f"the multinomial baseline needs counts, these cells are {cells.scale}; use GaussianPCA")
        return cls(cells.x, cells.conditions, cells.genes, schema)

    def generate(self, conditions: pd.DataFrame | dict | list[dict], seed: int = 0) -> AnnData:
        """Return one cell per row of ``conditions``: counts in ``layers["counts"]``, log1p(CP10k) in ``X``."""
        from scidiff.data.scaling import log1p_cp10k

        rng = np.random.default_rng(seed)
        conditions = self.schema.conditions(conditions, known=self.conditions)
        rows, columns = [], []
        for requested, training in _by_condition(conditions, self.conditions):
            cells = self.counts[training]
            depth = rng.choice(np.asarray(cells.sum(axis=1)).ravel().astype(int), len(requested))
            # molecule by molecule: the cost is the depth, not the number of genes
            cumulated = np.cumsum(np.asarray(cells.sum(axis=0), dtype=np.float64).ravel())
            rows.append(np.repeat(requested, depth))
            columns.append(np.searchsorted(cumulated, rng.random(depth.sum()) * cumulated[-1], side="right"))
        molecules = np.concatenate(rows), np.concatenate(columns)
        shape = (len(conditions), len(self.genes))
        counts = sp.csr_matrix((np.ones(len(molecules[0]), dtype=np.float32), molecules), shape=shape)
        return _adata(log1p_cp10k(counts), conditions, self.genes, {"baseline": "multinomial", "seed": seed}, counts)


@dataclass(frozen=True)
class GaussianPCA:
    """Gaussian cells in principal components of log1p(CP10k).

    scores : training cells in the components (n_training, n_components); components (n_components, n_genes) and mean
    (n_genes,) decode them.
    """

    scores: np.ndarray = field(repr=False)
    components: np.ndarray = field(repr=False)
    mean: np.ndarray = field(repr=False)
    conditions: pd.DataFrame = field(repr=False)
    genes: list[str] = field(repr=False)
    schema: Schema

    @classmethod
    def fit(cls, adata: AnnData, schema: Schema, *, n_components: int = 50, seed: int = 0) -> GaussianPCA:
        """Return the baseline for the training cells ``adata``, on counts or log1p(CP10k)."""
        from scidiff.data.cells import read_cells
        from scidiff.data.scaling import fit_pca, log1p_cp10k

        cells = read_cells(adata, schema)
        x = sp.csr_matrix(log1p_cp10k(cells.x) if cells.scale == "counts" else cells.x)
        chosen = np.random.default_rng(seed).permutation(x.shape[0])[:MAX_FIT_CELLS]
        pca = fit_pca(x[chosen], min(n_components, min(len(chosen), x.shape[1]) - 1), seed=seed)
        return cls(pca.transform(x), pca.components_, pca.mean_, cells.conditions, cells.genes, schema)

    def generate(self, conditions: pd.DataFrame | dict | list[dict], seed: int = 0) -> AnnData:
        """Return one cell per row of ``conditions``: log1p(CP10k) in ``X``, dense; there are no counts."""
        rng = np.random.default_rng(seed)
        conditions = self.schema.conditions(conditions, known=self.conditions)
        scores = np.empty((len(conditions), self.scores.shape[1]))
        for requested, training in _by_condition(conditions, self.conditions):
            known = self.scores[training]
            centred = known - known.mean(axis=0)
            # a random combination of centred cells is a Gaussian with exactly their covariance, whatever its rank
            weights = rng.normal(size=(len(requested), len(known))) / np.sqrt(max(len(known) - 1, 1))
            scores[requested] = known.mean(axis=0) + weights @ centred
        x = np.maximum(scores @ self.components + self.mean, 0).astype(np.float32)
        return _adata(x, conditions, self.genes, {"baseline": "Gaussian in PCA", "seed": seed})


def _by_condition(requested: pd.DataFrame, known: pd.DataFrame) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (positions in ``requested``, mask of training cells) for every distinct requested condition."""
    for _, condition in requested.drop_duplicates().iterrows():
        asked, mask = np.ones(len(requested), dtype=bool), np.ones(len(known), dtype=bool)
        for column, value in condition.items():
            if pd.isna(value):
                asked &= requested[column].isna().to_numpy()
            else:
                asked &= (requested[column] == value).to_numpy()
                mask &= (known[column] == value).to_numpy()
        if not mask.any():
            wanted = ", ".join(str(value) for value in condition.dropna())
            names = known[condition.dropna().index].drop_duplicates().astype(str).agg(", ".join, axis=1)
            raise InputError(f"no training cells of condition {wanted!r}{closest(wanted, names)}")
        yield np.flatnonzero(asked), mask


def _adata(
    x, conditions: pd.DataFrame, genes: list[str], made_by: dict, counts: sp.csr_matrix | None = None
) -> AnnData:
    import anndata as ad

    obs = conditions.copy()
    obs.index = [str(i) for i in range(len(obs))]
    adata = ad.AnnData(x, obs=obs, var=pd.DataFrame(index=genes))
    scales = {"X": "log1p(CP10k)"}
    if counts is not None:
        adata.layers["counts"], scales["counts"] = counts, "counts"
    adata.uns["scidiff"] = {**made_by, "scales": scales}
    return adata

"""The denoisers to beat, each at its best: closed forms, PCA, neighbours, ALRA, MAGIC, scVI.

A baseline says only how rates follow from counts at a setting of its own. What turns rates into a composition is the
same for all, and generous: each gene is scaled to its own total of molecules (roots and logarithms do not average like
counts, and would lose rare genes), and every cell gets a share of the composition of all cells,

    p = (1 - floor) q + floor * pooled,      q = rates, genes and then cells scaled to their totals

Setting and floor are those with the fewest nats per molecule on a tenth of the *kept* molecules, held out once more;
then the method sees all kept molecules. The molecules that judge the methods choose nothing.

The scale on which cells are compared moves PCA and MAGIC more than the choice between them: methods that have one are
run on each of :data:`TRANSFORMS`.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby, product
from typing import Any, ClassVar, TypeAlias

import numpy as np
from scipy import sparse

from scidiff.evaluation.denoising import Denoised, Denoiser

Setting: TypeAlias = dict[str, Any]

FLOORS = (1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9)
JUDGES = 0.1  # share of the kept molecules that chooses the setting
SCALINGS = 10  # of cells and genes in turn; each costs two products with a vector


def grid(**choices: Sequence[Any]) -> tuple[Setting, ...]:
    """Return every combination of the choices, the last one changing fastest."""
    return tuple(dict(zip(choices, values, strict=True)) for values in product(*choices.values()))


# --- the scales on which cells are compared ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Transform:
    """A scale on which differences between cells mean something, and the way back.

    forward : counts -> sparse values, shape (n_cells, n_genes); backward : dense values -> rates from 0, any total.
    """

    name: str
    forward: Callable[[sparse.csr_matrix], sparse.csr_matrix] = field(repr=False)
    backward: Callable[[np.ndarray], np.ndarray] = field(repr=False)


def _log_cp10k(counts: sparse.csr_matrix) -> sparse.csr_matrix:
    from scidiff.data.scaling import log1p_cp10k

    return log1p_cp10k(counts)


def _log_median(counts: sparse.csr_matrix) -> sparse.csr_matrix:
    depth = np.asarray(counts.sum(axis=1)).ravel()
    factor = np.median(depth[depth > 0]) / np.maximum(depth, 1)
    return sparse.csr_matrix(counts.multiply(factor[:, None]), dtype=np.float32).log1p()


def _exp(x: np.ndarray) -> np.ndarray:
    return np.expm1(np.maximum(x, 0))


#: the field's scale; at a depth of hundreds one molecule weighs almost as much as ten
LOG_CP10K = Transform("log CP10k", _log_cp10k, _exp)
#: log(1 + counts at the median depth): one molecule is about one
LOG = Transform("log", _log_median, _exp)
#: of the counts as they are: the scale on which Poisson counts of any depth have the same variance
SQRT = Transform("sqrt", lambda counts: counts.sqrt(), lambda x: np.maximum(x, 0) ** 2)

TRANSFORMS = (LOG_CP10K, LOG, SQRT)


# --- what all baselines share -----------------------------------------------------------------------------------------


class Baseline(ABC):
    """A denoiser given by its rates; the choice of setting and floor and the refit are the same for all."""

    settings: ClassVar[tuple[Setting, ...]] = ({},)

    @property
    @abstractmethod
    def name(self) -> str:
        """What tables call it."""

    @abstractmethod
    def rates(self, counts: sparse.csr_matrix, settings: Sequence[Setting], *, seed: int) -> Iterator[np.ndarray]:
        """Yield for each setting rates from 0, shape (n_cells, n_genes); what a cell's row sums to does not matter."""

    def fit_predict(self, kept: sparse.csr_matrix, *, held_depth: np.ndarray, seed: int) -> Denoised:
        """Return the composition at the best setting and floor, which the note names (see the module)."""
        from scidiff.data.molecules import split_molecules

        # other random numbers than those of the split that this seed may have made
        inner = int(np.random.default_rng([seed, 1]).integers(2**31))
        shown, judges = split_molecules(kept, held_out=JUDGES, seed=inner)
        setting, floor = self._choose(shown, judges.tocoo(), seed)
        [rates] = self.rates(kept, [setting], seed=seed)
        composition = (1 - floor) * to_composition(rates, kept) + floor * pooled(kept)
        note = ", ".join(f"{name} {value}" for name, value in {**setting, "floor": f"{floor:g}"}.items())
        return Denoised(composition, note=note)

    def _choose(self, shown: sparse.csr_matrix, judges: sparse.coo_matrix, seed: int) -> tuple[Setting, float]:
        background = pooled(shown)[judges.col]
        nats = {}
        for i, rates in enumerate(self.rates(shown, self.settings, seed=seed)):
            q = to_composition(rates, shown)[judges.row, judges.col]
            for floor in FLOORS:
                nats[i, floor] = -judges.data @ np.log((1 - floor) * q + floor * background)
        i, floor = min(nats, key=nats.__getitem__)
        return self.settings[i], floor


def pooled(counts: sparse.csr_matrix) -> np.ndarray:
    """Return the composition of all cells together, float32, shape (n_genes,).

    Half a molecule is added to each gene, so that no molecule is impossible.
    """
    total = np.asarray(counts.sum(axis=0), dtype=np.float64).ravel() + 0.5
    return (total / total.sum()).astype(np.float32)


def to_composition(rates: np.ndarray, counts: sparse.csr_matrix) -> np.ndarray:
    """Return rates as compositions that expect each gene's total of molecules at the depths of ``counts``.

    Float32, shape (n_cells, n_genes), rows sum to 1. Cells without any rate get the composition of all cells.
    """
    depth, total = np.asarray(counts.sum(axis=1)).ravel(), np.asarray(counts.sum(axis=0)).ravel()
    rates = np.asarray(rates, dtype=np.float32)
    of_gene = np.ones(rates.shape[1], dtype=np.float32)
    for _ in range(SCALINGS):
        expected = _divided(depth, rates @ of_gene) @ rates
        of_gene = _divided(total, expected)
    in_cell = rates @ of_gene
    p = rates * of_gene * _divided(np.ones_like(in_cell), in_cell)[:, None]
    p[in_cell <= 0] = pooled(counts)
    return p


def _divided(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return a / b, and 0 where b is not positive, float32."""
    return np.divide(a, b, out=np.zeros(len(b), dtype=np.float32), where=b > 0, casting="same_kind")


def _components(x: sparse.csr_matrix, rank: int, seed: int) -> tuple[np.ndarray, Any]:
    """Return scores in up to ``rank`` principal components, as many as there are, and the fitted PCA."""
    from scidiff.data.scaling import fit_pca

    pca = fit_pca(x, min(rank, min(x.shape) - 1), seed=seed)
    return pca.transform(x), pca


# --- the baselines ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Raw(Baseline):
    """The kept molecules themselves."""

    name: str = "raw"

    def rates(self, counts, settings, *, seed):
        for _ in settings:
            yield counts.toarray()


@dataclass(frozen=True)
class GlobalMean:
    """The composition of all cells for each of them: what it means to know nothing about a cell."""

    name: str = "global mean"

    def fit_predict(self, kept: sparse.csr_matrix, *, held_depth: np.ndarray, seed: int) -> Denoised:
        """Return the pooled composition, once per cell; there is nothing to choose."""
        return Denoised(np.tile(pooled(kept), (kept.shape[0], 1)))


RANKS = (2, 3, 5, 7, 10, 15, 20, 30, 40, 50)


@dataclass(frozen=True)
class PrincipalComponents(Baseline):
    """The cells rebuilt from their first principal components, cut at 0."""

    transform: Transform
    settings = grid(rank=RANKS)

    @property
    def name(self) -> str:
        return f"PCA, {self.transform.name}"

    def rates(self, counts, settings, *, seed):
        scores, pca = _components(self.transform.forward(counts), max(s["rank"] for s in settings), seed)
        for setting in settings:
            r = setting["rank"]
            yield self.transform.backward(scores[:, :r] @ pca.components_[:r] + pca.mean_)


@dataclass(frozen=True)
class Neighbours(Baseline):
    """The molecules of a cell and its nearest neighbours together (after Wagner, Yan & Yanai 2017).

    Neighbours are nearest in principal components; the molecules are added up as they are, so deep cells count more.
    """

    transform: Transform
    settings = grid(rank=(10, 20, 40), k=(8, 16, 32, 64, 128, 256, 512))

    @property
    def name(self) -> str:
        return f"kNN, {self.transform.name}"

    def rates(self, counts, settings, *, seed):
        from sklearn.neighbors import NearestNeighbors

        scores, _ = _components(self.transform.forward(counts), max(s["rank"] for s in settings), seed)
        n = len(scores)
        for rank, same in groupby(settings, key=lambda setting: setting["rank"]):
            sizes = [min(setting["k"], n) for setting in same]
            search = NearestNeighbors(n_neighbors=max(sizes)).fit(scores[:, :rank])
            nearest = search.kneighbors(scores[:, :rank], return_distance=False)  # by distance, itself among them
            for k in sizes:
                chosen = nearest[:, :k].ravel()
                ends = np.arange(0, n * k + 1, k)
                graph = sparse.csr_matrix((np.ones(n * k, dtype=np.float32), chosen, ends), shape=(n, n))
                yield (graph @ counts).toarray()


@dataclass(frozen=True)
class ALRA(Baseline):
    """Low-rank approximation with the biological zeros put back (Linderman et al. 2022).

    What a low-rank matrix says about a gene's zeros scatters around 0, as far up as down: all values of the gene up to
    the size of its most negative ones become 0. The others are moved and stretched to mean and standard deviation of
    the gene's observed non-zero values, and observed values that fell to 0 return. The rank is chosen by held-out
    molecules, not by the gaps between singular values.
    """

    transform: Transform
    settings = grid(rank=RANKS)

    @property
    def name(self) -> str:
        return f"ALRA, {self.transform.name}"

    def rates(self, counts, settings, *, seed):
        from sklearn.utils.extmath import randomized_svd

        x = self.transform.forward(counts)
        u, s, vt = randomized_svd(x, min(max(s["rank"] for s in settings), min(x.shape)), n_iter=10, random_state=seed)
        for setting in settings:
            r = setting["rank"]
            yield self.transform.backward(restore_zeros((u[:, :r] * s[:r]) @ vt[:r], x))


def restore_zeros(low_rank: np.ndarray, x: sparse.csr_matrix, *, quantile: float = 0.001) -> np.ndarray:
    """Return ALRA's values from a low-rank approximation of ``x``, both of shape (n_cells, n_genes)."""
    # sorted up to one place only: a quantile of each gene by full sorting would take most of the time of this method
    place = round(quantile * (len(low_rank) - 1))
    threshold = np.abs(np.partition(low_rank, place, axis=0)[place])
    kept = low_rank > threshold
    mean, sd = _moments(np.where(kept, low_rank, 0), kept.sum(axis=0))
    wanted_mean, wanted_sd = _moments(x, x.getnnz(axis=0))
    defined = (sd > 0) & (wanted_sd > 0)
    stretch = np.divide(wanted_sd, sd, out=np.ones_like(sd), where=defined)
    scaled = (low_rank - np.where(defined, mean, 0)) * stretch + np.where(defined, wanted_mean, 0)
    result = np.where(kept, np.maximum(scaled, 0), 0).astype(np.float32)
    observed = x.toarray()
    return np.where(result > 0, result, observed)


def _moments(x, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation of the ``n`` non-zero values of each gene; 0 where there are too few."""
    first = np.asarray(x.sum(axis=0), dtype=np.float64).ravel()
    second = np.asarray((x.power(2) if sparse.issparse(x) else x**2).sum(axis=0), dtype=np.float64).ravel()
    mean = first / np.maximum(n, 1)
    return mean, np.sqrt(np.maximum(second - n * mean**2, 0) / np.maximum(n - 1, 1))


@dataclass(frozen=True)
class MAGIC(Baseline):
    """Diffusion over a graph of similar cells (van Dijk et al. 2018), by its authors' package ``magic-impute``."""

    transform: Transform
    settings = grid(knn=(3, 5, 10, 20), t=(1, 2, 3))

    @property
    def name(self) -> str:
        return f"MAGIC, {self.transform.name}"

    def rates(self, counts, settings, *, seed):
        try:
            import magic
        except ImportError as error:
            raise ImportError(f"MAGIC needs its package, pip install magic-impute ({error})") from error

        seen = np.flatnonzero(counts.getnnz(axis=0))  # it warns about the others
        x = self.transform.forward(counts)[:, seen].toarray()
        for knn, same in groupby(settings, key=lambda setting: setting["knn"]):
            operator = magic.MAGIC(knn=knn, random_state=seed, verbose=0)
            for setting in same:
                operator.set_params(t=setting["t"])
                rates = np.zeros(counts.shape, dtype=np.float32)
                with _quiet():
                    rates[:, seen] = self.transform.backward(operator.fit_transform(x))  # the graph is made once
                yield rates


@dataclass(frozen=True)
class SCVI(Baseline):
    """A variational autoencoder of counts (Lopez et al. 2018), by ``scvi-tools``; posterior mean of ten draws."""

    name: str = "scVI"
    settings = grid(likelihood=("nb", "poisson"), epochs=(50, 100))

    def rates(self, counts, settings, *, seed):
        try:
            import scvi  # noqa: F401
        except ImportError as error:
            raise ImportError(f"scVI needs its package, pip install scvi-tools ({error})") from error

        filled = np.flatnonzero(counts.getnnz(axis=1))  # its library size is a logarithm
        for setting in settings:
            rates = np.zeros(counts.shape, dtype=np.float32)
            rates[filled] = _scvi(counts[filled], seed=seed, **setting)
            yield rates


def _scvi(counts: sparse.csr_matrix, *, likelihood: str, epochs: int, seed: int) -> np.ndarray:
    """Return scVI's rates, shape (n_cells, n_genes), rows sum to 1; no cell may be without molecules."""
    import torch
    from anndata import AnnData
    from scvi.model import SCVI as Model

    with _quiet(), torch.random.fork_rng():
        torch.manual_seed(seed)
        adata = AnnData(counts)
        Model.setup_anndata(adata)
        model = Model(adata, n_latent=30, gene_likelihood=likelihood)
        model.train(max_epochs=epochs, early_stopping=True, enable_progress_bar=False, logger=False)
        return model.get_normalized_expression(library_size=1, n_samples=10, return_numpy=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep warnings and notes of other packages out of the benchmark's output."""
    import logging

    log = logging.getLogger("lightning.pytorch")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def baseline_denoisers() -> list[Denoiser]:
    """Return every baseline, simplest first, those with a scale once on each."""
    with_scale = [method(scale) for method in (PrincipalComponents, Neighbours, ALRA, MAGIC) for scale in TRANSFORMS]
    return [GlobalMean(), Raw(), *with_scale, SCVI()]

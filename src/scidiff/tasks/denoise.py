"""Denoise: the cell behind the counts, as means on stated scales or as draws.

A cell's block of rows is worked on alone, with randomness of its own, so that a file gives in runs what it gives whole.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from scipy import sparse

from scidiff.conditioning import Conditions
from scidiff.data.cells import read_cells
from scidiff.data.molecules import split_molecules
from scidiff.data.scaling import log1p_cp10k, row_sums
from scidiff.errors import DataWarning, InputError, closest, whole_numbers
from scidiff.files import check_cells_place
from scidiff.model import TrainedModel
from scidiff.models.denoiser import Denoiser
from scidiff.sampling.denoise import Cautious, posterior_draw, posterior_mean
from scidiff.sampling.generate import CHUNK
from scidiff.shares import Share
from scidiff.streaming import CellFile, appended, runs
from scidiff.tasks.requests import checked_depth, described, gene_table

if TYPE_CHECKING:
    from anndata import AnnData

#: scales of posterior means, and the layers they are written to
SCALES = {
    "log1p": "denoised",
    "rate": "rate",
    "expected_counts": "expected_counts",
    "expected_log": "expected_log",
}
DESCRIBED = {
    "denoised": "log1p(CP10k) of the posterior mean rate",
    "rate": "posterior mean rate, counts per 10,000",
    "expected_counts": "mean of new counts at the depth asked for",
    "expected_log": "mean of log1p(CP10k) of new counts at the depth asked for",
}

#: levels of Gaussian noise that cells may be matched to, in standard deviations of a gene
SIGMAS = tuple(np.geomspace(0.1, 20, 14).round(3).tolist())


@dataclass(frozen=True, eq=False)
class Request:
    """What is asked of denoising; the parameters are those of :meth:`scidiff.ScIDiff.denoise`."""

    scales: Sequence[str] = ("log1p",)
    draws: int = 0
    depth: float | np.ndarray | None = None
    labels: bool = True
    genes: Sequence[str] | None = None
    n_steps: int = 20
    seed: int = 0

    def checked(self, model: TrainedModel, n_cells: int) -> Request:
        """Return the request with scales as a tuple, one depth per cell, and genes; raise InputError."""
        scales = (self.scales,) if isinstance(self.scales, str) else tuple(self.scales)
        if unknown := [scale for scale in scales if scale not in SCALES]:
            raise InputError(f"unknown scale {unknown[0]!r}{closest(unknown[0], SCALES)}")
        whole_numbers(draws=(self.draws, 0), n_steps=(self.n_steps, 1), seed=(self.seed, 0))
        if not model.counted:
            why = "needs a model trained on counts; this one was trained on log expression"
            if self.depth is not None:
                raise InputError(f"depth= {why}")
            if other := [scale for scale in scales if scale != "log1p"]:
                raise InputError(f"scale {other[0]!r} {why}")
        if self.draws and model.standardizer is not None:
            raise InputError("draws= needs a model trained with thinning; Gaussian noise gives means here")
        if isinstance(self.genes, str):
            raise InputError(f"genes={self.genes!r}: give a list of names")
        genes = model.genes if self.genes is None else list(self.genes)
        if missing := set(genes) - set(model.genes):
            first = next(gene for gene in genes if gene in missing)
            raise InputError(f"gene {first!r} is not one of the model{closest(first, model.genes)}")
        if not genes or len(set(genes)) < len(genes):
            raise InputError("genes= needs at least one gene, and each only once")
        depth = None if self.depth is None else checked_depth(self.depth, n_cells)
        return replace(self, scales=scales, genes=genes, depth=depth)


def denoise(
    model: TrainedModel,
    adata: AnnData,
    request: Request,
    *,
    layer: str | None = None,
    on_cells: Callable[[int, int], None] | None = None,
) -> AnnData:
    """Return denoised cells; see :meth:`scidiff.ScIDiff.denoise`."""
    asked = request.checked(model, len(adata))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"\d+ cells have no molecule", DataWarning)  # said below, by name
        cells = read_cells(adata, genes=model.genes, layer=layer)
    model.refuse_cells(cells.scale, adata.obs_names[row_sums(abs(cells.x)) == 0])
    cond = model.vocabulary.encode(model.labels_of(adata, use=asked.labels))
    var = gene_table(adata, asked.genes or model.genes)
    return _denoised(model, cells.x, adata.obs, var, cond, asked, on_cells=on_cells)


def denoise_file(
    model: TrainedModel,
    source: str | Path,
    out: str | Path,
    request: Request,
    *,
    layer: str | None = None,
    share: Share | None = None,
    half: bool = False,
    on_cells: Callable[[int, int], None] | None = None,
) -> AnnData:
    """Write denoised cells run by run; see :meth:`scidiff.ScIDiff.denoise_file`."""
    source, out, share = Path(source), Path(out), share or Share()
    check_cells_place(out, inputs=[source])
    with CellFile(source) as file:
        asked = request.checked(model, file.n_obs)
        cells = file.choose(model.genes, layer=layer)
        model.refuse_cells(cells.scale, cells.empty)
        cond = model.vocabulary.encode(model.labels_of(file, use=asked.labels))
        var = described(cells.var, asked.genes or model.genes)
        mine = share.among(list(runs(file.n_obs)), what="runs of 1,024 cells")
        start, stop = mine[0].start, mine[-1].stop
        with appended(out, file.obs[start:stop]) as sink:
            for rows in mine:
                made = _denoised(model, cells[rows], file.obs[rows], var, cond[rows], asked, first=rows.start)
                sink.append(_halved(made) if half else made)
                if on_cells is not None:
                    on_cells(rows.stop - start, stop - start)
    return sink.head


def _halved(cells: AnnData) -> AnnData:
    """Return the cells with their means, the dense layers, in float16: three digits in half the space."""
    for name, values in cells.layers.items():
        if not sparse.issparse(values):
            if values.max(initial=0) > np.finfo(np.float16).max:
                raise InputError(f"layer {name!r} has values above 65,504, more than half precision holds")
            cells.layers[name] = values.astype(np.float16)
    return cells


def _denoised(
    model: TrainedModel,
    x: Any,
    obs: pd.DataFrame,
    var: pd.DataFrame,
    cond: Conditions,
    asked: Request,
    *,
    first: int = 0,
    on_cells: Callable[[int, int], None] | None = None,
) -> AnnData:
    """Return denoised cells with provenance; ``first`` is the place of the first of them among all.

    Cells are worked on in blocks, each with randomness of its own: the result is the same in one call as in many,
    as long as these begin with a block.
    """
    from anndata import AnnData

    counted = model.counted
    places = pd.Index(model.genes).get_indexer(asked.genes)
    depth: Any = None
    goal: Any = None
    if counted:
        depth = row_sums(x)
        cond = replace(cond, depth=torch.from_numpy(depth).float())
        goal = 2 * depth
        if asked.depth is not None:
            depth = goal = np.asarray(asked.depth)[first : first + len(obs)]
    out: dict[str, list[Any]] = {}
    for start in range(0, len(obs), CHUNK):
        rows = slice(start, min(start + CHUNK, len(obs)))
        block = x[rows].toarray() if sparse.issparse(x) else x[rows]
        means = posterior(model, block, cond[rows], asked.scales, None if depth is None else depth[rows])
        for scale, values in means.items():
            out.setdefault(SCALES[scale], []).append(values[:, places])
        if asked.draws:
            own_seed = int(np.random.SeedSequence([asked.seed, first + start]).generate_state(1, np.uint64)[0])
            random = torch.Generator(model.posterior.device).manual_seed(own_seed)
            drawn = _draws(model, block, cond[rows], goal[rows], asked.draws, n_steps=asked.n_steps, random=random)
            for i, counts in enumerate(drawn, start=1):
                out.setdefault(f"draw_{i}", []).append(counts[:, places])
        if on_cells is not None:
            on_cells(rows.stop, len(obs))
    layers = {k: sparse.vstack(v, format="csr") if sparse.issparse(v[0]) else np.concatenate(v) for k, v in out.items()}
    logged = log1p_cp10k(x)[:, places] if counted else x[:, places]
    if counted:
        layers["counts"] = x[:, places]
        scales = {"X": "observed, log1p(CP10k)"} | {name: DESCRIBED.get(name, "counts") for name in layers}
    else:
        scales = {"X": "observed, training scale"} | dict.fromkeys(layers, "posterior mean, training scale")
    made = AnnData(logged, obs=obs.copy(), var=var, layers=layers)
    made.uns["scidiff"] = model.provenance(
        "denoise",
        scales,
        labels=asked.labels,
        depth="as asked" if asked.depth is not None else "observed; draws twice that",
        draws=asked.draws,
        seed=asked.seed,
        n_steps=asked.n_steps,
    )
    return made


def posterior(
    model: TrainedModel, x: np.ndarray, cond: Conditions, scales: Sequence[str], depth: np.ndarray | None
) -> dict[str, np.ndarray]:
    """Return the posterior means of a chunk of cells, float32, shape (n_cells, n_genes), by scale.

    ``depth``: molecules of the cells that scales with a depth refer to, shape (n_cells,).
    """
    device = model.posterior.device
    if model.standardizer is None:
        seen = torch.from_numpy(x).to(device)
        level = seen.sum(dim=1)
    else:
        logged = log1p_cp10k(x) if model.counted else x
        seen = torch.from_numpy(model.standardizer.transform(logged)).to(device)
        level = torch.from_numpy(_sigma(model, x)).to(device)
    clean = posterior_mean(model.posterior, seen, level, cond.to(device), process=model.posterior.process).cpu().numpy()
    if model.standardizer is not None:
        clean = np.maximum(model.standardizer.inverse(clean), 0)
        if not model.counted:
            return dict.fromkeys(scales, clean)
        clean = _rates(clean, x.sum(axis=1))
    out = {}
    for scale in scales:
        if scale in ("log1p", "rate"):
            rate = clean * np.float32(1e4)
            out[scale] = np.log1p(rate) if scale == "log1p" else rate
            continue
        assert depth is not None
        if scale == "expected_counts":
            out[scale] = clean * depth[:, None].astype(np.float32)
        else:
            from scidiff.evaluation.denoising import expected_log

            out[scale] = expected_log(clean, depth)
    return out


def _draws(
    model: TrainedModel,
    x: np.ndarray,
    cond: Conditions,
    depth: np.ndarray,
    n: int,
    *,
    n_steps: int,
    random: torch.Generator,
) -> Iterator[sparse.csr_matrix]:
    """Yield posterior draws of a chunk of cells, csr counts."""
    device = model.denoiser.device
    cond = replace(cond, depth=torch.from_numpy(depth).float()).to(device)
    denoiser: Denoiser | Cautious = model.posterior
    if model.trust is not None:
        denoiser = Cautious(model.posterior, model.posterior.anchor.base, model.trust.to(device))
    for _ in range(n):
        drawn = posterior_draw(
            denoiser,
            torch.from_numpy(x).to(device),
            cond.depth,
            cond,
            process=model.posterior.process,
            n_steps=n_steps,
            gain=1.0,
            generator=random,
        )
        yield sparse.csr_matrix(drawn.cpu().numpy())


def _sigma(model: TrainedModel, x: np.ndarray) -> np.ndarray:
    """Return the noise level that cells are matched to: falls as the root of the depth; chosen in training."""
    sigma = np.float32(model.settings["sigma"])
    if not model.counted:
        return np.full(len(x), sigma, np.float32)
    depth = np.maximum(x.sum(axis=1), 1)
    return np.clip(sigma * np.sqrt(model.settings["sigma_depth"] / depth), 0.01, 50).astype(np.float32)


def matched_sigma(model: TrainedModel, x: Any, cond: Conditions, *, seed: int) -> dict[str, float]:
    """Return the noise level that real cells are denoised best at, and the molecules of the cells it was found on.

    Judged by what the network is not shown of a cell: half of its molecules (Batson, Royer & Webber 2019), or without
    counts half of its genes (Batson & Royer 2019).
    """
    from scidiff.evaluation.metrics import nll_molecule

    standardizer = model.standardizer
    assert standardizer is not None
    depth = 1.0
    if model.counted:
        kept, held = split_molecules(sparse.csr_matrix(x), held_out=0.5, seed=seed)
        shown, depth = kept.toarray(), float(np.median(row_sums(kept)))
        cond = replace(cond, depth=torch.from_numpy(np.maximum(row_sums(kept), 1)).float())
        average = np.asarray(kept.sum(axis=0)).ravel() / kept.sum() + 1e-9

        def loss(trial: TrainedModel) -> float:
            rate = posterior(trial, shown, cond, ("rate",), None)["rate"]
            return nll_molecule(held, 0.99e-4 * rate + 0.01 * average)  # a rate of zero would be infinitely wrong
    else:
        dense = x.toarray() if sparse.issparse(x) else x
        hidden = np.random.default_rng(seed).random(dense.shape) < 0.5
        shown = np.where(hidden, standardizer.mean, dense)

        def loss(trial: TrainedModel) -> float:
            off = (posterior(trial, shown, cond, ("log1p",), None)["log1p"] - dense) / standardizer.sd
            return float(np.square(off[hidden]).mean())

    choices = [{"sigma": sigma, "sigma_depth": depth} for sigma in SIGMAS]
    return min(choices, key=lambda chosen: loss(replace(model, settings=model.settings | chosen)))


def _rates(expected: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """Return the composition whose counts at ``depth`` have this mean of log1p(CP10k), shape (n_cells, n_genes).

    A network that learned from log expression of shallow cells predicts its mean, mostly that of zeros and ones:
    ``expm1`` of it would be no rate.
    """
    from scidiff.evaluation.denoising import expected_log

    p = np.concatenate([[0], np.geomspace(1e-8, 1, 300)])
    means = expected_log(np.broadcast_to(p, (len(depth), len(p))), depth)
    rates = np.stack([np.interp(row, mean, p) for row, mean in zip(expected, means, strict=True)])
    return (rates / np.maximum(rates.sum(axis=1, keepdims=True), 1e-12)).astype(np.float32)

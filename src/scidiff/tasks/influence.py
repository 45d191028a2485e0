"""Influence: which genes the network expects more or less of, for a molecule more of another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from scidiff.data.cells import read_cells
from scidiff.data.scaling import row_sums
from scidiff.errors import InputError, closest
from scidiff.model import TrainedModel
from scidiff.sampling.influence import influence as jacobian

if TYPE_CHECKING:
    from anndata import AnnData


def influence(
    model: TrainedModel,
    adata: AnnData,
    sources: Sequence[str],
    *,
    n_cells: int = 256,
    layer: str | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Return the influence of genes on genes; see :meth:`scidiff.ScIDiff.influence`."""
    if model.standardizer is not None:
        raise InputError("influence needs a model trained on counts with thinning; this one has Gaussian noise")
    sources = [sources] if isinstance(sources, str) else list(sources)
    places = pd.Index(model.genes).get_indexer(sources)
    if not sources or (places < 0).any():
        unknown = next((gene for gene, place in zip(sources, places, strict=True) if place < 0), "no gene")
        raise InputError(f"sources: {unknown!r} is not one of the model's genes{closest(unknown, model.genes)}")
    if n_cells < 1 or seed < 0:
        raise InputError(f"n_cells={n_cells}, seed={seed}: need at least one cell and a seed from 0")
    rows = np.sort(np.random.default_rng(seed).permutation(adata.n_obs)[:n_cells])
    chosen = adata[rows]
    cells = read_cells(chosen, genes=model.genes, layer=layer)
    model.refuse_cells(cells.scale, chosen.obs_names[row_sums(abs(cells.x)) == 0])
    device = model.posterior.device
    cond = model.vocabulary.encode(model.labels_of(chosen, use=True)).to(device)
    x = torch.from_numpy(cells.x.toarray()).to(device)
    found = jacobian(model.posterior.expected, x, cond, places.tolist())
    return pd.DataFrame(found.cpu().numpy(), index=pd.Index(sources, name="source"), columns=model.genes)

"""A network as a matrix: signed weights of targets, one column per regulator, (n_genes, n_tfs)."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import sparse

from scidiff.errors import InputError, expect

MIN_TARGETS = 5


def weights_of(
    network: pd.DataFrame, genes: pd.Index, min_targets: int = MIN_TARGETS
) -> tuple[pd.Index, sparse.csc_matrix]:
    """Return the TFs with enough targets among the genes, sorted by name, and their weights, (n_genes, n_tfs).

    A network without a column ``weight`` has weights of 1. A TF with the same weight on every gene says nothing and is
    left out.

    Raises
    ------
    InputError
        The network has no column source or target, or no TF has enough targets.
    """
    expect(network, pd.DataFrame, "a table of regulators", "read a file with scidiff.integration.read_network")
    if lost := [column for column in ("source", "target") if column not in network]:
        raise InputError(f"the network has no column {lost[0]!r}; it has {', '.join(map(str, network.columns))}")
    if "weight" not in network:
        network = network.assign(weight=1.0)
    edges = network[network["target"].isin(genes)]
    counts = edges["source"].value_counts()
    edges = edges[edges["source"].isin(counts.index[counts >= max(min_targets, 1)])]
    if edges.empty:
        raise InputError(
            f"no regulator has {min_targets} targets among the {len(genes)} genes; are both named alike (symbols or "
            "Ensembl ids)?"
        )
    names = pd.Index(sorted(edges["source"].unique()))
    at = genes.get_indexer(edges["target"]), names.get_indexer(edges["source"])
    weights = sparse.csc_matrix((edges["weight"].astype(float), at), shape=(len(genes), len(names)))
    varied = np.flatnonzero(size_of(weights) > 1e-9)
    return names[varied], weights[:, varied]


def size_of(weights: sparse.csc_matrix) -> np.ndarray:
    """Return the sum of squares of every TF's centred weights, (n_tfs,)."""
    mean = np.asarray(weights.mean(axis=0)).ravel()
    return np.asarray(weights.multiply(weights).sum(axis=0)).ravel() - weights.shape[0] * mean**2

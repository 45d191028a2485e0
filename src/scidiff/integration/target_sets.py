"""Which drugs act on what changes: the targets of a drug as a set of genes with signs, looked for in an effect.

A drug is taken for a regulator of its targets: +1 for those it raises or activates, -1 for those it lowers or
inhibits. Its score is the t-value of the effect's regression on these signs, as for transcription factors
(:mod:`~scidiff.integration.regulators`): positive where what the drug inhibits is down and what it activates is up.

It takes the expression of a target for its activity, which is often wrong (no cell makes more of a kinase because the
kinase is active), and knows no gene that the drug does not bind. It is the weaker evidence, for drugs without a
signature; beside a signature it has no part in the order.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable

import numpy as np
import pandas as pd

from scidiff.errors import DataWarning, InputError, closest
from scidiff.integration.drug_identity import matching, one_drug
from scidiff.integration.ranking import DIRECTIONS, one_sided
from scidiff.integration.regulators import Matrix, rank_regulators

MIN_TARGETS = 3  # with fewer, the accident of one gene is the whole score
LOWERS = r"inhibit|antagonis|block|inverse agonis|negative|degrad|antisense|suppress|inactivat|neutrali|downregulat"
RAISES = r"agonis|activat|induc|potentiat|positive|stimulat|opener|upregulat"


def action_sign(action: str) -> float:
    """Return -1 where an action lowers its target, 1 where it raises it, 0 where it does neither or both.

    Where nothing is said it is -1: most drugs inhibit what they bind.
    """
    said = [one for one in re.split(r"[|;,]", action.lower()) if one.strip()]
    signs = {-1.0 if re.search(LOWERS, one) else 1.0 if re.search(RAISES, one) else 0.0 for one in said} - {0.0}
    if not said:
        return -1.0
    return signs.pop() if len(signs) == 1 else 0.0


def rank_target_sets(
    effect: pd.Series,
    targets: pd.DataFrame,
    *,
    direction: str = "mimic",
    cells: tuple[Matrix, Matrix] | None = None,
    leave_out: Iterable[str] = (),
    drug_names: pd.Series | None = None,
) -> pd.DataFrame:
    """Return the drugs with enough targets, the best first, one row each.

    Columns: ``kind`` ("drug"); ``name``; ``rank`` and ``consensus_rank`` by ``target_set``, the t-value, positive
    where the drug mimics the effect, whatever was asked for; ``direction``; ``p_value``, one-sided in that direction;
    ``fdr`` (Benjamini & Hochberg 1995); ``leading_genes``, the targets that speak most for the sign of the score;
    ``n_targets``; ``known_targets``; ``source``.

    Parameters
    ----------
    effect
        Change of every gene; genes are its index.
    targets
        From :func:`~scidiff.integration.drug_targets.read_drug_targets`. A target that the drug is not known to raise
        or lower is left out (:func:`action_sign`).
    direction
        "mimic": drugs that would cause the effect; "reverse": that would undo it.
    cells
        Treated and control cells that the effect is the difference of, for the p-values
        (:func:`~scidiff.integration.regulators.rank_regulators`).
    leave_out
        Genes that are no evidence, such as those that were steered.
    drug_names
        From :func:`~scidiff.integration.drug_targets.read_drug_names`: which names are of one drug.

    Raises
    ------
    InputError
        The direction is not known, or no drug has three targets that were measured. Drugs with fewer are left out,
        with a warning.
    """
    if direction not in DIRECTIONS:
        raise InputError(f"direction={direction!r}{closest(direction, DIRECTIONS)}")
    codes, names = one_drug(targets, drug_names)
    edges = pd.DataFrame({"source": names[codes], "target": targets["target"].to_numpy()})
    actions = targets["action"].fillna("") if "action" in targets else [""] * len(targets)
    edges["weight"] = [action_sign(str(action)) for action in actions]
    edges = edges.groupby(["source", "target"], as_index=False)["weight"].mean()
    edges = edges[edges["weight"].abs() == 1]  # where sources disagree nobody knows
    measured = edges["target"].isin(effect.index) & ~edges["target"].isin(list(leave_out))
    sizes = edges.loc[measured, "source"].value_counts().reindex(names, fill_value=0)
    _refuse_small(sizes)
    table = rank_regulators(
        effect,
        edges,
        cells=cells,
        leave_out=leave_out,
        min_targets=MIN_TARGETS,
        min_detected=0.0,  # a receptor that is hardly seen is a target all the same
        multivariate=False,
        per_cell=False,
    ).rename(columns={"ulm": "target_set"})
    from scipy.stats import false_discovery_control

    score = DIRECTIONS[direction] * table["target_set"]
    p_value = one_sided(table["p_value"], score)
    order = np.argsort(-score.to_numpy(), kind="stable")
    place = np.arange(1, len(table) + 1)
    table = table.assign(kind="drug", direction=direction, p_value=p_value, fdr=false_discovery_control(p_value))
    table["known_targets"] = table["name"].map(targets_of(targets, drug_names))
    table["source"] = ", ".join(pd.unique(targets["source"])) if "source" in targets else ""
    table = table.iloc[order].assign(rank=place, consensus_rank=place)
    shown = ["kind", "name", "rank", "target_set", "consensus_rank", "direction", "p_value", "fdr", "leading_genes"]
    return table[[*shown, "n_targets", "known_targets", "source"]].reset_index(drop=True)


def targets_of(targets: pd.DataFrame, drug_names: pd.Series | None = None) -> pd.Series:
    """Return the targets of every drug, joined by commas, by the names of :func:`one_drug`."""
    codes, names = one_drug(targets, drug_names)
    genes = targets["target"].groupby(codes).agg(lambda some: ",".join(dict.fromkeys(some)))
    return genes.set_axis(names)


def target_features(targets: pd.DataFrame, names: Iterable[str], drug_names: pd.Series | None = None) -> pd.DataFrame:
    """Return drugs by what they bind, as features from which a model predicts drugs it has not seen.

    One row per drug of ``names``, one column per target that two of them share or more: -1 where the drug lowers it, 1
    where it raises it, 0 elsewhere. Made for ``features=`` of :meth:`scidiff.ScIDiff.fit`.

    Parameters
    ----------
    targets, drug_names
        As in :func:`rank_target_sets`.
    names
        Drugs as they are called in the cells, seen and unseen.

    Raises
    ------
    InputError
        A drug is not in the table, or no two drugs share a target.
    """
    asked = pd.DataFrame({"name": list(dict.fromkeys(names))})
    code = one_drug(targets, drug_names)[0]
    at = matching(asked, np.arange(len(asked)), targets, code, drug_names)
    if (at < 0).any():
        lost = asked["name"][at < 0].iloc[0]
        raise InputError(f"{lost!r} is not in the table of targets{closest(lost, _names(targets))}")
    said = targets["action"].fillna("") if "action" in targets else pd.Series("", index=targets.index)
    signs = pd.DataFrame({"drug": code, "target": targets["target"], "sign": [action_sign(one) for one in said]})
    table = signs.pivot_table(index="drug", columns="target", values="sign", aggfunc="mean", fill_value=0.0)
    table = table.reindex(at, fill_value=0.0).set_axis(list(asked["name"]))
    table = table.loc[:, (table != 0).sum() > 1].rename_axis(columns=None)
    if table.empty:
        raise InputError("no two of these drugs share a target: targets say nothing of one from another")
    return table


def _names(targets: pd.DataFrame) -> list[str]:
    return list(dict.fromkeys(targets["drug"].astype(str)))


def _refuse_small(sizes: pd.Series) -> None:
    """Refuse a table without a target set that is large enough; warn of the drugs that have none."""
    few = sizes < MIN_TARGETS
    why = f"fewer than {MIN_TARGETS} targets that are measured and known to be raised or lowered"
    if few.all():
        raise InputError(f"no drug can be scored by its targets: each has {why} (the most: {sizes.max()})")
    if few.any():
        warnings.warn(
            f"{few.sum()} of {len(few)} drugs are not scored by their targets, having {why} (first: "
            f"{few.idxmax()!r}, {sizes[few.idxmax()]})",
            DataWarning,
            stacklevel=4,
        )

"""How large effects are: of a gene, of a perturbation, between contexts; by empirical Bayes from all measured effects.

For gene g and part p, averaged over contexts, the measured effect E_gp has known sampling variance V_gp. By moments::

    E_gp           ~ m_g + N(0, r_p b_g + o_gp) + N(0, V_gp)      b_g: of the gene; r_p: strength of the part, mean 1
    o_gp           = max(E_gp^2 - (3^2) V_gp, 0)                  a heavy tail: a clear effect is not shrunk away
    Var_k(E_gp(k)) = r_p c_g + noise                              c_g: between contexts
    Var(D_gP - sum_{p in P} E_gp) = i_g + noise                   i_g: interaction in a combination P

Many perturbations do nothing, and shrink to nothing; but a knock-out without consequences still lowers its own gene.
The average response m_g is what weak and strong perturbations have in common: parts count by 1 / (r_p b_g + V_gp), as
the mean of a few strong ones is no response of all. It is shrunk too, and control cells that all effects share must
not pass for it. (Efron & Morris 1973: variances by moments; Stephens 2017: why the tail.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scidiff.models.effect_curves import INDEPENDENT
from scidiff.models.effect_measured import JOINED, Measured

FEW_CONTEXTS = 3  # below, contexts cannot say how they differ ...
FEW_CONTEXT_SHARE = 0.25  # ... and this share of b_g is believed
FEW_COMBINATIONS = 3  # likewise, combinations with all parts measured alone ...
INTERACTION_SHARE = 0.1  # ... and this share of the parts' variances
MANY_PARTS = 5  # from here on there is an average response ...
ROUNDS = 3  # ... found in turn with strengths, which say how much each part tells of it
FLOOR = 1e-4  # of variances, log1p units squared
WEAKEST = 0.01  # least strength of a part: none is known to do exactly nothing
CLEAR = 3.0  # standard errors from which on an effect is no accident

ARRAYS = ("average", "between", "across", "interaction", "strength", "outlier")


@dataclass(frozen=True, eq=False)
class Prior:
    """What is believed of effects that were not measured.

    Parameters
    ----------
    average
        Effect of a perturbation about which nothing is known, shape (n_genes + 1,); 0 if few were measured.
    between, across, interaction
        b_g, c_g and i_g of the module head, shape (n_genes + 1,).
    parts, strength, outlier
        Names of the parts measured alone, r_p, shape (n_parts,), and o_gp, shape (n_parts, n_genes + 1).
    """

    average: np.ndarray
    between: np.ndarray
    across: np.ndarray
    interaction: np.ndarray
    parts: list[str]
    strength: np.ndarray
    outlier: np.ndarray

    def strengths(self, names: list[str]) -> np.ndarray:
        """Return r_p of parts, (n,); 1 for those never measured alone."""
        known = dict(zip(self.parts, self.strength, strict=True))
        return np.array([known.get(name, 1.0) for name in names])

    @classmethod
    def fit(cls, measured: Measured) -> Prior:
        """Return the prior that effects at full size support, one for each perturbation and context."""
        found = {parts: _OverContexts.of(measured, parts) for parts in dict.fromkeys(measured.rows["parts"])}
        # several that cannot be told apart are no single part, and would pass for a strong one
        single = {parts: one for parts, one in found.items() if len(parts) == 1 and JOINED not in parts[0]}
        # where nothing was measured alone, combinations stand for their parts
        used = list((single or found).values())
        split = np.array([1.0 if single else 1 / len(parts) for parts in single or found])[:, None]
        means = np.array([one.mean for one in used]) * split
        own = np.array([one.own for one in used]) * split**2
        shared = np.array([one.shared for one in used]) * split**2
        trust = _trust(own.sum(axis=1))
        weight = trust
        for _ in range(ROUNDS if len(means) >= MANY_PARTS else 1):
            average, between = _between(means, own, shared, weight)
            strength, between = _strength(means - average, own + shared, between)
            weight = 1 / (strength * between[:-1].mean() + (own + shared)[:, :-1].mean(axis=1))
            weight /= weight.sum()
        outlier = np.maximum((means - average) ** 2 - CLEAR**2 * (own + shared), 0)

        across = FEW_CONTEXT_SHARE * between
        freedom = sum(t * r * one.freedom for t, r, one in zip(trust, strength, used, strict=True))
        if len(measured.contexts) >= FEW_CONTEXTS and freedom > 0:
            excess = sum(t * (one.squares - one.expected) for t, one in zip(trust, used, strict=True))
            across = np.maximum(excess / freedom, FLOOR)
        # what differs between contexts is in the mean over them too, less the more of them there are
        inside = sum(t * (1 - one.freedom) for t, one in zip(trust, used, strict=True))
        between = np.maximum(between - inside * across, FLOOR)

        extra, size = [], []
        for parts, one in found.items():
            alone = [found[part,] for part in parts if (part,) in found]
            if 1 < len(parts) == len(alone):
                # control cells that all share count once, and are taken off once for each part
                noise = sum(each.own for each in (one, *alone)) + (len(parts) - 1) ** 2 * one.shared
                extra.append(((one.mean - sum(each.mean for each in alone)) ** 2 - noise).sum())
                size.append(len(parts) * between.sum())
        share = INTERACTION_SHARE
        if len(extra) >= FEW_COMBINATIONS:
            share = float(np.clip(np.sum(extra) / np.sum(size), 0.01, 1))
        names = [parts[0] for parts in single]
        return cls(average, between, across, share * between, names, strength[: len(names)], outlier[: len(names)])


@dataclass(frozen=True, eq=False)
class _OverContexts:
    """Mean effect of one perturbation over its contexts, sum_k w_k D_k, with weights that add up to 1."""

    mean: np.ndarray
    own: np.ndarray  # sampling variance of the mean from treated cells
    shared: np.ndarray  # ... and from control cells, which other perturbations share
    squares: np.ndarray  # sum_k w_k (D_k - mean)^2
    expected: np.ndarray  # ... if contexts did not differ
    freedom: float  # ... and for each unit of variance between contexts

    @classmethod
    def of(cls, measured: Measured, parts: tuple[str, ...]) -> _OverContexts:
        rows = np.flatnonzero([p == parts for p in measured.rows["parts"]])
        effect, noise = measured.effect[rows], measured.noise[rows]
        control = measured.reference_noise[measured.rows["reference"].to_numpy(int)[rows]]
        w = _trust((noise + control).sum(axis=1))
        mean = w @ effect
        squares, expected = w @ (effect - mean) ** 2, (w * (1 - w)) @ (noise + control)
        return cls(mean, w**2 @ noise, w**2 @ control, squares, expected, 1 - w @ w)


def _trust(noise: np.ndarray) -> np.ndarray:
    """Weights that add up to 1: nearly equal, as true effects differ too, but small where noise is beyond the usual."""
    weight = 1 / (noise + np.median(noise))
    return weight / weight.sum()


def _between(
    means: np.ndarray, own: np.ndarray, shared: np.ndarray, trust: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """m_g and the variance of parts around it."""
    n = len(means)
    if n < MANY_PARTS:
        # of a single perturbation the noise cannot be told from the effect: one degree of freedom stays
        between = trust @ (means**2 - (own + shared) * (1 - 1 / n))
        return np.zeros(means.shape[1]), np.maximum(between, FLOOR)
    # the noise of shared control cells moves all parts together: it looks like an average response
    mean, lost = trust @ means, trust @ trust
    between = np.maximum((trust @ (means - mean) ** 2 - (trust * (1 - trust)) @ own) / (1 - lost), FLOOR)
    spread = lost * between + trust**2 @ own + trust @ shared
    common = _moderated(mean**2 - spread, 2 * np.maximum(mean**2, spread) ** 2, least=0.0)
    return mean * common / (common + spread), between


def _strength(effects: np.ndarray, noises: np.ndarray, between: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """r_p, and b_g given r_p, in turn; ``effects`` are around the average response, (n_parts, n_genes + 1).

    Each is the moment weighted by its precision. What noisy effects cannot tell about r_p is filled up with 1.
    """
    n = len(effects)
    excess = effects**2 - noises * (1 if n >= MANY_PARTS else 1 - 1 / n)
    strength = np.ones(n)
    for _ in range(5):
        precision = 1 / (strength[:, None] * between + noises) ** 2
        evidence = INDEPENDENT / 2 * (precision @ between**2)
        found = ((precision * excess) @ between) / (precision @ between**2)
        strength = np.maximum((evidence * found + 1) / (evidence + 1), WEAKEST)
        strength *= n / strength.sum()
        precision = 1 / (strength[:, None] * between + noises) ** 2
        information = strength**2 @ precision
        between = _moderated(strength @ (precision * excess) / information, 2 / information, least=FLOOR)
    return strength, between


def _moderated(variance: np.ndarray, error: np.ndarray, *, least: float) -> np.ndarray:
    """Variances of genes drawn together as far as their sampling errors (squared) explain how they differ.

    The last is the depth ratio: on another scale, and left alone.
    """
    genes = variance[:-1]
    true = max(np.var(genes) - error[:-1].mean(), 0.0)
    drawn = genes.mean() + true / (true + error[:-1]) * (genes - genes.mean())
    return np.maximum(np.append(drawn, variance[-1]), least)

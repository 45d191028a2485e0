"""Fold changes beside the closed form: exact by hand, believed where effects multiply, not where they add up."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scidiff.models.effect_groups import GroupStats
from scidiff.models.effect_measured import Measured
from scidiff.models.effect_stacking import ADDED, Stacking, _shares, fold_change
from scidiff.models.effects import EffectModel

N_GENES = 150


def stats(control: np.ndarray, treated: np.ndarray, *, noise: float = 0.05, dose: float | None = None) -> GroupStats:
    """Contexts c0, c1, ... with these means, (n_contexts, n_genes), under no drug and under A; NaN: left out."""
    rng = np.random.default_rng(5)
    rows, means = [], []
    for k, pair in enumerate(zip(control, treated, strict=True)):
        for parts, mean in zip(((), ("A",)), pair, strict=True):
            if np.isfinite(mean).all():
                rows.append({"perturbation": parts, "cell_type": f"c{k}", "dose": (dose,) if parts and dose else None})
                means.append(np.maximum(mean + noise * rng.standard_normal(len(mean)), 0))
    flat = np.full(len(rows), 7.0)
    variance = np.full((len(rows), control.shape[1]), noise**2)
    return GroupStats(pd.DataFrame(rows), np.array(means), variance, flat * 10, flat, flat / 100)


def contexts(n: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).gamma(1.0, 1.0, (n, N_GENES))


def times(control: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Expression at ``fold`` times the molecules, the added ones included."""
    return np.log1p(np.maximum((np.expm1(control) + ADDED) * fold - ADDED, 0))


def folds(seed: int = 1) -> np.ndarray:
    return np.exp(np.random.default_rng(seed).normal(0, 1.2, N_GENES))


def test_the_same_fold_change_everywhere_is_carried_exactly():
    control = contexts()
    rises = np.maximum(folds(), 1)
    measured = Measured.of(stats(control, times(control, rises), noise=0.0))
    new = contexts(1, seed=9)[0]
    for effect in fold_change(measured, np.arange(8), new, widths=(0.01, 0.5, 100)):
        np.testing.assert_allclose(effect, times(new, rises) - new, atol=1e-9)


def test_a_gene_never_expressed_cannot_fall_and_none_falls_below_zero():
    control = contexts()
    measured = Measured.of(stats(control, np.zeros_like(control), noise=0.0))
    new = contexts(1, seed=9)[0]
    new[:20] = 0
    effect = fold_change(measured, np.arange(8), new, widths=(1.0,))[0]
    assert (effect[:20] == 0).all()
    assert (new + effect >= 0).all()
    assert (effect <= 0).all()


def test_contexts_count_by_likeness():
    control = np.zeros((3, N_GENES))
    control[:, :2] = [[1, 0], [0, 1], [-0.0, 3]]
    treated = control.copy()
    treated[:, 2] = np.log1p([10, 100, 1000])
    measured = Measured.of(stats(control, treated, noise=0.0))
    between = np.zeros(N_GENES)
    between[:2] = 0.5  # as far from the first as from the second, far from the third
    logs = np.log(np.array([10, 100]) + ADDED) - np.log(ADDED)
    narrow, wide = fold_change(measured, np.arange(3), between, widths=(0.01, 1e9))[:, 2]
    assert narrow == pytest.approx(np.log1p(ADDED * np.exp(logs.mean()) - ADDED))
    logs = np.append(logs, np.log(1000 + ADDED) - np.log(ADDED))
    assert wide == pytest.approx(np.log1p(ADDED * np.exp(logs.mean()) - ADDED))


def new_context(multiply: bool) -> tuple[EffectModel, np.ndarray, np.ndarray]:
    """Effects measured in eight contexts, and control mean and true effect of a ninth."""
    control = contexts(9)
    shift = np.random.default_rng(2).normal(0.8, 0.4, N_GENES)
    treated = times(control, folds()) if multiply else control + shift
    truth = treated[8] - control[8]
    treated[8] = np.nan
    return EffectModel.fit(stats(control, treated)), control[8], truth


def test_believed_where_effects_multiply_and_then_right():
    effects, control, truth = new_context(multiply=True)
    stacking = Stacking.fit(effects)
    closed = effects.predict({"cell_type": "c8"}, ("A",), control_mean=control)
    both = stacking.revised(closed, effects, ("A",), control)
    assert stacking.weight > 0.3
    assert ((both.mean - truth) ** 2).mean() < 0.5 * ((closed.mean - truth) ** 2).mean()
    np.testing.assert_array_equal(both.variance, closed.variance)


def test_hardly_believed_where_effects_add_up():
    effects, control, truth = new_context(multiply=False)
    stacking = Stacking.fit(effects)
    closed = effects.predict({"cell_type": "c8"}, ("A",), control_mean=control)
    both = stacking.revised(closed, effects, ("A",), control)
    assert stacking.weight < 0.1
    assert ((both.mean - truth) ** 2).mean() < 1.1 * ((closed.mean - truth) ** 2).mean()


def test_no_other_estimate_of_what_was_measured_or_what_nobody_measured():
    effects, control, _ = new_context(multiply=True)
    sure = Stacking(weight=1.0, width=0.5)
    seen = effects.predict({"cell_type": "c0"}, ("A",))
    assert sure.revised(seen, effects, ("A",), control) is seen
    new = effects.predict({"cell_type": "c8"}, ("A",), control_mean=control)
    assert sure.revised(new, effects, ("A",), control, dose=3.0) is new  # at a dose that no context saw
    assert Stacking().revised(new, effects, ("A",), control) is new


def test_shares_are_the_best_that_are_not_negative_and_at_most_one():
    rng = np.random.default_rng(3)
    grid = np.array([(i / 50, j / 50) for i in range(51) for j in range(51 - i)])
    for _ in range(20):
        x, truth = rng.standard_normal((2, 5)), rng.standard_normal(5) * 1.5
        shares = _shares(x @ x.T, x @ truth)
        assert (shares >= 0).all()
        assert shares.sum() <= 1 + 1e-4
        best = grid[((grid @ x - truth) ** 2).sum(axis=1).argmin()]
        np.testing.assert_allclose(shares, best, atol=0.03)


def test_no_change_is_believed_where_contexts_have_nothing_in_common():
    control = contexts(9)
    common, own = np.random.default_rng(4).normal(0, 0.5, (2, 9, N_GENES))
    none = [
        Stacking.fit(EffectModel.fit(stats(control, control + effect))).none for effect in (own, common[:1] + 0 * own)
    ]
    assert none[0] > 0.8
    assert none[1] < 0.1


def test_where_patients_lack_effects_patients_are_left_out():
    rng = np.random.default_rng(6)
    control = np.repeat(contexts(7), 2, axis=0)
    treated = control + np.repeat(rng.normal(0.0, 0.5, (7, N_GENES)), 2, axis=0)  # as large in both states
    known = stats(control, treated)
    known.table["patient"] = [f"patient {int(name[1:]) // 2}" for name in known.table["cell_type"]]
    known.table["cell_type"] = [f"state {int(name[1:]) % 2}" for name in known.table["cell_type"]]
    untreated = ~((known.table["patient"] == "patient 6") & (known.table["perturbation"].map(len) > 0)).to_numpy()
    new = GroupStats(known.table[untreated].reset_index(drop=True), *(a[untreated] for a in arrays_of(known)))
    assert Stacking.fit(EffectModel.fit(known)).none < 0.2  # the other state of a patient tells
    assert Stacking.fit(EffectModel.fit(new)).none > 0.6


def arrays_of(known: GroupStats) -> tuple[np.ndarray, ...]:
    return known.mean, known.variance, known.n, known.log_depth, known.log_depth_variance


def test_few_contexts_are_no_ground_for_other_estimates():
    control = contexts(4)
    treated = times(control, folds())
    treated[3] = np.nan
    assert Stacking.fit(EffectModel.fit(stats(control, treated))) == Stacking()
    assert Stacking.fit(EffectModel.fit(stats(contexts(6), times(contexts(6), folds()), dose=2.0))).weight > 0.3

"""The closed-form effect model against planted truth, brute force and closed forms."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from scidiff.errors import DataWarning, InputError
from scidiff.models.effect_curves import Curves, Hill, Saturation
from scidiff.models.effect_groups import PRIOR_CELLS, GroupStats
from scidiff.models.effect_measured import Measured
from scidiff.models.effect_prior import Prior
from scidiff.models.effect_process import MAX_ROWS, NO_KERNEL, Asked, Process, best_kernels
from scidiff.models.effects import Effect, EffectModel

CELL_SD = 0.5


def groups(rows: list[dict], *, n: float = 100, seed: int = 0, noise: bool = True) -> GroupStats:
    """Statistics of groups with given true means: rows of perturbation, mean, and whatever else the table has."""
    rng = np.random.default_rng(seed)
    mean = np.array([row["mean"] for row in rows], dtype=float)
    cells = np.array([row.get("n", n) for row in rows], dtype=float)
    variance = np.broadcast_to(CELL_SD**2 / cells[:, None], mean.shape)
    seen = mean + noise * np.sqrt(variance) * rng.standard_normal(mean.shape)
    table = pd.DataFrame([{k: v for k, v in row.items() if k not in ("mean", "n", "depth")} for row in rows])
    depth = np.array([row.get("depth", 7.0) for row in rows])
    return GroupStats(table, seen, variance.copy(), cells, depth, 0.1 / cells)


def planted_contexts(n_contexts: int = 10, n_genes: int = 200, *, n: float = 50, seed: int = 0):
    """Effects that are a smooth function of two hidden coordinates of the context, which controls show too."""
    rng = np.random.default_rng(seed)
    z = rng.uniform(-1, 1, (n_contexts, 2))
    control = 1.5 + 0.6 * z @ rng.standard_normal((2, n_genes))
    effect = rng.standard_normal(n_genes) * 0.5 + 0.5 * z @ rng.standard_normal((2, n_genes))
    rows = []
    for k in range(n_contexts):
        rows += [{"perturbation": (), "mean": control[k], "cell_type": f"c{k}"}]
        rows += [{"perturbation": ("A",), "mean": control[k] + effect[k], "cell_type": f"c{k}"}]
    return rows, control, effect


def screen(n_parts: int = 12, n_genes: int = 150, *, n: float = 80, seed: int = 0, pairs=(), depth: float = 0.0):
    """Singles and pairs in one context; a third of the parts does nothing. Returns rows and single effects."""
    rng = np.random.default_rng(seed)
    control = rng.uniform(0.5, 2, n_genes)
    parts = [f"p{i:02d}" for i in range(n_parts)]
    effects = {p: rng.standard_normal(n_genes) * rng.gamma(1, 0.4, n_genes) * (i % 3 > 0) for i, p in enumerate(parts)}
    rows = [{"perturbation": (), "mean": control, "n": n}]
    rows += [{"perturbation": (p,), "mean": control + e, "n": n, "depth": 7 + depth} for p, e in effects.items()]
    rows += [{"perturbation": pair, "mean": control + effects[pair[0]] + effects[pair[1]], "n": n} for pair in pairs]
    return rows, effects


def error(effect, truth: np.ndarray) -> float:
    return float(np.mean((effect.mean - truth) ** 2))


class TestGroups:
    def cells(self):
        rng = np.random.default_rng(0)
        x = sparse.random(400, 30, density=0.3, format="csr", random_state=1)
        table = pd.DataFrame(
            {
                "perturbation": [((), ("A",), ("A", "B"))[i] for i in rng.integers(3, size=400)],
                "cell_type": rng.choice(["x", "y", None], 400),
                "time": rng.choice([1.0, np.nan], 400),
            }
        )
        return x, table, rng.uniform(100, 1000, 400)

    def test_moments_are_those_of_the_cells(self):
        x, table, depth = self.cells()
        stats = GroupStats.of(x, table, depth=depth)
        assert len(stats.table) == 3 * 3 * 2
        assert stats.n.sum() == 400
        key = table.astype(str).agg("|".join, axis=1).to_numpy()
        for row, values in enumerate(stats.table.astype(str).agg("|".join, axis=1)):
            own = x.toarray()[key == values]
            np.testing.assert_allclose(stats.mean[row], own.mean(axis=0))
            np.testing.assert_allclose(stats.log_depth[row], np.log(depth[key == values]).mean())
        dense = GroupStats.of(x.toarray(), table, depth=depth)
        np.testing.assert_allclose(stats.variance, dense.variance)

    def test_variance_tends_to_the_cells_own_and_is_never_zero(self):
        rng = np.random.default_rng(0)
        table = pd.DataFrame({"perturbation": [()] * 20000 + [("A",)] * 2})
        x = np.concatenate([rng.normal(0, 2, (20000, 5)), np.zeros((2, 5))])
        stats = GroupStats.of(x, table, depth=np.ones(20002))
        np.testing.assert_allclose(stats.variance[0] * 20000, x[:20000].var(axis=0), rtol=0.01)
        np.testing.assert_allclose(stats.variance[1] * 2, 4 * PRIOR_CELLS / (PRIOR_CELLS + 1), rtol=0.05)

    def test_refuses_what_does_not_fit(self):
        x, table, depth = self.cells()
        with pytest.raises(InputError, match="depths for 400 cells"):
            GroupStats.of(x, table, depth=depth[:-1])
        with pytest.raises(InputError, match="tuples of parts"):
            GroupStats.of(x, table.assign(perturbation="A"), depth=depth)


class TestPosterior:
    def test_equals_generalised_least_squares_written_out(self):
        pairs = [("p01", "p02"), ("p02", "p04")]
        rows, _ = screen(5, 7, pairs=pairs, n=20)
        measured = Measured.of(groups(rows))
        process = Process(measured, Curves(), Prior.fit(measured))
        prior = process.prior
        names = measured.parts
        ask = Asked(("p01", "p04"), (np.nan, np.nan), np.nan, process.place(0))
        mean, variance = process.posterior(ask)
        for g in range(8):
            design = np.array([[p in parts for p in names] for parts in measured.rows["parts"]], dtype=float)
            own = np.diag(prior.strengths(names) * (prior.between[g] + prior.across[g]))
            clear = dict(zip(prior.parts, prior.outlier[:, g], strict=True))
            own += np.diag([clear.get(p, 0.0) * (p in ask.parts) for p in names])
            joint = np.diag([len(parts) * prior.interaction[g] * (len(parts) > 1) for parts in measured.rows["parts"]])
            # the noise of treated cells, and of the control cells that all share
            noise = np.diag(measured.noise[:, g]) + measured.reference_noise[0, g]
            wanted = np.array([p in ask.parts for p in names], dtype=float)
            inverse = np.linalg.inv(design @ own @ design.T + joint + noise)
            cross = design @ own @ wanted
            gap = measured.effect[:, g] - design.sum(axis=1) * prior.average[g]
            np.testing.assert_allclose(mean[g], 2 * prior.average[g] + cross @ inverse @ gap, rtol=1e-5, atol=1e-9)
            expected = wanted @ own @ wanted + 2 * prior.interaction[g] - cross @ inverse @ cross
            np.testing.assert_allclose(variance[g], expected, rtol=1e-5, atol=1e-9)

    def test_some_genes_get_what_all_genes_get(self):
        rows, _, _ = planted_contexts(6, 40)
        model = EffectModel.fit(groups(rows))
        some = np.array([7, 3, 30])
        for asked in ({"cell_type": "c2"}, {"cell_type": "new"}):
            z = np.ones(40) if asked["cell_type"] == "new" else None
            all_genes = model.predict(asked, ("A",), control_mean=z)
            few = model.predict(asked, ("A",), control_mean=z, genes=some)
            np.testing.assert_allclose(few.mean, all_genes.mean[some], rtol=1e-9)
            np.testing.assert_allclose(few.variance, all_genes.variance[some], rtol=1e-9)
            assert few.log_depth_ratio == pytest.approx(all_genes.log_depth_ratio)

    def test_shrinks_normal_means_as_the_bayes_rule_does(self):
        rng = np.random.default_rng(0)
        spread, n_genes = 0.1, 4000
        truth = rng.standard_normal((20, n_genes)) * spread
        rows = [{"perturbation": (), "mean": np.ones(n_genes), "n": 1e6}]
        rows += [{"perturbation": (f"p{i}",), "mean": 1 + effect, "n": 50} for i, effect in enumerate(truth)]
        model = EffectModel.fit(groups(rows))
        noise = CELL_SD**2 / 50
        best = spread**2 * noise / (spread**2 + noise)  # mean squared error of the Bayes rule that knows the spread
        errors = np.mean([error(model.predict({}, (f"p{i}",)), effect) for i, effect in enumerate(truth)])
        assert 0.95 * best < errors < 1.12 * best
        claimed = np.mean([model.predict({}, (f"p{i}",)).variance for i in range(20)])
        assert claimed == pytest.approx(best, rel=0.15)

    def test_control_cells_that_all_share_do_not_pass_for_an_average_response(self):
        rng = np.random.default_rng(1)
        rows = [{"perturbation": (), "mean": np.ones(2000), "n": 10}]
        rows += [{"perturbation": (f"p{i}",), "mean": np.ones(2000), "n": 1000} for i in range(20)]
        model = EffectModel.fit(groups(rows, seed=int(rng.integers(100))))
        measured = model.process.measured.effect[:, :-1]
        assert np.mean(measured**2) == pytest.approx(CELL_SD**2 / 10, rel=0.1)
        left = np.mean([model.predict({}, (f"p{i}",)).mean ** 2 for i in range(20)])
        assert left < 0.1 * np.mean(measured**2)

    def test_the_mean_of_a_few_strong_perturbations_is_no_response_of_all(self):
        rng = np.random.default_rng(2)
        strong = rng.standard_normal(500) * 0.5
        rows = [{"perturbation": (), "mean": np.ones(500), "n": 1e5}]
        rows += [{"perturbation": (f"p{i:02d}",), "mean": 1 + strong * (i < 6), "n": 30} for i in range(24)]
        model = EffectModel.fit(groups(rows))
        idle = np.mean([model.predict({}, (f"p{i:02d}",)).mean for i in range(6, 24)], axis=0)
        assert abs(idle @ strong / (strong @ strong)) < 0.02  # the mean over all is a quarter of the strong ones
        half = model.predict({}, ("p00",)).mean
        assert half @ strong / (strong @ strong) == pytest.approx(1, abs=0.1)

    def test_what_all_perturbations_share_is_a_response_of_all(self):
        rng = np.random.default_rng(3)
        common = rng.standard_normal(500) * 0.3
        rows = [{"perturbation": (), "mean": np.ones(500), "n": 1e5}]
        rows += [{"perturbation": (f"p{i:02d}",), "mean": 1 + common, "n": 10} for i in range(24)]
        model = EffectModel.fit(groups(rows))
        errors = np.mean([error(model.predict({}, (f"p{i:02d}",)), common) for i in range(24)])
        assert errors < 0.15 * CELL_SD**2 / 10

    def test_a_clear_effect_of_one_gene_survives_in_a_perturbation_that_does_nothing_else(self):
        rows, _ = screen(12, 400)
        rows[1]["mean"] = rows[0]["mean"].copy()  # p00 does nothing
        rows[1]["mean"][7] -= 2
        model = EffectModel.fit(groups(rows))
        effect = model.predict({}, ("p00",)).mean
        assert effect[7] == pytest.approx(-2, abs=0.3)
        assert np.sqrt(np.mean(np.delete(effect, 7) ** 2)) < 0.05


class TestContexts:
    def test_finds_context_dependent_effects_better_than_the_mean(self):
        rows, control, effect = planted_contexts()
        gains = []
        for k in range(4):
            train = [row for row in rows if row["cell_type"] != f"c{k}" or not row["perturbation"]]
            model = EffectModel.fit(groups(train))
            answer = model.predict({"cell_type": f"c{k}"}, ("A",), control_mean=control[k])
            assert answer.kind == "context"
            mean_shift = model.process.measured.effect[:, :-1].mean(axis=0)
            gains.append(error(answer, effect[k]) / np.mean((mean_shift - effect[k]) ** 2))
        assert np.mean(gains) < 0.5
        assert model.process.kernels.get(NO_KERNEL, 0) < 0.1

    def test_claims_the_error_that_it_makes(self):
        inside = []
        for seed in range(5):
            rows, _, effect = planted_contexts(seed=seed)
            train = [row for row in rows if row["cell_type"] != "c0" or not row["perturbation"]]
            model = EffectModel.fit(groups(train, seed=seed))
            answer = model.predict({"cell_type": "c0"}, ("A",))
            inside.append(np.abs(answer.mean - effect[0]) < 1.645 * np.sqrt(answer.variance))
        assert 0.8 < np.mean(inside) < 0.98

    def test_contexts_that_differ_at_random_get_no_kernel(self):
        rng = np.random.default_rng(0)
        rows = []
        for k in range(8):
            control = rng.uniform(0.5, 2, 200)
            rows += [{"perturbation": (), "mean": control, "cell_type": f"c{k}"}]
            rows += [
                {"perturbation": ("A",), "mean": control + 0.5 + 0.3 * rng.standard_normal(200), "cell_type": f"c{k}"}
            ]
        kernels = best_kernels(Measured.of(groups(rows)))
        assert sum(w for kernel, w in kernels.items() if kernel.own == 0 and kernel.length <= 1) > 0.5

    def test_a_context_without_control_cells_in_training_is_placed_by_those_given(self):
        rows, control, effect = planted_contexts()
        model = EffectModel.fit(groups([row for row in rows if row["cell_type"] != "c0"]))
        placed = model.predict({"cell_type": "c0"}, ("A",), control_mean=control[0])
        lost = model.predict({"cell_type": "c0"}, ("A",))
        assert error(placed, effect[0]) < 0.6 * error(lost, effect[0])
        assert "nothing is known of context" in lost.notes[0]
        assert lost.variance.mean() > placed.variance.mean()

    def test_two_contexts_say_what_is_assumed_and_do_not_fall_below_zero(self):
        rows, *_ = planted_contexts(2)
        model = EffectModel.fit(groups(rows))
        low = np.full(200, 0.05)
        answer = model.predict({"cell_type": "new"}, ("A",), control_mean=low)
        assert (low + answer.mean >= 0).all()
        assert any("cannot say how contexts differ" in note for note in answer.notes)

    def test_attributes_left_out_are_averaged(self):
        rows, _, effect = planted_contexts(4)
        model = EffectModel.fit(groups(rows, n=1000))
        answer = model.predict({}, ("A",))
        assert error(answer, effect.mean(axis=0)) < 0.02
        assert answer.notes == ["average over 4 training contexts"]

    def test_unknown_attribute_is_refused(self):
        rows, *_ = planted_contexts(3)
        with pytest.raises(InputError, match=r"no attribute 'celltype'; nearest: 'cell_type'"):
            EffectModel.fit(groups(rows)).predict({"celltype": "c0"}, ("A",))

    def test_treated_cells_without_control_cells_of_their_context_warn(self):
        rows, *_ = planted_contexts(3)
        with pytest.warns(DataWarning, match="1 perturbed group has no control cells"):
            EffectModel.fit(groups(rows[1:]))


class TestCombinations:
    pairs = (("p01", "p02"), ("p04", "p05"), ("p07", "p08"), ("p01", "p10"))

    def test_beats_the_sum_of_noisy_parts(self):
        rows, effects = screen(pairs=self.pairs, n=40)
        model = EffectModel.fit(groups(rows))
        measured = model.process.measured
        alone = {parts: measured.effect[i, :-1] for i, parts in enumerate(measured.rows["parts"])}
        ratio = []
        for a, b in (("p01", "p04"), ("p02", "p05"), ("p03", "p07"), ("p00", "p08")):
            truth = effects[a] + effects[b]
            answer = model.predict({}, (a, b))
            assert answer.kind == "combination"
            ratio.append(error(answer, truth) / np.mean((alone[a,] + alone[b,] - truth) ** 2))
        assert np.mean(ratio) < 0.6

    def test_order_does_not_matter(self):
        rows, _ = screen(pairs=self.pairs)
        model = EffectModel.fit(groups(rows))
        one, other = model.predict({}, ("p01", "p04"), dose=(1, 2)), model.predict({}, ("p04", "p01"), dose=(2, 1))
        np.testing.assert_array_equal(one.mean, other.mean)
        np.testing.assert_array_equal(one.variance, other.variance)

    def test_a_part_seen_in_combinations_only_is_worked_out(self):
        rows, effects = screen(pairs=self.pairs, n=2000)
        model = EffectModel.fit(groups([row for row in rows if row["perturbation"] != ("p10",)]))
        answer = model.predict({}, ("p10",))
        assert np.corrcoef(answer.mean, effects["p10"])[0, 1] > 0.95
        assert "'p10' was measured in combinations only" in answer.notes

    def test_parts_that_cannot_be_told_apart_are_one(self):
        rows, effects = screen(pairs=(("p01", "p02"), ("p04", "p07"), ("p04", "p05")), n=2000)
        gone = [("p01",), ("p02",), ("p07",), ("p04",)]  # p04 follows from p05, and p07 from p04
        model = EffectModel.fit(groups([row for row in rows if row["perturbation"] not in gone]))

        def alike(parts: tuple[str, ...], of: str) -> float:
            return float(np.corrcoef(model.predict({}, parts).mean, effects[of])[0, 1])

        assert alike(("p04",), "p04") > 0.95
        assert alike(("p07",), "p07") > 0.95
        together = model.predict({}, ("p02", "p01"))
        assert together.kind == "seen"
        assert np.corrcoef(together.mean, effects["p01"] + effects["p02"])[0, 1] > 0.95
        with pytest.raises(InputError, match="'p01' was never measured"):
            model.predict({}, ("p01",))
        assert alike(("p01", "p05"), "p05") > 0.98  # nothing is said of p01

    def test_interaction_variance_is_found(self):
        rng = np.random.default_rng(0)
        rows, _ = screen(pairs=self.pairs, n=2000)
        plain = EffectModel.fit(groups(rows)).predict({}, ("p02", "p04")).variance.mean()
        for row in rows[-4:]:
            row["mean"] = row["mean"] + 0.4 * rng.standard_normal(150)
        rough = EffectModel.fit(groups(rows)).predict({}, ("p02", "p04")).variance.mean()
        assert rough - plain == pytest.approx(0.16, rel=0.4)

    def test_what_nobody_measured_is_refused_or_named(self):
        rows, effects = screen()
        model = EffectModel.fit(groups(rows))
        with pytest.raises(InputError, match=r"'p0' was never measured; nearest: .*train with features="):
            model.predict({}, ("p0",))
        half = model.predict({}, ("p01", "zzz"))
        assert "'zzz' was never measured: the average perturbation stands for it" in half.notes
        assert np.corrcoef(half.mean, effects["p01"])[0, 1] > 0.9
        assert half.variance.mean() > 5 * model.predict({}, ("p01",)).variance.mean()


class TestFeatures:
    def planted(self, seed: int = 0, informative: bool = True):
        rng = np.random.default_rng(seed)
        parts = [f"d{i:02d}" for i in range(40)]
        features = pd.DataFrame(rng.standard_normal((40, 3)), index=parts, columns=list("abc"))
        shown = (
            features if informative else pd.DataFrame(rng.standard_normal((40, 3)), index=parts, columns=list("abc"))
        )
        response = rng.standard_normal((3, 120)) * 0.4
        effects = 0.3 + features.to_numpy() @ response
        rows = [{"perturbation": (), "mean": np.full(120, 2.0), "n": 500}]
        rows += [{"perturbation": (p,), "mean": 2 + e} for p, e in zip(parts, effects, strict=True) if p != "d00"]
        return rows, shown, effects[0]

    def test_an_unseen_perturbation_is_told_by_its_features(self):
        rows, features, truth = self.planted()
        model = EffectModel.fit(groups(rows), features=features)
        answer = model.predict({}, ("d00",))
        assert answer.kind == "features"
        assert np.corrcoef(answer.mean, truth)[0, 1] > 0.95
        assert model.ridge is not None
        assert model.ridge.gain > 0.8
        inside = np.abs(answer.mean - truth) < 1.645 * np.sqrt(answer.variance)
        assert inside.mean() > 0.75

    def test_features_that_carry_nothing_say_so(self):
        rows, features, _ = self.planted(informative=False)
        model = EffectModel.fit(groups(rows), features=features)
        answer = model.predict({}, ("d00",))
        measured = model.process.measured.effect[:, :-1].mean(axis=0)
        assert any("features say nothing beyond the mean" in note for note in answer.notes)
        np.testing.assert_allclose(answer.mean, measured, atol=0.1)

    def test_half_told_combination(self):
        rows, features, truth = self.planted()
        model = EffectModel.fit(groups(rows), features=features)
        other = model.predict({}, ("d05",)).mean
        both = model.predict({}, ("d05", "d00"))
        assert np.corrcoef(both.mean, other + truth)[0, 1] > 0.95
        assert both.kind == "features"

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda f: f.assign(a="x"), "must be numbers"),
            (lambda f: f.assign(a=np.nan), "missing or infinite"),
            (lambda f: pd.concat([f, f.iloc[:1]]), "'d00' more than once"),
            (lambda f: f.iloc[:3], "name 2 of the measured"),
            (lambda f: f * 0, "the same for all"),
        ],
    )
    def test_unusable_features_are_refused(self, change, message):
        rows, features, _ = self.planted()
        with pytest.raises(InputError, match=message):
            EffectModel.fit(groups(rows), features=change(features))


class TestDoseAndTime:
    hill, saturation = Hill(1.0, 1.5, 10.0), Saturation(12.0, 72.0)

    def planted(self, doses=(0.1, 0.3, 1.0, 3.0, 10.0), times=(6.0, 24.0, 72.0), n_genes: int = 300, n: float = 100):
        rng = np.random.default_rng(0)
        full = {part: rng.standard_normal(n_genes) * 0.7 for part in ("A", "B")}
        rows = [{"perturbation": (), "dose": None, "time": 0.0, "mean": np.full(n_genes, 2.0), "n": 10 * n}]
        for part, effect in full.items():
            for dose in doses:
                for time in times:
                    mean = 2 + effect * self.hill(dose) * self.saturation(time)
                    rows.append({"perturbation": (part,), "dose": (dose,), "time": time, "mean": mean, "n": n})
        return rows, full

    def test_curves_are_recovered(self):
        rows, _ = self.planted()
        curves = EffectModel.fit(groups(rows)).process.curves
        assert curves.time is not None
        assert curves.time.scale == pytest.approx(12, rel=0.15)
        for curve in curves.dose.values():
            assert curve.ec50 == pytest.approx(1, rel=0.25)
            assert curve.slope == pytest.approx(1.5, rel=0.2)

    @pytest.mark.parametrize(("out", "kind"), [({"dose": (1.0,)}, "dose"), ({"time": 24.0}, "time")])
    def test_held_out_inside_the_range(self, out, kind):
        rows, full = self.planted(n=800)
        name, value = next(iter(out.items()))
        model = EffectModel.fit(groups([row for row in rows if row[name] != value]))
        answer = model.predict({}, ("A",), dose=1.0, time=24.0)
        truth = full["A"] * self.hill(1.0) * self.saturation(24.0)
        assert answer.kind == kind
        assert np.linalg.norm(answer.mean - truth) / np.linalg.norm(truth) < 0.1
        assert not answer.notes

    def test_a_time_between_is_found_among_many_groups_of_early_and_late_genes(self):
        rng = np.random.default_rng(0)
        rate, doses = rng.uniform(0.05, 0.25, 200), (0.1, 0.3, 1.0, 3.0, 10.0)
        rows = [{"perturbation": (), "dose": None, "time": 0.0, "mean": np.full(200, 2.0), "n": 1e5}]
        truth = {}
        for part in "ABCDEFGHI":
            full = rng.standard_normal(200) * 0.5
            for dose, time in itertools.product(doses, (6.0, 24.0, 72.0)):
                truth[part, dose, time] = full * self.hill(dose) * -np.expm1(-rate * time)
                asked = {"perturbation": (part,), "dose": (dose,), "time": time, "n": 1e5}
                rows.append(asked | {"mean": 2 + truth[part, dose, time]})
        model = EffectModel.fit(groups([row for row in rows if row["time"] != 24]))
        assert len(model.process.measured.rows) > MAX_ROWS
        assert model.process.curves.time is not None
        share = model.process.curves.time(24.0)
        ours, common, size = 0.0, 0.0, 0.0
        for part in "AEI":
            effect = truth[part, 3.0, 24.0]
            ours += np.sum((model.predict({}, (part,), dose=3.0, time=24.0).mean - effect) ** 2)
            common += np.sum((truth[part, 3.0, 72.0] * share - effect) ** 2)  # one curve for all genes
            size += np.sum(effect**2)
        assert ours < 0.1**2 * size
        assert ours < 0.7 * common

    def test_molecules_of_silent_genes_do_not_bend_the_curve(self):
        """One or two cells a condition, as in large screens: a molecule in a group of one seems to have no noise."""
        rng = np.random.default_rng(0)
        effect = rng.standard_normal((12, 100)) * 0.7
        x, rows = [], []
        for part in range(12):
            for time in (6.0, 24.0, 72.0):
                for context in range(8):
                    for _ in range(rng.integers(1, 3)):
                        x.append(2 + effect[part] * (1 - np.exp(-time / 10)) + rng.standard_normal(100))
                        rows.append(((f"p{part}",), time, f"c{context}"))
        for context in range(8):
            x += list(2 + rng.standard_normal((30, 100)))
            rows += [((), 0.0, f"c{context}")] * 30
        table = pd.DataFrame(rows, columns=["perturbation", "time", "cell_type"])
        silent = np.zeros((len(x), 300))
        treated = np.flatnonzero(table["time"] > 0)
        silent[rng.choice(treated, 300), np.arange(300)] = 2.0  # one cell each
        stats = GroupStats.of(np.hstack([x, silent]), table, depth=np.full(len(x), 1000.0))
        curve = Curves.fit(Measured.of(stats)).time
        assert curve is not None
        assert 8 < curve.scale < 12  # planted: 10

    def test_no_dose_and_no_time_is_no_effect(self):
        rows, _ = self.planted()
        model = EffectModel.fit(groups(rows))
        for answer in (model.predict({}, ("A",), dose=0.0, time=24.0), model.predict({}, ("A",), dose=1.0, time=0.0)):
            np.testing.assert_array_equal(answer.mean, 0)
            np.testing.assert_allclose(answer.variance, 0, atol=1e-12)
            assert answer.log_depth_ratio == 0
        both = model.predict({}, ("A", "B"), dose=(1.0, 0.0), time=24.0)
        np.testing.assert_array_equal(both.mean, model.predict({}, ("A",), dose=1.0, time=24.0).mean)

    def test_rises_with_dose_and_notes_extrapolation(self):
        rows, _ = self.planted()
        model = EffectModel.fit(groups(rows))
        sizes = [np.linalg.norm(model.predict({}, ("A",), dose=d, time=24.0).mean) for d in (0.05, 0.2, 0.5, 2, 10)]
        assert (np.diff(sizes) > 0).all()
        assert any("extrapolation: 'A'" in note for note in model.predict({}, ("A",), dose=30.0, time=24.0).notes)
        assert any("extrapolation: times" in note for note in model.predict({}, ("A",), dose=1.0, time=90.0).notes)

    def test_times_that_controls_share_are_no_times_since_the_perturbation(self):
        rng = np.random.default_rng(0)
        days, effect = (2.0, 4.0, 6.0), rng.standard_normal(200)
        rows = []
        for day in days:  # the control drifts, the effect does not
            control = 2 + 0.3 * day * np.ones(200)
            rows += [{"perturbation": (), "time": day, "mean": control}]
            rows += [{"perturbation": ("A",), "time": day, "mean": control + effect}]
        model = EffectModel.fit(groups([row for row in rows if row["time"] != 4.0]))
        assert model.process.curves.time is None
        answer = model.predict({}, ("A",), time=4.0)
        assert answer.kind == "time"
        assert np.linalg.norm(answer.mean - effect) / np.linalg.norm(effect) < 0.15

    @pytest.mark.parametrize(
        ("asked", "message"),
        [({"dose": -1.0}, "dose -1 is negative"), ({"time": -2.0}, "time -2"), ({"dose": (1.0, 2.0)}, "2 doses for 1")],
    )
    def test_impossible_requests(self, asked, message):
        rows, _ = self.planted()
        with pytest.raises(InputError, match=message):
            EffectModel.fit(groups(rows)).predict({}, ("A",), **asked)


class TestAsObserved:
    def test_without_noise_it_is_the_effect_itself(self):
        effect = Effect(np.array([-2.0, 0.0, 0.3]), np.zeros(3), 0.0, "seen")
        np.testing.assert_allclose(effect.as_observed(np.zeros(3)), effect.mean, atol=1e-6)

    def test_it_is_as_large_as_what_is_measured_again(self):
        rng = np.random.default_rng(0)
        prior, noise, n = 0.6, 1.0, 200_000
        true = prior * rng.standard_normal(n)
        first, again = true + rng.standard_normal((2, n)) * noise
        share = prior**2 / (prior**2 + noise**2)
        effect = Effect(share * first, np.full(n, share * noise**2), 0.0, "seen")
        told = effect.as_observed(np.full(n, noise**2))
        assert np.abs(told).mean() == pytest.approx(np.abs(again).mean(), rel=0.01)
        assert np.abs(effect.mean).mean() < 0.5 * np.abs(again).mean()
        assert (np.sign(told) == np.sign(first)).all()


class TestModel:
    def test_depth_ratio_is_shrunk_to_what_cells_support(self):
        rows, _ = screen(depth=0.4)
        ratio = EffectModel.fit(groups(rows)).predict({}, ("p01",)).log_depth_ratio
        assert 0.25 < ratio < 0.42
        few = [row | {"n": 3} for row in rows]
        assert 0 <= EffectModel.fit(groups(few)).predict({}, ("p01",)).log_depth_ratio < ratio

    def test_seen_effects_are_shrunk_measurements(self):
        rows, effects = screen(n=15)
        model = EffectModel.fit(groups(rows))
        answer = model.predict({}, ("p01",))
        measured = model.process.measured.effect[1, :-1]
        assert answer.kind == "seen"
        assert error(answer, effects["p01"]) < np.mean((measured - effects["p01"]) ** 2)

    def test_no_controls_or_only_controls_are_refused(self):
        rows, _ = screen()
        with pytest.raises(InputError, match="no control cells"):
            EffectModel.fit(groups(rows[1:]))
        with pytest.raises(InputError, match="no effect to learn"):
            EffectModel.fit(groups(rows[:1]))

    def test_control_mean_of_other_genes_is_refused(self):
        rows, _ = screen()
        with pytest.raises(InputError, match=r"shape \(3,\); the model has 150 genes"):
            EffectModel.fit(groups(rows)).predict({}, ("p01",), control_mean=np.ones(3))

    def test_survives_files(self):
        rows, features, _ = TestFeatures().planted()
        rows = [row | {"time": 5.0, "dose": (1.0,) if row["perturbation"] else None, "cell_type": "x"} for row in rows]
        rows[0]["time"] = np.nan
        rows.append(rows[5] | {"dose": (3.0,)})
        model = EffectModel.fit(groups(rows), features=features)
        arrays, about = model.to_arrays()
        again = EffectModel.from_arrays(arrays, json.loads(json.dumps(about)))
        for parts in (("d05",), ("d00",), ("d01", "d02")):
            one, other = model.predict({}, parts), again.predict({}, parts)
            np.testing.assert_allclose(one.mean, other.mean)
            np.testing.assert_allclose(one.variance, other.variance)
            assert (one.kind, one.notes, one.log_depth_ratio) == (other.kind, other.notes, other.log_depth_ratio)

    def test_many_groups_condition_on_the_nearest(self):
        rng = np.random.default_rng(0)
        rows = [{"perturbation": (), "mean": np.ones(40)}]
        effects = rng.standard_normal((150, 40))
        rows += [{"perturbation": (f"p{i}",), "mean": 1 + effect} for i, effect in enumerate(effects)]
        answer = EffectModel.fit(groups(rows)).predict({}, ("p140",))
        assert error(answer, effects[140]) < 0.01

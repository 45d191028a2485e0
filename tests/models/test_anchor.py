"""The anchor: shrinkage at its limits, fallbacks, sums of parts, against closed forms and planted truth."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from scidiff.conditioning import Vocabulary
from scidiff.data.schema import Schema
from scidiff.models.anchor import Anchor, distinct_rows, gamma_shape

SCHEMA = Schema(perturbation="drug", control="ctrl", context=["type"])
N_GENES = 20


class Fitted:
    """An anchor of cells with these conditions and counts, and what it says of other conditions."""

    def __init__(self, obs: pd.DataFrame, x, schema: Schema = SCHEMA, *, counts: bool = True) -> None:
        self.schema = schema
        table = schema.table(type("Obs", (), {"obs": obs}))
        self.vocabulary = Vocabulary.learn(table, schema)
        x = sparse.csr_matrix(x.astype(np.float32)) if counts else x.astype(np.float32)
        cond = self.vocabulary.encode(table)
        self.anchor = Anchor.fit(x, cond, control=schema.is_control(table), counts=counts)

    def __call__(self, **request) -> np.ndarray:
        """The anchor of one condition; for counts, a composition."""
        out = self.raw(**request)
        return np.exp(out) / np.exp(out).sum()

    def raw(self, **request) -> np.ndarray:
        cond = self.vocabulary.encode(self.schema.conditions(request, known=self.vocabulary.known))
        return self.anchor(cond)[0].double().numpy()


def screen(n: int, *, depth: int = 500, seed: int = 0, drugs=("ctrl", "A", "B"), types=("T", "B")):
    """Balanced counts; planted log effects of drugs and types, and of A in T alone."""
    rng = np.random.default_rng(seed)
    base = rng.normal(0, 1, N_GENES)
    effect = {name: rng.normal(0, 0.7, N_GENES) for name in ("A", "B", "C", "T")}
    only = rng.normal(0, 0.7, N_GENES)
    obs, x, truth = [], [], {}
    for kind in types:
        for drug in drugs:
            logits = base + (effect["T"] if kind == "T" else 0) + sum(effect[p] for p in drug.split("+") if p != "ctrl")
            logits = logits + (only if (drug, kind) == ("A", "T") else 0)
            rho = np.exp(logits) / np.exp(logits).sum()
            truth[kind, drug] = rho
            x.append(rng.multinomial(depth, rho, size=n))
            obs += [{"type": kind, "drug": drug}] * n
    return pd.DataFrame(obs), np.concatenate(x), truth


class TestCounts:
    """Compositions."""

    def test_many_cells_give_the_observed_composition(self):
        obs, x, truth = screen(3000)
        fitted = Fitted(obs, x)
        for (kind, drug), rho in truth.items():
            seen = x[(obs["type"] == kind) & (obs["drug"] == drug)].sum(0)
            np.testing.assert_allclose(fitted(type=kind, drug=drug), seen / seen.sum(), rtol=0.01)
            np.testing.assert_allclose(fitted(type=kind, drug=drug), rho, rtol=0.05)

    def test_few_cells_of_a_homogeneous_kind_give_the_parent(self):
        """Nothing differs but by chance: the shrunk estimate is closer to the truth than what was observed."""
        rng = np.random.default_rng(0)
        rho = rng.dirichlet(np.full(N_GENES, 3.0))
        obs = pd.DataFrame({"type": [f"t{i}" for i in range(12)] * 20, "drug": "ctrl"})
        x = rng.multinomial(40, rho, size=len(obs))
        fitted = Fitted(obs, x)
        pooled = x.sum(0) / x.sum()
        for kind in ("t0", "t5"):
            own = x[obs["type"] == kind].sum(0)
            assert np.abs(fitted(type=kind) - pooled).max() < 0.1 * np.abs(own / own.sum() - pooled).max()

    def test_better_than_observed_and_than_pooled_where_data_are_few(self):
        rng = np.random.default_rng(1)
        base = rng.dirichlet(np.full(200, 3.0))
        kinds = base * rng.gamma(8, 1 / 8, (30, 200))  # true ratios ~ Gamma(8, 8)
        kinds /= kinds.sum(1, keepdims=True)
        obs = pd.DataFrame({"type": [f"t{i:02d}" for i in range(30)], "drug": "ctrl"})
        x = np.stack([rng.multinomial(2000, rho) for rho in kinds])
        fitted = Fitted(obs, x)
        shrunk = np.stack([fitted(type=kind) for kind in obs["type"]])

        def error(estimate: np.ndarray) -> float:
            return float(((estimate - kinds) ** 2).sum())

        assert error(shrunk) < 0.8 * error(x / x.sum(1, keepdims=True))
        assert error(shrunk) < 0.8 * error(np.tile(x.sum(0) / x.sum(), (30, 1)))

    def test_unknown_attributes_fall_back(self):
        obs, x, truth = screen(2000)
        fitted = Fitted(obs, x)
        control = x[obs["drug"] == "ctrl"].sum(0)
        np.testing.assert_allclose(fitted(), control / control.sum(), rtol=0.01)
        np.testing.assert_allclose(fitted(type="T"), truth["T", "ctrl"], rtol=0.05)
        np.testing.assert_allclose(fitted(type="B", drug="ctrl"), fitted(type="B"), rtol=0.02)

    def test_unseen_pair_of_type_and_drug_is_the_sum(self):
        """B was never given to T: effect of B, seen in the other type, on top of T."""
        obs, x, truth = screen(3000)
        keep = ~((obs["type"] == "T") & (obs["drug"] == "B")).to_numpy()
        fitted = Fitted(obs[keep], x[keep])
        np.testing.assert_allclose(fitted(type="T", drug="B"), truth["T", "B"], rtol=0.1)
        sums = fitted.raw(type="T") - fitted.raw() + fitted.raw(drug="B")
        np.testing.assert_allclose(fitted.raw(type="T", drug="B"), sums, atol=1e-5)

    def test_unseen_combination_is_the_sum_of_its_parts(self):
        """A and B alone, and A+C: the effect of A is the one it has alone, and C's is what A+C has beyond A."""
        schema = Schema(perturbation="drug", control="ctrl")
        obs, x, truth = screen(4000, drugs=("ctrl", "A", "B", "A+C"), types=("B",))
        fitted = Fitted(obs, x, schema)
        for drug in ("A", "B", "A+C"):
            np.testing.assert_allclose(fitted(drug=drug), truth["B", drug], rtol=0.05)
        control, a, b, c = (fitted.raw(drug=drug) for drug in ("ctrl", "A", "B", "C"))
        np.testing.assert_allclose(fitted.raw(drug="A+B"), a + b - control, atol=1e-5)
        np.testing.assert_allclose(fitted.raw(drug="B+C"), b + c - control, atol=1e-5)
        _, _, all_truth = screen(1, drugs=("ctrl", "A", "B", "A+B", "B+C"), types=("B",))
        for drug in ("A+B", "B+C"):
            np.testing.assert_allclose(fitted(drug=drug), all_truth["B", drug], rtol=0.1)

    def test_a_combination_that_was_seen_is_not_just_the_sum(self):
        schema = Schema(perturbation="drug", control="ctrl")
        obs, x, truth = screen(3000, drugs=("ctrl", "A", "B"), types=("B",))
        rng = np.random.default_rng(5)
        rho = rng.dirichlet(np.full(N_GENES, 2.0))  # nothing to do with A or B
        obs = pd.concat([obs, pd.DataFrame({"type": "B", "drug": ["B+A"] * 3000})])
        fitted = Fitted(obs, np.concatenate([x, rng.multinomial(500, rho, size=3000)]), schema)
        np.testing.assert_allclose(fitted(drug="A+B"), rho, rtol=0.05)
        np.testing.assert_allclose(fitted(drug="A"), truth["B", "A"], rtol=0.05)

    def test_dose_zero_has_the_anchor_of_the_control(self):
        schema = Schema(perturbation="drug", control="ctrl", dose="dose")
        obs, x, _ = screen(50)
        fitted = Fitted(obs.assign(dose=np.where(obs["drug"] == "ctrl", 0.0, 3.0)), x, schema)
        np.testing.assert_array_equal(fitted.raw(drug="A", dose=0), fitted.raw(drug="ctrl"))

    def test_genes_never_seen_are_rare_but_possible(self):
        obs, x, _ = screen(100)
        x[:, 3] = 0
        x[(obs["drug"] != "A").to_numpy(), 4] = 0  # only after A
        rho = Fitted(obs, x)(type="B", drug="ctrl")
        assert 0 < rho[3] < 1e-5
        assert 0 < rho[4] < 1e-3

    def test_order_of_cells_and_of_control_flags_does_not_matter(self):
        obs, x, _ = screen(30)
        order = np.random.default_rng(0).permutation(len(obs))
        one, other = Fitted(obs, x).anchor, Fitted(obs.iloc[order], x[order]).anchor
        for name, value in one.state_dict().items():
            torch.testing.assert_close(other.state_dict()[name], value, atol=1e-5, rtol=1e-5)

    def test_names_of_columns_are_free(self):
        """Columns may be called what the anchor calls its own kinds of effects."""
        obs, x, truth = screen(2000, drugs=("ctrl", "A"))
        schema = Schema(perturbation="drug", control="ctrl", context=["part", "combination"])
        fitted = Fitted(obs.assign(part=obs["type"], combination="same"), x, schema)
        np.testing.assert_allclose(fitted(part="T", combination="same", drug="A"), truth["T", "A"], rtol=0.05)

    def test_many_contexts(self):
        """Five attributes at once: every row must be found again."""
        rng = np.random.default_rng(0)
        names = ["a", "b", "c", "d"]
        obs = pd.DataFrame({name: rng.choice(["x", "y"], 600) for name in names})
        obs["drug"] = rng.choice(["ctrl", "A"], 600)
        groups, labels = pd.factorize(pd.MultiIndex.from_frame(obs))
        rho = rng.dirichlet(np.ones(N_GENES), size=len(labels))
        x = np.stack([rng.multinomial(2000, rho[g]) for g in groups])
        fitted = Fitted(obs, x, Schema(perturbation="drug", control="ctrl", context=names))
        said = [fitted(**dict(zip(obs.columns, label, strict=True))) for label in labels]
        np.testing.assert_allclose(said, rho, atol=0.03)

    def test_one_cell(self):
        fitted = Fitted(pd.DataFrame({"type": ["T"], "drug": ["ctrl"]}), 100 * np.arange(1.0, N_GENES + 1)[None])
        np.testing.assert_allclose(fitted(type="T"), np.arange(1, N_GENES + 1) / 210, rtol=0.05)

    def test_no_conditions(self):
        obs, x, _ = screen(100)
        fitted = Fitted(obs, x, Schema())
        np.testing.assert_allclose(fitted(), x.sum(0) / x.sum(), rtol=1e-3)


class TestShape:
    """The shape of the ratios' distribution."""

    @pytest.mark.parametrize("shape", [0.5, 3.0, 40.0])
    def test_recovers_a_planted_shape(self, shape):
        rng = np.random.default_rng(0)
        expected = rng.lognormal(2.5, 1, (40, 300))
        observed = rng.poisson(expected * rng.gamma(shape, 1 / shape, expected.shape))
        assert gamma_shape(observed, expected) == pytest.approx(shape, rel=0.35)  # a grid of factor 1.6

    def test_no_spread_is_a_large_shape(self):
        expected = np.full((40, 300), 20.0)
        observed = np.random.default_rng(0).poisson(expected)
        assert gamma_shape(observed, expected) > 500

    def test_nothing_to_learn_from(self):
        assert gamma_shape(np.zeros((2, 2)), np.full((2, 2), 0.1)) > 1000


class TestExpression:
    """Data without counts."""

    def expression(self, n: int, noise: float = 1.0, seed: int = 0):
        rng = np.random.default_rng(seed)
        obs = pd.DataFrame({"drug": np.repeat(["ctrl", "A", "B"], n)})
        effect = {"ctrl": np.zeros(N_GENES), "A": rng.normal(0, 1, N_GENES), "B": rng.normal(0, 1, N_GENES)}
        mean = np.stack([5 + effect[drug] for drug in obs["drug"]])
        return obs, mean + noise * rng.normal(size=mean.shape), mean

    def test_is_the_normal_means_shrinkage(self):
        """One factor, balanced: base = control mean, effect = left over x prior / (prior + noise), by hand."""
        schema = Schema(perturbation="drug", control="ctrl")
        obs, x, _ = self.expression(4)
        fitted = Fitted(obs, x, schema, counts=False)
        x = x.astype(np.float32).astype(float)
        means = pd.DataFrame(x).groupby(obs["drug"]).mean().loc[["ctrl", "A", "B"]].to_numpy()
        own_mean = np.repeat(means, 4, axis=0)  # the cells are in the order ctrl, A, B
        within = ((x - own_mean) ** 2).sum(0) / 9
        np.testing.assert_allclose(fitted.raw(drug="ctrl"), means[0], rtol=1e-5)
        left = means[1:] - means[0]
        noise = within / 4
        prior = np.maximum((left**2 - noise).mean(0), 1e-8)
        np.testing.assert_allclose(
            np.stack([fitted.raw(drug="A"), fitted.raw(drug="B")]), means[0] + left * prior / (prior + noise), rtol=1e-4
        )

    def test_limits(self):
        schema = Schema(perturbation="drug", control="ctrl")
        obs, x, mean = self.expression(2000)
        fitted = Fitted(obs, x, schema, counts=False)
        np.testing.assert_allclose(fitted.raw(drug="A"), mean[obs["drug"] == "A"][0], atol=0.15)
        obs, x, _ = self.expression(3, noise=1.0)
        null = Fitted(obs, np.random.default_rng(1).normal(size=x.shape), schema, counts=False)
        moved = np.abs(null.raw(drug="A") - null.raw(drug="ctrl"))
        observed = np.random.default_rng(1).normal(size=x.shape).reshape(3, 3, -1).mean(1)
        assert moved.mean() < 0.6 * np.abs(observed[1] - observed[0]).mean()

    def test_sparse_and_dense_agree(self):
        schema = Schema(perturbation="drug", control="ctrl")
        obs, x, _ = self.expression(6)
        x = np.maximum(x - 4, 0)
        dense = Fitted(obs, x, schema, counts=False)
        vocabulary = dense.vocabulary
        table = schema.table(type("Obs", (), {"obs": obs}))
        thin = Anchor.fit(
            sparse.csr_matrix(x.astype(np.float32)),
            vocabulary.encode(table),
            control=schema.is_control(table),
            counts=False,
        )
        for name, value in dense.anchor.state_dict().items():
            torch.testing.assert_close(thin.state_dict()[name], value, atol=1e-5, rtol=1e-5)

    def test_standardised(self):
        schema = Schema(perturbation="drug", control="ctrl")
        obs, x, _ = self.expression(6)
        fitted = Fitted(obs, x, schema, counts=False)
        mean, sd = np.linspace(1, 2, N_GENES, dtype=np.float32), np.linspace(0.5, 3, N_GENES, dtype=np.float32)
        before = fitted.raw(drug="A")
        fitted.anchor = fitted.anchor.standardised(mean, sd)
        np.testing.assert_allclose(fitted.raw(drug="A"), (before - mean) / sd, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("counts", [True, False])
def test_groups_a_few_at_a_time_are_as_all_at_once(monkeypatch, counts):
    schema = Schema(perturbation="drug", control="ctrl", context=["type"], batch="well")
    obs, x, _ = screen(12, drugs=("ctrl", "A", "B", "A+B"))
    obs["well"] = [f"w{i % 5}" for i in range(len(obs))]
    at_once = Fitted(obs, x if counts else np.log1p(x), schema, counts=counts).anchor.state_dict()
    monkeypatch.setattr("scidiff.models.anchor.VALUES", 3 * N_GENES)
    monkeypatch.setattr("scidiff.models.anchor.CELLS", 2)
    in_parts = Fitted(obs, x if counts else np.log1p(x), schema, counts=counts).anchor.state_dict()
    for name, value in at_once.items():
        torch.testing.assert_close(in_parts[name], value, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("counts", [True, False])
def test_memory_does_not_grow_with_batches_times_perturbations(monkeypatch, counts):
    n_genes, batch, drug = 400, np.repeat(np.arange(60), 40), np.tile(np.arange(40), 60)
    schema = Schema(perturbation="drug", control="0", batch="well")
    table = schema.table(type("Obs", (), {"obs": pd.DataFrame({"drug": drug.astype(str), "well": batch.astype(str)})}))
    cond = Vocabulary.learn(table, schema).encode(table)
    x = sparse.random(len(table), n_genes, density=0.05, format="csr", random_state=0, dtype=np.float32)
    x.data = np.ceil(3 * x.data)
    monkeypatch.setattr("scidiff.models.anchor.VALUES", 20_000)
    tracemalloc.start()
    Anchor.fit(x, cond, control=schema.is_control(table), counts=counts)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < len(table) * n_genes * 8 / 2  # half of a matrix of all groups


def test_from_state_is_the_same_anchor():
    obs, x, _ = screen(30)
    fitted = Fitted(obs, x)
    state = {f"anchor.{name}": value for name, value in fitted.anchor.state_dict().items()}
    again = Anchor.from_state([f.attributes for f in fitted.anchor.factors], state, prefix="anchor.")
    cond = fitted.vocabulary.encode(SCHEMA.conditions([{}, {"type": "T", "drug": "B"}, {"drug": "A+B"}]))
    assert torch.equal(again(cond), fitted.anchor(cond))


class TestDistinctRows:
    """The rows that are summed once for all cells that share them."""

    @pytest.mark.parametrize("seed", range(5))
    def test_against_numpy(self, seed):
        rows = np.random.default_rng(seed).integers(0, 4, size=(60, 3))
        rows[:, 1] *= 10**15  # large numbers must not overflow into each other
        distinct, place = distinct_rows(torch.from_numpy(rows))
        assert np.array_equal(distinct[place], rows)
        assert sorted(map(tuple, distinct.tolist())) == list(map(tuple, np.unique(rows, axis=0).tolist()))

    def test_no_rows(self):
        distinct, place = distinct_rows(torch.zeros(0, 2, dtype=torch.long))
        assert len(distinct) == len(place) == 0

"""The closed form alone, on everything that is held out: five tables, one core, a few minutes.

    python benchmarks/effects.py --seeds 10 [--tables norman zhao]

Means only, no cells are drawn: an effect is a difference of means of log1p(CP10k), predicted against one half of the
control cells and true against the other; a seed is one halving. Beside the closed form stand the baselines of
`scidiff.evaluation.shifts`. What is chosen (kernels, shrinkage, number of cell states) is chosen on training cells.

    kang        each of seven cell types held out
    norman      each double held out of which one or both parts were measured alone
    zhao        each patient held out; "states": cell states found by clustering are the contexts, not patients
    papalexi    each replicate held out, replicates as contexts. pds asks which of the noisy true effects is nearest
                to a prediction (L1). It rewards large predictions, noise included: mean shift x 1.5, x 5.
                "named": which of the predictions is nearest to a true effect. "calibration": slope of true on predicted
                effects, both less their mean over targets, 1 if predictions are as large as they should be.
                "as observed": as large as effects will look in a replicate of as many cells (Effect.as_observed)
    simulator   dose 1 of every drug, and 24 hours of all perturbations, against the noise-free truth; "limit": group
                means without sampling noise, which leaves the error of the model; drugs never seen, by their features
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from kang_generate import markdown
from scipy.stats import spearmanr

import scidiff as sd
from scidiff.data.scaling import highly_variable_genes, log1p_cp10k
from scidiff.evaluation import metrics
from scidiff.evaluation.shifts import Additive, MatchingMean, MeanShift, PerturbedMean, SimilarityShift
from scidiff.models.effect_groups import GroupStats
from scidiff.models.effects import EffectModel
from scidiff.predictor import Predictor, conditions_of_groups

RESULTS = Path(__file__).parent / "results"
CLOSED = "closed form"
Row = tuple[str, int, str, str, float]  # condition, seed, method, metric, value

SCREEN = {  # of the simulator: 9 perturbations that act, 3 of them drugs in 5 doses; 5 times, 3 states
    "n_genes": 300,
    "n_tfs": 40,
    "n_states": 3,
    "n_batches": 1,
    "n_perturbations": 9,
    "n_null": 0,
    "n_duplicates": 0,
    "n_combinations": 0,
    "n_clones": 10,
    "depth": 10_000,
}
DOSES, TIMES = (0.1, 0.3, 1.0, 3.0, 10.0), (6.0, 12.0, 24.0, 48.0, 72.0)
CELLS, CONTROL_CELLS = 1000, 10_000  # of each treated condition and of each state: 345,000 in all
DRUGS = {  # a screen for drugs that were never seen
    "n_cells": 25_000,
    "n_genes": 500,
    "n_states": 3,
    "n_batches": 1,
    "n_combinations": 0,
    "times": (24.0,),
    "doses": (1.0, 10.0),
    "depth": 5000,
    "control_share": 0.2,
}


# --- published measurements -----------------------------------------------------------------------------------------


def kang(seeds: int) -> Iterator[Row]:
    adata, schema = loaded("kang18"), sd.data.schema_of("kang18")
    adata = adata[~adata.obs["cell_type"].isin(["Mk", "Eryth"])].copy()
    for cell_type, seed in pairs(adata.obs["cell_type"].unique(), seeds):
        split = sd.data.holdout(adata, schema, context=cell_type, perturbation="IFN-beta", seed=seed)
        chosen = highly_variable_genes(adata.X[split.train], 2000)
        train, source, test, control = parts_of(adata[:, chosen], split)
        asked, true = {"perturbation": "IFN-beta", "cell_type": cell_type}, mean(test) - mean(control)
        predictor = Predictor.fit(train.X, schema.table(train), schema, counts=False, features=None, seed=0)
        effect = predictor.effects.predict({"cell_type": cell_type}, ("IFN-beta",), control_mean=mean(source))
        found = {CLOSED: effect.mean} | shifts(train, source, schema, asked, MeanShift, SimilarityShift)
        yield from scores(cell_type, seed, found, true)
        sampling = test.X.toarray().var(axis=0) / test.n_obs + control.X.toarray().var(axis=0) / control.n_obs
        low, high = predictor.interval(effect, sampling)
        seen = mean(control) > 0.05
        yield cell_type, seed, CLOSED, "coverage_90", np.mean((low <= true) & (true <= high), where=seen)


def norman(seeds: int) -> Iterator[Row]:
    adata, schema = loaded("norman19"), sd.Schema(perturbation="condition", control="control")
    adata.X = adata.layers.pop("lognorm")
    adata = adata[adata.obs["cell_type"] == "k562"].copy()
    singles = {name for name in adata.obs["condition"].unique() if "+" not in name}
    doubles = [name for name in adata.obs["condition"].unique() if "+" in name and set(name.split("+")) & singles]
    for double, seed in pairs(doubles, seeds):
        split = sd.data.holdout(adata, schema, combination=double, seed=seed)
        train, source, test, control = parts_of(adata, split)
        both = len(set(double.split("+")) & singles) == 2
        found = {CLOSED: fitted(train, schema).predict({}, double.split("+")).mean}
        found |= shifts(train, source, schema, {"perturbation": double}, Additive, MatchingMean, PerturbedMean)
        name = f"{'both seen' if both else 'one seen'}: {double}"
        yield from scores(name, seed, found, mean(test) - mean(control))


def zhao(seeds: int) -> Iterator[Row]:
    adata, schema = loaded("zhao21"), sd.data.schema_of("zhao21")
    for patient, seed in pairs(adata.obs["patient_id"].unique(), seeds):
        split = sd.data.holdout(adata, schema, context=patient, perturbation="panobinostat", seed=seed)
        train, source, test, control = parts_of(adata, split)
        asked = {"perturbation": "panobinostat", "patient_id": patient}
        effect = fitted(train, schema).predict({"patient_id": patient}, ("panobinostat",), control_mean=mean(source))
        found = {f"{CLOSED}, states": by_state(train, patient), CLOSED: effect.mean}
        found |= shifts(train, source, schema, asked, MeanShift, SimilarityShift)
        yield from scores(patient, seed, found, mean(test) - mean(control))


def by_state(train: ad.AnnData, patient: str, *, numbers: Sequence[int] = (2, 3, 4, 6)) -> np.ndarray:
    """Return the effect in a patient of whom only control cells were seen, with cell states as contexts.

    The number of states is the smallest that predicts the other patients, each left out in turn, within one standard
    error of the best (Breiman et al. 1984).
    """
    others = [other for other in train.obs["patient_id"].unique() if other != patient]
    treated = (train.obs["condition"] != "ctrl").to_numpy()
    errors = np.zeros((len(numbers), len(others)))
    for i, number in enumerate(numbers):
        train.obs["state"] = states(train, number)
        for j, other in enumerate(others):
            here = (train.obs["patient_id"] == other).to_numpy()
            true = mean(train[here & treated]) - mean(train[here & ~treated])
            errors[i, j] = metrics.mse_delta(over_states(train[~(here & treated)], other), true)
    worse = errors - errors[errors.mean(axis=1).argmin()]
    within = worse.mean(axis=1) <= worse.std(axis=1, ddof=1) / np.sqrt(len(others))
    train.obs["state"] = states(train, numbers[int(within.argmax())])
    return over_states(train, patient)


def over_states(train: ad.AnnData, patient: str) -> np.ndarray:
    """Return the effect in a patient's control cells: the effects in their states, each as often as it occurs."""
    schema = sd.Schema(perturbation="condition", control="ctrl", context="state")
    model = fitted(train, schema)
    cells = train[((train.obs["patient_id"] == patient) & (train.obs["condition"] == "ctrl")).to_numpy()]
    return sum(
        share
        * model.predict({"state": state}, ("panobinostat",), control_mean=mean(cells[cells.obs["state"] == state])).mean
        for state, share in cells.obs["state"].value_counts(normalize=True).items()
        if share
    )


def states(adata: ad.AnnData, number: int) -> list[str]:
    """Return the state of each cell: k-means on 20 components, less the mean of its patient and condition."""
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA

    x = pd.DataFrame(adata.X.toarray())
    x -= x.groupby(adata.obs.groupby(["patient_id", "condition"], observed=True).ngroup().to_numpy()).transform("mean")
    components = PCA(20, random_state=0).fit_transform(x.to_numpy())
    return [f"state {i}" for i in KMeans(number, n_init=5, random_state=0).fit_predict(components)]


def papalexi(seeds: int) -> Iterator[Row]:
    adata = loaded("papalexi21")
    schema = sd.Schema(perturbation="perturbation", control="control", context="replicate")
    names = [name for name in adata.obs["perturbation"].unique() if name != "control"]
    genes = list(adata.var_names)
    targets = [genes.index(name) if name in genes else None for name in names]
    for replicate, seed in pairs(adata.obs["replicate"].unique(), seeds):
        split = sd.data.holdout(adata, schema, context=replicate, seed=seed)
        train, source, test, control = parts_of(adata, split)
        model, base, z = fitted(train, schema), mean(control), mean(source)
        true = np.array([mean(test[test.obs["perturbation"] == name]) - base for name in names])
        effects = [model.predict({"replicate": replicate}, (name,), control_mean=z) for name in names]
        found = {CLOSED: [effect.mean for effect in effects]}
        found[f"{CLOSED}, as observed"] = [
            effect.as_observed(sampling_of(model, name)) for effect, name in zip(effects, names, strict=True)
        ]
        for method in (MeanShift, PerturbedMean):
            fit = method.fit(train, schema)
            asked = [{"perturbation": name, "replicate": replicate} for name in names]
            found[title(method)] = [fit.effect(schema.conditions(one).iloc[0], z) for one in asked]
        found |= {f"mean shift x {times}": times * np.array(found["mean shift"]) for times in (1.5, 5)}
        for method, effects in found.items():
            effects = np.array(effects)
            yield replicate, seed, method, "pds", metrics.pds(effects, true, targets=targets).mean()
            yield replicate, seed, method, "named", metrics.pds(true, effects, targets=targets).mean()
            own, told = ((one - one.mean(axis=0)).ravel() for one in (true, effects))
            if np.abs(told).max() > 1e-6:  # not one prediction for all
                yield replicate, seed, method, "calibration", metrics.slope(own, told)
            for metric in (metrics.pearson_delta, metrics.mse_delta):
                each = [metric(*both) for both in zip(effects, true, strict=True)]
                yield replicate, seed, method, metric.__name__, float(np.mean(each))


def sampling_of(model: EffectModel, name: str) -> np.ndarray:
    """Return the sampling variance of a perturbation's effect in a training context, the mean over those."""
    measured = model.process.measured
    rows = np.flatnonzero([parts == (name,) for parts in measured.rows["parts"]])
    noise = measured.noise[rows] + measured.reference_noise[measured.rows["reference"].to_numpy(int)[rows]]
    return noise.mean(axis=0)[:-1]


# --- simulator ------------------------------------------------------------------------------------------------------


def simulator(seeds: int) -> Iterator[Row]:
    for seed in range(min(seeds, 1)):
        yield from doses_and_times(seed)
        for wrong in (0.0, 0.3):
            yield from unseen_drugs(seed, wrong)


def doses_and_times(seed: int) -> Iterator[Row]:
    """Relative error of effects, |predicted - true| / |true|, pooled over the conditions held out."""
    lab = sd.data.simulate(n_cells=100, **SCREEN, doses=DOSES, times=TIMES, seed=seed).lab
    drugs = set(lab.perturbations.query("type == 'drug'").index)
    conditions = [("control", np.nan, 0.0, state) for state in lab.states] + [
        (name, dose, time, state)
        for name in lab.perturbations.index
        for dose in (DOSES if name in drugs else (1.0,))
        for time in TIMES
        for state in lab.states
    ]
    sampled, limit = [], []
    for name, dose, time, state in conditions:
        asked = {"cell_type": state, "dose": None if name == "control" else dose, "time": time}
        n = CONTROL_CELLS if name == "control" else CELLS
        cells = log1p_cp10k(lab.run(name, **asked, n=n, seed=seed).X)
        variance = np.asarray(cells.multiply(cells).mean(axis=0)).ravel() - mean_of(cells) ** 2
        sampled.append((mean_of(cells), variance / n))
        limit.append((lab.log_mean(name, **asked).to_numpy(), np.full(len(lab.genes), 1e-8)))
    table = pd.DataFrame(conditions, columns=["perturbation", "dose", "time", "cell_type"])
    table["perturbation"] = [() if name == "control" else (name,) for name in table["perturbation"]]
    table["dose"] = [None if np.isnan(dose) else (dose,) for dose in table["dose"]]
    base = {state: limit[i][0] for i, state in enumerate(lab.states)}
    true = np.array([level - base[state] for (level, _), state in zip(limit, table["cell_type"], strict=True)])
    is_drug = np.array([parts != () and parts[0] in drugs for parts in table["perturbation"]])
    treated = np.array([parts != () for parts in table["perturbation"]])
    middle = np.array([dose == (1.0,) for dose in table["dose"]])
    held = {"dose": is_drug & middle, "time": treated & (table["time"] == 24).to_numpy()}
    for kind, out in held.items():
        for method, groups in ((f"{CLOSED}, {CELLS} cells a condition", sampled), (f"{CLOSED}, limit", limit)):
            model = EffectModel.fit(groups_of(table[~out], [groups[i] for i in np.flatnonzero(~out)]))
            effects = np.array(
                [
                    model.predict({"cell_type": row.cell_type}, row.perturbation, dose=row.dose[0], time=row.time).mean
                    for row in table[out].itertuples()
                ]
            )
            error, size = np.linalg.norm(effects - true[out], axis=1), np.linalg.norm(true[out], axis=1)
            yield kind, seed, method, "relative_error", float(np.sqrt((error**2).sum() / (size**2).sum()))
            yield kind, seed, method, "relative_error_median", float(np.median(error / size))


def unseen_drugs(seed: int, wrong: float) -> Iterator[Row]:
    """Rank correlation with the true effect of each drug, left out in turn; features name its targets."""
    made = sd.data.simulate(**DRUGS, wrong_targets=wrong, seed=seed)
    schema = sd.Schema(perturbation="perturbation", control="control", context="cell_type", dose="dose", time="time")
    made.adata.X, depth = log1p_cp10k(made.adata.X), np.asarray(made.adata.X.sum(axis=1)).ravel()
    made.adata.obs["depth"] = depth
    states = made.lab.states
    expressed = np.mean([made.lab.mean("control", cell_type=state) for state in states], axis=0) > 0.1
    everything = fitted(made.adata, schema)
    for drug in made.lab.perturbations.query("type == 'drug' and not is_null and duplicate_of == ''").index:
        train = made.adata[(made.adata.obs["perturbation"] != drug).to_numpy()]
        asked = {"dose": DRUGS["doses"][-1], "time": DRUGS["times"][-1]}
        true = np.mean([made.lab.effect(drug, cell_type=state, counted=True, **asked) for state in states], axis=0)
        found = {
            f"{CLOSED}, features": fitted(train, schema, made.features).predict({}, (drug,), **asked).mean,
            f"{CLOSED}, cells of the drug": everything.predict({}, (drug,), **asked).mean,
        }
        for method, effect in found.items():
            rank = float(spearmanr(effect[expressed], true[expressed])[0])
            yield f"unseen drug, {wrong:.0%} of targets wrong", seed, method, "spearman", rank


def groups_of(table: pd.DataFrame, moments: list[tuple[np.ndarray, np.ndarray]]) -> GroupStats:
    """Return the statistics of groups with given means and variances of the means."""
    mean, variance = (np.array(values) for values in zip(*moments, strict=True))
    n = np.array([CONTROL_CELLS if parts == () else CELLS for parts in table["perturbation"]], dtype=float)
    return GroupStats(table.reset_index(drop=True), mean, variance, n, np.zeros(len(n)), 1 / n)


# --- parts ----------------------------------------------------------------------------------------------------------


def loaded(name: str) -> ad.AnnData:
    """Return a data set on log1p(CP10k), with the molecules of each cell in obs."""
    adata = sd.data.load(name)
    adata.obs["depth"] = np.asarray(adata.X.sum(axis=1)).ravel()
    adata.X = log1p_cp10k(adata.X)
    return adata


def fitted(train: ad.AnnData, schema: sd.Schema, features: pd.DataFrame | None = None) -> EffectModel:
    groups = conditions_of_groups(schema.table(train), schema)
    return EffectModel.fit(GroupStats.of(train.X, groups, depth=train.obs["depth"].to_numpy()), features=features)


def shifts(train: ad.AnnData, source: ad.AnnData, schema: sd.Schema, asked: dict, *methods: type) -> dict:
    """Return the effect that each baseline predicts, by name."""
    row, control = schema.conditions(asked).iloc[0], mean(source)
    return {title(method): method.fit(train, schema).effect(row, control) for method in methods}


def title(method: type) -> str:
    return "".join(f" {c.lower()}" if c.isupper() else c for c in method.__name__).strip()


def scores(condition: str, seed: int, found: dict[str, np.ndarray], true: np.ndarray) -> Iterator[Row]:
    for method, effect in found.items():
        for metric in (metrics.pearson_delta, metrics.mse_delta, metrics.slope):
            yield condition, seed, method, metric.__name__, metric(effect, true)


def parts_of(adata: ad.AnnData, split: sd.data.Split) -> list[ad.AnnData]:
    return [adata[getattr(split, role)].copy() for role in ("train", "source", "test", "control")]


def pairs(values: Sequence[str], seeds: int) -> list[tuple[str, int]]:
    return [(str(value), seed) for value in sorted(values) for seed in range(seeds)]


def mean(adata: ad.AnnData) -> np.ndarray:
    return mean_of(adata.X)


def mean_of(x) -> np.ndarray:
    return np.asarray(x.mean(axis=0)).ravel()


def summary(rows: pd.DataFrame) -> str:
    """Return Markdown: method x metric for each table, and by how much the closed form beats each other method."""
    text = []
    parts = (
        rows["condition"].astype(str).str.split(":").str[0].where(rows["table"].isin(["norman", "simulator"]), "all")
    )
    for (name, part), some in rows.groupby(["table", parts], sort=False):
        table = some.pivot_table(index="method", columns="metric", values="value", sort=False)
        if name != "simulator":
            lead = "pds" if "pds" in table else "pearson_delta"
            each = some[some["metric"] == lead].pivot_table(
                index=["condition", "seed"], columns="method", values="value"
            )
            gain = each[[table.index[0]]].to_numpy() - each
            table[f"first row above it by ({lead})"], table["SE"] = gain.mean(), gain.sem()
            table[f"in (of {some['condition'].nunique()})"] = (gain.groupby("condition").mean() > 0).sum()
        text.append(f"\n## {name}{'' if part == 'all' else f', {part}'}\n\n{markdown(table)}")
    return "".join(text)


TABLES = {table.__name__: table for table in (kang, norman, zhao, papalexi, simulator)}


def main() -> None:
    """Run the tables that are asked for and write benchmarks/results/effects.csv and .md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "effects.csv"
    done = [pd.read_csv(path)] if path.exists() else []
    done = [before[~before["table"].isin(args.tables)] for before in done]
    for name in args.tables:
        rows = pd.DataFrame(TABLES[name](args.seeds), columns=["condition", "seed", "method", "metric", "value"])
        done.append(rows.assign(table=name))
        print(summary(done[-1]), flush=True)
    everything = pd.concat(done, ignore_index=True)
    everything["order"] = everything["table"].map(list(TABLES).index)
    everything = everything.sort_values("order", kind="stable").drop(columns="order")
    everything.to_csv(path, index=False, float_format="%.5g")
    head = f"Made by `python benchmarks/effects.py --seeds {args.seeds}`: means over held-out conditions and seeds.\n"
    (args.out / "effects.md").write_text(head + summary(everything))


if __name__ == "__main__":
    main()

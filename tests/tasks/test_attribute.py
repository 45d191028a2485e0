"""ScIDiff.attribute: planted causes are named, from cells, effects, names of genes and phenotypes."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

import scidiff as sd
from scidiff.integration import Signatures

N_GENES = 60
GENES = [f"G{g}" for g in range(N_GENES)]
SCHEMA = sd.Schema(perturbation="drug", control="DMSO", context=["cell_type"], dose="dose")
TINY = {"width": 8, "n_blocks": 1, "config": sd.TrainConfig(steps=5, batch_size=64)}
TYPES = ("B", "T")
rng = np.random.default_rng(3)
BASE = {kind: np.exp(rng.normal(size=N_GENES)) for kind in TYPES}
#: every drug raises ten genes of its own
EFFECT = {name: 1.2 * (np.arange(N_GENES) // 10 == i) for i, name in enumerate("ABCDE")}


def cells(kind: str, drug: str, n: int = 50, *, dose: float = 1.0, seed: int = 0) -> AnnData:
    own = np.random.default_rng([seed, TYPES.index(kind), int(10 * dose), *map(ord, drug)])
    parts = [part for part in drug.split("+") if part != "DMSO"]
    share = BASE[kind] * np.exp(dose * sum((EFFECT[part] for part in parts), np.zeros(N_GENES)))
    counts = own.poisson(1000 * share / share.sum(), size=(n, N_GENES)).astype(np.float32)
    obs = pd.DataFrame({"drug": drug, "cell_type": kind, "dose": dose if parts else 0.0}, index=range(n))
    obs.index = [f"{kind}-{drug}-{dose}-{seed}-{i}" for i in range(n)]
    return AnnData(sparse.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=GENES))


@pytest.fixture(scope="module")
def model() -> sd.ScIDiff:
    made = [cells(kind, drug) for kind in TYPES for drug in ("DMSO", "A", "B", "C", "D", "E")]
    return sd.ScIDiff.fit(ad.concat([*made, *(cells(kind, "A", dose=0.3) for kind in TYPES)]), SCHEMA, **TINY)


def named(table: pd.DataFrame, kind: str = "perturbation") -> list[str]:
    return list(table.loc[table["kind"] == kind, "name"])


@pytest.mark.parametrize("drug", "ABCDE")
def test_the_drug_behind_cells_is_named_with_its_genes(model, drug):
    table = model.attribute(cells("B", drug, seed=5), reference=cells("B", "DMSO", seed=6))
    first = table.iloc[0]
    assert first["name"] == f"{drug} @ 1"
    assert first["posterior"] > 0.9
    assert first["cosine"] == table["cosine"].max()
    raised = {gene for gene, up in zip(GENES, EFFECT[drug], strict=True) if up}
    assert len(raised & set(first["leading_genes"].split(","))) >= 6
    assert table["posterior"].sum() == pytest.approx(1)
    assert list(table["rank"]) == list(range(1, len(table) + 1))


def test_doses_are_told_apart(model):
    assert named(model.attribute(cells("T", "A", 200, dose=0.3, seed=8)))[0] == "A @ 0.3"


def test_two_drugs_are_found_among_all_pairs(model):
    table = model.attribute(cells("T", "B+D", 200, seed=9), pairs=True)
    assert named(table)[0] == "B @ 1+D @ 1"


def test_names_of_genes_are_enough(model):
    assert named(model.attribute(up=GENES[20:26]))[0] == "C @ 1"
    reverse = named(model.attribute(up=GENES[20:26], direction="reverse"))
    assert reverse[-1] == "C @ 1"


def test_an_effect_is_enough_and_its_opposite_is_undone_by_its_cause(model):
    effect = pd.Series(EFFECT["E"], GENES)
    assert named(model.attribute(effect=effect))[0] == "E @ 1"
    assert named(model.attribute(effect=-effect, direction="reverse"))[0] == "E @ 1"


def test_the_treatment_that_brings_most_of_a_phenotype_comes_first(model):
    """A at dose 1 raises its genes more than at .3; what falls is counted the other way round."""
    table = model.attribute(phenotype=sd.Phenotype(up=GENES[:3]), condition={"cell_type": "T"})
    assert named(table)[:2] == ["A @ 1", "A @ 0.3"]
    truth = cells("T", "A", 4000, seed=11)
    control = cells("T", "DMSO", 4000, seed=12)
    logged = [np.log1p(1e4 * x.X.toarray() / x.X.sum(axis=1)) for x in (truth, control)]
    change = np.asarray(logged[0].mean(axis=0) - logged[1].mean(axis=0)).ravel()
    assert table["gain"].iloc[0] == pytest.approx(change[:3].mean(), abs=4 * table["se"].iloc[0] + 0.05)
    assert list(table.columns[:7]) == ["kind", "name", "rank", "consensus_rank", "gain", "se", "direction"]
    assert (table["consensus_rank"] == table["rank"]).all()  # of one score
    undone = model.attribute(phenotype=sd.Phenotype(up=GENES[:3]), condition={"cell_type": "T"}, direction="reverse")
    assert named(undone)[-1] == "A @ 1"
    assert (undone["direction"] == "reverse").all()
    falling = model.attribute(phenotype=sd.Phenotype(down=GENES[:3]), condition={"cell_type": "T"})
    assert named(falling)[-1] == "A @ 1"
    assert falling["gain"].iloc[-1] == pytest.approx(-table["gain"].iloc[0])


def test_a_level_below_what_controls_have_is_a_wish_to_fall(model):
    """Asked as a number, in either list: what counts is on which side of it control cells are."""
    falling = named(model.attribute(phenotype=sd.Phenotype(down=["G0=0.1"]), condition={"cell_type": "T"}))
    rising = named(model.attribute(phenotype=sd.Phenotype(down=["G0=9"]), condition={"cell_type": "T"}))
    assert falling[-1] == rising[0] == "A @ 1"


def test_every_treatment_is_ranked_once_where_doses_are_not_known():
    made = [cells(kind, drug) for kind in TYPES for drug in ("DMSO", "A", "B")]
    plain = sd.Schema(perturbation="drug", control="DMSO", context=["cell_type"])
    table = sd.ScIDiff.fit(ad.concat(made), plain, **TINY).attribute(phenotype=sd.Phenotype(up=["G11"]))
    assert named(table) == ["B", "A"]


def test_regulators_of_named_genes_are_those_of_an_effect_on_all_others_too(model):
    network = pd.DataFrame(
        [(f"TF{name}", gene, 1.0) for name in "ABC" for gene, up in zip(GENES, EFFECT[name], strict=True) if up],
        columns=["source", "target", "weight"],
    )
    table = model.attribute(up=GENES[10:16], network=network)
    assert named(table, "tf")[0] == "TFB"
    assert table.loc[table["name"] == "TFB", "p_value"].iloc[0] < 0.01


def test_cells_are_compared_with_controls_in_their_own_proportions(model):
    """Nine tenths of one type: against controls half and half, what types differ in would look like an effect."""
    few = ad.concat([cells("B", "C", 180, seed=5), cells("T", "C", 20, seed=5)])
    one, both = (
        model.attribute(some).set_index("name")["cosine"]["C @ 1"] for some in (cells("B", "C", 180, seed=5), few)
    )
    assert both > one - 0.05


def test_regulators_and_drugs_stand_in_the_same_table(model):
    network = pd.DataFrame(
        [(f"TF{name}", gene, 1.0) for name in "ABC" for gene, up in zip(GENES, EFFECT[name], strict=True) if up],
        columns=["source", "target", "weight"],
    )
    values = np.stack([EFFECT[name] for name in "ABCDE"]) + rng.normal(0, 0.1, (5, N_GENES))
    signatures = Signatures(values, pd.Index(GENES), pd.DataFrame({"name": list("ABCDE")}), "planted")
    targets = pd.DataFrame({"drug": "b", "target": ["G11", "G12", "G13"], "action": "agonist"})
    table = model.attribute(cells("B", "B", 200, seed=5), network=network, signatures=signatures, targets=targets)
    assert named(table, "tf")[0] == "TFB"
    assert named(table, "drug")[0] == "B"
    best = table[table["name"] == "B"].iloc[0]
    assert best["known_targets"] == "G11,G12,G13"
    assert best["target_set"] > 3
    assert best["posterior"] == table.loc[table["name"] == "B @ 1", "posterior"].item() > 0.9
    for _, rows in table.groupby("kind"):
        assert sorted(rows["consensus_rank"]) == list(range(1, len(rows) + 1))
        assert rows["consensus_rank"].iloc[0] == 1
    tried = table[table["kind"] == "tf"].set_index("name")
    assert tried[["aucell", "in_silico"]].notna().all(axis=None)
    assert tried["aucell"].idxmax() == "TFB"
    assert tried["in_silico"].abs().max() <= 1
    assert list(table.columns[:4]) == ["kind", "name", "rank", "consensus_rank"]
    assert list(table.columns[-5:]) == ["direction", "p_value", "fdr", "leading_genes", "source"]


def test_drugs_that_were_in_training_have_the_posterior_of_all_their_doses(model):
    signatures = Signatures(
        np.stack([EFFECT[name] for name in "AABC"]) + rng.normal(0, 0.1, (4, N_GENES)),
        pd.Index(GENES),
        pd.DataFrame({"name": ["a", "a", "b", "never trained"], "dose": [1, 10, 1, 1]}),
    )
    query = cells("T", "A", 100, dose=0.6, seed=8)
    table = model.attribute(query, signatures=signatures)
    of = table.set_index("name")["posterior"]
    assert of["a"] == pytest.approx(of["A @ 1"] + of["A @ 0.3"])
    assert np.isnan(of["never trained"])
    each = model.attribute(query, signatures=signatures, each_dose=True)
    assert set(named(each, "drug")) == {"a @ 1", "a @ 10", "b @ 1", "never trained @ 1"}
    assert named(each, "drug")[0][0] == "a"


def test_drugs_are_ranked_by_their_targets_where_there_are_no_signatures(model):
    targets = pd.DataFrame(
        [(f"drug {name}", GENES[i], "agonist") for name in "ABC" for i in np.flatnonzero(EFFECT[name])],
        columns=["drug", "target", "action"],
    )
    asked = cells("B", "B", 200, seed=5)
    table = model.attribute(asked, targets=targets)
    assert named(table, "drug")[0] == "drug B"
    best = table[table["kind"] == "drug"].iloc[0]
    assert best["p_value"] < 1e-3
    assert best["n_targets"] == 10
    assert named(model.attribute(asked, targets=targets, direction="reverse"), "drug")[-1] == "drug B"
    assert named(model.attribute(up=["G20", "G21", "G22"], targets=targets), "drug")[0] == "drug C"


def test_a_saved_model_names_the_same(model, tmp_path):
    query = cells("B", "C", seed=5)
    again = sd.ScIDiff.load(model.save(tmp_path / "model"))
    pd.testing.assert_frame_equal(again.attribute(query), model.attribute(query))


def test_with_one_perturbation_there_is_no_question(tmp_path):
    """A model of control and one treatment trains, and has nothing to choose from."""
    made = [cells(kind, drug) for kind in TYPES for drug in ("DMSO", "A")]
    model = sd.ScIDiff.fit(ad.concat(made), SCHEMA, **TINY)
    assert model.library is None
    with pytest.raises(sd.InputError, match="nothing to name"):
        model.attribute(cells("B", "A"))


def test_with_one_cell_of_each_condition_there_is_no_answer():
    """Nothing says how cells vary: the model trains all the same."""
    made = [cells(kind, drug)[:1].copy() for kind in TYPES for drug in ("DMSO", "A", "B", "C")]
    assert sd.ScIDiff.fit(ad.concat(made), SCHEMA, **TINY).library is None


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, "takes one of"),
        ({"up": ["G1"], "effect": {"G1": 1.0}}, "takes one of"),
        ({"up": ["G1"], "direction": "mimick"}, "unknown direction 'mimick'.*mimic"),
        ({"up": ["G99"]}, "gene 'G99' is not in the library"),
        ({"effect": {"X": 1.0}}, "none of the effect's genes"),
        ({"up": ["G1"], "condition": {"cell_type": "B"}}, "belongs to phenotype="),
        ({"phenotype": sd.Phenotype(clamp={"G1": 0})}, "ranked by genes, sets and signatures"),
        ({"effect": {"G1": 0.0}}, "changes nothing"),
        ({"up": "G1"}, "take lists"),
        ({"up": ["G1"], "pairs": True}, "pairs= needs cells"),
        ({"up": ["G1"], "each_dose": True}, "each_dose= ranks signatures"),
        ({"up": ["G1"], "drug_names": pd.Series({"x": "DB1"})}, "drug_names= say which drugs are one"),
        ({"phenotype": sd.Phenotype(up=["G1"]), "targets": pd.DataFrame()}, "name the genes of the phenotype"),
        ({"phenotype": sd.Phenotype(up=["G1"]), "network": pd.DataFrame()}, "name the genes of the phenotype"),
        ({"up": ["G1"], "reference": cells("B", "DMSO", 2)}, "reference= is what cells are compared with"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_a_line(model, asked, message):
    with pytest.raises(sd.InputError, match=message):
        model.attribute(**asked)


def test_a_reference_without_counts_will_do_but_not_for_trying_regulators(model):
    network = pd.DataFrame({"source": "TFB", "target": GENES[10:20], "weight": 1.0})
    reference = cells("B", "DMSO", seed=6)
    logged = reference.copy()
    logged.X = sparse.csr_matrix(np.log1p(1e4 * reference.X.toarray() / reference.X.sum(axis=1)))
    counted, log = (model.attribute(cells("B", "B", seed=5), reference=r, network=network) for r in (reference, logged))
    assert counted.loc[counted["kind"] == "tf", "in_silico"].notna().all()
    assert "in_silico" not in log
    pd.testing.assert_frame_equal(log, counted.drop(columns="in_silico"), rtol=1e-4)

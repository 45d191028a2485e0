"""Phenotypes: every way of writing one, what each becomes, and what cannot be asked."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from scidiff.errors import InputError
from scidiff.phenotype import MAX_LEVEL, Phenotype, asked_modules, asked_phenotype, module_scores

GENES = ["IL2RA", "LAG3", "TIGIT", "ISG15", "MX1", "IFI6", "XIST"]
NETWORK = pd.DataFrame(
    {
        "source": ["STAT1"] * 4 + ["MYC"],
        "target": ["ISG15", "MX1", "IFI6", "IFI6", "LAG3"],
        "weight": [2.0, 1.0, 0.5, -1.5, 1.0],
    }
)


def said(phenotype: Phenotype) -> list[tuple[str, str, float]]:
    return [(wish.name, wish.level, wish.value) for wish in phenotype.wishes]


# ---- what an entry says ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "level", "value"),
    [
        ("IL2RA", "top", 1),
        (" IL2RA = 2.5", "mean", 2.5),
        ("IL2RA>2.5", "above", 2.5),
        ("IL2RA < 0.5", "below", 0.5),
        ("IL2RA=0", "mean", 0),
    ],
)
def test_an_entry_says_a_name_and_a_level(entry, level, value):
    assert said(Phenotype(up=[entry])) == [("IL2RA", level, value)]


def test_down_and_strengths():
    assert said(Phenotype({"IL2RA": 0.5}, {"LAG3": 2, "TIGIT": 1})) == [
        ("IL2RA", "top", 0.5),
        ("LAG3", "bottom", 2),
        ("TIGIT", "bottom", 1),
    ]


def test_names_with_other_signs_are_names():
    assert said(Phenotype(up=["HLA-DRB1", "HLA.A/B:01", "TNFRSF9 (41BB)"]))[2][0] == "TNFRSF9 (41BB)"


def test_the_one_line_of_high_activation_and_low_exhaustion():
    asked = Phenotype(up=["IL2RA"], down=["LAG3", "TIGIT"])
    np.testing.assert_array_equal(asked.matrix(GENES), np.eye(7)[:, :3])
    assert asked.genes == ["IL2RA", "LAG3", "TIGIT"]
    assert repr(asked) == "Phenotype(IL2RA top 1, LAG3 bottom 1, TIGIT bottom 1)"


# ---- weights ---------------------------------------------------------------------------------------------------------


def test_a_set_is_the_mean_of_its_genes_and_of_those_the_model_has():
    sets = {"IFN": ["ISG15", "MX1", "IFI6", "ISG15"], "wide": ["ISG15", "MX1", "IFI6", "A", "B"]}
    asked = Phenotype(up=["IFN"], down=["wide=1.5"], sets=sets)
    mean = np.array([0, 0, 0, 1, 1, 1, 0]) / 3
    np.testing.assert_allclose(asked.matrix(GENES), np.stack([mean, mean], axis=1), rtol=1e-6)


def test_a_tf_is_the_weighted_mean_of_its_targets():
    """Rows of one target add up; absolute weights sum to 1."""
    column = Phenotype(up=["TF:STAT1=0.3"], network=NETWORK).matrix(GENES)[:, 0]
    np.testing.assert_allclose(column, np.array([0, 0, 0, 2, 1, -1, 0]) / 4)
    plain = Phenotype(up=["TF:STAT1"], network=NETWORK[["source", "target"]]).matrix(GENES)[:, 0]
    np.testing.assert_allclose(plain, np.array([0, 0, 0, 1, 1, 2, 0]) / 4)


@pytest.mark.parametrize("missing", [{}, {"elsewhere": 3.0}])
def test_a_signature_is_a_shift_that_the_cells_that_make_it_have_made(missing):
    """Cells moved by the signature, of the genes that there are, have moved by the 1 that is asked for."""
    delta = {"ISG15": 1.5, "MX1": 2.0, "LAG3": -0.5, "XIST": 0.0} | missing
    asked = Phenotype(signature=pd.Series(delta))
    assert said(asked) == [("signature", "shift", 1.0)]
    move = np.array([delta.get(gene, 0) for gene in GENES])
    assert move @ asked.matrix(GENES)[:, 0] == pytest.approx(1)


def test_functions_are_called_and_have_no_weights():
    def score(x):
        return x[:, 0]

    asked = Phenotype(function=score, value=2)
    assert said(asked) == [("score", "mean", 2)]
    assert asked.wishes[0].function is score
    assert not asked.matrix(GENES).any()


def test_phenotypes_add_up():
    both = Phenotype(up=["IL2RA"], clamp={"XIST": 0}) + Phenotype(down=["LAG3=0.1"], clamp={"XIST": 0, "MX1": 1})
    assert said(both) == [("IL2RA", "top", 1), ("LAG3", "mean", 0.1)]
    assert both.clamp == {"XIST": 0, "MX1": 1}
    assert both.matrix(GENES).shape == (7, 2)
    with pytest.raises(TypeError):
        both + {"LAG3": 0}


# ---- what cannot be asked --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, "asks for nothing"),
        ({"up": "IL2RA"}, r"take a list: write \['IL2RA'\]"),
        ({"up": 5}, "take a list of names, not 5"),
        ({"up": [""]}, "cannot read ''"),
        ({"up": ["=3"]}, "cannot read '=3'"),
        ({"up": ["IL2RA>=2"]}, "'=2' is no number"),
        ({"up": ["IL2RA=high"]}, "'high' is no number"),
        ({"up": ["IL2RA=nan"]}, "nan is not finite"),
        ({"up": ["IL2RA>12"]}, "is from 0 to 9.21"),
        ({"up": ["IL2RA=-1"]}, "is from 0 to 9.21"),
        ({"up": {"IL2RA": 0}}, "a strength is above 0 and at most 5, not 0"),
        ({"up": {"IL2RA": -1}}, "a strength is above 0"),
        ({"up": {"IL2RA": float("nan")}}, "IL2RA: nan is not finite"),
        ({"up": {"IL2RA": "much"}}, "'much' is no number"),
        ({"up": {"IL2RA=2": 0.5}}, "says a level and 0.5 a strength"),
        ({"up": ["LAG3"], "down": ["LAG3"]}, "LAG3 is asked for more than once"),
        ({"up": ["LAG3", "LAG3=2"]}, "LAG3 is asked for more than once"),
        ({"up": ["XIST"], "clamp": {"XIST": 0}}, "XIST is clamped, so XIST cannot steer it"),
        ({"clamp": {"XIST": 10}}, "clamp XIST=10: a level"),
        ({"clamp": {"XIST": -1}}, "clamp XIST=-1"),
        ({"clamp": {"XIST": None}}, "clamp XIST: None is no number"),
        ({"clamp": ["XIST"]}, r"clamp takes names and what each has, not \['XIST'\]"),
        ({"clamp": {"XIST": 9, "MX1": 9}}, "162% of a cell's molecules"),
        ({"clamp": {"XIST": MAX_LEVEL}}, "100% of a cell's molecules"),
        ({"up": ["IFN"], "sets": {"IFN": "ISG15"}}, "the gene set IFN takes a list of genes, not 'ISG15'"),
        ({"up": ["IFN"], "sets": {"IFN": []}}, "the gene set IFN takes a list"),
        ({"up": ["IFN"], "sets": ["ISG15"]}, "sets takes names"),
        ({"up": ["TF:STAT1"]}, "TF:STAT1 needs network="),
        ({"up": ["TF:STAT2"], "network": NETWORK}, "no TF 'STAT2'; nearest: 'STAT1'"),
        ({"up": ["TF:STAT1"], "network": NETWORK.rename(columns={"target": "gene"})}, "no column 'target'"),
        ({"up": ["TF:STAT1"], "network": NETWORK.assign(weight=0)}, "weights of TF:STAT1 must be numbers"),
        ({"up": ["TF:STAT1"], "network": NETWORK.assign(weight="x")}, "weights of TF:STAT1 must be numbers"),
        ({"up": ["TF:STAT1"], "network": "collectri"}, "the network must be a table"),
        ({"signature": {"MX1": 0.0}}, "no change that is not zero"),
        ({"signature": {"MX1": float("nan")}}, "signature MX1: nan is not finite"),
        ({"signature": ["MX1"]}, "signature takes names"),
        ({"function": len}, "function= and value= belong together"),
        ({"value": 2}, "function= and value= belong together"),
    ],
)
def test_what_cannot_be_asked(asked, message):
    with pytest.raises(InputError, match=message) as error:
        Phenotype(**asked)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (Phenotype(up=["IL2R"]), "gene 'IL2R' is not one of the model; nearest: 'IL2RA'"),
        (Phenotype(clamp={"xist": 0}), "gene 'xist' is not one of the model; nearest: 'XIST'"),
        (Phenotype(up=["S"], sets={"S": ["ISG15", "MX1", "A", "B"]}), "S: only 2 of its 4 .* at least 3 are needed"),
        (Phenotype(up=["S"], sets={"S": ["ISG15", "B"]}), "S: only 1 of its 2 .* at least 2 are needed"),
        (Phenotype(up=["TF:T"], network=pd.DataFrame({"source": "T", "target": ["A", "B", "C"]})), "TF:T: only 0 of"),
        (Phenotype(signature={"A": 1, "B": 2, "MX1": 1}), "signature: only 1 of its 3 genes"),
    ],
)
def test_genes_that_the_model_has_not_are_named(asked, message):
    with pytest.raises(InputError, match=message):
        asked.matrix(GENES)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (Phenotype(down=["LAG3"]), "LAG3 is asked for more than once"),
        (Phenotype(clamp={"LAG3": 0}), "LAG3 is clamped, so LAG3 cannot steer it"),
        (Phenotype(clamp={"XIST": 1}), "XIST is clamped at 0 and at 1: choose one"),
    ],
)
def test_phenotypes_that_contradict_each_other(other, message):
    with pytest.raises(InputError, match=message):
        Phenotype(up=["LAG3"], clamp={"XIST": 0}) + other


# ---- files and the command line --------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "sets.gmt").write_text("IFN\tabout\tISG15\tMX1\tIFI6\nfew, odd\t\tLAG3\tTIGIT\n")
    edges = NETWORK.groupby(["source", "target"], as_index=False)["weight"].sum()
    edges.to_csv(tmp_path / "network.tsv", sep="\t", index=False)
    (tmp_path / "effect.csv").write_text("gene,change\nISG15,1.5\nMX1,2\nLAG3,-.5\n")
    return tmp_path


def test_a_file_says_the_same_as_python(folder):
    (folder / "asked.yaml").write_text(
        "up: {IL2RA: 0.5, IFN: 1, 'TF:STAT1': 2}\ndown: [TIGIT<0.5]\nclamp: {XIST: 0}\n"
        "sets: sets.gmt\nnetwork: network.tsv\nsignature: effect.csv\n"
    )
    read = Phenotype.from_yaml(folder / "asked.yaml")
    sets = {"IFN": ["ISG15", "MX1", "IFI6"]}
    same = Phenotype(
        {"IL2RA": 0.5, "IFN": 1, "TF:STAT1": 2},
        ["TIGIT<0.5"],
        sets=sets,
        network=NETWORK,
        clamp={"XIST": 0},
        signature={"ISG15": 1.5, "MX1": 2, "LAG3": -0.5},
    )
    assert repr(read) == repr(same)
    np.testing.assert_allclose(read.matrix(GENES), same.matrix(GENES))


def test_a_file_is_text(tmp_path):
    """A gene NO is no truth value, one entry needs no list, sets may be written out, and what is empty is not there."""
    (tmp_path / "p.yaml").write_text("up: NO\ndown: [S, 12]\nsets: {S: [ON, 'Y', OFF]}\nclamp:\nnetwork: ''\n")
    asked = Phenotype.from_yaml(tmp_path / "p.yaml")
    assert said(asked) == [("NO", "top", 1), ("S", "bottom", 1), ("12", "bottom", 1)]
    assert asked.genes == ["12", "NO", "OFF", "ON", "Y"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no phenotype; write keys"),
        ("- IL2RA", "holds no phenotype; write keys"),
        ("IL2RA", "holds no phenotype; write keys"),
        ("{up: [", "cannot read the phenotype"),
        ("ups: [IL2RA]", "unknown key 'ups'; nearest: 'up'"),
        ("up: ", "p.yaml: this phenotype asks for nothing"),
        ("up: [{IL2RA: 2}]", "up= and down= take names, not .*IL2RA"),
        ("sets: {S: LAG3}\nup: [S]", "p.yaml: the gene set S takes a list"),
        ("sets: none.gmt\nup: [S]", "p.yaml: there is no file"),
        ("clamp: [XIST]", "p.yaml: clamp takes names"),
        (f"signature: {'A' * 300}", "p.yaml: cannot read the table .*AAA"),
        (f"network: {'A' * 3000}\nup: ['TF:A']", "p.yaml: there is no file .*AAA"),
        (f"sets: {'A' * 300}/a.gmt\nup: [S]", "p.yaml: there is no file .*AAA"),
    ],
)
def test_files_that_hold_no_phenotype(tmp_path, text, message):
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(InputError, match=message) as error:
        Phenotype.from_yaml(tmp_path / "p.yaml").matrix(GENES)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1100


def test_files_that_cannot_be_read(folder):
    with pytest.raises(InputError, match="cannot read the phenotype"):
        Phenotype.from_yaml(folder / "none.yaml")
    with pytest.raises(InputError, match="cannot read the phenotype"):
        Phenotype.from_yaml(folder)
    with pytest.raises(InputError, match="expected name, description, genes"):
        asked_phenotype(up=["IFN"], sets=folder / "effect.csv")
    with pytest.raises(InputError, match="is no signature"):
        asked_phenotype(signature=folder / "network.tsv")
    with pytest.raises(InputError, match="cannot read the table"):
        asked_phenotype(signature=folder / "none.tsv")
    for text, message in (("", "bad.csv"), ("one\ncolumn\n", "is no network that is known")):
        (folder / "bad.csv").write_text(text)
        with pytest.raises(InputError, match=message):
            asked_phenotype(up=["TF:A"], network=folder / "bad.csv")


def test_lists_of_the_command_line(folder):
    asked = asked_phenotype(
        up=["IL2RA>1.5, IFN", "MX1"],
        down=['LAG3, "few, odd"'],
        clamp=["XIST=0,TIGIT2=2.5"],
        sets=folder / "sets.gmt",
    )
    assert said(asked) == [
        ("IL2RA", "above", 1.5),
        ("IFN", "top", 1),
        ("MX1", "top", 1),
        ("LAG3", "bottom", 1),
        ("few, odd", "bottom", 1),
    ]
    assert asked.clamp == {"XIST": 0, "TIGIT2": 2.5}


def test_a_file_and_lists_add_up(folder):
    (folder / "p.yaml").write_text("up: [IL2RA]")
    both = asked_phenotype(file=folder / "p.yaml", down=["LAG3"], signature=folder / "effect.csv")
    assert [wish.name for wish in both.wishes] == ["IL2RA", "LAG3", "signature"]
    assert said(asked_phenotype(file=folder / "p.yaml")) == [("IL2RA", "top", 1)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "asks for nothing"),
        ({"up": [" , "]}, "asks for nothing"),
        ({"clamp": ["XIST"]}, "--clamp XIST: write GENE=LEVEL"),
        ({"clamp": ["XIST=a"]}, "'a' is no number"),
        ({"file": "p.yaml", "sets": "sets.gmt"}, "--sets is for --up and --down; to use it in .*p.yaml, name it there"),
    ],
)
def test_what_the_command_line_cannot_ask(folder, options, message):
    (folder / "p.yaml").write_text("up: [IL2RA]")
    paths = {name: folder / value for name, value in options.items() if isinstance(value, str)}
    with pytest.raises(InputError, match=message):
        asked_phenotype(**options | paths)


# ---- modules ---------------------------------------------------------------------------------------------------------


def test_scores_of_modules_are_weighted_means():
    x = np.array([[1.0, 2.0, 3.0, 9.0], [0.0, 1.0, 0.0, 4.0]], dtype=np.float32)
    asked = {"set": ["A", "B", "C"], "tf": {"A": 3.0, "D": -1.0, "B": 0.0}, "part": ["A", "B", "C", "gone"]}
    for matrix in (x, sparse.csr_matrix(x)):
        scores, weights = module_scores(matrix, list("ABCD"), asked)
        np.testing.assert_allclose(scores["set"], [2, 1 / 3], rtol=1e-6)
        np.testing.assert_allclose(scores["tf"], [(3 - 9) / 4, -1], rtol=1e-6)
        np.testing.assert_allclose(scores["part"], [2, 1 / 3], rtol=1e-6)  # as if the one gone did as the others
        assert weights["tf"] == {"A": 0.75, "D": -0.25}


def test_modules_of_a_command_line(tmp_path):
    (tmp_path / "sets.gmt").write_text("IFN\t\tA\tB\n")
    (tmp_path / "net.csv").write_text("source,target,weight\nT,A,1\nT,B,-3\n")
    columns, modules = asked_modules(["score", f"IFN={tmp_path / 'sets.gmt'}", f"T={tmp_path / 'net.csv'}"])
    assert columns == ["score"]
    assert modules == {"IFN": {"A": 0.5, "B": 0.5}, "T": {"A": 0.25, "B": -0.75}}
    with pytest.raises(InputError, match="has no gene set 'IFM'; nearest: 'IFN'"):
        asked_modules([f"IFM={tmp_path / 'sets.gmt'}"])
    with pytest.raises(InputError, match="the network has no TF 'U'"):
        asked_modules([f"U={tmp_path / 'net.csv'}"])

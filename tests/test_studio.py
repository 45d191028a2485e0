"""The studio: its answers against the model's own, its door, and a visit in a real browser."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

import scidiff as sd
from scidiff.cli import main
from scidiff.integration import read_network, read_signatures
from scidiff.studio import views
from scidiff.studio.server import Guard, listen
from scidiff.studio.session import Map, Session, best
from scidiff.studio.work import Desk, Job, Stopped

N_GENES = 40
GENES = [f"G{g}" for g in range(N_GENES)]
EFFECTS = {"none": [], "A": [*range(4), *range(8, 16)], "B": [*range(16, 24)]}  # genes each drug raises
SCHEMA = sd.Schema(perturbation="drug", control="none", context="cell_type")
BASE = {kind: np.exp(0.7 * np.random.default_rng(i).normal(size=N_GENES)) for i, kind in enumerate(("B", "T"))}


def screen() -> AnnData:
    """16 cells of each of two types under each of two drugs and none: few enough to be laid out without UMAP."""
    rng = np.random.default_rng(0)
    made = []
    for kind, base in BASE.items():
        for drug, raised in EFFECTS.items():
            rate = base.copy()
            rate[raised] *= 6
            x = sparse.csr_matrix(rng.poisson(300 * rate / rate.sum(), size=(16, N_GENES)), dtype=np.float32)
            obs = pd.DataFrame({"cell_type": kind, "drug": drug}, index=[f"{kind}-{drug}-{i}" for i in range(16)])
            made.append(AnnData(x, obs=obs, var=pd.DataFrame(index=GENES)))
    return ad.concat(made)


@pytest.fixture(scope="module", autouse=True)
def small_trials() -> Iterator[None]:
    """Strengths are found with fewer cells than outside of tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("scidiff.tasks.design.TRIAL", 60)
        yield


@pytest.fixture(scope="module")
def box(tmp_path_factory) -> Path:
    """A folder with cells, a model of them, and files of regulators and drugs that know who raises what."""
    folder = tmp_path_factory.mktemp("studio")
    screen().write_h5ad(folder / "cells.h5ad")
    config = sd.TrainConfig(steps=40, batch_size=64)
    sd.ScIDiff.fit(screen(), SCHEMA, width=16, n_blocks=1, config=config).save(folder / "model")
    targets = {"TFA": range(8, 16), "TFB": range(16, 24), "TF0": range(24, 32)}
    rows = [f"{tf}\tG{gene}\t1" for tf, genes in targets.items() for gene in genes]
    (folder / "network.tsv").write_text("\n".join(["source\ttarget\tweight", *rows]))
    known = {"drugA": [*range(8, 16), 24, 25], "drugB": [*range(16, 24), 26, 27], "drug0": range(24, 36)}
    rows = [f"{drug}\tG{gene}\t1" for drug, genes in known.items() for gene in genes]
    (folder / "drugs.tsv").write_text("\n".join(["drug\ttarget\tweight", *rows]))
    return folder


@pytest.fixture(scope="module")
def session(box) -> Session:
    network, signatures = read_network(box / "network.tsv"), read_signatures(box / "drugs.tsv")
    return Session(sd.ScIDiff.load(box / "model"), "a <b>model</b>", network=network, signatures=signatures)


@pytest.fixture(scope="module")
def designed(session):
    return session.design(["G0", "G1", "G2"], [], 60, {"cell_type": "B"}, seed=1)


# ---- what it shows ---------------------------------------------------------------------------------------------------


def test_real_cells_are_those_of_training_or_those_given(session):
    real, own = session.real, screen()
    assert real.n_obs == own.n_obs  # few enough for the model to keep them all
    for kind, drug in [("B", "A"), ("T", "none")]:
        rows = [((cells.obs["cell_type"] == kind) & (cells.obs["drug"] == drug)).to_numpy() for cells in (real, own)]
        kept, true = real.layers["counts"][rows[0]].toarray(), own.X[rows[1]].toarray()
        np.testing.assert_array_equal(kept[np.lexsort(kept.T)], true[np.lexsort(true.T)])
    given = Session(session.model, "m", data=own[::-1, ::-1])
    np.testing.assert_array_equal(given.real.layers["counts"].toarray(), own[::-1].X.toarray())
    assert list(given.groups()["cells"]) == [16] * 6
    assert dict(given.about())["real cells here"] == "96, given"
    assert dict(session.about())["regulators from"] == "a network of 3"


def test_cells_of_other_genes_are_refused_in_one_line(session):
    other = screen()
    other.var_names = [f"ENSG{g}" for g in range(N_GENES)]
    with pytest.raises(sd.InputError, match="genes"):
        Session(session.model, "m", data=other)


def test_what_a_condition_may_say(session):
    named = {one.name: one.values for one in session.attributes()}
    assert named == {"perturbation": ("A", "B", "none"), "cell_type": ("B", "T")}
    assert [one.name for one in session.attributes(context_only=True)] == ["cell_type"]


def test_the_course_of_training_is_that_of_the_model(session):
    shown = session.training()
    assert list(shown) == ["to denoise", "to make cells"]
    assert sum(map(len, shown.values())) == len(session.model.history)


# ---- genes that are typed --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "offered"),
    [
        ("g3", ["G3", "G30", "G31", "G32", "G33", "G34", "G35", "G36", "G37", "G38", "G39"]),
        ("tf:", ["TF:TF0", "TF:TFA", "TF:TFB"]),
        ("fa", ["TF:TFA"]),
        ("", []),
        ("xyz", []),
    ],
)
def test_completion_has_what_begins_so_first(session, text, offered):
    assert session.offers(text) == offered


@pytest.mark.parametrize(
    ("text", "known", "wrong"),
    [
        ("g1, G2;g3\nG4", ["G1", "G2", "G3", "G4"], ""),
        ("G1 = 2.5 g2>1", ["G1=2.5", "G2>1"], ""),
        ("tf:tfa", ["TF:TFA"], ""),
        ("G1 H30", ["G1"], "'H30' is no gene of the model; nearest: 'G30'"),
        ("TF:TFC", [], "'TF:TFC' is no regulator of the network"),
        ("G1>>2", [], "cannot read 'G1>>2'"),
        ("  ", [], ""),
    ],
)
def test_what_is_typed_is_read_as_a_phenotype_takes_it(session, text, known, wrong):
    assert session.entries(text)[0] == known
    assert session.entries(text)[1].startswith(wrong)
    assert bool(session.entries(text)[1]) == bool(wrong)


# ---- answers ---------------------------------------------------------------------------------------------------------


def test_designed_cells_are_those_of_the_model_and_nothing_is_left_unsaid(session, designed):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sd.DataWarning)
        made = session.model.design(sd.Phenotype(up=["G0", "G1", "G2"]), 60, {"cell_type": "B"}, seed=1)
    assert (made.layers["counts"] != designed.cells.layers["counts"]).nnz == 0
    told = made.uns["scidiff"]
    assert designed.verdict[: len(told["text"])] == tuple(told["text"])
    assert list(designed.levels["wish"]) == ["G0", "G1", "G2"]
    assert designed.title == "G0, G1, G2 up, cell_type B"
    assert designed.measures[0][1] == f"{told['realism']['distance']:.2f}"
    auc = told["realism"]["auc"]
    assert np.isnan(auc) or any(f"AUC {auc:.2f}" in sentence for sentence in designed.verdict)


def test_generated_cells_are_those_of_the_model(session):
    asked = {"cell_type": "T", "perturbation": "A"}
    result = session.generate(asked | {"dose": None, "time": ""}, 30, seed=2)
    made = session.model.generate(30, asked, seed=2)
    assert (made.layers["counts"] != result.cells.layers["counts"]).nnz == 0
    assert result.levels is None
    assert result.verdict[0] == "cell_type T, perturbation A: real cells of it were in training"
    assert session.generate({"perturbation": "A+B"}, 5).verdict[0].endswith("no such cell was in training")


def test_planted_causes_come_first(session):
    under_a = session.generate({"cell_type": "B", "perturbation": "A"}, 60)
    first = {kind: rows.iloc[0]["name"] for kind, rows in best(session.rank(under_a))}
    assert first == {"Perturbations": "A", "Regulators": "TFA", "Drugs": "drugA"}
    undo = dict(best(session.rank(under_a, undo=True)))
    assert undo["Drugs"].iloc[-1]["name"] == "drugA"


def test_a_model_with_nothing_to_name_says_what_to_give_it(session):
    from dataclasses import replace

    bare = Session(replace(session.model, library=None), "m")
    assert "--network FILE" in bare.nothing_to_rank()
    assert session.nothing_to_rank() == ""


def test_new_cells_lie_among_the_real_ones_in_the_map(session, designed):
    places = session.map(designed)
    assert (places.real.shape, places.made.shape, places.axes) == ((96, 2), (60, 2), "PC")
    types = session.real.obs["cell_type"].to_numpy()
    for name, place in places.names.items():
        assert (places.real[types == name] == place).all(axis=1).any()  # a name stands on a cell of its own
    assert session.map().made.shape == (0, 2)


def test_files_hold_what_was_made(session, designed, tmp_path):
    cells = ad.read_h5ad(session.write_cells(designed, tmp_path / "cells.h5ad"))
    assert (cells.layers["counts"] != designed.cells.layers["counts"]).nnz == 0
    assert cells.uns["scidiff"]["verdict"] == designed.cells.uns["scidiff"]["verdict"]
    ranking = session.rank(designed)
    page = session.write_report(designed, ranking, tmp_path / "report.html").read_text()
    assert designed.title in page
    assert "TFA" in page
    assert not re.search(r"(src|href)=.http", page)
    assert "TFA" in session.write_ranking(designed, ranking, tmp_path / "ranking.html").read_text()


@pytest.mark.parametrize(
    ("ask", "told"),
    [
        (lambda s: s.design(["G0"], [], 0), "ask for 1 to 5,000 cells"),
        (lambda s: s.generate({}, 5001), "the command line makes more"),
        (lambda s: s.design([], [], 10), "at least one gene"),
        (lambda s: s.design(["G0"], ["G0"], 10), "more than once"),
        (lambda s: s.design(["G0=x"], [], 10), "x"),
        (lambda s: s.generate({"cell_type": "NK"}, 10), "NK"),
    ],
)
def test_what_cannot_be_asked_is_one_line(session, ask, told):
    with pytest.raises(sd.InputError, match=told) as caught:
        ask(session)
    assert "\n" not in str(caught.value)


# ---- pictures and tables ---------------------------------------------------------------------------------------------


def test_names_from_files_are_text_and_never_markup():
    evil = "<script>alert(1)</script>"
    tables = [
        views.html("heading", name=evil),
        views.table(pd.DataFrame({evil: [evil]}), label=evil),
        views.html("verdict", title=evil, sentences=[evil, evil]),
        views.html("options", names=[evil]),
        views.cell_map(Map(np.zeros((2, 2)), np.ones((1, 2)), "PC", {evil: (0.0, 0.0)})),
    ]
    for text in tables:
        assert "<script" not in text
        assert "&lt;script" in text


def test_a_map_draws_every_cell_within_the_picture():
    rng = np.random.default_rng(0)
    text = views.cell_map(Map(rng.normal(size=(50, 2)), 9 * rng.normal(size=(7, 2)), "UMAP", {"B": (0.0, 0.0)}))
    real, made = re.findall(r'class="dots \w+" d="([^"]*)"', text)
    assert (real.count("M"), made.count("M")) == (50, 7)
    at = np.array(re.findall(r"M([\d.-]+) ([\d.-]+)h0", real + made), dtype=float)
    assert (at > 0).all()
    assert (at < (views.WIDTH, views.HEIGHT)).all()


def test_the_lowest_held_out_loss_is_marked():
    rows = pd.DataFrame({"step": [0, 50, 100], "loss": [3.0, 2, 1], "heldout": [np.nan, 1.5, 2.5]})
    text = views.course("to make cells", rows)
    assert "lowest held-out loss 1.5 at step 50" in text
    x, y = map(float, re.search(r'best-point" cx="([\d.]+)" cy="([\d.]+)"', text).groups())
    line = re.search(r'class="line second" d="M([\d.]+) ([\d.]+)L', text)
    assert (x, y) == tuple(map(float, line.groups()))  # the first known point is the lowest


# ---- one after the other ---------------------------------------------------------------------------------------------


def test_jobs_stand_in_line_can_be_stopped_and_fail_alone():
    desk, order = Desk(), []
    go_on = [False]

    def long(job: Job) -> str:
        order.append(job.what)
        while not go_on[0]:
            job.at(job.done + 1, 1000)
            time.sleep(0.002)
        return job.what

    def fails(job: Job) -> None:
        raise sd.InputError("no such gene")

    jobs = [Job("first"), Job("stopped in line"), Job("stopped at work"), Job("last")]
    first, waiting = desk.do(jobs[0], long), desk.do(jobs[1], long)
    failing = desk.do(Job("failing"), fails)
    while not jobs[0].done:
        time.sleep(0.002)
    assert desk.now is jobs[0]
    jobs[1].stop()
    go_on[0] = True
    assert first.result(5) == "first"
    with pytest.raises(Stopped):
        waiting.result(5)
    with pytest.raises(sd.InputError, match="no such gene"):
        failing.result(5)
    go_on[0] = False
    stopped = desk.do(jobs[2], long)
    while not jobs[2].done:
        time.sleep(0.002)
    jobs[2].stop()
    with pytest.raises(Stopped):
        stopped.result(5)
    go_on[0] = True
    assert desk.do(jobs[3], long).result(5) == "last"
    assert order == ["first", "stopped at work", "last"]


# ---- the door --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "headers", "welcome"),
    [
        ("/secret/", {"host": "127.0.0.1:80"}, True),
        ("/secret/_nicegui/x", {"host": "localhost:80", "origin": "http://localhost:80"}, True),
        ("/", {"host": "127.0.0.1:80"}, False),
        ("/Secret/", {"host": "127.0.0.1:80"}, False),
        ("/secre", {"host": "127.0.0.1:80"}, False),
        ("/other/secret/", {"host": "127.0.0.1:80"}, False),
        ("/gehe\u00fcm/", {"host": "127.0.0.1:80"}, False),
        ("/secret/", {"host": "evil.example:80"}, False),  # DNS rebinding
        ("/secret/", {}, False),
        ("/secret/", {"host": "127.0.0.1:80", "origin": "http://evil.example"}, False),  # another page
        ("/secret/", {"host": "127.0.0.1:80", "origin": "http://127.0.0.1:81"}, False),  # another server here
        ("/secret/", {"host": "127.0.0.1:80", "origin": "null"}, False),
    ],
)
def test_only_this_page_on_this_machine_with_the_token_is_let_in(path, headers, welcome):
    sent = [(name.encode(), value.encode()) for name, value in headers.items()]
    assert Guard(None, token="secret", port=80).welcome({"path": path, "headers": sent}) is welcome


def test_a_port_in_use_is_told_before_anything_is_read(capsys):
    pytest.importorskip("nicegui")
    taken = listen(0)
    port = taken.getsockname()[1]
    with taken:
        assert taken.getsockname()[0] == "127.0.0.1"
        assert main(["studio", "no_model", "--port", str(port), "--no-browser"]) == 1
    assert capsys.readouterr().err == f"error: port {port} is in use; name another with --port, or leave it out\n"


def test_public_files_are_named_as_for_attribute(box, monkeypatch, tmp_path):
    """Given a consent they are fetched; what the studio is served with has read them."""
    pytest.importorskip("nicegui")
    public = {"collectri": box / "network.tsv", "l1000": box / "drugs.tsv"}
    asked, served = [], []

    def download(name: str, *, consent: bool = False) -> Path:
        asked.append((name, consent))
        if not consent:
            raise sd.InputError(f"{name!r} is not here")
        return public[name]

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(import_module("scidiff.integration.download"), "download", download)
    monkeypatch.setattr("scidiff.studio.server.serve", lambda session, place, **options: served.append(session))
    words = ["studio", str(box / "model"), "--network", "collectri", "--signatures", "l1000"]
    assert main([*words, "--download"]) == 0
    assert asked == [("collectri", False), ("collectri", True), ("l1000", False), ("l1000", True)]
    assert set(served[0].network["source"]) == {"TFA", "TFB", "TF0"}
    assert served[0].signatures is not None
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
    assert main(words) == 1


def test_a_missing_extra_names_the_command_that_installs_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "nicegui", None)
    assert main(["studio", "no_model"]) == 1
    assert capsys.readouterr().err == (
        "error: the studio needs NiceGUI, which is not installed: pip install 'scidiff-tools[studio]'\n"
    )


def test_a_bad_model_folder_is_one_line(tmp_path, capsys):
    pytest.importorskip("nicegui")
    assert main(["studio", str(tmp_path / "none"), "--no-browser"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1


# ---- a visit ---------------------------------------------------------------------------------------------------------

#: milliseconds for what takes less than one where no other work goes on
PATIENCE = 120_000
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def address(box) -> Iterator[str]:
    """The address of a studio that runs as a user would start it."""
    pytest.importorskip("nicegui", reason="the studio's page needs NiceGUI")
    files = [box / "model", box / "cells.h5ad", "--network", box / "network.tsv", "--signatures", box / "drugs.tsv"]
    words = [sys.executable, "-m", "scidiff", "studio", *map(str, files), "--no-browser", "--json"]
    with (box / "log").open("w") as log:
        studio = subprocess.Popen(words, cwd=box, stdout=subprocess.PIPE, stderr=log, text=True, env=os.environ.copy())
        try:
            assert studio.stdout is not None
            line = studio.stdout.readline()
            assert line, (box / "log").read_text()
            yield json.loads(line)["address"]
            studio.send_signal(signal.SIGINT)
            assert studio.wait(15) == 0  # Ctrl-C is how it is ended
        finally:
            studio.kill()
            studio.wait()
            studio.stdout.close()
    assert (box / "log").read_text() == ""  # nothing went wrong that the page did not say
    assert not (box / ".nicegui").exists()


@pytest.fixture(scope="module")
def browser() -> Iterator:
    playwright = pytest.importorskip("playwright.sync_api", reason="a visit needs playwright")
    if CHROMIUM is None:
        pytest.skip("a visit needs a Chromium: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


def _status(address: str, **headers: str) -> int:
    try:
        return urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=20).status
    except urllib.error.HTTPError as error:
        return error.code


def test_nobody_is_let_in_without_the_token(address):
    home = address[: address.index("/", 8) + 1]
    assert _status(address) == 200
    assert _status(home) == _status(f"{home}wrong/") == _status(f"{home}_nicegui/") == 403
    assert _status(address, Host="evil.example") == _status(address, Origin="http://evil.example") == 403
    port = int(home.rsplit(":", 1)[1].strip("/"))
    with socket.socket() as other:  # bound to loopback alone: no other address of the machine answers
        own = socket.gethostbyname(socket.gethostname())
        if not own.startswith("127."):
            assert other.connect_ex((own, port)) != 0


def test_from_a_phenotype_to_cells_to_regulators(address, browser, tmp_path):
    """The whole way, by keyboard where a keyboard is used, and with axe-core's opinion of each state of the page."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    trouble: list[str] = []
    asked: list[str] = []
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("console", lambda message: trouble.append(message.text) if message.type == "error" else None)
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    page.get_by_role("heading", name="Ask for cells").wait_for()
    page.locator("figure.map").wait_for()  # the real cells
    assert page.locator("figure.course").count() == 2

    field = page.get_by_label("Genes that shall be up")
    field.focus()
    page.keyboard.type("g3")
    page.wait_for_function("document.querySelectorAll('datalist option').length == 11")
    page.keyboard.press("Backspace")
    page.keyboard.type("0, G1 g2")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="remove G2").wait_for()
    page.keyboard.type("H30")
    page.keyboard.press("Enter")
    page.get_by_text("'H30' is no gene of the model; nearest: 'G30'").wait_for()
    page.get_by_role("button", name="remove G1").focus()
    page.keyboard.press("Enter")
    page.get_by_role("button", name="remove G1").wait_for(state="detached")
    page.get_by_label("cell type").first.focus()
    page.keyboard.type("B")
    page.get_by_role("option", name="B", exact=True).click()
    page.get_by_label("Number of cells").fill("60")
    page.get_by_role("button", name="Design cells").dblclick()  # a double click is one request
    page.get_by_role("heading", name="G0, G2 up, cell_type B").wait_for()
    page.locator("figure.map").nth(1).wait_for()
    assert "real cells" in page.locator("p.lead").inner_text()
    assert page.get_by_role("cell", name="distance to the nearest real cell").count() == 1

    page.get_by_role("button", name="Rank what would cause it").focus()
    page.keyboard.press("Enter")
    evidence = page.get_by_role("link", name="candidates with plots and evidence")
    evidence.wait_for()
    for heading in ("Perturbations", "Regulators", "Drugs"):
        assert page.get_by_role("heading", name=heading, exact=True).count() == 1
    first = page.get_by_role("region", name="Regulators").locator("tbody tr").first.inner_text()
    assert "TFA" in first
    with context.expect_page() as opened:
        evidence.click()
    opened.value.get_by_role("heading", name="Regulators").wait_for()
    opened.value.close()

    for label, name in (("AnnData", "cells.h5ad"), ("Report", "report.html")):
        with page.expect_download() as download:
            page.get_by_role("button", name=label).click()
        assert download.value.suggested_filename == name
        download.value.save_as(tmp_path / name)
    assert ad.read_h5ad(tmp_path / "cells.h5ad").n_obs == 60
    assert "G0, G2 up" in (tmp_path / "report.html").read_text()

    for width, scheme in ((1280, "light"), (1280, "dark"), (390, "dark"), (390, "light")):
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=scheme)
        assert page.evaluate("document.documentElement.scrollWidth") == width  # nothing sticks out
        assert _faults(page) == []
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.emulate_media(color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != dark
    assert trouble == []
    outside = [url for url in asked if not url.startswith((address, "data:", "blob:"))]
    assert outside == []
    context.close()


def test_two_visitors_stand_in_line_and_errors_are_one_line(address, browser):
    pages = [browser.new_page() for _ in range(2)]
    for page in pages:
        page.set_default_timeout(PATIENCE)
        page.goto(address)
        page.get_by_role("tab", name="of a condition").click()
        page.get_by_label("Number of cells").fill("300")
    for page in pages:
        page.get_by_role("button", name="Make cells").click()
    for page in pages:
        page.get_by_role("heading", name="conditions as in training").wait_for()
        assert page.locator(".trouble").is_hidden()
    page = pages[0]
    page.get_by_label("Number of cells").fill("30")
    page.get_by_label("drug").fill("C")
    page.get_by_role("button", name="Make cells").click()
    page.get_by_role("alert").filter(has_text="'C'").wait_for()
    page.get_by_label("drug").fill("A+B")
    page.get_by_role("button", name="Make cells").click()
    page.get_by_text("perturbation A+B: no such cell was in training").wait_for()
    page.get_by_label("Number of cells").fill("99999")
    page.get_by_role("button", name="Make cells").click()
    page.get_by_role("alert").filter(has_text="ask for 1 to 5,000 cells").wait_for()
    page.get_by_label("Number of cells").fill("5000")
    page.get_by_role("button", name="Make cells").click()
    page.get_by_text(re.compile(r"Making cells: [\d,]+ of 5,000")).wait_for()  # the progress is live
    page.get_by_role("button", name="Stop").click()
    page.get_by_role("alert").filter(has_text="Stopped").wait_for()
    for page in pages:
        page.close()


def _faults(page) -> list[str]:
    """Return what axe-core calls serious or critical, as rule and element."""
    axe = pytest.importorskip("axe_core_python.sync_playwright", reason="needs axe-core-python")
    found = axe.Axe().run(page)["violations"]
    grave = [one for one in found if one["impact"] in ("serious", "critical")]
    return [f"{one['id']}: {one['nodes'][0]['html'][:120]}" for one in grave]

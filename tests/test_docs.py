"""What the documents promise: links lead somewhere, code and commands work, every public name has its place."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import shlex
import subprocess
import sys
import warnings
from collections.abc import Callable, Collection
from functools import cache
from pathlib import Path

import pytest
import typer
import yaml

import scidiff
from scidiff import cli

REPOSITORY = Path(__file__).parents[1]
DOCS = REPOSITORY / "docs"
PAGES = [REPOSITORY / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG")] + sorted(
    path for path in DOCS.rglob("*.md") if "_build" not in path.parts
)
#: rooms with public names, and where these are documented
ROOMS = ("scidiff", "scidiff.data", "scidiff.evaluation", "scidiff.integration", "scidiff.benchmarking")
#: names of rooms and of the version, which have no entry of their own
NO_OBJECTS = {"__version__", "data", "evaluation", "integration", "plotting"}
#: arguments that mean the same everywhere, and need no words where nothing else does
PLAIN = {"adata", "schema", "path", "layer", "seed"}

FENCE = re.compile(r"^(?P<mark>`{3,}|:{3,})\s*(?P<kind>\S*)[^\n]*\n(?P<body>.*?)^(?P=mark)\s*$", re.M | re.S)
LINK = re.compile(r"(?<!!)\[[^\]]*\]\((?P<target>[^)\s]+)\)")
NAMES = [path.relative_to(REPOSITORY).as_posix() for path in PAGES]


def prose(path: Path) -> str:
    """Return a page without its blocks of code and its spans of code."""
    return re.sub(r"`[^`\n]*`", "`code`", FENCE.sub("", path.read_text()))


def blocks(path: Path, kind: str) -> list[str]:
    """Return the bodies of a page's fenced blocks of one language."""
    return [found["body"] for found in FENCE.finditer(path.read_text()) if found["kind"] == kind]


def slug(heading: str) -> str:
    """Return the anchor that GitHub and MyST give a heading."""
    kept = re.sub(r"[^\w\- ]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower())
    return kept.strip().replace(" ", "-")


@cache
def anchors(path: Path) -> set[str]:
    """Return the anchors of a page; of the reference, also those that Sphinx makes of its headings."""
    text = FENCE.sub("", path.read_text())
    underlined = re.findall(r"^(\S[^\n]*)\n-{3,}$", path.read_text(), re.M)
    return {slug(heading) for heading in [*re.findall(r"^#+\s+(.+?)\s*$", text, re.M), *underlined]}


# ---- links ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PAGES, ids=NAMES)
def test_links_lead_somewhere(path):
    lost = []
    for found in LINK.finditer(prose(path)):
        place, _, anchor = found["target"].partition("#")
        if place.startswith(("http://", "https://")):
            continue
        target = path if not place else (path.parent / place).resolve()
        if target.parent == DOCS / "tutorials" and target.suffix == ".ipynb":  # the site's copy of a notebook
            target = REPOSITORY / "notebooks" / target.name
        if not target.exists() or (anchor and anchor not in anchors(target)):
            lost.append(found["target"])
    assert not lost, f"{path.name} links to {lost}"


def test_every_page_is_in_a_table_of_contents():
    listed = {DOCS / "index"}
    for page in DOCS.rglob("index.md"):
        for body in blocks(page, "{toctree}"):
            entries = [line for line in body.splitlines() if line.strip() and not line.startswith(":")]
            for name in (re.sub(r".*<(.+)>", r"\1", entry).strip() for entry in entries):
                listed.add(page.parent / name)
    pages = {page.with_suffix("") for page in PAGES if page.is_relative_to(DOCS)}
    notebooks = {DOCS / "tutorials" / path.stem for path in (REPOSITORY / "notebooks").glob("*.ipynb")}
    assert not pages & notebooks, "a notebook and a page have one name where the site is built"
    assert pages | notebooks == listed, "docs/index.md and docs/api/index.md list what there is"


def test_every_table_of_results_is_shown():
    shown = (DOCS / "benchmarks.md").read_text()
    results = REPOSITORY / "benchmarks" / "results"
    missing = [path.name for path in results.iterdir() if path.suffix in (".md", ".txt") and path.name not in shown]
    assert not missing, f"docs/benchmarks.md shows no {missing}"
    for path in results.glob("*.md"):
        assert "`python benchmarks/" in path.read_text().splitlines()[0], f"{path.name} names no command that made it"


def test_anchors_are_made_as_the_site_makes_them():
    assert slug("Gene sets and regulators as conditions") == "gene-sets-and-regulators-as-conditions"
    assert slug("Does it work?") == "does-it-work"
    assert "designed-cells" in anchors(DOCS / "benchmarks.md")
    assert "nowhere" not in anchors(DOCS / "benchmarks.md")


@pytest.mark.parametrize("path", PAGES, ids=NAMES)
def test_scripts_that_are_cited_exist(path):
    cited = set(re.findall(r"\bbenchmarks/[\w/]+\.py\b", path.read_text()))
    lost = sorted(script for script in cited if not (REPOSITORY / script).is_file())
    assert not lost, f"{path.name} cites {lost}"


@pytest.mark.parametrize("path", PAGES, ids=NAMES)
def test_prose_is_wrapped(path):
    lines = FENCE.sub("", path.read_text()).splitlines()
    long = [line for line in lines if len(line) > 120 and not line.startswith("|")]
    assert not long, f"{path.name} has lines of more than 120 characters: {long}"


# ---- Python ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PAGES, ids=NAMES)
def test_python_compiles_and_names_what_exists(path):
    for body in blocks(path, "python"):
        tree = ast.parse(body, str(path))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("scidiff"):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)
            if isinstance(node, ast.Call):
                check_call(node)


def check_call(node: ast.Call) -> None:
    """Hold a call of ``sd.NAME(...)`` or ``model.VERB(...)`` against the signature of what it calls."""
    words = ast.unparse(node.func).split(".")
    if words[0] == "sd":
        thing = scidiff
    elif words[0] == "model" and len(words) == 2:
        thing = scidiff.ScIDiff
    else:
        return
    for word in words[1:]:
        thing = getattr(thing, word)
    parameters = inspect.signature(thing).parameters
    if any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
        return
    unknown = [word.arg for word in node.keywords if word.arg is not None and word.arg not in parameters]
    assert not unknown, f"{ast.unparse(node)}: no argument {unknown}"


def test_quick_start_runs(tmp_path, monkeypatch):
    runnable = re.findall(r"<!-- run -->\n```python\n(.*?)^```", (DOCS / "quickstart.md").read_text(), re.M | re.S)
    assert len(runnable) >= 5
    monkeypatch.chdir(tmp_path)
    space: dict[str, object] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", scidiff.DataWarning)  # few cells, and a network hardly trained
        for code in runnable:
            exec(compile(code, "quickstart.md", "exec"), space)
    assert (tmp_path / "screen_model" / "manifest.json").is_file()
    assert space["cells"].n_obs == 100
    assert space["designed"].n_obs == 50
    assert {"perturbation", "tf"} <= set(space["causes"]["kind"])
    assert {"value", "ceiling"} <= set(space["scores"])


# ---- the shell ------------------------------------------------------------------------------------------------------


def commands(path: Path) -> list[list[str]]:
    """Return the scidiff commands in a page's shell blocks, as words, with its variables filled in."""
    found, variables = [], {}
    for body in blocks(path, "bash"):
        for line in body.replace("\\\n", " ").splitlines():
            if assigned := re.match(r'(\w+)="([^"]*)"$', line.strip()):
                variables[assigned[1]] = assigned[2]
                continue
            for name, value in variables.items():
                line = line.replace(f"${name}", value)
            words = shlex.split(line, comments=True)
            for start in ("scidiff", ".venv/bin/scidiff"):
                if start in words:
                    found.append(words[words.index(start) + 1 :])
                    break
    return found


@pytest.mark.parametrize("path", PAGES, ids=NAMES)
def test_commands_can_be_read(path):
    verbs = typer.main.get_command(cli.app).commands
    for words in commands(path):
        if words[:1] == ["--version"] or "..." in words:
            continue
        assert words[0] in verbs, f"scidiff {words[0]}: no such verb"
        try:
            verbs[words[0]].make_context(words[0], list(words[1:]))
        except cli.UsageError as error:
            pytest.fail(f"scidiff {shlex.join(words)}: {error.format_message()}")


def test_commands_are_found():
    said = [words[0] for page in PAGES for words in commands(page)]
    assert set(typer.main.get_command(cli.app).commands) <= set(said), "a verb is shown nowhere"


# ---- public names ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("room", ROOMS)
def test_public_names_are_documented(room):
    module = importlib.import_module(room)
    page = (DOCS / "api" / f"{room.rpartition('.')[2]}.md").read_text()
    for name in set(module.__all__) - NO_OBJECTS:
        thing = getattr(module, name)
        assert re.search(rf"\b{name}\b", page), f"docs/api has no {room}.{name}"
        if not (callable(thing) or inspect.isclass(thing)):
            continue
        said = inspect.getdoc(thing) or ""
        assert said, f"{room}.{name} has no docstring"
        if inspect.isfunction(thing):
            assert not (untold := untold_of(thing, plain=PLAIN)), f"{room}.{name} says nothing of {untold}"


def test_verbs_of_a_model_are_documented():
    for name in {name for name in vars(scidiff.ScIDiff) if not name.startswith("_")} | {"save", "load"}:
        verb = getattr(scidiff.ScIDiff, name)
        assert inspect.getdoc(verb), f"{name} has no docstring"
        assert not (untold := untold_of(verb)), f"ScIDiff.{name} says nothing of {untold}"


def untold_of(thing: Callable[..., object], *, plain: Collection[str] = ()) -> list[str]:
    """Return the arguments of a function that its docstring never names."""
    said = inspect.getdoc(thing) or ""
    asked = [name for name in inspect.signature(thing).parameters if name not in {"self", "cls", *plain}]
    return [name for name in asked if not re.search(rf"\b{name}\b", said)]


def test_modules_of_the_reference_exist():
    listed = set()
    for page in (DOCS / "api").glob("*.md"):
        listed |= set(re.findall(r"automodule:: (\S+)", page.read_text()))
    assert {"scidiff.sampling.solvers", "scidiff.plotting", "scidiff.evaluation.metrics"} <= listed
    for name in listed:
        assert importlib.import_module(name).__doc__, f"{name} does not say what it is about"


def test_versions_agree():
    cited = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    assert cited["version"] == scidiff.__version__
    hooks = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text())["repos"]
    ruff = next(repo["rev"] for repo in hooks if "ruff" in repo["repo"])
    assert f"ruff=={ruff.removeprefix('v')}" in (REPOSITORY / "requirements.lock").read_text().splitlines()


# ---- the site -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_site_builds_without_a_warning_and_needs_no_network(tmp_path):
    for library in ("sphinx", "myst_nb", "sphinx_book_theme", "sphinx_copybutton"):
        pytest.importorskip(library, reason=f"{library} is part of the optional dependencies docs")
    build = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "-d", tmp_path / "trees"]
    done = subprocess.run([*map(str, build), str(DOCS), str(tmp_path / "site")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 25
    elsewhere = re.compile(r'<(?:script|img|iframe|link rel="stylesheet")[^>]* (?:src|href)="(https?:[^"]+)"')
    for page in pages:
        assert not (loaded := elsewhere.findall(page.read_text())), f"{page.name} loads {loaded}"
    assert "<math" in (tmp_path / "site" / "concepts" / "notation.html").read_text()

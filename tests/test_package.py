"""The wheel holds all that the package needs, and the command it declares works from it."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[1]


def run(*words: object, **options: object) -> str:
    """Return what a command prints; it must succeed."""
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", REPOSITORY, "--no-deps", "-w", folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("site")
    run(sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", target, wheel)
    return target


def test_wheel_holds_the_package_and_nothing_else(wheel):
    inside = set(zipfile.ZipFile(wheel).namelist())
    source = REPOSITORY / "src"
    wanted = {
        str(path.relative_to(source))
        for path in (source / "scidiff").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in inside if ".dist-info/" not in name} == wanted
    assert "scidiff/evaluation/report.html.jinja" in inside


def test_installed_package_imports_from_its_place_and_reads_its_template(installed, tmp_path):
    code = (
        "import scidiff, scidiff.evaluation as e, pandas as pd; print(scidiff.__file__);"
        "e.write_report('report.html', title='t', about={'cells': 3})"
    )
    environment = os.environ | {"PYTHONPATH": str(installed)}
    where = run(sys.executable, "-c", code, cwd=tmp_path, env=environment)
    assert Path(where.strip()) == installed / "scidiff" / "__init__.py"
    assert (tmp_path / "report.html").stat().st_size > 0


def test_declared_command_works(installed, tmp_path):
    (declared,) = installed.glob("scidiff_tools-*.dist-info/entry_points.txt")
    entry = ConfigParser()
    entry.read(declared)
    assert entry["console_scripts"]["scidiff"] == "scidiff.cli:main"
    environment = os.environ | {"PYTHONPATH": str(installed)}
    said = run(installed / "bin" / "scidiff", "--help", cwd=tmp_path, env=environment)
    for verb in ("check", "train", "generate", "evaluate", "demo"):
        assert verb in said

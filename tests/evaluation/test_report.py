"""The page is one well-formed file that loads nothing and shows the numbers of the table."""

from __future__ import annotations

import base64
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from scidiff.errors import InputError
from scidiff.evaluation import write_report

VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """Collects tags and text, and raises where tags do not nest."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.text = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


SCORES = pd.DataFrame(
    {
        "metric": ["auc", "energy"],
        "value": [0.5381, 0.0213],
        "ceiling": [0.5192, -0.0012],
        "better": [".5", "0"],
        "note": ["", "a note <on> energy"],
    }
)
HISTORY = pd.DataFrame({"step": [0, 50, 100], "loss": [4.0, 3.0, 2.5], "heldout": [4.1, 3.2, 3.3]})


@pytest.fixture(scope="module")
def path(cells, tmp_path_factory):
    generated = cells(60, 2)
    generated.uns["scidiff"] = {"seed": 7, "version": "0.1.0"}
    return write_report(
        tmp_path_factory.mktemp("report") / "report.html",
        title="Cells of <Kang>",
        about={"cells": 12345, "cell_types": ["B", "T"]},
        history=HISTORY,
        real=cells(60, 1),
        generated=generated,
        scores=SCORES,
        baselines={"multinomial": SCORES.assign(value=[0.785, 0.001])},
        warnings=["only 60 cells & few genes"],
        extra_sections=[
            ("More words", "First.\n\nSecond <i>part</i>."),
            ("More numbers", pd.DataFrame({"type": ["B"], "n": [4321]})),
        ],
    )


@pytest.fixture(scope="module")
def page(path):
    return Page(path.read_text(encoding="utf-8"))


def test_page_loads_nothing(path, page):
    for _, attrs in page.tags:
        for name in ("src", "href", "srcset", "data", "action"):
            assert attrs.get(name, "data:").startswith(("data:", "#"))
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"@import|url\(|<script|<link|<iframe", text)
    assert "http" not in re.sub(r'src="data:[^"]*"', "", text)


def test_page_has_the_numbers_the_warnings_and_the_provenance(page):
    text = " ".join(" ".join(page.text).split())
    for wanted in ("0.538", "0.519", "0.785", "0.0213", "−0.0012", "AUC) of 0.54", "with 0.52", "a note <on> energy"):
        assert wanted in text
    for wanted in (
        "Cells of <Kang>",
        "12,345",
        "B, T",
        "only 60 cells & few genes",
        "Second <i>part</i>.",
        "4,321",
        "7",
    ):
        assert wanted in text


def test_best_method_of_each_row_is_marked_and_the_ceiling_is_no_method(path):
    marked = re.findall(r'<span class="best">([^<]*)</span>', path.read_text(encoding="utf-8"))
    assert marked == ["0.538", "0.0010"]


def test_structure_is_semantic(page):
    assert page.tags[0] == ("html", {"lang": "en"})
    assert len(page.all("h1")) == 1
    assert len(page.all("h2")) == 9
    assert len(page.all("main")) == 1
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {attrs["aria-labelledby"] for _, attrs in page.tags if "aria-labelledby" in attrs} <= set(ids)
    assert all(attrs.get("scope") in ("row", "col") for attrs in page.all("th"))
    assert any(attrs.get("name") == "viewport" for attrs in page.all("meta"))


def test_every_picture_is_a_drawing_with_a_description(page):
    pictures = page.all("img")
    assert len(pictures) == 6  # training, real, generated, means, variances, zeros
    for attrs in pictures:
        assert len(attrs["alt"]) > 20
        kind, data = attrs["src"].split(",", 1)
        assert kind == "data:image/svg+xml;base64"
        assert ET.fromstring(base64.b64decode(data)).tag.endswith("svg")
    assert "lowest, 3.2, at step 50" in pictures[-1]["alt"]


def test_a_page_of_facts_only(tmp_path):
    path = write_report(tmp_path / "r.html", title="Check", about={"file": "a.h5ad"})
    page = Page(path.read_text(encoding="utf-8"))
    assert not page.all("img")
    assert not page.all("table")
    assert len(page.all("h2")) == 2


def test_nothing_half_written_when_a_part_fails(tmp_path):
    path = tmp_path / "r.html"
    path.write_text("old")
    with pytest.raises(KeyError):
        write_report(path, title="t", about={}, scores=SCORES.drop(columns="ceiling"))
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["r.html"]


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(InputError, match=r"no folder .*nowhere; create it first"):
        write_report(tmp_path / "nowhere" / "r.html", title="t", about={})


def test_scores_that_are_not_defined_are_dashes_and_never_best(tmp_path):
    scores = SCORES.assign(value=[np.nan, 0.02])
    path = write_report(tmp_path / "r.html", title="t", about={}, scores=scores, baselines={"other": SCORES})
    text = path.read_text(encoding="utf-8")
    assert re.findall(r'<span class="best">([^<]*)</span>', text) == ["0.538", "0.0200"]
    assert "–" in text

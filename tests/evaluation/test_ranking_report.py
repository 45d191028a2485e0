"""The page of a ranking: everything is on it, nothing runs that came from a file, and it stands alone."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from scidiff.errors import InputError
from scidiff.evaluation import write_ranking
from scidiff.evaluation.ranking_report import Axis

EVIL = "<img src=x onerror=alert(1)>\"'</script><script>alert(2)</script>{{ 7 * 7 }}"


@pytest.fixture
def table() -> pd.DataFrame:
    tf = pd.DataFrame(
        {"kind": "tf", "name": ["STAT1", "IRF9", "MYC", EVIL], "rank": [1, 2, 3, 4], "ulm": [9, 5, -2, 0.1]}
    )
    tf["consensus_rank"], tf["mlm"] = [1, 2, 4, 3], [3, np.nan, 1.0, 2.0]
    tf["p_value"], tf["fdr"] = [1e-9, 1e-4, 0.2, 0.9], [4e-9, 2e-4, 0.3, 0.9]
    tf["leading_genes"] = ["ISG15,MX1", "ISG15,OAS1", "", f"{EVIL},MX1"]
    one = pd.DataFrame({"kind": "perturbation", "name": ["A @ 1", "B"], "rank": [1, 2], "lda": [-1.0, -3.5]})
    return pd.concat([one, tf], ignore_index=True).assign(source="cells")


class Page(HTMLParser):
    """Elements and the texts of table cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.cells: list[str] = []
        self._open = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in ("td", "th"):
            self.cells.append("")
            self._open = True

    def handle_endtag(self, tag):
        self._open = self._open and tag not in ("td", "th")

    def handle_data(self, data):
        if self._open:
            self.cells[-1] += data

    def named(self, tag: str, kind: str = "") -> list[dict]:
        return [
            attrs for name, attrs in self.tags if name == tag and (not kind or kind in attrs.get("class", "").split())
        ]


def written(folder, table, **options) -> tuple[str, Page]:
    text = write_ranking(folder / "ranking.html", table, **options).read_text()
    return text, Page(text)


def test_every_candidate_stands_in_table_and_plot(table, tmp_path):
    _, page = written(tmp_path, table, about={"cells": "designed.h5ad"})
    for name in table["name"]:
        assert name in page.cells
        assert name in [mark.get("data-name") for mark in page.named("circle", "mark") + page.named("rect", "mark")]
    assert {"9", "1e-09", "-3.5", "ISG15, MX1"} <= set(page.cells)
    sure = [mark["data-name"] for mark in page.named("circle", "up")]
    assert sure == ["STAT1", "IRF9"]
    heads = [cell for cell in page.cells if cell in ("name", "rank", "consensus rank", "ulm", "mlm", "p value", "lda")]
    assert heads == ["name", "rank", "lda", "name", "rank", "consensus rank", "ulm", "mlm", "p value"]


def test_nothing_from_a_file_becomes_part_of_the_page(table, tmp_path):
    text, page = written(tmp_path, table, title=EVIL, about={EVIL: EVIL}, warnings=[EVIL])
    assert not page.named("img")
    assert len(page.named("script")) == 1
    assert "alert(2)</script>" not in text
    assert "{{ 7 * 7 }}" in text
    assert EVIL in page.cells  # a comma and a blank would have been added between genes only
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]


def test_it_loads_nothing(table, tmp_path):
    text, page = written(tmp_path, table)
    assert not re.findall(r"url\(|@import|https?:", text)
    assert not [name for _, attrs in page.tags for name in attrs if name in ("src", "href", "action")]
    (policy,) = [meta["content"] for meta in page.named("meta") if "http-equiv" in meta]
    assert policy.startswith("default-src 'none'")


def test_edges_are_drawn_with_their_signs(table, tmp_path):
    network = pd.DataFrame(
        {"source": ["STAT1", "STAT1", "IRF9"], "target": ["ISG15", "MX1", "OAS1"], "weight": [1, -1, 1]}
    )
    _, page = written(tmp_path, table, network=network)
    edges = [(edge["data-source"], edge["class"].split()[1:]) for edge in page.named("path", "edge")]
    assert edges[:2] == [("STAT1", ["up"]), ("STAT1", ["down"])]
    assert ("IRF9", ["up"]) in edges  # OAS1
    assert ("IRF9", []) in edges  # ISG15, which the network does not have
    assert "raises" not in written(tmp_path, table)[0].split("<script>")[0]


def test_ticks_are_round_and_within():
    for low, high in [(0, 1), (-3.7, 12.2), (-1e-4, 3e-4), (0, 12345), (-0.31, 0)]:
        axis = Axis(low, high, 0, 100)
        values = [float(text) for _, text in axis.ticks]
        assert 3 <= len(values) <= 7
        assert all(low - 1e-12 <= value <= high + 1e-12 for value in values)
        assert [place for place, _ in axis.ticks] == pytest.approx([axis(value) for value in values], abs=0.1)
    assert Axis(0, 10, 46, 626)(5) == 336


def test_what_is_no_ranking(table, tmp_path):
    with pytest.raises(InputError, match="no ranking: it has no column 'rank'"):
        write_ranking(tmp_path / "a.html", table.drop(columns="rank"))
    with pytest.raises(InputError, match="there is no folder"):
        write_ranking(tmp_path / "none" / "a.html", table)
    empty = table.head(1).drop(columns="lda")  # no score at all: a table, no plot
    assert "<circle" not in written(tmp_path, empty)[0]

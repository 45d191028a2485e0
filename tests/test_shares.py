"""Shares: every item in exactly one, places told by text or by a launcher, files of their own."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scidiff.errors import InputError
from scidiff.shares import Share


@given(st.integers(1, 60), st.data())
def test_shares_are_all_there_is_in_order_and_of_one_size(n, data):
    of = data.draw(st.integers(1, n))
    shares = [Share(i + 1, of).among(range(n), what="cells") for i in range(of)]
    assert [item for share in shares for item in share] == list(range(n))
    assert {len(share) for share in shares} <= {n // of, -(-n // of)}


def test_a_share_with_nothing_in_it_says_how_many_there_can_be():
    with pytest.raises(InputError, match=r"share 1/3 is empty: of 2 contexts make fewer shares"):
        Share(1, 3).among(range(2), what="contexts")


def test_the_place_is_asked_for_or_that_of_the_process(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert Share.asked(None) == Share(1, 1)
    monkeypatch.setenv("RANK", "2")
    assert Share.asked(None) == Share(1, 1)  # somebody else's variable
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert Share.asked(None) == Share(3, 4)
    assert Share.asked("3/16") == Share(3, 16)


@pytest.mark.parametrize("text", ["0/4", "5/4", "3", "a/b", "1/2/3", "-1/2"])
def test_no_share(text):
    with pytest.raises(InputError, match=r"is not one of several, as in 3/16"):
        Share.asked(text)


def test_files_and_seeds_are_their_own():
    assert Share(3, 16).file(Path("a/out.h5ad")) == Path("a/out.3-of-16.h5ad")
    assert list(Share().among([], what="cells")) == []  # that there are none is for others to say
    assert Share().file(Path("a/out.h5ad")) == Path("a/out.h5ad")
    assert Share().seed(7) == 7
    assert len({Share(i, 8).seed(7) for i in range(1, 9)}) == 8

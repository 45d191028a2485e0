"""Cross-boundary direction: cells that point across have 1, back -1, along the boundary 0."""

from __future__ import annotations

import numpy as np
import pytest

from scidiff.evaluation.metrics import cross_boundary_direction

POINTS = np.array([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0]])
NEAR = np.array([[1, 2], [0, 2], [0, 1]])


@pytest.mark.parametrize(("v", "expected"), [((1, 0), 1), ((-3, 0), -1), ((0, 2), 0), ((1, 1), np.sqrt(0.5))])
def test_angles(v, expected):
    found = cross_boundary_direction(POINTS, np.tile(v, (3, 1)), ["a", "b", "b"], [("a", "b")], neighbors=NEAR)
    assert found["a", "b"] == pytest.approx(expected)


def test_no_boundary_or_no_velocity():
    labels, edges = ["a", "b", "b"], [("a", "c"), ("b", "a")]
    found = cross_boundary_direction(POINTS, np.zeros((3, 2)), labels, edges, neighbors=NEAR)
    assert np.isnan(list(found.values())).all()

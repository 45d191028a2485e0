"""The condition vector: sets, doses, times, null tokens."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scidiff.conditioning import ConditionEncoder, Conditions, Vocabulary
from scidiff.conditioning.encoder import DoseCurve, SmoothCurve
from scidiff.data.schema import Schema

SCHEMA = Schema(perturbation="drug", control="DMSO", context=["cell.type"], dose="dose", time="time", batch="batch")
VOCABULARY = Vocabulary(
    schema=SCHEMA,
    categories={"cell.type": ("B", "T"), "batch": ("b1", "b2")},
    perturbations=("A", "A+B", "B", "DMSO"),
    parts=("A", "B", "C"),
    doses=(1.0, 5.0, 2.0),
    time_range=(6.0, 48.0),
    dose_range=(0.1, 10.0),
    depth=(7.0, 0.5),
)


def randomised(encoder: ConditionEncoder) -> ConditionEncoder:
    """Weights as after training: nothing is zero by initialisation."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in encoder.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
        encoder.parts.weight[0] = 0  # the empty slot is held at zero by its padding index
    return encoder.eval()


@pytest.fixture(scope="module")
def encoder() -> ConditionEncoder:
    return randomised(ConditionEncoder(VOCABULARY, 8))


def conditions(*requests: dict, depth: float | None = 1000) -> Conditions:
    table = SCHEMA.conditions(list(requests), known=VOCABULARY.known)
    return VOCABULARY.encode(table, depth=None if depth is None else np.full(len(table), depth))


def vectors(encoder: ConditionEncoder, *requests: dict, **options) -> torch.Tensor:
    with torch.no_grad():
        return encoder(conditions(*requests, **options))


def test_combinations_are_sets(encoder):
    ab, ba = vectors(encoder, {"drug": "A+B", "dose": "1+4"}, {"drug": "B+A", "dose": "4+1"})
    assert torch.equal(ab, ba)
    cond = conditions({"drug": "A+B", "dose": "1+4"})
    swapped = Conditions(cond.codes, cond.parts.flip(1), cond.doses.flip(1), cond.time, cond.depth)
    with torch.no_grad():
        assert torch.equal(encoder(swapped)[0], ab)
    doses_swapped = vectors(encoder, {"drug": "A+B", "dose": "4+1"})[0]
    assert not torch.allclose(doses_swapped, ab)


def test_combinations_add_what_their_parts_add(encoder):
    control, a, b, ab = vectors(encoder, {"drug": "DMSO"}, {"drug": "A"}, {"drug": "B"}, {"drug": "A+B"}).unbind()
    null_dose = encoder.null["dose"].detach()  # said once however many parts have an unknown dose
    torch.testing.assert_close(ab - control - null_dose, (a - control - null_dose) + (b - control - null_dose))


def test_dose_zero_is_the_control_exactly(encoder):
    control, zero, zeros, tiny = vectors(
        encoder,
        {"drug": "DMSO"},
        {"drug": "A", "dose": 0},
        {"drug": "A+B", "dose": "0+0"},
        {"drug": "A", "dose": 0.1},
    ).unbind()
    assert torch.equal(zero, control)
    assert torch.equal(zeros, control)
    assert not torch.allclose(tiny, control)


@settings(max_examples=60, deadline=None)
@given(
    middle=st.floats(1e-6, 1e6),
    slope=st.floats(-2, 2),
    doses=st.lists(st.floats(0, 1e6), min_size=2, max_size=8),
)
def test_dose_curves_rise_from_zero_to_one(middle, slope, doses):
    curve = DoseCurve(torch.tensor([middle]))
    with torch.no_grad():
        curve.log_slope += slope
        doses = torch.tensor(sorted(doses), dtype=torch.float32)[:, None]
        response = curve(torch.ones_like(doses, dtype=torch.long), doses).squeeze(1)
        assert (response.diff() >= 0).all()
        assert ((response >= 0) & (response <= 1)).all()
        half = curve(torch.tensor([[1]]), torch.tensor([[middle]], dtype=torch.float32))
        none = curve(torch.tensor([[1, 0]]), torch.tensor([[0.0, 5.0]]))
    assert float(half) == pytest.approx(0.5, abs=1e-4)
    assert none.tolist() == [[0, 0]]


def test_dose_curve_is_a_hill_curve():
    curve = DoseCurve(torch.tensor([2.0]))
    with torch.no_grad():
        curve.log_slope += np.log(1.7)
        response = curve(torch.ones(4, 1, dtype=torch.long), torch.tensor([[0.3], [2.0], [5.0], [80.0]])).squeeze(1)
    d = np.array([0.3, 2.0, 5.0, 80.0])
    np.testing.assert_allclose(response, d**1.7 / (d**1.7 + 2.0**1.7), rtol=1e-5)


@pytest.mark.filterwarnings("ignore::scidiff.errors.DataWarning")
def test_gradients_of_doses_are_finite(encoder):
    cond = conditions({"drug": "A", "dose": 0}, {"drug": "A"}, {"drug": "A+B", "dose": "1e-9+3"}, {}, {"drug": "DMSO"})
    encoder.zero_grad()
    encoder(cond).square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in encoder.parameters())
    assert encoder.curve.log_slope.grad.abs().sum() > 0
    encoder.zero_grad()


@pytest.mark.parametrize(
    ("attribute", "request_"),
    [
        ("perturbation", {"drug": "DMSO"}),
        ("perturbation", {"drug": "A"}),
        ("dose", {"drug": "A", "dose": 1e4}),
        ("cell.type", {"cell.type": "B"}),
        ("time", {"time": 6}),
        ("batch", {"batch": "b1"}),
    ],
)
@pytest.mark.filterwarnings("ignore::scidiff.errors.DataWarning")
def test_unknown_is_a_value_of_its_own(encoder, attribute, request_):
    """Not the control, nor the first category, nor time zero, nor the full dose."""
    cond = conditions(request_)
    with torch.no_grad():
        assert not torch.allclose(encoder(cond), encoder(cond.drop(attribute)), atol=1e-2)


def test_the_unconditional_is_the_same_for_all(encoder):
    cond = conditions(
        {},
        {"drug": "A+B", "dose": "1+4", "cell.type": "T", "time": 24, "batch": "b2"},
        {"drug": "DMSO", "cell.type": "B"},
        {"drug": "C", "time": 6},
    ).keep()
    with torch.no_grad():
        out = encoder(cond)
    assert torch.equal(out, out[:1].expand_as(out))
    torch.testing.assert_close(out[:1], vectors(encoder, {}))


def test_every_attribute_is_heard(encoder):
    base = {"drug": "A", "dose": 1, "cell.type": "T", "time": 24, "batch": "b2"}
    changes = [{"drug": "B"}, {"dose": 2}, {"cell.type": "B"}, {"time": 12}, {"batch": "b1"}]
    out = vectors(encoder, base, *(base | change for change in changes))
    assert ((out[1:] - out[0]).norm(dim=1) > 0.1).all()
    assert not torch.allclose(vectors(encoder, base, depth=1000), vectors(encoder, base, depth=2000))
    assert not torch.allclose(vectors(encoder, base, depth=1000), vectors(encoder, base, depth=None))


def test_extreme_depths_do_not_extrapolate(encoder):
    far, further = vectors(encoder, {}, depth=1e7), vectors(encoder, {}, depth=1e9)
    assert torch.equal(far, further)


def test_time_is_smooth_and_linear_outside():
    curve = SmoothCurve((6.0, 48.0), 5)
    with torch.no_grad():
        inside = curve(torch.linspace(6, 48, 400))
        assert inside.diff(dim=0).norm(dim=1).max() < 5 * inside.diff(dim=0).norm(dim=1).mean()
        beyond = curve(torch.tensor([48.0, 60.0, 72.0]))
        torch.testing.assert_close(beyond[1] - beyond[0], beyond[2] - beyond[1])


def test_a_single_time_point_gives_no_giant_numbers():
    with torch.no_grad():
        out = SmoothCurve((24.0, 24.0), 5)(torch.tensor([24.0, 48.0]))
    assert out.abs().max() < 50


@pytest.mark.parametrize("values", [(0, 6), (0, 2, 6), (0, 1, 4, 6), (0, 1, 2, 4, 6), (0, 1, 2, 3, 4, 6)])
def test_a_curve_has_no_more_terms_than_times_can_tell(values):
    times = torch.tensor(values, dtype=torch.float32)
    curve = SmoothCurve((0.0, 6.0), 3, n_values=len(values))
    with torch.no_grad():
        curve.map.bias.zero_()
        curve.map.weight.zero_()
        base = curve(times)
        terms = []
        for k in range(curve.map.in_features):
            curve.map.weight.zero_()
            curve.map.weight[0, k] = 1
            terms.append((curve(times) - base)[:, 0])
    design = torch.stack([torch.ones(len(values)), *terms], dim=1)
    assert design.shape[1] == len(values)
    assert torch.linalg.matrix_rank(design, rtol=1e-3) == len(values)


def test_between_two_times_there_is_a_line():
    curve = SmoothCurve((2.0, 6.0), 4, n_values=2)
    with torch.no_grad():
        start, middle, end = curve(torch.tensor([2.0, 4.0, 6.0]))
    torch.testing.assert_close(middle, (start + end) / 2)


def test_features_speak_for_unseen_parts():
    features = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])  # C is described as A is
    encoder = randomised(ConditionEncoder(VOCABULARY, 8, features=features))
    with torch.no_grad():
        encoder.parts.weight.zero_()  # only what the features say is left
        encoder.curve.log_middle.zero_()
        encoder.curve.log_slope.zero_()
    a, b, c = vectors(encoder, {"drug": "A", "dose": 1}, {"drug": "B", "dose": 1}, {"drug": "C", "dose": 1}).unbind()
    assert torch.equal(a, c)
    assert not torch.allclose(a, b)


def test_width_of_the_set_is_no_matter(encoder):
    """A single in a batch with combinations has empty slots; they must add nothing."""
    alone = vectors(encoder, {"drug": "A", "dose": 2})[0]
    beside = vectors(encoder, {"drug": "A", "dose": 2}, {"drug": "A+B+C", "dose": 1})[0]
    torch.testing.assert_close(alone, beside)


def test_no_attributes_at_all():
    schema = Schema()
    vocabulary = Vocabulary.learn(pd.DataFrame(index=range(2)), schema)
    encoder = ConditionEncoder(vocabulary, 4)
    out = encoder(vocabulary.encode(pd.DataFrame(index=range(2))))
    assert out.shape == (2, 4)
    assert out.isfinite().all()


def test_modules_are_smooth_and_unknown_is_not_zero():
    schema = Schema(modules=["IFN.score"])
    vocabulary = Vocabulary(schema=schema, categories={}, perturbations=(), parts=(), modules={"IFN.score": (0.0, 2.0)})
    encoder = randomised(ConditionEncoder(vocabulary, 8))
    asked = [{"IFN.score": score} for score in (0.0, 1.0, 1.001, 2.0)] + [{}]
    cond = vocabulary.encode(schema.conditions(asked), depth=np.full(5, 1000))
    with torch.no_grad():
        zero, one, near, two, null = encoder(cond)
        dropped = encoder(cond.drop("IFN.score"))
    assert (one - near).norm() < 0.02
    assert min((one - zero).norm(), (two - one).norm(), (null - zero).norm()) > 0.5
    assert torch.equal(dropped, null.expand(5, -1))

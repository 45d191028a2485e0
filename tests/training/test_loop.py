"""The loop: it learns, it repeats itself exactly, it goes on after a kill as if nothing had happened."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from scidiff.conditioning import ConditionEncoder, Vocabulary
from scidiff.data.schema import Schema
from scidiff.errors import InputError
from scidiff.models.anchor import Anchor
from scidiff.models.denoiser import Denoiser
from scidiff.models.networks import Backbone
from scidiff.models.thinning import Thinning
from scidiff.training import CountBatches, HeldOutCells, HeldOutMolecules, Subset, TrainConfig, train
from scidiff.training.ema import copy_weights
from scidiff.training.loop import forget, schedule
from scidiff.training.randomness import step_generator

SCHEMA = Schema(perturbation="drug", control="ctrl", context=["type"])
CONFIG = TrainConfig(steps=40, batch_size=32, evaluate_every=10, patience=100, precision="fp32")


class Task:
    """A small screen with two unlabelled kinds of cells, an untrained denoiser, and its training."""

    def __init__(self, *, n_cells: int = 300, seed: int = 0, width: int = 8) -> None:
        rng = np.random.default_rng(seed)
        table = pd.DataFrame({"drug": rng.choice(["ctrl", "A"], n_cells), "type": rng.choice(["T", "B"], n_cells)})
        p = rng.dirichlet(np.full(15, 0.6), size=2)
        x = np.stack([rng.multinomial(60, p[k]) for k in rng.integers(0, 2, n_cells)])
        table = table.rename(columns={"drug": "perturbation"})
        vocabulary = Vocabulary.learn(table, SCHEMA, depth=x.sum(1))
        self.cells = CountBatches(sparse.csr_matrix(x.astype(np.float32)))
        self.cond = vocabulary.encode(table, depth=x.sum(1))
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.denoiser = Denoiser(
                Thinning(),
                anchor=Anchor.fit(self.cells.x, self.cond, control=SCHEMA.is_control(table), counts=True),
                encoder=ConditionEncoder(vocabulary, width),
                backbone=Backbone(15, width=width, n_blocks=1),
            )

    def judge(self, rows: np.ndarray | None = None, *, seed: int = 0) -> HeldOutCells:
        return HeldOutCells(self.cells, self.cond, np.arange(len(self.cells)) if rows is None else rows, seed=seed)

    def train(self, config: TrainConfig = CONFIG, **options) -> pd.DataFrame:
        """Train on all cells but the last tenth, which says when to stop."""
        n = len(self.cells) - int(config.heldout * len(self.cells))
        held = np.arange(n, len(self.cells))
        options.setdefault("judge", self.judge(held, seed=config.seed) if len(held) else None)
        return train(self.denoiser, Subset(self.cells, np.arange(n)), self.cond[:n], config=config, **options)


def weights(task: Task) -> dict[str, torch.Tensor]:
    return copy_weights(task.denoiser)


def identical(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


class Killed(BaseException):  # nobody catches a kill
    pass


def kill_at(step: int):
    def on_step(progress) -> None:
        if progress.step == step:
            raise Killed

    return on_step


def test_it_learns():
    task = Task()
    before = task.judge(seed=1)(task.denoiser)
    history = task.train(replace(CONFIG, steps=120, evaluate_every=40, learning_rate=1e-2, weight_decay=0.1))
    after = task.judge(seed=1)(task.denoiser)
    assert after < before - 0.05
    assert history["step"].tolist() == [40, 80, 120]
    assert history["heldout"].iloc[-1] < history["heldout"].iloc[0]
    assert not task.denoiser.training


def test_the_seed_makes_the_model():
    one, same, other = Task(), Task(), Task()
    history, again = one.train(), same.train()
    other.train(replace(CONFIG, seed=1))
    assert identical(weights(one), weights(same))
    pd.testing.assert_frame_equal(history.drop(columns="seconds"), again.drop(columns="seconds"))
    assert not identical(weights(one), weights(other))


def test_the_random_state_of_the_process_is_left_alone():
    state = torch.get_rng_state()
    numpy_state = np.random.get_state()[1].copy()  # noqa: NPY002
    Task().train(replace(CONFIG, steps=5))
    assert torch.equal(torch.get_rng_state(), state)
    assert (np.random.get_state()[1] == numpy_state).all()  # noqa: NPY002


@pytest.mark.parametrize("at", [10, 20, 27])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(tmp_path, at):
    """Killed at a look, or between looks: the steps since the last look are made again, with the same numbers."""
    whole, first, second = Task(), Task(), Task()
    history = whole.train()
    with pytest.raises(Killed):
        first.train(checkpoint=tmp_path, on_step=kill_at(at))
    seen = []
    resumed = second.train(checkpoint=tmp_path, on_step=lambda progress: seen.append(progress.step))
    assert seen[0] == at // 10 * 10 + 1
    assert identical(weights(whole), weights(second))
    pd.testing.assert_frame_equal(history.drop(columns="seconds"), resumed.drop(columns="seconds"))
    assert len(list(tmp_path.glob("*.safetensors"))) == 1  # old states are removed


def test_a_kill_while_the_state_is_written_loses_nothing(tmp_path, monkeypatch):
    whole, first, second = Task(), Task(), Task()
    whole.train()
    real, calls = os.replace, []

    def replace_once(*paths) -> None:
        calls.append(paths)
        if len(calls) == 2:
            raise Killed
        real(*paths)

    monkeypatch.setattr(os, "replace", replace_once)
    with pytest.raises(Killed):
        first.train(checkpoint=tmp_path)
    monkeypatch.undo()
    second.train(checkpoint=tmp_path)
    assert identical(weights(whole), weights(second))


def test_a_finished_run_is_not_trained_again(tmp_path):
    first, second = Task(), Task()
    first.train(checkpoint=tmp_path)
    second.train(checkpoint=tmp_path, on_step=kill_at(1))
    assert identical(weights(first), weights(second))


def test_a_run_with_other_settings_is_refused(tmp_path):
    Task().train(checkpoint=tmp_path)
    with pytest.raises(InputError, match="other settings"):
        Task().train(replace(CONFIG, learning_rate=1e-3), checkpoint=tmp_path)
    for other in (Task(width=12), Task(n_cells=299), Task(seed=1)):
        with pytest.raises(InputError, match="another model or on other cells"):
            other.train(checkpoint=tmp_path)


def test_early_stop_returns_the_best_weights():
    """With few cells and no regularisation the held-out loss turns up; the weights are those of the turn."""
    config = replace(
        CONFIG, steps=400, heldout=0.5, learning_rate=0.03, weight_decay=0.0, ema=0.5, patience=2, evaluate_every=20
    )
    task = Task(n_cells=40)
    history = task.train(config)
    assert history["step"].iloc[-1] < 400
    best = history["heldout"].idxmin()
    assert best == len(history) - 1 - config.patience
    loss = task.judge(np.arange(20, 40))(task.denoiser)
    assert loss == pytest.approx(history["heldout"].min(), rel=1e-6)


def test_without_held_out_cells_all_steps_are_made():
    history = Task().train(replace(CONFIG, heldout=0, patience=1))
    assert history["step"].tolist() == [10, 20, 30, 40]
    assert (history["loss"] == history["heldout"]).all()


def test_one_cell_can_be_trained_on():
    assert np.isfinite(Task(n_cells=1).train(replace(CONFIG, steps=3))["loss"]).all()


def test_precisions_may_differ_within_one_process():
    for precision in ("fp32", "bf16", "fp32"):
        assert np.isfinite(Task().train(replace(CONFIG, steps=2, precision=precision))["loss"]).all()


def test_divergence_is_said_not_saved(tmp_path):
    task = Task()
    with torch.no_grad():
        task.denoiser.backbone.bias.fill_(float("nan"))
    with pytest.raises(InputError, match="lower learning_rate"):
        task.train(checkpoint=tmp_path)
    assert not list(tmp_path.iterdir())


def test_forget_rates():
    """Each attribute with chance c, or all with c / 2: 1 - (1 - c / 2)(1 - c); all null at once at least c / 2."""
    task, c, n = Task(), 0.3, 40_000
    cond = task.cond[torch.zeros(n, dtype=torch.long)]
    out = forget(cond, c, generator=torch.Generator().manual_seed(0))
    error = 4 * 0.5 / np.sqrt(n)
    for name in ("perturbation", "type"):
        rate = float((out.codes[name] == 0).float().mean())
        assert rate == pytest.approx(1 - (1 - c / 2) * (1 - c), abs=error)
    both = float(((out.codes["perturbation"] == 0) & (out.codes["type"] == 0)).float().mean())
    assert both == pytest.approx(c / 2 + (1 - c / 2) * c**2, abs=error)
    assert torch.equal(out.depth, cond.depth)
    assert forget(cond, 0.0, generator=torch.Generator()).codes["type"].all()


def test_schedule():
    rates = np.array([schedule(step, 1000, 100) for step in range(1, 1001)])
    assert (np.diff(rates[:99]) > 0).all()
    assert (np.diff(rates[100:]) < 0).all()
    assert rates.max() == pytest.approx(1, abs=0.03)
    assert rates[-1] == pytest.approx(0.02)
    assert schedule(1, 1, 100) == pytest.approx(0.02)


def test_held_out_molecules_by_hand():
    """Molecules set aside, predicted from what noise leaves of the others; the same number at every look."""
    task = Task(n_cells=30)
    x = task.cells.x.toarray()
    held = np.random.default_rng(0).binomial(x.astype(int), 0.2).astype(np.float32)
    kept = CountBatches(sparse.csr_matrix(x - held))
    judge = HeldOutMolecules(kept, task.cond, CountBatches(sparse.csr_matrix(held)), seed=3)
    # an untrained denoiser is its anchor, whatever the noise
    log_rho = task.denoiser.anchor(task.cond).log_softmax(1).numpy()
    expected = -(held * log_rho).sum(1) / np.maximum(held.sum(1), 1)
    assert judge(task.denoiser) == pytest.approx(expected.mean(), rel=1e-5)
    task.train(replace(CONFIG, steps=20, learning_rate=1e-2))
    assert judge(task.denoiser) == judge(task.denoiser)
    assert not task.denoiser.training
    assert judge(task.denoiser) != pytest.approx(expected.mean(), rel=1e-5)


def test_every_step_and_process_has_its_own_randomness():
    numbers = {
        float(torch.rand(1, generator=step_generator(seed, step, rank), dtype=torch.float64))
        for seed in range(4)
        for step in range(6)
        for rank in range(3)
    }
    assert len(numbers) == 4 * 6 * 3


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"batch_size": 0}, "batch_size=0 must be positive"),
        ({"learning_rate": -1.0}, r"learning_rate=-1\.0 must be positive"),
        ({"steps": 0}, "steps=0: must be a whole number, at least 1"),
        ({"heldout": 1.0}, r"heldout=1\.0 must be in"),
        ({"precision": "fp16"}, "precision 'fp16'"),
    ],
)
def test_bad_settings(setting, message):
    with pytest.raises(InputError, match=message):
        TrainConfig(**setting)


PROGRAM = """
import sys
import importlib.util
from dataclasses import replace
spec = importlib.util.spec_from_file_location("loop_tests", {file!r})
tests = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tests)
import torch
from accelerate import PartialState
from safetensors.torch import save_file

task = tests.Task()
history = task.train(replace(tests.CONFIG, steps=20))
state = PartialState()
save_file(tests.weights(task), f"{{sys.argv[1]}}/rank{{state.process_index}}of{{state.num_processes}}.safetensors")
state.destroy_process_group()  # as the command line does: else threads that still talk may end the exit in a crash
"""


@pytest.mark.slow
def test_two_processes_train_one_model(tmp_path):
    """Two CPU processes: gradients are averaged, so both end with the same weights."""
    from safetensors.torch import load_file

    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(PROGRAM.format(file=str(Path(__file__).resolve()))))
    launch = "torch.distributed.run --standalone --nproc_per_node 2"
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path),
    }
    done = subprocess.run(
        [sys.executable, "-m", *launch.split(), str(program), str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [load_file(tmp_path / f"rank{rank}of2.safetensors") for rank in range(2)]
    assert identical(*ranks)
    alone = Task()
    start = weights(alone)
    assert not identical(ranks[0], start)
    alone.train(replace(CONFIG, steps=20))
    assert not identical(ranks[0], weights(alone))  # it saw the other process's cells too

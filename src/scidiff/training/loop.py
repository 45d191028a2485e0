"""The training loop, all of it.

    draw cells -> forget some conditions -> noise them -> predict -> loss -> AdamW -> average the weights

Everything random in step i is a function of (seed, i, process rank), so a resumed run continues exactly as the killed
one would have, and a seed reproduces a model on one machine. The same loop runs on one CPU, one GPU or several
processes through Hugging Face Accelerate (``accelerate launch``).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from scidiff.conditioning import Conditions
from scidiff.errors import InputError, whole_numbers
from scidiff.files import whole_file, writing
from scidiff.models.denoiser import Denoiser
from scidiff.models.networks import has_fast_bf16
from scidiff.training.batches import Batches
from scidiff.training.ema import Average, copy_weights, load_weights
from scidiff.training.heldout import Judge
from scidiff.training.randomness import moved, step_generator


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Settings of a training run.

    Parameters
    ----------
    steps
        Optimiser steps at most. None: they grow with the square root of the number of cells, 730 for 1,330 cells, at
        least 450 and at most 6,000.
    batch_size
        Cells per step, of all processes together: how many there are changes the time, not the model.
    learning_rate
        Peak, reached after ``warmup`` steps, then down a cosine to 2 % of it.
    weight_decay
        Decoupled, on matrices only. Far stronger than usual: a few thousand cells can be learned by heart.
    warmup
        Steps of linear rise.
    ema
        Decay of the running average of the weights.
    forget
        Chance that an attribute of a cell is replaced by its null token; half as often all at once. A module: one half,
        since most requests name none.
    heldout
        Share of the molecules of every cell (of the cells, where there are no counts) kept aside to decide when to
        stop. 0: train for all steps.
    evaluate_every
        Steps between looks at what was held out.
    patience
        Looks without a new best before training stops and goes back to the best weights. None: train for all steps and
        keep the last weights. On a few thousand cells the likelihood of held-out molecules is best long before the
        cells look real, because it prefers cells too much like their average; the history shows both.
    precision
        "auto": bfloat16 matrix products where the hardware has them, else single precision.
    seed
        Makes the run reproducible.
    """

    steps: int | None = None
    batch_size: int = 256
    learning_rate: float = 2e-3
    weight_decay: float = 1.0
    warmup: int = 100
    ema: float = 0.995
    forget: float = 0.1
    heldout: float = 0.05
    evaluate_every: int = 50
    patience: int | None = None
    precision: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("batch_size", "learning_rate", "evaluate_every", "patience"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise InputError(f"{name}={getattr(self, name)} must be positive")
        whole_numbers(seed=(self.seed, 0), steps=(self.steps, 1))
        for name in ("forget", "heldout", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)} must be in [0, 1)")
        if self.precision not in ("auto", "bf16", "fp32"):
            raise InputError(f"precision {self.precision!r} is not 'auto', 'bf16' or 'fp32'")

    def steps_for(self, n_cells: int) -> int:
        """Return the number of steps for this many training cells."""
        return self.steps or int(np.clip(20 * n_cells**0.5, 450, 6000))


@dataclasses.dataclass(frozen=True)
class Progress:
    """What a callback is told after each step."""

    step: int
    steps: int
    loss: float
    heldout: float | None


def train(
    denoiser: Denoiser,
    cells: Batches,
    cond: Conditions,
    *,
    config: TrainConfig,
    judge: Judge | None = None,
    checkpoint: Path | None = None,
    on_step: Callable[[Progress], None] | None = None,
) -> pd.DataFrame:
    """Train ``denoiser`` in place; it ends with the averaged weights: the last, or the judge's best.

    Parameters
    ----------
    denoiser
        On the CPU; moved to the accelerator's device.
    cells
        Training cells.
    cond
        Their conditions.
    config
        Settings.
    judge
        Says how good the model is on what was held out. None: train for all steps and keep the last weights.
    checkpoint
        Folder for the state of an unfinished run. If it holds one, with the same settings, the run goes on from there.
    on_step
        Called after every step.

    Returns
    -------
    One row per look: ``step``, ``loss`` (mean since the last look), ``heldout`` (the judge's word), both in the units
    of the process's loss (thinning: nats per molecule), and ``seconds``.
    """
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs

    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(),
        mixed_precision="no",  # set for the whole process; the loop casts for itself
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True, gradient_as_bucket_view=True)],
    )
    device, bf16 = accelerator.device, use_bf16(config.precision)
    steps = config.steps_for(len(cells))
    batch_size = -(-config.batch_size // accelerator.num_processes)
    optimizer = make_optimizer(denoiser, config)
    model, optimizer = accelerator.prepare(denoiser, optimizer)
    run = Run(denoiser, path=checkpoint, config=config)
    run.resume(denoiser, optimizer)
    seconds_before, started, losses = run.seconds, time.monotonic(), []

    for step in range(run.step + 1, steps + 1):
        if config.patience is not None and run.stale >= config.patience:
            break
        generator = step_generator(config.seed, step, accelerator.process_index)
        rows, x = cells.draw(batch_size, step=step, rank=accelerator.process_index, generator=generator)
        batch_cond = forget(cond[torch.from_numpy(rows)], config.forget, generator=generator)
        x, batch_cond = x.to(device), batch_cond.to(device)
        x_noisy, level = denoiser.process.noise(x, generator=moved(generator, device))

        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * schedule(step, steps, config.warmup)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            prediction = model(x_noisy, level, batch_cond)
        loss = denoiser.process.loss(prediction, x, x_noisy=x_noisy, level=level).mean()
        optimizer.zero_grad(set_to_none=True)
        accelerator.backward(loss)
        clip(denoiser, 1.0)
        optimizer.step()
        if step % Average.EVERY == 0 or step == steps:
            run.average.update(denoiser, step)

        losses.append(loss.detach())
        heldout = None
        if step % config.evaluate_every == 0 or step == steps:
            mean_loss = float(accelerator.reduce(torch.stack(losses).mean(), reduction="mean"))
            losses.clear()
            if not math.isfinite(mean_loss):
                raise InputError(f"the loss became {mean_loss} at step {step}; lower learning_rate")
            with run.average.applied_to(denoiser):
                heldout = judge(denoiser) if judge is not None else mean_loss
            if accelerator.num_processes > 1:  # on GPUs they may differ in the last digit, and must stop together
                heldout = float(accelerator.reduce(torch.tensor(heldout, device=device), reduction="mean"))
            run.seconds = seconds_before + time.monotonic() - started
            run.look(step, loss=mean_loss, heldout=heldout, always_new=judge is None)
            if accelerator.is_main_process:
                run.write(denoiser, optimizer)
        if on_step is not None and accelerator.is_main_process:
            on_step(Progress(step, steps, float(losses[-1]) if losses else mean_loss, heldout))

    load_weights(denoiser, run.average.weights if config.patience is None else run.best)
    denoiser.eval()
    return pd.DataFrame(run.history)


# ---- pieces ---------------------------------------------------------------------------------------------------------


def schedule(step: int, steps: int, warmup: int) -> float:
    """Return the learning rate at a step as a share of its peak: linear rise, cosine to 2 %."""
    rise = min(1.0, step / max(min(warmup, steps // 4), 1))
    return rise * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def forget(cond: Conditions, chance: float, *, generator: torch.Generator) -> Conditions:
    """Return conditions in which attributes of some cells are null: see ``TrainConfig.forget``."""
    n = len(cond)
    everything = torch.rand(n, generator=generator) < chance / 2
    for name in cond.attributes:
        own = 0.5 if name in cond.modules else chance
        cond = cond.drop(name, cells=everything | (torch.rand(n, generator=generator) < own))
    return cond


def clip(module: nn.Module, limit: float) -> None:
    """Scale the gradients down to this norm if theirs is larger."""
    parameters = [p for p in module.parameters() if p.grad is not None]
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if norm > limit:  # rare: the gradients need not be read and written again
        nn.utils.clip_grads_with_norm_(parameters, limit, norm)


def make_optimizer(denoiser: Denoiser, config: TrainConfig) -> torch.optim.Optimizer:
    """Return AdamW with weight decay on matrices, none on vectors (biases, gains, dose curves)."""
    matrices = [p for p in denoiser.parameters() if p.ndim > 1]
    vectors = [p for p in denoiser.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.99), fused=True)


def use_bf16(precision: str) -> bool:
    """Whether to multiply matrices in bfloat16: asked for, or the hardware multiplies it faster than float32."""
    if precision != "auto":
        return precision == "bf16"
    return has_fast_bf16()


def fingerprint(denoiser: Denoiser) -> str:
    """Return a hash of an untrained model: its size, its random start, and, by the anchor, the cells it is made of."""
    digest = hashlib.sha256()
    for name, tensor in denoiser.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} ".encode() + tensor.cpu().numpy().tobytes())
    return digest.hexdigest()


class Run:
    """The state of a run between steps: averages, best weights, history; written to disk and read back."""

    def __init__(self, denoiser: Denoiser, *, path: Path | None, config: TrainConfig) -> None:
        self.path, self.config = path, config
        self.average, self.best = Average(denoiser, config.ema), copy_weights(denoiser)
        self.start = None if path is None else fingerprint(denoiser)
        self.step, self.stale, self.seconds, self.lowest = 0, 0, 0.0, math.inf
        self.history: list[dict[str, float]] = []

    def look(self, step: int, *, loss: float, heldout: float, always_new: bool) -> None:
        """Record a look at what was held out; remember the weights if it is the best so far."""
        self.step = step
        self.history.append({"step": step, "loss": loss, "heldout": heldout, "seconds": round(self.seconds, 4)})
        if always_new or heldout < self.lowest:
            self.lowest, self.stale = heldout, 0
            self.best = {name: weight.clone() for name, weight in self.average.weights.items()}
        else:
            self.stale += 1

    def write(self, denoiser: nn.Module, optimizer: Any) -> None:
        """Write the state: first the tensors, then the file that names them, each whole or not at all."""
        if self.path is None:
            return
        from safetensors.torch import save_file

        tensors = {f"now/{k}": v for k, v in copy_weights(denoiser).items()}
        tensors |= {f"average/{k}": v for k, v in self.average.weights.items()}
        tensors |= {f"best/{k}": v for k, v in self.best.items()}
        for i, state in optimizer.state_dict()["state"].items():
            tensors |= {f"adam/{i}/{k}": v for k, v in state.items()}
        name = f"step-{self.step}.safetensors"
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            save_file({k: v.contiguous().cpu() for k, v in tensors.items()}, self.path / name)
        about = {k: getattr(self, k) for k in ("step", "stale", "seconds", "lowest", "history")}
        text = json.dumps(about | {"tensors": name, "config": dataclasses.asdict(self.config), "start": self.start})
        with whole_file(self.path / "run.json") as part:
            part.write_text(text)
        for old in self.path.glob("step-*.safetensors"):
            if old.name != name:
                old.unlink()

    def resume(self, denoiser: nn.Module, optimizer: Any) -> None:
        """Continue the run that the folder holds, if it holds one with the same settings."""
        if self.path is None or not (self.path / "run.json").is_file():
            return
        from safetensors.torch import load_file

        try:
            about = json.loads((self.path / "run.json").read_text())
            tensors, config, start = load_file(self.path / about["tensors"]), about["config"], about["start"]
        except Exception as error:  # damaged files raise anything
            raise InputError(f"{self.path} holds a run that is damaged ({type(error).__name__}); delete it") from error
        if config != dataclasses.asdict(self.config):
            raise InputError(f"{self.path} holds a run with other settings; use the same ones, or remove that folder")
        if start != self.start:
            raise InputError(f"{self.path} holds a run of another model or on other cells; remove that folder")
        device = next(denoiser.parameters()).device

        def group(prefix: str) -> dict[str, Any]:
            return {k[len(prefix) :]: v.to(device) for k, v in tensors.items() if k.startswith(prefix)}

        load_weights(denoiser, group("now/"))
        self.average.weights, self.best = group("average/"), group("best/")
        state = optimizer.state_dict()
        state["state"] = {}
        for key, value in group("adam/").items():
            i, name = key.split("/")
            state["state"].setdefault(int(i), {})[name] = value
        optimizer.load_state_dict(state)
        for k in ("step", "stale", "seconds", "lowest", "history"):
            setattr(self, k, about[k])

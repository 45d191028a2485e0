"""From conditions to cells: noise in, cells out, in chunks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Generator, Tensor

from scidiff.conditioning import Conditions
from scidiff.models.denoiser import Denoiser as TrainedDenoiser
from scidiff.models.gaussian import GaussianNoise
from scidiff.models.networks import has_fast_bf16
from scidiff.sampling.guidance import Gain
from scidiff.sampling.solvers import Denoiser, ancestral, dpmpp_2m

#: cells sampled together: large enough for efficient matrix products, small enough for little memory
CHUNK = 256


def generate(
    denoiser: TrainedDenoiser,
    cond: Conditions,
    *,
    n_steps: int,
    guided: Denoiser | None = None,
    solver: Callable[..., Tensor] | None = None,
    gain: float = 1.0,
    steered: Callable[[Denoiser], Denoiser] | None = None,
    start: Tensor | None = None,
    generator: Generator,
    on_cells: Callable[[Tensor], None],
) -> None:
    """Draw one cell per condition and hand them over chunk by chunk, each shape (chunk, n_genes).

    Parameters
    ----------
    denoiser
        The trained model; its process decides where sampling starts: no molecules, or Gaussian noise.
    cond
        Conditions of the cells to make; for thinning, ``cond.depth`` is the molecules each gets.
    n_steps
        Steps of the sampler.
    guided
        The denoiser to sample from where it is not ``denoiser`` itself, such as a guided one.
    solver
        Gaussian noise: any of :mod:`scidiff.sampling.solvers` (default: DPM-Solver++(2M)). Thinning: instead of
        `ancestral`, such as :class:`~scidiff.sampling.particles.Chosen`.
    gain
        Thinning: factor on what a cell's own molecules say (:class:`~scidiff.sampling.guidance.Gain`).
    steered
        Wraps the guided denoiser of every chunk, such as :class:`~scidiff.sampling.steering.Steered`.
    start
        Thinning: molecules that the cells have at first, shape (n_cells, n_genes); none of them is lost. None: no
        molecules.
    generator
        Source of randomness.
    on_cells
        Receives each chunk: counts, or standardised expression.
    """
    process = denoiser.process
    n_genes = len(denoiser.anchor.base)
    wrap = steered or (lambda plain: plain)
    for begin in range(0, len(cond), CHUNK):
        part = cond[begin : begin + CHUNK].to(denoiser.device)
        x = torch.zeros(len(part), n_genes, device=denoiser.device)
        if isinstance(process, GaussianNoise):
            levels = process.levels(n_steps)
            x = process.corrupt(x, levels[:1].expand(len(part)), generator=generator)
            x = (solver or dpmpp_2m)(wrap(guided or denoiser), x, levels, part, generator=generator)
        else:
            if start is not None:
                x = start[begin : begin + CHUNK].to(x)
            levels = process.levels(part.depth, n_steps, start=x.sum(dim=1))
            with torch.autocast(x.device.type, torch.bfloat16, enabled=has_fast_bf16()):
                full = wrap(Gain(guided or denoiser, gain))
                add = solver or partial(ancestral, process=process)
                x = add(full, x, levels, part, generator=generator)
        on_cells(x.cpu())

"""Benchmarks on the user's own cells: a tidy table that an interrupted run goes on with, and a page to read."""

from collections.abc import Callable

from scidiff.benchmarking.denoise import benchmark_denoising
from scidiff.benchmarking.design import benchmark_design
from scidiff.benchmarking.predict import benchmark_prediction, export_splits
from scidiff.benchmarking.results import Results

#: what the command line can be asked for
TASKS: dict[str, Callable[..., Results]] = {
    "denoise": benchmark_denoising,
    "predict": benchmark_prediction,
    "design": benchmark_design,
}

__all__ = ["TASKS", "Results", "benchmark_denoising", "benchmark_design", "benchmark_prediction", "export_splits"]

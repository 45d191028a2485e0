"""Benchmarks on the user's own cells: a tidy table that an interrupted run goes on with, and a page to read."""

from scidiff.benchmarking.denoise import benchmark_denoising
from scidiff.benchmarking.results import Results

#: what the command line can be asked for
TASKS = {"denoise": benchmark_denoising}

__all__ = ["TASKS", "Results", "benchmark_denoising"]

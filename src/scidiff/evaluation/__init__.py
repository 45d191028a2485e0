"""Scores with their noise ceiling, the baselines to beat, and the report."""

from scidiff.evaluation.baselines import ConditionalMultinomial, GaussianPCA
from scidiff.evaluation.evaluate import evaluate
from scidiff.evaluation.report import write_report

__all__ = ["ConditionalMultinomial", "GaussianPCA", "evaluate", "write_report"]

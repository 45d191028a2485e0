"""Scores with their noise ceiling, the baselines to beat, and the report."""

from scidiff.evaluation.baselines import ConditionalMultinomial, GaussianPCA
from scidiff.evaluation.denoisers import baseline_denoisers
from scidiff.evaluation.denoising import Denoised, cross_validate
from scidiff.evaluation.evaluate import evaluate
from scidiff.evaluation.ranking_report import write_ranking
from scidiff.evaluation.report import write_report

__all__ = [
    "ConditionalMultinomial",
    "Denoised",
    "GaussianPCA",
    "baseline_denoisers",
    "cross_validate",
    "evaluate",
    "write_ranking",
    "write_report",
]

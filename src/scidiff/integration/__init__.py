"""What is known beside the cells: libraries of conditions, networks and signatures. Tables and arrays, never models."""

from scidiff.integration.activity import regulator_activity
from scidiff.integration.attribution import Library, Query
from scidiff.integration.download import download
from scidiff.integration.drug_targets import read_drug_names, read_drug_targets
from scidiff.integration.drugs import rank_drugs, up_down
from scidiff.integration.networks import read_network
from scidiff.integration.ranking import agreement, annotated, consensus_rank
from scidiff.integration.regulators import rank_regulators
from scidiff.integration.signatures import Signatures, read_gene_sets, read_signatures
from scidiff.integration.target_sets import rank_target_sets, target_features

__all__ = [
    "Library",
    "Query",
    "Signatures",
    "agreement",
    "annotated",
    "consensus_rank",
    "download",
    "rank_drugs",
    "rank_regulators",
    "rank_target_sets",
    "read_drug_names",
    "read_drug_targets",
    "read_gene_sets",
    "read_network",
    "read_signatures",
    "regulator_activity",
    "target_features",
    "up_down",
]

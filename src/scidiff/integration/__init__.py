"""What is known beside the cells: libraries of conditions, networks and signatures. Tables and arrays, never models."""

from scidiff.integration.activity import regulator_activity
from scidiff.integration.attribution import Library, Query
from scidiff.integration.download import download
from scidiff.integration.drug_targets import read_drug_names, read_drug_targets
from scidiff.integration.drugs import rank_drugs, up_down
from scidiff.integration.networks import read_network
from scidiff.integration.ranking import annotated, consensus_rank
from scidiff.integration.regulators import rank_regulators
from scidiff.integration.signatures import Signatures, read_gene_sets, read_signatures

__all__ = [
    "Library",
    "Query",
    "Signatures",
    "annotated",
    "consensus_rank",
    "download",
    "rank_drugs",
    "rank_regulators",
    "read_drug_names",
    "read_drug_targets",
    "read_gene_sets",
    "read_network",
    "read_signatures",
    "regulator_activity",
    "up_down",
]

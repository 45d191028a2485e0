"""What is known beside the cells: libraries of conditions, networks and signatures. Tables and arrays, never models."""

from scidiff.integration.attribution import Library, Query
from scidiff.integration.drug_targets import read_drug_names, read_drug_targets
from scidiff.integration.drugs import rank_drugs, up_down
from scidiff.integration.networks import read_network
from scidiff.integration.regulators import rank_regulators
from scidiff.integration.signatures import Signatures, read_gene_sets, read_signatures

__all__ = [
    "Library",
    "Query",
    "Signatures",
    "rank_drugs",
    "rank_regulators",
    "read_drug_names",
    "read_drug_targets",
    "read_gene_sets",
    "read_network",
    "read_signatures",
    "up_down",
]

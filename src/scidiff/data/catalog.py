"""Public data sets by name, with the schema that fits them.

:func:`load` looks in the folder named by the environment variable ``SCIDIFF_DATA``, then in the cache, then in the
network. Small excerpts and the large originals both count; the originals' columns are renamed to those of the
excerpts as far as they are known, so that one schema reads both.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import pandas as pd

from scidiff.data.schema import Schema
from scidiff.errors import DataWarning, InputError, closest

if TYPE_CHECKING:
    from anndata import AnnData

FOLDER = "SCIDIFF_DATA"


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """One entry of the catalog.

    Parameters
    ----------
    title, citation, limits
        For people: what it is, whose, and what it cannot show.
    schema
        Roles of its obs columns after renaming.
    original, url, original_sha256
        File name of the public original, its address (None: by hand, from ``source``), its checksum if known.
    source
        Accession or address of the study's data.
    excerpt, sha256
        File name of a small excerpt and its checksum, where there is one.
    rename, values
        Columns of the original -> our names; column (ours) -> its values -> our values.
    """

    title: str
    citation: str
    source: str
    schema: Schema
    original: str
    url: str | None
    limits: str = ""
    original_sha256: str | None = None
    excerpt: str | None = None
    sha256: str | None = None
    rename: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


_PERTPY = "https://exampledata.scverse.org/pertpy"

CATALOG: Mapping[str, Dataset] = MappingProxyType(
    {
        "kang18": Dataset(
            title="Human PBMC, 6 h interferon beta or control",
            citation="Kang et al. 2018, Nature Biotechnology 36:89",
            source="GSE96583",
            schema=Schema(perturbation="condition", control="control", context="cell_type"),
            original="kang_2018.h5ad",
            url=f"{_PERTPY}/kang_2018.h5ad",
            excerpt="kang2018_pbmc_ifnb_2k.h5ad",
            sha256="0b31ae27a33a0ba5d735c64b4f6b504b0152bc1ccffab5a27d147f0528e75c6c",
            rename={"label": "condition"},
            values={
                "condition": {"ctrl": "control", "stim": "IFN-beta"},
                "cell_type": {
                    "B cells": "B",
                    "CD4 T cells": "CD4 T",
                    "CD8 T cells": "CD8 T",
                    "CD14+ Monocytes": "CD14 Mono",
                    "FCGR3A+ Monocytes": "CD16 Mono",
                    "Dendritic cells": "DC",
                    "Megakaryocytes": "Mk",
                    "NK cells": "NK",
                },
            },
            limits="excerpt: labels of 852 shallow cells are transferred (obs cell_type_source); 16 Mk cells",
        ),
        "norman19": Dataset(
            title="K562, CRISPR activation of single genes and pairs",
            citation="Norman et al. 2019, Science 365:786",
            source="GSE133344",
            schema=Schema(perturbation="condition", control="control", context="cell_type"),
            original="norman_2019.h5ad",
            url=f"{_PERTPY}/norman_2019.h5ad",
            excerpt="norman19_mcfaline23_crispr_6k.h5ad",
            sha256="75d98cef00b4f04333505d35a937dc9d260f6d1d46a2ca46cf0e78326da284ea",
            rename={"perturbation_name": "condition"},
            limits="excerpt: 500 genes, about 100 cells a condition, and with them a kinase screen in three"
            " glioblastoma lines (McFaline-Figueroa et al. 2023) whose effects hardly reproduce; original: K562 only",
        ),
        "papalexi21": Dataset(
            title="THP-1, CRISPR knock-outs under interferon gamma (ECCITE-seq)",
            citation="Papalexi et al. 2021, Nature Genetics 53:322",
            source="GSE153056",
            schema=Schema(perturbation="perturbation", control="control", batch="replicate"),
            original="papalexi_2021.h5mu",
            url=f"{_PERTPY}/papalexi_2021.h5mu",
            excerpt="papalexi2021_thp1_crispr_20k.h5ad",
            sha256="1656cbbe0cb3b914cacbd25c901d8e7b4352c5f4a09928833bde6109691c969e",
            rename={"gene_target": "perturbation"},
            values={
                "perturbation": {"NT": "control"},
                "replicate": {"rep1": "rep_1", "rep2": "rep_2", "rep3": "rep_3"},
            },
            limits="excerpt: 299 genes; about half of the targets have no reproducible effect",
        ),
        "zhao21": Dataset(
            title="Glioblastoma slices, 0.2 uM panobinostat or vehicle",
            citation="Zhao et al. 2021, Genome Medicine 13:82",
            source="GSE148842",
            schema=Schema(perturbation="condition", control="ctrl", context="patient_id"),
            original="zhaoSims2021.h5ad",
            url=f"{_PERTPY}/zhaoSims2021.h5ad",
            excerpt="zhao2021_gbm_panobinostat_5k.h5ad",
            sha256="6b112a6e80c7d319f69a4566580ac72de63fe2b063af00a1bcfe29568deacbce",
            rename={"perturbation": "condition"},
            values={"condition": {"control": "ctrl"}},
            limits="excerpt: 300 most expressed genes; no cell types, so patients differ in composition;"
            " the original has more drugs and may name patients in another column",
        ),
        "weinreb20": Dataset(
            title="Mouse haematopoiesis in vitro with lineage barcodes, days 2, 4, 6",
            citation="Weinreb et al. 2020, Science 367:eaaw3381",
            source="GSE140802",
            schema=Schema(context="cell_type", time="day"),
            original="weinreb_2020.h5ad",
            url=f"{_PERTPY}/weinreb_2020.h5ad",
            excerpt="weinreb2020_hematopoiesis_timecourse_781.h5ad",
            sha256="6bfbbacdbb77a782f1f663eeb774a6176b28638a2bc6f76e6c1c01fd9862f3ec",
            rename={"time": "day", "celltype": "cell_type", "Cell type annotation": "cell_type", "Time point": "day"},
            limits="excerpt: 781 cells, 34 of them of day 2; obs n_counts is not the depth of these counts",
        ),
        "pancreas": Dataset(
            title="Mouse pancreas at E15.5, spliced and unspliced counts",
            citation="Bastidas-Ponce et al. 2019, Development 146:dev173849",
            source="GSE132188",
            schema=Schema(context="cell_type"),
            original="endocrinogenesis_day15.h5ad",
            url="https://github.com/theislab/scvelo_notebooks/raw/master/data/Pancreas/endocrinogenesis_day15.h5ad",
            excerpt="pancreas_velocity_3696.h5ad",
            sha256="ae2e8b329f6de19b262f6aff98ff0376bde5d0779911bd7cbd71cf853396f95d",
            rename={"clusters": "cell_type"},
            limits="excerpt: 2,000 genes; cluster names assigned by markers",
        ),
        "lincs_a375": Dataset(
            title="L1000 plate, A375 melanoma, 59 drugs in 6 doses, 24 h",
            citation="Subramanian et al. 2017, Cell 171:1437",
            source="GSE70138",
            schema=Schema(perturbation="pert_iname", control="DMSO", dose="pert_dose"),
            original="lincs_l1000_ljp_a375_24h.h5ad",
            url=None,
            excerpt="lincs_l1000_ljp_a375_24h.h5ad",
            sha256="1c5ce5bff4c7c8161dd6df8a1f9fa2f35abcb4a9538b94034212fa25a345fede",
            limits="bulk wells in log2, no counts: the Gaussian process only; one well a drug and dose; doses in uM",
        ),
        "sciplex3": Dataset(
            title="Three cancer lines, 188 drugs in 4 doses (sci-Plex 3)",
            citation="Srivatsan et al. 2020, Science 367:45",
            source="GSE139944",
            schema=Schema(
                perturbation="perturbation",
                control="control",
                context="cell_line",
                dose="dose_value",
                batch="replicate",
            ),
            original="SrivatsanTrapnell2020_sciplex3.h5ad",
            url="https://zenodo.org/records/13350497/files/SrivatsanTrapnell2020_sciplex3.h5ad",
            limits="2.4 GB; shallow cells; 5 % of cells have no drug assigned and are left out; doses in nM",
        ),
    }
)


def load(name: str, *, progress: bool = True) -> AnnData:
    """Return a public data set as an AnnData in memory.

    Parameters
    ----------
    name
        A name in :func:`available`.
    progress
        Show a progress bar while downloading.

    Raises
    ------
    InputError
        Unknown name (the nearest are named), damaged file, or nothing local and no network.
    """
    entry = _entry(name)
    path = _local(entry) or _download(name, entry, progress)
    if path.name == entry.excerpt and entry.sha256 and _sha256(path) != entry.sha256:
        warnings.warn(f"{path} differs from the excerpt known as {name!r}", DataWarning, stacklevel=2)
    adata = _read(path)
    for old, new in entry.rename.items():
        if old in adata.obs and not (path.name == entry.excerpt and new in adata.obs):  # excerpts may have our names
            adata.obs[new] = adata.obs.pop(old)
    for column, values in entry.values.items():
        if column in adata.obs:
            adata.obs[column] = pd.Categorical(adata.obs[column].astype(object).replace(dict(values)))
    schema = entry.schema
    if missing := [column for column in schema.columns.values() if column not in adata.obs]:
        warnings.warn(
            f"{path.name} has no obs column {missing[0]!r}, which schema_of({name!r}) names: make a Schema of its own",
            DataWarning,
            stacklevel=2,
        )
    if schema.perturbation in adata.obs and (unlabelled := adata.obs[schema.perturbation].isna()).any():
        warnings.warn(f"{int(unlabelled.sum())} cells without a perturbation were left out", DataWarning, stacklevel=2)
        adata = adata[~unlabelled.to_numpy()].copy()
    return adata


def schema_of(name: str) -> Schema:
    """Return the schema that fits the data set ``name``."""
    return _entry(name).schema


def available() -> pd.DataFrame:
    """Return the catalog: index ``name``; title, where it is (folder, cache, network), source, citation, limits."""
    rows = {}
    for name, entry in CATALOG.items():
        path = _local(entry)
        if path is None:
            where = "network" if entry.url else "by hand"
        else:
            where = "folder" if path.parent == _folder() else "cache"
        rows[name] = {
            "title": entry.title,
            "where": where,
            "source": entry.url or entry.source,
            "citation": entry.citation,
            "limits": entry.limits,
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("name")


# ---- parts ----------------------------------------------------------------------------------------------------------


def _entry(name: str) -> Dataset:
    if name not in CATALOG:
        raise InputError(f"no data set {name!r} in the catalog{closest(name, CATALOG)}")
    return CATALOG[name]


def _folder() -> Path | None:
    return Path(os.environ[FOLDER]) if os.environ.get(FOLDER) else None


def _cache() -> Path:
    import pooch

    return Path(pooch.os_cache("scidiff"))


def _local(entry: Dataset) -> Path | None:
    """The file of an entry in the folder or the cache; the excerpt, being small, before the original."""
    for folder in (_folder(), _cache()):
        for file in (entry.excerpt, entry.original):
            if folder is not None and file is not None and (folder / file).is_file():
                return folder / file
    return None


def _download(name: str, entry: Dataset, progress: bool) -> Path:
    by_hand = f"put {entry.excerpt or entry.original} into the folder named by {FOLDER}"
    if entry.url is None:
        raise InputError(f"{name!r} has no single file to download (it is part of {entry.source}): {by_hand}")
    import pooch

    downloader = pooch.HTTPDownloader(progressbar=progress, timeout=60)
    try:
        path = pooch.retrieve(
            entry.url, entry.original_sha256, fname=entry.original, path=_cache(), downloader=downloader
        )
    except (OSError, ValueError) as error:  # no network, refused, interrupted, wrong checksum
        text = f"cannot download {name!r} from {entry.url} ({type(error).__name__})"
        raise InputError(f"{text}: check the network, or {by_hand}") from error
    return Path(path)


def _read(path: Path) -> AnnData:
    import anndata

    try:
        if path.suffix != ".h5mu":
            return anndata.read_h5ad(path)
        import h5py

        with h5py.File(path) as file:  # MuData: one AnnData a modality, and ours is the RNA
            return anndata.io.read_elem(file["mod/rna"])
    except (OSError, KeyError) as error:
        raise InputError(f"{path} cannot be read ({type(error).__name__}): delete it and load again") from error


def _sha256(path: Path) -> str:
    import pooch

    return pooch.file_hash(str(path), alg="sha256")

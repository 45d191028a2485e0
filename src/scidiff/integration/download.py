"""Networks, gene sets and drug signatures of others, fetched once, with consent, into a cache.

Nothing here is part of the package: every file comes from those who publish it, under their licence, and only after you
said so. A file whose checksum is known must have it. One that its publisher may change has none that could be known: it
must be what it is said to be, as its reader sees it, and no more is promised. A file appears whole or not at all.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from scidiff.errors import InputError, closest
from scidiff.integration.networks import read_network
from scidiff.integration.signatures import read_gene_sets, read_signatures


@dataclass(frozen=True, kw_only=True)
class Resource:
    """A file of others.

    Parameters
    ----------
    title, licence, citation
        For people: what it is, under which terms, and whose.
    url, file
        Where it is published, and what it is called here.
    megabytes
        About how much will be fetched.
    reader
        What reads it; a file that it refuses is not kept.
    sha256
        Its checksum; None where none is known.
    """

    title: str
    licence: str
    citation: str
    url: str
    file: str
    megabytes: float
    reader: Callable[[Path], Any]
    sha256: str | None = None


_ENRICHR = "https://maayanlab.cloud/Enrichr/geneSetLibrary?mode=text&libraryName="

RESOURCES: Mapping[str, Resource] = MappingProxyType(
    {
        "collectri": Resource(
            title="CollecTRI, signed targets of 1,186 human transcription factors",
            licence="CC BY 4.0",
            citation="Müller-Dott et al. 2023, Nucleic Acids Research 51:10934",
            url="https://zenodo.org/records/8192729/files/CollecTRI_regulons.csv?download=1",
            file="CollecTRI_regulons.csv",
            megabytes=4.3,
            reader=read_network,
            sha256="4473c9189dd53dacc80297709ad1452dda1086a1cc2185f9a56146c261668701",
        ),
        "hallmark": Resource(
            title="MSigDB hallmark gene sets, human, 2024.1",
            licence="CC BY 4.0, with the terms of MSigDB",
            citation="Liberzon et al. 2015, Cell Systems 1:417",
            url="https://data.broadinstitute.org/gsea-msigdb/msigdb/release/2024.1.Hs/h.all.v2024.1.Hs.symbols.gmt",
            file="h.all.v2024.1.Hs.symbols.gmt",
            megabytes=0.1,
            reader=read_gene_sets,
        ),
        "l1000": Resource(
            title="L1000 consensus signatures of drugs, up and down sets, as Enrichr has them",
            licence="free for research; see maayanlab.cloud/Enrichr/help",
            citation="Subramanian et al. 2017, Cell 171:1437; Kuleshov et al. 2016, Nucleic Acids Research 44:W90",
            url=f"{_ENRICHR}LINCS_L1000_Chem_Pert_Consensus_Sigs",
            file="LINCS_L1000_Chem_Pert_Consensus_Sigs.gmt",
            megabytes=20,
            reader=read_signatures,
        ),
    }
)


def download(name: str, *, consent: bool = False, folder: str | Path | None = None, progress: bool = True) -> Path:
    """Return the path of a public network, of gene sets or of signatures, fetched if it is not there yet.

    Parameters
    ----------
    name
        "collectri", "hallmark" or "l1000" (:data:`RESOURCES`).
    consent
        That it may be fetched from its publisher, under its licence. What is there already needs none.
    folder
        Where files are kept; by default the user's cache.
    progress
        Show a progress bar.

    Raises
    ------
    InputError
        There is no such resource, it would have to be fetched without consent, there is no network, or what arrived is
        not what was expected.
    """
    if name not in RESOURCES:
        raise InputError(f"there is no resource {name!r}{closest(name, RESOURCES)}")
    one = RESOURCES[name]
    path = Path(_cache() if folder is None else folder) / one.file
    if path.is_file():
        return path
    if not consent:
        raise InputError(f"{name!r} is not here; {terms(name)}: allow it with consent=True (--download)")
    return _fetched(name, one, path, progress=progress)


def terms(name: str) -> str:
    """Return in a sentence what fetching a resource means."""
    one = RESOURCES[name]
    return f"it is {one.title}, about {one.megabytes:g} MB from {one.url}, {one.licence} ({one.citation})"


def _fetched(name: str, one: Resource, path: Path, *, progress: bool) -> Path:
    import pooch

    partial = f".{os.getpid()}.part.{path.name}"  # readers tell formats by the suffix
    known = None if one.sha256 is None else f"sha256:{one.sha256}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        bar = pooch.HTTPDownloader(progressbar=progress, timeout=60) if one.url.startswith("http") else None
        fetched = Path(_quietly(one.url, known, fname=partial, path=path.parent, downloader=bar))
        one.reader(fetched)
        os.replace(fetched, path)
    except InputError as error:
        raise InputError(f"{one.url} is not {one.title}: {str(error).replace(partial, path.name)}") from error
    except (OSError, ValueError) as error:  # no network, refused, interrupted, wrong checksum
        reason = "its checksum is not the one known" if "hash" in str(error) else type(error).__name__
        raise InputError(
            f"cannot download {name!r} from {one.url} ({reason}): check the network, or fetch it by hand and give its "
            "path instead of the name"
        ) from error
    finally:
        (path.parent / partial).unlink(missing_ok=True)
    return path


def _quietly(*args: Any, **options: Any) -> str:
    """Fetch a file; pooch's advice to note down the checksum of one without is for developers."""
    import logging

    import pooch

    logger = pooch.get_logger()
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        return pooch.retrieve(*args, **options)
    finally:
        logger.setLevel(before)


def _cache() -> Path:
    import pooch

    return Path(pooch.os_cache("scidiff")) / "integration"

"""Model folders: ``manifest.json`` and ``weights.safetensors``. No pickle: loading a stranger's model runs no code.

A folder appears whole or not at all: it is written beside its place and renamed.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from scidiff.errors import InputError
from scidiff.files import maker_is_gone, part_of, remove

FORMAT = 3
MANIFEST, WEIGHTS = "manifest.json", "weights.safetensors"


def write_model(
    folder: Path, about: dict[str, Any], tensors: dict[str, Tensor], *, files: Mapping[str, str] | None = None
) -> Path:
    """Write a model folder, in place of an older model if there is one; return its path.

    ``files`` are texts to keep beside the model, by file name.
    """
    from safetensors.torch import save_file

    refuse_other(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    _recover(folder)
    with part_of(folder) as fresh:
        fresh.mkdir()
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, fresh / WEIGHTS)
        (fresh / WEIGHTS).chmod(0o644)  # safetensors makes it private, models are shared
        manifest = {"format": FORMAT, "weights_sha256": file_hash(fresh / WEIGHTS)} | about
        manifest |= {"manifest_sha256": _text_hash(manifest)}
        (fresh / MANIFEST).write_text(json.dumps(manifest, indent=1, allow_nan=True))
        for name, text in (files or {}).items():
            (fresh / name).write_text(text)
        _take_place(fresh, folder)
    return folder


def refuse_other(folder: Path) -> None:
    """Raise InputError where something stands that is neither a model nor an empty folder."""
    if folder.exists() and not (folder / MANIFEST).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"cannot write {folder}: it exists and is not a model; choose another place")


def _take_place(fresh: Path, folder: Path) -> None:
    """Rename a folder to its name, in place of an older one; of several processes the last one wins."""
    old = fresh.with_suffix(".old")
    try:
        while True:
            try:
                return os.replace(fresh, folder)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            remove(old)  # of the round before
            with contextlib.suppress(FileNotFoundError):  # another process was faster
                os.replace(folder, old)
    finally:
        if old.exists() and not folder.exists():
            os.replace(old, folder)
        remove(old)


def _recover(folder: Path) -> None:
    """Put back the older model that a process moved away which was killed before it put the new one there."""
    for old in folder.parent.glob(f".{glob.escape(folder.name)}.*.old"):
        if maker_is_gone(old):
            if not folder.exists():
                os.replace(old, folder)
            remove(old)


def read_model(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return manifest and tensors of a model folder.

    Raises
    ------
    InputError
        There is none, it is damaged, or a newer version of scIDiff wrote it.
    """
    from safetensors.torch import load_file

    if not folder.exists():
        _recover(folder)
    if not (folder / MANIFEST).is_file():
        what = "does not exist" if not folder.exists() else f"has no {MANIFEST}"
        raise InputError(f"{folder} is not a scIDiff model: it {what}; train one with `scidiff train`")
    try:
        about = json.loads((folder / MANIFEST).read_text())
        written_as, promised = int(about["format"]), str(about["weights_sha256"])
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
        raise InputError(f"{folder / MANIFEST} is damaged ({error}); train or copy the model again") from None
    if written_as > FORMAT:
        raise InputError(f"{folder} was written by a newer scIDiff (format {written_as}); upgrade scidiff-tools")
    if written_as < FORMAT:
        raise InputError(f"{folder} was written by an older scIDiff (format {written_as}); train the model again")
    own = about.pop("manifest_sha256", None)  # models made before there was one have none
    if own is not None and own != _text_hash(about):
        raise InputError(f"{folder / MANIFEST} is damaged (it was changed); train or copy the model again")
    weights = folder / WEIGHTS
    if not weights.is_file() or file_hash(weights) != promised:
        raise InputError(f"{weights} is missing or damaged; train or copy the model again")
    try:
        return about, load_file(weights)
    except Exception as error:  # a stranger's, with the hash of what it holds
        raise InputError(f"{weights} cannot be read ({error}); train or copy the model again") from error


def _text_hash(manifest: dict[str, Any]) -> str:
    as_read = json.loads(json.dumps(manifest))  # where all keys are texts
    return hashlib.sha256(json.dumps(as_read, sort_keys=True).encode()).hexdigest()


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

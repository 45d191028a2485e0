"""Model folders: ``manifest.json`` and ``weights.safetensors``. No pickle: loading a stranger's model runs no code.

A folder appears whole or not at all: it is written beside its place and renamed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from torch import Tensor

from scidiff.errors import InputError

FORMAT = 1
MANIFEST, WEIGHTS = "manifest.json", "weights.safetensors"


def write_model(folder: Path, about: dict[str, Any], tensors: dict[str, Tensor]) -> Path:
    """Write a model folder, in place of an older model if there is one; return its path."""
    from safetensors.torch import save_file

    if folder.exists() and not (folder / MANIFEST).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists and is not a model; choose another place")
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, fresh / WEIGHTS)
        manifest = {"format": FORMAT, "weights_sha256": file_hash(fresh / WEIGHTS)} | about
        (fresh / MANIFEST).write_text(json.dumps(manifest, indent=1, allow_nan=True))
        fresh.chmod(0o755)
        (fresh / WEIGHTS).chmod(0o644)  # temporary files are private, models are shared
        if folder.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{folder.name}-old-", dir=folder.parent))
            os.replace(folder, old / folder.name)
            try:
                os.replace(fresh, folder)
            except BaseException:
                os.replace(old / folder.name, folder)
                old.rmdir()
                raise
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.replace(fresh, folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return folder


def read_model(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return manifest and tensors of a model folder.

    Raises
    ------
    InputError
        There is none, it is damaged, or a newer version of scIDiff wrote it.
    """
    from safetensors.torch import load_file

    if not (folder / MANIFEST).is_file():
        what = "does not exist" if not folder.exists() else f"has no {MANIFEST}"
        raise InputError(f"{folder} is not a scIDiff model: it {what}; train one with `scidiff train`")
    try:
        about = json.loads((folder / MANIFEST).read_text())
        written_as, promised = int(about["format"]), str(about["weights_sha256"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder / MANIFEST} is damaged ({error}); train or copy the model again") from None
    if written_as > FORMAT:
        raise InputError(f"{folder} was written by a newer scIDiff (format {written_as}); upgrade scidiff-tools")
    weights = folder / WEIGHTS
    if not weights.is_file() or file_hash(weights) != promised:
        raise InputError(f"{weights} is missing or damaged; train or copy the model again")
    return about, load_file(weights)


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""Model folders: whole or not at all, and never a pickle."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import torch

from scidiff.errors import InputError
from scidiff.storage import MANIFEST, WEIGHTS, file_hash, read_model, write_model

ABOUT = {"settings": {"width": 8}, "genes": ["A", "B"]}
TENSORS = {"w": torch.arange(6.0).view(2, 3), "t": torch.arange(6.0).view(2, 3).T}  # the second is not contiguous


@pytest.fixture
def folder(tmp_path):
    return write_model(tmp_path / "models" / "m", ABOUT, TENSORS)


def test_round_trip(folder):
    about, tensors = read_model(folder)
    assert about["genes"] == ["A", "B"]
    assert about["settings"] == {"width": 8}
    assert all(torch.equal(tensors[name], value) for name, value in TENSORS.items())


def test_only_json_and_safetensors(folder):
    assert {path.name for path in folder.iterdir()} == {MANIFEST, WEIGHTS}
    assert not (folder / WEIGHTS).read_bytes()[8:].startswith(b"\x80")  # no pickle in disguise
    json.loads((folder / MANIFEST).read_text())
    assert [path.name for path in folder.parent.iterdir()] == ["m"]  # nothing temporary is left


def test_a_model_replaces_an_older_one(folder):
    write_model(folder, ABOUT | {"genes": ["C"]}, TENSORS)
    assert read_model(folder)[0]["genes"] == ["C"]
    assert [path.name for path in folder.parent.iterdir()] == ["m"]


def test_an_empty_folder_may_be_filled(tmp_path):
    read_model(write_model(tmp_path, ABOUT, TENSORS))


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_other_things_are_not_overwritten(tmp_path, kind):
    place = tmp_path / "thesis"
    if kind == "file":
        place.write_text("years of work")
    else:
        place.mkdir()
        (place / "chapter1.tex").write_text("years of work")
    with pytest.raises(InputError, match="it exists and is not a model"):
        write_model(place, ABOUT, TENSORS)
    assert (place if kind == "file" else place / "chapter1.tex").read_text() == "years of work"


def test_texts_beside_a_model_come_and_go_with_it(folder):
    write_model(folder, ABOUT, TENSORS, files={"split.json": "{}"})
    assert (folder / "split.json").read_text() == "{}"
    write_model(folder, ABOUT, TENSORS)
    assert not (folder / "split.json").exists()


def test_failure_while_writing_leaves_nothing(tmp_path, monkeypatch):
    def full(*_, **__) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError, match="no space"):
        write_model(tmp_path / "m", ABOUT, TENSORS)
    assert not list(tmp_path.iterdir())


def test_what_json_cannot_say_leaves_nothing(tmp_path):
    with pytest.raises(TypeError):
        write_model(tmp_path / "m", {"genes": {1, 2}}, TENSORS)
    assert not list(tmp_path.iterdir())


def test_a_model_made_before_manifests_were_hashed(folder):
    manifest = json.loads((folder / MANIFEST).read_text())
    del manifest["manifest_sha256"]
    (folder / MANIFEST).write_text(json.dumps(manifest))
    assert read_model(folder)[0]["genes"] == ["A", "B"]


@pytest.mark.parametrize("failing", [1, 2, 3])
def test_failure_while_replacing_keeps_the_old_model(folder, monkeypatch, failing):
    real, calls = os.replace, []

    def replace(*paths) -> None:
        calls.append(paths)
        if len(calls) == failing:
            raise OSError("disk gone")
        real(*paths)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(OSError, match="disk gone"):
        write_model(folder, ABOUT | {"genes": ["C"]}, TENSORS)
    assert read_model(folder)[0]["genes"] == ["A", "B"]


def damage(folder, kind: str) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    if kind == "a flipped bit":
        data = bytearray((folder / WEIGHTS).read_bytes())
        data[-1] ^= 1
        (folder / WEIGHTS).write_bytes(data)
    elif kind == "half a file":
        (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:40])
    elif kind == "no weights":
        (folder / WEIGHTS).unlink()
    elif kind == "no manifest":
        (folder / MANIFEST).unlink()
    elif kind == "half a manifest":
        (folder / MANIFEST).write_text((folder / MANIFEST).read_text()[:30])
    elif kind == "another manifest":
        (folder / MANIFEST).write_text("[1, 2]")
    elif kind == "no hash":
        del manifest["weights_sha256"]
        (folder / MANIFEST).write_text(json.dumps(manifest))
    elif kind == "another gene":
        (folder / MANIFEST).write_text(json.dumps(manifest | {"genes": ["A", "C"]}))
    elif kind == "a stranger's weights":
        (folder / WEIGHTS).write_bytes(b"\x80\x04N.")  # a pickle
        del manifest["manifest_sha256"]
        hashed = {"weights_sha256": file_hash(folder / WEIGHTS)}
        (folder / MANIFEST).write_text(json.dumps(manifest | hashed))
    elif kind == "a newer format":
        (folder / MANIFEST).write_text(json.dumps(manifest | {"format": 99}))
    elif kind == "no folder":
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("a flipped bit", "missing or damaged"),
        ("half a file", "missing or damaged"),
        ("no weights", "missing or damaged"),
        ("no manifest", "has no manifest.json"),
        ("half a manifest", "is damaged"),
        ("another manifest", "is damaged"),
        ("no hash", "is damaged"),
        ("another gene", "is damaged .it was changed"),
        ("a stranger's weights", "cannot be read"),
        ("a newer format", "newer scIDiff .format 99.; upgrade"),
        ("no folder", "does not exist"),
    ],
)
def test_damage_is_named(folder, kind, message):
    damage(folder, kind)
    with pytest.raises(InputError, match=message) as caught:
        read_model(folder)
    assert "\n" not in str(caught.value)

"""Tensors of safetensors files that are read when they are asked for."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from triune.core.checkpoints import stored
from triune.core.checkpoints.stored import Renamed, Stored
from triune.core.errors import UserError


def test_tensors_of_several_files_are_those_that_were_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when what was mapped is given back between them, while some are still in use."""
    torch.manual_seed(0)
    one = {f"a{n}": torch.randn(7, 5) for n in range(4)} | {
        "half": torch.randn(3).bfloat16(),
        "none": torch.empty(0, 2),
    }
    two = {"b": torch.arange(6), "c": torch.tensor(2.5)}
    save_file(one, tmp_path / "1.safetensors")
    save_file(two, tmp_path / "2.safetensors")
    monkeypatch.setattr(stored, "AT_ONCE", 200)
    found = Stored([tmp_path / "1.safetensors", tmp_path / "2.safetensors"])
    assert set(found) == {*one, *two} and len(found) == 8 and "a0" in found and "x" not in found
    kept = dict(found)
    for name, tensor in (one | two).items():
        assert kept[name].dtype == tensor.dtype
        assert torch.equal(kept[name], tensor) and torch.equal(found[name], tensor)
    other = Renamed(found, {"z": "a1", "b": "b"})
    assert list(other) == ["z", "b"] and torch.equal(other["z"], one["a1"]) and "a1" not in other


def test_a_model_is_read_without_a_second_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was mapped is given back after `AT_ONCE` bytes and one tensor."""
    monkeypatch.setattr(stored, "AT_ONCE", 10_000)
    save_file({f"t{n}": torch.zeros(1000) for n in range(20)}, tmp_path / "x.safetensors")
    found = Stored([tmp_path / "x.safetensors"])
    given_back = 0
    for name in found:
        found[name]
        assert found._read <= 10_000
        given_back += not found._open
    assert given_back == 6  # after each third tensor of 4,000 bytes
    with pytest.raises(KeyError):
        found["nothing"]


def test_a_file_that_was_cut_short_is_named(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1000)}, tmp_path / "x.safetensors")
    (tmp_path / "x.safetensors").write_bytes((tmp_path / "x.safetensors").read_bytes()[:900])
    with pytest.raises(UserError, match=r"x\.safetensors' cannot be read as safetensors .* cut short or damaged"):
        Stored([tmp_path / "x.safetensors"])


def test_a_file_that_was_replaced_is_not_mixed_with_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored, "AT_ONCE", 0)
    save_file({"x": torch.zeros(10), "y": torch.zeros(10)}, tmp_path / "x.safetensors")
    found = Stored([tmp_path / "x.safetensors"])
    assert not found["x"].any()
    save_file({"x": torch.ones(20), "y": torch.ones(20)}, tmp_path / "new.safetensors")
    (tmp_path / "new.safetensors").replace(tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=r"x\.safetensors' was replaced while its tensors were read"):
        found["y"]


def test_what_is_written_is_read_by_the_library(tmp_path: Path) -> None:
    """All types, shapes without numbers, no axis and several; each tensor begins at a multiple of its width."""
    torch.manual_seed(0)
    plain = [
        torch.randn(3, 5),
        torch.randn(2, 3, 4).double(),
        torch.tensor(2.5),
        torch.empty(0, 2),
        torch.randn(1).half(),
    ]
    whole = [torch.arange(7, dtype=kind) for kind in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)]
    tensors = {
        f"t{n}ü": t for n, t in enumerate([*plain, torch.randn(3).bfloat16(), *whole, torch.tensor([True, False])])
    }
    assert {t.dtype for t in tensors.values()} == stored.CODES.keys()
    stored.write_tensors(tmp_path / "new" / "x.safetensors", tensors, {"format": "pt"})
    found = load_file(tmp_path / "new" / "x.safetensors")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)
    content = (tmp_path / "new" / "x.safetensors").read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    assert header.pop("__metadata__") == {"format": "pt"} and size % 8 == 0
    for name, entry in header.items():
        assert entry["data_offsets"][0] % tensors[name].element_size() == 0


def test_a_file_that_cannot_be_written_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.safetensors"
    stored.write_tensors(path, {"a": torch.ones(3)}, {})
    before = path.read_bytes()

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(stored.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        stored.write_tensors(path, {"a": torch.zeros(3)}, {})
    assert path.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == ["x.safetensors"]

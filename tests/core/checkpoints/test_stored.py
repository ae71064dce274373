"""Tensors of safetensors files that are read when they are asked for."""

from __future__ import annotations

import errno
import resource
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

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


def test_a_file_that_cannot_be_written_leaves_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    stored.write_tensors(path, {"a": torch.ones(3)}, {"format": "pt"})
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 12, hard))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            stored.write_tensors(path, {"a": torch.zeros(1 << 12)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno == errno.EFBIG and caught.value.filename == str(path)
    assert path.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == ["x.safetensors"]

"""Sharded checkpoints that are damaged, or that somebody else made, are one sentence, and nothing in them runs."""

from __future__ import annotations

import os
import pickle
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.state_dict_saver import save

from triune.core.errors import UserError
from triune.core.training.sharded import METADATA, REST, check, damage


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "last.ckpt"
    state = {"state_dict": {"a": torch.arange(5.0), "b": torch.ones(3, dtype=torch.float64)}, "step": 3}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is one process
        save(state, checkpoint_id=place, no_dist=True)
    torch.save({"epoch": 1}, place / REST)
    return place


def test_a_good_one(folder: Path) -> None:
    assert damage(folder) == ""
    check(folder)


def test_missing_and_short_files(folder: Path) -> None:
    name = "__0_0.distcp"
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:-1])
    assert damage(folder) == f"{name} is cut short"
    (folder / name).unlink()
    assert damage(folder) == f"{name} is missing"
    (folder / name).write_bytes(content)
    assert damage(folder) == ""
    (folder / REST).write_bytes(b"nothing")
    assert "holds something else" in damage(folder)
    (folder / REST).unlink()
    assert damage(folder) == "it is a folder that holds no checkpoint"
    shutil.rmtree(folder)
    with pytest.raises(UserError, match="is damaged"):
        check(folder)


class Harm:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("harmed",)


@pytest.mark.parametrize("content", [pickle.dumps(Harm()), b"", b"\x80\x04", pickle.dumps([1])])
def test_a_list_of_tensors_by_somebody_else(folder: Path, content: bytes, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (folder / METADATA).write_bytes(content)
    assert "something else" in damage(folder)
    assert not (tmp_path / "harmed").exists()


def test_a_list_that_points_out_of_the_folder(folder: Path) -> None:
    content = pickle.loads((folder / METADATA).read_bytes())
    for place in content.storage_data.values():
        place.relative_path = "../other"
    (folder / METADATA).write_bytes(pickle.dumps(content))
    assert damage(folder) == f"its {METADATA} names the file ../other"

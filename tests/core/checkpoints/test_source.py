"""Checkpoints are found by name and read safely."""

from __future__ import annotations

import json
import pickle
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from triune.core.checkpoints.family import Family, recognise, replacing, write_folder
from triune.core.checkpoints.source import in_package, open_source, read_tensors
from triune.core.checkpoints.weights import WeightMap
from triune.core.errors import UserError

TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4)}


def equal(found: dict[str, torch.Tensor]) -> bool:
    return found.keys() == TENSORS.keys() and all(torch.equal(found[name], TENSORS[name]) for name in TENSORS)


def test_a_folder_with_safetensors(tmp_path: Path) -> None:
    write_folder(tmp_path, {"model_type": "toy"}, TENSORS)
    source = open_source(str(tmp_path))
    assert source.config == {"model_type": "toy"} and not source.is_ours
    assert equal(source.tensors())


def test_a_run_folder_means_its_model(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    write_folder(tmp_path / "model", {"library": "triune"}, TENSORS)
    source = open_source(str(tmp_path))
    assert source.is_ours and source.folder == tmp_path / "model"


def test_shards(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    save_file({"a": TENSORS["a"]}, tmp_path / "one.safetensors")
    save_file({"b": TENSORS["b"]}, tmp_path / "two.safetensors")
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert equal(open_source(str(tmp_path)).tensors())
    (tmp_path / "two.safetensors").unlink()
    with pytest.raises(UserError, match=r"names the part 'two\.safetensors', which is not there"):
        open_source(str(tmp_path)).tensors()
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../../etc/passwd"}}))
    with pytest.raises(UserError, match="which is not there"):
        open_source(str(tmp_path)).tensors()


def test_pickles_and_archives(tmp_path: Path) -> None:
    torch.save({"args": Namespace(layers=2), "model": TENSORS}, tmp_path / "esm.pt")
    assert equal(read_tensors(tmp_path / "esm.pt"))
    np.savez(tmp_path / "x.npz", **{name: tensor.numpy() for name, tensor in TENSORS.items()})
    assert equal(read_tensors(tmp_path / "x.npz"))


class Attack:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        import os

        return os.system, ("touch triune-was-here",)


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Attack()}, "bad.pt")
    with pytest.raises(UserError, match=r"'bad\.pt' is a pickle that could run code .*system.*refused"):
        read_tensors(Path("bad.pt"))
    Path("old.pt").write_bytes(pickle.dumps(Attack()))
    with pytest.raises(UserError, match=r"old\.pt"):
        read_tensors(Path("old.pt"))
    np.savez("bad.npz", a=np.array([Attack()], dtype=object))
    with pytest.raises(UserError, match=r"bad\.npz"):
        read_tensors(Path("bad.npz"))
    assert not Path("triune-was-here").exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".npz"])
def test_damaged_files(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    if suffix == ".safetensors":
        save_file(TENSORS, path)
    elif suffix == ".pt":
        torch.save(TENSORS, path)
    else:
        np.savez(path, **{name: tensor.numpy() for name, tensor in TENSORS.items()})
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match="cut short or damaged"):
        read_tensors(path)


def test_what_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="There is no checkpoint 'nowhere'"):
        open_source("nowhere")
    (tmp_path / "x.txt").write_text("hello")
    with pytest.raises(UserError, match=r"must end in \.safetensors"):
        open_source(str(tmp_path / "x.txt"))
    with pytest.raises(UserError, match=r"has no config\.json \(it holds x\.txt\)"):
        _ = open_source(str(tmp_path)).config
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="no weights"):
        open_source(str(tmp_path)).tensors()
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        _ = open_source(str(tmp_path)).config


def test_offline_the_hub_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    constants = pytest.importorskip("huggingface_hub.constants", reason="huggingface_hub is not installed")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="not in the local cache, and HF_HUB_OFFLINE is set"):
        open_source("nobody/nothing")


def test_unknown_architectures_list_what_is_supported(tmp_path: Path) -> None:
    write_folder(tmp_path, {"model_type": "mamba"}, TENSORS)
    family = Family("Llama", "hf", lambda _: False, lambda _: None, lambda _: WeightMap(()))
    with pytest.raises(UserError, match="is mamba, which is not supported as a language model; supported are Llama"):
        recognise(open_source(str(tmp_path)), [family], "language model")


def test_a_folder_of_something_else_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="holds no checkpoint, so it is not replaced"), replacing(tmp_path):
        pass
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def break_off(folder: Path) -> None:
    with replacing(folder) as new:
        write_folder(new, {"version": 2}, TENSORS)
        raise RuntimeError("the disk is full")


def test_a_half_written_export_never_replaces_a_good_one(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    with replacing(folder) as new:
        write_folder(new, {"version": 1}, TENSORS)
    with pytest.raises(RuntimeError, match="full"):
        break_off(folder)
    assert open_source(str(folder)).config == {"version": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    with replacing(folder) as new:
        write_folder(new, {"version": 3}, TENSORS)
    assert open_source(str(folder)).config == {"version": 3}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_files_that_installed_packages_bring(monkeypatch: pytest.MonkeyPatch) -> None:
    assert in_package("package:torch/torch/version.py") == Path(torch.__file__).parent / "version.py"
    assert in_package("package:torch/torch/nn/modules") == Path(torch.__file__).parent / "nn/modules"
    with pytest.raises(UserError, match="no installed package 'no-such-thing'; pip install no-such-thing"):
        open_source("package:no-such-thing")
    with pytest.raises(UserError, match=r"must name one file, but the package has none; it brings nothing"):
        open_source("package:rich")
    with pytest.raises(UserError, match=r"must name one file, but the package has \d+ of them; it brings "):
        in_package("package:torch/__init__.py")


def installed(site: Path, name: str, models: list[str], *others: str) -> None:
    """A package of these files, each model a folder with config.json and weights."""
    files = [f"{name}/__init__.py", *others]
    for folder in models:
        (site / name / folder).mkdir(parents=True)
        write_folder(site / name / folder, {"model_type": folder}, TENSORS)
        files += [f"{name}/{folder}/{file.name}" for file in (site / name / folder).iterdir()]
    for file in others:
        (site / file).parent.mkdir(parents=True, exist_ok=True)
        (site / file).write_bytes(b"{}")
    info = site / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "RECORD").write_text("".join(f"{file},,\n" for file in files))


def test_a_model_in_a_folder_of_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    # A folder of a pooling layer, and weights in another format below the model, as repositories of the hub have them.
    installed(tmp_path, "one", ["data/deep"], "one/data/deep/1_Pooling/config.json", "one/data/deep/onnx/model.onnx")
    found = open_source("package:one")
    assert (found.path, found.config) == (tmp_path / "one/data/deep", {"model_type": "data/deep"})
    assert open_source("package:one/data").path == open_source("package:one/one/data/deep").path == found.path
    assert open_source("package:one/model.onnx").path.name == "model.onnx"
    installed(tmp_path, "two", ["small", "large"])
    with pytest.raises(UserError, match=r"one checkpoint, but the package has 2 of them: two/large, two/small; add .*"):
        open_source("package:two")
    assert open_source("package:two/small").config == {"model_type": "small"}
    installed(tmp_path, "three", ["model"], "three/other.gguf")
    with pytest.raises(UserError, match=r"must name one file, but the package has 2 of them"):
        open_source("package:three")
    assert open_source("package:three/model").config == {"model_type": "model"}

"""Sequences in shards: the same batches as from FASTA, damage in one sentence, work that goes on."""

from __future__ import annotations

import json
import pickle
import random
import shutil
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch

from triune.cli import main
from triune.core.errors import UserError
from triune.core.shards import Folder
from triune.protein.language import sharding
from triune.protein.language.data import SequenceData
from triune.protein.language.sharded import Packed, read_shards

ROWS = ["--rows", "700", "--val_fraction", "0.2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sequences in two files, some of them twice or no proteins, and shards of them."""
    root, draw = tmp_path_factory.mktemp("proteins"), random.Random(0)
    letters = ["".join(draw.choices("ACDEFGHIKLMNPQRSTVWY", k=draw.randint(20, 90))) for _ in range(90)]
    for name, part in (("one", letters[:50]), ("two", letters[40:])):
        (root / f"{name}.fasta").write_text("".join(f">{name}{i} some words\n{s}\n" for i, s in enumerate(part)))
    with (root / "two.fasta").open("a") as file:
        file.write(">unknown\n" + "X" * 30 + "\n")
    assert main(["protein", "shard", *files(root), str(root / "out"), *ROWS]) == 0
    return root


def files(root: Path) -> list[str]:
    return [str(root / "one.fasta"), str(root / "two.fasta")]


def data(**options: Any) -> SequenceData:
    found = SequenceData(batch_size=4, context=32, **options)
    found.setup()
    return found


def assert_same(ours: SequenceData, theirs: SequenceData) -> None:
    for side in ("train_dataloader", "val_dataloader"):
        for batch, wanted in zip(getattr(ours, side)(), getattr(theirs, side)(), strict=True):
            assert batch.keys() == wanted.keys() and all(torch.equal(batch[name], wanted[name]) for name in wanted)


def test_batches_are_those_of_the_files(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ours, theirs = data(shards=str(folder / "out")), data(files=files(folder), val_fraction=0.2)
    assert len(read_shards(Folder(folder / "out"))[1]["train"]) > 3
    assert_same(ours, theirs)
    every = torch.arange(len(theirs.sides["train"])).numpy()
    assert ours.names_of(every) == theirs.names_of(every)
    assert ours.figures() == theirs.figures() and ours.duplicates == 10 and len(theirs.problems) == 1
    again = pickle.loads(pickle.dumps(ours.sides["train"]))
    assert [a.tolist() for a in again] == [a.tolist() for a in theirs.sides["train"]]
    assert main(["protein", "check", str(folder / "out")]) == 0
    assert "All is as the manifest says" in capsys.readouterr().out


def test_shards_in_a_store(folder: Path, tmp_path: Path) -> None:
    store: Any = fsspec.filesystem("memory")
    store.put(str(folder / "out"), "/proteins", recursive=True)
    store.put(str(folder / "one.fasta"), "/fasta/one.fasta")
    cache = str(tmp_path / "cache")
    assert_same(data(shards="memory://proteins", cache=cache), data(shards=str(folder / "out")))
    assert_same(data(files="memory://fasta/*.fasta", cache=cache), data(files=files(folder)[:1]))
    store.rm("/proteins", recursive=True)
    store.rm("/fasta", recursive=True)


def test_work_that_was_cut_short_goes_on(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, written = sharding._write, list[str]()

    def stop(place: Path, name: str, proteins: Any) -> Any:
        if name == "train-00002" and "train-00002" not in written:
            written.append(name)
            raise KeyboardInterrupt
        written.append(name)
        return write(place, name, proteins)

    monkeypatch.setattr(sharding, "_write", stop)
    words = ["protein", "shard", *files(folder), str(tmp_path / "out"), *ROWS]
    assert main(words) == 130
    with pytest.raises(UserError, match="is not finished; the same `triune protein shard` command goes on"):
        read_shards(Folder(tmp_path / "out"))
    assert main(words) == 0
    assert read_shards(Folder(tmp_path / "out"))[1] == read_shards(Folder(folder / "out"))[1]
    assert written.count("train-00001") == 1
    count = len(written)
    assert main(words) == 0 and len(written) == count
    assert main(["protein", "shard", *files(folder)[:1], str(tmp_path / "out"), *ROWS]) == 2


@pytest.mark.parametrize("what", ["missing", "cut", "altered", "manifest", "ends", "text"])
def test_damage(folder: Path, tmp_path: Path, what: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = Path(shutil.copytree(folder / "out", tmp_path / "out"))
    shard, words = out / "train-00001.residues", {
        "missing": "is missing", "cut": "is cut short", "altered": "was altered", "manifest": "was changed by hand",
        "ends": "ends.npy' was altered", "text": "is no manifest of protein",
    }  # fmt: skip
    if what == "missing":
        shard.unlink()
    elif what == "cut":
        shard.write_bytes(shard.read_bytes()[:-1])
    elif what == "altered":
        content = bytearray(shard.read_bytes())
        content[3] ^= 1
        shard.write_bytes(content)
        with pytest.raises(UserError, match=r"train-00001\.residues' was altered"):
            list(Packed(Folder(out), read_shards(Folder(out))[1]["train"]))
    elif what == "ends":
        file = out / "train-00001.ends.npy"
        content = bytearray(file.read_bytes())
        content[-8:] = content[-16:-8]
        file.write_bytes(content)
        with pytest.raises(UserError, match="was altered"):
            Packed(Folder(out), read_shards(Folder(out))[1]["train"])
    else:
        manifest = json.loads((out / "manifest.json").read_text())
        manifest["kind" if what == "text" else "identity"] = "triune text shards"
        (out / "manifest.json").write_text(json.dumps(manifest))
    assert main(["protein", "check", str(out)]) == 2
    error = capsys.readouterr().err
    assert words[what] in error and "Traceback" not in error


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"shards": "a", "files": "b"}, "data.shards is given together with data.files"),
        ({"shards": "nowhere"}, "'nowhere' has no manifest.json"),
    ],
)
def test_mistakes(options: dict[str, Any], word: str) -> None:
    with pytest.raises(UserError, match=word):
        data(**options)


def test_options_that_change_nothing(folder: Path) -> None:
    for name, value in (("val_fraction", 0.3), ("cache_gb", 3.0)):
        options: dict[str, Any] = {name: value}
        module = SequenceData(shards=str(folder / "out"), **options)
        module.given = frozenset({name})
        with pytest.raises(UserError, match=f"--data.{name} is given, but"):
            module.setup()

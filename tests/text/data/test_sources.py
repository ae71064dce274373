"""Texts from Parquet, saved data sets and stores: the same documents and batches as from local files."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch

from triune.cli import main
from triune.core.errors import UserError
from triune.core.stores import Cache
from triune.text.data.corpus import find
from triune.text.data.module import TextData
from triune.text.data.sets import find_set

pa = pytest.importorskip("pyarrow")
from pyarrow import parquet  # noqa: E402

TEXTS = {
    "train": [f"text {i} is about {i * i}\n" * 9 for i in range(40)],
    "validation": [f"held out {i}\n" * 20 for i in range(6)],
    "test": ["never read"],
}


def saved(folder: Path, texts: list[str]) -> None:
    """What `Dataset.save_to_disk` of the package datasets (5.2) writes."""
    folder.mkdir(parents=True)
    table = pa.table({"n": list(range(len(texts))), "text": texts})
    names = []
    for number, part in enumerate((table.slice(0, len(texts) // 2), table.slice(len(texts) // 2))):
        names.append(f"data-0000{number}-of-00002.arrow")
        with pa.OSFile(str(folder / names[-1]), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(part, max_chunksize=7)
    (folder / "dataset_info.json").write_text("{}")
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same texts as a saved set of splits, as one saved split, and as Parquet in two layouts."""
    root = tmp_path_factory.mktemp("sets")
    for split, texts in TEXTS.items():
        saved(root / "splits" / split, texts)
        for name in (f"parquet/{split}-00000-of-00001.parquet", f"converted/default/{split}/0000.parquet"):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            parquet.write_table(pa.table({"text": texts}), root / name, row_group_size=11)
    (root / "splits" / "dataset_dict.json").write_text(json.dumps({"splits": list(TEXTS)}))
    (root / "splits" / "README.md").write_text("not a text to train on")
    saved(root / "one", TEXTS["train"])
    return root


@pytest.fixture
def memory() -> Iterator[Any]:
    """An empty store in memory."""
    fs = fsspec.filesystem("memory")
    yield fs
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]


def texts_of(corpus: Any) -> list[str]:
    return ["".join(document.blocks) for document in corpus]


@pytest.mark.parametrize("name", ["splits", "parquet", "converted", "store"])
def test_sets_with_splits(sets: Path, memory: Any, tmp_path: Path, name: str) -> None:
    where = str(sets / name)
    if name == "store":
        memory.put(str(sets / "parquet"), "/bucket/set", recursive=True)
        where = "memory://bucket/set"
    train, val = find_set(where, cache=Cache(tmp_path, 1e9))
    assert val is not None
    assert texts_of(train) == TEXTS["train"] and texts_of(val) == TEXTS["validation"]
    train.survey()
    assert train.skipped == {"file of a test split": 1 if name != "splits" else 2}
    first = next(iter(train))
    assert first.name.startswith(where.replace("://", ":///")) and first.name.endswith(":0")


def test_the_hub(sets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A set is taken from the Arrow files that the package datasets keeps of it."""
    asked: list[Any] = []

    def load(name: str, configuration: str | None) -> Any:
        asked.append((name, configuration))
        if name == "owner/none":
            raise ValueError("Dataset 'owner/none' doesn't exist.\nmore")
        files = [{"filename": str(file)} for file in sorted((sets / "one").glob("*.arrow"))]
        return {"train": types.SimpleNamespace(cache_files=files)}

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load))  # type: ignore[arg-type]
    for name in ("owner/name", "hf:owner/name:small"):
        train, val = find_set(name)
        assert texts_of(train) == TEXTS["train"] and val is None
    assert asked == [("owner/name", None), ("owner/name", "small")]
    with pytest.raises(UserError, match=r"cannot be loaded \(Dataset 'owner/none' doesn't exist\)\."):
        find_set("owner/none")
    monkeypatch.setitem(sys.modules, "datasets", None)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"needs the package datasets: pip install 'triune\[datasets\]'"):
        find_set("owner/name")


def test_the_module(sets: Path, tmp_path: Path) -> None:
    common: dict[str, Any] = {
        "tokenizer": "bytes", "context": 32, "batch_size": 4, "cache": str(tmp_path / "cache"),
    }  # fmt: skip
    ours = TextData(dataset=str(sets / "splits"), **common)
    files = {split: str(tmp_path / f"{split}.jsonl") for split in ("train", "validation")}
    for split, file in files.items():
        Path(file).write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS[split]))
    theirs = TextData(files=files["train"], val_files=files["validation"], **common)
    for module in (ours, theirs):
        module.setup()
    for side in ("train_dataloader", "val_dataloader"):
        for batch, wanted in zip(getattr(ours, side)(), getattr(theirs, side)(), strict=True):
            assert all(torch.equal(batch[name], wanted[name]) for name in wanted)
    assert "1 file of a test split" in ours.describe() or "2 file of a test split" in ours.describe()


def test_texts_in_a_store(memory: Any, tmp_path: Path) -> None:
    local = tmp_path / "texts"
    local.mkdir()
    for number in range(3):
        (local / f"{number}.txt").write_text(f"line {number}\n" * 400)
    (local / "rows.jsonl").write_text('{"text": "one row"}\n{"text": "another"}\n')
    (local / "picture.png").write_bytes(b"\0")
    memory.put(str(local), "/bucket/texts", recursive=True)
    cache = Cache(tmp_path / "cache", 1e9)
    ours, theirs = find("memory://bucket/texts", cache=cache), find(str(local))
    assert texts_of(ours) == texts_of(theirs)
    assert [survey.digest for survey in ours.survey()] == [survey.digest for survey in theirs.survey()]
    assert ours.skipped == theirs.skipped
    assert [d.name for d in ours][:2] == ["memory:///bucket/texts/0.txt", "memory:///bucket/texts/1.txt"]
    memory.pipe("/bucket/bad.txt", b"a\0b")
    with pytest.raises(UserError, match=r"'memory:///bucket/bad\.txt' is a binary file"):
        find("memory://bucket/bad.txt", cache=cache).survey()
    memory.pipe("/bucket/bad.parquet", b"PAR1 and no more")
    with pytest.raises(UserError, match=r"^'memory:///bucket/bad\.parquet'"):
        find("memory://bucket/bad.parquet", cache=cache).survey()


@pytest.mark.parametrize("kind", ["text", "pretrain"])
def test_shards_in_a_store(sets: Path, memory: Any, tmp_path: Path, kind: str) -> None:
    """Batches from a store are those of the disk; `check` reads them; damage names the URL."""
    from triune.text.masked.data import MaskedText

    out, cache = tmp_path / "shards", str(tmp_path / "cache")
    assert (
        main(["text", "shard", "--dataset", str(sets / "parquet"), str(out), "--tokenizer", "bytes", "--rows", "900"])
        == 0
    )
    memory.put(str(out), "/bucket/shards", recursive=True)
    module = TextData if kind == "text" else MaskedText
    common: dict[str, Any] = {"context": 32, "batch_size": 4}
    ours = module(shards="memory://bucket/shards", cache=cache, **common)
    theirs = module(shards=str(out), **common)
    for one in (ours, theirs):
        one.setup()
    for side in ("train_dataloader", "val_dataloader"):
        for batch, wanted in zip(getattr(ours, side)(), getattr(theirs, side)(), strict=True):
            assert all(torch.equal(batch[name], wanted[name]) for name in wanted)
    memory.rm("/bucket/shards/train-00001.tokens.npy")
    with pytest.raises(UserError, match=r"The shard 'memory://bucket/shards/train-00001\.tokens\.npy' is missing"):
        module(shards="memory://bucket/shards", cache=cache, **common).setup()


def test_check_reads_a_store(
    sets: Path, memory: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRIUNE_CACHE", str(tmp_path / "cache"))
    assert main(["text", "shard", str(sets / "parquet"), str(tmp_path / "out"), "--tokenizer", "bytes"]) == 0
    memory.put(str(tmp_path / "out"), "/bucket/out", recursive=True)
    assert main(["text", "check", "memory://bucket/out"]) == 0
    assert "memory://bucket/out: train" in capsys.readouterr().out
    content = bytearray(memory.cat_file("/bucket/out/train-00000.tokens.npy"))
    content[-1] ^= 1
    memory.pipe("/bucket/out/train-00000.tokens.npy", bytes(content))
    assert main(["text", "check", "memory://bucket/out"]) == 2
    assert "'memory://bucket/out/train-00000.tokens.npy' was altered" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--data.dataset", "one", "--data.files", "x.txt"], "data.dataset is given together with data.files"),
        (["--data.dataset", "one", "--data.cache_gb", "3"], "cache_gb is given, but no file lies in a store"),
        (["--data.dataset", "splits", "--data.val_fraction", "0.2"], "has a validation split"),
        (["--data.dataset", "one", "--data.text_field", "body"], "has no column 'body'; its columns are: n, text"),
        (["--data.dataset", "one", "--data.text_field", "n"], "field 'n' holds int, not text"),
        (["--data.dataset", "no such set"], "There is no file or folder 'no such set'"),
        (["--data.dataset", "empty"], "holds no Parquet file"),
        (["--data.files", "one"], "give it as --data.dataset"),
        (["--data.files", "nostore://x"], "cannot be opened"),
    ],
)  # fmt: skip
def test_mistakes(
    sets: Path, options: list[str], word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(sets)
    (sets / "empty").mkdir(exist_ok=True)
    assert main(["text", "fit", "--run", str(sets / "run"), *options, "--data.tokenizer", "bytes"]) == 2
    error = capsys.readouterr().err
    assert word in error and "Traceback" not in error

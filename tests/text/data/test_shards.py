"""Text in shards: the same batches as from memory maps, damage in one sentence, mixtures in exact shares."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from triune.cli import main
from triune.core import shards as core
from triune.core.errors import UserError
from triune.core.files import umask
from triune.core.training.mixture import FINEST, Mixture, whole_weights
from triune.text.data import reading, sharding, shards, tokens
from triune.text.data.module import TextData
from triune.text.data.shards import ShardedTokens, read_manifest
from triune.text.masked.data import MaskedText
from triune.text.tokenizer import Tokenizer


def write_texts(folder: Path, count: int = 12, start: int = 0) -> list[str]:
    folder.mkdir(exist_ok=True)
    for number in range(start, start + count):
        (folder / f"{number:02d}.txt").write_text("".join(f"{i} and {number} is {i + number}\n" for i in range(60)))
    return [str(folder)]


def shard(inputs: list[str], out: Path, *options: str) -> int:
    return main(["text", "shard", *inputs, str(out), "--tokenizer", "bytes", "--rows", "2500", *options])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts, and shards of them."""
    root = tmp_path_factory.mktemp("shards")
    assert shard(write_texts(root / "texts"), root / "out") == 0
    return root


def data(folder: Path, **options: Any) -> TextData:
    return TextData(**{"context": 32, "batch_size": 4, "cache": str(folder / "cache"), **options})


def batches(module: TextData) -> list[list[dict[str, torch.Tensor]]]:
    module.setup()
    return [list(module.train_dataloader()), list(module.val_dataloader())]


@pytest.mark.parametrize("kind", [TextData, MaskedText])
def test_batches_are_those_of_the_files(folder: Path, kind: type[TextData]) -> None:
    """Of training and of validation, documents and bytes included; windows cross borders of shards."""
    common: dict[str, Any] = {"context": 32, "batch_size": 4}
    ours = kind(shards=str(folder / "out"), **common)
    theirs = kind(files=str(folder / "texts"), tokenizer="bytes", cache=str(folder / "cache"), **common)
    found, expected = batches(ours), batches(theirs)
    assert len(read_manifest(folder / "out").sides["train"]) > 3
    for side, other in zip(found, expected, strict=True):
        for batch, wanted in zip(side, other, strict=True):
            assert batch.keys() == wanted.keys()
            assert all(torch.equal(batch[name], wanted[name]) for name in wanted)
    assert (ours.val_bytes, ours.val_targets) == (theirs.val_bytes, theirs.val_targets)


def test_a_document_longer_than_a_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "BLOCK", 800)
    (tmp_path / "long.txt").write_text("".join(f"line {i}\n" for i in range(2000)))
    assert shard([str(tmp_path / "long.txt")], tmp_path / "out", "--rows", "1000") == 0
    module = data(tmp_path, shards=str(tmp_path / "out"))
    module.setup()
    whole = Tokenizer.bytes().encode((tmp_path / "long.txt").read_text())
    stream, borders = module.prepared.arrays["train"].open()  # type: ignore[attr-defined]
    at = np.arange(len(stream))[None]
    assert stream[at][0].tolist() == list(whole)[: len(stream)]
    assert not borders.documents(at).any()
    assert len(module.prepared.arrays["train"].shards) > 2  # type: ignore[attr-defined]
    again, _ = pickle.loads(pickle.dumps(module.prepared.arrays["train"])).open()  # type: ignore[attr-defined]
    assert np.array_equal(again[at], stream[at])


def test_work_that_was_cut_short_goes_on(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finish, made = tokens.TokenWriter.finish, []

    def fail(writer: tokens.TokenWriter) -> Any:
        made.append(writer)
        if len(made) == 4:
            raise KeyboardInterrupt
        return finish(writer)

    monkeypatch.setattr(tokens.TokenWriter, "finish", fail)
    assert shard([str(folder / "texts")], tmp_path / "out") == 130
    with pytest.raises(UserError, match="is not finished; the same `triune text shard` command goes on"):
        read_manifest(tmp_path / "out")
    monkeypatch.setattr(tokens.TokenWriter, "finish", finish)
    encoded: list[Any] = []
    encode = sharding.encode_group
    monkeypatch.setattr(sharding, "encode_group", lambda *a: encoded.append(a) or encode(*a))
    assert shard([str(folder / "texts")], tmp_path / "out") == 0
    first = read_manifest(folder / "out")
    assert read_manifest(tmp_path / "out").sides == first.sides
    assert 0 < len(encoded) < sum(len(shards) for shards in first.sides.values()) * 3
    again = len(encoded)
    assert shard([str(folder / "texts")], tmp_path / "out") == 0 and len(encoded) == again


def damaged(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder / "out", tmp_path / "out"))


def test_shards_can_be_read_by_others(folder: Path) -> None:
    """They often lie on a disk of several people; files of a temporary name are private at first."""
    wanted = 0o666 & ~umask()
    assert {oct(file.stat().st_mode & 0o777) for file in (folder / "out").iterdir() if file.is_file()} == {oct(wanted)}


def test_the_disk_is_told_of_a_whole_batch_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole blocks of all windows, before the first is read; the tokens are the same without."""
    done: list[tuple[str, int, int]] = []
    advise = lambda file, first, size, advice: done.append(("told", first, size))  # noqa: E731
    read = os.pread
    monkeypatch.setattr(shards, "ADVISE", advise)
    monkeypatch.setattr(os, "pread", lambda *given: (done.append(("read", given[2], given[1])), read(*given))[1])
    array = ShardedTokens([read_manifest(folder / "out")], "train")
    at = np.array([[0], [40]]) + np.arange(9)
    found = array.open()[0][at]
    kinds = [kind for kind, *_ in done]
    assert kinds == sorted(kinds, reverse=True) and kinds.count("told") == kinds.count("read") >= 2
    assert [place for kind, *place in done if kind == "told"] == [place for kind, *place in done if kind == "read"]
    monkeypatch.setattr(shards, "ADVISE", None)
    assert np.array_equal(found, ShardedTokens([read_manifest(folder / "out")], "train").open()[0][at])


def test_check_says_that_all_is_well(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["text", "check", str(folder / "out")]) == 0
    assert "All is as the manifest says" in capsys.readouterr().out


@pytest.mark.parametrize("what", ["missing", "cut", "altered", "manifest", "tokenizer", "starts", "not"])
def test_damage_is_one_sentence(folder: Path, tmp_path: Path, what: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = damaged(folder, tmp_path)
    one = out / "train-00001.tokens.npy"
    only_check = False
    if what == "missing":
        one.unlink()
        expected = f"The shard '{one}' is missing"
    elif what == "cut":
        one.write_bytes(one.read_bytes()[:-2])
        expected = f"The shard '{one}' is cut short"
    elif what == "altered":
        content = bytearray(one.read_bytes())
        content[1000] ^= 1
        one.write_bytes(content)
        expected, only_check = f"The shard '{one}' was altered", True
    elif what == "starts":
        np.save(out / "train-00001.starts.npy", np.load(out / "train-00001.starts.npy") + 1)
        expected, only_check = "starts.npy' was altered", True
    elif what == "manifest":
        content = json.loads((out / "manifest.json").read_text())
        content["sides"]["train"][1][1] += 1
        (out / "manifest.json").write_text(json.dumps(content))
        expected = "manifest.json' is damaged or was changed by hand"
    elif what == "tokenizer":
        Tokenizer.characters(["abc"]).save(out / "tokenizer")
        expected = "is not the tokenizer that made the tokens"
    else:
        (out / "manifest.json").unlink()
        expected = "has no manifest.json"
    if what != "not":  # a folder without a manifest is one of text files
        assert main(["text", "check", str(out)]) == 2
        said = capsys.readouterr().err
        assert expected in said and said.count("\n") == 1
    if not only_check:
        with pytest.raises(UserError, match=expected.split("'")[-1].strip() or expected):
            data(tmp_path, shards=str(out)).setup()


def alter(file: Path, at: int) -> None:
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)


def read_all(module: TextData) -> None:
    list(module.val_dataloader())
    module.prepared.arrays["val"].open()[1].documents(np.arange(3)[None])  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["tokens.npy", "sums", "starts.npy"])
def test_what_is_read_is_compared_with_its_checksums(folder: Path, tmp_path: Path, name: str) -> None:
    """One changed bit is found by the training that reads it, and not by one that reads another shard."""
    out = damaged(folder, tmp_path)
    alter(out / f"val-00000.{name}", -1)
    module = data(tmp_path, shards=str(out))
    module.setup()
    assert len(list(module.train_dataloader()))
    with pytest.raises(UserError, match=rf"^The shard '{out}/val-00000\.{name}' was altered: its content"):
        read_all(module)


def test_shards_of_before_have_no_checksums_of_blocks(folder: Path, tmp_path: Path) -> None:
    out = damaged(folder, tmp_path)
    for file in out.glob("*.sums"):
        file.unlink()
    content = json.loads((out / "manifest.json").read_text())
    for entries in content["sides"].values():
        for entry in entries:
            entry[-1].pop()
    (out / "manifest.json").write_text(json.dumps(content | {"sum": core.sum_of(content)}))
    assert main(["text", "check", str(out)]) == 0
    found, wanted = (batches(data(tmp_path, shards=str(place))) for place in (out, folder / "out"))
    assert all(torch.equal(a["tokens"], b["tokens"]) for x, y in zip(found, wanted, strict=True) for a, b in zip(x, y))


def test_a_shard_that_is_altered_in_a_store(folder: Path, tmp_path: Path) -> None:
    """Its parts that are in the cache are those of before; the first one that is not ends the training."""
    store: Any = fsspec.filesystem("memory")
    store.put(str(folder / "out"), "/altered", recursive=True)
    module = data(tmp_path, shards="memory://altered", cache=str(tmp_path / "cache"))
    module.setup()
    list(module.val_dataloader())
    for name in ("train-00001", "val-00000"):
        content = bytearray(store.cat(f"/altered/{name}.tokens.npy"))
        content[500] ^= 4
        store.pipe(f"/altered/{name}.tokens.npy", bytes(content))
    list(module.val_dataloader())
    with pytest.raises(UserError, match=r"^The shard 'memory://altered/train-00001\.tokens\.npy' was altered"):
        list(module.train_dataloader())
    store.rm("/altered", recursive=True)


def test_a_damaged_copy_in_the_cache_is_fetched_again(folder: Path, tmp_path: Path) -> None:
    store: Any = fsspec.filesystem("memory")
    store.put(str(folder / "out"), "/again", recursive=True)
    module = data(tmp_path, shards="memory://again", cache=str(tmp_path / "cache"))
    module.setup()
    wanted = list(module.val_dataloader())
    parts = list((tmp_path / "cache").rglob("*.part"))
    for part in parts:
        alter(part, -1)
    assert parts and all(torch.equal(a["tokens"], b["tokens"]) for a, b in zip(wanted, module.val_dataloader()))
    store.rm("/again", recursive=True)


def test_refusals(folder: Path, tmp_path: Path) -> None:
    texts, out = str(folder / "texts"), str(folder / "out")
    assert shard([texts], folder / "out", "--rows", "99") == 2  # the folder holds others
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    assert shard([texts], tmp_path / "full") == 2
    assert shard([texts], tmp_path / "new", "--vocab_size", "300") == 2
    with pytest.raises(UserError, match=r"data.shards is given together with data.files"):
        data(folder, shards=out, files=texts)
    with pytest.raises(UserError, match=r"data.weights has 2 numbers for 1 folders"):
        data(folder, shards=out, weights=[1.0, 2.0])
    module = data(folder, shards=out, tokenizer="bytes")
    module.given = frozenset({"tokenizer", "val_fraction"})
    with pytest.raises(UserError, match="val_fraction is given, but shards are finished"):
        module.setup()
    module = data(folder, shards=out)
    module.adopt(Tokenizer.characters(["abc"]), "a model")
    with pytest.raises(UserError, match="are of another tokenizer than the model's"):
        module.setup()
    with pytest.raises(UserError, match="fewer than one window"):
        data(folder, shards=out, context=10**6).setup()


def test_mixtures_are_exact_and_the_same_on_two_processes(folder: Path, tmp_path: Path) -> None:
    assert shard(write_texts(tmp_path / "more", 6, 50), tmp_path / "other") == 0
    folders = [str(folder / "out"), str(tmp_path / "other")]

    def starts(rank: int, world: int) -> list[np.ndarray]:
        module = data(folder, shards=folders, weights=[3.0, 1.0], batch_size=8 // world)
        module.ranks = lambda: (rank, world)  # type: ignore[method-assign]
        module.setup()
        order: Any = module.train_dataloader().order
        return [order.take(position) for position in range(300)]

    one = starts(0, 1)
    for whole, first, second in zip(one, starts(0, 2), starts(1, 2), strict=True):
        assert np.array_equal(whole, np.concatenate([first, second]))
    border = sum(shard.tokens for shard in read_manifest(folder / "out").sides["train"])
    length = sum(shard.tokens for shard in read_manifest(tmp_path / "other").sides["train"])
    for batch in one:
        assert (batch < border).sum() == 6
        assert ((batch < border) <= (batch + 32 < border)).all()  # no window holds the end of one source
    second = np.concatenate(one)[np.concatenate(one) >= border] - border
    epoch = max(1, (length - 32) // 32)
    assert len(set(second[:epoch].tolist())) == epoch  # each window of a source once before any comes again
    assert len(second) == 600 and second.max() + 32 < length


@settings(max_examples=60, deadline=None)
@given(weights=st.lists(st.integers(1, 40), min_size=1, max_size=6), start=st.integers(0, 10**12))
def test_mixtures_give_every_source_its_share(weights: list[int], start: int) -> None:
    mixture, period = Mixture(weights), sum(weights)
    sources, numbers = mixture[np.arange(start, start + 3 * period)]
    for source, weight in enumerate(weights):
        mine = numbers[sources == source]
        assert len(mine) == 3 * weight and np.array_equal(mine, np.arange(mine[0], mine[0] + len(mine)))
    places = np.arange(start + 1, start + 3 * period + 1)
    for source, weight in enumerate(weights):  # never a whole sample from its share, counted from the start
        given = np.cumsum(sources == source) + numbers[sources == source][0]
        assert (np.abs(given - places * (weight / period)) < len(weights)).all()


def test_weights() -> None:
    assert whole_weights([0.7, 0.3]) == [7, 3] and whole_weights([1, 1, 2]) == [1, 1, 2]
    assert sum(whole_weights([1, 1 / 3])) == 4
    for wrong in ([0.0, 1.0], [1.0, -1.0], [float("nan"), 1.0], [1.0, 10.0 * FINEST]):
        with pytest.raises(UserError, match=r"data\.weights are"):
            whole_weights(wrong)


@pytest.mark.parametrize(
    ("option", "why"),
    [
        ("--text_field=story", "none of the files has rows"), ("--on_error=skip", "none of the files has rows"),
        ("--cache=c", "no BPE is made here"), ("--seed=3", "what to validate on is known"),
        ("--cache_gb=1", "no file lies in a store"),
    ],
)  # fmt: skip
def test_options_that_change_nothing_are_refused(tmp_path: Path, option: str, why: str) -> None:
    from triune.text.shard import main

    (tmp_path / "a.txt").write_text("a text of some words\n" * 50)
    (tmp_path / "b.txt").write_text("another text\n" * 50)
    words = [str(tmp_path / "a.txt"), str(tmp_path / "out"), "--tokenizer", "bytes", option]
    words += ["--val_files", str(tmp_path / "b.txt")] if "seed" in option else []
    with pytest.raises(UserError, match=f"{option.split('=')[0]} is given, but {why}"):
        main(words)
    assert not (tmp_path / "out").exists()

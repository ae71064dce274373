"""Text data: what is read and refused, how it is split, cached, windowed, shuffled and resumed."""

import gzip
import json
import math
import multiprocessing
import os
import pickle
import threading
import tracemalloc
import warnings
from pathlib import Path

import lightning
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from triune.core.errors import UserError
from triune.core.training.data import Batches
from triune.text.data import corpus, reading, tokens
from triune.text.data.corpus import Survey, find
from triune.text.data.documents import PreparedDocuments
from triune.text.data.module import TextData
from triune.text.data.split import split
from triune.text.data.windows import ShuffledWindows, WindowsInOrder, training_windows
from triune.text.tokenizer import Tokenizer

FOX = "The quick brown fox jumps over the lazy dog, again and again.\n"


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Make a `TextData` with a cache of its own."""
    monkeypatch.setenv("TRIUNE_CACHE", str(tmp_path / "cache"))

    def make(*files, **options):
        options = {"tokenizer": "bytes", "context": 16, "batch_size": 4} | options
        return TextData(files=[str(file) for file in files], **options)

    return make


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def folder_of(path: Path, number: int, size: int = 300) -> Path:
    for i in range(number):
        write(path / f"{i:02}.txt", f"document {i} " + chr(97 + i) * size)
    return path


def names(found) -> list[str]:
    return [Path(document.name).name for document in found]


# -- reading ----------------------------------------------------------------------------------------------------------


def test_a_folder_is_searched_and_what_is_no_text_is_counted(tmp_path):
    for name, content in {
        "b.md": "b", "sub/a.py": "a", "sub/.hidden.txt": "h", ".git/x.txt": "x", "image.png": b"\x89PNG",
        "nul.txt": b"a\0b", "latin.txt": b"caf\xe9",
        "empty.txt": b"", "rows.jsonl": '{"text": "r1"}\n\n{"text": ""}\n{"text": "r2"}\n',
    }.items():  # fmt: skip
        write(tmp_path / name, content)
    found = find(str(tmp_path))
    assert [survey.size for survey in found.survey()] == [1, 2, 2, 1]
    for _ in range(2):
        assert ["".join(document.blocks) for document in found] == ["b", "r1", "r2", "a"]
    expected = {"hidden": 1, "no text suffix": 1, "binary": 1, "not UTF-8": 1, "empty": 1, "empty row": 1}
    assert found.skipped == expected
    assert found.skipped == expected, "and counts the same"


def test_a_file_reached_twice_is_read_once_and_a_folder_listed_once(tmp_path, monkeypatch):
    folder_of(tmp_path / "x", 3)
    walked = []
    walk = os.walk
    monkeypatch.setattr(corpus.os, "walk", lambda top: walked.append(top) or walk(top))
    found = find([str(tmp_path / "x"), str(tmp_path / "x" / "*.txt"), str(tmp_path / "x" / ".."), str(tmp_path / "x")])
    assert names(found) == ["00.txt", "01.txt", "02.txt"]
    assert walked == [tmp_path / "x", tmp_path / "x" / ".."]


def test_line_ends_and_any_suffix_of_a_named_file_are_kept(tmp_path):
    file = write(tmp_path / "notes.weird", "a\r\nb\rc\n")
    assert ["".join(document.blocks) for document in find(str(file))] == ["a\r\nb\rc\n"]


def test_rows(tmp_path):
    rows = "".join(json.dumps({"body": text}) + "\n" for text in ("one", "two\nlines", "dr\u00e9i"))
    write(tmp_path / "a.jsonl", rows)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(rows.encode()))
    for name in ("a.jsonl", "a.jsonl.gz"):
        assert ["".join(document.blocks) for document in find(str(tmp_path / name), "body")] == [
            "one",
            "two\nlines",
            "dréi",
        ]


def test_parquet(tmp_path):
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed (the extra 'datasets')")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pa.table({"text": ["one", None, "two"]}), tmp_path / "a.parquet")
    assert ["".join(document.blocks) for document in find(str(tmp_path / "a.parquet"))] == ["one", "two"]
    with pytest.raises(UserError, match="no column 'body'; its columns are: text"):
        list(find(str(tmp_path / "a.parquet"), "body"))


def test_the_standard_library_is_found_without_its_tests():
    files = corpus.standard_library()
    assert any(file.name == "argparse.py" for file in files)
    assert not any({"test", "tests", "site-packages"} & set(file.parts[-3:]) for file in files)


BAD_FILES = {
    "empty.txt": (b"", "is empty"),
    "nul.txt": (b"abc\0def", "NUL byte at offset 3"),
    "latin.txt": (b"caf\xe9 au lait", "byte 0xe9 at offset 3"),
    "nofield.jsonl": (b'{"text": "a"}\n{"body": "b", "id": 1}\n', r"nofield.jsonl:2 has no field 'text'.*body, id"),
    "invalid.jsonl": (b'{"text": "a"}\n{"text": \n', r"invalid.jsonl:2 is not valid JSON"),
    "number.jsonl": (b'{"text": 3}\n', r"number.jsonl:1: field 'text' holds int"),
    "list.jsonl": (b"[1]\n", "no JSON object but int"),
    "latin.jsonl": (b'{"text": "a"}\n{"text": "\xe9"}\n', "byte 0xe9 at offset 24"),
    "norows.jsonl": (b"\n\n", "There is no text in"),
    "broken.jsonl.gz": (b"no gzip", "cannot be read"),
    "cut.jsonl.gz": (gzip.compress(b'{"text": "a"}\n' * 1000)[:-20], "cannot be read"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_named_with_what_is_wrong(name, tmp_path, data):
    content, message = BAD_FILES[name]
    with pytest.raises(UserError, match=message) as error:
        data(write(tmp_path / name, content)).setup()
    assert name in str(error.value)


def test_a_path_that_is_not_there(tmp_path, data):
    write(tmp_path / "shakespeare.txt", FOX)
    with pytest.raises(UserError, match=r"There is no file '.*shakespear.txt' \(did you mean 'shakespeare.txt'\?\)"):
        data(tmp_path / "shakespear.txt").setup()
    with pytest.raises(UserError, match=r"folder '.*nowhere' does not exist"):
        data(tmp_path / "nowhere" / "a.txt").setup()
    with pytest.raises(UserError, match="No file matches"):
        data(tmp_path / "*.nothing").setup()
    (tmp_path / "bare").mkdir()
    with pytest.raises(UserError, match="holds no text file"):
        data(tmp_path / "bare").setup()
    with pytest.raises(UserError, match="empty list"):
        data().setup()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val_fraction": 0.0}, "val_fraction is .*, but must lie between 0 and 1"),
        ({"val_fraction": 1.0}, "val_fraction is .*, but must lie between 0 and 1"),
        ({"tokenizer": "bpe", "vocab_size": 256}, "data.vocab_size is 256, but must be at least 257"),
        ({"context": 0}, "data.context is 0, but must be at least 1"),
        ({"batch_size": 0}, "data.batch_size is 0, but must be at least 1"),
        ({"workers": -1}, "data.workers is -1, but must be at least 0"),
        ({"seed": -1}, "data.seed is -1, but must be at least 0"),
    ],
)
def test_impossible_settings(options, message, data):
    with pytest.raises(UserError, match=message):
        data("x", **options)


def test_a_text_that_is_too_short(tmp_path, data):
    file = write(tmp_path / "a.txt", FOX)
    with pytest.raises(UserError, match=r"55 tokens, fewer than one window of 64.*--data.context"):
        data(file, context=64).setup()
    with pytest.raises(UserError, match="validation text has 1 tokens"):
        data(file, val_fraction=0.01).setup()
    module = data(file, batch_size=8)
    module.setup()
    with pytest.raises(UserError, match=r"fills 2 windows of 16, fewer than one batch of 8; lower --data.batch_size"):
        module.train_dataloader()


def test_a_tokenizer_that_is_none(tmp_path, data):
    with pytest.raises(UserError, match="'word' is no tokenizer; give bpe, bytes, characters"):
        data(write(tmp_path / "a.txt", FOX), tokenizer="word").setup()


def test_an_unknown_character_names_its_document(tmp_path, data):
    Tokenizer.characters(FOX).save(tmp_path / "tok")
    write(tmp_path / "d" / "a.txt", FOX * 9)
    write(tmp_path / "d" / "b.txt", "fox é")
    with pytest.raises(UserError, match=r"b.txt: Character 'é' \(U\+00E9\) at offset 4"):
        data(tmp_path / "d", tokenizer=str(tmp_path / "tok")).setup()


# -- the two sides ----------------------------------------------------------------------------------------------------


def test_one_document_is_cut_by_characters(tmp_path, data):
    text = "".join(chr(0x3B1 + i % 20) for i in range(1001))
    module = data(write(tmp_path / "a.txt", text), tokenizer="characters")
    module.setup()
    train, val = (module.prepared.arrays[side].open()[0] for side in ("train", "val"))
    assert module.tokenizer.decode(train) == text[: int(1001 * 0.9)]
    assert module.tokenizer.decode(val) == text[int(1001 * 0.9) :]
    assert "documents" not in next(iter(module.train_dataloader()))


def test_a_cut_document_has_no_end_of_text(tmp_path, data):
    module = data(write(tmp_path / "a.txt", FOX * 20))
    module.setup()
    assert all(module.tokenizer.eos_id not in module.prepared.arrays[side].open()[0] for side in ("train", "val"))


def test_whole_documents_are_held_out_whatever_their_names(tmp_path, data):
    first = folder_of(tmp_path / "first", 20)
    for i, file in enumerate(sorted(first.iterdir(), reverse=True)):
        write(tmp_path / "second" / f"{i:02}.txt", file.read_bytes())

    def held_out(folder, **options):
        module = data(folder, val_fraction=0.2, **options)
        module.setup()
        stream, starts = module.prepared.arrays["val"].open()
        assert all(stream[start - 1] == module.tokenizer.eos_id for start in [*starts[1:], len(stream)])
        return {module.tokenizer.decode(part) for part in np.split(stream, starts[1:])}

    chosen = held_out(first)
    assert len(chosen) == 4
    assert held_out(tmp_path / "second") == chosen
    assert held_out(first, seed=1) != chosen


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 8), st.integers(1, 50)), min_size=2, max_size=30), st.floats(0.05, 0.9))
def test_split_holds_out_about_the_share_and_never_all(contents, fraction):
    documents = [Survey(bytes([kind]), 10 + kind, 10 + kind) for kind, _ in contents]
    result = split(documents, fraction, seed=0)
    distinct = {document.digest for document in documents}
    assert result.duplicates == len(documents) - len(distinct)
    if len(distinct) == 1:
        assert result.cut == int(documents[0].characters * (1 - fraction))
        return
    assert 0 < len(result.held_out) < len(distinct)
    taken = sum(document.size for document in documents if document.digest in result.held_out)
    assert taken < 2 * fraction * sum(document.size for document in documents) or len(result.held_out) == 1


def test_equal_documents_stay_on_one_side(tmp_path, data):
    folder = folder_of(tmp_path / "x", 10)
    for i in range(10):
        write(folder / f"copy-{i}.txt", (folder / f"{i:02}.txt").read_bytes())
    module = data(folder, val_fraction=0.3)
    module.setup()
    texts = [
        [module.tokenizer.decode(part) for part in np.split(stream, starts[1:])]
        for stream, starts in (module.prepared.arrays[side].open() for side in ("train", "val"))
    ]
    assert not set(texts[0]) & set(texts[1])
    assert all(side.count(text) == 2 for side in texts for text in side)
    assert module.counts()["duplicates"] == 10


def test_copies_of_one_document_are_one_document(tmp_path, data):
    for i in range(3):
        write(tmp_path / "x" / f"{i}.txt", FOX * 10)
    module = data(tmp_path / "x")
    module.setup()
    assert module.counts() | {"documents_train": 1, "bytes_train": int(len(FOX) * 9)} == module.counts()


def test_val_files_are_the_validation_side_and_leave_the_training_side(tmp_path, data):
    folder = folder_of(tmp_path / "x", 5)
    module = data(folder, val_files=str(folder / "03.txt"))
    module.setup()
    about = module.counts()
    assert (about["documents_train"], about["documents_val"], about["duplicates"]) == (4, 1, 1)
    with pytest.raises(UserError, match="none is left to train on"):
        data(folder, val_files=str(folder)).setup()


# -- the cache --------------------------------------------------------------------------------------------------------


def entry(module) -> Path:
    return module.prepared.arrays["train"].folder


def test_the_second_time_nothing_is_tokenised_and_content_counts_not_names(tmp_path, data, monkeypatch):
    first = data(write(tmp_path / "a.txt", FOX * 20), tokenizer="bpe", vocab_size=300)
    first.setup()
    stream = first.prepared.arrays["train"].open()[0].copy()
    assert stream.dtype == np.uint16
    monkeypatch.setattr(Tokenizer, "encode_batch", None)
    monkeypatch.setattr(Tokenizer, "train_bpe", None)
    again = data(write(tmp_path / "b.txt", FOX * 20), tokenizer="bpe", vocab_size=300, context=8)
    again.setup()
    assert entry(again) == entry(first)
    np.testing.assert_array_equal(again.prepared.arrays["train"].open()[0], stream)
    assert again.val_bytes == first.val_bytes


def test_bpe_is_trained_on_the_training_side_only(tmp_path, data):
    write(tmp_path / "train.txt", "abab " * 200)
    write(tmp_path / "val.txt", "xyxy " * 200)
    module = data(tmp_path / "train.txt", val_files=str(tmp_path / "val.txt"), tokenizer="bpe", vocab_size=300)
    module.setup()
    assert len(module.tokenizer.encode("abab")) < 4
    assert len(module.tokenizer.encode("xyxy")) == 4


def test_a_large_vocabulary_is_stored_in_32_bits(tmp_path, data):
    text = "".join(map(chr, [*range(0x11000, 0x20, -1)])).encode("utf-8", "ignore").decode()
    module = data(write(tmp_path / "a.txt", text), tokenizer="characters")
    module.setup()
    stream = module.prepared.arrays["train"].open()[0]
    assert stream.dtype == np.uint32
    assert stream.max() > 1 << 16
    assert module.tokenizer.decode(stream) == text[: int(len(text) * 0.9)]


def damage_cut(folder):
    file = folder / "train.tokens.npy"
    file.write_bytes(file.read_bytes()[:-7])


def damage_flip(folder):
    file = folder / "val.tokens.npy"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)


def damage_header(folder):
    (folder / "val.starts.npy").write_bytes(b"nonsense")


def damage_meta(folder):
    (folder / "meta.json").write_text('{"files": ')


def damage_lost(folder):
    (folder / "train.starts.npy").unlink()


@pytest.mark.parametrize("damage", [damage_cut, damage_flip, damage_header, damage_meta, damage_lost])
def test_a_damaged_entry_is_built_again(damage, tmp_path, data):
    folder = folder_of(tmp_path / "x", 8)
    first = data(folder)
    first.setup()
    files = {file.name: file.read_bytes() for file in entry(first).iterdir()}
    damage(entry(first))
    data(folder).setup()
    assert {file.name: file.read_bytes() for file in entry(first).iterdir()} == files


def test_a_failure_leaves_no_entry_and_no_temporary_files(tmp_path, data, monkeypatch):
    module = data(folder_of(tmp_path / "x", 8))

    def fail(self, *_):
        raise RuntimeError("stopped")

    monkeypatch.setattr(tokens.TokenWriter, "finish", fail)
    with pytest.raises(RuntimeError, match="stopped"):
        module.setup()
    assert not [file for file in (tmp_path / "cache").rglob("*") if file.is_file()]


def test_two_builders_at_once_agree(tmp_path, data):
    folder = folder_of(tmp_path / "x", 30, 3000)
    modules = [data(folder, tokenizer="bpe", vocab_size=300) for _ in range(4)]
    threads = [threading.Thread(target=module.setup) for module in modules]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    streams = [module.prepared.arrays["train"].open()[0] for module in modules]
    assert all(np.array_equal(streams[0], stream) for stream in streams[1:])
    assert len(list(entry(modules[0]).iterdir())) == 5


def test_a_file_that_changes_between_the_two_walks_is_noticed(tmp_path, data, monkeypatch):
    file = write(tmp_path / "a.txt", FOX * 20)
    make = tokens.make_tokenizer

    def change(*arguments):
        write(file, FOX * 30)
        return make(*arguments)

    monkeypatch.setattr("triune.text.data.documents.make_tokenizer", change)
    with pytest.raises(UserError, match="changed while it was read"):
        data(file).setup()


def test_a_cache_that_cannot_be_written(tmp_path, data):
    write(tmp_path / "occupied", "a file")
    with pytest.raises(UserError, match=r"occupied' is no folder.*--data.cache"):
        data(write(tmp_path / "a.txt", FOX * 20), cache=str(tmp_path / "occupied")).setup()


# -- windows ----------------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(
    count=st.integers(2, 400), context=st.integers(1, 20), batch=st.integers(1, 5), world=st.integers(1, 3),
    epoch=st.integers(0, 3),
)  # fmt: skip
def test_an_epoch_visits_every_window_once_and_the_ranks_share_them(count, context, batch, world, epoch):
    windows = training_windows(count, context)
    if windows < batch * world:
        return
    orders = [ShuffledWindows(count, context, batch, rank, world, seed=3) for rank in range(world)]
    length = len(orders[0])
    starts = np.array([[order.batch(epoch * length + i) for i in range(length)] for order in orders]).ravel()
    assert len(set(starts)) == len(starts) == length * batch * world > windows - batch * world
    assert len({start % context for start in starts}) == 1, "one grid"
    assert starts.min() >= 0
    assert starts.max() + context + 1 <= count


def test_epochs_differ_in_order_and_phase_and_follow_the_seed():
    def epochs(seed):
        order = ShuffledWindows(10_000, 64, 8, seed=seed)
        return [np.concatenate(list(order)) for _ in range(3)]

    a, b, c = epochs(0), epochs(0), epochs(1)
    assert all(np.array_equal(x, y) for x, y in zip(a, b))
    assert not any(np.array_equal(x, y) for x, y in zip(a, c))
    assert len({int(epoch[0]) % 64 for epoch in a}) > 1
    assert len({tuple(epoch // 64) for epoch in a}) == 3


def test_ranks_are_the_parts_of_the_batch_of_one_process():
    whole = ShuffledWindows(5000, 16, 6, seed=5)
    parts = [ShuffledWindows(5000, 16, 2, rank, 3, seed=5) for rank in range(3)]
    assert len(whole) == len(parts[0])
    for position in (0, 7, len(whole) + 3):
        joined = np.concatenate([part.batch(position) for part in parts])
        np.testing.assert_array_equal(joined, whole.batch(position))


def test_training_batches_are_the_text(tmp_path, data):
    module = data(write(tmp_path / "a.txt", "".join(chr(33 + i % 90) for i in range(2000))), tokenizer="characters")
    module.setup()
    stream = module.prepared.arrays["train"].open()[0].astype(np.int64)
    loader = module.train_dataloader()
    for starts, batch in zip(ShuffledWindows(len(stream), 16, 4), loader, strict=True):
        assert batch["tokens"].shape == batch["targets"].shape == (4, 16)
        assert batch["tokens"].dtype == batch["targets"].dtype == torch.int64
        assert batch["tokens"].is_contiguous()
        for row, start in enumerate(starts):
            np.testing.assert_array_equal(batch["tokens"][row], stream[start : start + 16])
            np.testing.assert_array_equal(batch["targets"][row], stream[start + 1 : start + 17])


def test_documents_are_numbered_and_the_first_token_of_each_is_no_target(tmp_path, data):
    module = data(folder_of(tmp_path / "x", 20, 5), val_fraction=0.2)
    module.setup()
    stream, starts = module.prepared.arrays["train"].open()
    assert module.tokenizer.eos_id in stream
    seen = 0
    for order, batch in zip(ShuffledWindows(len(stream), 16, 4), module.train_dataloader(), strict=True):
        at = torch.from_numpy(order)[:, None] + torch.arange(17)
        number = torch.from_numpy(np.searchsorted(starts, at.numpy(), side="right") - 1)
        first = torch.from_numpy(np.isin(at[:, 1:].numpy(), starts))
        expected = torch.from_numpy(stream.astype(np.int64))[at[:, 1:]].masked_fill(first, -100)
        assert torch.equal(batch["targets"], expected)
        assert torch.equal(batch["documents"], number[:, :-1])
        seen += int(first.sum())
    assert seen > 5


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("several", [False, True])
def test_validation_scores_every_token_once(several, world, tmp_path, data):
    source = folder_of(tmp_path / "x", 20, 45) if several else write(tmp_path / "a.txt", "naïve 😀 " * 300)
    module = data(source, val_fraction=0.3, batch_size=3)
    module.setup()
    stream, starts = module.prepared.arrays["val"].open()
    windows = module.prepared.batches("val")
    counted, shapes, targets = 0, set(), []
    for rank in range(world):
        loader = Batches(windows, WindowsInOrder(len(stream), 16, 3, rank, world), 0, False)
        counted += len(list(loader)) == len(loader) == math.ceil(math.ceil((len(stream) - 1) / 16) / (3 * world))
        for batch in loader:
            shapes.add(tuple(batch["tokens"].shape))
            targets += batch["targets"][batch["targets"] != -100].tolist()
    assert counted == world
    assert shapes == {(3, 16)}
    expected = np.delete(stream, starts)
    assert sorted(targets) == sorted(expected.tolist())
    scored = b"".join(module.tokenizer.token_bytes(token) for token in targets)
    assert module.val_bytes == len(scored)


def test_val_bytes_of_several_byte_tokens(tmp_path, data):
    module = data(write(tmp_path / "a.txt", "😀é" * 500), tokenizer="characters")
    module.setup()
    assert module.val_bytes == len(("😀é" * 50).encode()) - len("😀".encode())


def test_workers_read_the_same_batches(tmp_path, data):
    folder = folder_of(tmp_path / "x", 20)

    def epochs(workers):
        module = data(folder, workers=workers)
        module.setup()
        loader = module.train_dataloader()
        return [batch for _ in range(2) for batch in loader]

    for a, b in zip(epochs(0), epochs(1), strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_pickled_windows_do_not_carry_the_corpus(tmp_path, data):
    module = data(write(tmp_path / "a.txt", FOX * 5000))
    module.setup()
    windows = module.prepared.batches("train")
    before = windows[np.arange(4)]
    pickled = pickle.dumps(windows)
    assert len(pickled) < 2000
    assert torch.equal(pickle.loads(pickled)[np.arange(4)]["tokens"], before["tokens"])


def test_constructing_touches_no_file(tmp_path, data):
    data(tmp_path / "missing.txt")
    assert list(tmp_path.iterdir()) == []


# -- exact resume -----------------------------------------------------------------------------------------------------


class Recorder(lightning.LightningModule):
    """A model of one weight that writes down the batches it was trained on."""

    def __init__(self, stop_in_step=None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = []
        self.stop_in_step = stop_in_step

    def training_step(self, batch, index):
        if len(self.seen) == self.stop_in_step:
            raise RuntimeError("power cut")
        self.seen.append(batch["tokens"].clone())
        return self.weight * batch["tokens"].float().mean()

    def validation_step(self, batch, index):
        self.log("val_loss", self.weight)

    def configure_optimizers(self):
        # Makes Lightning iterate the loader before a checkpoint is restored (facts: Lightning#20550).
        assert self.trainer.estimated_stepping_batches > 0
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(module, folder, steps=-1, ckpt=None, stop_in_step=None, callbacks=(), **options):
    model = Recorder(stop_in_step)
    trainer = lightning.Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=folder, callbacks=list(callbacks), num_sanity_val_steps=0, **options,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", message=".*(not resumable|not those of the first run).*")
        trainer.fit(model, datamodule=module, ckpt_path=ckpt, weights_only=False)
    return model.seen, trainer


@pytest.fixture
def ten_a_epoch(tmp_path, data):
    """Make a `TextData` of ten batches an epoch."""
    file = write(tmp_path / "a.txt", "".join(chr(33 + i * i % 89) for i in range(732)))

    def make(**options):
        return data(file, **options)

    module = make()
    module.setup()
    assert len(module.train_dataloader()) == 10
    return make


def assert_same(batches, expected):
    assert len(batches) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(batches, expected))


@pytest.mark.parametrize(("stop", "workers"), [(7, 0), (10, 0), (13, 0), (20, 0), (7, 1)])
def test_resume_after_a_number_of_steps(stop, workers, tmp_path, ten_a_epoch):
    expected, _ = fit(ten_a_epoch(), tmp_path, 25)
    assert len({tuple(batch.flatten().tolist()) for batch in expected}) == 25
    others = set(multiprocessing.active_children())
    first, trainer = fit(ten_a_epoch(workers=workers), tmp_path, stop)
    assert set(multiprocessing.active_children()) <= others, "a training that has ended leaves no worker"
    trainer.save_checkpoint(tmp_path / "stop.ckpt")
    second, _ = fit(ten_a_epoch(workers=workers), tmp_path, 25, tmp_path / "stop.ckpt")
    assert_same(first + second, expected)


@pytest.mark.parametrize("every", [3, 5, 10])
def test_resume_from_checkpoints_written_within_a_step(every, tmp_path, ten_a_epoch):
    keep = lightning.pytorch.callbacks.ModelCheckpoint(
        tmp_path / "kept", filename="{step}", every_n_train_steps=every, save_top_k=-1
    )
    expected, _ = fit(ten_a_epoch(), tmp_path, 22, callbacks=[keep])
    files = sorted((tmp_path / "kept").iterdir())
    assert len(files) >= 2
    for file in files[:3]:
        step = int(file.stem.split("=")[1])
        rest, _ = fit(ten_a_epoch(), tmp_path, 22, file)
        assert_same(rest, expected[step:])


@pytest.mark.parametrize("validate", [True, False])
def test_resume_from_the_end_of_an_epoch(validate, tmp_path, ten_a_epoch):
    options = {} if validate else {"limit_val_batches": 0}
    expected, _ = fit(ten_a_epoch(), tmp_path, max_epochs=3, **options)
    assert len(expected) == 30
    keep = lightning.pytorch.callbacks.ModelCheckpoint(tmp_path / "kept", save_on_train_epoch_end=not validate)
    first, _ = fit(ten_a_epoch(), tmp_path, max_epochs=2, callbacks=[keep], **options)
    second, _ = fit(ten_a_epoch(), tmp_path, ckpt=next((tmp_path / "kept").iterdir()), max_epochs=3, **options)
    assert_same(first + second, expected)


def test_resume_from_a_validation_within_an_epoch(tmp_path, ten_a_epoch):
    options = {"max_epochs": 2, "val_check_interval": 4}
    keep = lightning.pytorch.callbacks.ModelCheckpoint(
        tmp_path / "kept", filename="{step}", monitor="val_loss", save_top_k=-1, save_on_train_epoch_end=False
    )
    expected, _ = fit(ten_a_epoch(), tmp_path, callbacks=[keep], **options)
    files = {int(file.stem.split("=")[1]): file for file in (tmp_path / "kept").iterdir()}
    assert sorted(files) == [4, 8, 14, 18]
    for step in (4, 8, 14):
        rest, _ = fit(ten_a_epoch(), tmp_path, ckpt=files[step], **options)
        assert_same(rest, expected[step:])


def test_resume_after_a_crash(tmp_path, ten_a_epoch):
    expected, _ = fit(ten_a_epoch(), tmp_path, 25)
    keep = lightning.pytorch.callbacks.OnExceptionCheckpoint(str(tmp_path), filename="crash")
    with pytest.raises(RuntimeError, match="power cut"):
        fit(ten_a_epoch(), tmp_path, 25, stop_in_step=14, callbacks=[keep])
    rest, _ = fit(ten_a_epoch(), tmp_path, 25, tmp_path / "crash.ckpt")
    assert_same(rest, expected[14:])


def test_resume_within_an_accumulated_and_limited_epoch(tmp_path, ten_a_epoch):
    options = {"accumulate_grad_batches": 2, "limit_train_batches": 8}
    expected, _ = fit(ten_a_epoch(), tmp_path, 10, **options)
    assert len(expected) == 20
    assert len({tuple(batch.flatten().tolist()) for batch in expected}) == 20, "the next epoch goes on behind the limit"
    first, trainer = fit(ten_a_epoch(), tmp_path, 6, **options)
    trainer.save_checkpoint(tmp_path / "stop.ckpt")
    second, _ = fit(ten_a_epoch(), tmp_path, 10, tmp_path / "stop.ckpt", **options)
    assert_same(first + second, expected)


def test_overfitting_on_a_few_batches_sees_the_same_ones(tmp_path, ten_a_epoch):
    seen, _ = fit(ten_a_epoch(), tmp_path, 6, overfit_batches=2)
    assert_same(seen, seen[:2] * 3)


def test_the_state_says_what_the_order_depends_on(tmp_path, ten_a_epoch):
    module = ten_a_epoch()
    _, trainer = fit(module, tmp_path, 13)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    state = torch.load(tmp_path / "a.ckpt", weights_only=True)["TextData"]
    assert state["settings"] == module.order_settings()
    assert {"text", "context", "batch_size", "seed"} <= set(state["settings"])


def test_resuming_with_another_order_is_refused(tmp_path, ten_a_epoch):
    _, trainer = fit(ten_a_epoch(), tmp_path, 3)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(UserError, match="batch_size was 4, now 2"):
        fit(ten_a_epoch(batch_size=2), tmp_path, 6, tmp_path / "a.ckpt")


# -- tiny Shakespeare -------------------------------------------------------------------------------------------------


def test_tiny_shakespeare_is_split_as_nanogpt_does(data):
    folder = Path(os.environ.get("TRIUNE_DATA") or Path(__file__).parents[4] / "shared" / "data")
    file = folder / "text" / "tinyshakespeare.txt"
    if not file.is_file():
        pytest.skip(f"no {file}: set TRIUNE_DATA to the folder that holds text/tinyshakespeare.txt")
    module = data(file, tokenizer="characters", context=64, batch_size=12)
    module.setup()
    about = module.counts()
    assert (about["vocabulary"], about["tokens_train"], about["tokens_val"]) == (65, 1_003_854, 111_540)
    assert module.val_bytes == 111_539
    assert sum(int((batch["targets"] != -100).sum()) for batch in module.val_dataloader()) == 111_539


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("block", [4, 7, 64, 1 << 20])
def test_a_file_in_blocks_is_the_file(tmp_path, monkeypatch, encoding, block):
    text = "aé茶😀\r\n" * 12
    monkeypatch.setattr(reading, "BLOCK", block)
    assert reading.read_text(Path(write(tmp_path / "a.txt", text.encode(encoding)))) == text


@pytest.mark.parametrize("block", [4, 5, 6, 1 << 20])
def test_offsets_of_damage_are_those_of_the_file(tmp_path, monkeypatch, block):
    monkeypatch.setattr(reading, "BLOCK", block)
    for name, content, sentence in (
        ("a.txt", "aé茶é".encode() + b"\xe9!", "byte 0xe9 at offset 8"),
        ("b.txt", "abé茶".encode()[:-1], "byte 0xe8 at offset 4"),
        ("c.txt", b"abcdefgh\0", "NUL byte at offset 8"),
    ):
        with pytest.raises(UserError, match=sentence):
            reading.read_text(Path(write(tmp_path / name, content)))


def test_no_text_behind_the_first_block_is_passed_over_in_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "BLOCK", 16)
    write(tmp_path / "a.txt", "good text that is long enough\n" * 9)
    bad = str(tmp_path / "b.txt")
    write(Path(bad), b"begins as a text, but then\0")
    data = TextData(str(tmp_path), tokenizer="bytes", context=8, cache=str(tmp_path / "cache"))
    data.setup()
    assert data.counts()["skipped"] == {"binary": 1}
    assert data.counts()["bytes_train"] + data.counts()["bytes_val"] == 30 * 9
    with pytest.raises(UserError, match="NUL byte at offset 26"):
        TextData([bad], tokenizer="bytes", context=8, cache=str(tmp_path / "cache")).setup()


@pytest.mark.parametrize("kind", ["bpe", "bytes", "characters"])
def test_the_tokens_do_not_depend_on_the_blocks(tmp_path, monkeypatch, kind):
    text = "To be, or not to be: that is\n the question.  Ünï\n\n'Tis 茶茶茶\nnobler\n" * 60
    file, found = str(write(tmp_path / "a.txt", text)), []
    for number, block in enumerate((1 << 20, 50)):
        monkeypatch.setattr(reading, "BLOCK", block)
        data = TextData(file, tokenizer=kind, vocab_size=300, context=8, cache=str(tmp_path / str(number)))
        data.setup()
        assert isinstance(data.prepared, PreparedDocuments)
        found.append([array.open() for array in data.prepared.arrays.values()])
    for one, two in zip(*found, strict=True):
        np.testing.assert_array_equal(one[0], two[0])
        np.testing.assert_array_equal(one[1], two[1])


def test_a_large_file_is_tokenised_in_bounded_memory(tmp_path, monkeypatch):
    """What is kept at once does not grow with the file."""
    monkeypatch.setattr(tokens, "GROUP", 1 << 18)
    Tokenizer.train_bpe(["A line of a text that repeats itself."], 300).save(tmp_path / "bpe")
    peaks = []
    for megabytes in (2, 6):
        file = tmp_path / f"{megabytes}.txt"
        file.write_text("A line of a text that repeats itself, number by number.\n" * (megabytes << 20 >> 6))
        tracemalloc.start()
        TextData(str(file), tokenizer=str(tmp_path / "bpe"), cache=str(tmp_path / "cache")).setup()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


def test_a_link_to_itself_in_a_folder_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("some words")
    (tmp_path / "b.txt").symlink_to("b.txt")
    found = find(str(tmp_path))
    assert found.survey() and ["".join(document.blocks) for document in found] == ["some words"]
    assert found.skipped["not a regular file"] == 1

"""What a model gets of the rows of a large table: kept in little memory, read in blocks, and the same as one by one."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import models

from triune.core.errors import UserError
from triune.core.labelled import samples
from triune.core.labelled.samples import Samples
from triune.core.labels import split
from triune.core.work import blocks
from triune.protein.language.labelled import ProteinReader
from triune.text.labelled import TextReader, WordReader
from triune.text.labels import TextTable
from triune.text.tokenizer import Tokenizer

TEXTS = ["a cat", "the dog saw 7 owls", "é ß", "x", "no", "a " * 40, "owl"]


def same(one: Any, two: Any) -> bool:
    one, two = (each if isinstance(each, tuple) else (each,) for each in (one, two))
    return all(np.array_equal(a, b) and getattr(a, "dtype", 0) == getattr(b, "dtype", 0) for a, b in zip(one, two))


@pytest.mark.parametrize(
    ("reader", "cells"),
    [
        (TextReader(Tokenizer.bytes(), 12), TEXTS),
        (WordReader(Tokenizer.bytes(), 12), TEXTS),
        (ProteinReader(5), ["ACD", "MKVLAAG", "W", "AC", "GGGGG", "HH"]),
    ],
)
def test_samples_are_those_of_each_input_alone(reader: Any, cells: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "BLOCK", 3)
    kept, alone = Samples(reader), [reader.one(cell, "row", Path()) for cell in cells]
    for start in range(0, len(cells), 3):
        kept.add(reader.read(cells[start : start + 3], ["row"] * 3, Path()))
    assert all(same(kept[row], sample) for row, sample in enumerate(alone))
    assert kept.sizes.tolist() == [reader.size(sample) for sample in alone]


def test_token_numbers_take_the_bytes_that_they_need() -> None:
    kept = Samples(TextReader(Tokenizer.bytes(), 64))
    kept.add([np.arange(200), np.arange(3)])
    assert kept._flat is not None and kept._flat[0].dtype == np.uint8 and kept[1].dtype == np.int64


def test_a_text_that_cannot_be_read_is_named_and_the_others_are_read() -> None:
    """One without a token, and one with a letter that is not known, among others of the block."""
    backend = Backend(models.BPE(vocab={letter: i for i, letter in enumerate("catdog")}, merges=[]))
    found = TextReader(Tokenizer(backend), 8).read(["cat", "xyz", "dog"], ["row 1", "row 2", "row 3"], Path())
    assert [each.tolist() for each in (found[0], found[2])] == [[0, 1, 2], [3, 4, 5]]
    assert isinstance(found[1], UserError) and "row 2 has no token" in str(found[1])
    found = TextReader(Tokenizer.characters("abc"), 8).read(["ab", "ax", "c"], ["row 1", "row 2", "row 3"], Path())
    assert isinstance(found[1], UserError) and "row 2 cannot be read: Character 'x'" in str(found[1])
    assert found[2].tolist() == [2]


def test_long_texts_are_read_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that memory holds the tokens of a few whole texts, and of the others what the model reads."""
    monkeypatch.setattr("triune.text.labelled.TOGETHER", 10)
    reader, sizes = TextReader(Tokenizer.bytes(), 4), list[int]()
    encode = reader.tokenizer.encode_batch
    monkeypatch.setattr(reader.tokenizer, "encode_batch", lambda texts: (sizes.append(len(texts)), encode(texts))[1])
    cells = ["abcd", "abcdef", "ab", "a" * 30, "b", "\ud800", "cc"]
    found = reader.read(cells, [f"row {i}" for i in range(7)], Path())
    assert sizes[:3] == [2, 1, 1] and [len(each) for each in found[:5]] == [4, 4, 2, 4, 1]
    assert isinstance(found[5], UserError) and "row 5 cannot be read" in str(found[5]) and len(found[6]) == 2
    assert reader.cut == 2 and all(each.base is None or each.base.nbytes == each.nbytes for each in found[:5])


def test_rows_that_cannot_be_read_leave_their_side(tmp_path: Path) -> None:
    (tmp_path / "vocabulary").mkdir()
    Tokenizer.characters("abcdefghij klmno0123456789").save(tmp_path / "vocabulary")
    rows = [f"{'Z' if i % 10 == 3 else 'a'}{i},{'yes' if i % 2 else 'no'}" for i in range(60)]
    (tmp_path / "t.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    data = TextTable(
        table=str(tmp_path / "t.csv"), input="text", target="label", tokenizer=str(tmp_path / "vocabulary"),
        on_error="skip",
    )  # fmt: skip
    data.setup()
    left = sorted(np.concatenate([data.side("train"), data.side("val")]).tolist())
    assert left == [row for row in range(60) if row % 10 != 3]
    assert "6 rows are left out, the first: The text in row 4" in data.describe()
    data.on_error, data.rows = "stop", None
    with pytest.raises(UserError, match=r"row 4 of .* 5 more rows cannot be used"):
        data.setup()


def test_hashes_are_those_of_each_cell() -> None:
    cells = ["a", b"a", "é", 1, 1.0, True, "\ud800", "a"]
    texts = ["a", b"a", "é", "1", "1", "true", "\ud800", "a"]
    alone = [t if isinstance(t, bytes) else t.encode("utf-8", "surrogatepass") for t in texts]
    digests = [int.from_bytes(hashlib.blake2b(each, digest_size=8).digest(), "little") for each in alone]
    assert split.hashes(cells).tolist() == digests


def test_a_bar_stands_over_many_rows_alone(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 100, 5))
    monkeypatch.setattr("triune.core.work.time.monotonic", lambda: next(clock))
    assert [(s.start, s.stop) for s in blocks("Counting", 10, size=4)] == [(0, 4), (4, 8), (8, 12)]
    assert not capsys.readouterr().err
    assert len(list(blocks("Counting", 30, size=4))) == 8
    assert capsys.readouterr().err == "Counting: 30 rows in 5.0 s\n"


def test_a_large_table_teaches_its_tokenizer_by_a_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [f"word{i} of row {i},{'yes' if i % 2 else 'no'}" for i in range(200)]
    (tmp_path / "t.csv").write_text("text,label\n" + "\n".join(rows) + "\n")

    def read() -> TextTable:
        data = TextTable(table=str(tmp_path / "t.csv"), input="text", target="label", vocab_size=300)
        data.setup()
        return data

    whole = read()
    assert "tokens are learned" not in whole.describe() and not any("learned" in name for name in whole.draws())
    monkeypatch.setattr("triune.text.labels.ENOUGH", 4)
    data = read()
    assert "Its tokens are learned from 60 training texts, spread evenly over the table." in data.describe()
    assert data.draws()["the texts that its tokens are learned from"] == 2  # so that older runs do not go on with it
    assert whole.tokenizer is not None and data.tokenizer is not None
    assert whole.tokenizer.fingerprint != data.tokenizer.fingerprint

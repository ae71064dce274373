"""Labels of words: aligned with tokens, learned, scored and answered from the command line."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import models, normalizers, pre_tokenizers, trainers

from triune.cli import main
from triune.core.errors import UserError
from triune.core.training.run.cli import run_task
from triune.text.labelled import WordReader
from triune.text.labels import TextLabels, TextTable
from triune.text.tokenizer import Tokenizer
from triune.text.words import first_tokens

TEXTS = ["the cat saw the dog.", "an owl, perhaps two owls, flew", "Zoë's naïve café was unbelievably far away"]


def wordpiece() -> Tokenizer:
    """A tokenizer in the manner of BERT's, which lower-cases and takes accents away."""
    backend = Backend(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=60, special_tokens=["[UNK]"]))
    return Tokenizer(backend)


def tokenizers() -> dict[str, Tokenizer]:
    return {
        "bpe": Tokenizer.train_bpe(TEXTS, 280), "bytes": Tokenizer.bytes(),
        "characters": Tokenizer.characters([*TEXTS, " \n\t"]), "wordpiece": wordpiece(),
    }  # fmt: skip


def plainly(tokenizer: Tokenizer, text: str) -> list[int]:
    """The same by looking at every token of every word."""
    spans = tokenizer.backend.encode(text, add_special_tokens=False).offsets
    found, at = [], 0
    for word in text.split():
        at = text.index(word, at)
        inside = [n for n, (begin, end) in enumerate(spans) if end > at and begin < at + len(word) and end > begin]
        found.append(inside[0] if inside else -1)
        at += len(word)
    return found


@pytest.mark.parametrize("name", list(tokenizers()))
def test_a_word_begins_with_the_first_token_that_holds_a_part_of_it(name: str) -> None:
    tokenizer = tokenizers()[name]
    for text in (*TEXTS, "  the\n\ncat  ", "dog"):
        found = first_tokens(tokenizer, text, tokenizer.encode(text))
        assert found.tolist() == plainly(tokenizer, text)
        assert len(set(found.tolist())) == len(text.split())


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet="aé 	\n'.,🙂\u0301b", max_size=30))
def test_any_text_has_a_token_for_each_word(text: str) -> None:
    tokenizer = Tokenizer.train_bpe(TEXTS, 270)
    assert first_tokens(tokenizer, text, tokenizer.encode(text)).tolist() == plainly(tokenizer, text)


def test_words_agree_with_those_of_the_tokenizers_library() -> None:
    tokenizer = wordpiece()
    for text in TEXTS:
        text = text.replace(".", "").replace(",", "").replace("'", "")
        split = tokenizer.backend.encode(text.split(), is_pretokenized=True, add_special_tokens=False)
        expected = [split.word_ids.index(number) for number in range(len(text.split()))]
        assert first_tokens(tokenizer, text, tokenizer.encode(text)).tolist() == expected


def test_a_word_of_which_nothing_is_left_has_no_token_and_a_cut_end_no_place() -> None:
    tokenizer = wordpiece()
    text = "cat \x01 dog saw"  # the normaliser takes control characters away
    reader = WordReader(tokenizer, context=64)
    sample = reader.one(text, "x", Path())
    assert reader.whole(text, sample) == 4 and reader.places(sample)[1] == -1 and (reader.places(sample)[2:] > 0).all()
    short = WordReader(tokenizer, context=len(tokenizer.encode("cat")) + 1)
    cut = short.one(text, "x", Path())
    assert len(short.places(cut)) < 4 and short.places(cut).max() < len(cut.tokens) and short.cut == 1


def table(folder: Path) -> Path:
    random = np.random.default_rng(0)
    kinds = {"cat": "ANIMAL", "owl": "ANIMAL", "London": "PLACE", "Oslo": "PLACE", "saw": "O", "the": "O"}
    rows = []
    for number in range(80):
        words = random.choice(list(kinds), 3 + number % 4).tolist()
        rows.append({"text": " ".join(words), "tags": " ".join(kinds[word] for word in words)})
    where = folder / "words.csv"
    with where.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["text", "tags"])
        writer.writeheader()
        writer.writerows(rows)
    return where


def run(verb: str, *words: object) -> dict[str, Any]:
    return run_task("text", verb, [str(word) for word in words], TextLabels, TextTable, "triune.text")


SMALL = [
    "--data.kind", "tag", "--trainer.max_steps", 30, "--trainer.val_check_interval", 15, "--threads", 1,
    "--data.batch_size", 16, "--model.transformer.dim", 32, "--model.transformer.depth", 1,
    "--model.transformer.heads", 2, "--data.vocab_size", 262,
]  # fmt: skip


def test_words_are_learned_and_answered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = table(tmp_path)
    options = ["--data.table", where, "--data.input", "text", "--data.target", "tags", *SMALL]
    summary = run("fit", *options, "--run", tmp_path / "run")
    assert summary["judged"]["metrics"]["accuracy"] > 0.9 > summary["judged"]["baseline"]["accuracy"]
    assert (
        main(["text", "predict", str(tmp_path / "run"), "the  cat saw Oslo", "--out", str(tmp_path / "o.jsonl")]) == 0
    )
    answer = json.loads((tmp_path / "o.jsonl").read_text())
    assert answer["label"].split() == ["O", "ANIMAL", "O", "PLACE"] and len(answer["probability"]) == 4
    # The same as lists, scored as another table.
    known = list(csv.DictReader(where.read_text().splitlines()))
    rows = [json.dumps({"text": r["text"].split(), "tags": r["tags"].split()}) for r in known]
    (tmp_path / "other.jsonl").write_text("\n".join(rows))
    scored = run("test", tmp_path / "run", "--data.table", tmp_path / "other.jsonl")
    assert scored["judged"]["count"] == sum(len(json.loads(row)["tags"]) for row in rows)


def test_labels_that_are_not_as_many_as_the_words_are_named(tmp_path: Path) -> None:
    where = tmp_path / "t.csv"
    where.write_text("text,tags\nthe cat,O\nan owl,O ANIMAL\n")
    options = ["--data.table", where, "--data.input", "text", "--data.target", "tags", *SMALL, "--run", tmp_path / "r"]
    with pytest.raises(UserError, match=r"row 1 of .* has 1 labels for 2 words"):
        run("fit", *options)
    (tmp_path / "t.jsonl").write_text('{"text": ["New York", "is"], "tags": ["P", "O"]}\n')
    with pytest.raises(UserError, match="words without spaces"):
        run("fit", *[tmp_path / "t.jsonl" if word is where else word for word in options])

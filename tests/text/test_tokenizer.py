"""Tokenizers: exact round trips, standard files, no accidental control tokens, whole characters when streaming."""

import json
import os
import random
import string
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as HFTokenizer

from triune.core.errors import UserError
from triune.core.files import write_atomic
from triune.text import tokenizer as module
from triune.text.cutting import SAFE_CUT, cut, few_long_words
from triune.text.tokenizer import END_OF_TEXT, Tokenizer

SAMPLE = "def main():\n    print('hello, wörld')\n\nThe quick brown fox <|endoftext|> jumps. 😀 naïve\n" * 20
BPE = Tokenizer.train_bpe([SAMPLE], 320)
BYTES = Tokenizer.bytes()
AWKWARD = [
    "",
    "\n",
    "\x00",
    " leading",
    "trailing ",
    "\n\n x",
    "😀👩‍👩‍👧",
    "\r\n\t",
    END_OF_TEXT,
    "a\u0301",
    "\ufeffx",
    "\u2028",
]
BAD_JSON = ["", "not json", "[]", "{}", '{"model": 3}']


@pytest.mark.parametrize("tokenizer", [BPE, BYTES], ids=["bpe", "bytes"])
@pytest.mark.parametrize("text", AWKWARD)
def test_awkward_texts_survive(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_every_unicode_text_survives(text):
    for tokenizer in (BPE, BYTES):
        ids = tokenizer.encode(text)
        assert ids.dtype == np.int64
        assert tokenizer.decode(ids) == text
        assert b"".join(tokenizer.token_bytes(i) for i in ids) == text.encode()


@settings(max_examples=100, deadline=None)
@given(st.text(min_size=1))
def test_characters_survive_and_equal_the_library(text):
    tokenizer = Tokenizer.characters(text)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.backend.encode(text, add_special_tokens=False).ids == ids.tolist()
    assert tokenizer.vocab_size == len(set(text))


def test_bytes_are_byte_values_and_equal_the_library():
    text = "a\x00é😀" + END_OF_TEXT
    assert BYTES.encode(text).tolist() == list(text.encode())
    assert BYTES.backend.encode(text, add_special_tokens=False).ids == list(text.encode())
    assert (BYTES.vocab_size, BYTES.eos_id) == (257, 256)


def test_a_special_token_written_in_the_text_is_ordinary_text(tmp_path):
    BPE.save(tmp_path)
    for tokenizer in (BPE, BYTES, Tokenizer.load(tmp_path)):
        ids = tokenizer.encode(f"a{END_OF_TEXT}b")
        assert tokenizer.eos_id is not None
        assert tokenizer.eos_id not in ids
        assert tokenizer.decode(ids) == f"a{END_OF_TEXT}b"
        assert tokenizer.decode([*ids, tokenizer.eos_id]) == f"a{END_OF_TEXT}b"
        assert tokenizer.token_bytes(tokenizer.eos_id) == b""


def test_characters_have_no_extra_token_and_name_an_unknown_one():
    tokenizer = Tokenizer.characters(["hello", "world"])
    assert tokenizer.vocab_size == 7
    assert tokenizer.eos_id is None
    with pytest.raises(UserError, match=r"'é' \(U\+00E9\) at offset 2"):
        tokenizer.encode("heé")
    with pytest.raises(UserError, match="empty"):
        Tokenizer.characters("")


def test_half_a_surrogate_pair_is_a_user_error():
    for tokenizer in (BPE, BYTES):
        with pytest.raises(UserError, match="offset 1"):
            tokenizer.encode("a\ud800")


def test_cutting_a_long_text_changes_no_token(monkeypatch):
    text = (SAMPLE + "\n\n\n  spaces  \n \nx\n\ty\r\nz 'll\n123\n") * 5
    whole = BPE.encode(text)
    monkeypatch.setattr(module, "PIECE", 50)
    assert len(list(cut(text, 50))) > 10
    assert "".join(cut(text, 50)) == text
    np.testing.assert_array_equal(BPE.encode(text), whole)
    np.testing.assert_array_equal(BPE.encode_batch([text, "", "a"])[0], whole)


@settings(max_examples=100, deadline=None)
@given(st.text(st.sampled_from("ab1 \n\t.'_é\u00a0茶"), max_size=200), st.integers(1, 20))
def test_pieces_are_bounded_and_safe_cuts_change_no_token(text, piece):
    pieces = list(cut(text, piece, 3 * piece))
    assert "".join(pieces) == text
    assert max(map(len, pieces)) <= 3 * piece
    at = 0
    for part in pieces[:-1]:
        at += len(part)
        if SAFE_CUT.match(text, at):
            both = [*BPE.encode(text[:at]), *BPE.encode(text[at:])]
            assert both == BPE.encode(text).tolist()


def test_a_bpe_learns_from_pieces_what_it_learns_from_the_whole(monkeypatch):
    """However long a text is, the library is handed pieces of a bounded length; the tokens are the same."""
    text, seen = SAMPLE * 3, []
    whole = Tokenizer.train_bpe([text], 400)

    def short(text, piece):
        for part in cut(text, 100, 300):
            seen.append(len(part))
            yield part

    monkeypatch.setattr(module, "cut", short)
    assert Tokenizer.train_bpe([text], 400).fingerprint == whole.fingerprint
    assert max(seen) <= 300
    assert sum(seen) == len(text)
    assert len(seen) > 20


@pytest.mark.parametrize("tokenizer", [BPE, BYTES, Tokenizer.characters(SAMPLE)], ids=["bpe", "bytes", "characters"])
def test_save_and_load(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["tokenizer.json", "tokenizer_config.json"]
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        again = Tokenizer.load(path)
        assert again.fingerprint == tokenizer.fingerprint
        assert (again.vocab_size, again.eos_id) == (tokenizer.vocab_size, tokenizer.eos_id)
        np.testing.assert_array_equal(again.encode(SAMPLE), tokenizer.encode(SAMPLE))
    assert HFTokenizer.from_file(str(tmp_path / "tokenizer.json")).decode(tokenizer.encode("quick")) == "quick"


def test_training_is_deterministic_and_settings_change_the_fingerprint():
    assert Tokenizer.train_bpe([SAMPLE], 320).fingerprint == BPE.fingerprint
    assert Tokenizer.train_bpe([SAMPLE], 300).fingerprint != BPE.fingerprint
    assert BPE.vocab_size == 320
    with pytest.raises(UserError, match="257"):
        Tokenizer.train_bpe([SAMPLE], 256)


@pytest.mark.parametrize("names", [("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")])
def test_gpt2_files(names, tmp_path):
    model = json.loads(BPE.backend.to_str())["model"]
    (tmp_path / names[0]).write_text(json.dumps(model["vocab"]), encoding="utf-8")
    merges = "\n".join(" ".join(pair) for pair in model["merges"])
    (tmp_path / names[1]).write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
    tokenizer = Tokenizer.load(tmp_path)
    np.testing.assert_array_equal(tokenizer.encode(SAMPLE), BPE.encode(SAMPLE))
    assert tokenizer.eos_id == BPE.eos_id


def test_the_config_names_the_end_token(tmp_path):
    BPE.backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "Ġ"}}))
    assert Tokenizer.load(tmp_path).eos_id == BPE.backend.token_to_id("Ġ")


@pytest.mark.parametrize("content", BAD_JSON)
def test_a_file_that_is_no_tokenizer(content, tmp_path):
    file = tmp_path / "tokenizer.json"
    file.write_text(content)
    with pytest.raises(UserError, match="cannot be read as a tokenizer"):
        Tokenizer.load(file)


def test_a_path_that_is_no_tokenizer(tmp_path):
    with pytest.raises(UserError, match="is no tokenizer"):
        Tokenizer.load(tmp_path / "missing")
    with pytest.raises(UserError, match="holds no tokenizer"):
        Tokenizer.load(tmp_path)


def test_truncation_and_padding_of_a_loaded_file_are_switched_off(tmp_path):
    backend = HFTokenizer.from_str(BPE.backend.to_str())
    backend.enable_truncation(3)
    backend.enable_padding(length=5)
    backend.save(str(tmp_path / "tokenizer.json"))
    np.testing.assert_array_equal(Tokenizer.load(tmp_path).encode(SAMPLE), BPE.encode(SAMPLE))


def _metaspace() -> Tokenizer:
    """A tokenizer with Llama's kind of decoder: words with ▁ and single bytes as `<0x..>`."""
    words = {"▁hello": 0, "▁world": 1, "▁": 2} | {f"<0x{b:02X}>": 3 + b for b in range(256)}
    backend = HFTokenizer(models.BPE(vocab=words, merges=[], byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return Tokenizer(backend)


@settings(max_examples=50, deadline=None)
@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=30))
def test_streaming_gives_whole_characters(text):
    for tokenizer in (BPE, BYTES):
        stream = tokenizer.stream()
        pushed = [stream.push(i) for i in tokenizer.encode(text)]
        assert "".join(pushed) == text
        assert stream.flush() == ""


def test_streaming_through_a_decoder_that_is_not_byte_level():
    tokenizer = _metaspace()
    ids = [0, 1, *(3 + b for b in "é".encode())]
    stream = tokenizer.stream()
    assert [stream.push(i) for i in ids] == ["hello", " world", "", "é"]
    assert stream.push(3 + 0xE2) == ""
    assert set(stream.flush()) == {"\ufffd"}


def test_streaming_an_unfinished_character_ends_in_the_replacement_sign():
    stream = BYTES.stream()
    ids = list("a😀".encode())[:-1]
    assert [stream.push(i) for i in ids] == ["a", "", "", ""]
    assert stream.flush() == "\ufffd"
    assert BYTES.decode(ids) == "a\ufffd"


def test_writing_leaves_no_other_file_when_it_fails(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomic(tmp_path / "x", b"1")
    assert list(Path(tmp_path).iterdir()) == []


LINES = "One line, and\nanother: 12345\n\n  an indented one\n'Tis said\nÜber alles 茶\n茶茶\n" * 9


def _foreign() -> dict[str, HFTokenizer]:
    """Tokenizers as other libraries train them: another pattern, SentencePiece's with and without a space in front."""
    pattern = Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
    split = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(pattern, "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    found = {name: HFTokenizer(models.BPE()) for name in ("llama3", "sentencepiece", "metaspace")}
    found["llama3"].pre_tokenizer = split
    found["sentencepiece"].normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    found["metaspace"].pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    for backend in found.values():
        trainer = trainers.BpeTrainer(
            vocab_size=400, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        )
        # SentencePiece never merges over a line end, which is a token of its own.
        backend.train_from_iterator(LINES.split("\n"), trainer)
        backend.add_tokens(["\n"])
    found["unigram"] = HFTokenizer(models.Unigram())
    found["unigram"].pre_tokenizer = pre_tokenizers.Metaspace()
    found["unigram"].train_from_iterator([LINES], trainers.UnigramTrainer(vocab_size=90, show_progress=False))
    return found


@pytest.mark.parametrize(("name", "backend"), _foreign().items())
def test_parts_of_a_long_text_have_the_tokens_of_the_whole_for_other_tokenizers(monkeypatch, name, backend):
    tokenizer = Tokenizer(backend)
    whole = tokenizer.backend.encode(LINES, add_special_tokens=False).ids
    monkeypatch.setattr(module, "PIECE", 40)
    assert len(list(tokenizer.parts(LINES))) > 9
    assert tokenizer.encode(LINES).tolist() == whole


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(st.sampled_from("ab1 \n.é茶"), max_size=30)), st.integers(1, 20), st.integers(1, 4))
def test_a_text_in_blocks_is_cut_as_the_whole(blocks, piece, times):
    assert list(cut(blocks, piece, times * piece + 1)) == list(cut("".join(blocks), piece, times * piece + 1))


def test_of_words_without_an_end_a_part_is_learned_from():
    """Each merge reads all words again, so that a text without spaces would be read thousands of times."""
    rng = random.Random(0)
    endless = "".join(rng.choices(string.ascii_letters, k=5000))
    pieces = ["a cat ", f"so {endless} it ", endless * 3, "-" * 2000, "the end " * 300]
    kept = list(few_long_words(pieces, enough=6000))
    assert "".join(kept) == f"a cat so {endless} it {endless[:1000]}{'the end ' * 300}"
    assert max(map(len, kept[:-1])) == 250
    assert "".join(few_long_words(pieces)) == "".join(pieces)
    spaced = "the cat sat on the mat " * 2000
    assert list(few_long_words([spaced], enough=0)) == [spaced]

"""Reading sequences and alignments: the same alignment from every format, and one clear sentence for every mistake."""

import gzip
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from triune.core.errors import UserError
from triune.protein.read.alignment import parse_alignment, read_alignment
from triune.protein.read.alphabet import AMINO_ACIDS, GAP, LETTERS, UNKNOWN, VOCABULARY, decode, encode
from triune.protein.read.inputs import read_sequences
from triune.protein.read.profile import effective_sequences, profile, sequence_weights

A3M = ">query some text\nMKVL\n>one\nMaaKV-b\n>two\n-KcVLdd\n"


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def parse(content: str | bytes, name: str = "x.a3m"):
    return parse_alignment(name, content if isinstance(content, bytes) else content.encode())


# -- alphabet ---------------------------------------------------------------------------------------------------------


@given(st.text(AMINO_ACIDS + "X-", min_size=1))
def test_letters_survive_encoding(sequence):
    assert decode(encode(sequence)) == sequence


def test_rare_letters_are_read_as_what_they_replace():
    assert decode(encode("UOBZJX")) == "CKXXXX"
    assert len(LETTERS) == VOCABULARY
    with pytest.raises(UserError, match=r"the query holds '1' at position 3 \(and 1 more\)"):
        encode("AC1*", "the query")


# -- formats ----------------------------------------------------------------------------------------------------------


def test_a3m():
    found = parse(A3M)
    assert found.names == ["query", "one", "two"]
    assert found.query == "MKVL"
    assert [decode(row) for row in found.tokens] == ["MKVL", "MKV-", "-KVL"]
    # The b of row one stands before the gap of column 4, the d's of row two behind the last column.
    assert found.deletions.tolist() == [[0, 0, 0, 0], [0, 2, 0, 0], [0, 0, 1, 0]]


def test_insertions_count_for_the_column_behind_them():
    found = parse(">q\nMKVL\n>r\nabMcKVdL\n")
    assert found.deletions[1].tolist() == [2, 1, 0, 1]


SAME = {
    "a2m": ">query\nM..KV.L.\n>one\nMaaKV.-b\n>two\n-..KVcLd\n",
    "fasta": ">query\nM--KV-L-\n>one\nMaaKv--B\n>two\n---KVCLD\n",
    "sto": "# STOCKHOLM 1.0\nquery M..KV.L.\none   MAAKV.-B\ntwo   ---KVCLD\n//\n",
    "aln": "M--KV-L-\nMAAKV--B\n---KVCLD\n",
    "clustal": "CLUSTAL W (1.83)\n\nquery  M--KV-L-\none    MAAKV--B\ntwo    ---KVCLD\n",
}


@pytest.mark.parametrize("format", SAME)
def test_every_format_gives_the_same_alignment(format):
    found = parse(SAME[format], f"x.{format}")
    assert [decode(row) for row in found.tokens] == ["MKVL", "MKV-", "-KVL"]
    assert found.deletions.tolist() == [[0, 0, 0, 0], [0, 2, 0, 0], [0, 0, 0, 1]]


def test_the_content_says_the_format_where_the_suffix_does_not(tmp_path):
    assert parse(SAME["sto"], "x.txt").query == "MKVL"
    assert parse(SAME["aln"], "x.txt").query == "MKVL"
    assert parse(SAME["clustal"], "x.aln").names[1] == "one"
    zipped = write(tmp_path / "x.a3m.gz", gzip.compress(A3M.encode()))
    assert read_alignment(zipped).tokens.shape == (3, 4)


@given(st.lists(st.text("MKVL-", min_size=4, max_size=4), min_size=1, max_size=5), st.data())
def test_a3m_agrees_with_a_loop(rows, data):
    """Insert lower-case letters anywhere; the columns stay, and each insertion is counted before its column."""
    text, expected = ">q\nMKVL\n", []
    for number, row in enumerate(rows):
        inserted = [data.draw(st.integers(0, 3)) for _ in range(5)]
        text += (
            f">{number}\n" + "".join("x" * n + letter for n, letter in zip(inserted, row)) + "x" * inserted[4] + "\n"
        )
        expected.append(inserted[:4])
    found = parse(text)
    assert [decode(row) for row in found.tokens[1:]] == rows
    assert found.deletions[1:].tolist() == expected


def test_colabfold_a3m_of_one_chain_and_of_a_complex():
    assert parse("#4\t1\n" + A3M).chains == ()
    assert parse("#3,1\t1,2\n" + A3M).chains == (3, 1)
    with pytest.raises(UserError, match="chains of 3, 2 residues, together 5, but the query has 4"):
        parse("#3,2\t1,1\n" + A3M)
    for line in ("#4\t1,1", "#3,1\t1", "#0,4\t1,1", "#-1,5\t1,1", "#3,1\t1,0"):
        with pytest.raises(UserError, match="must give a positive number of each for every chain"):
            parse(f"{line}\n{A3M}")


def test_colabfold_nul_bytes_between_databases_are_joined_and_between_queries_refused():
    joined = parse(">101\nMKVL\n>one\nMKV-\n\0>101\nMKVL\n>two\n-KVL\n\0")
    assert joined.names == ["101", "one", "two"]
    with pytest.raises(UserError, match=r"alignments of 2 queries \(101, 102\)"):
        parse(">101\nMKVL\n\0>102\nMKV\n")


# -- mistakes ---------------------------------------------------------------------------------------------------------


def test_a_row_that_is_too_long_is_named():
    rows = "".join(f">r{n}\n{'A' * 142}\n" for n in range(2, 17))
    with pytest.raises(UserError) as error:
        parse(f">q\n{'A' * 142}\n{rows}>r17\n{'A' * 143}\n")
    message = "Row 17 ('r17') has 143 aligned columns, the query has 142; lowercase letters are insertions in A3M"
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.a3m", ">q\nMKVL\n>r\nMK1L\n", r"'x.a3m': row 2 \('r'\) holds '1' at position 3"),
        ("x.a3m", ">q\nMKvL\n", "the query .* has 1 lower-case letters"),
        ("x.a3m", ">q\nMK\0VL\n", "binary file, not text: it holds a NUL byte at offset 5"),
        ("x.a3m", "  \n\n", "'x.a3m' is empty"),
        ("x.a3m", ">q\n>r\n", "the query .* is empty"),
        ("x.fasta", ">q\nMKVL\n>r\nMKV\n", "Row 2 has 3 columns, the query has 4"),
        ("x.fasta", "MKVL\n>r\nMKVL\n", "starts with 'MKVL'"),
        ("x.aln", "MKVL\nMKV\n", "Row 2 has 3 columns"),
        ("x.sto", "# STOCKHOLM 1.0\n//\n", "holds no row"),
        ("x.sto", "# STOCKHOLM 1.0\nq MKVL\nr MKV\n//\n", "cannot be read as Stockholm"),
        ("x.png", "\x89PNG\r\n", "'x.png' is no format that is read here"),
    ],
)
def test_mistakes_are_named(name, content, message):
    with pytest.raises(UserError, match=message):
        parse(content, name)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match=r"cannot be read \(No such file"):
        read_alignment(tmp_path / "none.a3m")
    with pytest.raises(UserError, match="is empty"):
        read_alignment(write(tmp_path / "x.a3m", ""))
    with pytest.raises(UserError, match="cannot be read"):
        read_alignment(write(tmp_path / "x.a3m.gz", "not gzip"))


def test_reading_is_bounded(tmp_path):
    file = write(tmp_path / "x.a3m", A3M)
    with pytest.raises(UserError, match="holds more than 0 MB"):
        read_alignment(file, max_bytes=20)
    short = read_alignment(file, max_rows=2)
    assert len(short.names) == 2
    assert "has 3 rows; the first 2 are used" in short.notes[0]
    # A bomb is not unpacked beyond the bound.
    with pytest.raises(UserError, match="holds more than"):
        read_alignment(write(tmp_path / "b.a3m.gz", gzip.compress(b">q\n" + b"A" * 5_000_000)), max_bytes=1000)


@given(st.binary(max_size=60))
def test_any_bytes_give_an_alignment_or_one_sentence(content):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in ("x.a3m", "x.fasta", "x.sto", "x.aln", "x"):
            try:
                found = parse(content, name)
            except UserError:
                continue
            assert found.tokens.max() < VOCABULARY
            assert GAP not in found.tokens[0]


# -- sequences --------------------------------------------------------------------------------------------------------


def test_fasta(tmp_path):
    file = write(tmp_path / "x.fasta", ">a first\nmk\n V L \n\n>b\nACDEF*\n")
    assert [(found.name, found.letters) for found in read_sequences(file)] == [("a", "MKVL"), ("b", "ACDEF")]


def test_bad_sequences_are_named_and_the_others_still_read(tmp_path):
    file = write(tmp_path / "x.fasta", ">a\nMKVL\n>a\nAC\n>b\nAC-D\n>c\n\n>d\nA1\n>e\nACD\n")
    said: list[str] = []
    found = read_sequences(file, lambda error: said.append(str(error)))
    assert [record.name for record in found] == ["a", "a-2", "e"]
    for part, message in zip(("'b') has gaps", "'c') is empty", "'1'"), said, strict=True):
        assert part in message
    with pytest.raises(UserError, match="has gaps"):
        read_sequences(file)
    with pytest.raises(UserError, match="holds no sequence"):
        read_sequences(write(tmp_path / "y.fasta", ";comment\n"))
    with pytest.raises(UserError, match="NUL byte"):
        read_sequences(write(tmp_path / "z.fasta", ">a\nM\0K\n"))


# -- weights and profile ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [7, 1024])
def test_weights_agree_with_a_loop(block, monkeypatch):
    monkeypatch.setattr("triune.protein.read.profile.BLOCK", block)
    rng = np.random.default_rng(0)
    base = rng.integers(0, GAP + 1, (12, 1, 25))
    tokens = np.where(rng.random((12, 4, 25)) < 0.2, rng.integers(0, GAP + 1, (12, 4, 25)), base).reshape(48, 25)
    weights = sequence_weights(tokens.astype(np.uint8))
    expected = [1 / sum((row == other).mean() >= 0.8 for other in tokens) for row in tokens]
    np.testing.assert_allclose(weights.numpy(), expected, rtol=1e-6)
    assert 12 < float(weights.sum()) < 48


def test_exactly_eighty_percent_is_alike():
    tokens = np.zeros((2, 5), dtype=np.uint8)
    tokens[1, 0] = 1
    assert sequence_weights(tokens).tolist() == [0.5, 0.5]


def test_fragments_do_not_count_for_neff():
    rows = ["ACDEFGHIKL", "ACDEF-----", "ACDE------", "LKIHGFEDCA"]
    tokens = np.stack([encode(row) for row in rows])
    assert effective_sequences(tokens) == pytest.approx(2)


def test_profile_counts_residues_only():
    tokens = np.stack([encode(row) for row in ("AAAAA", "ACX-A", "CCCCC")])
    found = profile(tokens, pseudocount=0)
    assert found.shape == (5, 20)
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-6)
    np.testing.assert_allclose(found[0, :2], [2 / 3, 1 / 3], rtol=1e-6)
    np.testing.assert_allclose(found[2, :2], [1 / 2, 1 / 2], rtol=1e-6)
    # With pseudocounts every amino acid is possible, the frequent ones more so.
    assert (profile(tokens) > 0).all()
    assert len(AMINO_ACIDS) == UNKNOWN


def test_the_profile_of_a_lone_sequence_is_what_blosum62_expects():
    alone, average = profile(encode("WIX")[None]), profile(encode("X")[None])[0]
    np.testing.assert_allclose(alone.sum(1), 1, rtol=1e-6)
    assert alone[0].argmax() == AMINO_ACIDS.index("W")
    likely = alone[1] / average
    assert likely[AMINO_ACIDS.index("V")] > 2.5 > 1 > likely[AMINO_ACIDS.index("D")]
    np.testing.assert_allclose(alone[2], average)
    assert average.argmax() == AMINO_ACIDS.index("L")
    # What was seen outweighs the expectation as rows come in.
    rows = np.stack([encode(row) for row in ("WWWWW", "IIIII", *(letter * 5 for letter in AMINO_ACIDS[:18]))])
    assert abs(profile(rows)[0, 0] - 1 / 20) < abs(average[0] - 1 / 20)


@pytest.mark.parametrize("format", [*SAME, "a3m"])
def test_a_file_that_breaks_off_is_read_or_refused(format):
    whole = (SAME | {"a3m": A3M})[format]
    for end in range(1, len(whole)):
        try:
            parse(whole[:end], f"x.{format}")
        except UserError:
            continue

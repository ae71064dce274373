"""One reader decides what a file holds: an alignment or sequences, which chains, which names; and says so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from triune.core.errors import UserError
from triune.protein.read.alignment import read_alignment
from triune.protein.read.alphabet import AMINO_ACIDS, GAP, check_protein, decode, encode
from triune.protein.read.complexes import BETWEEN, name_of, parts, place_in_chain, residue_index, separations
from triune.protein.read.inputs import read_input, read_sequences
from triune.protein.read.profile import chain_depths, complex_profile, paired_rows, profile

RNG = np.random.default_rng(4)
A, B = ("".join(RNG.choice(list(AMINO_ACIDS), length)) for length in (40, 30))


def relative(sequence: str, seed: int, share: float = 0.5) -> str:
    rng = np.random.default_rng(seed)
    return "".join(str(rng.choice(list(AMINO_ACIDS))) if rng.random() < share else letter for letter in sequence)


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def fasta(*rows: str) -> str:
    return "".join(f">r{number}\n{row}\n" for number, row in enumerate(rows))


# -- alignment or sequences -------------------------------------------------------------------------------------------


def test_dots_are_gaps(tmp_path):
    content = read_input(write(tmp_path / "x.fasta", fasta(A, ".." + A[2:], A[:-3] + "...")))
    (found,) = content.alignments
    assert [decode(row) for row in found.tokens[1:]] == ["--" + A[2:], A[:-3] + "---"]
    assert not content.notes


def test_equally_long_sequences_are_an_alignment_where_they_are_alike_and_that_is_said(tmp_path):
    alike = write(tmp_path / "alike.fasta", fasta(A, *(relative(A, seed) for seed in range(5))))
    content = read_input(alike)
    assert content.alignments[0].tokens.shape == (6, 40)
    assert "are read as an alignment; --as sequences takes each by itself" in content.notes[0]
    unlike = write(tmp_path / "unlike.fasta", fasta(A, A[::-1]))
    content = read_input(unlike)
    assert [found.letters for found in content.sequences] == [A, A[::-1]]
    assert "--as alignment reads them as an alignment" in content.notes[0]


def test_the_reading_can_be_forced(tmp_path):
    gapped = write(tmp_path / "x.fasta", fasta(A, "--" + A[2:]))
    assert [found.letters for found in read_input(gapped, "sequences").sequences] == [A, A[2:]]
    unlike = write(tmp_path / "y.fasta", fasta(A, A[::-1]))
    assert read_input(unlike, "alignment").alignments[0].tokens.shape == (2, 40)
    rows = read_input(write(tmp_path / "z.a3m", fasta(A, A[:10] + "acd" + A[10:-1] + "-")), "sequences")
    assert [found.letters for found in rows.sequences] == [A, A[:10] + "ACD" + A[10:-1]]
    with pytest.raises(UserError, match="Row 2 has 39 columns"):
        read_input(write(tmp_path / "short.fasta", fasta(A, A[1:])), "alignment")


def test_insertions_alone_make_an_a3m(tmp_path):
    (found,) = read_input(write(tmp_path / "x.fasta", fasta(A, A[:10] + "acd" + A[10:]))).alignments
    assert found.deletions[1].tolist() == [0] * 10 + [3] + [0] * 29


# -- names and annotations --------------------------------------------------------------------------------------------


def test_names_are_unique_and_keep_their_letters(tmp_path):
    heads = ["Protein 1", "Protein 2", "sp|P1|X some text", "Größe α", "twice", "twice", "twice-2"]
    text = "".join(f">{head}\n{A[number:]}\n" for number, head in enumerate(heads))
    found = read_sequences(write(tmp_path / "x.fasta", text))
    expected = ["Protein 1", "Protein 2", "sp|P1|X", "Größe", "twice", "twice-3", "twice-2"]
    assert [one.name for one in found] == expected
    assert [one.letters for one in found] == [A[number:] for number in range(7)]


def test_rows_of_annotation_are_no_sequences(tmp_path):
    rows = ">ss_pred PSIPRED\nCCHH\n>ss_conf\n9987\n>q\n" + A + "\n>r\n" + relative(A, 1) + "\n"
    found = read_alignment(write(tmp_path / "x.a3m", rows))
    assert (found.query, found.names) == (A, ["q", "r"])
    with pytest.raises(UserError, match="holds no row of an alignment"):
        read_alignment(write(tmp_path / "y.a3m", ">ss_pred\nCCHHEE\n"))
    with pytest.raises(UserError, match="holds no sequence"):
        read_input(write(tmp_path / "z.fasta", ">ss_pred\nCCHHEE\n"))


def test_several_alignments_in_one_file(tmp_path):
    block = "# STOCKHOLM 1.0\n#=GF ID {}\nq {}\nr {}\n//\n"
    both = write(tmp_path / "x.sto", block.format("One", A, A[::-1]) + block.format("Two", B, B[::-1]))
    assert [(found.name, found.query) for found in read_input(both).alignments] == [("One", A), ("Two", B)]
    with pytest.raises(UserError, match=r"holds the alignments of 2 queries \(One, Two\), but must hold one"):
        read_alignment(both)


# -- odd letters and encodings ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1"])
@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
def test_encodings_and_line_ends(tmp_path, encoding, ends):
    for name, text in (
        ("x.fasta", f"\n \n>Größe\n{A}\n>b\n{B}\n"),
        ("x.a3m", f"\n>Größe\n{A}\n>b\n{relative(A, 1)}\n"),
    ):
        (tmp_path / name).write_bytes(text.replace("\n", ends).encode(encoding))
        content = read_input(tmp_path / name)
        names = [one.name for one in content.sequences] or content.alignments[0].names
        assert names == ["Größe", "b"]


@pytest.mark.parametrize("head", ["#40    1\n", "#40\t1\n", "# a comment\n", "#A3M#\n", "#name text\n\n"])
def test_first_lines_of_an_a3m(tmp_path, head):
    assert read_alignment(write(tmp_path / "x.a3m", head + fasta(A, relative(A, 1)))).query == A


def test_one_stop_codon_does_not_refuse_a_file(tmp_path):
    row = A[:20] + "*" + A[21:]
    for name in ("x.a3m", "x.fasta", "x.aln"):
        text = f"{A}\n{row}\n" if name == "x.aln" else fasta(A, row)
        found = read_alignment(write(tmp_path / name, text))
        assert decode(found.tokens[1]) == row.replace("*", "X")
        assert "stop codons (*) in 1 row(s)" in found.notes[0]
    ended = read_alignment(write(tmp_path / "y.a3m", fasta(A + "*", relative(A, 1) + "*")))
    assert ended.query == A
    assert not ended.notes


def test_dna_and_unknown_residues_are_no_protein():
    rng = np.random.default_rng(0)
    for letters in ("ACGT", "ACGU", "ACGTN", "ACGT" * 5 + "RYKM"):  # the last with codes for several nucleotides
        with pytest.raises(UserError, match="is DNA or RNA"):
            check_protein(encode("".join(rng.choice(list(letters), 30))), "it")
    with pytest.raises(UserError, match=r"unknown \(X\) in 30 of 40 residues.*; --force"):
        check_protein(encode(A[:10] + "X" * 30), "it", "--force reads it as a protein")
    for protein in (
        A,
        "A" * 40,
        "GA" * 20,
        "CATTAGS",
        "GAGACSTTGAGSGNCA" * 3 + "P",
    ):  # few letters, or too short to tell
        check_protein(encode(protein), "it")


# -- complexes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("separator", [":", "/"])
def test_chains_of_a_sequence(tmp_path, separator):
    (found,) = read_sequences(write(tmp_path / "x.fasta", f">c\n{A}{separator}{B}*\n"))
    assert (found.letters, found.chains) == (A + B, (40, 30))
    with pytest.raises(UserError, match="has an empty chain"):
        read_sequences(write(tmp_path / "y.fasta", f">c\n{A}{separator}\n"))


def test_chains_of_an_alignment(tmp_path):
    rows = fasta(f"{A}:{B}", f"{relative(A, 1)}:{'-' * 30}")
    assert read_alignment(write(tmp_path / "x.fasta", rows)).chains == (40, 30)
    with pytest.raises(UserError, match=r"row 2 \('r1'\) has chains of 39, 31 columns"):
        read_alignment(write(tmp_path / "y.fasta", fasta(f"{A}:{B}", f"{A[:-1]}:{A[-1]}{B}")))


def complex_a3m() -> str:
    """As ColabFold writes it: the paired query and a paired row, then the rows of each chain alone."""
    only_a = "".join(f">a{n}\n{relative(A, n)}{'-' * 30}\n" for n in range(20))
    only_b = "".join(f">b{n}\n{'-' * 40}{relative(B, n)}\n" for n in range(15))
    pair = f">p\n{relative(A, 99)}{relative(B, 99)}\n"
    return f"#40,30\t1,1\n>101\t102\n{A}{B}\n{pair}>101\n{A}{'-' * 30}\n{only_a}>102\n{'-' * 40}{B}\n{only_b}"


def test_unpaired_rows_count_for_their_chain(tmp_path):
    found = read_alignment(write(tmp_path / "x.a3m", complex_a3m()))
    assert found.chains == (40, 30)
    one, other = parts(found)
    assert (one.query, len(one.names)) == (A, 23)
    assert (other.query, len(other.names)) == (B, 18)
    # The query stands there twice: paired, and alone.
    assert chain_depths(found.tokens, found.chains) == pytest.approx([22, 17])
    assert len(paired_rows(found.tokens, slice(0, 40), slice(40, 70))) == 2
    columns = complex_profile(found.tokens, found.chains)
    np.testing.assert_array_equal(columns[40:], profile(other.tokens))
    assert GAP not in found.tokens[0]


def test_separations_do_not_cross_chains():
    apart = separations((3, 2), 5)
    assert apart[0].tolist() == [0, 1, 2, BETWEEN, BETWEEN]
    assert apart[4].tolist() == [BETWEEN, BETWEEN, BETWEEN, 1, 0]
    assert separations((), 3).tolist() == [[0, 1, 2], [1, 0, 1], [2, 1, 0]]
    assert residue_index((3, 2), 5).tolist() == [0, 1, 2, 203, 204]
    assert [name_of(number) for number in (0, 25, 26, 51, 52, 53, 104)] == ["A", "Z", "a", "z", "AA", "AB", "BA"]
    assert place_in_chain((3, 2), 5) == [("A", 1), ("A", 2), ("A", 3), ("B", 1), ("B", 2)]

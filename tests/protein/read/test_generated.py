"""Made-up structures and alignments whose truth is known: every residue is where it belongs, or the file is refused."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest

from triune.core.errors import UserError
from triune.protein.read.alphabet import AMINO_ACIDS, GAP, decode, encode
from triune.protein.read.inputs import read_input
from triune.protein.read.select import select_chain
from triune.protein.read.structure import read_chains

CASES = 160


def letters(rng: np.random.Generator, length: int) -> str:
    return "".join(rng.choice(list(AMINO_ACIDS), length))


class Case(NamedTuple):
    """A structure file, the sequence it is laid on, and where each residue of that sequence truly lies (NaN: unseen).

    `kept` says whether numbers, or SEQRES with numbers, leave no doubt, so that every seen residue must be placed.
    """

    lines: list[str]
    query: str
    truth: np.ndarray
    kept: bool
    about: str


def query_of(rng: np.random.Generator) -> tuple[str, bool]:
    """A random sequence, or one with repeats that are exact or nearly so."""
    if rng.random() < 0.5:
        return letters(rng, int(rng.integers(60, 110))), False
    unit = letters(rng, int(rng.integers(20, 34)))
    copies = [unit] * int(rng.integers(2, 5))
    if rng.random() < 0.3:
        copies = ["".join(x if rng.random() > 0.04 else rng.choice(list(AMINO_ACIDS)) for x in copy) for copy in copies]
    return letters(rng, int(rng.integers(0, 6))) + "".join(copies) + letters(rng, int(rng.integers(0, 6))), True


def numbering(rng: np.random.Generator, seen: list[int]) -> tuple[str, list[tuple[int, str]], bool]:
    """Numbers and insertion codes of the seen residues (0-based places), and whether they count along the sequence."""
    kind = str(
        rng.choice(["along", "shifted", "negative", "gap", "codes", "anew"], p=[0.35, 0.15, 0.1, 0.1, 0.15, 0.15])
    )
    if kind == "along":
        return kind, [(at + 1, "") for at in seen], True
    if kind in ("shifted", "negative"):
        shift = int(rng.integers(50, 900)) if kind == "shifted" else -int(rng.integers(3, 40))
        return kind, [(at + 1 + shift, "") for at in seen], True
    if kind == "gap":  # the author left numbers out where no residue is missing, as in the numbering of antibodies
        border, jump = int(rng.integers(len(seen))), int(rng.integers(2, 9))
        return kind, [(at + 1 + jump * (number >= border), "") for number, at in enumerate(seen)], False
    if kind == "codes":  # some residues have the number of the one before, and a letter
        found, place = [], 0
        border = int(rng.integers(5, len(seen) - 5))
        for number, at in enumerate(seen):
            inserted = 0 < number - border <= 3 and seen[border : number + 1] == list(range(seen[border], at + 1))
            place += 0 if inserted else (at - seen[number - 1] if number else at + 1)
            found.append((place, "ABC"[number - border - 1] if inserted else ""))
        return kind, found, True
    return kind, [(number + 1, "") for number in range(len(seen))], False


def case(rng: np.random.Generator, maker: Any) -> Case:
    query, repeats = query_of(rng)
    made = maker.helix(query, seed=int(rng.integers(1 << 30)))
    unseen = set()
    for _ in range(int(rng.integers(0, 3))):
        first = int(rng.integers(len(query)))
        unseen |= set(range(first, first + int(rng.integers(1, 34))))
    if len(unseen & set(range(len(query)))) > len(query) // 2:
        unseen = set()
    seen = [at for at in range(len(query)) if at not in unseen]
    substituted = {at: letters(rng, 1) for at in seen if rng.random() < 0.04} if rng.random() < 0.3 else {}
    built = "".join(substituted.get(at, letter) for at, letter in enumerate(query))
    made = made._replace(sequence=built)
    kind, numbers, counts = numbering(rng, seen)
    lines = maker.seqres(made) if (with_seqres := rng.random() < 0.3) else []
    for (number, code), at in zip(numbers, seen):
        for atom, (x, y, z) in made.atoms[at].items():
            residue = name_of(built[at])
            lines.append(maker.line("ATOM", atom, " ", residue, "A", number, code or " ", x, y, z, 1.0))
    truth = np.full((len(query), 3), np.nan)
    for at in seen:
        truth[at] = made.atoms[at].get("CB", (np.nan,) * 3)
    doubt = repeats and kind != "along"
    return Case(lines, query, truth, counts and not doubt and not substituted, f"{kind}, SEQRES {with_seqres}")


def name_of(letter: str) -> str:
    from Bio.Data.PDBData import protein_letters_1to3

    return protein_letters_1to3[letter].upper()


def test_structures_are_right_or_refused(maker, tmp_path):
    rng = np.random.default_rng(5)
    refused = placed = all_residues = 0
    for number in range(CASES):
        made = case(rng, maker)
        file = tmp_path / f"{number}.pdb"
        file.write_text("\n".join([*made.lines, "END", ""]))
        here = ~np.isnan(made.truth[:, 0])
        try:
            chain = select_chain(read_chains(file), made.query)
        except UserError as error:
            refused += 1
            if made.kept:
                raise AssertionError(f"{number}, {made.about}: {error}") from error
            continue
        found = chain.resolved & here  # glycine has an imputed Cβ, which is not compared
        off = np.linalg.norm(chain.cbeta[found] - made.truth[found], axis=1)
        assert not len(off) or off.max() < 0.01, (
            number,
            made.about,
            np.flatnonzero(found)[off > 0.01][:9],
            chain.notes,
        )
        assert not (chain.resolved & ~here & (np.array(list(made.query)) != "G")).any() or "differ" in str(chain.notes)
        lost = int((here & ~chain.resolved).sum())
        assert not lost or not made.kept, (number, made.about, lost, chain.notes)
        assert not lost or any(words in str(chain.notes) for words in ("left out", "not in the chain", "have no place"))
        placed, all_residues = placed + int(found.sum()), all_residues + int(here.sum())
    # Refusing everything would be right as well, and of no use.
    assert refused < 0.12 * CASES
    assert placed > 0.97 * all_residues


def test_three_repeats_of_which_the_second_is_missing(maker, tmp_path):
    unit = letters(np.random.default_rng(2), 33)
    made = maker.helix(unit * 3)
    for at in range(33, 66):
        del made.atoms[at]
    lines = maker.lines(made)
    (tmp_path / "x.pdb").write_text("\n".join([*lines, "END", ""]))
    chain = select_chain(read_chains(tmp_path / "x.pdb"), unit * 3)
    assert np.flatnonzero(~chain.resolved).tolist() == list(range(33, 66))
    np.testing.assert_allclose(
        chain.cbeta[70], made.atoms[70]["CB"] if "CB" in made.atoms[70] else chain.cbeta[70], atol=1e-3
    )
    # One repeat alone, with numbers that do not count along the sequence, can be any of the three.
    alone = [line[:22] + f"{int(line[22:26]) + 500:4}" + line[26:] for line in lines if int(line[22:26]) > 66]
    (tmp_path / "y.pdb").write_text("\n".join([*alone, "END", ""]))
    with pytest.raises(UserError, match=r"fits the sequence at 3 places \(residues 1-33, 34-66, 67-99\)"):
        select_chain(read_chains(tmp_path / "y.pdb"), unit * 3)


def test_substituted_residues_are_said(maker, tmp_path):
    query = letters(np.random.default_rng(3), 70)
    changed = "".join("W" if at in (5, 40) and letter != "W" else letter for at, letter in enumerate(query))
    maker.write(tmp_path / "x.pdb", maker.helix(changed))
    chain = select_chain(read_chains(tmp_path / "x.pdb"), query)
    assert chain.resolved.all()
    expected = ", ".join(f"{query[at]}{at + 1}W" for at in (5, 40) if query[at] != "W")
    assert f"residues differ from the sequence: {expected}" in str(chain.notes)


# -- alignments -------------------------------------------------------------------------------------------------------


class Rows(NamedTuple):
    """An alignment: columns as letters, and residues inserted before each column."""

    tokens: np.ndarray
    inserted: list[list[str]]


def rows_of(rng: np.random.Generator, gaps: bool) -> Rows:
    columns, count = int(rng.integers(12, 60)), int(rng.integers(2, 9))
    query = encode(letters(rng, columns))
    tokens = np.stack(
        [query] + [np.where(rng.random(columns) < 0.4, encode(letters(rng, columns)), query)] * (count - 1)
    )
    if gaps:
        tokens[1:][rng.random((count - 1, columns)) < 0.2] = GAP
        tokens[-1, int(rng.integers(columns))] = GAP
    inserted = [[""] * columns for _ in range(count)]
    if gaps:
        for row in inserted[1:]:
            for column in rng.integers(0, columns, 2).tolist():
                row[column] = letters(rng, int(rng.integers(1, 4)))
    return Rows(tokens, inserted)


def written(rng: np.random.Generator, rows: Rows, format: str) -> str:
    texts = [decode(row) for row in rows.tokens]
    widest = [max(len(row[column]) for row in rows.inserted) for column in range(len(texts[0]))]

    def wide(text: str, row: list[str], lower: bool, fill: str) -> str:
        parts = [(i.lower() if lower else i) + fill * (w - len(i)) + x for i, w, x in zip(row, widest, text)]
        return "".join(parts)

    names = ["query", *(f"r{number} text" for number in range(1, len(texts)))]
    if format == "a3m":
        bodies = ["".join(i.lower() + x for i, x in zip(row, text)) for text, row in zip(texts, rows.inserted)]
    elif format == "a2m":
        bodies = [wide(text, row, True, ".") for text, row in zip(texts, rows.inserted)]
    else:
        fill = str(rng.choice(["-", "."]))
        bodies = [wide(text, row, False, fill).replace("-", fill) for text, row in zip(texts, rows.inserted)]
    if format == "stockholm":
        return "# STOCKHOLM 1.0\n" + "".join(f"{n.split()[0]} {b}\n" for n, b in zip(names, bodies)) + "//\n"
    if format == "clustal":
        bodies = [body.replace(".", "-") for body in bodies]
        blocks = [[body[at : at + 20] for body in bodies] for at in range(0, len(bodies[0]), 20)]
        lines = ["\n".join(f"{n.split()[0]:10} {b}" for n, b in zip(names, block)) for block in blocks]
        return "CLUSTAL W (1.83)\n\n" + "\n\n".join(lines) + "\n"
    if format == "aln":
        return "\n".join(bodies) + "\n"
    extra = ">ss_pred\nCCCHHH\n" if format == "a3m" and rng.random() < 0.3 else ""
    return extra + "".join(f">{n}\n{b[: len(b) // 2]}\n{b[len(b) // 2 :]}\n" for n, b in zip(names, bodies))


def disturbed(rng: np.random.Generator, text: str, format: str) -> bytes:
    """What editors and programs add: byte-order marks, other line ends, blank lines, comments."""
    if format in ("a3m", "fasta") and rng.random() < 0.2:
        text = f"# a comment\n{text}"
    if rng.random() < 0.3:
        text = "\n  \n" + text
    if rng.random() < 0.3:
        text = text.replace("\n", str(rng.choice(["\r\n", "\r"])))
    encoding = str(rng.choice(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"], p=[0.6, 0.1, 0.1, 0.1, 0.1]))
    return text.encode(encoding)


def test_alignments_are_right_or_refused(tmp_path):
    rng = np.random.default_rng(11)
    suffixes = {"stockholm": "sto", "clustal": "clw"}
    for number in range(CASES):
        format = str(rng.choice(["a3m", "a2m", "fasta", "stockholm", "clustal", "aln"]))
        rows = rows_of(rng, gaps=rng.random() < 0.8)
        # An A3M under the name of a FASTA is an A3M nevertheless.
        suffix = "fasta" if format == "a3m" and rng.random() < 0.3 else suffixes.get(format, format)
        file = tmp_path / f"{number}.{suffix}"
        file.write_bytes(disturbed(rng, written(rng, rows, format), format))
        content = read_input(file)
        assert not content.sequences, (number, format, content.notes)
        (found,) = content.alignments
        np.testing.assert_array_equal(found.tokens, rows.tokens, err_msg=f"{number} {format}")
        expected = [[len(part) for part in row] for row in rows.inserted]
        assert found.deletions.tolist() == expected, (number, format)


NUMBERED_ON = [15, 196, 278, 387, 1225, 3326, 4263, *range(1, 30)]
"""Seeds; with the first four a few residues once lay beside others over a gap, where they agreed by chance, and with
1225 a run that fits elsewhere was kept, since what lies before it was placed as wrongly; with 3326 and 4263 a word over
a broken bond occurred once, though its halves do not."""


@pytest.mark.parametrize("seed", NUMBERED_ON)
def test_repeats_nearly_alike_whose_numbers_run_on_over_what_is_missing(seed: int, maker: Any, tmp_path: Any) -> None:
    """No SEQRES, and numbers that do not count what is missing, from the start or from the middle on: only letters and
    missing bonds tell where residues lie.
    """
    rng = np.random.default_rng(seed)
    unit, rate = letters(rng, int(rng.integers(14, 30))), rng.choice([0.05, 0.1, 0.15])
    copies = [
        "".join(x if rng.random() > rate else rng.choice(list(AMINO_ACIDS)) for x in unit)
        for _ in range(int(rng.integers(2, 5)))
    ]
    query = letters(rng, int(rng.integers(0, 6))) + "".join(copies) + letters(rng, int(rng.integers(0, 6)))
    unseen: set[int] = set()
    for _ in range(int(rng.integers(1, 4))):
        first = int(rng.integers(len(query)))
        unseen |= set(range(first, first + int(rng.integers(1, 30))))
    seen = [at for at in range(len(query)) if at not in unseen]
    if len(seen) < max(12, len(query) * 0.3):
        return
    made = maker.helix(query, seed=seed)
    middle = len(seen) // 2 if seed % 3 == 1 else 0
    numbers = [at + 1 if n < middle else (seen[middle] if middle else 0) + 1 + n - middle for n, at in enumerate(seen)]
    lines = [
        maker.line("ATOM", atom, " ", name_of(query[at]), "A", number, " ", *xyz, 1.0)
        for at, number in zip(seen, numbers)
        for atom, xyz in made.atoms[at].items()
    ]
    (tmp_path / "x.pdb").write_text("\n".join([*lines, "END", ""]))
    try:
        chain = select_chain(read_chains(tmp_path / "x.pdb"), query)
    except UserError:
        return
    for at in np.flatnonzero(chain.resolved).tolist():
        assert at in seen, (at, chain.notes)
        if "CB" in made.atoms[at]:
            assert np.linalg.norm(chain.cbeta[at] - made.atoms[at]["CB"]) < 0.01, (at, chain.notes)
    assert chain.resolved.all() or chain.notes

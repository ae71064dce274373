"""Complexes: chains that share a name in a structure, which copies are taken, and the chains of an alignment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from triune.core.errors import UserError
from triune.protein.language.labelled import _expand
from triune.protein.read.alignment import read_alignment
from triune.protein.read.inputs import read_input
from triune.protein.read.select import select_chain, select_complex
from triune.protein.read.structure import read_chains

RNG = np.random.default_rng(77)
LONG, SHORT = ("".join(RNG.choice(list("ACDEFGHIKLMNPQRSTVWY"), size)) for size in (50, 33))


def atoms(maker: Any, sequence: str, chain: str = " ", first: int = 1, shift: float = 0.0) -> list[str]:
    made = maker.helix(sequence, chain)
    moved = {at: {name: xyz + [shift, 0, 0] for name, xyz in one.items()} for at, one in made.atoms.items()}
    return maker.lines(made._replace(atoms=moved), first)


def written(path: Path, *lines: str) -> list[Any]:
    path.write_text("\n".join([*lines, "END", ""]))
    return read_chains(path)


@pytest.mark.parametrize("chain", [" ", "A"])
@pytest.mark.parametrize(("number", "ended"), [(51, True), (20, True), (1, True), (1, False), (20, False)])
def test_molecules_of_one_name_are_parted(maker: Any, tmp_path: Path, chain: str, number: int, ended: bool) -> None:
    first = 1 if number != 20 else 30  # of the second case the numbers fall before they come again
    lines = [*atoms(maker, LONG, chain, first), *["TER"] * ended, *atoms(maker, SHORT, chain, number, 9.0)]
    chains = written(tmp_path / "x.pdb", *lines)
    assert [one.sequence for one in chains] == [LONG, SHORT]
    assert all("read as 2 molecules" in one.notes[-1] for one in chains)
    found = select_complex(chains, [SHORT, LONG])
    assert found.sequence == SHORT + LONG
    assert found.resolved.all()
    np.testing.assert_array_equal(found.cbeta, np.concatenate([chains[1].cbeta, chains[0].cbeta]))


def test_equal_molecules_without_names_are_the_two_of_a_dimer(maker: Any, tmp_path: Path) -> None:
    chains = written(tmp_path / "x.pdb", *atoms(maker, LONG), "TER", *atoms(maker, LONG, " ", 51, 9.0), "TER")
    assert select_complex(chains, [LONG, LONG]).resolved.sum() == 100
    np.testing.assert_array_equal(select_chain(chains, LONG).cbeta, chains[0].cbeta)


@pytest.mark.parametrize("jump", [8, 0])
def test_a_ter_record_at_a_gap_of_one_chain_parts_no_query(maker: Any, tmp_path: Path, jump: int) -> None:
    lines = atoms(maker, LONG)
    before = [line for line in lines if int(line[22:26]) <= 22]
    behind = [line for line in lines if int(line[22:26]) > 30]
    behind = [f"{line[:22]}{int(line[22:26]) - 8 + jump:4}{line[26:]}" for line in behind]
    laid = select_chain(written(tmp_path / "x.pdb", *before, "TER", *behind), LONG)
    made = maker.helix(LONG)
    assert laid.resolved.sum() >= 36
    for at in np.flatnonzero(laid.resolved):
        np.testing.assert_allclose(laid.backbone[at, 1], made.atoms[at]["CA"], atol=1e-3)
    assert "2 molecules that share a name are parts of the sequence: read as one chain" in laid.notes
    named = [line[:21] + "A" + line[22:] for line in (*before, "TER".ljust(80), *behind)]
    assert len(written(tmp_path / "y.pdb", *named)) == (1 if jump else 2)


def test_a_bond_across_a_ter_record_is_one_chain(maker: Any, tmp_path: Path) -> None:
    lines = atoms(maker, LONG)
    at = next(number for number, line in enumerate(lines) if int(line[22:26]) == 25)
    assert [one.sequence for one in written(tmp_path / "x.pdb", *lines[:at], "TER", *lines[at:])] == [LONG]


def test_polymers_to_which_the_authors_gave_one_name_are_parted(maker: Any, tmp_path: Path) -> None:
    one = maker.mmcif(maker.helix(LONG, "Q"))
    rows = [line for line in one.split("\n") if line.startswith("ATOM")]
    other = [line.replace(" Z 1 ", " W 1 ").split() for line in rows]
    moved = [" ".join([*row[:10], f"{float(row[10]) + 9:.3f}", *row[11:]]) for row in other]
    (tmp_path / "x.cif").write_text(one.rstrip("#\n") + "\n" + "\n".join(moved) + "\n#\n")
    chains = read_chains(tmp_path / "x.cif")
    assert [(chain.name, chain.sequence) for chain in chains] == [("x_Q", LONG), ("x_Q-2", LONG)]
    np.testing.assert_allclose(chains[1].cbeta - chains[0].cbeta, [[9, 0, 0]] * 50, atol=1e-4)


def test_of_copies_those_are_taken_that_touch(maker: Any, tmp_path: Path) -> None:
    places = (("A", LONG, 0), ("B", SHORT, 100), ("C", LONG, 300), ("D", SHORT, 6), ("E", LONG, 12))
    chains = written(tmp_path / "x.pdb", *(line for name, one, at in places for line in atoms(maker, one, name, 1, at)))
    found = select_complex(chains, [LONG, SHORT])
    assert found.name in ("x_A+x_D", "x_E+x_D")
    assert select_complex(chains, [LONG, SHORT, LONG]).name in ("x_A+x_D+x_E", "x_E+x_D+x_A")
    assert any("fit the sequence, too" in note for note in found.notes)
    with pytest.raises(UserError, match="does not have one for each"):
        select_complex(chains, [SHORT, SHORT, SHORT])


def test_a_first_line_counts_chains_once_or_as_often_as_there_are_copies(tmp_path: Path) -> None:
    file = tmp_path / "x.a3m"
    file.write_text(f"#50,33\t2,1\n>101\t102\n{LONG}{SHORT}\n>u\n{LONG.lower()}{'-' * 83}\n")
    once = read_alignment(file)
    assert once.chains == (50, 33)
    assert once.notes == (
        "of a chain in several copies one is read: contacts between copies look like contacts within one",
    )
    file.write_text(f"#50,33\t2,1\n>101\t102\n{LONG}{LONG}{SHORT}\n")
    assert (read_alignment(file).chains, read_alignment(file).notes) == ((50, 50, 33), ())
    file.write_text(f"#33\t2\n>101\n{SHORT}{SHORT}\n")
    assert read_alignment(file).chains == (33, 33)
    file.write_text(f"#33\t1\n>101\n{LONG}\n")
    with pytest.raises(
        UserError, match="its first line gives chains of 33 residues, together 33, but the query has 50"
    ):
        read_alignment(file)


def test_rows_of_a_complex_keep_its_chains_one_by_one(tmp_path: Path) -> None:
    file = tmp_path / "x.a3m"
    file.write_text(f"#50,33\t1,1\n>q\n{LONG}{SHORT}\n>u\n{LONG[:9]}aa{LONG[9:]}{'-' * 33}\n>v\n{'-' * 50}{SHORT}\n")
    found = read_input(file, "sequences").sequences
    assert [(one.name, one.chains, len(one.letters)) for one in found] == [
        ("q", (50, 33), 83), ("u", (), 52), ("v", (), 33),
    ]  # fmt: skip


def test_a_model_of_single_proteins_refuses_a_complex(tmp_path: Path) -> None:
    file = tmp_path / "x.fasta"
    file.write_text(f">pair\n{LONG}:{SHORT}\n")
    with pytest.raises(UserError, match=r"pair of '.*' is a complex; give its chains by themselves"):
        _expand([str(file)])

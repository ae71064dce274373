"""Names and numbers of residues as programs write them."""

from __future__ import annotations

import numpy as np
import pytest

from triune.core.errors import UserError
from triune.protein.read.atoms import letter_of, residue_number
from triune.protein.read.select import select_chain, select_complex
from triune.protein.read.structure import read_chains

SEQUENCE = "MKVLAGDWTRESHIFQNPYCMKWDE"


@pytest.mark.parametrize(
    ("letter", "names"),
    [
        ("H", "HID HIE HIP HSD HSE HSP HISD HISE HISH"), ("C", "CYX CYM CYS2 CYSH"), ("D", "ASH ASPP ASPH"),
        ("E", "GLH GLUP GLUH"), ("K", "LYN LSN LYSH"), ("R", "ARN"), ("Y", "TYM"), ("M", "NMET CMET MSE"),
        ("A", "NALA CALA"), ("D", "CASP NASP"), ("L", "NLEU CLEU"),
        ("C", "CYT NCYN"), ("Y", "TYO"), ("H", "H1S CHIP"), ("K", "NLYP"),
        ("N", "DSG DASN"), ("D", "DAS DASP"), ("Q", "DGN DGLN"), ("E", "DGL DGLU"), ("H", "DHI DHSE"),
        ("M", "MED DMET"),
        ("S", "SEP S1P SP2"), ("T", "TPO T1P THP1"), ("Y", "PTR Y1P TP2"), ("Q", "PGLU QLN"), ("P", "CHYP"),
    ],
)  # fmt: skip
def test_names_of_molecular_dynamics_are_their_residues(maker, tmp_path, letter, names):
    for name in names.split():
        assert letter_of(name, standard=True) == letter
        made = maker.helix(SEQUENCE[:5] + letter + SEQUENCE[6:])
        lines = [line[:17] + f"{name:<4}" + line[21:] if int(line[22:26]) == 6 else line for line in maker.lines(made)]
        (tmp_path / "x.pdb").write_text("\n".join([*lines, "END", ""]))
        (chain,) = read_chains(tmp_path / "x.pdb")
        assert chain.sequence == made.sequence, name


def test_a_name_of_the_bank_means_what_the_bank_says_where_it_is_no_standard_residue():
    assert letter_of("HSE") == "S"  # homoserine, as a HETATM record has it
    assert letter_of("HSE", standard=True) == "H"
    assert letter_of("GOL") is None
    assert letter_of("UNK") == "X"


def test_mirror_images_have_the_letters_of_their_residues():
    names = "DAL DAR DSG DAS DCY DGN DGL DHI DIL DLE DLY MED DPN DPR DSN DTH DTR DTY DVA"
    assert "".join(letter_of(name) or "-" for name in names.split()) == "ARNDCQEHILKMFPSTWYV"


def test_an_mmcif_file_without_places_in_its_sequence_is_laid_on_it(maker, tmp_path):
    made = maker.helix(SEQUENCE)
    del made.atoms[7], made.atoms[8]
    rows = [
        " ".join("." if at == 8 else cell for at, cell in enumerate(line.split())) if " Z 1 " in line else line
        for line in maker.mmcif(made).splitlines()
    ]
    (tmp_path / "x.cif").write_text("\n".join([*rows, ""]))
    (chain,) = read_chains(tmp_path / "x.cif")
    assert chain.sequence == SEQUENCE
    assert np.flatnonzero(~chain.resolved).tolist() == [7, 8]


def test_numbers():
    expected = {
        "   1 ": (1, ""), "  -5 ": (-5, ""), "  52A": (52, "A"), " 1A  ": (1, "A"), "A000 ": (10_000, ""),
        "A001B": (10_001, "B"), "ZZZZ ": (1_223_055, ""), "a000 ": (1_223_056, ""), "9999": (9999, ""),
    }  # fmt: skip
    assert {text: residue_number(text, "it") for text in expected} == expected
    for wrong in ("", "x", "1.5", "--1", "A00"):
        with pytest.raises(UserError, match="must have a whole number"):
            residue_number(wrong, "line 7")


def test_hybrid_numbers_in_a_file(maker, tmp_path):
    lines = maker.lines(maker.helix(SEQUENCE))
    names = [*map(str, range(9990, 10_000)), *(f"A00{digit}" for digit in "0123456789ABCDEFGHI")]
    hybrid = [line[:22] + names[int(line[22:26]) - 1] + line[26:] for line in lines]
    (tmp_path / "x.pdb").write_text("\n".join([*hybrid, "END", ""]))
    (chain,) = read_chains(tmp_path / "x.pdb")
    assert chain.sequence == SEQUENCE
    assert chain.residue_index.tolist() == list(range(25))
    (tmp_path / "y.pdb").write_text("\n".join([line[:30] + "  ******" + line[38:] for line in lines]))
    with pytest.raises(UserError, match=r"line 1 of the PDB file has .* must have three coordinates"):
        read_chains(tmp_path / "y.pdb")


def test_a_structure_in_utf16_and_one_without_atoms(maker, tmp_path):
    (tmp_path / "x.pdb").write_text("\n".join(maker.lines(maker.helix(SEQUENCE))), encoding="utf-16")
    assert read_chains(tmp_path / "x.pdb")[0].sequence == SEQUENCE
    (tmp_path / "x.cif").write_text("data_X\n_cell.length_a 1\n")
    with pytest.raises(UserError, match="it holds no atoms"):
        read_chains(tmp_path / "x.cif")


def test_molecules_that_share_a_name_are_told_apart(maker, tmp_path):
    lines = [*maker.lines(maker.helix(SEQUENCE)), "TER", *maker.lines(maker.helix(SEQUENCE[:20], seed=1)), "END", ""]
    (tmp_path / "x.pdb").write_text("\n".join(lines))
    assert [(chain.name, chain.sequence) for chain in read_chains(tmp_path / "x.pdb")] == [
        ("x_A", SEQUENCE), ("x_A-2", SEQUENCE[:20]),
    ]  # fmt: skip
    segments = [
        f"{line[:21]} {line[22:72]:<50}PRO{letter}{line[76:]}"
        for letter in "AB"
        for line in maker.lines(maker.helix(SEQUENCE))
    ]
    (tmp_path / "y.pdb").write_text("\n".join(segments))
    assert [chain.name for chain in read_chains(tmp_path / "y.pdb")] == ["y_PROA", "y_PROB"]


def test_numbers_that_go_on_where_the_chain_is_broken_are_not_followed(maker, tmp_path):
    query = "".join(np.random.default_rng(1).choice(list("ACDEFGHIKLMNPQRSTVWY"), 80))
    made = maker.helix(query)
    kept = [at for at in range(80) if not 60 <= at < 70]
    lines = [
        line[:22] + f"{kept.index(int(line[22:26]) - 1) + 1:4}" + line[26:]
        for line in maker.lines(made)
        if int(line[22:26]) - 1 in kept
    ]
    (tmp_path / "x.pdb").write_text("\n".join([*lines, "END", ""]))
    (chain,) = read_chains(tmp_path / "x.pdb")
    assert not chain.counted
    laid = chain.on(query)
    for at in np.flatnonzero(laid.resolved):
        np.testing.assert_allclose(laid.backbone[at, 1], made.atoms[at]["CA"], atol=1e-3)
    assert laid.resolved.sum() >= 60


def test_chains_of_a_complex_come_from_one_file(maker, tmp_path):
    one, other = SEQUENCE, "WWYYKKLMNPQRSTAVCDEFGH"
    maker.write(tmp_path / "x.pdb", maker.helix(other, "B"), maker.helix(one, "A"), maker.helix(one, "C", seed=3))
    chains = read_chains(tmp_path / "x.pdb")
    found = select_complex(chains, [one, other])
    assert (found.name, found.sequence) == ("x_A+x_B", one + other)
    assert select_complex(chains, [one, one]).name == "x_A+x_C"
    with pytest.raises(UserError, match="does not match the sequence"):
        select_complex(chains, [one, "AAAA" * 6])


def test_of_several_chains_the_one_that_differs_least_is_taken_and_the_others_named(maker, tmp_path):
    changed = SEQUENCE[:12] + "W" + SEQUENCE[13:]
    maker.write(tmp_path / "x.pdb", maker.helix(changed), maker.helix(SEQUENCE, "B"), maker.helix(SEQUENCE, "C"))
    chain = select_chain(read_chains(tmp_path / "x.pdb"), SEQUENCE)
    assert chain.name == "x_B"
    assert "x_C, x_A fit the sequence, too; x_B is used" in chain.notes


@pytest.mark.parametrize(
    ("name", "letter", "bank", "atom"),
    [("HSE", "H", "S", "CE1"), ("GLH", "E", "Q", "OE2"), ("HSE", "H", "S", "")],
)
def test_side_chains_tell_what_a_name_in_a_hetatm_record_means(maker, tmp_path, name, letter, bank, atom):
    made = maker.helix(SEQUENCE[:5] + letter + SEQUENCE[6:])
    lines = []
    for line in maker.lines(made):
        here = int(line[22:26]) == 6
        lines.append("HETATM" + line[6:17] + name + line[20:] if here else line)
        if here and atom and line[12:16].strip() == "CA":
            lines.append(lines[-1][:12] + f" {atom:<3}" + lines[-1][16:])
    (tmp_path / "x.pdb").write_text("\n".join([*lines, "END", ""]))
    (chain,) = read_chains(tmp_path / "x.pdb")
    assert chain.sequence[5] == (letter if atom else bank)
    # The sequence that the file gives has the same name, and it means the same there.
    from Bio.Data.PDBData import protein_letters_1to3

    names = [protein_letters_1to3[one].upper() for one in made.sequence]
    names[5] = name
    seqres = [f"SEQRES {at // 13 + 1:>3} A   25  {' '.join(names[at : at + 13])}" for at in (0, 13)]
    (tmp_path / "y.pdb").write_text("\n".join([*seqres, *lines, "END", ""]))
    (whole,) = read_chains(tmp_path / "y.pdb")
    assert whole.complete and whole.sequence == chain.sequence

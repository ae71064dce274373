"""Reading structures: what is missing, doubled, modified or odd in a file, and laying a chain on a sequence."""

import gzip

import numpy as np
import pytest

from triune.core.errors import UserError
from triune.protein.read.matching import place, positions
from triune.protein.read.select import select_chain
from triune.protein.read.structure import imputed_cbeta, read_chains

SEQUENCE = "MKVLAGDWTRESHIFQNPYCMKWDE"


def written(path, *parts):
    path.write_text("\n".join([*(line for part in parts for line in part), "END", ""]))
    return path


# -- Cβ ---------------------------------------------------------------------------------------------------------------


def test_the_imputed_cbeta_has_ideal_geometry():
    # N, CA, C in a plane with textbook lengths and angle.
    angle = np.radians(111.0)
    backbone = np.array([[1.458, 0, 0], [0, 0, 0], [1.525 * np.cos(angle), 1.525 * np.sin(angle), 0]])
    cb = imputed_cbeta(backbone)
    n, _, c = backbone
    assert np.linalg.norm(cb) == pytest.approx(1.53, abs=0.02)
    for neighbour in (n, c):
        cosine = cb @ neighbour / np.linalg.norm(cb) / np.linalg.norm(neighbour)
        assert np.degrees(np.arccos(cosine)) == pytest.approx(110, abs=1.5)
    # L amino acids: seen with H towards the viewer, CO, R, N go clockwise.
    assert np.dot(np.cross(c, cb), n) > 0


def test_glycine_and_missing_cbeta_are_imputed_and_rest_is_as_in_the_file(maker, tmp_path):
    made = maker.helix(SEQUENCE)
    measured = made.atoms[3]["CB"].copy()
    del made.atoms[4]["CB"]
    (chain,) = read_chains(written(tmp_path / "1abc.pdb", maker.seqres(made), maker.lines(made)))
    assert chain.resolved.all()
    np.testing.assert_allclose(chain.cbeta[3], measured, atol=1e-3)
    np.testing.assert_allclose(chain.cbeta[[4, 5]], imputed_cbeta(chain.backbone[[4, 5]]), atol=1e-3)
    assert chain.notes == ["1 absent Cβ atom(s) imputed from the backbone"]


# -- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["pdb", "cif", "pdb.gz", "cif.gz"])
def test_both_formats_give_the_same_chain(maker, tmp_path, suffix):
    names = {0: "MSE", 20: "MSE"}
    made = maker.helix(SEQUENCE)
    for missing in (0, 7, 8, 24):
        del made.atoms[missing]
    if suffix.startswith("pdb"):
        text = "\n".join([*maker.seqres(made, names), *maker.lines(made, names=names, offset=37), "END"])
    else:
        text = maker.mmcif(made, names, offset=37)
    file = tmp_path / f"1abc.{suffix}"
    file.write_bytes(gzip.compress(text.encode()) if suffix.endswith("gz") else text.encode())
    (chain,) = read_chains(file)
    assert (chain.name, chain.sequence) == ("1abc_A", SEQUENCE)
    assert np.flatnonzero(~chain.resolved).tolist() == [0, 7, 8, 24]
    np.testing.assert_allclose(chain.cbeta[1], made.atoms[1]["CB"], atol=1e-3)
    assert chain.residue_index.tolist() == list(range(25))
    assert chain.notes == ["modified residues: 1 MSE as M", "4 of 25 residues have no position"]


def test_without_seqres_the_numbers_tell_of_gaps(maker, tmp_path):
    made = maker.helix(SEQUENCE)
    for missing in (0, 7, 8):
        del made.atoms[missing]
    (chain,) = read_chains(written(tmp_path / "x.pdb", maker.lines(made, offset=100)))
    assert chain.sequence == SEQUENCE[1:7] + SEQUENCE[9:]
    assert chain.residue_index.tolist() == [*range(6), *range(8, 24)]


def test_insertion_codes_are_residues_of_their_own(maker, tmp_path):
    made = maker.helix(SEQUENCE)
    lines = maker.lines(made)
    # Residues 5 and 6 become 4A and 4B.
    coded = [
        line[:22] + {"   5 ": "   4A", "   6 ": "   4B"}.get(line[22:27], line[22:27]) + line[27:] for line in lines
    ]
    for seqres in ([], maker.seqres(made)):
        (chain,) = read_chains(written(tmp_path / "x.pdb", seqres, coded))
        assert chain.sequence == SEQUENCE
        assert chain.resolved.all()
        assert (np.diff(chain.residue_index) >= 1).all()


def test_of_alternate_locations_the_fuller_one_is_taken_for_all_atoms(maker, tmp_path):
    made = maker.helix("MKVL" * 3)
    lines = [line for line in maker.lines(made) if int(line[22:26]) != 6]
    x, y, z = 40.0, 40.0, 40.0
    for alternative, occupancy, shift in (("A", 0.4, 0.0), ("B", 0.6, 10.0)):
        for at, atom in enumerate(("N", "CA", "C", "CB")):
            position = (x + shift + at, y, z)
            lines.append(maker.line("ATOM", atom, alternative, "LYS", "A", 6, " ", *position, occupancy))
    lines.sort(key=lambda line: int(line[22:26]))
    (chain,) = read_chains(written(tmp_path / "x.pdb", maker.seqres(made), lines))
    assert chain.backbone[5, :, 0].tolist() == [50.0, 51.0, 52.0]
    assert chain.cbeta[5, 0] == 53.0
    assert "1 residue(s) with alternate locations: those of highest occupancy are used" in chain.notes


def test_of_two_residues_at_one_place_the_fuller_one_counts(maker, tmp_path):
    made = maker.helix("MKVL" * 3)
    lines = [line for line in maker.lines(made) if int(line[22:26]) != 6]
    for residue, alternative, occupancy in (("LYS", "A", 0.3), ("ARG", "B", 0.7)):
        for at, atom in enumerate(("N", "CA", "C")):
            lines.append(maker.line("ATOM", atom, alternative, residue, "A", 6, " ", 40.0 + at, 0, 0, occupancy))
    lines.sort(key=lambda line: int(line[22:26]))
    (chain,) = read_chains(written(tmp_path / "x.pdb", lines))
    assert chain.sequence == "MKVLMRVLMKVL"


def test_models(maker, tmp_path):
    first, second = maker.helix(SEQUENCE, seed=1), maker.helix(SEQUENCE, seed=2)
    parts = []
    for number, made in ((1, first), (2, second)):
        parts += [[f"MODEL     {number:4}"], maker.lines(made), ["ENDMDL"]]
    file = written(tmp_path / "x.pdb", *parts)
    (chain,) = read_chains(file)
    np.testing.assert_allclose(chain.cbeta[0], first.atoms[0]["CB"], atol=1e-3)
    assert chain.notes == ["model 1 of 2 is used"]
    (chain,) = read_chains(file, model=2)
    np.testing.assert_allclose(chain.cbeta[0], second.atoms[0]["CB"], atol=1e-3)
    with pytest.raises(UserError, match="has no model 3; its models are 1, 2"):
        read_chains(file, model=3)


def test_ligands_are_no_residues(maker, tmp_path):
    made = maker.helix(SEQUENCE)
    lines = maker.lines(made)
    for at, atom in enumerate(("N", "CA", "C")):
        lines.append(maker.line("HETATM", atom, " ", "ALA", "A", 300, " ", 90.0 + at, 0, 0, 1))
    lines += [maker.line("HETATM", "C", " ", "GOL", "A", 301, " ", 80.0, 0, 0, 1)]
    (chain,) = read_chains(written(tmp_path / "x.pdb", lines))
    assert chain.sequence == SEQUENCE


# -- mistakes ---------------------------------------------------------------------------------------------------------


def test_mistakes_are_named(maker, tmp_path):
    file = tmp_path / "two.pdb"
    maker.write(file, maker.helix(SEQUENCE), maker.helix(SEQUENCE[:10], "B"))
    assert [chain.name for chain in read_chains(file)] == ["two_A", "two_B"]
    with pytest.raises(UserError, match=r"no protein chain 'C' .*its chains are A \(25 residues\), B \(10 residues\)"):
        read_chains(file, chain="C")
    only = [line for line in maker.lines(maker.helix(SEQUENCE)) if " CA " in line]
    with pytest.raises(UserError, match=r"no position for any Cβ.*CA only"):
        read_chains(written(tmp_path / "ca.pdb", only))
    with pytest.raises(UserError, match="holds no protein"):
        read_chains(written(tmp_path / "none.pdb", ["REMARK nothing"]))
    with pytest.raises(UserError, match="cannot be read as mmCIF"):
        read_chains(written(tmp_path / "bad.cif", ["data_x", "loop_", "_atom_site.id"]))
    with pytest.raises(UserError, match="cannot be read"):
        read_chains(tmp_path / "absent.pdb")


def test_a_file_that_breaks_off_is_read_or_refused(maker, tmp_path):
    made = maker.helix(SEQUENCE[:6])
    for name, text in (("x.pdb", "\n".join(maker.lines(made))), ("x.cif", maker.mmcif(made))):
        for end in range(1, len(text), 37):
            (tmp_path / name).write_text(text[:end])
            try:
                read_chains(tmp_path / name)
            except UserError:
                continue


# -- sequences --------------------------------------------------------------------------------------------------------


def test_a_chain_is_laid_on_a_longer_sequence(maker, tmp_path):
    file = tmp_path / "x.pdb"
    maker.write(file, maker.helix(SEQUENCE))
    whole = "GSHM" + SEQUENCE[:10] + "GGG" + SEQUENCE[10:] + "LEHHHHHH"
    chain = select_chain(read_chains(file), whole)
    assert chain.sequence == whole
    assert chain.resolved.sum() == 25
    assert chain.resolved[4:14].all()
    assert not chain.resolved[14:17].any()
    assert chain.notes == [
        "residue numbers do not fit the sequence: placed by letters",
        "15 residues of the sequence are not in the chain",
    ]


def test_the_chain_that_matches_is_found(maker, tmp_path):
    other = "WWWWYYYYFFFFHHHHPPPPGGGGK"
    file = tmp_path / "x.pdb"
    maker.write(file, maker.helix(other), maker.helix(SEQUENCE, "B"))
    assert select_chain(read_chains(file), SEQUENCE).name == "x_B"
    mutated = SEQUENCE[:5] + "P" + SEQUENCE[6:]
    assert select_chain(read_chains(file), mutated).sequence == mutated


def test_another_protein_is_refused_with_both_sequences_shown(maker, tmp_path):
    file = tmp_path / "x.pdb"
    maker.write(file, maker.helix(SEQUENCE))
    other = "WWWWYYYYFFFFHHHHPPPPGGGGK"
    with pytest.raises(UserError) as error:
        select_chain(read_chains(file), other)
    message = str(error.value)
    assert message.startswith("chain x_A (query) does not match the sequence (target)")
    assert "not the same protein" in message
    letters = "".join(letter for letter in message if letter.isupper())
    assert "WWWWYYYY" in letters


def test_positions():
    assert positions("MKVLAGDW", "G" + SEQUENCE).tolist() == list(range(1, 9))
    assert positions(SEQUENCE[3:], SEQUENCE).tolist() == list(range(3, 25))
    # A tag that the whole does not have lies nowhere.
    assert positions("GS" + SEQUENCE, SEQUENCE).tolist() == [-1, -1, *range(25)]


def test_letters_beside_a_jump_of_the_numbers_are_not_trusted():
    """Seven of a tag and two of the protein, 25 missing, and then numbers of another domain: the F before the gap fits
    the letter before N27 by chance."""
    whole = "DFGLMDHPYHPGSHLKYPYFMITMPMFNIFDNPFHMDWPEEPGAWNHATMINRMCYGNLSIFDMV"
    part = "TARLMPDF" + whole[27:]
    index = np.array([*range(8), *range(1010, 1010 + len(part) - 8)])
    placed = place(part, whole, index, 1, complete=False)
    assert placed.where.tolist() == [-1] * 8 + list(range(27, len(whole)))
    assert "beside jumps of the numbers" in str(placed.notes)


LONG = SEQUENCE + "DFGLMDHPYHPGSHLKYPYFMITMPMFNIFDNPFHMDW"


def test_falling_numbers_count_nothing_that_is_missing(maker, tmp_path):
    """Ten residues are gone: neither order nor numbers may shift the rest."""
    made = maker.helix(LONG)
    for at in range(20, 30):
        del made.atoms[at]
    lines = [line[:22] + f"{900 - int(line[22:26]):4}" + line[26:] for line in maker.lines(made)]
    (chain,) = read_chains(written(tmp_path / "x.pdb", lines))
    assert not chain.counted
    laid = chain.on(LONG)
    for at, atoms in made.atoms.items():
        if laid.resolved[at]:
            np.testing.assert_allclose(laid.backbone[at, 1], atoms["CA"], atol=1e-3)
    assert laid.resolved.sum() > 0.7 * len(made.atoms)

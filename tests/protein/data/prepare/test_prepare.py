"""From structures and alignments to a set: names, clusters, leaks, bad files, and all or nothing on the disk."""

import struct
import tarfile

import numpy as np
import pytest

from triune.core.errors import UserError
from triune.protein.data.prepare.clusters import (
    audit,
    candidates,
    filtered_clusters,
    has_mmseqs,
    mmseqs_clusters,
    pairs_to_align,
    relation,
    separate,
    split_by_cluster,
)
from triune.protein.data.prepare.prepare import main
from triune.protein.data.prepare.promod3 import read_promod3
from triune.protein.data.store import open_set
from triune.protein.read.alphabet import AMINO_ACIDS, GAP, decode
from triune.protein.read.structure import imputed_cbeta


def protein(length: int, seed: int) -> str:
    return "".join(np.random.default_rng(seed).choice(list(AMINO_ACIDS), length))


def mutated(sequence: str, share: float, seed: int) -> str:
    rng = np.random.default_rng(seed)
    return "".join(rng.choice(list(AMINO_ACIDS)) if rng.random() < share else letter for letter in sequence)


@pytest.fixture
def structures(maker, tmp_path):
    """Eight proteins, the last a relative of the first, in two folders, with something bad beside them."""
    folder = tmp_path / "structures"
    (folder / "deep").mkdir(parents=True)
    for number in range(7):
        maker.write(folder / f"p{number}.pdb", maker.helix(protein(40 + number, number)))
    relative = mutated(protein(40, 0), 0.3, seed=1)
    (folder / "deep" / "p7.cif").write_text(maker.mmcif(maker.helix(relative)))
    # Two copies of one protein, and a peptide.
    maker.write(
        folder / "p8.pdb", maker.helix(protein(50, 8)), maker.helix(protein(50, 8), "B"), maker.helix("ACD", "C")
    )
    (folder / "bad.pdb").write_text("no structure at all\n")
    (folder / "notes.txt").write_text("not read\n")
    return folder


def prepared(tmp_path, *options: str) -> object:
    assert main([str(tmp_path / "out"), "--no-mmseqs", *options]) == 0
    return open_set(tmp_path / "out")


# -- the whole --------------------------------------------------------------------------------------------------------


def test_a_folder_of_structures_becomes_a_set(structures, tmp_path, capsys):
    chains = prepared(tmp_path, "--structures", str(structures), "--val", "0.3")
    assert sorted(chains.names.tolist()) == [f"p{number}_A" for number in range(9)]
    table = dict(zip(chains.names.tolist(), zip(chains.split.tolist(), chains.cluster.tolist())))
    assert table["p0_A"] == table["p7_A"]
    assert len({cluster for _, cluster in table.values()}) == 8
    assert 2 <= len(chains.of("val")) <= 3
    at = int(np.flatnonzero(chains.names == "p3_A")[0])
    assert decode(chains.arrays["tokens"][chains.start[at] : chains.start[at + 1]]) == protein(43, 3)
    assert not np.isnan(chains.arrays["cb"]).any()
    printed = capsys.readouterr().out
    assert "9 chains" in printed
    assert "8 clusters (1 too short, 1 bad files, see skipped.txt)" in printed
    assert "bad.pdb' holds no protein" in printed
    assert "leakage audit" in printed
    assert "0 have the sequence of a training chain, 0 a relative" in printed
    assert "bad.pdb" in (tmp_path / "out" / "skipped.txt").read_text()


def test_alignments_are_found_laid_on_the_chain_and_make_its_profile(structures, tmp_path, capsys):
    alignments = tmp_path / "alignments"
    alignments.mkdir()
    one, two = protein(41, 1), protein(42, 2)
    (alignments / "p1.a3m").write_text(f">q\n{one}\n>r\n{'-' * 20}{one[20:30]}aaa{one[30:]}\n")
    # A construct: the query has a tag in place of the first residues of the chain.
    (alignments / "p2_A.fasta").write_text(f">q\nWWWWWWWW{two[8:]}\n>r\nWWWWWWWW{two[8:20]}{'-' * 22}\n")
    (alignments / "p3.a3m").write_text(">q\nWWWWWWWWWWYYYYYYYYYYFFFFFFFFFFWWWWWWWWWWHHH\n")
    (alignments / "p4.a3m").write_text(">q\nMKV\n>r\nMKVL\n")
    packed = tmp_path / "more.tar.gz"
    (tmp_path / "p5.a3m").write_text(f">q\n{protein(45, 5)}\n")
    with tarfile.open(packed, "w:gz") as archive:
        archive.add(tmp_path / "p5.a3m", "somewhere/p5.a3m")
    chains = prepared(
        tmp_path, "--structures", str(structures), "--alignments", str(alignments), "--alignments", str(packed)
    )
    rows = dict(zip(chains.names.tolist(), chains.rows.tolist()))
    assert rows == {f"p{n}_A": {1: 2, 2: 2, 5: 1}.get(n, 0) for n in range(9)}
    at = {name: number for number, name in enumerate(chains.names.tolist())}
    letters, inserted = chains.alignment(at["p1_A"])
    assert decode(letters[1]) == "-" * 20 + one[20:]
    assert inserted[1].tolist() == [0] * 30 + [3] + [0] * 10
    letters, _ = chains.alignment(at["p2_A"])
    assert decode(letters[0]) == two
    assert decode(letters[1]) == "-" * 8 + two[8:20] + "-" * 22
    assert chains.has_profile.sum() == 3
    profile = chains.arrays["profile"][chains.start[at["p1_A"]]]
    assert profile.argmax() == AMINO_ACIDS.index(one[0])
    skipped = (tmp_path / "out" / "skipped.txt").read_text()
    assert "'p3.a3m': the query does not match the chain" in skipped
    assert "has 4 aligned columns" in skipped
    assert "3 chains have an alignment (of 5 given)" in capsys.readouterr().out


def test_deep_alignments_keep_the_query_and_prefer_rare_rows(structures, tmp_path):
    alignments = tmp_path / "alignments"
    alignments.mkdir()
    one = protein(41, 1)
    copies = "".join(f">c{n}\n{one}\n" for n in range(60))
    others = "".join(f">o{n}\n{mutated(one, 0.6, n)}\n" for n in range(9))
    (alignments / "p1.a3m").write_text(f">q\n{one}\n{copies}{others}")
    chains = prepared(tmp_path, "--structures", str(structures), "--alignments", str(alignments), "--rows", "10")
    at = int(np.flatnonzero(chains.names == "p1_A")[0])
    letters, _ = chains.alignment(at)
    assert len(letters) == 10
    assert decode(letters[0]) == one
    assert sum(decode(row) != one for row in letters) >= 6
    # Neff is that of the whole alignment.
    assert float(chains.neff[at]) == pytest.approx(10, abs=0.01)


def test_a_given_split_is_kept(structures, tmp_path, capsys):
    table = tmp_path / "split.tsv"
    table.write_text(
        "chain\tcluster\tsplit\n" + "".join(f"p{n}_A\tc{n}\t{'test' if n == 7 else 'train'}\n" for n in range(8))
    )
    chains = prepared(tmp_path, "--structures", str(structures), "--split", str(table))
    assert chains.of("test").tolist() == np.flatnonzero(chains.names == "p7_A").tolist()
    assert "p8_A" not in chains.names
    printed = capsys.readouterr().out
    assert "of 1 held-out chains 0 have the sequence of a training chain, 1 a relative of 30% identity" in printed
    assert "p7_A and p0_A" in printed
    assert "no cluster is small enough for validation" in printed
    assert 0.6 < float(chains.relative[chains.of("test")[0]]) < 0.85
    table.write_text("chain\tcluster\tsplit\np1_A\tc\tvalid\n")
    with pytest.raises(UserError, match="has the split 'valid'"):
        main([str(tmp_path / "o"), "--structures", str(structures), "--split", str(table)])


# -- mistakes ---------------------------------------------------------------------------------------------------------


def test_strict_stops_and_leaves_nothing(structures, tmp_path):
    with pytest.raises(UserError, match=r"bad\.pdb' holds no protein"):
        main([str(tmp_path / "out"), "--structures", str(structures), "--strict"])
    assert {path.name for path in tmp_path.iterdir()} == {"structures"}


def test_an_existing_folder_is_replaced_only_when_asked(structures, tmp_path):
    options = ("--structures", str(structures))
    prepared(tmp_path, *options)
    with pytest.raises(UserError, match="exists; name another folder, or replace it with --overwrite"):
        main([str(tmp_path / "out"), *options])
    assert len(prepared(tmp_path, *options, "--overwrite", "--max-length", "42")) == 4
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="exists and is no set of chains"):
        main([str(tmp_path / "mine"), *options, "--overwrite"])
    assert (tmp_path / "mine" / "thesis.txt").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--structures", "nowhere"], "there is no folder 'nowhere'"),
        (["--structures", "."], "holds no structure: no file ends in .pdb"),
        (["--promod3", "nowhere"], "'nowhere' cannot be read"),
        (["--arrays", "nowhere"], "'nowhere' cannot be read"),
        (["--structures", "x", "--alignments", "nowhere"], "there is no 'nowhere'; --alignments takes"),
        (["--structures", "x", "--val", "1.5"], "--val 1.5 and --test 0.0 must be shares"),
        (["--structures", "x", "--identity", "30"], "--identity is 30.0, but must lie between 0 and 1"),
        (["--structures", "x", "--rows", "0"], "--rows is 0, but must be at least 1"),
    ],
)
def test_mistakes_are_named(options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        main(["out", *options])
    assert list(tmp_path.iterdir()) == []


def test_a_set_without_chains_is_refused(structures, tmp_path):
    with pytest.raises(UserError, match=r"no chain is left .*10 too short.*the first file that was left out"):
        main([str(tmp_path / "out"), "--structures", str(structures), "--min-length", "500"])


# -- clusters ---------------------------------------------------------------------------------------------------------


def families(count: int = 12) -> list[str]:
    """Three relatives of each of `count` proteins, the second a fragment."""
    sequences = []
    for seed in range(count):
        whole = protein(120, seed)
        sequences += [whole, mutated(whole[20:100], 0.45, seed), mutated(whole, 0.5, 100 + seed)]
    return sequences


def test_families_are_found_and_strangers_stay_apart():
    sequences = families()
    assert filtered_clusters(sequences).tolist() == [3 * (number // 3) for number in range(36)]


@pytest.mark.slow
@pytest.mark.skipif(not has_mmseqs(), reason="MMseqs2 is not installed")
def test_mmseqs_finds_the_whole_ones_too():
    sequences = families(4)
    clusters = mmseqs_clusters(sequences)
    for first in range(0, 12, 3):
        assert clusters[first] == clusters[first + 2]
    assert len({clusters[first] for first in range(0, 12, 3)}) == 4


def test_relation_is_the_identity_of_relatives_and_nothing_for_others():
    one = protein(150, 1)
    assert relation(one, one) == 1
    assert relation(one, mutated(one, 0.4, 2)) == pytest.approx(0.62, abs=0.12)
    assert relation(one, protein(150, 2)) == 0
    # A short common stretch makes no relatives.
    assert relation(one, one[:40] + protein(110, 3)) == 0


def test_candidates_are_pairs_and_the_most_alike_come_first():
    sequences = families(5)
    pairs = candidates(sequences)
    assert len(pairs) == len(set(pairs)) == pairs_to_align(15) == 105
    assert all(a < b for a, b in pairs)
    assert all(a // 3 == b // 3 for a, b in pairs[:5])
    assert candidates([]) == []
    assert pairs_to_align(100_000) == 2_000_000


def test_splits_hold_whole_clusters_of_about_the_share():
    rng = np.random.default_rng(0)
    clusters = rng.integers(0, 80, 300)
    side = split_by_cluster(clusters, {"test": 0.1, "val": 0.2}, seed=1)
    assert all(len(set(side[clusters == cluster])) == 1 for cluster in np.unique(clusters))
    assert (side == "test").sum() == pytest.approx(30, abs=3)
    assert (side == "val").sum() == pytest.approx(60, abs=3)
    np.testing.assert_array_equal(side, split_by_cluster(clusters, {"test": 0.1, "val": 0.2}, seed=1))
    # One large family stays in training.
    assert set(split_by_cluster(np.zeros(50, dtype=int), {"val": 0.1})) == {"train"}


def test_relatives_of_training_follow_it_and_theirs_follow_them():
    one = protein(150, 5)
    chain = [one[:100], one[30:130], one[80:], protein(100, 6)]
    # The last of the three is related to the first only through the second.
    assert relation(chain[0], chain[2]) == 0
    side = separate(chain, np.array(["train", "val", "test", "val"]))
    assert side.tolist() == ["train", "train", "train", "val"]
    assert audit(chain, side, list("abcd")).identity.tolist() == [0]
    assert separate(chain, np.array(["train"] * 4)).tolist() == ["train"] * 4


def test_the_audit_sees_copies_and_relatives():
    whole = protein(100, 5)
    sequences = [whole, protein(100, 6), whole, mutated(whole, 0.4, 7), protein(100, 8)]
    side = np.array(["train", "train", "val", "val", "test"])
    found = audit(sequences, side, ["a", "b", "c", "a", "d"])
    assert found.held.tolist() == [2, 3, 4]
    assert found.identity[0] == 1
    assert 0.4 < found.identity[1] < 0.9
    assert found.identity[2] == 0
    assert found.closest.tolist() == [0, 0, 0]
    assert (found.identical, found.same_file) == (1, 1)
    assert len(audit(sequences, np.array(["train"] * 5), ["a"] * 5).held) == 0


# -- promod3 ----------------------------------------------------------------------------------------------------------


def promod3_file(path, lengths: list[int]) -> dict[str, np.ndarray]:
    """Write a database of the documented layout; return its vectors."""
    rng = np.random.default_rng(0)
    total = sum(lengths)
    vectors = {
        "sequence": np.frombuffer(protein(total, 4).encode(), dtype=np.uint8),
        "positions": rng.integers(0, 9000, (total, 4, 3)).astype("<u2"),
        "angles": np.zeros((total, 2), "<i2"),
        "accessibility": np.zeros(total, "<u2"),
        "depth": np.zeros(total, "<u2"),
        "dssp": np.full(total, ord("H"), np.uint8),
        "profile": rng.integers(0, 1000, (total, 20)).astype("<u2"),
        "structure_profile": np.full((total, 20), 9999, "<u2"),
    }
    content = struct.pack("<II", 1234, 2) + bytes(77 - 8) + struct.pack("<Q", len(lengths))
    for number, length in enumerate(lengths):
        name = f"{number}ABC".encode()
        content += struct.pack("<I", len(name)) + name + struct.pack("<I", 1) + b"A"
        content += struct.pack("<IHH3f", sum(lengths[:number]), length, 7 + number, 0, 0, 0)
    for vector in vectors.values():
        content += struct.pack("<Q", total) + vector.tobytes()
    path.write_bytes(content)
    return vectors


def test_the_database_of_promod3(tmp_path):
    file = tmp_path / "structure_db.dat"
    vectors = promod3_file(file, [40, 60, 35])
    entries = list(read_promod3(file))
    assert [entry.name for entry in entries] == ["0ABC_A_7", "1ABC_A_8", "2ABC_A_9"]
    second = entries[1]
    assert decode(second.tokens) == vectors["sequence"][40:100].tobytes().decode()
    np.testing.assert_allclose(second.profile, vectors["profile"][40:100] / 1e4, atol=1e-6)
    backbone = vectors["positions"][40:100, :3].astype(np.float32) / 100
    np.testing.assert_allclose(second.cb, imputed_cbeta(backbone), atol=1e-4)
    chains = prepared(tmp_path, "--promod3", str(file), "--min-length", "36")
    assert chains.names.tolist() == ["0ABC_A_7", "1ABC_A_8"]
    assert chains.has_profile.all()
    np.testing.assert_array_equal(chains.arrays["cb"][40:100], second.cb)
    assert GAP not in chains.arrays["tokens"]


def test_other_files_are_no_such_database(tmp_path):
    file = tmp_path / "x.dat"
    for content in (b"", b"x" * 1000, struct.pack("<II", 1234, 2) + bytes(60)):
        file.write_bytes(content)
        with pytest.raises(UserError, match=r"cannot be read|is no structure database of ProMod3"):
            list(read_promod3(file))
    promod3_file(file, [40])
    file.write_bytes(file.read_bytes()[:-3000])
    with pytest.raises(UserError, match="is no structure database"):
        list(read_promod3(file))

"""Mean-field DCA: against a float64 loop, against `freecontact` where it is installed, against published figures."""

import csv
import shutil
import subprocess
import tarfile

import numpy as np
import pytest
import torch

from triune.core.errors import UserError
from triune.protein.predict.dca import (
    STATES,
    average_product_correction,
    couplings,
    main,
    mean_field_dca,
    memory_needed,
    rank,
    scores_of,
)
from triune.protein.predict.metrics import contact_targets, precisions
from triune.protein.predict.outputs import top_pairs
from triune.protein.read.alignment import parse_alignment
from triune.protein.read.alphabet import GAP, decode
from triune.protein.read.profile import sequence_weights
from triune.protein.read.structure import imputed_cbeta


def family(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """Sequences in which columns 0 and columns - 1 agree, the others vary; uint8 [rows, columns]."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 20, (rows, columns))
    tokens[:, -1] = (tokens[:, 0] + 3) % 20
    tokens[rng.random((rows, columns)) < 0.05] = 21
    tokens[0] = np.where(tokens[0] == 21, 0, tokens[0])
    return tokens.astype(np.uint8)


def reference(tokens: np.ndarray, pseudocount: float, with_gap: bool) -> np.ndarray:
    """The textbook, pair by pair, in float64."""
    columns, q = tokens.shape[1], STATES
    state = np.where(tokens >= 20, 20, tokens).astype(int)
    weights = np.array([1 / sum((row == other).mean() >= 0.8 for other in tokens) for row in tokens])
    single = np.zeros((columns, q))
    double = np.zeros((columns, columns, q, q))
    for weight, row in zip(weights / weights.sum(), state):
        for i in range(columns):
            single[i, row[i]] += weight
            for j in range(columns):
                double[i, j, row[i], row[j]] += weight
    single = (1 - pseudocount) * single + pseudocount / q
    for i in range(columns):
        for j in range(columns):
            uniform = np.eye(q) / q if i == j else np.full((q, q), 1 / q**2)
            double[i, j] = (1 - pseudocount) * double[i, j] + pseudocount * uniform
    size = columns * (q - 1)
    covariance = np.zeros((size, size))
    for i in range(columns):
        for j in range(columns):
            block = double[i, j] - np.outer(single[i], single[j])
            covariance[i * 20 : i * 20 + 20, j * 20 : j * 20 + 20] = block[:20, :20]
    inverse = -np.linalg.inv(covariance)
    norms = np.zeros((columns, columns))
    for i in range(columns):
        for j in range(columns):
            full = np.zeros((q, q))
            full[:20, :20] = inverse[i * 20 : i * 20 + 20, j * 20 : j * 20 + 20]
            full = full - full.mean(0, keepdims=True) - full.mean(1, keepdims=True) + full.mean()
            norms[i, j] = np.linalg.norm(full if with_gap else full[:20, :20])
    np.fill_diagonal(norms, 0)
    mean = norms.sum(0) / (columns - 1)
    corrected = norms - np.outer(mean, mean) / (norms.sum() / columns / (columns - 1))
    np.fill_diagonal(corrected, 0)
    return corrected


@pytest.mark.parametrize("with_gap", [False, True])
def test_agrees_with_the_loop(with_gap, monkeypatch):
    monkeypatch.setattr("triune.protein.predict.dca.ROWS", 16)
    tokens = family(40, 7)
    found = scores_of(couplings(tokens, sequence_weights(tokens), 0.5), with_gap)
    np.testing.assert_allclose(found.numpy(), reference(tokens, 0.5, with_gap), atol=2e-5)


def test_finds_the_columns_that_go_together():
    scores, neff = mean_field_dca(family(400, 30))
    assert top_pairs(scores, 1) == [(0, 29)]
    assert neff == pytest.approx(400)
    torch.testing.assert_close(scores, scores.T)


def test_unknown_residues_count_as_gaps():
    tokens = family(50, 12)
    unknown = np.where(tokens == GAP, 20, tokens).astype(np.uint8)
    torch.testing.assert_close(mean_field_dca(tokens)[0], mean_field_dca(unknown)[0])


def test_the_product_correction_takes_off_what_single_columns_explain():
    column = torch.rand(30, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 1
    product = torch.outer(column, column)
    off = ~torch.eye(30, dtype=torch.bool)
    # Not all of it: the diagonal, which is left out, is part of the product.
    assert average_product_correction(product)[off].std() < 0.05 * product[off].std()
    assert torch.isfinite(average_product_correction(torch.zeros(3, 3))).all()


# -- other software and published figures -----------------------------------------------------------------------------


def shared_alignments(data_folder, names: list[str]) -> dict[str, np.ndarray]:
    with tarfile.open(data_folder / "protein" / "msa-test.tar.gz") as archive:
        return {
            name: parse_alignment(f"{name}.a3m", archive.extractfile(f"{name}.a3m").read()).tokens for name in names
        }


def test_agrees_with_the_published_figures(data_folder):
    names = ["3X3F_C_21", "3QM9_A_2", "5TE9_A_16"]
    with (data_folder / "protein" / "dca-test.tsv").open() as file:
        published = {row["chain"]: row for row in csv.DictReader(file, delimiter="\t")}
    data = np.load(data_folder / "protein" / "chains.npz")
    ends = np.cumsum(data["length"])
    backbone = data["backbone"]
    for name, tokens in shared_alignments(data_folder, names).items():
        at = int(np.flatnonzero(data["name"] == name)[0])
        here = slice(ends[at] - data["length"][at], ends[at])
        cbeta = torch.from_numpy(imputed_cbeta(backbone[here].astype(np.float32) / 100))
        targets = contact_targets(cbeta, torch.ones(len(cbeta), dtype=torch.bool))
        scores, neff = mean_field_dca(tokens)
        found = precisions(scores[None], targets[None])
        row = published[name]
        assert neff == pytest.approx(float(row["neff"]), abs=2e-3)
        # One contact of L may differ: theirs placed Cβ a little differently.
        assert float(found["long_p_at_l"]) == pytest.approx(float(row["long_P@L"]), abs=1.01 / len(cbeta))
        assert float(found["long_p_at_l_chance"]) == pytest.approx(float(row["long_density"]), abs=1.5e-3)


@pytest.mark.skipif(shutil.which("freecontact") is None, reason="freecontact is not installed")
def test_agrees_with_freecontact():
    tokens = family(60, 16)
    lines = "".join(f"{decode(row)}\n" for row in tokens)
    command = ["freecontact", "--parprof", "evfold", "--clustpc", "80", "--apply-gapth", "0", "--quiet", "1", "-a", "1"]
    printed = subprocess.run(command, input=lines, capture_output=True, text=True, check=True).stdout
    scores = scores_of(couplings(tokens, sequence_weights(tokens)), with_gap=True)
    theirs, ours = [], []
    for line in printed.splitlines():
        i, _, j, _, _, score = line.split()
        theirs.append(float(score))
        ours.append(float(scores[int(i) - 1, int(j) - 1]))
    assert len(theirs) == 16 * 15 // 2
    assert np.corrcoef(theirs, ours)[0, 1] > 0.99999


# -- triune protein dca -----------------------------------------------------------------------------------------------


def test_main_prints_pairs_writes_scores_and_does_the_other_inputs(tmp_path, capsys):
    good = tmp_path / "good.aln"
    good.write_text("".join(f"{decode(row)}\n" for row in family(80, 30)))
    bad = tmp_path / "bad.a3m"
    bad.write_text(">q\nMKV\n>r\nMKVL\n")
    assert main([str(bad), str(good), "--out", str(tmp_path / "out"), "--top", "3"]) == 2
    printed = capsys.readouterr()
    assert "30 residues, 80 rows, Neff 80.0" in printed.out
    assert len(printed.out.splitlines()) == 5
    assert "has 4 aligned columns, the query has 3" in printed.err
    saved = np.load(tmp_path / "out" / "good.dca.npz")
    assert saved["scores"].shape == (30, 30)
    with pytest.raises(UserError, match="has 4 aligned columns"):
        main([str(bad)])


def test_a_structure_scores_the_prediction(maker, tmp_path, capsys):
    tokens = family(80, 40)
    made = maker.helix(decode(tokens[0]))
    for atom, point in made.atoms[0].items():
        made.atoms[39][atom] = point + [3.0, 0, 0]
    del made.atoms[20]
    maker.write(tmp_path / "1abc.pdb", maker.helix("ACDEFGHIKL", "A"), made._replace(chain="B"))
    alignment = tmp_path / "x.aln"
    alignment.write_text("".join(f"{decode(row)}\n" for row in tokens))
    assert main([str(alignment), "--structure", str(tmp_path / "1abc.pdb"), "--top", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "1abc_B: 1 of 40 residues have no position" in lines[1]
    assert lines[-1].split()[-2:] == ["3.0", "Å"]
    # One contact, found first: 1 of ⌊39 / 5⌋ pairs.
    assert lines[-2].split()[:4] == ["long", f"{1 / 39:.3f}", f"{1 / 19:.3f}", f"{1 / 7:.3f}"]
    with pytest.raises(UserError, match="there is no protein chain 'C'"):
        main([str(alignment), "--structure", str(tmp_path / "1abc.pdb"), "--chain", "C"])
    other = tmp_path / "other.aln"
    other.write_text("".join(f"{decode(row)}\n" for row in family(80, 40, seed=9)))
    assert main([str(other), "--structure", str(tmp_path / "1abc.pdb")]) == 2
    assert "does not match the sequence" in capsys.readouterr().err


def test_what_does_not_fit_is_refused_before_it_is_tried(tmp_path):
    long = tmp_path / "long.aln"
    long.write_text(("A" * 200_000 + "\n") * 2)
    assert memory_needed(200) == 3 * 4 * 4000**2
    with pytest.raises(UserError, match="200,000 columns need 192000 GB"):
        main([str(long)])


# -- what is not ranked -----------------------------------------------------------------------------------------------


def aln(path, tokens):
    path.write_text("".join(f"{decode(row)}\n" for row in tokens))
    return str(path)


@pytest.mark.parametrize("rows", [1, 2, 21])
def test_nothing_is_ranked_without_depth(tmp_path, capsys, rows):
    file = aln(tmp_path / "x.aln", np.repeat(family(1, 40), rows, axis=0))
    with pytest.raises(UserError, match=rf"nothing to rank: the alignment has {rows} row\(s\) that count as 1\.0"):
        main([file])
    assert main([file, "--force", "--top", "2"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_a_shallow_alignment_is_said_to_be_one(tmp_path, capsys):
    assert main([aln(tmp_path / "x.aln", family(20, 30)), "--top", "1"]) == 0
    assert "Neff 20.0: below 50 the ranking is hardly better than chance" in capsys.readouterr().out


def test_dna_and_sequences_that_are_not_aligned_are_refused(tmp_path):
    rng = np.random.default_rng(0)
    dna = ["".join(rng.choice(list("ACGT"), 50)) for _ in range(30)]
    (tmp_path / "dna.aln").write_text("\n".join(dna))
    with pytest.raises(UserError, match=r"dna is DNA or RNA .* --force reads it as a protein"):
        main([str(tmp_path / "dna.aln")])
    rows = [decode(family(1, 50, seed)[0]).replace("-", "A") for seed in range(12)]
    file = tmp_path / "x.fasta"
    file.write_text("".join(f">{n}\n{row}\n" for n, row in enumerate(rows)))
    with pytest.raises(UserError, match=r"holds 12 sequences, but must hold an alignment.*--as alignment"):
        main([str(file)])
    assert main([str(file), "--as", "alignment", "--top", "1"]) == 0


def paired_family() -> tuple[np.ndarray, np.ndarray]:
    """Two chains of 30 columns: 60 rows of each alone, and 60 that have both, whose columns 2 and 33 agree."""
    one, other = family(120, 30, 1), family(120, 30, 2)
    other[:60, 3] = (one[:60, 2] + 7) % 20
    gaps = np.full((60, 30), GAP, dtype=np.uint8)
    both = np.concatenate([one[:60], other[:60]], axis=1)
    return both, np.concatenate([both, np.hstack([one[60:], gaps]), np.hstack([gaps, other[60:]])])


def test_in_a_complex_all_rows_count_for_their_chain_and_pairs_for_both():
    both, tokens = paired_family()
    found = rank(tokens, (30, 30))
    assert found.depths == pytest.approx([120, 120])
    assert found.between[0, 1] == pytest.approx(60)
    assert top_pairs(found.scores[:30, :30], 1) == [(0, 29)]
    torch.testing.assert_close(found.scores[:30, :30], mean_field_dca(tokens[:120, :30])[0])
    block = found.scores[:30, 30:]
    assert divmod(int(block.argmax()), 30) == (2, 3)
    torch.testing.assert_close(block, mean_field_dca(both)[0][:30, 30:])
    alone = rank(np.concatenate([tokens[:1], tokens[60:]]), (30, 30))
    assert alone.scores[:30, 30:].isnan().all()
    assert not alone.scores[:30, :30].isnan().any()
    assert any("pairing of chains A and B has 1 row(s)" in note for note in alone.notes)


def test_rows_that_hold_one_protein_twice_rank_nothing_between_the_copies():
    one, other = family(120, 30, 1), family(120, 24, 2)
    twice = np.concatenate([one, one], axis=1)
    found = rank(twice, (30, 30))
    assert found.scores[:30, 30:].isnan().all()
    assert found.notes == ["chains A and B are copies: 120 row(s) hold one protein twice and tell nothing between them"]
    torch.testing.assert_close(found.scores[:30, :30], mean_field_dca(one)[0])
    # One copy is shorter; a second protein is ranked beside each; rows of two relatives still count.
    three = np.concatenate([one, one[:, 2:], other], axis=1)
    found = rank(three, (30, 28, 24))
    assert found.scores[:30, 30:58].isnan().all()
    assert not found.scores[:58, 58:].isnan().any()
    relatives = np.concatenate([one, family(120, 30, 7)], axis=1)
    relatives[0, 30:] = relatives[0, :30]
    assert rank(relatives, (30, 30)).between[0, 1] == pytest.approx(119)


def test_a_complex_is_written_with_its_chains(tmp_path, capsys):
    _, tokens = paired_family()
    query = decode(np.where(tokens[0] == GAP, 0, tokens[0]))
    rows = [query, *(decode(row) for row in tokens[1:])]
    file = tmp_path / "c.a3m"
    file.write_text("#30,30\t1,1\n" + "".join(f">{n}\n{row}\n" for n, row in enumerate(rows)))
    assert main([str(tmp_path), "--out", str(tmp_path / "out"), "--top", "1"]) == 0
    printed = capsys.readouterr().out
    assert "between chains" in printed
    lines = (tmp_path / "out" / "c.dca.rr").read_text().splitlines()
    assert lines[4].startswith("REMARK the last column is the score as a share of the largest")
    pairs = [line.split() for line in lines if line.endswith(tuple("0123456789")) and " 0 8 " in line]
    assert {pair[0][0] + pair[1][0] for pair in pairs} == {"AA", "BB", "AB"}
    assert all(abs(int(i[1:]) - int(j[1:])) >= 6 for i, j, *_ in pairs if i[0] == j[0])
    assert np.load(tmp_path / "out" / "c.dca.npz")["chains"].tolist() == [30, 30]
    assert (tmp_path / "out" / "c.dca.png").stat().st_size > 10_000
    with pytest.raises(UserError, match="is there already; --overwrite replaces it"):
        main([str(file), "--out", str(tmp_path / "out")])
    assert main([str(file), "--out", str(tmp_path / "out"), "--overwrite", "--no-png"]) == 0

"""`triune protein contacts`: from files to maps, tables and scores; and every mistake in one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from triune import cli
from triune.protein.pair.config import PairConfig
from triune.protein.pair.model import PairModel
from triune.protein.predict import predictors
from triune.protein.predict.metrics import contact_targets, distances, precisions
from triune.protein.predict.outputs import write_rr
from triune.protein.predict.predictors import predictor_for
from triune.protein.predict.queries import Queries
from triune.protein.read.alphabet import AMINO_ACIDS, encode

GENERATOR = np.random.default_rng(0)
SEQUENCE = "".join(GENERATOR.choice(list(AMINO_ACIDS), 60))
OTHER = "".join(GENERATOR.choice(list(AMINO_ACIDS), 48))


def relative(sequence: str, seed: int) -> str:
    """The sequence with a third of its letters changed."""
    generator = np.random.default_rng(seed)
    changed = generator.random(len(sequence)) < 0.3
    return "".join(str(generator.choice(list(AMINO_ACIDS))) if c else a for a, c in zip(sequence, changed))


ROWS = [SEQUENCE, *(relative(SEQUENCE, seed) for seed in range(9))]


def pair_model(**changes: Any) -> PairModel:
    torch.manual_seed(0)
    model = PairModel(PairConfig.preset("tiny", **changes)).eval()
    torch.nn.init.normal_(model.head.logits.weight, std=0.5)  # a fresh head predicts the same for all pairs
    return model


def save_pair(folder: Path, inputs: dict[str, Any]) -> Path:
    """A model folder as `PairTask.export` writes it."""
    model = pair_model()
    model.save_pretrained(folder, inputs=inputs)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_pair(tmp_path_factory.mktemp("run") / "model", {"profiles": 1.0, "msa_rows": 4}))


@pytest.fixture
def structure(tmp_path: Path, maker: Any) -> Path:
    """A PDB file of SEQUENCE on a smooth curve in a ball, residues 11 and 12 unresolved."""
    time = torch.linspace(0, 2 * torch.pi, len(SEQUENCE))[:, None] * torch.arange(1, 5)
    points = (
        torch.cat([time.sin(), time.cos()], dim=1) @ torch.randn(8, 3, generator=torch.Generator().manual_seed(1)) * 5
    )
    atoms = {
        at: {"N": point - [1.2, 0, 0], "CA": point - [0, 1.5, 0], "C": point + [1.2, -1, 0], "CB": point}
        for at, point in enumerate(points.double().numpy())
        if at not in (10, 11)
    }
    path = tmp_path / "made.pdb"
    made = maker.helix(SEQUENCE)._replace(atoms=atoms)
    maker.write(path, made)
    return path


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def a3m(path: str = "family.a3m") -> Path:
    inserted = [row[:20] + "acd" * (number % 2) + row[20:] for number, row in enumerate(ROWS)]
    inserted[0] = SEQUENCE
    Path(path).write_text("".join(f">r{number}\n{row}\n" for number, row in enumerate(inserted)))
    return Path(path)


def contacts(*args: str) -> int:
    return cli.main(["protein", "contacts", *map(str, args)])


# -- files ------------------------------------------------------------------------------------------------------------


def test_everything_for_one_alignment(run: str, structure: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert contacts(a3m(), "--run", run, "--structure", structure, "--out", "out") == 0
    text, err = capsys.readouterr()
    assert "error" not in err
    assert "family: 60 residues, alignment of 10 rows, Neff 9.0, confidence 0." in text
    assert "scored with made_A" in text
    assert "2 of 60 residues have no position" in text
    with np.load("out/family.npz") as arrays:
        p, d = torch.from_numpy(arrays["contacts"]), torch.from_numpy(arrays["distances"])
        assert str(arrays["sequence"]) == SEQUENCE
    expected = predictor_for(run).predict(encode(SEQUENCE), None, np.stack([encode(row) for row in ROWS]))
    assert torch.equal(p, expected.contacts)
    assert torch.allclose(p, p.T, atol=1e-6)
    assert d.min() > 2
    assert d.max() < 22
    picture = np.asarray(Image.open("out/family.png").convert("RGB"))
    assert min(picture.shape[:2]) > 1000
    assert Path("out/family.rr").is_file()


def test_json_holds_the_scores_of_the_metrics(
    run: str, structure: Path, maker: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert contacts(a3m(), "--run", run, "--structure", structure, "--json", "--no-png", "--top", "3") == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert "png" not in row["files"]
    with np.load(row["files"]["npz"]) as arrays:
        p = torch.from_numpy(arrays["contacts"])
    lines = [line for line in structure.read_text().splitlines() if line.startswith("ATOM") and " CB " in line]
    cbeta = torch.full((60, 3), torch.nan)
    for line in lines:
        cbeta[int(line[22:26]) - 1] = torch.tensor([float(line[at : at + 8]) for at in (30, 38, 46)])
    found = precisions(p[None], contact_targets(cbeta, ~cbeta[:, 0].isnan())[None], torch.tensor([58]))
    assert row["scores"]["long_p_at_l"] == pytest.approx(float(found["long_p_at_l"]))
    assert row["scores"]["short_auc_ceiling"] == pytest.approx(float(found["short_auc_ceiling"]))
    best = max((float(p[i, j]), i, j) for i in range(60) for j in range(i + 24, 60))
    first = row["pairs"][0]
    assert (first["i"], first["j"]) == (best[1] + 1, best[2] + 1)
    assert first["probability"] == pytest.approx(best[0], abs=1e-4)
    assert first["residues"] == f"{SEQUENCE[best[1]]}{best[1] + 1}-{SEQUENCE[best[2]]}{best[2] + 1}"
    known = float(distances(cbeta)[best[1], best[2]])
    assert first["true_distance"] == pytest.approx(known, abs=0.01) or np.isnan(known)
    assert len(row["pairs"]) == 3


def test_the_rr_file_is_casp_s(tmp_path: Path) -> None:
    p = torch.rand(60, 60, generator=torch.Generator().manual_seed(2))
    p = (p + p.T) / 2
    write_rr(tmp_path / "a.rr", "Größe", SEQUENCE, p, "a model")
    lines = (tmp_path / "a.rr").read_text(encoding="ascii").splitlines()
    assert lines[:5] == ["PFRMAT RR", "TARGET Gr??e", "AUTHOR triune", "METHOD a model", "MODEL 1"]
    assert lines[5:7] == [SEQUENCE[:50], SEQUENCE[50:]]
    assert lines[-1] == "END"
    rows = [line.split() for line in lines[7:-1]]
    assert all(row[2:4] == ["0", "8"] for row in rows)
    found = {(int(i), int(j)): float(q) for i, j, _, _, q in rows}
    assert len(found) == len(rows)
    assert all(j - i >= 6 and abs(p[i - 1, j - 1] - q) < 1e-6 for (i, j), q in found.items())
    assert list(found.values()) == sorted(found.values(), reverse=True)
    # The L best of each range are there, so that scores can be computed from the file.
    for first, last in ((6, 11), (12, 23), (24, 99)):
        pairs = [(float(p[i, j]), i + 1, j + 1) for i in range(60) for j in range(i + first, min(60, i + last + 1))]
        assert all((i, j) in found for _, i, j in sorted(pairs, reverse=True)[:60])


def said(err: str) -> list[str]:
    """Lines of stderr without the one about progress, which only a slow machine prints."""
    return [line for line in err.splitlines() if not line.startswith("predicting contacts: ")]


def test_a_batch_is_done_but_for_its_mistakes(run: str, structure: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Sequences, alignments and a folder: four are done, each mistake is one sentence, and the exit code tells."""
    Path("many.fasta").write_text(
        f">good\n{SEQUENCE}\n>bad\nACDE1GHIKLMNP\n>other/name\n{OTHER.lower()}*\n>good\n{OTHER}\n>short\nACD\n"
    )
    Path("folder/deep").mkdir(parents=True)
    a3m("folder/deep/good.a3m")
    Path("folder/read.me").write_text("not an input")
    broken = a3m("broken.a3m")
    broken.write_text(broken.read_text().replace(ROWS[4], ROWS[4] + "A"))
    args = ["many.fasta", "folder", "broken.a3m", "gone.fasta", "--run", run, "--structure", structure]
    assert contacts(*args, "--no-png", "--out", "out") == 2
    out, err = capsys.readouterr()
    assert sorted(path.name for path in Path("out").glob("*.rr")) == [
        "good-2.rr",
        "good-3.rr",
        "good.rr",
        "other_name.rr",
    ]
    lines = said(err)
    assert len(lines) == 6
    assert all(line.startswith("error: ") for line in lines)
    for words in (
        "sequence 2 ('bad') holds '1' at position 5",
        "short has 3 residues",
        "has 61 aligned columns, the query has 60; lowercase letters are insertions in A3M",
        "'gone.fasta' cannot be read (No such file",
        "other_name: predicted, but not scored: chain made_A (query) does not match",
        "good-2: predicted, but not scored: chain made_A (query) does not match",
    ):
        assert sum(words in line for line in lines) == 1, words
    assert "mean of 2 chains with a structure" in out
    assert "other_name" in out
    assert out.count("BLOSUM62") == 1  # the same note about two sequences


def test_the_alignment_with_a_structure_that_does_not_match_is_readable(
    run: str, structure: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("one.fasta").write_text(f">one\n{OTHER}\n")
    assert contacts("one.fasta", "--run", run, "--structure", structure, "--no-png") == 2
    lines = said(capsys.readouterr().err)
    assert lines[0].startswith("error: 'one.fasta': one: predicted, but not scored: chain made_A")
    for name, sequence in (("target", OTHER), ("query", SEQUENCE)):
        shown = "".join(line.split()[2] for line in lines[1:] if line.startswith(name))
        assert shown.replace("-", "") == sequence
    assert Path("contacts/one.rr").is_file()


def test_structures_from_a_folder(run: str, structure: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("many.fasta").write_text(f">one\n{SEQUENCE}\n>two\n{SEQUENCE[5:55]}\n")
    Path("bad.pdb").write_text("ATOM  nonsense")
    assert contacts("many.fasta", "--run", run, "--structure", structure.parent, "--json", "--no-png") == 2
    out, err = capsys.readouterr()
    assert [row["chain"] for row in json.loads(out)] == ["made_A", "made_A"]
    assert "bad.pdb" in err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--chain", "A"], "--chain names a chain of --structure FILE"),
        (["--top", "0"], "--top is 0"),
        (["--structure", "none.pdb"], "'none.pdb' cannot be read"),
        (
            ["--structure", "made.pdb", "--chain", "Z"],
            "there is no protein chain 'Z' in 'made.pdb'; its chains are A (58",
        ),
        (["--out", "one.fasta"], "--out 'one.fasta' cannot be made"),
        (["--device", "cudo"], "--device cudo cannot be used here"),
    ],
)
def test_mistakes_in_the_options(
    args: list[str], words: str, run: str, structure: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("one.fasta").write_text(f">one\n{SEQUENCE}\n")
    assert contacts("one.fasta", "--run", run, *args) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert len(err.splitlines()) == 1


def test_aligned_fasta_is_known_by_its_gaps() -> None:
    gapped = [SEQUENCE, "---" + SEQUENCE[3:], SEQUENCE[:30] + "-" * 30]
    Path("rows.fasta").write_text("".join(f">{n}\n{row}\n" for n, row in enumerate(gapped)))
    gapped[2] = SEQUENCE[:30] + "acd" + "-" * 30
    Path("insertions.fasta").write_text("".join(f">{n}\n{row}\n" for n, row in enumerate(gapped)))
    Path("free.fasta").write_text(f">a\n{SEQUENCE}\n>b\n{SEQUENCE[::-1]}\n>c\n{OTHER}\n")
    queries = Queries([Path("rows.fasta"), Path("insertions.fasta"), Path("free.fasta")])
    found = [query for file in queries.files for query in queries.of(file)]
    assert not queries.problems
    assert [(query.name, query.letters is None) for query in found] == [
        ("rows", True), ("insertions", True), ("a", False), ("b", False), ("c", False),
    ]  # fmt: skip
    assert found[1].alignment.query == SEQUENCE
    assert found[1].alignment.deletions[2, 30] == 3


def test_what_is_there_is_kept_or_replaced_when_asked(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["one.fasta", "--run", run, "--no-png", "--json", "--out", "out"]
    Path("one.fasta").write_text(f">one\n{SEQUENCE}\n")
    assert contacts(*args) == 0
    first = json.loads(capsys.readouterr().out)
    stamp = Path("out/one.npz").stat().st_mtime_ns
    assert contacts(*args) == 2
    assert "'out/one.rr' is there already; --resume keeps it" in capsys.readouterr().err
    Path("one.fasta").write_text(f">one\n{SEQUENCE}\n>two\n{OTHER}\n")
    assert contacts(*args, "--resume") == 0
    both = json.loads(capsys.readouterr().out)
    assert both[0] == first[0]
    assert [row["name"] for row in both] == ["one", "two"]
    assert Path("out/one.npz").stat().st_mtime_ns == stamp
    Path("out/one.json").unlink()  # as a run leaves it that ends between two files
    assert contacts(*args, "--resume") == 0
    assert json.loads(capsys.readouterr().out)[0] == first[0]
    Path("one.fasta").write_text(f">one\n{OTHER}\n")
    assert contacts(*args, "--resume") == 2
    assert "is of another input, model or structure" in capsys.readouterr().err
    assert contacts(*args, "--overwrite") == 0
    assert json.loads(capsys.readouterr().out)[0]["sequence"] == OTHER


def test_names_are_not_lost_and_letters_of_any_script_kept(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    heads = ["Protein 1", "Protein 2", "Größe", "蛋白" * 90, "नमस्ते", "a/b", "a?b", "gro\u0308ße", "A:B"]
    Path("many.fasta").write_text("".join(f">{h}\n{SEQUENCE[n:]}\n" for n, h in enumerate(heads)), encoding="utf-8")
    assert contacts("many.fasta", "--run", run, "--no-png", "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    names = [row["name"] for row in rows]
    assert names[:3] == ["Protein_1", "Protein_2", "Größe"]
    assert len(names[3].encode()) <= 120
    assert names[4:] == ["नमस्ते", "a_b", "a_b-2", "größe-2", "A_B-3"], "some systems take two of these for one"
    assert [row["title"] for row in rows] == heads
    assert all(Path(f"contacts/{name}.rr").is_file() for name in names)


def test_dna_is_refused_and_an_alignment_of_copies_is_said_to_be_one(
    run: str, capsys: pytest.CaptureFixture[str]
) -> None:
    dna = "".join(np.random.default_rng(0).choice(list("ACGU"), 60))
    Path("dna.fasta").write_text(f">rna\n{dna}\n")
    Path("copies.a3m").write_text(f">q\n{SEQUENCE}\n" * 21)
    assert contacts("dna.fasta", "copies.a3m", "--run", run, "--no-png", "--json") == 2
    out, err = capsys.readouterr()
    assert "rna is DNA or RNA" in err
    assert any("all 21 rows are the query" in note for note in json.loads(out)[0]["notes"])
    assert contacts("dna.fasta", "--run", run, "--no-png", "--force") == 0


def test_a_complex_keeps_its_chains(run: str, maker: Any, capsys: pytest.CaptureFixture[str]) -> None:
    Path("c.fasta").write_text(f">c\n{SEQUENCE}:{OTHER}\n")
    maker.write(Path("c.pdb"), maker.helix(OTHER, "B"), maker.helix(SEQUENCE, "A", seed=1))
    assert contacts("c.fasta", "--run", run, "--structure", "c.pdb", "--json") == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["chains"], row["sequence"], row["chain"]) == ([60, 48], SEQUENCE + OTHER, "c_A+c_B")
    assert all(pair["chain_i"] == pair["chain_j"] and pair["j"] - pair["i"] >= 24 for pair in row["pairs"])
    assert all((pair["chain_i"], pair["chain_j"]) == ("A", "B") for pair in row["between"])
    best = row["between"][0]
    with np.load("contacts/c.npz") as arrays:
        p = arrays["contacts"]
        assert arrays["chains"].tolist() == [60, 48]
    assert best["probability"] == pytest.approx(float(p[:60, 60:].max()), abs=1e-4)
    assert best["residues"] == f"A:{SEQUENCE[best['i'] - 1]}{best['i']}-B:{OTHER[best['j'] - 1]}{best['j']}"
    assert 0 <= row["scores"]["between_p_at_l"] <= 1
    lines = [line.split() for line in Path("contacts/c.rr").read_text().splitlines() if " 0 8 " in line]
    assert {(i[0], j[0]) for i, j, *_ in lines} == {("A", "A"), ("A", "B"), ("B", "B")}
    # What a model sees is told by a jump of its positions, not by one long chain.
    tokens = encode(SEQUENCE + OTHER)
    found = predictor_for(run).predict(tokens, chains=(60, 48))
    assert torch.equal(torch.from_numpy(p), found.contacts)
    assert not torch.allclose(found.contacts, predictor_for(run).predict(tokens).contacts)


def test_ten_thousand_residues_get_a_sentence(
    run: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(predictors, "free_memory", lambda _: 4 << 30)
    Path("two.fasta").write_text(f">huge\n{SEQUENCE * 167}\n>small\n{SEQUENCE}\n")
    assert contacts("two.fasta", "--run", run, "--no-png") == 2
    _, err = capsys.readouterr()
    assert err.count("error:") == 1  # a slow machine adds a line of progress
    assert "10,020 residues need about" in err
    assert "GiB of memory even in chunks of 4 rows, but 3.2 GiB can be used here; cut the chain to at most" in err
    assert Path("contacts/small.rr").is_file()
    Path("one.fasta").write_text(f">huge\n{SEQUENCE * 167}\n")
    assert contacts("one.fasta", "--run", run, "--no-png", "--out", "new/none") == 2
    assert not Path("new").exists()  # nothing is left of what could not be done

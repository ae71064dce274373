"""Effects of mutations: equal to a plain loop over the original model, windows, names of mutants, the command line."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from triune.cli import main
from triune.core.errors import UserError
from triune.protein.language.effects import reference_substitutions, substitutions, windows
from triune.protein.language.model import SequenceConfig, SequenceModel, esm_transformer
from triune.protein.predict.mutations import main as mutations
from triune.protein.predict.mutations import open_scorer
from triune.protein.read.alphabet import AMINO_ACIDS
from triune.protein.read.mutations import Mutation, check, parse, parse_sites

LETTERS = "MKTLLVAGGSDEQWNPRRLKVAAGIILLKK"


@pytest.fixture(scope="module")
def esm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small ESM-2 of Hugging Face with random weights."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    config = transformers.EsmConfig(
        vocab_size=33, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        position_embedding_type="rotary", token_dropout=True, mask_token_id=32, pad_token_id=1,
    )  # fmt: skip
    model = transformers.EsmForMaskedLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    folder = tmp_path_factory.mktemp("esm")
    model.save_pretrained(folder)
    return folder


def test_both_scores_are_those_of_a_loop_over_the_original(esm: Path) -> None:
    from transformers import EsmForMaskedLM

    theirs = EsmForMaskedLM.from_pretrained(esm).eval()
    order = list("LAGVSERTIDPKQNFYMHWC")  # ESM-2's ids 4 to 23
    tokens = torch.tensor([[0, *(4 + order.index(letter) for letter in LETTERS), 2]])
    scorer = open_scorer(None, str(esm), "cpu")
    for method in ("masked", "wildtype"):
        ours = substitutions(scorer.model, scorer.ids(LETTERS), range(len(LETTERS)), method)
        for site, wild in enumerate(LETTERS):
            seen = tokens.clone()
            if method == "masked":
                seen[0, site + 1] = 32
            with torch.no_grad():
                p = theirs(input_ids=seen, attention_mask=torch.ones_like(seen)).logits[0, site + 1].log_softmax(-1)
            expected = [float(p[4 + order.index(m)] - p[4 + order.index(wild)]) for m in AMINO_ACIDS]
            assert ours[site].tolist() == pytest.approx(expected, abs=1e-5)
        reference = reference_substitutions(scorer.model, scorer.ids(LETTERS), range(len(LETTERS)), method)
        torch.testing.assert_close(ours, reference, atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", ["masked", "wildtype"])
def test_windows_hold_each_site_once_and_away_from_the_cut(method: Any) -> None:
    residues, size = 103, 20
    parts = windows(residues, range(residues), size, method)
    assert sorted(site for part in parts for site in part.sites) == list(range(residues))
    for part in parts:
        assert part.stop - part.start == size and part.start >= 0 and part.stop <= residues
        for site in part.sites:
            before = residues if part.start == 0 else site - part.start
            behind = residues if part.stop == residues else part.stop - 1 - site
            assert min(before, behind) >= (9 if method == "masked" else 4)
    assert windows(20, [3], 20, method) == [(0, 20, [3])]


def test_a_window_is_the_model_on_that_part_alone() -> None:
    torch.manual_seed(0)
    model = SequenceModel(SequenceConfig(esm_transformer("tiny"))).eval()
    ids = torch.randint(4, 24, (50,))
    part = substitutions(model, ids, [30], "masked", 20)
    torch.testing.assert_close(part, substitutions(model, ids[20:40], [10], "masked"))
    assert not torch.allclose(part, substitutions(model, ids, [30], "masked"))


def test_names_of_mutants() -> None:
    assert parse("a24g:p.D30K", "x") == [Mutation("A", 24, "G"), Mutation("D", 30, "K")]
    for wrong in ("", "24", "A24", "A24X", "A24G:A24C", "A24G-D30K"):
        with pytest.raises(UserError):
            parse(wrong, "x")
    assert parse_sites("3-5, 9,4", 3, 7) == [0, 1, 2, 6]
    for wrong in ("5-3", "2", "10", "a", ""):
        with pytest.raises(UserError):
            parse_sites(wrong, 3, 7)


def test_a_wrong_letter_names_its_position_and_another_numbering_that_fits() -> None:
    with pytest.raises(UserError, match=r"position 2 is A \(A2G\), but it is K in it"):
        check([[Mutation("A", 2, "G")]], ["row 1"], LETTERS, 1, "it")
    shifted = [[Mutation(letter, 11 + at, "G" if letter != "G" else "A")] for at, letter in enumerate(LETTERS[:9])]
    with pytest.raises(UserError, match="--first 11"):
        check(shifted, ["row"] * 9, LETTERS, 1, "it")
    check(shifted, ["row"] * 9, LETTERS, 11, "it")


def test_the_command_writes_a_table_a_picture_and_the_correlation(
    esm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["M101A", "K102G:L104A", "L104W", "T103C", "V106D"]
    values = [0.3, 1.5, -0.2, 0.9, "", 0.1]
    table = tmp_path / "dms.csv"
    table.write_text("mutation,dms\n" + "".join(f"{n},{v}\n" for n, v in zip([*names, "L105L"], values)))
    words = ["protein", "mutations", LETTERS, "--pretrained", str(esm), "--measured", str(table), "--column", "dms"]
    out = tmp_path / "out"
    more = ["--first", "101", "--out", str(out), "--sites", "101-110", "--json", "--device", "cpu"]
    assert main([*words, *more]) == 0
    (result,) = json.loads(capsys.readouterr().out)
    with (out / "sequence.csv").open() as file:
        rows = {row["mutation"]: float(row["score"]) for row in csv.DictReader(file)}
    assert len(rows) == 190 and rows["K102G"] < 10
    scores = [rows["M101A"], rows["K102G"] + rows["L104A"], rows["L104W"], rows["T103C"], 0.0]
    assert result["measured"]["spearman"] == pytest.approx(spearmanr(scores, [0.3, 1.5, -0.2, 0.9, 0.1])[0], abs=1e-5)
    assert result["measured"]["count"] == 5 and (out / "sequence.png").stat().st_size > 10_000
    with pytest.raises(UserError, match="exist already"):
        mutations([*words[2:], *more])


def test_a_model_without_probabilities_of_residues_is_refused(tmp_path: Path) -> None:
    from triune.protein.pair.config import PairConfig
    from triune.protein.pair.model import PairModel

    PairModel(PairConfig(dim=8, depth=1, sequence_dim=16, sequence_depth=1, msa_depth=0)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="no probabilities of residues"):
        open_scorer(str(tmp_path), None, "cpu")


def test_a_long_protein_says_that_it_is_read_in_windows(esm: Path, tmp_path: Path, capsys: Any) -> None:
    fasta = tmp_path / "two.fasta"
    fasta.write_text(f">a b\n{LETTERS}X\n>c\n{LETTERS[:20]}\n")
    words = ["protein", "mutations", str(fasta), "--pretrained", str(esm), "--windows", "24", "--method", "wildtype"]
    assert main([*words, "--out", str(tmp_path / "o"), "--no-png", "--format", "jsonl", "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert "31 residues are more than 24" in said and "none of the 20 amino acids: 1 sites" in said
    assert len((tmp_path / "o" / "c.jsonl").read_text().splitlines()) == 20 * 19
    assert not (tmp_path / "o" / "a.png").exists()
    assert np.isfinite(
        [json.loads(line)["score"] for line in (tmp_path / "o" / "a.jsonl").read_text().splitlines()]
    ).all()
    odd = tmp_path / "odd.fasta"
    odd.write_text(f">x/y\n{LETTERS[:20]}\n>x:y\n{LETTERS[2:22]}\n")
    words = ["protein", "mutations", str(odd), "--pretrained", str(esm), "--method", "wildtype", "--device", "cpu"]
    assert main([*words, "--out", str(tmp_path / "p"), "--no-png"]) == 0
    held = [json.loads(file.read_text()) for file in sorted((tmp_path / "p").glob("*.json"))]
    assert {one["title"] for one in held} == {"x/y", "x:y"} and len({one["name"] for one in held}) == 2

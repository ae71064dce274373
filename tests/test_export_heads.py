"""Heads in Hugging Face's form: the same logits in transformers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from triune.cli import main
from triune.core.errors import UserError
from triune.core.heads.base import HeadSpec
from triune.core.labelled.export import PROBLEMS, write_head
from triune.core.labelled.model import LabelledConfig
from triune.protein.language import labelled as protein
from triune.protein.language.checkpoints import pretrained as protein_room
from triune.protein.language.model import SequenceConfig, SequenceModel, esm_transformer
from triune.text import labelled as text
from triune.text.encoder import BERT, TextEncoder, TextEncoderConfig
from triune.text.tokenizer import Tokenizer

SPECS = {
    "classify": HeadSpec("classify", ("no", "yes"), {}, {"counts": [3, 5]}),
    "multilabel": HeadSpec("multilabel", ("a", "b", "c"), {}, {"positive": [1, 2, 3], "negative": [3, 2, 1]}),
    "regress": HeadSpec("regress", ("x", "y"), {}, {"mean": [3.0, -1], "std": [2.0, 5], "quantiles": [[-1, 0, 1]] * 2}),
    "tag": HeadSpec("tag", ("H", "E", "C"), {}, {"counts": [1, 2, 3]}),
}


def made(kind: Any, trunk: Any, spec: HeadSpec, pool: str | None, reads: dict[str, Any], folder: Path) -> Any:
    torch.manual_seed(0)
    config = LabelledConfig(trunk.architecture, trunk.settings()[trunk.config_entry], spec.to_dict(), pool, reads)
    model = kind(config, trunk).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    return model


def bert(spec: HeadSpec, folder: Path, pool: str | None = "own") -> Any:
    tokenizer = Tokenizer.train_bpe(["the cat saw the dog", "an owl"], 270)
    tokenizer.save(folder)
    transformer: dict[str, Any] = {"dim": 32, "depth": 2, "heads": 4, "context": 40}
    config = TextEncoderConfig(tokenizer.vocab_size, replace(BERT, **transformer), pooler=True)
    reads = {"context": 32, **({"words": True} if spec.kind == "tag" else {})}
    return made(text.TextPredictor, TextEncoder(config), spec, None if spec.kind == "tag" else pool, reads, folder)


@pytest.mark.parametrize("kind", list(SPECS))
def test_texts(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    model = bert(SPECS[kind], tmp_path / "model")
    assert main(["convert", str(tmp_path / "model"), str(tmp_path / "out"), "--to", "hf"]) == 0
    assert "BertFor" in capsys.readouterr().out
    auto = f"AutoModelFor{'Token' if kind == 'tag' else 'Sequence'}Classification"
    theirs = getattr(transformers, auto).from_pretrained(tmp_path / "out").eval()
    tokens = torch.randint(0, 260, (2, 9))
    valid = torch.arange(9) < torch.tensor([[9], [6]])
    with torch.no_grad():
        ours = model({"tokens": tokens, "valid": valid})
        found = theirs(input_ids=tokens, attention_mask=valid.long()).logits
    if kind == "regress":
        ours = ours * torch.tensor([2.0, 5]) + torch.tensor([3.0, -1])
    if kind == "tag":
        ours, found = ours[valid], found[valid]
    torch.testing.assert_close(found, ours, atol=1e-5, rtol=1e-5)
    assert list(theirs.config.id2label.values()) == list(SPECS[kind].names)
    assert theirs.config.problem_type == PROBLEMS.get(kind)
    again = Tokenizer.load(tmp_path / "out")
    assert again.encode("the owl").tolist() == Tokenizer.load(tmp_path / "model").encode("the owl").tolist()


def test_an_encoder_that_was_pretrained_here(tmp_path: Path) -> None:
    """`text pretrain` gives its masked head a layer without a bias, which the file of a classifier does not have."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    from triune.text.masked.task import SHAPE as PRETRAINED

    tokenizer = Tokenizer.train_bpe(["the cat saw the dog", "an owl"], 270)
    tokenizer.save(tmp_path / "m")
    core = replace(PRETRAINED, **{"dim": 32, "depth": 2, "heads": 2, "context": 40})
    trunk = TextEncoder(TextEncoderConfig(tokenizer.vocab_size, core, 0, masked_head=True, dense_bias=False))
    config = LabelledConfig(
        trunk.architecture, trunk.settings()[trunk.config_entry], SPECS["classify"].to_dict(), "class", {"context": 32},
        "gelu_norm",
    )  # fmt: skip
    torch.manual_seed(0)
    model: Any = text.TextPredictor(config, trunk).eval()
    torch.nn.init.normal_(model.head.linear.weight)
    model.hidden.dense.bias.data.zero_()
    model.save_pretrained(tmp_path / "m")
    assert main(["convert", str(tmp_path / "m"), str(tmp_path / "out"), "--to", "hf"]) == 0
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    tokens = torch.randint(0, 260, (2, 9))
    with torch.no_grad():
        ours = model({"tokens": tokens, "valid": torch.ones(2, 9, dtype=torch.bool)})
        torch.testing.assert_close(theirs(input_ids=tokens).logits, ours, atol=1e-5, rtol=1e-5)


def test_labels_of_residues(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    trunk = SequenceModel(SequenceConfig(esm_transformer("tiny")))
    model = made(protein.ProteinPredictor, trunk, SPECS["tag"], None, {"context": 50, "profile": False}, tmp_path / "m")
    write_head(protein.MODALITY, protein_room, tmp_path / "m", tmp_path / "out")
    theirs = transformers.EsmForTokenClassification.from_pretrained(tmp_path / "out").eval()
    tokens = torch.tensor([[0, 5, 6, 7, 8, 9, 2], [0, 10, 11, 12, 2, 1, 1]])
    with torch.no_grad():
        ours, found = model({"tokens": tokens}), theirs(input_ids=tokens, attention_mask=(tokens != 1).long()).logits
    torch.testing.assert_close(found[tokens != 1], ours[tokens != 1], atol=1e-5, rtol=1e-5)


def test_what_transformers_does_not_have_is_said(tmp_path: Path) -> None:
    from triune.text.checkpoints import pretrained as room

    bert(SPECS["classify"], tmp_path / "mean", pool="mean")
    with pytest.raises(UserError, match="trained with pool mean"):
        write_head(text.MODALITY, room, tmp_path / "mean", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    ordinal = HeadSpec("ordinal", ("1", "2", "3"), {}, {"counts": [1, 2, 3]})
    bert(ordinal, tmp_path / "ordinal")
    with pytest.raises(UserError, match="kind ordinal has no counterpart"):
        write_head(text.MODALITY, room, tmp_path / "ordinal", tmp_path / "out")
    trunk = SequenceModel(SequenceConfig(esm_transformer("tiny")))
    made(protein.ProteinPredictor, trunk, SPECS["classify"], "mean", {"context": 50, "profile": False}, tmp_path / "p")
    with pytest.raises(UserError, match=r"train with --model.pool class --model.hidden tanh"):
        write_head(protein.MODALITY, protein_room, tmp_path / "p", tmp_path / "out")
    assert json.loads((tmp_path / "p" / "config.json").read_text())["architecture"] == "ProteinPredictor"

"""Classifiers of transformers and timm with their heads: the same logits here, and back there, labels by name."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from triune.cli import main
from triune.core.errors import UserError
from triune.core.heads.base import HeadSpec
from triune.core.heads.keep import keep
from triune.core.heads.registry import make_head
from triune.core.labelled.export import write_head
from triune.core.training.run.cli import run_task
from triune.protein.language import labelled as protein
from triune.protein.language.checkpoints import pretrained as protein_room
from triune.protein.language.model import VOCABULARY
from triune.text import labelled as text
from triune.text.checkpoints import pretrained as text_room
from triune.text.tokenizer import Tokenizer
from triune.vision import labelled as vision
from triune.vision.checkpoints import pretrained as vision_room
from triune.vision.labels import ImageLabels, ImageTable

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
SMALL: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
DISTIL: dict[str, Any] = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48}
LONG: dict[str, Any] = {"max_position_embeddings": 64}
MODERN: dict[str, Any] = {"local_attention": 8} | dict.fromkeys(
    ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 0
)
NAMES = {"id2label": {0: "zebra", 1: "ant", 2: "owl"}, "label2id": {"zebra": 0, "ant": 1, "owl": 2}}
TEXTS = {
    "BertForSequenceClassification": SMALL | LONG,
    "RobertaForSequenceClassification": SMALL | LONG | {"type_vocab_size": 1},
    "XLMRobertaForSequenceClassification": SMALL | LONG | {"type_vocab_size": 1},
    "CamembertForSequenceClassification": SMALL | LONG | {"type_vocab_size": 1},
    "DistilBertForSequenceClassification": DISTIL | LONG,
    "LongformerForSequenceClassification": SMALL | LONG | {"attention_window": 4, "type_vocab_size": 1},
    "BigBirdForSequenceClassification": SMALL | LONG | {"block_size": 4, "num_random_blocks": 1},
    "ModernBertForSequenceClassification": SMALL | LONG | MODERN | {"classifier_pooling": "mean"},
    "BertForTokenClassification": SMALL | LONG,
    "LongformerForTokenClassification": SMALL | LONG | {"attention_window": 4, "type_vocab_size": 1},
    "BigBirdForTokenClassification": SMALL | LONG | {"hidden_act": "relu", "block_size": 4, "num_random_blocks": 1},
    "ModernBertForTokenClassification": SMALL | LONG | MODERN | {"classifier_bias": True, "norm_bias": True},
    "RobertaForTokenClassification": SMALL | LONG | {"type_vocab_size": 1},
    "CamembertForTokenClassification": SMALL | LONG | {"type_vocab_size": 1},
    "XLMRobertaForTokenClassification": SMALL | LONG | {"type_vocab_size": 1},
    "DistilBertForTokenClassification": DISTIL | LONG,
    "LlamaForSequenceClassification": SMALL | LONG | {"num_key_value_heads": 2, "pad_token_id": 0},
    "GPT2ForSequenceClassification": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "pad_token_id": 0},
}
PICTURES: dict[str, dict[str, Any]] = {
    "ViTForImageClassification": {"patch_size": 8},
    "DeiTForImageClassification": {"patch_size": 8},
    "Dinov2ForImageClassification": {"patch_size": 8, "mlp_ratio": 2},
}


def theirs(name: str, folder: Path, **config: Any) -> Any:
    """A classifier of transformers with random weights, saved with a tokenizer where it reads texts."""
    torch.manual_seed(0)
    kind = getattr(transformers, name)
    model = kind(kind.config_class(**config)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    model.save_pretrained(folder)
    return model


def tokenizer(folder: Path) -> Tokenizer:
    made = Tokenizer.train_bpe(["the cat saw the dog", "an owl"], 270)
    made.save(folder)
    return made


@pytest.mark.parametrize("name", TEXTS)
def test_texts_in_and_out(name: str, tmp_path: Path) -> None:
    known = tokenizer(tmp_path / "in")
    model = theirs(name, tmp_path / "in", vocab_size=known.vocab_size, **TEXTS[name], **NAMES)
    assert text.MODALITY.headed is not None
    found = text.MODALITY.headed(str(tmp_path / "in"))
    assert found is not None
    ours, _ = found
    assert list(ours.head.spec.names) == ["zebra", "ant", "owl"]
    assert ours.head.spec.kind == ("tag" if "Token" in name else "classify")
    tokens = torch.randint(2, 260, (2, 9), generator=torch.Generator().manual_seed(1))
    valid = torch.arange(9) < torch.tensor([[9], [6]])
    tokens = tokens.masked_fill(~valid, 0)
    with torch.no_grad():
        mine = ours({"tokens": tokens, "valid": valid})
        want = model(input_ids=tokens, attention_mask=valid.long()).logits
    if "Token" in name:
        mine, want = mine[valid], want[valid]
    torch.testing.assert_close(mine, want, atol=1e-5, rtol=1e-5)
    ours.save_pretrained(tmp_path / "model")  # type: ignore[operator]
    known.save(tmp_path / "model")
    if "score.bias" in name or name.startswith(("Llama", "GPT2")):
        with pytest.raises(UserError, match="causal language models have no bias"):
            write_head(text.MODALITY, text_room, tmp_path / "model", tmp_path / "out")
        return
    write_head(text.MODALITY, text_room, tmp_path / "model", tmp_path / "out")
    again, loading = type(model).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    assert again.config.id2label == NAMES["id2label"] and again.config.label2id == NAMES["label2id"]
    with torch.no_grad():
        back = again.eval()(input_ids=tokens, attention_mask=valid.long()).logits
    torch.testing.assert_close(back[valid] if "Token" in name else back, want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "sizes", "change", "message"),
    [
        ("Longformer", {"attention_window": 4, "type_vocab_size": 1}, {"reads": {"context": 62}}, "sees? all"),
        ("ModernBert", MODERN, {"hidden": "gelu"}, "trained with pool class and hidden gelu; train with .* gelu_norm"),
        ("BigBird", {"attention_type": "original_full"}, {}, "BertForSequenceClassification has another head"),
    ],
)
def test_heads_of_another_form_are_not_written(
    name: str, sizes: dict[str, Any], change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    known = tokenizer(tmp_path / "in")
    theirs(f"{name}ForSequenceClassification", tmp_path / "in", vocab_size=known.vocab_size, **SMALL, **LONG, **sizes)
    found = text.open_with_head(str(tmp_path / "in"))
    assert found is not None
    model = text.TextPredictor(replace(found.model.config, **change), found.model.trunk)
    model.save_pretrained(tmp_path / "model")
    known.save(tmp_path / "model")
    with pytest.raises(UserError, match=message):
        write_head(text.MODALITY, text_room, tmp_path / "model", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classifier_activation": "mish"}, "classifier_activation = 'mish', but its head must have one of gelu"),
        ({"classifier_pooling": "last"}, "classifier_pooling = 'last', but must have cls or mean"),
    ],
)
def test_settings_of_a_head_that_are_not_known_are_a_sentence(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    known = tokenizer(tmp_path / "in")
    theirs(
        "ModernBertForSequenceClassification", tmp_path / "in", vocab_size=known.vocab_size, **SMALL, **LONG, **MODERN
    )
    config = json.loads((tmp_path / "in" / "config.json").read_text()) | change
    (tmp_path / "in" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=message):
        text.open_with_head(str(tmp_path / "in"))


@pytest.mark.parametrize("kind", ["Sequence", "Token"])
def test_proteins_in_and_out(kind: str, tmp_path: Path) -> None:
    sizes = SMALL | {"vocab_size": 33, "mask_token_id": 32, "pad_token_id": 1, "max_position_embeddings": 66,
                     "position_embedding_type": "rotary", "token_dropout": True}  # fmt: skip
    model = theirs(f"EsmFor{kind}Classification", tmp_path / "in", **sizes, **NAMES)
    (tmp_path / "in" / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    assert protein.MODALITY.headed is not None
    found = protein.MODALITY.headed(str(tmp_path / "in"))
    assert found is not None
    tokens = torch.tensor([[0, 5, 6, 7, 8, 9, 2], [0, 10, 11, 12, 2, 1, 1]])
    with torch.no_grad():
        ours, want = found[0]({"tokens": tokens}), model(input_ids=tokens, attention_mask=(tokens != 1).long()).logits
    real = tokens != 1 if kind == "Token" else slice(None)
    torch.testing.assert_close(ours[real], want[real], atol=1e-5, rtol=1e-5)
    found[0].save_pretrained(tmp_path / "model")  # type: ignore[operator]
    write_head(protein.MODALITY, protein_room, tmp_path / "model", tmp_path / "out")
    again, loading = type(model).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not [key for key in loading["missing_keys"] if "contact_head" not in key and "position_embed" not in key]
    with torch.no_grad():
        back = again.eval()(input_ids=tokens, attention_mask=(tokens != 1).long()).logits
    torch.testing.assert_close(back[real], want[real], atol=1e-5, rtol=1e-5)
    assert again.config.id2label == NAMES["id2label"]


@pytest.mark.parametrize("problem", ["single_label_classification", "multi_label_classification", "regression"])
@pytest.mark.parametrize("name", PICTURES)
def test_images_in_and_out(name: str, problem: str, tmp_path: Path) -> None:
    sizes = SMALL | {"image_size": 16} | PICTURES[name]
    model = theirs(name, tmp_path / "in", **sizes, **NAMES, problem_type=problem)
    assert vision.MODALITY.headed is not None
    found = vision.MODALITY.headed(str(tmp_path / "in"))
    assert found is not None
    kinds = {"single": "classify", "multi_": "multilabel", "regres": "regress"}
    assert found[0].head.spec.kind == kinds[problem[:6]]
    assert list(found[0].head.spec.names) == ["zebra", "ant", "owl"]
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        ours, want = found[0]({"images": images}), model(pixel_values=images).logits
    torch.testing.assert_close(ours, want, atol=1e-5, rtol=1e-5)
    found[0].save_pretrained(tmp_path / "model")  # type: ignore[operator]
    write_head(vision.MODALITY, vision_room, tmp_path / "model", tmp_path / "out")
    again = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "out").eval()
    assert type(again) is type(model) and again.config.problem_type == problem
    assert again.config.id2label == NAMES["id2label"]
    with torch.no_grad():
        torch.testing.assert_close(again(pixel_values=images).logits, want, atol=1e-5, rtol=1e-5)


def test_a_dino_trained_on_its_class_token_goes_out_with_zeros_for_the_mean(tmp_path: Path) -> None:
    """Hugging Face's class reads the mean of the patches beside it."""
    from triune.core.labelled.model import LabelledConfig

    theirs("Dinov2Model", tmp_path / "in", **SMALL, image_size=16, patch_size=8, mlp_ratio=2)
    trunk: Any = vision_room.load(str(tmp_path / "in")).model
    assert trunk.config.pool == "class"
    spec = HeadSpec("classify", ("a", "b"), {}, {"counts": [1, 2]})
    config = LabelledConfig(trunk.architecture, trunk.settings()[trunk.config_entry], spec.to_dict(), "own")
    model = vision.ImagePredictor(config, trunk).eval()
    torch.nn.init.normal_(model.head.linear.weight)
    model.save_pretrained(tmp_path / "model")
    images = torch.randn(2, 3, 16, 16)
    for library in ("hf", "timm"):
        write_head(vision.MODALITY, vision_room, tmp_path / "model", tmp_path / library, library)
    again = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "hf").eval()
    import timm

    other = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    with torch.no_grad():
        want = model({"images": images})
        torch.testing.assert_close(again(pixel_values=images).logits, want, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(other(images), want, atol=1e-5, rtol=1e-5)
    pooled = LabelledConfig(trunk.architecture, config.trunk, spec.to_dict(), "mean")
    vision.ImagePredictor(pooled, vision_room.load(str(tmp_path / "in")).model).save_pretrained(tmp_path / "mean")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="trained with pool mean"):
        write_head(vision.MODALITY, vision_room, tmp_path / "mean", tmp_path / "no")


def pictures(folder: Path) -> Path:
    """A table of images of three kinds, called as the classifier calls them, in another order."""
    random, rows = np.random.default_rng(0), []
    for i in range(40):
        Image.fromarray(random.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(folder / f"{i}.png")
        rows.append({"file": f"{i}.png", "animal": ("owl", "zebra", "ant")[i % 3]})
    with (folder / "table.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, ["file", "animal"])
        table.writeheader()
        table.writerows(rows)
    return folder / "table.csv"


def test_a_classifier_answers_is_scored_and_is_trained_further(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = pictures(tmp_path)
    model = theirs("ViTForImageClassification", tmp_path / "in", **SMALL, image_size=16, patch_size=8, **NAMES)
    line = ["vision", "predict", str(tmp_path / "in"), "--table", str(where), "--input", "file", "--device", "cpu"]
    assert main([*line, "--out", str(tmp_path / "answers.jsonl")]) == 0
    answers = [json.loads(row) for row in (tmp_path / "answers.jsonl").read_text().splitlines()]
    right = np.mean([row["label"] == row["animal"] for row in answers])
    capsys.readouterr()
    line = ["vision", "test", str(tmp_path / "in"), "--data.table", str(where), "--data.input", "file",
            "--data.target", "animal", "--device", "cpu"]  # fmt: skip
    assert main([*line, "--out", str(tmp_path / "figures.json")]) == 0
    assert json.loads((tmp_path / "figures.json").read_text())["metrics"]["accuracy"] == pytest.approx(right)
    assert "accuracy" in capsys.readouterr().out
    options = [
        "--data.table",
        where,
        "--data.input",
        "file",
        "--data.target",
        "animal",
        "--model.pretrained",
        tmp_path / "in",
        "--trainer.max_steps",
        1,
        "--trainer.val_check_interval",
        1,
        "--data.batch_size",
        8,
        "--model.optimizer.pretrained_lr",
        1e-9,
        "--model.optimizer.head_lr",
        1e-9,
        "--run",
        tmp_path / "run",
    ]
    words = [str(word) for word in options]
    run_task("vision", "fit", words, ImageLabels, ImageTable, "triune.vision")
    assert "the checkpoint's head for 3 of 3 names" in capsys.readouterr().out.replace("\n           ", " ")
    kept: Any = vision.ImagePredictor.from_pretrained(tmp_path / "run" / "model")
    assert list(kept.head.spec.names) == ["ant", "owl", "zebra"]
    torch.testing.assert_close(kept.head.linear.weight, model.classifier.weight[[1, 2, 0]], atol=1e-4, rtol=1e-4)


def test_weights_meet_targets_by_their_names() -> None:
    def made(kind: str, names: tuple[str, ...], **training: Any) -> Any:
        head: Any = make_head(HeadSpec(kind, names, training.pop("options", {}), training), 4)
        torch.nn.init.normal_(head.linear.weight)
        torch.nn.init.normal_(head.linear.bias)
        return head

    x = torch.randn(6, 4)
    old = made("classify", ("a", "b", "c"), counts=[1, 2, 3])
    new = made("classify", ("c", "a", "d"), counts=[5, 2, 1], options={"class_weights": "balanced"})
    before = new.linear.weight[2].clone()
    assert keep(new, old) == ["c", "a"] and torch.equal(new.linear.weight[2], before)
    found, wanted = new.honest(new(x)), old.honest(old(x))
    torch.testing.assert_close(found[:, 0] - found[:, 1], wanted[:, 2] - wanted[:, 0])
    old = made("regress", ("x", "y"), mean=[3.0, -1.0], std=[2.0, 5.0], quantiles=[[-1, 0, 1]] * 2)
    new = made("regress", ("y",), mean=[10.0], std=[0.5], quantiles=[[-1, 0, 1]])
    assert keep(new, old) == ["y"]
    np.testing.assert_allclose(new.predict(new(x))["value"], old.predict(old(x))["value_y"], rtol=1e-5)
    assert keep(made("multilabel", ("a",), positive=[1], negative=[1]), old) == []
    number = made("regress", ("score",), mean=[3.0], std=[2.0], quantiles=[[-1, 0, 1]])
    for columns, kept in ((("size",), ["size"]), (("size", "score"), ["score"]), (("size", "age"), [])):
        parts = {name: replace(number.spec, names=(name,)).to_dict() for name in columns}
        layout = {name: {"cells": 1, "flat": True, "codes": False, "units": 1.0} for name in columns}
        several = make_head(HeadSpec("several", columns, {}, {"heads": parts, "layout": layout}), 4)
        assert keep(several, number) == kept  # by name, or where one column alone could be meant
    assert keep(made("classify", ("a", "b"), counts=[1, 1]), made("classify", ("u", "v"), counts=[1, 1])) == []


def test_classes_of_one_name_get_their_number(tmp_path: Path) -> None:
    """As the two cranes of ImageNet, whose models would otherwise not be read."""
    known = tokenizer(tmp_path / "in")
    theirs("BertForSequenceClassification", tmp_path / "in", vocab_size=known.vocab_size, **SMALL, **LONG, **NAMES)
    config = json.loads((tmp_path / "in" / "config.json").read_text())
    config["id2label"] = {"0": "crane", "1": "emu", "2": "crane"}
    (tmp_path / "in" / "config.json").write_text(json.dumps(config))
    found = text.open_with_head(str(tmp_path / "in"))
    assert found is not None and found.model.head.spec.names == ("crane (0)", "emu", "crane (2)")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["ElectraForSequenceClassification"]}, "is a ElectraForSequenceClassification, whose head"),
        ({"id2label": {"0": "a", "1": "b"}}, r"names 2 labels \(id2label\), but its head has 3 outputs"),
        ({"problem_type": "ranking"}, "problem_type 'ranking'"),
        ({"architectures": ["RobertaForSequenceClassification"]}, "whose head is not read"),
    ],
)
def test_what_cannot_be_read_is_a_sentence(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    known = tokenizer(tmp_path / "in")
    theirs("BertForSequenceClassification", tmp_path / "in", vocab_size=known.vocab_size, **SMALL, **LONG, **NAMES)
    config = json.loads((tmp_path / "in" / "config.json").read_text()) | changes
    (tmp_path / "in" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=message):
        text.open_with_head(str(tmp_path / "in"))

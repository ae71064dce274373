"""A recipe's settings of attention do not stand in the way of another mixer; what the user names does."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from jsonargparse import Namespace

from triune.cli import main
from triune.core.config import TransformerConfig
from triune.core.errors import UserError
from triune.core.training.run.unused import RULES, leave_out, refuse


def options(mixer: Any, **more: Any) -> Namespace:
    held = dataclasses.asdict(TransformerConfig(dim=8, depth=1, heads=1))
    held |= {"mixer": mixer, "depth": 2, "qk_norm": "head", "window": 8} | more
    return Namespace(model=Namespace(transformer=Namespace(**held)))


@pytest.mark.parametrize("mixer", ["mamba2", "DD", ["gru", "M"]])
def test_what_the_user_did_not_name_is_left_out(mixer: Any) -> None:
    config = options(mixer)
    said = leave_out(config, ["--model.transformer.mixer", "x"], "triune.text")
    assert (config.model.transformer.qk_norm, config.model.transformer.window) == ("none", None)
    assert said.startswith("without the recipe's window 8, qk_norm head, which ")


@pytest.mark.parametrize("mixer", ["attention", "MA", "AA", "unheard", "MMM"])
def test_layers_with_attention_and_mistakes_are_left_alone(mixer: str) -> None:
    config = options(mixer)
    assert leave_out(config, [], "triune.text") == ""
    assert config.model.transformer.qk_norm == "head"


@pytest.mark.parametrize("word", ["--model.transformer.qk_norm=head", "file"])
def test_what_the_user_named_stays(word: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("model:\n  transformer:\n    qk_norm: head\n")
    config = options("mamba2")
    said = leave_out(config, ["--config", str(file)] if word == "file" else [word], "triune.text")
    assert config.model.transformer.qk_norm == "head" and "qk_norm" not in said


def test_a_recipe_trains_with_another_mixer(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRIUNE_CACHE", str(tmp_path / "cache"))
    Path("x.txt").write_text("some words of a text to learn\n" * 60)
    small = ["--data.context", "16", "--model.transformer.dim", "16", "--model.transformer.heads", "2"]
    small += ["--data.files", "x.txt", "--trainer.fast_dev_run", "true", "--threads", "1"]
    line = ["text", "fit", "--config", "shakespeare-char-cpu", *small, "--model.transformer.mixer", "gru"]
    assert main(line) == 0
    assert "without the recipe's qk_norm head, which gru does not have" in " ".join(capsys.readouterr().out.split())
    assert main([*line, "--model.transformer.qk_norm", "head"]) == 2
    assert "qk_norm is 'head', but must be none" in capsys.readouterr().err


VALUES = {
    "model.schedule.kind": "cosine", "model.schedule.decay": 0.1, "model.optimizer.name": "adamw",
    "model.optimizer.momentum": 0.5, "data.augment.crop": "pad", "data.augment.min_area": 0.5,
    "data.augment.mixup": 0.0, "data.augment.mix_chance": 0.5, "model.transformer.context": 99,
    "trainer.sync_batchnorm": True, "model.transformer.causal": False,
}  # fmt: skip
FIXED = {"model.transformer.causal": "a language model reads from left to right"}


@pytest.mark.parametrize(
    ("name", "mended"),
    [
        ("model.schedule.decay", {"model.schedule.kind": "wsd"}),
        ("model.optimizer.momentum", {"model.optimizer.name": "muon"}),
        ("data.augment.min_area", {"data.augment.crop": "resized"}),
        ("data.augment.mix_chance", {"data.augment.mixup": 0.2}),
        ("model.transformer.context", None),
        ("trainer.sync_batchnorm", None),
        ("model.transformer.causal", None),
    ],
)
def test_an_option_that_would_change_nothing_is_refused(name: str, mended: dict[str, Any] | None) -> None:
    with pytest.raises(UserError, match=f"^--{name} is {VALUES[name]}, but would change nothing: .*; leave it out"):
        refuse(VALUES, {}, {name}, FIXED)
    refuse(VALUES, {}, set(), FIXED)  # a recipe's, or one of a run that is continued
    refuse(VALUES, {name: VALUES[name]}, {name}, FIXED)  # its default
    if mended:
        refuse(VALUES | mended, {}, {name}, FIXED)


def test_the_rules_name_options_that_there_are() -> None:
    from triune.bench.refusals.options import leaves, parser_of
    from triune.vision.data.augment import AugmentConfig

    every = {f"data.augment.{field.name}" for field in dataclasses.fields(AugmentConfig)}
    for words in (("text", "fit"), ("vision", "fit"), ("text", "fit", "--data.pairs=ok/pairs.tsv")):
        every |= {option.removeprefix("--") for option, _ in leaves(parser_of(words, Path()))}
    assert {name for rule in RULES for name in rule.options} <= every


def test_a_language_model_that_should_see_both_sides_is_refused(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.txt").write_text("some words of a text to learn\n" * 60)
    line = ["text", "fit", "--data.files", "x.txt", "--run", "run"]
    assert main([*line, "--model.transformer.causal", "false"]) == 2
    assert "--model.transformer.causal is False, but would change nothing: a language" in capsys.readouterr().err
    assert main([*line, "--model.transformer.context", "99"]) == 2
    assert "the data say how long an input is (--data.context" in capsys.readouterr().err
    assert not Path("run").exists()


def test_it_is_refused_of_a_run_that_goes_on(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.csv").write_text("a,b\n" + "".join(f"word {n % 7},{'xy'[n % 2]}\n" for n in range(40)))
    small = "--model.transformer.dim 8 --model.transformer.depth 1 --model.transformer.heads 1 --trainer.max_steps 1"
    data = "--data.table x.csv --data.input a --data.target b --data.tokenizer bytes --threads 1"
    assert main(f"text fit {data} {small} --trainer.logger false --trainer.accelerator cpu --run run".split()) == 0
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    Path("x.csv").unlink()  # refused before the data are read
    for words, said in (
        ("--trainer.sync_batchnorm true", "sync_batchnorm is True, but would change nothing: no model here has"),
        ("--model.schedule.kind cosine --model.schedule.decay 0.3", "decay is 0.3, but would change nothing: only"),
        ("--head_scores true", "--head_scores was given, but the heads of this model are not scored"),
    ):
        capsys.readouterr()
        assert main(f"text fit --run run --resume true --trainer.max_steps 2 {words}".split()) == 2
        assert said in " ".join(capsys.readouterr().err.split())
    assert before == {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}

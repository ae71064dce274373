"""The language model as a training task."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer

from triune import cli
from triune.core.config import TransformerConfig
from triune.core.errors import UserError
from triune.core.expert_options import ExpertsConfig
from triune.core.rotary import RotaryConfig
from triune.core.training.optimizers import OptimizerConfig
from triune.core.training.run.cli import run_task
from triune.core.training.run.folder import RunFolder, model_folder
from triune.core.training.start import longer
from triune.text.data.module import TextData
from triune.text.model import LanguageModel, LanguageModelConfig
from triune.text.task import TextTask
from triune.text.tokenizer import Tokenizer

TINY = TransformerConfig(dim=32, depth=2, heads=2, bias=False, norm="rmsnorm")


def trainer(**options: object) -> Trainer:
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(accelerator="cpu", **quiet, **options)


def files(tmp_path) -> list[str]:
    for n in range(12):
        (tmp_path / f"{n}.txt").write_text(f"document {n}: " + "the cat sat on the mat and saw a rat. " * (n + 3))
    return [str(tmp_path / "*.txt")]


def test_it_learns_and_reports_bits_per_byte(tmp_path):
    torch.manual_seed(0)
    task = TextTask(TINY, optimizer=OptimizerConfig(lr=0.02))
    data = TextData(files(tmp_path), tokenizer="bytes", context=32, batch_size=8, cache=str(tmp_path / "cache"))
    run = trainer(max_steps=60, val_check_interval=5)
    run.fit(task, data)
    figures = run.callback_metrics
    assert figures["val_loss"] < 1.0  # from ln 257 = 5.55
    nats = figures["val_loss"].item() * data.val_targets
    assert figures["val_bits_per_byte"].item() == pytest.approx(nats / math.log(2) / data.val_bytes, rel=1e-5)


def test_a_part_of_the_validation_gives_no_bits_per_byte(tmp_path):
    task = TextTask(TINY)
    data = TextData(files(tmp_path), tokenizer="bytes", context=8, batch_size=2, cache=str(tmp_path / "cache"))
    run = trainer(limit_val_batches=1)
    run.validate(task, data, verbose=False)
    assert "val_bits_per_byte" not in run.callback_metrics


def test_the_export_is_the_model(tmp_path):
    task = TextTask(TINY, ema=0.9)
    data = TextData(files(tmp_path), tokenizer="bytes", context=32, batch_size=8, cache=str(tmp_path / "cache"))
    run = trainer(max_steps=5)
    run.fit(task, data)
    task.export(tmp_path / "model")
    loaded, tokenizer = LanguageModel.from_pretrained(tmp_path / "model").eval(), Tokenizer.load(tmp_path / "model")
    assert tokenizer.vocab_size == data.vocab_size
    total = count = torch.tensor(0.0)
    with torch.no_grad():
        for batch in data.val_dataloader():
            nats, n = loaded.loss(batch["tokens"], batch["targets"], batch.get("documents"))
            total, count = total + nats, count + n
    run.validate(task, data, verbose=False)
    assert run.callback_metrics["val_loss"].item() == pytest.approx((total / count).item(), abs=1e-6)
    saved = json.loads((tmp_path / "model" / "config.json").read_text())
    assert saved["model"]["transformer"]["head_dim"] == 16


def test_predict_gives_the_surprise_at_each_token(tmp_path):
    torch.manual_seed(0)
    task = TextTask(TINY)
    data = TextData(files(tmp_path), tokenizer="bytes", context=32, batch_size=4, cache=str(tmp_path / "cache"))
    run = trainer()
    surprise = run.predict(task, data)
    run.validate(task, data, verbose=False)
    total = sum(nats.sum().item() for nats in surprise)
    assert total == pytest.approx(run.callback_metrics["val_loss"].item() * data.val_targets, rel=1e-4)


def test_packed_documents_score_as_if_alone(tmp_path):
    """The loss of packed windows is that of each document by itself."""
    torch.manual_seed(0)
    data = TextData(files(tmp_path), tokenizer="bytes", context=64, batch_size=1, cache=str(tmp_path / "cache"))
    data.setup()
    model = LanguageModel(
        LanguageModelConfig(data.vocab_size, TransformerConfig(dim=32, depth=2, heads=2, causal=True))
    )
    model.double().eval()
    seen = 0
    for batch in data.train_dataloader():
        tokens, targets, documents = (batch[k][0] for k in ("tokens", "targets", "documents"))
        packed, _ = model.loss(tokens[None], targets[None], documents[None])
        alone = sum(
            model.loss(tokens[documents == d][None], targets[documents == d][None])[0] for d in documents.unique()
        )
        assert packed.item() == pytest.approx(alone.item(), rel=1e-10)
        seen += len(documents.unique()) > 1
    assert seen > 3


def test_tied_head_is_the_embedding():
    tied = LanguageModel(LanguageModelConfig(50, TINY))
    assert tied.head.weight is tied.embedding.weight
    untied = LanguageModel(LanguageModelConfig(50, TINY, tied=False))
    assert torch.allclose(untied(torch.tensor([[1, 2]])), torch.zeros(1, 2, 50))


def test_options_of_the_model():
    model = LanguageModel(LanguageModelConfig(50, TINY, embedding_scale=True, logit_softcap=2.0, embedding_std=3.0))
    tokens = torch.arange(10)[None]
    expected = model.transformer(model.embedding(tokens) * 32**0.5) @ model.embedding.weight.T
    assert torch.allclose(model(tokens), 2 * torch.tanh(expected / 2), atol=1e-5)
    total, count = model.loss(tokens, tokens)
    assert total.item() == pytest.approx(
        torch.nn.functional.cross_entropy(model(tokens)[0], tokens[0], reduction="sum").item(), rel=1e-5
    )
    assert count == 10


def test_it_wants_text():
    with pytest.raises(UserError, match="TextData"):
        TextTask().build_model(None)


def test_a_checkpoint_trained_on_longer_texts_is_exported_for_them(tmp_path: Path, capsys) -> None:
    """And says so; a learned table of positions cannot grow."""
    tokenizer = Tokenizer.bytes()
    tokenizer.save(tmp_path / "first")
    config = TransformerConfig(dim=32, depth=1, heads=2, causal=True, context=16, position="rotary")
    model = LanguageModel(LanguageModelConfig(tokenizer.vocab_size, config))
    model.save_pretrained(tmp_path / "first")
    (tmp_path / "x.txt").write_text("The cat sat on the mat. " * 30)
    options = ["--model.pretrained", tmp_path / "first", "--data.files", tmp_path / "x.txt", "--run", tmp_path / "run"]
    options += ["--data.context", 64, "--data.batch_size", 2, "--trainer.max_steps", 1, "--data.cache", tmp_path / "c"]
    run_task("text", "fit", list(map(str, options)), TextTask, TextData, "triune.text")
    assert "its context of 16 becomes 64" in capsys.readouterr().out
    exported = LanguageModel.from_pretrained(model_folder(tmp_path / "run", "text"))
    assert exported.config.transformer.context == 64
    assert longer(config, 16, "x") == config
    assert longer(config, 16, "x", around=2).context == 18
    with pytest.raises(UserError, match="learned positions for 16; give at most that"):
        longer(replace(config, position="learned"), 17, "x")
    grows = RotaryConfig(scaling="dynamic", factor=2.0, original_context=16)
    with pytest.raises(UserError, match=r"stretched by what exceeds its context of 16 \(dynamic\)"):
        longer(replace(config, rotary=grows), 17, "x")
    assert longer(replace(config, rotary=replace(grows, scaling="yarn")), 17, "x").context == 17


def test_a_mixture_of_experts_is_trained_told_and_resumed(tmp_path, monkeypatch, capsys):
    """The balancing loss has a gradient and is not part of the loss that is written; biases go on after a resume."""
    monkeypatch.chdir(tmp_path)
    size = ["--model.transformer.dim", "32", "--model.transformer.depth", "2", "--model.transformer.heads", "2"]
    experts = ["--model.transformer.experts.count", "4", "--model.transformer.experts.loss_weight", "0.1"]
    data = ["--data.files", *files(tmp_path), "--data.context", "32", "--data.batch_size", "4"]
    steps = ["--trainer.log_every_n_steps", "2", "--trainer.val_check_interval", "2"]
    steps += ["--model.schedule.kind", "constant", "--model.schedule.warmup", "0"]
    given = ["--data.tokenizer", "bytes", "--data.cache", "cache", *size, *experts, *data, *steps]
    assert cli.main(["text", "fit", "--run", "whole", *given, "--trainer.max_steps", "4"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "4 experts of 88, 2 active, balanced by a bias (rate 0.001) and a loss (weight 0.1, added to the" in shown
    table = Path("whole/metrics.csv").read_text().splitlines()
    rows = [row for row in csv.DictReader(table) if row["loss"]]
    assert [row["step"] for row in rows] == ["2", "4"]
    assert all(1 <= float(row["expert_peak"]) <= 4 and 0 <= float(row["expert_idle"]) < 1 for row in rows)
    whole = LanguageModel.from_pretrained(RunFolder("whole").model).state_dict()
    moved = [tensor for name, tensor in whole.items() if name.endswith("router.balance")]
    assert len(moved) == 2
    assert all(tensor.abs().max() > 0 for tensor in moved)
    assert cli.main(["text", "fit", "--run", "part", *given, "--trainer.max_steps", "2"]) == 0
    assert cli.main(["text", "fit", "--run", "part", "--resume", "true", "--trainer.max_steps", "4"]) == 0
    again = LanguageModel.from_pretrained(RunFolder("part").model).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in whole.items() if "balance" in name)


def test_the_balancing_loss_is_learned_from_and_not_reported(tmp_path):
    data = TextData(files(tmp_path), tokenizer="bytes", context=32, batch_size=4, cache=str(tmp_path / "cache"))
    reported, gradients = [], []
    for weight in (0.0, 10.0):
        torch.manual_seed(0)
        experts = ExpertsConfig(count=4, bias_rate=0.0, loss_weight=weight)
        task = TextTask(replace(TINY, experts=experts), optimizer=OptimizerConfig(name="adamw", lr=1e-9))
        trainer(max_steps=1, limit_val_batches=0).fit(task, data)
        assert task.last_loss is not None and task.model is not None
        reported.append(task.last_loss)
        gradients.append(task.model.get_parameter("transformer.blocks.0.ffn.router.weight").grad)
    assert torch.equal(reported[0], reported[1])
    assert not torch.allclose(gradients[0], gradients[1], rtol=0.1)

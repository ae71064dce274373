"""Fine-tuning through the command line of each task, from checkpoints in triune's own and in Hugging Face's format."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image
from torch import nn

from triune.core import TransformerConfig, UserError
from triune.core.adapt.lora import LoRAConfig
from triune.core.training.groups import parameter_groups
from triune.core.training.optimizers import OptimizerConfig
from triune.core.training.run.cli import run_task
from triune.core.training.run.flops import count_step
from triune.core.training.run.folder import RunFolder, load_summary
from triune.core.training.start import Start
from triune.protein.data.module import ProteinData
from triune.protein.language.data import SequenceData
from triune.protein.language.model import SequenceConfig, SequenceModel, esm_tokens, esm_transformer
from triune.protein.language.task import PretrainTask
from triune.protein.pair.config import PairConfig
from triune.protein.pair.model import PairModel
from triune.protein.pair.task import PairTask
from triune.text.data.module import TextData
from triune.text.model import LanguageModel, LanguageModelConfig
from triune.text.task import TextTask
from triune.text.tokenizer import Tokenizer
from triune.vision.data.module import ImageData
from triune.vision.model import VisionTransformer, VisionTransformerConfig
from triune.vision.preprocessing import Preprocessing
from triune.vision.task import VisionTask

SHORT = ["--trainer.max_steps", "4", "--trainer.val_check_interval", "2", "--threads", "1"]
FLAT = ["--model.schedule.kind", "constant", "--model.schedule.warmup", "0"]
LORA = ["--model.lora.rank", "2", "--model.optimizer.lora_lr", "0.01"]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


# --- text -------------------------------------------------------------------------------------------------------------


def text(verb: str, *words: object) -> dict[str, Any]:
    return run_task("text", verb, [str(word) for word in words], TextTask, TextData, "triune.text")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "cat.txt").write_text("the cat sat on the mat and saw a rat. " * 60)
    return [
        "--data.files", str(folder / "cat.txt"), "--data.cache", str(folder), "--data.context", "32",
        "--data.batch_size", "2",
    ]  # fmt: skip


def language_model(folder: Path, **options: Any) -> LanguageModel:
    torch.manual_seed(0)
    core = TransformerConfig(
        dim=32, depth=2, heads=2, kv_heads=1, ffn="swiglu", norm="rmsnorm", bias=False, causal=True
    )
    model = LanguageModel(LanguageModelConfig(257, **({"transformer": core} | options)))
    model.save_pretrained(folder)
    Tokenizer.bytes().save(folder)
    return model


def test_text_takes_tokenizer_and_shape_from_the_checkpoint(tmp_path, corpus, capsys):
    base = language_model(tmp_path / "lm")
    # No --config: the recipe for fine-tuning, not the default one, whose sizes would contradict the checkpoint.
    run = RunFolder(tmp_path / "run")
    text("fit", "--model.pretrained", tmp_path / "lm", "--run", run, *corpus, *SHORT, *LORA)
    shown = " ".join(capsys.readouterr().out.split())
    assert "its tokenizer of 257 tokens" in shown
    assert "LoRA of rank 2 on q, k, v" in shown
    model, tokenizer = LanguageModel.from_pretrained(run.model), Tokenizer.load(run.model)
    assert model.config.transformer == base.config.transformer
    assert tokenizer.vocab_size == 257
    # Merged, and plain: every adapted matrix moved, nothing else did.
    before, after = base.state_dict(), model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert before.keys() == after.keys()
    assert moved == {name for name in before if ".attn." in name or ".ffn." in name}
    assert not run.adapter.exists()  # not one of Hugging Face's models


def test_a_run_goes_on_and_is_scored_when_its_checkpoint_is_gone(tmp_path, corpus):
    language_model(tmp_path / "lm")
    options = ["--model.pretrained", tmp_path / "lm", *corpus, *LORA, *FLAT, "--model.freeze.blocks", "1"]
    options += ["--model.freeze.steps", "3", "--trainer.max_steps"]
    whole, part = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "part")
    text("fit", "--run", whole, *options, 6)
    text("fit", "--run", part, *options, 4)
    shutil.rmtree(tmp_path / "lm")
    text("fit", "--run", part, "--resume", "true", "--trainer.max_steps", 6)
    first, second = weights(whole.path), weights(part.path)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert text("validate", part) == text("validate", whole)
    shutil.rmtree(part.pretrained)
    shutil.copytree(whole.pretrained, part.pretrained)  # what another run started from
    for words in (["validate", part], ["fit", "--run", part, "--resume", "true", "--trainer.max_steps", 7]):
        with pytest.raises(UserError, match=r"pretrained' is of another run than '.*config\.yaml' beside it; put the"):
            text(*words)
    shutil.rmtree(part.pretrained)
    with pytest.raises(UserError, match="lm"):
        text("validate", part)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--data.tokenizer", "bpe"], "data.tokenizer is bpe, but a model only understands its own"),
        (["--model.transformer.depth", "7"], r"model\.transformer\.depth is 7, but '.*' has 2"),
        (["--model.logit_softcap", "3"], r"model\.logit_softcap is 3"),
        (["--config", "demo"], "leave it out"),
        (["--model.lora.targets", "[q, zz]"], "'zz'"),
        (["--model.lora.rank", "0"], "lora.rank is 0"),
        (["--model.freeze.blocks", "3"], "the model has 2 blocks"),
        (["--model.freeze.blocks", "many"], "--model.freeze.blocks is 'many'"),
        (["--model.freeze.blocks", "all"], "nothing to train at first"),  # its head is the embedding
        (["--model.optimizer.lr", "0.1"], "optimizer.pretrained_lr"),
    ],
)
def test_what_does_not_go_with_a_checkpoint(words, says, tmp_path, corpus, monkeypatch):
    monkeypatch.chdir(tmp_path)
    language_model(tmp_path / "lm")
    with pytest.raises(UserError, match=says):
        text("fit", "--model.pretrained", "lm", "--run", "run", *corpus, *SHORT, *words)
    assert not (tmp_path / "run").exists(), "the same command can be tried again"


def test_a_context_beyond_the_learned_positions(tmp_path, corpus):
    core = TransformerConfig(dim=32, depth=1, heads=2, position="learned", context=16, causal=True)
    language_model(tmp_path / "lm", transformer=core)
    with pytest.raises(UserError, match="learned positions for 16"):
        text("fit", "--model.pretrained", tmp_path / "lm", "--run", tmp_path / "run", *corpus, *SHORT)


def test_a_checkpoint_without_tokenizer(tmp_path, corpus):
    language_model(tmp_path / "lm")
    (tmp_path / "lm" / "tokenizer.json").rename(tmp_path / "tokenizer.json")
    fit = ["fit", "--model.pretrained", tmp_path / "lm", "--run", tmp_path / "run", *corpus, *SHORT]
    with pytest.raises(UserError, match="comes without a tokenizer"):
        text(*fit)
    text(*fit, "--data.tokenizer", tmp_path / "tokenizer.json")
    assert Tokenizer.load(tmp_path / "run" / "model").vocab_size == 257
    text("validate", tmp_path / "run")


def test_dropout_may_be_chosen_for_fine_tuning(tmp_path, corpus):
    language_model(tmp_path / "lm")
    words = ["--model.transformer.dropout", "0.2", "--model.pretrained", tmp_path / "lm"]
    text("fit", *words, "--run", tmp_path / "run", *corpus, *SHORT)
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text())["model"]["transformer"]
    assert (config["dropout"], config["dim"]) == (0.2, 32)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_adapter_of_a_run_is_read_by_peft(family, tmp_path, corpus):
    peft: Any = pytest.importorskip("peft", reason="compares with the library PEFT")
    transformers: Any = pytest.importorskip("transformers", reason="compares with Hugging Face's models")
    torch.manual_seed(0)
    if family == "llama":
        theirs = transformers.LlamaForCausalLM(
            transformers.LlamaConfig(
                vocab_size=260, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                num_key_value_heads=2, max_position_embeddings=64,
            )
        )  # fmt: skip
    else:
        theirs = transformers.GPT2LMHeadModel(
            transformers.GPT2Config(vocab_size=260, n_positions=64, n_embd=32, n_layer=2, n_head=4)
        )
    theirs.save_pretrained(tmp_path / "hf")
    Tokenizer.bytes().save(tmp_path / "hf")
    run = RunFolder(tmp_path / "run")
    text("fit", "--model.pretrained", tmp_path / "hf", "--run", run, *corpus, *SHORT, *LORA)
    loaded = peft.PeftModel.from_pretrained(theirs.eval(), run.adapter).eval()
    ours, tokens = LanguageModel.from_pretrained(run.model).eval(), torch.randint(257, (2, 20))
    with torch.no_grad():
        logits = ours(tokens)
        assert torch.allclose(loaded(tokens).logits, logits, atol=1e-5)
        with loaded.disable_adapter():
            assert not torch.allclose(loaded(tokens).logits, logits, atol=1e-3)
    config = json.loads((run.adapter / "adapter_config.json").read_text())
    assert (config["task_type"], config["base_model_name_or_path"]) == ("CAUSAL_LM", str(tmp_path / "hf"))


# --- vision -----------------------------------------------------------------------------------------------------------


def vision(verb: str, *words: object) -> dict[str, Any]:
    return run_task("vision", verb, [str(word) for word in words], VisionTask, ImageData, "triune.vision")


PREPROCESSING = Preprocessing([0.3], [0.2], interpolation="bilinear", crop_pct=0.875)


def image_model(folder: Path, **options: Any) -> VisionTransformer:
    torch.manual_seed(0)
    core = TransformerConfig(dim=16, depth=2, heads=2, position="none")
    config = VisionTransformerConfig(
        **({"image_size": 12, "patch_size": 4, "channels": 1, "classes": 3, "labels": ["a", "b", "c"],
            "transformer": core,
            "preprocessing": PREPROCESSING, "registers": 1} | options)
    )  # fmt: skip
    model = VisionTransformer(config)
    nn.init.normal_(model.head.weight)  # type: ignore[arg-type]
    model.save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(24):
        place = folder / "xy"[i % 2] / f"{i}.png"
        place.parent.mkdir(exist_ok=True)
        pixels = torch.randint(200, (12, 12), generator=torch.Generator().manual_seed(i)) + 50 * (i % 2)
        Image.fromarray(pixels.numpy().astype(np.uint8)).save(place)
    return folder


def test_vision_keeps_the_backbone_and_makes_a_new_head(tmp_path, pictures, capsys):
    base = image_model(tmp_path / "vit")
    run = RunFolder(tmp_path / "run")
    words = ["--model.pretrained", tmp_path / "vit", "--run", run, *SHORT, "--model.freeze.blocks", "all"]
    data = ["--data.root", pictures, "--data.batch_size", "4", "--data.val_fraction", "0.3", "--data.cache", tmp_path]
    vision("fit", *words, *data)
    shown = " ".join(capsys.readouterr().out.split())
    assert "its 12×12 pixels, interpolation bilinear, resize crop, crop 0.875, mean 0.3, std 0.2" in shown
    model = VisionTransformer.from_pretrained(run.model)
    config = model.config
    assert (config.classes, config.labels, config.size) == (2, ["x", "y"], (12, 12))
    assert config.preprocessing == PREPROCESSING
    before, after = base.state_dict(), model.state_dict()
    assert before.keys() == after.keys()
    same = {
        name for name in before if before[name].shape == after[name].shape and torch.equal(before[name], after[name])
    }
    assert before.keys() - same == {"head.weight", "head.bias"}
    shutil.rmtree(tmp_path / "vit")
    assert vision("validate", run)["val_images"] == load_summary(run.path)["val_images"]


def test_explicit_choices_about_images_win():
    data = ImageData(image_size=16, interpolation="nearest", statistics="imagenet")
    about = data.adopt(PREPROCESSING, (12, 12), 1, "x")
    data.setup()
    assert data.image_size == (16, 16)
    assert data.preprocessing == Preprocessing([0.5], [0.5], interpolation="nearest", crop_pct=0.875)
    assert about == "its resize crop, crop 0.875"


def test_a_head_for_the_same_classes_is_kept():
    names = [str(i) for i in range(10)]
    for labels, kept in ((names, True), (names[::-1], False), ([], False)):
        torch.manual_seed(0)
        core = TransformerConfig(dim=16, depth=1, heads=2, position="none")
        model = VisionTransformer(
            VisionTransformerConfig(8, 2, 1, 10, core, labels=labels, preprocessing=PREPROCESSING)
        )
        nn.init.normal_(model.head.weight)  # type: ignore[arg-type]
        data = ImageData()
        data.image_size, data.channels, data.classes, data.labels = (8, 8), 1, 10, names
        task = VisionTask(pretrained="x")
        adapted = task.adapt_model(Start("x", model), data)
        assert bool(adapted.head.weight.any()) is kept  # type: ignore[union-attr] (a new one starts at zero)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--data.channels", "3"], "data.channels is 3, but '.*' reads images of 1"),
        (["--model.patch_size", "2"], r"model\.patch_size is \[2, 2\], but '.*' has \[4, 4\]"),
        (["--model.pool", "attention"], "model.pool is attention"),
        (["--data.image_size", "13"], "multiple of the patch"),
    ],
)
def test_what_does_not_go_with_an_image_model(words, says, tmp_path):
    image_model(tmp_path / "vit")
    with pytest.raises(UserError, match=says):
        vision("fit", "--model.pretrained", tmp_path / "vit", "--run", tmp_path / "run", *SHORT, *words)


# --- protein ----------------------------------------------------------------------------------------------------------

PAIR = [
    "--model.preset",
    "tiny",
    "--model.settings",
    "{msa_depth: 0, recycles: 1}",
    "--data.crop",
    "32",
    "--data.max_length",
    "64",
]


def protein(verb: str, *words: object) -> dict[str, Any]:
    return run_task("protein", verb, [str(word) for word in words], PairTask, ProteinData, "triune.protein")


def sequence_model(folder: Path) -> SequenceModel:
    torch.manual_seed(0)
    model = SequenceModel(SequenceConfig(esm_transformer("tiny")))
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize(
    ("words", "moves"),
    [([], set()), (["--model.freeze.blocks", "1"], {"1"}), (LORA, {"0", "1"})],
    ids=["frozen", "upper", "lora"],
)
def test_a_language_model_below_the_pair_model(words, moves, tmp_path):
    base = sequence_model(tmp_path / "esm")
    run = RunFolder(tmp_path / "run")
    limits = ["--trainer.max_steps", "2", "--trainer.limit_val_batches", "1", "--threads", "1"]
    protein("fit", "--model.pretrained", tmp_path / "esm", "--run", run, *PAIR, *limits, *words)
    model = PairModel.from_pretrained(run.model)
    assert model.config.trunk == base.config
    after = {name.removeprefix("trunk."): t for name, t in model.state_dict().items() if name.startswith("trunk.")}
    moved = {name for name, tensor in after.items() if not torch.equal(tensor, base.state_dict()[name])}
    assert {name.split(".")[2] for name in moved if "blocks" in name} == moves
    assert "embedding.weight" not in moved
    assert not torch.equal(model.head.logits.weight, torch.zeros_like(model.head.logits.weight)), (
        "the pair model trains"
    )


def test_the_trunk_speaks_through_its_linear_map():
    trunk, tokens = SequenceModel(SequenceConfig(esm_transformer("tiny"))).eval(), torch.randint(20, (2, 12))
    mask = torch.ones(2, 12, dtype=torch.bool)
    model = PairModel(PairConfig.preset("tiny", msa_depth=0, trunk=trunk.config), trunk).eval()
    assert model.trunk is trunk
    seen: list[torch.Tensor] = []
    model.input.from_trunk.register_forward_pre_hook(lambda module, args: seen.append(args[0]))  # type: ignore[union-attr]
    nn.init.normal_(model.head.logits.weight)
    first = model(tokens, mask=mask).contacts
    assert torch.equal(seen[0], trunk.hidden(esm_tokens(tokens))[:, 1:-1])
    nn.init.normal_(model.input.from_trunk.weight)  # type: ignore[union-attr]
    assert not torch.equal(model(tokens, mask=mask).contacts, first)
    again = PairConfig.from_dict(json.loads(json.dumps(model.config.to_dict())))
    assert again == model.config


def test_going_on_with_a_protein_language_model(tmp_path):
    base = sequence_model(tmp_path / "esm")
    task = PretrainTask(pretrained=str(tmp_path / "esm"), lora=LoRAConfig(rank=2))
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = Trainer(accelerator="cpu", max_steps=2, limit_val_batches=1, **quiet)  # type: ignore[arg-type]
    trainer.fit(task, SequenceData(context=32, batch_size=4))
    task.export(tmp_path / "model")
    model = SequenceModel.from_pretrained(tmp_path / "model")
    assert model.config == base.config
    assert not torch.equal(model.transformer.blocks[0].attn.q.weight, base.transformer.blocks[0].attn.q.weight)
    assert torch.equal(model.embedding.weight, base.embedding.weight)
    with pytest.raises(UserError, match=r"model\.size is 8M, but '.*' has tiny"):
        PretrainTask("8M", pretrained=str(tmp_path / "esm")).configure_model()


# --- all --------------------------------------------------------------------------------------------------------------


def test_layer_decay_falls_from_the_head_to_the_embeddings_in_all_tasks():
    core = TransformerConfig(dim=16, depth=2, heads=2, position="learned", causal=True)
    models: list[tuple[nn.Module, list[str], list[str]]] = [
        (
            LanguageModel(LanguageModelConfig(11, core, tied=False)),
            ["embedding.weight", "transformer.positions.weight"],
            ["head.weight", "transformer.final_norm.weight"],
        ),
        (
            VisionTransformer(
                VisionTransformerConfig(
                    8, 4, 1, 3, TransformerConfig(dim=16, depth=2, heads=2, position="none"), registers=2
                )
            ),
            ["patch_embed.weight", "patch_embed.bias", "class_token", "registers", "positions.table"],
            ["head.weight", "head.bias", "transformer.final_norm.bias"],
        ),
        (
            SequenceModel(SequenceConfig(esm_transformer("tiny"))),
            ["embedding.weight"],
            ["head.dense.weight", "head.bias", "transformer.final_norm.weight"],
        ),
    ]
    for model, lowest, highest in models:
        names = {id(p): name for name, p in model.named_parameters()}
        for algorithm in ("adamw", "muon", None):
            config = OptimizerConfig(name=algorithm, pretrained_lr=1e-3, layer_decay=0.5)  # type: ignore[arg-type]
            groups = parameter_groups(model, config, set(names.values()))
            rates = {names[id(p)]: group["lr"] for group in groups for p in group["params"]}
            assert {rates[name] for name in lowest} == {1e-3 * 0.5**3}
            assert {rates[name] for name in highest} == {1e-3}
            blocks = [{rate for name, rate in rates.items() if f"blocks.{i}." in name} for i in (0, 1)]
            assert blocks == [{1e-3 * 0.5**2}, {1e-3 * 0.5}]


def test_frozen_weights_cost_no_gradient(tmp_path):
    language_model(tmp_path / "lm")
    batch = {"tokens": torch.zeros(1, 16, dtype=torch.long), "targets": torch.zeros(1, 16, dtype=torch.long)}
    counts = {}
    for name, options in {"full": {}, "lora": {"lora": LoRAConfig(rank=1)}}.items():
        task = TextTask(pretrained=str(tmp_path / "lm"), **options)  # type: ignore[arg-type]
        task.configure_model()
        counts[name] = count_step(task, batch)
    assert 0 < counts["lora"] < 0.85 * counts["full"]

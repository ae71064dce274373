"""`triune info` and `triune convert`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from triune import convert
from triune.cli import main
from triune.core.checkpoints.family import write_folder
from triune.core.config import TransformerConfig
from triune.core.rotary import RotaryConfig
from triune.protein.language.model import SequenceConfig, SequenceModel
from triune.text.model import LanguageModel, LanguageModelConfig
from triune.vision.model import VisionTransformer, VisionTransformerConfig

CORE = TransformerConfig(dim=16, depth=2, heads=2, ffn_dim=32)


def language_model() -> nn.Module:
    llama = TransformerConfig(
        dim=16, depth=2, heads=2, ffn="swiglu", ffn_dim=24, norm="rmsnorm", bias=False, causal=True, context=32
    )
    return LanguageModel(LanguageModelConfig(50, llama))


def image_model() -> nn.Module:
    core = TransformerConfig(dim=16, depth=2, heads=2, position="none", norm_eps=1e-6)
    return VisionTransformer(VisionTransformerConfig(image_size=16, patch_size=4, classes=5, transformer=core))


def protein_model() -> nn.Module:
    return SequenceModel(
        SequenceConfig(TransformerConfig(dim=16, depth=2, heads=2, context=1026, rotary=RotaryConfig()))
    )


MODELS = {
    "text": (language_model, "hf", "transformers"),
    "vision": (image_model, "timm", "timm"),
    "protein": (protein_model, "hf", "transformers"),
}


def save(task: str, folder: Path) -> nn.Module:
    torch.manual_seed(0)
    model = MODELS[task][0]()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)  # type: ignore[operator]
    return model


@pytest.mark.parametrize("task", MODELS)
def test_there_and_back(task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    library, needed = MODELS[task][1:]
    pytest.importorskip(needed, reason=f"{needed} is not installed")
    model = save(task, tmp_path / "ours")
    assert main(["convert", str(tmp_path / "ours"), str(tmp_path / "theirs"), "--to", library]) == 0
    said = capsys.readouterr().out
    assert "come back bit-identical" in said and "Parity: " in said and said.endswith("Done.\n")
    assert main(["convert", str(tmp_path / "theirs"), str(tmp_path / "again"), "--to", "triune"]) == 0
    again = type(model).from_pretrained(tmp_path / "again")  # type: ignore[attr-defined]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    assert json.loads((tmp_path / "theirs/config.json").read_text()).get("library") != "triune"


@pytest.mark.parametrize("task", MODELS)
def test_info_says_what_it_is(task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(task, tmp_path / "ours")
    assert main(["info", str(tmp_path / "ours")]) == 0
    said = capsys.readouterr().out
    assert f"task {task}" in said and "2 x 16, 2 heads" in said


def test_a_difference_is_never_called_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save("text", tmp_path / "ours")
    monkeypatch.setattr("triune.text.checkpoints.pretrained.parity", lambda *_: 0.01)
    assert main(["convert", str(tmp_path / "ours"), str(tmp_path / "theirs"), "--to", "hf"]) == 2
    said = capsys.readouterr()
    assert "differ from ours by up to 0.01" in said.err and "Done" not in said.out


def test_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_folder(tmp_path, {"model_type": "rwkv"}, {"a": torch.zeros(1)})
    assert main(["info", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "'rwkv', which is not supported" in said and "text: GPT-2" in said and "protein: " in said
    save("text", tmp_path / "ours")
    assert main(["convert", str(tmp_path / "ours"), str(tmp_path), "--to", "hf"]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["convert", str(tmp_path / "ours"), str(tmp_path / "new"), "--to", "timm"]) == 2
    assert not (tmp_path / "new").exists()


def test_every_library_has_a_name() -> None:
    assert set(convert.LIBRARIES) <= set(convert.MODULES)


def test_a_source_that_its_own_library_reads_otherwise_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was read wrongly would come back from the written folder as it was read."""
    pytest.importorskip("transformers", reason="transformers is not installed")
    save("text", tmp_path / "ours")
    assert main(["convert", str(tmp_path / "ours"), str(tmp_path / "hf"), "--to", "hf"]) == 0
    assert main(["info", str(tmp_path / "hf")]) == 0
    assert "Source: transformers's own outputs differ from ours by at most" in capsys.readouterr().out
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    read = TransformerConfig.resolved
    monkeypatch.setattr(TransformerConfig, "resolved", lambda core: read(replace(core, norm_eps=0.1)))
    assert config["rms_norm_eps"] == 1e-5
    assert main(["convert", str(tmp_path / "hf"), str(tmp_path / "again"), "--to", "hf"]) == 2
    assert "it is not read here as it is there" in capsys.readouterr().err
    assert not (tmp_path / "again").exists()

"""Weights kept in 16 bits: as far from float32 as transformers is in the same type."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from triune.bench import parity_keys
from triune.core.config import TransformerConfig
from triune.core.errors import UserError
from triune.text.checkpoints.pretrained import export, load
from triune.text.encoder import TextEncoder
from triune.text.model import LanguageModel, LanguageModelConfig

transformers = pytest.importorskip("transformers", reason="the originals: pip install transformers")
HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}
# All experts are read: where rounding turns a choice, a token's output is another one on either side. The delta rule of
# Qwen3-Next magnifies rounding from layer to layer.
ALL_EXPERTS = {"num_experts_per_tok": 3}
SMOOTH = {
    "Qwen 3 MoE": ALL_EXPERTS,
    "Qwen3-Next": ALL_EXPERTS | {"num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"]},
    "Granite 4": ALL_EXPERTS,
    "Granite MoE": ALL_EXPERTS,
    "Granite MoE, shared": ALL_EXPERTS,
    "OLMoE": ALL_EXPERTS,
    "Ernie 4.5 MoE": {"moe_k": 4},
    "Nemotron-H": {"num_experts_per_tok": 4},
}


def size(difference: Tensor) -> float:
    return difference.float().square().mean().sqrt().item()


@pytest.fixture(autouse=True)
def quiet():
    transformers.utils.logging.disable_progress_bar()


@pytest.mark.parametrize("name", parity_keys.BASES)
@pytest.mark.parametrize("dtype", HALF)
def test_outputs_are_as_near_as_those_of_the_original(name: str, dtype: str, tmp_path: Path):
    cls: Any = parity_keys.class_of(name)
    torch.manual_seed(0)
    theirs = cls(cls.config_class(**parity_keys.BASES[name][1] | SMOOTH.get(name, {}))).eval()
    with torch.no_grad():
        for p in theirs.parameters():
            p.normal_(std=max(p.shape) ** -0.5) if p.dim() > 1 else p.add_(torch.randn_like(p) * 0.2)
    theirs.to(HALF[dtype]).save_pretrained(tmp_path)
    wide, narrow = (
        cls.from_pretrained(tmp_path, dtype=one, attn_implementation="eager", experts_implementation="eager").eval()
        for one in (torch.float32, HALF[dtype])
    )
    ours = load(str(tmp_path), dtype).model
    assert {p.dtype for p in ours.parameters()} == {HALF[dtype]}
    tokens = torch.randint(3, 67, (8, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        truth, found, original = wide(tokens)[0], ours(tokens), narrow(tokens)[0]
    assert found.dtype == HALF[dtype]
    assert size(found - truth) < 1.2 * size(original - truth)
    assert size(found.float() - original.float()) < 1.6 * size(original - truth)


@pytest.mark.parametrize("name", ["Mamba", "Mamba-2"])
def test_residual_sums_have_the_type_that_the_config_says(name: str, tmp_path: Path):
    """Small changes to a large vector are lost in 16 bits, not in float32; each setting is like its own original."""
    cls: Any = parity_keys.class_of(name)
    tokens = torch.randint(3, 67, (4, 24), generator=torch.Generator().manual_seed(0))
    outputs: dict[bool, list[Tensor]] = {}
    for wide in (True, False):
        torch.manual_seed(0)
        more = {"residual_in_fp32": wide, "num_hidden_layers": 12}
        theirs = cls(cls.config_class(**parity_keys.BASES[name][1] | more)).eval()
        with torch.no_grad():
            theirs.backbone.embeddings.weight.normal_(std=64.0)
        theirs.to(torch.bfloat16).save_pretrained(tmp_path / str(wide))
        ours = load(str(tmp_path / str(wide)), "bfloat16").model
        assert ours.config.transformer.residual_fp32 is wide
        with torch.no_grad():
            outputs[wide] = [ours(tokens), theirs(tokens)[0]]
            half, narrow = ours.transformer.blocks[0], torch.randn(1, 4, ours.config.transformer.dim).bfloat16()
            assert half.norm1(narrow.float() if wide else narrow).dtype == torch.bfloat16
    for wide, (ours, theirs) in outputs.items():
        assert ours.dtype == torch.bfloat16
        assert size(ours - theirs) < 0.5 * size(ours - outputs[not wide][1])


def test_what_a_config_without_the_key_means(tmp_path: Path):
    """True for transformers, so a model of ours, whose sums have the type of its weights, says false."""
    config = TransformerConfig(
        dim=16, depth=2, heads=1, causal=True, mixer="mamba", position="none", norm="rmsnorm", ffn="none", bias=False
    )
    export(LanguageModel(LanguageModelConfig(67, config)), tmp_path / "theirs")
    converted = json.loads((tmp_path / "theirs" / "config.json").read_text())
    assert converted["residual_in_fp32"] is False
    for given, found in ((None, True), (False, False)):
        written = {key: value for key, value in converted.items() if key != "residual_in_fp32"}
        written |= {} if given is None else {"residual_in_fp32": given}
        (tmp_path / "theirs" / "config.json").write_text(json.dumps(written))
        (tmp_path / "theirs" / "checksums.json").unlink(missing_ok=True)
        assert load(str(tmp_path / "theirs")).model.config.transformer.residual_fp32 is found


def test_our_own_folders(tmp_path: Path):
    torch.manual_seed(0)
    config = TransformerConfig(dim=32, depth=2, heads=4, causal=True, norm="rmsnorm", norm_weight="offset", context=64)
    model = LanguageModel(LanguageModelConfig(67, config, embedding_scale=True)).eval()
    model.save_pretrained(tmp_path)
    half = LanguageModel.from_pretrained(tmp_path, dtype="bfloat16").eval()
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert half.head.weight is half.embedding.weight
    assert LanguageModel.from_pretrained(tmp_path).head.weight.dtype == torch.float32
    assert load(str(tmp_path), torch.float16).model.transformer.blocks[0].attn.q.weight.dtype == torch.float16
    tokens = torch.arange(40)[None]
    with torch.no_grad():
        assert size(half(tokens) - model(tokens)) < 0.02 * size(model(tokens))
    half.save_pretrained(tmp_path / "again")  # what is kept in 16 bits is written so
    assert (tmp_path / "again" / "model.safetensors").stat().st_size < 0.6 * (
        tmp_path / "model.safetensors"
    ).stat().st_size


def test_what_cannot_be_kept_is_refused(tmp_path: Path):
    config = TransformerConfig(dim=8, depth=1, heads=1, causal=True)
    model = LanguageModel(LanguageModelConfig(9, config))
    with torch.no_grad():
        model.transformer.blocks[0].ffn.up.weight[0, 0] = 1e5
    model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"1 weights of .* beyond 65,504, the largest of float16 \(transformer\.blocks"):
        LanguageModel.from_pretrained(tmp_path, "float16")
    LanguageModel.from_pretrained(tmp_path, "bfloat16")
    with pytest.raises(UserError, match="dtype is float8, but must be float32, bfloat16, float16"):
        load(str(tmp_path), "float8")
    with pytest.raises(UserError, match=r"dtype is torch\.int8, but must be"):
        TextEncoder.from_pretrained(tmp_path, torch.int8)


def test_the_default_is_float32_whatever_the_file_has(tmp_path: Path):
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**parity_keys.LLAMA)).to(torch.bfloat16)
    theirs.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    assert {p.dtype for p in load(str(tmp_path)).model.parameters()} == {torch.float32}

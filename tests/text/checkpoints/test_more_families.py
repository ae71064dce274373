"""Families of decoders and hybrids beyond those of `test_pretrained.py` and `test_hybrids.py`: all comparisons in one
test for each model.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from triune.bench.parity_keys import ours_of
from triune.bench.text_originals import LIMIT, cached, original, outputs, padded, there_and_back
from triune.core.errors import UserError
from triune.text.checkpoints.pretrained import HF_FAMILIES, load
from triune.text.checkpoints.refused import MISSING

transformers = pytest.importorskip("transformers", reason="the originals: pip install transformers")
transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

SHAPE: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
                         "max_position_embeddings": 64}  # fmt: skip
LLAMA = SHAPE | {"intermediate_size": 20, "num_key_value_heads": 2}
WIDE = LLAMA | {"head_dim": 12}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
GRANITE = {"embedding_multiplier": 1.5, "logits_scaling": 0.7, "residual_multiplier": 0.8, "attention_multiplier": 0.3,
           "num_local_experts": 3}  # fmt: skip
QWEN = {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 12}
SIGMOID = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12, "routed_scaling_factor": 1.7}
ERNIE = {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 12}
DELTA = {"head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 6,
         "linear_value_head_dim": 5, "layer_types": ["linear_attention", "full_attention"]}  # fmt: skip
NEMOTRON = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
            "intermediate_size": 20, "max_position_embeddings": 64, "ssm_state_size": 5, "mamba_num_heads": 6,
            "mamba_head_dim": 4, "n_groups": 2}  # fmt: skip
LOCAL = [[["global", "local"], 1]]
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "olmo": ("Olmo", LLAMA | {"tie_word_embeddings": True}),
    "arcee": ("Arcee", LLAMA | {"mlp_bias": True}),
    "seed oss": ("SeedOss", WIDE | {"attention_out_bias": True}),
    "ernie 4.5": ("Ernie4_5", WIDE | {"use_bias": True}),
    "helium": ("Helium", LLAMA | {"head_dim": 8, "attention_bias": True, "mlp_bias": True}),
    "glm": ("Glm", WIDE),
    "glm 4": ("Glm4", WIDE | {"attention_bias": False}),
    "exaone 4": ("Exaone4", LLAMA | {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]}),
    "exaone 4 without a window": ("Exaone4", LLAMA | {"sliding_window": None, "layer_types": ["full_attention"] * 2}),
    "ministral": ("Ministral", WIDE | {"sliding_window": 6, "layer_types": ["full_attention", "sliding_attention"]}),
    "nemotron": ("Nemotron", LLAMA | {"attention_bias": True, "partial_rotary_factor": 0.25}),
    "phi": ("Phi", LLAMA),
    "phi with norms of heads": ("Phi", LLAMA | {"qk_layernorm": True, "partial_rotary_factor": 1.0}),
    "qwen 2 moe": (
        "Qwen2Moe", LLAMA | QWEN | {"shared_expert_intermediate_size": 10, "use_sliding_window": True,
        "sliding_window": 6, "mlp_only_layers": [1]},
    ),
    "olmoe": ("Olmoe", LLAMA | {"num_experts": 3, "num_experts_per_tok": 2, "norm_topk_prob": True}),
    "granite moe": ("GraniteMoe", LLAMA | GRANITE),
    "granite moe, shared": ("GraniteMoeShared", LLAMA | GRANITE | {"shared_intermediate_size": 10}),
    "glm 4 moe": ("Glm4Moe", LLAMA | SIGMOID),
    "glm 4 moe, norms of heads": (
        "Glm4Moe", WIDE | SIGMOID | {"use_qk_norm": True, "attention_bias": True, "first_k_dense_replace": 0,
        "n_shared_experts": 2, "norm_topk_prob": False},
    ),
    "ernie 4.5 moe": ("Ernie4_5_Moe", LLAMA | ERNIE),
    "ernie 4.5 moe, every second layer": (
        "Ernie4_5_Moe", LLAMA | ERNIE | {"num_hidden_layers": 4, "moe_layer_interval": 2, "moe_num_shared_experts": 0},
    ),
    "gpt bigcode": ("GPTBigCode", GPT),
    "gpt bigcode, a key for each head": (
        "GPTBigCode", GPT | {"multi_query": False, "n_inner": 20, "scale_attn_weights": False},
    ),
    "gpt neo": (
        "GPTNeo", {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "max_position_embeddings": 64,
        "attention_types": LOCAL, "window_size": 6},
    ),
    "codegen": ("CodeGen", GPT | {"rotary_dim": 4}),
    "biogpt": ("BioGpt", SHAPE | {"intermediate_size": 20, "hidden_act": "relu"}),
    "biogpt, embeddings as they are": ("BioGpt", SHAPE | {"intermediate_size": 20, "scale_embedding": False}),
    "qwen 3.5": ("Qwen3_5", LLAMA | DELTA | {"linear_key_head_dim": 12}),
    "qwen 3.5 moe": ("Qwen3_5Moe", LLAMA | DELTA | QWEN | {"shared_expert_intermediate_size": 10}),
    "lfm2": ("Lfm2", LLAMA | {"layer_types": ["conv", "full_attention"], "block_multiple_of": 7}),
    "lfm2 with biases, without attention": (
        "Lfm2", LLAMA | {"layer_types": ["conv", "conv"], "conv_bias": True, "block_auto_adjust_ff_dim": False,
        "conv_L_cache": 4, "tie_word_embeddings": False},
    ),
    "nemotron-h": ("NemotronH", NEMOTRON | {"hybrid_override_pattern": "M-M*-M"}),
    "nemotron-h with experts": ("NemotronH", NEMOTRON | SIGMOID | {"moe_shared_expert_intermediate_size": 10,
                                "hybrid_override_pattern": "MEM*-", "use_conv_bias": False}),
    "nemotron-h with biases": (
        "NemotronH", NEMOTRON | {"hybrid_override_pattern": "M-*-", "mlp_bias": True, "use_bias": True,
        "mlp_hidden_act": "silu"},
    ),
}  # fmt: skip
UNPADDED = ("nemotron-h with biases", "lfm2 with biases, without attention")
"""The convolution of the original (transformers 5.24) reads what a bias makes of the padding before a text."""


@pytest.mark.parametrize("name", CASES)
def test_the_same_outputs_and_back(name: str, tmp_path: Path) -> None:
    kind, options = CASES[name]
    theirs = original(kind, options)
    theirs.save_pretrained(tmp_path / "theirs")
    found = load(str(tmp_path / "theirs"))
    assert outputs(found.model, theirs) < LIMIT
    assert cached(found.model, theirs) < LIMIT
    alone, together = padded(found.model, theirs, left=True)
    assert alone < LIMIT
    assert (together < LIMIT) == (name not in UNPADDED)
    assert there_and_back(found, theirs, tmp_path / "back") < LIMIT


def test_layers_that_predict_further_tokens_are_read_past(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    original(*CASES["glm 4 moe"]).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    save_file(load_file(path) | {"model.layers.2.eh_proj.weight": torch.zeros(3)}, path)
    assert load(str(tmp_path)).model.config.transformer.depth == 2


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("olmo", {"clip_qkv": 8.0}, "has clip_qkv = 8.0, which the core does not have"),
        ("olmoe", {"clip_qkv": 8.0}, "has clip_qkv = 8.0, which the core does not have"),
        ("arcee", {"hidden_act": "xielu"}, "has hidden_act 'xielu', which the core does not have"),
        ("glm 4 moe", {"n_group": 2}, "chooses experts from 1 of 2 groups"),
        ("glm 4 moe", {"n_shared_experts": 0}, "has experts without a shared one"),
        ("ernie 4.5 moe", {"use_bias": True}, "has use_bias = True, which the core does not have"),
        ("ernie 4.5 moe", {"moe_norm_min": 0.5}, "has moe_norm_min = 0.5, which the core does not have"),
        ("gpt neo", {"attention_types": [[["global", "far"], 1]]}, "but must have global or local for each of 2"),
        ("gpt neo", {"attention_types": [[["global"], 1]]}, "but must have global or local for each of 2 layers"),
        ("codegen", {"rotary_dim": 64}, "rotary_dim = 64, but its library can only rotate 2 to 8 channels"),
        ("lfm2", {"layer_types": ["conv", "mamba"]}, "but must have full_attention or conv for each of 2 layers"),
        ("nemotron-h", {"layers_block_type": ["mlp"]}, "has a feed-forward in layer 0 that follows no mixer"),
        ("nemotron-h", {"layers_block_type": ["mamba", "conv"]}, "has layers of the kind conv, which the core does"),
        ("nemotron-h", {"layers_block_type": []}, "has no layers"),
        ("nemotron-h with experts", {"moe_latent_size": 8}, "has moe_latent_size = 8, which the core does not have"),
        ("nemotron-h with experts", {"mlp_bias": True}, "has mlp_bias = True, which the core does not have"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(name: str, values: dict[str, Any], message: str) -> None:
    kind, options = CASES[name]
    config = getattr(transformers, kind + "ForCausalLM").config_class(**{"vocab_size": 67} | options).to_dict()
    with pytest.raises(UserError, match=message):
        ours_of(config | values)


def test_families_that_cannot_be_expressed_are_refused_with_what_is_missing(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    known = transformers.models.auto.configuration_auto.CONFIG_MAPPING_NAMES
    assert MISSING.keys() <= known.keys() and not MISSING.keys() & {family.model_type for family in HF_FAMILIES}
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    for kind, words in (("gpt_oss", "no attention sinks"), ("falcon_h1", "side by side"), ("bloom", "ALiBi")):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
        with pytest.raises(UserError, match=rf"is {kind}, which is not supported, because the core has .*{words}"):
            load(str(tmp_path))

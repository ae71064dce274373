"""Further relatives of Llama, as rows of the table that `decoder_families.py` begins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...core.checkpoints.weights import Rule
from ...core.config import Linears, TransformerConfig
from ..model import LanguageModelConfig
from .decoder_families import LAYERNORM, LLAMA, PARALLEL, WINDOWS, Row, decoder_family, everywhere
from .decoders import Decoder
from .mixtures import (
    ERNIE,
    ERNIE_EXPERTS,
    GLM,
    GRANITE,
    OLMOE,
    QWEN2,
    QWEN_EXPERTS,
    SIGMOID_EXPERTS,
    ernie_rules,
    glm_rules,
    granite_rules,
    qwen2_rules,
    qwen_rules,
)
from .settings import FULL, SLIDING, Settings

QKV = ("q", "k", "v")


def _glm_rules(config: LanguageModelConfig) -> tuple[Rule, ...]:
    """The two norms of each branch have names of their own there; a model with one (GLM) has the usual names."""
    block, layer = "transformer.blocks.{}", "model.layers.{}"
    fused = Rule((f"{block}.ffn.gate", f"{block}.ffn.up"), f"{layer}.mlp.gate_up_proj")
    names = {
        "branch1.norm": "post_self_attn_layernorm", "norm2": "post_attention_layernorm",
        "branch2.norm": "post_mlp_layernorm",
    }  # fmt: skip
    return (fused, *(Rule(f"{block}.{ours}", f"{layer}.{theirs}") for ours, theirs in names.items()))


def _phi_rules(config: LanguageModelConfig) -> tuple[Rule, ...]:
    block, layer = "transformer.blocks.{}", "model.layers.{}"
    names = {
        "attn.out": "self_attn.dense", "attn.q_norm": "self_attn.q_layernorm", "attn.k_norm": "self_attn.k_layernorm",
        "ffn.up": "mlp.fc1", "ffn.down": "mlp.fc2",
    }  # fmt: skip
    rules = tuple(Rule(f"{block}.{ours}", f"{layer}.{theirs}") for ours, theirs in names.items())
    return (*rules, Rule("transformer.final_norm", "model.final_layernorm"))


def _exaone_kind(c: Settings, layer: int) -> str:
    windowed = c["sliding_window"] is not None and (layer + 1) % c["sliding_window_pattern"]
    return SLIDING if windowed else FULL


def _exaone_rotates(c: Settings, kinds: Sequence[str]) -> list[bool]:
    return [c["sliding_window"] is None or kind == SLIDING for kind in kinds]


def _exaone_keys(t: TransformerConfig) -> dict[str, Any]:
    """Without a window all layers are rotated, so none may be written where none is in use."""
    whole = not any(map(t.window_at, range(t.depth))) and t.rotary_at(0) is not None
    return {"sliding_window": None} if whole else {}


def _every_second(c: Settings, layer: int) -> str:
    return SLIDING if c["use_sliding_window"] and layer % 2 == 0 and layer < c["max_window_layers"] else FULL


_GRANITE = LLAMA | {
    "attention_bias": False, "embedding_multiplier": 1.0, "logits_scaling": 1.0, "residual_multiplier": 1.0,
    "attention_multiplier": 1.0, "num_local_experts": 8, "num_experts_per_tok": 2,
}  # fmt: skip
_ROWS: tuple[Row, ...] = (
    (
        "OLMo",
        "olmo",
        Decoder(
            "OlmoForCausalLM", eps="", core={"norm": "layernorm", "norm_weight": "none", "norm_eps": 1e-5},
            require={"clip_qkv": (None,)},
        ),
        {key: value for key, value in LLAMA.items() if key != "rms_norm_eps"}
        | {"attention_bias": False, "clip_qkv": None},
    ),
    (
        "Arcee",
        "arcee",
        Decoder("ArceeForCausalLM", gated=False),
        LLAMA | {"max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "hidden_act": "relu2"}
        | {"attention_bias": False, "mlp_bias": False},
    ),
    (
        "Seed-OSS",
        "seed_oss",
        Decoder(
            "SeedOssForCausalLM",
            biases={"attention_bias": QKV, "attention_out_bias": ("out",), "mlp_bias": Linears[4:]},
        ),
        LLAMA | {"num_key_value_heads": 8, "max_position_embeddings": 524_288, "head_dim": 128}
        | {"attention_bias": True, "attention_out_bias": False, "mlp_bias": False},
    ),
    (
        "Ernie 4.5",
        "ernie4_5",
        Decoder("Ernie4_5ForCausalLM", biases={"use_bias": Linears}, interleaved=True),
        LLAMA | {"num_key_value_heads": 2, "max_position_embeddings": 131_072, "rms_norm_eps": 1e-5, "head_dim": 128}
        | {"rope_theta": 500_000.0, "use_bias": False, "tie_word_embeddings": True},
    ),
    (
        "Helium",
        "helium",
        Decoder("HeliumForCausalLM", biases={"attention_bias": QKV, "mlp_bias": Linears[4:]}, interleaved=True),
        LLAMA | {"num_key_value_heads": 20, "max_position_embeddings": 4096, "rms_norm_eps": 1e-8, "head_dim": 128}
        | {"rope_theta": 100_000.0, "attention_bias": False, "mlp_bias": False},
    ),
    (
        "GLM",
        "glm",
        Decoder(
            "GlmForCausalLM", biases={"attention_bias": QKV}, interleaved=True, fraction="partial_rotary_factor",
            rules=lambda config: _glm_rules(config)[:1],
        ),
        LLAMA | {"num_key_value_heads": 2, "max_position_embeddings": 131_072, "rms_norm_eps": 1.5625e-7}
        | {"head_dim": 128, "attention_bias": True, "partial_rotary_factor": 0.5},
    ),
    (
        "GLM 4",
        "glm4",
        Decoder(
            "Glm4ForCausalLM", core={"placement": "sandwich"}, biases={"attention_bias": QKV}, interleaved=True,
            fraction="partial_rotary_factor", rules=_glm_rules,
        ),
        LLAMA | {"num_key_value_heads": 2, "max_position_embeddings": 131_072, "rms_norm_eps": 1.5625e-7}
        | {"head_dim": 128, "attention_bias": True, "partial_rotary_factor": 0.5},
    ),
    (
        "Exaone 4",
        "exaone4",
        Decoder(
            "Exaone4ForCausalLM", core={"placement": "branch", "qk_norm": "head"}, kinds=_exaone_kind,
            rotates=_exaone_rotates, more=_exaone_keys,
        ),
        LLAMA | {"num_key_value_heads": 32, "rms_norm_eps": 1e-5, "sliding_window": 4096, "sliding_window_pattern": 4}
        | {"layer_types": None},
    ),
    (
        "Ministral",
        "ministral",
        Decoder("MinistralForCausalLM", kinds=everywhere),
        LLAMA | {"num_key_value_heads": 8, "max_position_embeddings": 4096 * 32, "sliding_window": 4096}
        | {"layer_types": None},
    ),
    (
        "Nemotron",
        "nemotron",
        Decoder(
            "NemotronForCausalLM", eps="norm_eps", core={"norm": "layernorm", "norm_weight": "offset"}, gated=False,
            fraction="partial_rotary_factor",
        ),
        LAYERNORM | {"head_dim": None, "max_position_embeddings": 4096, "norm_eps": 1e-5, "hidden_act": "relu2"}
        | {"attention_bias": False, "mlp_bias": False, "partial_rotary_factor": 0.5},
    ),
    (
        "Phi",
        "phi",
        Decoder(
            "PhiForCausalLM", eps="layer_norm_eps", core={"norm": "layernorm"} | PARALLEL, bias=Linears, gated=False,
            switches={"qk_layernorm": {"qk_norm": "head"}}, fraction="partial_rotary_factor", head_bias=True,
            rules=_phi_rules,
        ),
        LAYERNORM | {"head_dim": None, "hidden_act": "gelu_new", "layer_norm_eps": 1e-5, "qk_layernorm": False}
        | {"partial_rotary_factor": 0.5},
    ),
    (
        "Qwen 2 MoE",
        "qwen2_moe",
        Decoder(
            "Qwen2MoeForCausalLM", biases={"qkv_bias": QKV}, kinds=_every_second, mixture=QWEN2, rules=qwen2_rules,
        ),
        LLAMA | WINDOWS | QWEN_EXPERTS | {"num_key_value_heads": 16, "max_position_embeddings": 32768}
        | {"num_experts": 60, "num_experts_per_tok": 4, "moe_intermediate_size": 1408}
        | {"shared_expert_intermediate_size": 5632, "qkv_bias": True},
    ),
    (
        "OLMoE",
        "olmoe",
        Decoder(
            "OlmoeForCausalLM", core={"qk_norm": "full"}, require={"clip_qkv": (None,)}, mixture=OLMOE,
            rules=qwen_rules,
        ),
        LLAMA | {"max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "attention_bias": False, "clip_qkv": None}
        | {"num_experts_per_tok": 8, "num_experts": 64, "norm_topk_prob": False},
    ),
    ("Granite MoE", "granitemoe", Decoder("GraniteMoeForCausalLM", mixture=GRANITE, rules=granite_rules), _GRANITE),
    (
        "Granite MoE with a shared expert",
        "granitemoeshared",
        Decoder("GraniteMoeSharedForCausalLM", mixture=GRANITE, rules=granite_rules),
        _GRANITE | {"shared_intermediate_size": 0},
    ),
    (
        "GLM 4 MoE",
        "glm4_moe",
        Decoder(
            "Glm4MoeForCausalLM", biases={"attention_bias": QKV}, switches={"use_qk_norm": {"qk_norm": "head"}},
            fraction="partial_rotary_factor", mixture=GLM, rules=glm_rules,
            ignored=lambda config: (rf"model\.layers\.{config.transformer.depth}\..*",),
        ),
        LLAMA | SIGMOID_EXPERTS | {"num_key_value_heads": 8, "max_position_embeddings": 131_072, "rms_norm_eps": 1e-5}
        | {"attention_bias": False, "first_k_dense_replace": 1, "use_qk_norm": False, "partial_rotary_factor": 0.5},
    ),
    (
        "Ernie 4.5 MoE",
        "ernie4_5_moe",
        Decoder(
            "Ernie4_5_MoeForCausalLM", require={"use_bias": (False, None)}, interleaved=True, mixture=ERNIE,
            rules=ernie_rules, ignored=lambda config: (r".*mtp.*",),
        ),
        LLAMA | ERNIE_EXPERTS | {"num_key_value_heads": 4, "max_position_embeddings": 131_072, "rms_norm_eps": 1e-5}
        | {"rope_theta": 500_000.0, "use_bias": False, "tie_word_embeddings": True},
    ),
)  # fmt: skip
MORE_DECODERS = tuple(decoder_family(*row) for row in _ROWS)

"""The families of `decoders.py`: Llama and its relatives, with the keys that each reads and their defaults."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from ...core.checkpoints.weights import Rule
from ..model import LanguageModelConfig
from .decoders import Decoder, decoder_weights, read_decoder, rotating, write_decoder
from .settings import FULL, REQUIRED, SLIDING, Settings, TextFamily, hf_family

SIZES = dict.fromkeys(
    ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"), REQUIRED
)
LLAMA = SIZES | {
    "num_key_value_heads": None,
    "head_dim": None,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "rope_theta": 10_000.0,
}
"""Defaults of Llama's relatives; `Settings` reads only the keys that are here or in a family's own."""
WINDOWS = {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28, "layer_types": None}
GEMMA = (LLAMA | {"attention_bias": False, "max_position_embeddings": 8192, "tie_word_embeddings": True}
         | {"head_dim": 256, "num_key_value_heads": 16, "use_bidirectional_attention": None,
            "hidden_act": "gelu_pytorch_tanh"})  # fmt: skip
GEMMA2 = {key: value for key, value in GEMMA.items() if key != "hidden_act"} | {
    "num_key_value_heads": 4, "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 256,
    "sliding_window": 4096, "layer_types": None, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
}  # fmt: skip
# Its class stores `attn_logit_softcapping` and never uses it, so it is no setting of this family.
GEMMA3 = {key: value for key, value in GEMMA2.items() if key != "attn_logit_softcapping"} | {
    "max_position_embeddings": 131_072, "final_logit_softcapping": None,
    "rope_theta": 1_000_000.0, "rope_local_base_freq": 10_000.0, "sliding_window_pattern": 6,
}  # fmt: skip
OFFSET, SANDWICH = {"norm_weight": "offset"}, {"norm_weight": "offset", "placement": "sandwich"}


def _from_layer(c: Settings, layer: int) -> str:
    windowed = c["use_sliding_window"] and c["sliding_window"] is not None
    return SLIDING if windowed and layer >= c["max_window_layers"] else FULL


def _where_unrotated(c: Settings, layer: int) -> str:
    windowed = c["use_sliding_window"] and c["sliding_window"] is not None
    return SLIDING if windowed and not rotating(c, [FULL] * (layer + 1))[layer] else FULL


def _everywhere(c: Settings, layer: int) -> str:
    return FULL if c["sliding_window"] is None else SLIDING


def _phi3_rules(config: LanguageModelConfig) -> tuple[Rule, ...]:
    block, layer = "transformer.blocks.{}", "model.layers.{}"
    return (
        Rule(tuple(f"{block}.attn.{name}" for name in "qkv"), f"{layer}.self_attn.qkv_proj"),
        Rule((f"{block}.ffn.gate", f"{block}.ffn.up"), f"{layer}.mlp.gate_up_proj"),
    )


_TABLE: tuple[tuple[str, str, Decoder, dict[str, Any]], ...] = (
    ("Llama", "llama", Decoder("LlamaForCausalLM"), LLAMA | {"attention_bias": False, "mlp_bias": False}),
    (
        "Mistral",
        "mistral",
        Decoder("MistralForCausalLM", kinds=_everywhere),
        LLAMA | {"num_key_value_heads": 8, "max_position_embeddings": 4096 * 32, "sliding_window": 4096},
    ),
    (
        "Qwen 2",
        "qwen2",
        Decoder("Qwen2ForCausalLM", bias=("q", "k", "v"), kinds=_from_layer),
        LLAMA | WINDOWS | {"num_key_value_heads": 32, "max_position_embeddings": 32768},
    ),
    (
        "Qwen 3",
        "qwen3",
        Decoder("Qwen3ForCausalLM", core={"qk_norm": "head"}, kinds=_from_layer),
        LLAMA | WINDOWS | {"num_key_value_heads": 32, "max_position_embeddings": 32768}
        | {"head_dim": 128, "attention_bias": False},
    ),
    (
        "SmolLM 3",
        "smollm3",
        Decoder("SmolLM3ForCausalLM", kinds=_where_unrotated),
        LLAMA | {"num_key_value_heads": 4, "max_position_embeddings": 32768, "rope_theta": 2_000_000.0}
        | {"use_sliding_window": False, "sliding_window": None, "layer_types": None}
        | {"no_rope_layers": None, "no_rope_layer_interval": 4, "tie_word_embeddings": True}
        | {"attention_bias": False, "mlp_bias": False},
    ),
    ("Gemma", "gemma", Decoder("GemmaForCausalLM", core=OFFSET, scaled=True), GEMMA),
    (
        "Gemma 2",
        "gemma2",
        Decoder(
            "Gemma2ForCausalLM", "hidden_activation", core=SANDWICH, scaled=True,
            kinds=lambda c, layer: FULL if layer % 2 else SLIDING,
        ),
        GEMMA2,
    ),
    (
        "Gemma 3",
        "gemma3_text",
        Decoder(
            "Gemma3ForCausalLM", "hidden_activation", core=SANDWICH | {"qk_norm": "head"}, scaled=True,
            kinds=lambda c, layer: SLIDING if (layer + 1) % c["sliding_window_pattern"] else FULL,
        ),
        GEMMA3,
    ),
    (
        "Phi 3",
        "phi3",
        Decoder(
            "Phi3ForCausalLM", fraction="partial_rotary_factor", scalings=("longrope",), kinds=_everywhere,
            rules=_phi3_rules,
        ),
        LLAMA | {"max_position_embeddings": 4096, "original_max_position_embeddings": 4096, "rms_norm_eps": 1e-5}
        | {"partial_rotary_factor": 1.0, "sliding_window": None},
    ),
    (
        "OLMo 2",
        "olmo2",
        Decoder("Olmo2ForCausalLM", core={"placement": "branch", "qk_norm": "full"}),
        LLAMA | {"rms_norm_eps": 1e-5, "attention_bias": False},
    ),
    (
        "OLMo 3",
        "olmo3",
        Decoder(
            "Olmo3ForCausalLM", core={"placement": "branch", "qk_norm": "full"},
            kinds=lambda c, layer: SLIDING if (layer + 1) % 4 else FULL,
        ),
        LLAMA | {"rms_norm_eps": 1e-5, "attention_bias": False, "sliding_window": 4096, "layer_types": None}
        | {"rope_theta": 500_000.0, "rope_local_base_freq": 500_000.0},
    ),
)  # fmt: skip


def _family(name: str, model_type: str, family: Decoder, defaults: Mapping[str, Any]) -> TextFamily:
    return hf_family(
        name, model_type, LanguageModelConfig, partial(read_decoder, family=family),
        partial(write_decoder, family=family, defaults=defaults), defaults, partial(decoder_weights, family=family),
        prefix="model.",
    )  # fmt: skip


DECODERS = tuple(_family(*row) for row in _TABLE)

"""The families of `decoders.py`: Llama and its relatives, with the keys that each reads and their defaults."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from ...core.checkpoints.weights import Rule, reshaped
from ...core.config import Linears
from ..model import LanguageModelConfig
from .decoders import Decoder, decoder_weights, read_decoder, rotating, where_windowed, write_decoder
from .mixtures import MIXTRAL, QWEN, QWEN_EXPERTS, mixtral_rules, qwen_rules
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
LAYERNORM = {key: value for key, value in LLAMA.items() if key not in ("head_dim", "rms_norm_eps")}
COHERE = LAYERNORM | {
    "head_dim": None, "layer_norm_eps": 1e-5, "max_position_embeddings": 8192, "rope_theta": 500_000.0,
    "tie_word_embeddings": True, "attention_bias": False, "logit_scale": 0.0625,
}  # fmt: skip
PARALLEL = {"parallel": True, "shared_norm": True}
COHERE_CORE = {"norm": "layernorm", "norm_bias": False} | PARALLEL
OFFSET, SANDWICH = {"norm_weight": "offset"}, {"norm_weight": "offset", "placement": "sandwich"}


def _from_layer(c: Settings, layer: int) -> str:
    windowed = c["use_sliding_window"] and c["sliding_window"] is not None
    return SLIDING if windowed and layer >= c["max_window_layers"] else FULL


def _switched(c: Settings, layer: int) -> str:
    return SLIDING if c["use_sliding_window"] and c["sliding_window"] is not None else FULL


def _where_unrotated(c: Settings, layer: int) -> str:
    windowed = c["use_sliding_window"] and c["sliding_window"] is not None
    return SLIDING if windowed and not rotating(c, [FULL] * (layer + 1))[layer] else FULL


def everywhere(c: Settings, layer: int) -> str:
    """A window in all layers, if there is one."""
    return FULL if c["sliding_window"] is None else SLIDING


def _phi3_rules(config: LanguageModelConfig) -> tuple[Rule, ...]:
    block, layer = "transformer.blocks.{}", "model.layers.{}"
    return (
        Rule(tuple(f"{block}.attn.{name}" for name in "qkv"), f"{layer}.self_attn.qkv_proj"),
        Rule((f"{block}.ffn.gate", f"{block}.ffn.up"), f"{layer}.mlp.gate_up_proj"),
    )


def _starcoder2_rules(config: LanguageModelConfig) -> tuple[Rule, ...]:
    ours, theirs = "transformer.blocks.{}.ffn", "model.layers.{}.mlp"
    return (Rule(f"{ours}.up", f"{theirs}.c_fc"), Rule(f"{ours}.down", f"{theirs}.c_proj"))


def _stablelm_rules(config: LanguageModelConfig) -> tuple[Rule, ...]:
    """Each head has a norm of its own, whose gains lie side by side here."""
    t = config.transformer.resolved()
    return tuple(
        Rule(
            f"transformer.blocks.{{}}.attn.{name}_norm.weight",
            tuple(f"model.layers.{{}}.self_attn.{name}_layernorm.norms.{head}.weight" for head in range(heads)),
        )
        for name, heads in (("q", t.heads), ("k", t.kv_heads or t.heads))
    )


def _cohere_rules(config: LanguageModelConfig) -> tuple[Rule, ...]:
    """The gains of each head are a row there."""
    rows = reshaped(-1, config.transformer.resolved().head_dim or 0)
    return tuple(
        Rule(f"transformer.blocks.{{}}.attn.{name}", f"model.layers.{{}}.self_attn.{name}", rows)
        for name in ("q_norm", "k_norm")
    )


Row = tuple[str, str, Decoder, dict[str, Any]]
"""Name, model type, what all models have, and keys with their defaults."""
_TABLE: tuple[Row, ...] = (
    ("Llama", "llama", Decoder("LlamaForCausalLM"), LLAMA | {"attention_bias": False, "mlp_bias": False}),
    (
        "Mistral",
        "mistral",
        Decoder("MistralForCausalLM", kinds=everywhere),
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
        "Mixtral",
        "mixtral",
        Decoder("MixtralForCausalLM", kinds=everywhere, mixture=MIXTRAL, rules=mixtral_rules),
        LLAMA | {"num_key_value_heads": 8, "max_position_embeddings": 4096 * 32, "rms_norm_eps": 1e-5}
        | {"rope_theta": 1_000_000.0, "sliding_window": None, "num_local_experts": 8, "num_experts_per_tok": 2},
    ),
    (
        "Qwen 3 MoE",
        "qwen3_moe",
        Decoder(
            "Qwen3MoeForCausalLM", core={"qk_norm": "head"}, kinds=_switched, mixture=QWEN, rules=qwen_rules,
        ),
        LLAMA | QWEN_EXPERTS | {"num_key_value_heads": 4, "max_position_embeddings": 32768, "attention_bias": False}
        | {"use_sliding_window": False, "sliding_window": 4096, "num_local_experts": None},
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
            thetas={FULL: "rope_theta", SLIDING: "rope_local_base_freq"},
            kinds=lambda c, layer: SLIDING if (layer + 1) % c["sliding_window_pattern"] else FULL,
        ),
        GEMMA3,
    ),
    (
        "Phi 3",
        "phi3",
        Decoder(
            "Phi3ForCausalLM", fraction="partial_rotary_factor", scalings=("longrope",), kinds=everywhere,
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
            thetas={FULL: "rope_theta", SLIDING: 500_000.0},  # its class takes the key for the others only
            kinds=lambda c, layer: SLIDING if (layer + 1) % 4 else FULL,
        ),
        LLAMA | {"rms_norm_eps": 1e-5, "attention_bias": False, "sliding_window": 4096, "layer_types": None}
        | {"rope_theta": 500_000.0},
    ),
    (
        "Granite",
        "granite",
        Decoder("GraniteForCausalLM"),
        LLAMA | {"attention_bias": False, "mlp_bias": False, "embedding_multiplier": 1.0, "logits_scaling": 1.0}
        | {"residual_multiplier": 1.0, "attention_multiplier": 1.0},
    ),
    (
        "StarCoder 2",
        "starcoder2",
        Decoder(
            "Starcoder2ForCausalLM", eps="norm_epsilon", core={"norm": "layernorm"}, biases={"use_bias": Linears},
            gated=False, kinds=everywhere, rules=_starcoder2_rules,
        ),
        LAYERNORM | {"num_key_value_heads": 2, "head_dim": None, "max_position_embeddings": 4096, "use_bias": True}
        | {"norm_epsilon": 1e-5, "hidden_act": "gelu_pytorch_tanh", "sliding_window": None}
        | {"tie_word_embeddings": True},
    ),
    (
        "StableLM",
        "stablelm",
        Decoder(
            "StableLmForCausalLM", eps="layer_norm_eps", core={"norm": "layernorm"},
            biases={"use_qkv_bias": ("q", "k", "v")}, fraction="partial_rotary_factor", rules=_stablelm_rules,
            switches={"use_parallel_residual": PARALLEL, "qk_layernorm": {"qk_norm": "per_head"}},
        ),
        LAYERNORM | {"num_key_value_heads": 32, "max_position_embeddings": 4096, "layer_norm_eps": 1e-5}
        | {"partial_rotary_factor": 0.25, "use_qkv_bias": False, "use_parallel_residual": False, "qk_layernorm": False},
    ),
    (
        "Cohere",
        "cohere",
        Decoder(
            "CohereForCausalLM", eps="layer_norm_eps", core=COHERE_CORE, interleaved=True, rules=_cohere_rules,
            switches={"use_qk_norm": {"qk_norm": "per_head"}},
        ),
        COHERE | {"use_qk_norm": False},
    ),
    (
        "Cohere 2",
        "cohere2",
        Decoder(
            "Cohere2ForCausalLM", eps="layer_norm_eps", core=COHERE_CORE, interleaved=True, rotates=where_windowed,
            kinds=lambda c, layer: SLIDING if (layer + 1) % c["sliding_window_pattern"] else FULL,
        ),
        COHERE | {"rope_theta": 10_000.0, "sliding_window": 4096, "sliding_window_pattern": 4, "layer_types": None},
    ),
)  # fmt: skip


def decoder_family(name: str, model_type: str, family: Decoder, defaults: Mapping[str, Any]) -> TextFamily:
    """The family of one row."""
    return hf_family(
        name, model_type, LanguageModelConfig, partial(read_decoder, family=family),
        partial(write_decoder, family=family, defaults=defaults), defaults, partial(decoder_weights, family=family),
        prefix="model.",
    )  # fmt: skip


DECODERS = tuple(decoder_family(*row) for row in _TABLE)

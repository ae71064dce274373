"""Random options of further language models of transformers, for `parity_random.py`."""

from __future__ import annotations

import random
from typing import Any

DECODERS = ("GPTBigCode", "GPTNeo", "CodeGen", "BioGpt", "Lfm2", "NemotronH", "Qwen3_5")
MIXTURES = (
    "Qwen2Moe", "Olmoe", "GraniteMoe", "GraniteMoeShared", "Glm4Moe", "Ernie4_5_Moe", "Qwen3_5Moe",
)  # fmt: skip
ENCODERS = ("DistilBert", "Camembert", "Longformer", "BigBird")
MORE = (*DECODERS, *MIXTURES, *ENCODERS)
ACTS = ("gelu_new", "gelu", "relu", "silu")


def more(r: random.Random, kind: str, even: dict[str, Any]) -> dict[str, Any]:
    """Options of one config beside those that all language models have.

    Args:
        r: source of randomness.
        kind: start of the name of the class.
        even: `hidden_size`, `num_hidden_layers`, `num_attention_heads`, `intermediate_size`.
    """
    if kind in ENCODERS:
        return _encoder(r, kind, even)
    tied = {"tie_word_embeddings": r.random() < 0.5}
    if kind in ("GPTBigCode", "GPTNeo", "CodeGen", "BioGpt"):
        return tied | _older(r, kind, even)
    heads, depth = even["num_attention_heads"], even["num_hidden_layers"]
    found = tied | {
        "num_key_value_heads": r.choice([n for n in (1, 2, 3, heads) if heads % n == 0]),
        "hidden_act": r.choice(("silu", "gelu_pytorch_tanh")), "attention_bias": r.random() < 0.3,
        "rms_norm_eps": r.choice((1e-6, 1e-5, 1e-3)),
    }  # fmt: skip
    if kind == "Lfm2":
        return found | {
            "norm_eps": r.choice((1e-5, 1e-3)), "conv_bias": r.random() < 0.5, "conv_L_cache": r.randint(2, 4),
            "block_auto_adjust_ff_dim": r.random() < 0.5, "block_multiple_of": r.choice((4, 16)),
            "block_ffn_dim_multiplier": r.choice((1.0, 1.3)),
            "layer_types": [r.choice(("conv", "full_attention")) for _ in range(depth)],
        }  # fmt: skip
    if kind == "NemotronH":
        return found | _nemotron_h(r, depth)
    if kind in ("Qwen3_5", "Qwen3_5Moe"):
        found |= _delta(r, depth)
    return found | _mixture(r, kind, depth)


def _mixture(r: random.Random, kind: str, depth: int) -> dict[str, Any]:
    experts = {"num_experts": r.choice((2, 3, 5)), "num_experts_per_tok": r.choice((1, 2))}
    experts |= {"moe_intermediate_size": r.randint(3, 20), "norm_topk_prob": r.random() < 0.5}
    if kind == "Qwen2Moe":
        return experts | {
            "shared_expert_intermediate_size": r.randint(3, 20), "decoder_sparse_step": r.choice((1, 2)),
            "mlp_only_layers": r.choice(([], [0])), "sliding_window": r.randint(2, 20),
            "use_sliding_window": r.random() < 0.5, "max_window_layers": r.randint(0, depth),
            "qkv_bias": r.random() < 0.5,
        }  # fmt: skip
    if kind == "Olmoe":
        return experts | {"clip_qkv": r.choice((None, 0.7))}
    if kind == "Qwen3_5Moe":
        return experts | {"shared_expert_intermediate_size": r.randint(3, 20)}
    if kind.startswith("GraniteMoe"):
        found = {"num_local_experts": r.choice((2, 3)), "num_experts_per_tok": r.choice((1, 2))}
        found |= {"embedding_multiplier": r.choice((1.0, 12)), "logits_scaling": r.choice((1.0, 6.0))}
        found |= {"residual_multiplier": r.choice((1.0, 0.22)), "attention_multiplier": r.choice((1.0, 0.0625))}
        return found | ({"shared_intermediate_size": r.randint(0, 30)} if kind == "GraniteMoeShared" else {})
    if kind == "Glm4Moe":
        return {
            "n_routed_experts": 4, "moe_intermediate_size": r.randint(3, 20), "num_experts_per_tok": r.choice((1, 2)),
            "n_shared_experts": r.choice((1, 2)), "n_group": r.choice((1, 2)), "topk_group": r.choice((1, 2)),
            "first_k_dense_replace": r.randint(0, depth), "use_qk_norm": r.random() < 0.5,
            "norm_topk_prob": r.random() < 0.5, "routed_scaling_factor": r.choice((1.0, 2.5)), "head_dim": 8,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
        }  # fmt: skip
    if kind == "Ernie4_5_Moe":
        return {
            "moe_num_experts": r.choice((2, 4)), "moe_intermediate_size": r.randint(3, 20), "moe_k": r.choice((1, 2)),
            "moe_num_shared_experts": r.choice((0, 1, 2)), "moe_layer_start_index": r.randint(0, depth - 1),
            "moe_layer_end_index": r.choice((-1, depth - 1)), "moe_layer_interval": r.choice((1, 2)),
            "use_bias": r.random() < 0.5,
        }  # fmt: skip
    return {}


def _delta(r: random.Random, depth: int) -> dict[str, Any]:
    keys = r.choice((1, 2))
    return {
        "head_dim": r.choice((8, 16)), "linear_num_key_heads": keys, "linear_num_value_heads": keys * r.choice((1, 2)),
        "linear_key_head_dim": r.choice((4, 6)), "linear_value_head_dim": r.choice((4, 5)),
        "linear_conv_kernel_dim": r.randint(2, 4),
        "layer_types": [r.choice(("linear_attention", "full_attention")) for _ in range(depth)],
        "rope_parameters": {"rope_type": "default", "rope_theta": r.choice((100.0, 1e4)),
                            "partial_rotary_factor": r.choice((0.5, 1.0))},
    }  # fmt: skip


def _nemotron_h(r: random.Random, depth: int) -> dict[str, Any]:
    kinds = ("linear_attention", "full_attention", "mlp", "moe")
    heads = r.choice((2, 4))
    return {
        "layers_block_type": [r.choice(kinds) for _ in range(depth)], "head_dim": r.choice((4, 8)),
        "ssm_state_size": r.randint(2, 6), "mamba_num_heads": heads, "mamba_head_dim": r.choice((4, 8)),
        "n_groups": r.choice((1, 2)), "n_routed_experts": 4, "moe_intermediate_size": r.randint(3, 20),
        "moe_shared_expert_intermediate_size": r.randint(3, 20), "num_experts_per_tok": r.choice((1, 2)),
        "use_bias": r.random() < 0.3, "mlp_bias": r.random() < 0.3, "use_conv_bias": r.random() < 0.6,
        "routed_scaling_factor": r.choice((1.0, 2.5)), "norm_topk_prob": r.random() < 0.5,
        "conv_kernel": r.randint(2, 4), "layer_norm_epsilon": r.choice((1e-5, 1e-3)),
    }  # fmt: skip


def _older(r: random.Random, kind: str, even: dict[str, Any]) -> dict[str, Any]:
    heads, depth, dim = even["num_attention_heads"], even["num_hidden_layers"], even["hidden_size"]
    eps, act = r.choice((1e-6, 1e-5, 1e-3)), r.choice(ACTS)
    if kind == "BioGpt":
        return {"hidden_act": act, "scale_embedding": r.random() < 0.5, "layer_norm_eps": eps}
    if kind == "GPTNeo":
        kinds = [r.choice(("global", "local")) for _ in range(depth)]
        return {
            "num_layers": depth, "num_heads": heads, "attention_types": [[kinds, 1]], "window_size": r.randint(1, 20),
            "activation_function": act, "layer_norm_epsilon": eps,
        }  # fmt: skip
    found = {
        "n_embd": dim, "n_layer": depth, "n_head": heads, "n_positions": 64, "n_inner": r.choice((None, 31)),
        "activation_function": act, "layer_norm_epsilon": eps,
    }  # fmt: skip
    if kind == "CodeGen":
        return found | {"rotary_dim": r.choice((2, dim // heads))}
    return found | {"multi_query": r.random() < 0.5, "scale_attn_weights": r.random() < 0.7}


def _encoder(r: random.Random, kind: str, even: dict[str, Any]) -> dict[str, Any]:
    depth, act = even["num_hidden_layers"], r.choice(("gelu", "gelu_new", "relu"))
    if kind == "DistilBert":
        return {
            "dim": even["hidden_size"], "hidden_dim": even["intermediate_size"], "n_layers": depth,
            "n_heads": even["num_attention_heads"], "activation": r.choice(("gelu", "relu")),
            "sinusoidal_pos_embds": r.random() < 0.3,
        }  # fmt: skip
    found: dict[str, Any] = {"layer_norm_eps": r.choice((1e-12, 1e-5, 1e-3)), "type_vocab_size": r.randint(1, 3)}
    if kind == "BigBird":
        return found | {
            "hidden_act": act, "attention_type": r.choice(("original_full", "block_sparse")),
            "block_size": r.choice((2, 4)), "num_random_blocks": r.choice((1, 2)), "use_bias": r.random() < 0.5,
            "rescale_embeddings": r.random() < 0.5,
        }  # fmt: skip
    found |= {"pad_token_id": 1, "bos_token_id": 0}
    if kind == "Longformer":
        windows = [2 * r.randint(1, 8) for _ in range(depth)]
        return found | {"hidden_act": "gelu", "attention_window": r.choice((windows[0], windows))}
    return found | {"hidden_act": "gelu"}

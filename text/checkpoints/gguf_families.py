"""Language models in GGUF files: metadata as settings of Hugging Face's families, weights under our names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...core.checkpoints.source import Source
from ...core.checkpoints.weights import STACKED, Layout, Rule, WeightMap, pairs_interleaved, reshaped
from ...core.errors import UserError
from ...core.positions import rotary_frequencies
from ...core.rotary import RotaryConfig
from ..model import LanguageModelConfig
from .families import HF_FAMILIES
from .gguf import Header, Tensors, read_header
from .gguf_tokenizer import tokenizer
from .settings import FULL, SLIDING, TextFamily

# Their architecture -> the `model_type` of the family whose settings they are.
MODEL_TYPES = {
    "gpt2": "gpt2",
    "llama": "llama",
    "mistral": "mistral",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "qwen3moe": "qwen3_moe",
    "smollm3": "smollm3",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
    "phi3": "phi3",
    "olmo2": "olmo2",
    "granite": "granite",
    "starcoder2": "starcoder2",
    "stablelm": "stablelm",
    "command-r": "cohere",
    "cohere2": "cohere2",
    "gptneox": "gpt_neox",
    "falcon": "falcon",
}
_INTERLEAVED = ("llama", "mistral", "smollm3", "granite")
"""Architectures whose rotary pairs lie side by side; the converter moves the rows of q and k."""
_PLUS_ONE = ("gemma", "gemma2", "gemma3")
"""Architectures whose norms are stored with the one added that their model adds to the gain."""
_FUSED = ("gpt2", "gptneox", "phi3", "falcon")
"""Architectures whose q, k and v are one tensor."""
_SETTINGS = {
    "context_length": ("max_position_embeddings", "n_positions"),
    "embedding_length": ("hidden_size", "n_embd"),
    "block_count": ("num_hidden_layers", "n_layer"),
    "feed_forward_length": ("intermediate_size", "n_inner", "ffn_hidden_size"),
    "attention.head_count": ("num_attention_heads", "n_head"),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps",),
    "attention.layer_norm_epsilon": ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon"),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "final_logit_softcapping": ("final_logit_softcapping",),
    "use_parallel_residual": ("use_parallel_residual",),
    "expert_count": ("num_experts", "num_local_experts"),
    "expert_used_count": ("num_experts_per_tok",),
    "expert_feed_forward_length": ("moe_intermediate_size",),
    "rope.freq_base_swa": ("rope_local_base_freq",),
    "logit_scale": ("logit_scale", "logits_scaling"),
    "embedding_scale": ("embedding_multiplier",),
    "residual_scale": ("residual_multiplier",),
}
"""Key of the metadata -> the keys of the families' configs."""
_SCALED = ("logit_scale", "embedding_scale", "residual_scale", "attention.scale")
_SCALES = {"granite": _SCALED, "command-r": ("logit_scale",), "cohere2": ("logit_scale",)}
"""Factors that a family has settings for; all others have none."""
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(_SCALED, (0.0, 1.0)),
    "attention.causal": (True,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "attention.output_scale": (0.0, 1.0),
    "attention.temperature_length": (0,),
    "attention.temperature_scale": (0.0, 1.0),
    "attention.shared_kv_layers": (0,),
    "router_logit_softcapping": (0.0,),
    "expert_gating_func": (0, 1),
    "expert_shared_count": (0,),
    "expert_weights_scale": (0.0, 1.0),
    "nextn_predict_layers": (0,),
    "rope.scaling.yarn_attn_factor": (1.0,),
    "rope.scaling.yarn_ext_factor": (-1.0, 1.0),
    "rope.scaling.yarn_log_multiplier": (0.0,),
    "tensor_data_layout": ("Meta AI original pth", "jploski", "reference"),
}
"""Keys that change what a model computes, which no family here reads, and the values with which they do not."""


def settings(header: Header) -> dict[str, Any]:
    """The config that Hugging Face would write for the model of a file."""
    if absent := [key for key in ("embedding_length", "block_count", "attention.head_count") if not header.get(key)]:
        raise UserError(f"'{header.path}' does not state {', '.join(absent)}; it holds no language model.")
    _refuse_unread(header)
    found = {name: header.get(key) for key, names in _SETTINGS.items() if header.get(key) is not None for name in names}
    if lists := [name for name, value in found.items() if isinstance(value, list)]:
        raise UserError(f"'{header.path}' has another {lists[0]} in each layer, which the core does not have.")
    heads, head_dim = found["num_attention_heads"], header.get("attention.key_length")
    if "token_embd.weight" not in header.tensors:
        raise UserError(
            f"'{header.path}' holds no weights of a language model (token_embd), like an adapter or "
            "a part of a model; give the whole model."
        )
    return found | {
        "vocab_size": header.tensors["token_embd.weight"].shape[0],
        "num_key_value_heads": header.get("attention.head_count_kv", heads),
        "head_dim": head_dim or found["hidden_size"] // heads,
        "tie_word_embeddings": "output.weight" not in header.tensors,
        "sliding_window": header.get("attention.sliding_window") or None,
        "query_pre_attn_scalar": _scalar(header, head_dim),
        "norm_topk_prob": True,  # as llama.cpp runs Qwen 3, whatever a file says
        **_by_tensors(header),
        **_kinds(header),
        **_rotary(header),
        **_OWN.get(header.architecture, lambda header, found: {})(header, found),
    }


def _refuse_unread(header: Header) -> None:
    """Raises UserError for a key that changes the model and that its family here has no setting for."""
    read = _SCALES.get(header.architecture, ())
    neutral = _NEUTRAL | {"attention.value_length": (header.get("attention.key_length"),)}
    neutral |= {"rope.scaling.attn_factor": (1.0,)} if header.architecture != "phi3" else {}
    for key, values in neutral.items():
        value = header.get(key)
        if value is not None and key not in read and value not in values:
            raise UserError(
                f"'{header.path}' has {key} = {value!r}, which the core does not have in the architecture "
                f"'{header.architecture}'; take the original's folder."
            )


def _by_tensors(header: Header) -> dict[str, Any]:
    """What the tensors of the first block say."""

    def has(*names: str) -> bool:
        return any(f"blk.0.{name}" in header.tensors for name in names)

    of_qkv = has("attn_q.bias", "attn_qkv.bias")
    return {
        "attention_bias": has("attn_output.bias", "attn_qkv.bias"),
        "mlp_bias": has("ffn_up.bias"),
        "use_bias": has("ffn_up.bias"),
        "bias": has("ffn_up.bias"),
        "use_qkv_bias": of_qkv,
        "use_qk_norm": has("attn_q_norm.weight"),
        "qk_layernorm": has("attn_q_norm.weight"),
    }


def _kinds(header: Header) -> dict[str, Any]:
    """Which layers have a window, where the file says it: a flag for each, or the period in which the last has none."""
    pattern = header.get("attention.sliding_window_pattern")
    if not pattern or not header.get("attention.sliding_window"):
        return {}
    layers = range(header.get("block_count"))
    flags = pattern if isinstance(pattern, list) else [bool((layer + 1) % pattern) for layer in layers]
    return {"layer_types": [SLIDING if flag else FULL for flag in flags]}


def _of_granite(header: Header, found: dict[str, Any]) -> dict[str, Any]:
    head_dim = header.get("attention.key_length") or found["hidden_size"] // found["num_attention_heads"]
    return {"attention_multiplier": header.get("attention.scale") or head_dim**-0.5}


def _of_stablelm(header: Header, found: dict[str, Any]) -> dict[str, Any]:
    """llama.cpp looks for the second norm, whatever the file says of parallel branches."""
    return {"use_parallel_residual": "blk.0.ffn_norm.weight" not in header.tensors}


def _of_falcon(header: Header, found: dict[str, Any]) -> dict[str, Any]:
    """Branches lie side by side; two norms, or a number of keys that the old decoder cannot have, are the new one's."""
    heads, two = found["num_attention_heads"], "blk.0.attn_norm_2.weight" in header.tensors
    kv_heads = header.get("attention.head_count_kv", heads)
    new = two or kv_heads not in (1, heads)
    return {
        "new_decoder_architecture": new,
        "num_ln_in_parallel_attn": None if not new else 2 if two else 1,
        "multi_query": kv_heads == 1,
        "num_kv_heads": kv_heads if new else None,
    }


_OWN: dict[str, Callable[[Header, dict[str, Any]], dict[str, Any]]] = {
    "granite": _of_granite,
    "stablelm": _of_stablelm,
    "falcon": _of_falcon,
}
"""What only one architecture has."""


def _scalar(header: Header, head_dim: int | None) -> int:
    """Gemma 2 and 3 scale by the width of a head, except the models of 27B parameters; the file does not say it."""
    wide = (header.architecture, header.get("block_count")) in (("gemma2", 46), ("gemma3", 62))
    return header.get("embedding_length") // header.get("attention.head_count") if wide else head_dim or 256


def _rotary(header: Header) -> dict[str, Any]:
    """Settings of the rotary positions, in the old spelling."""
    kind = header.get("rope.scaling.type", "none")
    scaling: dict[str, Any] | None = None
    original = header.get("rope.scaling.original_context_length")
    if kind != "none":
        scaling = {"rope_type": kind, "factor": header.get("rope.scaling.factor")}
        scaling |= {name: header.get(f"rope.scaling.yarn_{name}") for name in ("beta_fast", "beta_slow")}
        if original:
            scaling["original_max_position_embeddings"] = original
    base = header.get("rope.freq_base", 10_000.0)
    width = header.get("attention.key_length") or header.get("embedding_length") // header.get("attention.head_count")
    rotated = header.get("rope.dimension_count", width)
    if "rope_freqs.weight" in header.tensors:
        scaling = _llama3(header, base, rotated, original or 8192)
    if "rope_factors_long.weight" in header.tensors:
        of = {name: Tensors(header)[f"rope_factors_{name}.weight"].tolist() for name in ("short", "long")}
        scaling = {"rope_type": "longrope", "short_factor": of["short"], "long_factor": of["long"]}
        scaling["attention_factor"] = header.get("rope.scaling.attn_factor")
    parts = {"rotary_pct": rotated / width} | ({"partial_rotary_factor": rotated / width} if rotated != width else {})
    given = {"original_max_position_embeddings": original} if original and header.architecture == "phi3" else {}
    return {"rope_theta": base, "rope_scaling": scaling, "rotary_emb_base": base, **parts, **given}


def _llama3(header: Header, base: float, rotated: int, context: int) -> dict[str, Any]:
    """The settings of Llama 3.1's scaling, which a file states as one divisor for each frequency."""
    divisors = Tensors(header)["rope_freqs.weight"].double()
    config = RotaryConfig(base, scaling="llama3", factor=float(divisors.max()), original_context=context)
    plain, scaled = (rotary_frequencies(c, rotated)[0] for c in (RotaryConfig(base), config))
    if len(divisors) != len(plain) or (plain / scaled / divisors - 1).abs().max() > 1e-3:
        raise UserError(f"'{header.path}' stretches its rotary positions (rope_freqs) in a way the core does not have.")
    return {
        "rope_type": "llama3",
        "factor": round(config.factor, 4),
        "original_max_position_embeddings": context,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    }


# --- weights ----------------------------------------------------------------------------------------------------------

MINUS_ONE = Layout(lambda parts: parts[0] + 1, lambda whole, shapes: [whole - 1], stacked=False)


def weights(config: LanguageModelConfig, architecture: str) -> WeightMap:
    """The table of an architecture."""
    t = config.transformer.resolved()
    turned = architecture in _INTERLEAVED
    norm = MINUS_ONE if architecture in _PLUS_ONE else STACKED
    of_heads = reshaped(-1, t.head_dim or 0) if t.qk_norm == "per_head" else norm
    block, blk = "transformer.blocks.{}", "blk.{}"
    attention = (
        Rule(f"{block}.attn.q", f"{blk}.attn_q", pairs_interleaved(t.heads) if turned else STACKED),
        Rule(f"{block}.attn.k", f"{blk}.attn_k", pairs_interleaved(t.kv_heads or 0) if turned else STACKED),
        Rule(f"{block}.attn.v", f"{blk}.attn_v"),
    )
    if architecture in _FUSED:
        attention = (Rule(tuple(f"{block}.attn.{name}" for name in "qkv"), f"{blk}.attn_qkv"),)
    first, second = ("attn_norm", "ffn_norm")
    if architecture == "falcon" and not t.shared_norm:
        first, second = ("attn_norm_2", "attn_norm")  # the norm before the feed-forward has the usual name there
    rules = (
        Rule("embedding", "token_embd"),
        Rule("transformer.positions", "position_embd"),
        *attention,
        Rule(f"{block}.attn.out", f"{blk}.attn_output"),
        Rule(f"{block}.attn.q_norm", f"{blk}.attn_q_norm", of_heads),
        Rule(f"{block}.attn.k_norm", f"{blk}.attn_k_norm", of_heads),
        *([Rule((f"{block}.ffn.gate", f"{block}.ffn.up"), f"{blk}.ffn_up")] if architecture == "phi3" else []),
        *(Rule(f"{block}.ffn.{name}", f"{blk}.ffn_{name}") for name in ("gate", "up", "down")),
        Rule(f"{block}.ffn.router", f"{blk}.ffn_gate_inp"),
        *(Rule(f"{block}.ffn.experts.{name}", f"{blk}.ffn_{name}_exps") for name in ("gate", "up", "down")),
        Rule(f"{block}.norm1", f"{blk}.{first}", norm),
        Rule(f"{block}.branch1.norm", f"{blk}.post_attention_norm", norm),
        Rule(f"{block}.norm2", f"{blk}.{second}", norm),
        Rule(f"{block}.branch2.norm", f"{blk}.post_ffw_norm", norm),
        Rule("transformer.final_norm", "output_norm", norm),
        Rule("head", "output"),
    )
    return WeightMap(rules, ignored=(r"rope_freqs\.weight", r"rope_factors_(long|short)\.weight"))


# --- families ---------------------------------------------------------------------------------------------------------


def _header(source: Source) -> Header | None:
    return read_header(source.path) if source.file and source.file.suffix == ".gguf" else None


def _kind(architecture: str, found: dict[str, Any]) -> str:
    """The `model_type` of a file: several families are one architecture there."""
    if architecture == "llama" and found.get("num_experts"):
        return "mixtral"
    if architecture == "llama" and found["sliding_window"]:
        return "mistral"
    if architecture == "olmo2" and found["sliding_window"]:
        return "olmo3"
    return MODEL_TYPES[architecture]


def kind_of_file(architecture: str, found: dict[str, Any]) -> TextFamily:
    """The family of Hugging Face whose settings a file states."""
    return _BY_TYPE[_kind(architecture, found)]


def _family(architecture: str, of: TextFamily) -> TextFamily:
    def config(source: Source) -> Any:
        found = settings(read_header(source.path))
        return kind_of_file(architecture, found).read(source.name, found)

    def fits(source: Source) -> bool:
        header = _header(source)
        return header is not None and header.architecture == architecture

    return TextFamily(
        of.name,
        "gguf",
        fits,
        config,
        lambda config: weights(config, architecture),
        read=of.read,
        tensors=lambda source: Tensors(read_header(source.path)),
        companion=tokenizer,
    )


_BY_TYPE = {family.model_type: family for family in HF_FAMILIES}
GGUF_FAMILIES = tuple(_family(architecture, _BY_TYPE[kind]) for architecture, kind in MODEL_TYPES.items())


def check_architecture(source: Source) -> None:
    """Raises UserError for a GGUF file of an architecture that is not here, listing those that are."""
    header = _header(source)
    if header is not None and header.architecture not in MODEL_TYPES:
        raise UserError(
            f"'{source.name}' is a GGUF file of the architecture '{header.architecture}', which is not supported; "
            f"supported are {', '.join(MODEL_TYPES)}."
        )

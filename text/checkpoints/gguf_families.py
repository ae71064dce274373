"""Language models in GGUF files: metadata as settings of Hugging Face's families, weights under our names,
tokenizers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as HFTokenizer

from ...core.checkpoints.source import Source
from ...core.checkpoints.weights import STACKED, Layout, Rule, WeightMap, pairs_interleaved
from ...core.errors import UserError
from ...core.positions import rotary_frequencies
from ...core.rotary import RotaryConfig
from ..model import LanguageModelConfig
from ..tokenizer import Tokenizer
from .families import HF_FAMILIES
from .gguf import Header, Tensors, read_header
from .settings import TextFamily

# Their architecture -> the `model_type` of the family whose settings they are.
MODEL_TYPES = {
    "gpt2": "gpt2",
    "llama": "llama",
    "mistral": "mistral",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "smollm3": "smollm3",
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
    "gptneox": "gpt_neox",
}
_INTERLEAVED = ("llama", "mistral", "smollm3")
"""Architectures whose rotary pairs lie side by side; the converter moves the rows of q and k."""
_PLUS_ONE = ("gemma", "gemma2", "gemma3")
"""Architectures whose norms are stored with the one added that their model adds to the gain."""
_SETTINGS = {
    "context_length": ("max_position_embeddings", "n_positions"),
    "embedding_length": ("hidden_size", "n_embd"),
    "block_count": ("num_hidden_layers", "n_layer"),
    "feed_forward_length": ("intermediate_size", "n_inner"),
    "attention.head_count": ("num_attention_heads", "n_head"),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps",),
    "attention.layer_norm_epsilon": ("layer_norm_eps", "layer_norm_epsilon"),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "final_logit_softcapping": ("final_logit_softcapping",),
    "use_parallel_residual": ("use_parallel_residual",),
}
"""Key of the metadata -> the keys of the families' configs."""


def settings(header: Header) -> dict[str, Any]:
    """The config that Hugging Face would write for the model of a file."""
    if absent := [key for key in ("embedding_length", "block_count", "attention.head_count") if not header.get(key)]:
        raise UserError(f"'{header.path}' does not state {', '.join(absent)}; it holds no language model.")
    found = {name: header.get(key) for key, names in _SETTINGS.items() if header.get(key) is not None for name in names}
    if lists := [name for name, value in found.items() if isinstance(value, list)]:
        raise UserError(f"'{header.path}' has another {lists[0]} in each layer, which the core does not have.")
    heads, head_dim = found["num_attention_heads"], header.get("attention.key_length")
    if "token_embd.weight" not in header.tensors:
        raise UserError(
            f"'{header.path}' holds no weights of a language model (token_embd), like an adapter or "
            "a part of a model; give the whole model."
        )
    window = header.get("attention.sliding_window")
    return found | {
        "vocab_size": header.tensors["token_embd.weight"].shape[0],
        "num_key_value_heads": header.get("attention.head_count_kv", heads),
        "head_dim": head_dim or found["hidden_size"] // heads,
        "tie_word_embeddings": "output.weight" not in header.tensors,
        "attention_bias": any(f"blk.0.attn_{name}.bias" in header.tensors for name in ("output", "qkv")),
        "mlp_bias": "blk.0.ffn_up.bias" in header.tensors,
        "sliding_window": window,
        "query_pre_attn_scalar": _scalar(header, head_dim),
        **_rotary(header),
    }


def _scalar(header: Header, head_dim: int | None) -> int:
    """Gemma 2 and 3 scale by the width of a head, except the models of 27B parameters; the file does not say it."""
    wide = (header.architecture, header.get("block_count")) in (("gemma2", 46), ("gemma3", 62))
    return header.get("embedding_length") // header.get("attention.head_count") if wide else head_dim or 256


def _rotary(header: Header) -> dict[str, Any]:
    """Settings of the rotary positions, in the old spelling."""
    kind = header.get("rope.scaling.type", "none")
    scaling: dict[str, Any] | None = None
    if kind != "none":
        scaling = {"rope_type": kind, "factor": header.get("rope.scaling.factor")}
        if original := header.get("rope.scaling.original_context_length"):
            scaling["original_max_position_embeddings"] = original
    base = header.get("rope.freq_base", 10_000.0)
    width = header.get("embedding_length") // header.get("attention.head_count")
    if "rope_freqs.weight" in header.tensors:
        scaling = _llama3(header, base, header.get("rope.dimension_count", width))
    part = header.get("rope.dimension_count", width) / width
    return {"rope_theta": base, "rope_scaling": scaling, "rotary_emb_base": base, "rotary_pct": part}


def _llama3(header: Header, base: float, rotated: int) -> dict[str, Any]:
    """The settings of Llama 3.1's scaling, which a file states as one divisor for each frequency."""
    divisors = Tensors(header)["rope_freqs.weight"].double()
    config = RotaryConfig(base, scaling="llama3", factor=float(divisors.max()), original_context=8192)
    plain, scaled = (rotary_frequencies(c, rotated)[0] for c in (RotaryConfig(base), config))
    if len(divisors) != len(plain) or (plain / scaled / divisors - 1).abs().max() > 1e-3:
        raise UserError(f"'{header.path}' stretches its rotary positions (rope_freqs) in a way the core does not have.")
    return {
        "rope_type": "llama3",
        "factor": round(config.factor, 4),
        "original_max_position_embeddings": 8192,
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
    block, blk = "transformer.blocks.{}", "blk.{}"
    attention = (
        Rule(f"{block}.attn.q", f"{blk}.attn_q", pairs_interleaved(t.heads) if turned else STACKED),
        Rule(f"{block}.attn.k", f"{blk}.attn_k", pairs_interleaved(t.kv_heads or 0) if turned else STACKED),
        Rule(f"{block}.attn.v", f"{blk}.attn_v"),
    )
    if architecture in ("gpt2", "gptneox"):
        attention = (Rule(tuple(f"{block}.attn.{name}" for name in "qkv"), f"{blk}.attn_qkv"),)
    rules = (
        Rule("embedding", "token_embd"),
        Rule("transformer.positions", "position_embd"),
        *attention,
        Rule(f"{block}.attn.out", f"{blk}.attn_output"),
        Rule(f"{block}.attn.q_norm", f"{blk}.attn_q_norm", norm),
        Rule(f"{block}.attn.k_norm", f"{blk}.attn_k_norm", norm),
        *(Rule(f"{block}.ffn.{name}", f"{blk}.ffn_{name}") for name in ("gate", "up", "down")),
        Rule(f"{block}.norm1", f"{blk}.attn_norm", norm),
        Rule(f"{block}.branch1.norm", f"{blk}.post_attention_norm", norm),
        Rule(f"{block}.norm2", f"{blk}.ffn_norm", norm),
        Rule(f"{block}.branch2.norm", f"{blk}.post_ffw_norm", norm),
        Rule("transformer.final_norm", "output_norm", norm),
        Rule("head", "output"),
    )
    return WeightMap(rules, ignored=(r"rope_freqs\.weight",))


# --- tokenizers -------------------------------------------------------------------------------------------------------

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _split(numbers: str) -> Any:
    """Words by the pattern of cl100k, with digits in groups of `numbers`, then bytes."""
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS % numbers), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _gpt2() -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False)


def _digits() -> Any:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _gpt2()])


def _llama3_words() -> Any:
    return _split(r"\p{N}{1,3}")


def _qwen2_words() -> Any:
    return _split(r"\p{N}")


PRE_TOKENIZERS: dict[str, Callable[[], Any]] = {
    "default": _gpt2,
    "gpt-2": _gpt2,
    "olmo": _gpt2,
    "smollm": _digits,
    "llama-bpe": _llama3_words,
    "llama3": _llama3_words,
    "llama-v3": _llama3_words,
    "smaug-bpe": _llama3_words,
    "qwen2": _qwen2_words,
}
"""Their names of how a text is cut before the merges."""
_CONTROL, _USER_DEFINED = 3, 4


def tokenizer(source: Source) -> Tokenizer | None:
    """The tokenizer of a file; None for a kind that is not byte-level BPE."""
    meta = read_header(source.path).metadata
    if meta.get("tokenizer.ggml.model") != "gpt2":
        return None
    pre = str(meta.get("tokenizer.ggml.pre", "default"))
    if pre not in PRE_TOKENIZERS:
        raise UserError(
            f"'{source.name}' cuts its text in the way '{pre}', which is not known here; known are "
            f"{', '.join(PRE_TOKENIZERS)}. Take the original's folder, which holds a tokenizer.json."
        )
    try:
        return _byte_level(meta, pre)
    except Exception as error:  # the library raises a bare one for whatever does not fit together
        raise UserError(
            f"The tokenizer inside '{source.name}' cannot be read ({error}); download the file again."
        ) from None


def _byte_level(meta: dict[str, Any], pre: str) -> Tokenizer:
    """Byte-level BPE from metadata."""
    tokens, kinds = meta["tokenizer.ggml.tokens"], meta.get("tokenizer.ggml.token_type", [])
    merges = [tuple(merge.split(" ", 1)) for merge in meta.get("tokenizer.ggml.merges", [])]
    three = PRE_TOKENIZERS[pre] is _llama3_words
    vocab = {token: number for number, token in enumerate(tokens)}
    backend = HFTokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=three))
    backend.pre_tokenizer = PRE_TOKENIZERS[pre]()
    backend.decoder = decoders.ByteLevel()
    if pre == "qwen2":
        backend.normalizer = normalizers.NFC()
    for token, kind in zip(tokens, kinds):
        if kind in (_CONTROL, _USER_DEFINED):
            added = AddedToken(token, special=kind == _CONTROL, normalized=False)
            (backend.add_special_tokens if kind == _CONTROL else backend.add_tokens)([added])
    begin = meta.get("tokenizer.ggml.bos_token_id")
    if begin is not None and meta.get("tokenizer.ggml.add_bos_token", three):
        backend.post_processor = processors.TemplateProcessing(
            single=f"{tokens[begin]} $A", pair=None, special_tokens=[(tokens[begin], begin)]
        )
    ends = [meta.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    ends = [end for end in ends if end is not None]
    return Tokenizer(
        backend, tokens[ends[0]] if ends else None, ends=ends, chat_template=meta.get("tokenizer.chat_template")
    )


# --- families ---------------------------------------------------------------------------------------------------------


def _header(source: Source) -> Header | None:
    return read_header(source.path) if source.file and source.file.suffix == ".gguf" else None


def _family(architecture: str, of: TextFamily) -> TextFamily:
    def config(source: Source) -> Any:
        found = settings(read_header(source.path))
        # Mistral is a Llama there; what tells it apart is its window.
        windowed = architecture == "llama" and found["sliding_window"]
        return (_BY_TYPE["mistral"] if windowed else of).read(source.name, found)

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

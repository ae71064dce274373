"""Language models as GGUF files, for llama.cpp and what is built on it.

The tables of `gguf_families.py` are used the other way round. What llama.cpp cannot be told is not written: a file is
read again before it takes its name, and a setting that does not come back is refused.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...core.checkpoints.family import differences
from ...core.config import TransformerConfig
from ...core.errors import UserError
from ...core.files import few, written_whole
from ...core.positions import rotary_frequencies
from ...core.rotary import RotaryConfig
from ..model import LanguageModel, LanguageModelConfig
from ..tokenizer import Tokenizer
from .gguf import read_header
from .gguf_families import MODEL_TYPES, kind_of_file, settings, weights
from .gguf_quants import FILE_TYPES, TYPES, kind_of, quantize
from .gguf_vocabulary import metadata as vocabulary
from .gguf_write import Planned, write
from .settings import TextFamily, per_layer

WINDOWED = ("gemma2", "gemma3", "cohere2", "olmo2")
"""Architectures in which llama.cpp has windows."""
_ALSO = {"mixtral": "llama", "mistral": "llama", "olmo3": "olmo2"}
"""Further families that an architecture runs."""
ARCHITECTURES = {kind: architecture for architecture, kind in MODEL_TYPES.items() if architecture != "mistral"} | _ALSO
"""`model_type` -> architecture. llama.cpp has none called mistral."""
_BIASED = ("gpt2", "gptneox", "starcoder2")
"""Architectures whose linear layers all have a bias in llama.cpp."""
_EITHER = ("llama", "granite")
"""Those in which they may have one; in others only queries, keys and values may."""
_OWN_HEAD = ("gptneox", "stablelm", "olmo2")
"""Those in which the head is a matrix of its own."""
_TIED = ("gemma", "gemma2", "command-r", "cohere2")
"""Those in which it is the embedding."""
SCALINGS = ("none", "linear", "llama3", "yarn")
"""Rotary scalings of all architectures; Phi 3 has longrope."""
CLOSE = 1e-6
"""Numbers of a file have 32 bits."""


def export_gguf(
    model: LanguageModel, tokenizer: Tokenizer | None, path: Path, type_: str, families: tuple[TextFamily, ...],
    own: TextFamily | None = None, name: str = "",
) -> list[str]:  # fmt: skip
    """Writes a model with its tokenizer as one file, which replaces an old one only when it is complete.

    Args:
        model: of a family that llama.cpp knows.
        tokenizer: written into the file; llama.cpp opens no file without one.
        path: of the file.
        type_: how weights are kept, one of `TYPES`.
        families: those of Hugging Face.
        own: the family that the model was read as, if any.
        name: the model is called so.

    Returns:
        What differs in llama.cpp, and how weights were kept, in sentences.

    Raises:
        UserError: llama.cpp has no such architecture, setting or tokenizer, or the widths do not fit the type.
    """
    if type_ not in TYPES:
        raise UserError(f"--type is '{type_}', but must be {', '.join(TYPES)}.")
    if tokenizer is None:
        raise UserError(
            "The model has no tokenizer, without which llama.cpp opens no file; add a tokenizer.json to its folder."
        )
    config, notes = _without_windows(model.config, families, own)
    family, architecture = _architecture(config, families, own)
    names, more = vocabulary(tokenizer, config.vocab_size)
    values = _metadata(config, family, architecture) | names
    values |= {"general.name": name or path.stem, "general.file_type": FILE_TYPES[type_]}
    values |= {"general.quantization_version": 2} if type_.startswith("q") else {}
    planned, kinds = _plan(model, config, architecture, type_)
    _refuse_tensors(config, architecture, set(planned))
    with written_whole(path) as part:
        write(part, {"general.architecture": architecture} | values, planned)
        _check(config, part)
    return [*notes, *more, f"Weights: {', '.join(f'{count} {kind}' for kind, count in sorted(kinds.items()))}."]


# --- which architecture -----------------------------------------------------------------------------------------------


def _candidates(families: tuple[TextFamily, ...], own: TextFamily | None) -> list[TextFamily]:
    known = [family for family in families if family.model_type in ARCHITECTURES]
    first = [family for family in known if own is not None and family.model_type == own.model_type]
    return first + [family for family in known if family not in first]


def _architecture(
    config: LanguageModelConfig, families: tuple[TextFamily, ...], own: TextFamily | None
) -> tuple[TextFamily, str]:
    candidates = _candidates(families, own)
    for family in candidates:
        if family.represents(config):
            return family, ARCHITECTURES[family.model_type]
    nearest = min(candidates, key=lambda family: len(family.unlike(config)))
    raise UserError(
        f"llama.cpp has no counterpart to this model: the nearest of {', '.join(f.name for f in candidates)} is "
        f"{nearest.name}, which has no {few(nearest.unlike(config))}; keep it in triune's or Hugging Face's format."
    )


def _without_windows(
    config: LanguageModelConfig, families: tuple[TextFamily, ...], own: TextFamily | None
) -> tuple[LanguageModelConfig, list[str]]:
    """The same function of texts up to the width of the windows, where the architecture has none in llama.cpp."""
    core = config.transformer.resolved()
    windows = [window for layer in range(core.depth) if (window := core.window_at(layer))]
    if not windows:
        return config, []
    represented = [f for f in _candidates(families, own) if f.represents(config)]
    if any(ARCHITECTURES[family.model_type] in WINDOWED for family in represented):
        return config, []
    context = min(*windows, core.context)
    plain = dataclasses.replace(config, transformer=dataclasses.replace(core, window=None, context=context))
    note = (
        f"llama.cpp has no windows in this architecture: the context is {context:,} tokens there, up to which it "
        "computes the same."
    )
    return plain, [note] if context < core.context else []


# --- metadata ---------------------------------------------------------------------------------------------------------


def _metadata(config: LanguageModelConfig, family: TextFamily, architecture: str) -> dict[str, Any]:
    """The keys of an architecture, under its name."""
    core = config.transformer.resolved()
    experts = core.experts
    width = experts.dim if experts is not None and experts.dim else core.ffn_dim
    found: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "context_length": core.context,
        "embedding_length": core.dim,
        "block_count": core.depth,
        "feed_forward_length": width,
        "attention.head_count": core.heads,
        "attention.head_count_kv": core.kv_heads,
        "attention.layer_norm_rms_epsilon" if core.norm == "rmsnorm" else "attention.layer_norm_epsilon": core.norm_eps,
    }
    if architecture not in ("gpt2", "gptneox", "falcon"):
        found |= {"attention.key_length": core.head_dim, "attention.value_length": core.head_dim}
    if experts is not None:
        found |= {"expert_count": experts.count, "expert_used_count": experts.active}
        found |= {"expert_feed_forward_length": width} if architecture == "qwen3moe" else {}
    found |= _rotary(core, architecture) | _windows(core, architecture) | _own(config, core, architecture)
    return {f"{architecture}.{key}": value for key, value in found.items() if value is not None}


def _full(core: TransformerConfig) -> int:
    """A layer whose rotation is that of the layers without a window."""
    layers = [layer for layer in range(core.depth) if core.rotary_at(layer) is not None]
    return next((layer for layer in layers if core.window_at(layer) is None), layers[0] if layers else 0)


def _rotary(core: TransformerConfig, architecture: str) -> dict[str, Any]:
    rotary = core.rotary_at(_full(core))
    if rotary is None:
        return {}
    if rotary.scaling not in SCALINGS and not (rotary.scaling == "longrope" and architecture == "phi3"):
        raise UserError(
            f"Rotary positions are stretched by '{rotary.scaling}', which llama.cpp does not have in the architecture "
            f"'{architecture}' (it has {', '.join(SCALINGS)}); keep the model in triune's or Hugging Face's format."
        )
    found: dict[str, Any] = {
        "rope.freq_base": float(rotary.base),
        "rope.dimension_count": rotary.rotated_dim(core.head_dim or 0),
    }
    if rotary.scaling in ("linear", "yarn"):
        found |= {"rope.scaling.type": rotary.scaling, "rope.scaling.factor": float(rotary.factor)}
    if rotary.scaling == "yarn":
        found["rope.scaling.original_context_length"] = rotary.original_context
        for name, usual in (("beta_fast", 32.0), ("beta_slow", 1.0)):
            if getattr(rotary, name) != usual:
                found[f"rope.scaling.yarn_{name}"] = float(getattr(rotary, name))
    if rotary.scaling == "llama3":
        found["rope.scaling.original_context_length"] = rotary.original_context
    if rotary.scaling == "longrope":
        found["rope.scaling.original_context_length"] = rotary.original_context
        found["rope.scaling.attn_factor"] = float(rotary.own_attention_factor)
    return found


def _windows(core: TransformerConfig, architecture: str) -> dict[str, Any]:
    windows = [core.window_at(layer) for layer in range(core.depth)]
    if not any(windows):
        return {}
    found: dict[str, Any] = {"attention.sliding_window": next(filter(None, windows))}
    found["attention.sliding_window_pattern"] = [window is not None for window in windows]
    turned = [r for layer in range(core.depth) if windows[layer] and (r := core.rotary_at(layer)) is not None]
    full = core.rotary_at(_full(core))
    if turned and full is not None and architecture == "gemma3":
        found["rope.freq_base_swa"] = float(turned[0].base)
    return found


def _own(config: LanguageModelConfig, core: TransformerConfig, architecture: str) -> dict[str, Any]:
    """What only some architectures have."""
    if architecture == "granite":
        scale = config.embedding_scale
        return {
            "attention.scale": float(core.attention_scale or (core.head_dim or 1) ** -0.5),
            "embedding_scale": core.dim**0.5 if scale is True else float(scale or 1.0),
            "residual_scale": float(core.residual_scale),
            "logit_scale": 1 / config.logit_scale,
        }
    if architecture in ("command-r", "cohere2"):
        return {"logit_scale": float(config.logit_scale)}
    if architecture in ("gptneox", "stablelm"):
        return {"use_parallel_residual": core.parallel}
    found: dict[str, Any] = {}
    if architecture in ("gemma2", "gemma3"):
        found = {"attn_logit_softcapping": core.attention_softcap, "final_logit_softcapping": config.logit_softcap}
    return {key: float(value) for key, value in found.items() if value is not None}


# --- tensors ----------------------------------------------------------------------------------------------------------


def _plan(
    model: LanguageModel, config: LanguageModelConfig, architecture: str, type_: str
) -> tuple[dict[str, Planned], dict[str, int]]:
    """What will be written, in the order of the model, and how many tensors of each kind there are."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    depth = config.transformer.depth
    planned: dict[str, Planned] = {}
    kinds: dict[str, int] = {}
    for name, make, shape in _tensors(model, config, architecture):
        parts = name.split(".")
        layer = (int(parts[1]), depth) if parts[0] == "blk" else None
        kind = kind_of(name, shape, type_, layer)
        number = GGMLQuantizationType[kind]
        block, size = GGML_QUANT_SIZES[number]
        bytes_ = math.prod(shape) // block * size
        planned[name] = Planned(shape, int(number), bytes_, _content(make, kind, name))
        kinds[kind] = kinds.get(kind, 0) + 1
    return planned, kinds


def _refuse_tensors(config: LanguageModelConfig, architecture: str, names: set[str]) -> None:
    """Raises UserError where llama.cpp would miss a tensor, or find one that it has no place for."""
    biased = {part for part in ("attn_output", "ffn_down") if f"blk.0.{part}.bias" in names}
    odd = ""
    if architecture in _BIASED and len(biased) < 2:
        odd = "linear layers without biases"
    elif architecture not in (*_BIASED, *_EITHER) and (biased or "blk.0.attn_qkv.bias" in names):
        odd = "biases of linear layers other than queries, keys and values"
    elif config.tied and architecture in _OWN_HEAD:
        odd = "a head that is the embedding"
    elif not config.tied and architecture in _TIED:
        odd = "a head of its own"
    if odd:
        raise UserError(
            f"The model has {odd}, which llama.cpp does not have in the architecture '{architecture}'; keep it in "
            "triune's or Hugging Face's format."
        )


def _content(make: Callable[[], Tensor], kind: str, name: str) -> Callable[[], Any]:
    def content() -> Any:
        tensor = make()
        if kind == "F16" and not torch.isfinite(tensor.half()).all():
            raise UserError(f"--type is f16, which cannot hold the values of {name}; take bf16 or f32.")
        return quantize(tensor, kind)

    return content


def _tensors(
    model: LanguageModel, config: LanguageModelConfig, architecture: str
) -> Iterator[tuple[str, Callable[[], Tensor], tuple[int, ...]]]:
    core = config.transformer.resolved()
    rotary = core.rotary_at(_full(core))
    extra: dict[str, Tensor] = {}
    if rotary is not None and rotary.scaling == "llama3":
        plain, scaled = (
            rotary_frequencies(c, rotary.rotated_dim(core.head_dim or 0))[0]
            for c in (RotaryConfig(rotary.base, fraction=rotary.fraction), rotary)
        )
        extra["rope_freqs.weight"] = (plain / scaled).float()
    if rotary is not None and rotary.scaling == "longrope":
        for name in ("long", "short"):
            extra[f"rope_factors_{name}.weight"] = torch.tensor(getattr(rotary, f"{name}_factors"))
    # Their names and layouts come from the table of the family; each is made when it is written.
    for name, tensor in weights(config, architecture).to_theirs(model).items():
        full = name if name.endswith((".weight", ".bias")) else f"{name}.weight"
        yield full, (lambda tensor=tensor: tensor), tuple(tensor.shape)
    for name, tensor in extra.items():
        yield name, (lambda tensor=tensor: tensor), tuple(tensor.shape)


# --- check ------------------------------------------------------------------------------------------------------------


def _check(config: LanguageModelConfig, path: Path) -> None:
    """Raises UserError for a setting that a file does not say."""
    header = read_header(path)
    try:
        found = settings(header)
        odd = unlike(config, kind_of_file(header.architecture, found).read(path.name, found))
    except UserError as error:
        raise UserError(f"llama.cpp cannot be told all settings of this model ({str(error).rstrip('.')}).") from None
    if odd:
        raise UserError(
            f"llama.cpp cannot be told {few(list(dict.fromkeys(odd)))} of this model in the architecture "
            f"'{header.architecture}'; keep it in triune's or Hugging Face's format."
        )


def unlike(config: LanguageModelConfig, other: LanguageModelConfig) -> list[str]:
    """Settings in which two configs differ by more than the rounding of 32 bits."""
    if not differences(config, other, without=("embedding_std",)):
        return []
    one, two = (
        dataclasses.asdict(dataclasses.replace(c, transformer=c.transformer.canonical(), embedding_std=0.02))
        for c in (config, other)
    )
    one["transformer"], two["transformer"] = (
        t | {name: per_layer(t[name], t["depth"]) for name in ("rotary", "window")}
        for t in (one["transformer"], two["transformer"])
    )
    return [name for name, a, b in _leaves("", one, two) if not _close(a, b)]


def _leaves(name: str, a: Any, b: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(a, dict) and isinstance(b, dict):
        for key in {**a, **b}:
            yield from _leaves(f"{name}.{key}".removeprefix("."), a.get(key), b.get(key))
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for x, y in zip(a, b, strict=True):
            yield from _leaves(name, x, y)
    else:
        yield name, a, b


def _close(a: Any, b: Any) -> bool:
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (a, b))
    return math.isclose(a, b, rel_tol=CLOSE, abs_tol=1e-12) if numbers else a == b

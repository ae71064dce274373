"""What the families of transformers have in common: the words of their configs, names in memory and in files, and how
a family is made of a reader, a writer and its names.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from ...core.checkpoints.source import Source
from ...core.checkpoints.weights import Layout, Rule, WeightMap
from ...core.config import Linears, TransformerConfig
from ...core.errors import UserError
from ..model import VisionTransformerConfig, pair
from ..preprocessing import Preprocessing
from .bare import described, note
from .family import PREPROCESSOR, TWO_HEADS, Names, VisionFamily, different, rules, with_preprocessing
from .hf_preprocessing import has_preprocessing, read_preprocessing, their_word

ACTIVATIONS = {
    "gelu": "gelu", "gelu_python": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh", "quick_gelu": "quick_gelu", "relu": "relu", "silu": "silu", "swish": "silu",
}  # fmt: skip
GATED = {
    "silu": "swiglu", "swish": "swiglu", "gelu": "geglu", "gelu_python": "geglu", "gelu_pytorch_tanh": "geglu_tanh",
    "gelu_new": "geglu_tanh", "gelu_fast": "geglu_tanh", "relu": "reglu",
}  # fmt: skip


_BESIDE = ("text_model", "visual_projection")
"""Parts beside an image tower, which are no part of our model."""


def is_classifier(values: Mapping[str, Any]) -> bool:
    """Whether a config is that of a model for classification."""
    return any("ForImageClassification" in str(name) for name in values.get("architectures") or ())


def headed(config: VisionTransformerConfig) -> bool:
    """Whether theirs is a classifier; one without labels returns what its head would read."""
    return bool(config.classes) or config.pool == "class_and_mean"


def _classes(values: Mapping[str, Any]) -> dict[str, Any]:
    """Number and names of the classes; 0 for a model without a head for them."""
    if not is_classifier(values):
        return {"classes": 0}
    found = values.get("id2label") or {}
    names = [str(found[key]) for key in sorted(found, key=int)]
    if names == [f"LABEL_{i}" for i in range(len(names))]:
        return {"classes": len(names) if "id2label" in values else int(values.get("num_labels", 2))}
    return {"classes": len(names), "labels": names}


def their_classes(
    config: VisionTransformerConfig, name: str, head: bool | None = None, model: str = ""
) -> dict[str, Any]:
    """What a config of theirs says about the class of the model and its labels.

    Args:
        config: ours.
        name: beginning of the names of their classes.
        head: whether theirs is a classifier; None means what `headed` says.
        model: name of the class without a head, where it is not `name` and Model.
    """
    if not (headed(config) if head is None else head):
        return {"architectures": [model or f"{name}Model"]}
    names = config.labels or [f"LABEL_{i}" for i in range(config.classes)]
    return {
        "architectures": [f"{name}ForImageClassification"],
        "id2label": {str(i): label for i, label in enumerate(names)},
        "label2id": {label: i for i, label in enumerate(names)},
    }


def whole(sides: list[int] | tuple[int, ...]) -> Any:
    """One number for a square, else height and width."""
    return sides[0] if len(set(sides)) == 1 else list(sides)


def _side(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value


def require_square(c: Mapping[str, Any], tables: str) -> None:
    """Raises UserError for images that are no squares, in a family whose `tables` transformers takes for squares."""
    if len({*pair(c["image_size"], "image_size")}) > 1:
        raise UserError(
            f"image_size is {c['image_size']}, but must be square: transformers takes every table {tables} for one of "
            "a square, and stretches it."
        )


def core_of(c: Mapping[str, Any], bias: bool | list[str], **more: Any) -> TransformerConfig:
    """The core of a config of theirs, whose defaults are filled in."""
    return TransformerConfig(
        dim=c["hidden_size"], depth=c["num_hidden_layers"], heads=c["num_attention_heads"],
        norm_eps=c["layer_norm_eps"], bias=bias, **{"position": "none", **more},
    )  # fmt: skip


def config_of(c: Mapping[str, Any], core: TransformerConfig, **more: Any) -> VisionTransformerConfig:
    """What a config of theirs, whose defaults are filled in, says beside the core."""
    return VisionTransformerConfig(
        image_size=_side(c["image_size"]), patch_size=_side(c["patch_size"]), channels=c["num_channels"],
        transformer=core, **_classes(c), **more,
    )  # fmt: skip


def without(*names: str) -> list[str]:
    """All linear layers but these, as `TransformerConfig.bias` lists them."""
    return [name for name in Linears if name not in names]


def their_core(config: VisionTransformerConfig, core: TransformerConfig) -> dict[str, Any]:
    """What configs of theirs say about a core and its images."""
    width = {} if core.head_dim == core.dim // core.heads else {"head_dim": core.head_dim}
    return {
        "hidden_size": core.dim, "num_hidden_layers": core.depth, "num_attention_heads": core.heads,
        "layer_norm_eps": core.norm_eps, "hidden_act": their_word(ACTIVATIONS, core.ffn) or "silu",
        "image_size": whole(config.size), "patch_size": whole(config.patch), "num_channels": config.channels,
        "torch_dtype": "float32", **width,
    }  # fmt: skip


@dataclass(frozen=True)
class Naming:
    """The names of one family of transformers, which since version 5 are others in memory than in the files it writes.

    Args:
        files, modules: in files, and in memory.
        gated_files, gated_modules: those of a gated feed-forward, where they differ.
        base: what precedes them in a model with a head.
        new: part of a name that only those in memory have.
        mask: shape of the mask token before `dim`, for a family that insists on one; it only matters in pretraining.
        always_registers: there is a tensor of registers even when there are none.
        always_base: `base` is before the names of files without a head, too.
        heads: whether theirs has a head.
        two_heads: names of the heads of a model with `pool: prefix`, each of which reads one token.
        layouts: how numbers of some words lie, from the width of the model.
        unused: shapes of tensors that theirs has, with ours, and that no output depends on.
        ignored: further names in files that carry nothing of ours.
    """

    files: Names
    modules: Names
    base: str
    new: str
    gated_files: Names = field(default_factory=dict)
    gated_modules: Names = field(default_factory=dict)
    mask: tuple[int, ...] | None = None
    always_registers: bool = False
    always_base: bool = False
    heads: Callable[[VisionTransformerConfig], bool] = headed
    two_heads: tuple[str, str] | None = None
    layouts: Callable[[int], Mapping[str, Layout]] = lambda dim: {}
    unused: Callable[[VisionTransformerConfig], dict[str, tuple[int, ...]]] = lambda config: {}
    ignored: tuple[str, ...] = ()

    def table(self, config: VisionTransformerConfig, names: Collection[str], in_memory: bool = False) -> WeightMap:
        """The map for the names of a file, or those that we write (`names` empty), or those in memory."""
        in_memory = in_memory or any(self.new in name for name in names)
        chosen = dict(self.modules if in_memory else self.files)
        if config.transformer.gated and self.gated_files:
            chosen = {word: name for word, name in chosen.items() if word not in ("up", "down")}
            chosen |= self.gated_modules if in_memory else self.gated_files
        chosen.pop("relative" if config.relative_bias == "shared" else "shared_relative", None)
        inner = any(name.startswith(self.base) for name in names)
        if not names:
            inner = self.heads(config) or (self.always_base and not in_memory)
        prefix, dim = self.base if inner else "", config.transformer.dim
        # What a backbone does not use: the decoder of masked images, and a pooler beside a classifier.
        ignored = (
            r"decoder\..*",
            r"(.*\.)?embeddings\.mask_token",
            rf"{self.base}pooler\..*",
            r".*rope_embeddings\..*",
        )
        constants = {} if self.mask is None else {f"{prefix}embeddings.mask_token": torch.zeros(*self.mask, dim)}
        if self.always_registers and not config.registers:
            constants |= {f"{prefix}embeddings.register_tokens": torch.zeros(1, 0, dim)}
        constants |= {prefix + name: torch.zeros(shape) for name, shape in self.unused(config).items()}
        found = rules(chosen, dim, prefix, self.layouts(dim))
        if self.two_heads is not None and config.pool == "prefix":
            found = (Rule("head", self.two_heads, TWO_HEADS), *found)
        return WeightMap(found, ignored + self.ignored, constants)


def family_of(
    name: str, model_type: str | tuple[str, ...], reader: Callable[[Mapping[str, Any]], VisionTransformerConfig],
    write: Callable[[VisionTransformerConfig], dict[str, Any]], default: Preprocessing, naming: Naming,
) -> VisionFamily:  # fmt: skip
    types = (model_type,) if isinstance(model_type, str) else model_type

    def config(source: Source) -> VisionTransformerConfig:
        pooler = {"pooler": True} if "pooler.dense.weight" in source.tensors() else {}
        try:
            found = reader(source.config | pooler)
        except UserError as error:
            raise UserError(f"'{source.name}' cannot be read as {name}: {error}") from None
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"The config.json of '{source.name}' has a setting of a wrong kind ({error}).") from None
        if left := [part for part in _BESIDE if any(part in name for name in source.tensors())]:
            note(source, f"its image tower alone, without its {' and '.join(left)}")
        prepared = read_preprocessing(source.folder, default, found.channels)
        if not has_preprocessing(source.folder):
            note(source, f"{described(prepared)}, as is usual for {name} (it has no {PREPROCESSOR} to say others)")
        return with_preprocessing(found, prepared)

    def why_not(ours: VisionTransformerConfig) -> list[str]:
        theirs = write(ours) | ({"pooler": True} if ours.pre_logits and not ours.classes else {})
        try:
            return different(ours, reader(theirs)) + (["registers"] if theirs["model_type"] not in types else [])
        except UserError:
            return ["its shapes"]

    return VisionFamily(
        name, "hf", lambda source: source.config.get("model_type") in types, config,
        lambda ours: naming.table(ours, (), in_memory=True), write, lambda ours: not why_not(ours),
        table=naming.table, why_not=why_not,
    )  # fmt: skip

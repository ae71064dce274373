"""Settings of Hugging Face's configs and their meaning for the core: one place for what several families share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...core.checkpoints.family import Family, differences
from ...core.checkpoints.source import Source
from ...core.checkpoints.weights import WeightMap
from ...core.config import uniform
from ...core.errors import UserError
from ..model import LanguageModelConfig
from ..tokenizer import Tokenizer, beside

REQUIRED = object()
"""In a table of defaults: the config must have this key."""

PLAIN = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "relu2": "relu2",
    "silu": "silu",
    "swish": "silu",
}
"""Their activation -> our kind of feed-forward without a gate; of several names for one, the first is written."""
GATED = {
    "silu": "swiglu",
    "swish": "swiglu",
    "gelu": "geglu",
    "gelu_pytorch_tanh": "geglu_tanh",
    "gelu_new": "geglu_tanh",
}
"""The same with a gate."""

MOST_LAYERS = 10_000
SLIDING, FULL = "sliding_attention", "full_attention"


class Settings:
    """The keys of a config that a family's original reads; one that is absent has the default of the original's class.

    Args:
        name: of the checkpoint, for messages.
        values: the content of `config.json`.
        defaults: every key that the family reads.
    """

    def __init__(self, name: str, values: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
        self.name, self.values, self.defaults = name, values, defaults

    def __getitem__(self, key: str) -> Any:
        value = self.values.get(key, self.defaults[key])
        if value is REQUIRED:
            raise UserError(f"The config of '{self.name}' has no '{key}', without which its shape is unknown.")
        return value

    def get(self, key: str, otherwise: Any = None) -> Any:
        """The value of a key that only some families have."""
        return self[key] if key in self.defaults else otherwise

    def choose(self, key: str, table: Mapping[str, str]) -> str:
        """Our word for the value of a key. Raises UserError, listing what there is."""
        if self[key] not in table:
            raise UserError(
                f"'{self.name}' has {key} {self[key]!r}, which the core does not have; it has {', '.join(table)}."
            )
        return table[self[key]]

    def require(self, key: str, *allowed: Any) -> None:
        """Raises UserError unless the key, if this family has it, has one of these values."""
        if key in self.defaults and self[key] not in allowed:
            raise UserError(
                f"'{self.name}' has {key} = {self[key]!r}, which the core does not have "
                f"(only {' or '.join(map(repr, allowed))})."
            )

    def depth(self, key: str = "num_hidden_layers") -> int:
        """The number of layers; a damaged one would fill the memory before anything else could be checked."""
        if not 0 < self[key] <= MOST_LAYERS:
            raise UserError(f"'{self.name}' has {key} = {self[key]!r}, but must have 1 to {MOST_LAYERS:,} layers.")
        return self[key]

    def windows(self, types: Sequence[str], window: int | None = None) -> int | list[int | None] | None:
        """Window of the layers from the kind of each; by default of the width that `sliding_window` says."""
        types = self.get("layer_types") or types
        if unknown := sorted(set(types) - {SLIDING, FULL}):
            raise UserError(
                f"'{self.name}' has layers of the kind {', '.join(unknown)}, which the core does not have; it has "
                f"{FULL} and {SLIDING}."
            )
        window = window or self.get("sliding_window")
        if "max_window_layers" in self.defaults and not self["use_sliding_window"]:
            window = None  # Qwen's; SmolLM 3's class asks this key only where no layer_types are given
        if window is None and SLIDING in types:
            raise UserError(
                f"'{self.name}' has layers of the kind {SLIDING} in layer_types, but no window is in use "
                "(sliding_window, use_sliding_window), and its own library cannot run it either; mend its config.json."
            )
        return uniform([window if kind == SLIDING else None for kind in types])


def inverse(value: float) -> float:
    """1 / value; of a value that is itself the inverse of a short number, that number."""
    short = round(1 / value, 12)
    return short if short and 1 / short == value else 1 / value


def per_layer(value: Any, depth: int) -> list[Any]:
    """The inverse of `uniform`."""
    return value if isinstance(value, list) else [value] * depth


def name_of(table: Mapping[str, str], ours: str | list[Any]) -> str:
    """The first of their words for ours; if they have none, any, which `differences` then finds."""
    return next((theirs for theirs, word in table.items() if word == ours), next(iter(table)))


def usual_keys(ours: LanguageModelConfig, architecture: str) -> dict[str, Any]:
    """What nearly all configs since Llama say in the same words."""
    t = ours.transformer.resolved()
    return {
        "architectures": [architecture],
        "vocab_size": ours.vocab_size,
        "hidden_size": t.dim,
        "intermediate_size": t.ffn_dim,
        "num_hidden_layers": t.depth,
        "num_attention_heads": t.heads,
        "num_key_value_heads": t.kv_heads,
        "max_position_embeddings": t.context,
        "attention_dropout": t.attention_dropout,
        "tie_word_embeddings": ours.tied,
    }


def multipliers(ours: LanguageModelConfig) -> dict[str, float]:
    """Granite's words for the factors on the embedding and the logits."""
    scale = ours.transformer.dim**0.5 if ours.embedding_scale is True else ours.embedding_scale or 1.0
    return {"embedding_multiplier": scale, "logits_scaling": inverse(ours.logit_scale)}


# --- a family of transformers -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TextFamily(Family):
    """A family of text models.

    Args:
        model_type: as the configs of Hugging Face call it.
        read: our config from a name for messages and the content of such a config.
        prefix: what the names of the weights begin with, and do not in a file of the bare model without its head.
        renames: names of other versions of the library, as regular expressions and what replaces them.
        unlike: settings of a config of ours that this family cannot say.
        tensors: the weights under their names.
        companion: the tokenizer, None where there is none of a kind that can be read.
    """

    model_type: str = ""
    read: Callable[[str, Mapping[str, Any]], Any] = lambda name, config: None
    prefix: str = ""
    renames: tuple[tuple[str, str], ...] = ()
    unlike: Callable[[Any], list[str]] = lambda _: ["its format"]
    tensors: Callable[[Source], Mapping[str, Tensor]] = lambda source: source.tensors()
    companion: Callable[[Source], Tokenizer | None] = lambda source: beside(source.folder)


def hf_family(
    name: str, model_type: str, kind: type, read: Callable[[Settings], Any], write: Callable[[Any], dict[str, Any]],
    defaults: Mapping[str, Any], weights: Callable[[Any], WeightMap], aliases: Mapping[str, str] | None = None,
    **more: Any,
) -> TextFamily:  # fmt: skip
    """A family of Hugging Face's transformers.

    Args:
        name: shown to people.
        model_type: as its configs call it.
        kind: class of our configs.
        read: our config from theirs.
        write: theirs from ours; what it cannot say it may leave out.
        defaults: every key that its model reads, and what stands for an absent one.
        weights: the table of a config of ours.
        aliases: other names of its keys, which count before these, as in its class.
        more: `prefix` and `renames`.
    """

    def from_theirs(source: str, config: Mapping[str, Any]) -> Any:
        if config.get("quantization_config"):
            raise UserError(
                f"'{source}' holds quantised weights (quantization_config), which cannot be read; take the original, "
                "or a GGUF file of it."
            )
        if config.get("is_causal") is False and kind is LanguageModelConfig:
            raise UserError(
                f"'{source}' has is_causal = False, which makes transformers read both sides of a token, but a "
                "language model here reads one; use it in its own library."
            )
        own = {own: config[other] for other, own in (aliases or {}).items() if other in config}
        try:
            return read(Settings(source, {**config, **own}, defaults))
        except UserError as error:
            if f"'{source}'" in str(error):
                raise
            raise UserError(f"The config of '{source}' cannot be used: {error}") from None
        except (TypeError, ValueError, ZeroDivisionError, AttributeError) as error:
            raise UserError(
                f"The config of '{source}' has a value of the wrong kind ({error}); use the "
                "config.json that came with the weights."
            ) from None

    def unlike(ours: Any) -> list[str]:
        if not isinstance(ours, kind):
            return [type(ours).__name__]
        try:
            return differences(ours, from_theirs(name, write(ours)), without=("embedding_std",))
        except UserError as error:
            return [str(error)]

    return TextFamily(
        name,
        "hf",
        lambda source: source.config.get("model_type") == model_type,
        lambda source: from_theirs(source.name, source.config),
        weights,
        lambda ours: {"model_type": model_type, "torch_dtype": "float32"} | write(ours),
        lambda ours: not unlike(ours),
        model_type=model_type,
        read=from_theirs,
        unlike=unlike,
        **more,
    )

"""Rotary settings of Hugging Face's configs, read as its classes complete them.

A class fills `rope_parameters` from keys of older versions in one of two ways: one set of values for all layers
(`of_all`), or one for each kind of layer (`by_kind`: Gemma 3, OLMo 3, ModernBERT). What it would pass over in silence
is refused, because nobody can tell which of the two was meant.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ...core.errors import UserError
from ...core.rotary import SCALING_USES, RotaryConfig
from .settings import FULL, SLIDING, Settings

_KEYS = {
    "short_factors": "short_factor",
    "long_factors": "long_factor",
    "original_context": "original_max_position_embeddings",
    "low_frequency_factor": "low_freq_factor",
    "high_frequency_factor": "high_freq_factor",
    "beta_fast": "beta_fast",
    "beta_slow": "beta_slow",
    "attention_factor": "attention_factor",
}
_PART = "partial_rotary_factor"
_SCALINGS = ("linear", "dynamic", "llama3", "yarn", "longrope")
"""Kinds of rotary scaling that transformers and the core both have."""


def of_all(
    c: Settings, theta: str = "rope_theta", fraction: str | float | None = None, interleaved: bool = False,
    scalings: Sequence[str] | None = None,
) -> RotaryConfig:  # fmt: skip
    """Rotary settings of a family that has the same for all layers: `rope_scaling` (transformers 4), else
    `rope_parameters` (5), completed by the keys beside them.

    Args:
        c: the config.
        theta: the old key of the base.
        fraction: the old key of the rotated part, or the part where its class looks at no key; None for a family that
            rotates whole heads.
        interleaved: neighbouring channels are rotated together.
        scalings: kinds of scaling that the family has; None for all that its library has.
    """
    rope = dict(c.values.get("rope_scaling") or c.values.get("rope_parameters") or {})
    if kinds := [key for key, value in rope.items() if isinstance(value, Mapping)]:
        raise UserError(
            f"'{c.name}' has rope_parameters for the kind of layer {', '.join(kinds)}, but its library takes the same "
            "for all layers in this family and passes over these; write the values without the kind."
        )
    rope.setdefault("rope_theta", c[theta])
    part = c[fraction] if isinstance(fraction, str) else c.values.get(_PART) if fraction is None else fraction
    if part is not None:
        rope.setdefault(_PART, part)
    # A key beside `rope_parameters` counts before one in it.
    beside = c.get("original_max_position_embeddings") or c.values.get("original_max_position_embeddings")
    return _rotary(c, rope, beside, fraction is not None, interleaved, scalings)


def by_kind(
    c: Settings, kinds: Sequence[str], theta: Mapping[str, str | float], scaled: Sequence[str]
) -> dict[str, RotaryConfig]:
    """Rotary settings of each kind of layer that there is.

    Args:
        c: the config.
        kinds: the kind of each layer.
        theta: for each kind the old key of its base, or the base where its class looks at no key.
        scaled: the kinds that `rope_scaling` of transformers 4 is for.
    """
    given, plain = c.values.get("rope_parameters"), {"rope_type": "default"}
    rope: dict[str, Any] = {FULL: plain, SLIDING: plain} if given is None else dict(given)
    if (scaling := c.values.get("rope_scaling")) is not None:
        for kind in scaled:
            if not isinstance(rope.get(kind), Mapping):
                raise UserError(
                    f"'{c.name}' has rope_scaling beside rope_parameters without {kind}, and its own library cannot "
                    "open it either; mend its config.json."
                )
            rope[kind] = {**rope[kind], **scaling}
    found = {}
    for kind in dict.fromkeys(kinds):
        key = theta[kind]
        of_kind: dict[str, Any] = dict(plain if rope.get(kind) is None else rope[kind])
        of_kind.setdefault("rope_theta", c[key] if isinstance(key, str) else key)
        part = c.values.get("partial_rotary_factor")
        found[kind] = of_kind if part is None else {"partial_rotary_factor": part} | of_kind
    _refuse_flat(c, {key: value for key, value in rope.items() if key not in (FULL, SLIDING)}, found)
    return {kind: _rotary(c, of_kind) for kind, of_kind in found.items()}


def _refuse_flat(c: Settings, flat: Mapping[str, Any], found: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises UserError for values that stand under no kind of layer and say something else than those that count."""
    default = {"rope_type": "default", "type": "default", "partial_rotary_factor": 1.0}
    for key, value in flat.items():
        if any(of_kind.get(key, default.get(key)) != value for of_kind in found.values()):
            raise UserError(
                f"'{c.name}' has {key} = {value!r} in rope_parameters under no kind of layer, which its library passes "
                f"over in this family; write it under {FULL}, {SLIDING} or both."
            )


def _rotary(
    c: Settings, rope: Mapping[str, Any], beside: int | None = None, partial: bool = False, interleaved: bool = False,
    scalings: Sequence[str] | None = None,
) -> RotaryConfig:  # fmt: skip
    part = rope.get("partial_rotary_factor", 1.0)
    if part != 1.0 and not partial:
        raise UserError(f"'{c.name}' rotates {part:.0%} of each head, but models of its family rotate all of it.")
    scaling = rope.get("rope_type", rope.get("type", "default"))
    scaling = {"default": "none", "su": "longrope"}.get(scaling, scaling)
    if scaling not in ("none", *_SCALINGS):
        raise UserError(
            f"'{c.name}' scales its rotary positions by '{scaling}', which the core does not have; it has "
            f"{', '.join(_SCALINGS)}."
        )
    if scaling not in ("none", *(scalings or _SCALINGS)):
        raise UserError(
            f"'{c.name}' scales its rotary positions by '{scaling}', but models of its family by "
            f"{', '.join(scalings or ())} or not at all."
        )
    scaled = _scaling(c, scaling, rope, beside)
    base = float(rope["rope_theta"])
    return RotaryConfig(base=base, fraction=part, interleaved=interleaved, scaling=scaling, **scaled)


def _scaling(c: Settings, scaling: Any, rope: Mapping[str, Any], beside: int | None) -> dict[str, Any]:
    if scaling == "none":
        return {}
    found = {ours: rope[_KEYS[ours]] for ours in SCALING_USES[scaling] if rope.get(_KEYS[ours]) is not None}
    context = c["max_position_embeddings"]
    if scaling == "dynamic":
        found["original_context"] = context  # its class looks at no other
    elif "original_context" in SCALING_USES[scaling]:
        found["original_context"] = beside or found.get("original_context", context)
    factor = rope.get("factor")
    if factor is None and scaling in ("yarn", "longrope"):
        factor = max(1.0, context / found["original_context"])
    if factor is None:
        raise UserError(f"'{c.name}' scales its rotary positions by '{scaling}', but states no factor.")
    if scaling == "yarn":
        if not rope.get("truncate", True):
            raise UserError(f"'{c.name}' has yarn scaling with truncate = false, which the core does not have.")
        if "attention_factor" not in found and rope.get("mscale") and rope.get("mscale_all_dim"):
            found["attention_factor"] = _mscale(factor, rope["mscale"]) / _mscale(factor, rope["mscale_all_dim"])
    return found | {"factor": float(factor)}


def _mscale(factor: float, scale: float) -> float:
    """The factor on cosine and sine that yarn's `mscale` stands for."""
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0


def write_rotary(rotary: RotaryConfig) -> dict[str, Any]:
    """`rope_parameters` of transformers 5; what it cannot say is left out, and found missing by `differences`."""
    rope: dict[str, Any] = {"rope_theta": rotary.base, "rope_type": "default"}
    if rotary.fraction != 1:
        rope["partial_rotary_factor"] = rotary.fraction
    if rotary.scaling in _SCALINGS:
        rope |= {"rope_type": rotary.scaling, "factor": rotary.factor}
        used = {_KEYS[name]: getattr(rotary, name) for name in SCALING_USES[rotary.scaling]}
        if rotary.scaling == "dynamic":
            used = {}  # it grows from `max_position_embeddings` on
        rope |= {key: value for key, value in used.items() if value is not None}
    return rope


def old_rotary(rope: Mapping[str, Any]) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling` of transformers 4, for readers that know no `rope_parameters`."""
    scaling = {key: value for key, value in rope.items() if key not in ("rope_theta", "partial_rotary_factor")}
    return {"rope_theta": rope["rope_theta"], "rope_scaling": scaling if rope["rope_type"] != "default" else None}

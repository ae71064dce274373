"""The places inside a Transformer where values can be seen and changed. They are modules that exist anyway.

| point       | shape                              | what it is                                                        |
|-------------|------------------------------------|-------------------------------------------------------------------|
| `resid_pre` | `[batch, tokens, dim]`             | what enters the block                                             |
| `q`         | `[batch, tokens, heads, head_dim]` | queries as projected, before norm and rotation (attention only)   |
| `k`, `v`    | `[batch, tokens, kv_heads, head_dim]` | keys and values, likewise                                      |
| `z`         | `[batch, tokens, heads, head_dim]` | what the heads read, before the output projection                 |
| `mixed`     | `[batch, tokens, dim]`             | output of the mixer, of any kind                                  |
| `attn_out`  | `[batch, tokens, dim]`             | what the mixer's branch adds to the residual                      |
| `resid_mid` | `[batch, tokens, dim]`             | between mixer and feed-forward; a parallel block has none         |
| `hidden`    | `[batch, tokens, ffn_dim]`         | neurons of the feed-forward, after the non-linearity              |
| `ffn_out`   | `[batch, tokens, dim]`             | what the feed-forward's branch adds to the residual               |
| `resid_post`| `[batch, tokens, dim]`             | what leaves the block                                             |

A name is `LAYER.POINT`, layers from 0: `3.z`. A pattern may hold `*`: `*.resid_post`.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from torch import Tensor, nn

from ..errors import UserError, nearest
from ..files import few
from ..mixers.attention import Attention
from ..transformer import Transformer


@dataclass(frozen=True)
class Point:
    """One place.

    Args:
        module: whose first input or output it is.
        side: which of the two.
        head_dim: width of a head, where the last axis is split into heads.
    """

    module: nn.Module
    side: Literal["input", "output"]
    head_dim: int | None = None

    def split(self, x: Tensor) -> Tensor:
        """`[batch, tokens, heads·head_dim]` -> `[batch, tokens, heads, head_dim]`, where there are heads."""
        return x if self.head_dim is None else x.unflatten(-1, (-1, self.head_dim))

    def join(self, x: Tensor) -> Tensor:
        """The inverse of `split`."""
        return x if self.head_dim is None else x.flatten(-2)


def transformer_of(model: nn.Module) -> Transformer:
    """The one Transformer in `model`. Raises UserError where there is none, or several."""
    found = [(name, module) for name, module in model.named_modules() if isinstance(module, Transformer)]
    if len(found) != 1:
        names = ", ".join(name or "itself" for name, _ in found) or "none"
        raise UserError(
            f"The model holds {len(found)} Transformers ({names}), but must hold one; give the part to look into."
        )
    return found[0][1]


def points(model: nn.Module) -> dict[str, Point]:
    """All points of a model by name, in the order of computation."""
    found: dict[str, Point] = {}
    for layer, block in enumerate(transformer_of(model).blocks):
        found |= {f"{layer}.{name}": point for name, point in _of_block(block).items()}
    return found


def _of_block(block: nn.Module) -> dict[str, Point]:
    attn, ffn, branch2 = block.get_submodule("attn"), getattr(block, "ffn", None), getattr(block, "branch2", None)
    found = {"resid_pre": Point(block, "input")}
    if isinstance(attn, Attention):
        found |= {name: Point(getattr(attn, name), "output", attn.head_dim) for name in ("q", "k", "v")}
        found["z"] = Point(attn.out, "input", attn.head_dim)
    found |= {"mixed": Point(attn, "output"), "attn_out": Point(block.get_submodule("branch1"), "output")}
    if not getattr(block, "parallel", False):
        found["resid_mid"] = Point(block.get_submodule("close1"), "output")
    if isinstance(down := getattr(ffn, "down", None), nn.Module):
        found["hidden"] = Point(down, "input")
    if isinstance(branch2, nn.Module):
        found["ffn_out"] = Point(branch2, "output")
    return found | {"resid_post": Point(block, "output")}


def matching(known: dict[str, Point], pattern: str) -> list[str]:
    """The names that a name or pattern means. Raises UserError where there is none."""
    names = [name for name in known if fnmatchcase(name, pattern)]
    if names:
        return names
    kinds = dict.fromkeys(name.split(".")[1] for name in known)
    layers = 1 + max(int(name.split(".")[0]) for name in known)
    layer = pattern.partition(".")[0]
    if layer.isdigit() and int(layer) >= layers:
        raise UserError(f"The point '{pattern}' names layer {layer}, but the model has layers 0 to {layers - 1}.")
    raise UserError(
        f"There is no point '{pattern}'{nearest(pattern, known)}; a name is LAYER.POINT, the points of this model are "
        f"{few(list(kinds), 20)}."
    )


def check_heads(model: nn.Module, layer: int, heads: list[int]) -> None:
    """Raises UserError for a layer or a head that the model does not have."""
    config = transformer_of(model).config
    if not 0 <= layer < config.depth:
        raise UserError(f"Layer {layer} is named, but the model has layers 0 to {config.depth - 1}.")
    if wrong := [head for head in heads if not 0 <= head < config.heads]:
        raise UserError(f"Head {wrong[0]} is named, but each layer has heads 0 to {config.heads - 1}.")

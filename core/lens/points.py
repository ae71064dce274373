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
| `router`    | `[1, batch·tokens, experts]`       | weights of a token's experts, 0 where not chosen                  |
| `state_…`   | `[batch, …]`                       | what a recurrent mixer keeps after its last token                 |

The pair stack of the protein model has `[batch, residues, residues, dim]` between its blocks (`resid_pre`,
`resid_post`), the updates `outgoing`, `incoming` (or `both`), `start_out`, `end_out` and `transition`, the heads of its
triangle attention `start_z` and `end_z`, `[batch, rows, residues, heads, head_dim]`, and in blocks with an alignment
`row_z`, `row_out`, `column_z`, `column_out`, `msa_transition` and `outer`.

A name is `LAYER.POINT`, layers from 0: `3.z`. A pattern may hold `*`: `*.resid_post`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ..errors import UserError, nearest
from ..experts import Experts
from ..files import few
from ..mixers.attention import Attention
from ..mixers.recurrent import Bidirectional, RecurrentMixer
from ..transformer import Transformer
from .record import swapped

Part = tuple[str, int | None]
"""A point, and the number of a head (`3.z`) or neuron (`3.hidden`) there; None for all of it."""

Side = Literal["input", "output", "mix", "router", "state"]


@dataclass(frozen=True)
class Point:
    """One place.

    Args:
        module: whose first input or output it is, or the output of its `mix`, its router's weights or its state.
        side: which of these.
        head_dim: width of a head, where the last axis is split into heads.
        size: how many heads, neurons, channels or experts there are.
        name: of the state.
    """

    module: Any
    side: Side
    head_dim: int | None = None
    size: int = 0
    name: str = ""

    @property
    def headed(self) -> bool:
        """Whether the axis before the last one is that of the heads."""
        return self.head_dim is not None or self.side == "mix"

    def split(self, x: Tensor) -> Tensor:
        """`[batch, tokens, heads·head_dim]` -> `[batch, tokens, heads, head_dim]`, where there are heads."""
        return x if self.head_dim is None else x.unflatten(-1, (-1, self.head_dim))

    def join(self, x: Tensor) -> Tensor:
        """The inverse of `split`."""
        return x if self.head_dim is None else x.flatten(-2)

    @contextmanager
    def hooked(self, function: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
        """Passes the value through `function`; what it returns, if anything, takes its place."""

        def look(x: Tensor) -> Tensor | None:
            new = function(self.split(x))
            return None if new is None else self.join(new)

        def before(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
            new = look(args[0])
            return None if new is None else (new, *args[1:])

        def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            if self.side != "router":
                return look(output)
            weights, chosen = output
            dense = torch.zeros(len(weights), self.size, dtype=weights.dtype, device=weights.device)
            new = look(dense.scatter(1, chosen, weights)[None])
            return None if new is None else (new[0].gather(1, chosen), chosen)

        def around(mix: Callable[..., Tensor]) -> Callable[..., Tensor]:
            def mixed(*args: Any) -> Tensor:
                output = mix(*args)
                if self.side == "mix":
                    new = look(output)
                    return output if new is None else new
                state = args[-1]
                if (new := look(state.written(self.name))) is not None:
                    state.put(self.name, new)
                return output

            return mixed

        if self.side in ("mix", "state"):
            with swapped({self.module: around}):
                yield
            return
        hook = before if self.side == "input" else after
        handle = (
            self.module.register_forward_pre_hook(hook)
            if self.side == "input"
            else self.module.register_forward_hook(hook)
        )
        try:
            yield
        finally:
            handle.remove()


@runtime_checkable
class Inspectable(Protocol):
    """A block that names its own points, such as those of the pair stack."""

    def lens_points(self) -> dict[str, Point]:
        """Its points by name, in the order of computation."""
        ...


def transformer_of(model: nn.Module) -> Transformer:
    """The one Transformer in `model`. Raises UserError where there is none, or several."""
    found = [(name, module) for name, module in model.named_modules() if isinstance(module, Transformer)]
    if len(found) != 1:
        names = ", ".join(name or "itself" for name, _ in found) or "none"
        raise UserError(
            f"The model holds {len(found)} Transformers ({names}), but must hold one; give the part to look into."
        )
    return found[0][1]


def blocks_of(model: nn.Module) -> Any:
    """The blocks of the outermost stack in `model`: of a Transformer, or such as name their own points.

    Raises:
        UserError: there is none, or there are several side by side.
    """
    outer: list[tuple[str, Any]] = []
    for name, module in model.named_modules():
        blocks = getattr(module, "blocks", None)
        stack = isinstance(blocks, nn.ModuleList) and len(blocks) and isinstance(blocks[0], Inspectable)
        inside = any(not other or name.startswith(f"{other}.") for other, _ in outer)
        if (isinstance(module, Transformer) or stack) and not inside:
            outer.append((name, module))
    if len(outer) != 1:
        return transformer_of(model).blocks  # which says what is wrong
    return outer[0][1].blocks


def points(model: nn.Module) -> dict[str, Point]:
    """All points of a model by name, in the order of computation."""
    found: dict[str, Point] = {}
    for layer, block in enumerate(blocks_of(model)):
        own = block.lens_points() if isinstance(block, Inspectable) else _of_block(block)
        found |= {f"{layer}.{name}": point for name, point in own.items()}
    return found


def _of_block(block: Any) -> dict[str, Point]:
    attn, ffn = block.attn, block.ffn
    dim = 0
    found = {"resid_pre": Point(block, "input")}
    if isinstance(attn, Attention):
        width = attn.head_dim
        dim = attn.q.in_features
        for name in ("q", "k", "v"):
            found[name] = Point(getattr(attn, name), "output", width, getattr(attn, name).out_features // width)
        found["z"] = Point(attn.out, "input", width, attn.out.in_features // width)
    for mixer, of in (
        ((attn.forth, "forth_"), (attn.back, "back_")) if isinstance(attn, Bidirectional) else [(attn, "")]
    ):
        if isinstance(mixer, RecurrentMixer):
            found |= {f"state_{of}{name}": Point(mixer, "state", name=name) for name in mixer.memories}
    found |= {"mixed": Point(attn, "output", size=dim), "attn_out": Point(block.branch1, "output", size=dim)}
    if not block.parallel:
        found["resid_mid"] = Point(block.close1, "output")
    if isinstance(ffn, Experts):
        found["router"] = Point(ffn.router, "router", size=ffn.router.options.count)
    elif isinstance(down := getattr(ffn, "down", None), nn.Module):
        found["hidden"] = Point(down, "input", size=int(down.in_features))  # type: ignore[arg-type]
    if isinstance(getattr(block, "branch2", None), nn.Module) and ffn is not None:
        found["ffn_out"] = Point(block.branch2, "output", size=dim)
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


def has_heads(name: str) -> bool:
    """Whether values of a point of this name end with `heads, head_dim`."""
    return name.rpartition(".")[2] in ("q", "k", "v", "z") or name.endswith("_z")


def check_heads(model: nn.Module, layer: int, heads: list[int]) -> None:
    """Raises UserError for a layer or a head that the model does not have."""
    depth, count = len(blocks_of(model)), transformer_of(model).config.heads if heads else 0
    if not 0 <= layer < depth:
        raise UserError(f"Layer {layer} is named, but the model has layers 0 to {depth - 1}.")
    if wrong := [head for head in heads if not 0 <= head < count]:
        raise UserError(f"Head {wrong[0]} is named, but each layer has heads 0 to {count - 1}.")


def check_parts(model: nn.Module, parts: Sequence[Part]) -> None:
    """Raises UserError for a part that the model does not have, or none at all."""
    if not parts:
        raise UserError("heads is empty, but must name the heads to ablate, as pairs of layer and head.")
    known = points(model)
    for name, number in parts:
        layer, _, kind = name.partition(".")
        if kind == "z" and layer.isdigit():
            check_heads(model, int(layer), [] if number is None else [number])
            if name not in known:
                raise UserError(f"Layer {layer} has no attention, so it has no heads to ablate.")
        matching(known, name)
        size = known[name].size
        if number is not None and not 0 <= number < size:
            raise UserError(f"{name}:{number} is named, but {name} has numbers 0 to {size - 1}.")

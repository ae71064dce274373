"""Low-rank adaptation (LoRA, Hu et al. 2021): a frozen linear layer plus a trainable product of two thin matrices.

    add_lora(model, LoRAConfig(rank=8))       freezes the model and puts factors beside its linear layers
    merge_lora(model)                         adds the products to the weights; plain linear layers again

An adapted layer keeps the very parameters of the layer it takes the place of, under their names: `q.weight` stays
`q.weight`, and `q.lora_a` and `q.lora_b` come to it. So ties, optimizer state and weight maps are not disturbed, and
`merged_state` is a state dict that needs none of this.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import check_types
from ..config import Linears
from ..errors import UserError, nearest
from ..files import few
from ..grouped import StackedLinear

FACTORS = ("lora_a", "lora_b")
"""Names of the factors' parameters, last part."""


@dataclass
class LoRAConfig:
    """Which linear layers are adapted, and how.

    Args:
        rank: columns of the factors.
        alpha: the product is scaled by alpha / rank; default twice the rank.
        dropout: on the input of the factors, in training.
        targets: layers inside the blocks by their names in the core (q, k, v, out, gate, up, down), or any linear
            layers by full name, where * stands for anything ("transformer.blocks.11.attn.*").

    Raises:
        UserError: a value outside its range.
    """

    rank: int = 8
    alpha: float | None = None
    dropout: float = 0.0
    targets: list[str] = field(default_factory=lambda: list(Linears))

    def __post_init__(self) -> None:
        check_types(self, "lora.")
        if self.rank < 1:
            raise UserError(f"lora.rank is {self.rank}, but must be at least 1 (such as 8).")
        if self.alpha is not None and not 0 < self.alpha < math.inf:
            raise UserError(f"lora.alpha is {self.alpha}, but must be a number above 0 (such as twice the rank).")
        if not 0 <= self.dropout < 1:
            raise UserError(f"lora.dropout is {self.dropout}, but must be at least 0 and below 1.")
        if not self.targets:
            raise UserError(f"lora.targets is empty, but must name linear layers, such as {', '.join(Linears)}.")


class LoRALinear(nn.Linear):
    """x Wᵀ + bias + scale · dropout(x) Aᵀ Bᵀ. `[..., in_features]` -> `[..., out_features]`.

    W and bias are those of `base`, not copies. B starts at zero, so that nothing changes at first, A as in the authors'
    code (uniform within ±1/sqrt(in_features)).

    `weight` is the sum W + scale · B A, differentiable in the factors, so that code which reads a layer's weight
    instead of calling the layer computes the same function (without the dropout); the parameter of that name is W.
    While the weights lie cut over processes (FSDP2), `weight` is W, too.

    Args:
        base: the layer whose place this one takes.
        rank: columns of the factors.
        scale: factor on the product, alpha / rank.
        dropout: on the input of the factors, in training.
    """

    def __init__(self, base: nn.Linear, rank: int, scale: float, dropout: float = 0.0) -> None:
        nn.Module.__init__(self)  # not that of `nn.Linear`, which would make a weight of its own
        self.in_features, self.out_features = base.in_features, base.out_features
        self.rank, self.scale, self.dropout = rank, scale, dropout
        self._parameters["weight"] = base._parameters["weight"]
        self.register_parameter("bias", base.bias)
        self.lora_a = nn.Parameter(base.weight.new_empty(rank, base.in_features))
        self.lora_b = nn.Parameter(base.weight.new_zeros(base.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))
        self.train(base.training)

    @property
    def weight(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        base = self.base_weight
        # Between two passes FSDP asks for a parameter by this name, and would keep the sum in its place; within a pass
        # the parts are put together.
        return base if hasattr(base, "full_tensor") else base + self.scale * (self.lora_b @ self.lora_a)

    @property
    def base_weight(self) -> Tensor:
        """W alone, `[out_features, in_features]`."""
        weight = self._parameters["weight"]
        assert weight is not None
        return weight

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        low = F.linear(F.dropout(x, self.dropout, self.training) if self.dropout else x, self.lora_a)
        return F.linear(x, self.base_weight, self.bias) + F.linear(low * self.scale, self.lora_b)

    @torch.no_grad()
    def merged_weight(self) -> Tensor:
        """W + scale · B A, added in float32 at least, in the type of W."""
        w = self.base_weight
        wide = torch.promote_types(w.dtype, torch.float32)
        return (w.to(wide) + self.scale * (self.lora_b.to(wide) @ self.lora_a.to(wide))).to(w.dtype)

    def extra_repr(self) -> str:
        size = f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"
        return f"{size}, rank={self.rank}, scale={self.scale:g}"


def is_factor(name: str) -> bool:
    """Whether a parameter of this name is a factor of a `LoRALinear`."""
    return name.rpartition(".")[2] in FACTORS


def lora_layers(model: nn.Module) -> Iterator[tuple[str, LoRALinear]]:
    """The adapted layers and their names."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, LoRALinear))


def add_lora(model: nn.Module, config: LoRAConfig, keep: Callable[[str], bool] = lambda name: False) -> list[str]:
    """Freezes `model` and puts factors beside the linear layers that `config.targets` names.

    Args:
        model: changed in place.
        config: rank, scale and targets.
        keep: parameters by name that are left as they are, such as those of a new head; their layers get no factors.

    Returns:
        The names of the adapted layers.

    Raises:
        UserError: a target names no linear layer, or one whose weight is also used elsewhere (a tied head).
    """
    layers = {
        name: module
        for name, module in model.named_modules()
        if type(module) is nn.Linear and not keep(f"{name}.weight")
    }
    chosen = _chosen(config.targets, layers)
    _refuse_stacked(model, config.targets, list(layers))
    _refuse_shared(model, {name: layers[name] for name in chosen})
    for name, p in model.named_parameters():
        if not keep(name):
            p.requires_grad_(False)
    for name in chosen:
        adapt(model, name, config.rank, 2.0 if config.alpha is None else config.alpha / config.rank, config.dropout)
    return chosen


def adapt(model: nn.Module, name: str, rank: int, scale: float, dropout: float = 0.0) -> LoRALinear:
    """Replaces the linear layer `name` of `model` by an adapted one, and returns that."""
    base = model.get_submodule(name)
    assert isinstance(base, nn.Linear), f"{name} is a {type(base).__name__}, not a linear layer"
    layer = LoRALinear(base, rank, scale, dropout)
    model.set_submodule(name, layer)
    return layer


def merge_lora(model: nn.Module) -> None:
    """Replaces all adapted layers of `model` by plain linear layers with the same outputs. What is frozen stays so."""
    for name, layer in list(lora_layers(model)):
        plain = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
        plain.weight = nn.Parameter(layer.merged_weight(), requires_grad=layer.base_weight.requires_grad)
        plain.bias = layer.bias
        plain.train(layer.training)
        model.set_submodule(name, plain)


def merged_state(model: nn.Module) -> dict[str, Tensor]:
    """The state dict that `model` would have after `merge_lora`; `model` stays as it is."""
    merged = {f"{name}.weight": layer.merged_weight() for name, layer in lora_layers(model)}
    return {name: tensor for name, tensor in (model.state_dict() | merged).items() if not is_factor(name)}


def lora_state(model: nn.Module) -> dict[str, Tensor]:
    """The factors by name: what an adapter is."""
    return {name: tensor for name, tensor in model.state_dict().items() if is_factor(name)}


def _chosen(targets: list[str], layers: Mapping[str, nn.Module]) -> list[str]:
    """The names that the targets name, in the order of the model."""
    found: set[str] = set()
    for target in targets:
        matches = [name for name in layers if _matches(name, target)]
        if not matches and target not in Linears:
            known = (*Linears, *layers)
            raise UserError(
                f"lora.targets names '{target}'{nearest(target, known)}, but no linear layer of this model is called "
                f"so; it has {few(list(layers))}, or give some of {', '.join(Linears)}."
            )
        found.update(matches)
    if not found:
        raise UserError(
            f"lora.targets is {', '.join(targets)}, but this model's blocks have none of these linear layers; it has"
            f" {few(list(layers)) or 'none'}."
        )
    return [name for name in layers if name in found]


def _matches(name: str, target: str) -> bool:
    if target in Linears:
        *path, last = name.split(".")
        return last == target and "blocks" in path
    return fnmatchcase(name, target)


def _refuse_stacked(model: nn.Module, targets: list[str], layers: list[str]) -> None:
    stacked = [name for name, module in model.named_modules() if isinstance(module, StackedLinear)]
    for target in targets:
        if found := [name for name in stacked if _matches(name, target)]:
            kinds = {name.rpartition(".")[2] for name in stacked}
            rest = dict.fromkeys(last for name in layers if (last := name.rpartition(".")[2]) in Linears)
            keep = ", ".join(name for name in rest if name not in kinds)
            raise UserError(
                f"lora.targets names '{target}', which in {few(found)} is the weights of all experts together, and "
                f"LoRA adapts single matrices; leave the experts out, such as by targets {keep or 'of full names'}."
            )


def _refuse_shared(model: nn.Module, chosen: Mapping[str, nn.Linear]) -> None:
    uses = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    for name, layer in chosen.items():
        if uses[id(layer.weight)] > 1:
            raise UserError(
                f"lora.targets names '{name}', whose weight is also used elsewhere in the model (a tied head), so "
                "that it cannot be adapted alone; leave it out."
            )

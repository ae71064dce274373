"""Muon and AdamW as one optimizer, and the rule that decides which parameter gets which.

`build_optimizer(model, OptimizerConfig())` is all that most callers need; `describe_groups` prints what it decided.
"""

# torch's foreach functions are documented but not exported.
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from ..adapt.lora import is_factor
from ..checks import check_types
from ..errors import UserError
from ..mixers.base import Mixer
from .orthogonal import orthogonalise, update_scale

PRETRAINED_LR, LORA_LR = 5e-5, 1.5e-3
"""Peak learning rates of weights from a checkpoint and of LoRA's factors, where none is given. Schulman et al. 2025
("LoRA without regret") find the best rate of the factors at about ten times that of full fine-tuning, whatever the
rank."""
LOADED = "pretrained "
"""Begins the names of groups whose weights come from a checkpoint."""


@dataclass
class OptimizerConfig:
    """Which optimizer, and its settings. Learning rates are peaks: the schedule multiplies them by a factor in 0..1.

    Args:
        name: `muon` (Muon for the matrices inside the blocks, AdamW for all else) or `adamw` (AdamW for everything).
            Left
            out: muon for weights that start at random, adamw for those of a checkpoint.
        lr: peak learning rate of Muon's matrices, or of everything under `adamw`; default 0.01 for muon, 0.001 for
            adamw. Not of weights from a checkpoint.
        adamw_lr: with `muon`: peak learning rate of what AdamW trains (embeddings, heads, vectors).
        pretrained_lr: for fine-tuning: peak learning rate of weights from a checkpoint; default 5e-5.
        lora_lr: for fine-tuning: peak learning rate of LoRA's factors; default 1.5e-3.
        embedding_lr: peak learning rate of embeddings and positions; default: as the parameters around them.
        head_lr: peak learning rate of matrices after the blocks and of their biases; default: as parameters around.
        weight_decay: decoupled decay of matrices (ndim >= 2): each step takes lr * weight_decay of the weight away.
            Norms, biases, gains and other vectors are never decayed.
        embedding_decay: the same for embeddings, positions and special tokens.
        betas: AdamW's averaging factors of gradient and squared gradient.
        eps: AdamW's addition to the denominator.
        momentum: Muon's averaging factor of the gradient.
        nesterov: Muon looks one step ahead along its momentum.
        ns_steps: rounds of Muon's Newton-Schulz orthogonalisation.
        scale: size of a Muon update; `match_rms_adamw` is 0.2 * sqrt(max(rows, columns)), about AdamW's root mean
            square (Liu et al. 2025, arXiv:2502.16982); `original` is sqrt(max(1, rows / columns)).
        layer_decay: for fine-tuning: factor in (0, 1] by which the learning rate falls from a block to the one below
            it. Block i of n (counted from 0) gets decay ** (n - i), embeddings decay ** (n + 1), the head 1. Parts that
            are new beside a checkpoint's are left out.

    Raises:
        UserError: a value outside its range.
    """

    name: Literal["muon", "adamw"] | None = None
    lr: float | None = None
    adamw_lr: float = 0.01
    pretrained_lr: float | None = None
    lora_lr: float | None = None
    embedding_lr: float | None = None
    head_lr: float | None = None
    weight_decay: float = 0.1
    embedding_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    momentum: float = 0.95
    nesterov: bool = True
    ns_steps: int = 5
    scale: Literal["match_rms_adamw", "original"] = "match_rms_adamw"
    layer_decay: float | None = None

    def __post_init__(self) -> None:
        check_types(self, "optimizer.")
        _one_of("name", self.name, ("muon", "adamw", None))
        _one_of("scale", self.scale, ("match_rms_adamw", "original"))
        for field in ("lr", "adamw_lr", "pretrained_lr", "lora_lr", "embedding_lr", "head_lr", "eps"):
            value = getattr(self, field)
            if value is not None:
                _check(field, value, 0 < value < math.inf, "a number above 0")
        for field in ("weight_decay", "embedding_decay"):
            value = getattr(self, field)
            _check(field, value, 0 <= value < math.inf, "0 or more")
        self.betas = (self.betas[0], self.betas[1])
        _check("betas", self.betas, all(0 <= beta < 1 for beta in self.betas), "two numbers of at least 0 and below 1")
        _check("momentum", self.momentum, 0 <= self.momentum < 1, "at least 0 and below 1")
        _check("ns_steps", self.ns_steps, 1 <= self.ns_steps <= 20, "1 to 20")
        if self.layer_decay is not None:
            _check("layer_decay", self.layer_decay, 0 < self.layer_decay <= 1, "above 0 and at most 1")

    @property
    def main_lr(self) -> float:
        """`lr`, or its default for the optimizer called `name`."""
        return self.lr if self.lr is not None else (1e-3 if self.name == "adamw" else 0.01)


def _check(field: str, value: Any, ok: bool, allowed: str) -> None:
    if not ok:
        raise UserError(f"optimizer.{field} is {value}, but must be {allowed}.")


def _one_of(field: str, value: Any, allowed: tuple[str | None, ...]) -> None:
    _check(field, value, value in allowed, f"one of {', '.join(filter(None, allowed))}")


# ---------------------------------------------------------------------------------------------------------------------
# The optimizer


class MuonAdamW(torch.optim.Optimizer):
    """One optimizer whose groups are trained by Muon (`algorithm: "muon"`, matrices only) or AdamW (`"adamw"`).

    Muon as `torch.optim.Muon` (Jordan et al. 2024) and AdamW as `torch.optim.AdamW` (Loshchilov & Hutter 2019) compute
    them, both with decoupled weight decay. No step waits for the device.

    Args:
        params: groups from `parameter_groups`, each with `algorithm` and `lr`; other settings have defaults.
    """

    def __init__(self, params: Iterable[dict[str, Any]]) -> None:
        defaults = OptimizerConfig()
        keys = ("weight_decay", "betas", "eps", "momentum", "nesterov", "ns_steps", "scale")
        # `fused` also tells `Optimizer.load_state_dict` to keep AdamW's step counters on the parameter's device.
        super().__init__(list(params), {key: getattr(defaults, key) for key in keys} | {"lr": 1e-3, "fused": True})
        for group in self.param_groups:
            assert group["algorithm"] in ("muon", "adamw"), f"unknown algorithm {group['algorithm']!r}"
            wrong = [tuple(p.shape) for p in group["params"] if p.ndim != 2 and group["algorithm"] == "muon"]
            assert not wrong, f"Muon trains matrices only, got shapes {wrong}"

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                (self._muon if group["algorithm"] == "muon" else self._adamw)(group, params)
        return loss

    def _muon(self, group: dict[str, Any], params: list[Tensor]) -> None:
        for p in params:
            if not self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        grads = [p.grad for p in params if p.grad is not None]
        buffers = [self.state[p]["momentum_buffer"] for p in params]
        momentum, lr = group["momentum"], group["lr"]
        torch._foreach_lerp_(buffers, grads, 1 - momentum)
        updates = torch._foreach_lerp(grads, buffers, momentum) if group["nesterov"] else buffers
        updates = orthogonalise(list(updates), group["ns_steps"])
        torch._foreach_mul_(updates, [-lr * update_scale(p.shape, group["scale"]) for p in params])
        torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
        torch._foreach_add_(params, updates)

    def _adamw(self, group: dict[str, Any], params: list[Tensor]) -> None:
        for p in params:
            if not self.state[p]:
                self.state[p]["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
                self.state[p]["exp_avg"] = torch.zeros_like(p)
                self.state[p]["exp_avg_sq"] = torch.zeros_like(p)
        column = {key: [self.state[p][key] for p in params] for key in ("exp_avg", "exp_avg_sq", "step")}
        adamw(
            params,
            [p.grad for p in params if p.grad is not None],
            column["exp_avg"],
            column["exp_avg_sq"],
            [],
            column["step"],
            # Measured on a CPU core, 0.8 M parameters in 30 tensors: fused 0.9 ms, foreach 3.2 ms.
            fused=group["fused"],
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


# ---------------------------------------------------------------------------------------------------------------------
# Who is trained by what


class Place(NamedTuple):
    """What a parameter is and where it stands."""

    role: Literal["matrices", "inputs", "embeddings", "heads", "vectors", "head vectors", "factors"]
    block: int  # -1 before the blocks, i inside block i, `blocks` after them
    blocks: int


HEAD_VECTORS: Literal["head vectors"] = "head vectors"  # biases beside the weights of heads


def places(model: nn.Module, among: Collection[str] = ()) -> dict[str, Place]:
    """Role and depth of every trainable parameter, by name. A tied parameter has the first of its names only.

    Args:
        among: parameters that depth is about; blocks that hold none of these do not count. All by default.
    """
    names = {id(p): name for name, p in model.named_parameters()}
    inside: dict[int, tuple[int, int]] = {}
    embeddings: set[int] = set()
    vectors: set[int] = set()
    depth = 0
    for name, module in model.named_modules():
        if isinstance(module, Mixer):
            vectors.update(id(module.get_parameter(vector)) for vector in module.vectors)
        if isinstance(module, nn.Embedding | nn.EmbeddingBag):
            embeddings.update(id(p) for p in module.parameters(recurse=False))
        if isinstance(module, nn.ModuleList) and name.split(".")[-1] == "blocks":
            if not among or any(names[id(p)] in among for p in module.parameters()):
                depth = max(depth, len(module))
            for index, block in enumerate(module):
                for p in block.parameters():
                    inside.setdefault(id(p), (index, len(module)))
    found: dict[str, Place] = {}
    seen_blocks = False
    for name, p in model.named_parameters():
        seen_blocks = seen_blocks or id(p) in inside
        block, blocks = inside.get(id(p), (depth if seen_blocks else -1, depth))
        if not p.requires_grad:
            continue
        if is_factor(name):
            role = "factors"
        elif id(p) in embeddings:
            role, block = "embeddings", (block if id(p) in inside else -1)
        elif p.ndim < 2 or id(p) in vectors:
            role = "vectors"
        elif id(p) in inside:
            role = "matrices"
        elif name.split(".")[-1] != "weight":  # a bare nn.Parameter: positions, class and mask tokens
            role = "embeddings"
        else:
            role = "heads" if seen_blocks else "inputs"
        found[name] = Place(role, block, blocks)
    for name, place in found.items():
        beside = found.get(f"{name.rpartition('.')[0]}.weight")
        if place.role == "vectors" and beside is not None and beside.role == "heads":
            found[name] = place._replace(role=HEAD_VECTORS)
    return found


class _Kind(NamedTuple):
    """What the parameters of one group have in common."""

    role: str
    algorithm: str
    loaded: bool  # from a checkpoint, or LoRA's factors beside such weights
    depth: int | None  # with layer_decay, where that applies
    factor: float


def parameter_groups(
    model: nn.Module, config: OptimizerConfig, pretrained: Collection[str] = ()
) -> list[dict[str, Any]]:
    """Split the trainable parameters of `model` into the groups of `MuonAdamW`.

    Blocks are the children of any `nn.ModuleList` named `blocks`. The roles:

    - matrices: ndim >= 2 inside the blocks. Muon, `weight_decay`. (Those with ndim > 2 go to AdamW.)
    - embeddings: of `nn.Embedding`, and bare parameters outside the blocks such as positions and class tokens. AdamW,
      `embedding_decay`.
    - inputs: other weights registered before the blocks (patch and input projections). AdamW, `weight_decay`.
    - heads: other weights registered after the blocks. AdamW, `weight_decay`.
    - vectors: ndim < 2 (norms, gains, biases), and what a mixer lists as such (decays). AdamW, never decayed. Biases of
      heads train at `head_lr` if it is given.
    - factors: of LoRA. AdamW, `weight_decay` (towards the weights of the checkpoint), `lora_lr`. Not Muon, which makes
      all singular values of an update equal: a factor has few, so each step would move all `rank` directions equally
      far, also those that the gradient hardly speaks of, and its scale by shape is meant for a whole matrix, not for
      one of two whose product counts.

    A head tied to an embedding is one parameter, and an embedding. Weights from a checkpoint have `pretrained_lr`, and
    AdamW in every role unless Muon is asked for.

    Args:
        pretrained: names of the parameters that come from a checkpoint.

    Raises:
        UserError: a learning rate is given that nothing uses.
        AssertionError: a trainable parameter is in no group, or in two.
    """
    groups: dict[_Kind, dict[str, Any]] = {}
    parameters = dict(model.named_parameters())
    for name, place in places(model, pretrained).items():
        kind = _kind(config, place, parameters[name], name in pretrained, bool(pretrained))
        if kind not in groups:
            groups[kind] = _group(config, kind)
        groups[kind]["params"].append(parameters[name])
    _assert_partition(model, groups.values())
    _check_used(config, list(groups), bool(pretrained))
    return list(groups.values())


def _kind(config: OptimizerConfig, place: Place, p: Tensor, loaded: bool, tuning: bool) -> _Kind:
    loaded, role = loaded or place.role == "factors", place.role
    if role == HEAD_VECTORS and config.head_lr is None:
        role = "vectors"
    muon = config.name == "muon" if loaded else config.name != "adamw"
    algorithm = "muon" if muon and place.role == "matrices" and p.ndim == 2 else "adamw"
    if config.layer_decay is None or (tuning and not loaded):
        return _Kind(role, algorithm, loaded, None, 1.0)
    return _Kind(role, algorithm, loaded, place.block + 1, config.layer_decay ** (place.blocks - place.block))


def _uses_main_lr(config: OptimizerConfig, kind: _Kind) -> bool:
    return not kind.loaded and (kind.algorithm == "muon" or config.name == "adamw")


def _group(config: OptimizerConfig, kind: _Kind) -> dict[str, Any]:
    if kind.role == "factors":
        base = config.lora_lr or LORA_LR
    elif kind.loaded:
        base = config.pretrained_lr or PRETRAINED_LR
    else:
        base = config.main_lr if _uses_main_lr(config, kind) else config.adamw_lr
    own = {"embeddings": config.embedding_lr, "heads": config.head_lr, HEAD_VECTORS: config.head_lr}.get(kind.role)
    decay = {"embeddings": config.embedding_decay, "vectors": 0.0, HEAD_VECTORS: 0.0}.get(
        kind.role, config.weight_decay
    )
    name = kind.role if kind.algorithm == "muon" or kind.role != "matrices" else f"{kind.role} (adamw)"
    if kind.loaded:
        name = name if kind.role == "factors" else LOADED + name
    if kind.depth is not None:
        name = f"{name}, depth {kind.depth}"
    common = {
        "params": [], "name": name, "algorithm": kind.algorithm, "lr": kind.factor * (own or base),
        "weight_decay": decay
    }  # fmt: skip
    if kind.algorithm == "muon":
        keys = ("momentum", "nesterov", "ns_steps", "scale")
    else:
        keys = ("betas", "eps")
    return common | {key: getattr(config, key) for key in keys}


def _check_used(config: OptimizerConfig, kinds: list[_Kind], tuning: bool) -> None:
    """Raise UserError for a learning rate that only makes sense with, or without, fine-tuning."""
    if config.pretrained_lr is not None and not tuning:
        raise UserError(
            f"optimizer.pretrained_lr is {config.pretrained_lr}, but there is no checkpoint; leave it out, or give"
            " --model.pretrained NAME_OR_PATH."
        )
    if config.lora_lr is not None and not any(k.role == "factors" for k in kinds):
        raise UserError(f"optimizer.lora_lr is {config.lora_lr}, but there are no factors; give --model.lora.rank 8.")
    if tuning and config.lr is not None and not any(_uses_main_lr(config, k) for k in kinds):
        other = "lora_lr" if any(k.role == "factors" for k in kinds) else "pretrained_lr"
        raise UserError(
            f"optimizer.lr is {config.lr}, but no new weights are there to use it; that of the weights from the "
            f"checkpoint is optimizer.{other}, that of a new head optimizer.head_lr."
        )


def _assert_partition(model: nn.Module, groups: Iterable[dict[str, Any]]) -> None:
    count: dict[int, int] = defaultdict(int)
    for group in groups:
        for p in group["params"]:
            count[id(p)] += 1
    for name, p in model.named_parameters():
        expected = int(p.requires_grad)
        assert count[id(p)] == expected, f"parameter {name} is in {count[id(p)]} optimizer groups, not {expected}"


def build_optimizer(model: nn.Module, config: OptimizerConfig, pretrained: Collection[str] = ()) -> MuonAdamW:
    """The optimizer of `config` over all trainable parameters of `model`; arguments as for `parameter_groups`.

    Raises:
        UserError: nothing is trainable, or a learning rate is given that nothing uses.
    """
    groups = parameter_groups(model, config, pretrained)
    if not groups:
        raise UserError(
            "The model has no trainable parameter; freeze less of it (--model.freeze.blocks), or add --model.lora."
        )
    return MuonAdamW(groups)


class GroupRow(NamedTuple):
    """One line of `describe_groups`; `lr` is the peak learning rate."""

    group: str
    tensors: int
    parameters: int
    algorithm: str
    lr: float
    weight_decay: float


def describe_groups(groups: Iterable[dict[str, Any]]) -> list[GroupRow]:
    """Rows of a table of optimizer groups, for printing."""
    rows = []
    for group in groups:
        sizes, lr = [p.numel() for p in group["params"]], group.get("initial_lr", group["lr"])
        rows.append(GroupRow(group["name"], len(sizes), sum(sizes), group["algorithm"], lr, group["weight_decay"]))
    return rows

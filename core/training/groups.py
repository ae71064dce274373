"""Which parameter is trained by what: the groups of an optimizer.

`build_optimizer(model, OptimizerConfig())` is all that most callers need; `describe_groups` says what it decided.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

from ..adapt.lora import is_factor
from ..errors import UserError
from ..grouped import StackedLinear
from ..mixers.base import Mixer
from .optimizers import LOADED, LORA_LR, PRETRAINED_LR, MuonAdamW, OptimizerConfig


class Place(NamedTuple):
    """What a parameter is and where it stands."""

    role: Literal["matrices", "inputs", "embeddings", "heads", "vectors", "head vectors", "factors"]
    block: int  # -1 before the blocks, i inside block i, `blocks` after them
    blocks: int
    stacked: bool = False  # a matrix for each expert


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
    stacked: set[int] = set()
    depth = 0
    for name, module in model.named_modules():
        if isinstance(module, Mixer):
            vectors.update(id(module.get_parameter(vector)) for vector in module.vectors)
        if isinstance(module, StackedLinear):
            stacked.add(id(module.weight))
            vectors.add(id(module.bias))
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
        found[name] = Place(role, block, blocks, id(p) in stacked)
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
    """Splits the trainable parameters of `model` into the groups of `MuonAdamW`.

    Blocks are the children of any `nn.ModuleList` named `blocks`. The roles:

    - matrices: ndim >= 2 inside the blocks. Muon, `weight_decay`, those of experts each by itself. (Others with ndim >
      2 go to AdamW.)
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
    algorithm = "muon" if muon and place.role == "matrices" and (p.ndim == 2 or place.stacked) else "adamw"
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
    """Raises UserError for a learning rate that only makes sense with, or without, fine-tuning."""
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

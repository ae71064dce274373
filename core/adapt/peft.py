"""LoRA adapters as the library PEFT stores them: `adapter_config.json` and `adapter_model.safetensors`.

Where a layer of ours lies in the original model is said by `Target`s, from the family's weight map. Where the original
stacks several of ours in one matrix (GPT-2's c_attn holds q, k and v), the adapter of the whole is written with the A
of the parts below each other and a block-diagonal B: its rank is the sum of theirs, and so are PEFT's outputs.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..checkpoints.native import whole as put_together
from ..checkpoints.source import read_tensors
from ..checkpoints.weights import Target, heads_interleaved
from ..errors import UserError
from ..files import few, read_json, write_atomic
from .lora import LoRALinear, adapt, lora_layers

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

_KEY = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<factor>[AB])\.weight")
_REFUSED = {"use_dora": False, "lora_bias": False, "modules_to_save": None, "bias": "none", "layer_replication": None}
"""Settings of other adapters that only have this value here."""


CLOSED = ".mixer.out_proj"
"""How the layers of Mamba, Mamba-2 and Nemotron-H end that PEFT refuses, since their fused kernels pass them by."""


class _Whole(NamedTuple):
    """A matrix of theirs: our layers in it, in order, and which of them are adapted."""

    target: Target
    names: list[str]


def export_peft(
    folder: str | os.PathLike[str] | None,
    model: nn.Module,
    targets: Mapping[str, Target],
    base: str = "",
    task_type: str | None = None,
) -> None:
    """Writes the factors of `model` so that `peft.PeftModel.from_pretrained(original, folder)` computes what it does.

    Args:
        folder: created if needed; None where another process writes, and this one only brings its parts.
        model: with layers from `add_lora`.
        targets: where each linear layer of ours lies in the original model.
        base: name or path of the original model.
        task_type: what PEFT calls the model's use, such as CAUSAL_LM.

    Raises:
        UserError: an adapted layer has no counterpart in the original model.
    """
    from safetensors.torch import save as to_bytes

    adapted = dict(lora_layers(model))
    lost = [name for name in adapted if name not in targets]
    if lost:
        raise UserError(
            f"{len(lost)} adapted layers are no linear layers of the original model ({few(lost)}), so PEFT cannot hold"
            " this adapter; choose other lora.targets."
        )
    closed = [name for name in adapted if targets[name].module.endswith(CLOSED)]
    if closed:
        raise UserError(
            f"{len(closed)} adapted layers are output layers of Mamba's mixers ({few(closed)}), which PEFT refuses to "
            "adapt; the model of this run has the factors merged. Leave out of lora.targets what ends in 'out'."
        )
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    scales: dict[str, float] = {}
    for module, whole in _wholes(targets).items():
        layers = [layer for name in whole.names if (layer := adapted.get(name)) is not None]
        if layers:
            a, b = _joined(model, whole, adapted)
            tensors |= _named(module, a, b)
            ranks[module], scales[module] = len(a), layers[0].scale
    if folder is None:
        return
    write_atomic(Path(folder) / WEIGHTS, to_bytes(tensors, metadata={"format": "pt"}))
    transposed = any(targets[name].transposed for name in adapted)
    config = _config(ranks, scales, next(iter(adapted.values())).dropout, transposed, base, task_type)
    write_atomic(Path(folder) / CONFIG, (json.dumps(config, indent=2) + "\n").encode())


def load_peft(folder: str | os.PathLike[str], model: nn.Module, targets: Mapping[str, Target]) -> list[str]:
    """Freezes `model` and puts the adapter in `folder` into it; returns the names of the adapted layers.

    Raises:
        UserError: there is no adapter, it is damaged, of another kind than LoRA, or of another model.
    """
    folder = Path(folder)
    config, pairs = _read(folder)
    wholes = _wholes(targets)
    unknown = sorted(module for module in pairs if module not in wholes)
    if unknown:
        raise UserError(
            f"'{folder}' adapts {len(unknown)} layers that this model does not have ({few(unknown)}); it belongs to"
            f" {config.get('base_model_name_or_path') or 'another model'}."
        )
    model.requires_grad_(False)
    adapted = []
    for module, (a, b) in pairs.items():
        scale = _scale(config, module, len(a))
        for name, own_a, own_b in _split(model, wholes[module], a, b, f"'{folder}': {module}"):
            layer = adapt(model, name, len(own_a), scale, config.get("lora_dropout", 0.0))
            with torch.no_grad():
                layer.lora_a.copy_(own_a)
                layer.lora_b.copy_(own_b)
            adapted.append(name)
    return adapted


def _wholes(targets: Mapping[str, Target]) -> dict[str, _Whole]:
    """Their matrices, by module path."""
    parts: dict[str, dict[int, str]] = {}
    for name, target in targets.items():
        parts.setdefault(target.module, {})[target.part[0] if target.part else 0] = name
    return {
        module: _Whole(targets[names[min(names)]], [names[part] for part in sorted(names)])
        for module, names in parts.items()
    }


def _rows(model: nn.Module, whole: _Whole) -> list[int]:
    """Output features of our layers in one matrix of theirs."""
    sizes = []
    for name in whole.names:
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        sizes.append(layer.out_features)
    return sizes


def _joined(model: nn.Module, whole: _Whole, adapted: Mapping[str, LoRALinear]) -> tuple[Tensor, Tensor]:
    """A `[sum of ranks, in]` and block-diagonal B `[sum of rows, sum of ranks]`; rows of layers without factors are
    zero.
    """
    a = [put_together(adapted[name].lora_a).cpu() for name in whole.names if name in adapted]
    blocks = [
        put_together(adapted[name].lora_b).cpu() if name in adapted else a[0].new_zeros(rows, 0)
        for name, rows in zip(whole.names, _rows(model, whole), strict=True)
    ]
    b = torch.block_diag(*blocks)
    return torch.cat(a), heads_interleaved(whole.target.groups).join(list(b.split([len(block) for block in blocks])))


def _split(model: nn.Module, whole: _Whole, a: Tensor, b: Tensor, where: str) -> list[tuple[str, Tensor, Tensor]]:
    """Name and factors of each of our layers in a matrix of theirs.

    A layer keeps only the columns that its rows of B use: for what `_joined` wrote, its own.
    """
    rows = _rows(model, whole)
    layer = model.get_submodule(whole.names[0])
    assert isinstance(layer, nn.Linear)
    if a.shape[1] != layer.in_features or b.shape != (sum(rows), len(a)):
        raise UserError(
            f"{where} has factors {tuple(a.shape)} and {tuple(b.shape)}, but the layer is"
            f" {layer.in_features} -> {sum(rows)}; the adapter belongs to another model."
        )
    found = []
    shapes = [torch.Size([count, len(a)]) for count in rows]
    for name, own in zip(whole.names, heads_interleaved(whole.target.groups).split(b, shapes), strict=True):
        used = own.any(0)
        if len(rows) == 1:
            found.append((name, a, b))
        elif used.any():
            found.append((name, a[used], own[:, used]))
    return found


def _named(module: str, a: Tensor, b: Tensor) -> dict[str, Tensor]:
    prefix = f"base_model.model.{module}"
    return {f"{prefix}.lora_A.weight": a.contiguous(), f"{prefix}.lora_B.weight": b.contiguous()}


def _config(
    ranks: dict[str, int], scales: dict[str, float], dropout: float, transposed: bool, base: str, task_type: str | None
) -> dict[str, Any]:
    usual = Counter(ranks.values()).most_common(1)[0][0]
    alphas = {module: scales[module] * rank for module, rank in ranks.items()}
    alpha = Counter(alphas[module] for module in ranks if ranks[module] == usual).most_common(1)[0][0]
    return {
        "peft_type": "LORA",
        "task_type": task_type,
        "base_model_name_or_path": base or None,
        "r": usual,
        "lora_alpha": alpha,
        "lora_dropout": dropout,
        "bias": "none",
        "fan_in_fan_out": transposed,
        "target_modules": list(ranks),
        "rank_pattern": {module: rank for module, rank in ranks.items() if rank != usual},
        "alpha_pattern": {module: value for module, value in alphas.items() if value != alpha},
        "init_lora_weights": True,
        "inference_mode": True,
    }


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, tuple[Tensor, Tensor]]]:
    """The config of an adapter, and A and B by module path."""
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise UserError(f"'{folder}' is no adapter: it has no {name}.")
    config = read_json(folder / CONFIG)
    if config.get("peft_type") != "LORA":
        raise UserError(f"'{folder}' is an adapter of the kind {config.get('peft_type')}, but only LORA can be read.")
    for key, only in _REFUSED.items():
        if config.get(key, only) not in (only, [], {}, None):
            raise UserError(f"'{folder}' has {key} {config[key]!r}, which cannot be read here; it must be {only!r}.")
    factors: dict[str, dict[str, Tensor]] = {}
    for name, tensor in read_tensors(folder / WEIGHTS).items():
        match = _KEY.fullmatch(name)
        if match is None:
            raise UserError(f"'{folder}' holds '{name}', which is no factor of a linear layer; it cannot be read here.")
        factors.setdefault(match["module"], {})[match["factor"]] = tensor
    halves = sorted(module for module, pair in factors.items() if len(pair) != 2)
    if halves or not factors:
        raise UserError(f"'{folder}' lacks factors ({few(halves) or 'all'}); it was cut short or damaged.")
    return config, {module: (pair["A"], pair["B"]) for module, pair in factors.items()}


def _scale(config: Mapping[str, Any], module: str, rank: int) -> float:
    """Factor on B A: alpha / rank, or alpha / sqrt(rank) for rank-stabilised adapters (Kalajdzievski 2023)."""
    patterns: Mapping[str, float] = config.get("alpha_pattern") or {}
    try:
        own = [value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module)]
        alpha = float([*own, config.get("lora_alpha", 8)][0])
    except (re.error, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{CONFIG} of the adapter names no scale (lora_alpha, alpha_pattern) for {module}: {error}."
        ) from None
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)

"""What an optimizer step of a training works with: found from its command line, without training and its weights."""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from ...compiled import blocks_of
from ...errors import UserError
from ..groups import build_optimizer
from . import sentences
from .changes import leaves
from .check import Kind, taken_apart
from .cli import TaskCLI
from .companions import Companions
from .devices import Devices
from .faults import Line
from .precision import AUTO
from .probe import own_memory
from .strategies import usable
from .trace import Pass, trace

OWN = ("trainer.devices", "trainer.num_nodes", "trainer.strategy", "trainer.accelerator", "trainer.precision")
"""Options that say where and how is trained, which the plan takes for itself."""
TRUE = {"bf16-true": torch.bfloat16, "16-true": torch.float16, "64-true": torch.float64}
MIXED = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


@dataclass
class Step:
    """What an optimizer step works with, before devices come into it.

    Args:
        rows: examples of a micro-batch of one device.
        one, two: the pass over `rows` and over twice as many; `again` the pass over `rows` whose blocks are computed
            again in the backward pass, and `again_two` over twice as many: None where the model cannot.
        weights: bytes of all parameters and buffers; `trained` those of what trains.
        state: bytes of the optimizer's states, `averages` of the averaged weights.
        matrices: shapes of Muon's matrices, with how often each occurs, as (rows, columns).
        tensors: how many there are that train.
        block: bytes of the largest part that FSDP2 puts together at once.
        accumulate: micro-batches of an optimizer step.
        checkpointing: whether the command line asks for it.
        steps: of the whole training on one device, None where nothing bounds it; `epochs` tells that they come from
            a number of epochs, so that more devices take fewer.
        base: bytes of the process with its data, before there is a model; 0 on a GPU.
    """

    rows: int
    one: Pass
    two: Pass
    again: Pass | None
    again_two: Pass | None
    parameters: int
    weights: int
    trained: int
    state: int
    averages: int
    matrices: Counter[tuple[int, int]]
    tensors: int
    block: int
    size: int
    accumulate: int
    checkpointing: bool
    steps: int | None
    epochs: bool
    base: float = 0.0


def look(kind: Kind, args: list[str], devices: Devices) -> tuple[Step, str, str]:
    """The step of `triune TASK VERB ARGS`, its strategy and its precision.

    No weights are made where the training starts at random. Data are read, and caches filled, as training would.

    Raises:
        UserError: the training could not start, or what it takes depends on values.
    """
    line, wrong = taken_apart(kind, args)
    if wrong:
        raise UserError(wrong[0])
    strategy = str(_value(line, "trainer.strategy") or "ddp")
    for words in line.options:
        name = words[0].removeprefix("--").partition("=")[0]
        if name in ("trainer.devices", "trainer.num_nodes", "trainer.accelerator"):
            raise UserError(f"--{name} would change nothing in a plan; give --devices, such as 2xcpu or 4x8xH100.")
    sizes = _value(line, "trainer.strategy.tensor_parallel_size") or _value(line, "trainer.strategy.init_args")
    if "_tensor" in strategy or sizes not in (None, "1", "auto"):
        raise UserError("--trainer.strategy cuts layers over devices, for which no plan can be made; give fsdp2.")
    usable(strategy)
    asked = _value(line, "trainer.precision")
    precision = devices.precision if asked in (None, AUTO) else str(asked)
    strategy = "fsdp2" if "fsdp2" in strategy.lower() or "ModelParallel" in strategy else "ddp"
    for name in (*OWN, "run", "resume"):
        line = line.without(name)
    with tempfile.TemporaryDirectory(prefix="triune-plan-") as name:
        folder = Path(name)
        words = [*line.words(folder), "--trainer.accelerator", "cpu", "--run", str(folder / "run")]
        try:
            cli = TaskCLI(kind.task, kind.verb, words, kind.module, kind.data, kind.package, Companions())
            cut = strategy == "fsdp2" and devices.world > 1
            return _step(cli, precision, devices, cut), strategy, precision
        except UserError as error:
            raise UserError(str(error).replace(str(folder), "").replace("--config /", "--config ")) from None
        except Exception as error:
            if (sentence := sentences.of_library(error)) is None:
                raise
            raise UserError(sentence) from error


def _value(line: Line, name: str) -> Any:
    """What an option has, on the command line or in a file."""
    for words in reversed(line.options):
        first, _, behind = words[0].removeprefix("--").partition("=")
        if first == name:
            return behind or " ".join(words[1:])
    for content in reversed(line.files):
        found = leaves(content)
        if (value := found.get(name, found.get(f"{name}.class_path"))) is not None:
            return yaml.safe_load(value) if isinstance(value, str) else value
    return None


def _step(cli: TaskCLI, precision: str, devices: Devices, cut: bool) -> Step:
    module, data, trainer = cli.model, cli.datamodule, cli.trainer
    batch, batches = _first_batch(module, data, trainer)
    base = own_memory() if devices.name == "cpu" else 0.0
    with torch.device("meta") if module.tuning is None else torch.device("cpu"):
        module.configure_model()
    assert module.model is not None
    batch = data.on_after_batch_transfer(batch, 0)  # which may ask what the model is
    whole = TRUE.get(precision)
    if whole is not None:
        module.model.to(whole)
        batch = tree_map_only(Tensor, lambda t: t.to(whole) if t.is_floating_point() else t, batch)
    module.train()
    optimizer = (
        build_optimizer(module.model, module.optimizer_config)
        if module.tuning is None
        else module.tuning.build_optimizer(module.is_new, module.model, module.optimizer_config)
    )
    sizes = [leaf.shape[0] for leaf in tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.dim()]
    rows = max(set(sizes), key=sizes.count)
    passes = _passes(module, batch, rows, MIXED.get(precision), cut)
    accumulate = int(trainer.accumulate_grad_batches)
    steps, epochs = _steps(trainer, batches, accumulate)
    return Step(
        rows, *passes, **_sizes(module.model, optimizer, module.ema is not None), accumulate=accumulate,
        checkpointing=module.checkpointing, steps=steps, epochs=epochs, base=base,
    )  # fmt: skip


def _first_batch(module: Any, data: Any, trainer: Any) -> tuple[Any, float]:
    """A batch of training, as its loader gives it, and how many there are in an epoch."""
    trainer.datamodule, data.trainer, module.trainer = data, trainer, trainer
    trainer.training = True
    module.configure_callbacks()
    data.prepare_data()
    data.setup("fit")
    loader = data.train_dataloader()
    if hasattr(loader, "_workers"):
        loader._workers = 0
    batch = next(iter(loader))
    try:
        batches = len(loader)
    except TypeError:
        batches = math.inf
    return batch, batches


def _passes(
    module: Any, batch: Any, rows: int, autocast: torch.dtype | None, cut: bool
) -> tuple[Pass, Pass, Pass | None, Pass | None]:
    stacks: list[Any] = [part for part in module.model.modules() if hasattr(part, "checkpointing")]
    asked = [stack.checkpointing for stack in stacks]
    found: list[Pass | None] = []
    try:
        for again in (False, True):
            for stack in stacks:
                stack.checkpointing = again
            for factor in (1, 2):
                possible = stacks or not again
                found.append(trace(module, batch, rows, factor * rows, autocast, cut) if possible else None)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"The work of this model depends on its values ({str(error).splitlines()[0][:120]}), so that it cannot be"
            " planned; `triune check` measures it."
        ) from error
    finally:
        for stack, before in zip(stacks, asked, strict=True):
            stack.checkpointing = before
    assert found[0] is not None and found[1] is not None
    return found[0], found[1], found[2], found[3]


def _sizes(model: nn.Module, optimizer: Any, averaged: bool) -> dict[str, Any]:
    """Bytes of weights, of what trains and of the optimizer's states, and what Muon trains."""
    nbytes = lambda tensors: sum(t.numel() * t.element_size() for t in tensors)  # noqa: E731
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    muon = [p for group in optimizer.param_groups if group["algorithm"] == "muon" for p in group["params"]]
    matrices: Counter[tuple[int, int]] = Counter()
    for p in muon:
        matrices[p.shape[-2], p.shape[-1]] += p.shape[0] if p.ndim == 3 else 1
    parts = [nbytes(block.parameters()) for block in blocks_of(model)]
    rest = nbytes(model.parameters()) - sum(parts)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "weights": nbytes(model.parameters()) + nbytes(model.buffers()),
        "trained": nbytes(trained),
        "state": 2 * nbytes(trained) - nbytes(muon),
        "averages": 4 * sum(p.numel() for p in trained) if averaged else 0,  # float32 in any precision
        "matrices": matrices,
        "tensors": len(trained),
        "block": max([*parts, rest]),
        "size": max((p.element_size() for p in model.parameters()), default=4),
    }


def _steps(trainer: Any, batches: float, accumulate: int) -> tuple[int | None, bool]:
    if trainer.max_steps is not None and trainer.max_steps > 0:
        return int(trainer.max_steps), False
    if trainer.max_epochs and trainer.max_epochs > 0 and math.isfinite(batches):
        return int(trainer.max_epochs) * max(1, int(batches) // accumulate), True
    return None, False

"""Fine-tuning: where a model starts from, which of its parameters train, and what an option may still change."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import nn

from ..adapt.lora import LoRAConfig, add_lora
from ..adapt.peft import export_peft
from ..checkpoints.family import Pretrained
from ..checkpoints.native import CONFIG, FORMAT
from ..checkpoints.weights import Target
from ..config import TransformerConfig
from ..errors import UserError
from ..files import write_json
from ..initialise import uninitialised
from .optimizers import LOADED, MuonAdamW, OptimizerConfig, build_optimizer, places
from .run.progress import short

if TYPE_CHECKING:
    from .module import TrainingModule

Model = TypeVar("Model", bound=nn.Module)

REGULARISERS = ("dropout", "attention_dropout", "stochastic_depth")
"""Fields of a transformer that hold no weights, so that fine-tuning may choose them."""


@dataclass
class FreezeConfig:
    """Which part of a pretrained model stays as it is: the embeddings and the blocks above them.

    Args:
        blocks: how many blocks from the bottom are frozen, with the embeddings; `all` leaves only the head to train.
        steps: unfreeze one more block, from the top, every so many optimizer steps, and the embeddings last (Howard and
            Ruder 2018, section 3.3). Left out: frozen to the end.

    Raises:
        UserError: a value outside its range.
    """

    blocks: int | Literal["all"] = "all"
    steps: int | None = None

    def __post_init__(self) -> None:
        if self.blocks != "all" and (not isinstance(self.blocks, int) or self.blocks < 0):
            raise UserError(f"freeze.blocks is {self.blocks}, but must be a number of blocks from 0 on, or all.")
        if self.steps is not None and self.steps < 1:
            raise UserError(f"freeze.steps is {self.steps}, but must be at least 1, or left out.")


class Freezing:
    """Freezes parameters of `model`, and thaws them as training goes on.

    A frozen parameter has `requires_grad` False: no gradient is computed for it, and the optimizer, which sees only
    gradients, neither moves nor decays it and keeps no state for it. What is frozen is a function of the step alone, so
    a resumed run goes on exactly.

    Args:
        model: a norm after the last block belongs to that block; what comes behind is the head, and always trains.
        config: what to freeze.
        keep: parameters by name that always train.

    Raises:
        UserError: more blocks are to be frozen than there are.
    """

    def __init__(self, model: nn.Module, config: FreezeConfig, keep: Callable[[str], bool]) -> None:
        self.every = config.steps
        self.thawed = 0
        parameters = dict(model.named_parameters())
        inner = [name for name in parameters if not keep(name)]
        found = {name: place for name, place in places(model, inner).items() if not keep(name)}
        self.depth = max((place.blocks for place in found.values()), default=0)
        blocks = self.depth if config.blocks == "all" else config.blocks
        if blocks > self.depth:
            raise UserError(f"freeze.blocks is {blocks}, but the model has {self.depth} blocks.")
        self.blocks = blocks
        around = {_before_blocks(name) for name in found} - {""}
        stages: list[list[nn.Parameter]] = [[] for _ in range(blocks + 1)]  # from the embeddings to the top
        for name, place in found.items():
            block = place.block
            if block == self.depth and name.startswith(tuple(around)):  # the transformer's final norm
                block -= 1
            if block < blocks:
                stages[block + 1].append(parameters[name])
        self._stages = stages[::-1]
        self._freeze(0)

    def at(self, step: float) -> None:
        """Freeze what is frozen after `step` optimizer steps; costs nothing when that is as before."""
        thawed = 0 if self.every is None else int(min(step / self.every, len(self._stages)))
        if thawed != self.thawed:
            self._freeze(thawed)

    def _freeze(self, thawed: int) -> None:
        self.thawed = thawed
        for index, stage in enumerate(self._stages):
            for p in stage:
                p.requires_grad_(index < thawed)

    def describe(self) -> str:
        """What is frozen, in words."""
        which = "all blocks" if self.blocks == self.depth else f"the first {self.blocks} of {self.depth} blocks"
        what = f"embeddings and {which}" if self.blocks else "embeddings"
        after = "" if self.every is None else f", one block more trains every {self.every:,} steps"
        return f"{what} frozen{after}"


def _before_blocks(name: str) -> str:
    """ "transformer." of "transformer.blocks.0.norm1.weight"; empty for what is in no block."""
    path = name.split(".")
    return "".join(f"{part}." for part in path[: path.index("blocks")]) if "blocks" in path else ""


def trained(model: nn.Module) -> str:
    """ "270k of 135M parameters (0.2 %)"."""
    total = sum(p.numel() for p in model.parameters())
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return f"{short(count)} of {short(total)} parameters ({100 * count / total:.3g} %)"


# ---------------------------------------------------------------------------------------------------------------------
# Where a model starts from


@dataclass
class Start:
    """What a run takes from a checkpoint. All but the weights lies in the run's folder, so that the run can be
    continued and scored when the checkpoint is gone: the weights are then those of the run.

    Args:
        source: as the user named it.
        model: with its weights; without them (at random) when they come from the run; None once it is in use.
        companion: the tokenizer of a language model, else None.
        targets: where our linear layers lie in Hugging Face's model, for an adapter; empty if it is not theirs.
    """

    source: str
    model: nn.Module | None
    companion: Any = None
    targets: dict[str, Target] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    architecture: str = ""

    def __post_init__(self) -> None:
        if self.model is not None:
            config: Any = self.model.config
            self.config, self.architecture = config.to_dict(), type(self.model).__name__

    @classmethod
    def of(cls, pretrained: Pretrained) -> Start:
        """What `load` of a task's pretrained.py found."""
        family, model, targets = pretrained.family, pretrained.model, {}
        if family is not None and family.library == "hf":
            targets = family.weights(model.config).targets(model)
        return cls(pretrained.source.name, model, pretrained.companion, targets)

    def save(self, folder: Path) -> None:
        """Write `config.json`, and the tokenizer if there is one, into `folder`."""
        if self.companion is not None:
            self.companion.save(folder)
        header = {"library": "triune", "format": FORMAT, "architecture": self.architecture}
        about = {"model": self.config, "source": self.source, "targets": self.targets}
        write_json(folder / CONFIG, header | about)

    @classmethod
    def read(cls, config: Mapping[str, Any], model: nn.Module, companion: Any = None) -> Start:
        """The inverse of `save`, given the content of `config.json` and a model made from it."""
        targets = {
            name: Target(module, transposed, part and tuple(part))
            for name, (module, transposed, part) in config["targets"].items()
        }
        return cls(config["source"], model, companion, targets)


class Tuning:
    """The course of a fine-tuning; the training module calls it where it would otherwise build from nothing.

    Args:
        source: the checkpoint, as the user named it.
        lora: train factors instead of its weights.
        freeze: what does not train, or not at first.
    """

    def __init__(self, source: str, lora: LoRAConfig | None = None, freeze: FreezeConfig | None = None) -> None:
        self.source, self.lora, self.freeze = source, lora, freeze
        self.folder: Path | None = None
        """Of a run whose weights will be loaded: what it started from is read there, not from the checkpoint."""
        self.start: Start | None = None
        self.adopted = ""
        self.freezing: Freezing | None = None

    @classmethod
    def chosen(cls, source: str | None, lora: LoRAConfig | None, freeze: FreezeConfig | None) -> Tuning | None:
        """None without a checkpoint. Raises UserError for settings that need one."""
        if source is not None:
            return cls(source, lora, freeze)
        for name, value in (("lora", lora), ("freeze", freeze)):
            if value is not None:
                raise UserError(f"model.{name} needs a checkpoint to fine-tune; add --model.pretrained NAME_OR_PATH.")
        return None

    def open(self, task: TrainingModule, data: Any) -> None:
        """Read what the model starts from, once, and let the data adopt what belongs to it."""
        if self.start is not None:
            return
        if self.folder is not None and (self.folder / CONFIG).is_file():
            self.start = task.read_start(self.folder)
        else:
            self.start = Start.of(task.load_pretrained(self.source))
        self.adopted = task.adopt(self.start, data)

    def build(self, task: TrainingModule, data: Any, devices: int = 1) -> nn.Module:
        """The model of the task, with factors, and frozen, as at the first step.

        Raises:
            UserError: blocks are to be unfrozen during a training on several devices.
        """
        if self.freeze and self.freeze.steps and devices > 1:
            # The wrappers of several devices note at the start which gradients to exchange.
            raise UserError(
                "model.freeze.steps unfreezes blocks during training, which works on one device only; leave it out, "
                "or train with --trainer.devices 1."
            )
        self.open(task, data)
        assert self.start is not None
        model = task.adapt_model(self.start, data).train()  # checkpoints are read for use, in evaluation mode
        self.start.model = None
        if self.lora:
            add_lora(model, self.lora, task.is_new)
        if self.freeze:
            self.freezing = Freezing(model, self.freeze, task.is_new)
        return model

    def build_optimizer(self, is_new: Callable[[str], bool], model: nn.Module, config: OptimizerConfig) -> MuonAdamW:
        """For all that will ever train: unfreezing then changes no group, and a resumed run finds the same ones.

        Raises:
            UserError: nothing trains at the first step, or a learning rate is given that nothing uses.
        """
        if self.freezing:
            if not any(p.requires_grad for p in model.parameters()):
                raise UserError(
                    f"model.freeze.blocks is {self.freezing.blocks}, which leaves nothing to train at first, because"
                    " this model has no head of its own (or LoRA freezes it); freeze fewer blocks."
                )
            self.freezing.at(math.inf)
        optimizer = build_optimizer(model, config, {name for name, _ in model.named_parameters() if not is_new(name)})
        self.at(0)
        return optimizer

    def at(self, step: int) -> None:
        """Freeze what is frozen after `step` optimizer steps."""
        if self.freezing:
            self.freezing.at(step)

    @property
    def thawed(self) -> int:
        """How often something was unfrozen; what a step costs depends on it."""
        return self.freezing.thawed if self.freezing else 0

    def describe(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> list[tuple[str, str]]:
        """Entries of the opening block: name and text."""
        parts = [f"training {trained(model)}"]
        if self.lora:
            parts.append(f"LoRA of rank {self.lora.rank} on {', '.join(self.lora.targets)}")
        if self.freezing:
            parts.append(self.freezing.describe())
        peaks: dict[str, float] = {}
        for group in optimizer.param_groups:
            name = group["name"].split(",")[0]
            name = "checkpoint" if name.startswith(LOADED) else name
            peaks[name] = max(peaks.get(name, 0.0), group["initial_lr"])
        rates = ", ".join(f"{name} {lr:.3g}" for name, lr in peaks.items())
        about = f"{self.source}: {self.adopted}" if self.adopted else self.source
        return [("start", about), ("tuning", "; ".join([*parts, f"peak learning rates: {rates}"]))]

    def export(self, folder: Path, model: nn.Module, task_type: str | None) -> bool:
        """Write the factors in PEFT's format, if the checkpoint is one of Hugging Face's; returns whether it was
        done.
        """
        if self.lora is None or self.start is None or not self.start.targets:
            return False
        export_peft(folder, model, self.start.targets, self.source, task_type)
        return True


# ---------------------------------------------------------------------------------------------------------------------
# Options beside a checkpoint's config


def refuse_contradictions(
    task: type, given: Mapping[str, Any], found: Mapping[str, Any], source: str, prefix: str = "model."
) -> None:
    """Raise UserError for an option that was given and is not what the checkpoint has.

    Args:
        task: the class whose constructor says what an option is when it is not given.
        given: values of options by name.
        found: those of the checkpoint.
        source: name of the checkpoint.
        prefix: before the names of the options.
    """
    defaults = inspect.signature(task).parameters
    for name, value in given.items():
        if value != defaults[name].default and name in found and value != found[name]:
            _contradiction(f"{prefix}{name}", value, found[name], source)


def adapted_transformer(
    given: TransformerConfig, default: TransformerConfig, found: TransformerConfig, source: str
) -> TransformerConfig:
    """The transformer of a checkpoint with the dropout and stochastic depth that were asked for.

    Args:
        given: from the command line.
        default: what that is when nothing is given.
        found: of the checkpoint.
        source: name of the checkpoint.

    Raises:
        UserError: another field was given, and the checkpoint has another value there.
    """
    changes = {}
    for name in (f.name for f in dataclasses.fields(found)):
        value, own = getattr(given, name), getattr(found, name)
        if value == getattr(default, name) or value == own:
            continue
        if name not in REGULARISERS:
            _contradiction(f"model.transformer.{name}", value, own, source)
        changes[name] = value
    return dataclasses.replace(found, **changes)


def _contradiction(option: str, value: Any, own: Any, source: str) -> None:
    raise UserError(f"{option} is {value}, but '{source}' has {own}; leave the option out, the checkpoint decides it.")


def rebuilt(model: Model, config: Any) -> Model:
    """A model of the same class with another config, and the weights of `model`."""
    with uninitialised():
        new = type(model)(config)
    new.load_state_dict(model.state_dict())
    return new

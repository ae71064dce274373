"""Where a fine-tuned model starts from, and which options may still change it."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from ..checkpoints.checksums import COMPANIONS, write_config
from ..checkpoints.family import Pretrained
from ..checkpoints.native import FORMAT
from ..checkpoints.weights import Target
from ..config import TransformerConfig
from ..errors import UserError
from ..initialise import uninitialised

Model = TypeVar("Model", bound=nn.Module)

REGULARISERS = ("dropout", "attention_dropout", "stochastic_depth")
"""Fields of a transformer that hold no weights, so that fine-tuning may choose them."""


@dataclass
class Start:
    """What a run takes from a checkpoint. All but the weights lies in the run's folder, so that the run can be
    continued and scored when the checkpoint is gone: the weights are then those of the run.

    Args:
        source: as the user named it.
        model: with its weights; without them (at random) when they come from the run; None once it is in use.
        companion: the tokenizer of a language model, else None.
        targets: where our linear layers lie in Hugging Face's model, for an adapter; empty if it is not theirs.
        headed: the model with the head that the checkpoint has for labels, until it is used; else None.
        kept: what of that head's form the run keeps, plain values.
    """

    source: str
    model: nn.Module | None
    companion: Any = None
    targets: dict[str, Target] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    architecture: str = ""
    headed: Any = None
    kept: dict[str, Any] = field(default_factory=dict)

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
        return cls(pretrained.source.name, model, pretrained.companion, targets, headed=pretrained.headed)

    def save(self, folder: Path) -> None:
        """Writes `config.json`, and the tokenizer if there is one, into `folder`."""
        if self.companion is not None:
            self.companion.save(folder)
        header = {"library": "triune", "format": FORMAT, "architecture": self.architecture}
        about = {"model": self.config, "source": self.source, "targets": self.targets}
        about |= {"kept": self.kept} if self.kept else {}
        write_config(folder, header | about, COMPANIONS)

    @classmethod
    def read(cls, config: Mapping[str, Any], model: nn.Module, companion: Any = None) -> Start:
        """The inverse of `save`, given the content of `config.json` and a model made from it."""
        targets = {
            name: Target(module, transposed, part and tuple(part), *groups)  # runs of before have no groups
            for name, (module, transposed, part, *groups) in config["targets"].items()
        }
        return cls(config["source"], model, companion, targets, kept=dict(config.get("kept") or {}))


def refuse_contradictions(
    task: type, given: Mapping[str, Any], found: Mapping[str, Any], source: str, prefix: str = "model."
) -> None:
    """Raises UserError for an option that was given and is not what the checkpoint has.

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


def longer(transformer: TransformerConfig, context: int, source: str, around: int = 0) -> TransformerConfig:
    """The config of a checkpoint that is trained on longer inputs than before: it sees and is exported for as many.

    Args:
        transformer: of the checkpoint.
        context: tokens of an input, `data.context`.
        source: name of the checkpoint.
        around: tokens that stand around an input.

    Raises:
        UserError: its positions are a table, which has no row for more, or stretch by what exceeds its context.
    """
    known, most = transformer.context, max(transformer.context - around, 0)
    if context <= most:
        return transformer
    if transformer.position == "learned":
        raise UserError(
            f"data.context is {context:,} tokens, but '{source}' has learned positions for {most:,}; give at most that."
        )
    rotary = [one for layer in range(transformer.depth) if (one := transformer.rotary_at(layer)) is not None]
    if any(one.scaling == "dynamic" and one.original_context == known for one in rotary):
        raise UserError(
            f"data.context is {context:,} tokens, but the rotary positions of '{source}' are stretched by what exceeds "
            f"its context of {known:,} (dynamic), so that with another context it would be another model; give at most "
            f"{most:,}."
        )
    return dataclasses.replace(transformer, context=context + around)


def _contradiction(option: str, value: Any, own: Any, source: str) -> None:
    raise UserError(f"{option} is {value}, but '{source}' has {own}; leave the option out, the checkpoint decides it.")


def rebuilt(model: Model, config: Any) -> Model:
    """A model of the same class with another config, and the weights of `model`."""
    with uninitialised():
        new = type(model)(config)
    new.load_state_dict(model.state_dict())
    return new

"""What a kind of checkpoint is: how it is recognised, what its config means, and its weight map."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from ..config import TransformerConfig
from ..errors import UserError
from ..files import replaced_folder, umask, write_json
from ..initialise import uninitialised
from ..rotary import RotaryConfig
from .native import CONFIG, WEIGHTS
from .source import Source
from .weights import WeightMap

Library = Literal["hf", "timm", "torchvision", "fair-esm", "gguf", "triune", "other"]


@dataclass(frozen=True)
class Family:
    """Checkpoints of one architecture as one library writes them.

    Args:
        name: shown to people, such as "Llama".
        library: whose format it is; `triune convert --to` names it.
        fits: whether a source is one of these.
        config: our model's config from theirs. Raises UserError for a setting that the core does not have.
        weights: the weight map for a config of ours.
        their_config: the content of their config file from ours; None for a family that is only read.
        represents: whether a config of ours can be written as this family.
    """

    name: str
    library: Library
    fits: Callable[[Source], bool]
    config: Callable[[Source], Any]
    weights: Callable[[Any], WeightMap]
    their_config: Callable[[Any], dict[str, Any]] | None = None
    represents: Callable[[Any], bool] = lambda _: False


@dataclass
class Pretrained:
    """A model of ours with weights from elsewhere, and where they came from.

    Args:
        model: in evaluation mode, float32.
        source: what was opened.
        family: None for triune's own format.
        companion: the tokenizer of a text model, the contact head of a protein model, or None (a classifier's
            preprocessing is in its config).
        headed: the model with the head that the checkpoint has for labels (a `LabelledModel` around `model`), or None.
    """

    model: nn.Module
    source: Source
    family: Family | None = None
    companion: Any = None
    headed: Any = None

    def __post_init__(self) -> None:
        self.source.release()  # the model has the weights


def differences(config: Any, other: Any, without: Collection[str] = ()) -> list[str]:
    """Settings in which two configs of models describe different functions, such as "transformer.ffn 'relu2'".

    Args:
        config, other: dataclasses of one kind; a `TransformerConfig` in them is compared in its `canonical` form.
        without: names of fields that no output depends on.
    """
    if type(config) is not type(other):
        return [type(config).__name__]
    one, two = (c.canonical() if isinstance(c, TransformerConfig) else c for c in (config, other))
    found: list[str] = []
    for name in (field.name for field in fields(config) if field.name not in without):
        given = getattr(config, name)
        if isinstance(given, TransformerConfig):
            found += [f"{name}.{odd}" for odd in differences(given, getattr(other, name))]
        elif getattr(one, name) != getattr(two, name):
            found.append(name if isinstance(given, list | RotaryConfig) else f"{name} {given!r}")
    return found


def apart(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference of two outputs of any size; of outputs larger than one on average, relative to that.

    NaN where one of them has a NaN.
    """
    size = theirs.double().square().mean().sqrt().clamp(min=1.0)
    return float((ours.double() - theirs.double()).abs().max() / size)


def recognise(source: Source, families: Sequence[Family], what: str) -> Family:
    """The first family that `source` fits. Raises UserError, listing what is supported.

    Args:
        what: what the checkpoint should be, such as "language model".
    """
    for family in families:
        if family.fits(source):
            return family
    found = source.config.get("model_type") or source.config.get("architecture") or "an unknown architecture"
    names = ", ".join(dict.fromkeys(family.name for family in families))
    raise UserError(f"'{source.name}' is {found}, which is not supported as a {what}; supported are {names}.")


@contextmanager
def described(name: str, depth: int, tensors: int) -> Iterator[None]:
    """A block that builds, without values, the model that the config of a checkpoint describes.

    A damaged config is refused before it makes this the last thing that the machine does.

    Args:
        name: of the checkpoint, for messages.
        depth: layers that its config says.
        tensors: how many it holds; each layer has at least one.

    Raises:
        UserError: there are fewer tensors than layers, or the model cannot be built here.
    """
    if depth > tensors:
        raise UserError(f"'{name}' says that it has {depth:,} layers, but holds only {tensors} tensors.")
    try:
        with uninitialised():
            yield
    except (RuntimeError, MemoryError, TypeError, OverflowError) as error:
        raise UserError(
            f"The model that '{name}' describes cannot be made here ({str(error).splitlines()[0]}); "
            "correct the sizes in its config, or use a machine with more memory."
        ) from None


@contextmanager
def replacing(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """A new folder to write into, which takes the place of `folder` when the block ends well, and vanishes otherwise.

    Raises:
        UserError: `folder` is a file, or holds something else than a checkpoint, which nobody wants replaced.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"'{folder}' is a file; give a new folder to write to.")
    if folder.exists() and any(folder.iterdir()) and not any((*folder.glob(CONFIG), *folder.glob("*.pt"))):
        raise UserError(f"'{folder}' exists and holds no checkpoint, so it is not replaced; give a new folder.")
    with replaced_folder(folder) as new:
        yield new


def write_folder(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """`config.json` and `model.safetensors` as the original libraries read them, into a folder of `replacing`."""
    from safetensors.torch import save_file

    save_file(
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
        folder / WEIGHTS,
        {"format": "pt"},
    )
    os.chmod(folder / WEIGHTS, 0o666 & ~umask())
    write_json(folder / CONFIG, config)

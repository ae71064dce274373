"""Running a model over many inputs outside of a training: in batches of about one size, in the order they came."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from ..labels.wanted import MaskFiles
from ..work import progress
from .model import LabelledModel
from .reader import Reader

MOST_TOKENS = 16_384
"""Tokens of a batch, padding included, whatever the number of inputs."""
READ_AHEAD = 4096
"""Inputs that are read, sorted by size and run before the next are read."""


@dataclass(frozen=True)
class Modality:
    """What the verbs of all tasks need to know of one.

    Args:
        task: its name on the command line.
        model: the class of its models with a head.
        reader: what reads the inputs of a model that was saved in a folder.
        expand: inputs (what to read, and its name) of the words of a command line.
        trunk: opens a checkpoint without a head, for its vectors: a model whose head does not matter, and the reader.
        table: "module:class" of its data modules that read tables; whoever uses a model has no need of it.
        whole_trunk: makes, of a model with a head and the name of a library, its trunk as that library's format holds
            it, with the head where this belongs to the trunk there.
        headed: opens a classifier of another library with its head: a model, and the reader of its inputs; None for a
            checkpoint that is none.
        views: makes, of a model, a kind of `--tta` and the name of its run, what gives the outputs for a batch as means
            over views of each input, and sentences about that; None for inputs without views.
        words: whether an input is a text, whose words can have a label each; lines of standard input are such inputs,
            never names of files.
        masks: how masks are read, of inputs whose parts have their labels there.
        painter: makes, of a model and a folder, what writes the answers to the parts of each input as a picture into
            it, given its name there without ending, the cell of the input, the folder beside it and the answers, and
            returns the file; None for inputs without.
        resized: gives the trunk of a model another size of images, in pixels, and returns the reader of these; None for
            inputs without a size.
    """

    task: str
    model: type[Any]
    reader: Callable[[LabelledModel, Path], Reader]
    expand: Callable[[Sequence[str]], list[tuple[str, str]]]
    trunk: Callable[[str, str | None], tuple[LabelledModel, Reader]]
    table: str
    whole_trunk: Callable[[Any, str], Any] | None = None
    headed: Callable[[str], tuple[LabelledModel, Reader] | None] | None = None
    views: Callable[[Any, str, str], tuple[Any, list[str]]] | None = None
    words: bool = False
    masks: MaskFiles | None = None
    painter: Callable[[Any, Path], Callable[[str, str, Path, dict[str, Any]], Path]] | None = None
    resized: Callable[[Any, int], Reader] | None = None


@dataclass
class Inputs:
    """What is to be read.

    Args:
        cells: what to read of each.
        names: what messages and results call each.
        beside: the folder that relative paths start from.
    """

    cells: list[str]
    names: list[str]
    beside: Path = Path()

    def __len__(self) -> int:
        return len(self.cells)


def device_of(name: str | None) -> torch.device:
    """The device to run on; by default a GPU where there is one. Raises UserError for one that is not here."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.zeros(1, device=device)
        return device
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name} cannot be used here ({str(error).splitlines()[0]}); try cpu.") from None


def batches(sizes: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Numbers of inputs that go together: of about one size, at most `batch_size` and `MOST_TOKENS`."""
    order = np.argsort(np.asarray(sizes), kind="stable")[::-1].tolist()
    while order:
        most = max(1, min(batch_size, MOST_TOKENS // max(sizes[order[0]], 1)))
        yield order[:most]
        order = order[most:]


@torch.inference_mode()
def run(
    model: LabelledModel,
    reader: Reader,
    inputs: Inputs,
    call: Callable[[dict[str, Tensor]], Tensor],
    batch_size: int,
    label: str,
    first: int = 0,
) -> Iterator[tuple[int, Any, Tensor | UserError]]:
    """Yields the number of each input, what was read of it, and its row of `call(batch)`, or what is wrong with it.

    Args:
        model: on its device, in evaluation mode.
        reader: of its inputs.
        inputs: what to read.
        call: from a batch to `[batch, …]`.
        batch_size: inputs of a batch, at most.
        label: of the progress bar.
        first: the number to begin with.
    """
    device = next(model.parameters()).device
    with progress(label, len(inputs) - first, "inputs") as advance:
        for start in range(first, len(inputs), READ_AHEAD):
            span = slice(start, start + READ_AHEAD)
            read = reader.read(inputs.cells[span], inputs.names[span], inputs.beside)
            found: list[Any] = list(read)
            good = [i for i, sample in enumerate(read) if not isinstance(sample, UserError)]
            for some in batches([reader.size(read[i]) for i in good], batch_size):
                chosen = [good[i] for i in some]
                batch = {key: value.to(device) for key, value in reader.batch([read[i] for i in chosen]).items()}
                for i, row in zip(chosen, call(batch).float().cpu()):
                    found[i] = row
                advance(len(chosen))
            for i, (sample, row) in enumerate(zip(read, found)):
                yield start + i, sample, row

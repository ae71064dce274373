"""`triune info` and `triune convert`: what a checkpoint is, and the same one in another library's format."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from .core.checkpoints.family import Pretrained
from .core.checkpoints.native import CONFIG
from .core.checkpoints.source import Source, open_source
from .core.config import TransformerConfig
from .core.errors import UserError
from .core.files import read_json
from .core.lock import claim
from .core.options import Parser
from .core.rotary import RotaryConfig
from .core.task import named
from .tasks import tasks

ROOMS = {name: task for name, task in tasks().items() if task.checkpoints}
OURS = {architecture: name for name, task in ROOMS.items() for architecture in task.architectures}
"""Tasks of the architectures in triune's own format."""
MODULES = {"triune": "triune"} | {k: v for task in ROOMS.values() for k, v in task.libraries.items()}
"""What people call a library."""
LIBRARIES = list(MODULES)
"""Whose formats can be written."""
GGUF_TYPES = ("f32", "f16", "bf16", "q8_0", "q4_k_m")
"""How a GGUF file keeps weights."""
HEADS = ("hf", "timm", "torchvision")
"""Whose classifiers are written of runs with a head for a table."""
ENOUGH = 1e-4
"""A larger difference of outputs of order one is not rounding."""
MOST_COMPARED = 3_000_000_000
"""Parameters of the largest model that is opened a second time, by its own library."""


def info(args: list[str]) -> int:
    """Runs `triune info` and returns its exit code."""
    p = Parser(
        prog="triune info",
        description="Say what a checkpoint is and what can be done with it, and compare its outputs with those of its "
        "own library, where that is installed.",
    )
    p.add_argument("checkpoint", help="folder, file, run, or a name on the Hugging Face hub or in timm")
    options = p.parse_args(args)
    task = task_of(options.checkpoint)
    room = _room(task)
    pretrained = room.load(options.checkpoint)
    _show(_lines(task, pretrained))
    for line in _original(room, pretrained):
        print(line)
    return 0


def convert(args: list[str]) -> int:
    """Runs `triune convert` and returns its exit code."""
    p = Parser(
        prog="triune convert",
        description="Write a checkpoint in another library's format. The source is opened by its own library and the "
        "result by the other, where they are installed, and their outputs and tokens are compared with ours before the "
        "command says that it is done.",
    )
    p.add_argument("checkpoint", help="folder, file, run, or a name on the Hugging Face hub or in timm")
    p.add_argument(
        "folder", type=Path, help="folder to write, or a file that ends in .gguf; replaced only by a complete one"
    )
    p.add_argument("--to", choices=LIBRARIES, help="whose format; gguf is llama.cpp's, and what .gguf means")
    p.add_argument(
        "--type", choices=GGUF_TYPES,
        help="of a GGUF file: bits of its weights (default f16; q8_0 takes half, q4_k_m a quarter of it)",
    )  # fmt: skip
    p.add_argument("--overwrite", action="store_true", help="replace a folder or file that exists")
    options = p.parse_args(args)
    _check_target(options)
    if (task := _with_head(options.checkpoint)) and options.to in HEADS:
        return _convert_head(task, options.checkpoint, options.folder, options.to)
    task = task_of(options.checkpoint)
    room = _room(task)
    pretrained = room.load(options.checkpoint)
    _show(_lines(task, pretrained))
    for line in _original(room, pretrained):
        print(line)
    if options.to == "gguf":
        return _convert_gguf(room, pretrained, options.folder, options.type or "f16")
    folder = room.export(pretrained, options.folder, options.to)
    print(_parity_report(room, pretrained, folder, options.to))
    return 0


def _check_target(options: argparse.Namespace) -> None:
    """Completes --to. Raises UserError for options that do not fit each other, and for a target that exists."""
    ends = options.folder.suffix == ".gguf"
    if options.to is None and not ends:
        raise UserError(f"--to is missing, but says whose format: {', '.join(LIBRARIES)}.")
    options.to = options.to or "gguf"
    if ends != (options.to == "gguf"):
        raise UserError(
            f"'{options.folder}' is given with --to {options.to}, but a file for llama.cpp (--to gguf) must end in "
            ".gguf, and a folder for others must not."
        )
    if options.type is not None and options.to != "gguf":
        raise UserError("--type is given, but only --to gguf uses it; leave it out.")
    claim([options.folder])
    if options.folder.exists() and not options.overwrite:
        raise UserError(f"'{options.folder}' exists already; give a new name, or --overwrite to replace it.")
    if options.to == "gguf" and options.folder.is_dir():
        raise UserError(f"'{options.folder}' is a folder, but a GGUF file is one file; give another name.")


def _convert_gguf(room: Any, pretrained: Pretrained, path: Path, type_: str) -> int:
    """Writes a file for llama.cpp and compares what it makes of it, where it is installed."""
    if not hasattr(room, "report_gguf"):
        raise UserError("Only language models can be written for llama.cpp (--to gguf); take another format.")
    room.export(pretrained, path, "gguf", type_)
    print("\n".join([*room.report_gguf(pretrained, path), f"Done: '{path}' has {path.stat().st_size / 1e6:,.1f} MB."]))
    return 0


def _with_head(name: str) -> str:
    """The task of a run or model with a head of a table; an empty text for another checkpoint."""
    for folder in (Path(name), Path(name) / "model"):
        if (folder / CONFIG).is_file():
            found = read_json(folder / CONFIG).get("architecture")
            for task, about in tasks().items():
                if about.modality and found == named(about.modality).model.__name__:
                    return task
    return ""


def _convert_head(task: str, name: str, folder: Path, library: str) -> int:
    """Writes a model with a head as the class of another library that has such a head."""
    from .core.labelled.export import write_head
    from .core.training.run.folder import model_folder

    words = write_head(named(tasks()[task].modality), _room(task), model_folder(name, task), folder, library)
    print("\n".join(words))
    return 0


def task_of(name: str) -> str:
    """The task whose checkpoint this is. Raises UserError, listing what is supported, when it is nobody's."""
    source = _find(name)
    if source.is_ours:
        architecture = str(source.config.get("architecture"))
        if architecture not in OURS:
            raise UserError(
                f"'{name}' holds a {architecture} of triune, which has no counterpart in other libraries; those that "
                f"have one are {', '.join(OURS)}."
            )
        return OURS[architecture]
    problem: UserError | None = None
    for task in ROOMS:
        try:
            room = _room(task)
            if any(family.fits(source) for family in room.FAMILIES):
                return task
            getattr(room, "refuse", lambda _: None)(source)
        except UserError as error:  # a kind of file that another task may know, or says best what is wrong with
            problem = error
    raise problem or UserError(_nobodys(source))


def _find(name: str) -> Source:
    """The checkpoint of that name. Tasks that know names beyond files and the hub are asked first."""
    problem: UserError | None = None
    for finder in (task.find for task in ROOMS.values() if task.find):
        try:
            return named(finder)(name)
        except UserError as error:
            problem = problem or error
    if problem:
        raise problem
    return open_source(name)


def _nobodys(source: Source) -> str:
    found = source.config.get("model_type") or source.config.get("architecture")
    supported = "; ".join(
        f"{task}: {', '.join(dict.fromkeys(family.name for family in _room(task).FAMILIES))}" for task in ROOMS
    )
    what = f"is '{found}', which is not supported" if found else "does not say its architecture"
    return f"'{source.name}' {what}; supported are {supported}."


def _room(task: str) -> Any:
    return import_module(ROOMS[task].checkpoints)


def _parity_report(room: Any, pretrained: Pretrained, folder: Path, library: str) -> str:
    again = room.load(str(folder))
    ours, theirs = pretrained.model.state_dict(), again.model.state_dict()
    changed = [name for name, tensor in ours.items() if name not in theirs or not torch.equal(tensor, theirs[name])]
    if changed:
        raise UserError(
            f"'{folder}' was written, but {len(changed)} of {len(ours)} weights come back changed ({changed[0]}, …); "
            "do not use it, and please report this."
        )
    lines = [f"Round trip: all {len(ours)} tensors of '{folder}' come back bit-identical."]
    if library == "triune":
        return "\n".join([*lines, "Done."])
    try:
        difference = _difference(room, pretrained, folder, library)
    except UserError as error:
        return "\n".join([*lines, f"Outputs were not compared: {error}", "Done."])
    if not difference <= ENOUGH:
        raise UserError(
            f"'{folder}' was written, but {MODULES[library]}'s outputs differ from ours by up to {difference:.2g} "
            f"(allowed: {ENOUGH:g}); do not use it, and please report this."
        )
    lines.append(f"Parity: {MODULES[library]}'s outputs differ from ours by at most {difference:.2g}.")
    try:
        tokens = room.check_inputs(pretrained, folder, library)
    except UserError as error:
        raise UserError(f"'{folder}' was written, but {error} Do not use it, and please report this.") from None
    return "\n".join([*lines, *([tokens] if tokens else []), "Done."])


def _original(room: Any, pretrained: Pretrained) -> list[str]:
    """What the library that a checkpoint comes from makes of it, in a line or two; nothing for one of ours.

    Raises:
        UserError: its outputs or its tokens are others than ours, which means that we read it wrongly.
    """
    family, name = pretrained.family, pretrained.source.name
    if family is None:
        return []
    if (size := sum(p.numel() for p in pretrained.model.parameters())) > MOST_COMPARED:
        return [
            f"Source: not compared with its own library, because it is large ({size / 1e9:.1f} billion parameters)."
        ]
    try:
        difference = _difference(room, pretrained, pretrained.source.path, family.library)
    except UserError as error:
        return [f"Source: not compared with its own library: {error}"]
    library = MODULES[family.library]
    wrong = "it is not read here as it is there; do not use it, and please report this"
    if not difference <= ENOUGH:
        raise UserError(f"The outputs of {library} for '{name}' differ from ours by up to {difference:.2g}: {wrong}.")
    try:
        tokens = room.check_inputs(pretrained, pretrained.source.path, family.library)
    except UserError as error:
        raise UserError(f"The tokenizer of '{name}': {error} So {wrong}.") from None
    return [
        f"Source: {library}'s own outputs differ from ours by at most {difference:.2g}.",
        *([tokens] if tokens else []),
    ]


def _difference(room: Any, pretrained: Pretrained, path: Path, library: str) -> float:
    _quiet_transformers(library)
    return room.parity(pretrained, path, library)


def _quiet_transformers(library: str) -> None:
    """Its bars say nothing here: the model is loaded once to be compared."""
    if library == "hf" and find_spec("transformers"):
        import_module("transformers.utils.logging").disable_progress_bar()


def _lines(task: str, pretrained: Pretrained) -> list[tuple[str, str]]:
    family, config = pretrained.family, cast(Any, pretrained.model).config
    kind = "triune" if family is None else f"{family.name}, {MODULES.get(family.library, family.library)}"
    core = config.transformer.resolved()
    lines = [("checkpoint", f"{pretrained.source.name} ({kind}; task {task})"), ("parameters", _size(pretrained.model))]
    return lines + _core(core) + _room(task).facts(pretrained)


def _size(model: nn.Module) -> str:
    numbers = {p.data_ptr(): p.numel() for p in model.parameters()}
    count = sum(numbers.values())
    return f"{count:,} ({4 * count / 1e6:,.0f} MB in float32)"


def _core(core: TransformerConfig) -> list[tuple[str, str]]:
    kv = f" ({core.kv_heads} of keys and values)" if core.kv_heads != core.heads else ""
    blocks = (
        f"{core.depth} x {core.dim}, {core.heads} heads{kv}, {core.ffn_words()} {core.ffn_dim}, {core.norm}, "
        + core.placement
        + (", causal" if core.causal else "")
    )
    rotary = core.rotary if isinstance(core.rotary, RotaryConfig) else None
    turned = f" (base {rotary.base:g}, {rotary.scaling})" if rotary and core.position == "rotary" else ""
    windows = sorted({str(core.window_at(layer)) for layer in range(core.depth)} - {"None"})
    lines = [("blocks", blocks), ("positions", f"{core.position}{turned}")]
    return lines + ([("window", f"{' and '.join(windows)} tokens")] if windows else [])


def _show(lines: Sequence[tuple[str, str]]) -> None:
    width = max(len(name) for name, _ in lines)
    for name, text in lines:
        print(f"{name:{width}}  {text}")

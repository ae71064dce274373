"""Models on disk: a folder with `config.json` and `model.safetensors`."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError

CONFIG, WEIGHTS = "config.json", "model.safetensors"
FORMAT = 1
"""Version of the layout; raised when an old reader could not read a new folder."""

MAX_CONFIG_BYTES = 16 << 20


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old content or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~umask())  # a temporary file is private, the file it becomes is not
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def umask() -> int:
    """The permissions that new files of this process do not get."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def save(
    folder: str | os.PathLike[str], architecture: str, config: Mapping[str, Any], state: Mapping[str, Tensor]
) -> None:
    """Write a model: the weights first, so that a folder with a config always has weights beside it.

    Args:
        folder: created if needed.
        architecture: name of the class that loads it, checked by `load_config`.
        config: plain values that rebuild the model.
        state: the state dict; tensors that share memory (tied weights) are stored once, under their first name.
    """
    from safetensors.torch import save as to_bytes

    from ..version import __version__

    folder, seen, unique = Path(folder), set(), {}
    for name, tensor in state.items():
        key = (tensor.data_ptr(), tensor.shape, tensor.stride()) if tensor.numel() else name
        if key not in seen:
            seen.add(key)
            unique[name] = tensor.detach().cpu().contiguous()
    header = {"library": "triune", "format": FORMAT, "version": __version__, "architecture": architecture}
    write_atomic(folder / WEIGHTS, to_bytes(unique, metadata={"format": "pt"}))
    write_atomic(folder / CONFIG, (json.dumps(header | dict(config), indent=2) + "\n").encode())


def load_config(folder: Path, *architectures: str) -> dict[str, Any]:
    """Read `config.json`. Raises UserError when it is missing, damaged, or describes none of `architectures`."""
    path = folder / CONFIG
    if not folder.is_dir():
        raise UserError(f"There is no model folder '{folder}'; it must hold {CONFIG} and {WEIGHTS}.")
    if not path.is_file():
        raise UserError(f"The folder '{folder}' is not a model: it has no {CONFIG} (it holds {_listing(folder)}).")
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise UserError(f"'{path}' is {path.stat().st_size:,} bytes, far too large for a config; is it another file?")
    try:
        config = json.loads(path.read_bytes())
        found = config.get("architecture")
    except (ValueError, AttributeError) as error:
        raise UserError(f"'{path}' is not a valid config ({error}); it was damaged or is another file.") from None
    if config.get("library") != "triune" or found not in architectures:
        expected = " or ".join(architectures)
        raise UserError(f"'{path}' describes {found or 'an unknown model'}, but {expected} was expected here.")
    if config.get("format", 0) > FORMAT:
        raise UserError(
            f"'{path}' was written by triune {config.get('version')}, which is newer; please upgrade triune."
        )
    return config


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Read `model.safetensors`. Raises UserError when it is missing or damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / WEIGHTS
    if not path.is_file():
        raise UserError(f"'{folder}' has a {CONFIG} but no weights ({WEIGHTS}); it holds {_listing(folder)}.")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"'{path}' cannot be read as safetensors ({error}); it was cut short or damaged.") from None


def load_weights(model: nn.Module, folder: Path) -> None:
    """Load the weights of `folder` into `model`, strictly: see `load_state`."""
    load_state(model, read_weights(folder), str(folder))


def load_state(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Copy `state` into `model`; every name and shape must agree.

    Names of `model` that share a tensor with a stored name (tied weights) may be absent. Raises UserError listing what
    is missing, unexpected or of another shape.
    """
    own = model.state_dict()
    present = {own[name].data_ptr() for name in state if name in own}
    missing = [n for n, t in own.items() if n not in state and not (t.numel() and t.data_ptr() in present)]
    unexpected = [n for n in state if n not in own]
    shapes = [
        f"{n} is {tuple(state[n].shape)} there and {tuple(own[n].shape)} here"
        for n in state
        if n in own and state[n].shape != own[n].shape
    ]
    problems = [("missing", missing), ("unexpected", unexpected), ("of another shape", shapes)]
    text = "; ".join(f"{len(names)} {kind}: {few(names)}" for kind, names in problems if names)
    if text:
        raise UserError(f"The weights of '{source}' do not fit this model ({text}); was it made with other settings?")
    with torch.no_grad():
        for name, tensor in state.items():
            own[name].copy_(tensor)


def few(names: list[str], most: int = 4) -> str:
    """The first names, and how many more there are."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def _listing(folder: Path) -> str:
    names = sorted(p.name for p in folder.iterdir())
    return few(names) if names else "nothing"

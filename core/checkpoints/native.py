"""Models on disk: a folder with `config.json` and `model.safetensors`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..files import few, listing, read_json
from .checksums import COMPANIONS, CONFIG, check_config, check_file, write_config
from .stored import Stored, write_tensors

WEIGHTS = "model.safetensors"
FORMAT = 1
"""Version of the layout; raised when an old reader could not read a new folder."""


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Types that weights can be kept in."""


def dtype_of(name: str | torch.dtype) -> torch.dtype:
    """One of `DTYPES`, by its name or as it is. Raises UserError for any other."""
    found = DTYPES.get(name, name) if isinstance(name, str) else name
    if not isinstance(found, torch.dtype) or found not in DTYPES.values():
        raise UserError(f"dtype is {name}, but must be {', '.join(DTYPES)}; take one of these.")
    return found


def save(
    folder: str | os.PathLike[str], architecture: str, config: Mapping[str, Any], state: Mapping[str, Tensor]
) -> None:
    """Writes a model: the weights first, so that a folder with a config always has weights beside it.

    Args:
        folder: created if needed.
        architecture: name of the class that loads it, checked by `load_config`.
        config: plain values that rebuild the model.
        state: the state dict; tensors that share memory (tied weights) are stored once, under their first name. Where
            they are cut over processes (FSDP2), all processes must call this.
    """
    from ..version import __version__

    folder, seen, unique = Path(folder), set(), {}
    for name, tensor in state.items():
        local: Tensor = getattr(tensor, "to_local", lambda tensor=tensor: tensor)()
        key = (local.data_ptr(), local.shape, local.stride()) if local.numel() else name
        if key not in seen:
            seen.add(key)
            unique[name] = whole(tensor).cpu().contiguous()
    header = {"library": "triune", "format": FORMAT, "version": __version__, "architecture": architecture}
    write_tensors(folder / WEIGHTS, unique, {"format": "pt"})
    write_config(folder, header | dict(config), (WEIGHTS, *COMPANIONS))


def whole(tensor: Tensor) -> Tensor:
    """A tensor without its gradient; put together where it is cut over processes (all of which must call)."""
    # The class of such tensors is not asked for, because importing it takes as long as half of PyTorch.
    tensor = tensor.detach()
    return getattr(tensor, "full_tensor", lambda: tensor)()


def load_config(folder: Path, *architectures: str) -> dict[str, Any]:
    """Reads `config.json`. Raises UserError when it is missing, damaged, or describes none of `architectures`."""
    path = folder / CONFIG
    if not folder.is_dir():
        raise UserError(f"There is no model folder '{folder}'; it must hold {CONFIG} and {WEIGHTS}.")
    if not path.is_file():
        raise UserError(f"The folder '{folder}' is not a model: it has no {CONFIG} (it holds {listing(folder)}).")
    config = read_json(path)
    found = config.get("architecture")
    if config.get("library") != "triune" or found not in architectures:
        expected = " or ".join(architectures)
        raise UserError(
            f"'{path}' describes {found or 'an unknown model'}, but {expected} was expected here; give a model of that "
            "kind."
        )
    if config.get("format", 0) > FORMAT:
        raise UserError(
            f"'{path}' was written by triune {config.get('version')}, which is newer; please upgrade triune."
        )
    check_config(path, config)
    return config


def read_weights(folder: Path) -> Mapping[str, Tensor]:
    """The tensors of `model.safetensors`, read when asked for. Raises UserError when it is missing or damaged."""
    path = folder / WEIGHTS
    if not path.is_file():
        raise UserError(f"'{folder}' has a {CONFIG} but no weights ({WEIGHTS}); it holds {listing(folder)}.")
    return Stored([path])


def load_weights(model: nn.Module, folder: Path) -> None:
    """Loads the weights of `folder` into `model`, strictly: see `load_state`, and compares their checksum."""
    load_state(model, read_weights(folder), str(folder))
    check_file(folder, WEIGHTS)  # last: what does not fit says more by itself


def load_state(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Copies `state` into `model`; every name and shape must agree.

    Names of `model` that share a tensor with a stored name (tied weights) may be absent. Raises UserError listing what
    is missing, unexpected, of another shape, or not finite.
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
        raise UserError(
            f"The weights of '{source}' do not fit this model ({text}); give the settings that it was made with."
        )
    refuse_not_finite([name for name, tensor in state.items() if not finite(tensor)], source)
    with torch.no_grad():
        for name, tensor in state.items():
            own[name].copy_(tensor)


def refuse_overflow(model: nn.Module, source: str) -> None:
    """Raises UserError if a weight became infinite because float16 does not reach as far as the stored type."""
    state = {name: tensor for name, tensor in model.state_dict().items() if tensor.dtype == torch.float16}
    if names := [name for name, tensor in state.items() if not finite(tensor)]:
        raise UserError(
            f"{len(names)} weights of '{source}' hold values beyond 65,504, the largest of float16 ({few(names)}); "
            "take bfloat16 or float32."
        )


def finite(tensor: Tensor) -> bool:
    """Whether no value is infinite or no number; one pass, and no second tensor of this size."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    wide = tensor.float() if tensor.element_size() == 1 else tensor  # PyTorch cannot compare values of 8 bits
    return bool(torch.isfinite(torch.stack(wide.aminmax())).all())


def refuse_not_finite(names: list[str], source: str) -> None:
    """Raises UserError if there are `names`: of weights that hold values that are not finite, which would reach every
    output of a model.
    """
    if names:
        raise UserError(
            f"{len(names)} weights of '{source}' hold values that are not finite ({few(names)}): the file is damaged, "
            "or the training diverged; take another checkpoint."
        )

"""Checksums of a model folder, which its `config.json` holds: a byte that changed is found before it changes a number.

`checksum` is that of the other entries of `config.json`, `checksums` those of the files beside it. Who changes one of
these on purpose removes the entry, and folders without one (of before, of other libraries) are read without it. CRC-32
finds damage, not intent.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import read_json, write_json

OWN, FILES = "checksum", "checksums"
PIECE = 1 << 22
CONFIG = "config.json"
COMPANIONS = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")
"""Files that may lie beside the weights and decide what a model does."""


def of_file(path: Path) -> str:
    """CRC-32 of a file, as eight letters."""
    found = 0
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            found = zlib.crc32(piece, found)
    return f"{found:08x}"


def _of_config(config: Mapping[str, Any]) -> str:
    rest = {name: value for name, value in config.items() if name != OWN}
    return f"{zlib.crc32(json.dumps(rest, sort_keys=True).encode()):08x}"


def write_config(folder: Path, config: Mapping[str, Any], files: Iterable[str] = ()) -> None:
    """Writes `config.json` with its checksum, and those of `files` where they exist."""
    known = dict(config.get(FILES) or {})
    known |= {name: of_file(folder / name) for name in files if (folder / name).is_file()}
    content = {name: value for name, value in config.items() if name not in (OWN, FILES)}
    content |= {FILES: known} if known else {}
    write_json(folder / CONFIG, content | {OWN: _of_config(content)})


def vouch(folder: Path) -> None:
    """Notes the checksums of `COMPANIONS` that were just written into a model folder of ours; else does nothing."""
    if (config := _ours(folder)) is not None:
        write_config(folder, config, COMPANIONS)


def check_config(path: Path, config: Mapping[str, Any]) -> None:
    """Raises UserError when `config.json` is not as it was written."""
    if OWN in config and config[OWN] != _of_config(config):
        raise UserError(
            f"'{path}' does not match its checksum, so that it was damaged or changed; put the original back, or remove"
            f' its entry "{OWN}" if you changed it on purpose.'
        )


def check_file(folder: Path, name: str) -> None:
    """Raises UserError when a file of a model folder of ours is not as it was written."""
    config = _ours(folder)
    known = (config or {}).get(FILES)
    if isinstance(known, Mapping) and name in known and known[name] != of_file(folder / name):
        raise UserError(
            f"'{folder / name}' does not match its checksum in {CONFIG}, so that it was damaged or changed; put the"
            f' original back, or remove the entries "{FILES}" and "{OWN}" of {CONFIG} if you changed it on purpose.'
        )


def check_companions(folder: Path) -> None:
    """Raises UserError when one of `COMPANIONS` is not as it was written."""
    for name in COMPANIONS:
        if (folder / name).is_file():
            check_file(folder, name)


def _ours(folder: Path) -> dict[str, Any] | None:
    """The `config.json` of a model that triune wrote; None where there is no such."""
    try:
        config = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    except UserError:  # who reads the model says so
        return None
    if config.get("library") != "triune":
        return None
    check_config(folder / CONFIG, config)
    return config

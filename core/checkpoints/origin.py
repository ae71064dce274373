"""Which run the files of a run folder are of: each holds the checksum of the options that the run began with.

It stands in the second line of `config.yaml`, in the checkpoints, and as `origin` in `config.json` of the model and of
what a fine-tuning started from. Files of before hold none, and are taken as they are.

Two runs that begin with the same options and seed have the same origin. On the same data and machine they are equal bit
for bit, so that their files may stand for one another; a random part would end that equality. Where the data changed in
between, their files are not told apart by it.
"""

from __future__ import annotations

import re
import zlib
from pathlib import Path

from ..errors import UserError
from ..files import read_json
from .checksums import CONFIG, write_config

ENTRY, MODEL, PRETRAINED, OPTIONS = "origin", "model", "pretrained", "config.yaml"
MARK = "# origin "


def of_options(config: str) -> str:
    """The origin of a run that begins with these options (YAML below one line, the command, which names the folder)."""
    text = config.partition("\n")[2] if config.startswith("#") else config
    return f"{zlib.crc32(text.encode()):08x}"


def marked(config: str, origin: str | None) -> str:
    """The text of `config.yaml`, with the line that holds the origin below the command."""
    command, _, rest = config.partition("\n")
    return f"{command}\n{MARK}{origin}\n{rest}" if origin and command.startswith("#") else config


def of_run(run: Path) -> str | None:
    """What `config.yaml` of a run folder says; None where it does not."""
    try:
        with (run / OPTIONS).open(encoding="utf-8") as file:
            file.readline(100_000)
            found = re.fullmatch(rf"{MARK}([0-9a-f]{{8}})\n", file.readline(100))
    except (OSError, ValueError):
        return None
    return found[1] if found else None


def mark_model(folder: Path, origin: str | None) -> None:
    """Notes the origin of a model folder of ours that was just written."""
    if origin and (folder / CONFIG).is_file() and (config := read_json(folder / CONFIG)).get("library") == "triune":
        write_config(folder, {**config, ENTRY: origin})


def foreign_model(run: Path, name: str = MODEL) -> str:
    """Says that `model/`, or another folder of this form, of a run folder is of another run; empty where it is not, or
    where that is not known.
    """
    own, model = of_run(run), run / name
    if own is None or not (model / CONFIG).is_file():
        return ""
    config = read_json(model / CONFIG)
    other = config.get(ENTRY) if isinstance(config, dict) else None
    return f"'{model}' is of another run than '{run / OPTIONS}' beside it" if other not in (None, own) else ""


def refuse_foreign_start(run: Path) -> None:
    """Raises UserError when `pretrained/` of a run folder is of another run."""
    if about := foreign_model(run, PRETRAINED):
        raise UserError(
            f"{about}; put the original back, or move it away: then the checkpoint that the run started from is read "
            "again."
        )


def refuse_foreign_model(run: Path) -> None:
    """Raises UserError when `model/` of a run folder is of another run."""
    if about := foreign_model(run):
        raise UserError(
            f"{about}; put the original back, or move it away and let `triune TASK validate {run}` write the run's own;"
            f" named as '{run / MODEL}' it is used as it is."
        )

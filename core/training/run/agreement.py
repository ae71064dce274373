"""Several processes of one training: whether all run the same code with the same options on the same data."""

from __future__ import annotations

import datetime
import hashlib
import os
import socket
import time
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Callback, LightningModule, Trainer

from ...errors import UserError
from ..data import ResumableData
from ..lightning_fixes import across
from .changes import leaves
from .machine import versions
from .session import Session

OWN = ("threads", "data.cache", "data.workers", "trainer.default_root_dir")
"""Options that may differ from one machine to another."""
SHOWN = 3
"""Differences that are named."""
SECONDS = 5
"""Within which the launcher's store must answer."""


class Agreement(Callback):
    """Ends a training of several processes before its first step where these are not of one mind."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if trainer.world_size == 1:
            return
        options = leaves(yaml.safe_load(self.session.config_text))
        same = {name: value for name, value in options.items() if not any(fnmatch(name, own) for own in OWN)}
        code = {"triune's code": code_sum(), **{f"the version of {name}": v for name, v in versions().items()}}
        compare(trainer, code | {f"--{name}": value for name, value in same.items()})

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data = self.session.data
        settings = data.order_settings() if isinstance(data, ResumableData) else {}
        compare(trainer, {f"of the data, {name}": value for name, value in settings.items()})


def compare(trainer: Trainer, facts: dict[str, Any]) -> None:
    """Raises UserError in the first process, where one has other facts than it; the others then end without a word."""
    if trainer.world_size == 1:
        return
    found = across((socket.gethostname(), facts))
    first = found[0][1]
    for number, (host, theirs) in enumerate(found):
        names = [name for name in {**first, **theirs} if first.get(name) != theirs.get(name)]
        if names:
            if trainer.global_rank:
                time.sleep(1)  # a launcher ends all processes when the first one is gone
                raise SystemExit(2)
            shown = "; ".join(f"{n} is {first.get(n)} in process 0, {theirs.get(n)} there" for n in names[:SHOWN])
            more = f" (and {len(names) - SHOWN} more)" if len(names) > SHOWN else ""
            raise UserError(
                f"Process {number} on '{host}' does not run what process 0 on '{found[0][0]}' runs: {shown}{more};"
                " start the same command with the same version on all machines."
            )


def code_sum() -> str:
    """A sum over the source of the package."""
    root, found = Path(__file__).parents[3], hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        if path.relative_to(root).parts[0] not in ("tests", "bench"):
            found.update(path.read_bytes())
    return found.hexdigest()[:12]


def first_to_say(text: str) -> bool:
    """Whether no other process of this job has said a sentence before; True where there is none to ask."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return True
    try:
        from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = TCPStore(host, port, is_master=False, timeout=datetime.timedelta(seconds=SECONDS))
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        return store.add(f"triune/{attempt}/{hashlib.sha256(text.encode()).hexdigest()}", 1) == 1
    except Exception:  # the launcher has gone: better said twice than not at all
        return True

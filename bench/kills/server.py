"""Runs command lines of triune, each in a process of its own that costs no import: the server imports all, then forks.

`python -m triune.bench.kills.server` reads a job in JSON from each line of its input, and answers with a line.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import importlib.util
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from .moments import Moments

SECONDS, GRACE = 600, 60
"""For a command, and for the other processes of a training once one of them has ended with an error: as the agent of
torchrun does, it then ends them.
"""


LOADED = (
    "triune.core.training.run.cli", "triune.core.training.run.plot", "triune.core.training.run.page",
    "triune.protein.language.task", "triune.protein.pair.task", "triune.text.task", "triune.vision.task",
    # what a training loads when it needs it
    "matplotlib.backends.backend_agg", "matplotlib.figure", "matplotlib.ticker", "torch.utils.tensorboard",
    "lightning.pytorch.loggers.tensorboard", "safetensors.torch", "triune.text.checkpoints.pretrained",
)  # fmt: skip
"""What the processes have from the server, and need not load."""


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code (negative: the signal that ended it), all that it printed, and in seconds."""

    code: int
    printed: str
    seconds: float


class Server:
    """Another process that runs command lines. `seed` is that of Python's hashes, whose order must not matter."""

    def __init__(self, seed: int = 0) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "TRIUNE_"))}
        environment |= {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": str(seed)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__], env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write("\n")  # as another fork of this process may hold the input open
        self._process.stdin.close()
        self._process.wait(SECONDS)
        self._process.stdout.close()

    def run(
        self, folder: Path, words: list[str], at: int = 0, number: int = 9, names: Path | None = None, ranks: int = 1,
        rank: int = 0, environment: dict[str, str] | None = None,
    ) -> Ended:  # fmt: skip
        """Runs `triune WORDS` in `folder`, with a signal at a moment (see `Moments`).

        Several `ranks` are processes as torchrun starts them; the signal comes to one of them, `rank`. The words
        `call FILE FUNCTION WORD …` run a function of a file of Python instead of a command line. `environment` is added
        to what the processes have of the server's.
        """
        job = {"folder": str(folder), "words": words, "at": at, "signal": number, "names": names and str(names)}
        job |= {"ranks": ranks, "rank": rank, "environment": environment or {}}
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        return Ended(**json.loads(self._process.stdout.readline()))


def serve() -> None:
    """The server's side: run the jobs until an empty line, or until the input ends."""
    import gc

    for name in LOADED:
        importlib.import_module(name)

    gc.freeze()  # else the first collection of each process copies all that is shared
    for line in sys.stdin:
        if not line.strip():
            break
        print(json.dumps(_run(json.loads(line))), flush=True)


def _run(job: dict[str, Any]) -> dict[str, Any]:
    began, output, children = time.monotonic(), Path(job["folder"], f".printed-{os.getpid()}"), []
    output.unlink(missing_ok=True)
    job["port"] = _free_port()
    for rank in range(job["ranks"]):
        child = os.fork()
        if not child:
            _become(job, output, rank)
        children.append(child)
    code = exit_code(*children)
    printed = output.read_text(errors="replace")
    output.unlink()
    return {"code": code, "printed": printed, "seconds": time.monotonic() - began}


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def exit_code(*children: int) -> int:
    """The exit code of a child, of several the first that is not 0; those that have not ended after `SECONDS`, that
    outlive another that was killed, or by `GRACE` one that ended with an error, are killed, which is code -9.
    """
    handles, codes, end = {os.pidfd_open(child): child for child in children}, [], time.monotonic() + SECONDS
    while handles:
        ended = select.select(list(handles), [], [], max(0.0, end - time.monotonic()))[0]
        for handle in ended:
            os.close(handle)
            codes.append(os.waitstatus_to_exitcode(os.waitpid(handles.pop(handle), 0)[1]))
        if any(codes):
            end = min(end, time.monotonic() + GRACE)
        if not ended or -signal.SIGKILL in codes:
            for child in handles.values():
                os.kill(child, signal.SIGKILL)
    return next((code for code in codes if code), 0)


def _become(job: dict[str, Any], output: Path, rank: int) -> None:
    """Be the command line of a job, to the end of the process."""
    from triune.cli import main

    os.setsid()  # signals go to the whole group
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    target = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(target, stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(job["folder"])
    os.environ |= job["environment"]
    faulthandler.dump_traceback_later(SECONDS - 5)  # where it hangs
    if (world := str(job["ranks"])) != "1":
        names = ("RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
        os.environ |= dict(
            zip(names, (f"{rank}", f"{rank}", "0", world, world, "127.0.0.1", str(job["port"])), strict=True)
        )
        os.environ["TORCHELASTIC_RUN_ID"] = "none"
    mine = rank == job["rank"]
    moments = Moments(job["at"] * mine, job["signal"], Path(job["names"]) if mine and job["names"] else None)
    moments.watch()
    code = 1
    try:
        code = _call(*words[1:]) if (words := job["words"])[:1] == ["call"] else main(words)
    except KeyboardInterrupt:
        code = 130
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            moments.close()
    sys.exit(code)


def _call(file: str, function: str, *words: str) -> int:
    spec = importlib.util.spec_from_file_location("called", file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["called"] = module
    spec.loader.exec_module(module)
    getattr(module, function)(*words)
    return 0


if __name__ == "__main__":
    serve()

"""`python -m triune.bench.kills.streams [--only WHAT] [VERB …]`: every verb with streams and folders that are closed.

The reader of its output has left (`| head -1`), a standard stream is closed, its output cannot be written, no file may
grow beyond some bytes, or its folder is one where it may make nothing (as another user, which only root can become).
Each ends with exit code 0 or with one sentence and 2, and what was there before stays as it was.
"""

from __future__ import annotations

import argparse
import contextlib
import encodings.utf_8_sig  # noqa: F401 (who may read nothing cannot load it)
import importlib
import io
import os
import resource
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from triune import cli

from ..refusals.lines import FOREVER, GOOD, Words
from ..refusals.options import line_of
from ..refusals.run import make_good, make_runs
from ..refusals.sweep import HANGS, SECONDS, SERVES, _prepare, settings_of
from .server import LOADED, Ended, exit_code

NOBODY, BYTES = 65534, 1500


def _reader_gone() -> None:
    read, write = os.pipe()
    os.close(read)
    os.dup2(write, 1)


def _no_stream(number: int) -> Callable[[], None]:
    def close() -> None:
        os.close(number)
        setattr(sys, ("stdin", "stdout", "stderr")[number], None)  # as Python does at its start

    return close


def _not_writable() -> None:
    os.dup2(os.open(os.devnull, os.O_RDONLY), 1)


def _small() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (BYTES, BYTES))


def _locked() -> None:
    os.chmod(".", 0o555)
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)


def _as_at_the_start() -> io.TextIOWrapper:
    """The standard output as Python opens it at its start."""
    raw: Any = io.FileIO(1, "w", closefd=False)
    raw.name = "<stdout>"
    return io.TextIOWrapper(io.BufferedWriter(raw))


WAYS: dict[str, Callable[[], None]] = {
    "reader gone": _reader_gone, "no stdin": _no_stream(0), "no stdout": _no_stream(1), "no stderr": _no_stream(2),
    "stdout not writable": _not_writable, "no room": _small, "no right to write": _locked,
}  # fmt: skip


def run(words: Words, way: str, place: Path) -> Ended:
    """Runs a verb in `place`, in a process of its own."""
    shown = place.parent / f"{place.name}.shown"
    child = os.fork()
    if not child:
        code = 1
        with contextlib.suppress(BaseException), shown.open("w") as file:
            for stream in (1, 2):
                os.dup2(file.fileno(), stream)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            signal.signal(signal.SIGALRM, lambda *_: os._exit(0 if words in FOREVER else HANGS))
            signal.alarm(SERVES if words in FOREVER else SECONDS)
            os.chdir(place)
            try:
                WAYS[way]()
                if sys.stdout is not None:
                    sys.stdout = _as_at_the_start()
                code = cli.main([*line_of(words), *settings_of(words)])
                if sys.stdout is not None:
                    sys.stdout.flush()  # as Python does at its end
            except SystemExit as error:
                code = error.code if isinstance(error.code, int) else 1
            except BaseException:
                traceback.print_exc(file=file)
            file.flush()
        os._exit(code)
    return Ended(exit_code(child), shown.read_text(errors="replace"), 0.0)


def judge(words: Words, way: str, ended: Ended, before: set[str], after: set[str]) -> str:
    """What is wrong, in words; empty where nothing is."""
    if ended.code not in (0, 2) or "Traceback" in ended.printed or "Exception ignored" in ended.printed:
        return "it broke"
    said = [line for line in ended.printed.splitlines() if line.startswith("error: ")]
    if ended.code == 2 and way != "no stderr" and (len(said) != 1 or not said[0].endswith(".")):
        return f"{len(said)} sentences"
    if way in ("no stdin", "no stderr", "reader gone", "no stdout") and ended.code:
        return "it did not do its work"
    whole = way == "stdout not writable"  # all is written before that is known
    left = after - before if ended.code and not whole else set()
    names = {name for name in left if not name.startswith(("cache", "runs")) and not name.endswith(".lock")}
    return f"left behind: {sorted(names)}" if names and words[1:2] not in (("fit",), ("pretrain",), ("shard",)) else ""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m triune.bench.kills.streams")
    parser.add_argument("verb", nargs="*", help="such as: text fit; all by default")
    parser.add_argument("--only", choices=list(WAYS), help="one way; all by default")
    parser.add_argument("--good", type=Path, help="a folder for the models and data, made where it is not there")
    chosen, tried, faults = parser.parse_args(), 0, 0
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        os.environ["TRIUNE_CACHE"] = f"{name}/cache"
        good = (chosen.good or Path(name, "good")).absolute()
        if not good.exists():
            make_good(good)
            _prepare(good)
        make_runs(good)
        for module in LOADED:  # who may read nothing cannot load them
            importlib.import_module(module)
        for words in GOOD:
            if words[: len(chosen.verb)] != tuple(chosen.verb):
                continue
            for way in [chosen.only] if chosen.only else WAYS:
                place = Path(name, str(tried))
                place.mkdir()
                (place / "ok").symlink_to(good)
                tried += 1
                before = {str(path.relative_to(place)) for path in place.rglob("*") if path.is_file()}
                ended = run(words, way, place)
                after = {str(path.relative_to(place)) for path in place.rglob("*") if path.is_file()}
                if fault := judge(words, way, ended, before, after):
                    faults += 1
                    print(f"{way}: {fault}: {' '.join(words)}: {ended.code} {ended.printed.strip()[-600:]}", flush=True)
                shutil.rmtree(place)
            print(f"{' '.join(words)}: done", flush=True)
    print(f"{tried} calls, {faults} faults")
    return min(faults, 1)


if __name__ == "__main__":
    sys.exit(main())

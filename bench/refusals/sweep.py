"""`python -m triune.bench.refusals.sweep [WORDS …]`: every option of every verb with every bad value, for real.

Each command runs in a process of its own, forked from one that has imported everything; trainings take two steps. What
is neither refused in one sentence nor done is printed, and what is done with a value that no option has a use for.
`--accepted FILE` lists all that was done, to be read by a person.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import resource
import shutil
import signal
import sys
import tempfile
import traceback
from pathlib import Path

from triune import cli

from ..kills.server import Ended, exit_code
from .lines import FOREVER, GOOD, Words
from .options import NAMES, attempt, judge, pairs
from .run import make_good, make_runs

QUICK: str = (
    "--trainer.max_steps=2 --trainer.limit_val_batches=1 --trainer.logger=false --trainer.accelerator=cpu --threads=1"
)
SMALL = "--model.transformer.dim=16 --model.transformer.depth=1 --model.transformer.heads=2"
IMAGES = f"{QUICK} {SMALL} --data.batch_size=2 --model.patch_size=4"
TEXT = f"{QUICK} {SMALL} --data.context=16 --data.batch_size=2"
SCORE: str = "--trainer.limit_val_batches=1 --trainer.limit_test_batches=1 --trainer.accelerator=cpu --threads=1"
SETTINGS: dict[tuple[str, str], str] = {
    ("text", "fit"): TEXT,
    ("text", "pretrain"): TEXT,
    ("vision", "fit"): IMAGES,
    ("vision", "pretrain"): IMAGES,
    ("protein", "fit"): f"{QUICK} --data.crop=16 --data.batch_size=1 --model.preset=tiny",
    ("protein", "pretrain"): f"{QUICK} --data.context=16 --data.batch_size=2 --model.size=tiny "
    "--model.structures=ok/set",
    ("vision", "probe"): "--data.batch_size=2",
}
TABLES: str = f"{QUICK} {SMALL} --data.batch_size=2"


def settings_of(words: Words) -> list[str]:
    """Further options that make a line of a verb that trains or scores a matter of a second."""
    if words[1:2] in (("validate",), ("test",)):
        return SCORE.split()
    if len(words) > 2 and words[2].startswith("--data.pairs"):
        small = [
            f"--model.{part}.{size}" for part in ("encoder", "decoder") for size in ("dim=16", "depth=1", "heads=2")
        ]
        return [*map(str, QUICK.split()), "--data.batch_size=2", *small]
    if words[1:2] == ("fit",) and len(words) > 2:
        return [*TABLES.split(), *(["--model.patch_size=4"] if words[0] == "vision" else [])]
    return SETTINGS.get(words[:2], "").split() if len(words) == 2 else []


ENDLESS = ("--trainer.max_steps=-1", "--trainer.max_steps=1000000000000000000")
"""These train until somebody stops them."""
LINE = "the line itself does not work"
SERVES, SECONDS, HANGS = 4, 120, 99
"""For a verb that does not end by itself, which counts as done, and for any other, which counts as a fault."""
BYTES = 24 << 30
"""Address space of a command: a size that no memory holds must be refused, not be tried."""


def in_a_process(words: Words, option: str, value: str, place: Path) -> Ended:
    """Run a verb with one bad value."""
    shown = place / ".shown"
    child = os.fork()
    if not child:
        code = 1
        with contextlib.suppress(BaseException), shown.open("w") as file:
            for stream in (1, 2):
                os.dup2(file.fileno(), stream)
            resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
            signal.signal(signal.SIGALRM, lambda *_: os._exit(0 if words in FOREVER else HANGS))
            signal.alarm(SERVES if words in FOREVER else SECONDS)
            try:
                ended, sentence = attempt(words, option, value, place, settings_of(words))
                file.write(f"Traceback of {sentence}" if ended == "traceback" else sentence)
                code = ended if isinstance(ended, int) else 1
            except BaseException:
                traceback.print_exc(file=file)
        os._exit(code)
    code = exit_code(child)
    return Ended(code, shown.read_text(errors="replace"), 0.0)


def _into_inputs(option: str, value: str) -> bool:
    """Whether a command would write into the folder of the inputs that all commands share."""
    return value.startswith("ok/") and option in NAMES


def _prepare(good: Path) -> None:
    """A small set of chains for the contact head of a language model."""
    words = f"protein prepare {good}/set --arrays {good}/chains.npz --no-mmseqs --val 0.3"
    with contextlib.redirect_stdout(io.StringIO()):
        assert cli.main(words.split()) == 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m triune.bench.refusals.sweep")
    parser.add_argument("verb", nargs="*", help="such as: text fit; all by default")
    parser.add_argument("--accepted", type=Path, help="a file that lists what was done")
    parser.add_argument("--every", type=int, default=1, help="only one of so many values")
    parser.add_argument("--start", type=int, default=0, help="the place of the first of them")
    parser.add_argument("--once", action="store_true", help="a value of an option at the first line of all that has it")
    parser.add_argument("--good", type=Path, help="a folder for the models and data, made where it is not there")
    parser.add_argument("--only", default="", help="a part of the names of the options")
    chosen = parser.parse_args()
    wanted = [words for words in GOOD if words[: len(chosen.verb)] == tuple(chosen.verb)]
    tried = faults = 0
    seen: set[tuple[str, str]] = set()
    with tempfile.TemporaryDirectory() as name, (chosen.accepted or Path(os.devnull)).open("w") as accepted:
        os.environ["TRIUNE_CACHE"] = f"{name}/cache"
        good = (chosen.good or Path(name, "good")).absolute()
        if not good.exists():
            make_good(good)
            _prepare(good)
        make_runs(good)
        Path(name, "ok").symlink_to(good)
        for words in GOOD:
            counted = tried
            found = [pair for pair in pairs(words, Path(name)) if not (chosen.once and pair in seen)]
            seen.update(found)
            if words not in wanted:
                continue
            for option, value in [("", ""), *found[chosen.start :: chosen.every], ("", "")]:
                if option and (
                    chosen.only not in option or f"{option}={value}" in ENDLESS or _into_inputs(option, value)
                ):
                    continue
                place = Path(name, str(tried))
                place.mkdir()
                (place / "ok").symlink_to(good)
                tried += 1
                ended = in_a_process(words, option, value, place)
                line = f"{' '.join(words)} {option}={value!r}: {ended.code} {ended.printed.strip()[-300:]}"
                if fault := judge(option, value, ended.code, ended.printed) if option else LINE * (ended.code != 0):
                    faults += 1
                    print(f"{fault}: {line}", flush=True)
                elif ended.code != 2:
                    print(line, file=accepted, flush=True)
                shutil.rmtree(place)
            print(f"{' '.join(words)}: {tried - counted} values", flush=True)
    print(f"{tried} values tried, {faults} faults")
    return min(faults, 1)


if __name__ == "__main__":
    sys.exit(main())

"""The verbs that write files without training, stopped while they do: what is left, and what the next call makes of
it.

`python -m triune.bench.kills.verbs [VERB …]`: every moment at which a file is opened, moved or removed, with every
signal and with a full disk.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from ..refusals.run import make_good, make_runs
from .moments import FULL_DISK
from .server import Server

VERBS: dict[str, tuple[str, str]] = {
    "embed": ("embed --table ok/texts.csv --input text --run ok/run-texts --out out.npz", "out.npz"),
    "predict": ("text predict ok/run-texts --table ok/texts.csv --input text --out out.csv", "out.csv"),
    "evaluate": ("evaluate ok/run-texts --tasks ok/texts.csv --out out.json", "out.json"),
    "mutations": ("protein mutations MKVLAAGIVGLL --run ok/esm --out out", "out"),
    "text shard": ("text shard ok/ok.txt out --tokenizer bytes --rows 300", "out"),
    "protein shard": ("protein shard ok/many.fasta out --rows 40 --val_fraction 0.3", "out"),
    "vision shard": ("vision shard ok/img out --rows 3", "out"),
    "export": ("vision export ok/vit --torch-export out.pt2", "out.pt2"),
    "gguf": ("convert ok/llama out.gguf", "out.gguf"),
    "convert": ("convert ok/lm out --to triune", "out"),
}
"""A command line each, and the file or folder that it writes."""
GOES_ON = ("embed", "text shard", "vision shard", "protein shard")
"""Verbs whose next call takes what the one before has left."""
CODES = {signal.SIGKILL: {-9, 0}, signal.SIGTERM: {143, -15, 0}, signal.SIGINT: {130, 0}, FULL_DISK: {2, 0}}
"""0: nothing was left to be done."""


def contents(place: Path) -> dict[str, bytes]:
    """The files in a folder, without what is given (`ok`) and the caches."""
    found = {}
    for path in sorted(place.rglob("*")):
        name = path.relative_to(place)
        if path.is_file() and name.parts[0] not in ("ok", "cache") and not name.name.startswith(".printed"):
            found[str(name)] = path.read_bytes()
    return found


class Stopped:
    """A verb, and what it writes when nothing happens to it.

    Args:
        verb: of `VERBS`.
        place: an empty folder, beside which `ok` is.
        server: where the commands run.
    """

    def __init__(self, verb: str, place: Path, server: Server) -> None:
        self.verb, self.place, self.server = verb, place, server
        self.words, self.out = VERBS[verb][0].split(), VERBS[verb][1]
        whole = self._folder("here")  # the notes of shards hold its name
        names = place / "names"
        ended = server.run(whole, self.words, names=names)
        assert ended.code == 0, ended.printed
        self.whole, self.names = contents(whole), names.read_text().splitlines()

    def _folder(self, name: str) -> Path:
        shutil.rmtree(self.place / name, ignore_errors=True)
        (self.place / name).mkdir(parents=True)
        (self.place / name / "ok").symlink_to(self.place.parent / "ok")
        return self.place / name

    def stop(self, at: int, number: int) -> list[str]:
        """Is stopped at a moment, and called again: what is wrong, in words."""
        folder, found = self._folder("here"), []
        ended = self.server.run(folder, self.words, at, number)
        if ended.code not in CODES[number] or "Traceback" in ended.printed:  # type: ignore[index]
            found.append(f"exit code {ended.code}: {ended.printed[-400:]}")
        left = contents(folder)
        if self.out in left and left[self.out] != self.whole[self.out]:
            found.append(f"{self.out} is not whole")
        if number != signal.SIGKILL and self.verb not in GOES_ON and (odd := set(left) - set(self.whole)):
            found.append(f"left behind: {sorted(odd)}")
        again = self.server.run(folder, self.words)
        if again.code == 2 and self.verb not in GOES_ON and left.keys() & self.whole.keys():
            again = self.server.run(folder, [*self.words, "--overwrite"])
        if again.code not in (0, 2) or (again.code == 2 and left.get(self.out) != self.whole.get(self.out, b"")):
            found.append(f"the next call ends with {again.code}: {again.printed[-400:]}")
        differing = [name for name, content in self.whole.items() if contents(folder).get(name) != content]
        if differing:
            found.append(f"{differing} are not those of a call that nothing happens to")
        shutil.rmtree(folder)
        return found


def main() -> int:
    wanted, faults, tried = sys.argv[1:] or list(VERBS), 0, 0
    with tempfile.TemporaryDirectory() as name, Server() as server:
        os.environ["TRIUNE_CACHE"] = f"{name}/cache"
        make_good(Path(name, "ok"))
        make_runs(Path(name, "ok"), ("run-texts",))
        for verb in wanted:
            stopped = Stopped(verb, Path(name, verb.replace(" ", "-")), server)
            for number in CODES:
                for at in range(1, len(stopped.names) + 1):
                    tried += 1
                    for fault in stopped.stop(at, int(number)):
                        faults += 1
                        where = f"{verb}, {int(number)} at {at} of {len(stopped.names)} ({stopped.names[at - 1]})"
                        print(f"{where}: {fault}", flush=True)
            print(f"{verb}: {len(stopped.names)} moments", flush=True)
    print(f"{tried} moments tried, {faults} faults")
    return min(faults, 1)


if __name__ == "__main__":
    sys.exit(main())

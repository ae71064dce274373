"""One training, killed at one moment and resumed, beside the same training left alone."""

from __future__ import annotations

import itertools
import random
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path

from triune.core.training.run.folder import RunFolder

from .compare import differences
from .moments import FULL_DISK, phases
from .server import Ended, Server
from .trainings import TRAININGS, Training

CODES = {signal.SIGKILL: {-9}, signal.SIGTERM: {143, -15}, signal.SIGINT: {130}, None: {0, 2}}
"""Exit codes of a training that such a signal ended, or, as None, a full disk; 0 where nothing was left to write.
SIGTERM outside of the training itself (before its first step, after its last) ends the process as the system does,
which a shell shows as 143 too."""
AGAIN = 0.2
"""Part of the points at which the resumed training is killed too."""
SIGNALS = [signal.SIGKILL] * 4 + [signal.SIGTERM, signal.SIGINT, None]


@dataclass(frozen=True)
class Point:
    """A moment of a training, its name, and the signal that comes then; None: the disk is full from then on."""

    at: int
    name: str
    signal: signal.Signals | None
    phase: str = ""
    again: int = 0
    """The moment at which the resumed training is killed, and resumed once more; 0 for none."""

    @property
    def what(self) -> str:
        """What happens, in a word."""
        return self.signal.name if self.signal else "full-disk"

    def __str__(self) -> str:
        again = f", and SIGKILL at moment {self.again} of the resumed one" if self.again else ""
        return f"{self.what} at moment {self.at} ({self.phase or 'any'}: {self.name}){again}"


class Killed:
    """A training, and what it leaves when nothing happens to it.

    Args:
        name: of `TRAININGS`.
        place: a folder for its data and runs.
        servers: where the commands run: the first ones, and those that resume.
    """

    def __init__(self, name: str, place: Path, servers: tuple[Server, Server]) -> None:
        self.training: Training = TRAININGS[name]
        self.place, self.servers = place.resolve(), servers
        self.training.make(place)
        self.check(self.train(0, self.training.command("whole")), {0})
        # The first run fills the cache of the data: its moments are not those of the others.
        names, again = self.place / "moments", self.training.command("again")
        self.check(self.train(1, again, names=names), {0})
        self.names = names.read_text().splitlines()
        if found := differences(self.place / "whole", self.place / "again"):
            raise AssertionError(f"two trainings that nothing happens to differ: {found}")

    def train(self, server: int, words: list[str], at: int = 0, number: int = 9, names: Path | None = None) -> Ended:
        """Runs a command line on one of the servers."""
        return self.servers[server].run(self.place, words, at, number, names, self.training.ranks)

    def check(self, ended: Ended, codes: set[int]) -> Ended:
        """The same, once its exit code is one of these."""
        if ended.code not in codes:
            raise AssertionError(f"exit code {ended.code}, but must be in {codes}: {ended.printed[-3000:]}")
        return ended

    def points(self, count: int, seed: int = 0) -> list[Point]:
        """So many moments, in order: of each phase in turn, and in a phase one of each name first, then any."""
        draw, found = random.Random(seed), phases(self.names)
        order: dict[str, list[int]] = {}
        for phase in dict.fromkeys(found):
            inside = [at for at, other in enumerate(found, 1) if other == phase]
            draw.shuffle(inside)
            first = list({self.names[at - 1]: at for at in inside}.values())
            draw.shuffle(first)
            order[phase] = first + [at for at in inside if at not in first]
        turns = [at for row in itertools.zip_longest(*order.values()) for at in row if at is not None]
        chosen = []
        for at in sorted(turns[:count]):
            again = draw.randint(1, len(self.names)) if draw.random() < AGAIN else 0
            chosen.append(Point(at, self.names[at - 1], draw.choice(SIGNALS), found[at - 1], again))
        return chosen

    def moment(self, name: str, share: float) -> int:
        """The number of a moment of this name; `share` says which: 0 the first, 1 the last."""
        found = [at for at, other in enumerate(self.names, 1) if other == name]
        return found[round(share * (len(found) - 1))]

    def run(self, point: Point) -> list[str]:
        """Trains, is killed, goes on, and compares: what differs, in words. The run is removed where nothing does."""
        run = RunFolder(self.place / f"{point.at}-{point.what}")
        words = self.training.command(run.path.name)
        number = FULL_DISK if point.signal is None else point.signal
        ended = self.check(self.train(0, words, point.at, number), CODES[point.signal])
        if point.signal is None and ended.code == 2 and "error: " not in ended.printed:
            raise AssertionError(f"not one sentence: {ended.printed[-3000:]}")
        words = self._going_on(run, words)
        if point.again:  # at a moment that the rest of the training may not have any more
            self.check(self.train(0, words, point.again), {-9, 0})
            words = self._going_on(run, words)
        self.check(self.train(1, words), {0})
        found = differences(self.place / "whole", run.path)
        if not found:
            shutil.rmtree(run.path)
        return found

    def _going_on(self, run: RunFolder, words: list[str]) -> list[str]:
        """The words that continue a run, or those that begin it where it has no checkpoint."""
        if run.last.exists() or run.previous.exists():
            return [*self.training.words.split(), "--run", run.path.name, "--resume", "true"]
        return words

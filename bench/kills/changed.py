"""`python -m triune.bench.kills.changed [TRAINING …] [--every N] [--seed S]`: a run is resumed with one option changed.

Each leaf option of its configuration in turn, or a seeded part of them. It is either refused in one sentence, with the
run as it was, or taken: then config.yaml holds it, and the weights are those of the unchanged run where the rules say
that it changes nothing for them. "no other weights" is for a person to look at: the option says that it changes the
training, and did not.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml

from triune.core.training.run.changes import FREE, VALIDATED, Change, leaves
from triune.core.training.run.folder import RunFolder

from .compare import _unequal
from .server import Server
from .trainings import TRAININGS

MORE = 2
"""Steps that the resumed run takes."""


def other(value: Any) -> Any:
    """Another value of the same type; None where there is no obvious one."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value * 0.5 if value else 0.125
    if isinstance(value, str):
        return f"{value}x"
    if isinstance(value, list) and value and all(isinstance(part, float | int) for part in value):
        return [part * 0.5 for part in value]
    return 1 if value is None else None


class Changed:
    """A short run, and what it is when it goes on without a change."""

    def __init__(self, name: str, place: Path, server: Server) -> None:
        self.place, self.server = place, server
        training = TRAININGS[name]
        training.make(place)
        steps = training.steps // 2
        self.words = training.words.split()
        command = training.command("whole")
        command[command.index("--trainer.max_steps") + 1] = str(steps)
        ended = server.run(place, command)
        assert ended.code == 0, ended.printed
        self.length = ["--trainer.max_steps", str(steps + MORE)]
        self.options = leaves(yaml.safe_load((place / "whole" / "config.yaml").read_text()))
        code, said, run = self.go_on([])
        assert code == 0, said
        self.weights = torch.load(run.last, weights_only=True)["state_dict"]

    def go_on(self, words: list[str]) -> tuple[int, str, RunFolder]:
        """Resumes a copy of the run."""
        run = RunFolder(self.place / "run")
        shutil.rmtree(run.path, ignore_errors=True)
        shutil.copytree(self.place / "whole", run.path)
        ended = self.server.run(self.place, [*self.words, "--run", "run", "--resume", "true", *self.length, *words])
        return ended.code, ended.printed, run

    def change(self, name: str, value: Any) -> tuple[str, str]:
        """What is wrong, in words, empty where nothing is; and how it ended."""
        text = value if isinstance(value, str) else json.dumps(value)
        code, said, run = self.go_on([f"--{name}={text}"])
        sentences = [line for line in said.splitlines() if line.startswith("error: ")]
        if code == 2:
            if len(sentences) != 1 or not sentences[0].endswith(".") or "Traceback" in said:
                return f"{len(sentences)} sentences: {said[-500:]}", "refused"
            for file in ("config.yaml", "checkpoints/last.ckpt", "metrics.csv"):
                if (run.path / file).read_bytes() != (self.place / "whole" / file).read_bytes():
                    return f"refused, but {file} is another: {said[-300:]}", "refused"
            return "", "refused"
        if code:
            return f"exit code {code}: {said[-600:]}", "broke"
        recorded = leaves(yaml.safe_load(run.config.read_text()))
        change = Change(name, self.options[name], recorded.get(name))
        if recorded.get(name) == self.options[name]:
            return "taken, but config.yaml has the old value", "taken"
        if change.rule.about and name not in said:
            return "changed without a word", "taken"
        weights = torch.load(run.last, weights_only=True)["state_dict"]
        same = not list(_unequal(self.weights, weights))
        if change.rule in (FREE, VALIDATED) and not same:
            return "other weights, though the rules say the same", "taken"
        return "", "no other weights" if same and change.rule not in (FREE, VALIDATED) else "taken"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m triune.bench.kills.changed")
    parser.add_argument("trainings", nargs="*", default=[], help=", ".join(TRAININGS))
    parser.add_argument("--every", type=int, default=1, help="only one of so many options")
    parser.add_argument("--seed", type=int, default=0, help="chooses them")
    chosen, faults = parser.parse_args(), 0
    with tempfile.TemporaryDirectory() as temporary, Server(1) as server:
        for name in chosen.trainings or TRAININGS:
            (place := Path(temporary, name)).mkdir()
            changed = Changed(name, place, server)
            asked = [(option, new) for option, old in changed.options.items() if (new := other(old)) is not None]
            asked = random.Random(chosen.seed).sample(asked, -(-len(asked) // chosen.every))
            counts: dict[str, int] = {}
            for number, (option, new) in enumerate(asked, 1):
                fault, how = changed.change(option, new)
                counts[how] = counts.get(how, 0) + 1
                faults += bool(fault)
                was = changed.options[option]
                print(f"{name} {number}/{len(asked)}: --{option}={new!r} (was {was!r}): {fault or how}", flush=True)
            print(f"{name}: {len(asked)} of {len(changed.options)} options, {counts}", flush=True)
    print(f"{faults} faults")
    return min(faults, 1)


if __name__ == "__main__":
    sys.exit(main())

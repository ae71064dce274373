"""`triune check`: all that is wrong with a configuration, and what its training takes, without training it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .core.errors import UserError
from .core.task import Task, named
from .tasks import tasks

if TYPE_CHECKING:
    from .core.training.run.check import Kind

USAGE = """\
usage: triune check [TASK [VERB]] [RECIPE | FILE.yaml | RUN] [options of `triune TASK fit`]

Says everything that is wrong with a configuration at once, or trains a few of its steps in a temporary folder and says
what the whole training takes: time, memory, work, and the largest batch that memory suffices for. Nothing is written
into a run folder. The exit code is 0 when training would start and 2 when it would not.

  TASK     may be left out where the configuration tells it: a run, or a recipe that only one task has
  VERB     such as fit (the default) or pretrain

examples
  triune check shakespeare-char-cpu --data.files input.txt
  triune check vision --data.root FOLDER --data.batch_size 256
  triune check protein pretrain --data.files swissprot.fasta.gz
  triune check runs/text/DATE"""


def main(args: list[str]) -> int:
    """Runs `triune check` and returns its exit code."""
    if not args or any(word in ("-h", "--help") for word in args):
        print(USAGE)
        return 0
    from .core.training.run import check

    kind, words = trained_by(args, "check")
    return check.main(kind, words)


def trained_by(args: list[str], command: str) -> tuple[Kind, list[str]]:
    """What trains for `[TASK [VERB]] [RECIPE | FILE.yaml | RUN] [options]`, and the options with the configuration.

    Args:
        command: of the command line, for its sentences.

    Raises:
        UserError: nothing says the task, or the configuration is none.
    """
    known, words = tasks(), list(args)
    name = words.pop(0) if words[0] in known else None
    verbs = _trains(known[name]) if name else []
    verb = words.pop(0) if words and words[0] in verbs else None
    config = words.pop(0) if words and not words[0].startswith("-") else None
    if config is not None:
        found, verb_found, file = _told(config, known if name is None else {name: known[name]}, command)
        name, verb, words = name or found, verb or verb_found, ["--config", file, *words]
    if name is None:
        raise UserError(f"`triune {command}` needs to know the task; say one of {', '.join(known)} before the options.")
    from .core.training.lightning_fixes import quiet
    from .core.training.run import check
    from .core.training.run.arguments import verb_of

    quiet()
    verb, package = verb or "fit", f"{__package__}.{name}"
    classes = verb_of(known[name], verb, words, package)
    return check.Kind(name, verb, named(classes.module), named(classes.data), package), words


def _trains(task: Task) -> list[str]:
    """Verbs of a task that train."""
    from .core.training.run.arguments import SCORING

    return [name for name, verb in task.verbs.items() if verb.module and name not in SCORING]


def _told(config: str, known: dict[str, Task], command: str) -> tuple[str | None, str | None, str]:
    """The task and verb of a run, a file or a recipe, as far as these say it, and the name for --config.

    Raises:
        UserError: it is none of these, or a recipe of several tasks.
    """
    from .core.training.run.folder import RunFolder
    from .core.training.run.recipes import folder, list_recipes

    path = Path(config)
    if path.is_dir():
        path = RunFolder.open(path).config
    if path.is_file():
        return *_header(path, known), str(path)
    wanted = config.removesuffix(".yaml")
    having = [name for name in known if wanted in {r.name for r in list_recipes(folder(f"{__package__}.{name}"))}]
    if len(having) > 1:
        raise UserError(
            f"'{config}' is a recipe of {' and '.join(having)}; say which: `triune {command} {having[0]} {config}`."
        )
    if not having:
        raise UserError(f"'{config}' is no recipe, file or run; `triune recipes` lists the recipes.")
    verb = next((verb for verb in _trains(known[having[0]]) if wanted == verb or wanted.startswith(f"{verb}-")), None)
    return having[0], verb, config


def _header(path: Path, known: dict[str, Task]) -> tuple[str | None, str | None]:
    """Task and verb in the first line of the config.yaml of a run."""
    try:
        with path.open(encoding="utf-8") as file:
            words = file.readline(10_000).removeprefix("#").split()[:3]
    except (OSError, ValueError):
        return None, None
    if len(words) == 3 and words[0] == "triune" and words[1] in known and words[2] in _trains(known[words[1]]):
        return words[1], words[2]
    return None, None

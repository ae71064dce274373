"""`triune TASK VERB …`: finds the code for a task and a verb, and imports nothing else.

`triune --help` needs neither torch nor Lightning: keep heavy imports out of this file.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import textwrap
import threading
from collections.abc import Iterator
from traceback import print_exception
from typing import Any, NoReturn

from .core.errors import Stopped
from .core.streams import discard, flushes, use_streams
from .core.task import Task, named
from .tasks import task, tasks

COMMANDS: dict[str, str] = {
    "check": "triune.check:main",
    "compare": "triune.compare:main",
    "demo": "triune.demo:main",
    "embed": "triune.embed:main",
    "evaluate": "triune.evaluate:main",
    "info": "triune.convert:info",
    "convert": "triune.convert:convert",
    "lens": "triune.lens.command:main",
    "nearest": "triune.nearest:main",
    "plan": "triune.plan:main",
    "report": "triune.report:main",
    "recall": "triune.recall.command:main",
    "emergence": "triune.recall.emergence:main",
    "scaling": "triune.scaling.command:main",
}


def main(args: list[str] | None = None) -> int:
    """Runs a command line and returns its exit code: 0, 1 (a bug), 2 (a mistake in the input), 130 (Ctrl-C) or
    143 (SIGTERM)."""
    words = list(sys.argv[1:] if args is None else args)
    if words[:1] == ["--"]:  # torchrun hands it on; without it, it takes --run for an option of its own
        del words[0]
    use_streams(lasting="generate" not in words[1:2])
    traceback = "--traceback" in words
    words = [word for word in words if word != "--traceback"]
    try:
        os.getcwd()
    except OSError as error:  # PyTorch's libraries would end the process
        _say(f"error: The present folder cannot be used ({error.strerror}); go to another.")
        return 2
    try:
        with terminable():
            code = dispatch(words)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        discard(sys.stdout.fileno())  # the reader (`| head`) has left
        return 0
    except KeyboardInterrupt:
        if traceback:
            raise
        _say("\nStopped.")
        return 130
    except Stopped as stop:
        if str(stop):
            _say(str(stop))
        return stop.code
    except Exception as error:
        refused = isinstance(error, OSError) and error.errno is not None
        if not refused and not is_user_error(error):
            raise
        if traceback:
            print_exception(error)
        text = refusal(error) if isinstance(error, OSError) else sentence(error)
        if not getattr(error, "said", False) and _first_to_say(text):
            _say(f"error: {text}")
        if refused and not flushes(sys.stdout):
            discard(sys.stdout.fileno())
        return 2
    finally:
        if locks := sys.modules.get("triune.core.lock"):
            locks.give_back()


def _first_to_say(text: str) -> bool:
    """Whether no other process of a job of torchrun has met the same mistake before."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return True
    from .core.training.run.agreement import first_to_say

    return first_to_say(text)


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Within it SIGTERM raises `Stopped`, so that what was begun is cleared away, and the exit code is 143.

    By default it ends the process where it stands, but not where Lightning's trainer runs, which takes note of it and
    then ends with 0 or 1.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield  # whoever owns the process owns its signals
        return
    signal.signal(signal.SIGTERM, _stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _stop(number: int, frame: object) -> NoReturn:
    raise Stopped(128 + number)


def is_user_error(error: BaseException) -> bool:
    """Whether an exception is the user's to mend; knows without importing the core when nothing has imported it."""
    errors = sys.modules.get("triune.core.errors")
    return errors is not None and isinstance(error, errors.UserError)


def refusal(error: OSError) -> str:
    """What the operating system refused, in a sentence: a full disk, a folder that may not be written, a lost file."""
    name = f"'{os.fsdecode(error.filename)}'" if isinstance(error.filename, (str, bytes)) else "A file"
    return f"{name} cannot be read or written ({error.strerror}); make room, allow it, or give another name."


def _say(text: str) -> None:
    """Prints a line on standard error; where that cannot take it (a full disk), the exit code is all that is left."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        discard(sys.stderr.fileno())


def sentence(error: BaseException) -> str:
    """The text of a `UserError` on one line; a data-loader process wraps it into its own traceback.

    What stands behind an empty line (the alignment of two sequences) keeps its lines.
    """
    text = str(error).strip()
    if text.startswith("Caught ") and "UserError: " in text:
        text = text.rsplit("UserError: ", 1)[1]
    line, *shown = text.split("\n\n", 1)
    return "\n".join([" ".join(line.split()), *shown])


def dispatch(words: list[str]) -> int:
    """Finds and runs what `words` ask for."""
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    if words[0] in ("--version", "-V"):
        from . import __version__

        print(f"triune {__version__}")
        return 0
    if odd := [word for word in words if not word.isascii()]:
        from .core.files import check_name

        for word in odd:
            check_name(word)
    command, rest = words[0], words[1:]
    if command == "recipes":
        print(recipes_table())
        return 0
    if command in COMMANDS:
        return named(COMMANDS[command])(rest) or 0
    known = tasks()
    if command not in known:
        raise _unknown("task or command", command, [*known, *COMMANDS, "recipes"], "triune --help")
    if not rest or rest[0] in ("-h", "--help", "help"):
        print(task_help(command, known[command]))
        return 0
    verb, options = rest[0], rest[1:]
    verbs = known[command].verbs
    if verb not in verbs:
        raise _unknown(f"verb of `triune {command}`", verb, list(verbs), f"triune {command} --help")
    if verbs[verb].main:
        given = {word.split("=")[0] for word in options}
        others = [more for option, more in known[command].also.items() if f"--{option}" in given and verb in more]
        return named((*(more[verb] for more in others), verbs[verb])[0].main)(options) or 0
    done = _train_or_score(command, verb, options)
    return done.get("code", 130 if done.get("interrupted") else 0)


def _train_or_score(name: str, verb: str, options: list[str]) -> dict[str, Any]:
    """Runs the shared command line with the classes of the verb, or of the verb that trained the run it scores."""
    from .core.training.run.arguments import verb_of

    package = f"triune.{name}"
    by_head = verb in USES_HEADS and task(name).modality and options and not options[0].startswith("-")
    if by_head:
        from .core.labelled.predict import is_checkpoint, other_head

        words = {word.split("=")[0] for word in options[1:]}
        scored = verb == "test" and "--data.table" in words and other_head(options[0], named(task(name).modality))
        if is_checkpoint(options[0]) or scored:
            return {"code": named(USES_HEADS[verb])(named(task(name).modality), options) or 0}
    classes = verb_of(task(name), verb, options, package)
    if by_head and verb == "predict" and not classes.main and options[1:] and not options[1].startswith(SECTIONS):
        return {"code": named(USES_HEADS[verb])(named(task(name).modality), options) or 0}
    if classes.main:
        return {"code": named(classes.main)(options) or 0}
    from .core.training.run.cli import run_task

    return run_task(name, verb, options, named(classes.module), named(classes.data), package)


USES_HEADS = {"predict": "triune.core.labelled.predict:main", "test": "triune.core.labelled.score:main"}
"""What verbs that use a run do with a classifier of another library, or of class folders and inputs of a table."""
SECTIONS = ("--data.", "--model.", "--trainer.", "--config", "-c", "--seed_everything", "--overwrite", "--help", "-h")
"""What options of a run's own data, instead of inputs, begin with."""


def _unknown(what: str, word: str, known: list[str], command: str) -> Exception:
    from .core.errors import UserError, nearest

    return UserError(f"Unknown {what} '{word}'{nearest(word, known)}; `{command}` lists all.")


def _about(name: str, text: str) -> str:
    """A name with what is said about it, wrapped under itself."""
    return textwrap.fill(f"  {name:9} {text}", 118, subsequent_indent=" " * 12)


def overview() -> str:
    """The text of `triune --help`."""
    from . import __version__

    known = tasks()
    about = "\n".join(_about(name, f"{task.about}  ({', '.join(task.verbs)})") for name, task in known.items())
    examples = "\n".join(task.examples for task in known.values() if task.examples)
    libraries = "|".join(dict.fromkeys(library for task in known.values() for library in task.libraries))
    return f"""\
triune {__version__}: one transformer core that trains and explains models of images, proteins and text

usage: triune TASK VERB [options]
       triune check [TASK] RECIPE|FILE|RUN [options]
       triune plan [TASK] RECIPE|FILE|RUN [options] --devices 8xH100
       triune info CHECKPOINT
       triune convert CHECKPOINT FOLDER --to {libraries}|triune
       triune lens QUESTION RUN_OR_CHECKPOINT [INPUT …] [options]
       triune embed INPUT … --run RUN --out VECTORS
       triune nearest QUERY --index VECTORS
       triune evaluate RUN --tasks TABLE_OR_NAME …
       triune report RUN
       triune compare RUN RUN … [--png CURVES.png]
       triune demo | recall | emergence | scaling | recipes | --version

tasks
{about}

commands
  check     say all that is wrong with a configuration, or what its training takes: time, memory, the largest batch
  plan      say what a training takes on devices that are not here: memory, largest batch, what is sent, time
  demo      train and try small models in a few minutes
  lens      look inside a model: what heads look at, what they are good for, where an answer comes from
  embed     write the vectors that a model makes of inputs, with their names
  nearest   find the nearest vectors of an index, copies among them, or labels that the neighbours contradict
  evaluate  judge a model on further tables of labels, or on tasks of lm-evaluation-harness
  report    write the page of a run again: figures, curves, pictures and options in one file
  compare   show what differs between runs: options, figures, curves
  recipes   list the configurations that --config knows by name
  recall    train small models with each kind of mixer, and show what it can remember
  emergence train a ladder of sizes: a smooth and a sharp metric of the same models, beside induction
  scaling   fit a law of the loss over parameters and tokens to runs, and predict what more compute reaches
  info      say what a checkpoint is, of ours, Hugging Face, timm or fair-esm
  convert   write it in the format of another of them, and compare the outputs

examples
{examples}

`triune TASK --help` tells about a task, `triune TASK VERB --help` lists all options of a verb.
Anywhere: --traceback shows where an error comes from."""


def task_help(name: str, task: Task) -> str:
    """The text of `triune TASK --help`."""
    verbs = "\n".join(_about(word, verb.about) for word, verb in task.verbs.items())
    return f"""\
triune {name}: {task.about}

usage: triune {name} VERB [options]

verbs
{verbs}

common options
  --config FILE_OR_RECIPE     settings from a YAML file or a named recipe (`triune recipes`)
  --run DIR                   the run folder; default for fit: runs/{name}/DATE_TIME
  --resume true               continue the run in --run exactly where it stopped
  --data.* --model.*          what to train on, and what
  --trainer.*                 Lightning's trainer, such as --trainer.max_steps 500
  --print_config              show all settings and stop

examples
{task.examples}

`triune {name} VERB --help` lists all options of a verb."""


def recipes_table() -> str:
    """The text of `triune recipes`, read from the headers of the shipped files."""
    from .core.training.run.recipes import folder, list_recipes

    parts = []
    for name in tasks():
        lines = []
        for recipe in list_recipes(folder(f"{__package__}.{name}")):
            lines += [f"  {recipe.name}", f"      {recipe.about}"]
            lines += [f"      {key}: {text}" for key, text in recipe.notes() if text]
        if lines:
            parts.append("\n".join([f"triune {name} fit --config …", *lines]))
    return "\n\n".join(parts) or "No recipes ship with this installation."


if __name__ == "__main__":
    sys.exit(main())

"""`triune TASK VERB …`: finds the code for a task and a verb, and imports nothing else.

`triune --help` needs neither torch nor Lightning: keep heavy imports out of this file.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from pathlib import Path
from traceback import print_exception
from typing import Any

# The only place that knows the tasks. A verb is a function `main(args)` as "module:name", or, for the verbs that train
# and score, the classes that the shared command line runs: (Lightning module, data module). A run remembers the verb
# that trained it, and validate, test and predict take the classes of that verb.
Entry = str | tuple[str, str]
_TEXT: Entry = ("triune.text.task:TextTask", "triune.text.data.module:TextData")
_PROTEIN: Entry = ("triune.protein.pair.task:PairTask", "triune.protein.data.module:ProteinData")
_PRETRAIN: Entry = ("triune.protein.language.task:PretrainTask", "triune.protein.language.data:SequenceData")
_VISION: Entry = ("triune.vision.task:VisionTask", "triune.vision.data.module:ImageData")
VERBS: dict[str, dict[str, Entry]] = {
    "vision": {
        "check": "triune.vision.check:main",
        "fit": _VISION,
        "validate": _VISION,
        "test": _VISION,
        "predict": _VISION,
        "probe": "triune.vision.probe:main",
        "classify": "triune.vision.classify:main",
        "export": "triune.vision.export:main",
    },
    "protein": {
        "prepare": "triune.protein.data.prepare.prepare:main",
        "dca": "triune.protein.predict.dca:main",
        "fit": _PROTEIN,
        "pretrain": _PRETRAIN,
        "validate": _PROTEIN,
        "test": _PROTEIN,
        "contacts": "triune.protein.predict.contacts:main",
    },
    "text": {
        "fit": _TEXT,
        "validate": _TEXT,
        "test": _TEXT,
        "predict": _TEXT,
        "generate": "triune.text.generate:main",
    },
}
COMMANDS: dict[str, str] = {
    "demo": "triune.demo:main",
    "info": "triune.convert:info",
    "convert": "triune.convert:convert",
}

ABOUT = {
    "vision": "image classifiers: train, use, explain",
    "text": "language models: train on your text, write more of it",
    "protein": "contacts of residues from sequences and alignments",
    "prepare": "turn structures and alignments into a set to train on",
    "dca": "predict contacts from an alignment alone, by mean-field direct couplings",
    "pretrain": "train a masked language model on sequences, and fit a contact head on its attention",
    "contacts": "draw, write and score the contact maps of sequences and alignments with a trained model",
    "fit": "train; without options on data that is already on this machine",
    "validate": "score the best weights of a run on its whole validation set",
    "test": "score them on the test set",
    "predict": "apply them to the prediction set",
    "generate": "continue a text with a trained model",
    "check": "look through a folder of images before training",
    "probe": "judge a checkpoint's frozen features on your images, in seconds",
    "classify": "name what is in images, with calibrated probabilities and attention maps",
    "export": "write a classifier as ONNX or for torch.export, compared with the model",
}

EXAMPLES = {
    "protein": """\
  triune protein fit                                        train on the chains that come with the package
  triune protein prepare SET --structures PDB_FOLDER --alignments A3M_FOLDER
  triune protein fit --data.folder SET
  triune protein contacts family.a3m --run RUN --structure 1abc.cif
  triune protein pretrain --data.files swissprot.fasta.gz
  triune protein dca family.a3m""",
    "vision": """\
  triune vision fit                                         train on scikit-learn's digits
  triune vision check FOLDER                                one folder of images for each class
  triune vision fit --data.root FOLDER
  triune vision probe --model vit_small_patch14_dinov2.lvd142m --data.root FOLDER
  triune vision classify photo.jpg --run RUN --attention seen.png
  triune vision export RUN --onnx model.onnx""",
    "text": """\
  triune text fit                                           train on Python's standard library
  triune text fit --config shakespeare-char-cpu --data.files input.txt
  triune text fit --run DIR --resume true                   continue where it stopped
  triune text validate RUN                                  the same figures again
  triune text generate RUN --prompt 'Once'                  let it write""",
}


def main(args: list[str] | None = None) -> int:
    """Run a command line and return its exit code: 0, 1 (a bug or an interruption) or 2 (a mistake in the input)."""
    words = list(sys.argv[1:] if args is None else args)
    traceback = "--traceback" in words
    words = [word for word in words if word != "--traceback"]
    try:
        code = dispatch(words)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # The reader (`| head`) has left; what Python still wants to flush at exit goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        if traceback:
            raise
        print("\nStopped.", file=sys.stderr)
        return 130
    except Exception as error:
        if not is_user_error(error):
            raise
        if traceback:
            print_exception(error)
        print(f"error: {sentence(error)}", file=sys.stderr)
        return 2


def is_user_error(error: BaseException) -> bool:
    """Whether an exception is the user's to mend; knows without importing the core when nothing has imported it."""
    errors = sys.modules.get("triune.core.errors")
    return errors is not None and isinstance(error, errors.UserError)


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
    """Find and run what `words` ask for."""
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    if words[0] in ("--version", "-V"):
        from . import __version__

        print(f"triune {__version__}")
        return 0
    command, rest = words[0], words[1:]
    if command == "recipes":
        print(recipes_table())
        return 0
    if command in COMMANDS:
        return _load(COMMANDS[command])(rest) or 0
    if command not in VERBS:
        raise _unknown("task or command", command, [*VERBS, *COMMANDS, "recipes"], "triune --help")
    if not rest or rest[0] in ("-h", "--help", "help"):
        print(task_help(command))
        return 0
    verb, options = rest[0], rest[1:]
    if verb not in VERBS[command]:
        raise _unknown(f"verb of `triune {command}`", verb, list(VERBS[command]), f"triune {command} --help")
    return _run(command, verb, options)


def _run(task: str, verb: str, options: list[str]) -> int:
    entry = VERBS[task][verb]
    if isinstance(entry, str):
        return _load(entry)(options) or 0
    from .core.training.run.cli import run_task, training_verb

    module_class, data_class = (_load(name) for name in VERBS[task].get(training_verb(verb, options), entry))
    run_task(task, verb, options, module_class, data_class, f"triune.{task}")
    return 0


def _load(name: str) -> Any:
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)


def _unknown(what: str, word: str, known: list[str], command: str) -> Exception:
    from .core.errors import UserError, nearest

    return UserError(f"Unknown {what} '{word}'{nearest(word, known)}; `{command}` lists all.")


def overview() -> str:
    """The text of `triune --help`."""
    from . import __version__

    tasks = "\n".join(f"  {task:9} {ABOUT.get(task, '')}  ({', '.join(verbs)})" for task, verbs in VERBS.items())
    examples = "\n".join(EXAMPLES[task] for task in VERBS if task in EXAMPLES)
    return f"""\
triune {__version__}: one transformer core that trains and explains models of images, proteins and text

usage: triune TASK VERB [options]
       triune info CHECKPOINT
       triune convert CHECKPOINT FOLDER --to hf|timm|torchvision|fair-esm|triune
       triune demo | recipes | --version

tasks
{tasks}

commands
  demo      train and try small models in a few minutes
  recipes   list the configurations that --config knows by name
  info      say what a checkpoint is, of ours, Hugging Face, timm or fair-esm
  convert   write it in the format of another of them, and compare the outputs

examples
{examples}

`triune TASK --help` tells about a task, `triune TASK VERB --help` lists all options of a verb.
Anywhere: --traceback shows where an error comes from."""


def task_help(task: str) -> str:
    """The text of `triune TASK --help`."""
    verbs = "\n".join(f"  {verb:9} {ABOUT.get(verb, '')}" for verb in VERBS[task])
    return f"""\
triune {task}: {ABOUT.get(task, "")}

usage: triune {task} VERB [options]

verbs
{verbs}

common options
  --config FILE_OR_RECIPE     settings from a YAML file or a named recipe (`triune recipes`)
  --run DIR                   the run folder; default for fit: runs/{task}/DATE_TIME
  --resume true               continue the run in --run exactly where it stopped
  --data.* --model.*          what to train on, and what
  --trainer.*                 Lightning's trainer, such as --trainer.max_steps 500
  --print_config              show all settings and stop

examples
{EXAMPLES.get(task, "")}

`triune {task} VERB --help` lists all options of a verb."""


def recipes_table() -> str:
    """The text of `triune recipes`, read from the headers of the shipped files."""
    from .core.training.run.recipes import list_recipes

    blocks = []
    for task in VERBS:
        for recipe in list_recipes(Path(__file__).parent / task / "recipes"):
            lines = [f"  {recipe.name}", f"      {recipe.about}"]
            lines += [f"      {name}: {text}" for name, text in recipe.notes() if text]
            blocks.append((task, "\n".join(lines)))
    if not blocks:
        return "No recipes ship with this installation."
    parts = []
    for task in VERBS:
        parts += [f"triune {task} fit --config …", *(text for owner, text in blocks if owner == task), ""]
    return "\n".join(parts).rstrip()


if __name__ == "__main__":
    sys.exit(main())

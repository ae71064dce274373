"""What a task says about itself: its verbs, its checkpoints and its demonstration. Standard library only.

Each task folder has a `TASK` in its `__init__`, and `tasks.py` beside the command line holds the list of the folders.
The command line, `convert`, `demo` and the list of recipes read nothing else about a task.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Verb:
    """One verb of a task: what it does, and the code that does it.

    Args:
        about: a line for the help.
        main: "module:function", called with the arguments and returning an exit code; empty for a verb that trains or
            scores, which the shared command line of `core/training/run` runs with the two classes below.
        module: "module:class" of the `TrainingModule`.
        data: "module:class" of the data module.
    """

    about: str
    main: str = ""
    module: str = ""
    data: str = ""


ABOUT = {
    "fit": "train; without options on data that is already on this machine",
    "validate": "score the best weights of a run on its whole validation set",
    "test": "score them on the test set",
    "predict": "apply them to the prediction set",
}


def training(module: str, data: str, about: str = "", names: tuple[str, ...] = tuple(ABOUT)) -> dict[str, Verb]:
    """The verbs `names`, which all run the same two classes; `about` replaces what is said about each of them."""
    return {name: Verb(about or ABOUT[name], module=module, data=data) for name in names}


@dataclass(frozen=True)
class Task:
    """A task as the command line sees it.

    Args:
        about: what it trains, in a few words.
        verbs: by name, in the order of the help.
        also: further classes of verbs that train or score, by the option that chooses them: where a command line, a
            configuration that it names or the run that it uses has this option ("data.pairs"), these verbs take the
            place of those of the same name.
        examples: command lines with a remark each, indented by two spaces.
        checkpoints: a module with `load(name)`, `export(pretrained, folder, library)`, `parity(pretrained, folder,
            library)`, `check_inputs(pretrained, folder, library)`, `facts(pretrained)` (pairs of name and text for
            `triune info`) and the list `FAMILIES`; empty for a task without checkpoints of its own.
        find: "module:function" that opens a checkpoint as `core.checkpoints.source.open_source` does, and knows further
            names.
        architectures: the models of this task in triune's own format, which other libraries have as well.
        own: further models of this task, which only triune has.
        lens: "module:function", called with the name of a run or checkpoint, inputs and the options of `triune lens`;
            returns a `core.lens.subject.Subject`. Empty for a task that the lens cannot look into.
        modality: "module:name" of a `core.labelled.run.Modality`, for `triune embed`; empty for a task without vectors
            of its inputs.
        libraries: formats that `triune convert --to` can write: the word on the command line, and the library's name.
        demo: "module:function", called with a run folder and further options of `fit`; trains, shows something, and
            returns the summary of the run. Empty for no part in `triune demo`.
        smallest: options that shrink the demonstration to a proof that everything is installed.
        shown: names in the summary that the table at the end of `triune demo` shows.
    """

    about: str
    verbs: dict[str, Verb]
    also: dict[str, dict[str, Verb]] = field(default_factory=dict)
    examples: str = ""
    checkpoints: str = ""
    find: str = ""
    architectures: tuple[str, ...] = ()
    own: tuple[str, ...] = ()
    lens: str = ""
    modality: str = ""
    libraries: dict[str, str] = field(default_factory=dict)
    demo: str = ""
    smallest: tuple[str, ...] = ()
    shown: tuple[str, ...] = ()


def named(name: str) -> Any:
    """The object that "module:attribute" means; imports the module."""
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)

"""The part of a command line that is read before the parser is made: --run, --resume, --config and recipes."""

from __future__ import annotations

import argparse
import inspect
import os
import shlex
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from ...checkpoints.origin import marked
from ...errors import UserError
from ...files import write_atomic
from ...task import Task, Verb
from ...yaml_files import check_option, read_yaml
from . import slurm
from .folder import RunFolder
from .recipes import find_config, folder, list_recipes

# Rank 0 tells the processes it starts (DDP) where the run goes; each would otherwise choose a folder of its own.
RUN_VARIABLE = "TRIUNE_RUN"
SCORING = ("validate", "test", "predict")
"""Verbs that use a run; all others train."""
SECTIONS = ("trainer", "model", "data")
"""What the options of a YAML file stand below."""
OF_THE_LINE = ("run", "resume", "config", "help", "print_config")
"""Options that are read from the command line before any file is, so that a file cannot hold them."""


def prepare(
    task: str, verb: str, args: list[str], package: str, recipe: str = ""
) -> tuple[RunFolder | None, bool, list[str]]:
    """Finds run folder and configuration files in the command line: (run, resume, arguments for the parser).

    `recipe` is that of a training without --config; see `DataModule.RECIPE`.
    """
    trains = verb not in SCORING
    known, rest = run_and_configs(verb, args)
    if None in known.config or ("--run" in args and known.run is None):
        missing = "--config" if None in known.config else "--run"
        raise UserError(f"{missing} needs a value; `triune {task} {verb} --help` says which.")
    from ..lightning_fixes import rank

    if known.resume not in ("true", "false"):
        raise UserError(f"--resume is '{known.resume}', but must be true or false.")
    for before, word in zip(["", *args], args):
        name, has_value, value = word.partition("=")
        check_option(name if has_value else before, value if has_value and word.startswith("--") else word)
    resume = known.resume == "true"
    configs = [str(check_yaml(find_config(name, package))) for name in known.config]
    run = RunFolder(known.run) if known.run else None
    helping = any(word in ("-h", "--help") or word.startswith("--print_config") for word in rest)
    if helping:
        return run, resume, _join(configs, rest)
    if trains and run and not resume and (run.last.exists() or run.previous.exists()):
        who = slurm.started_again(run.config, command_line(["triune", task, verb, *args]))
        resume = bool(who)
        if resume and rank() == 0:
            print(f"{who} again, so that {run} is continued.", flush=True)
    if trains and resume and run is None:
        raise UserError("--resume true needs the folder of the run to continue: --run DIR.")
    if run and (resume or not trains):
        run = _opened(run.path, resume)
        configs.insert(0, str(check_yaml(run.config)))
        if run.task not in ("", task):
            raise UserError(
                f"{run.config} is of a run of `triune {run.task} {run.verb}`, not of {task}; use that task, or put"
                " the original back if the file was replaced."
            )
        if trains and run.verb != verb:
            raise UserError(f"{run} is a run of `triune {task} {run.verb}`; continue it with that verb.")
        if trains and not (run.last.exists() or run.previous.exists()):
            raise UserError(
                f"{run} has no checkpoint to continue from: its training ended before the first one; start it anew with"
                f" the command in the first line of {run.config}."
            )
    if trains and not resume:
        run = run or RunFolder(os.environ.get(RUN_VARIABLE, "") if rank() else RunFolder.fresh(task).path)
        if not configs:
            configs = _default_configs(verb, rest, package, recipe)
        if rank() == 0:
            run.check_free()
            os.environ[RUN_VARIABLE] = str(run)
    return run, resume, _join(configs, rest)


def _opened(path: str | Path, resume: bool) -> RunFolder:
    """The run in a folder; the config.yaml of one that is continued comes back from its checkpoint where it is gone."""
    run = RunFolder(path)
    text: str | None = None
    if resume and not os.path.lexists(run.config):
        from .checkpoints import recorded_config, recorded_origin

        text = recorded_config(run)
        text = text and marked(text, recorded_origin(run))
    if text:
        write_atomic(run.config, text.encode())
        print(f"{run.config} is gone; it is written again from the checkpoint.", flush=True)
    return RunFolder.open(path)


def command_line(words: Sequence[str]) -> str:
    """A command line as one would type it, on one line: it stands in the first one of config.yaml."""
    return " ".join(
        shlex.quote(word) if word.isprintable() else "$'" + repr(word)[1:-1].replace("'", "\\'") + "'" for word in words
    )


def given(args: list[str], section: str = "data", package: str = "", options: Collection[str] = ()) -> frozenset[str]:
    """The options of a section (`trainer`, `model` or `data`) that a user chose, without their fields: those that stand
    on a command line, or in a file of the user's that it names by --config.

    A recipe chooses for the user, and a file with every option (of --print_config, or a run's) chooses none.

    Args:
        args: the command line.
        section: whose options.
        package: whose recipes are no files of the user's ("triune.text"); without it no file is read.
        options: all options of the section.
    """
    words = (word.split("=")[0] for word in args if word.startswith(f"--{section}."))
    found = {word.split(".")[1].removesuffix("+") for word in words}
    for name in run_and_configs("fit", args)[0].config if package else ():
        path = find_config(name, package)
        content = read_yaml(path, f"--config {path}") if path.parent != folder(package) else None
        chosen = content.get(section) if isinstance(content, dict) else None
        if isinstance(chosen, dict) and not set(options) <= set(chosen):
            found |= set(chosen)
    return frozenset(found)


def _default_configs(verb: str, rest: list[str], package: str, recipe: str) -> list[str]:
    """The recipe for a command line without --config: one for fine-tuning, where a checkpoint is given and there is
    one.
    """
    name = recipe or ("default" if verb == "fit" else verb)
    names = [name]
    if any(word.split("=")[0] == "--model.pretrained" for word in rest):
        names = ["finetune", "default"] if name == "default" else [f"{name}-finetune"]
    known = {recipe.name for recipe in list_recipes(folder(package))}
    return [str(find_config(name, package)) for name in names if name in known][:1]


def run_and_configs(verb: str, args: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """`--run` (or the first word, of a verb that uses a run), `--resume` and `--config`, and the rest of the line."""
    line = list(args)
    if verb in SCORING and line and not line[0].startswith("-"):
        line[:1] = ["--run", line[0]]
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    first.add_argument("--run", nargs="?")
    first.add_argument("--resume", nargs="?", const="true", default="false")
    first.add_argument("--config", "-c", action="append", nargs="?", default=[])
    return first.parse_known_args(line)


def training_verb(verb: str, args: list[str]) -> str:
    """The verb whose classes `triune TASK VERB ARGS` needs: its own if it trains, else that of the run it uses."""
    if verb not in SCORING:
        return verb
    run = run_and_configs(verb, args)[0].run
    return RunFolder(run).verb if run else "fit"


def verb_of(task: Task, verb: str, args: list[str], package: str) -> Verb:
    """The classes that `triune TASK VERB ARGS` needs: those of `training_verb`, or of the kind of model that an option
    of the line, of a file or recipe that it names, or of the run that it uses asks for (`Task.also`).
    """
    name = training_verb(verb, args)
    for option, verbs in task.also.items():
        if name in verbs and _has(option, verb, args, package):
            return verbs[verb] if verb in verbs and verbs[verb].main else verbs[name]
    return task.verbs.get(name, task.verbs[verb])


def _has(option: str, verb: str, args: list[str], package: str) -> bool:
    """Whether an option such as `data.pairs` stands on a command line or in a configuration that it names.

    Raises:
        UserError: a run that is to be scored was trained without it.
    """
    known, rest = run_and_configs(verb, args)
    given = any(word.split("=")[0].rstrip("+") == f"--{option}" for word in rest)
    if given and not (known.run and verb in SCORING):
        return True
    files = [find_config(name, package) for name in known.config if name is not None]
    if known.run and (verb in SCORING or known.resume == "true"):
        files.append(_opened(known.run, known.resume == "true").config)
    section, _, name = option.partition(".")
    contents = [read_yaml(path, f"--config {path}") for path in files]
    parts = [content.get(section) for content in contents if isinstance(content, dict)]
    found = any(isinstance(part, dict) and part.get(name) is not None for part in parts)
    if given and not found:
        raise UserError(
            f"--{option} is given, but {known.run} was trained without it; leave it out, or name a run that was trained"
            " with it."
        )
    return found


def check_yaml(path: Path) -> Path:
    """The same path, once it is known to hold a mapping in YAML.

    Raises:
        UserError: it is empty, or see `read_yaml`.
    """
    content = read_yaml(path, f"--config {path}")
    if not isinstance(content, dict):
        found = "is empty" if content is None else f"holds a {type(content).__name__}"
        raise UserError(
            f"--config {path} {found}; it must hold options, such as `trainer:` and below it `max_steps: 500`."
        )
    for name, value in content.items():
        if not isinstance(name, str) or not name.isprintable():
            raise UserError(f"--config {path} has {name!r} in the place of an option's name; give a name.")
        if name in OF_THE_LINE:
            raise UserError(
                f"--config {path} has `{name}`, which would have no effect in a file; remove the line, and give"
                f" --{name} on the command line where it is meant."
            )
        if value in ({}, []) or (name in SECTIONS and not isinstance(value, dict)):
            found = f"is {value}" if value else "is empty"
            raise UserError(
                f"--config {path}: `{name}` {found}, but must hold options; put them below it, or remove the line."
            )
    return path


def use_own_words(parser: argparse.ArgumentParser, task: Any) -> None:
    """Describes an option that `task` inherits (`pretrained`) as the docstring of `task` does, where it does."""
    from docstring_parser import parse

    own = inspect.signature(task).parameters
    said = [p for p in parse(task.__doc__ or "").params if p.description and p.arg_name not in own]
    words = {f"model.{p.arg_name}": p.description for p in said}
    for action in parser._actions:  # argparse has no other way to a known option
        if action.dest in words:
            action.help = words[action.dest]


def in_full(args: Sequence[str], short: dict[str, str]) -> list[str]:
    """A command line with the options that `short` abbreviates by their whole names: {"--tta": "--model.tta"}."""
    words = [word.partition("=") for word in args]
    return [short.get(name, name) + equals + value for name, equals, value in words]


def _join(configs: list[str], rest: list[str]) -> list[str]:
    return [word for name in configs for word in ("--config", name)] + rest

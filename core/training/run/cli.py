"""`triune TASK fit|validate|test|predict`: LightningCLI with a run folder, plain words and one-sentence errors.

`run_task` is all that the top-level command line calls. Any other verb (`pretrain`) trains as `fit` does, with classes
of its own; a run remembers the verb that trains it, and `verb_of` finds it again for validate, test and predict.
`core/training/task.py` lists what is asked of a task's module, `core/training/data.py` what is asked of its data.
"""

from __future__ import annotations

import inspect
import os
import shlex
from argparse import SUPPRESS
from pathlib import Path
from typing import Any, NoReturn

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from ...checkpoints.origin import foreign_model, refuse_foreign_start
from ...errors import Stopped, UserError
from ...files import refuse_special, written_whole
from ...lock import claim
from ...stores import is_url
from ..data import DataModule
from ..heap import GivesBack
from ..lightning_fixes import copies, quiet, rank
from ..module import TrainingModule
from . import bounds, loggers, machine, precision, processes, report, sentences, slurm
from .agreement import Agreement
from .arguments import SCORING, given, in_full, prepare, use_own_words
from .arguments import verb_of as verb_of
from .changes import Change, accept, changes, edited
from .checkpoints import Checkpoints, origin_of, recorded_config, recorded_data
from .companions import Alone, Companions
from .folder import RunFolder, task_and_verb
from .progress import Progress
from .session import Session
from .signals import StopOnSignal
from .strategies import usable
from .telemetry import Telemetry
from .unused import leave_out, refuse
from .which import to_continue, to_score

SEED = 1337
ABOUT = {
    "fit": "Train a model. Every option can also stand in a YAML file (--config).",
    "validate": "Score the best weights of a run on its whole validation set.",
    "test": "Score the best weights of a run on its test set.",
    "predict": "Apply the best weights of a run to its prediction set; writes predictions.pt into the run folder.",
}


class TaskParser(LightningArgumentParser):
    """Reports mistakes as `UserError`, for the top-level command line to print."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # jsonargparse tries one type after another with inner parsers
            super().error(message, ex)
        raise UserError(sentences.parsing(message, self, self.prog)) from ex


class TaskCLI(LightningCLI):
    """Parses, fills in what suits the machine, and builds module, data and trainer for one verb.

    Raises:
        UserError: whatever is wrong with the command line, in one sentence.
    """

    def __init__(
        self,
        task: str,
        verb: str,
        args: list[str],
        module_class: type[TrainingModule],
        data_class: type[DataModule],
        recipes_package: str,
        companions: Companions | None = None,
    ):
        self.companions = companions or Companions()
        self.verb, self.trains = verb, verb not in SCORING
        self.data_class = data_class
        self._classes = module_class, data_class, recipes_package
        args = in_full(args, module_class.SHORT)
        run, resume, line = prepare(task, verb, args, recipes_package, data_class.RECIPE)
        telemetry = Telemetry(run.metrics if run else None)
        checkpoints = Checkpoints(run, telemetry) if run else None
        self.session = Session(task, verb, args, run, resume, telemetry, StopOnSignal(), checkpoints)
        super().__init__(
            module_class,
            data_class,
            save_config_callback=None,
            # One device unless asked or launched for more: more would silently multiply the global batch.
            # Inference mode would leave tensors behind (averaged weights) that training can no longer change.
            trainer_defaults={
                **(processes.launched() or {"devices": 1}),
                "log_every_n_steps": 10,
                "inference_mode": False,
            },
            seed_everything_default=SEED,
            parser_kwargs={
                "prog": f"triune {task} {verb}",
                "usage": f"triune {task} {verb} [options]",
                "description": ABOUT.get(verb, ABOUT["fit"]),
            },
            parser_class=TaskParser,
            args=line,
            run=False,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )
        self.datamodule.given = given(args, "data", recipes_package, inspect.signature(data_class).parameters)
        self.session.filled(self.model, self.datamodule, self.trainer, self.config, self.config_text())

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        where = "new run folder" if self.trains else "run folder to take configuration and weights from"
        parser.add_argument("--run", type=str | None, default=None, help=f"The {where}.")
        if self.trains:
            parser.add_argument("--resume", type=bool, default=False, help="Continue the run in --run exactly.")
        else:
            parser.add_argument(
                "--ckpt_path", type=str | None, default=None, help="Checkpoint; default: the run's best."
            )
        if self.verb == "predict":
            parser.add_argument("--overwrite", type=bool, default=False, help="Without a run: replace predictions.pt.")
        parser.add_argument("--threads", type=int | None, default=None, help="CPU threads; default: physical cores.")
        about = "Measure at every validation what each attention head looks at; drawn in heads.png."
        # The configuration of a run has it, so verbs that score it must know it.
        parser.add_argument("--head_scores", type=bool, default=False, help=about if self.trains else SUPPRESS)
        if not self.trains and any(word.split("=")[0] == "--head_scores" for word in self.session.args):
            raise UserError(
                f"--head_scores is an option of a training, and changes nothing in {self.verb}; leave it out."
            )
        use_own_words(parser, self.model_class)
        loggers.allow_names(parser)
        precision.allow_auto(parser)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.config = parser.parse_args(args)
        bounds.check(self.config, self.session.verb)

    def before_instantiate_classes(self) -> None:
        """Puts in what the user left open: threads and precision, and whole paths. All land in config.yaml."""
        for name in self.data_class.PATHS:
            if (value := self.config.data.get(name)) is not None and not is_url(str(value)):
                self.config.data[name] = str(Path(value).expanduser().absolute())
        config, trainer = self.config, self.config.trainer
        trainer.strategy = usable(trainer.strategy)
        processes.take(trainer, given(self.session.args, "trainer"))
        accelerator = str(trainer.accelerator)
        gpu = accelerator in ("auto", "gpu", "cuda", "mps")
        device = self.session.device = machine.default_device() if gpu else torch.device("cpu")
        if config.threads is None:
            config.threads = machine.default_threads(int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        elif config.threads < 1:
            raise UserError(f"--threads is {config.threads}, but must be at least 1.")
        machine.use_threads(config.threads)
        machine.keep_memory()
        machine.use_fast_matmul(device)
        # "Every N batches" of the whole training, whatever the length of an epoch.
        if isinstance(trainer.val_check_interval, int) and trainer.check_val_every_n_epoch == 1:
            trainer.check_val_every_n_epoch = None
        if self.trains and not self.session.resume:
            self.session.left_out = leave_out(config, self.session.args, self._classes[2])
            self._refuse_unused(vars(self.parser.get_defaults(skip_validation=True).as_flat()))
        trainer.precision, self.session.precision = precision.chosen(self, device)

    def _refuse_unused(self, before: dict[str, Any]) -> None:
        # Not those of a file, which may be the config.yaml of another run, with every option.
        named = {word.split("=")[0].removeprefix("--") for word in self.session.args if word.startswith("--")}
        fixed = {f"model.{name}": why for name, why in self._classes[0].FIXED.items()}
        refuse(vars(self.config.as_flat()), before, named, fixed)

    def another(self, words: list[str]) -> TaskCLI:
        return TaskCLI(self.session.task, self.verb, words, *self._classes)

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except UserError as error:
            raise UserError(sentences.validation(str(error))) from error
        except ValueError as error:  # constructors only check their arguments
            raise UserError(sentences.validation(str(error))) from error
        except (TypeError, RuntimeError, MemoryError, OverflowError, ImportError) as error:
            # Sizes that no memory holds, values that Lightning meets without a check, and what they need.
            why = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
            raise UserError(
                f"Model, data or trainer cannot be made with these options ({why}); change them."
            ) from error
        session = self.session
        if session.run and (session.resume or not self.trains) and self.model.tuning:
            refuse_foreign_start(session.run.path)
            self.model.tuning.folder = session.run.pretrained

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        session = self.session
        options: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False}
        callbacks: list[Any] = []
        if self.trains and session.run:
            options |= self._fit_options(session.run)
            callbacks = [session.telemetry, Progress(session.telemetry, self.model.unit), session.interrupt]
            callbacks += [Agreement(session), report.Opening(session), GivesBack()]
            if session.checkpoints and self.config.trainer.enable_checkpointing is not False:
                callbacks.append(session.checkpoints)
            if self.config.head_scores:
                from .heads import HeadScores

                if type(self.model).lens_subject is TrainingModule.lens_subject:
                    self.model.lens_subject(None)  # says that it cannot
                callbacks.append(HeadScores(session.run.heads))
        elif self.config.trainer.logger in (None, True) or loggers.names_of(self.config.trainer.logger):
            options["logger"] = False
        if not self.trains:
            options["enable_checkpointing"] = False
        self.trainer_defaults["callbacks"] = callbacks
        trainer = super().instantiate_trainer(**options, **kwargs)
        session.interrupt.watch(trainer)
        self.companions.expected = lambda: session.interrupt.stopped
        self.companions.attach(trainer)
        return trainer

    def _fit_options(self, run: RunFolder) -> dict[str, Any]:
        options: dict[str, Any] = {"default_root_dir": str(run)}
        chosen = self.config.trainer.logger
        names = ["tensorboard"] if chosen in (None, True) else loggers.names_of(chosen)
        if names and not self.config.trainer.fast_dev_run:
            options["logger"] = loggers.make(names, run, self.session.task, self.session.verb) or False
        return options

    def config_text(self) -> str:
        """The resolved configuration as YAML, without what belongs to this call only."""
        return f"# {self.session.command}\n{self.yaml(self.config)}"

    def changes(self, run: RunFolder) -> list[Change]:
        """What this call changes in a run that it resumes."""
        self.session.recorded = recorded_config(run)
        kind = task_and_verb(self.session.recorded or "")[0]
        if kind not in ("", self.session.task):
            raise UserError(
                f"The newest checkpoint in {run.checkpoints} is of a run of {kind}, but {run.config} of"
                f" {self.session.task}; put the original back."
            )
        defaults = self.yaml(self.parser.get_defaults(skip_validation=True))
        found = changes(run, self.session.config_text, defaults, self.session.recorded)
        self._refuse_unused(vars(self.config.as_flat()) | {change.name: change.before for change in found})
        return found

    def yaml(self, config: Any) -> str:
        config = config.clone()
        for key in ("config", "run", "resume", "ckpt_path", "overwrite"):
            config.pop(key, None)
        return self.parser.dump(config, skip_none=False, skip_validation=True, format="yaml")


def run_task(
    task: str,
    verb: str,
    args: list[str],
    module_class: type[TrainingModule],
    data_class: type[DataModule],
    recipes_package: str,
) -> dict[str, Any]:
    """Runs `triune TASK VERB ARGS` and returns its metrics (`summary.json` of a training, the metrics of validate and
    test).

    Args:
        recipes_package: package whose `recipes/` folder holds the named configurations ("triune.text").

    Raises:
        UserError: a mistake the user can mend, in one sentence.
    """
    quiet()
    with Companions() as companions:
        return _run_task(task, verb, args, module_class, data_class, recipes_package, companions)


def _run_task(
    task: str,
    verb: str,
    args: list[str],
    module_class: type[TrainingModule],
    data_class: type[DataModule],
    recipes_package: str,
    companions: Companions,
) -> dict[str, Any]:
    try:
        cli = TaskCLI(task, verb, args, module_class, data_class, recipes_package, companions)
        if cli.trains:
            if cli.session.run and cli.session.resume:
                cli.session.changes = cli.changes(cli.session.run)
            return _fit(cli.session)
        if run := cli.session.run:
            report.say(edited(run, recorded_config(run)))
        checkpoint = to_score(cli.session, cli.config.ckpt_path)
        cli.model.before_scoring(Path(checkpoint), cli.datamodule)
        return (_predict if verb == "predict" else _evaluate)(cli.session, checkpoint)
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):  # Lightning makes exit code 1 of it
            raise KeyboardInterrupt from None
        raise
    except Exception as error:
        if alone := companions.explain(error):
            raise alone from error
        if (sentence := sentences.of_library(error)) is None:
            raise
        raise UserError(sentence) from error


def _fit(session: Session) -> dict[str, Any]:
    try:
        return _train(session)
    except Alone:
        raise
    except Stopped as stop:
        run = session.run
        queued = ""
        if session.interrupt.queued_again and rank() == 0:
            named = any(word.split("=")[0] == "--run" for word in session.args)
            queued = slurm.requeue() if named else "The job is not queued again, because it names no --run."
        if not run or not (run.last.exists() or run.previous.exists()):
            raise Stopped(stop.code, f"{stop} {queued}".strip()) from None
        if queued.startswith("SLURM starts"):
            raise Stopped(stop.code, f"Stopped and saved. {queued}") from None
        report.say(queued)
        again = f"triune {session.task} {session.verb} --run {shlex.quote(str(run))} --resume true"
        raise Stopped(stop.code, f"Stopped and saved. Continue:\n  {again}") from None


def _train(session: Session) -> dict[str, Any]:
    run, trainer = session.run, session.trainer
    assert run
    different = accept(session.changes, run, session.task)
    checkpoint = to_continue(session, run) if session.resume else None
    shares = (
        session.data.continue_with(recorded_data(Path(checkpoint), session.data), trainer.world_size // copies(trainer))
        if checkpoint
        else ""
    )
    different = "; ".join(filter(None, (different, shares)))
    report.say(report.opening(session))
    for name, about in (("changed", different), ("mixer", session.left_out)):
        if about:
            report.say(report.entry(name, about))
    try:
        trainer.fit(session.model, session.data, ckpt_path=checkpoint, weights_only=True)
    finally:
        report.remove_traces(session)
        if session.run:
            session.run.unlock()
    if session.is_trial:
        return {}
    report.say(report.nothing_left(session))
    # Of the best weights, as `validate` would find them; not another point of the training's curves.
    trainer.loggers = []
    best = str(run.best) if run.best.exists() else None
    metrics = (trainer.validate(session.model, session.data, ckpt_path=best, verbose=False) or [{}])[0]
    summary = report.finish(session, dict(metrics))
    number = session.interrupt.signal
    return summary | ({} if number is None else {"code": 128 + number})


def _evaluate(session: Session, checkpoint: str) -> dict[str, Any]:
    method = session.trainer.validate if session.verb == "validate" else session.trainer.test
    metrics = dict((method(session.model, session.data, ckpt_path=checkpoint, verbose=False) or [{}])[0])
    metrics = report.complete(session, metrics)
    if session.run and session.trainer.is_global_zero:
        run = session.run
        run.write_json(run.validation if session.verb == "validate" else run.path / "test.json", metrics)
        if session.verb == "validate" and not run.model.is_dir():
            run.export(session.model.export, origin_of(Path(checkpoint)))
            report.say(f"The model of {checkpoint} is in {run.model}.")
        elif about := foreign_model(run.path):
            report.say(
                f"{about}, and is not what was scored; moved away, `triune {session.task} validate {run}` writes one."
            )
        report.write_report(run)
    text = report.shown(session, metrics)
    report.say(f"{session.run or checkpoint}:" + ("\n" if "\n" in text else " ") + text)
    return metrics


def _predict(session: Session, checkpoint: str) -> dict[str, Any]:
    target = (session.run.path if session.run else Path()) / "predictions.pt"
    refuse_special(target)
    claim([target])
    # In its run it is that of the latest `predict`; elsewhere a file of this name may be anybody's.
    if session.run is None and target.exists() and not session.config.overwrite:
        raise UserError(f"'{target.absolute()}' exists already; move it, or replace it with --overwrite true.")
    predictions = session.trainer.predict(session.model, session.data, ckpt_path=checkpoint)
    if session.trainer.is_global_zero:
        with written_whole(target) as part:
            torch.save(predictions, part)
    report.say(f"Predictions are in {target}.")
    return {"predictions": str(target)}

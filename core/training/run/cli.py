"""`triune TASK fit|validate|test|predict`: LightningCLI with a run folder, plain words and one-sentence errors.

`run_task` is all that the top-level command line calls. Any other verb (`pretrain`) trains as `fit` does, with classes
of its own; a run remembers the verb that trains it, and `training_verb` finds it again for validate, test and predict.
A task brings a `TrainingModule` and a `LightningDataModule`;
these optional names of theirs are used when they exist:

    module.export(folder)        write `model/` (config.json, model.safetensors, tokenizer or labels)
    module.next_steps(run)       list[str]: commands to show after training
    module.describe()            str: a line about the model for the opening block
    module.monitor               (metric, "min" or "max"): which weights are best; ("val_loss", "min") by default
    module.figures(run)          dict: further figures of the evaluation just made, for summary.json and the like
    module.table(figures)        str: the figures as they are printed
    module.finish(run)           write further files into the run folder, after training
    module.unit                  str: what is counted, "tok" by default
    module.loss_unit             str: unit of the loss for the plot, "nats per token" by default
    data.describe()              str: a line about the data; called after `setup()`
"""

from __future__ import annotations

import argparse
import logging
import os
import warnings
from pathlib import Path
from typing import Any, NoReturn

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from ...errors import UserError
from ...yaml_files import read_yaml
from . import machine, report, sentences
from .checkpoints import Checkpoints, StopOnInterrupt
from .folder import RunFolder, newest_runs
from .progress import Progress
from .recipes import find_config, folder, list_recipes
from .telemetry import Telemetry

SEED = 1337
# Rank 0 tells the processes it starts (DDP) where the run goes; each would otherwise choose a folder of its own.
RUN_VARIABLE = "TRIUNE_RUN"
SCORING = ("validate", "test", "predict")
"""Verbs that use a run; all others train."""
SECTIONS = ("trainer", "model", "data")
"""What the options of a YAML file stand below."""
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
        module_class: type[LightningModule],
        data_class: type[LightningDataModule],
        recipes_package: str,
    ):
        self.task, self.verb, self.args_given = task, verb, args
        self.trains = verb not in SCORING
        self.run, self.resume, line = _prepare(task, verb, args, recipes_package)
        self.telemetry = Telemetry(self.run.metrics if self.run else None)
        self.interrupt = StopOnInterrupt()
        self.checkpoints = Checkpoints(self.run, self.telemetry) if self.run else None
        super().__init__(
            module_class,
            data_class,
            save_config_callback=None,
            # One device unless asked or launched for more: more would silently multiply the global batch.
            # Inference mode would leave tensors behind (averaged weights) that training can no longer change.
            trainer_defaults={
                "devices": "auto" if _launched() else 1,
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

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        where = "new run folder" if self.trains else "run folder to take configuration and weights from"
        parser.add_argument("--run", type=str | None, default=None, help=f"The {where}.")
        if self.trains:
            parser.add_argument("--resume", type=bool, default=False, help="Continue the run in --run exactly.")
        else:
            parser.add_argument(
                "--ckpt_path", type=str | None, default=None, help="Checkpoint; default: the run's best."
            )
        parser.add_argument("--threads", type=int | None, default=None, help="CPU threads; default: physical cores.")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.config = parser.parse_args(args)

    def before_instantiate_classes(self) -> None:
        """Put in what the user left open: threads and precision, and whole paths. All land in config.yaml."""
        for name in getattr(self.datamodule_class, "PATHS", ()):
            if (value := self.config.data.get(name)) is not None:
                self.config.data[name] = str(Path(value).expanduser().absolute())
        config, trainer = self.config, self.config.trainer
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        accelerator = str(trainer.accelerator)
        self.device = machine.default_device() if accelerator in ("auto", "gpu", "cuda", "mps") else torch.device("cpu")
        if config.threads is None:
            config.threads = machine.default_threads(processes)
        elif config.threads < 1:
            raise UserError(f"--threads is {config.threads}, but must be at least 1.")
        machine.use_threads(config.threads)
        machine.keep_memory()
        machine.use_fast_matmul(self.device)
        # "Every N batches" of the whole training, whatever the length of an epoch.
        if isinstance(trainer.val_check_interval, int) and trainer.check_val_every_n_epoch == 1:
            trainer.check_val_every_n_epoch = None
        if trainer.precision is None:
            trainer.precision = machine.default_precision(self.device)

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except UserError as error:
            raise UserError(sentences.validation(str(error))) from error
        except ValueError as error:  # constructors only check their arguments
            raise UserError(sentences.validation(str(error))) from error
        if self.run and (self.resume or not self.trains) and (tuning := getattr(self.model, "tuning", None)):
            tuning.folder = self.run.pretrained

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        options: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False}
        callbacks: list[Any] = []
        if self.trains and self.run:
            options |= self._fit_options()
            callbacks = [self.telemetry, Progress(self.telemetry, getattr(self.model, "unit", "tok")), self.interrupt]
            callbacks.append(report.Opening(self))
            if self.checkpoints and self.config.trainer.enable_checkpointing is not False:
                callbacks.append(self.checkpoints)
        elif self.config.trainer.logger in (None, True):
            options["logger"] = False
        if not self.trains:
            options["enable_checkpointing"] = False
        self.trainer_defaults["callbacks"] = callbacks
        return super().instantiate_trainer(**options, **kwargs)

    def _fit_options(self) -> dict[str, Any]:
        assert self.run
        options: dict[str, Any] = {"default_root_dir": str(self.run)}
        if self.config.trainer.logger in (None, True) and not self.config.trainer.fast_dev_run:
            from lightning.pytorch.loggers import TensorBoardLogger

            options["logger"] = TensorBoardLogger(self.run.tensorboard, name="", version="")
        return options

    def config_text(self) -> str:
        """The resolved configuration as YAML, without what belongs to this call only."""
        config = self.config.clone()
        for key in ("config", "run", "resume", "ckpt_path"):
            config.pop(key, None)
        header = f"# {report.command(self)}\n"
        return header + self.parser.dump(config, skip_none=False, skip_validation=True, format="yaml")


def run_task(
    task: str,
    verb: str,
    args: list[str],
    module_class: type[LightningModule],
    data_class: type[LightningDataModule],
    recipes_package: str,
) -> dict[str, Any]:
    """Run `triune TASK VERB ARGS` and return its figures (`summary.json` of a training, the metrics of validate and
    test).

    Args:
        recipes_package: package whose `recipes/` folder holds the named configurations ("triune.text").

    Raises:
        UserError: a mistake the user can mend, in one sentence.
    """
    quiet()
    try:
        cli = TaskCLI(task, verb, args, module_class, data_class, recipes_package)
        if cli.trains:
            return _fit(cli)
        return _predict(cli) if verb == "predict" else _evaluate(cli)
    except torch.OutOfMemoryError as error:
        raise UserError(
            "The GPU's memory is full: lower --data.batch_size (and raise --trainer.accumulate_grad_batches by as much "
            "to keep the global batch), shorten the sequences, or make the model smaller."
        ) from error
    except RuntimeError as error:
        if "loading state_dict" not in str(error):
            raise
        problem = str(error).splitlines()[-1].strip().rstrip(".")
        raise UserError(
            f"The checkpoint does not fit the model ({problem}); use the options it was trained with, which are in the "
            "config.yaml of its run."
        ) from error
    except Exception as error:
        if isinstance(error, MisconfigurationException) or (type(error) is ValueError and _from_lightning(error)):
            raise UserError(" ".join(str(error).split())) from error
        raise


def _from_lightning(error: Exception) -> bool:
    """Whether Lightning itself raised this: its ValueErrors are about the trainer's options."""
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_globals.get("__name__", "").startswith("lightning.")


def _fit(cli: TaskCLI) -> dict[str, Any]:
    run = cli.run
    assert run
    report.say(report.opening(cli))
    try:
        cli.trainer.fit(cli.model, cli.datamodule, ckpt_path=str(run.last) if cli.resume else None, weights_only=True)
    finally:
        report.remove_traces(cli)
    if cli.trainer.fast_dev_run:  # type: ignore[attr-defined]
        return {}
    # Of the best weights, as `validate` would find them; not another point of the training's curves.
    cli.trainer.loggers = []
    best = str(run.best) if run.best.exists() else None
    figures = (cli.trainer.validate(cli.model, cli.datamodule, ckpt_path=best, verbose=False) or [{}])[0]
    return report.finish(cli, dict(figures))


def _evaluate(cli: TaskCLI) -> dict[str, Any]:
    checkpoint = _checkpoint(cli)
    cli.model.before_scoring(Path(checkpoint), cli.datamodule)
    method = getattr(cli.trainer, cli.verb)
    figures = dict((method(cli.model, cli.datamodule, ckpt_path=checkpoint, verbose=False) or [{}])[0])
    figures = report.complete(cli, figures)
    if cli.run and cli.trainer.is_global_zero:
        cli.run.write_json(cli.run.validation if cli.verb == "validate" else cli.run.path / "test.json", figures)
    text = report.shown(cli, figures)
    report.say(f"{cli.run or checkpoint}:" + ("\n" if "\n" in text else " ") + text)
    return figures


def _predict(cli: TaskCLI) -> dict[str, Any]:
    checkpoint = _checkpoint(cli)
    cli.model.before_scoring(Path(checkpoint), cli.datamodule)
    predictions = cli.trainer.predict(cli.model, cli.datamodule, ckpt_path=checkpoint)
    target = (cli.run.path if cli.run else Path()) / "predictions.pt"
    if cli.trainer.is_global_zero:
        torch.save(predictions, target)
    report.say(f"Predictions are in {target}.")
    return {"predictions": str(target)}


def _checkpoint(cli: TaskCLI) -> str:
    """The weights to score: --ckpt_path, else the run's best, else its last."""
    chosen = cli.config.ckpt_path
    if chosen is None and cli.run:
        chosen = next((str(path) for path in (cli.run.best, cli.run.last) if path.exists()), None)
        if chosen is None:
            raise UserError(f"{cli.run} has no checkpoint yet; train it with `triune {cli.task} fit`.")
    if chosen is None:
        newest = newest_runs()
        hint = f", for example `triune {cli.task} {cli.verb} {newest[0]}`" if newest else ""
        raise UserError(f"Which run shall `{cli.verb}` take? Give its folder{hint}.")
    if not Path(chosen).exists():
        raise UserError(f"--ckpt_path {chosen}: no such file.")
    return chosen


def _prepare(task: str, verb: str, args: list[str], package: str) -> tuple[RunFolder | None, bool, list[str]]:
    """Find run folder and configuration files in the command line: (run, resume, arguments for the parser)."""
    trains = verb not in SCORING
    known, rest = _run_and_configs(verb, args)
    if None in known.config or ("--run" in args and known.run is None):
        missing = "--config" if None in known.config else "--run"
        raise UserError(f"{missing} needs a value; `triune {task} {verb} --help` says which.")
    if known.resume not in ("true", "false"):
        raise UserError(f"--resume is '{known.resume}', but must be true or false.")
    resume = known.resume == "true"
    configs = [str(check_yaml(find_config(name, package))) for name in known.config]
    run = RunFolder(known.run) if known.run else None
    helping = any(word in ("-h", "--help") or word.startswith("--print_config") for word in rest)
    if helping:
        return run, resume, _join(configs, rest)
    if trains and resume and run is None:
        raise UserError("--resume true needs the folder of the run to continue: --run DIR.")
    if run and (resume or not trains):
        run = RunFolder.open(run.path)
        configs.insert(0, str(run.config))
        if trains and run.verb != verb:
            raise UserError(f"{run} is a run of `triune {task} {run.verb}`; continue it with that verb.")
        if trains and not run.last.exists():
            raise UserError(f"{run} has no checkpoints/last.ckpt to continue from; start anew with another --run.")
    if trains and not resume:
        run = run or RunFolder(os.environ.get(RUN_VARIABLE, "") if rank_zero_only.rank else RunFolder.fresh(task).path)
        if not configs:
            configs = _default_configs(verb, rest, package)
        if rank_zero_only.rank == 0:
            run.check_free()
            os.environ[RUN_VARIABLE] = str(run)
    return run, resume, _join(configs, rest)


def _default_configs(verb: str, rest: list[str], package: str) -> list[str]:
    """The recipe for a command line without --config: one for fine-tuning, where a checkpoint is given and there is
    one.
    """
    names = ["default"] if verb == "fit" else [verb]
    if any(word.split("=")[0] == "--model.pretrained" for word in rest):
        names = ["finetune", "default"] if verb == "fit" else [f"{verb}-finetune"]
    known = {recipe.name for recipe in list_recipes(folder(package))}
    return [str(find_config(name, package)) for name in names if name in known][:1]


def _run_and_configs(verb: str, args: list[str]) -> tuple[argparse.Namespace, list[str]]:
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
    run = _run_and_configs(verb, args)[0].run
    return RunFolder(run).verb if run else "fit"


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
        if value in ({}, []) or (name in SECTIONS and not isinstance(value, dict)):
            found = f"is {value}" if value else "is empty"
            raise UserError(
                f"--config {path}: `{name}` {found}, but must hold options; put them below it, or remove the line."
            )
    return path


def _join(configs: list[str], rest: list[str]) -> list[str]:
    return [word for name in configs for word in ("--config", name)] + rest


def _launched() -> bool:
    """Whether torchrun or SLURM started several processes, so that they, not we, decide about devices."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 or int(os.environ.get("SLURM_NTASKS", "1")) > 1


def quiet() -> None:
    """Silence what Lightning says about itself; warnings about the user's run stay."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",  # ours to choose, and printed
        ".*LeafSpec.*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*smaller than the logging interval.*",
        ".*`max_epochs` was not set.*",
        ".*overridden `transfer_batch_to_device`.*",
        ".*callbacks used to create the checkpoint need to be provided.*",
        ".*`srun` command is available.*",
        ".*lr_scheduler.step.*before.*optimizer.step.*",
    ):
        warnings.filterwarnings("ignore", message=message)
    if rank_zero_only.rank:
        warnings.filterwarnings("ignore")

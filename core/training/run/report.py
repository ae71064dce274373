"""What a training run says and writes at its start and at its end."""

from __future__ import annotations

import shlex
import shutil
import textwrap
import time
from typing import TYPE_CHECKING, Any

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import Callback, LightningModule, Trainer

from ...errors import UserError
from ..module import TrainingModule
from . import machine
from .folder import RunFolder
from .plot import plot_loss
from .progress import duration, short
from .telemetry import total_steps

if TYPE_CHECKING:
    from .cli import TaskCLI


def say(text: str) -> None:
    """Print on the main process only."""
    if rank_zero_only.rank == 0 and text:
        print(text, flush=True)


def command(cli: TaskCLI) -> str:
    """The command line of this run, as one would type it."""
    return f"triune {cli.task} {cli.verb} {shlex.join(cli.args_given)}".strip()


def opening(cli: TaskCLI) -> str:
    """What runs on what; known before any data is read."""
    trainer = cli.trainer
    parts = [machine.device_name(cli.device)]
    if trainer.world_size > 1:
        parts[0] = f"{trainer.world_size} x {parts[0]}"
    elif cli.device.type == "cuda" and (present := _gpus()) > 1:
        parts[0] = f"1 of {present} x {parts[0]} (--trainer.devices auto takes all)"
    parts.append(f"{cli.config.threads} threads" if cli.config.threads > 1 else "1 thread")
    if workers := cli.config.data.get("workers"):
        parts.append(f"{workers} data workers")
    precision = str(trainer.precision)
    parts.append("float32" if precision == "32-true" else precision)
    if cli.device.type == "cuda" and precision == "32-true":
        parts[-1] += " (products in TF32)"
    verb = "Continuing" if cli.resume else "Training into"
    return f"{verb} {cli.run}\n{entry('machine', ', '.join(parts))}"


def entry(name: str, about: str) -> str:
    """One entry of the opening block, wrapped under itself."""
    width = max(40, shutil.get_terminal_size().columns - 1)
    return textwrap.fill(about, width, initial_indent=f"  {name:8} ", subsequent_indent=" " * 11)


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


class Opening(Callback):
    """Makes the run folder once data and model stand, so that a mistake in either leaves nothing behind."""

    def __init__(self, cli: TaskCLI):
        self.cli = cli

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        cli = self.cli
        assert cli.run
        # Under torchrun every process has chosen a name of its own.
        cli.run = RunFolder(trainer.strategy.broadcast(str(cli.run)))
        if cli.checkpoints:
            cli.checkpoints.run = cli.run
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            if not cli.resume:
                cli.run.create()
            text = cli.config_text()
            part = cli.run.path / "config.yaml.part"
            part.write_text(text, encoding="utf-8")
            part.replace(cli.run.config)
            if (tuning := getattr(pl_module, "tuning", None)) and not cli.resume:
                tuning.start.save(cli.run.pretrained)
        data = getattr(cli.datamodule, "describe", None)
        model = getattr(pl_module, "describe", None)
        size = f"{parameters(pl_module):,} parameters"
        lines = [entry("data", data())] if data else []
        lines.append(entry("model", f"{model()}, {size}" if model else size))
        if tuning := getattr(pl_module, "tuning", None):
            lines += [entry(*about) for about in tuning.describe(pl_module.model, trainer.optimizers[0])]
        if trainer.max_steps > (total := total_steps(trainer) or 0) > 0:
            about = f"{total:,} steps, the end of epoch {trainer.max_epochs:,}"
            lines.append(entry("length", f"{about} (--trainer.max_epochs -1 makes it {trainer.max_steps:,})"))
        say("\n".join(lines))


def parameters(module: LightningModule) -> int:
    """Numbers in the model, shared ones once."""
    return sum(p.numel() for p in module.parameters())


def remove_traces(cli: TaskCLI) -> None:
    """Remove what was made for a new run that failed before its first step, so that the same command can be tried
    again.
    """
    run = cli.run
    if run is None or cli.resume or rank_zero_only.rank or not run.path.is_dir() or cli.trainer.global_step:
        return
    if run.last.exists() or run.best.exists() or run.summary.exists():
        return
    for folder in (run.tensorboard, run.pretrained):
        shutil.rmtree(folder, ignore_errors=True)
    run.config.unlink(missing_ok=True)
    if not any(run.path.iterdir()):
        run.path.rmdir()


def finish(cli: TaskCLI, figures: dict[str, Any]) -> dict[str, Any]:
    """Write model/, loss.png and summary.json, and print the closing block. Returns the summary."""
    run = cli.run
    assert run
    figures = complete(cli, figures)
    summary = summarise(cli, figures)
    if not cli.trainer.is_global_zero:
        return summary
    if hasattr(cli.model, "export"):
        run.export(cli.model.export)
    _write_adapter(cli, run)
    plot_loss(run.metrics, run.plot, f"{cli.task} · {run.path.name}", getattr(cli.model, "loss_unit", "nats per token"))
    if hasattr(cli.model, "finish"):
        cli.model.finish(run)
    run.write_json(run.summary, summary)
    say(closing(cli, figures, summary))
    return summary


def _write_adapter(cli: TaskCLI, run: RunFolder) -> None:
    try:
        if isinstance(cli.model, TrainingModule) and cli.model.export_adapter(run.adapter):
            say(f"The adapter for PEFT is in {run.adapter}")
    except UserError as error:  # the model is whole without it
        say(f"There is no adapter for PEFT: {error}")


def complete(cli: TaskCLI, figures: dict[str, Any]) -> dict[str, Any]:
    """The figures of an evaluation with those that only the module can give, on the main process."""
    further = getattr(cli.model, "figures", None)
    return figures | further(cli.run) if further and figures and cli.trainer.is_global_zero else figures


def summarise(cli: TaskCLI, figures: dict[str, Any]) -> dict[str, Any]:
    """Everything in `summary.json`: the figures of the best weights first."""
    return {
        **figures,
        "task": cli.task,
        "best_step": cli.checkpoints.best_step if cli.checkpoints else None,
        "steps": cli.trainer.global_step,
        "parameters": parameters(cli.model),
        **cli.telemetry.totals(),
        "seed": cli.config.seed_everything,
        "precision": str(cli.trainer.precision),
        "devices": cli.trainer.world_size,
        **machine.describe(cli.device),
        "command": command(cli),
        "finished": time.strftime("%Y-%m-%d %H:%M:%S"),
        "interrupted": cli.interrupt.stopped,
    }


def shown(cli: TaskCLI, figures: dict[str, Any]) -> str:
    """The figures as the module wants them shown, else on one line."""
    table = getattr(cli.model, "table", None)
    return table(figures) if table and figures else figures_line(figures)


def figures_line(figures: dict[str, Any]) -> str:
    """ "val_loss 1.6123  val_bits_per_byte 2.3261", or that there is nothing."""
    return "  ".join(f"{name} {value:.4f}" for name, value in figures.items()) or "no figures (nothing was validated)"


def closing(cli: TaskCLI, figures: dict[str, Any], summary: dict[str, Any]) -> str:
    """What came out, where it lies, and what to type next."""
    unit = getattr(cli.model, "unit", "tok")
    text = shown(cli, figures)
    if summary["best_step"] is not None:
        step = f"step {summary['best_step']} of {summary['steps']}"
        text += f"\nThese are the weights of {step}." if "\n" in text else f" ({step})"
    speed = [f"{short(summary['tokens'])} {unit} in {duration(summary['seconds'])}"]
    if summary["tokens_per_second"]:
        speed.append(f"{short(summary['tokens_per_second'])} {unit}/s")
    peak = "unknown" if summary["mfu"] is None else f"{summary['mfu']:.1%}"
    speed.append(f"share of peak {peak}")
    if summary["memory_gb"]:
        speed.append(f"{summary['memory_gb']:.1f} GB")
    lines = ["", text, "  ".join(speed), f"Everything is in {cli.run}"]
    if cli.interrupt.stopped:
        lines.append(
            f"Stopped early. Continue:\n  triune {cli.task} {cli.verb} --run {shlex.quote(str(cli.run))} --resume true"
        )
    if steps := getattr(cli.model, "next_steps", None):
        lines += ["Next:", *(f"  {step}" for step in steps(cli.run))]
    return "\n".join(lines)

"""What a training run says and writes at its start and at its end."""

from __future__ import annotations

import contextlib
import shlex
import shutil
import textwrap
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from ...checkpoints.origin import mark_model, marked
from ...errors import UserError
from ...files import write_atomic
from ..content import content_of
from ..lightning_fixes import rank
from . import machine
from .checkpoints import put_aside
from .folder import RunFolder
from .plot import plot_loss
from .progress import duration, short
from .session import Session
from .telemetry import total_steps

SAID = {
    "skipped_steps": "Steps left out, because their loss or gradient was not finite: {:,}",
    "loss_spikes": "Leaps of the loss: {:,}",
    "steps_without_targets": "Steps without a target to learn from: {:,}",
}
"""How the counts of `Guard` are told at the end."""


def say(text: str) -> None:
    """Prints on the main process only."""
    if rank() == 0 and text:
        print(text, flush=True)


def opening(session: Session) -> str:
    """What runs on what; known before any data is read."""
    trainer = session.trainer
    parts = [machine.device_name(session.device)]
    if trainer.world_size > 1:
        parts[0] = f"{trainer.world_size} x {parts[0]}"
    elif session.device.type == "cuda" and (present := _gpus()) > 1:
        parts[0] = f"1 of {present} x {parts[0]} (--trainer.devices auto takes all)"
    threads = session.config.threads
    parts.append(f"{threads} threads" if threads > 1 else "1 thread")
    if workers := session.config.data.get("workers"):
        parts.append(f"{workers} data workers")
    precision = str(trainer.precision)
    parts.append("float32" if precision == "32-true" else precision)
    if session.device.type == "cuda" and precision == "32-true":
        parts[-1] += " (products in TF32)"
    if session.precision:
        parts[-1] += f" ({session.precision})"
    verb = "Continuing" if session.resume else "Training into"
    return f"{verb} {session.run}\n{entry('machine', ', '.join(parts))}"


def entry(name: str, about: str) -> str:
    """One entry of the opening block, wrapped under itself."""
    width = max(40, shutil.get_terminal_size().columns - 1)
    return textwrap.fill(about, width, initial_indent=f"  {name:8} ", subsequent_indent=" " * 11)


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


class Opening(Callback):
    """Makes the run folder once data and model stand, so that a mistake in either leaves nothing behind."""

    def __init__(self, session: Session):
        self.session = session

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        session = self.session
        assert session.run
        # Under torchrun every process has chosen a name of its own.
        session.run = RunFolder(trainer.strategy.broadcast(str(session.run)))
        if session.checkpoints:
            session.checkpoints.run = session.run
        if trainer.is_global_zero and not session.is_trial:
            self._make(session, session.run)
        say("\n".join(self._lines(session, trainer)))

    def _make(self, session: Session, run: RunFolder) -> None:
        run.lock() if session.resume else run.create()
        session.owns_run = True
        if session.resume:
            session.data.check_resumed()
            for path in session.damaged:  # only now that no other process can be writing them
                put_aside(path)
            return
        origin = session.checkpoints.origin if session.checkpoints else None
        write_atomic(run.config, marked(session.config_text, origin).encode())
        if session.model.tuning and session.model.tuning.start:
            session.model.tuning.start.save(run.pretrained)
            mark_model(run.pretrained, origin)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Only now, when the checkpoint is loaded and nothing was refused: config.yaml says how the run goes on.
        session = self.session
        session.trained = True
        if session.run and session.changes and trainer.is_global_zero and not session.is_trial:
            origin = session.checkpoints.origin if session.checkpoints else None
            before = session.recorded and marked(session.recorded, origin)
            session.run.change_config(marked(session.config_text, origin), trainer.global_step, before)

    def _lines(self, session: Session, trainer: Trainer) -> list[str]:
        model = session.model
        size = f"{parameters(model):,} parameters"
        lines = [entry("data", about)] if (about := session.data.describe()) else []
        lines.append(entry("model", f"{about}, {size}" if (about := model.describe()) else size))
        if model.tuning and model.model:
            lines += [entry(*about) for about in model.tuning.describe(model.model, trainer.optimizers[0])]
        if trainer.max_steps > (total := total_steps(trainer) or 0) > 0:
            about = f"{total:,} steps, the end of epoch {trainer.max_epochs:,}"
            lines.append(entry("length", f"{about} (--trainer.max_epochs -1 makes it {trainer.max_steps:,})"))
        return lines


def nothing_left(session: Session) -> str:
    """What is said about a resumed run that had taken all its steps before; empty for any other."""
    if not session.resume or session.trained or session.interrupt.stopped:
        return ""
    changed = ", and no changed option has an effect" if session.changes else ""
    return (
        f"All steps of this run were taken before ({session.trainer.global_step:,}), so that nothing was"
        f" trained{changed}; a larger --trainer.max_steps (or --trainer.max_epochs) goes on."
    )


def parameters(module: LightningModule) -> int:
    """Numbers in the model, shared ones once."""
    return sum(p.numel() for p in module.parameters())


def remove_traces(session: Session) -> None:
    """Removes what was made for a new run that failed before its first step, so that the same command can be tried
    again.
    """
    run = session.run
    if run is None or session.resume or rank() or session.trainer.global_step or not run.path.is_dir():
        return
    if run.contents() or (run.config.exists() and not session.owns_run):  # that of another process
        return
    run.remove_start()


def finish(session: Session, metrics: dict[str, Any]) -> dict[str, Any]:
    """Writes model/, loss.png, summary.json and report.html, and prints the closing block. Returns the summary."""
    run = session.run
    assert run
    metrics = complete(session, metrics)
    summary = summarise(session, metrics)
    if not session.trainer.is_global_zero:
        session.model.export_state()  # weights that are cut over the processes are put together by all of them
        with contextlib.suppress(UserError):  # the main process says it
            session.model.export_adapter(None)
        return summary
    run.export(session.model.export, session.checkpoints.origin if session.checkpoints else None)
    _write_adapter(session, run)
    plot_loss(run.metrics, run.plot, f"{session.task} · {run.path.name}", session.model.loss_unit)
    session.model.finish(run)
    run.write_json(run.summary, summary)
    write_report(run)
    say(closing(session, metrics, summary))
    return summary


def write_report(run: RunFolder) -> None:
    """Writes report.html, or says why there is none: the run is whole without it."""
    from .page import write_page

    try:
        write_page(run)
    except (UserError, OSError) as error:
        say(f"There is no new {run.report}: {str(error).rstrip('.')}.")


def _write_adapter(session: Session, run: RunFolder) -> None:
    try:
        if session.model.export_adapter(run.adapter):
            say(f"The adapter for PEFT is in {run.adapter}")
    except UserError as error:  # the model is whole without it
        say(f"There is no adapter for PEFT: {error}")


def complete(session: Session, metrics: dict[str, Any]) -> dict[str, Any]:
    """The metrics of an evaluation with those of what the module fits to the weights, on the main process."""
    if metrics and session.trainer.is_global_zero:
        return metrics | session.model.finalise(session.run)
    if metrics and session.model.finalise_reads_weights:
        session.model.export_state()
    return metrics


def summarise(session: Session, metrics: dict[str, Any]) -> dict[str, Any]:
    """Everything in `summary.json`: the metrics of the best weights first."""
    return {
        **metrics,
        "task": session.task,
        "unit": session.model.unit,
        "loss_unit": session.model.loss_unit,
        "validated_on": _validated_on(session),
        "best_step": session.checkpoints.best_step if session.checkpoints else None,
        "steps": session.trainer.global_step,
        "parameters": parameters(session.model),
        **session.telemetry.totals(),
        **session.model.guard.counts,
        "seed": session.config.seed_everything,
        "precision": str(session.trainer.precision),
        "devices": session.trainer.world_size,
        **machine.describe(session.device),
        "command": session.command,
        "finished": time.strftime("%Y-%m-%d %H:%M:%S"),
        "interrupted": session.interrupt.stopped,
    }


def _validated_on(session: Session) -> dict[str, Any] | None:
    """A hash of the validation examples and the units that the loss is a mean of, by which runs can be compared; None
    where they are not known or where not all were scored.
    """
    examples, evaluated = session.data.held_out(), session.model.evaluated
    limited = session.trainer.limit_val_batches not in (1.0, None)
    if examples is None or evaluated is None or limited:
        return None
    held = list(examples)
    return {"content": content_of(held), "examples": len(held), "units": round(float(evaluated.count))}


def shown(session: Session, metrics: dict[str, Any]) -> str:
    """The metrics as the module shows them, or that there are none."""
    return session.model.table(metrics) if metrics else "no metrics (nothing was validated)"


def closing(session: Session, metrics: dict[str, Any], summary: dict[str, Any]) -> str:
    """What came out, where it lies, and what to type next."""
    unit = session.model.unit
    text = shown(session, metrics)
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
    lines = ["", text, "  ".join(speed), f"Everything is in {session.run}"]
    lines += [SAID[name].format(count) for name, count in session.model.guard.counts.items() if count]
    if session.interrupt.stopped:
        again = f"triune {session.task} {session.verb} --run {shlex.quote(str(session.run))} --resume true"
        lines.append(f"Stopped early. Continue:\n  {again}")
    if session.run and (steps := session.model.next_steps(session.run)):
        lines += ["Next:", *(f"  {step}" for step in steps)]
    return "\n".join(lines)

"""Which checkpoint a resumed run continues from, and which one a verb scores."""

from __future__ import annotations

from pathlib import Path

from ...errors import UserError
from ..lightning_fixes import FSDP2
from . import report
from .checkpoints import another_run, damage
from .folder import RunFolder, newest_runs
from .session import Session


def to_continue(session: Session, run: RunFolder) -> str:
    """The newest checkpoint that is not damaged. Raises UserError when there is none."""
    problems = {path: damage(path) for path in (run.last, run.previous) if path.exists()}
    good = next((path for path, problem in problems.items() if not problem), None)
    found = "; ".join(f"{path} is damaged ({problem})" for path, problem in problems.items() if problem)
    if good is None:
        raise UserError(f"{found}, so that this run cannot go on; start anew with another --run.")
    _refuse_folder(session, good)
    session.damaged = [path for path, problem in problems.items() if problem]
    if found:
        report.say(f"{found}; continuing from {good.name}{', the one before' if good == run.previous else ''}.")
    best = run.best_there
    if session.checkpoints and best.exists():
        problem = damage(best)
        if problem:
            report.say(f"{best} is damaged ({problem}); the next validation writes a new one.")
        elif another_run(best, good):
            report.say(f"{best} is of another run than {good.name}; the next validation writes a new one.")
        else:
            return str(good)
        session.damaged.append(best)
        session.checkpoints.forget_best = True
    return str(good)


def to_score(session: Session, chosen: str | None) -> str:
    """The weights to score: --ckpt_path, else the run's best, else its last."""
    run, asked = session.run, chosen is not None
    if chosen is None and run:
        chosen = next((str(path) for path in (run.best_there, run.last) if path.exists()), None)
        if chosen is None:
            raise UserError(f"{run} has no checkpoint yet; train it with `triune {session.task} fit`.")
        if chosen != str(run.best_there):
            report.say(f"{run.best} is missing; the weights of {run.last.name} are scored.")
    if chosen is None:
        newest = newest_runs()
        hint = f", for example `triune {session.task} {session.verb} {newest[0]}`" if newest else ""
        raise UserError(f"`{session.verb}` needs a run; give its folder{hint}.")
    if not Path(chosen).exists():
        raise UserError(f"--ckpt_path {chosen}: no such file.")
    if problem := damage(Path(chosen)):
        others = [path for path in (run.last, run.previous) if path.exists() and str(path) != chosen] if run else []
        hint = f"; --ckpt_path {others[0]} scores other weights of the run" if others else ""
        raise UserError(f"{chosen} is damaged ({problem}){hint}.")
    _refuse_folder(session, Path(chosen))
    own = run and not asked and chosen == str(run.best_there) and run.last.exists() and not damage(run.last)
    if run and own and another_run(Path(chosen), run.last):
        raise UserError(
            f"{chosen} is of another run than {run.last.name} beside it; put the original back, or choose one of them"
            " with --ckpt_path."
        )
    return chosen


def _refuse_folder(session: Session, path: Path) -> None:
    """Raises UserError for a checkpoint in parts where the strategy reads single files only."""
    if path.is_dir() and not isinstance(session.trainer.strategy, FSDP2):
        raise UserError(
            f"{path} is a folder with a part of each process, which --trainer.strategy"
            f" {session.config.trainer.strategy} does not read; give fsdp2, which goes on from it and writes single"
            " files, or fsdp2_sharded."
        )

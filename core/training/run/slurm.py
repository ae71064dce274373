"""A job of SLURM that is about to be stopped: it saves, asks to be queued again, and then goes on exactly.

`#SBATCH --signal=USR1@120` lets SLURM send USR1 two minutes before the time limit; a preempted job gets SIGTERM. The
same script runs again, and `--run DIR` in it, whose configuration begins with the same command, is then continued.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

SECONDS = 30
"""Within which `scontrol` must answer."""


def job() -> str | None:
    """The number of this job, of an array with that of the task; None outside of SLURM."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    found = f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID", "")
    return found if re.fullmatch(r"[0-9_]+", found) else None


def started_again(config: Path, command: str) -> str:
    """Who has started this command again, in words, where `config` is what the same command wrote before; else empty.

    SLURM queues a job again, and torchrun starts its processes again (--max-restarts) after one of them has ended.
    """
    slurm = job() is not None and os.environ.get("SLURM_RESTART_COUNT", "0") not in ("", "0")
    torchrun = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") not in ("", "0")
    if not slurm and not torchrun:
        return ""
    try:
        with config.open(encoding="utf-8") as file:
            same = file.readline().rstrip("\n") == f"# {command}"
    except (OSError, ValueError):
        return ""
    return ("torchrun has started these processes" if torchrun else "SLURM has started this job") * same


def preempted() -> bool:
    """Whether SLURM stops this job to make room, as far as it says so; not one that was cancelled or is out of time.

    `scontrol show job` has a PreemptTime other than None from the moment on at which a job is told to end.
    """
    said = _scontrol("-o", "show", "job", job() or "")[1]
    time = re.search(r"PreemptTime=(\S+)", said)
    state = re.search(r"JobState=(\S+)", said)
    if state and state[1] not in ("RUNNING", "PREEMPTED"):
        return False
    return time is None or time[1] not in ("None", "N/A", "Unknown")


def requeue() -> str:
    """Asks SLURM to queue this job again; returns what came of it, in words."""
    number = job()
    code, said = _scontrol("requeue", number or "")
    if code == 0:
        return f"SLURM starts job {number} again."
    return f"SLURM does not start job {number} again ({' '.join(said.split()) or f'scontrol ended with {code}'})."


def _scontrol(*words: str) -> tuple[int, str]:
    try:
        done = subprocess.run(["scontrol", *words], capture_output=True, text=True, timeout=SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return 1, str(error)
    return done.returncode, done.stdout + done.stderr

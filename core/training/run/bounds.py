"""What the numbers and texts of a configuration must be, whoever declares them: checked once, after parsing.

Lightning takes many values that it cannot use: a negative clipping value turns gradients around, and zero batches of
accumulation divide by zero.
"""

from __future__ import annotations

import math
from typing import Any

from ...errors import UserError

MOST = 10**9
BOUNDS: dict[str, tuple[float, float]] = {
    "trainer.max_epochs": (-1, math.inf),
    "trainer.max_steps": (-1, math.inf),
    "trainer.min_epochs": (0, MOST),
    "trainer.min_steps": (0, MOST),
    "trainer.fast_dev_run": (0, MOST),
    "trainer.num_nodes": (1, 100_000),
    "trainer.check_val_every_n_epoch": (1, MOST),
    "trainer.num_sanity_val_steps": (-1, MOST),
    "trainer.log_every_n_steps": (1, MOST),
    "trainer.accumulate_grad_batches": (1, 1_000_000),
    "trainer.gradient_clip_val": (0, MOST),
    "trainer.reload_dataloaders_every_n_epochs": (0, MOST),
    "threads": (1, 4096),
    "data.workers": (0, 1024),
}
"""Least and largest value of options; -1 stands for no bound, or for all. Each worker is a process."""
ANY_SIZE = ("seed", "seed_everything", "max_steps", "max_epochs")
"""Whole numbers that may be of any size; nothing that is counted otherwise reaches `MOST`."""
OURS = {
    "trainer.default_root_dir": "--run names the folder",
    "trainer.model_registry": "--run names the folder",
    "trainer.enable_progress_bar": "progress is shown in any case",
    "trainer.enable_model_summary": "the opening lines say what the model is",
}
"""Options of Lightning's trainer whose work is done here, and what to do instead."""


def check(config: Any, verb: str = "fit") -> None:
    """Raises UserError for a number outside of its bounds, a number that is not finite, an empty text.

    Args:
        config: the parsed namespace of the command line.
        verb: what is to be done; a verb that scores needs batches to score.
    """
    values = vars(config.as_flat())
    for name, value in values.items():
        for part in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(part, float) and not abs(part) <= MOST:
                raise UserError(f"--{name} is {part}, but must be a finite number of at most {MOST:,} in size.")
            if isinstance(part, int) and abs(part) > MOST and name.rpartition(".")[2] not in ANY_SIZE:
                raise UserError(f"--{name} is {part}, but must be a whole number of at most {MOST:,} in size.")
            # An empty text is the default of several options of other libraries' classes, such as loggers.
            if isinstance(part, str) and not part.strip() and ".init_args." not in name:
                raise UserError(f"--{name} is empty, but must have a value; leave it out for the default.")
    for name, instead in OURS.items():
        if values.get(name) is not None:
            raise UserError(f"--{name} is given, but is not used here; {instead}.")
    for name, unbounded in (("max_steps", True), ("max_epochs", True), ("limit_train_batches", False)):
        if (value := values.get(f"trainer.{name}")) == 0 and not isinstance(value, bool):
            rest = ", or -1 for no bound" if unbounded else ", or a part of an epoch above 0"
            raise UserError(f"--trainer.{name} is 0, which trains nothing; it must be at least 1{rest}.")
    scored = {"validate": "val", "test": "test", "predict": "predict"}.get(verb)
    if scored and (value := values.get(f"trainer.limit_{scored}_batches")) == 0 and not isinstance(value, bool):
        raise UserError(
            f"--trainer.limit_{scored}_batches is 0, which leaves nothing to {verb}; it must be at least 1, or a part "
            "above 0."
        )
    for name, (least, most) in BOUNDS.items():
        value = values.get(name)
        if value is not None and not isinstance(value, bool) and not least <= value <= most:
            above = f" and at most {most:,}" if most < math.inf else ""
            raise UserError(f"--{name} is {value}, but must be at least {least:g}{above}.")
    every = values.get("trainer.val_check_interval")
    if isinstance(every, (int, float)) and not (every >= 1 if isinstance(every, int) else 0 < every <= 1):
        raise UserError(
            f"--trainer.val_check_interval is {every}, but must be a whole number of batches of at least 1, or a part "
            "of an epoch above 0 and at most 1.0."
        )
    if (seed := values.get("seed_everything")) is not None and not 0 <= seed < 2**32:
        raise UserError(f"--seed_everything is {seed}, but must be at least 0 and below {2**32:,}.")

"""What an inherited option of training is called and how it is described."""

from __future__ import annotations

import argparse

from triune.core.training.module import TrainingModule
from triune.core.training.run.arguments import use_own_words


class Task(TrainingModule):
    """A task.

    Args:
        size: of the model.
        pretrained: a checkpoint of a bird.
        **training: the rest.
    """

    def __init__(self, size: int = 1, **training) -> None:
        super().__init__(**training)


def test_inherited_options_are_described_by_the_task() -> None:
    parser = argparse.ArgumentParser()
    for name in ("size", "pretrained", "ema"):
        parser.add_argument(f"--model.{name}", help="as the base says")
    use_own_words(parser, Task)
    said = {action.dest: action.help for action in parser._actions}
    assert said["model.pretrained"] == "a checkpoint of a bird."
    assert said["model.ema"] == said["model.size"] == "as the base says"  # its own are described already

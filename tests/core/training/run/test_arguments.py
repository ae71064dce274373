"""What an inherited option of training is called and how it is described."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import jsonargparse
import pytest

from triune.core.errors import UserError
from triune.core.expert_options import ExpertsConfig
from triune.core.training.module import TrainingModule
from triune.core.training.run.arguments import check_yaml, command_line, given, use_own_words
from triune.core.training.run.sentences import parsing


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


def test_options_of_a_users_file_count_as_given(tmp_path: Path) -> None:
    """Those of a recipe do not, nor those of a file that holds all options, from which nothing can be told."""
    options = ("files", "vocab_size", "text_field")
    mine, whole = tmp_path / "mine.yaml", tmp_path / "whole.yaml"
    mine.write_text("data:\n  vocab_size: 300\ntrainer:\n  max_steps: 3\n")
    whole.write_text("data:\n  vocab_size: 300\n  files: null\n  text_field: text\n")
    line = ["--data.files+=a.txt", "--config"]
    assert given([*line, str(mine)], "data", "triune.text", options) == {"files", "vocab_size"}
    assert given([*line, str(whole)], "data", "triune.text", options) == {"files"}
    assert given([*line, "default"], "data", "triune.text", options) == {"files"}
    assert given([f"--config={mine}"], "trainer", "triune.text", ("max_steps", "devices")) == {"max_steps"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("run: x\n", "`run`, which would have no effect in a file"),
        ("resume: true\n", "`resume`"),
        ("config: other.yaml\n", "`config`"),
        ("1: 2\n", "1 in the place of an option's name"),
        ("null: 2\n", "None in the place"),
        ('"a\\0b": 2\n', "in the place"),
    ],
)
def test_a_file_holds_nothing_but_options(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as error:
        check_yaml(file)
    assert said in str(error.value) and str(error.value).endswith(".")


def test_a_command_stands_on_one_line() -> None:
    """The first one of config.yaml, where a name with a line break would otherwise go on as YAML."""
    assert command_line(["triune", "text", "fit", "--run", "a b"]) == "triune text fit --run 'a b'"
    assert command_line(["fit", "a\ntrainer: 'x'\x00"]) == r"fit $'a\ntrainer: \'x\'\x00'"


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("--experts=3", "--experts is '3', but is a group of settings; give single ones, such as --experts.count."),
        ("--experts.count=x", "--experts.count is 'x', but must be a whole number."),
        ("--options.state=0", "--options is '0', but must be a mapping, {NAME: VALUE}."),
    ],
)
def test_a_group_of_settings_is_no_single_value(line: str, sentence: str) -> None:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--experts", type=ExpertsConfig | None, default=None)
    parser.add_argument("--options", type=dict[str, dict[str, Any]], default={})
    with pytest.raises(jsonargparse.ArgumentError) as error:
        parser.parse_args([line])
    assert parsing(str(error.value), parser, "triune x") == sentence

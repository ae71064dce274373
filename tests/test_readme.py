"""What the README shows is what runs."""

from __future__ import annotations

import re
from pathlib import Path

import torch

README = Path(__file__).parent.parent / "README.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(encoding="utf-8"), re.S)


def test_the_example_of_an_own_modality_runs_and_learns(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = (block for block in blocks("python") if "ForecastTask" in block)
    assert len([line for line in code.splitlines() if line.strip()]) <= 32
    torch.manual_seed(0)
    quiet = code.replace(
        "Trainer(", "Trainer(accelerator='cpu', enable_progress_bar=False, enable_model_summary=False, "
    )
    names: dict[str, object] = {}
    exec(compile(quiet, "README.md", "exec"), names)
    model, series = names["task"].model, names["series"]
    error = (model(series[:, :-1]) - series[:, 1:]).square().mean()
    assert error < 0.1  # a sine has a mean square of 0.5
    again = names["again"]
    x = torch.randn(2, 5, 64)
    assert torch.equal(again.eval()(x), model.transformer.eval()(x))


def test_every_command_is_known():
    from triune.cli import COMMANDS
    from triune.tasks import tasks

    commands = re.findall(r"triune (\w+)(?: (\w+))?", "\n".join(blocks("sh")))
    assert commands
    for task, verb in commands:
        assert task in COMMANDS or task == "recipes" or verb in tasks()[task].verbs, f"triune {task} {verb}"


def test_the_recipes_it_names_exist():
    for task, name in re.findall(r"triune (\w+) fit --config ([\w-]+)", README.read_text(encoding="utf-8")):
        assert (README.parent / task / "recipes" / f"{name}.yaml").is_file(), name

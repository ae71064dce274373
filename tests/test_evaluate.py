"""`triune evaluate`: what may be evaluated on what, each mistake in one sentence."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from triune.cli import main
from triune.core.config import TransformerConfig
from triune.core.errors import UserError
from triune.core.labelled.evaluate import listed
from triune.text.model import LanguageModel, LanguageModelConfig
from triune.text.tokenizer import Tokenizer


def model_folder(folder: Path) -> Path:
    torch.manual_seed(0)
    config = TransformerConfig(dim=16, depth=1, heads=2, causal=True, context=16)
    folder.mkdir()
    LanguageModel(LanguageModelConfig(257, config)).save_pretrained(folder)
    Tokenizer.bytes().save(folder)
    return folder


def test_mistakes_are_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, table = model_folder(tmp_path / "m"), tmp_path / "x.csv"
    table.write_text("a,b\n1,2\n")
    (tmp_path / "mine.yaml").write_text("task: mine\n")
    find = importlib.util.find_spec

    def without(name: str, *more: str | None) -> object:
        return None if name == "lm_eval" else find(name, *more)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    for words, said in (
        (["--tasks", table], "is a LanguageModel, which has no head"),
        (["--tasks", table, "hellaswag"], "evaluate them one after the other"),
        (["--tasks", "hellaswag"], "pip install 'triune[evaluate]'"),
        (["--tasks", tmp_path / "mine.yaml"], "pip install 'triune[evaluate]'"),
        (["--tasks", "hellaswag", "--on_error", "skip"], "changes nothing in other tasks"),
        (["--tasks", table, "--shots", "2"], "--shots is for tasks of lm-evaluation-harness"),
        (["--tasks", table, "--out", "x.txt"], "must end in .json or .csv"),
        (["--tasks", tmp_path / "no.yaml"], "No such file"), ([], "--tasks"),
    ):  # fmt: skip
        assert main(["evaluate", str(folder), *map(str, words)]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
    assert main(["evaluate", str(tmp_path), "--tasks", str(table)]) == 2
    assert "is not a run folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tables: []", "has no list `tables`"), ("tables: 3", "has no list `tables`"),
        ("tables:\n  - 3", "must have `table: FILE`"),
        ("tables:\n  - {table: a.csv, inputt: b}", "did you mean 'input'"),
        ("tables:\n  - {table: a.csv, target: [1]}", "must be a text"),
        ("tables:\n  - a.csv\n  - x/a.csv", "Two tables are called 'a.csv'"),
    ],
)  # fmt: skip
def test_a_list_of_tables_is_checked(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as found:
        listed([str(path)])
    assert said in str(found.value)


def test_paths_of_a_list_are_relative_to_it(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("tables:\n  - sub/a.csv\n  - {table: /b.csv, target: [p, q], name: other}\n")
    first, second = listed([str(path)])
    assert (first.table, first.name, first.target) == (str(tmp_path / "sub/a.csv"), "a.csv", None)
    assert (second.table, second.name, second.target) == ("/b.csv", "other", ("p", "q"))

"""Tasks of lm-evaluation-harness: its own model of the exported weights gives the same numbers."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lm_eval", reason="pip install 'triune[evaluate]'")

from triune.cli import main
from triune.core.config import TransformerConfig
from triune.text.harness import CoreModel, name_in
from triune.text.model import LanguageModel, LanguageModelConfig
from triune.text.tokenizer import Tokenizer

pytestmark = pytest.mark.filterwarnings("ignore")  # of the harness and what it imports
TASKS = {
    "mine_choice": 'output_type: multiple_choice\ndoc_to_text: "{{q}}:"\ndoc_to_choice: "{{choices}}"\n'
    'doc_to_target: "{{gold}}"\nmetric_list:\n  - metric: acc\n  - metric: acc_norm\n',
    "mine_whole": 'output_type: loglikelihood_rolling\ndoc_to_text: ""\ndoc_to_target: "{{text}}"\n'
    "metric_list:\n  - metric: bits_per_byte\n",
    "mine_written": 'output_type: generate_until\ndoc_to_text: "{{q}}"\ndoc_to_target: "{{text}}"\n'
    'generation_kwargs:\n  until: ["\\x01"]\n  max_gen_toks: 12\nmetric_list:\n  - metric: exact_match\n',
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny model, its tokenizer, and three tasks in YAML over rows of JSON."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)
    config = TransformerConfig(dim=32, depth=2, heads=2, causal=True, context=64, norm="rmsnorm", ffn="swiglu",
                               position="rotary", bias=False)  # fmt: skip
    model = LanguageModel(LanguageModelConfig(257, config, tied=False, embedding_std=1.0))
    (tmp_path / "model").mkdir()
    model.save_pretrained(tmp_path / "model")
    Tokenizer.bytes().save(tmp_path / "model")
    draw = random.Random(0)
    rows = [
        {"q": "ab cd"[: 2 + i % 4] + str(i), "choices": [" x", " yz", f" {i}", " w"], "gold": draw.randrange(4),
         "text": "some text " * (1 + i % 9)}
        for i in range(12)
    ]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, text in TASKS.items():
        data = f"dataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {tmp_path / 'rows.jsonl'}\n"
        (tmp_path / f"{name}.yaml").write_text(f"task: {name}\n{data}test_split: test\n{text}")
    return tmp_path


def samples(model: Any, folder: Path) -> dict[str, Any]:
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(folder), include_defaults=False)
    return simple_evaluate(model, tasks=list(TASKS), task_manager=manager, bootstrap_iters=0)


def test_the_numbers_are_those_of_the_exported_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from lm_eval.models.huggingface import HFLM

    model, tokenizer = LanguageModel.from_pretrained(folder / "model").eval(), Tokenizer.load(folder / "model")
    assert main(["convert", str(folder / "model"), str(folder / "hf"), "--to", "hf"]) == 0
    ours = samples(CoreModel(model, tokenizer, 5), folder)
    theirs = samples(HFLM(pretrained=str(folder / "hf"), batch_size=4, device="cpu", max_length=64), folder)
    for task in TASKS:
        pairs = list(zip(ours["samples"][task], theirs["samples"][task], strict=True))
        assert len(pairs) == 12
        for mine, other in pairs:
            assert mine["doc"] == other["doc"]
            for (a,), (b,) in zip(mine["resps"], other["resps"], strict=True):
                if task == "mine_written":
                    assert a == b and len(a) > 0
                elif task == "mine_choice":
                    assert a[0] == pytest.approx(float(b[0]), abs=1e-4) and a[1] == b[1]
                else:
                    assert a == pytest.approx(b, abs=1e-3)  # a sum of several hundred nats
    assert ours["results"]["mine_choice"]["acc,none"] == theirs["results"]["mine_choice"]["acc,none"]


def test_the_command_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = folder / "o.json"
    line = ["evaluate", str(folder / "model"), "--device", "cpu", "--tasks"]
    assert main([*line, *(str(folder / f"{name}.yaml") for name in TASKS), "--limit", "5", "--out", str(out)]) == 0
    rows = {(row["task"], row["figure"]): row for row in json.loads(out.read_text())["figures"]}
    assert rows["mine_choice", "acc"]["chance"] == 0.25 and rows["mine_choice", "acc"]["examples"] == 5
    assert rows["mine_whole", "bits_per_byte"]["value"] > 0 and ("mine_written", "exact_match") in rows
    long = folder / "mine_written.yaml"
    long.write_text(long.read_text().replace("max_gen_toks: 12", "max_gen_toks: 64"))
    assert main([*line, str(long)]) == 2
    assert "asks for 64 new tokens, but the model reads 64" in capsys.readouterr().err
    (folder / "rows.jsonl").unlink()
    assert main([*line, str(folder / "mine_choice.yaml")]) == 2
    assert "cannot be run" in capsys.readouterr().err


@pytest.mark.slow(reason="lists thousands of tasks")
def test_a_task_that_is_not_known_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(folder / "model"), "--tasks", "mine_choise", "--include", str(folder)]) == 2
    assert "did you mean 'mine_choice'?" in capsys.readouterr().err


def test_a_file_without_a_task_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("group: x\n")
    with pytest.raises(ValueError, match="describes no task"):
        name_in(path)
    path.write_text("# one\ntask: 'abc'  # name\ndoc_to_text: !function utils.f\n")
    assert name_in(path) == "abc"

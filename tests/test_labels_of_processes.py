"""Labels of a table in two processes: every row is judged once, and the figures are those of one process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from triune.bench.kills.server import Server

OPTIONS = [
    "--trainer.accelerator", "cpu", "--trainer.max_steps", "2", "--trainer.val_check_interval", "2", "--threads", "1",
    "--model.transformer.dim", "16", "--model.transformer.depth", "1", "--model.transformer.heads", "2",
    "--model.ema", "0", "--data.split", "side",
]  # fmt: skip


def written(folder: Path, rows: list[dict[str, Any]]) -> None:
    (folder / "table.jsonl").write_text("\n".join(map(json.dumps, rows)))


def columns(folder: Path) -> list[str]:
    random = np.random.default_rng(0)
    rows = []
    for i in range(29):  # two processes do not have as many rows each
        words = " ".join(random.choice(["ant", "bee", "cat", "dog"], 3 + i % 4))
        rows.append({
            "what": words, "label": "ab"[i % 2] if i % 5 else None, "size": i * 0.5 if i % 3 else None,
            "side": "val" if i % 3 == 1 else "train",
        })  # fmt: skip
    written(folder, rows)
    return ["text", "--data.input", "what", "--data.target", "label,size", "--data.tokenizer", "bytes"]


def masks(folder: Path) -> list[str]:
    random = np.random.default_rng(0)
    rows = []
    for i in range(29):
        mask = random.integers(0, 3, (4, 4), np.uint8).repeat(4, 0).repeat(4, 1)
        Image.fromarray(mask * 80 + random.integers(0, 9, (16, 16), np.uint8)).save(folder / f"{i}.png")
        Image.fromarray(mask).save(folder / f"m{i}.png")
        rows.append({"what": f"{i}.png", "mask": f"m{i}.png", "side": "val" if i % 3 == 1 else "train"})
    written(folder, rows)
    return [
        "vision",
        "--data.input",
        "what",
        "--data.target",
        "mask",
        "--model.patch_size",
        "4",
        "--data.cache",
        "cache",
    ]


def ran(server: Server, folder: Path, words: list[str], ranks: int = 1) -> None:
    ended = server.run(folder, words, ranks=ranks)
    assert ended.code == 0, ended.printed[-3000:]


@pytest.mark.parametrize("made", [columns, masks])
def test_figures_of_two_processes_are_those_of_one(tmp_path: Path, server: Server, made: Any) -> None:
    task, *data = made(tmp_path)
    line = [task, "fit", "--data.table", "table.jsonl", *data, *OPTIONS]
    ran(server, tmp_path, [*line, "--run", "one", "--data.batch_size", "4"])
    ran(server, tmp_path, [*line, "--run", "two", "--data.batch_size", "2", "--trainer.devices", "2"], ranks=2)
    one, two = (json.loads((tmp_path / run / "summary.json").read_text()) for run in ("one", "two"))
    assert one["judged"]["count"] == two["judged"]["count"] == (10 if task == "text" else 10 * 16)
    if task == "text":
        rows = {row["name"]: row["count"] for row in two["judged"]["per_class"]}
        assert rows == {row["name"]: row["count"] for row in one["judged"]["per_class"]}
        assert (
            sum(count for name, count in rows.items() if "size" not in name) == 8
        )  # rows without a label are not judged
    assert two["judged"]["metrics"] == pytest.approx(one["judged"]["metrics"], rel=1e-4, abs=1e-5)
    assert two["val_loss"] == pytest.approx(one["val_loss"], rel=1e-5)

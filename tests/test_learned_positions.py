"""Checkpoints with a table of positions: what its rows do not reach is cut and said, or refused before training."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from triune.cli import main
from triune.core.config import TransformerConfig
from triune.protein.language.model import SequenceConfig, SequenceModel
from triune.text.model import LanguageModel, LanguageModelConfig
from triune.text.tokenizer import Tokenizer

pytestmark = pytest.mark.filterwarnings("ignore")
QUICK = ["--trainer.accelerator", "cpu", "--trainer.max_steps", "1"]
RESIDUES = 30


def table(folder: Path) -> Path:
    """Texts that are proteins too, of 60 letters."""
    draw = random.Random(0)
    cells = ["".join(draw.choice("ACDEFGHIKLMNPQRSTVWY") for _ in range(60)) for _ in range(40)]
    rows = [f"{cell},{'low' if cell[0] < 'M' else 'high'}" for cell in cells]
    (folder / "t.csv").write_text("\n".join(["cell,label", *rows]) + "\n")
    return folder / "t.csv"


def checkpoint(task: str, folder: Path) -> Path:
    """Text: 16 positions. Protein: 34, of which two lie before the first and two are for what stands around."""
    core = TransformerConfig(dim=16, depth=1, heads=2, position="learned", context=16, causal=True)
    if task == "text":
        Tokenizer.bytes().save(folder / "m")
        LanguageModel(LanguageModelConfig(Tokenizer.bytes().vocab_size, core)).save_pretrained(folder / "m")
    else:
        core = TransformerConfig(dim=16, depth=1, heads=2, position="learned", context=RESIDUES + 4)
        SequenceModel(SequenceConfig(core, position_offset=2)).save_pretrained(folder / "m")
    return folder / "m"


@pytest.mark.parametrize(("task", "most"), [("text", 16), ("protein", RESIDUES)])
def test_tables_keep_to_the_positions_of_a_checkpoint(task: str, most: int, tmp_path: Path, capsys) -> None:
    source, rows = str(checkpoint(task, tmp_path)), str(table(tmp_path))
    run, ours = str(tmp_path / "run"), [task, "fit", "--model.pretrained", source, "--data.table", rows]
    ours += ["--data.input", "cell", "--data.target", "label", *QUICK]
    assert main([*ours, "--run", str(tmp_path / "no"), "--data.context", str(most + 1)]) == 2
    told = capsys.readouterr()
    assert f"data.context is {most + 1} tokens, but" in told.err
    assert f"has learned positions for {most}; give at most that." in told.err
    assert "parameters" not in told.out  # before the model is made

    assert main([*ours, "--run", run]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert f"{most} tokens of an input are read, because its table of positions ends there" in told
    reads = json.loads((tmp_path / "run" / "model" / "config.json").read_text())["model"]["reads"]
    assert reads["context"] == most
    assert main([task, "test", run, "--data.table", rows]) == 0  # its inputs are as long as in training
    assert main([task, "test", run, "--data.table", rows, "--data.context", str(most + 1)]) == 2
    assert f"the model has learned positions for {most}; give at most that." in capsys.readouterr().err


def test_vectors_of_proteins_beyond_a_table(tmp_path: Path, capsys) -> None:
    """Rows before the first position are not for residues."""
    source, rows, out = str(checkpoint("protein", tmp_path)), str(table(tmp_path)), str(tmp_path / "v.npz")
    assert main(["embed", "--task", "protein", "--pretrained", source, "--table", rows, "--input", "cell",
                 "--out", out, "--device", "cpu"]) == 0  # fmt: skip
    assert np.load(out)["vectors"].shape == (40, 16)
    assert f"longer than the model's {RESIDUES} tokens, whose end is not read: 40" in capsys.readouterr().err


def test_pretraining_of_proteins(tmp_path: Path, capsys) -> None:
    """A table cannot grow; a model with rotary positions says, and keeps, the longer context."""
    source, rows = checkpoint("protein", tmp_path), table(tmp_path).read_text().split("\n")[1:-1]
    (tmp_path / "s.fasta").write_text("".join(f">{i}\n{row.split(',')[0]}\n" for i, row in enumerate(rows)))
    ours = ["protein", "pretrain", "--data.files", str(tmp_path / "s.fasta"), "--data.context", "50", *QUICK]
    assert main([*ours, "--run", str(tmp_path / "no"), "--model.pretrained", str(source)]) == 2
    assert f"has learned positions for {RESIDUES}; give at most that." in capsys.readouterr().err
    core = TransformerConfig(dim=16, depth=1, heads=2, mixer="mamba2", position="none", context=34)
    SequenceModel(SequenceConfig(core)).save_pretrained(tmp_path / "rotary")
    assert main([*ours, "--run", str(tmp_path / "run"), "--model.pretrained", str(tmp_path / "rotary")]) == 0
    assert "its context of 32 residues becomes 50" in " ".join(capsys.readouterr().out.split())
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert config["model"]["transformer"]["context"] == 52

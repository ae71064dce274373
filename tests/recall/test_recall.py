"""`triune recall`: mixers by name, sizes of states, the files, and its refusals."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from triune import cli
from triune.core.config import TransformerConfig
from triune.core.errors import UserError
from triune.core.mixers.cache import KeyValueCache
from triune.core.mixers.linear import Retention
from triune.core.mixers.options import KINDS, RetentionOptions
from triune.core.mixers.registry import register_mixer
from triune.core.transformer import Transformer
from triune.recall.command import by_seed, judged, table
from triune.recall.models import Recaller, state_bytes
from triune.recall.names import NEAR, choose
from triune.recall.tasks import TASKS
from triune.recall.train import recall


@pytest.mark.parametrize("name", [*KINDS, "softmax", "ssd", "window:4", "MA"])
def test_every_mixer_learns_a_step_and_has_a_state(name: str) -> None:
    row = recall(name, pairs=2, length=16, steps=1, dim=16)
    assert 0 <= row["accuracy"] <= 1 and row["state_bytes"] > 0 and len(row["layers"]) == 2


def test_bytes_of_state_are_those_of_the_definition() -> None:
    def size(name: str, length: int, state: int | None = None) -> int:
        return state_bytes(Recaller(choose(name, 2), 10, 64, 32, state), length)

    assert size("softmax", 40) == 2 * 2 * 40 * 32 * 4  # layers, keys and values, tokens, dim, bytes
    assert size("window:8", 40) == 2 * 2 * 7 * 32 * 4  # the token itself comes with the next call
    assert size("gru", 40) == size("gru", 60) == 2 * 32 * 4
    assert size("gru", 40, 48) == 2 * 48 * 4
    assert size("linear", 40, 8) == 2 * 8 * 33 * 4  # the normaliser is one more value


def test_a_mixer_of_ones_own_is_known_by_its_name() -> None:
    register_mixer("my_recall_mixer", lambda config, layer, options: Retention(config, options), RetentionOptions)
    try:
        row = recall("my_recall_mixer", pairs=2, length=16, steps=1, dim=16, state=4)
        assert row["state_bytes"] == 2 * 4 * 16 * 4
    finally:
        del KINDS["my_recall_mixer"]


def test_attention_learns_to_recall_what_a_short_window_cannot_see() -> None:
    """One token to copy, which a window of one token never holds when it is asked."""
    assert recall("softmax", task="copy", pairs=1, length=8, steps=150, dim=32)["accuracy"] > 0.9
    assert recall("window:1", task="copy", pairs=1, length=8, steps=150, dim=32)["accuracy"] < 0.2


def test_the_same_seed_gives_the_same_model() -> None:
    one, two = (recall("gru", pairs=2, length=16, steps=3, dim=16) for _ in range(2))
    other = recall("gru", pairs=2, length=16, steps=3, dim=16, seed=1)
    for row in (one, two, other):
        row.pop("seconds")
    assert one == two != other


def test_the_command_writes_a_table_a_picture_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "found.json"
    args = ["recall", "--task", "mqar,lag", "--mixer", "softmax,gru", "--pairs", "2,4", "--state", "8",
            "--length", "16", "--steps", "1", "--output", str(file)]  # fmt: skip
    assert cli.main(args) == 0
    out = capsys.readouterr().out
    assert "mqar, 4 pairs" in out and "gru (state 8)" in out and "bytes of state" in out
    content = json.loads(file.read_text())
    assert len(content["rows"]) == 6 and content["command"].startswith("triune recall --task mqar,lag")
    assert (tmp_path / "found.png").read_bytes().startswith(b"\x89PNG")
    assert cli.main(args) == 2
    assert "--overwrite" in capsys.readouterr().err


def test_the_verdict_compares_with_the_bound() -> None:
    row = {"task": "mqar", "mixer": "softmax", "layers": ["attention"] * 2, "pairs": 8, "state": None, "dim": 64,
           "depth": 2, "length": 64, "steps": TASKS["mqar"].steps, "accuracy": 0.99}  # fmt: skip
    assert judged(row) == (">= 0.98", "as expected")
    assert judged(row | {"accuracy": 0.97}) == (">= 0.98", "NOT as expected")
    assert judged(row | {"steps": 10}) == ("", "")
    assert judged(row | {"mixer": "window:16", "accuracy": 0.41}) == ("<= 0.4", "NOT as expected")
    small = row | {"mixer": "ssd", "layers": ["mamba2"] * 2, "state": 8}
    assert judged(small) == ("<= 0.6", "NOT as expected") and judged(small | {"state": None}) == ("", "")
    assert judged(small | {"mixer": "MMMA", "layers": [*["mamba2"] * 3, "attention"], "depth": 4})[0] == ">= 0.98"
    far = row | {"task": "needle", "length": 512, "steps": TASKS["needle"].steps, "pairs": 4}
    assert judged(far | {"mixer": "window:32"})[0] == "<= 0.1" and judged(far | {"mixer": "titans:gate"})[0] == ">= 0.9"


def test_a_narrow_terminal_gets_whole_cells(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"task": "mqar", "mixer": "titans:gate", "layers": ["titans"] * 2, "pairs": 8, "state": None, "dim": 64,
           "depth": 2, "length": 64, "steps": 9, "accuracy": 0.5, "exact": 0.25, "chance": 0.0078, "seconds": 7.0,
           "state_bytes": 134688}  # fmt: skip
    for width, there in ((44, ("0.500",)), (60, ("0.500", "134,688")), (120, ("0.500", "134,688", "0.250", "0.008"))):
        monkeypatch.setenv("COLUMNS", str(width))
        table([row])
        out = capsys.readouterr().out
        assert all(cell in out for cell in there) and "…" not in out
        assert max(map(len, out.splitlines())) <= width


def test_several_seeds_are_one_line_of_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "found.json"
    args = ["recall", "--mixer", "gru", "--pairs", "2", "--length", "16", "--steps", "1", "--seeds", "2", "--seed", "5",
            "--output", str(file)]  # fmt: skip
    assert cli.main(args) == 0
    rows = json.loads(file.read_text())["rows"]
    assert [row["seed"] for row in rows] == [5, 6] and len(by_seed(rows)) == 1
    assert " to " in capsys.readouterr().out.split("got")[-1], "the range of the seeds"


@pytest.mark.parametrize("form", ["gate", "layer", "context"])
def test_titans_sees_a_short_window(form: str) -> None:
    choice = choose(f"titans:{form}", 2)
    assert choice.options["titans"]["form"] == form and NEAR in choice.options["titans"].values()
    with pytest.raises(
        UserError, match="mixer is 'titans:mac', but only window takes a number and titans one of memory"
    ):
        choose("titans:mac", 2)


def test_help_needs_no_torch() -> None:
    code = "import sys; from triune import cli; cli.main(['recall', '--help']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "--seeds" in done.stdout, done.stderr


def test_the_mixer_of_the_documentation_learns_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[2] / "docs/mixers.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]
    assert 'recall("running_sum", task="mqar", pairs=4)' in code
    names: dict[str, Any] = {}
    try:
        exec(code.replace("pairs=4", "pairs=2, length=16, dim=16, steps=1"), names)
        assert names["row"]["state_bytes"] == 2 * 16 * 4
        config = TransformerConfig(dim=16, depth=1, heads=1, causal=True, mixer="running_sum", ffn="none")
        model, x = Transformer(config).eval(), torch.randn(2, 9, 16)
        for block in model.blocks:
            torch.nn.init.normal_(block.attn.out.weight)
        whole, cache = model(x), KeyValueCache(config)
        parts = [model(part, cache=cache) for part in x.split([4, 1, 4], dim=1)]
        torch.testing.assert_close(torch.cat(parts, dim=1), whole)
        late = model(x, valid=torch.arange(9) >= torch.tensor([[3], [0]]))
        torch.testing.assert_close(late[:1, 3:], model(x[:1, 3:]))
    finally:
        KINDS.pop("running_sum", None)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--task", "mqqar"], "task is 'mqqar', but must be one of mqar, induction"),
        (["--mixer", "sofmax"], "mixer is 'sofmax', but must be one of softmax, ssd, window:TOKENS"),
        (["--mixer", "window"], "mixer is 'window', but the window must be a positive number of tokens"),
        (["--mixer", "gru:16"], "mixer is 'gru:16', but only window takes a number"),
        (["--mixer", "MXM"], "mixer has 'X' in the pattern MXM"),
        (["--mixer", "gru,,lstm"], "--mixer is 'gru,,lstm', but must be different names"),
        (["--pairs", "4,x"], "--pairs is '4,x', but must be different numbers from 1 to"),
        (["--pairs", "17"], "length is 64, but must be at least 68 for 17 pairs"),
        (["--task", "lag", "--pairs", "4"], "--pairs is 4, but no task of lag has pairs"),
        (["--mixer", "softmax", "--state", "4"], "--state is 4, but no mixer of softmax has such a size"),
        (["--output", "recall.txt"], "--output is 'recall.txt', but must end in .json"),
        (["--steps", "0"], "--steps is 0, but must be a whole number from 1 to 1,000,000"),
    ],
)
def test_mistakes_are_one_sentence(args: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["recall", *args]) == 2
    err = capsys.readouterr().err
    assert message in err and len(err.splitlines()) == 1


def test_python_refuses_what_is_not_used() -> None:
    with pytest.raises(UserError, match="depth is 3, but the pattern MA has 2 layers"):
        recall("MA", depth=3)
    with pytest.raises(UserError, match="state is 4, but mixer softmax has no such size"):
        recall("softmax", state=4)
    for settings, said in (
        ({"steps": 1.5}, "steps is 1.5, but must be a whole number"),
        ({"length": "64"}, "length is '64', but must be a whole number"),
        ({"seed": 2**70}, "but must be from 0 to 2\\^63 - 1"),
    ):
        with pytest.raises(UserError, match=said):
            recall(**settings)
    with pytest.raises(UserError, match="steps is 0, but must be at least 1"):
        recall("softmax", steps=0)
    assert torch.is_grad_enabled()

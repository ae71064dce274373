"""The law that is fitted to runs: published numbers come back, and runs that cannot tell them are refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from triune.core.errors import UserError
from triune.scaling.command import main
from triune.scaling.law import Law, bootstrap, fit, interval
from triune.scaling.runs import read

# Hoffmann et al. 2022, equation 10, and Besiroglu et al. 2024, table 1.
CHINCHILLA = Law(1.69, 406.4, 0.34, 410.7, 0.28)
REFIT = Law(1.8172, 482.01, 0.3478, 2085.43, 0.3658)


def ladder(law: Law, noise: float = 0.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Runs of 8 sizes from 44 million to 16 billion parameters, at 2 to 150 tokens a parameter."""
    parameters = np.repeat(np.geomspace(4.4e7, 1.6e10, 8), 5)
    tokens = parameters * np.tile([2.0, 5, 20, 60, 150], 8)
    error = np.random.default_rng(seed).normal(0, noise, len(tokens))
    return parameters, tokens, law.loss(parameters, tokens) * np.exp(error)


@pytest.mark.parametrize("law", [CHINCHILLA, REFIT])
def test_published_laws_come_back_from_their_own_losses(law: Law) -> None:
    found = fit(*ladder(law))
    assert np.allclose(
        [found.e, found.a, found.alpha, found.b, found.beta], [law.e, law.a, law.alpha, law.b, law.beta], rtol=2e-3
    )


def test_public_runs_give_the_published_exponents() -> None:
    """240 runs of Hoffmann et al. 2022 as Besiroglu et al. 2024 read them off figure 4 (`svg_extracted_data.csv` of
    their repository; tokens are FLOPs / 6 parameters), and what that study found in them.
    """
    runs = read([str(Path(__file__).with_name("hoffmann_2022.csv"))])
    found = fit(runs.parameters, runs.tokens, runs.loss)
    assert len(runs.loss) == 240
    assert [found.alpha, found.beta, found.e] == pytest.approx([REFIT.alpha, REFIT.beta, REFIT.e], abs=0.002)
    assert found.shares[0] == pytest.approx(0.512, abs=0.003)
    assert [found.a, found.b] == pytest.approx([REFIT.a, REFIT.b], rel=0.04)


def test_the_best_use_of_compute_is_where_the_published_laws_say() -> None:
    assert np.allclose(CHINCHILLA.shares, (0.46, 0.54), atol=0.01)  # Hoffmann et al., table 2, approach 3
    assert np.allclose(REFIT.shares, (0.512, 0.488), atol=0.01)  # Besiroglu et al., section 4
    parameters, tokens = REFIT.best(5.76e23)  # Gopher's, for which both report about 20 tokens a parameter
    assert 15 < tokens / parameters < 25
    assert np.isclose(6 * parameters * tokens, 5.76e23)
    for factor in (0.8, 1.25):  # any other use of the same compute is worse
        assert REFIT.loss(parameters * factor, tokens / factor) > REFIT.loss(parameters, tokens)


def test_intervals_hold_the_truth_and_outliers_move_little() -> None:
    parameters, tokens, loss = ladder(REFIT, 0.004)
    law = fit(parameters, tokens, loss)
    laws = bootstrap(parameters, tokens, loss, law, 60, 0)
    low, high = interval([x.alpha for x in laws])
    assert low < REFIT.alpha < high and high - low < 0.1
    few = slice(0, 26, 5)  # as many runs as the law needs at least: hardly a sample has them all
    assert (
        bootstrap(*(x[few] for x in (parameters * np.tile([1, 1.1, 1.2, 1.3, 1.4], 8), tokens, loss)), law, 5, 0) == []
    )
    loss[3] *= 1.3
    assert abs(fit(parameters, tokens, loss).alpha - law.alpha) < 0.02


def test_runs_that_share_their_tokens_give_the_law_of_sizes() -> None:
    parameters = np.geomspace(1e5, 1e8, 8)
    law = fit(parameters, np.full(8, 1e9), 2 + 50 / parameters**0.3)
    assert np.allclose([law.e, law.a, law.alpha, law.b], [2, 50, 0.3, 0], rtol=1e-3)


@pytest.mark.parametrize(
    ("parameters", "tokens", "words"),
    [
        ([1e6] * 6, [1e9] * 6, "same parameters and tokens"),
        ([1e6, 2e6, 4e6, 4e6], [1e9, 1e9, 1e9, 2e9], "at least 6 runs"),
        ([1e6, 2e6, 4e6], [1e9] * 3, "at least 4 runs of different parameters"),
        (list(np.geomspace(1e6, 1e8, 7)), list(np.geomspace(2e7, 2e9, 7)), "grow together"),
    ],
)
def test_runs_that_cannot_tell_a_law_are_refused(parameters: list[float], tokens: list[float], words: str) -> None:
    with pytest.raises(UserError, match=words):
        fit(np.array(parameters), np.array(tokens), np.linspace(4, 3, len(tokens)))


def write(path: Path, rows: list[list[str]], separator: str = ",") -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=separator).writerows(rows)
    return path


def test_the_command_writes_what_it_prints(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    rows = [[str(value) for value in row] for row in zip(*ladder(REFIT, 0.002), strict=True)]
    table = write(tmp_path / "runs.tsv", [["tokens", "loss", "parameters"], *[[d, c, n] for n, d, c in rows]], "\t")
    output = tmp_path / "law.json"
    assert main([str(table), "--output", str(output), "--bootstrap", "20"]) == 0
    said, found = capsys.readouterr().out, json.loads(output.read_text())
    assert f"parameters ~ compute^{found['shares']['parameters']['value']:.4g}" in said
    assert abs(found["law"]["alpha"]["value"] - REFIT.alpha) < 0.03
    assert np.isclose(found["prediction"]["compute"], 10 * found["largest_compute"])
    low, high = found["prediction"]["loss"]["interval"]
    assert low < float(REFIT.loss(*REFIT.best(found["prediction"]["compute"]))) < high
    assert output.with_suffix(".png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([["parameters", "token", "loss"]], "no column 'tokens'.*token"),
        ([["parameters", "tokens", "loss"], ["1", "2", "nan"]], "line 2: loss is 'nan'"),
        ([["parameters", "tokens", "loss"], ["1", "2", "3"], ["-1", "2", "3"]], "line 3: parameters is '-1'"),
        ([["parameters", "tokens", "loss"], ["1", "2"]], "line 2: loss is ''"),
    ],
)
def test_tables_that_cannot_be_read_are_named(tmp_path: Path, rows: list[list[str]], words: str) -> None:
    with pytest.raises(UserError, match=words):
        read([str(write(tmp_path / "runs.csv", rows))])


def folder(path: Path, **values: object) -> str:
    path.mkdir()
    (path / "config.yaml").write_text(
        f"data:\n  files: {values.pop('files', 'a.txt')}\n  batch_size: {len(path.name)}\n"
    )
    summary = {"task": "text", "parameters": 10, "tokens": 20, "val_loss": 3.0, "interrupted": False} | values
    (path / "summary.json").write_text(json.dumps(summary))
    return str(path)


def test_run_folders_give_what_their_summaries_say(tmp_path: Path) -> None:
    paths = [folder(tmp_path / f"r{i}", parameters=10 * i, val_loss=3 / i) for i in range(1, 4)]
    stopped = folder(tmp_path / "stopped", interrupted=True)
    runs = read([*paths, stopped])
    assert runs.names == paths and runs.unit == "tokens"
    assert runs.parameters.tolist() == [10, 20, 30] and runs.loss.tolist() == [3.0, 1.5, 1.0]
    assert runs.notes == [f"'{stopped}' was stopped early and is left out."]
    early = folder(tmp_path / "early", best_step=5, steps=1000)
    assert read([paths[0], early]).notes == [
        f"'{early}' was best at step 5 of 1,000; its loss is that of then, its tokens are those of the whole run."
    ]
    other = folder(tmp_path / "other", files="b.txt")
    assert "data.files" in read([paths[0], other]).notes[0]
    with pytest.raises(UserError, match="given twice"):
        read([paths[0], paths[0]])
    with pytest.raises(UserError, match="text and vision"):
        read([paths[0], folder(tmp_path / "v", task="vision")])
    with pytest.raises(UserError, match="one table alone"):
        read([paths[0], str(write(tmp_path / "t.csv", []))])
    with pytest.raises(UserError, match="'nothing' does not exist"):
        read(["nothing"])

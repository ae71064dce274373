"""Probes of frozen vectors on tables: the same in all tasks, equal to scikit-learn, kept between runs."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression, Ridge

from triune.cli import main
from triune.core.errors import UserError
from triune.core.heads.registry import make_head, prepare
from triune.core.labelled import probe as core
from triune.core.labelled.classifiers import Vectors, fit_linear, linear_outputs, neighbour_outputs
from triune.core.labelled.solver import lbfgs
from triune.core.labels.targets import Target
from triune.protein.language.labelled import MODALITY as PROTEIN
from triune.text.labelled import MODALITY


def test_the_linear_layer_is_that_of_scikit_learn() -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(200, 5))
    y = (x @ random.normal(size=(5, 3)) + random.normal(size=(200, 3))).argmax(1)
    head = make_head(prepare("classify", Target("classify", ["a"], ["0", "1", "2"], y)), 5).double()
    fit_linear(head, torch.from_numpy(x), torch.from_numpy(y), 0.05, 300)
    theirs = LogisticRegression(C=1 / (0.05 * 200), tol=1e-10, max_iter=2000).fit(x, y)
    with torch.no_grad():
        found = head(torch.from_numpy(x)).softmax(-1).numpy()
    assert found == pytest.approx(theirs.predict_proba(x), abs=1e-4)
    z = x @ random.normal(size=5) + 2
    head = make_head(prepare("regress", Target("regress", ["a"], ["a"], z[:, None])), 5).double()
    fit_linear(head, torch.from_numpy(x), torch.from_numpy(z)[:, None], 0.1, 300)
    standard = (z - z.mean()) / z.std()
    with torch.no_grad():
        found = head(torch.from_numpy(x))[:, 0].numpy()
    expected = Ridge(0.1 * 200 / 2, tol=1e-10).fit(x, standard).predict(x)
    assert found == pytest.approx(expected, abs=1e-4)


def test_neighbours_vote_by_their_weights() -> None:
    values = np.array([0, 0, 1])
    spec = prepare("classify", Target("classify", ["a"], ["x", "y"], values))
    known = Vectors(torch.eye(3), torch.from_numpy(values), np.arange(3))
    asked = Vectors(torch.tensor([[0.0, 0.1, 1.0], [1.0, 1.0, 0.0]]), torch.zeros(2).long(), np.arange(2))
    outputs = neighbour_outputs(spec, known, asked)
    assert outputs is not None and outputs.argmax(1).tolist() == [1, 0]
    spec = prepare("regress", Target("regress", ["a"], ["a"], np.array([[1.0], [3.0], [5.0]])))
    known = known._replace(targets=torch.tensor([[1.0], [3.0], [float("nan")]]))
    outputs = neighbour_outputs(spec, known, asked._replace(vectors=torch.tensor([[1.0, 1.0, 1.0]])))
    assert outputs is not None and float(outputs) * np.std([1, 3, 5]) + 3 == pytest.approx(2, abs=1e-5)


@pytest.mark.parametrize("kind", ["classify", "ordinal", "multilabel", "regress"])
def test_every_kind_of_head_is_probed(kind: str) -> None:
    random = np.random.default_rng(0)
    x = torch.from_numpy(random.normal(size=(300, 6))).float()
    score = x[:, 0].numpy()
    values: Any = {
        "classify": np.digitize(score, [-0.5, 0.5]),
        "ordinal": np.digitize(score, [-0.5, 0.5]),
        "multilabel": np.stack([score > 0, x[:, 1].numpy() > 0], 1).astype(float),
        "regress": score[:, None].astype(float),
    }[kind]  # fmt: skip
    names = {"multilabel": ["a", "b"], "regress": ["a"]}.get(kind, ["0", "1", "2"])
    target = Target(kind, ["a"], names, values)
    spec = prepare(kind, target.take(np.arange(200)))
    parts = (slice(200), slice(200, 300))
    sides = [Vectors(x[part], torch.from_numpy(values[part]), np.arange(300)[part]) for part in parts]
    head = make_head(spec, 6)
    for outputs in (linear_outputs(spec, *sides)[0], neighbour_outputs(spec, *sides)):
        assert outputs is not None and outputs.shape == (100, head.width)
        name, side = head.monitor
        judged = head.judge(outputs, sides[1].targets, {})
        better = judged.metrics[name] - judged.baseline[name]
        assert (better if side == "max" else -better) > 0.1


def images(folder: Path) -> Path:
    random = np.random.default_rng(0)
    rows = []
    for number in range(60):
        pixels = random.integers(0, 60, (8, 8)) + 150 * (number % 2)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
        rows.append({"what": f"{number}.png", "kind": "dark" if number % 2 == 0 else "light"})
    return _written(folder, rows)


def _written(folder: Path, rows: list[dict[str, Any]]) -> Path:
    with (folder / "t.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder / "t.csv"


def sequences(folder: Path) -> Path:
    random = np.random.default_rng(0)
    rows = []
    for number in range(60):
        letters = "".join(random.choice(list(("AVLIM", "DEKRS")[number % 2]), 15))
        rows.append({"what": letters, "kind": "in" if number % 2 == 0 else "out", "tags": letters.replace("A", "B")})
    return _written(folder, rows)


def test_images_and_proteins_of_a_table_and_the_second_run_reads_what_was_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from triune.protein.language.model import SequenceConfig, SequenceModel, esm_transformer
    from triune.vision.model import VisionTransformer, VisionTransformerConfig

    torch.manual_seed(0)
    made = {"vision": images, "protein": sequences}
    for task, table in made.items():
        folder = tmp_path / task
        folder.mkdir()
        if task == "vision":
            config = VisionTransformerConfig(image_size=[8, 8], patch_size=4, channels=1, classes=0)
            VisionTransformer(config).save_pretrained(folder / "model")
        else:
            SequenceModel(SequenceConfig(esm_transformer("tiny"))).save_pretrained(folder / "model")
        words = [task, "probe", "--model", str(folder / "model"), "--data.table", str(table(folder))]
        words += ["--data.input", "what", "--data.target", "kind", "--json"]
        words += ["--cache", str(tmp_path / "cache"), "--device", "cpu"]
        assert main(words) == 0
        first = json.loads(capsys.readouterr().out)
        names = [score["name"] for score in first["scores"]]
        assert names[0] == "linear probe" and names[-1] == "constant answer" and len(names) == 4
        assert first["scores"][0]["metrics"]["accuracy"] > 0.8 > first["scores"][-1]["metrics"]["accuracy"]
        with monkeypatch.context() as patch:
            patch.setattr(core.Probe, "_compute", lambda *_: pytest.fail("the vectors were computed again"))
            assert main(words) == 0
        second = json.loads(capsys.readouterr().out)
        assert second["feature_seconds"] == 0
        assert [s["metrics"] for s in second["scores"]] == [s["metrics"] for s in first["scores"]]
    words[words.index("kind")] = "tags"
    assert main([*words, "--data.kind", "tag"]) == 0
    assert json.loads(capsys.readouterr().out)["unit"] == "residues"
    with pytest.raises(UserError, match="tag reads every token"):
        core.main(PROTEIN, [*words[2:], "--data.kind", "tag", "--pool", "mean"])


def test_vectors_of_images_of_another_size_are_those_of_the_resized_model(tmp_path: Path) -> None:
    from triune.core.embeddings.store import read_vectors
    from triune.core.labelled.opened import opened_vectors
    from triune.vision.model import VisionTransformer, VisionTransformerConfig

    torch.manual_seed(0)
    config = VisionTransformerConfig(image_size=[8, 8], patch_size=4, channels=1, classes=0)
    VisionTransformer(config).eval().save_pretrained(tmp_path / "model")
    table = images(tmp_path)
    words = ["embed", "--pretrained", str(tmp_path / "model"), "--task", "vision", "--table", str(table), "--input"]
    words += ["what", "--device", "cpu", "--image_size", "16", "--out", str(tmp_path / "v.npz")]
    assert main(words) == 0
    found = read_vectors(tmp_path / "v.npz")
    model = VisionTransformer.from_pretrained(tmp_path / "model").eval().resized(16)
    with table.open() as file:
        first = next(csv.DictReader(file))["what"]
    with Image.open(tmp_path / first) as image:
        pixels = model.config.preprocessing.pixels(image.convert("L"), (16, 16))
        with torch.inference_mode():
            own = model.features(model.config.preprocessing.normalise(pixels[None]))[0].numpy()
    np.testing.assert_allclose(found.values[0], own, atol=1e-6)
    with pytest.raises(UserError, match="text inputs have none"):
        opened_vectors(replace(MODALITY, trunk=lambda *_: (torch.nn.Linear(1, 1), None)), "x", None, "cpu", 8)


def test_a_table_without_test_rows_says_so(tmp_path: Path) -> None:
    where = sequences(tmp_path)
    words = ["--model", "none", "--data.table", str(where), "--data.input", "what", "--data.target", "kind", "--test"]
    with pytest.raises(UserError, match="no test row"):
        core.main(MODALITY, words)


def test_the_solver_finds_what_a_formula_gives() -> None:
    random = torch.Generator().manual_seed(0)
    a = torch.randn(40, 12, generator=random, dtype=torch.float64) * torch.logspace(-0.5, 0.5, 12, dtype=torch.float64)
    y = torch.randn(40, generator=random, dtype=torch.float64)
    calls = 0

    def value(x: torch.Tensor) -> tuple[float, torch.Tensor]:
        nonlocal calls
        calls += 1
        left = a @ x - y
        return float(left @ left + 0.1 * x @ x), 2 * (a.T @ left + 0.1 * x)

    expected = torch.linalg.solve(a.T @ a + 0.1 * torch.eye(12, dtype=torch.float64), a.T @ y)
    found = lbfgs(value, torch.zeros(12, dtype=torch.float64), 300, tolerance=1e-9)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert calls < 150


def test_a_probe_loads_no_compiler_and_no_other_library(tmp_path: Path) -> None:
    from triune.vision.model import VisionTransformer, VisionTransformerConfig

    config = VisionTransformerConfig(image_size=[8, 8], patch_size=4, channels=1, classes=0)
    VisionTransformer(config).save_pretrained(tmp_path / "model")
    words = ["vision", "probe", "--model", str(tmp_path / "model"), "--data.table", str(images(tmp_path))]
    words += ["--data.input", "what", "--data.target", "kind", "--cache", str(tmp_path / "cache"), "--device", "cpu"]
    code = (
        "import sys, json; from triune.cli import main; code = main(json.loads(sys.argv[1])); "
        "heavy = {'lightning', 'torch._dynamo', 'sklearn', 'scipy.stats', 'torchvision'}; "
        "print(code, sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, json.dumps(words)], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "0 []", done.stderr
    # Of class folders the second run, which fits nothing on pixels.
    for number, path in enumerate(sorted(tmp_path.glob("*.png"))):
        folder = tmp_path / "classes" / ("dark" if int(path.stem) % 2 == 0 else "light")
        folder.mkdir(parents=True, exist_ok=True)
        path.rename(folder / f"{number}.png")
    words = ["vision", "probe", "--model", str(tmp_path / "model"), "--data.root", str(tmp_path / "classes")]
    words += ["--data.cache", str(tmp_path / "cache"), "--device", "cpu"]
    assert main(words) == 0
    done = subprocess.run([sys.executable, "-c", code, json.dumps(words)], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "0 []", done.stderr
    assert "kept from before" in done.stdout

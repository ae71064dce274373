"""`triune vision check`: what it finds, what it says, and that it fits a narrow terminal."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from triune.core.errors import UserError
from triune.vision.check import Report, examine, main, show
from triune.vision.data.find import Where, find
from triune.vision.data.scan import scan


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRIUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def save(path: Path, seed: int, size: tuple[int, int] = (20, 24), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(array).convert(mode).save(path)


@pytest.fixture
def clean(tmp_path: Path, cache: Path) -> Path:
    for i in range(12):
        save(tmp_path / "good" / "cat" / f"{i}.png", i)
        save(tmp_path / "good" / "dog" / f"{i}.png", 100 + i)
    return tmp_path / "good"


@pytest.fixture
def messy(tmp_path: Path, cache: Path) -> Path:
    root = tmp_path / "bad"
    for i in range(40):
        save(root / "train" / "cat" / f"{i}.png", i)
    for i in range(5):
        save(root / "train" / "a [b] dog" / f"{i}.png", 100 + i)
        for name in ("cat", "a [b] dog"):
            save(root / "val" / name / f"{i}.png", 200 + i + 50 * len(name))
    save(root / "val" / "cat" / "leak.png", 3)
    save(root / "train" / "cat" / "copy.bmp", 4)
    save(root / "train" / "a [b] dog" / "quarrel.png", 5)
    save(root / "train" / "cat" / "long.png", 300, (20, 200))
    save(root / "train" / "cat" / "tiny.png", 301, (8, 8))
    save(root / "train" / "cat" / "clear.png", 302, mode="RGBA")
    save(root / "train" / "cat" / "print.tif", 303, mode="CMYK")
    Image.fromarray(np.full((20, 20), 4000, np.uint16)).save(root / "train" / "cat" / "wide.png")
    frames = [Image.new("L", (20, 20), value) for value in (1, 200)]
    frames[0].save(root / "train" / "cat" / "moving.gif", save_all=True, append_images=frames[1:])
    save(root / "train" / "cat" / "really.png", 304)
    (root / "train" / "cat" / "really.png").rename(root / "train" / "cat" / "really.jpg")
    (root / "train" / "cat" / "web.jpg").write_text("<html>404")
    (root / "train" / "cat" / "notes.txt").write_text("x")
    return root


def report_on(root: Path, cache: Path) -> Report:
    collection = find(Where(str(root)), cache)
    records = {side: scan(images, cache, side) for side, images in collection.sides.items()}
    return examine(str(root), collection, records)


def test_a_clean_folder_passes(clean: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(clean)]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "24 images in 2 classes" in text
    assert "Nothing is wrong" in text
    assert "24×20 pixels" in text


def test_everything_odd_is_found(messy: Path, cache: Path) -> None:
    report = report_on(messy, cache)
    found = {finding.kind: finding for finding in report.findings}
    serious = {kind for kind, finding in found.items() if finding.serious}
    assert serious == {"unreadable", "on two sides", "two labels"}
    assert set(found) - serious == {
        "imbalance", "few images", "copies", "named otherwise", "animated", "16 bits", "transparent", "CMYK",
        "longer than 1:5", "below 16 pixels", "other files",
    }  # fmt: skip
    for kind, name in {
        "unreadable": "web.jpg is a web page", "on two sides": "leak.png", "two labels": "quarrel.png",
        "copies": "copy.bmp", "named otherwise": "really.jpg", "animated": "moving.gif", "16 bits": "wide.png",
        "transparent": "clear.png", "CMYK": "print.tif", "longer than 1:5": "long.png", "below 16 pixels": "tiny.png",
    }.items():  # fmt: skip
        assert name in " ".join(found[kind].examples), kind
        assert found[kind].text.startswith("2 images" if kind == "copies" else "1 image"), found[kind].text
    assert report.counts["cat"] == {"train": 49, "val": 6}
    assert report.sizes["width"] == [8, 24, 200]
    assert report.training["images_per_second"] > 0


def test_exit_code_and_json(messy: Path, clean: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(messy), "--json"]) == 1
    values = json.loads(capsys.readouterr().out)
    assert values["ok"] is False
    assert values["images"] == {"train": 55, "val": 11}
    assert main([str(clean), "--json", "--image-size", "224"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["ok"] is True
    assert values["training"]["image_size"] == [224, 224]
    assert values["training"]["in_memory"] is True
    assert values["training"]["batch_size"] == 18, "all that are left to train on, as fit takes them"
    assert main([str(clean)]) == 0
    assert "steps of 18 images" in " ".join(capsys.readouterr().out.split())


def test_time_and_memory_of_training(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--json"]) == 0
    training = json.loads(capsys.readouterr().out)["training"]
    assert (training["steps"], training["batch_size"], training["image_size"]) == (2500, 64, [8, 8])
    assert training["seconds_to_train"] > 0
    assert training["memory_gb"] > 0
    assert main([]) == 0
    assert "2,500 steps of 64 images" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("width", [60, 80, 120])
def test_output_fits_the_terminal_and_keeps_brackets(messy: Path, cache: Path, width: int) -> None:
    stream = io.StringIO()
    show(report_on(messy, cache), Console(file=stream, width=width, highlight=False))
    lines = stream.getvalue().splitlines()
    assert max(len(line) for line in lines) <= width
    assert any("a [b] dog" in line for line in lines)
    assert "web page" in " ".join(" ".join(lines).split())


def test_many_classes_are_shortened(tmp_path: Path, cache: Path) -> None:
    for i in range(30):
        save(tmp_path / "many" / f"class{i:02d}" / "a.png", i)
        if i:
            save(tmp_path / "many" / f"class{i:02d}" / "b.png", 100 + i)
    stream = io.StringIO()
    show(report_on(tmp_path / "many", cache), Console(file=stream, width=80))
    text = stream.getvalue()
    assert "… 10 more classes" in text
    assert "class00" in text, "the smallest class must be seen"


def test_single_and_empty_classes(tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "one" / "cat" / "a.png", 0)
    (tmp_path / "one" / "dog").mkdir()
    assert main([str(tmp_path / "one")]) == 1
    assert "empty class" in capsys.readouterr().out
    with pytest.raises(UserError, match="does not exist"):
        main([str(tmp_path / "no")])


def test_what_cannot_be_split_is_said_before_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for label, shade in (("cat", 0), ("dog", 90)):
        for name in "ab":  # copies stay on one side
            save(tmp_path / "data" / label / f"{name}.png", shade)
    assert main([str(tmp_path / "data")]) == 1
    assert "No image can be held out" in capsys.readouterr().out
    save(tmp_path / "data" / "dog" / "c.png", 180)
    assert main([str(tmp_path / "data")]) == 0


def test_digits_without_a_folder(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "1,797 images in 10 classes" in capsys.readouterr().out


def test_known_files_are_not_read_again(clean: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = report_on(clean, cache)
    monkeypatch.setattr("triune.vision.data.scan.look", lambda *_: pytest.fail("looked again"))
    again = report_on(clean, cache)
    assert again.sizes == first.sizes
    assert again.findings == first.findings


def test_a_cache_that_cannot_be_written_is_no_error(clean: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert report_on(clean, tmp_path / "file").findings == []

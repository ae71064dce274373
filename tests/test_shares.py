"""The batches of several processes together are those of one, for the data of every task, random changes included."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from triune.core.training.data import ResumableData
from triune.protein.data.module import ProteinData
from triune.protein.language.data import SequenceData
from triune.text.data.module import TextData
from triune.text.seq2seq.data import PairData
from triune.vision.data.augment import AugmentConfig
from triune.vision.data.module import ImageData
from triune.vision.masked.data import PlainImages

WHOLE, BATCHES = 12, 2


def texts(folder: Path) -> TextData:
    (folder / "text.txt").write_text("".join(f"{i} times {i % 7} is {i * (i % 7)}\n" for i in range(400)))
    options: Any = {"tokenizer": "bytes", "context": 16, "batch_size": WHOLE, "cache": str(folder)}
    return TextData(files=str(folder / "text.txt"), **options)


def chats(folder: Path) -> TextData:
    rows = [{"prompt": f"{i} and {i}", "completion": f"{2 * i} " * (i % 5)} for i in range(1, 200) if i % 5]
    (folder / "chat.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return TextData(chats=str(folder / "chat.jsonl"), tokenizer="bytes", context=64, batch_size=WHOLE)


def pairs(folder: Path) -> PairData:
    return PairData(pairs="dates", examples=100, batch_size=WHOLE)


def chains(folder: Path) -> ProteinData:
    return ProteinData(crop=32, batch_size=WHOLE)


def sequences(folder: Path) -> SequenceData:
    return SequenceData(context=40, batch_size=WHOLE)


def digits(folder: Path) -> ImageData:
    augment = AugmentConfig(
        crop="resized", rotate=10, policy="rand", color_jitter=0.3, erasing=0.5, mixup=0.8, cutmix=1.0, repeats=2
    )
    return ImageData(batch_size=WHOLE, augment=augment)


def shifted(folder: Path) -> ImageData:
    return ImageData(batch_size=WHOLE, augment=AugmentConfig(rotate=10, zoom=0.1, policy="trivial", mixup=0.8))


def files(folder: Path) -> ImageData:
    draw = np.random.default_rng(0)
    for number in range(30):
        name = folder / "images" / str(number % 2) / f"{number}.png"
        name.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 255, (70, 90, 3), dtype=np.uint8)).save(name)
    augment = AugmentConfig(crop="resized", policy="three", cutmix=1.0)
    return ImageData(root=str(folder / "images"), image_size=72, batch_size=WHOLE, augment=augment, workers=0, memory=0)


def unlabelled(folder: Path) -> PlainImages:
    data = PlainImages(batch_size=WHOLE)
    data.patches = 16
    return data


def stream(data: ResumableData, rank: int, world: int) -> list[dict[str, Any]]:
    data = copy.copy(data)
    data.batch_size, data.ranks = WHOLE // world, lambda: (rank, world)  # type: ignore[method-assign]
    batches: Any = data.train_dataloader()
    return [data.on_after_batch_transfer(batch, 0) for batch in itertools.islice(batches, BATCHES)]


@pytest.mark.parametrize("make", [texts, chats, pairs, chains, sequences, digits, shifted, files, unlabelled])
def test_parts_make_the_whole(make: Callable[[Path], ResumableData], tmp_path: Path) -> None:
    data = make(tmp_path)
    data.setup()
    one = stream(data, 0, 1)
    for world in (2, 3, WHOLE):
        compare(one, [stream(data, rank, world) for rank in range(world)])


def compare(one: list[dict[str, Any]], several: list[list[dict[str, Any]]]) -> None:
    for position, batch in enumerate(one):
        for name, value in batch.items():
            parts = [batches[position][name] for batches in several]
            if not isinstance(value, torch.Tensor):
                assert list(itertools.chain(*parts)) == value
                continue
            start = 0
            for part in parts:  # each process pads its rows to the longest of its own
                expected = value[start : start + len(part)]
                for axis, length in enumerate(part.shape[1:], 1):
                    assert expected.shape[axis] >= length
                    expected = expected.narrow(axis, 0, length)
                torch.testing.assert_close(part, expected, rtol=0, atol=1e-6, equal_nan=True)
                start += len(part)
            assert start == len(value)

"""What a run was validated on is known by a hash: the same for other batches and tokens, another for other examples."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from triune.core.training.content import content_of
from triune.core.training.data import DataModule
from triune.protein.data.module import ProteinData
from triune.protein.language.data import SequenceData
from triune.text.data.module import TextData
from triune.text.labels import TextTable
from triune.text.seq2seq.data import PairData
from triune.vision.data.module import ImageData


def text(folder: Path, **options: Any) -> DataModule:
    path = folder / "x.txt"
    path.write_text("some words to read and more of them\n" * 40)
    return TextData(files=[str(path)], context=8, cache=str(folder), **{"tokenizer": "bytes", **options})


def table(folder: Path, **options: Any) -> DataModule:
    path = folder / "x.csv"
    path.write_text("t,y,z\n" + "".join(f"word {i},{'ab'[i % 2]},{'cd'[i % 3 % 2]}\n" for i in range(60)))
    return TextTable(**{"table": str(path), "input": "t", "target": "y", "val_fraction": 0.3, **options})


def pairs(folder: Path, **options: Any) -> DataModule:
    path = folder / "x.tsv"
    path.write_text("".join(f"source {i}\ttarget {i}\n" for i in range(30)))
    return PairData(pairs=str(path), **{"tokenizer": "bytes", "val_fraction": 0.2, **options})


def chains(folder: Path, **options: Any) -> DataModule:
    return ProteinData(**options)


def sequences(folder: Path, **options: Any) -> DataModule:
    path = folder / "x.fasta"
    letters = "ACDEFGHIKLMNPQRSTVWY"
    path.write_text("".join(f">{i}\n{letters[i:] + letters[:i]}{letters * (i % 3)}\n" for i in range(20)))
    return SequenceData(files=[str(path)], **{"batch_size": 2, "val_fraction": 0.4, **options})


def images(folder: Path, **options: Any) -> DataModule:
    return ImageData(**options)


@pytest.mark.parametrize(
    ("make", "same", "other"),
    [
        (text, {"tokenizer": "characters", "batch_size": 2}, {"val_fraction": 0.4}),
        (table, {"batch_size": 3, "balanced": True}, {"target": "z"}),
        (pairs, {"tokenizer": "bpe", "vocab_size": 300, "batch_size": 3}, {"seed": 5}),
        (chains, {"batch_size": 3, "seed": 3}, {"only": ["5H1A_A_28"]}),
        (sequences, {"batch_size": 3, "seed": 3}, {"val_fraction": 0.7}),
        (images, {"batch_size": 7, "channels": 3}, {"seed": 5}),
    ],
)
def test_the_hash_is_of_the_examples(
    make: Callable[..., DataModule], same: dict[str, Any], other: dict[str, Any], tmp_path: Path
) -> None:
    def found(**options: Any) -> str:
        data = make(tmp_path, **options)
        data.setup("fit")
        held = data.held_out()
        assert held is not None
        held = list(held)
        assert len(held) > 0
        return content_of(held)

    assert found() == found(**same) != found(**other)

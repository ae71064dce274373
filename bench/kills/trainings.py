"""The trainings that are killed: small, and with everything switched on that keeps a state."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

COMMON = (
    "--trainer.accelerator cpu --threads 1 --trainer.log_every_n_steps 5 --trainer.limit_val_batches 2"
    " --trainer.gradient_clip_val 1.0"
)
SMALL = " --model.transformer.dim 16 --model.transformer.depth 2 --model.transformer.heads 2"
TEXT = (
    "--data.files text.txt --data.cache cache --data.tokenizer bytes --data.context 16 --data.batch_size 4"
    " --model.transformer.dropout 0.1" + SMALL
)
IMAGES = (
    "--data.root images --data.cache cache --data.batch_size 8 --model.patch_size 4 --data.augment.crop resized"
    " --data.augment.flip true --data.augment.policy rand --data.augment.color_jitter 0.3 --data.augment.erasing 0.3"
    " --data.augment.mixup 0.8 --data.augment.cutmix 1.0 --model.transformer.dropout 0.1"
    " --model.transformer.stochastic_depth 0.1" + SMALL
)
TWO = " --data.workers 2"
ACCUMULATED = " --trainer.accumulate_grad_batches 3 --trainer.val_check_interval 14"


@dataclass(frozen=True)
class Training:
    """A training of `steps` optimizer steps in so many processes (`ranks`), and what makes its data in a folder."""

    words: str
    options: str
    steps: int
    make: Callable[[Path], None]
    ranks: int = 1

    def command(self, run: str) -> list[str]:
        """The words behind `triune` that train into the folder `run`."""
        line = f"{self.words} {self.options} {COMMON} --trainer.max_steps {self.steps} --run {run}"
        return line.split()


def make_text(place: Path) -> None:
    (place / "text.txt").write_text("".join(f"{i} times {i % 7} is {i * (i % 7)}\n" for i in range(600)))


def make_start(place: Path) -> None:
    """Text, and a small language model to fine-tune."""
    import torch

    from triune.core.config import TransformerConfig
    from triune.text.model import LanguageModel, LanguageModelConfig
    from triune.text.tokenizer import Tokenizer

    make_text(place)
    torch.manual_seed(0)
    small = TransformerConfig(dim=16, depth=2, heads=2, context=32, causal=True)
    LanguageModel(LanguageModelConfig(vocab_size=257, transformer=small)).save_pretrained(place / "start")
    Tokenizer.bytes().save(place / "start")


def make_images(place: Path) -> None:
    draw = np.random.default_rng(0)
    for label in "abc":
        (place / "images" / label).mkdir(parents=True)
        for number in range(16):
            pixels = draw.integers(0, 255, (12, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(place / "images" / label / f"{number}.png")


def make_proteins(place: Path) -> None:
    """Sequences, and a prepared set of a few chains with random coordinates."""
    from triune.cli import main

    draw = np.random.default_rng(0)
    letters = draw.choice(list("ACDEFGHIKLMNPQRSTVWY"), (48, 40))
    (place / "chains.fasta").write_text("".join(f">chain{n}\n{''.join(row)}\n" for n, row in enumerate(letters)))
    count = 16
    np.savez(
        place / "chains.npz", name=[f"{n}abc_A" for n in range(count)], length=[40] * count,
        sequence=np.frombuffer("".join(letters[:count].reshape(-1)).encode(), np.uint8),
        profile=np.zeros((40 * count, 20), np.uint8),
        backbone=draw.integers(-1500, 1500, (40 * count, 3, 3)).astype(np.int16),
    )  # fmt: skip
    words = f"protein prepare {place}/set --arrays {place}/chains.npz --no-mmseqs --val 0.3".split()
    with contextlib.redirect_stdout(io.StringIO()):
        assert main(words) == 0


def make_tables(place: Path) -> None:
    """Inputs of each task with a class, a number and, of texts, an answer."""
    make_images(place)
    draw = np.random.default_rng(0)
    texts = [f"{'good' if n % 2 else 'bad'} day number {n}" for n in range(60)]
    images = [f"images/{'abc'[n % 3]}/{n // 3}.png" for n in range(48)]
    chains = ["".join(row) for row in draw.choice(list("ACDEFGHIKLMNPQRSTVWY"), (60, 30))]
    for name, cells in (("texts", texts), ("images", images), ("chains", chains)):
        rows = [f"{cell},{'xyz'[n % 3]},{n % 7 / 10}\n" for n, cell in enumerate(cells)]
        (place / f"{name}.csv").write_text("input,label,value\n" + "".join(rows))
    (place / "pairs.tsv").write_text("".join(f"{text}\t{text[::-1]}\n" for text in texts))


def make_shards(place: Path) -> None:
    """Texts, sequences and images in shards."""
    from triune.cli import main

    make_text(place)
    make_images(place)
    make_proteins(place)
    for words in (
        f"text shard {place}/text.txt {place}/texts --tokenizer bytes --rows 3000",
        f"protein shard {place}/chains.fasta {place}/chains --rows 400 --val_fraction 0.2",
        f"vision shard {place}/images {place}/pictures --rows 10 --cache {place}/cache",
    ):
        with contextlib.redirect_stdout(io.StringIO()):
            assert main(words.split()) == 0


CONTACTS = (
    "--data.folder set --data.crop 24 --data.batch_size 2 --model.preset tiny"
    ' --model.settings {"depth":1,"sequence_depth":1} --model.ema 0.9'
    " --trainer.accumulate_grad_batches 2 --trainer.val_check_interval 11"
)
MASKED = (
    "--data.files chains.fasta --data.context 24 --data.batch_size 4 --model.size tiny --model.ema 0.9"
    " --data.val_fraction 0.2 --model.structures set"
)

TRAININGS: dict[str, Training] = {
    "text": Training("text fit", TEXT + " --model.ema 0.9" + ACCUMULATED, 18, make_text),
    "text-workers": Training("text fit", TEXT + ACCUMULATED + TWO, 18, make_text),
    "text-two-processes": Training("text fit", TEXT + " --model.ema 0.9" + ACCUMULATED, 14, make_text, ranks=2),
    "text-bf16": Training(
        "text fit", TEXT + " --model.ema 0.9 --trainer.precision bf16-mixed" + ACCUMULATED, 18, make_text
    ),
    "experts": Training(
        "text fit", TEXT + ' --model.transformer.experts {"count":4,"active":2} --model.ema 0.9' + ACCUMULATED, 20,
        make_text,
    ),
    "recurrent": Training(
        "text fit",
        TEXT + " --model.transformer.mixer DMA --model.transformer.depth 3 --model.ema 0.9" + ACCUMULATED,
        20,
        make_text,
    ),
    "lora": Training(
        "text fit",
        "--data.files text.txt --data.cache cache --data.context 16 --data.batch_size 4 --model.pretrained start"
        " --model.lora.rank 2 --model.ema 0.9" + ACCUMULATED,
        18,
        make_start,
    ),
    "vision": Training("vision fit", IMAGES + " --model.ema 0.9 --trainer.val_check_interval 7", 21, make_images),
    "vision-workers": Training("vision fit", IMAGES + ACCUMULATED + TWO, 20, make_images),
    "contacts": Training("protein fit", CONTACTS, 12, make_proteins),
    "pretrain": Training("protein pretrain", MASKED + ACCUMULATED, 14, make_proteins),
    "images-pretrain": Training(
        "vision pretrain",
        "--data.root images --data.cache cache --data.batch_size 8 --model.patch_size 4 --model.ema 0.9"
        + SMALL + ACCUMULATED, 18, make_images,
    ),
    "text-pretrain": Training("text pretrain", TEXT + " --model.ema 0.9" + ACCUMULATED, 18, make_text),
    "text-table": Training(
        "text fit",
        "--data.table texts.csv --data.input input --data.target [label,value] --data.tokenizer bytes"
        " --data.batch_size 4 --model.ema 0.9 --model.transformer.dropout 0.1" + SMALL + ACCUMULATED, 18, make_tables,
    ),
    "image-table": Training(
        "vision fit",
        "--data.table images.csv --data.input input --data.target [label,value] --data.cache cache"
        " --data.batch_size 4 --model.patch_size 4 --data.augment.flip true --model.ema 0.9"
        " --model.transformer.dropout 0.1" + SMALL + ACCUMULATED, 18, make_tables,
    ),
    "protein-table": Training(
        "protein fit",
        "--data.table chains.csv --data.input input --data.target [label,value] --data.batch_size 4 --model.ema 0.9"
        " --model.transformer.dropout 0.1" + SMALL + ACCUMULATED, 18, make_tables,
    ),
    "pairs": Training(
        "text fit",
        "--data.pairs pairs.tsv --data.batch_size 4 --model.ema 0.9" + "".join(
            f" --model.{part}.{size}" for part in ("encoder", "decoder")
            for size in ("dim 16", "depth 1", "heads 2", "dropout 0.1")
        ) + ACCUMULATED, 18, make_tables,
    ),
    "text-shards": Training(
        "text fit",
        "--data.shards texts --data.context 16 --data.batch_size 4 --model.ema 0.9 --model.transformer.dropout 0.1"
        + SMALL + ACCUMULATED, 18, make_shards,
    ),
    "image-shards": Training(
        "vision fit", IMAGES.replace("--data.root images --data.cache cache", "--data.root pictures") + ACCUMULATED,
        18, make_shards,
    ),
    "pretrain-shards": Training(
        "protein pretrain",
        "--data.shards chains --data.context 24 --data.batch_size 4 --model.size tiny --model.ema 0.9" + ACCUMULATED,
        14, make_shards,
    ),
    "pretrain-workers": Training(
        "protein pretrain", MASKED + " --trainer.val_check_interval 6" + TWO, 20, make_proteins
    ),
}  # fmt: skip

"""Runs a case: its command in its folder, with what it prints, its exit code, and what it changed."""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import signal
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from triune import cli
from triune.core.config import TransformerConfig
from triune.core.training.run.arguments import RUN_VARIABLE
from triune.protein.language.model import SequenceConfig, SequenceModel, esm_transformer
from triune.protein.pair.config import PairConfig
from triune.protein.pair.model import PairModel
from triune.text.model import LanguageModel, LanguageModelConfig
from triune.text.tokenizer import Tokenizer
from triune.vision.model import VisionTransformer, VisionTransformerConfig

from .made import A3M, PICTURES, Case, Content

SECONDS = 120
LONGEST = 3000
"""Characters of a sentence."""


def make_good(place: Path) -> None:
    """Small models and data that are as they should be."""
    torch.manual_seed(0)
    small = TransformerConfig(dim=16, depth=1, heads=2, context=32, causal=True)
    LanguageModel(LanguageModelConfig(vocab_size=257, transformer=small)).save_pretrained(place / "lm")
    Tokenizer.bytes().save(place / "lm")
    llama = replace(small, dim=32, norm="rmsnorm", norm_eps=1e-6, ffn="swiglu", bias=False)
    LanguageModel(LanguageModelConfig(vocab_size=257, transformer=llama)).save_pretrained(place / "llama")
    Tokenizer.bytes().save(place / "llama")
    blocks = TransformerConfig(dim=16, depth=1, heads=2, position="none")
    config = VisionTransformerConfig(
        image_size=8, patch_size=4, channels=1, classes=2, labels=["a", "b"], transformer=blocks
    )
    VisionTransformer(config).save_pretrained(place / "vit")
    PairModel(PairConfig.preset("tiny")).save_pretrained(place / "pair")
    (place / "pdb").mkdir()
    (place / "pdb" / "x.pdb").write_text("HEADER\n")
    (place / "ok.txt").write_text("a text of some words\n" * 50)
    rows = "".join(f"{10**n},{10 ** (3 + n * 5 % 7)},{2 + 5 / n}\n" for n in range(3, 9))
    (place / "runs.csv").write_text(f"parameters,tokens,loss\n{rows}")
    (place / "ok.a3m").write_bytes(A3M)
    letters = np.random.default_rng(0).choice(list("ACDEFGHIKLMNPQRSTVWY"), (12, 40))
    (place / "many.fasta").write_text("".join(f">chain{n}\n{''.join(row)}\n" for n, row in enumerate(letters)))
    np.savez(
        place / "chains.npz", name=[f"{n}abc_A" for n in range(12)], length=[40] * 12,
        sequence=np.frombuffer("".join(letters.reshape(-1)).encode(), np.uint8), profile=np.zeros((480, 20), np.uint8),
        backbone=np.random.default_rng(0).integers(-1500, 1500, (480, 3, 3)).astype(np.int16),
    )  # fmt: skip
    SequenceModel(SequenceConfig(esm_transformer("tiny"))).save_pretrained(place / "esm")
    _tables(place, ["".join(row) for row in letters])
    lay(place, PICTURES | {"a.png": PICTURES["img/a/0.png"]})


def _tables(place: Path, chains: list[str]) -> None:
    """Twelve inputs of each task with a label, a table of vectors, and pairs of texts."""
    names = "abcdefghijkl"
    texts = [f"a {'good' if n % 2 else 'bad'} day number {n}" for n in range(12)]
    pictures = [f"img/{'ab'[n % 2]}/{n // 2}.png" for n in range(8)]
    for name, column, cells in (
        ("texts", "text", texts), ("images", "image", pictures), ("chains", "sequence", chains),
    ):  # fmt: skip
        rows = "".join(f"{names[n]},{cell},{'xy'[n % 2]},{n / 10}\n" for n, cell in enumerate(cells))
        (place / f"{name}.csv").write_text(f"name,{column},label,value\n{rows}")
    (place / "pairs.tsv").write_text("".join(f"{text}\t{text[::-1]}\n" for text in texts))
    np.savez(place / "vectors.npz", name=list(names), vector=np.random.default_rng(0).normal(size=(12, 4)))


RUNS = {
    "run-text": "text fit --data.files {0}/ok.txt --data.tokenizer bytes --data.context 16 --data.batch_size 2",
    "run-texts": "text fit --data.table {0}/texts.csv --data.input text --data.target label --data.tokenizer bytes",
    "run-vision": "vision fit --data.root {0}/img --data.batch_size 2 --model.patch_size 4",
    "run-images": "vision fit --data.table {0}/images.csv --data.input image --data.target label --data.batch_size 2"
    " --model.patch_size 4",
    "run-protein": "protein fit --data.crop 16 --data.batch_size 1 --model.preset tiny",
    "run-chains": "protein fit --data.table {0}/chains.csv --data.input sequence --data.target label",
}
"""Trainings of one step, by the name of their folder in `ok`."""
ONE_STEP = "--trainer.max_steps 1 --trainer.limit_val_batches 1 --trainer.accelerator cpu --threads 1"
SMALL = "--model.transformer.dim 16 --model.transformer.depth 1 --model.transformer.heads 2"


def make_runs(place: Path, names: Iterable[str] = tuple(RUNS)) -> None:
    """Runs of one step beside what `make_good` made; those that are there are kept."""
    for name in names:
        if (place / name).exists():
            continue
        small = "" if name == "run-protein" else SMALL
        words = f"{RUNS[name].format(place)} --run {place / name} --data.cache {place}/cache {ONE_STEP} {small}"
        if name in ("run-chains", "run-protein", "run-texts"):
            words = words.replace(f"--data.cache {place}/cache ", "")
        shown = io.StringIO()
        with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown):
            code = cli.main(words.split())
        os.environ.pop(RUN_VARIABLE, None)
        assert code == 0, shown.getvalue()


def lay(place: Path, given: Mapping[str, Content]) -> None:
    for name, content in given.items():
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content) if isinstance(content, bytes) else content(path)


def snapshot(place: Path) -> dict[str, bytes | None]:
    found = {str(path): path for path in place.rglob("*") if "cache" not in path.parts}
    return {name: path.read_bytes() if path.is_file() else None for name, path in found.items() if path.exists()}


class Hangs(BaseException):
    """A command that has not ended after `SECONDS`."""


def run(case: Case, place: Path) -> tuple[int, str]:
    """Exit code, and the last line on standard error or the exception."""

    def stop(*_: object) -> None:
        raise Hangs

    lay(place, case.given)
    before, errors, old = snapshot(place), io.StringIO(), signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    code: Any
    try:
        with contextlib.chdir(place), contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
            code = cli.main(shlex.split(case.command))
    except SystemExit as error:
        code = error.code
    except (Exception, Hangs) as error:
        return 1, f"{type(error).__name__}: {error}"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)
    after = snapshot(place)
    if changed := [name for name, content in before.items() if after.get(name, b"") != content]:
        return 1, f"changed {changed}"
    sentence = (errors.getvalue().strip().splitlines() or [""])[-1]
    return code, sentence.replace(f"{place}/", "").replace(str(place), ".")

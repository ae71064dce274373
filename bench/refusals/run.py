"""Runs a case: its command in its folder, with what it prints, its exit code, and what it changed."""

from __future__ import annotations

import contextlib
import io
import shlex
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from triune import cli
from triune.core.config import TransformerConfig
from triune.protein.pair.config import PairConfig
from triune.protein.pair.model import PairModel
from triune.text.model import LanguageModel, LanguageModelConfig
from triune.text.tokenizer import Tokenizer
from triune.vision.model import VisionTransformer, VisionTransformerConfig

from .made import A3M, PICTURES, Case, Content

SECONDS = 120


def make_good(place: Path) -> None:
    """Small models and data that are as they should be."""
    torch.manual_seed(0)
    small = TransformerConfig(dim=16, depth=1, heads=2, context=32, causal=True)
    LanguageModel(LanguageModelConfig(vocab_size=257, transformer=small)).save_pretrained(place / "lm")
    Tokenizer.bytes().save(place / "lm")
    blocks = TransformerConfig(dim=16, depth=1, heads=2, position="none")
    config = VisionTransformerConfig(
        image_size=8, patch_size=4, channels=1, classes=2, labels=["a", "b"], transformer=blocks
    )
    VisionTransformer(config).save_pretrained(place / "vit")
    PairModel(PairConfig.preset("tiny")).save_pretrained(place / "pair")
    (place / "pdb").mkdir()
    (place / "pdb" / "x.pdb").write_text("HEADER\n")
    (place / "ok.txt").write_text("a text of some words\n" * 50)
    rows = "".join(f"{10**n},{3 * 10**n},{2 + 5 / n}\n" for n in range(3, 9))
    (place / "runs.csv").write_text(f"parameters,tokens,loss\n{rows}")
    (place / "ok.a3m").write_bytes(A3M)
    letters = np.random.default_rng(0).choice(list("ACDEFGHIKLMNPQRSTVWY"), (12, 40))
    (place / "many.fasta").write_text("".join(f">chain{n}\n{''.join(row)}\n" for n, row in enumerate(letters)))
    np.savez(
        place / "chains.npz", name=[f"{n}abc_A" for n in range(12)], length=[40] * 12,
        sequence=np.frombuffer("".join(letters.reshape(-1)).encode(), np.uint8), profile=np.zeros((480, 20), np.uint8),
        backbone=np.random.default_rng(0).integers(-9999, 9999, (480, 3, 3)).astype(np.int16),
    )  # fmt: skip
    lay(place, PICTURES | {"a.png": PICTURES["img/a/0.png"]})


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

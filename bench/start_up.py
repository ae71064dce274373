"""Processor time until the first result of a tiny model, for each verb of use, over that of `import torch`.

`python bench/start_up.py [--rounds 5]`: rounds in which every command runs once; the median of their
ratios within a round.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from triune.core.config import TransformerConfig
from triune.core.heads.base import HeadSpec
from triune.core.labelled.model import LabelledConfig
from triune.protein.language.labelled import ProteinPredictor
from triune.protein.language.model import SequenceConfig, SequenceModel
from triune.protein.pair.config import PairConfig
from triune.protein.pair.model import PairModel
from triune.text.encoder import TextEncoder, TextEncoderConfig
from triune.text.labelled import TextPredictor
from triune.text.model import LanguageModel, LanguageModelConfig
from triune.text.tokenizer import Tokenizer
from triune.vision.model import VisionTransformer, VisionTransformerConfig
from triune.vision.predictor import ImagePredictor

VERBS = {
    "generate": ["text", "generate", "text", "--prompt", "ab", "--max-tokens", "2"],
    "chat": ["text", "chat", "text", "--prompt", "ab", "--max-tokens", "2"],
    "classify": ["vision", "classify", "a.png", "--run", "vision"],
    "contacts": ["protein", "contacts", "x.fasta", "--run", "pair", "--no-png"],
    "mutations": ["protein", "mutations", "x.fasta", "--run", "esm", "--no-png"],
    "predict texts": ["text", "predict", "run-texts", "a day"],
    "predict images": ["vision", "predict", "run-images", "a.png"],
    "predict proteins": ["protein", "predict", "run-chains", "x.fasta"],
    "embed texts": ["embed", "a day", "--run", "run-texts", "--out", "texts.npz"],
    "embed images": ["embed", "a.png", "--run", "run-images", "--out", "images.npz"],
    "embed proteins": ["embed", "x.fasta", "--run", "run-chains", "--out", "chains.npz"],
    "embed a checkpoint": ["embed", "x.fasta", "--pretrained", "esm", "--task", "protein", "--out", "esm.npz"],
    "nearest": ["nearest", "--index", "v.npy", "--duplicates"],
    "lens": ["lens", "attention", "text", "abcabc"],
    "info": ["info", "text"],
}
"""Command lines that end with 0 in the folder of `make_models`."""


def make_models(folder: Path) -> None:
    """Models of a few thousand numbers and inputs of theirs."""
    core = TransformerConfig(dim=16, depth=1, heads=1, causal=True, context=32)
    LanguageModel(LanguageModelConfig(257, core)).save_pretrained(folder / "text")
    Tokenizer.bytes().save(folder / "text")
    bare = TransformerConfig(dim=16, depth=1, heads=1, position="none")
    image = VisionTransformerConfig(image_size=16, patch_size=4, classes=3, transformer=bare)
    VisionTransformer(image).save_pretrained(folder / "vision")
    Image.new("RGB", (20, 20), (200, 3, 3)).save(folder / "a.png")
    small = {"msa_depth": 1, "msa_dim": 8, "msa_heads": 1, "head_dim": 8, "outer_dim": 4, "triangle_dim": 8}
    PairModel(PairConfig(dim=8, depth=1, sequence_dim=8, triangle_heads=1, **small)).save_pretrained(folder / "pair")
    np.save(folder / "v.npy", np.eye(4, dtype=np.float32))
    (folder / "x.fasta").write_text(">x\nMKVLAAGIVGLLLAQWERTY\n")
    _with_heads(folder)


def _with_heads(folder: Path) -> None:
    """A model with a head of each task, as `fit --data.table` saves it."""
    spec = HeadSpec("classify", ("x", "y"))
    trunks: dict[str, Any] = {
        "texts": TextEncoder(
            TextEncoderConfig(257, TransformerConfig(dim=16, depth=1, heads=1, context=32), segments=0)
        ),
        "images": VisionTransformer.from_pretrained(folder / "vision"),
        "chains": SequenceModel(SequenceConfig(TransformerConfig(dim=16, depth=1, heads=1, position="rotary"))),
    }
    trunks["chains"].save_pretrained(folder / "esm")
    kinds: dict[str, Any] = {"texts": TextPredictor, "images": ImagePredictor, "chains": ProteinPredictor}
    for name, trunk in trunks.items():
        settings = trunk.settings()[trunk.config_entry]
        pool = "own" if name == "images" else "mean"
        config = LabelledConfig(trunk.architecture, settings, spec.to_dict(), pool, {"context": 30})
        run = folder / f"run-{name}"
        kinds[name](config, trunk).save_pretrained(run / "model")
        (run / "checkpoints").mkdir()
        task = {"texts": "text", "images": "vision", "chains": "protein"}[name]
        (run / "config.yaml").write_text(
            f"# triune {task} fit\ndata:\n  table: {name}.csv\n  input: text\n  target: label\n"
        )
    Tokenizer.bytes().save(folder / "run-texts" / "model")


FIGURES = {"ratio": statistics.median, "least": min, "most": max}


def processor_seconds(words: list[str], folder: Path) -> float:
    """User and system time of a process and its children, in seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *words], cwd=folder, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    ratios: dict[str, list[float]] = {name: [] for name in VERBS}
    plain = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_models(folder)
        for _ in range(rounds):
            plain.append(processor_seconds(["-c", "import torch"], folder))
            for verb, words in VERBS.items():
                more = ["--overwrite"] if verb.startswith(("embed", "mutations", "contacts")) else []
                ratios[verb].append(processor_seconds(["-m", "triune", *words, *more], folder) / plain[-1])
    rows = [
        {"verb": verb} | {name: round(of(found), 2) for name, of in FIGURES.items()} for verb, found in ratios.items()
    ]
    for row in rows:
        print(f"{row['verb']:20} {row['ratio']:.2f} ({row['least']:.2f} to {row['most']:.2f})")
    from common import record

    record("start_up", rows, import_torch_seconds=round(statistics.median(plain), 2), rounds=rounds)


if __name__ == "__main__":
    main()

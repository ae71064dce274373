"""What the verbs of use load: neither the training framework nor the compiler, and nothing that draws."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from triune.core.config import TransformerConfig
from triune.protein.pair.config import PairConfig
from triune.protein.pair.model import PairModel
from triune.text.model import LanguageModel, LanguageModelConfig
from triune.text.tokenizer import Tokenizer
from triune.vision.model import VisionTransformer, VisionTransformerConfig

HEAVY = (
    "lightning", "torch._dynamo", "torch._inductor", "matplotlib", "pandas", "sklearn", "transformers", "torchmetrics",
    "timm", "tensorboard", "jsonargparse",
)  # fmt: skip
CODE = """
import json, sys
from triune.cli import main
code = main(sys.argv[2:])
print(json.dumps([code, sorted(set(sys.argv[1].split()) & set(sys.modules))]))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("start")
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
    return folder


VERBS = {
    "generate": ["text", "generate", "text", "--prompt", "ab", "--max-tokens", "2"],
    "chat": ["text", "chat", "text", "--prompt", "ab", "--max-tokens", "2"],
    "classify": ["vision", "classify", "a.png", "--run", "vision"],
    "contacts": ["protein", "contacts", "x.fasta", "--run", "pair", "--no-png"],
    "nearest": ["nearest", "--index", "v.npy", "--duplicates"],
    "lens": ["lens", "attention", "text", "abcabc"],
}


@pytest.mark.parametrize("verb", VERBS)
def test_nothing_heavy_is_loaded(folder, verb):
    done = subprocess.run(
        [sys.executable, "-c", CODE, " ".join(HEAVY), *VERBS[verb]], cwd=folder, capture_output=True, text=True,
    )  # fmt: skip
    assert json.loads(done.stdout.splitlines()[-1]) == [0, []], done.stderr

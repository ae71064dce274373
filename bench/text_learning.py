"""Full validation loss of tiny Shakespeare at nanoGPT's CPU budget, over seeds, and what each choice brings.

    python bench/text_learning.py tinyshakespeare.txt --seeds 3               the recipe shakespeare-char-cpu
    python bench/text_learning.py tinyshakespeare.txt --ablation --seeds 1    one change at a time
    python bench/text_learning.py tinyshakespeare.txt --config shakespeare-char-conv    the recipe with convolutions

Every figure is that of `triune text fit`: 2,000 steps of 12 windows of 64 characters, the whole validation split (the
last tenth) scored in non-overlapping windows of 64.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from common import record, spread, table

CHANGES = {
    "the recipe": "",
    "AdamW instead of Muon": "--model.optimizer.name adamw --model.optimizer.lr 0.004",
    "LayerNorm with gain instead of plain RMSNorm": "--model.transformer.norm layernorm "
    "--model.transformer.norm_weight plain",
    "learned positions instead of rotary": "--model.transformer.position learned",
    "GELU instead of squared ReLU": "--model.transformer.ffn gelu",
    "no QK-norm": "--model.transformer.qk_norm none",
    "no norm on the embedding": "--model.transformer.input_norm false",
    "tied head": "--model.tied true --model.embedding_std 0.02",
    "outputs start scaled instead of zero": "--model.transformer.init_residual scaled",
    "cosine instead of linear decay": "--model.schedule.kind cosine",
    "no weight decay": "--model.optimizer.weight_decay 0",
    "Muon's learning rate doubled": "--model.optimizer.lr 0.024",
    "Muon's learning rate halved": "--model.optimizer.lr 0.006",
    "average of the weights (0.99)": "--model.ema 0.99",
}
NANOGPT = (
    "--model.transformer.norm layernorm --model.transformer.norm_weight plain --model.transformer.position learned "
    "--model.transformer.ffn gelu --model.transformer.qk_norm none --model.transformer.input_norm false "
    "--model.transformer.init_std 0.02 --model.transformer.init_residual scaled --model.tied true "
    "--model.embedding_std 0.02 --model.optimizer.name adamw --model.optimizer.betas [0.9,0.99] "
    "--model.schedule.kind cosine --model.schedule.warmup 100 --model.schedule.final 0.1 --model.optimizer.lr "
)
CHANGES["nanoGPT's architecture and optimizer (lr 0.001)"] = NANOGPT + "0.001"
CHANGES["nanoGPT's architecture and optimizer (lr 0.004)"] = NANOGPT + "0.004"


def train(text: str, seed: int, options: str, config: str) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [
            *(sys.executable, "-m", "triune", "text", "fit", "--config", config, "--data.files", text),
            *("--seed_everything", str(seed), "--data.seed", str(seed), "--run", str(run), "--threads", "1"),
            *shlex.split(options),
        ]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return json.loads((run / "summary.json").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ablation", action="store_true")
    parser.add_argument("--only", default="", help="changes whose name holds this text")
    parser.add_argument("--options", default="", help="more options of triune text fit, for a trial")
    parser.add_argument("--config", default="shakespeare-char-cpu", help="the recipe")
    options = parser.parse_args()
    rows = []
    changes = {name: change for name, change in CHANGES.items() if options.only in name}
    for name, change in changes.items() if options.ablation else [("the recipe", options.options)]:
        runs = [train(options.text, seed, change, options.config) for seed in range(options.seeds)]
        losses = spread([run["val_loss"] for run in runs])
        mean = sum(run["val_loss"] for run in runs) / len(runs)
        row = {
            "change": name,
            "parameters": runs[0]["parameters"],
            "val_loss": mean,
            "low": losses["low"],
            "high": losses["high"],
        }
        row |= {
            "bits_per_byte": runs[0].get("val_bits_per_byte"),
            "seconds": spread([r["seconds"] for r in runs])["median"],
        }
        rows.append(row)
        # After each row: a long ablation that is stopped keeps what it has found.
        name = "text_learning_ablation" if options.ablation else "text_learning"
        if options.config != "shakespeare-char-cpu":
            name += "_" + options.config.removeprefix("shakespeare-char-")
        record(name, rows, seeds=options.seeds, anchor="nanoGPT 1.898")
        print(table(rows), flush=True)


if __name__ == "__main__":
    main()

"""A Lightning step against a raw PyTorch loop over the same model, optimizer and batches, taking turns.

    python bench/lightning_overhead.py [--steps 300] [--rounds 6]

The model is nanoGPT's small architecture (4 x 128, 12 windows of 64 characters), as `triune text fit` trains it: with
its telemetry, its schedule and its logging every 10 steps.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import tempfile
import time
from pathlib import Path

import torch
from common import record, spread, table
from lightning.pytorch import Callback, Trainer

from triune.core import OptimizerConfig, ScheduleConfig, TransformerConfig
from triune.core.training.groups import build_optimizer
from triune.core.training.run import machine
from triune.core.training.run.telemetry import Telemetry
from triune.core.training.schedules import factor
from triune.text.data.module import TextData
from triune.text.task import TextTask

ARCHITECTURE = TransformerConfig(dim=128, depth=4, heads=4, causal=True, context=64, position="learned", ffn="gelu")


def make(text: Path, cache: str) -> tuple[TextTask, TextData]:
    task = TextTask(
        transformer=ARCHITECTURE, tied=True, embedding_std=0.02, optimizer=OptimizerConfig(name="adamw", lr=1e-3),
        schedule=ScheduleConfig(kind="cosine", warmup=100),
    )  # fmt: skip
    data = TextData(files=str(text), tokenizer="characters", context=64, batch_size=12, cache=cache)
    return task, data


class Clock(Callback):
    """Seconds from the end of the warm-up to the end of training."""

    def __init__(self, warmup: int) -> None:
        self.warmup, self.start, self.end = warmup, 0.0, 0.0

    def on_train_batch_end(self, trainer, *_) -> None:
        if trainer.global_step == self.warmup:
            self.start = time.perf_counter()

    def on_train_end(self, *_) -> None:
        self.end = time.perf_counter()


def with_lightning(text: Path, cache: str, steps: int, warmup: int) -> float:
    task, data = make(text, cache)
    clock = Clock(warmup)
    trainer = Trainer(
        max_steps=warmup + steps, callbacks=[Telemetry(None), clock], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, accelerator="cpu", log_every_n_steps=10,
        limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(task, data)
    return (clock.end - clock.start) / steps


def raw_loop(text: Path, cache: str, steps: int, warmup: int) -> float:
    task, data = make(text, cache)
    data.setup()
    model = task.build_model(data).train()
    optimizer = build_optimizer(model, task.optimizer_config)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: factor(task.schedule_config, n, warmup + steps))
    start = 0.0
    for number, batch in enumerate(iter(data.train_dataloader())):
        if number == warmup:
            start = time.perf_counter()
        if number == warmup + steps:
            break
        total, count = model.loss(batch["tokens"], batch["targets"])
        (total / count).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
    return (time.perf_counter() - start) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    machine.keep_memory()  # for both, as the command line does
    seconds: dict[str, list[float]] = {"raw loop": [], "triune through Lightning": []}
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "text.txt"
        text.write_text("The quick brown fox jumps over the lazy dog. " * 20_000)
        for turn in range(options.rounds):
            runs = [("raw loop", raw_loop), ("triune through Lightning", with_lightning)]
            for name, run in runs if turn % 2 == 0 else reversed(runs):
                with contextlib.redirect_stdout(io.StringIO()):
                    gc.collect()
                    seconds[name].append(run(text, folder, options.steps, 20))
    rows = [
        {"loop": name, **{k: v * 1e3 for k, v in spread(values).items()}, "unit": "ms"}
        for name, values in seconds.items()
    ]
    ratio = spread([b / a for a, b in zip(*seconds.values(), strict=True)])
    print(table(rows), f"\nLightning / raw: {ratio}")
    record("lightning_overhead", rows, ratio=ratio)


if __name__ == "__main__":
    main()

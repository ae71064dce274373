"""Two and four processes against one: the same global batches, and after 50 steps the same weights and metrics.

    python bench/processes.py [TASK …] [--steps 50]

Each training runs in processes that are forked here (gloo, one thread each): DDP and FSDP2, float32 and float64.
Beside each difference stands what rounding alone does to one process: `backwards` is one process whose batches are
turned round (the same sums in another order), `rounding` the distance of one process in float32 from float64.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import socket
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

WHOLE = 8
"""Examples of a batch of all processes."""

WHOLE_SET = {"protein contacts": 1.0}
"""Tasks whose validation batches hold as many examples as fit, so that two batches are others for other processes."""
BY_PLACE = ("text pretrain",)
"""Tasks that hide tokens by their place in the batch: turned round, a batch is another."""

NOTE = "Rows of tasks that the command does not name are of an earlier run of it."


def small(**more: Any) -> Any:
    from triune.core.config import TransformerConfig

    return TransformerConfig(**{"dim": 16, "depth": 2, "heads": 2, **more})


def text(folder: Path, size: int) -> tuple[Any, Any]:
    from triune.text.data.module import TextData
    from triune.text.task import TextTask

    data = TextData(str(corpus(folder)), tokenizer="bytes", context=32, batch_size=size, cache=str(folder))
    return TextTask(transformer=small(position="rotary")), data


def text_pretrain(folder: Path, size: int) -> tuple[Any, Any]:
    from triune.text.masked.data import MaskedText
    from triune.text.masked.task import MaskedTextTask

    data = MaskedText(files=str(corpus(folder)), tokenizer="bytes", context=32, batch_size=size, cache=str(folder))
    return MaskedTextTask(transformer=small(position="rotary")), data


def corpus(folder: Path) -> Path:
    path = folder / "text.txt"
    if not path.exists():
        path.write_text("".join(f"{i} times {i % 7} is {i * (i % 7)}\n" for i in range(600)))
    return path


def vision(folder: Path, size: int) -> tuple[Any, Any]:
    from triune.vision.data.augment import AugmentConfig
    from triune.vision.data.module import ImageData
    from triune.vision.task import VisionTask

    augment = AugmentConfig(rotate=10, erasing=0.3, mixup=0.8, cutmix=1.0)
    return VisionTask(transformer=small(position="none")), ImageData(batch_size=size, augment=augment)


def vision_pretrain(folder: Path, size: int) -> tuple[Any, Any]:
    from triune.vision.masked.data import PlainImages
    from triune.vision.masked.task import MaskedTask

    decoder = small(depth=1, position="none")
    return MaskedTask(transformer=small(position="none"), decoder=decoder, probe=0), PlainImages(batch_size=size)


def contacts(folder: Path, size: int) -> tuple[Any, Any]:
    from triune.protein.data.module import ProteinData
    from triune.protein.pair.task import PairTask

    return PairTask(settings=PAIR), ProteinData(crop=32, batch_size=size, max_length=64)


PAIR: dict[str, Any] = {"dim": 16, "depth": 1, "sequence_depth": 0, "dropout_pair": 0.0, "recycles": 0}


def protein_pretrain(folder: Path, size: int) -> tuple[Any, Any]:
    from triune.protein.language.data import SequenceData
    from triune.protein.language.task import PretrainTask

    return PretrainTask(transformer=small(position="rotary")), SequenceData(context=48, batch_size=size)


TASKS: dict[str, Callable[[Path, int], tuple[Any, Any]]] = {
    "text": text, "text pretrain": text_pretrain, "vision": vision, "vision pretrain": vision_pretrain,
    "protein contacts": contacts, "protein pretrain": protein_pretrain,
}  # fmt: skip


def train(
    task: str, folder: Path, world: int, strategy: str, precision: str, steps: int, backwards: bool = False
) -> dict[str, Any]:
    """Weights (of rank 0, whole) and validation metrics of a training with `world` processes.

    All trainings in a folder start with the weights of the first one. `backwards` turns each batch round.
    """
    import triune.core.training.module  # noqa: F401 (before the fork, so that no process imports it anew)

    TASKS[task](folder, WHOLE)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    out = folder / f"{task}-{world}-{strategy}-{precision}-{backwards}.pt"
    context = multiprocessing.get_context("fork")
    several = [
        context.Process(target=_one, args=(task, folder, rank, world, port, strategy, precision, steps, backwards, out))
        for rank in range(world)
    ]
    for process in several:
        process.start()
    for process in several:
        process.join(300)
    codes = [process.exitcode for process in several]
    for process in several:
        process.kill()
    assert codes == [0] * world, f"{task} with {world} processes ended with {codes}"
    return torch.load(out, weights_only=True)


def _one(
    task: str, folder: Path, rank: int, world: int, port: int, strategy: str, precision: Any, steps: int,
    backwards: bool, out: Path,
) -> None:  # fmt: skip
    if world > 1:
        os.environ |= {
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": str(world),
            "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(world), "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "here",
        }  # fmt: skip
    import lightning.pytorch as pl
    from torch.distributed.tensor import DTensor, distribute_tensor

    from triune.core.training.lightning_fixes import quiet

    class _Start(pl.Callback):
        """The same first weights in all trainings, whatever their precision; and batches that are turned round."""

        def __init__(self, path: Path, backwards: bool) -> None:
            self.path, self.backwards = path, backwards

        def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
            if not self.path.exists() and trainer.world_size == 1:
                torch.save(pl_module.model.state_dict(), self.path)
            first = torch.load(self.path, weights_only=True)
            with torch.no_grad():
                for name, value in pl_module.model.state_dict().items():
                    new = first[name].to(value.dtype)
                    if isinstance(value, DTensor):
                        new = distribute_tensor(new, value.device_mesh, value.placements)
                    value.copy_(new)
            if self.backwards:
                step = pl_module.training_step
                pl_module.training_step = lambda batch, batch_idx: step(_turned(batch), batch_idx)

    quiet()
    warnings.simplefilter("ignore")  # those of the libraries about each other, which a test would make errors
    torch.set_num_threads(1)
    pl.seed_everything(3, verbose=False)
    module, data = TASKS[task](folder, WHOLE // world)
    trainer = pl.Trainer(
        accelerator="cpu", devices=world, strategy=strategy if world > 1 else "auto", precision=precision,
        max_steps=steps, logger=False, enable_checkpointing=False, enable_progress_bar=False, num_sanity_val_steps=0,
        enable_model_summary=False, limit_val_batches=WHOLE_SET.get(task, 2), val_check_interval=steps,
        check_val_every_n_epoch=None, gradient_clip_val=1.0, inference_mode=False, default_root_dir=str(folder),
        callbacks=[_Start(folder / f"{task}.pt", backwards)],
    )  # fmt: skip
    trainer.fit(module, data)
    state = {
        name: value.full_tensor() if isinstance(value, DTensor) else value
        for name, value in module.model.state_dict().items()
    }
    if rank == 0:
        seen = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val_")}
        torch.save({"weights": state, "metrics": seen}, out)
    if world > 1:
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
    os._exit(0)  # what this process inherited is its parent's to close


def _turned(batch: dict[str, Any]) -> dict[str, Any]:
    """A batch with its examples in the other order."""
    rows = max(len(value) for value in batch.values() if isinstance(value, torch.Tensor) and value.dim())
    rows = min(rows, WHOLE)
    return {
        name: value.flip(0) if isinstance(value, torch.Tensor) and value.dim() and len(value) == rows else value
        for name, value in batch.items()
    }


def furthest(one: dict[str, Any], other: dict[str, Any]) -> float:
    """The largest difference between two sets of weights."""
    assert one["weights"].keys() == other["weights"].keys()
    return max(
        float((one["weights"][k].double() - other["weights"][k].double()).abs().max()) for k in one["weights"]
    )  # fmt: skip


def relative(one: dict[str, Any], other: dict[str, Any]) -> float:
    """The norm of the difference of two sets of weights, divided by that of the first."""
    squares = [
        [float(one["weights"][k].double().square().sum()) for k in one["weights"]],
        [float((one["weights"][k].double() - other["weights"][k].double()).square().sum()) for k in one["weights"]],
    ]
    return math.sqrt(sum(squares[1]) / sum(squares[0]))


def apart(one: dict[str, Any], other: dict[str, Any]) -> float:
    """The largest difference between the validation metrics of two trainings (P@L and the like are counts)."""
    return max(
        abs(value - other["metrics"][name]) for name, value in one["metrics"].items() if math.isfinite(value)
    )  # fmt: skip


def main() -> None:
    from common import RESULTS, record, table

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tasks", nargs="*", default=list(TASKS), metavar="TASK")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--worlds", type=int, nargs="+", default=[2, 4])
    options = parser.parse_args()
    # Rows of tasks that are not asked for stay.
    known = RESULTS / "processes.json"
    rows = json.loads(known.read_text())["rows"] if known.exists() else []
    rows = [row for row in rows if row["task"] not in options.tasks]
    with tempfile.TemporaryDirectory() as name:
        for task in options.tasks:
            for precision in ("32-true", "64-true"):
                alone = train(task, Path(name), 1, "auto", precision, options.steps)
                control: dict[str, float] = {}
                if task not in BY_PLACE:
                    turned = train(task, Path(name), 1, "auto", precision, options.steps, True)
                    control["backwards"] = furthest(alone, turned)
                if precision == "32-true":
                    double = train(task, Path(name), 1, "auto", "64-true", options.steps)
                    control["rounding"] = furthest(alone, double)
                for strategy in ("ddp", "fsdp2"):
                    for world in options.worlds:
                        row: dict[str, Any] = {
                            "task": task, "precision": precision, "strategy": strategy, "processes": world
                        }  # fmt: skip
                        try:
                            several = train(task, Path(name), world, strategy, precision, options.steps)
                            row["weights"] = furthest(alone, several)
                            row |= {"relative": relative(alone, several), **control}
                            row["metrics"] = apart(alone, several)
                            row["val_loss"] = several["metrics"]["val_loss"]
                            row["val_loss_of_one"] = alone["metrics"]["val_loss"]
                        except AssertionError as error:
                            row["failed"] = str(error)
                        print(row, flush=True)
                        rows.append(row)
            record("processes", rows, steps=options.steps, asked={"32-true": 1e-5, "64-true": 1e-12}, note=NOTE)
    print(table(rows))


if __name__ == "__main__":
    main()

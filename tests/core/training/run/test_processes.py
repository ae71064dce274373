"""Trainings of two processes, through the command line: what they compute is what one process computes."""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from triune.bench.kills.server import Server
from triune.bench.kills.trainings import make_proteins, make_tables, make_text
from triune.cli import main

OPTIONS = [
    "--data.context", "16", "--data.tokenizer", "bytes", "--model.transformer.dim", "16", "--threads", "1",
    "--model.transformer.depth", "1", "--model.transformer.heads", "2", "--trainer.accelerator", "cpu",
    "--trainer.max_steps", "3", "--trainer.log_every_n_steps", "1", "--trainer.gradient_clip_val", "1.0",
    "--trainer.limit_val_batches", "2",
]  # fmt: skip
TORCHRUN = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "triune", "--"]


def triune(folder: Path, *words: str, launcher: list[str] | None = None, code: int = 0) -> str:
    command = [sys.executable, *(launcher or ["-m", "triune"]), *words]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")} | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == code, (done.stdout + done.stderr)[-3000:]
    return done.stdout + done.stderr


def losses(run: Path) -> list[float]:
    with (run / "metrics.csv").open(newline="") as file:
        return [float(row["loss"]) for row in csv.DictReader(file) if row["loss"]]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory, server: Server) -> Path:
    """A folder with a text and the run of one process."""
    folder = tmp_path_factory.mktemp("processes")
    (folder / "text.txt").write_text("".join(f"{i} times {i % 7} is {i * (i % 7)}\n" for i in range(400)))
    forked(server, folder, *fit("one"), "--data.batch_size", "4")
    return folder


def forked(server: Server, folder: Path, *words: str, ranks: int = 1) -> str:
    """As `triune`, in processes that have imported all, and that know their ranks as torchrun's do."""
    ended = server.run(folder, [*words], ranks=ranks)
    assert ended.code == 0, ended.printed[-3000:]
    return ended.printed


def fit(run: str) -> list[str]:
    return ["text", "fit", "--run", run, "--data.files", "text.txt", "--data.cache", ".", *OPTIONS]


def assert_as_one(folder: Path, run: str) -> None:
    assert losses(folder / run) == pytest.approx(losses(folder / "one"), rel=1e-5)
    ours, theirs = (load_file(folder / name / "model" / "model.safetensors") for name in (run, "one"))
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-3, atol=1e-4)


AGAIN = ["--resume", "true", "--trainer.max_steps", "4"]


def test_torchrun_goes_on_with_a_run_of_one_process(one: Path, server: Server) -> None:
    """`torchrun ... -m triune -- text fit`: without the two dashes torchrun takes --run for an option of its own."""
    for name in ("grown", "kept"):
        shutil.copytree(one / "one", one / name)
    said = triune(one, "text", "fit", "--run", "grown", *AGAIN, launcher=TORCHRUN)
    assert "2 processes where there was 1: 2 of the 4 examples of a batch on each" in " ".join(said.split())
    assert "2 x" in said
    forked(server, one, "text", "fit", "--run", "kept", *AGAIN)
    assert losses(one / "grown") == pytest.approx(losses(one / "kept"), rel=1e-5)


@pytest.mark.slow
def test_a_run_of_two_processes_goes_on_with_one_and_not_with_three(one: Path) -> None:
    triune(one, *fit("torchrun"), "--data.batch_size", "2", launcher=TORCHRUN)
    assert_as_one(one, "torchrun")
    three = [word.replace("2", "3") for word in TORCHRUN]
    said = triune(one, "text", "fit", "--run", "torchrun", *AGAIN, launcher=three, code=1)
    assert said.count("The batch of all processes is 4, which 3 processes do not divide") == 1
    said = triune(one, "text", "fit", "--run", "torchrun", *AGAIN, "--trainer.devices", "1")
    assert "1 process where there were 2: 4 of the 4 examples" in " ".join(said.split())
    triune(one, "text", "fit", "--run", "one", *AGAIN)
    assert losses(one / "torchrun") == pytest.approx(losses(one / "one"), rel=1e-5)


def test_fsdp2_trains_saves_and_resumes(one: Path, server: Server) -> None:
    """By its class path with arguments that say the same, and by its other name, which changes nothing; by its own in
    the next test.
    """
    path = "lightning.pytorch.strategies.ModelParallelStrategy"
    two = ["--trainer.devices", "2", "--trainer.strategy", path, "--data.batch_size", "2"]
    forked(server, one, *fit("fsdp2"), *two, "--trainer.strategy.tensor_parallel_size", "1", ranks=2)
    assert_as_one(one, "fsdp2")
    assert "strategy: fsdp2" in (one / "fsdp2" / "config.yaml").read_text()
    again = [*AGAIN, "--trainer.strategy", "ModelParallelStrategy"]
    forked(server, one, "text", "fit", "--run", "fsdp2", *again, ranks=2)
    assert len(losses(one / "fsdp2")) == 4
    shown = forked(server, one, *fit("shown"), "--trainer.strategy", "ModelParallelStrategy", "--print_config")
    assert "strategy: ModelParallelStrategy" in shown


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", "fsdp2_tensor2"])
def test_two_processes_go_on_with_one_to_another_length(strategy: str, one: Path, server: Server) -> None:
    """Each of them takes the rate of the new schedule, also the one that the checkpoint knows nothing of, and the
    optimizer's state is that of the same parameter.
    """
    longer = ["text", "fit", "--resume", "true", "--trainer.max_steps", "6", "--run"]
    if not (one / "longer").exists():
        shutil.copytree(one / "one", one / "longer")
        forked(server, one, *longer, "longer")
    run = f"longer-{strategy}"
    shutil.copytree(one / "one", one / run)
    forked(server, one, *longer, run, "--trainer.strategy", strategy, ranks=2)
    assert losses(one / run) == pytest.approx(losses(one / "longer"), rel=1e-5)
    ours, theirs = (load_file(one / name / "model" / "model.safetensors") for name in (run, "longer"))
    for key, tensor in theirs.items():
        torch.testing.assert_close(ours[key], tensor, rtol=0, atol=1e-5)


EXACT = ["--trainer.precision", "64-true", "--model.ema", "0.5"]


def test_sharded_checkpoints_and_averages(one: Path, server: Server) -> None:
    """Each of two processes writes its part; one goes on from them, as one process that was left alone."""
    forked(server, one, *fit("exact"), *EXACT, "--data.batch_size", "4")
    forked(server, one, "text", "fit", "--run", "exact", *AGAIN)
    two = ["--trainer.devices", "2", "--trainer.strategy", "fsdp2_sharded", "--data.batch_size", "2"]
    forked(server, one, *fit("parts"), *EXACT, *two, ranks=2)
    last = one / "parts" / "checkpoints" / "last.ckpt"
    assert {"__0_0.distcp", "__1_0.distcp", ".metadata", "meta.pt"} == {path.name for path in last.iterdir()}
    shutil.copytree(one / "parts", one / "on-one")
    forked(server, one, "text", "fit", "--run", "on-one", *AGAIN, "--trainer.devices", "1")
    ours, theirs = (load_file(one / run / "model" / "model.safetensors") for run in ("on-one", "exact"))
    for key, tensor in theirs.items():
        torch.testing.assert_close(ours[key], tensor, rtol=0, atol=1e-6)
    assert losses(one / "on-one") == pytest.approx(losses(one / "exact"), rel=1e-6)
    for verb, more in (("fit", AGAIN), ("validate", [])):
        words = ["text", verb, "--run", "parts", *more, "--trainer.devices", "1", "--trainer.strategy", "ddp"]
        ended = server.run(one, words)
        said = " ".join(ended.printed.split())
        assert ended.code == 2 and "is a folder with a part of each process, which --trainer.strategy ddp" in said
    (last / "__1_0.distcp").unlink()
    shutil.rmtree(one / "parts" / "checkpoints" / "previous.ckpt", ignore_errors=True)
    ended = server.run(one, ["text", "fit", "--run", "parts", *AGAIN, "--trainer.devices", "1"])
    assert ended.code == 2
    assert "last.ckpt is damaged (__1_0.distcp is missing)" in " ".join(ended.printed.split())


@pytest.mark.parametrize(
    ("ranks", "more"),
    [
        pytest.param(2, ["--model.transformer.attention_gate", "true"], id="two"),
        pytest.param(4, ["--trainer.accumulate_grad_batches", "2"], id="cut and split", marks=pytest.mark.slow),
    ],
)
def test_layers_cut_over_two(ranks: int, more: list[str], one: Path, server: Server) -> None:
    """Layers that are cut over two processes, and weights that are cut over further ones, train as whole ones, and a
    process alone goes on from their checkpoints.
    """
    runs = [f"whole-{ranks}", f"split-{ranks}"]
    more = [*more, "--trainer.precision", "64-true", "--model.transformer.heads", "4", "--model.optimizer.name", "muon"]
    forked(server, one, *fit(runs[0]), *more, "--data.batch_size", "4")
    cut = ["--trainer.strategy", "ModelParallelStrategy", "--trainer.strategy.tensor_parallel_size", "2"]
    cut = cut if ranks == 2 else ["--trainer.strategy", "fsdp2_sharded_tensor2"]
    share = ["--trainer.devices", str(ranks), "--data.batch_size", str(8 // ranks)]
    forked(server, one, *fit(runs[1]), *more, *cut, *share, ranks=ranks)
    for again in (False, True)[: 4 // ranks]:
        if again:
            forked(server, one, "text", "fit", "--run", runs[0], *AGAIN)
            alone = ["--trainer.devices", "1", "--trainer.strategy", "fsdp2"]
            forked(server, one, "text", "fit", "--run", runs[1], *AGAIN, *alone)
        theirs, ours = (load_file(one / run / "model" / "model.safetensors") for run in runs)
        assert ours.keys() == theirs.keys()
        for key, tensor in theirs.items():
            torch.testing.assert_close(ours[key], tensor, rtol=0, atol=1e-12)
        assert losses(one / runs[1]) == pytest.approx(losses(one / runs[0]), rel=1e-6)
        before, after = (json.loads((one / run / "summary.json").read_text()) for run in runs)
        names = ["val_loss", "tokens", *(["bits_per_byte"] if "bits_per_byte" in before else [])]
        assert [after[name] for name in names] == pytest.approx([before[name] for name in names])


@pytest.mark.parametrize(
    ("options", "ranks", "says"),
    [
        ("--model.transformer.heads 1", 2, "the 1 heads of a layer are not divided by it; choose another"),
        ('--model.transformer.experts {"count":2,"active":1}', 2, "a feed-forward of the kind Experts has no plan"),
        ("", 3, "tensor_parallel_size is 2, but 3 processes are no multiple of it; choose another number"),
        ("--head_scores true", 2, "--head_scores looks at whole weights, which --trainer.strategy fsdp2 cuts"),
    ],
    ids=["heads", "experts", "processes", "head scores"],
)
def test_layers_that_cannot_be_cut(options: str, ranks: int, says: str, one: Path, server: Server) -> None:
    """One sentence, of one process."""
    more = ["--data.batch_size", "4", "--trainer.strategy", "fsdp2_tensor2"]
    ended = server.run(one, [*fit("odd"), *more, *options.split()], ranks=ranks)
    assert ended.code == 2
    said = " ".join(ended.printed.split())
    assert says in said and said.count("error: ") == 1 and "Rank " not in said


TENSOR = [
    "vision fit --data.root images --model.patch_size 4 --data.val_fraction 0.25 --data.augment.mixup 0.8",
    "protein pretrain --model.size null --data.files chains.fasta --data.context 24 --data.val_fraction 0.2",
    "text fit --data.table texts.csv --data.input input --data.target [label,value] --data.tokenizer bytes",
    "text pretrain --data.files text.txt --data.tokenizer bytes --data.context 16",
    "vision pretrain --data.root images --model.patch_size 4 --model.decoder.dim 16 --model.decoder.depth 1"
    " --model.decoder.heads 2",
    "vision fit --data.table images.csv --data.input input --data.target [label,value] --model.patch_size 4",
    "protein fit --data.table chains.csv --data.input input --data.target [label,value]",
]


@pytest.mark.parametrize(
    "line", [pytest.param(line, marks=[pytest.mark.slow] * (at > 0)) for at, line in enumerate(TENSOR)]
)  # fmt: skip
def test_layers_of_other_tasks_cut_over_two(line: str, tmp_path: Path, server: Server) -> None:
    """Images, proteins and tables come to the weights and figures of one process, too."""
    make_tables(tmp_path)
    make_text(tmp_path)
    make_proteins(tmp_path)
    options = [*line.split(), "--trainer.max_steps", "2", "--trainer.accelerator", "cpu", "--threads", "1"]
    options += ["--trainer.precision", "64-true", "--trainer.limit_val_batches", "1", "--data.batch_size", "4"]
    options += ["--model.ema", "null", "--trainer.gradient_clip_val", "1.0"]
    options += [f"--model.transformer.{size}" for size in ("dim=16", "depth=1", "heads=2")]
    forked(server, tmp_path, *options, "--run", "one")
    forked(server, tmp_path, *options, "--run", "two", "--trainer.strategy", "fsdp2_tensor2", ranks=2)
    theirs, ours = (load_file(tmp_path / run / "model" / "model.safetensors") for run in ("one", "two"))
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        torch.testing.assert_close(ours[key], tensor, rtol=0, atol=1e-12)
    before, after = (json.loads((tmp_path / run / "summary.json").read_text()) for run in ("one", "two"))
    assert after["val_loss"] == pytest.approx(before["val_loss"], rel=1e-6)


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(
            "protein pretrain --data.files chains.fasta --data.context 24 --data.val_fraction 0.2 --model.size tiny",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "vision pretrain --model.transformer.dim 16 --model.transformer.depth 1 --model.transformer.heads 2 "
            "--model.decoder.dim 16 --model.decoder.depth 1 --model.decoder.heads 2 --model.probe 100",
            marks=pytest.mark.slow,
        ),
        "text fit --data.pairs pairs.tsv --model.encoder.dim 16 --model.encoder.depth 1 --model.encoder.heads 2 "
        "--model.decoder.dim 16 --model.decoder.depth 1 --model.decoder.heads 2",
    ],
    ids=["contact head", "probe and picture", "decoding"],
)
def test_what_the_main_process_makes_of_cut_weights(words: str, one: Path, server: Server) -> None:
    """It works with weights that all put together, and comes to the figures of one process."""
    draw = random.Random(0)
    letters = ["".join(draw.choices("ACDEFGHIKLMNPQRSTVWY", k=30)) for _ in range(40)]
    (one / "chains.fasta").write_text("".join(f">p{i}\n{text}\n" for i, text in enumerate(letters)))
    (one / "pairs.tsv").write_text("".join(f"{text[:6]}\t{text[5::-1]}\n" for text in letters))
    task, verb, *options = words.split()
    line = [*options, "--trainer.max_steps", "2", "--trainer.accelerator", "cpu", "--trainer.precision", "64-true"]
    line += ["--threads", "1", "--trainer.limit_val_batches", "1"]
    runs = [f"{task}-one", f"{task}-cut"]
    forked(server, one, task, verb, "--run", runs[0], *line, "--data.batch_size", "4")
    two = ["--trainer.devices", "2", "--trainer.strategy", "fsdp2", "--data.batch_size", "2"]
    forked(server, one, task, verb, "--run", runs[1], *line, *two, ranks=2)
    theirs, ours = (load_file(one / run / "model" / "model.safetensors") for run in runs)
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        torch.testing.assert_close(ours[key], tensor, rtol=0, atol=1e-6)
    before, after = (json.loads((one / run / "summary.json").read_text()) for run in runs)
    found = [key for key in before if key.startswith(("val_long", "probe_", "decoded"))]
    assert found and all(after[key] == pytest.approx(before[key], abs=1e-6) for key in found)


@pytest.mark.slow
def test_lora_of_cut_weights(one: Path, server: Server) -> None:
    """Factors, merged weights and the adapter for PEFT are those of one process, also after going on; what is frozen
    stays as it is.
    """
    assert main(["convert", str(one / "one"), str(one / "start"), "--to", "hf"]) == 0
    start = ["--model.pretrained", "start", "--model.lora.rank", "3", "--model.ema", "0.5", "--data.context", "16"]
    line = ["--data.files", "text.txt", "--data.cache", ".", *start, "--trainer.accelerator", "cpu", "--threads", "1"]
    line += ["--trainer.max_steps", "3", "--trainer.limit_val_batches", "2"]
    two = ["--trainer.devices", "2", "--data.batch_size", "2", "--trainer.strategy", "fsdp2_sharded"]
    forked(server, one, "text", "fit", "--run", "lora", *line, "--data.batch_size", "4")
    forked(server, one, "text", "fit", "--run", "lora-cut", *line, *two, ranks=2)
    for more in (False, True):
        if more:
            forked(server, one, "text", "fit", "--run", "lora", *AGAIN)
            forked(server, one, "text", "fit", "--run", "lora-cut", *AGAIN, ranks=2)
        for file in ("model/model.safetensors", "adapter/adapter_model.safetensors"):
            ours, theirs = (load_file(one / run / file) for run in ("lora-cut", "lora"))
            assert ours.keys() == theirs.keys()
            for key, tensor in theirs.items():
                torch.testing.assert_close(ours[key], tensor, rtol=0, atol=1e-6)
    before, after = (load_file(one / run / "model" / "model.safetensors") for run in ("one", "lora-cut"))
    moved = [key for key, tensor in before.items() if not torch.equal(tensor, after[key])]
    assert moved and all(".attn." in key or ".ffn." in key for key in moved)


@pytest.mark.slow
def test_protein_contacts_train_in_two_processes(one: Path) -> None:
    """Without alignments, parameters for them have no part in the loss."""
    two = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--data.batch_size", "2", "--trainer.max_steps", "2"]
    small = ["--data.crop", "32", "--trainer.accelerator", "cpu", "--trainer.limit_val_batches", "1", "--threads", "1"]
    triune(one, "protein", "fit", "--run", "contacts", *two, *small)
    assert (one / "contacts" / "model" / "model.safetensors").is_file()

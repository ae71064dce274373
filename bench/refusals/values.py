"""Values of options that cannot be used, alone or with each other: numbers out of range, mixers, targets."""

from __future__ import annotations

from collections.abc import Iterator

from .made import Case, Content, folder, pipe

TEXT = "text fit --run run --data.files ok/ok.txt --data.tokenizer bytes --data.cache cache "
IMAGES = "vision fit --run run --data.root ok/img --data.cache cache "
CHAINS = "protein fit --run run "
MASKED = "protein pretrain --run run --data.files ok/many.fasta "
LAYERS = "--model.transformer.mixer "
ROWS: list[tuple[str, str, str, str]] = [
    # room, what, command, words
    ("mixers", "an unknown letter", TEXT + LAYERS + "AZ", "mixer"),
    ("mixers", "an unknown name", TEXT + LAYERS + "mamba3", "mixer"),
    ("mixers", "an empty pattern", TEXT + LAYERS + "''", "mixer"),
    ("mixers", "a list of none", TEXT + LAYERS + "[]", "mixer"),
    ("mixers", "a list of numbers", TEXT + LAYERS + "[1,2]", "mixer"),
    ("mixers", "a pattern in small letters", TEXT + LAYERS + "mma", "mixer"),
    (
        "mixers",
        "a list longer than the model",
        TEXT + LAYERS + "[attention,mamba2,gru] --model.transformer.depth 2",
        "mixer",
    ),
    ("mixers", "options of an unknown kind", TEXT + "--model.transformer.mixer_options '{mamba9: {}}'", "mamba9"),
    (
        "mixers",
        "an unknown option",
        TEXT + LAYERS + "mamba2 --model.transformer.mixer_options '{mamba2: {sate: 3}}'",
        "sate",
    ),
    (
        "mixers",
        "a negative option",
        TEXT + LAYERS + "mamba2 --model.transformer.mixer_options '{mamba2: {conv: -4}}'",
        "conv",
    ),
    (
        "mixers",
        "options of a kind that no layer has",
        TEXT + "--model.transformer.mixer_options '{gru: {conv: 4}}'",
        "gru",
    ),
    ("mixers", "a window without attention", TEXT + LAYERS + "gru --model.transformer.window 8", "window"),
    ("numbers", "a negative rate", TEXT + "--model.optimizer.lr -1", "lr"),
    ("numbers", "a rate of 0", TEXT + "--model.optimizer.lr 0", "lr"),
    ("numbers", "an endless rate", TEXT + "--model.optimizer.lr 1e400", "lr"),
    ("numbers", "a negative decay", TEXT + "--model.optimizer.weight_decay -0.1", "weight_decay"),
    ("numbers", "an average that forgets nothing", TEXT + "--model.ema 1", "ema"),
    ("numbers", "a dropout of 1", TEXT + "--model.transformer.dropout 1", "dropout"),
    (
        "numbers",
        "heads that do not divide",
        TEXT + "--model.transformer.dim 30 --model.transformer.heads 4",
        "heads|dim",
    ),
    ("numbers", "a context of 0", TEXT + "--data.context 0", "context"),
    ("numbers", "a batch of -1", TEXT + "--data.batch_size -1", "batch_size"),
    ("numbers", "a validation part of 1", TEXT + "--data.val_fraction 1", "val_fraction"),
    ("numbers", "a validation part of -0.1", IMAGES + "--data.val_fraction -0.1", "val_fraction"),
    ("numbers", "a list for a number", TEXT + "--trainer.max_steps '[1, 2]'", "max_steps"),
    ("numbers", "a mapping for a number", IMAGES + "--data.batch_size '{a: 1}'", "batch_size"),
    ("numbers", "10^18 layers", TEXT + "--model.transformer.depth 1000000000000000000", "depth"),
    ("numbers", "a seed of -1", TEXT + "--seed_everything -1", "seed"),
    ("numbers", "workers of -1", IMAGES + "--data.workers -1", "workers"),
    ("numbers", "more workers than processes", IMAGES + "--data.workers 100000", "workers"),
    ("numbers", "threads of 0", TEXT + "--threads 0", "threads"),
    ("numbers", "an image size of 0", IMAGES + "--data.image_size 0", "image_size"),
    ("numbers", "a patch larger than the image", IMAGES + "--model.patch_size 99", "patch_size|patch"),
    ("numbers", "mixup of -1", IMAGES + "--data.augment.mixup -1", "mixup"),
    ("numbers", "a chance of 2", IMAGES + "--data.augment.erasing 2", "erasing"),
    ("numbers", "a crop of 0 residues", CHAINS + "--data.crop 0", "crop"),
    ("numbers", "a crop of -5 residues", CHAINS + "--data.crop -5", "crop"),
    ("numbers", "a clipping of -1", TEXT + "--trainer.gradient_clip_val -1", "gradient_clip_val"),
    ("numbers", "no accumulation", TEXT + "--trainer.accumulate_grad_batches 0", "accumulate_grad_batches"),
    ("numbers", "a negative threshold", "protein contacts ok/ok.a3m --run ok/pair --top -1", "top"),
    ("numbers", "a temperature of -1", "text generate ok/lm --prompt a --temperature -1", "temperature"),
    ("numbers", "a nucleus of 2", "text generate ok/lm --prompt a --top-p 2", "top_p"),
    ("numbers", "a share of nan", "text generate ok/lm --prompt a --min-p nan", "min_p"),
    ("numbers", "an export of 0 pixels", "vision export ok/vit --torch-export o.pt2 --image-size 0", "image-size"),
    ("words", "no task", "txt fit", "did you mean 'text'"),
    ("words", "no verb", "text fti", "did you mean 'fit'"),
    ("words", "an option of another verb", "vision classify ok/a.png --run ok/vit --trainer.max_steps 3", "max_steps"),
    ("words", "an option twice with two values", "convert ok/lm out --to triune --to", "to"),
    ("words", "no value", "text fit --run", "--run"),
    ("words", "a format of nobody", "convert ok/lm out --to tensorflow", "to"),
    ("words", "LoRA without a checkpoint", TEXT + "--model.lora.rank 4", "pretrained"),
    ("words", "freezing without a checkpoint", TEXT + "--model.freeze.blocks 1", "freeze|pretrained"),
    ("words", "resume without a run", "text fit --resume true", "--run"),
    ("words", "resume of nothing", "text fit --run none --resume true", "none"),
    ("words", "a strategy of nobody", TEXT + "--trainer.strategy dpp", "strategy"),
    ("words", "a precision of nobody", TEXT + "--trainer.precision 12", "precision"),
    ("words", "an accelerator of nobody", TEXT + "--trainer.accelerator abacus", "accelerator"),
    ("words", "a GPU that is not there", TEXT + "--trainer.accelerator tpu", "cannot be made|accelerator"),
]
PLACES: list[tuple[str, str, str, dict[str, Content], str]] = [
    ("targets", "ONNX into a folder", "vision export ok/vit --onnx x", {"x": folder}, "folder"),
    ("targets", "ONNX over a file", "vision export ok/vit --onnx x.onnx", {"x.onnx": b"mine"}, "exists"),
    ("targets", "ONNX below a file", "vision export ok/vit --onnx x/y.onnx", {"x": b"mine"}, "no folder"),
    ("targets", "ONNX and torch.export", "vision export ok/vit --onnx x --torch-export y", {}, "not allowed"),
    ("targets", "a checkpoint below a file", "convert ok/lm x/y --to triune", {"x": b"mine"}, "no folder|file"),
    ("targets", "scores below a file", "protein dca ok/ok.a3m --force --out x/y", {"x": b"mine"}, "Not a directory"),
    ("targets", "a set below a file", "protein prepare x/y --arrays ok/chains.npz", {"x": b"mine"}, "folder|file"),
    ("targets", "a run below a file", "text fit --run x/y --data.files ok/ok.txt", {"x": b"mine"}, "Not a directory"),
    ("targets", "a cache that is a file", TEXT + "--data.cache x", {"x": b"mine"}, "x|cache"),
    (
        "targets",
        "a picture below a file",
        "vision classify ok/a.png --run ok/vit --attention x/y.png",
        {"x": b"m"},
        "folder",
    ),
    ("targets", "a picture of no format", "vision classify ok/a.png --run ok/vit --attention x.abc", {}, "abc|png"),
    ("runs", "a config that is a pipe", "text fit --run x --resume true", {"x/config.yaml": pipe}, "x"),
    (
        "runs",
        "a config of bytes",
        "text fit --run x --resume true",
        {"x/config.yaml": b"\xff\xfe\0"},
        "UTF-8|config.yaml",
    ),
    (
        "runs",
        "an empty config",
        "text fit --run x --resume true",
        {"x/config.yaml": b""},
        "empty|config.yaml|checkpoint",
    ),
    (
        "runs",
        "a run without checkpoints",
        "text validate x",
        {"x/config.yaml": b"# triune text fit\nseed_everything: 1\n"},
        "checkpoint",
    ),
    ("runs", "a file for a run", "text validate x", {"x": b"mine"}, "is a file"),
    (
        "runs",
        "a run of another verb",
        "protein fit --run x --resume true",
        {"x/config.yaml": b"# triune protein pretrain\na: 1\n"},
        "pretrain",
    ),
    (
        "runs",
        "a run of another task",
        "vision validate x",
        {"x/config.yaml": b"# triune text fit --data.files a\ndata:\n  files: [a]\n"},
        "text|files",
    ),
]


def cases() -> Iterator[Case]:
    """All of this room."""
    for room, about, command, words in ROWS:
        yield Case(room, about, command, {}, words)
    for room, about, command, given, words in PLACES:
        yield Case(room, about, command, given, words)

"""A command line that works for each verb of the command line, in a folder where `run.make_good` has made `ok`."""

from __future__ import annotations

from triune.cli import COMMANDS
from triune.lens.command import QUESTIONS
from triune.tasks import tasks

Words = tuple[str, ...]

FILES = "--data.files ok/ok.txt --data.tokenizer bytes --data.cache cache"
TEXTS = "--data.input text --data.target label"
IMAGES = "--data.input image --data.target label --data.cache cache"
CHAINS = "--data.input sequence --data.target label"
GOOD: dict[Words, str] = {
    ("text", "fit"): f"--run run {FILES}",
    ("text", "fit", "--data.pairs=ok/pairs.tsv"): "--run run",
    ("text", "fit", "--data.table=ok/texts.csv"): f"--run run {TEXTS}",
    ("text", "pretrain"): f"--run run {FILES}",
    ("text", "validate"): "ok/run-text",
    ("text", "validate", "ok/run-texts"): "",
    ("text", "test"): "ok/run-text --data.files ok/ok.txt",
    ("text", "test", "ok/run-texts"): "",
    ("text", "predict", "ok/run-texts"): "'a good day'",
    ("text", "check"): "ok/ok.txt --data.tokenizer bytes",
    ("text", "shard"): "ok/ok.txt shards --tokenizer bytes",
    ("text", "probe"): f"--model ok/lm --data.table ok/texts.csv {TEXTS} --cache cache",
    ("text", "generate"): "ok/lm --prompt a --max-tokens 2",
    ("text", "chat"): "ok/lm --prompt a --max-tokens 2",
    ("text", "serve"): "ok/lm --port 0",
    ("vision", "fit"): "--run run --data.root ok/img --data.cache cache",
    ("vision", "fit", "--data.table=ok/images.csv"): f"--run run {IMAGES}",
    ("vision", "pretrain"): "--run run --data.root ok/img --data.cache cache",
    ("vision", "validate"): "ok/run-vision",
    ("vision", "validate", "ok/run-images"): "",
    ("vision", "test"): "ok/run-vision --data.test_root ok/img",
    ("vision", "test", "ok/run-images"): "",
    ("vision", "predict", "ok/run-images"): "ok/a.png",
    ("vision", "shard"): "ok/img shards --cache cache",
    ("vision", "check"): "ok/img --cache cache",
    ("vision", "probe"): "--model ok/vit --data.root ok/img --data.cache cache",
    ("vision", "probe", "--data.table=ok/images.csv"): "--model ok/vit --data.input image --data.target label "
    "--cache cache",
    ("vision", "classify"): "ok/a.png --run ok/vit",
    ("vision", "export"): "ok/vit --torch-export out.pt2",
    ("protein", "fit"): "--run run",
    ("protein", "fit", "--data.table=ok/chains.csv"): f"--run run {CHAINS}",
    ("protein", "pretrain"): "--run run --data.files ok/many.fasta",
    ("protein", "shard"): "ok/many.fasta shards",
    ("protein", "validate"): "ok/run-protein",
    ("protein", "validate", "ok/run-chains"): "",
    ("protein", "test"): "ok/run-protein --data.folder ok/set",
    ("protein", "test", "ok/run-chains"): "",
    ("protein", "predict"): "ok/run-chains MKVLAAGIVGLLLAQWERTY",
    ("protein", "prepare"): "set --arrays ok/chains.npz --no-mmseqs --val 0.3",
    ("protein", "check"): "--data.table ok/chains.csv --data.input sequence --data.target label --neighbours",
    ("protein", "dca"): "ok/ok.a3m --force",
    ("protein", "contacts"): "ok/ok.a3m --run ok/pair --no-png",
    ("protein", "probe"): f"--model ok/esm --data.table ok/chains.csv {CHAINS} --cache cache",
    ("protein", "mutations"): "MKVLAAGIVGLLLAQWERTY --run ok/esm --no-png",
    ("check", "text"): f"{FILES} --data.context 16 --data.batch_size 2",
    ("plan", "text"): f"{FILES} --data.context 16 --data.batch_size 2",
    ("compare",): "ok/run-text ok/run-texts",
    ("embed",): "'a good day' --run ok/run-texts --out v.npz",
    ("nearest", "a"): "--index ok/vectors.npz",
    ("nearest", "--duplicates"): "--index ok/vectors.npz",
    ("nearest", "--labels=ok/texts.csv"): "--index ok/vectors.npz --target label --key name",
    ("evaluate",): "ok/run-texts --tasks ok/texts.csv",
    ("report",): "ok/run-text --out page.html",
    ("info",): "ok/lm",
    ("convert",): "ok/lm out --to triune",
    ("convert", "--to=gguf"): "ok/llama out.gguf",
    ("lens", "heads"): "ok/lm",
    ("lens", "ablate"): "ok/lm --controls 1 --top 1",
    ("lens", "patch"): "ok/lm abc abd",
    ("lens", "depth"): "ok/lm abc",
    ("lens", "attention"): "ok/lm abc",
    ("lens", "birth"): "--steps 1",
    ("recall",): "--steps 1 --mixer gru --pairs 2 --length 16",
    ("emergence",): "--widths 4,8 --budget 0.001",
    ("scaling",): "ok/runs.csv",
}
"""By the words that such a line begins with; those behind task and verb choose the classes that run it."""

WITHOUT: dict[Words, str] = {
    ("demo",): "trains for a minute, and has no option with a value but --run",
    ("text", "predict"): "of a run of `fit` without a table there is nothing to predict, which is one refusal",
    ("vision", "predict"): "the same",
}
"""Verbs that have no line, and why."""
FOREVER = (("text", "serve"),)
"""Verbs that end when they are told to."""


def missing() -> list[Words]:
    """The verbs, and the further classes of verbs that train (`Task.also`), that have no line."""
    found: list[Words] = [(name,) for name in COMMANDS if name not in ("lens", "check", "plan")]
    found += [(name, "text") for name in ("check", "plan")]
    found += [("lens", question) for question in (*QUESTIONS, "birth")]
    for name, task in tasks().items():
        found += [(name, verb) for verb in task.verbs]
    without = [words for words in found if not any(known[: len(words)] == words for known in (*GOOD, *WITHOUT))]
    for name, task in tasks().items():
        for option, verbs in task.also.items():
            for verb, more in verbs.items():
                if more.main or verb == "fit":
                    asked = [known for known in GOOD if known[:2] == (name, verb) and _asks(known, option)]
                    without += [] if asked else [(name, verb, f"--{option}")]
    return without


def _asks(words: Words, option: str) -> bool:
    """Whether a line chooses the classes of an option, by itself or by the run that it uses."""
    return any(word.startswith((f"--{option}=", "ok/run-")) for word in words[2:])

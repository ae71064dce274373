"""Bad values for every leaf option of every verb: one sentence and exit code 2, or a value that means something.

A sample runs here, without training. `python -m triune.bench.refusals.sweep` tries every option and value, for real.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from triune.bench.refusals.lines import GOOD, missing
from triune.bench.refusals.options import attempt, judge, leaves, line_of, pairs, parser_of
from triune.bench.refusals.run import make_good, make_runs
from triune.core.errors import UserError
from triune.core.options import Parser, number, whole

SAMPLE = 4
"""Values of each verb without --slow."""
SCORING = ("validate", "test")
"""Their options are those of `fit`, so that they are tried with --slow only."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where `ok` holds what the lines name."""
    place = tmp_path_factory.mktemp("good")
    make_good(place / "ok")
    return place


def test_every_verb_is_tried() -> None:
    assert missing() == []


@pytest.mark.parametrize(
    "words",
    [pytest.param(words, marks=pytest.mark.slow if words[1:2] and words[1] in SCORING else ()) for words in GOOD],
    ids=" ".join,
)
def test_bad_values_are_refused_in_one_sentence(
    words: tuple[str, ...], place: Path, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRIUNE_CACHE", str(tmp_path / "cache"))
    make_runs(place / "ok", [word.removeprefix("ok/") for word in line_of(words) if word.startswith("ok/run-")])
    found = pairs(words, place)
    stride = 1 if request.config.getoption("--slow") else max(1, len(found) // SAMPLE)
    faults = []
    for count, (option, value) in enumerate(found[list(GOOD).index(words) % stride :: stride]):
        here = tmp_path / str(count)
        here.mkdir()
        (here / "ok").symlink_to(place / "ok")
        code, sentence = attempt(words, option, value, here)
        if fault := judge(option, value, code, sentence):
            faults.append(f"{fault}: {option}={value!r}: {code} {sentence}")
    assert faults == []


def test_the_sweep_finds_options_of_both_kinds_of_parser(place: Path) -> None:
    assert dict(leaves(parser_of(("protein", "dca"), place)))["--top"] in ((int,), (int, float))
    options = dict(leaves(parser_of(("text", "fit"), place)))
    assert options["--model.optimizer.weight_decay"] == (float,)
    assert options["--data.batch_size"] == (int,)
    assert {"--trainer.max_steps", "--model.compile", "--threads"} <= options.keys()
    assert len(options) > 100


def _parser() -> Parser:
    parser = Parser("triune x")
    parser.add_argument("--top", type=whole(1, 9))
    parser.add_argument("--share", type=number(0, 1))
    parser.add_argument("--rows", type=int)
    parser.add_argument("--to", choices=("hf", "timm"))
    parser.add_argument("--out", type=Path)
    return parser


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("--top=0", "--top is 0, but must be a whole number from 1 to 9."),
        ("--top=1.5", "--top is 1.5, but must be a whole number from 1 to 9."),
        ("--share=nan", "--share is nan, but must be a number above 0 and at most 1."),
        ("--rows=x", "--rows is 'x', but must be a whole number."),
        ("--to=tim", "--to is 'tim' (did you mean 'timm'?), but must be hf or timm."),
        ("--out=", "--out is empty, but must have a value; `triune x --help` says which."),
        ("--ou=3", "Unknown option '--ou' (did you mean '--out'?); `triune x --help` lists all."),
        ("--top", "--top: expected one argument; `triune x --help` lists all."),
    ],
)
def test_mistakes_are_sentences(line: str, sentence: str) -> None:
    with pytest.raises(UserError) as error:
        _parser().parse_args([line])
    assert str(error.value) == sentence


def test_values_within_the_bounds_are_taken() -> None:
    found = _parser().parse_args(["--top", "9", "--share", "0.5", "--rows", "-1", "--to", "hf"])
    assert (found.top, found.share, found.rows, found.to) == (9, 0.5, -1, "hf")

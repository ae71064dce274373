"""The parity table, `docs/parity.md`: for each family, how far our outputs are from the original library's.

    pip install '.[test]' && python bench/parity.py

The models are those of the tests: made by the original library, small, every weight random, so that outputs are of
order one and every part matters. Each is saved by its library, read by triune, compared, written back, and read again
by its library: missing or unexpected names end the command, and weights count as equal only if every bit is.
"""

from __future__ import annotations

import importlib
import json
import os
import tempfile
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from common import commit

ROOT = Path(__file__).parents[1]
CASES = {
    "vision": "tests/vision/checkpoints/test_pretrained.py",
    "protein": "tests/protein/language/checkpoints/test_pretrained.py",
    **{f"text {name}": f"tests/text/checkpoints/test_{name}.py" for name in (
        "pretrained", "hybrids", "more_families", "encoders",
    )},
    "relatives": "tests/vision/checkpoints/test_hf_relatives.py",
}  # fmt: skip


class Row(NamedTuple):
    """One line of the table."""

    family: str
    library: str
    case: str
    difference: float
    identical: bool


def cases_of(task: str) -> ModuleType:
    """The test module of a task, for its models."""
    return importlib.import_module("triune." + CASES[task].removesuffix(".py").replace("/", "."))


def identical(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def there_and_back(room: Any, theirs: Path, back: Path, library: str) -> tuple[Any, float]:
    """Reads, compares with the original library on the original's own files, and writes back."""
    found = room.load(str(theirs))
    difference = room.parity(found, theirs, library)
    room.export(found, back, library)
    return found, max(difference, room.parity(found, back, library))


def text_cases() -> Iterator[tuple[ModuleType, str, str, dict[str, Any]]]:
    """Each small model of the tests of texts: its module, name, class and options."""
    for tests in (cases_of(task) for task in CASES if task.startswith("text")):
        yield from ((tests, name, kind, options) for name, (kind, options) in tests.CASES.items())


def text(folder: Path) -> Iterator[Row]:
    from triune.text.checkpoints import pretrained as room

    for tests, name, kind, options in text_cases():
        if kind == "BertForPreTraining":  # has a second head, which is read past and does not come back
            continue
        original = tests.original(kind, options)
        theirs, back = folder / name / "theirs", folder / name / "back"
        original.save_pretrained(theirs)
        found, difference = there_and_back(room, theirs, back, "hf")
        again, said = type(original).from_pretrained(back, output_loading_info=True)
        assert not said["missing_keys"] and not said["unexpected_keys"], (name, said)
        yield Row(
            found.family.name, "transformers", name, difference, identical(original.state_dict(), again.state_dict())
        )


def vision(folder: Path) -> Iterator[Row]:
    import timm
    import transformers
    from timm.models import save_for_hf

    from triune.vision.checkpoints import pretrained as room

    tests = cases_of("vision")
    for name, options in tests.ENTRIES.items():
        original = tests.shaken(timm.create_model(name, **({"num_classes": 5, "img_size": 32} | tests.SMALL | options)))
        theirs, back = folder / name / "theirs", folder / name / "back"
        save_for_hf(original, str(theirs), safe_serialization=True)
        found, difference = there_and_back(room, theirs, back, "timm")
        again = timm.create_model(f"local-dir:{back}", pretrained=True)
        same = identical(original.state_dict(), again.state_dict())
        yield Row(found.family.name, "timm", name, difference, same)
    relatives = cases_of("relatives")
    models = [*((name, tests.hf_model) for name in tests.HF), *((name, relatives.relative) for name in relatives.CASES)]
    for name, model in models:
        original = model(transformers, name)
        theirs, back = folder / name / "theirs", folder / name / "back"
        original.save_pretrained(theirs)
        found, difference = there_and_back(room, theirs, back, "hf")
        again, said = type(original).from_pretrained(back, output_loading_info=True)
        assert not said["missing_keys"] and not said["unexpected_keys"], (name, said)
        # Of the biases of two heads only the mean matters, which both become.
        mean = ("cls_classifier.bias", "distillation_classifier.bias") if "teacher" in name else ()
        before, after = ({k: v for k, v in m.state_dict().items() if k not in mean} for m in (original, again))
        yield Row(found.family.name, "transformers", name, difference, identical(before, after))


def protein(folder: Path) -> Iterator[Row]:
    import esm
    import transformers

    from triune.protein.language.checkpoints import pretrained as room

    tests = cases_of("protein")
    for kind in ("ESM-2", "ESM-1b"):
        original = tests.fair_model(esm, kind, (3, 40, 4))
        (folder / kind).mkdir()
        theirs, back = tests.released(original, folder / kind), folder / kind / "back"
        found, difference = there_and_back(room, theirs, back, "fair-esm")
        again, _ = esm.pretrained.load_model_and_alphabet_local(
            str(next(p for p in back.glob("*.pt") if "regression" not in p.name))
        )
        same = identical(original.state_dict(), again.state_dict())
        yield Row(found.family.name, "fair-esm", kind, difference, same)
    for kind in ("rotary", "absolute"):
        shape = {"hidden_size": 40, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 160}
        more = {"emb_layer_norm_before": kind == "absolute", "token_dropout": True}
        original = tests.hf_model(transformers, position_embedding_type=kind, **shape, **more)
        theirs, back = folder / kind / "theirs", folder / kind / "back"
        original.save_pretrained(theirs)
        found, difference = there_and_back(room, theirs, back, "hf")
        again, said = type(original).from_pretrained(back, output_loading_info=True)
        assert not said["missing_keys"] and not said["unexpected_keys"], (kind, said)
        same = identical(original.state_dict(), again.state_dict())
        yield Row(found.family.name, "transformers", kind, difference, same)


def page(rows: list[Row]) -> str:
    """The Markdown of `docs/parity.md`."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "timm", "fair-esm"))
    lines = [
        "# Parity with the original libraries",
        "",
        f"Made by `python bench/parity.py` at commit {commit()} with {packages}; float32 on a CPU. Each row is a "
        "small model of the original library with random weights: the largest difference between its outputs and ours "
        "(relative to their root mean square where that is above one), on its own files and on those that triune "
        "wrote, and whether the weights are bit-identical after the way through "
        "triune and back into the library (no name missing, none unexpected).",
        "",
        "| family | library | case | largest difference | round trip |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        same = "bit-identical" if row.identical else "not identical"
        lines.append(f"| {row.family} | {row.library} | {row.case} | {row.difference:.1e} | {same} |")
    families = {(row.family, row.library) for row in rows}
    worst = max(row.difference for row in rows)
    lines += ["", f"{len(rows)} models of {len(families)} families; the largest difference is {worst:.1e}.", ""]
    return "\n".join([*lines, *random_part()])


def random_part() -> list[str]:
    """What `parity_random.py` and `parity_random_vision.py` found when they were run last."""
    lines = [
        "## Random configurations",
        "",
        "Options are drawn at random, every weight too; compared are the source in its own library, ours, and what "
        "was written, in that library again. A refusal is one sentence.",
        "",
        "| command | commit | configurations | classes | wrong | refused | largest difference |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in ("parity_random", "parity_random_vision"):
        found = json.loads((ROOT / "bench" / "results" / f"{name}.json").read_text())
        classes = len({row["class"] for row in found["rows"]})
        lines.append(
            f"| `{found['command']}` | {found['commit']} | {found['configurations']} | {classes} | {found['wrong']} | "
            f"{found['refused']} | {found['largest']:.1e} |"
        )
    text = json.loads((ROOT / "bench" / "results" / "parity_random.json").read_text())
    return [
        *lines, "",
        f"Text models agree to {text['float64']:.1e} in float64. The float32 outputs of {text['ill_conditioned']} of "
        "them differ by more than 2.5e-05, because the random model multiplies rounding: ours are then at most four "
        "times as far from those of float64 as the library's own.", "",
    ]  # fmt: skip


def main() -> None:
    warnings.filterwarnings("ignore")
    # fair-esm cannot read its own files otherwise since PyTorch 2.6; these here we have just written.
    os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"
    torch.manual_seed(0)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary:
        for task in (text, vision, protein):
            folder = Path(temporary) / task.__name__
            folder.mkdir()
            for row in task(folder):
                rows.append(row)
                print(
                    f"{row.family:32} {row.library:14} {row.case:36} {row.difference:.1e} {row.identical}", flush=True
                )
    (ROOT / "docs" / "parity.md").write_text(page(rows))
    print("Written: docs/parity.md")


if __name__ == "__main__":
    main()

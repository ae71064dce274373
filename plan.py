"""`triune plan`: memory, communication and time of a training on devices that are not here, by formulas."""

from __future__ import annotations

from .check import trained_by
from .core.errors import UserError

USAGE = """\
usage: triune plan [TASK [VERB]] [RECIPE | FILE.yaml | RUN] [options of `triune TASK fit`] [--devices 8xH100] [--link G]

Says what a training takes on each of some devices, with the formula beside each figure: memory with and without
checkpointing, the largest batch, what is sent at a step, and the time. Nothing is trained, and no weights are made.

  --devices  a number and a device, such as H100, 8xA100, 4x8xH100 (four machines), or 2xcpu (processes on this
             machine, whose rates are measured; the default is cpu)
  --link     gigabytes per second that a device sends to the slowest of the others, in the place of the data sheet's
  --trainer.strategy ddp | fsdp2 and --trainer.precision count as they would in the training

examples
  triune plan shakespeare-char-cpu --data.files input.txt
  triune plan text --data.files corpus.txt --model.transformer.dim 2048 --model.transformer.depth 24 \\
      --devices 8xH100 --trainer.strategy fsdp2"""


def main(args: list[str]) -> int:
    """Runs `triune plan` and returns its exit code."""
    if not args or any(word in ("-h", "--help") for word in args):
        print(USAGE)
        return 0
    own, words = _own(args)
    kind, words = trained_by(words, "plan")
    from .core.training.run import plan
    from .core.training.run.devices import parse
    from .core.training.run.step import look

    devices = parse(own.get("devices", "cpu"), _link(own))
    step, strategy, precision = look(kind, words, devices)
    found = plan.plan(step, devices, strategy, devices.rates(precision))
    print("\n".join(plan.lines(found, step, devices, strategy, precision)))
    return 0


def _own(args: list[str]) -> tuple[dict[str, str], list[str]]:
    """The options of this command, and the words that are left."""
    found: dict[str, str] = {}
    left: list[str] = []
    words = iter(args)
    for word in words:
        name, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or name not in ("devices", "link"):
            left.append(word)
            continue
        given = value if equals else next(words, "")
        if not given or given.startswith("--"):
            raise UserError(f"--{name} needs a value; `triune plan --help` says which.")
        found[name] = given
    return found, left


def _link(own: dict[str, str]) -> float | None:
    if "link" not in own:
        return None
    try:
        link = float(own["link"])
    except ValueError:
        link = 0.0
    if not 0 < link < 1e6:
        raise UserError(f"--link is {own['link']}, but must be a number of gigabytes per second above 0.")
    return link

"""`python -m triune.bench.refusals [ROOM]`: runs the cases and prints those that fail; all of them: writes the table.

The table is docs/refusals.md.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from pathlib import Path

from . import all_cases
from .run import LONGEST, make_good, make_runs, run

HEAD = """\
# Inputs that are refused

Written by `python -m triune.bench.refusals`, which runs each command in a folder of its own. Each of the {count} ends
with exit code 2 and this sentence, and leaves every file as it was; tests/robust/test_refusals.py runs a sample.

| where | what | sentence |
| --- | --- | --- |
"""


def main() -> None:
    wanted, lines, failed = (sys.argv[1:] or [""])[0], [], 0
    with tempfile.TemporaryDirectory() as name:
        os.environ["TRIUNE_CACHE"] = f"{name}/cache"
        make_good(Path(name, "good"))
        make_runs(Path(name, "good"))
        for number, case in enumerate(case for case in all_cases() if wanted in case.room):
            place = Path(name, str(number))
            place.mkdir()
            (place / "ok").symlink_to(Path(name, "good"))
            code, sentence = run(case, place)
            if code != 2 or len(sentence) > LONGEST or not re.search(case.words, sentence, re.IGNORECASE):
                failed += 1
                print(f"{case.room} | {case.about} | {case.command} | {code} {sentence}", flush=True)
            cell = sentence.removeprefix("error: ").replace("|", "\\|")
            lines.append(f"| {case.room} | {case.about} | {cell} |\n")
    if not wanted and not failed:
        target = Path(__file__).resolve().parents[2] / "docs" / "refusals.md"
        target.write_text(HEAD.format(count=len(lines)) + "".join(lines))
    print(f"{len(lines)} cases, {failed} failed")


if __name__ == "__main__":
    main()

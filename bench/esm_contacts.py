"""Contacts from ESM-2's attention: the streaming head on fused attention against Hugging Face's eager path.

    python bench/esm_contacts.py                               # the 150M shape, 512 residues
    python bench/esm_contacts.py --size 35M --residues 256

Random weights, the same on both sides; the contact probabilities are compared before anything is timed. The regression
is dense (every head counts) or sparse as an L1 fit makes it (22 % of the heads count: 143 of 649 in a published one).
Hugging Face's `predict_contacts` needs `attn_implementation="eager"`: under its default it fails.

Memory is measured in a process of its own for each case: the model is built and run once on 16 residues, then the peak
of the resident set is reset (`/proc/self/clear_refs`), and the peak during one prediction (`VmHWM`) less the resident
set before it is what the prediction takes beyond weights and libraries. glibc is told to give freed blocks back at
once, so that nothing that the building left behind serves the prediction. PyTorch's own count of live bytes (its
profiler's allocation events) stands beside it. Time is the median of interleaved runs in one process, in seconds of
processor time with one thread.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import record, spread, table

from triune.protein.language.checkpoints.hf import weights
from triune.protein.language.contact_head import ContactHead
from triune.protein.language.model import SIZES, SequenceConfig, SequenceModel, esm_transformer

SPARSE = 0.22
CASES = ("Hugging Face eager", "triune, dense", "triune, sparse")


def tokens(residues: int) -> torch.Tensor:
    inner = torch.randint(4, 24, (1, residues), generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.pad(torch.nn.functional.pad(inner, (1, 0), value=0), (0, 1), value=2)


def ours(size: str) -> SequenceModel:
    """Random weights, with attention as uneven as that of a trained model."""
    torch.manual_seed(0)
    model = SequenceModel(SequenceConfig(esm_transformer(size))).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("attn.q.weight", "attn.k.weight")):
                parameter.mul_(4)
    return model


def head(size: str, dense: bool) -> ContactHead:
    made = ContactHead(SIZES[size][0], SIZES[size][2])
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(made.weight.shape, generator=generator)
    kept = torch.rand(made.weight.shape, generator=generator) < (1.0 if dense else SPARSE)
    with torch.no_grad():
        made.weight.copy_(weight * kept)
        made.bias.fill_(-3.0)
    return made


def theirs(model: SequenceModel, contacts: ContactHead) -> Any:
    import transformers

    from triune.protein.language.checkpoints.esm import contact_tensors
    from triune.protein.language.checkpoints.hf import to_theirs

    settings = {k: v for k, v in to_theirs(model.config).items() if k not in ("architectures", "dtype", "torch_dtype")}
    config = transformers.EsmConfig(**settings, attn_implementation="eager")
    with torch.device("meta"):
        built = transformers.EsmForMaskedLM(config)
    state = weights(model.config).to_theirs(model)
    state = {name: tensor for name, tensor in state.items() if "inv_freq" not in name}
    state |= {f"esm.{name}": tensor for name, tensor in contact_tensors(model, contacts).items()}
    built.load_state_dict(state, strict=False, assign=True)
    built.esm.embeddings.position_ids = torch.arange(config.max_position_embeddings)[None]
    built.esm.rotary_embeddings.inv_freq = built.esm.rotary_embeddings.compute_default_rope_parameters(config)[0]
    built.lm_head.decoder.weight = built.esm.embeddings.word_embeddings.weight
    return built.eval()


def predictor(case: str, size: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function from tokens to contact probabilities `[1, residues, residues]`."""
    model, contacts = ours(size), head(size, "sparse" not in case)
    if case.startswith("triune"):
        return lambda ids: contacts(model, ids).sigmoid()
    built = theirs(model, contacts)
    return lambda ids: built.predict_contacts(ids, torch.ones_like(ids))


def resident(field: str) -> int:
    found = re.search(rf"^{field}:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    assert found
    return int(found[1]) << 10


def live_peak(run: Callable[[], object]) -> int:
    """Largest number of bytes that PyTorch holds above the start, from the allocations its profiler sees."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
        run()
    live = peak = 0
    events = [e for e in prof.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


@torch.no_grad()
def memory_of(case: str, size: str, residues: int) -> dict[str, float]:
    """In a process of its own: peak of one prediction beyond what was resident before it, in MB."""
    torch.set_num_threads(1)
    predict, ids = predictor(case, size), tokens(residues)
    predict(tokens(16))
    gc.collect()
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    predict(ids)
    peak = resident("VmHWM") - before
    return {"resident peak MB": peak / 1e6, "live peak MB": live_peak(lambda: predict(ids)) / 1e6}


@torch.no_grad()
def seconds_of(size: str, residues: int, rounds: int) -> dict[str, list[float]]:
    torch.set_num_threads(1)
    ids, predict = tokens(residues), {case: predictor(case, size) for case in CASES}
    dense = predict[CASES[1]](ids)
    difference = float((predict[CASES[0]](ids) - dense).abs().max())
    print(f"largest difference of the contact probabilities (dense): {difference:.1e}")
    assert difference < 1e-4
    assert float(dense.std()) > 0.01
    predict[CASES[2]](ids)
    seconds: dict[str, list[float]] = {case: [] for case in CASES}
    for turn in range(rounds):
        for case in CASES if turn % 2 == 0 else reversed(CASES):
            start = time.process_time()
            predict[case](ids)
            seconds[case].append(time.process_time() - start)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", default="150M", choices=list(SIZES))
    parser.add_argument("--residues", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory-of", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--no-record", action="store_true")
    args = parser.parse_args()
    if args.memory_of:
        print(json.dumps(memory_of(args.memory_of, args.size, args.residues)))
        return
    rows = []
    seconds = seconds_of(args.size, args.residues, args.rounds)
    for case in CASES:
        command = [sys.executable, __file__, "--size", args.size, "--residues", str(args.residues), "--memory-of", case]
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "MALLOC_MMAP_THRESHOLD_": "65536",
            "MALLOC_TRIM_THRESHOLD_": "0",
        }
        out = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
        rows.append(
            {
                "case": case,
                **json.loads(out.splitlines()[-1]),
                **{f"s {k}": v for k, v in spread(seconds[case]).items()},
            }
        )
    for row in rows:
        for key, name in (("resident peak MB", "resident"), ("live peak MB", "live"), ("s median", "time")):
            row[f"{name}: Hugging Face / this"] = rows[0][key] / row[key]
    print(table(rows))
    if not args.no_record:
        record("esm_contacts", rows, size=args.size, residues=args.residues)


if __name__ == "__main__":
    main()

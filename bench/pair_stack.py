"""A training step of the pair stack against a straightforward implementation of the same algorithms: time and memory.

    python bench/pair_stack.py                         # N = 128 and 256, one Evoformer-sized pair block
    python bench/pair_stack.py --keep-memory           # both with the allocator that `triune protein fit` sets
    python bench/pair_stack.py --residues 128 --device cuda --dtype bfloat16 --blocks 4

The reference below is what one writes from the supplement (Jumper et al. 2021, Algorithms 11-15): separate projections,
`einsum`, attention with all scores, mask and pair bias added as separate tensors. Both compute the same function with
the same parameters (checked before anything is timed), in training mode with dropout. Memory is the peak of what a step
allocates above parameters and input: counted by PyTorch's allocator on CUDA, and by its profiler on a CPU. Runs are
interleaved and the median is reported; with one CPU thread time is processor time, so that other processes disturb
less.

On Linux, freed memory goes back to the system by default and every large tensor costs page faults again, which slows
the one that stores more; `--keep-memory` lets both keep it, as training by this package does.

Boltz (MIT) is measured too where it is importable; its pair block has the same five updates, with a gated transition
and no biases. Nothing but its layers is needed:

    pip install --no-deps --target peer boltz einops && PYTHONPATH=peer python bench/pair_stack.py
"""

from __future__ import annotations

import argparse
import copy
import importlib.metadata
import importlib.util
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from common import record
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from triune.core.training.run import machine
from triune.protein.pair.blocks import PairBlock
from triune.protein.pair.config import PairConfig
from triune.protein.pair.model import _CPU_CHUNK, _GPU_CHUNK


class StraightMultiplication(nn.Module):
    """Algorithms 11 and 12 as written."""

    def __init__(self, dim: int, hidden: int, outgoing: bool) -> None:
        super().__init__()
        self.outgoing = outgoing
        self.norm, self.product_norm = nn.LayerNorm(dim), nn.LayerNorm(hidden)
        self.a, self.b, self.a_gate, self.b_gate = (nn.Linear(dim, hidden) for _ in range(4))
        self.gate, self.out = nn.Linear(dim, dim), nn.Linear(hidden, dim)

    def forward(self, z: Tensor, mask: Tensor) -> Tensor:
        x = self.norm(z)
        a = torch.sigmoid(self.a_gate(x)) * self.a(x) * mask[..., None]
        b = torch.sigmoid(self.b_gate(x)) * self.b(x) * mask[..., None]
        product = torch.einsum("bikc,bjkc->bijc" if self.outgoing else "bkic,bkjc->bijc", a, b)
        return torch.sigmoid(self.gate(x)) * self.out(self.product_norm(product))


class StraightAttention(nn.Module):
    """Algorithms 13 and 14 as written; the scores are `[batch, rows, heads, residues, residues]`."""

    def __init__(self, dim: int, heads: int, head_dim: int, starting: bool) -> None:
        super().__init__()
        self.heads, self.starting = heads, starting
        self.norm = nn.LayerNorm(dim)
        self.bias = nn.Linear(dim, heads, bias=False)
        self.q, self.k, self.v = (nn.Linear(dim, heads * head_dim, bias=False) for _ in range(3))
        self.gate, self.out = nn.Linear(dim, heads * head_dim), nn.Linear(heads * head_dim, dim)

    def forward(self, z: Tensor, mask: Tensor) -> Tensor:
        if not self.starting:
            z, mask = z.transpose(1, 2), mask.transpose(1, 2)
        x = self.norm(z)
        q, k, v = (lin(x).unflatten(-1, (self.heads, -1)).transpose(2, 3) for lin in (self.q, self.k, self.v))
        scores = (q * q.shape[-1] ** -0.5) @ k.mT
        scores = scores + 1e9 * (mask.to(scores.dtype) - 1)[:, :, None, None, :]
        scores = scores + self.bias(x).permute(0, 3, 1, 2)[:, None]
        heads = (scores.softmax(-1) @ v).transpose(2, 3).flatten(3)
        update = self.out(torch.sigmoid(self.gate(x)) * heads)
        return update if self.starting else update.transpose(1, 2)


class StraightBlock(nn.Module):
    """The pair half of Algorithm 6."""

    def __init__(self, config: PairConfig) -> None:
        super().__init__()
        dim = config.dim
        self.multiplications = nn.ModuleList(StraightMultiplication(dim, config.triangle_dim, o) for o in (True, False))
        self.attentions = nn.ModuleList(
            StraightAttention(dim, config.triangle_heads, config.head_dim, s) for s in (True, False)
        )
        self.norm = nn.LayerNorm(dim)
        self.up, self.down = nn.Linear(dim, config.transition * dim), nn.Linear(config.transition * dim, dim)
        self.rate = config.dropout_pair

    def drop(self, x: Tensor, axis: int) -> Tensor:
        shape = [1 if i == axis else size for i, size in enumerate(x.shape)]
        return x * F.dropout(x.new_ones(shape), self.rate, self.training)

    def forward(self, z: Tensor, mask: Tensor) -> Tensor:
        pair_mask = mask[:, :, None] & mask[:, None, :]
        for multiplication in self.multiplications:
            z = z + self.drop(multiplication(z, pair_mask), 1)
        for attention in self.attentions:
            z = z + self.drop(attention(z, pair_mask), 1 if attention.starting else 2)
        return z + self.down(F.relu(self.up(self.norm(z))))


def copy_weights(straight: StraightBlock, block: PairBlock) -> None:
    """Gives the reference the parameters of the block."""
    with torch.no_grad():
        for theirs, ours in zip(straight.multiplications, block.multiplications):
            for kind in ("weight", "bias"):
                parts = getattr(ours.project, kind).chunk(4)
                for name, part in zip(("a", "b", "a_gate", "b_gate"), parts):
                    getattr(getattr(theirs, name), kind).copy_(part)
            for name in ("norm", "product_norm", "gate", "out"):
                getattr(theirs, name).load_state_dict(getattr(ours, name).state_dict())
        for theirs, ours in zip(straight.attentions, block.attentions):
            for name in ("norm", "bias"):
                getattr(theirs, name).load_state_dict(getattr(ours, name).state_dict())
            for name in ("q", "k", "v", "gate", "out"):
                getattr(theirs, name).load_state_dict(getattr(ours.attention, name).state_dict())
        for name in ("norm", "up", "down"):
            getattr(straight, name).load_state_dict(getattr(block.transition, name).state_dict())


class Peer(nn.Module):
    """Boltz's pair block of the same widths, without its optional kernels."""

    def __init__(self, config: PairConfig) -> None:
        super().__init__()
        from boltz.model.layers.pairformer import PairformerNoSeqLayer

        self.layer = PairformerNoSeqLayer(config.dim, config.dropout_pair, config.head_dim, config.triangle_heads)

    def forward(self, z: Tensor, mask: Tensor) -> Tensor:
        return self.layer(z, (mask[:, :, None] & mask[:, None, :]).to(z.dtype))


class InChunks(nn.Module):
    """Our block as `PairConfig.checkpoint = "update"` runs it."""

    def __init__(self, block: PairBlock, chunk: int) -> None:
        super().__init__()
        self.block, self.chunk = block, chunk

    def forward(self, z: Tensor, mask: Tensor) -> Tensor:
        return self.block(z, mask, self.chunk)


def cpu_peak(run: Callable[[], object]) -> int:
    """Largest number of bytes alive above the start, from the allocations the profiler sees."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
        run()
    live = peak = 0
    events = [e for e in prof.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def cuda_peak(run: Callable[[], object]) -> int:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def training_step(
    blocks: nn.ModuleList, z: Tensor, mask: Tensor, checkpointed: bool, dtype: torch.dtype
) -> Callable[[], Tensor]:
    def step() -> Tensor:
        for parameter in blocks.parameters():
            parameter.grad = None
        x = z.detach().requires_grad_()
        with torch.autocast(z.device.type, dtype, enabled=dtype != torch.float32):
            for block in blocks:
                x = checkpoint(block, x, mask, use_reentrant=False) if checkpointed else block(x, mask)
        loss = x.float().square().mean()
        loss.backward()
        return loss.detach()

    return step


def measure(steps: dict[str, Callable[[], Tensor]], repeats: int, cuda: bool) -> dict[str, dict[str, float]]:
    """Median seconds and peak bytes of each, interleaved."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step()
    for _ in range(repeats):
        for name, step in steps.items():
            if cuda:
                torch.cuda.synchronize()
            clock = time.process_time if not cuda and torch.get_num_threads() == 1 else time.perf_counter
            start = clock()
            step()
            if cuda:
                torch.cuda.synchronize()
            seconds[name].append(clock() - start)
    peak = cuda_peak if cuda else cpu_peak
    return {
        name: {
            "seconds": statistics.median(seconds[name]),
            "low": min(seconds[name]),
            "high": max(seconds[name]),
            "megabytes": peak(step) / 1e6,
        }
        for name, step in steps.items()
    }


def compare(residues: int, args: argparse.Namespace) -> dict[str, dict[str, float]]:
    torch.manual_seed(0)
    config = PairConfig.preset("evoformer")
    dtype = getattr(torch, args.dtype)
    ours = nn.ModuleList(PairBlock(config) for _ in range(args.blocks)).to(args.device)
    for parameter in ours.parameters():
        nn.init.normal_(parameter, std=0.05)
    straight = nn.ModuleList(StraightBlock(config) for _ in range(args.blocks)).to(args.device)
    for a, b in zip(straight, ours):
        copy_weights(a, b)
    z = torch.randn(1, residues, residues, config.dim, device=args.device)
    mask = torch.arange(residues, device=args.device)[None] < residues - 7
    check_equal(straight, ours, z, mask)
    steps = {
        "straightforward": training_step(straight, z, mask, False, dtype),
        "triune": training_step(ours, z, mask, False, dtype),
    }
    chunk = max(1, (_GPU_CHUNK if args.device == "cuda" else _CPU_CHUNK) // z[:, 0].numel())
    chunked = nn.ModuleList(InChunks(block, chunk) for block in ours)
    steps["triune, checkpoint update"] = training_step(chunked, z, mask, False, dtype)
    if args.blocks > 1:
        steps["triune, checkpoint block"] = training_step(chunked, z, mask, True, dtype)
        steps["straightforward, checkpoint block"] = training_step(straight, z, mask, True, dtype)
    if importlib.util.find_spec("boltz"):
        peer = nn.ModuleList(Peer(config) for _ in range(args.blocks)).to(args.device)
        steps["boltz"] = training_step(peer, z, mask, False, dtype)
    if args.compile:
        compiled = copy.deepcopy(ours)
        for block in compiled:
            block.compile()
        steps["triune, compiled"] = training_step(compiled, z, mask, False, dtype)
    return measure(steps, args.repeats, args.device == "cuda")


def check_equal(straight: nn.ModuleList, ours: nn.ModuleList, z: Tensor, mask: Tensor) -> None:
    """Both are the same function on the real pairs (float32)."""
    with torch.no_grad():
        a, b = straight[0].eval()(z, mask), ours[0].eval()(z, mask)
    real = mask[0]
    error = (a - b)[0][real][:, real].abs().max().item()
    assert error < 1e-3, f"the two implementations differ by {error}"
    straight.train(), ours.train()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--residues", type=int, nargs="+", default=[128, 256])
    parser.add_argument("--blocks", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--keep-memory", action="store_true", help="let freed memory stay with the process (Linux)")
    args = parser.parse_args()
    if args.keep_memory:
        machine.keep_memory()
    rows = [row for residues in args.residues for row in rows_of(residues, args)]
    name = f"pair_stack_{args.device}" + "_keep_memory" * args.keep_memory + "_compiled" * args.compile
    peer = {"boltz": importlib.metadata.version("boltz")} if importlib.util.find_spec("boltz") else {}
    record(name, rows, dtype=args.dtype, blocks=args.blocks, threads=torch.get_num_threads(), **peer)


def rows_of(residues: int, args: argparse.Namespace) -> list[dict[str, object]]:
    """Prints one size and returns its rows."""
    found = compare(residues, args)
    base = found["straightforward"]
    print(f"N = {residues}, {args.blocks} block(s), {args.device}, {args.dtype}, {torch.get_num_threads()} threads")
    rows = []
    for name, row in found.items():
        faster, memory = base["seconds"] / row["seconds"], row["megabytes"] / base["megabytes"]
        times = f"{row['seconds'] * 1e3:9.1f} ms ({row['low'] * 1e3:.0f} to {row['high'] * 1e3:.0f})"
        print(f"  {name:32s} {times} {row['megabytes']:9.0f} MB   {faster:5.2f}x faster, {memory:5.2f} of the memory")
        rows.append({"residues": residues, "name": name, **row, "times_faster": faster, "share_of_memory": memory})
    return rows


if __name__ == "__main__":
    main()

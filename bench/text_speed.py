"""Tokens per second of a training step: triune, Hugging Face GPT-2 and x-transformers, same sizes, same batch, same
run.

    python bench/text_speed.py                    nanoGPT's small architecture (4 x 128) on this machine
    python bench/text_speed.py --size 124M --compile --bf16 --batch 16 --context 1024     GPT-2 small, on a GPU

All have nanoGPT's exact GELU, learned positions and a tied head, and are trained by the same fused AdamW; a step is
forward, cross-entropy, backward and update. The models take turns. On a GPU the share of the measured matrix-product
rate is reported as well (8192³ in bfloat16).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from common import interleaved, record, spread, table

SIZES = {"nano": (4, 128, 4), "124M": (12, 768, 12)}


def ours(
    depth: int, dim: int, heads: int, context: int, vocab: int, compiled: bool
) -> tuple[torch.nn.Module, Callable]:
    from triune.core import TransformerConfig
    from triune.text.model import LanguageModel, LanguageModelConfig

    transformer = TransformerConfig(
        dim=dim, depth=depth, heads=heads, context=context, causal=True, position="learned", ffn="gelu"
    )
    model = LanguageModel(LanguageModelConfig(vocab, transformer))
    if compiled:
        for block in model.transformer.blocks:
            block.compile()

    def loss(tokens, targets):
        total, count = model.loss(tokens, targets)
        return total / count

    return model, loss


def hugging_face(depth, dim, heads, context, vocab, compiled):
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=vocab,
            n_positions=context,
            n_embd=dim,
            n_layer=depth,
            n_head=heads,
            resid_pdrop=0,
            embd_pdrop=0,
            attn_pdrop=0,
            use_cache=False,
            activation_function="gelu",
        )
    )
    run = torch.compile(model) if compiled else model

    def loss(tokens, targets):
        logits = run(tokens).logits
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    return model, loss


def x_transformers(depth, dim, heads, context, vocab, compiled):
    from x_transformers import Decoder, TransformerWrapper

    model = TransformerWrapper(
        num_tokens=vocab,
        max_seq_len=context,
        tie_embedding=True,
        attn_layers=Decoder(dim=dim, depth=depth, heads=heads, attn_dim_head=dim // heads, attn_flash=True),
    )
    run = torch.compile(model) if compiled else model

    def loss(tokens, targets):
        return F.cross_entropy(run(tokens).flatten(0, 1).float(), targets.flatten())

    return model, loss


def step(model, loss, tokens, targets, bf16: bool) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def run() -> None:
        with torch.autocast(tokens.device.type, torch.bfloat16, enabled=bf16):
            value = loss(tokens, targets)
        value.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return run


def matmul_rate(device: torch.device, size: int = 8192) -> float:
    """Measured FLOP/s of a bfloat16 matrix product."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        a @ b
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(20):
        a @ b
    torch.cuda.synchronize()
    return 20 * 2 * size**3 / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="nano")
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--context", type=int, default=64)
    parser.add_argument("--vocab", type=int)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--bf16", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    vocab = options.vocab or (65 if options.size == "nano" else 50304)
    tokens = torch.randint(vocab, (options.batch, options.context), device=device)
    targets = torch.randint(vocab, (options.batch, options.context), device=device)
    actions, sizes = {}, {}
    for name, make in (("triune", ours), ("transformers GPT-2", hugging_face), ("x-transformers", x_transformers)):
        model, loss = make(*SIZES[options.size], options.context, vocab, options.compile)
        model.to(device)
        sizes[name] = sum(p.numel() for p in model.parameters())
        actions[name] = step(model, loss, tokens, targets, options.bf16)
    seconds = interleaved(actions, options.rounds, options.repeats, sync=device.type == "cuda")
    rate = matmul_rate(device) if device.type == "cuda" else None
    rows = []
    for name, values in seconds.items():
        depth, dim, _ = SIZES[options.size]
        speed = spread([tokens.numel() / s for s in values])
        row = {
            "system": name,
            "parameters": sizes[name],
            "tokens/s": speed["median"],
            "low": speed["low"],
            "high": speed["high"],
        }
        if rate:
            # 6 FLOPs per weight and token of the products, and 6·context·dim per layer and token for causal attention.
            flops = 6 * (12 * dim * dim * depth + vocab * dim) + 6 * options.context * dim * depth
            row["share of measured matmul rate"] = speed["median"] * flops / rate
        rows.append(row)
    print(table(rows))
    record(
        f"text_speed_{options.size}_{device.type}" + ("_compiled" if options.compile else ""), rows, matmul_flops=rate
    )


if __name__ == "__main__":
    main()

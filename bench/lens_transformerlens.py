"""The lens beside TransformerLens on the same random GPT-2 of Hugging Face: values, head scores, time and memory.

    pip install transformer-lens nnsight        (in an environment of its own: it brings more than 80 packages)
    python bench/lens_transformerlens.py

Times are processor seconds of one thread, the least of five calls, B4 T256; memory is that of all tensors kept.
"""

from __future__ import annotations

import importlib.metadata
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from common import record, table
from torch import Tensor

NAMES = {
    "resid_pre": "hook_resid_pre", "resid_mid": "hook_resid_mid", "resid_post": "hook_resid_post",
    "attn_out": "hook_attn_out", "ffn_out": "hook_mlp_out", "q": "attn.hook_q", "k": "attn.hook_k",
    "v": "attn.hook_v", "z": "attn.hook_z", "hidden": "mlp.hook_post",
}  # fmt: skip
"""Our points and theirs."""
LAYERS, VOCABULARY, SEGMENT = 4, 1000, 50


def models() -> tuple[Any, Any]:
    """Our model and their bridge, of one GPT-2 with random weights."""
    from tokenizers import Tokenizer, models
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    from triune.text.checkpoints.pretrained import load

    torch.manual_seed(0)
    folder = tempfile.mkdtemp()
    config = GPT2Config(n_layer=LAYERS, n_head=8, n_embd=256, n_positions=512, vocab_size=VOCABULARY)
    GPT2LMHeadModel(config).save_pretrained(folder)
    words = models.WordLevel({str(i): i for i in range(VOCABULARY)}, unk_token="0")
    special = {f"{name}_token": "1" for name in ("eos", "bos", "pad")}
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), **special).save_pretrained(folder)
    original = GPT2LMHeadModel.from_pretrained(folder, attn_implementation="eager").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    theirs = TransformerBridge.boot_transformers(folder, hf_model=original, tokenizer=tokenizer)
    return load(folder).model.eval(), theirs


def differences(ours: Any, theirs: Any) -> dict[str, float]:
    """The largest difference of each value, and of the stripe score from their patterns."""
    from triune.core.lens.edit import lens
    from triune.core.lens.scores import head_scores

    segment = torch.randint(2, VOCABULARY, (4, SEGMENT))
    ids = torch.cat([torch.ones(4, 1, dtype=torch.long), segment, segment], 1)
    _, cache = theirs.run_with_cache(ids)
    with lens(ours, keep=[f"*.{name}" for name in NAMES]) as seen:
        ours(ids)
    found = {}
    for mine, other in NAMES.items():
        pairs = [(seen[f"{layer}.{mine}"], cache[f"blocks.{layer}.{other}"]) for layer in range(LAYERS)]
        found[mine] = max(float((a - b.reshape(a.shape)).abs().max()) for a, b in pairs)
    at = torch.arange(ids.shape[1])
    keys = torch.where(at >= SEGMENT - 1, at - SEGMENT + 1, -1)[None, :, None]
    mine = head_scores(ours, lambda: ours(ids), {"stripe": lambda tokens, device: keys})["stripe"]
    patterns = [cache[f"blocks.{layer}.attn.hook_pattern"] for layer in range(LAYERS)]
    stripe = torch.stack([p.diagonal(1 - SEGMENT, -2, -1).mean((0, -1)) for p in patterns])
    found["stripe score"] = float((mine - stripe).abs().max())
    return found


def costs(ours: Any, theirs: Any) -> dict[str, float]:
    """Processor seconds of each way, and MiB kept."""
    from triune.core.lens.edit import lens
    from triune.core.lens.scores import head_scores, induction, previous

    ids = torch.randint(2, VOCABULARY, (4, 256))

    def kept(names: list[str]) -> dict[str, Tensor]:
        with lens(ours, keep=names) as seen:
            ours(ids)
        return seen

    def patterns() -> None:
        cache = theirs.run_with_cache(ids, names_filter=lambda name: name.endswith("hook_pattern"))[1]
        for layer in range(LAYERS):
            cache[f"blocks.{layer}.attn.hook_pattern"].diagonal(-1, -2, -1).mean((0, -1))

    def theirs_kept() -> dict[str, Tensor]:
        cache = theirs.run_with_cache(ids)[1]
        return {name: cache[name] for name in cache.keys()}  # noqa: SIM118 (it is no dict)

    scores = {"previous": previous, "induction": induction(ids)}
    ways: dict[str, Callable[[], Any]] = {
        "forward": lambda: ours(ids), "TransformerLens: forward": lambda: theirs(ids),
        "all points": lambda: kept(["*"]), "TransformerLens: run_with_cache": theirs_kept,
        "two head scores": lambda: head_scores(ours, lambda: ours(ids), scores), "TransformerLens: one score": patterns,
    }  # fmt: skip
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(6):
        for name, run in ways.items():
            started = time.process_time()
            run()
            times[name].append(time.process_time() - started)
    found = {f"{name} (s)": min(own[1:]) for name, own in times.items()}
    return found | {
        "all points (MiB)": mebibytes(kept(["*"])), "TransformerLens: run_with_cache (MiB)": mebibytes(theirs_kept())
    }  # fmt: skip


def mebibytes(values: dict[str, Tensor]) -> float:
    """Of the distinct storages."""
    found = {value.untyped_storage().data_ptr(): value.untyped_storage().nbytes() for value in values.values()}
    return sum(found.values()) / 2**20


@torch.no_grad()
def main() -> None:
    torch.set_num_threads(1)
    ours, theirs = models()
    apart, cost = differences(ours, theirs), costs(ours, theirs)
    rows = [{"what": f"largest difference of {name}", "value": value} for name, value in apart.items()]
    rows += [{"what": name, "value": value} for name, value in cost.items()]
    print(table(rows))
    record("lens_transformerlens", rows, transformer_lens=importlib.metadata.version("transformer-lens"))


if __name__ == "__main__":
    main()

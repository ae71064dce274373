"""ESM-2, ESM-1b and ESM-1v as fair-esm stores them: `x.pt`, and the contact regression in `x-contact-regression.pt`."""

from __future__ import annotations

import argparse
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ....core.checkpoints.family import differences
from ....core.checkpoints.native import CONFIG
from ....core.checkpoints.source import Source, read_pickle
from ....core.checkpoints.weights import Rule, WeightMap
from ....core.errors import UserError
from ....core.rotary import RotaryConfig
from ..contact_head import ContactHead
from ..model import MASK, SequenceConfig, SequenceModel
from .esm import (
    OFFSET,
    check_tied,
    contact_tensors,
    frequency_constants,
    read_rotary,
    rotary_of,
    sequence_config,
)

BESIDE = "-contact-regression.pt"
_OURS, _THEIRS = "transformer.blocks.{}.", "layers.{}."
RULES = (
    Rule("embedding", "embed_tokens"),
    Rule("transformer.positions", "embed_positions"),
    Rule("transformer.input_norm", "emb_layer_norm_before"),
    Rule(_OURS + "norm1", _THEIRS + "self_attn_layer_norm"),
    Rule(_OURS + "attn.q", _THEIRS + "self_attn.q_proj"),
    Rule(_OURS + "attn.k", _THEIRS + "self_attn.k_proj"),
    Rule(_OURS + "attn.v", _THEIRS + "self_attn.v_proj"),
    Rule(_OURS + "attn.out", _THEIRS + "self_attn.out_proj"),
    Rule(_OURS + "norm2", _THEIRS + "final_layer_norm"),
    Rule(_OURS + "ffn.up", _THEIRS + "fc1"),
    Rule(_OURS + "ffn.down", _THEIRS + "fc2"),
    Rule("transformer.final_norm", "emb_layer_norm_after"),
    Rule("head.dense", "lm_head.dense"),
    Rule("head.norm", "lm_head.layer_norm"),
    Rule("head.bias", "lm_head.bias"),
)


def weights(config: SequenceConfig) -> WeightMap:
    """The weight map, without the contact regression; names without the prefixes of their files."""
    return WeightMap(RULES, (), frequency_constants(config, _THEIRS + "self_attn.rot_emb.inv_freq"))


def file_in(source: Source) -> Source:
    """The model in a folder that holds only that and its regression, such as `write` makes."""
    if source.file or (source.path / CONFIG).exists():
        return source
    files = [path for path in source.path.glob("*.pt") if not path.name.endswith(BESIDE)]
    return Source(source.name, files[0]) if len(files) == 1 else source


def content(source: Source) -> Mapping[str, Any]:
    """What a `.pt` holds: `model`, and `cfg` (ESM-2) or `args` (ESM-1b). Nothing for other files."""
    if source.file is None or source.file.suffix not in (".pt", ".pth"):
        return {}
    found = source.once(read_pickle)
    return found if isinstance(found, Mapping) and isinstance(found.get("model"), Mapping) else {}


def _settings(record: Any, name: str) -> Callable[..., Any]:
    """Looks settings up in a Namespace, or in what `_record` makes."""
    given = {key.removeprefix("encoder_"): value for key, value in getattr(record, "__dict__", {}).items()}

    def setting(key: str, default: Any = None) -> Any:
        if given.get(key, default) is None:
            raise UserError(f"'{name}' does not say its {key}; it is no language model of fair-esm.")
        return given.get(key, default)

    return setting


def esm2(source: Source) -> SequenceConfig:
    """The config of an ESM-2."""
    found = content(source)
    setting = _settings(found["cfg"].get("model") if isinstance(found["cfg"], Mapping) else None, source.name)
    dim, heads = setting("embed_dim"), setting("attention_heads")
    stored = [tensor for name, tensor in found["model"].items() if name.endswith("rot_emb.inv_freq")]
    rotary = read_rotary(stored, 10_000.0, dim // heads, source.name)
    return sequence_config(dim, setting("layers"), heads, 4 * dim, rotary, token_dropout=setting("token_dropout"))


def esm1b(source: Source) -> SequenceConfig:
    """The config of an ESM-1b or ESM-1v. Raises UserError for fair-esm's other models."""
    found = content(source)
    setting = _settings(found["args"], source.name)
    if setting("arch") != "roberta_large":
        raise UserError(
            f"'{source.name}' is fair-esm's {setting('arch')}, which is not supported; supported are ESM-2, ESM-1b "
            "and ESM-1v."
        )
    return sequence_config(
        setting("embed_dim"), setting("layers"), setting("attention_heads"), setting("ffn_embed_dim"), None,
        input_norm=any("emb_layer_norm_before" in name for name in found["model"]),
        token_dropout=setting("token_dropout", False), context=setting("max_positions") + OFFSET,
    )  # fmt: skip


def unlike(config: SequenceConfig) -> list[str]:
    """Settings in which a model differs from all that fair-esm's ESM-2 and ESM-1b can be."""
    core, rotary = config.transformer.resolved(), rotary_of(config)
    like = sequence_config(
        core.dim, core.depth, core.heads, 4 * core.dim if rotary else core.ffn_dim or 0,
        rotary and RotaryConfig(half_precision=rotary.half_precision), not rotary and core.input_norm,
        config.token_dropout, context=core.context,
    )  # fmt: skip
    return differences(config, like)


def read(source: Source) -> dict[str, Tensor]:
    """All tensors, those of the contact regression among them, without the prefixes that fair-esm strips too.

    Raises:
        UserError: the file beside the model is damaged, or the output layer's matrix is not the embedding's.
    """
    assert source.file is not None
    found = content(source)
    beside = Path(f"{source.file.with_suffix('')}{BESIDE}")
    regression = read_pickle(beside) if beside.is_file() else {"model": {}}
    if not isinstance(regression, Mapping) or not isinstance(regression.get("model"), Mapping):
        raise UserError(f"'{beside}' holds no contact regression; it was damaged or is another file.")
    both = {**found["model"], **regression["model"]}
    tensors = {re.sub(r"^(encoder\.)?(sentence_encoder\.)?", "", name): tensor for name, tensor in both.items()}
    output, embedding = tensors.pop("lm_head.weight", None), tensors.get("embed_tokens.weight")
    check_tied(output, embedding, source.name)
    if found.get("cfg") is None and embedding is not None:
        # So does fair-esm when it loads ESM-1b, in place: an output layer that shares the matrix loses the row too,
        # one that holds a copy keeps it and wins.
        rows, copied = torch.arange(len(embedding))[:, None], output is not None and not _shared(output, embedding)
        tensors["embed_tokens.weight"] = output if copied else embedding.where(rows != MASK, 0)
    return tensors


def _shared(one: Tensor, other: Tensor) -> bool:
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def _record(**settings: Any) -> Any:
    """An empty OrderedDict with attributes.

    fair-esm reads settings as attributes of a Namespace, which `torch.load` refuses since 2.6; this it accepts.
    """
    record: Any = OrderedDict()
    vars(record).update(settings)
    return record


def write(folder: Path, model: SequenceModel, head: ContactHead | None) -> None:
    """The two files; fair-esm knows the kind of a model by the beginning of its name."""
    config, core = model.config, model.config.transformer.resolved()
    theirs = weights(config).to_theirs(model)
    theirs["lm_head.weight"] = theirs["embed_tokens.weight"]
    state = {("encoder." if n.startswith("lm_head") else "encoder.sentence_encoder.") + n: t for n, t in theirs.items()}
    settings = {
        "encoder_layers": core.depth, "encoder_embed_dim": core.dim, "encoder_attention_heads": core.heads,
        "encoder_ffn_embed_dim": core.ffn_dim, "token_dropout": config.token_dropout,
    }  # fmt: skip
    size = f"t{core.depth}_{sum(p.numel() for p in model.parameters()) / 1e6:.0f}M"
    if config.position_offset:
        args = _record(arch="roberta_large", max_positions=core.context - OFFSET, **settings)
        stem, whole = f"esm1b_{size}", {"args": args, "model": state}
    else:
        stem, whole = f"esm2_{size}", {"cfg": {"model": _record(**settings)}, "model": state}
    torch.save(whole, folder / f"{stem}.pt")
    torch.save({"model": contact_tensors(model, head)}, folder / f"{stem}{BESIDE}")


def outputs(folder: Path, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and contact probabilities of fair-esm itself. Raises UserError when it is not installed."""
    try:
        from esm import pretrained
    except ImportError:
        raise UserError("The comparison with fair-esm needs: pip install fair-esm.") from None
    file = file_in(Source(str(folder), folder)).path  # `folder` may be the file itself
    # Its releases hold their settings in a Namespace, a plain record, which torch.load refuses since 2.6.
    with torch.serialization.safe_globals([argparse.Namespace]):
        theirs = pretrained.load_model_and_alphabet_local(file)[0].eval()
    return theirs(tokens)["logits"], theirs.predict_contacts(tokens)

"""Small random models of transformers, and all that is compared with them: for the tests and `parity.py`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from triune.bench.parity_random import exact
from triune.core.checkpoints.family import Pretrained, apart
from triune.core.mixers.cache import KeyValueCache
from triune.text.checkpoints.pretrained import export, load, parity

VOCAB, LIMIT, SAME = 67, 1e-5, 1e-9
TOKENS: dict[str, Any] = {"vocab_size": VOCAB, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def original(kind: str, options: dict[str, Any], seed: int = 0) -> Any:
    """A model of transformers, of class `kind` or `kind`ForCausalLM, whose random weights give outputs of order one."""
    import transformers

    cls = getattr(transformers, kind if hasattr(transformers, kind) else kind + "ForCausalLM")
    torch.manual_seed(seed)
    config = cls.config_class(**TOKENS | options)
    config._attn_implementation = config._experts_implementation = "eager"  # the other experts have no float64
    config.use_cache = False  # which recurrent layers alone cannot make there
    model = cls(config).eval()
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if "correction_bias" in name:
                buffer.normal_(std=0.2)
        for name, parameter in model.named_parameters():
            if "A_log" in name:
                parameter.copy_(torch.rand_like(parameter) * 2 - 1)
            elif parameter.dim() > 1:
                parameter.normal_(std=0.3 if "embed" in name else 0.7 * parameter.shape[-1] ** -0.5)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def ids(batch: int = 2, tokens: int = 40, seed: int = 0) -> Tensor:
    """Random tokens, int64 `[batch, tokens]`, without those that models take for special ones."""
    return torch.randint(3, VOCAB, (batch, tokens), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def outputs(ours: Any, theirs: Any) -> float:
    """How far outputs are apart in float32; in float64 they must be the same function."""
    tokens = ids()
    a, b = ours(tokens), theirs(tokens)[0]
    assert 0.1 < b.std() < 10, f"outputs of size {b.std():.2g} say little"
    wide = apart(ours.double()(tokens), exact(theirs, tokens))
    ours.float()
    assert wide < SAME, f"{wide:.2g} apart in float64"
    return float((a - b).abs().max())


def there_and_back(found: Pretrained, theirs: Any, folder: Path) -> float:
    """Writes ours, opens it in transformers, and wants every bit of the original; returns what `parity` says."""
    export(found, folder, "hf")
    back, report = type(theirs).from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
    assert not any(report.values()), report
    before = theirs.state_dict()
    assert back.state_dict().keys() == before.keys()
    for key, tensor in back.state_dict().items():
        assert torch.equal(tensor, before[key]), key
    again = load(str(folder))
    assert again.family is found.family and again.model.config == found.model.config
    assert found.family.represents(found.model.config), found.family.unlike(found.model.config)
    return parity(found, folder, "hf")


@torch.no_grad()
def cached(ours: Any, theirs: Any) -> float:
    """A prompt at once and then tokens one by one and in pieces, beside what the original says to the whole text."""
    tokens, cache = ids(2, 21), KeyValueCache(ours.transformer.config)
    pieces = [ours(piece, cache=cache) for piece in tokens.split([9, 1, 1, 1, 5, 1, 3], dim=1)]
    return float((torch.cat(pieces, dim=1) - theirs(tokens)[0]).abs().max())


@torch.no_grad()
def padded(
    ours: Any, theirs: Any, left: bool, lengths: Sequence[int] = (20, 13, 5),
    fresh: Callable[[Any], Any] = lambda model: model,
) -> tuple[float, float]:  # fmt: skip
    """How far ours to texts of several lengths are from the original's to each text alone, and to the padded batch.

    Args:
        ours, theirs: the models.
        left: where the padding stands.
        lengths: of the texts, the longest first.
        fresh: makes the original forget what it took from the last text.
    """
    tokens, most, long = ids(len(lengths), lengths[0]), lengths[0], torch.tensor(lengths)[:, None]
    real = torch.arange(most) >= most - long if left else torch.arange(most) < long
    tokens = tokens.masked_fill(~real, theirs.config.pad_token_id or 0)
    found = ours(tokens, valid=real)
    alone = 0.0
    for row, mask in enumerate(real):
        expected = fresh(theirs)(tokens[row, mask][None])[0][0]
        alone = max(alone, float((found[row, mask] - expected).abs().max()))
    given: dict[str, Tensor] = {"attention_mask": real.long()}
    if left and "position_ids" in signature(theirs.forward).parameters:  # which `generate` makes
        given["position_ids"] = (real.cumsum(1) - 1).clamp(min=0)
    together = fresh(theirs)(tokens, **given)[0]
    return alone, float((found - together)[real].abs().max())

"""Keys of configs: what the original reads we read, and what it passes over we do too, or refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from triune.bench import parity_keys
from triune.core.errors import UserError

transformers = pytest.importorskip("transformers", reason="the originals: pip install transformers")


@pytest.fixture
def quiet():
    """Silences transformers, which complains about most of these configs."""
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity(50)
    transformers.utils.logging.disable_progress_bar()
    yield
    transformers.logging.set_verbosity(before)


RECURRENT = ("Qwen 3.5", "Qwen 3.5 MoE", "Qwen3-Next")
"""Whose originals take seconds for each configuration on a CPU."""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n in RECURRENT else []) for n in parity_keys.BASES]
)
def test_no_key_is_misread(name, quiet):
    """A part of what `bench/parity_keys.py` runs."""
    rows = parity_keys.run([name], step=61)
    assert [row for row in rows if parity_keys.wrong(row)] == []
    assert sum(isinstance(row["found"], float) for row in rows) >= 5


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", parity_keys.BASES)
def test_none_of_all_keys_is_misread(name, quiet):
    assert [row for row in parity_keys.run([name]) if parity_keys.wrong(row)] == []


FLAT = {"rope_type": "default", "rope_theta": 300.0}
FULL, SLIDE = "full_attention", "sliding_attention"
CASES: list[tuple[str, dict[str, Any], str | None]] = [
    # The class keeps its own values and passes over those that stand under no kind of layer.
    ("Gemma 3", {"rope_parameters": FLAT}, "rope_theta = 300.0 in rope_parameters under no kind of layer"),
    ("OLMo 3", {"rope_parameters": FLAT}, "rope_theta = 300.0 in rope_parameters under no kind of layer"),
    ("ModernBERT", {"rope_parameters": FLAT}, "rope_theta = 300.0 in rope_parameters under no kind of layer"),
    ("ModernBERT", {"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, "rope_type = 'linear' in"),
    ("OLMo 3", {"rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0}}, None),  # says what counts
    # The class looks for one set of values.
    ("Llama", {"rope_parameters": {FULL: FLAT, SLIDE: FLAT}}, "for the kind of layer full_attention, sliding_att"),
    ("Cohere 2", {"rope_parameters": {SLIDE: FLAT}}, "for the kind of layer sliding_attention, but"),
    # Kinds of layers that are left out, and keys beside them.
    ("Gemma 3", {"rope_parameters": {FULL: FLAT}}, None),
    ("Gemma 3", {"rope_parameters": {SLIDE: FLAT}, "rope_theta": 70.0}, None),
    ("OLMo 3", {"rope_theta": 70.0}, None),
    ("OLMo 3", {"rope_local_base_freq": 70.0}, None),
    ("OLMo 3", {"rope_parameters": {FULL: FLAT, SLIDE: FLAT}, "rope_theta": 70.0}, None),
    ("ModernBERT", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, None),
    ("ModernBERT", {"rope_parameters": {FULL: FLAT}, "local_rope_theta": 70.0, "global_rope_theta": 20.0}, None),
    ("Gemma 3", {"rope_parameters": {SLIDE: FLAT}, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "without"),
    # `rope_scaling` takes the place of `rope_parameters`, and does not complete it.
    ("Llama", {"rope_parameters": FLAT, "rope_scaling": {"type": "linear", "factor": 2.0}}, None),
    ("Llama", {"rope_parameters": FLAT, "rope_scaling": {"type": "linear", "factor": 2.0}, "rope_theta": 70.0}, None),
    ("StableLM", {"rope_parameters": FLAT, "partial_rotary_factor": 0.5}, None),
    ("StableLM", {"rope_parameters": FLAT | {"partial_rotary_factor": 0.5}}, None),
    ("GPT-NeoX", {"rope_parameters": FLAT, "rotary_pct": 0.5, "rotary_emb_base": 70.0}, None),
    # Names that stand for those of the family, and count before them.
    ("GPT-2", {"num_attention_heads": 2}, None),
    ("GPT-J", {"num_attention_heads": 2}, None),
    ("ModernBERT", {"sliding_window": 2}, None),
    ("ModernBERT", {"rope_scaling": {"type": "linear", "factor": 2.0}}, None),  # "rope_type" is there and counts first
    ("GPT-NeoX", {"head_dim": 16}, "head_dim = 16"),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "keys", "refused"), CASES)
def test_rotary_settings_are_those_of_the_class(name, keys, refused, tmp_path: Path, quiet):
    base = next(parity_keys.changes(name)).config
    found = parity_keys.compare(name, parity_keys.Change("", base | keys), tmp_path)
    if refused is None:
        assert isinstance(found, float) and found < parity_keys.LIMIT, found
        return
    with pytest.raises(UserError, match=refused):
        parity_keys.ours_of(base | keys)
    assert isinstance(found, str)

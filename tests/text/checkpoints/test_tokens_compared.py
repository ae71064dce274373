"""`triune info` and `convert` compare tokens with the original library: what differs by a known rule is no refusal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as HFTokenizer

from triune.core.errors import UserError
from triune.text.checkpoints import pretrained as text
from triune.text.tokenizer import Tokenizer

from ..test_around import CHATML, folder_of

transformers = pytest.importorskip("transformers", reason="the originals: pip install transformers")
THINKS = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{{ m.content.split('</think>')[-1] + eos_token }}"
    "{% else %}{{ m.content }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<think>\\n' }}{% endif %}"
)


def checkpoint(folder: Path, post_processor: str | None = None, **config: Any) -> Path:
    """A small Llama with the tokenizer that `folder_of` makes."""
    folder_of(folder, post_processor, **config)
    rows = HFTokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size()
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    made = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=rows, **shape, pad_token_id=None))
    made.save_pretrained(folder)
    return folder


@pytest.mark.filterwarnings("ignore")
def test_tokens_that_only_a_flag_asks_for_are_said_and_stand_in_what_is_exported(tmp_path):
    source = checkpoint(tmp_path / "a", add_bos_token=True, add_eos_token=True)
    found = text.load(str(source))
    assert "is placed by triune" in text.check_inputs(found, source, "hf")
    new = text.export(found, tmp_path / "b")
    assert "is placed by triune" not in text.check_inputs(found, new, "hf")
    theirs, ours = transformers.AutoTokenizer.from_pretrained(new), Tokenizer.load(source)
    assert theirs("a b")["input_ids"] == [*ours.beginning, *ours.encode("a b"), *ours.ending]
    assert len(ours.beginning) == len(ours.ending) == 1


@pytest.mark.filterwarnings("ignore")
def test_a_template_that_announces_thoughts_is_no_other_reading(tmp_path):
    source = checkpoint(tmp_path / "a", chat_template=THINKS)
    assert "3 chats" in text.check_inputs(text.load(str(source)), source, "hf")


@pytest.mark.filterwarnings("ignore")
def test_other_tokens_are_refused(tmp_path):
    source = checkpoint(tmp_path / "a", "<s> $A", chat_template=CHATML)
    found = text.load(str(source))
    config = json.loads((source / "tokenizer_config.json").read_text())
    (source / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": "{{ bos_token }}" + CHATML}))
    with pytest.raises(UserError, match="the chat 'What is 2 \\+ 2\\?' becomes the tokens"):
        text.check_inputs(found, source, "hf")
    (source / "tokenizer_config.json").write_text(json.dumps(config))
    folder_of(source, "<s> $A </s>", chat_template=CHATML)
    with pytest.raises(UserError, match="with what stands around it, becomes the tokens"):
        text.check_inputs(found, source, "hf")

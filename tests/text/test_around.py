"""The tokens around a text: the same in training, in use, when saved, and in the original library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer as HFTokenizer
from tokenizers import processors

from triune.core.errors import UserError
from triune.text.data.chat import ChatTemplate
from triune.text.data.messages import Conversation
from triune.text.data.module import TextData
from triune.text.tokenizer import Tokenizer

from .test_by_heart import TEMPLATES, TOKENIZERS

TEXT = "The Königin said: Paris is\n\nlovely."
TALK = [
    {"role": "user", "content": "Who are you?"},
    {"role": "assistant", "content": "A cat."},
    {"role": "user", "content": " And where?"},
    {"role": "assistant", "content": "Down there."},
]


def backend(post_processor: str | None) -> HFTokenizer:
    """A byte-level BPE with `<s>` and `</s>`; `post_processor` as a template such as `<s> $A`."""
    made = HFTokenizer.from_str(TOKENIZERS["merging"].backend.to_str())
    if post_processor:
        ids = [(token, made.token_to_id(token)) for token in ("<s>", "</s>")]
        made.post_processor = processors.TemplateProcessing(single=post_processor, pair=None, special_tokens=ids)
    return made


def folder_of(folder: Path, post_processor: str | None, **config: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    backend(post_processor).save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"} | config
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


KINDS: dict[str, tuple[str | None, dict[str, Any], bool]] = {
    "nothing": (None, {}, False),
    "post-processor": ("<s> $A", {}, True),
    "both ends": ("<s> $A </s>", {}, True),
    "config only": (None, {"add_bos_token": True}, True),
    "both say it": ("<s> $A", {"add_bos_token": True}, True),
    "config denies it": ("<s> $A", {"add_bos_token": False}, True),
    "as objects": (None, {"add_bos_token": True, "bos_token": {"__type": "AddedToken", "content": "<s>"}}, True),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_original_library_places_the_same_tokens_before_and_after_saving(kind, tmp_path):
    transformers = pytest.importorskip("transformers")
    post_processor, config, begins = KINDS[kind]
    original = transformers.AutoTokenizer.from_pretrained(folder_of(tmp_path / "first", post_processor, **config))
    ours = Tokenizer.load(tmp_path / "first")
    ours.save(tmp_path / "second")
    again, theirs = Tokenizer.load(tmp_path / "second"), transformers.AutoTokenizer.from_pretrained(tmp_path / "second")
    expected = original(TEXT)["input_ids"]
    if post_processor is None and begins:  # version 5 ignores the flag beside a tokenizer.json, version 4 does not
        expected = [original.bos_token_id, *(token for token in expected if token != original.bos_token_id)]
    assert (expected[0] == ours.bos_id) == begins
    for one in (ours, again):
        ids = [*one.beginning, *one.encode(TEXT).tolist()]
        assert ids == expected[: len(ids)]
        assert expected[len(ids) :] in ([], one.ending)
        assert one.ending == [one.eos_id]
        assert one.backend.id_to_token(one.bos_id) == original.bos_token == theirs.bos_token
    assert theirs(TEXT)["input_ids"] == expected


@pytest.mark.parametrize("kind", KINDS)
def test_every_document_begins_in_training_as_a_prompt_does_in_use(kind, tmp_path, monkeypatch):
    monkeypatch.setenv("TRIUNE_CACHE", str(tmp_path / "cache"))
    post_processor, config, begins = KINDS[kind]
    tokenizer = Tokenizer.load(folder_of(tmp_path / "t", post_processor, **config))
    texts = [f"document {number}: " + "cat " * 30 for number in range(6)]
    for number, text in enumerate(texts):
        (tmp_path / f"{number}.txt").write_text(text)
    data = TextData(files=str(tmp_path / "*.txt"), tokenizer=str(tmp_path / "t"), context=16, batch_size=2)
    data.setup()
    expected = {(*tokenizer.beginning, *tokenizer.encode(text), *tokenizer.ending) for text in texts}
    found = set()
    for array in data.prepared.arrays.values():  # type: ignore[attr-defined]
        stream, starts = array.open()
        found |= {tuple(part.tolist()) for part in np.split(stream, starts[1:])}
    assert found == expected
    assert all((text[0] == tokenizer.bos_id) == begins for text in found)
    # Behind a start token every token of the text is predicted, so that all of its bytes count.
    assert (data.val_bytes == sum(array.bytes for n, array in data.prepared.arrays.items() if n == "val")) == begins


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize("template", ["plain", "chatml", "inst"])
def test_a_chat_has_the_ids_of_the_original_library_after_saving(tokenizer, template, tmp_path):
    """In training and for a prompt; a start token that stands only in the config is part of both."""
    transformers = pytest.importorskip("transformers")
    ours = TOKENIZERS[tokenizer]
    ours.chat_template = TEMPLATES[template]
    ours.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    chat = ChatTemplate(Tokenizer.load(tmp_path))
    asked = theirs.apply_chat_template(TALK[:3], add_generation_prompt=True, tokenize=True, return_dict=False)
    assert chat.ask(TALK[:3]).tolist() == asked
    assert theirs.apply_chat_template(TALK, tokenize=False) == chat.render(TALK)
    sample = chat.samples(Conversation("x", TALK))[-1]
    begin = int(np.flatnonzero(~sample.answers)[-1]) + 1
    assert sample.tokens[:begin].tolist() == asked
    if template == "inst":
        assert sample.tokens[0] == ours.bos_id == theirs.bos_token_id


def test_generation_marks_are_those_of_the_original_library(tmp_path):
    """What the template marks is learned, as far as the model writes it in use."""
    transformers = pytest.importorskip("transformers")
    ours = TOKENIZERS["merging"]
    ours.chat_template = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}{% if m.role == 'assistant' %}{% generation %}"
        "{{ m.content + '<|im_end|>' }}{% endgeneration %}{% else %}{{ m.content + '<|im_end|>' }}{% endif %}"
        "{{ '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )
    ours.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    found = theirs.apply_chat_template(TALK, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    (sample,) = ChatTemplate(ours).samples(Conversation("x", TALK))
    count = len(sample.tokens)  # what stands behind the last answer is left out
    assert sample.tokens.tolist() == found["input_ids"][:count]
    assert sample.answers.astype(int).tolist() == found["assistant_masks"][:count]
    assert not any(found["assistant_masks"][count:])


def test_spaces_between_the_prompt_and_what_follows_are_kept():
    for name in ("sentencepiece", "metaspace"):
        tokenizer = TOKENIZERS[name]
        whole = "Who are you? Where is Alice?"
        ids = tokenizer.encode(whole).tolist()
        for cut in range(1, len(ids)):
            stream = tokenizer.stream(ids[:cut])
            text = "".join(stream.push(token) for token in ids[cut:]) + stream.flush()
            assert tokenizer.decode(ids[:cut]) + text == whole


def test_generation_ends_where_an_answer_of_training_ended(tmp_path):
    """A turn may end with another token than a text: it is saved with the tokenizer."""
    rows = [{"prompt": f"question {number}", "completion": "Tea."} for number in range(4)]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = folder_of(tmp_path / "t", None, chat_template=TEMPLATES["chatml"])
    data = TextData(chats=str(tmp_path / "x.jsonl"), tokenizer=str(folder), context=64, batch_size=1)
    data.setup()
    data.tokenizer.save(tmp_path / "out")
    again = Tokenizer.load(tmp_path / "out")
    ends = {again.backend.token_to_id(token) for token in ("</s>", "<|im_end|>")}
    assert again.end_ids == ends


MARKS = "<|im_start|>", "<|im_end|>"
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def declared(number: int, letters: str, **flags: bool) -> dict[str, Any]:
    token = {"content": letters, "lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
    return {str(number): token | {"special": True} | flags}


def names_of(kind: str, vocab: dict[str, int]) -> tuple[dict[str, Any], str, bool]:
    """What the config says, the template, and whether `tokenizer.json` itself declares the marks of turns."""
    marks = [declared(vocab[mark], mark) for mark in MARKS]
    kinds: dict[str, tuple[dict[str, Any], str, bool]] = {
        "a name that few templates read": ({"pad_token": "</s>"}, "{{ pad_token }}" + CHATML, True),
        "a name of its own": ({"extra_special_tokens": {"image_token": "</s>"}}, "{{ image_token }}" + CHATML, True),
        "a start token without a name": ({"bos_token": None}, "{{ bos_token }}" + CHATML, True),
        "marks declared in the config": ({"added_tokens_decoder": marks[0] | marks[1]}, CHATML, False),
        "marks only listed": ({"additional_special_tokens": list(MARKS)}, CHATML, False),
        "one mark is the end": ({"eos_token": MARKS[1], "extra_special_tokens": [MARKS[0]]}, CHATML, False),
        "a mark behind the vocabulary": (
            {"added_tokens_decoder": declared(len(vocab), "<|tool|>", special=False)}, "<|tool|>" + CHATML, True,
        ),
        "no functions, no documents": (
            {}, "{% if tools is not none or documents is not none %}!{% endif %}" + CHATML, True,
        ),
        "JSON as wished": ({}, "{{ {'b': 'ü', 'a': 1}|tojson(ensure_ascii=true, sort_keys=true) }}" + CHATML, True),
    }  # fmt: skip
    return kinds[kind]


@pytest.mark.parametrize(
    "kind",
    [
        "a name that few templates read", "a name of its own", "a start token without a name",
        "marks declared in the config", "marks only listed", "one mark is the end", "a mark behind the vocabulary",
        "no functions, no documents", "JSON as wished",
    ],
)  # fmt: skip
def test_names_and_tokens_of_the_config_mean_in_chats_what_they_mean_to_the_original_library(kind, tmp_path):
    transformers = pytest.importorskip("transformers")
    made = json.loads(backend("<s> $A" if "without a name" in kind else None).to_str())
    vocab = HFTokenizer.from_str(json.dumps(made)).get_vocab()
    config, template, inside = names_of(kind, vocab)
    if not inside:
        made["added_tokens"] = [token for token in made["added_tokens"] if token["content"] not in MARKS]
        made["model"]["vocab"] |= {mark: vocab[mark] for mark in MARKS}
    (tmp_path / "tokenizer.json").write_text(json.dumps(made))
    config = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": template} | config
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ours = Tokenizer.load(tmp_path)
    asked = theirs.apply_chat_template(TALK[:3], add_generation_prompt=True, return_dict=False)
    assert ChatTemplate(ours).ask(TALK[:3]).tolist() == asked
    ours.save(tmp_path / "again")
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "again")
    assert again.apply_chat_template(TALK[:3], add_generation_prompt=True, return_dict=False) == asked


def test_of_several_templates_the_default_is_used_and_that_for_functions_where_there_are_any(tmp_path):
    transformers = pytest.importorskip("transformers")
    folder = folder_of(tmp_path, None)
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools|tojson }}" + CHATML)
    with pytest.raises(UserError, match=r"templates called tool_use, but none called default"):
        ChatTemplate(Tokenizer.load(folder))
    (folder / "chat_template.jinja").write_text("Talk." + CHATML)
    tools = [{"type": "function", "function": {"name": "look", "parameters": {}}}]
    for place in (folder, folder / "again"):
        theirs, ours = transformers.AutoTokenizer.from_pretrained(place), Tokenizer.load(place)
        for given in (None, tools):
            asked = theirs.apply_chat_template(TALK[:1], given, add_generation_prompt=True, return_dict=False)
            assert ChatTemplate(ours).ask(TALK[:1], given).tolist() == asked
        ours.save(folder / "again")


def test_marks_that_would_be_read_as_letters_are_refused(tmp_path):
    folder = folder_of(tmp_path, None, split_special_tokens=True, chat_template=CHATML)
    with pytest.raises(UserError, match="split_special_tokens = true"):
        ChatTemplate(Tokenizer.load(folder))


def test_a_template_that_is_no_text_is_named(tmp_path):
    folder = folder_of(tmp_path, None)
    (folder / "chat_template.jinja").write_bytes("café {{ messages }}".encode("latin-1"))
    with pytest.raises(UserError, match=r"chat_template.jinja' cannot be read as a template of chats"):
        Tokenizer.load(folder)

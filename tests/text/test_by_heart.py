"""What is learned from chats comes back in use: prompt and answer are tokenised alike in both."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as HFTokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from triune.core.config import TransformerConfig
from triune.core.errors import UserError
from triune.core.training.data import Draw
from triune.text.data.chat import PLAIN, ChatTemplate
from triune.text.data.messages import Conversation
from triune.text.data.packing import ChatRows, join
from triune.text.generate import main
from triune.text.model import LanguageModel, LanguageModelConfig
from triune.text.talk import Talk
from triune.text.tokenizer import Tokenizer

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
INST = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)
"""No generation prompt, and a space before the answer, as Llama 2 has it."""
THINKS = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}{% if m.role == 'assistant' and loop.last %}"
    "{{ '<think>\\n' + (m.reasoning_content or '') + '\\n</think>\\n\\n' }}{% endif %}{{ m.content + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
    "{% if not enable_thinking %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}{% endif %}"
)
"""As Qwen 3: thoughts of earlier turns are left out, and a model that shall not think gets an empty thought."""
TAGGED = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ '<|im_start|>assistant\\n' + m.content + "
    "'<|im_end|>\\n' }}{% endgeneration %}{% else %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""As SmolLM 3, whose tag stands around the whole turn."""
TEMPLATES = {"plain": PLAIN, "chatml": CHATML, "inst": INST, "thinks": THINKS, "tagged": TAGGED}

TALKS = [("Who are you?", "A cat."), ("Where is Alice?", "  Down there\n\n"), ("What do you drink?", "Tea, ünd 茶.")]
TEXT = " ".join(f"user: {q}\nassistant: {a} [INST] {q} [/INST] {a}" for q, a in TALKS) * 5
SPECIALS = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]


def merging() -> Tokenizer:
    """A byte-level BPE whose words take the space before them."""
    return _special(Tokenizer.train_bpe([TEXT], 420).backend)


def byte() -> Tokenizer:
    return _special(Tokenizer.bytes().backend)


def sentencepiece() -> Tokenizer:
    """As Llama 2: a space before the text, spaces as part of the words, bytes for what is unknown."""
    backend = HFTokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    bytes_ = [f"<0x{b:02X}>" for b in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=450, special_tokens=["<unk>", *bytes_], show_progress=False)
    backend.train_from_iterator([TEXT], trainer)
    model = json.loads(backend.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    again = HFTokenizer(models.BPE(vocab=model["vocab"], merges=merges, byte_fallback=True, unk_token="<unk>"))
    again.normalizer = backend.normalizer
    again.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _special(again)


def metaspace() -> Tokenizer:
    """As newer SentencePiece conversions: a space before the first word only."""
    backend = HFTokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<unk>"], show_progress=False)
    backend.train_from_iterator([TEXT], trainer)
    return _special(backend)


def _special(backend: HFTokenizer) -> Tokenizer:
    backend.add_special_tokens(SPECIALS)
    return Tokenizer(backend, "</s>", bos="<s>")


TOKENIZERS = {make.__name__: make() for make in (merging, byte, sentencepiece, metaspace)}


CHATS: dict[tuple[str, str], ChatTemplate] = {}
"""One process of each template is enough."""


def template_of(tokenizer: str, template: str) -> ChatTemplate:
    found = TOKENIZERS[tokenizer]
    found.chat_template = TEMPLATES[template]
    return CHATS.setdefault((tokenizer, template), ChatTemplate(found))


def learn(template: ChatTemplate, folder: Path, steps: int = 300) -> None:
    """Train a small model on `TALKS` until it knows them, and save it."""
    torch.manual_seed(0)
    tokenizer = template.tokenizer
    talks = [Conversation("x", [_user(q), {"role": "assistant", "content": a}]) for q, a in TALKS]
    samples = [sample for talk in talks for sample in template.samples(talk)]
    tokenizer.add_ends(int(sample.tokens[-1]) for sample in samples)
    rows = ChatRows(join(samples, tokenizer, 128), 128)
    batch = rows[Draw(0, np.arange(len(rows)))]
    config = TransformerConfig(dim=64, depth=2, heads=2, causal=True, context=128)
    model = LanguageModel(LanguageModelConfig(tokenizer.vocab_size, config, tied=False, embedding_std=1.0))
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(steps):
        total, count = model.loss(batch["tokens"], batch["targets"], batch["documents"])
        optimizer.zero_grad()
        (total / count).backward()
        optimizer.step()
        if total / count < 0.02:
            break
    assert total / count < 0.02
    tokenizer.save(folder)
    model.save_pretrained(folder)


def _user(question: str) -> dict[str, str]:
    return {"role": "user", "content": question}


@pytest.mark.parametrize(
    ("tokenizer", "template"),
    [  # each of both at least once, all pairs with --slow
        pytest.param(tokenizer, template, marks=() if (i - j) % len(TEMPLATES) in (0, 4) else pytest.mark.slow)
        for i, tokenizer in enumerate(TOKENIZERS)
        for j, template in enumerate(TEMPLATES)
    ],
)
def test_what_was_learned_by_heart_comes_back(tokenizer, template, tmp_path, capsys):
    learn(template_of(tokenizer, template), tmp_path)
    prompts = [word for question, _ in TALKS for word in ("--prompt", question)]
    assert main([str(tmp_path), "--chat", *prompts, "--greedy", "--json", "--max-tokens", "60"]) == 0
    answers = [row["text"] for row in json.loads(capsys.readouterr().out)]
    assert [answer.strip() for answer in answers] == [answer.strip() for _, answer in TALKS]


@pytest.fixture
def cat(tmp_path):
    """A model that knows `TALKS`."""
    learn(template_of("merging", "chatml"), tmp_path)
    return [str(tmp_path), "--chat", "--greedy", "--max-tokens", "40"]


def test_a_conversation_is_kept_from_turn_to_turn(cat, tmp_path, monkeypatch, capsys):
    """Questions come from standard input; the conversation comes out as JSON that --conversation reads again."""
    asked = []
    ask = ChatTemplate.ask
    monkeypatch.setattr(
        ChatTemplate, "ask", lambda self, *args, **names: asked.append(args[0]) or ask(self, *args, **names)
    )
    monkeypatch.setattr("sys.stdin", io.StringIO("Who are you?\n\nWhat do you drink?\n"))
    assert main([*cat, "--json", "--system", "Be brief."]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [m["role"] for m in said] == ["system", "user", "assistant", "user", "assistant"]
    assert asked == [said[:2], said[:4]]
    (tmp_path / "said.json").write_text(json.dumps(said))
    monkeypatch.setattr("sys.stdin", io.StringIO("More?"))
    assert main([*cat, "--conversation", str(tmp_path / "said.json"), "--json"]) == 0
    more = json.loads(capsys.readouterr().out)
    assert more[:5] == said
    assert more[5] == _user("More?")
    with pytest.raises(UserError, match="--system is given, but"):
        main([*cat, "--conversation", str(tmp_path / "said.json"), "--system", "x"])
    (tmp_path / "said.json").write_text('{"a": 1}')
    with pytest.raises(UserError, match="holds no conversation"):
        main([*cat, "--conversation", str(tmp_path / "said.json")])


@pytest.mark.parametrize("template", ["thinks", "chatml"])
def test_that_a_model_could_think_is_said_once(template, capsys):
    template_of("merging", template)
    talk = Talk(TOKENIZERS["merging"], [])
    for question in ("Who are you?", "What do you drink?"):
        talk.ask(question)
        talk.answered("A cat.")
    assert capsys.readouterr().err.count("--think does so") == (template == "thinks")
    if template == "thinks":
        Talk(TOKENIZERS["merging"], [], True).ask("Who?")
    assert capsys.readouterr().err == ""


def test_one_question_streams_its_answer_alone(cat, capsys):
    assert main([*cat, "--prompt", "Who are you?"]) == 0
    assert capsys.readouterr().out == "A cat.\n"
    for option in (["--system", "x"], ["--think"]):
        with pytest.raises(UserError, match=f"{option[0]} is given without --chat"):
            main([cat[0], "--prompt", "Who", *option])


TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cn"]), min_size=1, max_size=12)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(list(TOKENIZERS)), st.sampled_from(list(TEMPLATES)), st.lists(TEXTS, min_size=2, max_size=6))
def test_every_answer_stands_behind_what_is_asked_in_use(tokenizer, template, texts):
    """Tokens before an answer are those of `ask`; the answer is all that is learned, with the token that ends it."""
    texts = [text if text.strip() else "x" for text in texts[: len(texts) // 2 * 2]]
    messages = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]
    chat = template_of(tokenizer, template)
    samples = chat.samples(Conversation("x", messages))
    learned: list[np.ndarray] = []
    for sample in samples:
        changes = np.flatnonzero(np.diff(np.concatenate([[0], sample.answers.astype(int), [0]])))
        for begin, end in changes.reshape(-1, 2):
            asked = chat.ask(messages[: 2 * len(learned) + 1])
            assert sample.tokens[:begin].tolist() == asked.tolist()
            learned.append(sample.tokens[begin:end])
    assert len(learned) == len(texts) // 2
    end = chat.tokenizer.backend.token_to_id("<|im_end|>" if "im_end" in TEMPLATES[template] else "</s>")
    for tokens, text in zip(learned, texts[1::2], strict=True):
        assert tokens[-1] == end
        if tokenizer in ("merging", "byte"):  # every text survives these
            assert chat.tokenizer.decode(tokens).removeprefix(" ") == text.removeprefix(" ")

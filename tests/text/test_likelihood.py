"""Likelihoods of continuations: in batches as one by one, and whole texts in windows."""

from __future__ import annotations

import pytest
import torch

from triune.core.config import TransformerConfig
from triune.core.errors import UserError
from triune.core.rotary import RotaryConfig
from triune.text import likelihood
from triune.text.likelihood import check, first_token, log_likelihoods, reference_log_likelihoods, windows
from triune.text.model import LanguageModel, LanguageModelConfig
from triune.text.tokenizer import Tokenizer


def make(**options: object) -> LanguageModel:
    torch.manual_seed(0)
    settings = {"dim": 32, "depth": 2, "heads": 2, "causal": True, "context": 24} | options
    model = LanguageModel(LanguageModelConfig(50, TransformerConfig(**settings), embedding_std=1.0))  # type: ignore[arg-type]
    return model.eval()


def pairs() -> list[tuple[list[int], list[int]]]:
    draw = torch.Generator().manual_seed(1)

    def some(count: int) -> list[int]:
        return torch.randint(0, 50, (count,), generator=draw).tolist()

    found = [(some(1 + i % 30), some(1 + i % 5)) for i in range(40)]
    question = some(7)
    return found + [(question, some(1)) for _ in range(4)] + [(question, [*some(1), 3]), (some(40), some(24))]


@pytest.mark.parametrize(
    "options",
    [{}, {"mixer": "mamba2"}, {"window": 5},
     {"rotary": RotaryConfig(scaling="dynamic", factor=2.0, original_context=8)}],
    ids=["attention", "mamba2", "window", "rotations of the length"],
)  # fmt: skip
def test_batches_are_the_reference(options: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    model, asked = make(**options), pairs()
    expected = reference_log_likelihoods(model, asked)
    for size, logits in ((64, 1 << 26), (3, 1 << 26), (16, 200)):
        monkeypatch.setattr(likelihood, "MOST_LOGITS", logits)
        found = log_likelihoods(model, asked, size)
        assert [one.nats for one in found] == pytest.approx([one.nats for one in expected], abs=1e-5)
        assert [one.greedy for one in found] == [one.greedy for one in expected]
    # The most likely token after each context is what greedy says.
    best = [model(torch.tensor([before[-24:]]))[0, -1].argmax().item() for before, _ in asked]
    assert all(one.greedy for one in log_likelihoods(model, [(before, [b]) for (before, _), b in zip(asked, best)]))


def test_answers_to_one_question_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = make(), []
    hidden = model.hidden
    monkeypatch.setattr(model, "hidden", lambda tokens: rows.append(len(tokens)) or hidden(tokens))
    log_likelihoods(model, [([1, 2, 3], [token]) for token in range(9)])
    assert rows == [1]


@pytest.mark.parametrize("count", [0, 1, 4, 5, 11, 12])
def test_each_token_of_a_text_is_predicted_once(count: int) -> None:
    tokens = list(range(100, 100 + count))
    found = windows(tokens, -1, 5)
    assert [token for _, after in found for token in after] == tokens
    for before, after in found:
        assert len(before) + len(after) <= 6
        start = tokens.index(after[0])
        assert before == ([-1] if start == 0 else tokens[start - len(before) : start])
    assert all(len(before) + len(after) == 6 for before, after in found[1:])  # as much context as can be read


def test_what_cannot_be_scored_is_refused() -> None:
    assert check([([1] * 20, [2] * 5), ([1], [2])], 24) == 0 and check([([1] * 21, [2] * 5)], 24) == 1
    for pair in (([], [1]), ([1], []), ([1], [2] * 25)):
        with pytest.raises(UserError):
            check([pair], 24)
    with pytest.raises(UserError, match="no token that begins or ends texts"):
        first_token(Tokenizer.characters(["abc"]))
    assert first_token(Tokenizer.bytes()) == Tokenizer.bytes().eos_id

"""Drawing tokens, generating with and without the cache, and `triune text generate`."""

from __future__ import annotations

import json
import math
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from triune.core.compiled import compile_blocks
from triune.core.config import TransformerConfig
from triune.core.errors import UserError
from triune.text.generate import Continuation, main
from triune.text.model import LanguageModel, LanguageModelConfig
from triune.text.sampling import SamplingConfig, draw, filter_logits, generate, left_pad
from triune.text.tokenizer import Tokenizer

VOCAB = 23


def model(seed: int = 0, **settings_: object) -> LanguageModel:
    torch.manual_seed(seed)
    options = {"dim": 32, "depth": 2, "heads": 4, "causal": True, "context": 16} | settings_
    m = LanguageModel(LanguageModelConfig(VOCAB, TransformerConfig(**options), tied=False, embedding_std=1.0))
    torch.nn.init.normal_(m.head.weight, std=0.3)
    return m.eval().double()


def texts(m: LanguageModel, prompts: list[list[int]], count: int, **options: object) -> list[list[int]]:
    found: list[list[int]] = [[] for _ in prompts]
    for step in generate(m, prompts, count, **options):
        for number, token in step.items():
            found[number].append(token)
    return found


@settings(max_examples=25)
@given(
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=4),
    window=st.sampled_from([None, 3, [5, None]]),
    position=st.sampled_from(["rotary", "learned", "sinusoidal", "none"]),
    kv_heads=st.sampled_from([1, 2, 4]),
    greedy=st.booleans(),
)
def test_cached_equals_uncached(lengths, window, position, kv_heads, greedy):
    m = model(window=window, position=position, kv_heads=kv_heads)
    prompts = [[(3 * n + i) % VOCAB for i in range(length)] for n, length in enumerate(lengths)]
    config = SamplingConfig(temperature=0 if greedy else 1)
    # 24 tokens go past the context of 16, where generation starts again from the last half.
    options = {"count": 24, "config": config, "seed": 1, "ends": {7}}
    assert texts(m, prompts, **options) == texts(m, prompts, **options, use_cache=False)


def test_a_row_does_not_depend_on_its_batch():
    m, prompts = model(), [[1, 2, 3], [4], [5, 6, 7, 8, 9]]
    config = SamplingConfig(temperature=1)
    together = texts(m, prompts, 8, config=config, seed=5)
    alone = [texts(m, [p], 8, config=config, seed=5 + n)[0] for n, p in enumerate(prompts)]
    assert together == alone


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("position", ["rotary", "learned"])
def test_a_batch_equals_one_by_one_past_the_context(use_cache, position):
    """Each row slides by its own length: the rows start again from their last half at different steps."""
    m = model(position=position)
    prompts = [[(5 * n + i) % VOCAB for i in range(length)] for n, length in enumerate([10, 17, 3, 16, 30])]
    options = {"count": 40, "config": SamplingConfig(1), "use_cache": use_cache}
    together = texts(m, prompts, seed=5, **options)
    assert together == [texts(m, [prompt], seed=5 + n, **options)[0] for n, prompt in enumerate(prompts)]
    assert all(len(set(text)) > 10 for text in together)


def test_rows_that_end_leave_the_others_as_they_are_past_the_context():
    m = model()
    prompts = [[1, 2] * 8, [3, 4, 5]]
    steps, found = generate(m, prompts, 40, SamplingConfig(0)), []
    step = next(steps)
    for number in range(40):
        found.append(step[1])
        try:
            step = steps.send({0} if number == 2 else None)
        except StopIteration:
            break
    assert found == texts(m, prompts[1:], 40, config=SamplingConfig(0))[0]


def test_equal_logits_are_cut_where_argmax_is():
    logits = torch.tensor([[1.0, 3.0, 3.0, 3.0, 0.0]])
    for k, kept in ((1, [1]), (2, [1, 2]), (4, [0, 1, 2, 3])):
        found = torch.isfinite(filter_logits(logits, SamplingConfig(1, top_k=k)))[0].nonzero()[:, 0].tolist()
        assert found == kept
    assert {draw(logits, SamplingConfig(1, top_k=1)).item() for _ in range(20)} == {1}


@pytest.mark.parametrize("temperature", [1e-45, 1e-300, 5e-324, 1e-7])
def test_any_temperature_draws(temperature):
    logits = torch.tensor([[-3e38, 2.0, 2.5, 3e38], [1.0, 5.0, 2.0, 0.0]])
    assert draw(logits, SamplingConfig(temperature)).tolist() == [3, 1]


@pytest.mark.parametrize("seed", [-1, 2**63, 2**64])
def test_a_seed_outside_its_range_is_named(seed):
    with pytest.raises(UserError, match=f"seed is {seed}, but must be 0 to"):
        next(generate(model(), [[1]], 3, seed=seed))
    assert next(generate(model(), [[1]], 3, seed=2**63 - 1))


def test_the_seed_decides():
    m, config = model(), SamplingConfig(temperature=1)
    first, again, other = (texts(m, [[1, 2]], 30, config=config, seed=s)[0] for s in (1, 1, 2))
    assert first == again
    assert first != other


def test_rows_stop_at_end_of_text_and_on_request():
    m = model()
    steps = generate(m, [[1], [2], [3]], 50, SamplingConfig(0), seed=0)
    assert set(next(steps)) == {0, 1, 2}
    assert set(steps.send({1})) == {0, 2}
    with pytest.raises(StopIteration):
        steps.send({0, 2})
    eos = texts(m, [[1]], 1, config=SamplingConfig(0))[0][0]
    assert texts(m, [[1]], 50, config=SamplingConfig(0), ends=[eos]) == [[eos]]


def test_filters_against_plain_loops():
    torch.manual_seed(0)
    logits = torch.randn(1, 50) * 2
    chance = logits[0].softmax(0)
    order = chance.argsort(descending=True).tolist()

    def kept(config):
        return set(torch.isfinite(filter_logits(logits, config))[0].nonzero()[:, 0].tolist())

    assert kept(SamplingConfig(1, top_k=5)) == set(order[:5])
    total, nucleus = 0.0, set()
    for index in order:
        if total >= 0.7:
            break
        nucleus.add(index)
        total += chance[index].item()
    assert kept(SamplingConfig(1, top_p=0.7)) == nucleus
    assert kept(SamplingConfig(1, top_p=1e-6)) == {order[0]}
    assert kept(SamplingConfig(1, min_p=0.2)) == {i for i in order if chance[i] >= 0.2 * chance.max()}
    assert torch.allclose(filter_logits(logits, SamplingConfig(2)), logits.double() / 2)


def test_draw_follows_the_chances():
    torch.manual_seed(0)
    chance = torch.tensor([0.5, 0.3, 0.2])
    drawn = draw(chance.log().expand(4000, 3), SamplingConfig(1))
    assert torch.allclose(drawn.bincount(minlength=3) / 4000, chance, atol=0.04)
    assert draw(chance.log()[None], SamplingConfig(0)).item() == 0


def test_left_pad():
    tokens, padding = left_pad([[1, 2, 3], [4]], torch.device("cpu"))
    assert tokens.tolist() == [[1, 2, 3], [0, 0, 4]]
    assert padding is not None
    assert padding.tolist() == [[True] * 3, [False, False, True]]
    assert left_pad([[1], [2]], torch.device("cpu"))[1] is None


@pytest.mark.parametrize(
    "settings_",
    [
        {"temperature": -1.0},
        {"temperature": math.inf},
        {"temperature": math.nan},
        {"top_k": 0},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"min_p": 1.0},
    ],
)
def test_impossible_settings_are_named(settings_):
    ((name, value),) = settings_.items()
    with pytest.raises(UserError, match=f"{name} is {value}, but must be"):
        SamplingConfig(**settings_)


def test_an_empty_prompt_is_named():
    with pytest.raises(UserError, match="Prompt 2 is empty"):
        next(generate(model(), [[1], []], 3))


class TestContinuation:
    def feed(self, text: str, stops: list[str]) -> tuple[str, Continuation]:
        tokenizer = Tokenizer.bytes()
        continuation = Continuation(tokenizer, stops)
        shown = ""
        for token in tokenizer.encode(text).tolist():
            shown += continuation.push(token)
            if continuation.done:
                break
        return shown + continuation.flush(), continuation

    def test_stop_strings_are_never_shown_in_part(self):
        shown, continuation = self.feed("one\n\ntwo", ["\n\n"])
        assert shown == continuation.text == "one"
        assert continuation.done
        assert self.feed("a\nb", ["\n\n"])[0] == "a\nb"

    @given(st.text(max_size=30), st.lists(st.text(min_size=1, max_size=3), max_size=3))
    def test_what_is_shown_is_the_text_up_to_the_first_stop(self, text, stops):
        expected = min((text[: text.index(s)] for s in stops if s in text), key=len, default=text)
        shown, continuation = self.feed(text, stops)
        assert shown == continuation.text
        # A stop string may end earlier than another that begins before it.
        assert text.startswith(shown)
        assert not any(stop in shown for stop in stops)
        if not any(s in text for s in stops):
            assert shown == expected


class TestCommand:
    @pytest.fixture
    def folder(self, tmp_path):
        letters = Tokenizer.characters(["abcdefghij \n"])
        torch.manual_seed(0)
        config = TransformerConfig(dim=32, depth=1, heads=2, causal=True, context=32)
        LanguageModel(LanguageModelConfig(letters.vocab_size, config)).save_pretrained(tmp_path)
        letters.save(tmp_path)
        return str(tmp_path)

    def test_streams_prompt_and_text(self, folder, capsys):
        assert main([folder, "--prompt", "abc", "--max-tokens", "20", "--seed", "1"]) == 0
        out = capsys.readouterr().out
        assert out.startswith("abc")
        assert len(out) == 3 + 20 + 1

    def test_batch_equals_single_and_json(self, folder, capsys):
        main([folder, "--prompt", "abc", "--prompt", "j", "--greedy", "--json", "--max-tokens", "9"])
        rows = json.loads(capsys.readouterr().out)
        main([folder, "--prompt", "j", "--greedy", "--max-tokens", "9", "--no-cache"])
        assert capsys.readouterr().out == "j" + rows[1]["text"] + "\n"

    def test_mistakes(self, folder, tmp_path):
        with pytest.raises(UserError, match="--max-tokens is 0"):
            main([folder, "--max-tokens", "0"])
        with pytest.raises(UserError, match="X"):
            main([folder, "--prompt", "X"])
        with pytest.raises(UserError, match="no end-of-text"):
            main([folder, "--prompt", ""])
        with pytest.raises(UserError, match="There is no checkpoint"):
            main([str(tmp_path / "nowhere")])
        Tokenizer.bytes().save(folder)
        with pytest.raises(UserError, match="257 tokens, but the model only 12"):
            main([folder])


@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling needs g++")
def test_compiled_blocks_write_the_same_text():
    m = model(context=40, kv_heads=2)
    prompts = [[1, 2, 3, 4, 5], [7]]
    expected = texts(m, prompts, 30, config=SamplingConfig(0))
    compile_blocks(m, "cpu", dynamic=True)
    stats = torch._dynamo.utils.counters["stats"]
    before = stats["unique_graphs"]
    assert texts(m, prompts, 30, config=SamplingConfig(0)) == expected
    assert 1 <= stats["unique_graphs"] - before <= 2  # not one for each length

"""Steps in storage of a fixed size, and guesses from the text: the same tokens, in value and in distribution."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

from triune.core.config import TransformerConfig
from triune.core.errors import UserError
from triune.core.mixers.cache import KeyValueCache
from triune.core.packed import pack
from triune.core.rotary import RotaryConfig
from triune.text import decode, sampling
from triune.text.decode import Decoder
from triune.text.lookup import Lookup
from triune.text.model import LanguageModel, LanguageModelConfig
from triune.text.sampling import SamplingConfig, generate, left_pad

from .test_sampling import VOCAB, model, texts

REPEATS = [1, 2, 3, 4, 5, 1, 2, 3, 4, 5, 1, 2]


@pytest.mark.parametrize(
    ("lengths", "window", "position", "softcap", "greedy"),
    [
        ([1], None, "learned", None, False),
        ([12], [5, None], "rotary", None, True),
        ([20, 3, 7], 3, "rotary", 5.0, False),
        ([9, 16], None, "none", None, True),
    ],
)
@pytest.mark.parametrize("lookup", [0, 4])
def test_a_decoder_writes_the_same(lengths, window, position, softcap, greedy, lookup):
    m = model(window=window, position=position, kv_heads=2, attention_softcap=softcap)
    prompts = [[(3 * n + i) % 4 for i in range(length)] for n, length in enumerate(lengths)]
    config = SamplingConfig(temperature=0 if greedy else 1)
    # 24 tokens go past the context of 16, where generation starts again from the last half.
    options = {"count": 24, "config": config, "seed": 1, "ends": {7}}
    assert texts(m, prompts, **options, decoder=Decoder(m), lookup=lookup) == texts(m, prompts, **options)


def test_logits_of_a_step_are_those_of_the_whole():
    m = model(window=[4, None], kv_heads=2)
    tokens, valid = left_pad([[1, 2, 3, 4, 5, 6], [7, 8, 9]], torch.device("cpu"))
    cache = KeyValueCache(m.transformer.config, 6)
    with torch.inference_mode():
        m.hidden(tokens, valid=valid, cache=cache)
        decoder = Decoder(m)
        decoder.begin(cache, 8)
        new = torch.tensor([[3, 1, 2], [5, 5, 6]])
        found = decoder.step(new)
        assert valid is not None
        whole = m(torch.cat([tokens, new], 1), valid=torch.cat([valid, torch.ones(2, 3, dtype=torch.bool)], 1))
        assert (found - whole[:, 6:]).abs().max() < 1e-12
        decoder.length -= 2  # the last two are taken back, and others stand there
        again = decoder.step(torch.tensor([[9, 9], [4, 4]]))
        other = torch.cat([tokens, new[:, :1], torch.tensor([[9, 9], [4, 4]])], 1)
        whole = m(other, valid=torch.cat([valid, torch.ones(2, 3, dtype=torch.bool)], 1))
        assert (again - whole[:, 7:]).abs().max() < 1e-12


def test_a_prompt_in_blocks(monkeypatch):
    m = model(window=[5, None], kv_heads=2)
    prompts = [[i % VOCAB for i in range(16)], [3, 4, 5]]
    whole = texts(m, prompts, 6, config=SamplingConfig(0))
    monkeypatch.setattr(sampling, "PROMPT", 5)
    assert texts(m, prompts, 6, config=SamplingConfig(0)) == whole
    mixed = model(mixer=["mamba2", "attention"])
    monkeypatch.setattr(sampling, "PROMPT", 1024)
    whole = texts(mixed, prompts, 6, config=SamplingConfig(0))
    monkeypatch.setattr(sampling, "PROMPT", 5)
    assert texts(mixed, prompts, 6, config=SamplingConfig(0)) == whole


@pytest.mark.parametrize("lookup", [0, 3])
def test_one_graph_writes_the_same(lookup, monkeypatch):
    """A step without a break, as it is traced; what the compiler makes of it is for PyTorch's own tests."""
    graphs = []

    def counted(graph, inputs):
        graphs.append(graph)
        return graph.forward

    whole = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **more: whole(function, **more, backend=counted))
    m = model(kv_heads=2).float()
    prompts = [[1, 2, 3, 1, 2], [4, 5, 6, 4, 5, 6, 4, 5]]
    options = {"count": 7, "config": SamplingConfig(0)}
    decoder = Decoder(m, compiled=True)
    plain = texts(m, prompts, **options)
    assert texts(m, prompts, **options, decoder=decoder, lookup=lookup) == plain
    made = len(graphs)
    assert 1 <= made <= (3 if lookup else 1)  # one token, or one and few or many guesses
    assert texts(m, prompts, **options, decoder=decoder, lookup=lookup) == plain
    assert len(graphs) == made


@pytest.mark.parametrize("window", [None, 3])
def test_a_graph_belongs_to_its_decoder_and_its_shapes(monkeypatch, window):
    """Two models of one shape, other numbers of rows, and more storage: nobody meets another's graph."""
    whole = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **more: whole(function, **more, backend="eager"))
    decoders = {}
    for seed, softcap in ((1, None), (2, 5.0)):
        torch.manual_seed(seed)
        m = model(kv_heads=2, attention_softcap=softcap, window=window).float()
        decoders[m] = Decoder(m, compiled=True)
    for prompts in ([[1, 2, 3]], [[4, 5, 6, 7]], [[1, 2, 3], [4, 5]], [[1, 2, 3]]):
        for m, decoder in decoders.items():
            options = {"count": 6, "config": SamplingConfig(0)}
            assert texts(m, prompts, **options, decoder=decoder) == texts(m, prompts, **options)


def test_a_graph_serves_any_number_of_keys_up_to_its_storage(monkeypatch):
    whole, made = torch.compile, []

    def counted(graph, inputs):
        made.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda function, **more: whole(function, **more, backend=counted))
    m = model(kv_heads=2, context=300).float()
    prompt = torch.randint(0, VOCAB, (1, 250), generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        cache = KeyValueCache(m.transformer.config, 300)
        m(prompt, cache=cache)
        decoder = Decoder(m, compiled=True)
        decoder.begin(cache, 5)
        assert decoder.capacity == 256
        found = torch.cat([decoder.step(torch.tensor([[n]])) for n in range(1, 6)], dim=1)
        with pytest.raises(UserError, match="room for 255 tokens, but 256"):
            decoder.step(torch.tensor([[6]]))
        known = m(torch.cat([prompt, torch.tensor([[1, 2, 3, 4, 5]])], dim=1))[:, 250:]
    assert len(made) == 1
    assert (found - known).abs().max() < 1e-4


KINDS = ("mamba2", "mamba", "gated_delta", "rglru", "lstm", "gru", "linear", "retention", "convolution")


@pytest.mark.parametrize("traced", [False, True])
def test_states_of_a_fixed_size_are_part_of_the_graph(traced, monkeypatch):
    """A layer of each kind, and short convolutions; one row and several padded on the left, with one decoder."""
    whole, made = torch.compile, []

    def counted(graph, inputs):
        made.append(graph)
        return graph.forward

    def compiled(function, **more):
        if traced:
            return whole(function, **more, backend=counted)
        made.append(function)
        return function

    monkeypatch.setattr(torch, "compile", compiled)
    mixers = ["mamba2", "rglru", "attention"] if traced else [*KINDS, "attention"]
    m = model(mixer=mixers, depth=len(mixers), short_convolution=3)
    decoder = Decoder(m, compiled=True, back=False)
    for number, prompts in enumerate(([[1, 2, 3, 4]], [[5, 6]], [[1, 2], [3, 4, 5, 6, 7]], [[7], [8, 9, 1]])):
        ids, valid = left_pad(prompts, torch.device("cpu"))
        new = torch.tensor([[9, 8, 7, 6], [1, 2, 3, 4]])[: len(prompts)]
        with torch.inference_mode():
            cache = KeyValueCache(m.transformer.config)
            m(ids, cache=cache, valid=valid)
            decoder.begin(cache, 4)
            found = torch.cat([decoder.step(new[:, i : i + 1]) for i in range(4)], dim=1)
            real = None if valid is None else torch.cat([valid, torch.ones_like(new, dtype=torch.bool)], dim=1)
            known = m(torch.cat([ids, new], dim=1), valid=real)[:, -4:]
        assert (found - known).abs().max() < 1e-10
        assert len(made) == 1 + (number > 1), "one graph for one row, one for two"


@pytest.mark.slow
def test_a_compiled_step_takes_tokens_however_they_lie():
    m = model(kv_heads=2).float()
    decoder, found = Decoder(m, compiled=True), []
    apart = torch.tensor([[5, 0, 0], [6, 0, 0]])[:, :1]
    for tokens in (apart.contiguous(), apart, apart.int()):
        with torch.inference_mode():
            cache = KeyValueCache(m.transformer.config)
            m(torch.tensor([[1, 2], [3, 4]]), cache=cache)
            decoder.begin(cache, 4)
            found.append(decoder.step(tokens))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_a_decoder_forgets_the_oldest_graphs(monkeypatch):
    monkeypatch.setattr(decode, "GRAPHS", 2)
    monkeypatch.setattr(torch, "compile", lambda function, **more: function)
    m = model(kv_heads=2)
    decoder = Decoder(m, compiled=True)
    options = {"count": 3, "config": SamplingConfig(0)}
    for rows in (1, 2, 3, 1):
        prompts = [[1, 2, 3 + row] for row in range(rows)]
        assert texts(m, prompts, **options, decoder=decoder) == texts(m, prompts, **options)
        assert len(decoder._graphs) <= 2


@pytest.mark.slow
def test_the_compiler_writes_the_same_with_a_hybrid():
    m = model(mixer=["mamba2", "attention"]).float()
    options = {"count": 9, "config": SamplingConfig(0)}
    decoder = Decoder(m, compiled=True, back=False)
    assert texts(m, [[1, 2, 3]], **options, decoder=decoder) == texts(m, [[1, 2, 3]], **options)


@pytest.mark.slow
def test_the_compiler_writes_the_same():
    m = model(kv_heads=2).float()
    options = {"count": 9, "config": SamplingConfig(0)}
    assert texts(m, [[1, 2, 3]], **options, decoder=Decoder(m, compiled=True)) == texts(m, [[1, 2, 3]], **options)


@pytest.mark.parametrize("more", [{}, {"window": 3}, {"attention_softcap": 5.0}])
def test_tokens_read_together_are_those_of_single_steps_to_the_bit(more):
    """Sums in another order would decide between tokens that are almost equally likely, most of all in int4."""
    m = pack(model(kv_heads=2, dim=32, heads=4, **more).float(), "int4")
    tokens = torch.randint(0, VOCAB, (1, 14), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        cache = KeyValueCache(m.transformer.config, 32)
        m(tokens[:, :6], cache=cache)
        decoder = Decoder(m)
        decoder.begin(cache, 20)
        together = decoder.step(tokens[:, 6:])
        single = torch.cat([m(tokens[:, i : i + 1], cache=cache) for i in range(6, 14)], dim=1)
    assert torch.equal(together, single)


# --- guesses ----------------------------------------------------------------------------------------------------------


def test_what_is_guessed():
    lookup = Lookup(REPEATS, 4)
    lookup.learn(4, 4)
    assert lookup.guess(10) == [3, 4, 5, 1]
    assert lookup.guess(2) == [3, 4]
    lookup.add(9)
    assert lookup.guess(10) == []  # never stood before
    lookup.add(1)
    lookup.add(2)
    assert lookup.guess(10) == [9, 1, 2, 9]  # what stood there last, and as a loop behind the end
    assert Lookup([1], 4).guess(3) == Lookup([], 4).guess(3) == []


def test_the_number_of_guesses_follows_success():
    lookup = Lookup(REPEATS, 8)
    assert lookup.size == 3  # two of three are taken to be right: 0.67^3 is above the cost of a guess, 0.67^4 below
    for _ in range(30):
        lookup.learn(1, 0)
    assert lookup.size == 1
    rate = lookup.right / lookup.judged
    lookup.learn(0, 0)  # a round without guesses
    assert lookup.right / lookup.judged == rate < 0.1
    for _ in range(30):
        lookup.learn(lookup.size, lookup.size)
    assert lookup.size == 8
    lookup.learn(8, 0)  # the seven behind a wrong one say nothing
    assert lookup.size == 8
    for _ in range(9):
        lookup.learn(8, 0)
    assert lookup.size < 4


@pytest.mark.parametrize(("compiled", "rows"), [(False, {1, 2, 4}), (True, {1, 3, 9})])
def test_as_many_rows_are_read_as_are_guessed(compiled: bool, rows: set[int], monkeypatch):
    m, seen = model(), set()
    decoder = Decoder(m)
    decoder.compiled = compiled  # as to the shapes; its steps are not
    step = Decoder.step
    monkeypatch.setattr(Decoder, "step", lambda self, tokens: seen.add(tokens.shape[1]) or step(self, tokens))
    for size in (1, 3, 8):
        monkeypatch.setattr(Lookup, "guess", lambda self, room, size=size: [0] * min(size, room))
        texts(m, [[1, 2, 3]], count=14, config=SamplingConfig(0), decoder=decoder, lookup=8)
    assert rows <= seen and (not compiled or seen <= rows)


class Periodic(LanguageModel):
    """Says what it is told to, and counts how often it is asked."""

    def __init__(self) -> None:
        core = TransformerConfig(dim=8, depth=1, heads=1, causal=True, context=256)
        super().__init__(LanguageModelConfig(VOCAB, core))
        self.calls = 0

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.asked = tokens
        return super().embed(tokens)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        nothing = super().logits(hidden) * 0
        following = (self.asked[:, -hidden.shape[1] :, None] % 5 + 1).expand(-1, -1, 1)
        return nothing.scatter(2, following, 50.0)


def test_fewer_passes_where_the_text_repeats():
    m = Periodic().eval()
    plain = texts(m, [REPEATS], 60, config=SamplingConfig(0))
    before = m.calls
    m.calls = 0
    assert texts(m, [REPEATS], 60, config=SamplingConfig(0), lookup=9) == plain
    assert before == 60 and m.calls <= 8
    m.calls = 0
    steps = generate(m, [REPEATS], 60, SamplingConfig(0), lookup=9)
    next(steps)
    next(steps)
    with pytest.raises(StopIteration):
        steps.send({0})  # finished in the middle of a round
    assert m.calls == 2


def test_the_distribution_is_that_of_the_model():
    """All texts of three tokens behind a prompt with guesses, drawn many times: chi-square against exact chances."""
    m = model(seed=3, context=16)
    m.head.weight.data = m.head.weight.data[:4].repeat(6, 1)[:VOCAB] * 0 - 9  # nothing but the first tokens
    m.head.weight.data[:4] = torch.randn(4, 32, generator=torch.Generator().manual_seed(5)).double() * 0.4
    prompt = [1, 2, 3, 1, 2]
    config = SamplingConfig(temperature=1, top_k=3)

    def chances(tokens: list[int]) -> torch.Tensor:
        with torch.inference_mode():
            return sampling.filter_logits(m(torch.tensor([tokens]))[:, -1], config).softmax(-1)[0]

    draws, found = 600, Counter()
    for seed in range(draws):
        ((first, second, third),) = texts(m, [prompt], 3, config=config, seed=10_000 + seed, lookup=3)
        found[first, second, third] += 1
    statistic, cells = 0.0, 0
    for first, p in enumerate(chances(prompt).tolist()):
        for second, q in enumerate(chances([*prompt, first]).tolist() if p else []):
            for third, r in enumerate(chances([*prompt, first, second]).tolist() if q else []):
                expected = draws * p * q * r
                if expected >= 5:
                    statistic += (found.pop((first, second, third), 0) - expected) ** 2 / expected
                    cells += 1
    assert cells > 9
    # Ten thousand to one, by the normal approximation of Wilson and Hilferty.
    freedom = cells - 1
    assert statistic < freedom * (1 - 2 / (9 * freedom) + 3.72 * math.sqrt(2 / (9 * freedom))) ** 3


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"mixer": "mamba2", "position": "none"}, "a layer of the kind"),
        ({"short_convolution": 4}, "short convolutions"),
        ({"rotary": RotaryConfig(scaling="dynamic", factor=2, original_context=8)}, "depend on the length of a text"),
    ],
)
def test_models_that_cannot_step_back(options, said):
    m = model(**options)
    with pytest.raises(UserError, match=said):
        texts(m, [[1, 2]], 3, lookup=2)
    if "rotary" not in options:
        with pytest.raises(UserError, match=said):
            texts(m, [[1, 2]], 3, lookup=2, decoder=Decoder(m, back=False))

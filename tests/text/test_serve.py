"""`triune text serve`: requests and answers in this process, without a network."""

from __future__ import annotations

import json
import socket
import time
from typing import Any

import pytest
import torch

from triune.cli import main
from triune.core.config import TransformerConfig
from triune.core.errors import UserError
from triune.text.model import LanguageModel, LanguageModelConfig
from triune.text.sampling import SamplingConfig, generate
from triune.text.serve import listen
from triune.text.tokenizer import Tokenizer

pytest.importorskip("starlette", reason="pip install 'triune[serve]'")
pytest.importorskip("httpx", reason="the client of the tests: pip install httpx")

from starlette.testclient import TestClient

from triune.text.serving.app import Served, make_app
from triune.text.serving.engine import Answer, Engine, Event
from triune.text.serving.requests import Job, Limits

LIMITS = Limits(tokens=40, waiting=4, batch=3, body=2000)
CHAT = {"messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    torch.manual_seed(0)
    core = TransformerConfig(dim=32, depth=2, heads=2, causal=True, context=64)
    made = LanguageModel(LanguageModelConfig(257, core, tied=False, head_bias=True)).eval()
    torch.nn.init.normal_(made.head.weight, std=0.3)
    made.head.bias.data[128:] = -99.0  # letters alone, and no end
    return made


@pytest.fixture(scope="module")
def client(model):
    with TestClient(make_app(Served("tiny", model, Tokenizer.bytes(), LIMITS))) as client:
        yield client


def written(model: LanguageModel, prompt: str, count: int, config: SamplingConfig, seed: int | None = None) -> str:
    ids = Tokenizer.bytes().encode(prompt).tolist()
    tokens = [step[0] for step in generate(model, [ids], count, config, seed, {256})]
    return bytes(token for token in tokens if token < 256).decode("utf-8", "replace")


def test_models(client):
    (found,) = client.get("/v1/models").json()["data"]
    assert (found["id"], found["object"]) == ("tiny", "model")


def test_a_completion_is_what_generate_writes(client, model):
    asked = {"model": "tiny", "prompt": "abc", "max_tokens": 12, "temperature": 0}
    answer = client.post("/v1/completions", json=asked).json()
    (choice,) = answer["choices"]
    assert choice["text"] == written(model, "abc", 12, SamplingConfig(0))
    assert choice["finish_reason"] in ("length", "stop")
    assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": 12, "total_tokens": 15}
    seeded = asked | {"temperature": 0.9, "top_p": 0.8, "seed": 5, "frequency_penalty": 0, "user": "me"}
    (choice,) = client.post("/v1/completions", json=seeded).json()["choices"]
    assert choice["text"] == written(model, "abc", 12, SamplingConfig(0.9, top_p=0.8), 5)


def test_several_prompts_and_choices(client, model):
    asked = {"prompt": ["abc", [100, 101]], "max_tokens": 6, "temperature": 1, "seed": 3, "n": 2}
    choices = client.post("/v1/completions", json=asked).json()["choices"]
    expected = [written(model, prompt, 6, SamplingConfig(1), seed) for prompt in ("abc", "de") for seed in (3, 4)]
    assert [choice["text"] for choice in choices] == expected
    assert [choice["index"] for choice in choices] == [0, 1, 2, 3]


def test_a_chat(client):
    answer = client.post("/v1/chat/completions", json=CHAT | {"max_tokens": 5, "temperature": 0}).json()
    (choice,) = answer["choices"]
    assert answer["object"] == "chat.completion" and choice["message"]["role"] == "assistant"
    assert answer["usage"]["completion_tokens"] == 5


@pytest.mark.parametrize("chat", [False, True])
def test_a_stream_says_the_same(client, chat):
    address = "/v1/chat/completions" if chat else "/v1/completions"
    asked = (CHAT if chat else {"prompt": "abc"}) | {"max_tokens": 9, "temperature": 0}
    (whole,) = client.post(address, json=asked).json()["choices"]
    lines = client.post(address, json=asked | {"stream": True, "stream_options": {"include_usage": True}}).text
    events = [line.removeprefix("data: ") for line in lines.split("\n\n") if line]
    assert events.pop() == "[DONE]"
    parts = [json.loads(event) for event in events]
    assert parts.pop()["usage"]["completion_tokens"] == 9
    choices = [part["choices"][0] for part in parts]
    text = "".join(c["delta"].get("content", "") if chat else c["text"] for c in choices)
    assert text == (whole["message"]["content"] if chat else whole["text"])
    assert [c["finish_reason"] for c in choices if c["finish_reason"]] == [whole["finish_reason"]]


def test_it_ends_before_a_stop(client, model):
    text = written(model, "abc", 12, SamplingConfig(0))
    asked = {"prompt": "abc", "max_tokens": 12, "temperature": 0, "stop": [text[4:6]]}
    (choice,) = client.post("/v1/completions", json=asked).json()["choices"]
    assert choice == {"index": 0, "text": text[: text.index(text[4:6])], "logprobs": None, "finish_reason": "stop"}


WRONG: list[tuple[Any, int, str]] = [
    ("{", 400, "The request"),
    ("[1]", 400, "must be a JSON object"),
    ({"prompt": "x" * 3000}, 413, "more than 2,000 bytes"),
    ({"prompt": "x" * 64}, 400, "The prompt has 64 tokens, but the context is 64"),
    ({"prompt": "x" * 40, "max_tokens": 30}, 400, "ask for at most 24"),
    ({"prompt": "x", "max_tokens": 41}, 400, "from 1 to 40"),
    ({"prompt": "x", "max_tokens": 1.5}, 400, "max_tokens is 1.5"),
    ({"prompt": "x", "temperature": -1}, 400, "temperature is -1"),
    ({"prompt": "x", "temperature": "hot"}, 400, "temperature is 'hot', but must be a number"),
    ({"prompt": "x", "stream": 1}, 400, "stream is 1, but must be true or false"),
    ({"prompt": "x", "stop": [""]}, 400, "not empty"),
    ({"prompt": "x", "seed": -3}, 400, "seed is -3"),
    ({"prompt": "x", "n": 9}, 400, "n is 9"),
    ({"prompt": ["x"] * 5}, 429, "more would be above 4"),
    ({"prompt": [1, 999]}, 400, "numbers of tokens from 0 to 256"),
    ({"prompt": "\ud800"}, 400, "surrogate"),
    ({"prompt": "x", "logprobs": 5}, 400, "logprobs is 5, but is not offered"),
    ({"prompt": "x", "frequency_penalty": 0.5}, 400, "frequency_penalty is 0.5"),
    ({"prompt": "x", "beams": 5}, 400, "'beams' is no field"),
    ({"prompt": "x", "model": "other"}, 404, "has 'tiny' alone"),
    ({"messages": []}, 400, "belongs to the other address"),
]


@pytest.mark.parametrize(("body", "status", "said"), WRONG)
def test_a_mistake_is_one_sentence(client, body, status, said):
    content = body if isinstance(body, str) else json.dumps(body)
    answer = client.post("/v1/completions", content=content)
    error = answer.json()["error"]
    assert (answer.status_code, said in error["message"]) == (status, True), error
    assert error["message"].endswith(".") and "\n" not in error["message"]
    fine = client.post("/v1/completions", json={"prompt": "a", "max_tokens": 1})
    assert fine.status_code == 200  # nothing else is disturbed


def test_other_addresses_and_empty_chats(client):
    assert "There is no /v2 here" in client.get("/v2").json()["error"]["message"]
    assert client.get("/v1/completions").status_code == 405
    for messages in ([], [{"role": "assistant", "content": "hi"}], "hi", [{"role": "user"}]):
        answer = client.post("/v1/chat/completions", json={"messages": messages})
        assert answer.status_code == 400 and answer.json()["error"]["message"].endswith(".")


def test_a_key(model):
    with TestClient(make_app(Served("tiny", model, Tokenizer.bytes(), LIMITS, key="secret"))) as client:
        assert client.get("/v1/models").status_code == 401
        wrong = {"Authorization": "Bearer other"}
        assert client.post("/v1/completions", json={"prompt": "a"}, headers=wrong).status_code == 401
        right = {"Authorization": "Bearer secret"}
        assert client.get("/v1/models", headers=right).status_code == 200


# --- the loop ---------------------------------------------------------------------------------------------------------


def job(prompt: str, tokens: int, seed: int | None = None) -> Job:
    config = SamplingConfig(0 if seed is None else 1)
    return Job(Tokenizer.bytes().encode(prompt).tolist(), "", tokens, config, seed, [])


class Listener:
    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events)

    @property
    def done(self) -> bool:
        return any(event.reason for event in self.events)


def wait_for(condition: Any) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)


def test_those_who_wait_are_written_together(model):
    engine = Engine(model, Tokenizer.bytes(), 4)
    told = [Listener() for _ in range(4)]
    for number, listener in enumerate(told):
        engine.add(Answer(job("abc"[: number % 3 + 1], 8 + number, number), listener))
    engine.start()
    wait_for(lambda: all(listener.done for listener in told))
    engine.stop()
    assert engine.steps == 11  # as many as the longest needs, not 8 + 9 + 10 + 11
    for number, listener in enumerate(told):
        assert listener.text == written(model, "abc"[: number % 3 + 1], 8 + number, SamplingConfig(1), number)


def test_one_joins_while_another_is_written(model):
    engine = Engine(model, Tokenizer.bytes(), 2)
    second, late = Listener(), Answer(job("xy", 4), Listener())
    late.tell = second

    class First(Listener):
        def __call__(self, event: Event) -> None:
            super().__call__(event)
            if event.tokens == 3:
                engine.add(late)

    first = First()
    engine.add(Answer(job("abc", 40), first))
    engine.start()
    wait_for(lambda: first.done and second.done)
    engine.stop()
    assert engine.steps == 40  # the second took no steps of its own
    assert first.text == written(model, "abc", 40, SamplingConfig(0))
    assert second.text == written(model, "xy", 4, SamplingConfig(0))


@pytest.mark.parametrize("lengths", [(60, 3), (20, 90), (64, 64)])
def test_who_joins_does_not_move_what_others_see(model, lengths):
    """The first has outgrown the context of 64 by the time the second joins it, sixteen tokens later."""
    engine, found = Engine(model, Tokenizer.bytes(), 2), ["", ""]

    def answer(number: int) -> Answer:
        def tell(event: Event) -> None:
            found[number] += event.text

        ids = [97 + (5 * at + number) % 26 for at in range(lengths[number])]
        return Answer(Job(ids, "", 60, SamplingConfig(0), None, []), tell)

    first, second = answer(0), answer(1)
    batch = engine._joined([first])
    engine.add(second)
    engine._write(batch)
    assert found == [written(model, bytes(one.job.ids).decode(), 60, SamplingConfig(0)) for one in (first, second)]


def test_who_goes_away_is_left_out(model):
    engine = Engine(model, Tokenizer.bytes(), 2)
    gone = Answer(job("abc", 40), Listener())

    class Leaves(Listener):
        def __call__(self, event: Event) -> None:
            super().__call__(event)
            gone.cancelled = event.tokens >= 2

    gone.tell = listener = Leaves()
    other = Listener()
    engine.add(gone)
    engine.add(Answer(job("xy", 6), other))
    engine.start()
    wait_for(lambda: other.done)
    engine.stop()
    assert not listener.done and listener.events[-1].tokens <= 3
    assert other.text == written(model, "xy", 6, SamplingConfig(0))


def test_a_failure_is_told_and_the_loop_goes_on(model, monkeypatch):
    engine = Engine(model, Tokenizer.bytes(), 2)
    hidden = LanguageModel.hidden
    monkeypatch.setattr(LanguageModel, "hidden", lambda *args, **more: 1 / 0)
    broken, fine = Listener(), Listener()
    engine.add(Answer(job("abc", 4), broken))
    engine.start()
    wait_for(lambda: broken.done)
    assert broken.events[-1].error == "The model failed (division by zero); try again."
    monkeypatch.setattr(LanguageModel, "hidden", hidden)
    engine.add(Answer(job("abc", 4), fine))
    wait_for(lambda: fine.done)
    engine.stop()
    assert fine.text == written(model, "abc", 4, SamplingConfig(0))


# --- the command ------------------------------------------------------------------------------------------------------


def test_a_port_in_use_and_addresses_that_are_none(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        port = taken.getsockname()[1]
        assert main(["text", "serve", "nothing", "--port", str(port)]) == 2
        error = capsys.readouterr().err
        assert f"cannot listen at 127.0.0.1:{port}" in error and error.count("\n") == 1
    with pytest.raises(UserError, match="is no address"):
        listen("no.such.host.invalid", 0)
    with listen("127.0.0.1", 0) as found:
        assert found.getsockname()[1] > 0
    assert main(["text", "serve", "nothing", "--port", "99999"]) == 2
    assert "--port is 99999" in capsys.readouterr().err

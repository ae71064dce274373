"""The addresses of the server, on Starlette: what OpenAI's clients send and expect."""

from __future__ import annotations

import asyncio
import hmac
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from ...core.errors import UserError
from ...core.files import parse_json
from ..generate import prompt_ids
from ..model import LanguageModel
from ..talk import Talk
from ..tokenizer import Tokenizer
from .engine import Answer, Engine, Event
from .requests import Asked, Limits, Refusal, read_request

LOOK = 0.5
"""Seconds between two looks at whether a client is still there."""
STATUS_GONE = 499
KINDS = {400: "invalid_request_error", 401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


@dataclass
class Served:
    """A model that is served.

    Args:
        name: clients see it.
        model: in evaluation mode.
        tokenizer: of the model.
        limits: of the server.
        key: what clients must send; None lets everybody in.
    """

    name: str
    model: LanguageModel
    tokenizer: Tokenizer
    limits: Limits
    key: str | None = None


def make_app(served: Served) -> Starlette:
    """The server; its loop runs from start-up to shutdown."""
    server = _Server(served)
    app = Starlette(
        routes=[
            Route("/v1/models", server.models),
            Route("/v1/completions", server.completions, methods=["POST"]),
            Route("/v1/chat/completions", server.chat, methods=["POST"]),
        ],
        lifespan=server.lifespan,
        exception_handlers={Refusal: _refused, HTTPException: _refused, Exception: _failed},
    )
    app.state.engine = server.engine
    return app


def _error(message: str, status: int, field: str | None = None, headers: Any = None) -> JSONResponse:
    kind = KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")
    error = {"message": message, "type": kind, "param": field, "code": None}
    return JSONResponse({"error": error}, status, headers=headers)


def _refused(request: Request, error: Exception) -> Response:
    if isinstance(error, Refusal):
        return _error(str(error), error.status, error.field)
    assert isinstance(error, HTTPException)
    what = {
        404: f"There is no {request.url.path} here; there are /v1/models, /v1/completions and /v1/chat/completions.",
        405: f"{request.url.path} does not answer {request.method}; /v1/models answers GET, the others POST.",
    }
    return _error(what.get(error.status_code, error.detail), error.status_code, headers=error.headers)


def _failed(request: Request, error: Exception) -> Response:
    return _error(f"The server failed ({type(error).__name__}); its terminal says where.", 500)


class _Server:
    def __init__(self, served: Served) -> None:
        self.served, self.began = served, int(time.time())
        self.engine = Engine(served.model, served.tokenizer, served.limits.batch)
        self._answers: list[Answer] = []
        self.talk = Talk(served.tokenizer, [])

    def lifespan(self, app: Starlette) -> Any:
        from contextlib import asynccontextmanager

        @asynccontextmanager
        async def running(_: Starlette) -> AsyncIterator[None]:
            self.engine.start()
            yield
            await run_in_threadpool(self.engine.stop)

        return running(app)

    async def models(self, request: Request) -> Response:
        self._check_key(request)
        model = {"id": self.served.name, "object": "model", "created": self.began, "owned_by": "triune"}
        return JSONResponse({"object": "list", "data": [model]})

    async def completions(self, request: Request) -> Response:
        return await self._answer(request, chat=False)

    async def chat(self, request: Request) -> Response:
        return await self._answer(request, chat=True)

    # --- a request ----------------------------------------------------------------------------------------------------

    async def _answer(self, request: Request, chat: bool) -> Response:
        self._check_key(request)
        body = await self._body(request)
        served = self.served
        asked: Asked = await run_in_threadpool(
            read_request, body, chat, served.name, served.tokenizer, served.model.config.transformer.context,
            served.limits, self._ask, lambda text: prompt_ids(served.tokenizer, text),
        )  # fmt: skip
        jobs = asked.jobs
        self._answers = [answer for answer in self._answers if not (answer.finished or answer.cancelled)]
        if len(self._answers) + len(jobs) > served.limits.waiting:
            raise Refusal(
                f"{len(self._answers)} answers are written or wait, and {len(jobs)} more would be above "
                f"{served.limits.waiting}; try again later.",
                429,
            )
        news: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def teller(number: int) -> Callable[[Event], None]:
            def tell(event: Event) -> None:
                answers[number].finished |= event.reason is not None
                if not loop.is_closed():
                    loop.call_soon_threadsafe(news.put_nowait, (number, event))

            return tell

        answers = [Answer(job, teller(number)) for number, job in enumerate(jobs)]
        self._answers += answers
        for answer in answers:
            self.engine.add(answer)
        form = _Form(served.name, chat, jobs[0].ids, [len(job.ids) for job in jobs])
        if asked.stream:
            content = self._stream(request, form, answers, news, asked.usage)
            return StreamingResponse(content, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        return await self._whole(request, form, answers, news)

    def _ask(self, messages: list[Any]) -> tuple[list[int], str]:
        if not messages or messages[-1]["role"] == "assistant":
            raise UserError("messages must end with a question, not with an answer, and not be empty.")
        template = self.talk.template
        return template.ask(messages).tolist(), template.lead(messages, False)

    def _check_key(self, request: Request) -> None:
        wanted = self.served.key
        sent = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
        if wanted is not None and not hmac.compare_digest(sent.encode(), wanted.encode()):
            raise Refusal("The key is missing or wrong; send it as 'Authorization: Bearer KEY'.", 401)

    async def _body(self, request: Request) -> Any:
        most, content = self.served.limits.body, b""
        async for part in request.stream():
            content += part
            if len(content) > most:
                raise Refusal(f"The request has more than {most:,} bytes; send less.", 413)
        try:
            return parse_json(content, "The request")
        except UserError as error:
            raise Refusal(str(error)) from None

    # --- its answer ---------------------------------------------------------------------------------------------------

    async def _news(
        self, request: Request, answers: list[Answer], news: asyncio.Queue[tuple[int, Event]]
    ) -> AsyncIterator[tuple[int, Event]]:
        """Events until all answers are finished; ends early, and stops them, when the client goes away."""
        left = len(answers)
        try:
            while left:
                try:
                    number, event = await asyncio.wait_for(news.get(), LOOK)
                except TimeoutError:
                    if await request.is_disconnected():
                        return
                    continue
                left -= event.reason is not None
                yield number, event
        finally:
            for answer in answers:
                answer.cancelled = True

    async def _whole(
        self, request: Request, form: _Form, answers: list[Answer], news: asyncio.Queue[tuple[int, Event]]
    ) -> Response:
        texts, reasons, tokens = [""] * len(answers), [""] * len(answers), [0] * len(answers)
        events = self._news(request, answers, news)
        try:
            async for number, event in events:
                if event.reason == "error":
                    raise Refusal(event.error, 500)
                texts[number] += event.text
                tokens[number] = event.tokens
                reasons[number] = event.reason or ""
        finally:
            await events.aclose()  # type: ignore[attr-defined]
        if not all(reasons):
            return Response(status_code=STATUS_GONE)
        choices = [form.choice(number, text, reasons[number]) for number, text in enumerate(texts)]
        return JSONResponse(form.frame(choices, tokens))

    async def _stream(
        self, request: Request, form: _Form, answers: list[Answer], news: asyncio.Queue[tuple[int, Event]], usage: bool
    ) -> AsyncIterator[str]:
        tokens = [0] * len(answers)
        events = self._news(request, answers, news)
        try:
            if form.chat:
                for number in range(len(answers)):
                    yield _sse(form.frame([form.part(number, {"role": "assistant", "content": ""}, None)]))
            async for number, event in events:
                if event.reason == "error":
                    yield _sse({"error": {"message": event.error, "type": "server_error"}})
                    return
                tokens[number] = event.tokens
                if event.text:
                    yield _sse(form.frame([form.part(number, event.text, None)]))
                if event.reason is not None:
                    yield _sse(form.frame([form.part(number, "", event.reason)]))
            if usage:
                yield _sse(form.frame([], tokens))
            yield "data: [DONE]\n\n"
        finally:
            await events.aclose()  # type: ignore[attr-defined]


def _sse(content: Any) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


class _Form:
    """The frame of an answer.

    Args:
        model: its name.
        chat: an answer to messages, else a text that goes on.
        ids: of the first prompt.
        prompts: tokens of the prompt of each answer.
    """

    def __init__(self, model: str, chat: bool, ids: list[int], prompts: list[int]) -> None:
        self.model, self.chat, self.prompts = model, chat, prompts
        self.id, self.created = f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}", int(time.time())
        self.parts = False

    def choice(self, number: int, text: str, reason: str) -> dict[str, Any]:
        """A whole answer."""
        said = {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
        return {"index": number, **said, "logprobs": None, "finish_reason": reason}

    def part(self, number: int, text: str | dict[str, str], reason: str | None) -> dict[str, Any]:
        """A piece of an answer."""
        self.parts = True
        delta = text if isinstance(text, dict) else {"content": text} if text else {}
        said = {"delta": delta} if self.chat else {"text": text}
        return {"index": number, **said, "logprobs": None, "finish_reason": reason}

    def frame(self, choices: list[dict[str, Any]], tokens: list[int] | None = None) -> dict[str, Any]:
        """The object around answers or pieces; with the numbers of tokens where they are known."""
        kind = "chat.completion" if self.chat else "text_completion"
        kind += ".chunk" if self.chat and self.parts else ""
        found = {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices}
        if tokens is not None:
            asked, written = sum(self.prompts), sum(tokens)
            found["usage"] = {
                "prompt_tokens": asked, "completion_tokens": written, "total_tokens": asked + written,
            }  # fmt: skip
        return found

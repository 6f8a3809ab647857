"""The OpenAI-compatible server of the simulated vLLM.

Text is made up: a request's first token names the model and the host that answered, the rest count on, so that a
client can tell who served it. Prompt tokens are counted at about four characters each, or taken from token lists.
Without ``ignore_eos`` the output length is drawn from a seeded exponential distribution and cut at ``max_tokens``.

Shutdown follows vLLM: the port answers until the process ends; with a shutdown timeout the running requests are
finished while new ones end at once with the reason ``abort``, without one everything is aborted.
"""

import asyncio
import itertools
import json
import logging
import random
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from servingplan.sim.driver import Driver, Ticket
from servingplan.sim.engine import BLOCK_TOKENS, KEY_MASK, Limits, StepCost
from servingplan.sim.metrics import Metrics

logger = logging.getLogger(__name__)

CHARACTERS_PER_TOKEN = 4
TOKENS_PER_MESSAGE = 4
"""What a chat template adds to each message."""

_BLOCK_CHARACTERS = BLOCK_TOKENS * CHARACTERS_PER_TOKEN


@dataclass(frozen=True, slots=True)
class Settings:
    """One simulated server.

    Attributes:
        model: path or name of the model.
        served_names: names it answers to; answers and metrics carry the first.
        cost: step-time coefficients, the speed factor applied.
        limits: scheduler limits.
        kv_blocks: KV blocks, with the null block.
        max_model_len: longest prompt and output together.
        memory_share: vLLM's ``--gpu-memory-utilization``.
        host, port: address to listen on.
        cold_start_s: time until the port opens.
        shutdown_timeout_s: how long running requests may go on after SIGTERM.
        output_tokens_mean: mean of drawn output lengths.
        seed: of the drawn lengths.
    """

    model: str
    served_names: tuple[str, ...]
    cost: StepCost
    limits: Limits
    kv_blocks: int
    max_model_len: int
    memory_share: float = 0.9
    host: str = "0.0.0.0"
    port: int = 8000
    cold_start_s: float = 0.0
    shutdown_timeout_s: float = 0.0
    output_tokens_mean: float = 200.0
    seed: int = 0


class RequestError(Exception):
    """A request the server refuses; its fields are those of vLLM's error object."""

    def __init__(self, status: int, kind: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.kind, self.param = status, kind, param

    def response(self) -> web.Response:
        """The error as vLLM words it."""
        error = {"message": str(self), "type": self.kind, "param": self.param, "code": self.status}
        return web.json_response({"error": error}, status=self.status)


@dataclass(frozen=True, slots=True)
class Completion:
    """A request that was understood.

    Attributes:
        chat: chat completion, not a text completion.
        stream, include_usage: how to answer.
        prompt_tokens, block_hashes: the prompt, as the engine sees it.
        max_tokens: limit of the output.
        output_tokens: length the output will have.
    """

    chat: bool
    stream: bool
    include_usage: bool
    prompt_tokens: int
    block_hashes: tuple[int, ...]
    max_tokens: int
    output_tokens: int

    @property
    def finish_reason(self) -> str:
        """Why a complete output ends."""
        return "length" if self.output_tokens == self.max_tokens else "stop"


class Server:
    """Handlers and state of one simulated server."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.name = settings.served_names[0]
        self.hostname = socket.gethostname()
        self.metrics = Metrics(self.name, settings.max_model_len, _cache_config(settings))
        self.driver = Driver(
            settings.cost,
            settings.limits,
            settings.kv_blocks,
            settings.max_model_len,
            on_token=self.metrics.on_token,
            on_step=self.metrics.on_step,
        )
        self.metrics.watch(self.driver)
        self.draining = False
        self._random = random.Random(settings.seed)
        self._ids = itertools.count(1)
        self._started = int(time.time())

    def application(self) -> web.Application:
        """The routes."""
        app = web.Application(client_max_size=64 * 2**20, middlewares=[_errors])
        app.add_routes(
            [
                web.get("/v1/models", self.models),
                web.post("/v1/chat/completions", self.chat_completions),
                web.post("/v1/completions", self.completions),
                web.get("/metrics", self.metrics_page),
                web.get("/version", self.version),
                web.get("/health", self.healthy),
                web.route("*", "/ping", self.healthy),
            ]
        )
        return app

    async def healthy(self, _: web.Request) -> web.Response:
        """An empty 200."""
        return web.Response()

    async def version(self, _: web.Request) -> web.Response:
        """The vLLM version looked alike."""
        return web.json_response({"version": "0.32.0+sim"})

    async def metrics_page(self, _: web.Request) -> web.Response:
        """Prometheus' page."""
        return web.Response(body=self.metrics.page(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    async def models(self, _: web.Request) -> web.Response:
        """Every served name."""
        cards: list[dict[str, Any]] = [
            {
                "id": name,
                "object": "model",
                "created": self._started,
                "owned_by": "vllm",
                "root": self.settings.model,
                "parent": None,
                "max_model_len": self.settings.max_model_len,
                "permission": [],
            }
            for name in self.settings.served_names
        ]
        return web.json_response({"object": "list", "data": cards})

    async def chat_completions(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/chat/completions."""
        body = await self._body(request)
        messages = body.get("messages")
        if not isinstance(messages, list) or not messages:
            raise _invalid("messages must be a list of at least one message", "messages")
        text = "".join(_message_text(message) for message in messages)
        tokens = -(-len(text) // CHARACTERS_PER_TOKEN) + TOKENS_PER_MESSAGE * len(messages)
        return await self._answer(request, self._understood(body, chat=True, prompt_tokens=tokens, content=text))

    async def completions(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/completions, with a text or a list of token numbers for a prompt."""
        body = await self._body(request)
        prompt = body.get("prompt")
        if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
            prompt = prompt[0]
        if isinstance(prompt, str):
            tokens = max(1, -(-len(prompt) // CHARACTERS_PER_TOKEN))
        elif isinstance(prompt, list) and prompt and all(isinstance(token, int) for token in prompt):
            tokens = len(prompt)
        else:
            raise _invalid("prompt must be one text or one list of token numbers", "prompt")
        return await self._answer(request, self._understood(body, chat=False, prompt_tokens=tokens, content=prompt))

    async def _body(self, request: web.Request) -> dict[str, Any]:
        try:
            body = await request.json()
        except ValueError as error:
            raise _invalid(f"the body is not JSON: {error}") from None
        if not isinstance(body, dict):
            raise _invalid("the body is not a JSON object")
        model = body.get("model") or self.name
        if model not in self.settings.served_names:
            aliases = ", ".join(self.settings.served_names)
            message = f"The model `{model}` does not exist. Valid aliases: {aliases}"
            raise RequestError(404, "NotFoundError", message, "model")
        if body.get("n") not in (None, 1):
            raise _invalid("more than one choice is not simulated", "n")
        return body

    def _understood(self, body: Mapping[str, Any], *, chat: bool, prompt_tokens: int, content: str | list[int]) -> Completion:
        room = self.settings.max_model_len - prompt_tokens
        if room < 1:
            raise _invalid(
                f"This model's maximum context length is {self.settings.max_model_len} tokens. However, your request "
                f"has {prompt_tokens} input tokens. Please reduce the length of the input.",
                "input_tokens",
            )
        asked = body.get("max_completion_tokens") or body.get("max_tokens")
        max_tokens = _whole(asked, "max_tokens", room if chat else 16)
        if max_tokens < 1:
            raise _invalid(f"max_tokens must be at least 1, got {max_tokens}.", "max_tokens")
        if max_tokens > room:
            raise _invalid(
                f"'max_tokens' or 'max_completion_tokens' is too large: {max_tokens}. This model's maximum context "
                f"length is {self.settings.max_model_len} tokens and your request has {prompt_tokens} input tokens.",
                "max_tokens",
            )
        options = body.get("stream_options") or {}
        return Completion(
            chat=chat,
            stream=bool(body.get("stream")),
            include_usage=bool(options.get("include_usage")),
            prompt_tokens=prompt_tokens,
            block_hashes=tuple(_block_hashes(content)) if self.settings.limits.prefix_caching else (),
            max_tokens=max_tokens,
            output_tokens=self._output_tokens(body, max_tokens),
        )

    def _output_tokens(self, body: Mapping[str, Any], max_tokens: int) -> int:
        if body.get("ignore_eos"):
            return max_tokens
        seed = body.get("seed")
        source = self._random if seed is None else random.Random(seed)
        drawn = 1 + int(source.expovariate(1 / self.settings.output_tokens_mean))
        return min(max_tokens, max(drawn, _whole(body.get("min_tokens"), "min_tokens", 0)))

    async def _answer(self, request: web.Request, completion: Completion) -> web.StreamResponse:
        reply = Reply(self, completion, f"{'chatcmpl' if completion.chat else 'cmpl'}-{next(self._ids):016x}")
        if self.draining:
            return await reply.refused(request)
        ticket = self.driver.submit(
            completion.prompt_tokens,
            completion.output_tokens,
            completion.block_hashes,
            every_token=completion.stream,
        )
        try:
            if completion.stream:
                return await reply.stream(request, ticket)
            return await reply.whole(ticket)
        finally:
            # Reached with the ticket open when the client went away: its slot and KV blocks must not stay taken.
            self.driver.abort(ticket)

    async def drain(self) -> None:
        """Let the running requests end, for as long as the shutdown timeout allows; abort the rest."""
        self.draining = True
        with suppress(TimeoutError):
            await asyncio.wait_for(self.driver.idle(), self.settings.shutdown_timeout_s)
        self.driver.abort_all()


class Reply:
    """One answer in the making: the ids every part of it repeats, and its two shapes."""

    def __init__(self, server: Server, completion: Completion, request_id: str) -> None:
        self._server = server
        self._completion = completion
        self._head = {
            "id": request_id,
            "created": int(time.time()),
            "model": server.name,
            "system_fingerprint": server.hostname,
        }

    async def whole(self, ticket: Ticket) -> web.Response:
        """Wait for the last token and answer at once."""
        while not ticket.done:
            await ticket.tokens()
        reason = self._finish(ticket)
        return web.json_response(self._whole(self._text(0, ticket.generated), ticket, reason))

    async def refused(self, request: web.Request) -> web.StreamResponse:
        """What a request gets that comes while the server drains: an empty answer that ended with ``abort``."""
        ticket = Ticket(self._completion.prompt_tokens, 0, 0.0, every_token=False)
        ticket.done = ticket.aborted = True
        ticket.notify()
        return await (self.stream(request, ticket) if self._completion.stream else self.whole(ticket))

    async def stream(self, request: web.Request, ticket: Ticket) -> web.StreamResponse:
        """Answer with server-sent events; the headers go out before the first token."""
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        response.enable_chunked_encoding()
        await response.prepare(request)
        async for events in self._events(ticket):
            await response.write(b"".join(b"data: " + event + b"\n\n" for event in events))
        await response.write_eof()
        return response

    async def _events(self, ticket: Ticket) -> AsyncIterator[list[bytes]]:
        """Events as they come about; one list a write."""
        sent = 0
        ended = False
        while not ended:
            generated = await ticket.tokens()
            ended = ticket.done
            events = []
            if sent == 0 and self._completion.chat:
                events.append(self._chunk({"role": "assistant", "content": ""}, None))
            for k in range(sent, generated):
                last = ended and k == generated - 1 and not ticket.aborted
                events.append(self._chunk(self._delta(self._text(k, k + 1)), self._finish(ticket) if last else None))
            sent = generated
            yield events
        events = []
        if ticket.aborted:
            events.append(self._chunk(self._delta(""), "abort"))
        if self._completion.include_usage:
            events.append(json.dumps(self._event([]) | {"usage": self._usage(ticket)}).encode())
        yield [*events, b"[DONE]"]

    def _finish(self, ticket: Ticket) -> str:
        if ticket.aborted:
            return "abort"
        self._server.metrics.on_finish(ticket, self._completion.finish_reason, self._completion.max_tokens)
        return self._completion.finish_reason

    def _text(self, start: int, stop: int) -> str:
        words = (f" token{k}" if k else f"{self._server.name} {self._server.hostname}" for k in range(start, stop))
        return "".join(words)

    def _delta(self, text: str) -> dict[str, Any] | str:
        return {"content": text} if self._completion.chat else text

    def _chunk(self, delta: dict[str, Any] | str, reason: str | None) -> bytes:
        part = {"delta": delta} if self._completion.chat else {"text": delta}
        choice = {"index": 0, **part, "logprobs": None, "finish_reason": reason}
        return json.dumps(self._event([choice])).encode()

    def _event(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self._completion.chat else "text_completion"
        return {**self._head, "object": kind, "choices": choices}

    def _whole(self, text: str, ticket: Ticket, reason: str) -> dict[str, Any]:
        chat = self._completion.chat
        part = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        choice = {"index": 0, **part, "logprobs": None, "finish_reason": reason}
        kind = "chat.completion" if chat else "text_completion"
        return {**self._head, "object": kind, "choices": [choice], "usage": self._usage(ticket)}

    def _usage(self, ticket: Ticket) -> dict[str, Any]:
        return {
            "prompt_tokens": ticket.prompt_tokens,
            "completion_tokens": ticket.generated,
            "total_tokens": ticket.prompt_tokens + ticket.generated,
            "prompt_tokens_details": {"cached_tokens": ticket.cached_tokens},
        }


async def serve(settings: Settings) -> None:
    """Start cold, serve until SIGTERM or SIGINT, drain, return."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    with suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), settings.cold_start_s)
    if stop.is_set():
        return
    server = Server(settings)
    runner = web.AppRunner(
        server.application(), handler_cancellation=True, access_log=None, shutdown_timeout=1.0, keepalive_timeout=75.0
    )
    await runner.setup()
    driving = asyncio.create_task(server.driver.run())
    await web.TCPSite(runner, settings.host, settings.port, backlog=1024).start()
    logger.info("serving %s on %s:%d", server.name, settings.host, settings.port)
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait({stopped, driving}, return_when=asyncio.FIRST_COMPLETED)
    if driving.done():
        driving.result()  # an engine that fails takes the server with it, for the kubelet to restart
    await server.drain()
    await runner.cleanup()
    driving.cancel()


@web.middleware
async def _errors(request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> web.StreamResponse:
    try:
        return await handler(request)
    except RequestError as error:
        return error.response()


def _invalid(message: str, param: str | None = None) -> RequestError:
    return RequestError(400, "BadRequestError", message, param)


def _whole(value: Any, name: str, default: int) -> int:
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int):
        raise _invalid(f"{name} must be a whole number, got {value!r}", name)
    return value


def _message_text(message: Any) -> str:
    if not isinstance(message, dict):
        raise _invalid("every message must be an object", "messages")
    content = message.get("content") or ""
    if isinstance(content, list):
        content = "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return f"{message.get('role', '')}\n{content}\n"


def _block_hashes(content: str | list[int]) -> list[int]:
    """Chained keys of the prompt's full KV blocks: equal exactly as far as two prompts begin alike."""
    size = _BLOCK_CHARACTERS if isinstance(content, str) else BLOCK_TOKENS
    keys: list[int] = []
    key = 0
    for start in range(0, len(content) - size + 1, size):
        block = content[start : start + size]
        key = hash((key, block if isinstance(block, str) else tuple(block))) & KEY_MASK
        keys.append(key)
    return keys


def _cache_config(settings: Settings) -> dict[str, str]:
    tokens = (settings.kv_blocks - 1) * BLOCK_TOKENS
    return {
        "block_size": str(BLOCK_TOKENS),
        "cache_dtype": "auto",
        "enable_prefix_caching": str(bool(settings.limits.prefix_caching)),
        "engine": "0",
        "gpu_memory_utilization": str(settings.memory_share),
        "is_attention_free": "False",
        "kv_cache_max_concurrency": str(tokens / settings.max_model_len),
        "kv_cache_size_tokens": str(tokens),
        "num_cpu_blocks": "None",
        "num_gpu_blocks": str(settings.kv_blocks),
        "num_gpu_blocks_override": "None",
        "prefix_caching_hash_algo": "sha256",
        "sliding_window": "None",
        "user_specified_block_size": "False",
    }

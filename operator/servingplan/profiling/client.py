"""Requests to an OpenAI-compatible server: its models, its metrics page, and streamed completions with their times.

Whatever goes wrong is raised as one sentence that says what the server did and what to change. The API key goes into a
header and nowhere else.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

import aiohttp

from servingplan.profiling.errors import ProfilingError
from servingplan.profiling.exchange import Card, Endpoint, Sample
from servingplan.profiling.prompts import Prompt
from servingplan.profiling.refusals import CONNECT_S, lost, quote, refused
from servingplan.profiling.stream import BrokenStreamError, Tokens, read_tokens


class Client:
    """A session with one server. An asynchronous context manager."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Client:
        endpoint = self._endpoint
        if endpoint.root.scheme not in ("http", "https") or not endpoint.root.host:
            raise ProfilingError(f"'{endpoint.url}' is no address: give --endpoint such as http://my-model:8000")
        headers = {"Authorization": f"Bearer {endpoint.api_key}"} if endpoint.api_key else {}
        self._session = aiohttp.ClientSession(
            headers=headers,
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=endpoint.silence_s),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def card(self) -> Card:
        """Finds the model among those the server lists.

        Raises:
            ProfilingError: The server cannot be reached, is no OpenAI server, or serves other models.
        """
        status, text = await self._get("v1/models")
        if status != 200:
            raise refused(self._endpoint, "/v1/models", status, text)
        cards = _cards(text)
        if cards is None:
            raise ProfilingError(
                f"{self._endpoint.shown}/v1/models does not answer as an OpenAI server does, but with {quote(text)}:"
                " give --endpoint the root of a vLLM server, such as http://my-model:8000"
            )
        found = {card.name: card for card in cards}
        if self._endpoint.model not in found:
            names = ", ".join(found) or "no model at all"
            raise ProfilingError(
                f"{self._endpoint.shown} does not serve '{self._endpoint.model}' but {names}: give --model one of those"
            )
        return found[self._endpoint.model]

    async def metrics(self) -> str:
        """The page at ``/metrics``; empty where there is none."""
        try:
            status, text = await self._get("metrics")
        except ProfilingError:
            return ""
        return text if status == 200 else ""

    async def complete(self, prompt: Prompt, output_tokens: int, given_up: Callable[[Sample], None] | None = None) -> Sample:
        """Streams one completion of exactly that many tokens.

        Args:
            prompt: What is sent.
            output_tokens: How many are asked for.
            given_up: Told what a request had got when it is cancelled; infinite times where it had got nothing.

        Raises:
            ShedError: The server refuses it for now.
            ProfilingError: It cannot be measured.
        """
        head = {
            "model": self._endpoint.model,
            "max_tokens": output_tokens,
            "min_tokens": output_tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        body = json.dumps(head).encode()[:-1] + b', "prompt": ' + prompt.json + b"}"
        tokens = Tokens()
        sent_s = time.perf_counter()
        try:
            async with self._open.post(
                self._endpoint.root / "v1/completions", data=body, headers={"Content-Type": "application/json"}
            ) as answer:
                if answer.status != 200:
                    raise refused(self._endpoint, "/v1/completions", answer.status, await answer.text(errors="replace"))
                if answer.content_type != "text/event-stream":
                    raise ProfilingError(
                        f"{self._endpoint.shown} answered with {answer.content_type or 'no type'} although a stream was asked"
                        " for: without a stream no time to first token can be measured"
                    )
                await read_tokens(answer.content, self._endpoint.shown, tokens)
        except asyncio.CancelledError:
            if given_up is not None:
                first_s, last_s = (math.inf if at is None else at for at in (tokens.first_s, tokens.last_s))
                given_up(Sample(sent_s, first_s, last_s, prompt.tokens, tokens.count, 0, tuple(tokens.at_s)))
            raise
        except BrokenStreamError as error:
            raise ProfilingError(str(error)) from None
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise lost(self._endpoint, error) from None
        return self._sample(tokens, sent_s, prompt, output_tokens)

    def _sample(self, tokens: Tokens, sent_s: float, prompt: Prompt, output_tokens: int) -> Sample:
        if tokens.count == 0 or tokens.first_s is None or tokens.last_s is None:
            raise ProfilingError(
                f"{self._endpoint.shown} answered without a single token: see the server's log, or try another --model"
            )
        if tokens.count < output_tokens:
            raise ProfilingError(
                f"{self._endpoint.shown} ended an answer after {tokens.count} of {output_tokens} tokens"
                f"{f' ({tokens.reason})' if tokens.reason else ''}: it must heed ignore_eos, as vLLM does, to be measured"
            )
        return Sample(
            sent_s,
            tokens.first_s,
            tokens.last_s,
            tokens.prompt or prompt.tokens,
            tokens.count,
            tokens.cached,
            tuple(tokens.at_s),
        )

    @property
    def _open(self) -> aiohttp.ClientSession:
        assert self._session is not None, "use it as a context manager"
        return self._session

    async def _get(self, path: str) -> tuple[int, str]:
        try:
            async with self._open.get(self._endpoint.root / path) as answer:
                return answer.status, await answer.text(errors="replace")
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise lost(self._endpoint, error) from None


def _cards(text: str) -> list[Card] | None:
    """The models of an answer of ``/v1/models``; None where it is none."""
    try:
        data = json.loads(text)["data"]
        return [Card(card["id"], _length(card.get("max_model_len"))) for card in data if isinstance(card["id"], str)]
    except (ValueError, LookupError, TypeError, AttributeError):
        return None


def _length(value: Any) -> int | None:
    return value if isinstance(value, int) and value > 0 else None

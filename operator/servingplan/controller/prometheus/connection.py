"""One Prometheus server: how it is reached, and how its answers are taken.

Nothing here may hold up a decision. There are no second attempts, every wait has an end, and the length of an answer is
bounded, because a plan's author names the server. Credentials go to the host that is named and nowhere else: redirects are
not followed, and errors are worded here instead of quoting the library's, which hold the whole URL.
"""

from __future__ import annotations

import io
import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import requests
from prometheus_api_client import PrometheusConnect
from requests.auth import AuthBase, HTTPBasicAuth
from urllib3 import Retry

ANSWER_LIMIT_BYTES = 256 * 1024 * 1024
"""Longest answer that is read, after decompression; a hundred plans with four replicas each come to some 5 MB."""

_CHUNK_BYTES = 65536


class PrometheusError(Exception):
    """A server gave no usable answer; the text is one sentence for the plan's status."""


@dataclass(frozen=True, slots=True)
class Source:
    """A Prometheus server and what it is asked with.

    Attributes:
        url: Base URL, below which the API is found at ``/api/v1``.
        scrape_interval_s: How often it scrapes the pods.
        timeout_s: How long one reading may take, all questions together.
        username_file: File with the user name of basic authentication.
        password_file: File with its password.
        bearer_token_file: File with a token, which is sent instead.
        ca_file: PEM file with the authorities to trust; those of the system without it.
    """

    url: str
    scrape_interval_s: float = 15.0
    timeout_s: float = 5.0
    username_file: str | None = None
    password_file: str | None = None
    bearer_token_file: str | None = None
    ca_file: str | None = None

    @property
    def host(self) -> str:
        """Host and port, which is all of the URL that a message may hold."""
        return urlsplit(self.url).netloc.rpartition("@")[2]


@dataclass(frozen=True, slots=True)
class Series:
    """One series of an answer.

    Attributes:
        labels: What tells it from the others.
        points: Times in seconds since the epoch and values, oldest first; only one for an instant.
    """

    labels: Mapping[str, str]
    points: tuple[tuple[float, float], ...]

    @property
    def value(self) -> float | None:
        """The newest value; None where it is not a number that a count or a duration can be."""
        value = self.points[-1][1]
        return value if math.isfinite(value) and value >= 0 else None


class Server:
    """Questions to a server within one deadline. Not for several threads."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._deadline = time.monotonic() + source.timeout_s
        session = _Session(self._deadline)
        session.verify = source.ca_file or True
        self._connection = PrometheusConnect(
            url=source.url.rstrip("/"),
            auth=_authentication(source),
            session=session,
            retry=Retry(0, read=False),
            method="POST",
        )

    def __enter__(self) -> Server:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._connection.close()

    def instant(self, query: str, time_s: float | None = None) -> list[Series]:
        """The answer to a query at a time, by default now by the server's clock.

        Raises:
            PrometheusError: There is none.
        """
        params = {} if time_s is None else {"time": f"{time_s:.3f}"}
        return self._ask(self._connection.custom_query, "value", query=query, params=params)

    def range(self, query: str, start_s: float, end_s: float, step_s: float) -> list[Series]:
        """The answer to a query at every step from a start to an end, both rounded to whole seconds.

        Raises:
            PrometheusError: There is none.
        """
        start, end = (datetime.fromtimestamp(moment, UTC) for moment in (start_s, end_s))
        ask = self._connection.custom_query_range
        return self._ask(ask, "values", query=query, start_time=start, end_time=end, step=f"{step_s:.3f}")

    def _ask(self, ask: Any, values: str, **question: Any) -> list[Series]:
        left_s = self._deadline - time.monotonic()
        if left_s <= 0:
            raise PrometheusError(late(self._source))
        try:
            answer = ask(**question, timeout=left_s)
            return [Series(dict(each["metric"]), _points(each, values)) for each in answer]
        except _RefusedError as error:
            sentence = f"Prometheus at {self._source.host} {error}."
        except (requests.Timeout, requests.ConnectionError) as error:
            sentence = self._unreached(error)
        except requests.JSONDecodeError:
            sentence = not_prometheus(self._source)
        except requests.RequestException as error:
            sentence = f"Prometheus at {self._source.host} cannot be asked: {type(error).__name__}."
        except OSError as error:
            # A file of this source: errors of the network are wrapped, and one of the authorities' file has no name.
            file = error.filename or self._source.ca_file
            sentence = f"{file}, needed for Prometheus at {self._source.host}, cannot be read."
        except (KeyError, IndexError, TypeError, ValueError, AttributeError):
            sentence = not_prometheus(self._source)
        # Without its cause, which holds the query and, in a traceback, the credentials.
        raise PrometheusError(sentence) from None

    def _unreached(self, error: requests.RequestException) -> str:
        if isinstance(error, requests.Timeout) or time.monotonic() >= self._deadline:
            return late(self._source)
        if isinstance(error, requests.exceptions.SSLError):
            return f"The certificate of Prometheus at {self._source.host} is not trusted, or it does not speak TLS."
        return f"Prometheus at {self._source.host} cannot be reached."


def late(source: Source) -> str:
    """The sentence for a server that took too long."""
    return f"Prometheus at {source.host} did not answer within {source.timeout_s:g} s."


def not_prometheus(source: Source) -> str:
    """The sentence for an answer that cannot be read."""
    return f"Prometheus at {source.host} gave an answer that is not Prometheus'."


def _points(each: Mapping[str, Any], values: str) -> tuple[tuple[float, float], ...]:
    points = [each["value"]] if values == "value" else each["values"]
    return tuple((float(moment), float(value)) for moment, value in points)


class _RefusedError(Exception):
    """An answer that is not taken; the text goes on from the server's name."""


class _Session(requests.Session):
    """Sends questions as forms, because their text outgrows the URLs that proxies take, and bounds the answers."""

    def __init__(self, deadline: float) -> None:
        super().__init__()
        self._deadline = deadline

    def request(self, method: str, url: str, params: Any = None, **options: Any) -> requests.Response:  # type: ignore[override]
        options |= {"stream": True, "allow_redirects": False}
        with super().request(method, url, data=params, **options) as response:
            body = self._read(response)
            if response.status_code != requests.codes.ok:
                raise _RefusedError(_refusal(response.status_code, body))
        whole = requests.Response()
        whole.status_code, whole.encoding, whole.raw = response.status_code, "utf-8", io.BytesIO(body)
        return whole

    def _read(self, response: requests.Response) -> bytes:
        body = bytearray()
        for chunk in response.iter_content(_CHUNK_BYTES):
            body += chunk
            if len(body) > ANSWER_LIMIT_BYTES:
                message = f"gave an answer of more than {ANSWER_LIMIT_BYTES >> 20} MiB"
                raise _RefusedError(message)
            if time.monotonic() > self._deadline:
                raise requests.Timeout
        return bytes(body)


def _refusal(status: int, body: bytes) -> str:
    try:
        whole = json.loads(body)
        return f"answers {status}: {str(whole['error'])[:200]}"
    except (ValueError, KeyError, TypeError):
        return f"answers {status}"


class _Bearer(AuthBase):
    """Sends the token that stands in a file now: kubelet replaces it while the operator runs."""

    def __init__(self, file: str) -> None:
        self._file = file

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {_read(self._file)}"
        return request


class _Basic(AuthBase):
    """Sends the user name and password that stand in two files now."""

    def __init__(self, username_file: str | None, password_file: str | None) -> None:
        self._files = username_file, password_file

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        username, password = (_read(file) if file else "" for file in self._files)
        return HTTPBasicAuth(username.encode(), password.encode())(request)


class _Nobody(AuthBase):
    """Sends nothing. Without it a .netrc file would be looked for."""

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        return request


def _authentication(source: Source) -> AuthBase:
    if source.bearer_token_file:
        return _Bearer(source.bearer_token_file)
    if source.username_file or source.password_file:
        return _Basic(source.username_file, source.password_file)
    return _Nobody()


def _read(file: str) -> str:
    return Path(file).read_text(encoding="utf-8").strip()

"""What goes wrong between client and server, each in one sentence that says what to change."""

from __future__ import annotations

import json
import os

import aiohttp

from servingplan.profiling.errors import ProfilingError, ShedError
from servingplan.profiling.exchange import Endpoint

CONNECT_S = 10.0
_SHED = (429, 503)
_DENIED = (401, 403)
_LONGEST_QUOTE = 200


def lost(endpoint: Endpoint, error: Exception) -> ProfilingError:
    """Why there was no answer, or only half of one."""
    shown = endpoint.shown
    if isinstance(error, aiohttp.ClientConnectorCertificateError | aiohttp.ClientSSLError):
        return ProfilingError(f"cannot speak TLS with {shown} ({error}): is it http, or a certificate nobody here knows?")
    if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
        number = getattr(getattr(error, "os_error", None), "errno", None)
        why = os.strerror(number).lower() if number and number > 0 else str(error) or f"no answer within {CONNECT_S:g} s"
        return ProfilingError(f"cannot reach {shown} ({why}): is --endpoint right, and the server up?")
    if isinstance(error, TimeoutError):
        return ProfilingError(
            f"{shown} sent nothing for {endpoint.silence_s:g} s: is it stuck, or in need of a longer --silence?"
        )
    what = str(error) or type(error).__name__
    return ProfilingError(f"the connection to {shown} broke ({what}): see the server's log for why it ended")


def refused(endpoint: Endpoint, path: str, status: int, text: str) -> ProfilingError:
    """Why the server said no."""
    where = f"{endpoint.shown}{path}"
    said = _message(text)
    if status in _DENIED:
        name = endpoint.api_key_env
        cure = f"is the key in ${name} the right one?" if name else "name the variable that holds the key by --api-key-env"
        return ProfilingError(f"{where} denies access (HTTP {status}): {cure}")
    if status in _SHED:
        return ShedError(f"{where} sheds requests (HTTP {status}, {said}): try again when it has less to do")
    if status == 404 and "model" not in said.lower():
        return ProfilingError(
            f"{where} does not exist (HTTP 404): give --endpoint the root of a vLLM server, such as http://my-model:8000"
        )
    if 400 <= status < 500:
        return ProfilingError(f"{where} refuses the request (HTTP {status}): {said}")
    return ProfilingError(f"{where} failed (HTTP {status}, {said}): see the server's log")


def _message(text: str) -> str:
    """What the server says went wrong, in its own words."""
    try:
        body = json.loads(text)
        error = body.get("error", body)
        return quote(str(error["message"] if isinstance(error, dict) else error), mark="")
    except (ValueError, LookupError, AttributeError):
        return quote(text)


def quote(text: str, mark: str = "'") -> str:
    """The beginning of a server's answer, on one line."""
    words = " ".join(text.split())
    if not words:
        return "nothing"
    return f"{mark}{words[:_LONGEST_QUOTE]}{'...' if len(words) > _LONGEST_QUOTE else ''}{mark}"

"""Pods that take a request and say nothing: whoever asked for a stream is answered by another one."""

from __future__ import annotations

import asyncio
import importlib
import itertools
import json

import aiohttp
import pytest

from servingplan.api.routing_table import ClassEntry, ModelEntry, Pool, RoutingTable
from servingplan.api.routing_table import Picker as PickerEntry

ALL = 1_000_000
_FRESH = itertools.count(1)


@pytest.fixture
def pair(start_upstream):
    """Two pods of one port, each a pool of the model, that no other test has asked."""
    net = next(_FRESH)
    first = start_upstream("hung", f"127.0.7.{2 * net}")
    second = start_upstream("well", f"127.0.7.{2 * net + 1}", first.port)
    yield first, second
    first.released.set()


def table(pair, *, online: bool) -> RoutingTable:
    pools = tuple(Pool(name=one.name, setup=one.name, address=one.address, port=one.port) for one in pair)
    return RoutingTable(
        namespace="llm",
        plan="chat",
        generation=1,
        models=(ModelEntry(name="m", pools=pools, weights={"hung": ALL}),),
        classes=(ClassEntry(name="chat", weights={"hung": ALL}),),
        picker=PickerEntry(per_dollar=0, per_second=0) if online else None,
    )


@pytest.fixture(params=["weights", "picked"])
def router(request, pair, start_router, start_picker, until, monkeypatch):
    """A router that sends everything to the hung pod first, and is not as patient with it as for users."""
    # The package gives its function the module's name.
    monkeypatch.setattr(importlib.import_module("servingplan.render.envoy.bootstrap"), "STREAM_BEGINS_S", 0.2)
    online = request.param == "picked"
    given = table(pair, online=online)
    router = start_router(given)
    if online:
        picker = start_picker(router.paths.picker_socket)
        picker.mode, picker.pick = "pick", [f"{one.address}:{one.port}" for one in pair]
        picker.say(healthy=True)
        until(lambda: post(router, {}) and picker.seen, "Envoy asks the picker")
    router.serve(given)
    pair[0].mode, pair[0].requests = "wait", 0
    return router


async def _post(router, body, seconds: float) -> tuple[int, str]:
    timeout = aiohttp.ClientTimeout(total=seconds)
    async with (
        aiohttp.ClientSession(timeout=timeout) as session,
        session.post(f"{router.url}/v1/chat/completions", data=json.dumps(body)) as answer,
    ):
        return answer.status, await answer.text()


def post(router, body, seconds: float = 15.0) -> tuple[int, str]:
    return asyncio.run(_post(router, body, seconds))


@pytest.mark.parametrize("named", [{}, {"model": "m"}])
def test_a_stream_that_does_not_begin_is_begun_elsewhere(router, pair, named):
    status, text = post(router, {"stream": True, **named})
    assert status == 200
    assert "data: well 4" in text
    # By the weights, the first retry stays in the pool.
    assert 1 <= pair[0].requests <= 2


def test_a_slow_pod_may_still_be_the_first_to_begin(router, pair, until):
    pair[1].mode = "wait"

    async def both() -> tuple[int, str]:
        asked = asyncio.create_task(_post(router, {"stream": True}, 15.0))
        await asyncio.to_thread(until, lambda: pair[0].requests and pair[1].requests, "both are asked")
        pair[0].released.set()
        return await asked

    try:
        status, text = asyncio.run(both())
    finally:
        pair[1].released.set()
    assert status == 200
    assert "data: hung 4" in text


@pytest.mark.parametrize("body", [{}, {"stream": False}, {"stream": None}, {"stream": "true"}])
def test_what_is_not_streamed_is_waited_for(router, pair, body):
    with pytest.raises(TimeoutError):
        post(router, body, 1.5)
    assert (pair[0].requests, pair[1].requests) == (1, 0)

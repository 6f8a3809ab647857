"""A router with a picker beside it: the picks are obeyed, nobody else's are, and without them the weights hold."""

from __future__ import annotations

import asyncio
import http.client
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import grpc
import pytest

from servingplan.api.routing_table import ClassEntry, ModelEntry, Pool, RoutingTable, whole_weights
from servingplan.api.routing_table import Picker as PickerEntry
from servingplan.render.envoy import files
from servingplan.render.envoy.bootstrap import BODY_LIMIT_BYTES
from servingplan.render.envoy.picker import ASKED_HEADERS, DESTINATION

CHAT, CODE = "/v1/chat/completions", {"x-request-class": "code"}
ALL = 1_000_000
HANGS_AT_MOST_S = 3.0


@pytest.fixture(scope="module")
def pods(start_upstream) -> dict[str, Any]:
    """Model servers: two of the pool L, one of the pool S."""
    first = start_upstream("l1", "127.0.0.21")
    return {"l1": first, "l2": start_upstream("l2", "127.0.0.22", first.port), "s1": start_upstream("s1", "127.0.0.23")}


@pytest.fixture(autouse=True)
def _well(pods) -> None:
    for upstream in pods.values():
        upstream.mode = "ok"


def address(upstream: Any) -> str:
    return f"{upstream.address}:{upstream.port}"


@pytest.fixture(scope="module")
def table(pods) -> Callable[..., RoutingTable]:
    """A table over a pool of two pods, which are pools of one each here, and one of one."""

    def make(
        explain: bool = False,
        shed: float = 0.0,
        code: Mapping[str, float] | None = None,
        labels: Mapping[str, str] = CODE,
    ) -> RoutingTable:
        def pool(name: str) -> Pool:
            return Pool(name=name, setup=name, address=pods[name].address, port=pods[name].port)

        return RoutingTable(
            namespace="llm",
            plan="chat",
            generation=1,
            models=(
                ModelEntry(name="large.v1", pools=(pool("l1"), pool("l2")), weights={"l1": ALL}),
                ModelEntry(name="small", pools=(pool("s1"),), weights={"s1": ALL}),
            ),
            classes=(
                ClassEntry(name="code", headers=dict(labels), weights=whole_weights(dict(code or {"l1": 1})), shed=shed),
                ClassEntry(name="chat", weights={"s1": ALL}),
            ),
            picker=PickerEntry(per_dollar=0, per_second=0, explain=explain),
        )

    return make


@pytest.fixture(scope="module")
def shared(start_router, start_picker, table):
    router = start_router(table())
    return router, start_picker(router.paths.picker_socket)


@pytest.fixture
def picking(shared, table, until):
    """A router that serves its first table, and a picker that Envoy asks."""
    router, picker = shared
    if router.table()["digest"] != table().digest:
        router.serve(table())
    picker.mode, picker.pick, picker.receipt = "pick", [], ""
    picker.say(healthy=True)
    until(lambda: is_asked(router, picker), "Envoy asks the picker")
    # What is ejected is picked all the same, but would not be fallen back on.
    until(lambda: router.stat("cluster.picked.outlier_detection.ejections_active") == 0, "nobody is ejected", 40)
    until(lambda: not picker.open, "all streams have ended")
    picker.seen.clear()
    picker.kinds.clear()
    return router, picker


def is_asked(router, picker) -> bool:
    before = len(picker.seen)
    ask(router)
    return len(picker.seen) > before


async def _ask(session, router, body, headers) -> tuple[int, Mapping[str, str], str]:
    async with session.post(router.url + CHAT, json={} if body is None else body, headers=headers) as answer:
        return answer.status, answer.headers, await answer.text()


def ask(router, body: Any = None, headers: Mapping[str, str] | None = None) -> tuple[int, Mapping[str, str], str]:
    async def once():
        async with aiohttp.ClientSession() as session:
            return await _ask(session, router, body, headers or {})

    return asyncio.run(once())


def plainly(router, headers: Iterable[tuple[str, bytes]], body: Any) -> bytes:
    """The answer to a request whose headers may be repeated and hold any byte, and whose body may come in parts."""
    parts = urlsplit(router.url)
    connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=HANGS_AT_MOST_S)
    with closing(connection):
        connection.putrequest("POST", CHAT)
        for name, value in headers:
            connection.putheader(name, value)
        in_parts = body is not None and not isinstance(body, bytes)
        if body is not None:
            connection.putheader(*(("transfer-encoding", "chunked") if in_parts else ("content-length", str(len(body)))))
        connection.endheaders(body, encode_chunked=in_parts)
        return connection.getresponse().read()


def answered_by(router, body: Any = None, headers: Mapping[str, str] | None = None) -> str | int:
    status, _, text = ask(router, body, headers)
    return json.loads(text)["upstream"] if status == 200 else status


async def _burst(router, count: int, headers: Mapping[str, str]) -> Counter:
    seen: Counter = Counter()
    left = iter(range(count))
    async with aiohttp.ClientSession() as session:

        async def work() -> None:
            for _ in left:
                status, _, text = await _ask(session, router, None, headers)
                seen[json.loads(text)["upstream"] if status == 200 else status] += 1

        await asyncio.gather(*(work() for _ in range(8)))
    return seen


def burst(router, count: int, headers: Mapping[str, str] = CODE) -> Counter:
    return asyncio.run(_burst(router, count, headers))


@pytest.mark.parametrize("name", ["l1", "l2", "s1"])
def test_a_pick_is_obeyed_whatever_the_weights_say(picking, pods, name):
    router, picker = picking
    picker.pick = [address(pods[name])]
    assert burst(router, 30) == burst(router, 30, {}) == {name: 30}


def test_the_picker_is_shown_the_body_and_the_model_and_the_pod_is_not_shown_the_pick(picking, pods):
    router, picker = picking
    picker.pick = [address(pods["l2"])]
    _, _, text = ask(router, {"model": "large.v1", "prompt": "p" * 100_000}, CODE)
    ((headers, body, model),) = picker.seen
    assert (headers[":path"], headers["x-request-class"], model) == (CHAT, "code", "large.v1")
    assert json.loads(body)["prompt"] == "p" * 100_000
    assert picker.kinds == ["request_body"], "headers of their own would cost a second message"
    received = {name.lower(): value for name, value in json.loads(text)["headers"].items()}
    assert received["content-length"] == str(len(body))
    assert DESTINATION not in received


def test_the_picker_is_told_the_headers_that_a_decision_reads_and_no_others(picking, pods):
    router, picker = picking
    picker.pick = [address(pods["l2"])]
    sent = {name: "7" for name in ASKED_HEADERS if name != "x-servingplan-budget"}
    ask(router, None, CODE | sent | {"authorization": "Bearer secret", "cookie": "secret"})
    ((headers, _, _),) = picker.seen
    assert headers == {":path": CHAT, ":method": "POST"} | sent | CODE


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        ([("x-servingplan-e2e-ms", b"5"), ("x-servingplan-e2e-ms", b"7")], {"x-servingplan-e2e-ms": "5,7"}),
        ([("x-servingplan-e2e-ms", b"")], {"x-servingplan-e2e-ms": ""}),
        ([("x-servingplan-e2e-ms", b"\xff7")], {"x-servingplan-e2e-ms": "\ufffd"}),
        ([("x-servingplan-e2e-ms", "\u00e9".encode())], {"x-servingplan-e2e-ms": "\u00e9"}),
        ([("x-request-class", b"code"), ("x-request-class", b"code")], {"x-request-class": "code,code"}),
        ([("x-request-class", b"code\xff")], {}),
        ([("x-request-class", b"")], {}),
        ([("x-request-class", b"it's \\1 $1")], {"x-request-class": "it's \\1 $1"}),
    ],
    ids=repr,
)
def test_whatever_a_header_holds_the_request_is_shown(picking, pods, sent, told):
    router, picker = picking
    picker.pick = [address(pods["l2"])]
    assert json.loads(plainly(router, sent, b"{}"))["upstream"] == "l2"
    ((headers, _, _),) = picker.seen
    assert {name: value for name, value in headers.items() if name in dict(sent)} == told


def test_a_class_that_comes_later_has_its_headers_told(picking, pods, table):
    router, picker = picking
    later = {"x-kind": "code", "x-tier": "gold"}
    ask(router, None, later)
    router.serve(table(labels=later))
    picker.seen.clear()
    ask(router, None, later | CODE)
    ((headers, _, _),) = picker.seen
    assert later.items() <= headers.items()
    assert not CODE.keys() & headers.keys(), "it tells no class any more"


def test_a_request_without_a_body_goes_by_the_weights(picking, pods):
    router, picker = picking
    picker.pick = [address(pods["l2"])]
    assert json.loads(plainly(router, [], None))["upstream"] == "s1"
    assert picker.seen == []


def test_a_body_in_parts_is_shown_whole_and_an_empty_one_too(picking, pods):
    router, picker = picking
    picker.pick = [address(pods["l2"])]
    for parts in ([b"{", b'"a": 1', b"}"], [], [b"x" * 100_000] * 5):
        assert json.loads(plainly(router, [], iter(parts)))["bytes"] == len(b"".join(parts))
        assert picker.seen[-1][1] == b"".join(parts)


def test_a_body_over_the_limit_is_refused_and_not_shown(picking):
    router, picker = picking
    status, _, text = ask(router, {"prompt": "p" * BODY_LIMIT_BYTES})
    assert (status, json.loads(text)["error"]["type"]) == (413, "BadRequestError")
    assert picker.seen == []


def test_http2_is_picked_for_alike(picking, pods):
    router, picker = picking
    picker.pick = [address(pods["l2"])]
    before = pods["l2"].requests
    with grpc.insecure_channel(router.url.removeprefix("http://")) as channel, pytest.raises(grpc.RpcError):
        # The pod's answer is none of gRPC's, which is the only thing wrong with it.
        channel.unary_unary(CHAT)(b"{}", metadata=tuple(CODE.items()), timeout=HANGS_AT_MOST_S)
    ((headers, body, _),) = picker.seen
    assert (headers["x-request-class"], body[5:]) == ("code", b"{}")
    assert pods["l2"].requests == before + 1


@pytest.mark.parametrize("end", ["answered", "abandoned", "retried"])
def test_the_picker_hears_of_the_end_of_an_answer_when_it_ends(picking, pods, until, end):
    router, picker = picking
    picker.pick = [address(pods["l1"]), address(pods["l2"])]
    pods["l1"].mode, pods["l2"].mode = ("reset" if end == "retried" else "hold"), "hold"
    holding = pods["l2" if end == "retried" else "l1"]
    holding.released.clear()

    async def scenario() -> None:
        async with aiohttp.ClientSession() as session:
            answer = await session.post(router.url + CHAT, json={}, headers=CODE)
            assert await answer.content.readline()
            assert await answer.content.readline()
            assert len(picker.open) == 1
            if end == "abandoned":
                answer.close()
            else:
                holding.released.set()
                assert (await answer.read()).endswith(b"data: [DONE]\n\n")
            await asyncio.to_thread(until, lambda: not picker.open, "the stream has ended")

    try:
        asyncio.run(scenario())
    finally:
        holding.released.set()
    assert picker.kinds == ["request_body"]


def test_what_no_pod_may_answer_is_not_shown_to_the_picker(picking):
    router, picker = picking
    assert ask(router, {"model": "gpt-4"})[0] == 404
    assert router.get("/metrics")[0] == 404
    assert router.get("/v1/models")[0] == 200
    assert picker.seen == []


@pytest.mark.parametrize("mode", ["reset", "unavailable"])
def test_the_next_pod_of_the_pick_answers_for_one_that_dies_before_the_first_byte(picking, pods, mode):
    router, picker = picking
    pods["l1"].mode = mode
    picker.pick = [address(pods["l1"]), address(pods["s1"])]
    assert answered_by(router, None, CODE) == "s1"


def test_the_next_pod_of_the_pick_answers_for_one_that_refuses_connections(picking, pods):
    router, picker = picking
    pods["l1"].stop()
    try:
        picker.pick = [address(pods["l1"]), address(pods["l2"]), address(pods["s1"])]
        assert burst(router, 20) == {"l2": 20}
    finally:
        pods["l1"].start()


def test_all_that_waits_at_a_pod_that_dies_is_answered_by_the_next_of_the_pick(picking, pods, until):
    router, picker = picking
    pods["l1"].mode = "wait"
    pods["l1"].released.clear()
    picker.pick = [address(pods["l1"]), address(pods["s1"])]
    before = pods["l1"].requests

    async def scenario() -> Counter:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            load = [asyncio.create_task(_ask(session, router, None, CODE)) for _ in range(60)]
            await asyncio.to_thread(until, lambda: pods["l1"].requests == before + 60, "all wait at one pod")
            await asyncio.to_thread(pods["l1"].stop)
            answers = await asyncio.gather(*load)
            return Counter(json.loads(text)["upstream"] if status == 200 else status for status, _, text in answers)

    try:
        assert asyncio.run(scenario()) == {"s1": 60}
    finally:
        pods["l1"].released.set()
        pods["l1"].start()


def test_a_pick_that_envoy_does_not_know_is_passed_over_without_an_attempt(picking, pods, until):
    router, picker = picking
    picker.pick = ["127.0.0.99:1", address(pods["l2"])]
    headers = CODE | {"x-request-id": "passed-over"}
    assert answered_by(router, None, headers) == "l2"
    until(lambda: "passed-over" in router.log_path.read_text(), "the access log has the request")
    line = next(json.loads(text) for text in router.log_path.read_text().splitlines() if "passed-over" in text)
    assert (line["attempts"], line["class"], line["model"], line["pool"]) == (1, "code", "large.v1", "l2")


def test_a_request_that_names_a_model_never_leaves_it_whatever_is_picked(picking, pods):
    router, picker = picking
    picker.pick = ["127.0.0.99:1", address(pods["s1"])]
    assert {answered_by(router, {"model": "large.v1"}) for _ in range(8)} <= {"l1", "l2"}


def test_no_header_of_a_client_chooses_a_pod(picking, pods):
    router, picker = picking
    picker.mode = "none"
    names = [DESTINATION, DESTINATION.title(), f"{DESTINATION}-subset", "x-envoy-original-dst-host"]
    for name in names:
        assert answered_by(router, None, CODE | {name: address(pods["s1"])}) == "l1"
    assert all(not name.startswith(DESTINATION) for headers, _, _ in picker.seen for name in headers)
    picker.mode, picker.pick = "pick", [address(pods["l2"])]
    for name in names:
        assert answered_by(router, None, CODE | {name: address(pods["s1"])}) == "l2"


def test_a_pick_comes_before_the_share_that_is_shed_and_without_one_that_share_is(picking, pods, table):
    router, picker = picking
    router.serve(table(shed=1.0))
    picker.pick = [address(pods["l2"])]
    assert burst(router, 20) == {"l2": 20}
    picker.pick = []
    assert burst(router, 20) == {429: 20}


def test_a_refusal_of_the_picker_reaches_the_client_and_counts_for_the_class(picking):
    def count() -> float:
        labels = 'class="code",requested="",model="",pool="",code="429"'
        lines = (line for line in router.metrics().splitlines() if line.startswith("envoy_servingplan_requests_total"))
        return sum(float(line.split()[-1]) for line in lines if labels in line)

    router, picker = picking
    picker.mode = "refuse"
    before = count()
    assert burst(router, 10) == {429: 10}
    assert count() == before + 10


@pytest.mark.parametrize("mode", ["none", "error", "hang", "nonsense"])
def test_without_a_pick_the_weights_hold(picking, mode):
    router, picker = picking
    picker.mode = mode
    picker.pick = ["127.0.0.99:1"]
    assert burst(router, 8) == {"l1": 8}
    assert answered_by(router) == "s1"
    assert answered_by(router, {"model": "small"}, CODE) == "s1"


def test_a_picker_that_is_not_healthy_is_not_asked(picking, pods, until):
    router, picker = picking
    picker.pick = [address(pods["l2"])]
    assert answered_by(router, None, CODE) == "l2"
    picker.say(healthy=False)
    until(lambda: answered_by(router, None, CODE) == "l1", "Envoy goes by the weights", HANGS_AT_MOST_S)
    picker.seen.clear()
    assert burst(router, 20) == {"l1": 20}
    assert picker.seen == []


def test_a_picker_that_dies_costs_no_request_and_is_asked_again_when_it_is_back(picking, pods, until):
    router, picker = picking
    picker.pick = [address(pods["l2"])]

    async def scenario() -> Counter:
        load = asyncio.create_task(_burst(router, 600, CODE))
        await asyncio.to_thread(picker.stop)
        return await load

    assert set(asyncio.run(scenario())) <= {"l1", "l2"}
    assert burst(router, 20) == {"l1": 20}
    picker.start()
    until(lambda: answered_by(router, None, CODE) == "l2", "Envoy asks the picker again")


def test_arrivals_are_counted_by_class_and_model_on_either_way(picking, pods):
    def counted() -> dict[str, int]:
        return {name: router.stat(f"vhost.plan.route.{name}.upstream_rq_total") for name in ("code", "chat", "model:large:v1")}

    router, picker = picking
    before = counted()
    for pick in ([address(pods["l2"])], []):
        picker.pick = pick
        burst(router, 10)
        burst(router, 5, {})
        for _ in range(3):
            ask(router, {"model": "large.v1"})
    after = counted()
    assert {name: after[name] - before[name] for name in after} == {"code": 20, "chat": 10, "model:large:v1": 6}


def test_a_body_of_ten_megabytes_is_shown_and_passes(picking, pods):
    router, picker = picking
    picker.pick = [address(pods["l2"])]
    status, _, text = ask(router, {"prompt": "p" * 10_000_000}, CODE)
    assert (status, json.loads(text)["upstream"]) == (200, "l2")
    assert json.loads(text)["bytes"] == len(picker.seen[0][1]) > 10_000_000


def test_a_stream_that_was_picked_passes_untouched(picking, pods):
    router, picker = picking
    picker.pick = [address(pods["l2"])]
    status, headers, text = ask(router, {"stream": True}, CODE)
    assert (status, headers["content-type"]) == (200, "text/event-stream")
    assert text == "".join(f"data: l2 {number}\n\n" for number in range(5)) + "data: [DONE]\n\n"


def test_an_answer_that_has_begun_is_never_asked_for_again(picking, pods):
    router, picker = picking
    pods["l1"].mode = "cut"
    picker.pick = [address(pods["l1"]), address(pods["s1"])]
    before = pods["l1"].requests, pods["s1"].requests
    with pytest.raises(aiohttp.ClientPayloadError):
        ask(router, None, CODE)
    assert (pods["l1"].requests - before[0], pods["s1"].requests - before[1]) == (1, 0)


def test_the_receipt_is_in_the_answer_where_the_plan_explains_and_only_there(picking, pods, table):
    router, picker = picking
    picker.pick, picker.receipt = [address(pods["l2"])], '{"quality": 0.8}'
    assert "x-servingplan-decision" not in ask(router, None, CODE)[1]
    router.serve(table(explain=True))
    assert ask(router, None, CODE)[1]["x-servingplan-decision"] == '{"quality": 0.8}'
    picker.receipt = ""
    assert "x-servingplan-decision" not in ask(router, None, CODE)[1]


def test_twenty_tables_under_load_fail_no_request_with_and_without_picks(picking, pods, table):
    router, picker = picking

    async def scenario() -> Counter:
        load = asyncio.create_task(_burst(router, 4000, CODE))
        for number in range(20):
            picker.pick = [[address(pods["l2"]), address(pods["s1"])], []][number % 2]
            await asyncio.to_thread(router.serve, table(code={"l1": number + 1, "s1": 20}))
        return await load

    seen = asyncio.run(scenario())
    assert seen.keys() <= {"l1", "l2", "s1"}
    assert seen.total() == 4000


def test_many_requests_in_flight_are_all_shown_to_the_picker(picking, pods, until):
    router, picker = picking
    picker.pick = [address(pods["l2"])]
    pods["l2"].mode = "hold"
    pods["l2"].released.clear()

    def let_through() -> int:
        return router.stat("http.ingress.ext_proc.failure_mode_allowed")

    failed = let_through()

    async def scenario() -> list[int]:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            load: list[asyncio.Task] = []
            # On a busy machine an answer of the picker may come too late: such a request is let through, and another is sent.
            while len(picker.seen) < 100 and len(load) < 300:
                load += [asyncio.create_task(_ask(session, router, None, CODE)) for _ in range(10)]
                sent = len(load)
                await asyncio.to_thread(
                    until, lambda sent=sent: len(picker.seen) + let_through() - failed >= sent, "all are shown"
                )
            pods["l2"].released.set()
            return [status for status, _, _ in await asyncio.gather(*load)]

    assert set(asyncio.run(scenario())) == {200}
    assert len(picker.seen) >= 100


def test_pods_that_come_and_go_by_name_can_be_picked(start_router, start_picker, name_server, table, pods, until):
    server, port = name_server
    resolver = {
        "name": "envoy.network.dns_resolver.cares",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig",
            "resolvers": [{"socket_address": {"address": "127.0.0.1", "port_value": port}}],
        },
    }
    name = "l.llm.svc.cluster.local."
    pool = Pool(name="L", setup="l", address=name, port=pods["l1"].port)
    models = (ModelEntry(name="large", pools=(pool,), weights={"L": ALL}), table().models[1])
    classes = (ClassEntry(name="chat", weights={"s1": ALL}),)
    server.records[name] = ["127.0.0.21"]
    router = start_router(table().model_copy(update={"models": models, "classes": classes}), typed_dns_resolver_config=resolver)
    picker = start_picker(router.paths.picker_socket)
    picker.say(healthy=True)
    picker.pick = [address(pods["l2"]), address(pods["l1"])]
    until(lambda: answered_by(router) == "l1", "the pick that is known is obeyed")
    server.records[name] = ["127.0.0.21", "127.0.0.22"]
    until(lambda: answered_by(router) == "l2", "the new pod is picked")
    server.records[name] = ["127.0.0.22"]
    picker.pick = [address(pods["l1"]), address(pods["l2"])]
    until(lambda: answered_by(router) == "l2", "the pod that has gone is passed over")
    server.records[name] = []
    picker.pick = [address(pods["l2"])]
    until(lambda: answered_by(router) == "s1", "nothing of the pool is left")


def test_a_table_without_a_picker_leaves_no_way_for_a_pick(table):
    without = files(table().model_copy(update={"picker": None}))
    assert "picked" in files(table())["rds.yaml"]
    assert "picked" not in without["rds.yaml"] + without["cds.yaml"]

"""What a client sees of a plan's router: a real Envoy, real connections, fake models."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import aiohttp
import pytest

from servingplan.api.routing_table import ClassEntry, ModelEntry, Pool, RoutingTable, whole_weights
from servingplan.api.v1alpha1 import Router as RouterSpec
from servingplan.render.envoy import files
from servingplan.render.names import Owner
from servingplan.render.router import router as router_objects

CODE = {"x-request-class": "code"}
JSON = {"content-type": "application/json"}
CHAT = "/v1/chat/completions"
ALL = 1_000_000


@pytest.fixture(scope="module")
def large(start_upstream):
    return start_upstream("large")


@pytest.fixture(scope="module")
def small(start_upstream):
    return start_upstream("small")


def make_table(
    pools: Mapping[str, Any],
    code: Mapping[str, float] | None = None,
    chat: Mapping[str, float] | None = None,
    shed: float = 0.0,
    idle: tuple[str, ...] = (),
) -> RoutingTable:
    """A table with one model per pool; pools are given by name as fake model servers."""
    models = [
        ModelEntry(
            name=f"{upstream.name}.v1",
            pools=(Pool(name=name, setup="s", address=upstream.address, port=upstream.port),),
            weights={} if name in idle else {name: ALL},
        )
        for name, upstream in pools.items()
    ]
    return RoutingTable(
        namespace="llm",
        plan="chat",
        generation=1,
        models=tuple(models),
        classes=(
            ClassEntry(name="code", headers=CODE, weights=whole_weights(dict(code or {})), shed=shed),
            ClassEntry(name="chat", weights=whole_weights(dict(chat or {}))),
        ),
    )


@pytest.fixture(scope="module")
def table(large, small) -> Callable[..., RoutingTable]:
    """A table over the pools L and S."""

    def make(**fields: Any) -> RoutingTable:
        return make_table({"L": large, "S": small}, **({"code": {"L": 1}, "chat": {"S": 1}} | fields))

    return make


@pytest.fixture(scope="module")
def shared_router(start_router, table):
    return start_router(table())


@pytest.fixture
def router(shared_router, table):
    shared_router.serve(table())
    return shared_router


_FRESH = itertools.count()


@pytest.fixture
def fresh(start_upstream):
    """A model server that no other test has ever failed on, and the name of a pool of its own."""

    def make(name: str) -> tuple[str, Any]:
        return f"{name}-{next(_FRESH)}", start_upstream(name)

    return make


async def _ask(session, router, body, headers, path=CHAT) -> tuple[int, Mapping[str, str], str]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with session.post(router.url + path, data=data, headers=headers) as answer:
        return answer.status, answer.headers, await answer.text()


def ask(router, body: Any = None, headers: Mapping[str, str] = JSON, path: str = CHAT):
    async def once():
        async with aiohttp.ClientSession() as session:
            return await _ask(session, router, {} if body is None else body, headers, path)

    return asyncio.run(once())


def answered_by(router, body: Any = None, headers: Mapping[str, str] = JSON) -> str | int:
    """Name of the upstream that answered, or the status of a refusal."""
    status, _, text = ask(router, body, headers)
    return json.loads(text)["upstream"] if status == 200 else status


async def _burst(router, count: int, headers: Mapping[str, str], body: Any, workers: int) -> Counter:
    seen: Counter = Counter()
    left = iter(range(count))
    async with aiohttp.ClientSession() as session:

        async def work() -> None:
            for _ in left:
                status, _, text = await _ask(session, router, body, JSON | dict(headers))
                seen[json.loads(text)["upstream"] if status == 200 else status] += 1

        await asyncio.gather(*(work() for _ in range(workers)))
    return seen


def burst(router, count: int, headers: Mapping[str, str] = CODE, body: Any = None, workers: int = 16) -> Counter:
    """Answers of many requests by upstream, refusals by status."""
    return asyncio.run(_burst(router, count, headers, {} if body is None else body, workers))


def test_each_class_is_split_by_its_own_weights(router, table):
    router.serve(table(code={"L": 0.7, "S": 0.3}, chat={"L": 0.2, "S": 0.8}))
    code, chat = burst(router, 3000), burst(router, 3000, headers={})
    assert code.total() == chat.total() == 3000
    assert code["large"] / 3000 == pytest.approx(0.7, abs=0.03)
    assert chat["large"] / 3000 == pytest.approx(0.2, abs=0.03)


@pytest.mark.parametrize("content_type", ["application/json", "application/json; charset=utf-8", "text/plain", ""])
def test_a_model_named_in_the_body_is_obeyed_whatever_the_class_and_the_content_type(router, content_type):
    headers = CODE | {"content-type": content_type}
    assert answered_by(router, {"model": "small.v1"}, headers) == "small"
    assert answered_by(router, {"model": "large.v1"}, headers) == "large"


@pytest.mark.parametrize("body", [{"model": "chat"}, {"model": "auto"}, {"model": ""}, {}, {"model": None}, b"no json"])
def test_without_a_model_of_its_own_a_request_belongs_to_its_class(router, body):
    assert answered_by(router, body, JSON | CODE) == "large"
    assert answered_by(router, body, JSON) == "small"


def test_a_class_is_told_by_the_exact_value_of_its_header(router):
    assert answered_by(router, {}, JSON | {"x-request-class": "coder"}) == "small"


@pytest.mark.parametrize("model", ["gpt-4", "small", 5])
def test_an_unknown_model_is_refused_with_the_names_that_exist(router, model):
    status, headers, text = ask(router, {"model": model})
    error = json.loads(text)["error"]
    assert (status, headers["content-type"]) == (404, "application/json")
    assert (error["code"], error["type"], error["param"]) == (404, "NotFoundError", "model")
    assert "chat, large.v1, small.v1" in error["message"]


def test_the_model_list_begins_with_the_plan(router):
    status, text = router.get("/v1/models")
    assert status == 200
    assert [entry["id"] for entry in json.loads(text)["data"]] == ["chat", "large.v1", "small.v1"]


@pytest.mark.parametrize("path", ["/metrics", "/health", "/v1/load_lora_adapter", "/v1/chat/completions/../../metrics"])
def test_only_the_generating_endpoints_reach_a_pod(router, large, small, path):
    before = large.requests + small.requests
    assert ask(router, {}, JSON, path)[0] == 404
    assert router.get(path)[0] == 404
    assert large.requests + small.requests == before


def test_a_stream_passes_untouched(router, small):
    status, headers, text = ask(router, {"stream": True})
    assert (status, headers["content-type"]) == (200, "text/event-stream")
    assert text == "".join(f"data: small {number}\n\n" for number in range(5)) + "data: [DONE]\n\n"


def test_a_prompt_of_megabytes_passes(router):
    prompt = "p" * 1_500_000
    status, _, text = ask(router, {"model": "large.v1", "prompt": prompt})
    assert status == 200
    assert json.loads(text)["bytes"] > len(prompt)


def test_client_headers_that_steer_a_gateway_are_stripped_and_others_pass(router):
    steering = {
        "x-gateway-destination-endpoint": "10.0.0.1:8000",
        "x-envoy-max-retries": "9",
        "x-envoy-upstream-rq-timeout-ms": "1",
    }
    status, headers, text = ask(router, {}, JSON | steering | {"authorization": "Bearer s", "x-request-id": "mine"})
    received = {name.lower(): value for name, value in json.loads(text)["headers"].items()}
    assert status == 200
    assert not steering.keys() & received.keys()
    assert received["authorization"] == "Bearer s"
    assert received["x-request-id"] == headers["x-request-id"] == "mine"


def test_new_weights_are_live_at_once_and_fail_no_request(router, table):
    async def scenario() -> Counter:
        load = asyncio.create_task(_burst(router, 3000, CODE, {}, 16))
        for share in itertools.islice(itertools.cycle((0.9, 0.1)), 12):
            await asyncio.to_thread(router.serve, table(code={"L": share, "S": 1 - share}))
        return await load

    seen = asyncio.run(scenario())
    assert set(seen) == {"large", "small"}
    assert seen.total() == 3000


def test_pools_come_and_go_under_load_and_fail_no_request(router, table, fresh, large, small):
    def moved() -> RoutingTable:
        name, upstream = fresh("third")
        return make_table({name: upstream, "S": small}, code={name: 1}, chat={"S": 1})

    async def scenario() -> Counter:
        load = asyncio.create_task(_burst(router, 3000, CODE, {}, 16))
        for next_table in (moved(), table(), moved(), moved(), table()):
            await asyncio.to_thread(router.serve, next_table)
        return await load

    seen = asyncio.run(scenario())
    assert not [status for status in seen if isinstance(status, int)]
    assert seen.total() == 3000


def _broken(texts: dict[str, str], how: str) -> dict[str, str]:
    match how:
        case "empty":
            return texts | {"rds.yaml": ""}
        case "malformed":
            return texts | {"rds.yaml": texts["rds.yaml"][:200] + "\n: ["}
        case "unknown cluster":
            return texts | {"rds.yaml": texts["rds.yaml"].replace("any/S", "any/nowhere")}
        case _:
            return texts | {"rds.yaml": texts["rds.yaml"].replace(f"weight: {ALL}", "weight: 0")}


@pytest.mark.parametrize(
    ("how", "counter"),
    [
        ("empty", "update_failure"),
        ("malformed", "update_failure"),
        ("unknown cluster", "update_rejected"),
        ("zero weights", "update_rejected"),
    ],
)
def test_a_broken_table_is_refused_counted_and_the_old_one_serves_on(router, table, until, how, counter):
    stat, served = f"http.ingress.rds.plan.{counter}", router.table()
    before = router.stat(stat)
    router.publish(_broken(files(table(code={"S": 1}), 999), how))
    until(lambda: router.stat(stat) > before, f"Envoy counts {counter}")
    assert router.table() == served
    assert answered_by(router, {}, JSON | CODE) == "large"


def test_the_shed_share_is_refused_with_429_and_the_rest_keeps_the_weights(router, table):
    router.serve(table(code={"L": 0.7, "S": 0.3}, shed=0.4))
    seen = burst(router, 3000)
    assert seen.keys() == {"large", "small", 429}
    assert seen[429] / 3000 == pytest.approx(0.4, abs=0.03)
    assert seen["large"] / (3000 - seen[429]) == pytest.approx(0.7, abs=0.03)


def test_a_class_that_is_shed_whole_is_told_when_to_come_back(router, table):
    router.serve(table(code={}, shed=1.0))
    status, headers, text = ask(router, {}, JSON | CODE)
    assert (status, headers["retry-after"]) == (429, "2")
    assert json.loads(text)["error"]["type"] == "RateLimitError"


def test_what_has_no_ready_replica_is_refused_by_name(router, table):
    router.serve(table(code={}, idle=("L",)))
    status, headers, text = ask(router, {}, JSON | CODE)
    assert (status, headers["retry-after"]) == (503, "2")
    assert json.loads(text)["error"]["message"] == "Class code of plan chat has no ready replica."
    status, headers, text = ask(router, {"model": "large.v1"})
    assert (status, headers["retry-after"]) == (503, "2")
    assert json.loads(text)["error"]["message"] == "Model large.v1 of plan chat has no ready replica."


@pytest.mark.parametrize("mode", ["reset", "unavailable"])
def test_an_upstream_that_dies_before_the_first_byte_costs_no_request(router, fresh, small, mode):
    name, dying = fresh("dying")
    dying.mode = mode
    router.serve(make_table({name: dying, "S": small}, code={name: 1}, chat={"S": 1}))
    assert burst(router, 100) == {"small": 100}
    assert dying.requests >= 1


def test_a_pool_that_refuses_connections_is_covered_by_the_next_and_a_named_model_by_none(router, fresh, small):
    name, gone = fresh("gone")
    gone.stop()
    router.serve(make_table({name: gone, "S": small}, code={name: 1}, chat={"S": 1}))
    assert burst(router, 200) == {"small": 200}
    status, headers, text = ask(router, {"model": "gone.v1"})
    assert (status, headers["retry-after"], headers["content-type"]) == (503, "2", "application/json")
    assert json.loads(text)["error"]["code"] == 503


def test_an_answer_that_has_begun_is_never_asked_for_again(router, fresh, small):
    name, cutting = fresh("cutting")
    cutting.mode = "cut"
    router.serve(make_table({name: cutting, "S": small}, code={name: 1}, chat={"S": 1}))
    before = small.requests
    with pytest.raises(aiohttp.ClientPayloadError):
        ask(router, {}, JSON | CODE)
    assert (cutting.requests, small.requests) == (1, before)


def test_the_access_log_tells_the_route_and_never_the_prompt(router, until):
    headers = JSON | CODE | {"authorization": "Bearer secret-key", "x-request-id": "logged-request"}
    ask(router, {"messages": [{"content": "secret-prompt"}]}, headers, f"{CHAT}?key=secret-query")
    until(lambda: "logged-request" in router.log_path.read_text(), "the access log has the request")
    log = router.log_path.read_text()
    line = next(json.loads(text) for text in log.splitlines() if "logged-request" in text)
    assert (line["class"], line["model"], line["pool"], line["status"]) == ("code", "large.v1", "L", 200)
    assert (line["path"], line["attempts"]) == (CHAT, 1)
    assert "secret" not in log


def test_the_metrics_count_requests_by_class_model_pool_and_code(router, table):
    def count(labels: str) -> float:
        lines = (line for line in router.metrics().splitlines() if line.startswith("envoy_servingplan_requests_total"))
        return sum(float(line.split()[-1]) for line in lines if labels in line)

    router.serve(table(shed=0.5))
    served = 'plan="chat",class="code",requested="",model="large.v1",pool="L",code="200"'
    refused = 'plan="chat",class="code",requested="",model="",pool="",code="429"'
    before = count(served), count(refused)
    seen = burst(router, 40)
    assert (count(served) - before[0], count(refused) - before[1]) == (seen["large"], seen[429])
    assert 'envoy_cluster_membership_healthy{plan="chat",envoy_cluster_name="L"} 1' in router.metrics()


def test_the_metrics_port_gives_nothing_but_metrics(router):
    assert router.get("/stats/prometheus", router.paths.metrics_port)[0] == 200
    for path in ("/", "/stats", "/config_dump", "/quitquitquit"):
        assert router.get(path, router.paths.metrics_port)[0] == 404


def test_a_stream_outlives_new_weights_and_the_removal_of_its_pool(router, table, fresh, small, until):
    name, upstream = fresh("held")
    upstream.mode = "hold"
    router.serve(make_table({name: upstream, "S": small}, code={name: 1}, chat={"S": 1}))
    removed = router.stat("cluster_manager.cluster_removed")

    async def scenario() -> str:
        async with aiohttp.ClientSession() as session, session.post(router.url + CHAT, json={}, headers=CODE) as answer:
            await answer.content.readline()
            for next_table in (table(), table(chat={"L": 1})):
                await asyncio.to_thread(router.serve, next_table)
            assert router.stat("cluster_manager.cluster_removed") >= removed + 3
            upstream.released.set()
            return await answer.text()

    assert asyncio.run(scenario()).endswith("[DONE]\n\n")


def test_a_router_that_stops_waits_for_the_answers_under_way(start_router, start_upstream):
    upstream = start_upstream("slow")
    upstream.mode = "hold"
    router = start_router(make_table({"P": upstream}, code={"P": 1}, chat={"P": 1}))
    objects = router_objects(Owner("llm", "chat", "uid"), RouterSpec(), "envoy")
    command = objects[0]["spec"]["template"]["spec"]["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    script = command[-1].replace("9901", str(router.paths.admin_port)).replace("sleep 10", "sleep 0.1")

    async def scenario() -> str:
        async with aiohttp.ClientSession() as session, session.post(router.url + CHAT, json={"stream": True}) as answer:
            await answer.content.readline()
            hook = await asyncio.create_subprocess_exec(*command[:-1], script)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.shield(hook.wait()), 0.5)
            upstream.released.set()
            rest = await answer.text()
            assert await asyncio.wait_for(hook.wait(), 20) == 0
            return rest

    assert asyncio.run(scenario()).endswith("[DONE]\n\n")
    upstream.mode = "ok"
    status, headers, _ = ask(router)
    assert (status, headers["connection"]) == (200, "close")


def test_a_pool_follows_its_name_and_an_empty_one_is_covered_by_the_next(start_router, start_upstream, name_server, until):
    server, port = name_server
    first = start_upstream("first", "127.0.0.11")
    second = start_upstream("second", "127.0.0.12", first.port)
    spare = start_upstream("spare", "127.0.0.13")
    resolver = {
        "name": "envoy.network.dns_resolver.cares",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig",
            "resolvers": [{"socket_address": {"address": "127.0.0.1", "port_value": port}}],
        },
    }
    pools = make_table({"P": first, "Q": spare}, code={"P": 1}, chat={"Q": 1})
    named = pools.models[0].pools[0].model_copy(update={"address": "p.llm.svc.cluster.local."})
    table = pools.model_copy(update={"models": (pools.models[0].model_copy(update={"pools": (named,)}), pools.models[1])})
    server.records["p.llm.svc.cluster.local."] = ["127.0.0.11"]
    router = start_router(table, typed_dns_resolver_config=resolver)
    assert burst(router, 50) == {"first": 50}

    server.records["p.llm.svc.cluster.local."] = ["127.0.0.11", "127.0.0.12"]
    until(lambda: router.stat("cluster.P.membership_total") == 2, "Envoy sees the new pod")
    assert burst(router, 50).keys() == {"first", "second"}

    first.mode = second.mode = "hold"

    def gone() -> bool:
        return router.stat("cluster.P.membership_total") == 0

    async def drain() -> str:
        async with aiohttp.ClientSession() as session, session.post(router.url + CHAT, json={}, headers=CODE) as answer:
            await answer.content.readline()
            server.records.clear()
            await asyncio.to_thread(until, gone, "Envoy sees that the pods have gone")
            first.released.set()
            second.released.set()
            return await answer.text()

    assert asyncio.run(drain()).endswith("[DONE]\n\n")
    assert burst(router, 50) == {"spare": 50}
    assert answered_by(router, {"model": "first.v1"}) == 503
    assert (first.requests, second.requests, spare.requests) != (0, 0, 0)

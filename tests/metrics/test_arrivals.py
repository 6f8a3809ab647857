"""Arrivals by class and model, from counters as Envoy exposes them and from a real Envoy."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import envoy
import pytest

from servingplan.api.routing_table import ClassEntry, ModelEntry, Pool, RoutingTable, whole_weights
from servingplan.render.envoy import BootstrapPaths, bootstrap, dump, files

CHAT, CODE = "/v1/chat/completions", {"x-request-class": "code"}


class Began:
    """When the pages begin to tell: at the first of these tests, not when they are collected."""

    at_s = time.time()


BEGIN = Began.at_s - 1000


def since(age_s):
    """Seconds that a moment lies after some age, counted from when the tests began."""
    return lambda now_s: max(0.0, now_s - (Began.at_s - age_s))


def router(plan="plan", until_age_s=None, **counts):
    """A router's page. Counters by route, as functions of time: sent, retried, completed, and refused by code."""
    virtual = f'plan="{plan}",envoy_virtual_host="plan"'

    def page(now_s):
        if until_age_s is not None and now_s > Began.at_s - until_age_s:
            return {}
        series = {}
        for route, by_part in counts.items():
            name = route.replace("model_", "model:")
            for part, count in by_part.items():
                series[
                    f'envoy_servingplan_requests_total{{plan="{plan}",class="{name}",requested="",model="",pool="",code="{part}"}}'
                    if part.isdigit()
                    else f'envoy_vhost_route_upstream_rq_{part}{{{virtual},envoy_route="{name}"}}'
                ] = count(now_s)
        return series

    return page


def steady(rate):
    return lambda now_s: rate * (now_s - BEGIN)


def stepped(now_s):
    return 2 * (now_s - BEGIN) + 4 * since(100)(now_s)


@pytest.fixture(scope="module")
def world(make_world, until, envoy_page):
    Began.at_s = time.time()
    still = {"total": steady(0)}
    served = {"total": steady(3), "retry": steady(0), "completed": steady(3)}
    world = make_world(
        ("steps", "r1", router(chat={"total": stepped}, batch=still, **{"model_large:v1": {"total": steady(1)}})),
        ("steps", "gone", router(chat={"total": steady(5)}, until_age_s=170)),
        ("steps", "foreign", router("another", chat={"total": steady(50)})),
        (
            "faults",
            "r1",
            router(
                again={"total": steady(4), "retry": steady(1), "completed": steady(3)},
                refusing={"total": steady(0), "retry": steady(9), "completed": steady(3)},
                shedding=served | {"429": steady(2)},
                unserved={"503": steady(2)},
            ),
        ),
        ("dark", "r1", router(chat=served, until_age_s=10)),
        ("real", "r1", envoy_page),
    )
    pods = 'count(count by (namespace, pod) (last_over_time({__name__=~"envoy_.*"}[5m])))'
    until(lambda: world.prometheus.value(pods) == 6.0, "the routers are scraped")
    return world


def asked(world, namespace, *classes, models=(), routers=None):
    return world.asked(namespace, classes=classes, models=models, routers=routers)


def arrivals(world, question):
    """The first reading of which no router has missed a scrape, which a busy machine makes them do."""

    def is_current(reading):
        return reading.classes and all(each.age_s <= 1.1 for each in reading.classes.values())

    return world.until(question, is_current, "arrivals are known")


def test_arrivals_are_a_history_that_ends_now_and_counts_routers_that_are_gone(world):
    reading = arrivals(world, asked(world, "steps", "chat", "batch", "never", models=("large.v1",)))
    chat = reading.classes["chat"]
    assert (chat.window_s, reading.classes.keys()) == (30.0, {"chat", "batch"})
    assert len(chat.rates_rps) >= 6
    assert chat.rates_rps[-1] == pytest.approx(6.0, rel=0.2)
    assert chat.rates_rps[0] == pytest.approx(7.0, rel=0.2)
    assert min(chat.rates_rps) == pytest.approx(2.0, rel=0.2)
    assert set(reading.classes["batch"].rates_rps) == {0.0}
    assert reading.models["large.v1"].rates_rps[-1] == pytest.approx(1.0, rel=0.2)
    assert chat.age_s < 5


@pytest.mark.parametrize(("name", "rate"), [("again", 3.0), ("refusing", 3.0), ("shedding", 5.0), ("unserved", 2.0)])
def test_a_request_counts_once_however_it_fares(world, name, rate):
    reading = arrivals(world, asked(world, "faults", name))
    assert reading.classes[name].rates_rps[-1] == pytest.approx(rate, rel=0.1)


def test_a_router_that_is_not_scraped_leaves_the_arrivals_unknown(world):
    assert world.read(asked(world, "dark", "chat")).classes == {}
    beside = ("r1", "ghost")
    assert world.read(asked(world, "steps", "chat", routers=beside)).classes == {}
    assert arrivals(world, asked(world, "steps", "chat", routers=("r1",))).classes.keys() == {"chat"}


def test_the_counters_of_a_real_envoy_are_the_ones_that_are_read(world):
    reading = arrivals(world, asked(world, "real", "code", "chat", models=("large.v1", "tiny")))
    arrived = {name: sum(each.rates_rps) * each.window_s for name, each in (reading.classes | reading.models).items()}
    assert arrived == pytest.approx({"code": 60, "chat": 0, "large.v1": 30, "tiny": 20}, rel=0.1)


@pytest.fixture(scope="module")
def envoy_page(tmp_path_factory, until, port, serve):
    """The page of an Envoy while it gets 60 requests of a class, 30 of a model and 20 of a model without pods."""
    upstream = serve(
        lambda handler, _: (handler.send_response(200), handler.send_header("content-length", "0"), handler.end_headers())
    )
    folder = tmp_path_factory.mktemp("envoy")
    paths = BootstrapPaths("127.0.0.1", port(), port(), port(), str(folder))
    for name, text in (files(_table(upstream.port)) | {"bootstrap.yaml": dump(bootstrap("real", "plan", paths))}).items():
        (folder / name).write_text(text)
    argv = [Path(envoy.__path__[0]) / "_bin" / "envoy", "-c", folder / "bootstrap.yaml", "--disable-hot-restart"]
    with (
        (folder / "envoy.log").open("wb") as log,
        subprocess.Popen([*argv, "--concurrency", "1"], stdout=log, stderr=log) as run,
    ):
        try:
            until(lambda: _ask(paths.http_port, "/-/table"), "Envoy serves its table")
            _ask(
                paths.http_port, CHAT, {"model": "tiny"}
            )  # a counter that was not there at zero is read from its second page on
            before = until(lambda: _page(paths.metrics_port, 1), "Envoy has counted the first request")
            for body, headers, times in (({}, CODE, 60), ({"model": "large.v1"}, {}, 30), ({"model": "tiny"}, {}, 20)):
                for _ in range(times):
                    _ask(paths.http_port, CHAT, body, headers)
            after = until(lambda: _page(paths.metrics_port, 111), "Envoy has counted every request")
        finally:
            run.kill()

    def page(now_s):
        done = min(1.0, since(150)(now_s) / 60)
        return {series: before.get(series, 0.0) + done * (count - before.get(series, 0.0)) for series, count in after.items()}

    return page


def _table(port):
    pool = (Pool(name="L", setup="s", address="127.0.0.1", port=port),)
    all_of_it = whole_weights({"L": 1})
    return RoutingTable(
        namespace="real",
        plan="plan",
        generation=1,
        models=(ModelEntry(name="large.v1", pools=pool, weights=all_of_it), ModelEntry(name="tiny", pools=())),
        classes=(ClassEntry(name="code", headers=CODE, weights=all_of_it), ClassEntry(name="chat", weights=all_of_it)),
    )


def _ask(port, path, body=None, headers=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}", data, {"content-type": "application/json", **(headers or {})}
    )
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.read().decode()


def _page(port, ended):
    """The counters of routes and requests, once so many requests have ended."""
    lines = [
        line for line in _ask(port, "/stats/prometheus").splitlines() if line.startswith(("envoy_vhost", "envoy_servingplan"))
    ]
    page = {series: float(value) for series, _, value in (line.rpartition(" ") for line in lines) if "_ms" not in series}
    counted = sum(value for series, value in page.items() if series.startswith("envoy_servingplan_requests_total"))
    return page if counted == ended else None

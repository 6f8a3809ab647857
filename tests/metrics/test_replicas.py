"""What a real Prometheus is found to know of vLLM pods."""

from __future__ import annotations

import math
import time
import urllib.request

import pytest

from servingplan.calibration.readings import Found
from servingplan.controller.prometheus.connection import Source

TTFT = {0.1: 0.5, 0.5: 0.9, 1.0: 1.0, math.inf: 1.0}
"""Shares of the observations up to each edge; uniform in each bucket."""

GAP = {0.02: 0.8, 0.05: 1.0, math.inf: 1.0}
NEW = {
    "inter_token": "vllm:inter_token_latency_seconds",
    "kv": "vllm:kv_cache_usage_perc",
    "prefix": "vllm:prefix_cache_{}_total",
}
OLD = {
    "inter_token": "vllm:time_per_output_token_seconds",
    "kv": "vllm:gpu_cache_usage_perc",
    "prefix": "vllm:gpu_prefix_cache_{}",
}
READY = ("a", "b")


def histogram(name, shares, observed, mean, engine="0"):
    labels = f'engine="{engine}",model_name="m"'
    page = {
        f'{name}_bucket{{{labels},le="{"+Inf" if edge == math.inf else edge}"}}': share * observed
        for edge, share in shares.items()
    }
    return page | {f"{name}_sum{{{labels}}}": mean * observed, f"{name}_count{{{labels}}}": observed}


def vllm(rate=2.0, names=NEW, running=3, waiting=1, kv=0.4, hits=0.25, ttft=TTFT, engines=("0",), without=()):
    """A page of vLLM that has served ``rate`` requests per second all along."""

    def page(now_s):
        done, series = rate * (now_s - BEGIN), {}
        for engine in engines:
            labels = f'{{engine="{engine}",model_name="m"}}'
            series |= {
                f"vllm:num_requests_running{labels}": running,
                f"vllm:num_requests_waiting{labels}": waiting,
                f"{names['kv']}{labels}": kv,
                f"{names['prefix'].format('hits')}{labels}": hits * 1000 * done,
                f"{names['prefix'].format('queries')}{labels}": 1000 * done,
                **histogram("vllm:time_to_first_token_seconds", ttft, done, 0.2, engine),
                **histogram(names["inter_token"], GAP, 100 * done, 0.01, engine),
                **histogram("vllm:e2e_request_latency_seconds", {5.0: 1.0, math.inf: 1.0}, done, 3.0, engine),
                **histogram("vllm:request_prompt_tokens", {500.0: 0.5, 2000.0: 1.0, math.inf: 1.0}, done, 700, engine),
                **histogram("vllm:request_generation_tokens", {200.0: 1.0, math.inf: 1.0}, done, 101, engine),
            }
        return {name: value for name, value in series.items() if not name.startswith(tuple(without))}

    return page


BEGIN = time.time() - 1000


def twice(page):
    """Both names of what was renamed, as in the release between; the old ones tell less."""
    return lambda now_s: vllm(rate=1.0, names=OLD)(now_s) | page(now_s)


@pytest.fixture(scope="module")
def world(make_world, until):
    world = make_world(
        ("plain", "a", vllm()),
        ("plain", "b", vllm(rate=4.0, running=5, waiting=0, kv=0.7, hits=0.5)),
        ("plain", "deleted", vllm(rate=100.0, running=100)),
        ("other", "a", vllm(rate=50.0, running=50)),
        ("mixed", "a", vllm(names=OLD)),
        ("mixed", "b", twice(vllm())),
        ("engines", "a", vllm(engines=("0", "1"))),
        ("edges", "a", vllm()),
        ("edges", "b", vllm(ttft={0.1: 0.5, 0.25: 0.5, 1.0: 1.0, math.inf: 1.0})),
        ("broken", "a", vllm(running=math.nan, kv=-1, hits=math.nan, without=("vllm:time_to_first", "vllm:inter_token"))),
        ("idle", "a", vllm(rate=0.0, running=0, waiting=0, kv=0.0)),
        ("stops", "a", vllm(), False),
        ("stops", "b", vllm(), False),
    )
    last = world.asked("stops", *READY)
    world.until(last, lambda reading: "pool" in reading.pools and reading.pools["pool"].replicas == 2, "all pods are scraped")
    return world


def pool(world, namespace, *ready):
    """The reading of a pool when none of its pods has missed a scrape, which a busy machine makes them do."""

    def is_current(reading):
        return reading.found is Found.FOUND and (of := reading.pools["pool"]).replicas == len(ready) and of.age_s <= 1.1

    reading = world.until(world.asked(namespace, *ready), is_current, f"{namespace} is read")
    return reading.pools["pool"], reading


def test_a_pool_is_the_sum_of_its_ready_pods_and_of_no_others(world):
    read, reading = pool(world, "plain", *READY)
    assert read.rate_rps == pytest.approx(6.0, rel=0.1)
    assert (read.running, read.waiting, read.kv_usage) == (8.0, 1.0, 0.7)
    assert read.prefix_hit_share == pytest.approx((2 * 0.25 + 4 * 0.5) / 6, abs=0.01)
    assert read.ttft.count == pytest.approx(6.0 * reading.window_s, rel=0.1)
    means = [each.mean for each in (read.ttft, read.inter_token, read.e2e, read.prompt_tokens, read.output_tokens)]
    assert means == pytest.approx([0.2, 0.01, 3.0, 700, 101], rel=0.02)
    assert (read.dark, reading.error, reading.window_s) == ((), "", 60.0)
    assert reading.taken_s == pytest.approx(time.time(), abs=5)


def test_a_percentile_comes_with_its_bucket(world):
    p95 = pool(world, "plain", *READY)[0].ttft.quantile(95)
    assert p95.value == pytest.approx(0.75, abs=0.02)
    assert (p95.low, p95.high) == (0.5, 1.0)


def test_every_name_of_a_series_is_known_and_the_newest_one_wins_in_each_pod(world):
    read, reading = pool(world, "mixed", *READY)
    assert reading.aliases == {
        "running": "vllm:num_requests_running",
        "waiting": "vllm:num_requests_waiting",
        "kv_usage": "vllm:kv_cache_usage_perc, vllm:gpu_cache_usage_perc",
        "prefix_hits": "vllm:prefix_cache_hits_total, vllm:gpu_prefix_cache_hits",
        "prefix_queries": "vllm:prefix_cache_queries_total, vllm:gpu_prefix_cache_queries",
        "ttft": "vllm:time_to_first_token_seconds",
        "inter_token": "vllm:inter_token_latency_seconds, vllm:time_per_output_token_seconds",
        "e2e": "vllm:e2e_request_latency_seconds",
        "prompt_tokens": "vllm:request_prompt_tokens",
        "output_tokens": "vllm:request_generation_tokens",
    }
    assert read.inter_token.count == pytest.approx(100 * 4.0 * 60, rel=0.1)
    assert read.prefix_hit_share == pytest.approx(0.25, abs=0.01)


def test_the_engines_of_a_pod_are_summed(world):
    read, _ = pool(world, "engines", "a")
    assert (read.replicas, read.running, read.kv_usage) == (1, 6.0, 0.4)
    assert read.rate_rps == pytest.approx(4.0, rel=0.1)


def test_pods_with_different_buckets_are_joined_at_the_edges_that_they_share(world):
    read, _ = pool(world, "edges", *READY)
    assert read.ttft.edges == (0.1, 1.0, math.inf)
    assert [count / read.ttft.count for count in read.ttft.counts] == pytest.approx([0.5, 0.5, 0.0], abs=0.01)


def test_what_is_not_a_number_negative_or_absent_is_missing_and_not_zero(world):
    read, reading = pool(world, "broken", "a")
    assert (read.running, read.kv_usage, read.prefix_hit_share) == (None, None, None)
    assert (read.rate_rps, read.ttft, read.inter_token) == (None, None, None)
    assert read.waiting == 1.0
    assert read.e2e.mean == pytest.approx(3.0)
    assert "inter_token" not in reading.aliases


def test_an_idle_pod_has_a_rate_of_zero_and_no_latency(world):
    read, reading = pool(world, "idle", "a")
    assert (read.rate_rps, read.running, read.kv_usage) == (0.0, 0.0, 0.0)
    assert (read.ttft, read.inter_token, read.prefix_hit_share) == (None, None, None)
    assert reading.aliases["ttft"] == "vllm:time_to_first_token_seconds"


def test_a_pod_that_was_never_scraped_is_dark_once_it_should_have_been(world):
    now = time.time()
    reading = world.read(world.asked("plain", "ghost"))
    assert (reading.found, reading.pools["pool"].dark) == (Found.MISSING, ("ghost",))
    assert "ghost" in reading.error
    young = world.read(world.asked("plain", "ghost", ready_since={"ghost": now}))
    assert (young.found, young.error, young.pools["pool"].dark) == (Found.AWAITED, "", ())
    beside = world.read(world.asked("plain", "a", "ghost", ready_since={"ghost": now - 60, "a": now}))
    assert (beside.found, beside.pools["pool"].replicas, beside.pools["pool"].dark) == (Found.FOUND, 1, ("ghost",))


def test_a_plan_without_ready_pods_has_nothing_to_measure(world):
    reading = world.read(world.asked("plain"))
    assert (reading.found, reading.pools) == (Found.AWAITED, {})


def test_pods_that_are_no_longer_scraped_go_dark_and_come_back(world):
    asked = world.asked("stops", *READY)
    world.pods["stops", "a"].stop()
    one = world.until(asked, lambda reading: reading.pools["pool"].dark, "one pod is dark")
    assert (one.found, one.pools["pool"].dark) == (Found.FOUND, ("a",))
    assert (one.pools["pool"].replicas, one.pools["pool"].running) == (1, 3.0)
    world.pods["stops", "b"].stop()
    both = world.until(asked, lambda reading: reading.found is not Found.FOUND, "all pods are dark")
    assert (both.found, both.pools["pool"].dark) == (Found.STALE, READY)
    assert (both.pools["pool"].replicas, both.pools["pool"].running) == (0, None)
    assert "3 s" in both.error
    for name in READY:
        world.pods["stops", name].start()
    world.until(asked, lambda reading: reading.pools["pool"].replicas == 2 and not reading.pools["pool"].dark, "both are back")


def test_a_hundred_plans_are_asked_for_together(world, serve, read_all):
    seen = []

    def passing_on(handler, body):
        seen.append(handler.path)
        question = urllib.request.Request(world.prometheus.url + handler.path, body, method=handler.command)
        with urllib.request.urlopen(question, timeout=5) as whole:
            answer = whole.read()
        handler.send_response(200)
        handler.send_header("content-length", str(len(answer)))
        handler.end_headers()
        handler.wfile.write(answer)

    source = Source(serve(passing_on).url, 1.0)
    plans = [world.asked(f"team-{number}", "pod", source=source, classes=("a",)) for number in range(99)]
    found = read_all(world.asked("mixed", *READY, source=source), *plans)
    assert (len(found), found["mixed/plan"].found, found["team-7/plan"].found) == (100, Found.FOUND, Found.MISSING)
    assert len(seen) == 1 + len(("ttft", "inter_token", "its old name", "e2e", "prompt_tokens", "output_tokens")) + 1

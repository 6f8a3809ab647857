"""What is read from a metrics page: the figures of vLLM's own page, of older releases and of several engines."""

from __future__ import annotations

import pytest

from servingplan.controller.prometheus import series
from servingplan.picker import scrape
from servingplan.picker.scrape import HitShare, Page, PageError, read_page

from .conftest import REAL_PAGE

BUSY = b"""\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 3.0
# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="m"} 2.0
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:prefix_cache_queries_total{engine="0",model_name="m"} 168.0
vllm:prefix_cache_hits_total{engine="0",model_name="m"} 42.0
"""


def test_the_figures_of_a_page() -> None:
    assert read_page(BUSY) == Page(running=3, waiting=2, kv_usage=0.25, prefix_hits=42, prefix_queries=168)


@pytest.mark.skipif(not REAL_PAGE.exists(), reason="needs the page of a real server")
def test_the_page_of_a_real_server() -> None:
    page = REAL_PAGE.read_bytes()
    assert read_page(page) == Page(running=0, waiting=0, kv_usage=0, prefix_hits=0, prefix_queries=168)
    running = b'requests_running{engine="0",model_name="tiny"} '
    busy = page.replace(running + b"0.0", running + b"7.0")
    assert read_page(busy).running == 7


def test_engines_and_models_on_one_page_are_summed_and_their_caches_averaged() -> None:
    page = b"".join(
        b'%s{engine="%d",model_name="%s"} %g\n' % (name, engine, model, value)
        for name, values in (
            (b"vllm:num_requests_running", (1, 2, 4)),
            (b"vllm:num_requests_waiting", (0, 8, 16)),
            (b"vllm:kv_cache_usage_perc", (0.1, 0.2, 0.6)),
        )
        for engine, model, value in zip((0, 1, 0), (b"a", b"a", b"b"), values, strict=True)
    )
    found = read_page(page)
    assert (found.running, found.waiting) == (7, 24)
    assert found.kv_usage == pytest.approx(0.3)
    assert (found.prefix_hits, found.prefix_queries) == (None, None)


def test_the_names_of_earlier_releases() -> None:
    page = (
        BUSY.replace(b"vllm:kv_cache", b"vllm:gpu_cache")
        .replace(b"vllm:prefix_cache_hits_total", b"vllm:gpu_prefix_cache_hits")
        .replace(b"vllm:prefix_cache_queries_total", b"vllm:gpu_prefix_cache_queries")
    )
    assert read_page(page) == read_page(BUSY)


def test_the_preferred_name_counts_where_both_are_there() -> None:
    assert read_page(BUSY + b"vllm:gpu_cache_usage_perc 0.75\n").kv_usage == 0.25


@pytest.mark.parametrize("label", ['a "} 9 b', "a{b} 5", "5 6", "\\n7"])
def test_a_label_may_hold_anything(label: str) -> None:
    quoted = label.replace('"', '\\"').encode()
    page = b'vllm:num_requests_running{model_name="%s"} 3\nvllm:num_requests_waiting{model_name="%s"} 2 1700000000000\n'
    found = read_page(page % (quoted, quoted))
    assert (found.running, found.waiting) == (3, 2)


def test_longer_names_and_comments_are_not_taken_for_samples() -> None:
    page = (
        b"# HELP vllm:num_requests_waiting_by_reason vllm:num_requests_waiting 99\n"
        b'vllm:num_requests_waiting_by_reason{reason="capacity"} 9\n'
        b"# TYPE vllm:num_requests_waiting gauge\n"
        b"vllm:num_requests_waiting 4\n"
        b"vllm:num_requests_running 1"
    )
    found = read_page(page)
    assert (found.running, found.waiting) == (1, 4)


@pytest.mark.parametrize(
    "page",
    [
        b"",
        b"<html>busy</html>",
        BUSY.replace(b"vllm:num_requests_running{", b"x{"),
        BUSY.replace(b"vllm:num_requests_waiting{", b"x{"),
        BUSY.replace(b" 3.0", b" NaN"),
        BUSY.replace(b" 3.0", b" +Inf"),
        BUSY.replace(b" 3.0", b" -1"),
        BUSY.replace(b" 3.0", b""),
        BUSY.replace(b" 3.0", b" three"),
    ],
)
def test_a_page_that_tells_no_load_is_no_idle_pod(page: bytes) -> None:
    with pytest.raises(PageError):
        read_page(page)


def test_the_names_are_those_that_the_controller_asks_prometheus_for() -> None:
    ours = {
        series.RUNNING: scrape.RUNNING,
        series.WAITING: scrape.WAITING,
        series.KV_USAGE: scrape.KV_USAGE,
        series.PREFIX_HITS: scrape.PREFIX_HITS,
        series.PREFIX_QUERIES: scrape.PREFIX_QUERIES,
    }
    assert ours == {need.key: need.names for need in series.NEEDS if need.key in ours}


def test_the_hit_share_is_of_late_and_begins_anew_with_the_server() -> None:
    share = HitShare(memory_s=10.0)
    assert share.add(500, 1000, 0.0) is None, "what was before tells nothing of now"
    assert share.add(500, 1000, 1.0) is None, "nothing was looked up"
    assert share.add(500, 1100, 2.0) == 0.0
    assert share.add(600, 1200, 3.0) == pytest.approx(0.5, abs=0.05)
    assert share.add(1600, 2200, 100.0) == pytest.approx(1.0, abs=1e-3), "the old increases have faded"
    assert share.add(3, 10, 101.0) is None, "the counters began anew"
    assert share.add(4, 14, 102.0) == 0.25
    assert share.add(None, 14, 103.0) is None

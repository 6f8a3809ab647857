import os
from pathlib import Path

import pytest

from servingplan.profiling.limits import Gauges, Steps, budget_from_steps, gauges, kv_tokens, steps

REAL_PAGE = Path(os.environ.get("SERVINGPLAN_DATA", Path(__file__).parents[3] / "shared/data")) / "vllm-0.32.0-metrics.txt"
EDGES = (1.0, 8.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0, float("inf"))


def histogram(*sizes: int) -> Steps:
    return Steps(tuple((edge, float(sum(size <= edge for size in sizes))) for edge in EDGES), len(sizes), float(sum(sizes)))


@pytest.mark.parametrize(
    ("sizes", "prompt", "budget"),
    [
        ((2048,) * 4 + (1,), 8192, 2048),
        ((2048,) * 6 + (1,), 12288, 2048),
        ((8192, 4096, 1), 12288, 8192),
        ((8192, 8192, 4, 1), 16388, 8192),
        ((6000, 6000, 288, 1), 12288, 6144),
        ((8192, 1), 8192, None),
        ((12288, 1), 12288, None),
        ((1, 1), 12288, None),
    ],
)
def test_the_token_budget_shows_in_how_a_long_prompt_was_cut(sizes: tuple[int, ...], prompt: int, budget: int | None) -> None:
    before = histogram(5, 300, 8192)
    after = histogram(5, 300, 8192, *sizes)
    assert budget_from_steps(before, after, prompt) == budget


def test_kv_tokens_of_several_engines_add_up() -> None:
    page = (
        'vllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="100"} 1.0\n'
        'vllm:cache_config_info{block_size="16",engine="1",num_gpu_blocks="50",kv_cache_size_tokens="784"} 1.0\n'
    )
    assert kv_tokens(page) == 1600 + 784
    assert kv_tokens('vllm:cache_config_info{block_size="16",num_gpu_blocks="None"} 1.0\n') is None
    assert kv_tokens("<html>no metrics</html>") is None


def test_gauges_are_none_where_the_page_does_not_say() -> None:
    page = "\n".join(f"vllm:num_requests_{rest}" for rest in ('running{engine="0"} 3', 'running{engine="1"} 2', "waiting 1"))
    assert gauges(page) == Gauges(5.0, 1.0, None)
    assert gauges(page).inside == 6
    assert gauges("") == Gauges()


def test_slots_show_where_requests_wait_although_there_is_cache() -> None:
    assert Gauges(64, 20, 0.3).slots == 64
    assert Gauges(64, 20, 0.97).slots is None
    assert Gauges(64, 0, 0.3).slots is None
    assert Gauges(64, 1, 0.3).slots is None


@pytest.mark.skipif(not REAL_PAGE.exists(), reason=f"needs {REAL_PAGE}")
def test_a_page_of_a_real_server_is_understood() -> None:
    page = REAL_PAGE.read_text()
    found = steps(page)
    assert found is not None
    assert (found.steps, found.tokens) == (65.0, 552.0)
    assert gauges(page).inside == 0
    assert (kv_tokens(page) or 0) > 0

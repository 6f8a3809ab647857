"""The routing table is whole or it is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from servingplan.api.routing_table import WEIGHT_TOTAL, RoutingTable, whole_weights

SHARES = st.dictionaries(st.text(min_size=1, max_size=8), st.floats(0, 1e6), max_size=64)


def table(**class_fields: Any) -> RoutingTable:
    return RoutingTable.model_validate(
        {
            "namespace": "llm",
            "plan": "chat",
            "generation": 3,
            "models": [{"name": "small", "pools": [{"name": "a", "setup": "one", "address": "a.llm.svc"}]}],
            "classes": [{"name": "all"} | class_fields],
        }
    )


def test_a_table_survives_the_round_trip_through_json() -> None:
    whole = table(headers={"x-class": "code"}, weights={"a": WEIGHT_TOTAL}, shares={"small": 0.9}, shed=0.1)
    assert RoutingTable.model_validate_json(whole.model_dump_json(by_alias=True)) == whole


def test_what_pickers_need_survives_the_round_trip_and_may_be_lacking() -> None:
    engine = {"alphaS": 0.0125, "betaS": 5e-05, "gammaS": 6e-08, "maxNumSeqs": 256, "maxNumBatchedTokens": 2048}
    pool = {"name": "a", "setup": "one", "address": "a.llm.svc", "engine": engine, "inputPrice": 4e-07, "outputPrice": 1.2e-06}
    further = {"quality": {"small": 0.6}, "promptTokens": 700, "outputTokens": 90, "weight": 2, "interTokenS": 0.05, "e2eS": 9}
    plain = table().model_dump(by_alias=True)
    filled = plain | {
        "models": [{"name": "small", "pools": [pool]}],
        "classes": [{"name": "all"} | further],
        "picker": {"perDollar": 1500, "perSecond": 0.02},
    }
    whole = RoutingTable.model_validate(filled)
    assert RoutingTable.model_validate_json(whole.model_dump_json(by_alias=True)) == whole
    known = whole.models[0].pools[0]
    assert known.engine is not None
    assert (known.engine.floor_s, known.engine.kv_tokens, known.output_price) == (0.0, None, 1.2e-06)
    assert whole.picker is not None
    assert (whole.picker.scale_s, whole.picker.power, whole.picker.shed) == (10.0, 2.0, True)
    assert table().picker is None
    assert table().models[0].pools[0].engine is None
    assert whole.digest != table().digest


def test_a_weight_for_a_pool_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValidationError, match="all: weights name no pool of the table: b"):
        table(weights={"a": WEIGHT_TOTAL // 2, "b": WEIGHT_TOTAL // 2})


def test_weights_that_lose_a_part_are_refused() -> None:
    with pytest.raises(ValidationError, match=f"all: weights sum to {WEIGHT_TOTAL - 1}, not to {WEIGHT_TOTAL}"):
        table(weights={"a": WEIGHT_TOTAL - 1})


def test_a_class_that_nothing_can_serve_has_no_weights() -> None:
    assert table(shed=1.0).classes[0].weights == {}


def test_an_unknown_field_is_refused() -> None:
    with pytest.raises(ValidationError):
        table(wieghts={"a": WEIGHT_TOTAL})


def test_the_digest_tells_tables_apart_and_equal_tables_not() -> None:
    assert table(shed=0.1).digest == table(shed=0.1).digest != table(shed=0.2).digest


@given(SHARES)
def test_whole_weights_are_whole_keep_every_share_and_lose_none(shares: dict[str, float]) -> None:
    weights = whole_weights(shares)
    assert set(weights) == {name for name, share in shares.items() if share > 0}
    assert all(weight > 0 for weight in weights.values())
    assert sum(weights.values()) == (WEIGHT_TOTAL if weights else 0)


@given(SHARES)
def test_whole_weights_are_no_further_from_the_shares_than_rounding_must(shares: dict[str, float]) -> None:
    weights, total = whole_weights(shares), sum(shares.values())
    for name, weight in weights.items():
        # Shares below one part are raised to one, and the largest pays for them.
        assert abs(weight - shares[name] / total * WEIGHT_TOTAL) <= len(weights)


@given(SHARES)
def test_the_order_of_the_shares_does_not_matter(shares: dict[str, float]) -> None:
    assert whole_weights(shares) == whole_weights(dict(reversed(shares.items())))

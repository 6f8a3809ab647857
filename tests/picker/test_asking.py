"""From headers and a prompt to what is asked of the decision."""

from __future__ import annotations

from typing import Any

import pytest

from servingplan.api.routing_table import ClassEntry
from servingplan.picker.asking import Catalogue, Prediction, asks_for_receipt, is_generation, make_ask
from servingplan.picker.body import Prompt
from servingplan.picker.protocol import BodyMode, Opening, Refusal
from servingplan.routing.ask import Ask


def opening(path: str = "/v1/chat/completions", method: str = "POST", **headers: str) -> Opening:
    sent = {name.replace("_", "-"): value.encode() for name, value in headers.items()}
    return Opening({":path": path.encode(), ":method": method.encode(), **sent}, False, BodyMode.BUFFERED)


@pytest.fixture
def catalogue(table):
    return Catalogue(table())


@pytest.fixture
def asked(catalogue):
    """The ask for a request."""

    def make(prompt: Prompt | None = None, prediction: Prediction | None = None, **fields: str) -> Ask | Refusal:
        begun = opening(**fields)
        chosen = catalogue.request_class(begun.headers)
        return make_ask(catalogue, chosen, begun, prompt or Prompt(tokens=10.0), prediction)

    return make


def test_only_posts_to_generating_paths_are_decided():
    assert is_generation(opening())
    assert is_generation(opening("/v1/completions?x=1"))
    for path, method in (
        ("/v1/models", "POST"),
        ("/v1/chat/completions", "GET"),
        ("/v1/chat/completions/", "POST"),
        ("/", "POST"),
    ):
        assert not is_generation(opening(path, method))


def test_the_class_is_the_first_whose_headers_match(catalogue, table):
    assert catalogue.request_class({"x-request-class": b"code"}).entry.name == "code"
    assert catalogue.request_class({"x-request-class": b"other"}).entry.name == "chat"
    entries = [ClassEntry(name="one", headers={"a": "1", "b": "2"}), ClassEntry(name="two", headers={"a": "1"})]
    labelled = Catalogue(table().model_copy(update={"classes": tuple(entries)}))
    assert labelled.request_class({"a": b"1", "b": b"2"}).entry.name == "one"
    assert labelled.request_class({"a": b"1"}).entry.name == "two"
    assert labelled.request_class({}).entry.name == "two", "the last takes what none matched"
    assert Catalogue(table().model_copy(update={"classes": ()})).request_class({}) is None


@pytest.mark.parametrize("name", ["chat", "auto", ""])
def test_a_free_name_leaves_the_choice(name, asked):
    assert asked(Prompt(name)).models is None


def test_a_model_of_the_plan_is_obeyed_whatever_the_class_asks(asked):
    ask = asked(Prompt("small.v1"))
    assert (ask.models, ask.min_quality) == ({"small.v1"}, 0.0)
    assert asked(Prompt()).min_quality == 0.2


@pytest.mark.parametrize("name", ["gpt-5", "Auto", "large", None])
def test_any_other_model_is_not_found(name, asked):
    refusal = asked(Prompt(name))
    assert (refusal.status, refusal.param, refusal.reason) == (404, "model", "unknown_model")
    assert refusal.message.endswith("Models of plan chat: chat, large.v1, small.v1.")


def test_the_classes_figures_stand_where_nobody_predicts(asked):
    ask = asked()
    assert ask.quality == {"large.v1": 0.9, "small.v1": 0.6}
    assert ask.output_tokens == {"large.v1": 150.0, "small.v1": 150.0}
    assert (ask.request_class, ask.e2e_slo_s, ask.ttft_slo_s, ask.weight) == ("chat", 9.0, None, 1.0)


def test_a_prediction_replaces_what_it_speaks_of(asked):
    ask = asked(prediction=Prediction({"small.v1": 0.7}, {"large.v1": 30.0}))
    assert ask.quality == {"large.v1": 0.9, "small.v1": 0.7}
    assert ask.output_tokens == {"large.v1": 30.0, "small.v1": 150.0}


def test_embeddings_generate_nothing(asked):
    assert asked(path="/v1/embeddings").output_tokens == {"large.v1": 1.0, "small.v1": 1.0}


HEADERS: dict[str, tuple[str, Any]] = {
    "x-llm-d-slo-ttft-ms": ("ttft_slo_s", 0.25),
    "x-slo-ttft-ms": ("ttft_slo_s", 0.25),
    "x-llm-d-slo-tpot-ms": ("inter_token_slo_s", 0.25),
    "x-slo-tpot-ms": ("inter_token_slo_s", 0.25),
    "x-servingplan-e2e-ms": ("e2e_slo_s", 0.25),
    "x-servingplan-budget": ("budget", 250.0),
}


@pytest.mark.parametrize("header", HEADERS)
def test_a_request_sets_its_own_limits(header, asked):
    name, want = HEADERS[header]
    assert getattr(asked(**{header: "250"}), name) == pytest.approx(want)


def test_quality_and_priority_are_fractions(asked):
    ask = asked(**{"x-servingplan-min-quality": "0.7", "x-servingplan-priority": "0.5"})
    assert (ask.min_quality, ask.weight) == (0.7, 0.5)
    assert asked(**{"x-servingplan-min-quality": "0.1"}).min_quality == 0.2, "never below the class's"


@pytest.mark.parametrize("header", [*HEADERS, "x-servingplan-min-quality", "x-servingplan-priority"])
@pytest.mark.parametrize("value", ["", "fast", "-1", "0", "nan", "inf", "1e999", "1,2"])
def test_a_limit_that_cannot_be_used_is_refused(header, value, asked):
    refusal = asked(**{header: value})
    assert (refusal.status, refusal.reason) == (400, "bad_header")
    assert refusal.message.startswith(f"Header {header} must be a number above 0")


def test_nobody_makes_himself_more_important(asked):
    assert asked(**{"x-servingplan-priority": "1.5"}).status == 400


def test_the_newer_name_of_a_header_counts(asked):
    assert asked(**{"x-slo-ttft-ms": "9000", "x-llm-d-slo-ttft-ms": "250"}).ttft_slo_s == 0.25


def test_the_tenant_is_told_by_a_header_of_bounded_length(asked):
    assert asked(**{"x-llm-d-inference-fairness-id": "team-a"}).tenant == "team-a"
    assert len(asked(**{"x-gateway-inference-fairness-id": "a" * 999}).tenant) == 64
    assert asked().tenant == ""


def test_a_receipt_is_asked_for():
    assert asks_for_receipt(opening(**{"x-servingplan-explain": "True"}))
    assert not asks_for_receipt(opening(**{"x-servingplan-explain": "no"}))
    assert not asks_for_receipt(opening())

"""Plans that must not be accepted, and the sentence that a user reads: from the API server, and from the operator."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from servingplan.api.load import Rejected, parse

Plan = dict[str, Any]

BASE: Plan = {
    "apiVersion": "servingplan.io/v1alpha1",
    "kind": "ModelServingPlan",
    "metadata": {"name": "chat", "namespace": "default"},
    "spec": {
        "slo": {"ttft": {"seconds": 0.8}},
        "accelerators": [
            {"name": "h100", "nodeSelector": {"nvidia.com/gpu.product": "H100"}, "limit": 8},
            {"name": "l40s", "nodeSelector": {"nvidia.com/gpu.product": "L40S"}},
        ],
        "models": [
            {
                "name": "large",
                "source": "example/large",
                "quality": {"default": "0.8", "classes": {"code": 0.7}},
                "setups": [
                    {
                        "name": "tp2",
                        "accelerator": "h100",
                        "count": 2,
                        "profile": {"coefficients": {"alphaMs": 20, "betaMs": "0.04", "gammaMs": "0.0001"}},
                    }
                ],
            },
            {
                "name": "small",
                "source": "example/small",
                "quality": {"default": 0.5},
                "setups": [
                    {
                        "name": "single",
                        "accelerator": "l40s",
                        "profileFrom": {"configMapKeyRef": {"name": "profiles", "key": "small"}},
                    }
                ],
            },
        ],
        "requestClasses": [
            {"name": "code", "match": {"headers": {"x-request-class": "code"}}, "rate": 3},
            {"name": "chat", "rate": "7.5"},
        ],
    },
}

POINT = {"concurrency": 8, "promptTokens": 512, "outputTokens": 128, "ttftMs": 90, "tpotMs": "21.5"}


class Left:
    """Stands for a field that is left out."""


LEFT_OUT = Left()


def edited(edits: dict[str, Any]) -> Plan:
    """The base plan with each path, such as ``spec.models.0.name``, set to its value."""
    plan = copy.deepcopy(BASE)
    for path, value in edits.items():
        *parents, last = (int(part) if part.isdigit() else part for part in path.split("."))
        node: Any = plan
        for part in parents:
            node = node[part] if isinstance(node, list) else node.setdefault(part, {})
        if value is LEFT_OUT:
            del node[last]
        elif isinstance(node, list) and last == len(node):
            node.append(value)
        else:
            node[last] = value
    return plan


@dataclass(frozen=True)
class Case:
    """A bad plan.

    ``field`` and ``wish`` are what the API server's sentence must say; the operator must blame the same field or what
    holds it.
    """

    name: str
    edits: dict[str, Any]
    field: str
    wish: str


SETUP = "spec.models.0.setups.0"
PROFILE = f"{SETUP}.profile"
HEADERS = "spec.requestClasses.0.match.headers"
LENGTHS = {"promptTokens": 300, "outputTokens": 80}
DUPLICATE_MODEL = BASE["spec"]["models"][1] | {"name": "large"}

CASES = [
    Case("no spec", {"spec": LEFT_OUT}, "spec", "Required value"),
    Case("no SLO", {"spec.slo": LEFT_OUT}, "spec.slo", "Required value"),
    Case("SLO without a bound", {"spec.slo": {}}, "spec.slo", "give at least one of ttft, interTokenLatency and e2e"),
    Case("bound without seconds", {"spec.slo.ttft": {"percentile": 95}}, "spec.slo.ttft.seconds", "Required value"),
    Case("0 seconds", {"spec.slo.ttft.seconds": 0}, "spec.slo.ttft.seconds", "should be greater than 0"),
    Case("quoted 0 seconds", {"spec.slo.ttft.seconds": "0"}, "spec.slo.ttft.seconds", "should match"),
    Case("negative seconds", {"spec.slo.ttft.seconds": -0.5}, "spec.slo.ttft.seconds", "should be greater than 0"),
    Case("seconds with a unit", {"spec.slo.ttft.seconds": "800ms"}, "spec.slo.ttft.seconds", "should match"),
    Case("seconds with an exponent", {"spec.slo.ttft.seconds": "1e3"}, "spec.slo.ttft.seconds", "should match"),
    Case("seconds that are no number", {"spec.slo.ttft.seconds": "NaN"}, "spec.slo.ttft.seconds", "should match"),
    Case("seconds that are true", {"spec.slo.ttft.seconds": True}, "spec.slo.ttft.seconds", "must not validate"),
    Case("seconds that are a list", {"spec.slo.ttft.seconds": [1]}, "spec.slo.ttft.seconds", "at most 0 items"),
    Case("seconds that are an object", {"spec.slo.ttft.seconds": {"p95": 1}}, "spec.slo.ttft.seconds", "at most 0 items"),
    Case("seconds that are null", {"spec.slo.ttft.seconds": None}, "spec.slo.ttft.seconds", "Required"),
    Case("percentile 0", {"spec.slo.ttft.percentile": 0}, "spec.slo.ttft.percentile", "greater than or equal to 50"),
    Case("percentile 100", {"spec.slo.ttft.percentile": 100}, "spec.slo.ttft.percentile", "less than or equal to 99"),
    Case("percentile 99.9", {"spec.slo.ttft.percentile": 99.9}, "spec.slo.ttft.percentile", "must be of type integer"),
    Case("percentile p95", {"spec.slo.ttft.percentile": "p95"}, "spec.slo.ttft.percentile", "must be of type integer"),
    Case(
        "percentile and mean at once",
        {"spec.slo.ttft.percentile": 95, "spec.slo.ttft.statistic": "Mean"},
        "spec.slo.ttft",
        "give percentile or statistic, not both",
    ),
    Case("statistic Median", {"spec.slo.ttft.statistic": "Median"}, "spec.slo.ttft.statistic", 'supported values: "Mean"'),
    Case("unknown scope", {"spec.slo.scope": "Cluster"}, "spec.slo.scope", 'supported values: "Route", "Plan"'),
    Case(
        "plan-wide percentile",
        {"spec.slo.scope": "Plan", "spec.slo.ttft.percentile": 95},
        "spec.slo",
        "with scope Plan every bound must have statistic: Mean",
    ),
    Case(
        "plan-wide mean beside the default percentile",
        {"spec.slo.scope": "Plan", "spec.slo.ttft.statistic": "Mean", "spec.slo.e2e": {"seconds": 20}},
        "spec.slo",
        "with scope Plan every bound must have statistic: Mean",
    ),
    Case(
        "plan-wide mean and a class SLO",
        {
            "spec.slo": {"scope": "Plan", "ttft": {"seconds": 0.8, "statistic": "Mean"}},
            "spec.requestClasses.0.slo": {"ttft": {"seconds": 0.5, "statistic": "Mean"}},
        },
        "spec.requestClasses",
        "no class may have an slo of its own while slo.scope is Plan: its means are over all classes: code",
    ),
    Case(
        "scope of a class",
        {"spec.requestClasses.0.slo": {"ttft": {"seconds": 1}, "scope": "Plan"}},
        "spec.requestClasses[0].slo.scope",
        "unknown field",
    ),
    Case("two nodes lost", {"spec.tolerateNodes": 2}, "spec.tolerateNodes", "less than or equal to 1"),
    Case("minus one node lost", {"spec.tolerateNodes": -1}, "spec.tolerateNodes", "greater than or equal to 0"),
    Case("class SLO without a bound", {"spec.requestClasses.0.slo": {}}, "spec.requestClasses[0].slo", "at least one of"),
    Case("unknown mode", {"spec.mode": "Manual"}, "spec.mode", 'supported values: "Auto", "Recommend", "Paused"'),
    Case("misspelt field", {"spec.models.0.qualty": {"default": 1}}, "spec.models[0].qualty", "unknown field"),
    Case("unknown field of the spec", {"spec.replicas": 3}, "spec.replicas", "unknown field"),
    Case("negative budget", {"spec.budget.costPerHour": -1}, "spec.budget.costPerHour", "greater than or equal to 0"),
    Case("no accelerators", {"spec.accelerators": []}, "spec.accelerators", "at least 1 items"),
    Case("two accelerators of one name", {"spec.accelerators.2": {"name": "h100"}}, "spec.accelerators[2]", "Duplicate value"),
    Case(
        "two accelerators for the same GPUs",
        {"spec.accelerators.1.nodeSelector": {"nvidia.com/gpu.product": "H100"}},
        "spec.accelerators",
        "tell two accelerators apart by resource or nodeSelector, or their GPUs are counted twice: h100",
    ),
    Case(
        "resource without a domain",
        {"spec.accelerators.0.resource": "gpu"},
        "spec.accelerators[0].resource",
        "must be an extended resource, a domain and a name such as nvidia.com/gpu",
    ),
    Case(
        "resource with a space",
        {"spec.accelerators.0.resource": "nvidia.com/ gpu"},
        "spec.accelerators[0].resource",
        "must be an extended resource",
    ),
    Case("negative limit", {"spec.accelerators.0.limit": -1}, "spec.accelerators[0].limit", "greater than or equal to 0"),
    Case("negative cost", {"spec.accelerators.0.costPerHour": "-1"}, "spec.accelerators[0].costPerHour", "should match"),
    Case(
        "node selector that is no label",
        {"spec.accelerators.0.nodeSelector": {"gpu product": "H100"}},
        "spec.accelerators[0].nodeSelector",
        "a key of nodeSelector must be the name of a label: gpu product",
    ),
    Case(
        "node selector with a value that is no label's",
        {"spec.accelerators.0.nodeSelector": {"gpu": "H100 80GB"}},
        "spec.accelerators[0].nodeSelector[gpu]",
        "must be the value of a label",
    ),
    Case("no models", {"spec.models": []}, "spec.models", "at least 1 items"),
    Case("two models of one name", {"spec.models.1": DUPLICATE_MODEL}, "spec.models[1]", "Duplicate value"),
    Case("model named auto", {"spec.models.0.name": "auto"}, "spec.models[0].name", "auto is reserved"),
    Case("model named as the plan", {"spec.models.0.name": "chat"}, "spec.models", "no model may bear the plan's own name"),
    Case(
        "model name with a slash",
        {"spec.models.0.name": "org/model"},
        "spec.models[0].name",
        "must be letters, digits, dashes, dots and underscores",
    ),
    Case("model without a source", {"spec.models.0.source": LEFT_OUT}, "spec.models[0].source", "Required value"),
    Case(
        "source that is a flag",
        {"spec.models.0.source": "--trust-remote-code"},
        "spec.models[0].source",
        "must be a repository id or a path",
    ),
    Case("model without quality", {"spec.models.0.quality": LEFT_OUT}, "spec.models[0].quality", "Required value"),
    Case("quality above 1", {"spec.models.0.quality.default": 71}, "spec.models[0].quality.default", "less than or equal to 1"),
    Case("quoted quality above 1", {"spec.models.0.quality.default": "71"}, "spec.models[0].quality.default", "match"),
    Case(
        "negative quality of a class",
        {"spec.models.0.quality.classes.code": -0.1},
        "spec.models[0].quality.classes.code",
        "greater than or equal to 0",
    ),
    Case("negative drain", {"spec.models.0.drainSeconds": -1}, "spec.models[0].drainSeconds", "greater than or equal to 0"),
    Case("no setups", {"spec.models.0.setups": []}, "spec.models[0].setups", "at least 1 items"),
    Case(
        "two setups of one name",
        {"spec.models.0.setups.1": BASE["spec"]["models"][0]["setups"][0]},
        "spec.models[0].setups[1]",
        "Duplicate value",
    ),
    Case(
        "accelerator that is not listed",
        {f"{SETUP}.accelerator": "a100"},
        "spec.models",
        "every setup must name an entry of spec.accelerators: model large, setup tp2 names a100",
    ),
    Case("0 units", {f"{SETUP}.count": 0}, "spec.models[0].setups[0].count", "greater than or equal to 1"),
    Case("half a unit", {f"{SETUP}.count": 0.5}, "spec.models[0].setups[0].count", "must be of type integer"),
    Case("quoted units", {f"{SETUP}.count": "2"}, "spec.models[0].setups[0].count", "must be of type integer"),
    Case(
        "more units than the limit",
        {f"{SETUP}.count": 16},
        "spec.models",
        "a replica must fit within the limit of its accelerator: model large, setup tp2 of h100",
    ),
    Case(
        "min above max",
        {f"{SETUP}.minReplicas": 3, f"{SETUP}.maxReplicas": 2},
        "spec.models[0].setups[0].minReplicas",
        "minReplicas must not exceed maxReplicas",
    ),
    Case("negative min", {f"{SETUP}.minReplicas": -1}, "spec.models[0].setups[0].minReplicas", "greater than or equal to 0"),
    Case("cold start 0", {f"{SETUP}.coldStartSeconds": 0}, "spec.models[0].setups[0].coldStartSeconds", "equal to 1"),
    Case("no profile", {PROFILE: LEFT_OUT}, "spec.models[0].setups[0]", "give profile or profileFrom, exactly one of them"),
    Case(
        "two profiles",
        {f"{SETUP}.profileFrom": {"configMapKeyRef": {"name": "profiles", "key": "large"}}},
        "spec.models[0].setups[0]",
        "give profile or profileFrom, exactly one of them",
    ),
    Case("empty profile", {PROFILE: {}}, "spec.models[0].setups[0].profile", "give coefficients or points"),
    Case(
        "coefficients and points",
        {f"{PROFILE}.points": [POINT, POINT | {"concurrency": 16}]},
        "spec.models[0].setups[0].profile",
        "give coefficients or points, exactly one of them",
    ),
    Case("one point", {PROFILE: {"points": [POINT]}}, "spec.models[0].setups[0].profile.points", "at least 2 items"),
    Case(
        "points of one concurrency",
        {PROFILE: {"points": [POINT, POINT]}},
        "spec.models[0].setups[0].profile.points",
        "measure at two different concurrencies at least",
    ),
    Case(
        "all coefficients 0",
        {f"{PROFILE}.coefficients": {"alphaMs": 0, "betaMs": 0, "gammaMs": 0}},
        "spec.models[0].setups[0].profile.coefficients.alphaMs",
        "should be greater than 0",
    ),
    Case(
        "more sequences than tokens in a step",
        {f"{PROFILE}.maxNumSeqs": 4096},
        "spec.models[0].setups[0].profile.maxNumSeqs",
        "maxNumSeqs must not exceed maxNumBatchedTokens",
    ),
    *(
        Case(
            f"argument {arg}",
            {f"{SETUP}.args": ["--max-model-len=8192", arg]},
            "spec.models[0].setups[0].args",
            f"leave out an argument that the operator writes itself: {wish}",
        )
        for arg, wish in (
            ("--port=9000", "--port"),
            ("--served-model-name", "--served-model-name, set the name of the model"),
            ("--tensor-parallel-size=4", "--tensor-parallel-size, set count"),
            ("-tp=4", "-tp, set count"),
            ("--max_num_seqs=64", "--max-num-seqs, set profile.maxNumSeqs"),
            ("--max-num-batched-tokens=64", "--max-num-batched-tokens, set profile.maxNumBatchedTokens"),
            ("--shutdown-timeout=5", "--shutdown-timeout, set drainSeconds of the model"),
        )
    ),
    Case("template that is a list", {"spec.models.0.template": []}, "spec.models[0].template", "must be of type object"),
    Case("template with replicas", {"spec.models.0.template": {"replicas": 3}}, "spec.models[0].template.replicas", "unknown"),
    Case(
        "template of a Deployment",
        {"spec.models.0.template": {"spec": {"replicas": 3}}},
        "spec.models[0].template.spec",
        "a pod template has no replicas",
    ),
    Case(
        "price of one kind",
        {"spec.models.0.price": {"inputPerMillion": 1}},
        "spec.models[0].price.outputPerMillion",
        "Required",
    ),
    Case(
        "negative price",
        {"spec.models.0.price": {"inputPerMillion": -1, "outputPerMillion": 1}},
        "spec.models[0].price.inputPerMillion",
        "greater than or equal to 0",
    ),
    Case(
        "unknown preset",
        {"spec.router": {"policy": "Online", "preset": "Fast"}},
        "spec.router.preset",
        'supported values: "Quality", "Balanced", "Latency", "Cost"',
    ),
    Case(
        "preset and prices",
        {"spec.router": {"policy": "Online", "preset": "Cost", "prices": {"perDollar": 1, "perSecond": 1}}},
        "spec.router.prices",
        "give preset or prices, not both",
    ),
    Case(
        "power 0",
        {"spec.router": {"policy": "Online", "prices": {"perDollar": 1, "perSecond": 1, "power": 0}}},
        "spec.router.prices.power",
        "should be greater than 0",
    ),
    *(
        Case(
            f"{field} without a picker",
            {"spec.router": {"policy": "Weights", field: value}},
            "spec.router.policy",
            "preset, prices, predictor and explain are the picker's: set policy Online, or leave them out",
        )
        for field, value in (
            ("preset", "Balanced"),
            ("prices", {"perDollar": 1, "perSecond": 1}),
            ("predictor", {"configMapKeyRef": {"name": "predictor", "key": "npz"}}),
            ("explain", True),
        )
    ),
    Case("no classes", {"spec.requestClasses": []}, "spec.requestClasses", "at least 1 items"),
    Case("two classes of one name", {"spec.requestClasses.1.name": "code"}, "spec.requestClasses[1]", "Duplicate value"),
    Case("class name too long", {"spec.requestClasses.1.name": "c" * 64}, "spec.requestClasses[1].name", "63"),
    Case(
        "class name with capitals",
        {"spec.requestClasses.1.name": "Chat"},
        "spec.requestClasses[1].name",
        "must be lower case letters, digits and dashes",
    ),
    Case(
        "two classes without match",
        {"spec.requestClasses.0.match": LEFT_OUT},
        "spec.requestClasses",
        "at most one request class may be without match",
    ),
    Case(
        "two classes with one match",
        {"spec.requestClasses.1.match": {"headers": {"x-request-class": "code"}}},
        "spec.requestClasses",
        "two request classes must not match the same headers: code",
    ),
    Case("match without headers", {HEADERS: {}}, "spec.requestClasses[0].match.headers", "at least 1"),
    Case(
        "header with capitals",
        {HEADERS: {"X-Request-Class": "code"}},
        "spec.requestClasses[0].match.headers",
        "header names are lower case letters, digits, dashes and underscores: X-Request-Class",
    ),
    *(
        Case(
            f"reserved header {header}",
            {HEADERS: {header: "code"}},
            "spec.requestClasses[0].match.headers",
            f"choose a header that neither HTTP nor the router uses itself: {header}",
        )
        for header in ("x-gateway-destination-endpoint", "content-length", "host")
    ),
    Case("pseudo header", {HEADERS: {":path": "/v1"}}, "spec.requestClasses[0].match.headers", "header names are"),
    Case(
        "empty header value",
        {f"{HEADERS}.x-request-class": ""},
        "spec.requestClasses[0].match.headers[x-request-class]",
        "must be printable ASCII",
    ),
    Case("negative rate", {"spec.requestClasses.0.rate": -1}, "spec.requestClasses[0].rate", "greater than or equal to 0"),
    Case("rate in words", {"spec.requestClasses.0.rate": "abc"}, "spec.requestClasses[0].rate", "should match"),
    Case("minQuality above 1", {"spec.requestClasses.0.minQuality": 70}, "spec.requestClasses[0].minQuality", "equal to 1"),
    Case("negative minQuality", {"spec.requestClasses.0.minQuality": "-0.1"}, "spec.requestClasses[0].minQuality", "match"),
    Case("negative burstiness", {"spec.requestClasses.0.arrivalCv": -1}, "spec.requestClasses[0].arrivalCv", "equal to 0"),
    Case(
        "lengths and their moments",
        {"spec.requestClasses.0.lengths": [LENGTHS], "spec.requestClasses.0.promptTokens": {"mean": 512}},
        "spec.requestClasses[0].lengths",
        "give lengths, or promptTokens and outputTokens, not both",
    ),
    Case(
        "lengths and the moments of answers",
        {"spec.requestClasses.0.lengths": [LENGTHS], "spec.requestClasses.0.outputTokens": {"mean": 128}},
        "spec.requestClasses[0].lengths",
        "give lengths, or promptTokens and outputTokens, not both",
    ),
    Case("empty lengths", {"spec.requestClasses.0.lengths": []}, "spec.requestClasses[0].lengths", "at least 1 items"),
    Case("too many lengths", {"spec.requestClasses.0.lengths": [LENGTHS] * 257}, "spec.requestClasses[0].lengths", "256"),
    Case(
        "answer of no tokens",
        {"spec.requestClasses.0.lengths": [LENGTHS | {"outputTokens": 0}]},
        "spec.requestClasses[0].lengths[0].outputTokens",
        "greater than or equal to 1",
    ),
    Case(
        "length of a prompt alone",
        {"spec.requestClasses.0.lengths": [{"promptTokens": 100}]},
        "spec.requestClasses[0].lengths[0].outputTokens",
        "Required value",
    ),
    Case("weight 0", {"spec.requestClasses.0.weight": 0}, "spec.requestClasses[0].weight", "greater than 0"),
    Case(
        "no prompt tokens",
        {"spec.requestClasses.0.promptTokens": {"mean": 0}},
        "spec.requestClasses[0].promptTokens.mean",
        "greater than 0",
    ),
    Case("unknown policy", {"spec.router.policy": "Random"}, "spec.router.policy", 'supported values: "Online", "Weights"'),
    Case("0 routers", {"spec.router.replicas": 0}, "spec.router.replicas", "greater than or equal to 1"),
    Case("port 0", {"spec.router.service.port": 0}, "spec.router.service.port", "greater than or equal to 1"),
    Case("plan name too long", {"metadata.name": "p" * 41}, "metadata.name", "must have at most 40 characters"),
    Case("plan name with a dot", {"metadata.name": "chat.v2"}, "metadata.name", "begin with a letter and hold only"),
    Case("plan name that begins with a digit", {"metadata.name": "3chat"}, "metadata.name", "begin with a letter"),
]


def operators_sentence(plan: Plan) -> str:
    parsed = parse(plan)
    assert isinstance(parsed, Rejected), "the operator accepts it"
    return parsed.message


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_api_server_refuses_and_names_the_field_and_the_wish(case: Case, refusals: Callable[[Plan], list[str]]) -> None:
    found = refusals(edited(case.edits))
    assert found, "accepted"
    assert case.wish in found[0]
    # One sentence, but for fractions where an integer is wanted, of which Kubernetes complains three times.
    assert all(case.field in sentence for sentence in found)
    assert len(found) == 1 or "must be of type integer" in case.wish


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_operator_refuses_in_a_sentence_that_blames_the_field(case: Case) -> None:
    blamed = operators_sentence(edited(case.edits)).partition(": ")[0]
    assert case.field.replace("[gpu]", ".gpu").replace("[x-request-class]", ".x-request-class").startswith(blamed)


@pytest.mark.parametrize(
    ("edits", "sentence"),
    [
        (
            {"spec.models.0.quality.classes": {"coding": 0.5}},
            "spec.models: quality.classes may only name entries of spec.requestClasses: model large names coding",
        ),
        (
            {"spec.requestClasses.0.minQuality": 0.75},
            "spec.requestClasses: list a model that reaches minQuality, or lower it:"
            " class code asks for 0.75, the best is model large with 0.7",
        ),
        ({"spec.requestClasses.0.slo": {"scope": "Plan"}}, "spec.requestClasses[0].slo.scope: is no field here"),
        ({"kind": "Deployment"}, "kind: must be ModelServingPlan, not Deployment"),
        ({"spec.slo.ttft.seconds": float("inf")}, "spec.slo.ttft.seconds: must be a decimal number such as 0.8"),
        ({"spec.models.0.qualty": 1}, "spec.models[0].qualty: is no field here, did you mean quality?"),
        ({"spec.models.0.drain_seconds": 1}, "spec.models[0].drain_seconds: is no field here, did you mean drainSeconds?"),
        ({"spec.mode": "auto", "spec.models": []}, "spec.mode: must be 'Auto', 'Recommend' or 'Paused' (and 1 more)"),
        ({"spec.models": {}}, "spec.models: must be a list"),
        ({"spec.models.0.setups.0.count": "2"}, "spec.models[0].setups[0].count: must be a whole number"),
        ({"spec.models.0.setups.0.count": True}, "spec.models[0].setups[0].count: must be a whole number"),
        (
            {"spec.requestClasses.1.name": "chat\n"},
            "spec.requestClasses[1].name: must be lower case letters, digits and dashes, with a letter or digit at either end",
        ),
        ({"spec": LEFT_OUT}, "spec: is required"),
    ],
)
def test_the_operator_says_what_to_change(edits: dict[str, Any], sentence: str) -> None:
    assert operators_sentence(edited(edits)) == sentence


def test_the_operator_does_not_read_what_is_no_object() -> None:
    assert parse(["a list"]) == Rejected("must be an object of kind ModelServingPlan, not a list")


def test_the_base_of_all_bad_plans_is_good() -> None:
    assert not isinstance(parse(BASE), Rejected)


def test_the_api_server_accepts_the_base_of_all_bad_plans(refusals: Callable[[Plan], list[str]]) -> None:
    assert refusals(BASE) == []

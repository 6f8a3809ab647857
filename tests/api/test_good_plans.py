"""Plans that users write are accepted, stored as written, and shown as they would want to see them."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml

from servingplan.api import reference
from servingplan.api.load import Rejected, parse
from servingplan.api.v1alpha1 import ModelServingPlan

MINIMAL = yaml.safe_load(reference.MINIMAL_EXAMPLE)
Answer = Callable[[dict[str, Any]], dict[str, Any]]


def varied(*, setup: dict[str, Any] | None = None, model: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    """The minimal plan with fields of its spec, its model and its setup set; None leaves a field out."""
    first_model = MINIMAL["spec"]["models"][0]
    first_setup = {key: value for key, value in (first_model["setups"][0] | (setup or {})).items() if value is not None}
    models = [first_model | {"setups": [first_setup]} | (model or {})]
    return MINIMAL | {"spec": MINIMAL["spec"] | {"models": models} | spec}


POINT = {"concurrency": 1, "promptTokens": 512, "outputTokens": 128, "ttftMs": "40.5", "tpotMs": 11}

PLANS = {
    "minimal": MINIMAL,
    "full": yaml.safe_load(reference.FULL_EXAMPLE),
    "decimals as strings": varied(slo={"ttft": {"seconds": "0.8"}}, budget={"costPerHour": "40"}),
    "decimals as integers": varied(slo={"e2e": {"seconds": 20}}, budget={"costPerHour": 40}),
    "small decimals": varied(
        setup={"profile": {"coefficients": {"alphaMs": 0.5, "betaMs": 0.0000021, "gammaMs": "0.000000001"}}}
    ),
    "mean bound": varied(slo={"interTokenLatency": {"seconds": 0.05, "statistic": "Mean"}}),
    "profile by points": varied(setup={"profile": {"points": [POINT, POINT | {"concurrency": 64}]}}),
    "profile in a ConfigMap": varied(
        setup={"profile": None, "profileFrom": {"configMapKeyRef": {"name": "profiles", "key": "llama.gpu"}}}
    ),
    "paused": varied(mode="Paused"),
    "fixed replicas": varied(setup={"minReplicas": 2, "maxReplicas": 2}),
    "a setup that is shut off": varied(setup={"maxReplicas": 0}),
    "a slice of a GPU": varied(
        accelerators=[
            {"name": "gpu", "resource": "nvidia.com/mig-3g.40gb"},
            {"name": "whole", "nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3", "empty": ""}},
        ]
    ),
    "classes told by two headers": varied(
        requestClasses=[
            {"name": "urgent-code", "match": {"headers": {"x-request-class": "code", "x_priority": "high, urgent"}}},
            {"name": "code", "match": {"headers": {"x-request-class": "code"}}, "slo": {"e2e": {"seconds": 30}}},
            {"name": "rest", "rate": 0},
        ]
    ),
    "means over the whole plan": varied(
        slo={"scope": "Plan", "ttft": {"seconds": 0.5, "statistic": "Mean"}, "e2e": {"seconds": 9, "statistic": "Mean"}}
    ),
    "lengths as a sample, bursts, one node to spare": varied(
        requestClasses=[
            {"name": "chat", "arrivalCv": 2, "minQuality": "0.5", "lengths": [{"promptTokens": 9, "outputTokens": 8}] * 256}
        ],
        tolerateNodes=1,
    ),
    "prompt lengths alone": varied(requestClasses=[{"name": "chat", "promptTokens": {"mean": 900}}]),
    "weights on a path, with further arguments": varied(
        model={"source": "/weights/llama", "drainSeconds": 0},
        router={"replicas": 1, "service": {"type": "NodePort"}},
    ),
    "a preset of the picker": varied(router={"policy": "Online", "preset": "Quality", "shed": False}),
    "free tokens": varied(model={"price": {"inputPerMillion": 0, "outputPerMillion": "0.15"}}),
    "weights alone": varied(router={"policy": "Weights", "shed": True, "explain": False}),
    "arguments that resemble the operator's": varied(
        setup={"args": ["--max-model-len=8192", "--model-impl", "vllm", '--speculative-config={"model": "x=y"}']}
    ),
    "pod template": varied(
        model={
            "template": {
                "metadata": {"labels": {"team": "a"}},
                "spec": {"containers": [{"name": "vllm", "env": [{"name": "HF_HUB_OFFLINE", "value": "1"}]}]},
            }
        }
    ),
    "as much as is allowed": varied(
        accelerators=[{"name": f"a{i}", "nodeSelector": {"gpu": f"a{i}"}, "limit": 8} for i in range(16)],
        models=[
            MINIMAL["spec"]["models"][0]
            | {
                "name": f"model-{i}",
                "setups": [
                    MINIMAL["spec"]["models"][0]["setups"][0]
                    | {"name": f"setup-{j}", "accelerator": f"a{j}", "args": ["--max-model-len=8192"] * 32}
                    for j in range(8)
                ],
            }
            for i in range(32)
        ],
        requestClasses=[
            {
                "name": f"c{i}",
                "match": {"headers": {f"x-{j}": f"c{i}" * 40 for j in range(8)}},
                "lengths": [{"promptTokens": 10 + j, "outputTokens": 10} for j in range(256)],
            }
            for i in range(32)
        ],
    ),
}


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS.keys())
def test_the_operator_accepts(plan: dict[str, Any]) -> None:
    assert not isinstance(parse(plan), Rejected)


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS.keys())
def test_the_api_server_accepts_and_stores_what_the_operator_reads(plan: dict[str, Any], dry_run: Answer) -> None:
    stored = dry_run(plan | {"metadata": {"name": "chat"}})
    assert stored["kind"] == "ModelServingPlan", stored.get("message")
    written, read = ModelServingPlan.model_validate(plan), ModelServingPlan.model_validate(stored)
    assert read.spec == written.spec
    by_server = read.spec.model_dump(by_alias=True, exclude_unset=True)
    assert by_server == written.spec.model_dump(by_alias=True, exclude_none=True)


@pytest.fixture
def namespace(api_kubectl: Any) -> Iterator[str]:
    name = f"api-{uuid.uuid4().hex[:8]}"
    api_kubectl("create", "namespace", name)
    yield name
    api_kubectl("delete", "namespace", name, "--wait=false")


def test_a_plan_applied_twice_is_written_once_and_shows_its_columns(api_kubectl: Any, namespace: str) -> None:
    def kubectl(*arguments: str, **options: Any) -> str:
        return str(api_kubectl("--namespace", namespace, *arguments, **options).stdout)

    # Paused, so that an operator that may be running decides nothing about it.
    plan = json.dumps(varied(mode="Paused", slo={"ttft": {"seconds": 0.80, "percentile": 95}}))
    for apply in (["apply"], ["apply", "--server-side", "--force-conflicts"]):
        kubectl(*apply, "-f-", stdin=plan)
        first = json.loads(kubectl("get", "msp", "chat", "-ojson"))
        kubectl(*apply, "-f-", stdin=plan)
        again = json.loads(kubectl("get", "msp", "chat", "-ojson"))
        assert again["metadata"]["generation"] == first["metadata"]["generation"] == 1
        assert again["spec"] == first["spec"]

    header = kubectl("get", "msp").splitlines()[0].split()
    assert header == ["NAME", "READY", "REASON", "QUALITY", "SLO", "GPUS", "AGE"]
    wide = kubectl("get", "msp", "-owide").splitlines()[0].split()
    assert wide[len(header) :] == ["SLO", "MET", "ACCELERATORS", "COST/H", "MODE", "ADDRESS", "MESSAGE"]
    assert "modelservingplan.servingplan.io/chat" in kubectl("get", "all", "-oname")


def test_kubectl_explains_a_field_in_the_words_of_the_model(api_kubectl: Any) -> None:
    text = api_kubectl("explain", "modelservingplan.spec.slo.ttft.percentile").stdout
    assert "The percentile of requests that keeps the bound" in text

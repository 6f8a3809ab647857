"""The demo reads what the API server writes, and its figures can be drawn from any of it."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from servingplan.api.v1alpha1 import ModelServingPlanSpec
from testbed.demo import figures
from testbed.demo.acts import load_classes
from testbed.demo.story import WARM_UP_S, Story, ttft_p95_by_pool
from testbed.demo.view import LABEL_MODEL, LABEL_PLAN, LABEL_SETUP, Node, Pod, nodes, pool_of, snapshot
from testbed.load import LoadClass, Record

MANIFEST = Path(__file__).parents[2] / "manifests" / "plan.yaml"
POOL = "chat-large-h100-a1b2c3"

PLAN = {
    "metadata": {"name": "chat", "generation": 3},
    "spec": {"slo": {"ttft": {"seconds": "0.8", "percentile": 95}}},
    "status": {
        "observedGeneration": 3,
        "conditions": [{"type": "Ready", "status": "True", "reason": "Serving", "message": ""}],
        "allocations": [
            {
                "model": "large",
                "setup": "h100",
                "accelerator": "h100",
                "deployment": POOL,
                "replicas": 2,
                "ready": 1,
                "units": 4,
                "rate": "3.5",
                "utilization": "0.9",
                "predicted": {"ttftP95": "0.7"},
            }
        ],
        "routes": [{"class": "code", "weights": {"large": "0.9"}, "shed": "0.1"}],
        "objective": {"quality": "0.75", "costPerHour": "12"},
        "router": {"address": "chat-router.llm.svc:80"},
    },
}


def pod(name: str, **status: object) -> dict[str, object]:
    container = {"name": "vllm", "resources": {"limits": {"nvidia.com/gpu": "2"}}}
    labels = {LABEL_PLAN: "chat", LABEL_MODEL: "large", LABEL_SETUP: "h100"}
    return {
        "metadata": {"name": name, "labels": labels},
        "spec": {"nodeName": "n1", "containers": [container]},
        "status": status,
    }


READY = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}], "containerStatuses": [{"ready": True}]}


def test_a_snapshot_holds_what_the_status_and_the_pods_say() -> None:
    found = snapshot(1.0, PLAN, [pod(f"{POOL}-5d4f-x1", **READY)])
    (allocation,) = found.allocations
    assert found.ready
    assert (allocation.pool, allocation.replicas, allocation.ready, allocation.gpus) == (POOL, 2, 1, 4)
    assert (allocation.rate_rps, allocation.ttft_p95_s) == (3.5, 0.7)
    assert (found.quality, found.cost_per_hour, found.ttft_slo_s) == (0.75, 12.0, 0.8)
    assert found.shares == {"code": {"large": 0.9}}
    assert found.pods == (Pod(f"{POOL}-5d4f-x1", "n1", "large", "h100", 2, "Running", ready=True, holds_gpus=True),)


def test_a_status_of_an_earlier_spec_says_nothing_of_this_one() -> None:
    stale = PLAN | {"metadata": {"name": "chat", "generation": 4}}
    assert not snapshot(1.0, stale, []).ready
    assert not snapshot(1.0, PLAN | {"status": {}}, []).ready


@pytest.mark.parametrize(
    ("status", "state"),
    [
        ({"phase": "Pending"}, "Pending"),
        ({"phase": "Running", "containerStatuses": [{"ready": False}]}, "Starting"),
        ({"phase": "Pending", "containerStatuses": [{"state": {"waiting": {"reason": "ErrImagePull"}}}]}, "ErrImagePull"),
    ],
)
def test_a_pod_that_does_not_serve_says_why(status: dict[str, object], state: str) -> None:
    (found,) = snapshot(1.0, PLAN, [pod("p-1-2", **status)]).pods
    assert (found.state, found.ready) == (state, False)


def test_pods_of_other_plans_and_nodes_without_gpus_are_left_out() -> None:
    other = pod("p-1-2", **READY) | {"metadata": {"name": "p-1-2", "labels": {LABEL_PLAN: "other"}}}
    assert snapshot(1.0, PLAN, [other]).pods == ()
    plain = {"metadata": {"name": "a", "labels": {}}, "status": {"allocatable": {"cpu": "8"}}}
    gpus = {
        "metadata": {"name": "b", "labels": {"nvidia.com/gpu.product": "L40S"}},
        "status": {"allocatable": {"nvidia.com/gpu": "4"}},
    }
    assert nodes([plain, gpus]) == (Node("b", "L40S", 4),)


def test_the_load_is_what_the_plan_expects() -> None:
    spec = yaml.safe_load(MANIFEST.read_text())["spec"]
    read = ModelServingPlanSpec.model_validate(spec).request_classes
    assert load_classes(spec) == [
        LoadClass(
            name=each.name,
            share=float(each.rate),
            prompt_tokens=float(each.prompt_tokens.mean),
            prompt_cv=float(each.prompt_tokens.cv),
            output_tokens=float(each.output_tokens.mean),
            output_cv=float(each.output_tokens.cv),
            headers=each.match.headers if each.match else {},
        )
        for each in read
    ]


def record(start_s: float, ttft_s: float = 0.2) -> Record:
    return Record("code", "auto", start_s, 0.0, 200, "large", f"{POOL}-5d4f-x1", ttft_s, 2.0, 10, 20)


def story(*records: Record) -> Story:
    found = snapshot(100.0, PLAN, [pod(f"{POOL}-5d4f-x1", **READY)])
    return Story(
        models=("large",),
        nodes=(Node("n1", "NVIDIA-H100-80GB-HBM3", 8),),
        before=found,
        after=replace(found, ttft_slo_s=0.4),
        looks=(found, replace(found, at_s=150.0)),
        records=records,
        load_from_s=100.0,
        changed_s=140.0,
        rerouted_s=141.0,
        settled_s=150.0,
        load_until_s=200.0,
        machine_busy=0.5,
    )


def test_steady_figures_leave_out_the_warm_up_and_the_move() -> None:
    moments_s = (100.0, 100.0 + WARM_UP_S, 139.9, 140.0, 150.0, 150.0 + WARM_UP_S, 199.9, 200.0)
    found = story(*(record(at_s) for at_s in moments_s))
    assert [each.start_s for each in found.steady_before] == [108.0, 139.9]
    assert [each.start_s for each in found.steady_after] == [158.0, 199.9]


def test_waits_are_counted_for_the_pool_of_the_pod_that_answered() -> None:
    assert pool_of(f"{POOL}-5d4f-x1") == POOL
    records = [record(1.0, ttft_s=second / 100) for second in range(101)]
    assert ttft_p95_by_pool([*records, replace(record(1.0), error="cut")]) == {POOL: (pytest.approx(0.95), 101)}


@pytest.mark.parametrize("records", [[], [record(100.0 + at_s, 0.1 + at_s / 500) for at_s in range(100)]], ids=["none", "many"])
def test_figures_are_drawn_whatever_was_answered(records: list[Record], tmp_path: Path) -> None:
    figures.draw_plan(story(*records), tmp_path / "plan.png")
    figures.draw_change(story(*records), tmp_path / "change.png")
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in ("plan.png", "change.png"))

"""What Argo CD shows of a plan; its Lua is the dialect 5.1 with no library that reaches outside."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from lupa import lua51

ARGOCD = Path(__file__).parents[2] / "manifests/argocd"


@dataclass(frozen=True)
class Case:
    name: str
    want: tuple[str, str]
    conditions: dict[str, tuple[str, str]] = field(default_factory=dict)
    observed: int | None = 3
    mode: str = "Auto"
    metadata: dict[str, Any] = field(default_factory=dict)
    reason: str = "Any"


def plan(case: Case) -> dict[str, Any]:
    obj: dict[str, Any] = {"metadata": {"generation": 3} | case.metadata, "spec": {"mode": case.mode}}
    if case.observed is not None:
        conditions = [
            {"type": kind, "status": s, "message": m, "reason": case.reason} for kind, (s, m) in case.conditions.items()
        ]
        obj["status"] = {"observedGeneration": case.observed, "conditions": conditions}
    return obj


def health(obj: dict[str, Any]) -> tuple[str, str]:
    lua = lua51.LuaRuntime(unpack_returned_tuples=True)
    for library in ("io", "os", "debug", "package", "require"):
        lua.globals()[library] = None
    lua.globals().obj = lua.table_from(obj, recursive=True)
    result = lua.execute((ARGOCD / "health.lua").read_text())
    return result.status, result.message


SERVING = {"Ready": ("True", "all replicas are ready"), "Feasible": ("True", ""), "Reconciling": ("False", "")}

CASES = [
    Case("just created", ("Progressing", "Waiting for the operator to see this generation"), observed=None),
    Case("ready", ("Healthy", "all replicas are ready"), SERVING),
    Case("ready before the last change", ("Progressing", "Waiting for the operator to see this generation"), SERVING, 2),
    Case("being deleted", ("Progressing", "Deleting"), SERVING, metadata={"deletionTimestamp": "2026-01-01T00:00:00Z"}),
    Case("paused", ("Suspended", "Paused: replicas and weights are held"), SERVING, mode="Paused"),
    Case(
        "waiting for an approval",
        ("Suspended", "approve proposal 1a2b to begin"),
        {"Ready": ("False", "approve proposal 1a2b to begin"), "Feasible": ("Unknown", "")},
        mode="Recommend",
        reason="AwaitingApproval",
    ),
    Case(
        "rolling out",
        ("Progressing", "1 of 2 replicas ready"),
        {"Ready": ("False", "not yet"), "Reconciling": ("True", "1 of 2 replicas ready"), "Feasible": ("True", "")},
    ),
    Case(
        "infeasible while it serves",
        ("Degraded", "needs 2 more h100"),
        {"Ready": ("False", "sheds"), "Feasible": ("False", "needs 2 more h100"), "Reconciling": ("True", "scaling")},
    ),
    Case("feasibility not known", ("Healthy", "ok"), {"Ready": ("True", "ok"), "Feasible": ("Unknown", "time limit")}),
    Case(
        "invalid",
        ("Degraded", "ConfigMap profiles does not exist"),
        {"Stalled": ("True", "ConfigMap profiles does not exist"), "Ready": ("False", "")},
    ),
    Case(
        "invalid and paused",
        ("Degraded", "no such key"),
        {"Stalled": ("True", "no such key")},
        mode="Paused",
    ),
    Case("a node was lost", ("Degraded", "pod p is pending"), {"Ready": ("False", "pod p is pending")}),
    Case("nothing said yet", ("Progressing", "Waiting for the operator"), {}),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_health_of_a_plan(case: Case) -> None:
    assert health(plan(case)) == case.want


def test_a_status_without_conditions_is_no_error() -> None:
    obj = {"metadata": {"generation": 1}, "spec": {}, "status": {"observedGeneration": 1}}
    assert health(obj) == ("Progressing", "Waiting for the operator")


def test_the_patch_of_argocd_carries_the_same_text() -> None:
    patch = yaml.safe_load((ARGOCD / "argocd-cm-patch.yaml").read_text())
    lua = (ARGOCD / "health.lua").read_text()
    assert patch["data"] == {"resource.customizations.health.servingplan.io_ModelServingPlan": lua}, (
        "copy health.lua into argocd-cm-patch.yaml"
    )

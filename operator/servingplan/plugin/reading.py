"""From the API server's object to what the plugin shows. Pure.

The status is read field by field rather than by the API's models: the operator on the cluster may be older or newer than this
plugin, and what it does not write yet, or no longer, must not keep the rest from being seen.
"""

from __future__ import annotations

import math
from typing import Any

from servingplan.api import v1alpha1
from servingplan.plugin.view import (
    ApprovalView,
    BoundView,
    ClassView,
    ConditionView,
    DecisionView,
    GivenUpView,
    KindView,
    LatencyView,
    Learnt,
    OutlookView,
    PlanView,
    ProposalView,
    RouteChange,
    SetupChange,
    SetupView,
)

Object = dict[str, Any]

ANNOTATION_MODE = f"{v1alpha1.GROUP}/mode-before-pause"
"""Where ``pause`` keeps what the mode was."""

_GITOPS = (
    ("Argo CD", "annotations", "argocd.argoproj.io/tracking-id"),
    ("Argo CD", "labels", "argocd.argoproj.io/instance"),
    ("Flux", "labels", "kustomize.toolkit.fluxcd.io/name"),
    ("Flux", "labels", "helm.toolkit.fluxcd.io/name"),
)
_GITOPS_MANAGERS = {"argocd-controller": "Argo CD", "kustomize-controller": "Flux", "helm-controller": "Flux"}


def read_plan(body: Object) -> PlanView:
    """A plan from the API server's object."""
    metadata, spec, status = body["metadata"], body.get("spec", {}), body.get("status") or {}
    annotations = metadata.get("annotations") or {}
    objective, router, metrics = (status.get(part) or {} for part in ("objective", "router", "metrics"))
    return PlanView(
        namespace=metadata["namespace"],
        name=metadata["name"],
        mode=str(spec.get("mode", "Auto")),
        generation=int(metadata.get("generation", 0)),
        observed_generation=int(status.get("observedGeneration") or 0),
        conditions=tuple(_condition(each) for each in status.get("conditions", ())),
        setups=tuple(_setup(each) for each in status.get("allocations", ())),
        classes=_classes(spec, status),
        kinds=tuple(_kind(each, status.get("accelerators") or {}) for each in spec.get("accelerators", ())),
        models=tuple(str(model["name"]) for model in spec.get("models", ())),
        quality=_number(objective.get("quality")),
        quality_bound=_number(objective.get("bound")),
        cost_per_hour=_number(objective.get("costPerHour")),
        gap=_number(objective.get("gap")),
        slo=str((status.get("summary") or {}).get("slo", "")),
        proposal=_proposal(status.get("proposal")),
        approval=_approval(status.get("approval")),
        history=tuple(_decision(each) for each in status.get("history", ())),
        router_address=str(router.get("address", "")),
        router_ready=router.get("ready"),
        series=dict(metrics.get("series") or {}),
        learnt_at=str(metrics.get("time") or ""),
        mode_before_pause=str(annotations.get(ANNOTATION_MODE, "")),
        approval_asked=str(annotations.get(v1alpha1.APPROVE_ANNOTATION, "")),
        gitops=_owner_of_spec(metadata),
    )


def _condition(entry: Object) -> ConditionView:
    return ConditionView(
        type=entry["type"],
        status=entry["status"],
        reason=entry.get("reason", ""),
        message=entry.get("message", ""),
        since=entry.get("lastTransitionTime", ""),
    )


def _setup(entry: Object) -> SetupView:
    return SetupView(
        model=entry["model"],
        setup=entry["setup"],
        accelerator=entry.get("accelerator", ""),
        replicas=int(entry.get("replicas", 0)),
        ready=int(entry.get("ready", 0)),
        units=int(entry.get("units", 0)),
        rate_rps=_number(entry.get("rate")) or 0.0,
        utilization=_number(entry.get("utilization")) or 0.0,
        predicted=_latency(entry.get("predicted")),
        observed=_latency(entry.get("observed")),
        changed=str(entry.get("changed") or ""),
        grew=entry.get("grew"),
        given_up=_given_up(entry.get("givenUp")),
        learnt=_learnt(entry.get("calibration")),
    )


def _latency(entry: Object | None) -> LatencyView | None:
    if not entry:
        return None
    return LatencyView(
        ttft_mean_s=_number(entry.get("ttftMean")),
        ttft_p95_s=_number(entry.get("ttftP95")),
        inter_token_s=_number(entry.get("interTokenMean")),
        time=str(entry.get("time") or ""),
    )


def _given_up(entry: Object | None) -> GivenUpView | None:
    if not entry:
        return None
    return GivenUpView(str(entry.get("reason", "")), int(entry.get("attempts", 1)), str(entry.get("retry", "")))


def _learnt(entry: Object | None) -> Learnt | None:
    if not entry:
        return None
    applied = entry.get("applied") or {}
    return Learnt(
        samples=int(entry.get("samples", 0)),
        drifting=bool(entry.get("drifting", False)),
        step=_numbers(applied.get("step")),
        ttft=_numbers(applied.get("ttft")),
        margin=_shares(applied.get("margin")),
    )


def _classes(spec: Object, status: Object) -> tuple[ClassView, ...]:
    """The classes in the order of the spec, then the models that requests name."""
    declared = {entry["name"]: entry for entry in spec.get("requestClasses", ())}
    routes = {entry["class"]: entry for entry in status.get("routes", ())}
    demand = status.get("demand", ())
    rates = {entry["class"]: entry for entry in demand if entry.get("class")}
    named = {entry["model"]: entry for entry in demand if entry.get("model")}
    classes = [
        _class(name, declared.get(name, {}), routes.get(name, {}), rates.get(name, {}), spec.get("slo", {}))
        for name in dict.fromkeys([*declared, *routes])
    ]
    classes += [_class(name, {}, {"weights": {name: "1"}}, entry, {}, by_name=True) for name, entry in named.items()]
    return tuple(classes)


def _class(name: str, declared: Object, route: Object, demand: Object, slo: Object, *, by_name: bool = False) -> ClassView:
    return ClassView(
        name=name,
        by_name=by_name,
        weights=_shares(route.get("weights")),
        shed=_number(route.get("shed")) or 0.0,
        declared_rps=_number(declared.get("rate")),
        observed_rps=_number(demand.get("observed")),
        planned_rps=_number(demand.get("planned")),
        routed_rps=_number(demand.get("routed")),
        prompt_factor=_number(demand.get("promptFactor")),
        output_factor=_number(demand.get("outputFactor")),
        bound=_bound((declared.get("slo") or slo).get("ttft")),
    )


def _bound(entry: Object | None) -> BoundView | None:
    seconds = _number(entry.get("seconds")) if entry else None
    if entry is None or seconds is None:
        return None
    return BoundView(seconds, None if entry.get("statistic") == "Mean" else int(entry.get("percentile") or 95))


def _kind(entry: Object, used: dict[str, int]) -> KindView:
    return KindView(
        name=entry["name"],
        resource=entry.get("resource", "nvidia.com/gpu"),
        selector=dict(entry.get("nodeSelector") or {}),
        limit=entry.get("limit"),
        used=int(used.get(entry["name"], 0)),
    )


def _proposal(entry: Object | None) -> ProposalView | None:
    if not entry:
        return None
    return ProposalView(
        id=str(entry["id"]),
        time=str(entry.get("time", "")),
        generation=int(entry.get("generation", 0)),
        reason=str(entry.get("reason", "")),
        setups=tuple(
            SetupChange(each["model"], each["setup"], each.get("accelerator", ""), int(each["before"]), int(each["after"]))
            for each in entry.get("setups", ())
        ),
        routes=tuple(
            RouteChange(
                each["class"],
                _shares(each.get("before")),
                _shares(each.get("after")),
                _number(each.get("ttftBefore")),
                _number(each.get("ttftAfter")),
            )
            for each in entry.get("routes", ())
        ),
        before=_outlook(entry.get("before") or {}),
        after=_outlook(entry.get("after") or {}),
    )


def _outlook(entry: Object) -> OutlookView:
    return OutlookView(*(_number(entry.get(name)) or 0.0 for name in ("quality", "costPerHour", "shed")))


def _approval(entry: Object | None) -> ApprovalView | None:
    if not entry:
        return None
    return ApprovalView(str(entry.get("id") or ""), str(entry.get("time") or ""), str(entry.get("refused") or ""))


def _decision(entry: Object) -> DecisionView:
    replicas = {name: int(count) for name, count in (entry.get("replicas") or {}).items()}
    return DecisionView(str(entry.get("time", "")), int(entry.get("generation", 0)), str(entry.get("reason", "")), replicas)


def _owner_of_spec(metadata: Object) -> str:
    """The GitOps tool that left its mark on the object."""
    for tool, part, key in _GITOPS:
        if key in (metadata.get(part) or {}):
            return tool
    managers = {entry.get("manager", "") for entry in metadata.get("managedFields") or ()}
    return next((_GITOPS_MANAGERS[each] for each in sorted(managers) if each in _GITOPS_MANAGERS), "")


def _number(value: object) -> float | None:
    """A decimal as the API has it, number or string; None where there is none."""
    try:
        found = float(str(value)) if value is not None else None
    except ValueError:
        return None
    return found if found is not None and math.isfinite(found) else None


def _numbers(values: list[object] | None) -> tuple[float, ...]:
    return tuple(found for found in map(_number, values or ()) if found is not None)


def _shares(values: Object | None) -> dict[str, float]:
    return {name: found for name, value in (values or {}).items() if (found := _number(value)) is not None}

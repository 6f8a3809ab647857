"""The only reader: the watched world, the operator's own objects, the tables that routers serve, and what Prometheus says."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Iterable
from typing import Any

import aiohttp
import yaml
from pydantic import ValidationError

from servingplan.api import v1alpha1
from servingplan.api.load import Rejected, parse, sentence
from servingplan.calibration.readings import Readings
from servingplan.controller.kube import Kube
from servingplan.controller.world import ChildKey, Node, PlanObject, Pod, Served, World
from servingplan.render import names, router
from servingplan.render.envoy.bootstrap import HTTP_PORT, METRICS_PORT
from servingplan.render.envoy.routes import TABLE_PATH

log = logging.getLogger(__name__)

_TABLE_TIMEOUT = aiohttp.ClientTimeout(total=1.0)
_MEMBERS_PATH = "/stats/prometheus?filter=membership_total"
_MEMBERS = re.compile(r'^envoy_cluster_membership_total\{.*\benvoy_cluster_name="([^"]+)".*\} (\d+)', re.MULTILINE)
_LISTED = ("ConfigMap", "PodDisruptionBudget", "RoleBinding", "Service", "ServiceAccount")


async def observe(
    kube: Kube,
    http: aiohttp.ClientSession,
    watched: Watched,
    readings: dict[str, Readings],
    namespaces: tuple[str, ...],
    now_s: float,
) -> World:
    """Everything that a decision may depend on, read before any decision is made.

    Raises:
        KubeError: The API server does not answer.
    """
    plans = tuple([await _plan(kube, body) for body in watched.plans if "deletionTimestamp" not in body["metadata"]])
    children = {_key("Deployment", body): body for body in watched.deployments}
    for kind in _LISTED:
        for namespace in namespaces or (None,):
            children |= {_key(kind, body): body for body in await kube.list(kind, namespace, names.MANAGED)}
    pods = tuple(watched.pods)
    return World(
        plans=plans,
        nodes=tuple(watched.nodes),
        pods=pods,
        children=children,
        served=await served_tables(http, pods),
        readings=readings,
        now_s=now_s,
    )


class Watched:
    """What the watches have brought, by kind; a view over live indices that is read once per pass."""

    def __init__(
        self,
        plans: Iterable[Any],
        nodes: Iterable[Node],
        pods: Iterable[Pod],
        deployments: Iterable[Any],
    ) -> None:
        self.plans = sorted(plans, key=lambda body: (body["metadata"]["namespace"], body["metadata"]["name"]))
        self.nodes = sorted(nodes, key=lambda node: node.name)
        self.pods = sorted(pods, key=lambda pod: (pod.namespace, pod.name))
        self.deployments = list(deployments)

    @property
    def plan_keys(self) -> list[str]:
        """``namespace/name`` of every plan."""
        return [f"{body['metadata']['namespace']}/{body['metadata']['name']}" for body in self.plans]


async def served_tables(http: aiohttp.ClientSession, pods: Iterable[Pod]) -> dict[str, dict[str, Served | None]]:
    """What every ready router pod says it serves, by plan key and pod name; None for one that does not answer."""
    asked = [pod for pod in pods if pod.component == router.COMPONENT and pod.ready and not pod.terminating]
    answers = await asyncio.gather(*(_served(http, pod) for pod in asked))
    found: dict[str, dict[str, Served | None]] = {}
    for pod, answer in zip(asked, answers, strict=True):
        found.setdefault(pod.plan_key, {})[pod.name] = answer
    return found


async def _served(http: aiohttp.ClientSession, pod: Pod) -> Served | None:
    host = f"[{pod.address}]" if ":" in pod.address else pod.address
    try:
        async with http.get(f"http://{host}:{HTTP_PORT}{TABLE_PATH}", timeout=_TABLE_TIMEOUT) as answer:
            body = await answer.json(content_type=None)
        return Served(
            digest=str(body["digest"]),
            revision=int(body["revision"]),
            generation=int(body["generation"]),
            pools=await _known_pools(http, host),
        )
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError, KeyError, TypeError) as error:
        log.debug("router %s/%s does not say what it serves: %r", pod.namespace, pod.name, error)
        return None


async def _known_pools(http: aiohttp.ClientSession, host: str) -> frozenset[str] | None:
    """Pools of which a router knows a pod; None where it does not say, as routers of an earlier version."""
    try:
        async with http.get(f"http://{host}:{METRICS_PORT}{_MEMBERS_PATH}", timeout=_TABLE_TIMEOUT) as answer:
            page = await answer.text()
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
        return None
    members = {name: int(count) for name, count in _MEMBERS.findall(page)}
    return frozenset(name for name, count in members.items() if count) if members else None


async def _plan(kube: Kube, body: Any) -> PlanObject:
    metadata = body["metadata"]
    parsed = parse(body)
    spec = None if isinstance(parsed, Rejected) else parsed.spec
    profiles, missing = await _profiles(kube, metadata["namespace"], spec) if spec else ({}, ())
    return PlanObject(
        owner=names.Owner(namespace=metadata["namespace"], name=metadata["name"], uid=metadata["uid"]),
        generation=metadata["generation"],
        spec=spec,
        rejected=parsed.message if isinstance(parsed, Rejected) else "",
        profiles=profiles,
        missing=missing,
        status=body.get("status", {}),
        approval=metadata.get("annotations", {}).get(v1alpha1.APPROVE_ANNOTATION, ""),
    )


async def _profiles(
    kube: Kube, namespace: str, spec: v1alpha1.ModelServingPlanSpec
) -> tuple[dict[tuple[str, str], v1alpha1.Profile], tuple[str, ...]]:
    profiles, missing = {}, []
    for model in spec.models:
        for setup in model.setups:
            key = (model.name, setup.name)
            if setup.profile is not None:
                profiles[key] = setup.profile
                continue
            assert setup.profile_from is not None, "the API allows no setup without either"
            found = await _referenced(kube, namespace, setup.profile_from.config_map_key_ref)
            if isinstance(found, str):
                missing.append(f"models[{model.name}].setups[{setup.name}].profileFrom: {found}")
            else:
                profiles[key] = found
    return profiles, tuple(missing)


async def _referenced(kube: Kube, namespace: str, where: v1alpha1.ConfigMapKeySelector) -> v1alpha1.Profile | str:
    """The profile in a ConfigMap, or what is wrong with it and how to mend it."""
    found = await kube.get("ConfigMap", namespace, where.name)
    if found is None:
        return f"create the ConfigMap {where.name} in namespace {namespace}, it does not exist"
    text = found.get("data", {}).get(where.key)
    if text is None:
        return f"add the key {where.key} to the ConfigMap {where.name}"
    try:
        return v1alpha1.Profile.model_validate(yaml.safe_load(text))
    except yaml.YAMLError as error:
        problem = str(getattr(error, "problem", None) or "no YAML")
        return f"the key {where.key} of the ConfigMap {where.name} is not YAML: {problem}"
    except ValidationError as error:
        return f"the key {where.key} of the ConfigMap {where.name} is not a profile: {sentence(error)}"


def _key(kind: str, body: Any) -> ChildKey:
    # Items of a list do not say what they are.
    return kind, body["metadata"]["namespace"], body["metadata"]["name"]

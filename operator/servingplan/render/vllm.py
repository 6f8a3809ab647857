"""The model servers: one Deployment and one headless Service for each setup of a model that the plan uses.

A pool is what a setup becomes. Its pods run vLLM with exactly the limits that the planner reckons with, serve under the
model's name, the plan's and ``auto``, and leave without dropping a request:

1. The pod is deleted: it is no longer an endpoint, and DNS and the routers follow within the preStop sleep.
2. vLLM gets SIGTERM and finishes what it runs, for at most the model's ``drainSeconds``.
3. The grace period ends a little after both.

The model's ``template`` is merged over the generated pod last, but what the plan counts on is laid over it once more: the
labels that select the pod, the place and number of its accelerators, the arguments of ``vllm serve`` and the port.

A pod template holds nothing but what needs a new pod when it changes, so neither scaling nor a corrected rate, score,
price or latency coefficient restarts a server.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from servingplan.api.v1alpha1 import Accelerator, Model, Setup
from servingplan.latency.profile import EngineProfile
from servingplan.render import names
from servingplan.render.overlay import merge

COMPONENT = "model-server"
CONTAINER = "vllm"
PORT_NAME = "http"
ANY_MODEL = "auto"
"""The name by which a client leaves the choice of the model to the plan."""

PRE_STOP_S = 10
"""Between a pod's deletion and SIGTERM. vLLM answers its probes until it exits, so readiness never takes it out of the
rotation; this outlasts the name server's cache (5 s) and the router's next look (1 s)."""
EXIT_MARGIN_S = 15
"""For the engine to free its accelerators once the last request has ended."""
STARTUP_STEP_S = 600
"""The time to load a model is granted in steps of this size, so that a corrected coldStartSeconds seldom changes the pod."""
IMAGE_PULL_S = 600

HOME = "/home/vllm"
USER_ID = 2000
"""The user ``vllm`` of the upstream image, which runs as root unless told otherwise."""


@dataclass(frozen=True, slots=True)
class VllmSettings:
    """What the operator's flags say of every model server.

    Attributes:
        image: Image whose entry point is ``vllm serve``.
    """

    image: str


@dataclass(frozen=True, slots=True)
class Pool:
    """One setup of one model of one plan.

    Attributes:
        accelerator: The entry of ``spec.accelerators`` that the setup names.
        profile: The setup's profile, read from where ``profileFrom`` points if it is kept there.
        spread: Whether the plan counts on the pods being spread over the nodes, to survive the loss of one.
    """

    owner: names.Owner
    model: Model
    setup: Setup
    accelerator: Accelerator
    profile: EngineProfile
    spread: bool = False

    @property
    def name(self) -> str:
        """Name of the Deployment and of the Service."""
        return names.pool_name(self.owner.name, self.model.name, self.setup.name)

    @property
    def selector(self) -> dict[str, str]:
        """Labels of the pool's pods and of no others."""
        return names.selector(self.owner, COMPONENT) | {names.LABEL_POOL: self.name}

    @property
    def labels(self) -> dict[str, str]:
        """Labels by which people and dashboards find the pool's objects."""
        return {
            names.LABEL_POOL: self.name,
            names.LABEL_MODEL: self.model.name,
            names.LABEL_SETUP: self.setup.name,
        }


def deployment(pool: Pool, replicas: int, settings: VllmSettings, *, surge: bool) -> dict[str, Any]:
    """The Deployment of a pool.

    Args:
        pool: What to run.
        replicas: Number of pods, each with ``setup.count`` units of the accelerator.
        settings: The operator's own settings.
        surge: Whether a rollout may start the new pod before the old one ends. On full nodes the new pod would wait for
            ever for the accelerators that the old one holds, so there the old one has to go first.

    Raises:
        OverlayError: The model's template cannot be merged.
    """
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": names.metadata(pool.owner, pool.name, COMPONENT, pool.labels),
        "spec": {
            "replicas": replicas,
            "revisionHistoryLimit": 2,
            "progressDeadlineSeconds": _startup_budget_s(pool.setup) + IMAGE_PULL_S,
            "selector": {"matchLabels": pool.selector},
            "strategy": {
                "type": "RollingUpdate",
                "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0} if surge else {"maxSurge": 0, "maxUnavailable": 1},
            },
            "template": _pod_template(pool, settings),
        },
    }


def service(pool: Pool) -> dict[str, Any]:
    """The headless Service of a pool: its name resolves to the pods that are ready and not on their way out."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": names.metadata(pool.owner, pool.name, COMPONENT, pool.labels),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": False,
            "selector": pool.selector,
            "ports": [{"name": PORT_NAME, "port": names.VLLM_PORT, "targetPort": names.VLLM_PORT, "protocol": "TCP"}],
        },
    }


def _pod_template(pool: Pool, settings: VllmSettings) -> dict[str, Any]:
    fixed = _fixed(pool)
    template = merge(_defaults(pool, settings), fixed)
    return merge(merge(template, pool.model.template), fixed) if pool.model.template else template


def _fixed(pool: Pool) -> dict[str, Any]:
    """What no template changes: with other labels, accelerators, limits or names the pod would not be what was planned."""
    units = {pool.accelerator.resource: str(pool.setup.count)}
    return {
        "metadata": {"labels": names.labels(pool.owner, COMPONENT) | pool.labels},
        "spec": {
            "nodeSelector": dict(pool.accelerator.node_selector),
            "tolerations": _tolerations(pool),
            "containers": [
                {
                    "name": CONTAINER,
                    "args": _arguments(pool),
                    "ports": [{"name": PORT_NAME, "containerPort": names.VLLM_PORT, "protocol": "TCP"}],
                    "resources": {"limits": dict(units), "requests": dict(units)},
                }
            ],
        },
    }


def _arguments(pool: Pool) -> list[str]:
    served = dict.fromkeys((pool.model.name, pool.owner.name, ANY_MODEL))
    return [
        pool.model.source,
        # Answers and metrics carry the first name, requests may use any of them: no body has to be rewritten on the way.
        "--served-model-name",
        *served,
        f"--port={names.VLLM_PORT}",
        f"--tensor-parallel-size={pool.setup.count}",
        f"--max-num-seqs={pool.profile.max_num_seqs}",
        f"--max-num-batched-tokens={pool.profile.max_num_batched_tokens}",
        # Without it SIGTERM aborts what is running.
        f"--shutdown-timeout={pool.model.drain_seconds}",
        "--disable-access-log-for-endpoints=/health,/metrics,/v1/models",
        *pool.setup.args,
    ]


def _defaults(pool: Pool, settings: VllmSettings) -> dict[str, Any]:
    return {
        "metadata": {
            "labels": {"llm-d.ai/model": pool.model.name, "llm-d.ai/variant": pool.name, "llm-d.ai/engine-type": "vllm"},
            "annotations": {
                "prometheus.io/scrape": "true",
                "prometheus.io/port": str(names.VLLM_PORT),
                "prometheus.io/path": "/metrics",
            },
        },
        "spec": {
            "automountServiceAccountToken": False,
            # A Service called "vllm" would put VLLM_PORT into the environment, which vLLM takes for a setting of its own.
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": PRE_STOP_S + pool.model.drain_seconds + EXIT_MARGIN_S,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": USER_ID,
                "fsGroup": USER_ID,
                # A cache of weights holds many files: without this every start changes the owner of each.
                "fsGroupChangePolicy": "OnRootMismatch",
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [_container(pool, settings)],
            **({"topologySpreadConstraints": [_evenly(pool)]} if pool.spread else {}),
            "volumes": [
                {"name": "cache", "emptyDir": {}},
                {"name": "tmp", "emptyDir": {}},
                {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "16Gi"}},
            ],
        },
    }


def _evenly(pool: Pool) -> dict[str, Any]:
    return {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        # A replica in the wrong place serves; one that waits for the right place does not.
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": pool.selector},
        # In a rollout the pods that are leaving must not push the new ones together.
        "matchLabelKeys": ["pod-template-hash"],
    }


def _container(pool: Pool, settings: VllmSettings) -> dict[str, Any]:
    return {
        "name": CONTAINER,
        "image": settings.image,
        "env": [
            # Weights and compiled kernels go below the home directory. The name is read where the user id is not in the
            # image's list of users, and its absence ends the process.
            {"name": "HOME", "value": HOME},
            {"name": "USER", "value": "vllm"},
            {
                "name": "HF_TOKEN",
                "valueFrom": {"secretKeyRef": {"name": "hf-token", "key": "token", "optional": True}},
            },
        ],
        # The accelerators are what is scarce; these keep a pod from a node with no room at all and bound nothing.
        "resources": {"requests": {"cpu": "1", "memory": "4Gi"}},
        "startupProbe": _probe("/v1/models", period_s=1, failures=_startup_budget_s(pool.setup)),
        "readinessProbe": _probe("/v1/models", period_s=5, failures=3),
        "livenessProbe": _probe("/health", period_s=10, failures=6),
        "lifecycle": {"preStop": {"sleep": {"seconds": PRE_STOP_S}}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            # The container toolkit of the accelerator's vendor writes links to the driver's libraries into the root.
            "readOnlyRootFilesystem": False,
        },
        "volumeMounts": [
            {"name": "cache", "mountPath": HOME},
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - the pod's own
            # Tensor parallel workers exchange through it, and a container gets 64 MiB by default.
            {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108 - the pod's own
        ],
    }


def _probe(path: str, *, period_s: int, failures: int) -> dict[str, Any]:
    return {
        "httpGet": {"path": path, "port": PORT_NAME},
        "periodSeconds": period_s,
        "timeoutSeconds": 5,
        "failureThreshold": failures,
    }


def _startup_budget_s(setup: Setup) -> int:
    """Seconds that a pod gets to load its model before it is started anew: twice the slow start that the user expects."""
    return STARTUP_STEP_S * math.ceil(2 * setup.cold_start_seconds / STARTUP_STEP_S)


def _tolerations(pool: Pool) -> list[dict[str, Any]]:
    """The template's tolerations and those of the taints that keep other pods off accelerator nodes.

    A list in a template replaces the generated one, and whoever tolerates one more taint still wants the accelerators.
    """
    resource = pool.accelerator.resource
    whole_device = f"{resource.partition('/')[0]}/gpu"  # slices sit on nodes tainted as whole devices
    own = [{"key": key, "operator": "Exists", "effect": "NoSchedule"} for key in dict.fromkeys((resource, whole_device))]
    given = (pool.model.template or {}).get("spec", {}).get("tolerations") or []
    return [*given, *(toleration for toleration in own if toleration not in given)]

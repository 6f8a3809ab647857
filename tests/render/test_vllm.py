"""Model servers as Kubernetes gets them."""

from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
import yaml

from servingplan.api.v1alpha1 import Accelerator, Coefficients, Model, Profile, Quality, Setup
from servingplan.latency.profile import EngineProfile, StepTime
from servingplan.render import names, vllm

SETTINGS = vllm.VllmSettings(image="vllm/vllm-openai:v0.32.0")
OWNER = names.Owner(namespace="llm", name="chat", uid="0a1b")


def make_pool(**model: Any) -> vllm.Pool:
    setup = Setup(
        name="h100-tp2",
        accelerator="h100",
        count=2,
        args=["--max-model-len=8192"],
        profile=Profile(coefficients=Coefficients(alpha_ms=Decimal(14), beta_ms=Decimal("0.06"), gamma_ms=Decimal(0))),
    )
    return vllm.Pool(
        owner=OWNER,
        model=Model(
            name="qwen3-32b",
            source="Qwen/Qwen3-32B",
            quality=Quality(default=Decimal("0.7")),
            setups=[setup],
            drain_seconds=60,
            **model,
        ),
        setup=setup,
        accelerator=Accelerator(name="h100", node_selector={"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}),
        profile=EngineProfile(step=StepTime(alpha_s=0.014, beta_s=6e-5, gamma_s=0)),
    )


def rendered(pool: vllm.Pool, replicas: int = 3, *, surge: bool = True) -> dict[str, Any]:
    return vllm.deployment(pool, replicas, SETTINGS, surge=surge)


def template(pool: vllm.Pool) -> dict[str, Any]:
    return rendered(pool)["spec"]["template"]


def container(pool: vllm.Pool) -> dict[str, Any]:
    return next(c for c in template(pool)["spec"]["containers"] if c["name"] == "vllm")


def test_pods_are_spread_only_where_the_plan_counts_on_it():
    (constraint,) = template(replace(make_pool(), spread=True))["spec"]["topologySpreadConstraints"]
    assert constraint["labelSelector"]["matchLabels"] == make_pool().selector
    assert (constraint["maxSkew"], constraint["whenUnsatisfiable"]) == (1, "ScheduleAnyway")
    assert "topologySpreadConstraints" not in template(make_pool())["spec"]


DEPLOYMENT = """
apiVersion: apps/v1
kind: Deployment
metadata:
  name: chat-qwen3-32b-h100-tp2-HASH
  namespace: llm
  labels: &labels
    app.kubernetes.io/name: servingplan
    app.kubernetes.io/instance: chat
    app.kubernetes.io/component: model-server
    app.kubernetes.io/part-of: chat
    app.kubernetes.io/managed-by: servingplan
    servingplan.io/plan: chat
    servingplan.io/model: qwen3-32b
    servingplan.io/setup: h100-tp2
    servingplan.io/pool: chat-qwen3-32b-h100-tp2-HASH
  ownerReferences:
  - apiVersion: servingplan.io/v1alpha1
    kind: ModelServingPlan
    name: chat
    uid: 0a1b
    controller: true
    blockOwnerDeletion: true
spec:
  replicas: 3
  revisionHistoryLimit: 2
  progressDeadlineSeconds: 1200
  selector:
    matchLabels:
      app.kubernetes.io/component: model-server
      servingplan.io/plan: chat
      servingplan.io/pool: chat-qwen3-32b-h100-tp2-HASH
  strategy:
    type: RollingUpdate
    rollingUpdate: {maxSurge: 1, maxUnavailable: 0}
  template:
    metadata:
      labels:
        <<: *labels
        llm-d.ai/model: qwen3-32b
        llm-d.ai/variant: chat-qwen3-32b-h100-tp2-HASH
        llm-d.ai/engine-type: vllm
      annotations:
        prometheus.io/scrape: "true"
        prometheus.io/port: "8000"
        prometheus.io/path: /metrics
    spec:
      automountServiceAccountToken: false
      enableServiceLinks: false
      terminationGracePeriodSeconds: 85
      nodeSelector: {nvidia.com/gpu.product: NVIDIA-H100-80GB-HBM3}
      tolerations:
      - {key: nvidia.com/gpu, operator: Exists, effect: NoSchedule}
      securityContext:
        runAsNonRoot: true
        runAsUser: 2000
        fsGroup: 2000
        fsGroupChangePolicy: OnRootMismatch
        seccompProfile: {type: RuntimeDefault}
      containers:
      - name: vllm
        image: vllm/vllm-openai:v0.32.0
        args:
        - Qwen/Qwen3-32B
        - --served-model-name
        - qwen3-32b
        - chat
        - auto
        - --port=8000
        - --tensor-parallel-size=2
        - --max-num-seqs=256
        - --max-num-batched-tokens=2048
        - --shutdown-timeout=60
        - --disable-access-log-for-endpoints=/health,/metrics,/v1/models
        - --max-model-len=8192
        env:
        - {name: HOME, value: /home/vllm}
        - {name: USER, value: vllm}
        - {name: HF_TOKEN, valueFrom: {secretKeyRef: {name: hf-token, key: token, optional: true}}}
        ports:
        - {name: http, containerPort: 8000, protocol: TCP}
        resources:
          requests: {cpu: "1", memory: 4Gi, nvidia.com/gpu: "2"}
          limits: {nvidia.com/gpu: "2"}
        startupProbe:
          {httpGet: {path: /v1/models, port: http}, periodSeconds: 1, timeoutSeconds: 5, failureThreshold: 600}
        readinessProbe:
          {httpGet: {path: /v1/models, port: http}, periodSeconds: 5, timeoutSeconds: 5, failureThreshold: 3}
        livenessProbe:
          {httpGet: {path: /health, port: http}, periodSeconds: 10, timeoutSeconds: 5, failureThreshold: 6}
        lifecycle: {preStop: {sleep: {seconds: 10}}}
        securityContext:
          allowPrivilegeEscalation: false
          capabilities: {drop: [ALL]}
          readOnlyRootFilesystem: false
        volumeMounts:
        - {name: cache, mountPath: /home/vllm}
        - {name: tmp, mountPath: /tmp}
        - {name: shm, mountPath: /dev/shm}
      volumes:
      - {name: cache, emptyDir: {}}
      - {name: tmp, emptyDir: {}}
      - {name: shm, emptyDir: {medium: Memory, sizeLimit: 16Gi}}
"""


def test_a_setup_becomes_this_deployment() -> None:
    pool = make_pool()
    assert rendered(pool) == yaml.safe_load(DEPLOYMENT.replace("chat-qwen3-32b-h100-tp2-HASH", pool.name))


def test_the_service_is_headless_and_selects_only_its_own_pool() -> None:
    pool = make_pool()
    other = replace(pool, setup=pool.setup.model_copy(update={"name": "h100-tp4"}))
    service = vllm.service(pool)
    assert service["metadata"]["name"] == pool.name
    assert service["spec"]["clusterIP"] == "None"
    assert not service["spec"]["publishNotReadyAddresses"]
    assert service["spec"]["selector"].items() <= template(pool)["metadata"]["labels"].items()
    assert not service["spec"]["selector"].items() <= template(other)["metadata"]["labels"].items()


def test_full_nodes_let_the_old_pod_go_before_the_new_one_starts() -> None:
    strategy = rendered(make_pool(), surge=False)["spec"]["strategy"]
    assert strategy["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}


def same_pod(pool: vllm.Pool) -> list[vllm.Pool]:
    """Worlds in which the running pods are as good as new ones."""
    model, setup, profile = pool.model, pool.setup, pool.profile
    return [
        replace(pool, model=model.model_copy(update={"quality": Quality(default=Decimal("0.9"))})),
        replace(pool, setup=setup.model_copy(update={"min_replicas": 1, "max_replicas": 9, "cold_start_seconds": 300})),
        replace(pool, profile=replace(profile, step=StepTime(alpha_s=1, beta_s=1, gamma_s=1), kv_tokens=1000)),
        replace(pool, accelerator=pool.accelerator.model_copy(update={"cost_per_hour": Decimal(9), "limit": 4})),
    ]


def test_what_needs_no_new_pod_leaves_the_template_alone() -> None:
    pool = make_pool()
    for other in same_pod(pool):
        assert rendered(other, replicas=7, surge=False)["spec"]["template"] == template(pool)


@pytest.mark.parametrize("limit", ["max_num_seqs", "max_num_batched_tokens"])
def test_the_engine_runs_with_the_limits_that_the_planner_reckons_with(limit: str) -> None:
    pool = make_pool()
    changed = replace(pool, profile=replace(pool.profile, **{limit: 64}))
    assert f"--{limit.replace('_', '-')}=64" in container(changed)["args"]


def test_the_names_served_are_listed_once_when_plan_and_model_share_one() -> None:
    pool = replace(make_pool(), owner=replace(OWNER, name="qwen3-32b"))
    args = container(pool)["args"]
    assert args[args.index("--served-model-name") + 1 : args.index("--port=8000")] == ["qwen3-32b", "auto"]


def test_the_grace_period_outlasts_sleep_and_drain() -> None:
    pool = make_pool()
    spec = template(pool)["spec"]
    sleep_s = container(pool)["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert spec["terminationGracePeriodSeconds"] > sleep_s + pool.model.drain_seconds


@pytest.mark.parametrize(("cold_start_s", "budget_s"), [(1, 600), (300, 600), (301, 1200), (1000, 2400)])
def test_a_slow_start_gets_twice_its_time_and_never_less_than_ten_minutes(cold_start_s: int, budget_s: int) -> None:
    pool = make_pool()
    slow = replace(pool, setup=pool.setup.model_copy(update={"cold_start_seconds": cold_start_s}))
    probe = container(slow)["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] == budget_s
    assert rendered(slow)["spec"]["progressDeadlineSeconds"] > budget_s


def test_slices_are_asked_for_by_their_own_resource_and_tolerate_the_taint_of_whole_devices() -> None:
    pool = make_pool()
    mig = replace(
        pool,
        accelerator=Accelerator(name="slice", resource="nvidia.com/mig-3g.40gb"),
        setup=pool.setup.model_copy(update={"count": 1}),
    )
    assert container(mig)["resources"]["limits"] == {"nvidia.com/mig-3g.40gb": "1"}
    assert [t["key"] for t in template(mig)["spec"]["tolerations"]] == ["nvidia.com/mig-3g.40gb", "nvidia.com/gpu"]


def test_a_template_changes_what_it_names_and_keeps_the_rest() -> None:
    plain = make_pool()
    overlaid = make_pool(
        template={
            "metadata": {"labels": {"team": "search"}},
            "spec": {
                "priorityClassName": "serving",
                "containers": [
                    {
                        "name": "vllm",
                        "image": "mirror/vllm:1",
                        "env": [{"name": "VLLM_LOGGING_LEVEL", "value": "DEBUG"}],
                        "resources": {"requests": {"cpu": "8"}},
                    },
                    {"name": "sidecar", "image": "sidecar:1"},
                ],
            },
        }
    )
    assert template(overlaid)["metadata"]["labels"] == template(plain)["metadata"]["labels"] | {"team": "search"}
    assert template(overlaid)["spec"]["priorityClassName"] == "serving"
    assert {c["name"] for c in template(overlaid)["spec"]["containers"]} == {"vllm", "sidecar"}
    env = {e["name"] for e in container(overlaid)["env"]}
    assert env == {e["name"] for e in container(plain)["env"]} | {"VLLM_LOGGING_LEVEL"}
    assert container(overlaid)["image"] == "mirror/vllm:1"
    assert container(overlaid)["resources"]["requests"] == {"cpu": "8", "memory": "4Gi", "nvidia.com/gpu": "2"}
    assert container(overlaid)["startupProbe"] == container(plain)["startupProbe"]


def test_a_template_never_takes_away_what_the_plan_counts_on() -> None:
    plain = make_pool()
    hostile = make_pool(
        template={
            "metadata": {"labels": dict.fromkeys(plain.selector, "mine")},
            "spec": {
                "nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-L40S"},
                "containers": [
                    {
                        "name": "vllm",
                        "args": ["something-else"],
                        "ports": [{"name": "http", "containerPort": 8000, "protocol": "TCP", "hostPort": 80}],
                        "resources": {"limits": {"nvidia.com/gpu": "8"}, "requests": {"nvidia.com/gpu": "8"}},
                    }
                ],
            },
        }
    )
    assert plain.selector.items() <= template(hostile)["metadata"]["labels"].items()
    assert template(hostile)["spec"]["nodeSelector"] == template(plain)["spec"]["nodeSelector"]
    assert container(hostile)["args"] == container(plain)["args"]
    assert {p["containerPort"] for p in container(hostile)["ports"]} == {8000}
    assert container(hostile)["resources"] == container(plain)["resources"]


def test_a_template_s_tolerations_are_added_to_the_accelerator_s() -> None:
    mine = {"key": "dedicated", "operator": "Equal", "value": "llm", "effect": "NoSchedule"}
    (own,) = template(make_pool())["spec"]["tolerations"]
    assert template(make_pool(template={"spec": {"tolerations": [mine]}}))["spec"]["tolerations"] == [mine, own]
    assert template(make_pool(template={"spec": {"tolerations": [own]}}))["spec"]["tolerations"] == [own]


def test_another_volume_takes_the_place_of_the_cache() -> None:
    claim = {"name": "cache", "persistentVolumeClaim": {"claimName": "weights"}}
    assert claim in template(make_pool(template={"spec": {"volumes": [claim]}}))["spec"]["volumes"]


def test_the_user_s_template_is_not_changed_by_rendering() -> None:
    given = {"spec": {"containers": [{"name": "vllm", "resources": {"limits": {"memory": "64Gi"}}}]}}
    pool = make_pool(template=given)
    rendered(pool)
    assert pool.model.template == {"spec": {"containers": [{"name": "vllm", "resources": {"limits": {"memory": "64Gi"}}}]}}

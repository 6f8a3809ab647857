"""The field reference ``docs/plan.md``, made from the models.

One section per object in the order in which a reader meets them from the root, a table of its fields, and its rules in the
words with which the API server refuses what breaks them.
"""

from __future__ import annotations

import json
from typing import Any

from servingplan.api import crd, fields, plan_status, v1alpha1
from servingplan.api.objects import Object

MINIMAL_EXAMPLE = """\
apiVersion: servingplan.io/v1alpha1
kind: ModelServingPlan
metadata:
  name: chat
spec:
  slo:
    ttft: {seconds: 0.8}
  accelerators:
  - name: gpu
  models:
  - name: llama-3.1-8b
    source: meta-llama/Llama-3.1-8B-Instruct
    quality: {default: 0.61}
    setups:
    - name: single
      accelerator: gpu
      profile:
        coefficients: {alphaMs: 6.4, betaMs: 0.0207, gammaMs: 0.000041}
"""

FULL_EXAMPLE = """\
apiVersion: servingplan.io/v1alpha1
kind: ModelServingPlan
metadata:
  name: assistants
  namespace: llm
spec:
  mode: Auto
  slo:
    ttft: {seconds: 0.8, percentile: 95}
    interTokenLatency: {seconds: 0.06, statistic: Mean}
    e2e: {seconds: 20, percentile: 90}
    scope: Route
  tolerateNodes: 1
  budget: {costPerHour: 40}
  accelerators:
  - name: h100
    resource: nvidia.com/gpu
    nodeSelector: {nvidia.com/gpu.product: NVIDIA-H100-80GB-HBM3}
    limit: 16
    costPerHour: 3.90
  - name: l40s
    nodeSelector: {nvidia.com/gpu.product: NVIDIA-L40S}
    costPerHour: 1.10
  models:
  - name: qwen3-32b
    source: Qwen/Qwen3-32B
    quality: {default: 0.82, classes: {code: 0.80}}
    price: {inputPerMillion: 0.40, outputPerMillion: 1.20}
    drainSeconds: 180
    setups:
    - name: h100-tp2
      accelerator: h100
      count: 2
      minReplicas: 1
      maxReplicas: 6
      coldStartSeconds: 180
      args: [--max-model-len=16384]
      profile:
        coefficients: {alphaMs: 13.7, betaMs: 0.057, gammaMs: 0.00006, floorMs: 4.5}
        maxNumSeqs: 256
        maxNumBatchedTokens: 2048
        kvTokens: 278000
    template:
      metadata:
        labels: {cost-center: research}
        annotations: {example.com/owner: assistants}
      spec:
        priorityClassName: serving
        tolerations:
        - {key: nvidia.com/gpu, operator: Exists}
  - name: llama-3.1-8b
    source: meta-llama/Llama-3.1-8B-Instruct
    quality: {default: 0.61}
    setups:
    - name: l40s
      accelerator: l40s
      profile:
        points:
        - {concurrency: 1, promptTokens: 1024, outputTokens: 256, ttftMs: 98, tpotMs: 22.3}
        - {concurrency: 32, promptTokens: 1024, outputTokens: 256, ttftMs: 310, tpotMs: 34.9}
    - name: h100
      accelerator: h100
      profileFrom:
        configMapKeyRef: {name: profiles, key: llama-3.1-8b.h100}
  requestClasses:
  - name: code
    match: {headers: {x-request-class: code}}
    promptTokens: {mean: 1500, cv: 1.2}
    outputTokens: {mean: 300, cv: 0.8}
    rate: 12
    weight: 2
    slo:
      ttft: {seconds: 0.5, percentile: 99}
  - name: chat
    rate: 30
    arrivalCv: 1.5
    minQuality: 0.6
    lengths:
    - {promptTokens: 180, outputTokens: 420}
    - {promptTokens: 950, outputTokens: 210}
    - {promptTokens: 3900, outputTokens: 35}
  metrics:
    prometheusUrl: http://prometheus.monitoring.svc:9090
    rates: Measured
    calibration: Enabled
  router:
    policy: Online
    prices: {perDollar: 1500, perSecond: 0.02, scaleSeconds: 10, power: 2, externality: 1}
    shed: true
    explain: true
    predictor:
      configMapKeyRef: {name: predictor, key: predictor.npz}
    replicas: 3
    timeoutSeconds: 1800
    service:
      type: LoadBalancer
      port: 8080
      annotations: {external-dns.alpha.kubernetes.io/hostname: llm.example.com}
    template:
      spec:
        nodeSelector: {node-role: edge}
"""

_INTRODUCTION = f"""\
# The ModelServingPlan, field by field

Generated from the models in `operator/servingplan/api/v1alpha1.py` by `hack/generate`.

- The plan's name has at most {v1alpha1.PLAN_NAME_LENGTH} characters, begins with a letter and holds lower case letters, digits
  and dashes. No model may bear it: clients send it, or `{v1alpha1.AUTO}`, as the model to leave the choice to the plan.
- Decimals are numbers or strings: `0.8` and `"0.8"` mean the same.
- What breaks a rule is refused by the API server. A rule that it cannot check becomes the condition `Stalled` with the reason
  `InvalidPlan`, and the plan goes on as it was.
- There is no scale subresource: a plan has no one number of replicas, and whoever set one would fight the planner.

## Examples

The least that a plan says:

```yaml
{MINIMAL_EXAMPLE}```

Every field that there is:

```yaml
{FULL_EXAMPLE}```
"""


def to_markdown() -> str:
    """The text of ``docs/plan.md``, byte for byte the same for the same models."""
    document = crd.document()
    definitions = document["$defs"]
    return "\n".join([_INTRODUCTION, *(_section(name, definitions) for name in _reading_order(document))])


def _reading_order(document: dict[str, Any]) -> list[str]:
    """Names of the objects, each before what is only met in it."""
    order: list[str] = []

    def visit(node: Any) -> None:
        if isinstance(node, dict):
            name = _name_of(node)
            if name and name not in order:
                order.append(name)
                visit(document["$defs"][name])
            for value in node.values():
                visit(value)

    for part in ("spec", "status"):
        visit(document["properties"][part])
    return order


def _section(name: str, definitions: dict[str, Any]) -> str:
    definition = definitions[name]
    required = definition.get("required", ())
    rows = [
        [
            f"`{field}`",
            _type(node),
            "required" if field in required else f"`{json.dumps(node['default'])}`" if "default" in node else "",
            _bounds(node),
            # pydantic leaves out a description that repeats the object's own.
            node.get("description") or definitions[_name_of(node)]["description"],
        ]
        for field, node in definition["properties"].items()
    ]
    table = [["field", "type", "default", "must be", "meaning"], ["---"] * 5, *rows]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in table]
    rules = [f"- {rule.message}" for rule in _model(name).RULES]
    parts = [f"## {name}", definition["description"], "\n".join(lines), *(["Rules:", "\n".join(rules)] if rules else [])]
    return "\n\n".join(parts) + "\n"


def _name_of(node: dict[str, Any]) -> str:
    """Name of the object that a node refers to; empty if it refers to none."""
    reference = node.get("$ref", "")
    return reference.rsplit("/", 1)[-1] if isinstance(reference, str) else ""


def _type(node: dict[str, Any]) -> str:
    name = _name_of(node)
    if name:
        return f"[{name}](#{name.lower()})"
    if "pattern" in node:
        return "decimal"
    if "enum" in node:
        return " or ".join(f"`{value}`" for value in node["enum"])
    if node["type"] == "array":
        return f"list of {_type(node['items'])}"
    if "additionalProperties" in node:
        return f"map of {_type(node['additionalProperties'])}"
    return str(node["type"])


def _bounds(node: dict[str, Any]) -> str:
    """What the schema asks of a value, in words."""
    words = []
    low, high = node.get("minimum"), node.get("maximum")
    if low is not None:
        words.append(f"{'>' if node.get('exclusiveMinimum') else '>='} {low}")
    if high is not None and high < fields.LARGEST_DECIMAL:
        words.append(f"<= {high}")
    if "pattern" not in node:
        least = node.get("minItems") or node.get("minProperties")
        most = node.get("maxItems") or node.get("maxProperties")
        if least:
            words.append(f"at least {least}")
        if most:
            words.append(f"at most {most}")
        if "maxLength" in node:
            words.append(f"at most {node['maxLength']} characters")
    words += [rule["message"].removeprefix("must ").removeprefix("be ") for rule in node.get("x-kubernetes-validations", ())]
    return ", ".join(words)


def _model(name: str) -> type[Object]:
    found: type[Object] = getattr(v1alpha1, name, None) or getattr(plan_status, name)
    return found

"""The ModelServingPlan as users write it; what the operator reports on it stands in ``plan_status``.

These models are the one source of the CRD, of the field reference in ``docs/plan.md`` and of the operator's own parsing.
A field's description is what ``kubectl explain`` shows. A rule that one object can break is stated where the API server can
enforce it (schema or CEL); a rule that needs the cluster (a ConfigMap that exists, a node of that kind) becomes a condition.
"""

from __future__ import annotations

import json
import re
from decimal import Decimal
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field

from servingplan.api import fields
from servingplan.api.fields import (
    ATOMIC_LIST,
    ATOMIC_MAP,
    LIST_BY_NAME,
    Fraction,
    HeaderValue,
    HttpUrl,
    Label,
    LabelValue,
    ModelName,
    ModelSource,
    NamedList,
    NonNegative,
    PodOverlay,
    Positive,
    ResourceName,
    Rule,
)
from servingplan.api.objects import Object
from servingplan.api.plan_status import ModelServingPlanStatus

GROUP = "servingplan.io"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "ModelServingPlan"
PLURAL = "modelservingplans"

AUTO = "auto"
"""The model name by which clients leave the choice to the plan; the plan's own name does the same."""

APPROVE_ANNOTATION = f"{GROUP}/approve"
"""By it a user approves a proposal: the value is the proposal's id. The operator reads it and never writes it."""

PLAN_NAME_LENGTH = 40
"""Children's names begin with the plan's name, and a Service's name ends at 63 characters."""

LABEL_KEY_LENGTH = 253 + 1 + 63
HEADER_LENGTH = 128

ARGS_OF_OPERATOR = {
    "--data-parallel-size": "it must stay 1, add replicas instead",
    "--host": "pods listen on every address",
    "--max-num-batched-tokens": "set profile.maxNumBatchedTokens",
    "--max-num-seqs": "set profile.maxNumSeqs",
    "--model": "set source",
    "--pipeline-parallel-size": "it must stay 1, all units of count go to tensor parallelism",
    "--port": "clients see router.service.port",
    "--served-model-name": "set the name of the model",
    "--shutdown-timeout": "set drainSeconds of the model",
    "--tensor-parallel-size": "set count",
    "-dp": "it must stay 1, add replicas instead",
    "-pp": "it must stay 1, all units of count go to tensor parallelism",
    "-tp": "set count",
}
"""Arguments of vllm serve that the operator writes, with what to do instead."""

RESERVED_HEADERS = (
    "connection",
    "content-length",
    "content-type",
    "expect",
    "host",
    "keep-alive",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "x-gateway-destination-endpoint",
)
"""Headers that HTTP or the router uses itself, so that no class can be told by them."""


def _flag(arg: str) -> str:
    """The name of a flag as vLLM understands it: what stands before ``=``, with dashes."""
    return arg.split("=", 1)[0].replace("_", "-")


def _is_label_key(key: str) -> bool:
    return len(key) <= LABEL_KEY_LENGTH and re.fullmatch(fields.LABEL_KEY_PATTERN, key) is not None


def _is_header(name: str) -> bool:
    return len(name) <= HEADER_LENGTH and re.fullmatch(fields.HEADER_PATTERN, name) is not None


_CEL_LABEL_KEY = f"(k.size() <= {LABEL_KEY_LENGTH} && k.matches('{fields.LABEL_KEY_PATTERN}'))"
_CEL_HEADER = f"(h.size() <= {HEADER_LENGTH} && h.matches('{fields.HEADER_PATTERN}'))"
_CEL_FLAG = "a.split('=')[0].replace('_', '-')"
# CEL reads JSON's literals.
_CEL_RESERVED_HEADERS = json.dumps(RESERVED_HEADERS)
_CEL_ARGS_OF_OPERATOR = json.dumps(ARGS_OF_OPERATOR)


class LatencyTarget(Object):
    """A bound on one latency, for a percentile or for the mean of the requests."""

    RULES = (
        Rule(
            message="give percentile or statistic, not both",
            cel="!has(self.percentile) || !has(self.statistic)",
            holds=lambda target: target.percentile is None or target.statistic is None,
        ),
    )

    seconds: Positive = Field(description="The bound, in seconds.")
    percentile: int | None = Field(
        default=None,
        ge=50,
        le=99,
        description="The percentile of requests that keeps the bound; 95 where neither this nor statistic is given.",
    )
    statistic: Literal["Mean"] | None = Field(default=None, description="Mean: the bound holds for the mean.")


class ServiceLevelObjective(Object):
    """The latency that a request may expect; every bound that is given holds on every route in use."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            message="give at least one of ttft, interTokenLatency and e2e",
            cel="has(self.ttft) || has(self.interTokenLatency) || has(self.e2e)",
            holds=lambda slo: slo.ttft is not None or slo.inter_token_latency is not None or slo.e2e is not None,
        ),
    )

    ttft: LatencyTarget | None = Field(default=None, description="Time from the request's arrival to its first token.")
    inter_token_latency: LatencyTarget | None = Field(default=None, description="Mean time between a request's output tokens.")
    e2e: LatencyTarget | None = Field(
        default=None,
        alias="e2e",
        description="Time from the request's arrival to its last token, for the class's mean output length.",
    )


_BOUNDS = ("ttft", "interTokenLatency", "e2e")
_CEL_ALL_MEANS = " && ".join(f"(!has(self.{bound}) || has(self.{bound}.statistic))" for bound in _BOUNDS)


class PlanObjective(ServiceLevelObjective):
    """The latency that a request may expect, and whether each route keeps it or only the plan as a whole."""

    RULES = (
        *ServiceLevelObjective.RULES,
        Rule(
            message="with scope Plan every bound must have statistic: Mean, because only means add up over routes",
            cel=f"self.scope != 'Plan' || ({_CEL_ALL_MEANS})",
            holds=lambda slo: (
                slo.scope != "Plan"
                or all(bound is None or bound.statistic == "Mean" for bound in (slo.ttft, slo.inter_token_latency, slo.e2e))
            ),
        ),
    )

    scope: Literal["Route", "Plan"] = Field(
        default="Route",
        description="Route: every class keeps the bounds on every setup that serves it. Plan: the mean over all requests that"
        " the plan serves keeps them, so that a slow setup may serve some if fast ones serve enough.",
    )


class Budget(Object):
    """What the plan may spend."""

    cost_per_hour: NonNegative = Field(description="Upper bound on the summed costPerHour of the accelerators in use.")


class Accelerator(Object):
    """A kind of GPU and where it is found."""

    RULES = (
        Rule(
            message="a key of nodeSelector must be the name of a label",
            cel=f"!has(self.nodeSelector) || self.nodeSelector.all(k, {_CEL_LABEL_KEY})",
            culprit_cel=f"self.nodeSelector.filter(k, !{_CEL_LABEL_KEY})[0]",
            culprits=lambda accelerator: [key for key in accelerator.node_selector if not _is_label_key(key)],
            field_path=".nodeSelector",
        ),
    )

    name: Label = Field(description="The name that setups refer to.")
    resource: ResourceName = Field(
        default="nvidia.com/gpu",
        description="The extended resource that nodes advertise, such as nvidia.com/gpu or nvidia.com/mig-3g.40gb.",
    )
    node_selector: dict[str, LabelValue] = Field(
        default_factory=dict,
        max_length=16,
        json_schema_extra=ATOMIC_MAP,
        description="Labels of the nodes that hold this kind; empty means every node with the resource.",
    )
    limit: int | None = Field(default=None, ge=0, le=100_000, description="At most this many units, however many are free.")
    cost_per_hour: NonNegative = Field(default=Decimal(0), description="Cost of one unit for an hour.")


class Coefficients(Object):
    """Step time of the engine: alphaMs + max(floorMs, betaMs * computed tokens) + gammaMs * KV tokens read."""

    alpha_ms: Positive = Field(description="Milliseconds that every step takes.")
    beta_ms: NonNegative = Field(description="Milliseconds per token computed in the step.")
    gamma_ms: NonNegative = Field(description="Milliseconds per token of KV cache read in the step.")
    floor_ms: NonNegative = Field(
        default=Decimal(0), description="Milliseconds to read the weights, below which computing tokens is free."
    )


class MeasuredPoint(Object):
    """One closed-loop measurement of a replica."""

    concurrency: int = Field(ge=1, le=100_000, description="Requests in flight.")
    prompt_tokens: int = Field(ge=1, le=10_000_000, description="Prompt tokens of each request.")
    output_tokens: int = Field(ge=1, le=10_000_000, description="Output tokens of each request.")
    ttft_ms: Positive = Field(description="Mean time to first token in milliseconds.")
    tpot_ms: Positive = Field(description="Mean time between output tokens in milliseconds.")


class Profile(Object):
    """How fast one replica is: fitted coefficients, or measured points."""

    RULES = (
        Rule(
            message="give coefficients or points, exactly one of them",
            cel="has(self.coefficients) != has(self.points)",
            holds=lambda profile: (profile.coefficients is None) != (profile.points is None),
        ),
        Rule(
            message="measure at two different concurrencies at least",
            cel="!has(self.points) || self.points.size() < 2"
            " || self.points.exists(p, p.concurrency != self.points[0].concurrency)",
            holds=lambda profile: profile.points is None or len({p.concurrency for p in profile.points}) > 1,
            field_path=".points",
        ),
        Rule(
            message="maxNumSeqs must not exceed maxNumBatchedTokens, or vLLM does not start",
            cel="self.maxNumSeqs <= self.maxNumBatchedTokens",
            holds=lambda profile: profile.max_num_seqs <= profile.max_num_batched_tokens,
            field_path=".maxNumSeqs",
        ),
    )

    coefficients: Coefficients | None = Field(default=None, description="Fitted step-time coefficients.")
    points: list[MeasuredPoint] | None = Field(
        default=None,
        min_length=2,
        max_length=64,
        json_schema_extra=ATOMIC_LIST,
        description="Measurements at two or more concurrencies.",
    )
    max_num_seqs: int = Field(
        default=256, ge=1, le=65_536, description="Requests the engine runs at once (vLLM --max-num-seqs)."
    )
    max_num_batched_tokens: int = Field(
        default=2048, ge=16, le=1_048_576, description="Token budget of a step (vLLM --max-num-batched-tokens)."
    )
    kv_tokens: int | None = Field(
        default=None, ge=16, le=1_000_000_000, description="Tokens that fit in the KV cache of a replica; it bounds the batch."
    )


class ConfigMapKeySelector(Object):
    """A key of a ConfigMap in the plan's namespace."""

    name: str = Field(min_length=1, max_length=253, description="Name of the ConfigMap.")
    key: str = Field(min_length=1, max_length=253, description="Key of the ConfigMap.")


class ProfileSource(Object):
    """Where a profile is kept, as YAML."""

    config_map_key_ref: ConfigMapKeySelector = Field(description="A ConfigMap key in the plan's namespace.")


class Setup(Object):
    """One way to deploy a model: an accelerator kind, how many units of it, engine flags, and how fast that is."""

    RULES = (
        Rule(
            message="minReplicas must not exceed maxReplicas",
            cel="!has(self.maxReplicas) || self.minReplicas <= self.maxReplicas",
            holds=lambda setup: setup.max_replicas is None or setup.min_replicas <= setup.max_replicas,
            field_path=".minReplicas",
        ),
        Rule(
            message="give profile or profileFrom, exactly one of them",
            cel="has(self.profile) != has(self.profileFrom)",
            holds=lambda setup: (setup.profile is None) != (setup.profile_from is None),
        ),
        Rule(
            message="leave out an argument that the operator writes itself",
            cel=f"!has(self.args) || !self.args.exists(a, {_CEL_FLAG} in {_CEL_ARGS_OF_OPERATOR})",
            field_path=".args",
            culprit_cel=f"self.args.map(a, {_CEL_FLAG} in {_CEL_ARGS_OF_OPERATOR},"
            f" {_CEL_FLAG} + ', ' + {_CEL_ARGS_OF_OPERATOR}[{_CEL_FLAG}])[0]",
            culprits=lambda setup: [
                f"{_flag(arg)}, {ARGS_OF_OPERATOR[_flag(arg)]}" for arg in setup.args if _flag(arg) in ARGS_OF_OPERATOR
            ],
        ),
    )

    name: Label = Field(description="Name of the setup, unique within its model.")
    accelerator: Label = Field(description="Name of an entry of spec.accelerators.")
    count: int = Field(default=1, ge=1, le=64, description="Units of the accelerator per replica; the tensor parallel size.")
    min_replicas: int = Field(default=0, ge=0, le=1000, description="Replicas that always run.")
    max_replicas: int | None = Field(default=None, ge=0, le=1000, description="Replicas that may run at most.")
    cold_start_seconds: int = Field(
        default=120, ge=1, le=7200, description="Seconds from a pod's start until it answers (99th percentile)."
    )
    args: list[Annotated[str, Field(max_length=512)]] = Field(
        default_factory=list,
        max_length=32,
        json_schema_extra=ATOMIC_LIST,
        description=f"Further arguments of vllm serve; {', '.join(ARGS_OF_OPERATOR)} are the operator's.",
    )
    profile: Profile | None = Field(default=None, description="How fast a replica is.")
    profile_from: ProfileSource | None = Field(default=None, description="Where the profile is kept instead.")


class Quality(Object):
    """How good a model's answers are, on one scale for all models of the plan."""

    default: Fraction = Field(description="Score between 0 and 1 for every class that is not named.")
    classes: dict[str, Fraction] = Field(default_factory=dict, max_length=32, description="Score by request class.")

    def of(self, request_class: str) -> Decimal:
        """The score for one class."""
        return self.classes.get(request_class, self.default)


class ModelPrice(Object):
    """What a model's tokens cost, in dollars or whatever costPerHour is given in."""

    input_per_million: NonNegative = Field(description="Price of a million prompt tokens.")
    output_per_million: NonNegative = Field(description="Price of a million output tokens.")


class Model(Object):
    """A model that the plan may serve."""

    RULES = (
        Rule(
            message="auto is reserved: clients send it to leave the choice to the plan",
            cel="self.name != 'auto'",
            holds=lambda model: model.name != AUTO,
            field_path=".name",
        ),
    )

    name: ModelName = Field(description="The name clients send as `model` to ask for this one.")
    source: ModelSource = Field(description="What vLLM loads: a repository id or a path.")
    quality: Quality = Field(description="Scores of the model's answers.")
    price: ModelPrice | None = Field(
        default=None,
        description="What its tokens cost a request that is routed online; without it, what a replica's accelerators cost,"
        " spread over the tokens that the replica serves when it is as busy as plans make it.",
    )
    setups: NamedList[Setup] = Field(
        min_length=1,
        max_length=8,
        json_schema_extra=LIST_BY_NAME,
        description="The ways in which the model may be deployed.",
    )
    drain_seconds: int = Field(
        default=120, ge=0, le=3600, description="Seconds that running requests get to finish when a replica stops."
    )
    template: PodOverlay | None = Field(
        default=None,
        description="Pod template merged strategically over the generated one; the container is named vllm.",
    )


class TokenLengths(Object):
    """A distribution of token counts by its first two moments."""

    mean: Positive = Field(description="Mean number of tokens.")
    cv: NonNegative = Field(default=Decimal(1), description="Coefficient of variation.")


DEFAULT_PROMPT_TOKENS = TokenLengths(mean=Decimal(512))
DEFAULT_OUTPUT_TOKENS = TokenLengths(mean=Decimal(128))
"""Lengths of a class that gives none; not defaults of the schema, so that a rule can tell what was given."""


class RequestLengths(Object):
    """The lengths of one request."""

    prompt_tokens: int = Field(ge=1, le=10_000_000, description="Prompt tokens of the request.")
    output_tokens: int = Field(ge=1, le=10_000_000, description="Output tokens of the request.")


class ClassMatch(Object):
    """Which requests belong to a class."""

    RULES = (
        Rule(
            message="header names are lower case letters, digits, dashes and underscores",
            cel=f"self.headers.all(h, {_CEL_HEADER})",
            field_path=".headers",
            culprit_cel=f"self.headers.filter(h, !{_CEL_HEADER})[0]",
            culprits=lambda match: [name for name in match.headers if not _is_header(name)],
        ),
        Rule(
            message="choose a header that neither HTTP nor the router uses itself",
            cel=f"!self.headers.exists(h, h in {_CEL_RESERVED_HEADERS})",
            field_path=".headers",
            culprit_cel=f"self.headers.filter(h, h in {_CEL_RESERVED_HEADERS})[0]",
            culprits=lambda match: [name for name in match.headers if name in RESERVED_HEADERS],
        ),
    )

    headers: dict[str, HeaderValue] = Field(
        min_length=1,
        max_length=8,
        json_schema_extra=ATOMIC_MAP,
        description="Headers with the exact value that each must have, all of them.",
    )


class RequestClass(Object):
    """A kind of request: how to tell it, how much of it there is, and what it may expect."""

    RULES = (
        Rule(
            message="give lengths, or promptTokens and outputTokens, not both",
            cel="!has(self.lengths) || (!has(self.promptTokens) && !has(self.outputTokens))",
            holds=lambda entry: entry.lengths is None or (entry.prompt_tokens is None and entry.output_tokens is None),
            field_path=".lengths",
        ),
    )

    name: Label = Field(description="Name of the class.")
    match: ClassMatch | None = Field(
        default=None, description="Which requests belong to it; without it the class takes what no other class matches."
    )
    prompt_tokens: TokenLengths | None = Field(
        default=None,
        description=f"Prompt lengths; a mean of {DEFAULT_PROMPT_TOKENS.mean} where neither this nor lengths is given.",
    )
    output_tokens: TokenLengths | None = Field(
        default=None,
        description=f"Output lengths; a mean of {DEFAULT_OUTPUT_TOKENS.mean} where neither this nor lengths is given.",
    )
    lengths: list[RequestLengths] | None = Field(
        default=None,
        min_length=1,
        max_length=256,
        json_schema_extra=ATOMIC_LIST,
        description="A sample of real requests instead of promptTokens and outputTokens: it keeps the tails and how the two"
        " lengths go together, which moments do not.",
    )
    rate: NonNegative = Field(default=Decimal(1), description="Requests per second to plan for.")
    arrival_cv: NonNegative = Field(
        default=Decimal(1),
        description="Coefficient of variation of the times between arrivals: 1 is Poisson, more is burstier, 0 is a clock.",
    )
    min_quality: Fraction = Field(
        default=Decimal(0), description="The class goes to no model that scores below it, whatever that costs."
    )
    weight: Positive = Field(
        default=Decimal(1), description="Importance per request: of quality, and of who is served when not all can be."
    )
    slo: ServiceLevelObjective | None = Field(default=None, description="Latency of this class instead of spec.slo.")


class RouterService(Object):
    """The Service in front of the router."""

    type: Literal["ClusterIP", "NodePort", "LoadBalancer"] = Field(default="ClusterIP", description="Service type.")
    port: int = Field(default=80, ge=1, le=65535, description="Port of the Service.")
    annotations: dict[str, Annotated[str, Field(max_length=1024)]] = Field(
        default_factory=dict, max_length=32, description="Annotations of the Service."
    )


class RouterPrices(Object):
    """What a unit of quality is worth, in place of a preset: the weights of the online decision."""

    per_dollar: NonNegative = Field(
        description="Quality, on the scale of models[].quality, that one dollar less for a request is worth."
    )
    per_second: NonNegative = Field(
        description="Quality that one second less is worth, for a request that takes half of scaleSeconds."
    )
    scale_seconds: Positive = Field(
        default=Decimal(10),
        description="The latency around which seconds are priced: shorter ones cost less, longer ones more.",
    )
    power: Positive = Field(
        default=Decimal(2), description="Power of the latency in its price: 1 for the sake of the mean, 2 to shorten the tail."
    )
    externality: NonNegative = Field(
        default=Decimal(1), description="Weight of the delay that a request adds to the others on its replica."
    )


class PredictorSource(Object):
    """Where a trained estimator of quality and output length is kept, as servingplan train writes it."""

    config_map_key_ref: ConfigMapKeySelector = Field(description="A key of binaryData of a ConfigMap in the plan's namespace.")


class Router(Object):
    """The Envoy that clients talk to, and the picker beside it."""

    RULES = (
        Rule(
            message="give preset or prices, not both",
            cel="!has(self.preset) || !has(self.prices)",
            holds=lambda router: router.preset is None or router.prices is None,
            field_path=".prices",
        ),
        Rule(
            message="preset, prices, predictor and explain are the picker's: set policy Online, or leave them out",
            # The default of the whole object is judged before its fields have theirs.
            cel="(has(self.policy) && self.policy == 'Online') || !(has(self.preset) || has(self.prices)"
            " || has(self.predictor) || (has(self.explain) && self.explain))",
            holds=lambda router: (
                router.policy != "Weights" or not (router.preset or router.prices or router.predictor or router.explain)
            ),
            field_path=".policy",
        ),
    )

    policy: Literal["Online", "Weights"] = Field(
        default="Weights",
        description="Online: a picker beside each Envoy sends every request to the pod that is best for it now; without its"
        " answer Envoy goes by the plan's weights. Weights: Envoy splits every class by the plan's weights.",
    )
    preset: Literal["Quality", "Balanced", "Latency", "Cost"] | None = Field(
        default=None,
        description="What the picker gives most for; Balanced where neither this nor prices is given.",
    )
    prices: RouterPrices | None = Field(default=None, description="What the picker weighs, in numbers, instead of a preset.")
    shed: bool = Field(
        default=True,
        description="Whether the picker refuses a request with 429 where no replica can start its answer in time.",
    )
    explain: bool = Field(
        default=False,
        description="Whether answers carry a header with every term of the decision, for clients that ask for it.",
    )
    predictor: PredictorSource | None = Field(
        default=None,
        description="Estimates quality and output length of each request from its prompt; without it those of its class hold.",
    )
    replicas: int = Field(default=2, ge=1, le=100, description="Router pods.")
    timeout_seconds: int = Field(
        default=3600, ge=1, le=86_400, description="Longest time an answer may take, streams included."
    )
    service: RouterService = Field(default_factory=RouterService, description="The Service in front of the router.")
    template: PodOverlay | None = Field(
        default=None,
        description="Pod template merged strategically over the generated one; the containers are named envoy and picker.",
    )


class Metrics(Object):
    """Where live metrics come from, and what they may change."""

    prometheus_url: HttpUrl | None = Field(
        default=None,
        description="Prometheus of this plan instead of the operator's own; it is asked without credentials.",
    )
    rates: Literal["Measured", "Declared"] = Field(
        default="Measured",
        description="Measured: plan for the rates that the router sees, once it sees any. Declared: for those that"
        " requestClasses declare.",
    )
    calibration: Literal["Enabled", "Disabled"] = Field(
        default="Enabled",
        description="Enabled: correct the profiles by the latency that is measured. Disabled: plan with them as they are.",
    )


_CEL_LISTED = "self.accelerators.exists(a, a.name == s.accelerator)"
_CEL_FITS = "self.accelerators.all(a, a.name != s.accelerator || !has(a.limit) || a.limit < 0 || s.count <= a.limit)"


def _unlisted_accelerators(spec: ModelServingPlanSpec) -> list[str]:
    listed = {accelerator.name for accelerator in spec.accelerators}
    return [
        f"model {model.name}, setup {setup.name} names {setup.accelerator}"
        for model in spec.models
        for setup in model.setups
        if setup.accelerator not in listed
    ]


def _oversized_setups(spec: ModelServingPlanSpec) -> list[str]:
    limits = {accelerator.name: accelerator.limit for accelerator in spec.accelerators}
    return [
        f"model {model.name}, setup {setup.name} of {setup.accelerator}"
        for model in spec.models
        for setup in model.setups
        if (limit := limits.get(setup.accelerator)) is not None and setup.count > limit
    ]


def _same_gpus(spec: ModelServingPlanSpec) -> list[str]:
    pools = [(accelerator.resource, accelerator.node_selector) for accelerator in spec.accelerators]
    return [accelerator.name for accelerator, pool in zip(spec.accelerators, pools, strict=True) if pools.count(pool) > 1]


def _same_match(spec: ModelServingPlanSpec) -> list[str]:
    matches = [entry.match for entry in spec.request_classes]
    return [entry.name for entry in spec.request_classes if entry.match and matches.count(entry.match) > 1]


def _unlisted_classes(spec: ModelServingPlanSpec) -> list[str]:
    listed = {entry.name for entry in spec.request_classes}
    return [f"model {model.name} names {name}" for model in spec.models for name in model.quality.classes if name not in listed]


def _unsatisfied_classes(spec: ModelServingPlanSpec) -> list[str]:
    found = []
    for entry in spec.request_classes:
        best = max(spec.models, key=lambda model: model.quality.of(entry.name))
        score = best.quality.of(entry.name)
        if score < entry.min_quality:
            found.append(f"class {entry.name} asks for {entry.min_quality}, the best is model {best.name} with {score}")
    return found


class ModelServingPlanSpec(Object):
    """What is wanted: the models, how each may be deployed, the requests, and the latency they may expect."""

    RULES = (
        Rule(
            message="every setup must name an entry of spec.accelerators",
            cel=f"self.accelerators.size() == 0 || self.models.all(m, m.setups.all(s, {_CEL_LISTED}))",
            field_path=".models",
            culprit_cel=f"self.models.map(m, !m.setups.all(s, {_CEL_LISTED}), 'model ' + m.name"
            f" + m.setups.map(s, !{_CEL_LISTED}, ', setup ' + s.name + ' names ' + s.accelerator)[0])[0]",
            culprits=_unlisted_accelerators,
        ),
        Rule(
            message="a replica must fit within the limit of its accelerator",
            cel=f"self.models.all(m, m.setups.all(s, {_CEL_FITS}))",
            field_path=".models",
            culprit_cel=f"self.models.map(m, !m.setups.all(s, {_CEL_FITS}), 'model ' + m.name + m.setups.map(s, !{_CEL_FITS},"
            " ', setup ' + s.name + ' of ' + s.accelerator)[0])[0]",
            culprits=_oversized_setups,
        ),
        Rule(
            message="tell two accelerators apart by resource or nodeSelector, or their GPUs are counted twice",
            cel="self.accelerators.all(a, self.accelerators.exists_one(b,"
            " a.resource == b.resource && a.nodeSelector == b.nodeSelector))",
            field_path=".accelerators",
            culprit_cel="self.accelerators.map(a, !self.accelerators.exists_one(b,"
            " a.resource == b.resource && a.nodeSelector == b.nodeSelector), a.name)[0]",
            culprits=_same_gpus,
        ),
        Rule(
            message="at most one request class may be without match: it takes the requests that no other class matches",
            cel="!has(self.requestClasses) || self.requestClasses.filter(c, !has(c.match)).size() <= 1",
            holds=lambda spec: sum(c.match is None for c in spec.request_classes) <= 1,
            field_path=".requestClasses",
        ),
        Rule(
            message="two request classes must not match the same headers",
            cel="!has(self.requestClasses) || self.requestClasses.all(c, !has(c.match)"
            " || self.requestClasses.exists_one(d, has(d.match) && d.match.headers == c.match.headers))",
            field_path=".requestClasses",
            culprit_cel="self.requestClasses.map(c, has(c.match)"
            " && !self.requestClasses.exists_one(d, has(d.match) && d.match.headers == c.match.headers), c.name)[0]",
            culprits=_same_match,
        ),
        Rule(
            message="quality.classes may only name entries of spec.requestClasses",
            field_path=".models",
            culprits=_unlisted_classes,
        ),
        Rule(
            message="no class may have an slo of its own while slo.scope is Plan: its means are over all classes",
            cel="self.slo.scope != 'Plan' || !has(self.requestClasses) || self.requestClasses.all(c, !has(c.slo))",
            field_path=".requestClasses",
            culprit_cel="self.requestClasses.map(c, has(c.slo), c.name)[0]",
            culprits=lambda spec: [entry.name for entry in spec.request_classes if spec.slo.scope == "Plan" and entry.slo],
        ),
        Rule(
            message="list a model that reaches minQuality, or lower it",
            field_path=".requestClasses",
            culprits=_unsatisfied_classes,
        ),
    )

    mode: Literal["Auto", "Recommend", "Paused"] = Field(
        default="Auto",
        description="Auto: decide and apply. Recommend: decide, show the proposal in the status and wait until it is approved."
        " Paused: hold replicas and routing weights as they are.",
    )
    slo: PlanObjective = Field(description="Latency that every class may expect unless it says otherwise.")
    tolerate_nodes: int = Field(
        default=0,
        ge=0,
        le=1,
        description="Nodes that may be lost with every request still served within its SLO by the replicas that are left.",
    )
    budget: Budget | None = Field(default=None, description="What the plan may spend.")
    accelerators: NamedList[Accelerator] = Field(
        min_length=1,
        max_length=16,
        json_schema_extra=LIST_BY_NAME,
        description="The kinds of GPU that the plan may use.",
    )
    models: NamedList[Model] = Field(
        min_length=1,
        max_length=32,
        json_schema_extra=LIST_BY_NAME,
        description="The models that the plan may serve.",
    )
    request_classes: NamedList[RequestClass] = Field(
        default=[RequestClass(name="default")],
        min_length=1,
        max_length=32,
        json_schema_extra=LIST_BY_NAME,
        description="The kinds of request, matched in the order in which they stand.",
    )
    metrics: Metrics = Field(default_factory=Metrics, description="Where live metrics come from and what they may change.")
    router: Router = Field(default_factory=Router, description="The router in front of the models.")


class Metadata(Object):
    """What the rules need to know of an object's metadata."""

    model_config = ConfigDict(extra="ignore")

    name: str = Field(description="Name of the plan.")


class ModelServingPlan(Object):
    """Decides jointly how several language models share the cluster's GPUs and which request goes to which model."""

    model_config = ConfigDict(extra="ignore")

    RULES = (
        Rule(
            message="no model may bear the plan's own name: clients send it to leave the choice to the plan",
            cel="self.spec.models.all(m, m.name != self.metadata.name)",
            holds=lambda plan: all(model.name != plan.metadata.name for model in plan.spec.models),
            field_path=".spec.models",
        ),
        Rule(
            message=f"must have at most {PLAN_NAME_LENGTH} characters, begin with a letter and hold only lower case letters,"
            " digits and dashes, because the names of Services are made from it",
            cel=f"self.metadata.name.size() <= {PLAN_NAME_LENGTH} && self.metadata.name.matches('{fields.PLAN_NAME_PATTERN}')",
            holds=lambda plan: (
                len(plan.metadata.name) <= PLAN_NAME_LENGTH
                and re.fullmatch(fields.PLAN_NAME_PATTERN, plan.metadata.name) is not None
            ),
            field_path=".metadata.name",
        ),
    )

    metadata: Metadata = Field(description="Standard metadata, of which the rules need the name.")
    spec: ModelServingPlanSpec = Field(description="What is wanted.")
    status: ModelServingPlanStatus | None = Field(default=None, description="What is.")

"""Nonsense at the command line ends in one sentence that names the field or option and what to do, and in status 2."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

POINT = {"concurrency": 8, "promptTokens": 512, "outputTokens": 128, "ttftMs": 90, "tpotMs": 21.5}
SETUP = "spec.models.0.setups.0"
PROFILE = f"{SETUP}.profile"
BY_REFERENCE = {PROFILE: None, f"{SETUP}.profileFrom": {"configMapKeyRef": {"name": "profiles", "key": "large"}}}
NODE = {
    "apiVersion": "v1",
    "kind": "Node",
    "metadata": {"name": "a", "labels": {"gpu": "h100"}},
    "status": {"allocatable": {"nvidia.com/gpu": "8"}},
}


def config_map(text: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "profiles"}, "data": {"large": text}}


@dataclass(frozen=True)
class Case:
    """A mistake: the plan with edits in ``plan.yaml``, further files by name, and arguments after ``-f plan.yaml``."""

    name: str
    sentence: str
    edits: dict[str, Any] = field(default_factory=dict)
    files: dict[str, Any] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()


CASES = [
    # The plan itself.
    Case("zero count", "spec.models[0].setups[0].count: must be greater than or equal to 1", {f"{SETUP}.count": 0}),
    Case("negative rate", "spec.requestClasses[0].rate: must be greater than or equal to 0",
         {"spec.requestClasses.0.rate": -1}),
    Case(
        "unknown accelerator",
        "spec.models: every setup must name an entry of spec.accelerators: model large, setup tp2 names a100",
        {f"{SETUP}.accelerator": "a100"},
    ),
    Case(
        "NaN in a profile",
        "spec.models[0].setups[0].profile.coefficients.alphaMs: must be a decimal number such as 0.8",
        {f"{PROFILE}.coefficients.alphaMs": float("nan")},
    ),
    Case("infinite target", "spec.slo.ttft.seconds: must be a decimal number such as 0.8",
         {"spec.slo.ttft.seconds": float("inf")}),
    Case(
        "one point only",
        "spec.models[0].setups[0].profile.points: must have at least 2 items, not 1",
        {PROFILE: {"points": [POINT]}},
    ),
    Case(
        "points of one concurrency",
        "spec.models[0].setups[0].profile.points: measure at two different concurrencies at least",
        {PROFILE: {"points": [POINT, POINT]}},
    ),
    Case(
        "min above max",
        "spec.models[0].setups[0].minReplicas: minReplicas must not exceed maxReplicas",
        {f"{SETUP}.minReplicas": 3, f"{SETUP}.maxReplicas": 2},
    ),
    Case(
        "a replica above the limit",
        "spec.models: a replica must fit within the limit of its accelerator: model large, setup tp2 of h100",
        {"spec.accelerators.0.limit": 1},
    ),
    Case(
        "two models of one name",
        "spec.models: large is listed twice: names must be unique",
        {"spec.models.1.name": "large"},
    ),
    Case(
        "minQuality above all models",
        "spec.requestClasses: list a model that reaches minQuality, or lower it:"
        " class code asks for 0.75, the best is model large with 0.7",
        {"spec.requestClasses.0.minQuality": 0.75},
    ),
    Case("negative budget", "spec.budget.costPerHour: must be greater than or equal to 0", {"spec.budget.costPerHour": -5}),
    Case("no bound", "spec.slo: give at least one of ttft, interTokenLatency and e2e", {"spec.slo": {}}),
    Case(
        "percentile over the whole plan",
        "spec.slo: with scope Plan every bound must have statistic: Mean, because only means add up over routes",
        {"spec.slo.scope": "Plan"},
    ),
    Case(
        "misspelt field", "spec.tolerateNode: is no field here, did you mean tolerateNodes?", {"spec.tolerateNode": 1}
    ),
    Case(
        "one node, and one to lose",
        "spec.tolerateNodes: plan default/chat is to survive the loss of a node, but --gpus has one:"
        " give two or more, or set it to 0",
        {"spec.tolerateNodes": 1},
        arguments=("--gpus", "h100=8"),
    ),
    # Files.
    Case("missing file", "none.yaml: cannot be read: No such file or directory", arguments=("-f", "none.yaml")),
    Case("empty file", "more.yaml: is empty", files={"more.yaml": ""}, arguments=("-f", "more.yaml")),
    Case(
        "malformed YAML",
        "more.yaml: is not YAML: line 2: ",
        files={"more.yaml": "spec: {}\n  slo: 1\n"},
        arguments=("-f", "more.yaml"),
    ),
    Case(
        "a key given twice",
        "more.yaml: is not YAML: line 2: the key rate is given twice",
        files={"more.yaml": "rate: 1\nrate: 2\n"},
        arguments=("-f", "more.yaml"),
    ),
    Case(
        "a list for an object",
        "more.yaml: must be an object with apiVersion and kind, not a list",
        files={"more.yaml": "[1, 2]"},
        arguments=("-f", "more.yaml"),
    ),
    Case("wrong kind", "plan.yaml: holds no ModelServingPlan, but Deployment", {"kind": "Deployment", "apiVersion": "apps/v1"}),
    Case("kind left out", "plan.yaml: kind: is required", {"kind": None}),
    Case("wrong version", "plan.yaml: apiVersion: must be servingplan.io/v1alpha1, not servingplan.io/v2",
         {"apiVersion": "servingplan.io/v2"}),
    Case(
        "limits that hold themselves",
        "spec.accelerators[0].limit: must be a whole number",
        files={"plan.yaml": "apiVersion: servingplan.io/v1alpha1\nkind: ModelServingPlan\nmetadata: {name: a}\nspec:\n"
               "  slo: {ttft: {seconds: 1}}\n  accelerators: [{name: h100, limit: &a {of: *a}}]\n  models: []\n"},
    ),
    Case(
        "two plans of one name",
        "plan.yaml: metadata.name: there are two plans default/chat, rename one or move it to a namespace",
        arguments=("-f", "plan.yaml"),
    ),
    # Profiles kept elsewhere.
    Case(
        "a profile in no file",
        "plan.yaml: spec.models[0].setups[0].profileFrom: names the ConfigMap profiles of namespace default, which no file"
        " holds: give the file that does with --profiles",
        BY_REFERENCE,
    ),
    Case(
        "a profile under another key",
        "add the key large to the ConfigMap profiles in maps.yaml",
        BY_REFERENCE,
        {"maps.yaml": config_map("{}") | {"data": {"other": "{}"}}},
        ("--profiles", "maps.yaml"),
    ),
    Case(
        "a profile that is no YAML",
        "the key large of the ConfigMap profiles in maps.yaml is not YAML: line ",
        BY_REFERENCE,
        {"maps.yaml": config_map("{a: ")},
        ("--profiles", "maps.yaml"),
    ),
    Case(
        "a profile with NaN",
        "the key large of the ConfigMap profiles in maps.yaml is no profile:"
        " coefficients.betaMs: must be a decimal number such as 0.8",
        BY_REFERENCE,
        {"maps.yaml": config_map("coefficients: {alphaMs: 1, betaMs: .nan, gammaMs: 0}")},
        ("--profiles", "maps.yaml"),
    ),
    # GPUs.
    Case(
        "no word on GPUs",
        "say how many GPUs there are, with --nodes FILE or --gpus h100=N:"
        " plan default/chat sets no limit for them (spec.accelerators[0].limit)",
        {"spec.accelerators.0.limit": None},
    ),
    Case("GPUs of an unknown kind", "--gpus b200=8: no plan has an accelerator b200, choose from h100, l40s",
         arguments=("--gpus", "b200=8")),
    Case("GPUs in words", "--gpus h100=many: write KIND=N, such as h100=16, or KIND=NODESxGPUS, such as h100=2x8",
         arguments=("--gpus", "h100=many")),
    Case("negative GPUs", "--gpus h100=-8: write KIND=N", arguments=("--gpus", "h100=-8")),
    Case("GPUs given twice", "--gpus h100=4: these GPUs are counted twice, give each kind once",
         arguments=("--gpus", "h100=8", "--gpus", "h100=4")),
    Case("more GPUs than there are in the world", "--gpus h100=9999x9999: give at most 1000000 GPUs",
         arguments=("--gpus", "h100=9999x9999")),
    Case("nodes and GPUs", "--nodes and --gpus both say which GPUs there are: give one of them",
         arguments=("--gpus", "h100=8", "--nodes", "nodes.yaml")),
    Case("nodes that are plans", "plan.yaml: holds no Node, but ModelServingPlan: print it with kubectl get nodes -o yaml",
         arguments=("--nodes", "plan.yaml")),
    Case(
        "nodes of another kind",
        "nodes.yaml: no node that is ready offers nvidia.com/gpu (gpu=h100), as accelerator h100 of plan default/chat wants:"
        " correct its resource or nodeSelector, or give the GPUs with --gpus",
        files={"nodes.yaml": NODE | {"metadata": {"name": "a", "labels": {"gpu": "a100"}}}},
        arguments=("--nodes", "nodes.yaml"),
    ),
    Case(
        "a node that is cordoned",
        "nodes.yaml: no node that is ready offers nvidia.com/gpu",
        files={"nodes.yaml": NODE | {"spec": {"unschedulable": True}}},
        arguments=("--nodes", "nodes.yaml"),
    ),
    Case("a node without a name", "nodes.yaml: is no Node that can be read", files={"nodes.yaml": NODE | {"metadata": {}}},
         arguments=("--nodes", "nodes.yaml")),
    # Rates, lengths, replicas, numbers.
    Case("rate of an unknown class", "--rate coding=3: plan default/chat has no request class coding, choose from code, chat",
         arguments=("--rate", "coding=3")),
    Case("negative rate at the command line", "--rate code=-3: give requests per second as a number from 0 to 1e+09",
         arguments=("--rate", "code=-3")),
    Case("infinite rate", "--rate code=inf: give requests per second as a number", arguments=("--rate", "code=inf")),
    Case("rate without a number", "--rate code: write CLASS=VALUE, such as code=12", arguments=("--rate", "code")),
    Case("rate of an unknown plan", "--rate shop/code=3: there is no plan shop, choose from default/chat",
         arguments=("--rate", "shop/code=3")),
    Case(
        "rate of either plan",
        "--rate code=3: there are several plans, say which, such as chat/code",
        files={"more.yaml": "other"},
        arguments=("-f", "more.yaml", "--gpus", "h100=8", "--rate", "code=3"),
    ),
    Case("lengths in no file", "--lengths code=none.csv: cannot be read: No such file or directory",
         arguments=("--lengths", "code=none.csv")),
    Case("lengths without a header", "--lengths code=t.csv: name its columns promptTokens and outputTokens in the first line",
         files={"t.csv": "1,2\n3,4\n"}, arguments=("--lengths", "code=t.csv")),
    Case("lengths of nothing", "--lengths code=t.csv: line 3: give prompt and output tokens as numbers of 1 or more",
         files={"t.csv": "promptTokens,outputTokens\n5,5\n0,5\n"}, arguments=("--lengths", "code=t.csv")),
    Case("lengths of nobody", "--lengths code=t.csv: holds no request, give one line for each",
         files={"t.csv": "promptTokens,outputTokens\n"}, arguments=("--lengths", "code=t.csv")),
    Case("replicas of an unknown setup",
         "--replicas large/tp4=1: plan default/chat has no setup large/tp4, choose from large/tp2, small/single",
         arguments=("--replicas", "large/tp4=1")),
    Case("negative replicas", "--replicas large/tp2=-1: give a whole number of replicas from 0 to 100000",
         arguments=("--replicas", "large/tp2=-1")),
    Case("replicas of a model", "--replicas large=1: write MODEL/SETUP=N", arguments=("--replicas", "large=1")),
    Case("replicas given twice", "--replicas large/tp2=2: large/tp2 is given twice, give it once",
         arguments=("--replicas", "large/tp2=1", "--replicas", "large/tp2=2")),
    Case("more replicas than GPUs",
         "--replicas: they take 10 h100, of which there are 8: give fewer replicas or more GPUs",
         arguments=("--gpus", "h100=8", "--replicas", "large/tp2=5")),
    Case("gap above 1", "--gap 2: give a fraction from 0 to 1, such as 0.0001", arguments=("--gap", "2")),
    Case("gap that is no number", "--gap nan: give a fraction", arguments=("--gap", "nan")),
    Case("no time", "--time-limit 0: give seconds above 0, such as 10", arguments=("--time-limit", "0")),
    Case("a plot of nothing", "--plot: it draws a frontier, say which with --frontier slo or --frontier cost",
         arguments=("--plot", "out.png")),
    Case("a plot in no folder", "--plot none/out.png: cannot be written: its folder does not exist",
         arguments=("--frontier", "slo", "--plot", "none/out.png")),
    Case("a plot that is a table", "--plot out.csv: name a picture, such as frontier.png",
         arguments=("--frontier", "slo", "--plot", "out.csv")),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_nonsense_ends_in_one_sentence(case: Case, desk: Any, plan_with: Callable[..., dict[str, Any]]) -> None:
    desk.write("plan.yaml", plan_with(case.edits))
    for name, content in case.files.items():
        desk.write(name, plan_with({"metadata.name": content}) if content == "other" else content)
    ended = desk.run("plan", "-f", "plan.yaml", *case.arguments)
    assert (ended.status, ended.out) == (2, "")
    assert ended.err.count("\n") == 1
    assert case.sentence in ended.err


def test_there_are_enough_of_them_and_they_are_told_apart() -> None:
    assert len({case.sentence for case in CASES}) == len(CASES) >= 25


def test_explain_refuses_in_the_same_words(desk: Any) -> None:
    desk.write("plan.yaml", "[]")
    assert desk.run("explain", "-f", "plan.yaml") == desk.run("plan", "-f", "plan.yaml")


def test_the_base_of_all_nonsense_is_good(desk: Any, plan_with: Callable[..., dict[str, Any]]) -> None:
    desk.write("plan.yaml", plan_with({}))
    assert desk.run("plan", "-f", "plan.yaml").status == 0

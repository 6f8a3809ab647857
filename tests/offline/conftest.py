"""The command line as a user runs it, on plans that vary a small one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from servingplan.cli import main

PLAN: dict[str, Any] = {
    "apiVersion": "servingplan.io/v1alpha1",
    "kind": "ModelServingPlan",
    "metadata": {"name": "chat"},
    "spec": {
        "slo": {"ttft": {"seconds": 0.8}},
        "accelerators": [
            {"name": "h100", "nodeSelector": {"gpu": "h100"}, "limit": 8, "costPerHour": 4},
            {"name": "l40s", "nodeSelector": {"gpu": "l40s"}, "limit": 4, "costPerHour": 1},
        ],
        "models": [
            {
                "name": "large",
                "source": "example/large",
                "quality": {"default": 0.8, "classes": {"code": 0.7}},
                "setups": [
                    {
                        "name": "tp2",
                        "accelerator": "h100",
                        "count": 2,
                        "profile": {"coefficients": {"alphaMs": 13.7, "betaMs": 0.057, "gammaMs": 0.00006}},
                    }
                ],
            },
            {
                "name": "small",
                "source": "example/small",
                "quality": {"default": 0.5},
                "setups": [
                    {
                        "name": "single",
                        "accelerator": "l40s",
                        "profile": {"coefficients": {"alphaMs": 20, "betaMs": 0.08, "gammaMs": 0.0001}},
                    }
                ],
            },
        ],
        "requestClasses": [
            {"name": "code", "match": {"headers": {"x-request-class": "code"}}, "rate": 3},
            {"name": "chat", "rate": 6},
        ],
    },
}


def edited(edits: dict[str, Any], plan: dict[str, Any] = PLAN) -> dict[str, Any]:
    """The plan with each path, such as ``spec.models.0.name``, set to its value; None leaves a field out."""
    changed = copy.deepcopy(plan)
    for path, value in edits.items():
        *parents, last = (int(part) if part.isdigit() else part for part in path.split("."))
        node: Any = changed
        for part in parents:
            node = node[part] if isinstance(node, list) else node.setdefault(part, {})
        if value is None:
            del node[last]
        else:
            node[last] = value
    return changed


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    status: int
    out: str
    err: str


@dataclass(frozen=True)
class Desk:
    """A folder to work in, and the command line."""

    folder: Path
    run: Callable[..., Ended]

    def write(self, name: str, *documents: Any) -> str:
        """Writes text as it is and objects as YAML documents; returns the file's name."""
        text = [document if isinstance(document, str) else yaml.safe_dump(document, sort_keys=False) for document in documents]
        (self.folder / name).write_text("---\n".join(text))
        return name


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Desk:
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Ended:
        status = main(list(arguments))
        return Ended(status, *capsys.readouterr())

    return Desk(tmp_path, run)


@pytest.fixture
def plan_with() -> Callable[..., dict[str, Any]]:
    return edited

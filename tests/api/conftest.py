"""An API server that knows the kind."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client, config

from servingplan.api import crd, v1alpha1
from testbed.cluster import wait_until

Kubectl = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def api_kubectl(bed: Any) -> Kubectl:
    """Runs kubectl against an API server that serves the CustomResourceDefinition as the models make it."""
    binary = str(Path(sys.executable).with_name("kubectl"))

    def run(*arguments: str, stdin: str | None = None, check: bool = True) -> subprocess.CompletedProcess[str]:
        command = [binary, f"--kubeconfig={bed.kubeconfig}", *arguments]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
        assert done.returncode == 0 or not check, done.stderr
        return done

    run("apply", "--server-side", "--force-conflicts", "-f-", stdin=crd.to_yaml())
    # `kubectl wait` gives up on a definition that has no conditions yet.
    wait_until(lambda: run("get", v1alpha1.PLURAL, check=False).returncode == 0, 60, "plans can be listed")
    return run


@pytest.fixture(scope="session")
def dry_run(api_kubectl: Kubectl, bed: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Creates a plan as a dry run under strict validation: the plan as stored, or the server's Status."""
    plans = client.CustomObjectsApi(config.new_client_from_config(str(bed.kubeconfig)))

    def create(plan: dict[str, Any]) -> dict[str, Any]:
        where = (v1alpha1.GROUP, v1alpha1.VERSION, "default", v1alpha1.PLURAL)
        try:
            stored: dict[str, Any] = plans.create_namespaced_custom_object(
                *where, plan, dry_run="All", field_validation="Strict"
            )
        except client.ApiException as error:
            stored = json.loads(error.body)
        return stored

    return create


@pytest.fixture(scope="session")
def refusals(dry_run: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[dict[str, Any]], list[str]]:
    """The sentences with which a plan is refused, each naming its field; none for a plan that is accepted."""

    def sentences(plan: dict[str, Any]) -> list[str]:
        answer = dry_run(plan)
        if answer["kind"] != "Status":
            return []
        causes = answer["details"].get("causes") if "details" in answer else None
        found = [f"{cause['field']}: {cause['message']}" for cause in causes] if causes else [answer["message"]]
        # Kubernetes adds this by itself where an object's schema does not hold.
        return [sentence for sentence in found if "some validation rules were not checked" not in sentence]

    return sentences

"""The operator's rights are what it needs, no more and no less: the API server's audit log after everything else has run."""

from __future__ import annotations

import json
from datetime import datetime

import pytest

LEAVING_S = 45
ACCOUNT = "system:serviceaccount:servingplan-system:servingplan-controller"
ROLES = (
    ("clusterrole", "servingplan-system-servingplan-controller"),
    ("role", "servingplan-controller-lease", "--namespace=servingplan-system"),
)


def asked(audit_log):
    """(API group, resource with subresource, verb) of every request that the operator made, and its audit event."""
    for line in audit_log.read_text().splitlines():
        event = json.loads(line)
        if event["user"]["username"] == ACCOUNT and event.get("objectRef"):
            where = event["objectRef"]
            resource = "/".join(filter(None, [where["resource"], where.get("subresource")]))
            yield (where.get("apiGroup", ""), resource, event["verb"]), event


def rights_changed_s(audit_log):
    """Times at which rights were given or taken."""
    events = map(json.loads, audit_log.read_text().splitlines())
    group = "rbac.authorization.k8s.io"
    return [moment_s(event) for event in events if (event.get("objectRef") or {}).get("apiGroup") == group]


def moment_s(event):
    return datetime.fromisoformat(event["requestReceivedTimestamp"]).timestamp()


def granted(bed):
    """(API group, resource, verb) of the operator's roles."""
    rules = [rule for where in ROLES for rule in bed.get(*where)["rules"]]
    return {(g, r, v) for rule in rules for g in rule["apiGroups"] for r in rule["resources"] for v in rule["verbs"]}


@pytest.mark.last
def test_the_one_lease_that_the_operator_touches_is_its_own(operator):
    if not operator.controls_nodes:
        pytest.skip("another cluster's audit log is not ours to read")
    touched = {
        (event["objectRef"].get("namespace"), event["objectRef"].get("name"))
        for (_, resource, verb), event in asked(operator.audit_log)
        if resource == "leases" and verb != "create"
    }
    assert touched == {("servingplan-system", "servingplan-controller")}


@pytest.mark.last
def test_the_operator_was_refused_nothing_and_used_every_right(operator):
    if not operator.controls_nodes:
        pytest.skip("another cluster's audit log is not ours to read")
    requests = list(asked(operator.audit_log))
    # A 403 of admission (a namespace on its way out) says nothing about rights; the authoriser's own verdict does.
    # An operator that is uninstalled, or gets other rights, asks on for as long as it takes to end.
    changes = rights_changed_s(operator.audit_log)
    forbidden = {
        (*what, event["objectRef"].get("namespace"), event["annotations"].get("authorization.k8s.io/reason"))
        for what, event in requests
        if event["annotations"].get("authorization.k8s.io/decision") == "forbid"
        and not any(0 <= moment_s(event) - change < LEAVING_S for change in changes)
    }
    assert forbidden == set()
    used = {what for what, _ in requests}
    # Owner references that block deletion need it, and the admission plugin asks without a request of the operator's own.
    implied = {("servingplan.io", "modelservingplans/finalizers", "update")}
    # The API server asks it of itself when a RoleBinding is written.
    implied |= {("rbac.authorization.k8s.io", "clusterroles", "bind")}
    # Server-side apply of an object that is not there yet is authorised as a patch and a create.
    implied |= {(group, resource, "create") for group, resource, verb in used if verb == "patch"}
    assert granted(operator) - used - implied == set()

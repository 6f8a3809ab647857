"""Plans from documents, with the profiles that they name found in ConfigMaps beside them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pydantic import ValidationError

from servingplan.api import v1alpha1
from servingplan.api.load import Rejected, parse, sentence
from servingplan.offline.documents import Found, parse_yaml
from servingplan.offline.errors import InputError

DEFAULT_NAMESPACE = "default"

Pool = tuple[str, tuple[tuple[str, str], ...]]
"""What makes two accelerators the same GPUs: resource and sorted node selector."""


@dataclass(frozen=True, slots=True)
class GivenPlan:
    """A plan that can be read.

    Attributes:
        profiles: By (model, setup), with references resolved.
    """

    namespace: str
    name: str
    spec: v1alpha1.ModelServingPlanSpec
    profiles: dict[tuple[str, str], v1alpha1.Profile]

    @property
    def key(self) -> str:
        """``namespace/name``."""
        return f"{self.namespace}/{self.name}"


def pool_of(kind: v1alpha1.Accelerator) -> Pool:
    """Which GPUs an accelerator means."""
    return kind.resource, tuple(sorted(kind.node_selector.items()))


def read_plans(objects: Iterable[Found], profiles: Iterable[Found]) -> tuple[GivenPlan, ...]:
    """All plans among the objects, in the order of their keys; other objects of a manifest are passed over.

    Args:
        objects: What the plan files hold; ConfigMaps among them may hold profiles.
        profiles: Further ConfigMaps.

    Raises:
        InputError: There is no plan, one is wrong, two have one name, or a profile is missing.
    """
    objects = list(objects)
    config_maps = [found for found in [*objects, *profiles] if found.kind == "ConfigMap"]
    plans: dict[str, GivenPlan] = {}
    for found in objects:
        if _is_plan(found):
            plan = _plan(found, config_maps)
            if plan.key in plans:
                raise InputError(
                    f"{found.source}: metadata.name: there are two plans {plan.key}, rename one or move it to a namespace"
                )
            plans[plan.key] = plan
    if not plans:
        kinds = sorted({found.kind or "an object without a kind" for found in objects})
        raise InputError(f"{objects[0].source}: holds no {v1alpha1.KIND}, but {', '.join(kinds)}")
    return tuple(plans[key] for key in sorted(plans))


def _is_plan(found: Found) -> bool:
    return found.kind == v1alpha1.KIND or str(found.body.get("apiVersion", "")).startswith(f"{v1alpha1.GROUP}/")


def _plan(found: Found, config_maps: list[Found]) -> GivenPlan:
    parsed = parse(found.body)
    if isinstance(parsed, Rejected):
        raise InputError(f"{found.source}: {parsed.message}")
    for field in ("apiVersion", "kind"):
        if field not in found.body:
            raise InputError(f"{found.source}: {field}: is required")
    namespace = str(found.metadata.get("namespace") or DEFAULT_NAMESPACE)
    profiles = {}
    for i, model in enumerate(parsed.spec.models):
        for j, setup in enumerate(model.setups):
            where = f"{found.source}: spec.models[{i}].setups[{j}].profileFrom"
            profiles[model.name, setup.name] = setup.profile or _referenced(setup, namespace, config_maps, where)
    return GivenPlan(namespace=namespace, name=parsed.metadata.name, spec=parsed.spec, profiles=profiles)


def _referenced(setup: v1alpha1.Setup, namespace: str, config_maps: list[Found], where: str) -> v1alpha1.Profile:
    assert setup.profile_from is not None, "the API allows no setup without either"
    wanted = setup.profile_from.config_map_key_ref
    for found in config_maps:
        # A ConfigMap without a namespace would be applied to that of the plan.
        if found.metadata.get("name") == wanted.name and found.metadata.get("namespace", namespace) == namespace:
            return _profile(found, wanted, where)
    raise InputError(
        f"{where}: names the ConfigMap {wanted.name} of namespace {namespace}, which no file holds:"
        " give the file that does with --profiles"
    )


def _profile(found: Found, wanted: v1alpha1.ConfigMapKeySelector, where: str) -> v1alpha1.Profile:
    data = found.body.get("data")
    text = data.get(wanted.key) if isinstance(data, dict) else None
    if not isinstance(text, str):
        raise InputError(f"{where}: add the key {wanted.key} to the ConfigMap {wanted.name} in {found.source}")
    begin = f"{where}: the key {wanted.key} of the ConfigMap {wanted.name} in {found.source}"
    try:
        return v1alpha1.Profile.model_validate(parse_yaml(text))
    except InputError as error:
        raise InputError(f"{begin} {error}") from error
    except ValidationError as error:
        raise InputError(f"{begin} is no profile: {sentence(error)}") from error

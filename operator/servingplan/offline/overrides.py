"""What the command line says differently from the plans: rates, lengths, replicas."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from servingplan.latency.profile import TokenMix
from servingplan.offline.errors import InputError
from servingplan.offline.plans import GivenPlan
from servingplan.planning.problem import ClassDemand, PlanDemand, Standing

LARGEST_RATE_RPS = 1e9
MOST_REPLICAS = 100_000

_PROMPT_COLUMNS = ("prompttokens", "contexttokens", "inputtokens", "inputlength", "prompt")
_OUTPUT_COLUMNS = ("outputtokens", "generatedtokens", "completiontokens", "outputlength", "output")


def with_rates(demands: tuple[PlanDemand, ...], given: Sequence[str]) -> tuple[PlanDemand, ...]:
    """The demands with each ``CLASS=12`` or ``PLAN/CLASS=12`` in requests per second.

    Raises:
        InputError: One cannot be read, or names a class that is not there.
    """
    for text in given:
        key, name, value = _class_option("--rate", text, demands)
        rate_rps = _number(value)
        if rate_rps is None or not 0 <= rate_rps <= LARGEST_RATE_RPS:
            raise InputError(f"--rate {text}: give requests per second as a number from 0 to {LARGEST_RATE_RPS:g}")
        demands = _with_class(demands, key, name, partial(replace, rate_rps=rate_rps))
    return demands


def with_lengths(demands: tuple[PlanDemand, ...], given: Sequence[str]) -> tuple[PlanDemand, ...]:
    """The demands with the lengths of each ``CLASS=trace.csv``, a table with prompt and output tokens of real requests.

    Raises:
        InputError: One cannot be read, or names a class that is not there.
    """
    for text in given:
        key, name, path = _class_option("--lengths", text, demands)
        mix = TokenMix.of(_read_lengths(path, f"--lengths {text}"))
        demands = _with_class(demands, key, name, partial(replace, mix=mix))
    return demands


def standing(plans: Sequence[GivenPlan], given: Sequence[str]) -> Standing:
    """The allocation of each ``MODEL/SETUP=2`` or ``PLAN/MODEL/SETUP=2``; what is not named has no replica.

    Raises:
        InputError: One cannot be read, names a setup that is not there, or one is named twice.
    """
    replicas: dict[tuple[str, str, str], int] = {}
    for text in given:
        target, sign, value = text.rpartition("=")
        *prefix, model, setup = target.strip().split("/") if target.count("/") else ["", "", ""]
        if not sign or not model or not setup:
            raise InputError(f"--replicas {text}: write MODEL/SETUP=N, such as llama-3.1-8b/h100=2")
        plan = _plan_of("--replicas", text, "/".join(prefix), [each.key for each in plans], f"{model}/{setup}")
        setups = [f"{m.name}/{s.name}" for p in plans if p.key == plan for m in p.spec.models for s in m.setups]
        if f"{model}/{setup}" not in setups:
            raise InputError(f"--replicas {text}: plan {plan} has no setup {model}/{setup}, choose from {', '.join(setups)}")
        if not value.strip().isdecimal() or int(value) > MOST_REPLICAS:
            raise InputError(f"--replicas {text}: give a whole number of replicas from 0 to {MOST_REPLICAS}")
        if (plan, model, setup) in replicas:
            raise InputError(f"--replicas {text}: {model}/{setup} is given twice, give it once")
        replicas[plan, model, setup] = int(value)
    return Standing(replicas)


def _class_option(option: str, text: str, demands: Sequence[PlanDemand]) -> tuple[str, str, str]:
    """Plan key, class and value of ``CLASS=value``."""
    target, sign, value = text.partition("=")
    prefix, _, name = target.strip().rpartition("/")
    if not sign or not name or not value.strip():
        example = "code=12" if option == "--rate" else "code=trace.csv"
        raise InputError(f"{option} {text}: write CLASS=VALUE, such as {example}")
    plan = _plan_of(option, text, prefix, [demand.key for demand in demands], name)
    classes = [entry.name for demand in demands if demand.key == plan for entry in demand.classes]
    if name not in classes:
        raise InputError(f"{option} {text}: plan {plan} has no request class {name}, choose from {', '.join(classes)}")
    return plan, name, value.strip()


def _plan_of(option: str, text: str, prefix: str, keys: list[str], rest: str) -> str:
    """The key of the plan that a prefix means; without one the only plan there is."""
    if not prefix and len(keys) > 1:
        raise InputError(f"{option} {text}: there are several plans, say which, such as {keys[0].partition('/')[2]}/{rest}")
    meant = [key for key in keys if not prefix or prefix in {key, key.partition("/")[2]}]
    if len(meant) > 1:
        raise InputError(f"{option} {text}: {prefix} is in several namespaces, say which, such as {meant[0]}/{rest}")
    if not meant:
        raise InputError(f"{option} {text}: there is no plan {prefix}, choose from {', '.join(keys)}")
    return meant[0]


def _with_class(
    demands: tuple[PlanDemand, ...], key: str, name: str, changed: Callable[[ClassDemand], ClassDemand]
) -> tuple[PlanDemand, ...]:
    def plan(demand: PlanDemand) -> PlanDemand:
        classes = (changed(entry) if entry.name == name else entry for entry in demand.classes)
        return replace(demand, classes=tuple(classes))

    return tuple(plan(demand) if demand.key == key else demand for demand in demands)


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _read_lengths(path: str, begin: str) -> list[tuple[float, float]]:
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file)
            header = [name.strip().lower().replace("_", "").replace(" ", "") for name in next(rows, [])]
            prompt, output = _column(header, _PROMPT_COLUMNS), _column(header, _OUTPUT_COLUMNS)
            if prompt is None or output is None:
                raise InputError(f"{begin}: name its columns promptTokens and outputTokens in the first line")
            found = [_pair(row, prompt, output, f"{begin}: line {rows.line_num}") for row in rows if row]
    except OSError as error:
        raise InputError(f"{begin}: cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{begin}: cannot be read: it is not a table of comma-separated values") from error
    if not found:
        raise InputError(f"{begin}: holds no request, give one line for each")
    return found


def _column(header: list[str], names: Sequence[str]) -> int | None:
    return next((header.index(name) for name in names if name in header), None)


def _pair(row: list[str], prompt: int, output: int, begin: str) -> tuple[float, float]:
    values = [_number(row[index]) if index < len(row) else None for index in (prompt, output)]
    if any(value is None or value < 1 for value in values):
        raise InputError(f"{begin}: give prompt and output tokens as numbers of 1 or more")
    return float(values[0] or 0), float(values[1] or 0)

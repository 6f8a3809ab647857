"""Numbers and bounds in the words of a person."""

from __future__ import annotations

from servingplan.latency.profile import Bound, Slo
from servingplan.planning.problem import Allocation, PlanDemand

LATENCIES = (("TTFT", "ttft"), ("inter-token latency", "inter_token"), ("e2e", "e2e"))
"""Name and field of every latency that an SLO may bound."""
NAMES = {field: name for name, field in LATENCIES}

PROVED = 1e-9
"""A gap below this is the rounding of numbers, not a better plan that may exist."""


def seconds(value_s: float) -> str:
    """Seconds with three digits, in milliseconds below a second."""
    return f"{value_s * 1e3:.3g} ms" if value_s < 0.9995 else f"{value_s:.3g} s"


def number(value: float, digits: int = 3) -> str:
    """A number with so many digits and no exponent."""
    if value == 0:
        return "0"
    text = f"{value:.{digits}g}"
    return f"{value:.0f}" if "e" in text and abs(value) >= 1 else f"{value:.6f}" if "e" in text else text


def percent(fraction: float) -> str:
    """A fraction as a percentage; what is not quite nothing or everything does not read as such."""
    value = 100 * fraction
    if 0 < value < 0.1:
        return "under 0.1 %"
    if 99.9 < value < 99.9999:
        return "over 99.9 %"
    return f"{value:.3g} %"


def money(value_per_hour: float) -> str:
    """Cost per hour, in the unit of the plan."""
    return f"{value_per_hour:,.2f} per hour"


def joined(parts: list[str], last: str = "and") -> str:
    """An enumeration."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} {last} {parts[-1]}" if parts else ""


def bounds(slo: Slo, factor: float = 1.0) -> str:
    """The bounds of an SLO, each times a factor."""
    found = [(name, getattr(slo, field)) for name, field in LATENCIES]
    return joined([f"{name} {statistic(bound)} {seconds(bound.seconds * factor)}" for name, bound in found if bound])


def statistic(bound: Bound) -> str:
    """Of which requests a bound speaks."""
    return "mean" if bound.percentile is None else f"p{bound.percentile:g}"


def units_used(demand: PlanDemand, allocations: tuple[Allocation, ...]) -> dict[str, int]:
    """Units in use by accelerator, in the plan's order; those not in use are left out."""
    used = {kind.name: sum(each.units for each in allocations if each.accelerator == kind.name) for kind in demand.accelerators}
    return {name: units for name, units in used.items() if units}


def gpus(units: dict[str, int]) -> str:
    """Units by accelerator as an enumeration."""
    return joined([f"{count} {name}" for name, count in units.items()]) or "no GPU"

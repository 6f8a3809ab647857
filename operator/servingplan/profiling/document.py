"""The profile as YAML: what a plan takes, and in comments how it was measured and how sure it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import yaml

from servingplan.api.v1alpha1 import Profile
from servingplan.profiling.fitting import Found
from servingplan.profiling.measured import Measured

_WIDTH = 118


@dataclass(frozen=True, slots=True)
class Source:
    """Where and when a profile was measured.

    Attributes:
        endpoint: Address without a password.
        date: As it is to be written.
        seconds: How long it took.
    """

    endpoint: str
    model: str
    date: str
    seconds: float


def to_yaml(found: Found, source: Source, levels: Sequence[Measured], notes: Sequence[str]) -> str:
    """The document.

    Args:
        found: Coefficients and limits.
        source: For the heading.
        levels: All levels, those too that the fit did not look at.
        notes: Sentences to keep with the profile.

    Raises:
        ValueError: The profile is none that a plan would take.
    """
    fields = _fields(found)
    Profile.model_validate(fields)
    limits = found.limits
    parts = [
        *_wrapped(
            f"Profile of {source.model} at {source.endpoint}, measured by servingplan profile on {source.date}"
            f" in {source.seconds:.0f} s."
        ),
        *_wrapped(_certainty(found)),
        *_wrapped(_residuals(found)),
        *(line for note in notes for line in _wrapped(note)),
        "",
        *_block("coefficients", fields["coefficients"]),
        *_commented("maxNumSeqs", fields, limits.seqs_source),
        *_commented("maxNumBatchedTokens", fields, limits.budget_source),
        *_commented("kvTokens", fields, limits.kv_source),
        "",
        *_table(found, levels),
    ]
    text = "\n".join(part.rstrip() for part in parts) + "\n"
    if yaml.safe_load(text) != fields:
        raise ValueError("the profile does not survive being written as YAML")
    return text


def _fields(found: Found) -> dict[str, Any]:
    step, limits = found.fit.step, found.limits
    coefficients = {
        "alphaMs": decimal(1e3 * step.alpha_s),
        "betaMs": decimal(1e3 * step.beta_s),
        "gammaMs": decimal(1e3 * step.gamma_s),
    }
    if step.floor_s > 0:
        coefficients["floorMs"] = decimal(1e3 * step.floor_s)
    fields: dict[str, Any] = {
        "coefficients": coefficients,
        "maxNumSeqs": limits.max_num_seqs,
        "maxNumBatchedTokens": limits.max_num_batched_tokens,
    }
    if limits.kv_tokens is not None:
        fields["kvTokens"] = limits.kv_tokens
    return fields


def decimal(value: float) -> str:
    """Four significant digits without an exponent; at most twelve behind the point, and 0 for what is smaller."""
    if value <= 0 or not math.isfinite(value):
        return "0"
    digits = max(0, min(12, 3 - math.floor(math.log10(value))))
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _certainty(found: Found) -> str:
    step, error = found.fit.step, found.fit.standard_error
    parts = []
    for name, value, own, scale, unit in (
        ("alpha", step.alpha_s, error.alpha_s, 1e3, "ms"),
        ("beta", step.beta_s, error.beta_s, 1e6, "us"),
        ("gamma", step.gamma_s, error.gamma_s, 1e9, "ns"),
    ):
        known = name in found.fit.identified and math.isfinite(own) and value > 0
        sure = f"+- {100 * own / value:.1f} %" if known else "which these levels do not tell"
        parts.append(f"{name} {scale * value:.4g} {unit} {sure}")
    return (
        f"Standard errors: {', '.join(parts)}. The client and the network add {1e3 * found.fit.overhead_s:.1f} ms to the"
        " time to first token, which is no part of the profile."
    )


def summary(found: Found) -> str:
    """The coefficients and how well they explain the levels, in two sentences for the terminal."""
    return f"{_certainty(found)} {_residuals(found)}"


def _residuals(found: Found) -> str:
    ttft, tpot = ([abs(pair[place]) for pair in found.residuals] for place in (0, 1))
    return (
        f"The fit is off by {100 * median(ttft):.1f} % in the median on TTFT (worst {100 * max(ttft):.0f} %) and by"
        f" {100 * median(tpot):.1f} % on the inter-token time (worst {100 * max(tpot):.0f} %), over {len(tpot)} levels;"
        f" it also saw {found.stretches} stretches of undisturbed decoding."
    )


def _wrapped(text: str) -> list[str]:
    lines, line = [], "#"
    for word in text.split():
        if len(line) + 1 + len(word) > _WIDTH and line != "#":
            lines.append(line)
            line = "#"
        line += f" {word}"
    return [*lines, line]


def _block(name: str, values: dict[str, str]) -> list[str]:
    return [f"{name}:", *(f'  {key}: "{value}"' for key, value in values.items())]


def _commented(name: str, fields: dict[str, Any], comment: str) -> list[str]:
    if name not in fields:
        return _wrapped(f"{name}: {comment}")
    return [f"{name}: {fields[name]}  # {comment}"]


def _table(found: Found, levels: Sequence[Measured]) -> list[str]:
    """The levels, and how far the fit is from each."""
    residuals = dict(zip(map(id, found.levels), found.residuals, strict=True))
    rows = [
        "# Levels; times are means in ms, with the half width of the 95 % interval.",
        f"# {'load':>12} {'prompt':>7} {'output':>7} {'requests':>8} {'req/s':>7} {'TTFT':>16} {'inter-token':>16}"
        f" {'fit TTFT':>9} {'fit i.-t.':>9}",
    ]
    for level in levels:
        load = f"{level.level.rate_rps:g}/s" if level.level.rate_rps else f"{level.level.clients} clients"
        residual = residuals.get(id(level))
        off = ("not used", "") if residual is None else (f"{100 * residual[0]:+.1f} %", f"{100 * residual[1]:+.1f} %")
        rows.append(
            f"# {load:>12} {level.prompt_tokens:7.0f} {level.output_tokens:7.1f} {level.requests:8} {level.throughput_rps:7.2f}"
            f" {1e3 * level.ttft.mean:8.1f} +-{_width(level.ttft.half_width):>6}"
            f" {1e3 * level.tpot.mean:8.2f} +-{_width(level.tpot.half_width, 2):>6} {off[0]:>9} {off[1]:>9}"
        )
    return rows


def _width(seconds: float, digits: int = 1) -> str:
    return f"{1e3 * seconds:.{digits}f}" if math.isfinite(seconds) else "?"

"""What is remembered from one cycle to the next. It stands in the plan's status, so that a restart loses nothing."""

from __future__ import annotations

from dataclasses import dataclass, field

from servingplan.latency.correction import LOAD_BINS

__all__ = ["LOAD_BINS", "Applied", "SetupMemory"]


@dataclass(frozen=True, slots=True)
class SetupMemory:
    """What live measurements have taught about one setup.

    The first group is the state of learning, which moves with every sample. ``applied`` is the part of it that plans are made
    with; it only follows when it is off by enough, so that plans do not follow noise.

    Attributes:
        samples: Cycles that were learnt from.
        log_step: (3,) natural logarithms of the factors on alpha (and floor), beta and gamma of the profile.
        covariance: (6,) of ``log_step``, the lower triangle row by row.
        log_bias: (4,) logarithm of measured over predicted mean time to first token, by load bin, after ``log_step``.
        bias_weight: (4,) how much was learnt in each bin, saturating.
        margin: By bound (``ttft.p95``, ``ttft.mean``, ``interToken.mean``, ``e2e.p95``), the further margin that measurements
            ask for beyond the declared one; may be negative.
        drift: (2,) Page-Hinkley sums, upwards and downwards.
        drifting: Whether the alarm has gone off, and not been settled since.
    """

    samples: int = 0
    log_step: tuple[float, float, float] = (0.0, 0.0, 0.0)
    covariance: tuple[float, ...] = ()
    log_bias: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0)
    bias_weight: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0)
    margin: dict[str, float] = field(default_factory=dict)
    drift: tuple[float, float] = (0.0, 0.0)
    drifting: bool = False
    applied: Applied | None = None


@dataclass(frozen=True, slots=True)
class Applied:
    """The correction that plans are made with; rounded, so that equal worlds give equal plans.

    Attributes:
        step: (3,) factors on alpha (and floor), beta and gamma.
        ttft: (4,) further factors on the time to first token, by load bin.
        margin: By bound, the further margin.
    """

    step: tuple[float, float, float] = (1.0, 1.0, 1.0)
    ttft: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)
    margin: dict[str, float] = field(default_factory=dict)

"""By how much the form of the time to first token was seen to be low against simulation: the declared margin.

It grows from half of the stable rate on, and with the probability that all slots are taken: whoever waits for one waits for
long, and how often that is hangs on details. Where outputs grow into a full KV cache, preemptions make it worse.
"""

from __future__ import annotations

import math
from functools import lru_cache

from servingplan.latency.correction import LARGEST_MARGIN
from servingplan.latency.decode import kv_growth, stable_step_rate_rps
from servingplan.latency.levels import LOADS, MAX_UTILIZATION, Replica, running_at
from servingplan.latency.mix import TokenMix
from servingplan.latency.profile import EngineProfile

_BASE_MARGIN = (0.08, 0.18)
"""Up to half of the stable rate, and at ``MAX_UTILIZATION``."""
_SLOT_MARGIN, _PREEMPTION_MARGIN = 0.3, 0.5
_SLOTS_TAKEN = 0.03
_MEASURED_MARGIN = 0.1


@lru_cache(maxsize=4096)
def declared_margin(profile: EngineProfile, background: TokenMix, arrival_cv: float, index: int) -> float:
    """The margin on the wait for the first token at one of the solved loads, by a profile without correction."""
    base = base_margin(profile, index)
    if profile.step is None or stable_step_rate_rps(profile, profile.step, background) <= 0:
        return base
    taken = running_at(Replica(profile, profile.step, background, arrival_cv), index).slot_wait
    likely = 1 - math.exp(-taken / _SLOTS_TAKEN)
    return min(LARGEST_MARGIN, base + likely * (_SLOT_MARGIN + _PREEMPTION_MARGIN * kv_growth(profile, background)))


def base_margin(profile: EngineProfile, index: int) -> float:
    """The margin where slots are free, which is that on the time between tokens."""
    if profile.step is None:
        return _MEASURED_MARGIN
    low, high = _BASE_MARGIN
    return low + (high - low) * max(0.0, LOADS[index] - 0.5) / (MAX_UTILIZATION - 0.5)

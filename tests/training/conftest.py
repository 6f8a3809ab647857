"""Made-up prompts of two kinds, on which two of three models do well and badly in turn."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from servingplan.picker.embed import Embedder
from servingplan.routing.quality import VECTOR, VECTORS
from servingplan.training.fit import Fitted, fit

FEATURES = VECTORS * VECTOR + 5


@dataclass(frozen=True)
class Made:
    """Features, (prompts, 3) scores and lengths, and the kind of each prompt."""

    features: np.ndarray
    scores: np.ndarray
    lengths: np.ndarray
    kind: np.ndarray


def made(count: int, seed: int) -> Made:
    middles = np.random.default_rng(7).normal(size=(2, FEATURES))
    draw = np.random.default_rng(seed)
    kind = draw.integers(0, 2, count)
    features = middles[kind] + draw.normal(size=(count, FEATURES)) * 0.8
    chance = np.array([[0.9, 0.2, 0.5], [0.1, 0.8, 0.5]])
    scores = (draw.random((count, 3)) < chance[kind]).astype(float)
    lengths = np.exp(draw.normal(size=(count, 3)) * 0.3 + np.array([[4.0, 5.0, 3.0], [6.0, 4.0, 3.0]])[kind])
    return Made(features.astype(np.float32), scores, lengths, kind)


@pytest.fixture(scope="session")
def make() -> Callable[[int, int], Made]:
    return made


@pytest.fixture(scope="session")
def prompts() -> Made:
    return made(160, 0)


@pytest.fixture(scope="session")
def fitted(prompts: Made) -> Fitted:
    return fit(prompts.features, prompts.scores, prompts.lengths, ("a", "b", "c"), "made up")


@pytest.fixture(scope="session")
def embedder() -> Embedder:
    if importlib.util.find_spec("wordllama") is None:
        pytest.skip("wordllama is not installed")
    return Embedder()

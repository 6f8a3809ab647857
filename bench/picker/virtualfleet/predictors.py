"""What a router knows of a prompt beforehand: scores and lengths predicted from its nearest neighbours.

Out of fold: a prompt's own fold never tells anything about it. Both sides of every comparison get the same predictions.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

FOLDS = 5
NEIGHBOURS = 50
WIDTH = 0.1
SHRINKAGE = 5.0
"""Neighbours' worth of the mean over all prompts that is mixed in."""


def embed(prompts: list[str]) -> np.ndarray:
    """(n, 256) WordLlama vectors of length 1."""
    model = _wordllama()
    return np.asarray(model.embed(prompts, norm=True), dtype=np.float64)


def count_tokens(prompts: list[str]) -> np.ndarray:
    """(n,) tokens by WordLlama's (Llama 2's) tokenizer."""
    encode = _wordllama().tokenizer.encode
    return np.array([len(encode(prompt).ids) for prompt in prompts])


def _wordllama():
    import wordllama  # noqa: PLC0415 - a heavy import, for those who load prompts

    # Weights and tokenizer are in the wheel; without its folder named, the tokenizer would be fetched from the network.
    return wordllama.WordLlama.load(cache_dir=Path(wordllama.__file__).parent, disable_download=True)


def folds(count: int, seed: int = 0) -> np.ndarray:
    """(count,) fold of each prompt."""
    return np.random.default_rng(seed).permutation(np.arange(count) % FOLDS)


def neighbours(vectors: np.ndarray, fold: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Predictions out of fold, shrunk to the mean.

    Args:
        vectors: (n, d) of length 1.
        fold: (n,)
        columns: (n, k) what is to be predicted.

    Returns:
        (n, k)
    """
    found = np.empty(columns.shape)
    for one in range(FOLDS):
        inside, outside = fold != one, fold == one
        found[outside] = _weighted(vectors[outside] @ vectors[inside].T, columns[inside])
    return found


def _weighted(likeness: np.ndarray, columns: np.ndarray) -> np.ndarray:
    nearest = np.argpartition(-likeness, NEIGHBOURS, axis=1)[:, :NEIGHBOURS]
    near = np.take_along_axis(likeness, nearest, axis=1)
    weights = np.exp((near - near.max(1, keepdims=True)) / WIDTH)
    weights /= weights.sum(1, keepdims=True)
    effective = 1 / (weights**2).sum(1, keepdims=True)
    local = np.einsum("ij,ijk->ik", weights, columns[nearest])
    return (effective * local + SHRINKAGE * columns.mean(0)) / (effective + SHRINKAGE)


def clusters(vectors: np.ndarray, count: int, chance: np.random.Generator, rounds: int = 30) -> np.ndarray:
    """(count, d) centres of k-means by Lloyd's iteration."""
    centres = vectors[chance.choice(len(vectors), count, replace=False)]
    for _ in range(rounds):
        owner = nearest_centre(vectors, centres)
        for one in np.unique(owner):
            centres[one] = vectors[owner == one].mean(0)
    return centres


def nearest_centre(vectors: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """(n,) index of the nearest centre."""
    return np.argmin((centres**2).sum(1) - 2 * vectors @ centres.T, axis=1)

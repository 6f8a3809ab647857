"""Features of prompts: WordLlama's word vectors, and how the text looks.

A prompt's embedding is the mean of its tokens' vectors, over the words among its first ``WORD_CHARACTERS`` characters; a second
one covers its first words alone, where the task is usually named. Words are tokenised one by one and remembered, since telling
tokens apart is what costs most. The vectors and the tokenizer are read from the files of the package ``wordllama`` without
importing it: its import sets up logging for the whole process, and its loader may reach for the network. Nothing here does.

What the text looks like (length, case, digits, punctuation, how it begins and ends) tells tasks apart that are about the same.
"""

from __future__ import annotations

import importlib.util
import re
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from servingplan.picker.asking import Prediction
from servingplan.routing.predictor_file import unpack
from servingplan.routing.quality import VECTOR, VECTORS, Array, Predictor

LAYOUT = "wordllama l2_supercat 256, 2000 characters, 4 first words, surface 1"
"""Names everything below that changes the features; a predictor trained on others is refused."""

WORD_CHARACTERS = 2000
"""How much of a prompt the embeddings cover."""

TEXT_CHARACTERS = 4096
"""How much of a prompt is looked at: as much as the picker keeps of a body."""

_FIRST_WORDS = 4
_MOST_KNOWN_WORDS = 50_000
_LONGEST_WORD = 24
_PIECE = re.compile(rf"\S{{1,{_LONGEST_WORD}}}")
_SYMBOLS = np.frombuffer(b"?.,:;!'\"()[]{}$\\=+-*/^_<>#@&%`|~", dtype=np.uint8)
_OTHER, _SPACE, _UPPER, _LOWER, _DIGIT, _BEYOND_ASCII = range(6)
_KINDS = 6
_WEIGHTS, _TOKENIZER = "weights/l2_supercat_256.safetensors", "tokenizers/l2_supercat_tokenizer_config.json"


class EmbeddingUnavailableError(Exception):
    """The packages or files that embeddings need are missing; its text is one sentence."""


class Embedder:
    """Computes features of prompts. Not safe for several threads at once.

    Raises:
        EmbeddingUnavailableError: The package ``wordllama`` or what it needs is missing or damaged.
    """

    def __init__(self) -> None:
        self._vectors, encode = _read()
        self._tokens = _Tokens(encode)

    def features(self, texts: Sequence[str]) -> Array:
        """(prompts, features): what ``LAYOUT`` names."""
        result = np.empty((len(texts), VECTORS * VECTOR + SURFACE), dtype=np.float32)
        for row, text in zip(result, texts, strict=True):
            words = split(text)
            row[:VECTOR] = self._mean(words)
            row[VECTOR : VECTORS * VECTOR] = self._mean(words[:_FIRST_WORDS])
            row[VECTORS * VECTOR :] = surface(text)
        return result

    def _mean(self, words: Sequence[str]) -> Array:
        tokens = Counter(chain.from_iterable(map(self._tokens.__getitem__, words)))
        if not tokens:
            return np.zeros(VECTOR, dtype=np.float32)
        counts = np.fromiter(tokens.values(), dtype=np.float32, count=len(tokens))
        places = np.fromiter(tokens, dtype=np.intp, count=len(tokens))
        mean: Array = (counts @ self._vectors.take(places, axis=0, mode="clip")) / counts.sum()
        return mean


class _Tokens(dict[str, list[int]]):
    """Tokens of words, told apart when first asked for. It is emptied when it is full, so that clients cannot make it grow."""

    def __init__(self, encode: Callable[[str], list[int]]) -> None:
        super().__init__()
        self._encode = encode

    def __missing__(self, word: str) -> list[int]:
        if len(self) >= _MOST_KNOWN_WORDS:
            self.clear()
        tokens = self[word] = self._encode(word)
        return tokens


class PromptPredictor:
    """A trained predictor, applied to prompts.

    Args:
        predictor: The estimator.
        embedder: Computes its features.

    Raises:
        ValueError: The predictor was trained on other features than these.
    """

    def __init__(self, predictor: Predictor, embedder: Embedder) -> None:
        if predictor.layout != LAYOUT:
            message = f"the predictor was trained on other features ({predictor.layout}); train it again with this version"
            raise ValueError(message)
        self.models = predictor.models
        self._predictor, self._embedder = predictor, embedder

    def __call__(self, texts: Sequence[str]) -> list[Prediction]:
        """What every model is expected to score on each of the prompts, and to write."""
        predicted = self._predictor.predict(self._embedder.features(texts))
        lengths = predicted.output_tokens
        return [
            Prediction(
                quality=dict(zip(self.models, quality, strict=True)),
                output_tokens={} if lengths is None else dict(zip(self.models, lengths[place].tolist(), strict=True)),
            )
            for place, quality in enumerate(predicted.quality.tolist())
        ]


def load(path: Path) -> PromptPredictor:
    """A predictor from the file that ``servingplan train`` wrote.

    Raises:
        ValueError: It is no such file, is damaged, or was trained on other features.
        OSError: It cannot be read.
        EmbeddingUnavailableError: The package ``wordllama`` or what it needs is missing or damaged.
    """
    return PromptPredictor(unpack(path.read_bytes()), Embedder())


def split(text: str) -> list[str]:
    """The words at the beginning of a text. Longer ones are cut, so that none is costly or remembered at length."""
    beginning = text[:WORD_CHARACTERS]
    words = beginning.split()
    return _PIECE.findall(beginning) if words and max(map(len, words)) > _LONGEST_WORD else words


def surface(text: str) -> Array:
    """(``SURFACE``,) how a text looks: its length and its end, and everything else at its beginning."""
    looked_at = text[:TEXT_CHARACTERS].strip()
    raw = np.frombuffer(text[:WORD_CHARACTERS].encode(errors="replace"), dtype=np.uint8)
    kinds = _KIND[raw]
    follows = np.bincount(kinds[:-1] * np.uint8(_KINDS) + kinds[1:], minlength=_KINDS * _KINDS).reshape(_KINDS, _KINDS)
    counts, shares = np.bincount(raw, minlength=256), np.bincount(kinds, minlength=_KINDS) / max(1, raw.size)
    words = follows[_SPACE].sum() - follows[_SPACE, _SPACE] + 1
    numbers = follows[:, _DIGIT].sum() - follows[_DIGIT, _DIGIT]
    first, last = looked_at[:1], looked_at[-1:]
    return np.concatenate((
        np.log1p([len(looked_at), words, numbers, counts[10], counts[63], counts[46]]),
        [(1.0 - shares[_SPACE]) * raw.size / words, follows[_SPACE, _UPPER] / words],
        shares,
        [first.isupper(), first.islower(), last == "?", last == ".", last == ":", last.isalnum()],
        np.sqrt(counts[_SYMBOLS] / max(1, raw.size)),
    )).astype(np.float32)  # fmt: skip


def _read() -> tuple[Array, Callable[[str], list[int]]]:
    found = importlib.util.find_spec("wordllama")
    if found is None or not found.submodule_search_locations:
        raise EmbeddingUnavailableError("predicting from prompts needs the package wordllama: pip install wordllama")
    folder = Path(found.submodule_search_locations[0])
    try:
        from safetensors.numpy import load_file  # noqa: PLC0415 - optional
        from tokenizers import Tokenizer  # noqa: PLC0415 - optional

        vectors = load_file(folder / _WEIGHTS)["embedding.weight"].astype(np.float32)
        tokenizer = Tokenizer.from_file(str(folder / _TOKENIZER))
    except Exception as error:  # tokenizers raises plain Exception
        message = f"the files of the package wordllama cannot be read ({type(error).__name__}); install it again"
        raise EmbeddingUnavailableError(message) from error
    tokenizer.no_padding()
    tokenizer.no_truncation()

    def encode(word: str) -> list[int]:
        # JSON may hold halves of surrogate pairs, which the tokenizer refuses.
        return list(tokenizer.encode(word.encode(errors="replace").decode(), add_special_tokens=False).ids)

    return vectors, encode


def _kinds() -> np.ndarray:
    """(256,) what kind of character each byte is of."""
    kinds = np.full(256, _OTHER, dtype=np.uint8)
    kinds[np.frombuffer(b"\t\n\v\f\r ", dtype=np.uint8)] = _SPACE
    kinds[65:91], kinds[97:123], kinds[48:58], kinds[128:] = _UPPER, _LOWER, _DIGIT, _BEYOND_ASCII
    return kinds


_KIND = _kinds()
SURFACE = surface("").size
"""Features outside the embeddings."""

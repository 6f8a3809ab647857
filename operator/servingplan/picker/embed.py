"""Features of prompts: WordLlama's word vectors, and how the text looks.

A prompt's embedding is the mean of its tokens' vectors, over the words among its first ``WORD_CHARACTERS`` characters; a second
one covers its first words alone, where the task is usually named. Words are tokenised one by one and remembered, since telling
tokens apart is what costs most. The vectors and the tokenizer are read from the files of the package ``wordllama`` without
importing it: its import sets up logging for the whole process, and its loader may reach for the network. Nothing here does.

What the text looks like (length, case, digits, punctuation, how it begins and ends) tells tasks apart that are about the same.
"""

from __future__ import annotations

import importlib.util
import math
import string
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from servingplan.picker.asking import Prediction
from servingplan.routing.predictor_file import unpack
from servingplan.routing.quality import VECTOR, VECTORS, Array, Predictor

LAYOUT = "wordllama l2_supercat 256, 1000 characters, 4 first words, surface 1"
"""Names everything below that changes the features; a predictor trained on others is refused."""

WORD_CHARACTERS = 1000
"""How much of a prompt the embeddings cover."""

TEXT_CHARACTERS = 4096
"""How much of a prompt is looked at: as much as the picker keeps of a body."""

_FIRST_WORDS = 4
_MOST_KNOWN_WORDS = 50_000
_LONGEST_WORD = 24
_SYMBOLS = b"?.,:;!'\"()[]{}$\\=+-*/^_<>#@&%`|~"
_PLACE = np.dtype(np.intp)
_SPACES, _DIGITS, _UPPER = b"\t\n\v\f\r ", string.digits.encode(), string.ascii_uppercase.encode()
_SPACE_OR_NOT, _DIGIT_OR_NOT, _SPACE_UPPER_OR_NOT = (
    bytes(marks.get(each, ord("x")) for each in range(256))
    for marks in (
        dict.fromkeys(_SPACES, ord(" ")),
        dict.fromkeys(_DIGITS, ord("0")),
        dict.fromkeys(_SPACES, ord(" ")) | dict.fromkeys(_UPPER, ord("A")),
    )
)
"""Tables that mark some kinds of characters, so that the places where one begins behind another can be counted."""
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
            words = text[:WORD_CHARACTERS].split()
            row[:VECTOR] = self._mean(words)
            row[VECTOR : VECTORS * VECTOR] = self._mean(_pieces(words[:_FIRST_WORDS])[:_FIRST_WORDS])
            row[VECTORS * VECTOR :] = surface(text)
        return result

    def _mean(self, words: Sequence[str]) -> Array:
        places = np.frombuffer(b"".join(map(self._tokens.__getitem__, words)), dtype=_PLACE)
        if not places.size:
            return np.zeros(VECTOR, dtype=np.float32)
        # A product with ones takes a fifth of the time of a mean over the rows.
        share = np.full(places.size, 1.0 / places.size, dtype=np.float32)
        mean: Array = share @ self._vectors.take(places, axis=0, mode="clip")
        return mean


class _Tokens(dict[str, bytes]):
    """Tokens of words, told apart when first asked for, as the bytes of an array: those of a text are joined in one go.

    It is emptied when it is full, so that clients cannot make it grow; of longer words only the pieces are remembered.
    """

    def __init__(self, encode: Callable[[str], list[int]]) -> None:
        super().__init__()
        self._encode = encode

    def __missing__(self, word: str) -> bytes:
        if len(word) > _LONGEST_WORD:
            return b"".join(map(self.__getitem__, _pieces([word])))
        if len(self) >= _MOST_KNOWN_WORDS:
            self.clear()
        tokens = self[word] = np.array(self._encode(word), dtype=_PLACE).tobytes()
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
        self.predictor, self.embedder = predictor, embedder

    def __call__(self, texts: Sequence[str]) -> list[Prediction]:
        """What every model is expected to score on each of the prompts, and to write."""
        predicted = self.predictor.predict(self.embedder.features(texts))
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


def surface(text: str) -> Array:
    """(``SURFACE``,) how a text looks: its length and its end, and everything else at its beginning."""
    looked_at = text[:TEXT_CHARACTERS].strip()
    raw = text[:WORD_CHARACTERS].encode(errors="replace")
    counts, size = np.bincount(np.frombuffer(raw, dtype=np.uint8), minlength=256).tolist(), max(1, len(raw))
    words, numbers = raw.translate(_SPACE_OR_NOT).count(b" x") + 1, raw.translate(_DIGIT_OR_NOT).count(b"x0")
    capitals = raw.translate(_SPACE_UPPER_OR_NOT).count(b" A")
    spaces, digits = counts[32] + sum(counts[9:14]), sum(counts[48:58])
    upper, lower, beyond = sum(counts[65:91]), sum(counts[97:123]), sum(counts[128:])
    first, last = looked_at[:1], looked_at[-1:]
    seen = [
        *map(math.log1p, (len(looked_at), words, numbers, counts[10], counts[63], counts[46])),
        (len(raw) - spaces) / words,
        capitals / words,
        *[
            count / size
            for count in (len(raw) - spaces - upper - lower - digits - beyond, spaces, upper, lower, digits, beyond)
        ],
        *(first.isupper(), first.islower(), last == "?", last == ".", last == ":", last.isalnum()),
        *[math.sqrt(counts[symbol] / size) for symbol in _SYMBOLS],
    ]
    return np.array(seen, dtype=np.float32)


def _pieces(words: Sequence[str]) -> list[str]:
    """Words, the longer ones cut, so that none is costly or remembered at length."""
    return [word[at : at + _LONGEST_WORD] for word in words for at in range(0, len(word), _LONGEST_WORD)]


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


SURFACE = surface("").size
"""Features outside the embeddings."""

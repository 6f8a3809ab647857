"""Features of prompts."""

import subprocess
import sys

import numpy as np
import pytest

from servingplan.picker import embed
from servingplan.picker.embed import LAYOUT, SURFACE, PromptPredictor, surface
from servingplan.routing.quality import VECTOR, VECTORS
from servingplan.training.fit import fit

OFFLINE = """
import sys

def refuse(event, arguments):
    if event.startswith("socket."):
        raise RuntimeError(event)

sys.addaudithook(refuse)
import logging
from servingplan.picker.embed import Embedder
features = Embedder().features(["hello world"])
assert abs(features).sum() > 1.0
assert "wordllama" not in sys.modules and "requests" not in sys.modules
assert not logging.getLogger().handlers
print("read offline")
"""


@pytest.mark.usefixtures("embedder")
def test_vectors_are_read_without_the_network_and_without_importing_their_package() -> None:
    done = subprocess.run([sys.executable, "-c", OFFLINE], capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout == "read offline\n", done.stderr


def test_an_embedding_is_the_mean_of_the_tokens_vectors(embedder) -> None:
    text = "Which towns lie on the river? The river, the towns."
    vectors, encode = embed._read()
    tokens = [token for word in text.split() for token in encode(word)]
    first = [token for word in text.split()[:4] for token in encode(word)]
    features = embedder.features([text])[0]
    np.testing.assert_allclose(features[:VECTOR], vectors[tokens].mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(features[VECTOR : 2 * VECTOR], vectors[first].mean(axis=0), atol=1e-5)
    np.testing.assert_array_equal(features[2 * VECTOR :], surface(text))


def test_words_apart_give_the_tokens_of_the_text(embedder) -> None:
    encode = embed._read()[1]
    text = "The quick brown fox jumps over 13 lazy dogs, doesn't it?"
    assert encode(text) == np.frombuffer(b"".join(embedder._tokens[word] for word in text.split()), np.intp).tolist()


def test_prompts_are_told_apart_by_what_they_are_about(embedder) -> None:
    cooking, baking, code = embedder.features(
        ["How long should pasta boil in a pot?", "how do i bake bread in a kitchen oven", "Write Python code to sort an array."]
    )[:, :VECTOR]

    def cosine(left, right):
        return left @ right / np.linalg.norm(left) / np.linalg.norm(right)

    assert cosine(cooking, baking) > cosine(cooking, code) + 0.1


def test_only_the_beginning_counts(embedder) -> None:
    start = "word " * 1000
    beginning, longer = embedder.features([start[:4096], start[:4096].ljust(4096, "d") + "!" * 5000])
    np.testing.assert_allclose(longer, beginning, atol=1e-6)


@pytest.mark.parametrize("text", ["", " \n", "\ud800", "日本語のプロンプト", "🙂" * 3000, "x" * 100_000, "\x00"])
def test_odd_prompts_have_finite_features(embedder, text) -> None:
    assert np.isfinite(embedder.features([text])).all()


def test_long_words_are_cut() -> None:
    tokens = embed._Tokens(lambda word: [len(word)])
    assert np.frombuffer(tokens["b" * 50], np.intp).tolist() == [24, 24, 2]
    assert sorted(map(len, tokens)) == [2, 24]


def test_the_first_words_are_counted_after_they_are_cut(embedder) -> None:
    long = "b" * 24
    cut, apart = embedder.features([f"{long}{long}{long}{long}{long} end", f"{long} {long} {long} {long} end"])
    np.testing.assert_allclose(cut[VECTOR : 2 * VECTOR], apart[VECTOR : 2 * VECTOR], atol=1e-6)


def test_what_is_remembered_of_words_is_bounded(monkeypatch) -> None:
    monkeypatch.setattr(embed, "_MOST_KNOWN_WORDS", 10)
    tokens = embed._Tokens(lambda word: [len(word)])
    for number in range(1000):
        assert tokens[str(number)] == np.array([len(str(number))], np.intp).tobytes()
        assert len(tokens) <= 10


def test_case_digits_and_ends_are_seen() -> None:
    assert surface("").shape == (SURFACE,)
    plain = surface("who wrote it")
    for other in ("Who wrote it", "who wrote it?", "who wrote 12", "who wrote\nit", "who wrote $it$", "who wrote it, who"):
        assert np.abs(surface(other) - plain).max() > 0.1, other


def test_a_predictor_names_its_models(embedder, make) -> None:
    prompts = make(80, 0)
    texts = [f"{'Sum up' if kind else 'Write code for'} number {place}" for place, kind in enumerate(prompts.kind)]
    fitted = fit(embedder.features(texts), prompts.scores, prompts.lengths, ("a", "b", "c"), LAYOUT)
    found = PromptPredictor(fitted.predictor, embedder)(["Sum up number 1000", "Write code for number 1000"])
    assert [set(one.quality) for one in found] == [{"a", "b", "c"}] * 2
    assert [set(one.output_tokens) for one in found] == [{"a", "b", "c"}] * 2
    assert found[0].quality["b"] > 0.6 > found[1].quality["b"]
    assert found[0].output_tokens["a"] > 2 * found[1].output_tokens["a"]


def test_a_predictor_of_other_features_is_refused(fitted, embedder) -> None:
    with pytest.raises(ValueError, match="trained on other features"):
        PromptPredictor(fitted.predictor, embedder)


def test_the_features_are_as_many_as_announced(embedder) -> None:
    assert embedder.features(["a", "b"]).shape == (2, VECTORS * VECTOR + SURFACE)

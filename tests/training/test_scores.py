"""What is read from a file of scores, and what is refused."""

import json

import numpy as np
import pytest

from servingplan.training.scores import LEAST_PROMPTS, ScoresError, read_scores


def line(number: int = 0, **fields: object) -> str:
    return json.dumps({"prompt": f"prompt {number}", "scores": {"a": 0.5}} | fields)


ENOUGH = [line(number) for number in range(LEAST_PROMPTS)]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "line 51: it is no JSON object"),
        ("[" * 100_000, "line 51: it is no JSON object"),
        ("[1]", "line 51: it is no JSON object"),
        (line(prompt=" "), "line 51: prompt has to be a text that is not empty"),
        (line(prompt=3), "line 51: prompt has to be a text that is not empty"),
        (line(request_class=1), "line 51: request_class has to be a text"),
        (line(scores={}), "line 51: scores has to name at least one model"),
        (line(scores=[1]), "line 51: scores has to be an object of numbers by model"),
        (line(scores=None), "line 51: scores has to be an object of numbers by model"),
        (line(scores={"a": 1.01}), "line 51: scores of 'a' has to be a number from 0 to 1, not 1.01"),
        (line(scores={"a": True}), "line 51: scores of 'a' has to be a number from 0 to 1, not true"),
        (line(scores={"a": float("nan")}), "line 51: scores of 'a' has to be a number from 0 to 1, not NaN"),
        (line(scores={"a": None}), "line 51: scores of 'a' has to be a number from 0 to 1, not null"),
        (line(output_tokens={"a": -1}), "line 51: output_tokens of 'a' has to be a number of 0 or more, not -1"),
        (line(output_tokens={"a": 1e999}), "line 51: output_tokens of 'a' has to be a number of 0 or more, not Infinity"),
        (line(output_tokens=4), "line 51: output_tokens has to be an object of numbers by model"),
    ],
)
def test_a_bad_line_is_refused_in_one_sentence(text: str, sentence: str) -> None:
    with pytest.raises(ScoresError) as raised:
        read_scores([*ENOUGH, text], "scores.jsonl")
    assert str(raised.value) == f"scores.jsonl {sentence}"


def test_a_model_with_too_few_scores_is_refused() -> None:
    few = [line(100 + number, scores={"rare": 1.0}) for number in range(19)]
    with pytest.raises(ScoresError, match="s: 'rare' has scores for 19 prompts, give at least 20 or leave the model out"):
        read_scores([*ENOUGH, *few], "s")


def test_many_bad_lines_are_counted() -> None:
    with pytest.raises(ScoresError) as raised:
        read_scores(["{"] * 8, "s")
    assert str(raised.value).splitlines()[-2:] == ["s line 5: it is no JSON object", "and 3 more lines like these"]


def test_too_few_prompts_are_refused() -> None:
    with pytest.raises(ScoresError, match="s: 49 different prompts are too few"):
        read_scores([*ENOUGH[:-1], ENOUGH[0]], "s")


def test_too_many_models_are_refused() -> None:
    many = line(99, scores={f"m{number}": 0.0 for number in range(65)})
    with pytest.raises(ScoresError, match="66 models"):
        read_scores([*ENOUGH, many], "s")


def test_a_prompt_given_twice_counts_once_with_its_mean() -> None:
    more = [line(100 + number, scores={"b": 1.0}) for number in range(20)]
    again = line(3, scores={"a": 1.0, "b": 0.0}, request_class="chat", output_tokens={"b": 7, "unscored": 9})
    scores = read_scores([*ENOUGH, "", again, *more], "s")
    assert len(scores.prompts) == LEAST_PROMPTS + 20
    assert scores.models == ("a", "b")
    np.testing.assert_equal(scores.quality[3], [0.75, 0.0])
    np.testing.assert_equal(scores.quality[4], [0.5, np.nan])
    np.testing.assert_equal(scores.output_tokens[3], [np.nan, 7.0])
    assert scores.classes[3:5] == ("chat", "")
    assert not scores.has_lengths

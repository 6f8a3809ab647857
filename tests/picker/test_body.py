"""What is read from bodies of every API, and from what is no body of any."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest

from servingplan.picker import body as bodies
from servingplan.picker.body import BLOCK_CHARACTERS, IMAGE_TOKENS, MOST_BLOCKS, Prompt, sized_prompt

MEAN_TOKENS = 100.0


def read_prompt(body: bytes) -> Prompt:
    return bodies.read_prompt(body, MEAN_TOKENS)


@dataclass(frozen=True)
class Case:
    name: str
    given: Any
    text: str
    tokens: float
    limit: float | None = None


def chat(*contents: Any, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content} for content in contents], **fields}


CASES = (
    Case("chat", chat("abcd" * 10), "abcd" * 10, 10.0),
    Case("turns", chat("abc", "wxyz", max_tokens=7), "abc\nwxyz", 2.0, 7.0),
    Case("newer limit first", chat("abcd", max_tokens=7, max_completion_tokens=9), "abcd", 1.0, 9.0),
    Case("nonsense limits", chat("abcd", max_tokens=True, max_completion_tokens="9"), "abcd", 1.0),
    Case("parts", chat([{"type": "text", "text": "abcd"}, {"type": "text", "text": "efg"}]), "abcd\nefg", 2.0),
    Case("image", chat([{"type": "image_url", "image_url": {"url": "x" * 9999}}]), "", IMAGE_TOKENS),
    Case("chinese", chat("你好世界"), "你好世界", 3.0),
    Case("completion", {"prompt": "abcdefgh"}, "abcdefgh", 2.0),
    Case("token ids", {"prompt": list(range(200))}, "", 200.0),
    Case("several prompts", {"prompt": [[1, 2], [3]]}, "", 3.0),
    Case("responses", {"input": "abcd", "instructions": "efg", "max_output_tokens": 5}, "abcd", 2.0, 5.0),
    Case("anthropic", chat("abcd", system="xyz"), "abcd", 2.0),
    Case("embeddings", {"input": ["abcd", "efg"]}, "abcd\nefg", 2.0),
    Case("tools", chat("abcd", tools=[{"x": 1}]), "abcd", (len('[{"x": 1}]') + 5) / 4),
    Case("empty", {}, "", 1.0),
    Case("wrong types", {"messages": 7, "prompt": {"text": 8}}, "", 1.0),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_prompts_of_every_api(case):
    prompt = read_prompt(json.dumps(case.given).encode())
    assert (prompt.text, prompt.tokens, prompt.max_output_tokens) == (case.text, case.tokens, case.limit)


def test_only_what_users_said_tells_what_a_prompt_is_about():
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "why"},
        {"role": "assistant", "content": "so"},
    ]
    assert read_prompt(json.dumps({"messages": messages}).encode()).text == "why"


@pytest.mark.parametrize(
    ("model", "want"), [("m", "m"), ("", ""), (None, ""), (42, None), ([], None), ({"a": 1}, None)], ids=repr
)
def test_the_model_is_a_name_or_nothing(model, want):
    assert read_prompt(json.dumps({"model": model, "prompt": "x"}).encode()).model == want


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"x"',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"prompt": "\\ud800"}',
        b'{"prompt":NaN}',
    ],
    ids=lambda body: repr(body[:8]),
)
def test_whatever_a_body_is_it_has_a_length_and_no_error(body):
    prompt = read_prompt(body)
    assert prompt.model == ""
    assert prompt.tokens <= min(max(1.0, len(body) / 4), 8 * MEAN_TOKENS)


def test_deep_nesting_is_no_error():
    for nested in ("[" * 900 + "]" * 900, '{"content":' * 400 + "1" + "}" * 400):
        assert read_prompt(f'{{"messages": {nested}, "model": "m"}}'.encode()).model == "m"


def test_prompts_share_the_hashes_of_what_they_begin_with():
    block, other = "a" * BLOCK_CHARACTERS, "b" * BLOCK_CHARACTERS

    def prefix(text: str) -> tuple[int, ...]:
        return read_prompt(json.dumps({"prompt": text}).encode()).prefix

    assert prefix(block + other + "tail") == prefix(block + other)
    assert prefix(block + other)[:1] == prefix(block)
    assert prefix(block + other)[1] != prefix(other + other)[1], "a hash covers all that comes before it"
    assert len(set(prefix(block + block))) == 2
    assert prefix("short") == ()
    assert len(prefix(block * (MOST_BLOCKS + 3))) == MOST_BLOCKS


def test_prompts_of_token_ids_share_their_blocks_too():
    ids = list(range(300))
    first = read_prompt(json.dumps({"prompt": ids}).encode()).prefix
    second = read_prompt(json.dumps({"prompt": [*ids[:64], 7, *ids[65:]]}).encode()).prefix
    assert len(first) == 4
    assert [one == other for one, other in zip(first, second, strict=True)] == [True, False, False, False]


def test_a_body_that_is_not_shown_counts_by_its_length_or_its_class():
    assert sized_prompt(400, 99.0).tokens == 100.0
    assert sized_prompt(None, 99.0, "m") == Prompt(model="m", tokens=99.0)
    assert sized_prompt(10_000_000, 99.0).tokens == 8 * 99.0, "most of it is no text"


def test_a_prompt_does_not_show_in_what_python_prints_of_it():
    assert "secret" not in repr(read_prompt(json.dumps(chat("secret")).encode()))

"""``servingplan train`` from its flags to its files."""

import json
from pathlib import Path

import numpy as np
import pytest

from servingplan.cli import main
from servingplan.picker.embed import load

pytestmark = pytest.mark.usefixtures("embedder")

SECRET = "xylophone"


@pytest.fixture(scope="module")
def scores(tmp_path_factory) -> Path:
    draw = np.random.default_rng(0)
    lines = []
    for number in range(120):
        code = bool(draw.integers(2))
        words = " ".join(draw.choice(["river", "list", "town", "number", "king", "string", SECRET], 5))
        first = draw.random() < (0.9 if code else 0.1)
        lines.append(
            {
                "prompt": f"Write a function for {words} {number}" if code else f"who was the {words} of {number}",
                "scores": {"coder": float(first), "talker": float(not first)},
                "output_tokens": {"coder": 200 if code else 20, "talker": 50},
                "request_class": "code" if number % 3 else "chat",
            }
        )
    path = tmp_path_factory.mktemp("train") / "scores.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


@pytest.fixture(scope="module")
def trained(scores, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    assert main(["train", "-f", str(scores), "-o", str(folder / "p.npz"), "--plot", str(folder / "p.png"), "--folds", "2"]) == 0
    return folder


def test_the_file_predicts(trained) -> None:
    code, chat = load(trained / "p.npz")(["Write a function for kings", "who was the king of town"])
    assert code.quality["coder"] > 0.6 > chat.quality["coder"]
    assert code.output_tokens["coder"] > 3 * chat.output_tokens["coder"]


def test_the_picture_is_a_picture(trained) -> None:
    assert (trained / "p.png").read_bytes().startswith(b"\x89PNG")


def test_the_file_holds_no_prompt(trained) -> None:
    with np.load(trained / "p.npz", allow_pickle=False) as archive:
        assert all(SECRET.encode() not in archive[name].tobytes() for name in archive.files)


def test_it_says_how_good_it_is(scores, tmp_path, capsys) -> None:
    assert main(["train", "-f", str(scores), "-o", str(tmp_path / "p.npz"), "--folds", "2"]) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[0].split() == ["MODEL", "PROMPTS", "SCORE", "R2", "AUC", "ECE", "LENGTH", "GAIN"]
    assert "over the best model of its class (95 % interval +" in said
    assert "Prompts learned from: 120. Size: " in said
    assert SECRET not in said


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b'{"prompt": "a"}\n', "scores.jsonl line 1: scores has to be an object of numbers by model\n"),
        (b"\xff\xfe", "scores.jsonl: it is no UTF-8 text\n"),
        (b"", "scores.jsonl: 0 different prompts are too few to learn from, give at least 50\n"),
        (None, "scores.jsonl: No such file or directory\n"),
    ],
)
def test_bad_input_ends_in_one_sentence(tmp_path, monkeypatch, capsys, content, sentence) -> None:
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path("scores.jsonl").write_bytes(content)
    assert main(["train", "-f", "scores.jsonl", "-o", "p.npz"]) == 2
    assert capsys.readouterr().err == sentence
    assert not Path("p.npz").exists()


def test_a_picture_that_cannot_be_drawn_is_refused_before_the_work(scores, tmp_path, capsys) -> None:
    assert main(["train", "-f", str(scores), "-o", str(tmp_path / "p.npz"), "--plot", str(tmp_path / "p.txt")]) == 2
    assert "name a picture" in capsys.readouterr().err


def test_a_file_that_cannot_be_written_ends_in_one_sentence(scores, tmp_path, capsys) -> None:
    assert main(["train", "-f", str(scores), "-o", str(tmp_path / "no" / "p.npz"), "--folds", "2"]) == 2
    assert capsys.readouterr().err == f"{tmp_path / 'no' / 'p.npz'}: No such file or directory\n"

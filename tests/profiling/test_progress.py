import io

import pytest

from servingplan.profiling.progress import Bar, Lines, progress


def test_lines_carry_the_prefix_that_keeps_a_log_yaml() -> None:
    out = io.StringIO()
    with Lines("# ", out) as shown:
        shown.level("a level", 0.5)
        shown.advance(0.6)
        shown.say("a sentence")
    assert out.getvalue() == "# a sentence\n"


def test_without_a_terminal_there_is_no_bar() -> None:
    assert isinstance(progress(), Lines)


def test_the_bar_says_lines_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    with Bar() as shown:
        shown.level("2 clients", 0.25)
        shown.advance(0.5)
        shown.say("[not markup] 100 %")
    assert "[not markup] 100 %" in capsys.readouterr().err

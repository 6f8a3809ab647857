"""``servingplan train``: its flags, and how it ends."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

_BAD_INPUT = 2
_DESCRIPTION = (
    "Learns from scored prompts what each model is likely to score, and how many tokens it is likely to write, and writes the"
    " predictor that a plan's router takes. The input has one JSON object a line:"
    ' {"prompt": text, "scores": {model: 0..1}, "output_tokens": {model: count}, "request_class": name};'
    " the last two may be left out."
)


def add_train(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> Callable[[argparse.Namespace], int]:
    """Adds the subcommand; returns what runs it."""
    parser = commands.add_parser(
        "train", help="learn from scored prompts which model answers what well", description=_DESCRIPTION
    )
    add = parser.add_argument
    add("-f", "--file", required=True, type=Path, metavar="FILE", help="scored prompts, one JSON object a line")
    add("-o", "--output", required=True, type=Path, metavar="FILE", help="predictor to write, such as predictor.npz")
    add("--plot", type=Path, metavar="FILE", help="picture of predicted against real scores to write, such as reliability.png")
    add("--folds", type=_folds, default=5, metavar="N", help="parts that prompts are judged in (default 5)")
    add("--seed", type=int, default=0, metavar="N", help="draws the parts (default 0)")
    return run


def run(arguments: argparse.Namespace) -> int:
    """Trains; what cannot be used ends in one sentence for each mistake."""
    # Loading numpy, scipy and the word vectors takes a second, which other subcommands do without.
    from servingplan.picker.embed import EmbeddingUnavailableError  # noqa: PLC0415
    from servingplan.training.plot import PlotError  # noqa: PLC0415
    from servingplan.training.scores import ScoresError  # noqa: PLC0415

    try:
        return _train(arguments)
    except (ScoresError, PlotError, EmbeddingUnavailableError) as error:
        sys.stderr.write(f"{error}\n")
    except UnicodeDecodeError:
        sys.stderr.write(f"{arguments.file}: it is no UTF-8 text\n")
    except OSError as error:
        sys.stderr.write(f"{error.filename}: {error.strerror}\n")
    return _BAD_INPUT


def _train(arguments: argparse.Namespace) -> int:
    from servingplan.picker.embed import LAYOUT, Embedder  # noqa: PLC0415
    from servingplan.routing.predictor_file import MOST_BYTES, pack  # noqa: PLC0415
    from servingplan.training import fit, judge, plot  # noqa: PLC0415
    from servingplan.training.report import report  # noqa: PLC0415
    from servingplan.training.scores import read_scores  # noqa: PLC0415

    if arguments.plot is not None:
        plot.check_target(arguments.plot)
    with arguments.file.open(encoding="utf-8") as lines:
        scores = read_scores(lines, str(arguments.file))
    features = Embedder().features(scores.prompts)
    found = judge.out_of_fold(scores, features, LAYOUT, arguments.folds, arguments.seed)
    judged = judge.judge(scores, found, arguments.seed)
    lengths = scores.output_tokens if scores.has_lengths else None
    fitted = fit.fit(features, scores.quality, lengths, scores.models, LAYOUT, arguments.seed)
    data = pack(fitted.predictor)
    arguments.output.write_bytes(data)
    if arguments.plot is not None:
        plot.draw(judged, arguments.plot)
    sys.stdout.write(report(scores, fitted, judged, len(data)))
    if len(data) > MOST_BYTES:
        sys.stderr.write(f"{arguments.output} does not fit in a ConfigMap: {len(data):,} bytes, and {MOST_BYTES:,} fit\n")
    return 0


def _folds(text: str) -> int:
    if not text.isdecimal() or not 2 <= int(text) <= 20:
        message = f"{text!r} is no whole number from 2 to 20"
        raise argparse.ArgumentTypeError(message)
    return int(text)

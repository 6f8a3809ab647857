"""``python -m servingplan.profiling``: the ``profile`` subcommand alone."""

import argparse
import sys

from servingplan.profiling.cli import add_profile


def main() -> int:
    """Runs ``profile``; returns the exit status."""
    parser = argparse.ArgumentParser(prog="servingplan")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = add_profile(commands)
    return run(parser.parse_args(["profile", *sys.argv[1:]]))


if __name__ == "__main__":
    sys.exit(main())

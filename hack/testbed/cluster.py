"""A Kubernetes cluster as tests and the demo use it, whether it is the bed or another one."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import yaml

from testbed import tools

Object = dict[str, Any]
Result = TypeVar("Result")
_POLL_S = 0.1


def wait_until(condition: Callable[[], Result], timeout_s: float, what: str = "condition") -> Result:
    """Call `condition` until it returns something true, which is returned; AssertionError after `timeout_s`.

    An AssertionError or LookupError inside the condition counts as not yet.
    """
    deadline = time.monotonic() + timeout_s
    last: object = None
    while time.monotonic() < deadline:
        try:
            if value := condition():
                return value
            last = value
        except (AssertionError, LookupError) as error:
            last = error
        time.sleep(_POLL_S)  # between two looks at a cluster that says nothing by itself; the deadline bounds them
    raise AssertionError(f"{what} not met within {timeout_s:g} s; last: {last!r}")


class Helm:
    """Charts of this checkout, installed by the Helm library without a helm program."""

    def __init__(self, kubeconfig: Path) -> None:
        self._kubeconfig = kubeconfig

    def install(self, chart: Path, release: str, namespace: str, values: Object | None = None, **options: Any) -> None:
        """Install a chart folder, making the namespace, and wait until what it made is ready."""
        defaults = {"wait": "watcher", "timeout": 120, "create_namespace": True}
        self._run("install", namespace, str(chart), release, values or {}, **(defaults | options))

    def upgrade(self, chart: Path, release: str, namespace: str, values: Object | None = None, **options: Any) -> None:
        """Upgrade a release to a chart folder and wait until what it made is ready."""
        defaults = {"wait": "watcher", "timeout": 120}
        self._run("upgrade", namespace, str(chart), release, values or {}, **(defaults | options))

    def uninstall(self, release: str, namespace: str) -> None:
        """Remove a release."""
        self._run("uninstall", namespace, release, ignore_not_found=True)

    def _run(self, operation: str, namespace: str, *arguments: Any, **options: Any) -> None:
        task = {
            "kubeconfig": str(self._kubeconfig),
            "namespace": namespace,
            "operation": operation,
            "arguments": arguments,
            "options": options,
        }
        done = subprocess.run(
            [sys.executable, "-m", "testbed.helm"],
            input=json.dumps(task),
            env=os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[1])},
            text=True,
            capture_output=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"helm {operation}: {done.stderr.strip().splitlines()[-1]}")


class Cluster:
    """A cluster behind a kubeconfig.

    Attributes:
        kubeconfig: Path of the administrator's kubeconfig, usable from this process.
        controls_nodes: Whether nodes can be killed and revived.
    """

    controls_nodes = False

    def __init__(self, kubeconfig: Path) -> None:
        self._kubeconfig = kubeconfig

    @property
    def kubeconfig(self) -> Path:
        """Path of the administrator's kubeconfig, usable from this process."""
        return self._kubeconfig

    @cached_property
    def helm(self) -> Helm:
        """Installs charts."""
        return Helm(self.kubeconfig)

    def environment(self) -> dict[str, str]:
        """Environment in which kubectl finds the cluster."""
        path = f"{Path(sys.prefix) / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}"
        return os.environ | {"KUBECONFIG": str(self.kubeconfig), "PATH": path}

    def kubectl(self, *arguments: str, stdin: str | None = None, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run kubectl.

        Raises:
            RuntimeError: It failed and `check` is set; the message is what it said.
        """
        argv = [str(tools.find().kubectl), *arguments]
        done = subprocess.run(argv, input=stdin, env=self.environment(), text=True, capture_output=True, check=False)
        if check and done.returncode:
            raise RuntimeError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
        return done

    def get(self, *arguments: str) -> Any:
        """What `kubectl get ARGUMENTS` finds, decoded."""
        return json.loads(self.kubectl("get", *arguments, "-o", "json").stdout)

    def apply(self, *objects: Object, namespace: str = "default") -> None:
        """`kubectl apply` the objects."""
        self.kubectl("apply", "-n", namespace, "-f", "-", stdin=yaml.safe_dump_all(objects))

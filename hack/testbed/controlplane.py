"""etcd, kube-apiserver, kube-controller-manager and kube-scheduler, tuned to start fast and to notice death fast.

Nothing here survives the bed, so etcd does not sync to disk; every controller acts under its own service account, so
RBAC holds for them as on a real cluster. The audit log records what service accounts ask for, by which a test tells
whether a role grants what is needed and no more, and when rights change.
"""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from cryptography.hazmat.primitives.asymmetric import ec

from testbed import pki
from testbed.api import Api
from testbed.netns import GATEWAY
from testbed.processes import Component
from testbed.tools import Tools

SERVICE_RANGE = "10.96.0.0/16"
KUBERNETES_SERVICE_IP = "10.96.0.1"
API_PORT = 6443
_ETCD_CLIENT = "http://127.0.0.1:2379"
_ETCD_PEER = "http://127.0.0.1:2380"
_START_TIMEOUT_S = 60.0
_API_NAMES = ("localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc")
_AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [
        {"level": "None", "userGroups": ["system:serviceaccounts:kube-system"]},
        {"level": "Metadata", "userGroups": ["system:serviceaccounts"]},
        {
            "level": "Metadata",
            "verbs": ["create", "update", "patch", "delete"],
            "resources": [{"group": "rbac.authorization.k8s.io"}],
        },
        {"level": "None"},
    ],
}


@dataclass(frozen=True, slots=True)
class Timing:
    """How fast the control plane notices things.

    Attributes:
        node_grace_s: Silence after which a node counts as lost; short beds on a busy machine lose nodes by mistake.
        eviction_s: How long pods stay on a lost node before they are evicted (the default toleration).
    """

    node_grace_s: int = 10
    eviction_s: int = 2


class ControlPlane:
    """The four processes and their certificates.

    Attributes:
        authority: Signs for every part of the bed.
        admin: Client certificate of a cluster administrator.
        audit_log: The API server's audit log, one JSON event per line.
    """

    def __init__(self, directory: Path, tools: Tools, timing: Timing) -> None:
        self._dir = directory
        self._tools = tools
        self._timing = timing
        self._components: list[Component] = []
        self._logs = directory / "logs"
        self.authority = pki.Authority()
        self.admin = self.authority.issue("admin", groups=("system:masters",))
        self.audit_log = directory / "logs" / "audit.log"
        self.server = f"https://{GATEWAY}:{API_PORT}"

    async def start(self, api: Api) -> None:
        """Start all four and return once the API server is ready; the other two come up meanwhile.

        Raises:
            ComponentError: One of them ended, or the API server is not ready in time.
        """
        self._write_files()
        etcd = self._component("etcd", [str(self._tools.etcd), *self._etcd_flags()])
        apiserver = self._component("kube-apiserver", self._kubernetes("kube-apiserver", self._apiserver_flags()))
        await asyncio.gather(etcd.start(), apiserver.start())
        await self._wait_ready(api)
        manager = self._component("kube-controller-manager", self._kubernetes("kube-controller-manager", self._manager_flags()))
        scheduler = self._component("kube-scheduler", self._kubernetes("kube-scheduler", self._scheduler_flags()))
        await asyncio.gather(manager.start(), scheduler.start())

    async def stop(self) -> None:
        """Kill everything: no state is worth a clean end."""
        for component in reversed(self._components):
            component.kill()
        await asyncio.gather(*(component.stop() for component in self._components))

    def kubeconfig(self, name: str, pair: pki.KeyPair) -> Path:
        """Write a kubeconfig for a component in this namespace; returns its path."""
        path = self._dir / "pki" / f"{name}.kubeconfig"
        pki.write_kubeconfig(path, self.server, self.authority.certificate, pair)
        return path

    def _component(self, name: str, argv: Sequence[str]) -> Component:
        component = Component(name, argv, self._logs)
        self._components.append(component)
        return component

    def _kubernetes(self, name: str, flags: Sequence[str]) -> list[str]:
        return [str(self._tools.controlplane), name, *flags]

    async def _wait_ready(self, api: Api) -> None:
        async with asyncio.timeout(_START_TIMEOUT_S):
            while True:
                for component in self._components:
                    component.raise_if_ended()
                try:
                    if await api.get_text("/readyz") == "ok":
                        return
                except (aiohttp.ClientError, OSError):
                    pass
                await asyncio.sleep(0.05)

    def _write_files(self) -> None:
        directory = self._dir / "pki"
        directory.mkdir(parents=True, exist_ok=True)
        serving = self.authority.issue(
            "kube-apiserver", names=_API_NAMES, addresses=(GATEWAY, KUBERNETES_SERVICE_IP, "127.0.0.1")
        )
        kubelet_client = self.authority.issue("kube-apiserver-kubelet-client", groups=("system:masters",))
        kubelet = self.authority.issue("kubelet", addresses=(GATEWAY,))
        files = {
            "ca.crt": self.authority.certificate,
            "sa.key": pki.private_key_pem(ec.generate_private_key(ec.SECP256R1())),
            "audit-policy.json": json.dumps(_AUDIT_POLICY).encode(),
        }
        for name, pair in (("apiserver", serving), ("kubelet-client", kubelet_client), ("kubelet", kubelet)):
            files |= {f"{name}.crt": pair.certificate, f"{name}.key": pair.key}
        for name, content in files.items():
            path = directory / name
            path.touch(mode=0o600)
            path.write_bytes(content)

    def _pki(self, name: str) -> str:
        return str(self._dir / "pki" / name)

    def _etcd_flags(self) -> list[str]:
        return [
            f"--data-dir={self._dir / 'volatile' / 'etcd'}",
            f"--listen-client-urls={_ETCD_CLIENT}",
            f"--advertise-client-urls={_ETCD_CLIENT}",
            f"--listen-peer-urls={_ETCD_PEER}",
            f"--initial-advertise-peer-urls={_ETCD_PEER}",
            f"--initial-cluster=default={_ETCD_PEER}",
            "--unsafe-no-fsync",
            "--heartbeat-interval=20",
            "--election-timeout=200",
        ]

    def _apiserver_flags(self) -> list[str]:
        return [
            f"--etcd-servers={_ETCD_CLIENT}",
            f"--advertise-address={GATEWAY}",
            f"--secure-port={API_PORT}",
            f"--service-cluster-ip-range={SERVICE_RANGE}",
            f"--tls-cert-file={self._pki('apiserver.crt')}",
            f"--tls-private-key-file={self._pki('apiserver.key')}",
            f"--client-ca-file={self._pki('ca.crt')}",
            f"--kubelet-client-certificate={self._pki('kubelet-client.crt')}",
            f"--kubelet-client-key={self._pki('kubelet-client.key')}",
            "--kubelet-preferred-address-types=InternalIP",
            f"--service-account-key-file={self._pki('sa.key')}",
            f"--service-account-signing-key-file={self._pki('sa.key')}",
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
            "--authorization-mode=Node,RBAC",
            "--allow-privileged=true",
            "--enable-priority-and-fairness=false",
            "--endpoint-reconciler-type=none",
            f"--default-not-ready-toleration-seconds={self._timing.eviction_s}",
            f"--default-unreachable-toleration-seconds={self._timing.eviction_s}",
            f"--audit-policy-file={self._pki('audit-policy.json')}",
            f"--audit-log-path={self.audit_log}",
            "--audit-log-mode=blocking",
        ]

    def _client_flags(self, user: str) -> list[str]:
        config = self.kubeconfig(user, self.authority.issue(f"system:{user}"))
        return [
            f"--kubeconfig={config}",
            f"--authentication-kubeconfig={config}",
            f"--authorization-kubeconfig={config}",
            "--kube-api-qps=500",
            "--kube-api-burst=1000",
            "--leader-elect=false",
        ]

    def _manager_flags(self) -> list[str]:
        return [
            *self._client_flags("kube-controller-manager"),
            "--secure-port=0",
            f"--root-ca-file={self._pki('ca.crt')}",
            f"--service-account-private-key-file={self._pki('sa.key')}",
            "--use-service-account-credentials=true",
            f"--service-cluster-ip-range={SERVICE_RANGE}",
            "--node-monitor-period=1s",
            f"--node-monitor-grace-period={self._timing.node_grace_s}s",
        ]

    def _scheduler_flags(self) -> list[str]:
        return [*self._client_flags("kube-scheduler"), "--secure-port=0"]

"""Names of the cluster: CoreDNS with the kubernetes plugin."""

from pathlib import Path

from testbed import netns
from testbed.processes import Component
from testbed.tools import Tools

ADDRESS = "10.96.0.10"
# One second of cache: long enough to spare the process, short enough that a test sees endpoints come and go.
_COREFILE = """\
cluster.local:53 in-addr.arpa:53 {{
    errors
    ready {ready}
    cache 1
    kubernetes cluster.local in-addr.arpa {{
        kubeconfig {kubeconfig}
        ttl 1
    }}
}}
"""
READY_ADDRESS = f"{netns.GATEWAY}:8181"


async def component(directory: Path, tools: Tools, kubeconfig: Path) -> Component:
    """CoreDNS on every address of the bed's namespace, `ADDRESS` among them."""
    await netns.add_local_address(ADDRESS)
    corefile = directory / "Corefile"
    corefile.write_text(_COREFILE.format(ready=READY_ADDRESS, kubeconfig=kubeconfig))
    return Component("coredns", [str(tools.coredns), "-conf", str(corefile)], directory / "logs")


def resolv_conf(namespace: str = "default") -> str:
    """What a pod of `namespace` has for resolv.conf, for processes that are no pods."""
    search = f"{namespace}.svc.cluster.local svc.cluster.local cluster.local"
    return f"search {search}\nnameserver {ADDRESS}\noptions ndots:5\n"

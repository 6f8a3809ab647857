"""Prometheus, scraping pods by the usual annotations and reachable as `prometheus.monitoring.svc:9090`."""

from collections.abc import Sequence
from pathlib import Path

import yaml

from testbed import netns
from testbed.api import Api, Object
from testbed.processes import Component
from testbed.tools import Tools

PICKER_PORT = "picker-metrics"
"""Name of the port on which the picker of a router pod tells what it decides; the annotation names Envoy's."""

NAMESPACE = "monitoring"
PORT = 9090
_POD = "__meta_kubernetes_pod"


def configuration(kubeconfig: Path, interval_s: float, rules: Sequence[Object] = ()) -> Object:
    """What to scrape and how to label it; ``rules`` are further ones of ``metric_relabel_configs``."""
    interval = f"{int(interval_s * 1000)}ms"
    discovery = [{"role": "pod", "kubeconfig_file": str(kubeconfig)}]
    labels = [
        {"action": "labelmap", "regex": f"{_POD}_label_(.+)"},
        _copy("__meta_kubernetes_namespace", "namespace"),
        _copy(f"{_POD}_name", "pod"),
        _copy(f"{_POD}_node_name", "node"),
    ]
    return {
        "global": {"scrape_interval": interval, "scrape_timeout": interval, "evaluation_interval": interval},
        "scrape_configs": [
            {
                "job_name": "kubernetes-pods",
                # The operator's series name the namespace of the plan that they speak of.
                "honor_labels": True,
                "kubernetes_sd_configs": discovery,
                "relabel_configs": [
                    _keep(f"{_POD}_annotation_prometheus_io_scrape", "true"),
                    _keep(f"{_POD}_phase", "Running"),
                    _copy(f"{_POD}_annotation_prometheus_io_path", "__metrics_path__"),
                    # One target per pod and not one per declared port: the annotation names the port.
                    {
                        "source_labels": [f"{_POD}_ip", f"{_POD}_annotation_prometheus_io_port"],
                        "regex": "(.+);(.+)",
                        "replacement": "$1:$2",
                        "target_label": "__address__",
                    },
                    *labels,
                ],
                "metric_relabel_configs": list(rules),
            },
            {
                "job_name": "router-pickers",
                "kubernetes_sd_configs": discovery,
                "relabel_configs": [
                    _keep(f"{_POD}_container_port_name", PICKER_PORT),
                    _keep(f"{_POD}_phase", "Running"),
                    *labels,
                ],
                "metric_relabel_configs": list(rules),
            },
        ],
    }


def _keep(label: str, value: str) -> Object:
    return {"action": "keep", "source_labels": [label], "regex": value}


def _copy(label: str, target: str) -> Object:
    return {"source_labels": [label], "regex": "(.+)", "target_label": target}


def component(directory: Path, tools: Tools, kubeconfig: Path, interval_s: float) -> Component:
    """Prometheus on the bed's gateway address, forgetting everything with the bed."""
    config = directory / "prometheus.yml"
    config.write_text(yaml.safe_dump(configuration(kubeconfig, interval_s)))
    argv = [
        str(tools.prometheus),
        f"--config.file={config}",
        f"--storage.tsdb.path={directory / 'volatile' / 'prometheus'}",
        f"--web.listen-address={netns.GATEWAY}:{PORT}",
    ]
    return Component("prometheus", argv, directory / "logs")


async def publish(api: Api) -> None:
    """Create the Service `prometheus` and point it at the process."""
    await publish_service(api, NAMESPACE, "prometheus", PORT, (netns.GATEWAY, PORT))


async def publish_service(api: Api, namespace: str, name: str, port: int, backend: tuple[str, int]) -> None:
    """Create a Service without a selector whose one endpoint is `backend`."""
    meta = {"name": name, "namespace": namespace}
    space = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}
    await api.apply(f"/api/v1/namespaces/{namespace}", space)
    service = {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": {"ports": [{"name": "http", "port": port}]}}
    await api.apply(f"/api/v1/namespaces/{namespace}/services/{name}", service)
    await publish_endpoint(api, namespace, name, "http", backend)


async def publish_endpoint(api: Api, namespace: str, service: str, port_name: str, backend: tuple[str, int]) -> None:
    """Give the Service `service` the one endpoint `backend`."""
    endpoints = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": service, "namespace": namespace, "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [backend[0]], "conditions": {"ready": True}}],
        "ports": [{"name": port_name, "port": backend[1], "protocol": "TCP"}],
    }
    await api.apply(f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices/{service}", endpoints)

"""What an image name stands for here: how its entry point is started, and as whom.

No image is pulled. The project's own image runs this checkout in its virtual environment, `vllm/vllm-openai` runs the
project's vLLM simulator, `envoyproxy/envoy` the Envoy of the Python package index. Any other name fails as a missing
image does on a cluster.
"""

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from testbed.tools import Tools

ACCELERATOR_LABEL = "nvidia.com/gpu.product"
_CHECKOUT = Path(__file__).resolve().parents[2]
_OPERATOR = _CHECKOUT / "operator"
_SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
_NONROOT_UID = 65532
_ENVOY_UID = 101


@dataclass(frozen=True, slots=True)
class Image:
    """An image as this machine can run it.

    Attributes:
        entrypoint: Argument vector before the container's `args`; a container's `command` replaces it.
        uid: User of the image.
        paths: Folders of this machine that it sees, read-only, at their own paths.
        env: Environment of the image.
    """

    entrypoint: tuple[str, ...]
    uid: int
    paths: tuple[Path, ...]
    env: Mapping[str, str]


def _python_paths() -> tuple[Path, ...]:
    return (Path(sys.base_prefix), Path(sys.prefix), _OPERATOR)


def _python_env() -> dict[str, str]:
    # The console scripts of the virtual environment are found by name, as in the image.
    return {"PATH": f"{sys.prefix}/bin:{_SYSTEM_PATH}", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1"}


def _servingplan(_: Tools, __: Mapping[str, str]) -> Image:
    return Image((f"{sys.prefix}/bin/servingplan",), _NONROOT_UID, _python_paths(), _python_env())


def _vllm(_: Tools, node_labels: Mapping[str, str]) -> Image:
    env = _python_env() | {"SIM_ACCELERATOR": node_labels.get(ACCELERATOR_LABEL, "")}
    return Image((f"{sys.prefix}/bin/servingplan", "simulate", "vllm"), 0, _python_paths(), env)


def _envoy(tools: Tools, _: Mapping[str, str]) -> Image:
    return Image((str(tools.envoy),), _ENVOY_UID, (tools.envoy.parent,), {"PATH": _SYSTEM_PATH})


def _python(_: Tools, __: Mapping[str, str]) -> Image:
    return Image((f"{sys.prefix}/bin/python",), 0, _python_paths(), _python_env())


_IMAGES: Sequence[tuple[str, Callable[[Tools, Mapping[str, str]], Image]]] = (
    (r"(.*/)?servingplan", _servingplan),
    (r"(.*/)?vllm/vllm-openai", _vllm),
    (r"(.*/)?envoyproxy/envoy(-distroless)?", _envoy),
    (r"((.*/)?library/)?python", _python),
)


def resolve(name: str, tools: Tools, node_labels: Mapping[str, str]) -> Image | None:
    """The image called `name` (with or without tag or digest) on a node with these labels, or None if there is none."""
    repository = re.sub(r"(@sha256:[0-9a-f]+|:[^/:]+)$", "", name)
    for pattern, build in _IMAGES:
        if re.fullmatch(pattern, repository):
            return build(tools, node_labels)
    return None

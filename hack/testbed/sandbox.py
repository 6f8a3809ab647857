"""From a pod's container to the specification that `testbed.launch` executes."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from testbed.api import Api, Object
from testbed.images import Image
from testbed.mounts import Volumes, field_value, read_data

_SYSTEM_PATHS = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc/ssl", "/etc/ld.so.cache", "/etc/alternatives")
_EXTRA_PATHS = ("/sys/devices/system/cpu",)  # numeric libraries size their thread pools by it
_SHM_BYTES = 64 * 2**20
_ROOT_GROUP = 0
_REFERENCE = re.compile(r"\$(?:(\$)|\(([A-Za-z_.][\w.-]*)\))")


class ConfigError(Exception):
    """The container can never start as written: the message is kubelet's CreateContainerConfigError."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a container gets from its node and cluster.

    Attributes:
        dns_server: Address for resolv.conf; None leaves the pod without names.
        api_address: Host and port of the API server as pods reach it.
        can_switch_user: False inside a user namespace, where only one user exists.
    """

    dns_server: str | None
    api_address: tuple[str, int]
    can_switch_user: bool


def expand(text: str, env: Mapping[str, str]) -> str:
    """Replace `$(NAME)` by its value as kubelet does: unknown names stay, `$$` is a dollar."""

    def replacement(match: re.Match[str]) -> str:
        return "$" if match[1] else env.get(match[2], match[0])

    return _REFERENCE.sub(replacement, text)


def resource_quantity(text: str) -> int:
    """Bytes, or whole units rounded up, of a Kubernetes quantity."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(m|k|M|G|T|Ki|Mi|Gi|Ti)?", str(text))
    if match is None:
        raise ConfigError(f"cannot read quantity {text!r}")
    powers = {"k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
    if match[2] == "m":
        return -(-int(float(match[1])) // 1000)
    return int(float(match[1]) * powers.get(match[2] or "", 1))


async def environment(api: Api, pod: Object, container: Object, image: Image, around: Surroundings) -> dict[str, str]:
    """The container's environment, in kubelet's order of precedence.

    Raises:
        VolumeError: A ConfigMap or Secret it names is missing.
        ConfigError: A reference the bed does not support.
    """
    host, port = around.api_address
    env = {
        **image.env,
        "HOME": "/",
        "HOSTNAME": pod["metadata"]["name"],
        "KUBERNETES_SERVICE_HOST": host,
        "KUBERNETES_SERVICE_PORT": str(port),
    }
    namespace = pod["metadata"]["namespace"]
    for source in container.get("envFrom", []):
        kind = "configMapRef" if "configMapRef" in source else "secretRef"
        reference = source[kind]
        data = await read_data(
            api, namespace, kind.removesuffix("Ref"), reference["name"], optional=reference.get("optional", False)
        )
        env |= {source.get("prefix", "") + key: value.decode() for key, value in data.items()}
    for variable in container.get("env", []):
        value = await _value(api, pod, container, variable, env)
        if value is not None:
            env[variable["name"]] = value
    return env


async def _value(api: Api, pod: Object, container: Object, variable: Object, env: Mapping[str, str]) -> str | None:
    source = variable.get("valueFrom")
    if source is None:
        return expand(variable.get("value", ""), env)
    if "fieldRef" in source:
        return field_value(pod, source["fieldRef"]["fieldPath"])
    if "resourceFieldRef" in source:
        kind, _, resource = source["resourceFieldRef"]["resource"].partition(".")
        quantity = container.get("resources", {}).get(kind, {}).get(resource, "0")
        return str(resource_quantity(quantity))
    for kind in ("configMapKeyRef", "secretKeyRef"):
        if kind in source:
            reference = source[kind]
            optional = reference.get("optional", False)
            namespace = pod["metadata"]["namespace"]
            data = await read_data(api, namespace, kind.removesuffix("KeyRef"), reference["name"], optional=optional)
            if reference["key"] not in data and not optional:
                raise ConfigError(f"couldn't find key {reference['key']} in {kind} {namespace}/{reference['name']}")
            found = data.get(reference["key"])
            return None if found is None else found.decode()
    raise ConfigError(f"environment variable {variable['name']}: {next(iter(source))} is not supported by the test bed")


def specification(
    pod: Object,
    container: Object,
    image: Image,
    env: Mapping[str, str],
    volumes: Volumes,
    directory: Path,
    around: Surroundings,
) -> dict[str, Any]:
    """What `testbed.launch` needs, but for `netns_fd`; `directory` holds its files.

    Raises:
        ConfigError: The security context forbids this image.
    """
    context = pod["spec"].get("securityContext", {}) | container.get("securityContext", {})
    uid = context.get("runAsUser", image.uid)
    if context.get("runAsNonRoot") and uid == 0:
        raise ConfigError("container has runAsNonRoot and image will run as root")
    group = pod["spec"].get("securityContext", {}).get("fsGroup")
    root = directory / "root"
    root.mkdir(parents=True, exist_ok=True)
    command = container.get("command") or list(image.entrypoint)
    drops = context.get("capabilities", {}).get("drop", [])
    return {
        "root": str(root),
        "pid_file": str(directory / "pid"),
        "error_file": str(directory / "error"),
        "hostname": pod["spec"].get("hostname", pod["metadata"]["name"])[:63],
        "argv": [expand(argument, env) for argument in [*command, *container.get("args", [])]],
        "env": dict(env),
        "cwd": container.get("workingDir", "/"),
        "uid": uid,
        "gid": context.get("runAsGroup", _ROOT_GROUP),
        "groups": [] if group is None else [group],
        "switch_user": around.can_switch_user,
        "read_only_root": context.get("readOnlyRootFilesystem", False),
        "no_new_privileges": context.get("allowPrivilegeEscalation") is False,
        "drop_capabilities": "ALL" in drops,
        "shm_bytes": _SHM_BYTES,
        "directories": {"/tmp": 0o1777, "/var/tmp": 0o1777, "/run": 0o755, "/var/run": 0o755, "/root": 0o755},
        "symlinks": {path: str(Path(path).readlink()) for path in _SYSTEM_PATHS if Path(path).is_symlink()},
        "files": _etc_files(pod, uid, around),
        "binds": [*_image_binds(image), *_volume_binds(container, volumes)],
    }


def _etc_files(pod: Object, uid: int, around: Surroundings) -> dict[str, str]:
    name, namespace = pod["metadata"]["name"], pod["metadata"]["namespace"]
    aliases = "".join(f"{a['ip']} {' '.join(a['hostnames'])}\n" for a in pod["spec"].get("hostAliases", []))
    user = "" if uid == 0 else f"user:x:{uid}:{_ROOT_GROUP}:user:/:/sbin/nologin\n"
    files = {
        "/etc/passwd": f"root:x:0:0:root:/root:/bin/sh\n{user}nobody:x:65534:65534:nobody:/:/sbin/nologin\n",
        "/etc/group": "root:x:0:\nnogroup:x:65534:\n",
        "/etc/hostname": f"{name}\n",
        "/etc/hosts": f"127.0.0.1 localhost\n::1 localhost\n{pod['status'].get('podIP', '127.0.0.1')} {name}\n{aliases}",
        "/etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
    }
    if around.dns_server is not None:
        search = f"{namespace}.svc.cluster.local svc.cluster.local cluster.local"
        files["/etc/resolv.conf"] = f"search {search}\nnameserver {around.dns_server}\noptions ndots:5\n"
    return files


def _image_binds(image: Image) -> list[dict[str, Any]]:
    system = [Path(path) for path in (*_SYSTEM_PATHS, *_EXTRA_PATHS)]
    wanted = [path for path in system if path.exists() and not path.is_symlink()]
    wanted += [path for path in image.paths if not any(path.is_relative_to(base) for base in wanted)]
    return [{"source": str(path), "target": str(path), "read_only": True} for path in wanted]


def _volume_binds(container: Object, volumes: Volumes) -> list[dict[str, Any]]:
    binds = []
    # Parents before children, or a later mount would hide an earlier one.
    for mount in sorted(container.get("volumeMounts", []), key=lambda mount: mount["mountPath"]):
        source = volumes.path(mount["name"]) / mount.get("subPath", "")
        if not source.exists():
            source.mkdir(parents=True)
        binds.append({"source": str(source), "target": mount["mountPath"], "read_only": mount.get("readOnly", False)})
    return binds

"""A pod's volumes on disk, written and renewed as kubelet does.

A volume made from API objects is a folder holding a timestamped folder, a `..data` link to it, and one link per file
through `..data`: a renewal writes a new folder and renames the link, so a reader sees all files change at once and a
watcher of the folder sees one event. Renewal happens on kubelet's slow beat and at once when the pod object changes.
"""

import base64
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from testbed.api import Api, ApiError, Object

_TOKEN_RENEWAL_SHARE = 0.8
_DEFAULT_TOKEN_S = 3600
_DEFAULT_MODE = 0o644


class VolumeError(Exception):
    """A volume cannot be made yet: the message is what `kubectl describe` should say."""


@dataclass(slots=True)
class _Token:
    text: str
    renew_at: float


def field_value(pod: Object, path: str) -> str:
    """A downward API field of `pod` such as `metadata.name`, `metadata.labels['app']` or `status.podIP`.

    Raises:
        VolumeError: The bed does not know the field.
    """
    head, bracket, key = path.partition("['")
    if bracket:
        return str(pod["metadata"].get(head.removeprefix("metadata."), {}).get(key.removesuffix("']"), ""))
    value: Any = pod
    for step in path.split("."):
        value = value.get(step) if isinstance(value, dict) else None
    if isinstance(value, dict):
        return "\n".join(f'{name}="{text}"' for name, text in sorted(value.items()))
    if value is None:
        if path in {"metadata.labels", "metadata.annotations"}:
            return ""
        raise VolumeError(f"downward API field {path} is not known here")
    return str(value)


@dataclass(slots=True)
class Volumes:
    """The volumes of one pod under `directory`.

    Attributes:
        api: Reads ConfigMaps and Secrets and asks for tokens.
        directory: One folder per volume appears here.
        group: fsGroup of the pod, owner of what is written; None leaves it.
    """

    api: Api
    directory: Path
    group: int | None = None
    _tokens: dict[str, _Token] = field(default_factory=dict)
    _written: dict[str, Mapping[str, tuple[bytes, int]]] = field(default_factory=dict)

    def path(self, name: str) -> Path:
        """Folder of the volume called `name`."""
        return self.directory / name

    async def refresh(self, pod: Object) -> None:
        """Make every volume of `pod`, and renew those made from API objects where they changed.

        Raises:
            VolumeError: Something a volume needs is missing or unsupported.
        """
        for volume in pod["spec"].get("volumes", []):
            name = volume["name"]
            if "emptyDir" in volume:
                self._make_empty(self.path(name))
            else:
                self._write(name, await self._files(pod, volume))

    def remove(self) -> None:
        """Delete everything."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def _make_empty(self, path: Path) -> None:
        if not path.exists():
            path.mkdir(parents=True)
            path.chmod(0o777)

    def _write(self, name: str, files: Mapping[str, tuple[bytes, int]]) -> None:
        if self._written.get(name) == files:
            return
        root = self.path(name)
        root.mkdir(parents=True, exist_ok=True)
        fresh = root / f"..{time.strftime('%Y_%m_%d_%H_%M_%S')}.{time.monotonic_ns()}"
        for file, (content, mode) in files.items():
            target = fresh / file
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
            target.chmod(mode)
            if self.group is not None:
                shutil.chown(target, group=self.group)
                target.chmod(mode | 0o040)
        fresh.mkdir(exist_ok=True)
        data = root / "..data"
        old = data.resolve() if data.is_symlink() else None
        swap = root / "..data_tmp"
        swap.symlink_to(fresh.name)
        swap.rename(data)
        self._link_files(root, {file.split("/")[0] for file in files})
        if old is not None:
            shutil.rmtree(old, ignore_errors=True)
        self._written[name] = files

    def _link_files(self, root: Path, names: set[str]) -> None:
        for stale in [entry for entry in root.iterdir() if not entry.name.startswith("..") and entry.name not in names]:
            stale.unlink()
        for name in names:
            if not (root / name).is_symlink():
                (root / name).symlink_to(f"..data/{name}")

    async def _files(self, pod: Object, volume: Object) -> dict[str, tuple[bytes, int]]:
        if "projected" in volume:
            mode = volume["projected"].get("defaultMode", _DEFAULT_MODE)
            files: dict[str, tuple[bytes, int]] = {}
            for source in volume["projected"]["sources"]:
                files |= await self._source(pod, source, mode)
            return files
        for kind in ("configMap", "secret", "downwardAPI"):
            if kind in volume:
                return await self._source(pod, {kind: volume[kind]}, volume[kind].get("defaultMode", _DEFAULT_MODE))
        kind = next(iter(set(volume) - {"name"}), "none")
        raise VolumeError(f"volume {volume['name']}: volumes of type {kind} are not supported by the test bed")

    async def _source(self, pod: Object, source: Object, mode: int) -> dict[str, tuple[bytes, int]]:
        kind, spec = next(iter(source.items()))
        if kind == "serviceAccountToken":
            return {spec["path"]: ((await self._token(pod, spec)).encode(), mode)}
        if kind == "downwardAPI":
            return {
                item["path"]: (field_value(pod, item["fieldRef"]["fieldPath"]).encode(), item.get("mode", mode))
                for item in spec["items"]
            }
        name = spec.get("name") or spec.get("secretName")
        content = await read_data(self.api, pod["metadata"]["namespace"], kind, name, optional=spec.get("optional", False))
        if "items" not in spec:
            return {key: (value, mode) for key, value in content.items()}
        missing = [item["key"] for item in spec["items"] if item["key"] not in content]
        if missing and not spec.get("optional", False):
            raise VolumeError(f"references non-existent {kind} key: {missing[0]}")
        return {
            item["path"]: (content[item["key"]], item.get("mode", mode)) for item in spec["items"] if item["key"] in content
        }

    async def _token(self, pod: Object, spec: Object) -> str:
        known = self._tokens.get(spec["path"])
        if known is not None and time.time() < known.renew_at:
            return known.text
        meta = pod["metadata"]
        lifetime_s = spec.get("expirationSeconds", _DEFAULT_TOKEN_S)
        request: Object = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {
                "audiences": [spec["audience"]] if spec.get("audience") else [],
                "expirationSeconds": lifetime_s,
                "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": meta["name"], "uid": meta["uid"]},
            },
        }
        account = pod["spec"].get("serviceAccountName", "default")
        try:
            answer = await self.api.create(f"/api/v1/namespaces/{meta['namespace']}/serviceaccounts/{account}/token", request)
        except ApiError as error:
            raise VolumeError(f"failed to fetch token: {error}") from error
        expiry = datetime.fromisoformat(answer["status"]["expirationTimestamp"]).timestamp()
        token = _Token(answer["status"]["token"], expiry - (1 - _TOKEN_RENEWAL_SHARE) * lifetime_s)
        self._tokens[spec["path"]] = token
        return token.text


async def read_data(api: Api, namespace: str, kind: str, name: str, *, optional: bool) -> dict[str, bytes]:
    """The contents of a ConfigMap (`kind` configMap) or Secret by key, empty when it is optional and missing.

    Raises:
        VolumeError: It is missing and not optional.
    """
    resource = "configmaps" if kind.startswith("configMap") else "secrets"
    try:
        found = await api.get(f"/api/v1/namespaces/{namespace}/{resource}/{name}")
    except ApiError as error:
        if error.is_gone and optional:
            return {}
        if error.is_gone:
            raise VolumeError(f'{resource.removesuffix("s")} "{name}" not found') from error
        raise
    if resource == "secrets":
        return {key: base64.b64decode(value) for key, value in (found.get("data") or {}).items()}
    content = {key: value.encode() for key, value in (found.get("data") or {}).items()}
    return content | {key: base64.b64decode(value) for key, value in (found.get("binaryData") or {}).items()}

"""The container launcher: `python -m testbed.launch run|exec SPEC.json [-- ARGV...]`. Standard library only.

`run` builds a container out of the specification that `testbed.sandbox` wrote and becomes its supervisor:

1. join the pod's network namespace, take fresh mount, pid, ipc and uts namespaces;
2. fork: the child is pid 1 of the container, as in a container runtime;
3. the child makes a tmpfs root, bind-mounts what the image and the volumes bring, pivots into it, gives up its
   privileges and executes the command;
4. the parent passes signals on and ends with the child's exit code (128 + signal number when one killed it).

The kernel kills the child when the parent dies and the parent when the bed dies, so a bed killed outright leaves
nothing. A set-up failure is written to `error_file`: it is the runtime's error, not the container's.
`exec` runs a command inside a container that `run` has started (exec probes and hooks).
"""

import json
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any, NoReturn

from testbed import kernel

START_ERROR = 128
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_DEVICE_LINKS = {"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2"}
_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
_JOINED = kernel.CLONE_NEWNS | kernel.CLONE_NEWNET | kernel.CLONE_NEWPID | kernel.CLONE_NEWUTS | kernel.CLONE_NEWIPC

Spec = dict[str, Any]


def _make_mount_point(path: Path, source: Path) -> None:
    if source.is_dir():
        path.mkdir(parents=True, exist_ok=True)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def _mount_devices(root: Path, shm_bytes: int) -> None:
    dev = root / "dev"
    dev.mkdir(exist_ok=True)
    kernel.mount("tmpfs", str(dev), "tmpfs", kernel.MS_NOSUID, "mode=0755,size=64k")
    for name in _DEVICES:
        (dev / name).touch()
        kernel.bind(f"/dev/{name}", str(dev / name), read_only=False)
    for name, target in _DEVICE_LINKS.items():
        (dev / name).symlink_to(target)
    (dev / "shm").mkdir()
    kernel.mount("tmpfs", str(dev / "shm"), "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, f"mode=1777,size={shm_bytes}")


def _build_root(spec: Spec) -> None:
    root = Path(spec["root"])
    kernel.mount(None, "/", flags=kernel.MS_REC | kernel.MS_PRIVATE)
    kernel.mount("tmpfs", str(root), "tmpfs", kernel.MS_NOSUID, "mode=0755")
    for directory, mode in spec["directories"].items():
        path = root / directory.lstrip("/")
        path.mkdir(parents=True, exist_ok=True)
        path.chmod(mode)
    for link, target in spec["symlinks"].items():
        (root / link.lstrip("/")).symlink_to(target)
    for name, content in spec["files"].items():
        path = root / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    (root / "proc").mkdir(exist_ok=True)
    kernel.mount("proc", str(root / "proc"), "proc", kernel.MS_NOSUID | kernel.MS_NODEV)
    _mount_devices(root, spec["shm_bytes"])
    # Outer targets first: a checkout below /tmp must not vanish under a volume that is mounted at /tmp.
    for mount in sorted(spec["binds"], key=lambda mount: len(Path(mount["target"]).parts)):
        target = root / mount["target"].lstrip("/")
        _make_mount_point(target, Path(mount["source"]))
        kernel.bind(mount["source"], str(target), read_only=mount["read_only"])
    if spec["read_only_root"]:
        kernel.mount(None, str(root), flags=kernel.MS_REMOUNT | kernel.MS_BIND | kernel.MS_RDONLY | kernel.MS_NOSUID)
    kernel.enter_root(str(root))


def _drop_privileges(spec: Spec) -> None:
    if spec["drop_capabilities"]:
        kernel.drop_capabilities()
    if spec["switch_user"]:
        for stream in (1, 2):
            os.fchown(stream, spec["uid"], spec["gid"])  # else /dev/stdout cannot be opened by the user
        os.setgroups(spec["groups"])
        os.setresgid(spec["gid"], spec["gid"], spec["gid"])
        os.setresuid(spec["uid"], spec["uid"], spec["uid"])
    if spec["no_new_privileges"]:
        kernel.set_no_new_privileges()
    kernel.die_with_parent()  # changing the user clears the setting, so it comes last


def _execute(spec: Spec, argv: list[str]) -> NoReturn:
    os.chdir(spec["cwd"])
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)  # Python ignores them and exec would pass that on
    os.execvpe(argv[0], argv, spec["env"])


def _supervise(child: int) -> NoReturn:
    for number in _FORWARDED:
        signal.signal(number, lambda received, _frame: os.kill(child, received))
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    sys.exit(code if code >= 0 else 128 - code)


def _fork_container(spec: Spec, argv: list[str], error_fd: int, *, build: bool) -> NoReturn:
    child = os.fork()
    if child:
        if build:
            Path(spec["pid_file"]).write_text(str(child))
        _supervise(child)
    try:
        kernel.die_with_parent()
        if build:
            socket.sethostname(spec["hostname"])
            _build_root(spec)
        _drop_privileges(spec)
        _execute(spec, argv)
    except OSError as error:
        os.write(error_fd, str(error).encode())
        os._exit(START_ERROR)


def main(arguments: list[str]) -> NoReturn:
    """Run or enter a container; never returns."""
    kernel.die_with_parent()
    verb, spec_file, *rest = arguments
    spec: Spec = json.loads(Path(spec_file).read_text())
    # Opened here because the path means nothing inside the container.
    error_fd = os.open(spec["error_file"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    if verb == "run":
        kernel.setns(spec["netns_fd"], kernel.CLONE_NEWNET)
        os.close(spec["netns_fd"])
        kernel.unshare(kernel.CLONE_NEWNS | kernel.CLONE_NEWPID | kernel.CLONE_NEWUTS | kernel.CLONE_NEWIPC)
        _fork_container(spec, spec["argv"], error_fd, build=True)
    pidfd = os.pidfd_open(int(Path(spec["pid_file"]).read_text()))
    kernel.setns(pidfd, _JOINED)
    _fork_container(spec, rest[1:], error_fd, build=False)


if __name__ == "__main__":
    main(sys.argv[1:])

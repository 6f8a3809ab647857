"""Linux namespace and mount calls that the standard library lacks on Python 3.11. Standard library only."""

import ctypes
import os
import signal
from pathlib import Path

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_REMOUNT = 0x20
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x40000
MNT_DETACH = 2

_PR_SET_PDEATHSIG = 1
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_LAST_POSSIBLE_CAPABILITY = 63

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)


def _check(result: int, call: str) -> None:
    if result < 0:
        errno = ctypes.get_errno()
        raise OSError(errno, f"{call}: {os.strerror(errno)}")


def unshare(flags: int) -> None:
    """Move the calling thread into new namespaces (unshare(2))."""
    _check(_libc.unshare(flags), "unshare")


def setns(fd: int, flags: int = 0) -> None:
    """Join the namespace behind `fd`, or, when `fd` is a pidfd, those of that process named by `flags` (setns(2))."""
    _check(_libc.setns(fd, flags), "setns")


def mount(source: str | None, target: str, fstype: str | None = None, flags: int = 0, data: str | None = None) -> None:
    """Put a file system or a folder at `target` (see mount in section 2 of the manual); the error names the target."""
    encoded = [None if text is None else os.fsencode(text) for text in (source, target, fstype, data)]
    result = _libc.mount(encoded[0], encoded[1], encoded[2], flags, encoded[3])
    _check(result, f"mount {source or fstype} on {target}")


def bind(source: str, target: str, *, read_only: bool, recursive: bool = True) -> None:
    """Bind-mount `source` on `target`; the kernel ignores MS_RDONLY on the bind itself, hence the remount."""
    mount(source, target, flags=MS_BIND | (MS_REC if recursive else 0))
    if read_only:
        mount(None, target, flags=MS_BIND | MS_REMOUNT | MS_RDONLY | _locked_flags(target))


def _locked_flags(target: str) -> int:
    """Flags a remount must repeat: inside a user namespace the kernel refuses to clear nosuid, nodev and noexec."""
    known = {os.ST_NOSUID: MS_NOSUID, os.ST_NODEV: MS_NODEV, os.ST_NOEXEC: 0x8}
    current = os.statvfs(target).f_flag
    return sum(flag for bit, flag in known.items() if current & bit)


def unmount(target: str) -> None:
    """Take what is mounted at `target` out of this mount namespace, busy or not."""
    _check(_libc.umount2(os.fsencode(target), MNT_DETACH), f"umount {target}")


def enter_root(new_root: str) -> None:
    """Make the mount `new_root` the root of this mount namespace and drop the old one (pivot_root(2))."""
    os.chdir(new_root)
    _check(_libc.pivot_root(b".", b"."), f"pivot_root {new_root}")
    _check(_libc.umount2(b".", MNT_DETACH), "umount old root")
    os.chdir("/")


def die_with_parent(sig: int = signal.SIGKILL) -> None:
    """Have the kernel send `sig` to this process when the thread that started it ends, even by SIGKILL."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, int(sig), 0, 0, 0), "prctl PDEATHSIG")


def set_no_new_privileges() -> None:
    """Set no_new_privs: no later exec can gain privileges."""
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl NO_NEW_PRIVS")


def drop_capabilities() -> None:
    """Empty the capability bounding set, so that the next exec has none even as root."""
    for capability in range(_LAST_POSSIBLE_CAPABILITY + 1):
        if _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) < 0:
            return  # numbers past the kernel's last capability


def enter_user_namespace(flags: int) -> None:
    """Unshare `flags` together with a user namespace in which the caller is root."""
    uid, gid = os.getuid(), os.getgid()
    unshare(CLONE_NEWUSER | flags)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
    Path("/proc/self/gid_map").write_text(f"0 {gid} 1")

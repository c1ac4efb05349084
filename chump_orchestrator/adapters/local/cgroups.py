"""Where agents can be held together and to limits, and how a group without a shim is ended. Blocks.

Control groups are the service manager's. A part of its tree is ours only where it says so, by
`Delegate=yes`, which it leaves as an attribute of the folder: there, and nowhere else, groups are
made. Better still is a unit of the agent's own, which a manager that can be asked makes.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import sys
import time
from pathlib import Path

from chump_orchestrator.shim.cgroup import Cgroup, enable, own_group
from chump_orchestrator.shim.containment import CONTROLLERS

DELEGATED = ("user.delegate", "trusted.delegate")
"""Extended attributes that systemd sets on what it delegates; the first since version 251."""

_EMPTY_S = 5.0
"""How long a group that was killed may take to be empty."""

_AGAIN_S = 0.02

_SYSTEM = Path("/run/systemd/private")
_USERS = Path("/run/user")
_LINGERING = Path("/var/lib/systemd/linger")
_BELOW = "systemd/private"


def managers(runtime: str, uid: int | None = None) -> tuple[str, ...]:
    """Return the sockets of service managers that may be asked for units, the best one first.

    `runtime` is `XDG_RUNTIME_DIR`, empty where that is not set, as for a service of the system:
    its user may have a manager all the same. A user's manager ends when the user logs out for the
    last time, so it is asked only where this process ends with it, or the user lingers. Root may
    ask that of the system.
    """
    if sys.platform != "linux":
        return ()
    user = os.getuid() if uid is None else uid
    found = [_SYSTEM] if user == 0 else []
    if _is_of_user(user) or _lingers(user):
        if runtime.startswith("/"):
            found.append(Path(runtime) / _BELOW)
        found.append(_USERS / str(user) / _BELOW)
    return tuple(dict.fromkeys(str(path) for path in found if os.access(path, os.W_OK)))


def delegated(proc: Path = Path("/proc/self")) -> Path | None:
    """Return the folder below which this process may make control groups, or `None`.

    Needs version 2 with `cgroup.kill` (Linux 5.14), and the service manager's delegation. Where
    the manager has put this process into a group of its own below that (`DelegateSubgroup=`),
    those made beside it can have limits, and are prepared for that.

    Nowhere else: a group with limits below has no room for processes of its own, so a service
    that enabled them in its own could not be started anew for as long as an agent lives.
    """
    if sys.platform != "linux":
        return None
    with contextlib.suppress(OSError):
        own = own_group(str(proc))
        if own is not None:
            for folder in (Path(own), Path(own).parent):
                if _is_delegated(folder) and _takes_groups(folder):
                    if folder != Path(own):
                        enable(str(folder), CONTROLLERS)
                    return folder
    return None


def own_unit() -> str:
    """Return the name of the service or scope that this process is in; empty for none."""
    path = own_group() if sys.platform == "linux" else None
    names = [] if path is None else Path(path).parts
    return next((name for name in reversed(names) if name.endswith((".service", ".scope"))), "")


def empty(path: str) -> bool:
    """Kill whatever lives in a dispatch's group and remove it; say whether nothing is left.

    A group that has gone was empty: no other can be removed.
    """
    group = Cgroup(path)
    until = time.monotonic() + _EMPTY_S
    while Path(path).is_dir():
        group.kill()
        group.remove()
        if time.monotonic() >= until:
            return False
        time.sleep(_AGAIN_S)
    return True


def is_ours(path: object, dispatch: str) -> bool:
    """Say whether a recorded path can be that of this dispatch's group; records may be forged."""
    ends = (f"/chump-{dispatch}", f"/chump-{dispatch}.scope/agent")
    return isinstance(path, str) and path.startswith("/") and path.endswith(ends)


def _is_of_user(user: int) -> bool:
    """Say whether this process runs in a session of a user's, or below the user's manager."""
    return f"/user-{user}.slice/" in f"{own_group()}/"


def _lingers(user: int) -> bool:
    """Say whether a user's manager runs without anybody logged in."""
    with contextlib.suppress(KeyError, OSError):
        return (_LINGERING / pwd.getpwuid(user).pw_name).exists()
    return False


def _takes_groups(folder: Path) -> bool:
    """Say whether groups can be made in a folder, and processes be moved into them.

    `cgroup.kill` is not among the files that a manager hands over; those we make have their own.
    """
    is_writable = all(os.access(path, os.W_OK) for path in (folder, folder / "cgroup.procs"))
    return is_writable and (folder / "cgroup.kill").exists()


def _is_delegated(folder: Path) -> bool:
    for name in DELEGATED:
        with contextlib.suppress(OSError):
            if os.getxattr(folder, name) == b"1":
                return True
    return False

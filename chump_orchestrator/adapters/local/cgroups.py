"""Where control groups for dispatches may be made, and how one without a shim is ended. Blocks.

Control groups are the service manager's. A part of its tree is ours only where it says so, by
`Delegate=yes`, which it leaves as an attribute of the folder: there, and nowhere else, groups are
made.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from pathlib import Path

from chump_orchestrator.shim.cgroup import Cgroup

DELEGATED = ("user.delegate", "trusted.delegate")
"""Extended attributes that systemd sets on what it delegates; the first since version 251."""

_EMPTY_S = 5.0
"""How long a group that was killed may take to be empty."""

_AGAIN_S = 0.02


def delegated(proc: Path = Path("/proc/self")) -> Path | None:
    """Return the folder below which this process may make control groups, or `None`.

    Needs version 2 with `cgroup.kill` (Linux 5.14), and the service manager's delegation.
    """
    if sys.platform != "linux":
        return None
    with contextlib.suppress(OSError, ValueError):
        own = _own(proc)
        if own is not None and _is_delegated(own) and os.access(own / "cgroup.kill", os.W_OK):
            return own
    return None


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
    return isinstance(path, str) and path.startswith("/") and path.endswith(f"/chump-{dispatch}")


def _own(proc: Path) -> Path | None:
    """Return the folder of the group that this process is in."""
    inside = next(
        line.removeprefix("0::")
        for line in (proc / "cgroup").read_text().splitlines()
        if line.startswith("0::")
    )
    for line in (proc / "mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        if after.split(" ")[0] == "cgroup2":
            root, mount = before.split(" ")[3:5]
            below = os.path.relpath(inside, root)
            if not below.startswith(".."):
                return Path(mount) / below
    return None


def _is_delegated(folder: Path) -> bool:
    for name in DELEGATED:
        with contextlib.suppress(OSError):
            if os.getxattr(folder, name) == b"1":
                return True
    return False

"""A service manager of a user's, the real one, alone: no machine around it, no bus, no login.

It runs as root and stays among the processes of this machine; only `/run` and the place where it
looks for control groups are its own. Its private socket is to be reached through `/proc`, so that
shims of any test can ask it for units. It is there in some 200 ms, and nothing of it stays.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

SYSTEMD = Path("/lib/systemd/systemd")
CONTROLLERS = ("memory", "pids", "cpu")
PATIENCE_S = 60.0

_RUNTIME = "/run/user/0"
_NUMBERS = itertools.count()
_BEGIN = """\
echo 0 > "$0/cgroup.procs"
exec unshare --mount --propagation private sh -ec '
  mount -t tmpfs -o mode=755 tmpfs /run
  mkdir -p /run/systemd/system /run/user/0/home
  [ -e /sys/fs/cgroup/cgroup.controllers ] || mount -t cgroup2 cgroup2 /sys/fs/cgroup
  exec env -i PATH=/usr/bin:/bin LC_ALL=C.UTF-8 HOME=/run/user/0/home XDG_RUNTIME_DIR=/run/user/0 \\
    /lib/systemd/systemd --user --unit=basic.target --log-target=console --log-level=warning'
"""


def hierarchy() -> Path | None:
    """Return where control groups of version 2 are mounted here."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            before, _, after = line.partition(" - ")
            if after.split(" ")[0] == "cgroup2":
                return Path(before.split(" ")[4])
    return None


def objection() -> str:
    """Say why there can be no such manager here; empty when there can."""
    if sys.platform != "linux":
        return "needs Linux"
    if os.geteuid() != 0:
        return "needs to be root"
    if not SYSTEMD.exists():
        return "systemd is not installed"
    if shutil.which("unshare") is None:
        return "unshare is not installed"
    top = hierarchy()
    if top is None:
        return "control groups of version 2 are not there"
    if not (top / "cgroup.controllers").exists():
        return "the top of the control groups is not to be seen here"
    trial = subprocess.run(
        ["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/run"],
        capture_output=True,
        text=True,
        check=False,
    )
    return f"nothing can be mounted: {trial.stderr.strip()}" if trial.returncode else ""


def enable(group: Path) -> tuple[str, ...]:
    """Have the groups below have the controllers that limits take; return those they lack."""
    has = (group / "cgroup.controllers").read_text().split()
    for name in CONTROLLERS:
        if name in has:
            (group / "cgroup.subtree_control").write_text(f"+{name}")
    return tuple(name for name in CONTROLLERS if name not in has)


@contextlib.contextmanager
def a_group(name: str) -> Iterator[Path]:
    """Have a control group directly below the top, with all that lives in it ended afterwards."""
    top = hierarchy()
    assert top is not None
    enable(top)
    group = top / f"{name}-{os.getpid()}-{next(_NUMBERS)}"
    group.mkdir()
    try:
        yield group
    finally:
        (group / "cgroup.kill").write_text("1")
        _until(lambda: _removed(group), f"the end of {group}")


class UserManager:
    """A running one; `group` is its control group, `socket` where it is asked for units."""

    def __init__(self, group: Path, pid: int) -> None:
        self.group = group
        self.pid = pid
        self.runtime = Path(f"/proc/{pid}/root{_RUNTIME}")
        self.socket = str(self.runtime / "systemd" / "private")

    def run(self, *argv: str, check: bool = True) -> str:
        """Run a program where the manager is, `systemctl --user` for instance."""
        enter = ("nsenter", "--target", str(self.pid), "--mount", "env", "-i")
        env = ("PATH=/usr/bin:/bin", "LC_ALL=C.UTF-8", f"XDG_RUNTIME_DIR={_RUNTIME}")
        done = subprocess.run(
            [*enter, *env, *argv], capture_output=True, text=True, check=False, cwd="/"
        )
        assert not check or done.returncode == 0, done.stderr
        return done.stdout


@contextlib.contextmanager
def user_manager(folder: Path) -> Iterator[UserManager]:
    """Start one and have it ended; its own words go to `folder`."""
    log = folder / "manager.log"
    with a_group("chump-manager") as group:
        enable(group)
        (group / "manager").mkdir()
        with log.open("wb") as out:
            process = subprocess.Popen(
                ["sh", "-ec", _BEGIN, str(group / "manager")],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )
        manager = UserManager(group, process.pid)
        try:

            def is_up() -> bool:
                assert process.poll() is None, log.read_text(errors="replace")
                if not Path(manager.socket).exists():
                    return False
                told = manager.run("systemctl", "--user", "is-system-running", check=False)
                return told.strip() in ("running", "degraded")

            _until(is_up, "a user manager")
            yield manager
        finally:
            process.kill()
            process.wait(PATIENCE_S)


def _removed(group: Path) -> bool:
    for below in sorted(group.glob("**/"), reverse=True):
        with contextlib.suppress(OSError):
            below.rmdir()
    return not group.exists()


def _until(claim: Callable[[], bool], what: str) -> None:
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        if claim():
            return
        time.sleep(0.01)
    raise AssertionError(f"{what} did not come within {PATIENCE_S:g} s")

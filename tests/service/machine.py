"""A machine made of namespaces, with a real systemd as its first process and the program installed.

It has process ids, mounts, control groups, a network and a host name of its own, over a throw-away
layer of this machine's file system. Booting takes about a second, and nothing of it is left behind.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

BOOT = Path(__file__).with_name("boot.sh")
SYSTEMD = Path("/lib/systemd/systemd")
PROGRAMS = "/opt/chump-orchestrator"
"""Where the program is installed in the machine: a virtual environment."""

UNITS = (Path("/usr/lib/systemd/system"), Path("/lib/systemd/system"))
PATIENCE_S = 60.0
DEV_UID = 1500
_NUMBERS = itertools.count()


def unified_hierarchy() -> Path | None:
    """Return where control groups of version 2 are mounted here."""
    for place in (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified")):
        if (place / "cgroup.controllers").exists():
            return place
    return None


def objection() -> str:
    """Say why no such machine can be made here; empty when one can."""
    if sys.platform != "linux":
        return "needs Linux"
    if os.geteuid() != 0:
        return "needs to be root"
    if not SYSTEMD.exists():
        return "systemd is not installed"
    missing = [name for name in ("unshare", "nsenter", "setpriv") if not shutil.which(name)]
    if missing:
        return f"{missing[0]} is not installed"
    for unit in ("dbus.service", "systemd-logind.service", "polkit.service"):
        if not any((folder / unit).exists() for folder in UNITS):
            return f"there is no {unit}"
    if unified_hierarchy() is None:
        return "control groups of version 2 are not mounted"
    trial = subprocess.run(
        [
            "unshare",
            "--mount",
            "sh",
            "-ec",
            "mount -t tmpfs t /mnt; cd /mnt; mkdir u w r;"
            " mount -t overlay -o lowerdir=/,upperdir=u,workdir=w o r",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    return f"no overlay can be mounted: {trial.stderr.strip()}" if trial.returncode else ""


def memory_is_limited_by() -> str:
    """Return the kind of control groups that limit memory here: unified, hybrid, or none."""
    hierarchy = unified_hierarchy()
    if hierarchy is None:
        return ""
    if "memory" in (hierarchy / "cgroup.subtree_control").read_text().split():
        return "unified"
    older = ("systemd", "memory", "pids")
    return "hybrid" if all(Path(f"/sys/fs/cgroup/{name}").is_dir() for name in older) else ""


class Machine:
    """One such machine; `boot` makes one, `off` takes everything of it away."""

    def __init__(self, folder: Path, cgroups: str) -> None:
        hierarchy = unified_hierarchy()
        assert hierarchy is not None
        self._folder = folder
        self._groups = [hierarchy / f"machine-{os.getpid()}-{next(_NUMBERS)}"]
        if cgroups == "hybrid":
            self._groups += [
                Path(f"/sys/fs/cgroup/{name}{_own_group(name)}") / self._groups[0].name
                for name in ("systemd", "memory", "pids")
            ]
        self._cgroups = cgroups
        self._keyboards: list[int] = []
        self._unshare: subprocess.Popen[bytes] | None = None
        self.init = 0

    @classmethod
    @contextlib.contextmanager
    def boot(cls, folder: Path, program: Path, *, cgroups: str = "unified") -> Iterator[Machine]:
        """Have a machine with the `program`, a virtual environment, installed."""
        machine = cls(folder, cgroups)
        try:
            machine._boot(program)
            yield machine
        finally:
            machine.off()

    def _boot(self, program: Path) -> None:
        for group in self._groups:
            group.mkdir()
        (self._groups[0] / "visitors").mkdir()
        layer = self._folder / "layer"
        layer.mkdir()
        console = self._folder / "console"
        with console.open("wb") as out:
            # The groups are joined before they become the root of a namespace of their own.
            self._unshare = subprocess.Popen(
                [
                    *("sh", "-ec", _JOIN, "join", *map(str, self._groups), "--"),
                    *("setpriv", "--pdeathsig", "KILL", "--"),
                    *("unshare", "--mount", "--pid", "--cgroup", "--uts", "--ipc", "--net"),
                    *("--fork", "--kill-child=KILL", "--"),
                    *(str(BOOT), str(layer), self._cgroups),
                    *(f"{program}:{PROGRAMS}", sys.base_prefix),
                ],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )
        self.init = self.eventually(self._first_child)

        def is_up() -> bool:
            assert self._unshare is not None
            assert self._unshare.poll() is None, console.read_text(errors="replace")
            told = self.run("systemctl", "is-system-running", check=False).stdout.strip()
            # Some service of a distribution may have no place in here.
            return told in ("running", "degraded")

        self.eventually(is_up)

    def _first_child(self) -> int:
        assert self._unshare is not None
        pid = self._unshare.pid
        with contextlib.suppress(OSError, LookupError):
            return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])
        return 0

    def off(self) -> None:
        """Switch it off, as one pulls the plug, and take away its control groups."""
        while self._keyboards:
            os.close(self._keyboards.pop())
        if self._unshare is not None:
            # Of a namespace for process ids, everything ends with its first.
            for pid in filter(None, (self.init, self._unshare.pid)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._unshare.wait()
        for group in self._groups:
            self.eventually(lambda group=group: _removed(group))  # type: ignore[misc]

    def path(self, path: str) -> Path:
        """Return where a file of the machine is seen from outside; links lead astray."""
        return Path(f"/proc/{self.init}/root") / path.lstrip("/")

    def write(self, path: str, text: str, *, mode: int = 0o644, owner: int = DEV_UID) -> None:
        """Write a file of the machine; the folders that are made for it are the owner's, too."""
        made = self.path(path)
        missing = [folder for folder in made.parents if not folder.exists()]
        made.parent.mkdir(parents=True, exist_ok=True)
        made.write_text(text)
        made.chmod(mode)
        for one in (made, *missing):
            os.chown(one, owner, owner)

    def run(
        self,
        *argv: str,
        user: str = "root",
        at: str = "/",
        env: Mapping[str, str] | None = None,
        check: bool = True,
        answers: str | None = None,
        timeout: float = PATIENCE_S,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the machine, as `root` or as `dev`, with a login's environment.

        With `answers` its standard input is a terminal, at which somebody types these.
        """
        given = ENVIRONMENTS[user] | dict(env or {})
        rights = [] if user == "root" else list(AS_DEV)
        stdin = subprocess.DEVNULL if answers is None else self._terminal(answers)
        done = subprocess.run(
            [
                *("sh", "-ec", _JOIN, "join", str(self._groups[0] / "visitors"), "--"),
                *("nsenter", "-t", str(self.init), "-m", "-p", "-n", "-u", "-i", "-C", "-r", "-w"),
                *("env", "-i", f"--chdir={at}", *(f"{k}={v}" for k, v in given.items())),
                *rights,
                *argv,
            ],
            stdin=stdin,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if answers is not None:
            os.close(stdin)
        if check and done.returncode != 0:
            raise AssertionError(
                f"{argv} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
            )
        return done

    def _terminal(self, answers: str) -> int:
        """Return a terminal into which this is typed ahead."""
        keyboard, terminal = pty.openpty()
        os.write(keyboard, answers.encode())
        # To close it now would hang up before anything is read.
        self._keyboards.append(keyboard)
        return terminal

    def out(self, *argv: str, **options: Any) -> str:
        """Run a command in the machine and return what it printed."""
        return self.run(*argv, **options).stdout

    def eventually(self, claim: Callable[[], T], patience_s: float = PATIENCE_S) -> T:
        """Wait until a claim holds, and return its value."""
        until = time.monotonic() + patience_s
        while True:
            if value := claim():
                return value
            assert time.monotonic() < until, self._told()
            time.sleep(0.05)

    def _told(self) -> str:
        if not self.init:
            return (self._folder / "console").read_text(errors="replace")
        return self.run("journalctl", "--no-pager", "-n", "120", check=False).stdout

    def journal(self, *matches: str) -> list[dict[str, Any]]:
        """Return the records of the journal that match."""
        self.run("journalctl", "--sync")
        told = self.out("journalctl", "--no-pager", "-o", "json", *matches)
        return [json.loads(line) for line in told.splitlines()]

    def properties(self, unit: str, *, user: bool) -> dict[str, str]:
        """Return what the service manager knows of a unit."""
        whose = ("--user",) if user else ()
        told = self.out("systemctl", *whose, "show", unit, user="dev" if user else "root")
        return dict(line.split("=", 1) for line in told.splitlines() if "=" in line)

    def log_in(self) -> None:
        """Have `dev` get a manager of their own, as a login would, without lingering."""
        self.run("systemctl", "start", f"user@{DEV_UID}.service")


_JOIN = """\
while [ "$1" != -- ]; do echo $$ > "$1/cgroup.procs"; shift; done
shift
exec "$@"
"""
"""Joins the control groups that it is given, and becomes what comes behind them."""

AS_DEV = ("setpriv", "--reuid", str(DEV_UID), "--regid", str(DEV_UID), "--init-groups", "--")

_PATH = "/usr/local/bin:/usr/bin:/bin"
ENVIRONMENTS = {
    "root": {"PATH": f"{PROGRAMS}/bin:/usr/sbin:/sbin:{_PATH}", "HOME": "/root", "USER": "root"},
    "dev": {
        "PATH": f"/home/dev/.local/bin:{PROGRAMS}/bin:{_PATH}",
        "HOME": "/home/dev",
        "USER": "dev",
        "LANG": "C.UTF-8",
        "XDG_RUNTIME_DIR": f"/run/user/{DEV_UID}",
        "DBUS_SESSION_BUS_ADDRESS": f"unix:path=/run/user/{DEV_UID}/bus",
    },
}


def _own_group(controller: str) -> str:
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        if names.removeprefix("name=") == controller:
            return path.rstrip("/")
    raise AssertionError(controller)


def _removed(group: Path) -> bool:
    """Remove a control group with all below it; say whether it is gone."""
    for folder, _, _ in os.walk(group, topdown=False):
        with contextlib.suppress(OSError):
            Path(folder).rmdir()
    return not group.exists()

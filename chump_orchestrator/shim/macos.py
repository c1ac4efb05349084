"""Processes on macOS, where there is neither a subreaper nor a parent-death signal.

What an agent started is found by its process group and by the marker `CHUMP_DISPATCH_ID` in its
environment, both through `ps`.
"""

import os
import signal
import subprocess

from chump_orchestrator.shim.regardless import Regardless

MAXRSS_BYTES = 1
"""What `ru_maxrss` counts in."""

_HAS_WAITID = hasattr(os, "waitid")  # from Python 3.13 on
_PS_LIMIT_S = 10


def adopt_orphans() -> None:
    """Nothing of the kind here; orphans are found by their marker."""


def die_with_parent(parent: int) -> None:
    """In the agent to be: leave if the shim is dead already; later, recovery has to see to it."""
    if os.getppid() != parent:
        os._exit(127)


def go_first() -> None:
    """Nothing of the kind here."""


def boot_id() -> str:
    """What tells this start of the machine from all others."""
    return _output("sysctl", "-n", "kern.boottime").strip()


def start_of(pid: int) -> str | None:
    """When a process started, as `ps` writes it; `None` when there is no such process."""
    return _output("ps", "-o", "lstart=", "-p", str(pid)).strip() or None


def has_ended(pid: int) -> bool:
    """Whether this child is over; it stays a zombie, so that its pid cannot become another's."""
    if _HAS_WAITID:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    return not is_alive(pid)


def adopted(_agent: int) -> list[int]:
    """Never any: orphans go to launchd, which reaps them."""
    return []


def living(agent: int, dispatch: str) -> list[int]:
    """Every process that is alive in the agent's group or carries the mark of its dispatch."""
    listing = _output("ps", "-Eww", "-axo", "pid=,pgid=,stat=,command=")
    return parse_ps(listing, group=agent, marker=f"CHUMP_DISPATCH_ID={dispatch}", own=os.getpid())


def parse_ps(listing: str, *, group: int, marker: str, own: int) -> list[int]:
    """The pids in a listing of pid, group, state and command that are ours and no zombies."""
    found: list[int] = []
    for line in listing.splitlines():
        fields = line.split(None, 3)
        if len(fields) < 3 or not (fields[0].isdigit() and fields[1].isdigit()):
            continue
        pid = int(fields[0])
        ours = int(fields[1]) == group or (len(fields) == 4 and marker in fields[3].split())
        if ours and pid != own and not fields[2].startswith("Z"):
            found.append(pid)
    return found


def is_alive(pid: int) -> bool:
    """Whether there is such a process, and it is no zombie."""
    state = _output("ps", "-o", "stat=", "-p", str(pid)).strip()
    return bool(state) and not state.startswith("Z")


def kill_all(agent: int, dispatch: str) -> set[int]:
    """Kill every process of the agent; those that were alive."""
    alive = set(living(agent, dispatch))
    for number in (signal.SIGSTOP, signal.SIGKILL):
        with Regardless(OSError):
            os.killpg(agent, number)
        for pid in alive:
            send(pid, number)
    return alive


def send(pid: int, number: signal.Signals) -> None:
    """Signal one process; no matter if it has gone."""
    with Regardless(OSError):
        os.kill(pid, number)


def _output(*argv: str) -> str:
    """What a program of the system prints; empty when it fails or hangs."""
    try:
        done = subprocess.run(
            argv, capture_output=True, stdin=subprocess.DEVNULL, timeout=_PS_LIMIT_S, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.decode("utf-8", "replace")

"""An agent and everything that it started: signalled, swept and counted as one."""

import os
import signal
import sys

from chump_orchestrator.shim.cgroup import Cgroup
from chump_orchestrator.shim.regardless import Regardless

if sys.platform == "linux":
    from chump_orchestrator.shim import linux as host
else:
    from chump_orchestrator.shim import macos as host


_LOOKS = 1000
"""How often a chain of forks may slip away before its last known link is taken to be alive."""


class Tree:
    """The processes of one dispatch.

    `swept` were alive after the agent had ended, `peak_rss_bytes` is that of the largest process,
    `cpu_s` the time of all that were reaped.
    """

    def __init__(self, agent: int, dispatch: str, cgroup: Cgroup | None = None) -> None:
        self.agent = agent
        self._cgroup = cgroup
        self.swept: set[int] = set()
        self.peak_rss_bytes = 0
        self.cpu_s = 0.0
        self._dispatch = dispatch
        self._asked: set[int] = set()
        self._killed: set[int] = set()

    def has_agent_ended(self) -> bool:
        """Whether the agent is over. It stays a zombie, so its pid cannot become another's."""
        return host.has_ended(self.agent)

    def living(self) -> set[int]:
        """Whatever is alive of it.

        One look is not enough to say that nothing is: a process may have forked and ended between
        the listing of its parent's children and that of its own. Who ends hands its children to
        the shim in the same moment, so nothing lives once the shim has no child but the agent.
        """
        behind: list[int] = []
        for _ in range(_LOOKS):
            found = set(host.living(self.agent, self._dispatch)) | self._confined()
            if found:
                return found
            behind = host.adopted(self.agent)
            if not behind:
                return set()
            self.bury_orphans()
        return set(behind)

    def ask_agent(self, number: signal.Signals) -> None:
        """Signal the agent alone: what it started may be ended by it in good order."""
        _signal(self.agent, number)

    def ask_all(self, number: signal.Signals) -> None:
        """Signal everything that is alive."""
        for pid in self.living():
            self._asked.add(pid)
            _signal(pid, number)

    def kill_all(self) -> None:
        """Kill everything that is alive."""
        self._killed |= host.kill_all(self.agent, self._dispatch) | self._confined()
        if self._cgroup is not None:
            self._cgroup.kill()

    def sweep(self, *, kill: bool) -> bool:
        """Ask each process that the agent left to end, once, or kill it; whether none was left."""
        living = self.living()
        # What was killed together with the agent may be a moment behind it: no leftover.
        self.swept |= living - self._killed
        if kill:
            self.kill_all()
        else:
            for pid in living - self._asked:
                _signal(pid, signal.SIGTERM)
            self._asked |= living
        return not living

    def _confined(self) -> set[int]:
        """What lives in the control group, which nothing leaves by forking."""
        if self._cgroup is None:
            return set()
        return {pid for pid in self._cgroup.processes() if host.is_alive(pid)}

    def release(self) -> None:
        """Give back the control group, of which nothing is left."""
        if self._cgroup is not None:
            self._cgroup.remove()

    def bury_orphans(self) -> None:
        """Reap what the agent orphaned and has ended since."""
        for pid in host.adopted(self.agent):
            self._reap(pid, os.WNOHANG)

    def bury_agent(self) -> int | None:
        """Reap the agent at the very end: its exit code, or minus the signal that ended it.

        `None` when it cannot be killed and lives on.
        """
        return self._reap(self.agent, os.WNOHANG if self.agent in self.living() else 0)

    def _reap(self, pid: int, options: int) -> int | None:
        with Regardless(ChildProcessError):
            reaped, status, usage = os.wait4(pid, options)
            if reaped:
                self.cpu_s += usage.ru_utime + usage.ru_stime
                peak = usage.ru_maxrss * host.MAXRSS_BYTES
                self.peak_rss_bytes = max(self.peak_rss_bytes, peak)
                return os.waitstatus_to_exitcode(status)
        return None


def describe(pid: int, shim: int) -> dict[str, object]:
    """What recovery needs to know about the two processes that it may find again."""
    return {
        "shim_pid": shim,
        "shim_start": host.start_of(shim),
        "pid": pid,
        "pgid": pid,
        "start": host.start_of(pid),
        "boot_id": host.boot_id(),
    }


def is_by_term(record: dict[str, object]) -> bool:
    """Whether an agent ended by SIGTERM, or as shells and their like tell that of others."""
    return record["signal"] == signal.SIGTERM or record["code"] == 128 + signal.SIGTERM


def adopt_orphans() -> None:
    """Have every orphan of the agent come to this process, where the system can do that."""
    host.adopt_orphans()


def _signal(pid: int, number: signal.Signals) -> None:
    """Signal a process, and wake it if it was stopped: it could not act on it otherwise."""
    host.send(pid, number)
    host.send(pid, signal.SIGCONT)

"""Where an agent is held together and to its limits, on this machine, at this moment.

Tried in this order: a scope of the shim's own, a group that the daemon was given to make others
in, and neither, where the tree of processes has to do. What is not to be had never keeps an agent
from starting, unless its limits were called a must.
"""

import os

from chump_orchestrator.shim.cgroup import (
    Cgroup,
    enable,
    memory_limit,
    number_in,
    own_group_of,
    write,
)
from chump_orchestrator.shim.files import Leave
from chump_orchestrator.shim.order import Order
from chump_orchestrator.shim.regardless import Regardless
from chump_orchestrator.shim.yielding import has_session_yield, yield_to_others

CONTROLLERS = ("memory", "pids", "cpu")

_FILES = {"memory": "memory.max", "tasks": "pids.max", "cpu_weight": "cpu.weight"}

_SHIM_MEMORY = 64 * 1024 * 1024
"""What a scope has on top of its agent's limit, so that it is the agent's that is met first."""

_SHIM_TASKS = 8
_STOP_S = 15.0
"""What a manager waits on top of the grace before it kills the shim too, which has told by then."""


class Unlimited(Leave):
    """The agent was to be started with limits that hold, or not at all."""


class Containment:
    """Made for one agent, before it is forked.

    `unit` is the name of the scope that the shim is in, or empty; `cgroup` the agent's group, once
    it is in one. `unheld` are the names of the limits that do not hold, and `why` tells of whatever
    could not be had.
    """

    def __init__(self, order: Order) -> None:
        self.unit = ""
        self.why = ""
        self._limits = order.limits
        self._path: str | None = None
        self._around: tuple[str, ...] = ()
        group = self._in_scope(order) if order.managers else None
        if group is not None:
            self._path = f"{group}/agent"
        elif not self.unit and order.cgroup is not None:
            self._path = f"{order.cgroup}/chump-{order.dispatch}"
        elif not self.unit:
            self._note("no service manager was reached, and no control group is delegated")
        self.cgroup: Cgroup | None = None
        self._impolite = 0  # the agent, while its session does not yield yet
        yield_to_others(order.limits.nice)
        self.unheld = list(self._limits.values)

    def take_in(self, pid: int) -> None:
        """Put a process that waits to become the agent into its group, where it has one.

        Raises `Unlimited` when a limit does not hold that has to.
        """
        self._impolite = pid if self._limits.nice else 0
        if self._path is not None:
            cgroup = Cgroup(self._path)
            try:
                os.mkdir(self._path)
                self._limit(self._path)
                write(f"{self._path}/cgroup.procs", str(pid).encode())
                self.cgroup = cgroup
            except OSError as error:
                self._note(f"{self._path}: {error.strerror}")
                cgroup.remove()
        self.unheld = [name for name in self._limits.values if not self._is_held(name)]
        if self.unheld and self.cgroup:
            lacking = ", ".join(_FILES[name].partition(".")[0] for name in self.unheld)
            self._note(f"{self.cgroup.path} has no controller for {lacking}")
        if self.unheld and self._limits.are_a_must:
            raise Unlimited(f"nothing holds its limits ({', '.join(self.unheld)}): {self.why}")

    def mend(self) -> None:
        """Have a living agent's session yield to others, if it does not by now."""
        if self._impolite and has_session_yield(self._impolite, self._limits.nice):
            self._impolite = 0

    def told(self) -> dict[str, object]:
        """What there is to say about it to those who watch the agent, and who come later."""
        return {
            "cgroup": self.cgroup.path if self.cgroup else None,
            "unit": self.unit or None,
            "unheld": self.unheld,
            "why": self.why,
        }

    def out_of_memory(self) -> dict[str, object] | None:
        """See `Cgroup.out_of_memory`; to be asked before the agent's group is removed.

        The limit is the agent's, also where that of a scope, which is a little higher, was met.
        """
        groups = (self.cgroup.path,) if self.cgroup is not None else ()
        paths = (*groups, *self._around)
        told = Cgroup(paths[0], paths[1:]).out_of_memory() if paths else None
        if told is not None and told["at_limit"]:
            told["limit"] = self._limits.values.get("memory", told["limit"])
        return told

    def _is_held(self, name: str) -> bool:
        value = self._limits.values[name]
        if self.cgroup is not None and _holds(self.cgroup.path, name, value):
            return True
        return any(_holds(path, name, _with_shim(name, value)) for path in self._around)

    def _in_scope(self, order: Order) -> str | None:
        """Move the shim into a scope of its own, a group to make the agent's in being left."""
        # Not at the top: where there is no manager, each shim would carry this for its whole life.
        from chump_orchestrator.shim.dbus import Failed  # noqa: PLC0415 - as above
        from chump_orchestrator.shim.scope import Wanted, enter  # noqa: PLC0415 - as above

        limits = {name: _with_shim(name, value) for name, value in self._limits.values.items()}
        wanted = Wanted(
            f"chump-{order.dispatch}.scope",
            f"Agent on {order.gap}",
            runtime_s=order.runtime_s,
            stop_s=order.grace_s + _STOP_S,
            before=order.unit,
            memory=limits.get("memory"),
            tasks=limits.get("tasks"),
            cpu_weight=limits.get("cpu_weight"),
        )
        for address in order.managers:
            try:
                group = enter(address, wanted)
            except Failed as error:
                self._note(f"{address}: {error}")
                continue
            self.unit = wanted.name
            groups = (group, *(own_group_of(name) for name in CONTROLLERS))
            self._around = tuple(
                path for path in groups if path is not None and path.endswith(f"/{wanted.name}")
            )
            return self._divided(group) if group is not None else None
        return None

    def _divided(self, group: str) -> str | None:
        """Leave the scope's own group to others: the kernel gives limits only to those below."""
        try:
            os.mkdir(f"{group}/shim")
            write(f"{group}/shim/cgroup.procs", b"0")
        except OSError as error:
            self._note(f"{group}: {error.strerror}")
            return None
        enable(group, CONTROLLERS)
        return group

    def _limit(self, path: str) -> None:
        for name, value in self._limits.values.items():
            with Regardless(OSError):
                write(f"{path}/{_FILES[name]}", str(value).encode())
        for name, content in (("memory.oom.group", b"1"), ("memory.swap.max", b"0")):
            # All of an agent goes when a part of it has to. What may be swapped has no limit.
            if name == "memory.oom.group" or "memory" in self._limits.values:
                with Regardless(OSError):
                    write(f"{path}/{name}", content)

    def _note(self, why: str) -> None:
        self.why = f"{self.why}; {why}" if self.why else why


def _with_shim(name: str, value: int) -> int:
    return value + {"memory": _SHIM_MEMORY, "tasks": _SHIM_TASKS}.get(name, 0)


def _holds(path: str, name: str, value: int) -> bool:
    """Whether a group has a limit as low as that; the kernel rounds memory to pages."""
    if name == "cpu_weight":
        shares = number_in(f"{path}/cpu.shares")
        return number_in(f"{path}/cpu.weight") == value or shares == value * 1024 // 100
    found = memory_limit(path) if name == "memory" else number_in(f"{path}/{_FILES[name]}")
    return found is not None and found <= value

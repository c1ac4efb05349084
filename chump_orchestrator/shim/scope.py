"""A unit of the shim's own at the service manager, for itself and whatever it starts.

It is a scope, which the manager makes around the process that asks. Its processes live on when
the daemon's own unit is stopped or started anew, and the manager holds it to limits, the last of
them one of time. Asked is the manager itself, on the socket that `systemctl` uses, and who asks is
known to it by the connection: no process id is named, so none can be another's.
"""

import time

from chump_orchestrator.shim.cgroup import own_group
from chump_orchestrator.shim.dbus import ERROR, RETURN, SIGNAL, Connection, Failed

PATIENCE_S = 3.0
"""How long a manager may take in all; one that is well needs some 5 ms."""

SLICE = "chump-agents.slice"
"""Below which all agents are; the manager makes it up where no such unit is installed."""

_PATH = "/org/freedesktop/systemd1"
_INTERFACE = "org.freedesktop.systemd1.Manager"
_WHO_ASKS = 0
_MICROSECONDS = 1_000_000

Property = tuple[str, tuple[str, object]]


class Wanted:
    """What a scope is to be: its name, for people a description, its limits.

    `memory` is in bytes, `None` for no limit. `runtime_s` is after how long the manager ends it,
    `stop_s` how long it waits after TERM. `before` is the daemon's own unit, which is stopped first
    when all is, so that it can have its agents stopped in good order; empty when it has none.
    """

    def __init__(
        self,
        name: str,
        description: str,
        *,
        runtime_s: float,
        stop_s: float,
        before: str = "",
        memory: int | None = None,
        tasks: int | None = None,
        cpu_weight: int | None = None,
    ) -> None:
        self.name = name
        self._plain: list[Property] = [
            ("Description", ("s", description)),
            ("Slice", ("s", SLICE)),
            ("PIDs", ("au", [_WHO_ASKS])),
            ("Delegate", ("b", True)),
        ]
        if memory is not None:
            self._plain.append(("MemoryMax", ("t", memory)))
        if tasks is not None:
            self._plain.append(("TasksMax", ("t", tasks)))
        if cpu_weight is not None:
            self._plain.append(("CPUWeight", ("t", cpu_weight)))
        if before:
            self._plain.append(("Before", ("as", [before])))
        self._later: list[Property] = [
            ("CollectMode", ("s", "inactive-or-failed")),
            ("TimeoutStopUSec", ("t", int(stop_s * _MICROSECONDS))),
            ("RuntimeMaxUSec", ("t", int(runtime_s * _MICROSECONDS))),
        ]
        # From version 253 on a manager would otherwise stop all of it when one part is killed.
        self._latest: list[Property] = [("OOMPolicy", ("s", "continue"))]

    def drafts(self) -> list[list[Property]]:
        """Its properties, and again without those that an older manager does not know."""
        return [
            [*self._plain, *self._later, *self._latest],
            [*self._plain, *self._later],
            self._plain,
        ]


def enter(address: str, wanted: Wanted) -> str | None:
    """Have this process moved into a scope of its own; the folder of its control group.

    `None` where there is no control group of version 2 to be seen afterwards. Raises `Failed` with
    the reason when it stays where it was.
    """
    until = time.monotonic() + PATIENCE_S
    why = ""
    manager = Connection(address, until)
    try:
        for draft in wanted.drafts():
            why = _started(manager, wanted.name, draft)
            if not why:
                break
        else:
            raise Failed(why)
    finally:
        manager.close()
    group = own_group()
    if group is not None and not group.endswith(f"/{wanted.name}"):
        raise Failed(f"it did not move us to {wanted.name}")
    return group


def _started(manager: Connection, name: str, properties: list[Property]) -> str:
    """Have the scope started and wait for it; why it was not, or nothing when it was."""
    serial = manager.call(
        _PATH,
        _INTERFACE,
        "StartTransientUnit",
        "ssa(sv)a(sa(sv))",
        [name, "fail", properties, []],
    )
    job = None
    done: dict[object, object] = {}
    while True:
        said = manager.hear()
        if said.kind == ERROR and said.answers == serial:
            return str([*said.body(), said.error][0])
        if said.kind == RETURN and said.answers == serial:
            (job,) = said.body() or [""]
        elif said.kind == SIGNAL and said.member == "JobRemoved":
            _, path, _, result = [*said.body(), "", "", "", ""][:4]
            done[path] = result
        if job in done:
            return "" if done[job] == "done" else f"it could not start {name}: {done[job]}"

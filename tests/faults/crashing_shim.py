"""The shim, in a process that dies or dawdles at a named step; standard library only.

Started like the interpreter of a shim, by a program that `rigs.shim_program` writes. Whatever is
done here is done to the first dispatch of each gap that is named. Steps: `s4-before`, `s4-torn`
(before the rename), `s4-after` and so on.
"""

from __future__ import annotations

import fcntl
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.append(str(Path(sys.argv[-2]).parents[2]))

from chump_orchestrator.shim import child, linux, logs, owner, stream, tree

READY = b"ready"
"""In what an agent prints when s6 may come."""

_PATIENCE_S = 20.0


class Plan:
    """What is to be done, to the dispatches of which gap, and where that is noted."""

    def __init__(self, told: dict[str, Any], directory: Path) -> None:
        self.slug = next((slug for slug in told["at"] if directory.name.startswith(f"{slug}-")), "")
        self.at: str = told["at"].get(self.slug, "")
        self.pause_s: float = told["pause_s"]
        self.is_held: bool = told["is_held"]
        self.late: str = told["late"]
        self.seed: str = told["seed"]
        self.without: list[str] = told["without"]
        self.directory = directory
        self._folder = Path(told["folder"])
        self._done = self._folder / f"{self.slug}.done"

    @property
    def is_meant(self) -> bool:
        """Whether this is a dispatch that something is to be done to."""
        return bool(self.slug) and not self._done.exists()

    def crash(self) -> None:
        """Die now, or once the test lets it, unless that was done already."""
        time.sleep(self.pause_s)
        until = time.monotonic() + _PATIENCE_S
        while self.is_held and not (self._folder / "crash").exists() and time.monotonic() < until:
            time.sleep(0.005)
        if not self._done.exists():
            self.note()
            os.kill(os.getpid(), signal.SIGKILL)
            signal.pause()

    def note(self) -> None:
        """Say that it is done."""
        self._done.touch()

    def dawdle(self) -> None:
        """Begin late: after the go, up to half a second of chance; or once a rival runs."""
        until = time.monotonic() + _PATIENCE_S
        while time.monotonic() < until and not self._may_begin():
            time.sleep(0.005)
        if self.late == "go":
            time.sleep(random.Random(f"{self.seed}{self.directory.name}").uniform(0, 0.5))

    def _may_begin(self) -> bool:
        if self.late == "go":
            return (self._folder / "go").exists()
        others = self.directory.parent.glob(f"{self.slug}-*/running.json")
        return any(other.parent != self.directory for other in others)


def _wrap(
    where: object,
    name: str,
    before: Callable[..., object] | None = None,
    after: Callable[..., object] | None = None,
) -> None:
    real = getattr(where, name)

    def wrapped(*args: Any, **more: Any) -> Any:
        if before is not None:
            before(*args)
        result = real(*args, **more)
        if after is not None:
            after(result, *args)
        return result

    _put(where, name, wrapped)


def _put(where: object, name: str, new: object) -> None:
    setattr(where, name, new)


STEPS = {
    "s1": (fcntl, "flock"),
    "s2": (owner, "take_over"),
    "s3": (owner, "fork"),
    "s4": (owner, "write_durably"),
    "s5": (child.Child, "release"),
    "s6": (stream.Stream, "_keep"),
    "s7": (owner.Owner, "_end"),
    "s8": (tree.Tree, "sweep"),
    "s9": (logs.StreamLog, "sync"),
    "s10": (owner, "write_durably"),
    "s11": (owner.Owner, "_take_leave"),
}
FILES = {"s4": "running.json", "s10": "exit.json"}


def arm(plan: Plan) -> None:
    """Have the shim crash where the plan says."""
    step, _, when = plan.at.partition("-")
    if plan.at == "s3-orphaned":  # between the fork and what binds the child's life to ours
        _wrap(linux, "die_with_parent", before=lambda parent: _orphan(plan, parent))
        # However late the child gets to it, the shim goes no further.
        _wrap(owner, "fork", after=lambda *_: time.sleep(_PATIENCE_S))
    elif when == "torn":
        wanted = FILES[step]
        _wrap(os, "rename", before=lambda _, to: plan.crash() if to == wanted else None)
    else:

        def crash(*args: Any) -> None:
            if step in FILES and FILES[step] not in args:
                return
            if step == "s6" and not any(READY in arg for arg in args if isinstance(arg, bytes)):
                return
            plan.crash()

        _wrap(*STEPS[step], **{when: crash})  # type: ignore[arg-type]


def _orphan(plan: Plan, parent: int) -> None:
    plan.note()
    os.kill(parent, signal.SIGKILL)
    until = time.monotonic() + _PATIENCE_S
    while os.getppid() == parent and time.monotonic() < until:
        time.sleep(0.001)


def leave_out(protection: str) -> None:
    """Leave out one of the shim's protections."""
    if protection == "barrier":
        _wrap(owner, "fork", after=lambda made, *_: os.write(made._barrier, b"g"))
    elif protection == "parent-death":
        _put(linux, "die_with_parent", lambda _: None)
    elif protection == "deadline":
        _put(owner.Owner, "_press", lambda *_: None)
    else:
        raise ValueError(protection)


def main(told: dict[str, Any]) -> int:
    """Be the shim of the dispatch that the last argument names."""
    plan = Plan(told, Path(sys.argv[-1]))
    for protection in plan.without:
        leave_out(protection)
    if plan.is_meant and plan.late:
        plan.dawdle()
    if plan.is_meant and plan.at:
        arm(plan)
    return owner.main(sys.argv[-2:])

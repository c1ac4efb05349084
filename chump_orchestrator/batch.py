"""The first implementation's way: one batch, nothing refilled (behaviour C2)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

from chump_orchestrator import wiring
from chump_orchestrator.core.outcome import OutcomeKind
from chump_orchestrator.core.picker import choose

if TYPE_CHECKING:
    from chump_orchestrator.config import Loaded
    from chump_orchestrator.daemon.operations import Operator

Say = Callable[[str], None]

COUNTED = ("shipped", "ci_failed", "stalled", "killed", "race_abandoned")
"""Outcomes in the closing line, in its order."""


class _Batch:
    """Prints what happens to a batch, and lets go of it once all of it is launched."""

    def __init__(self, gaps: Collection[str], out: Say, err: Say, *, watch: bool) -> None:
        self.failed = 0
        self.counts: Counter[str] = Counter()
        self._gaps, self._left = frozenset(gaps), len(gaps)
        self._out, self._err, self._watch = out, err, watch
        self._all_launched = anyio.Event()
        self._branches: dict[str, str] = {}

    async def let_go(self, operator: Operator) -> None:
        """Detach as soon as the whole batch is launched."""
        await self._all_launched.wait()
        operator.detach()

    def hear(self, event: str, fields: Mapping[str, object]) -> None:
        gap = str(fields.get("gap", ""))
        if gap not in self._gaps:
            return  # of an earlier batch, taken up on the way
        if event == "dispatch.launched":
            self._branches[gap] = str(fields["branch"])
            self._out(f"DISPATCHED: {gap} in {fields['worktree']} as PID {fields['pid']}")
            self._launched()
        elif event == "dispatch.settled":
            outcome = str(fields["outcome"])
            if outcome == OutcomeKind.SPAWN_FAILED:
                self.failed += 1
                self._err(f"DISPATCH-FAILED: {gap}: {fields['reason']}")
            else:
                self.counts[outcome] += 1
                if self._watch:
                    word = outcome.upper().replace("_", "-")
                    self._out(f"  {word:<14} {self._branches.get(gap, gap)}")
            if gap not in self._branches:
                self._launched()

    def _launched(self) -> None:
        self._left -= 1
        if self._left <= 0:
            self._all_launched.set()


async def run_batch(
    root: Path, loaded: Loaded, *, watch: bool, reflect: bool, out: Say, err: Say
) -> int:
    """Dispatch as many gaps as there are slots; with `watch`, wait for their outcomes.

    Returns 1 when a spawn failed, as it was. Without `watch` the agents go on under their shims.
    """
    backlog = await wiring.read_backlog(root, loaded)
    async with wiring.open_ledger(root, loaded, readonly=True) as ledger:
        standing = await wiring.standing(root, loaded, backlog, ledger)
        active = await ledger.records(active=True)
    settings = loaded.settings
    wiring.check(root, loaded, await wiring.routes(root, loaded), faults_allowed=False)
    free = max(settings.max_parallel - sum(1 for one in active if one.holds_slot), 0)
    picked = choose(standing, free, wiring.pick_policy(settings)).picked
    if not picked:
        why = "no open gap is eligible" if free else "no slot is free"
        err(f"nothing to dispatch: {why}; `plan --explain` says more")
        return 0
    out(f"{backlog.total} gaps, {backlog.open} open, dispatching {len(picked)}")
    batch = _Batch([gap.id for gap in picked], out, err, watch=watch)
    options = wiring.RunOptions(
        once=True,
        gaps=tuple(gap.id for gap in picked),
        limit=len(picked),
        reflect=reflect,
        on_event=batch.hear,
        beside=None if watch else batch.let_go,
    )
    account = await wiring.run(root, loaded, options)
    if watch:
        counts = "  ".join(f"{name}={batch.counts[name]}" for name in COUNTED)
        out(f"{counts}  spawn_failures={batch.failed}")
    else:
        err("the agents go on by themselves; `chump-orchestrator run` settles them")
    if account.interrupted:
        return 130
    if account.held_up:
        err(f"not all could be dispatched: {account.held_up}")
    return 1 if batch.failed else 0

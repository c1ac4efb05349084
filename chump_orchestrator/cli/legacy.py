"""The first implementation's flags, without a command: one batch, no refill (behaviour C2)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import click

from chump_orchestrator import logs, wiring
from chump_orchestrator.batch import run_batch
from chump_orchestrator.cli.exits import ExitCode
from chump_orchestrator.cli.options import Invocation, flags
from chump_orchestrator.cli.planning import plan
from chump_orchestrator.cli.render import note, say, say_meanwhile
from chump_orchestrator.cli.repository import opened, wait_for


def dry_run(invocation: Invocation, given: Mapping[str, Any]) -> int:
    """Print what one batch would dispatch."""
    root, loaded = opened(invocation, flags(**given), aloud=True)
    planned = plan(root, loaded)
    for text in planned.notes:
        note(f"note: {text}")
    if not planned.picked:
        why = "no slot is free" if planned.choice.waiting else "no open gap is eligible"
        note(f"nothing to dispatch: {why}; `plan --explain` says more")
        return ExitCode.DONE
    settings = loaded.settings
    click.echo(
        f"{planned.backlog.total} gaps, {planned.backlog.open} open,"
        f" max_parallel={settings.max_parallel}; a dry run, --execute dispatches"
    )
    for one in planned.picked:
        say(
            f"WOULD DISPATCH: {one.gap.id} (prio={one.gap.priority} effort={one.gap.effort})"
            f" in ./{settings.worktrees.base.strip('/')}/{one.names.folder}  -- {one.gap.title}"
        )
    return ExitCode.DONE


def execute(invocation: Invocation, given: Mapping[str, Any], *, watch: bool, reflect: bool) -> int:
    """Dispatch one batch, and with `watch` wait for it; fails only when a spawn did."""
    root, loaded = opened(invocation, flags(**given), aloud=True)
    wiring.start_logging(root, loaded)
    batch = partial(
        run_batch,
        root,
        loaded,
        watch=watch,
        reflect=reflect,
        out=say_meanwhile,
        err=note,
    )
    return wait_for(batch)


def self_test() -> int:
    """Try the whole pipeline with injected faults."""
    from chump_orchestrator.self_test import self_test as try_all  # noqa: PLC0415 - seldom needed

    logs.configure(level="critical", format="console")
    return wait_for(partial(try_all, say_meanwhile))

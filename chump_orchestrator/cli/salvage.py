"""Work of agents that was kept as it was neither pushed nor merged: list, show, restore."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click

from chump_orchestrator import config, premises
from chump_orchestrator.adapters.git import Git
from chump_orchestrator.adapters.worktrees.salvaged import Restored, Salvaged, SalvagedWork
from chump_orchestrator.cli.options import Invocation, as_json, everywhere, here
from chump_orchestrator.cli.render import emit, instant, note, say, table
from chump_orchestrator.cli.repository import opened, wait_for
from chump_orchestrator.config import Loaded
from chump_orchestrator.core.errors import ConfigError, Refused, Unavailable
from chump_orchestrator.core.gap import plain
from chump_orchestrator.core.records import Record

SHOWN_FILES = 1_000
"""At most so many names of files in JSON; `files` counts all of them."""


@dataclass(frozen=True, slots=True)
class Kept:
    """One snapshot with what else is known of it; `record` of `None` is not on record."""

    one: Salvaged
    record: Record | None
    base: str
    files: tuple[str, ...]
    commits: int

    @property
    def branch(self) -> str:
        if self.one.branch or self.record is None:
            return self.one.branch
        return self.record.dispatch.names.branch

    @property
    def reason(self) -> str:
        """Why it was kept."""
        if not self.one.reason and not self.one.is_dirty:
            return "commits of it are on no remote and not merged"
        return self.one.reason

    def document(self) -> dict[str, Any]:
        """Return it in the shape of `salvage list --json`."""
        one, record = self.one, self.record
        return {
            "dispatch": one.dispatch,
            "gap": None if record is None else record.dispatch.gap.id,
            "when": instant(one.at),
            "reason": self.reason or None,
            "files": len(self.files),
            "commits": self.commits,
            "uncommitted": one.is_dirty,
            "branch": self.branch or None,
            "base": self.base or None,
            "ref": one.ref,
            "commit": one.oid,
        }


@click.group("salvage")
@everywhere
def salvage_command() -> None:
    """List, show and restore work that was kept when its worktree went."""


@salvage_command.command("list")
@as_json
@everywhere
@click.pass_obj
def list_command(invocation: Invocation, *, as_json: bool) -> None:
    """List the snapshots of worktrees, the latest first."""
    kept = wait_for(partial(_all, *opened(invocation)))
    if as_json:
        emit({"salvage": [one.document() for one in kept]})
        return
    if not kept:
        note("nothing had to be salvaged")
        return
    rows = [
        (
            row["dispatch"],
            row["gap"] or "-",
            f"{row['when']:.16}".replace("T", " "),
            row["files"],
            row["reason"] or "-",
        )
        for row in (one.document() for one in kept)
    ]
    table(("DISPATCH", "GAP", "WHEN", "FILES", "REASON"), rows)


@salvage_command.command("show")
@click.argument("dispatch", metavar="ID")
@as_json
@everywhere
@click.pass_obj
def show_command(invocation: Invocation, dispatch: str, *, as_json: bool) -> None:
    """Show what the snapshot of a dispatch, or of a gap's latest one, holds."""
    root, loaded = opened(invocation)
    kept, committed, uncommitted = wait_for(partial(_shown, root, loaded, dispatch))
    one = kept.one
    if as_json:
        names = [name.encode("utf-8", "replace").decode() for name in kept.files[:SHOWN_FILES]]
        parts = {"head": one.head, "staged": one.staged or None, "others": list(one.others)}
        emit({**kept.document(), **parts, "names": names})
        return
    row = kept.document()
    for name in ("dispatch", "gap", "when", "reason", "branch", "ref"):
        say(f"{name + ':':10}{row[name] or '-'}")
    for title, stat in (
        (f"{kept.commits} commits, since {kept.base[:12] or '?'}", committed),
        ("not committed", uncommitted),
    ):
        if stat:
            click.echo(f"\n{title}:")
            click.echo(plain(stat))
    click.echo("\nto look into it:")
    click.echo(f"  git log --stat {kept.base and kept.base[:12] + '..'}{one.ref}")
    click.echo(f"  git diff {one.head} {one.ref}" if one.is_dirty else f"  git show {one.ref}")
    click.echo(f"  git show {one.ref}:FILE")
    click.echo(f"to bring it back:\n  chump-orchestrator salvage restore {one.dispatch}")


@salvage_command.command("restore")
@click.argument("dispatch", metavar="ID")
@click.option(
    "--into",
    metavar="BRANCH|PATH",
    help="A new branch, or a new worktree where it begins with / or a dot; by default a worktree.",
)
@everywhere
@click.pass_obj
def restore_command(invocation: Invocation, dispatch: str, *, into: str | None) -> None:
    """Bring the snapshot of a dispatch back, to a new worktree or branch; it stays, too."""
    root, loaded = opened(invocation)
    branch, path = "", None
    if into is not None and into.startswith(("/", ".", "~")):
        path = Path(os.path.normpath(here() / Path(into).expanduser()))
    else:
        branch = into or ""
    kept, restored = wait_for(partial(_restored, root, loaded, dispatch, branch, path))
    if restored.path is None:
        say(f"{kept.one.dispatch} is on the new branch {restored.branch}")
        if kept.one.is_dirty:
            note("its last commit holds what was not committed; a worktree would keep that apart")
    else:
        say(f"{kept.one.dispatch} is in {restored.path}, on the new branch {restored.branch}")
    for branch in restored.more:
        say(f"commits of it that are not on that branch are on {branch}")


def _work(root: Path) -> SalvagedWork:
    return SalvagedWork(Git(root, config.environment()))


async def _records(root: Path, loaded: Loaded) -> Mapping[str, Record]:
    """Return what the ledger knows of dispatches; nothing, with a note, if it cannot be read."""
    try:
        async with premises.open_ledger(root, loaded, readonly=True) as ledger:
            return {record.dispatch.id: record for record in await ledger.records()}
    except (ConfigError, Refused, Unavailable) as error:
        note(f"note: {error}")
        return {}


async def _all(root: Path, loaded: Loaded) -> list[Kept]:
    work, records = _work(root), await _records(root, loaded)
    return [await _kept(work, one, records.get(one.dispatch)) for one in await work.all()]


async def _kept(work: SalvagedWork, one: Salvaged, record: Record | None) -> Kept:
    workspace = record.workspace if record is not None else None
    base = await work.base_of(one, workspace.base if workspace is not None else "")
    files = await work.files(one, base) if base else ()
    return Kept(one, record, base, files, await work.commits(one, base))


async def _found(root: Path, loaded: Loaded, name: str) -> tuple[SalvagedWork, Kept]:
    """Find a snapshot by its dispatch, or the latest one of a gap."""
    work, records = _work(root), await _records(root, loaded)
    for one in await work.all():
        record = records.get(one.dispatch)
        if one.dispatch == name or (record is not None and record.dispatch.gap.id == name):
            return work, await _kept(work, one, record)
    raise Refused(f"there is no snapshot of {name[:80]!r}; `salvage list` has what there is")


async def _shown(root: Path, loaded: Loaded, name: str) -> tuple[Kept, str, str]:
    work, kept = await _found(root, loaded, name)
    one = kept.one
    committed = await work.stat(kept.base, one.head) if kept.base and one.head else ""
    uncommitted = await work.stat(one.head or kept.base, one.oid) if one.is_dirty else ""
    return kept, committed, uncommitted


async def _restored(
    root: Path, loaded: Loaded, name: str, branch: str, path: Path | None
) -> tuple[Kept, Restored]:
    work, kept = await _found(root, loaded, name)
    dispatch = kept.one.dispatch
    if not branch and path is None:
        path = root / loaded.settings.worktrees.base / f"salvage-{dispatch}"
    branch = branch or f"salvage/{dispatch}"
    return kept, await work.restore(kept.one, branch=branch, path=path)

"""Whether everything is in order for agents to work unattended, and what to do where it is not."""

from __future__ import annotations

import sys
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

from chump_orchestrator.cli import client, streams
from chump_orchestrator.cli.exits import ExitCode
from chump_orchestrator.cli.options import Invocation, as_json, everywhere, here
from chump_orchestrator.cli.render import emit, note
from chump_orchestrator.cli.repository import located, wait_for
from chump_orchestrator.core.errors import ConfigError
from chump_orchestrator.core.gap import on_one_line
from chump_orchestrator.doctor import checks
from chump_orchestrator.doctor.examination import Examined, examine, has_failed, treat
from chump_orchestrator.doctor.findings import Check, Status
from chump_orchestrator.doctor.subject import Subject, subject_at

STYLES = {Status.OK: "green", Status.WARN: "yellow", Status.FAIL: "bold red", Status.SKIP: "dim"}
NAMES = max(len(check.name) for check in checks.ALL) + 2
STATUSES = 6
NARROWEST = 60
"""Columns of a terminal below which lines are left for it to fold."""


@click.command("doctor")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--fix", is_flag=True, help="Mend what can be mended without losing anything.")
@as_json
@everywhere
@click.pass_obj
def doctor_command(
    invocation: Invocation, *, names: tuple[str, ...], fix: bool, as_json: bool
) -> int:
    """Look at everything that agents need, and say what is amiss.

    With NAMEs, only those checks are carried out. Exit 1 if something is broken.
    """
    try:
        wanted = checks.named(names)
    except KeyError as error:
        known = " ".join(check.name for check in checks.ALL)
        msg = f"there is no check {on_one_line(str(error.args[0]))[:80]!r}; there are {known}"
        raise click.UsageError(msg) from None
    found = wait_for(partial(_examined, _subjects(invocation), wanted, fix=fix))
    with streams.for_whom_it_may_concern():
        if as_json:
            emit(_document(found))
        else:
            _tell(found)
    return ExitCode.FAILED if has_failed(found) else ExitCode.DONE


def _subjects(invocation: Invocation) -> partial[Subject]:
    """Return what makes the subject, also anew; without a repository, of the current folder."""
    root, why = None, ""
    try:
        root = located(invocation)
    except ConfigError as error:
        why = str(error)
    where = invocation.repo_root or here()
    return partial(subject_at, root, no_root=why, where=where, ask=_status)


def _status(path: Path) -> Mapping[str, Any] | None:
    try:
        status: Mapping[str, Any] = client.ask(path, "status")["status"]
    except client.NotRunning:
        return None
    return status


async def _examined(
    subjects: partial[Subject], wanted: Sequence[Check], *, fix: bool
) -> list[Examined]:
    subject = subjects()
    found = await examine(subject, wanted)
    return await treat(subject, found, subjects) if fix else found


def _document(found: Sequence[Examined]) -> dict[str, Any]:
    """Return it in the shape of `doctor --json`."""
    counts = Counter(one.status for one in found)
    return {
        "ok": not has_failed(found),
        "counts": {str(status): counts[status] for status in Status},
        "checks": [
            {
                "name": one.check.name,
                "theme": one.check.theme,
                "asks": one.check.asks,
                "status": str(one.status),
                "found": "; ".join(finding.found for finding in one.findings),
                "remedy": "; ".join(f.remedy for f in one.findings if f.remedy) or None,
                "findings": [
                    {"status": str(f.status), "found": f.found, "remedy": f.remedy or None}
                    for f in one.findings
                ],
                "fixed": list(one.mended),
                "not_fixed": one.unmended or None,
                "took_s": round(one.took_s, 3),
            }
            for one in found
        ],
    }


def _tell(found: Sequence[Examined]) -> None:
    """Print a line for each finding, and its remedy below it."""
    for one in found:
        for status, name, text in _lines(one):
            _print(status, name, text)
    counts = Counter(one.status for one in found)
    told = [f"{counts[status]} {status}" for status in Status if counts[status]]
    note(f"{len(found)} check{'' if len(found) == 1 else 's'}: {', '.join(told)}")


def _lines(one: Examined) -> Iterator[tuple[Status | None, str, str]]:
    name = one.check.name
    for finding in one.findings:
        yield finding.status, name, finding.found
        if finding.remedy:
            yield None, "", f"-> {finding.remedy}"
        name = ""
    for text in one.mended:
        yield None, "", f"fixed: {text}"
    if one.unmended:
        yield None, "", f"not fixed: {one.unmended}"


def _print(status: Status | None, name: str, text: str) -> None:
    label = f"{status or '':{STATUSES}}"
    indent = " " * (STATUSES + NAMES)
    if not sys.stdout.isatty():
        click.echo(f"{label}{name:{NAMES}}{text}")
        return
    from rich.console import Console  # noqa: PLC0415 - slow to import, and seldom needed
    from rich.text import Text  # noqa: PLC0415 - as above

    console = Console(highlight=False)
    lines = [text]
    if console.width >= NARROWEST:
        lines = textwrap.wrap(text, console.width - len(indent), break_on_hyphens=False) or [""]
    style = STYLES.get(status, "") if status is not None else ""
    head = Text.assemble((label, style), f"{name:{NAMES}}", lines[0])
    for line in (head, *(Text(indent + rest) for rest in lines[1:])):
        console.print(line, soft_wrap=True)

"""Carries out checks: side by side, each within its limit, and none able to fell the others."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import anyio

from chump_orchestrator.core.errors import ConfigError, Refused, Unavailable
from chump_orchestrator.core.gap import on_one_line
from chump_orchestrator.doctor.findings import Check, Finding, Status, fail, skip, told, worst
from chump_orchestrator.doctor.subject import Subject
from chump_orchestrator.premises import Busy
from chump_orchestrator.settings.secrets import masked

T = TypeVar("T")

AT_ONCE = 8
"""Checks that run side by side; what most of them wait for are other programs."""

NO_REPOSITORY = "there is no repository to look at"


@dataclass(frozen=True, slots=True)
class Examined:
    """A check with what it found.

    `mended` says what was done about it, `unmended` why that could not be; both are empty
    where nothing was tried. `took_s` is the time that it took to look.
    """

    check: Check
    findings: tuple[Finding, ...]
    took_s: float
    mended: tuple[str, ...] = ()
    unmended: str = ""

    @property
    def status(self) -> Status:
        """How things stand, all findings together."""
        return worst(self.findings)


async def examine(subject: Subject, checks: Sequence[Check]) -> list[Examined]:
    """Carry out the checks and return what they found, in their order."""
    results: dict[str, Examined] = {}
    turns = anyio.CapacityLimiter(AT_ONCE)

    async def one(check: Check) -> None:
        async with turns:
            results[check.name] = await _examined(subject, check)

    async with anyio.create_task_group() as group:
        for check in checks:
            group.start_soon(one, check)
    return [results[check.name] for check in checks]


async def treat(
    first: Subject, examined: Sequence[Examined], again: Callable[[], Subject]
) -> list[Examined]:
    """Mend what can safely be mended, one thing after the other, and look at it once more.

    `again` makes a subject that knows nothing of before, as mending one thing may change others.
    """
    treated: list[Examined] = []
    for one in examined:
        is_well = one.status in (Status.OK, Status.SKIP)
        treated.append(one if is_well or one.check.mend is None else await _mended(first, one))
    if not any(one.mended for one in treated):
        return treated
    ill = [one.check for one in treated if one.status is not Status.OK]
    anew = {one.check.name: one for one in await examine(again(), ill)}

    def latest(one: Examined) -> Examined:
        new = anew.get(one.check.name)
        return one if new is None else replace(new, mended=one.mended, unmended=one.unmended)

    return [latest(one) for one in treated]


def has_failed(examined: Iterable[Examined]) -> bool:
    """Say whether anything is broken."""
    return any(one.status is Status.FAIL for one in examined)


async def _examined(subject: Subject, check: Check) -> Examined:
    began = anyio.current_time()
    if check.needs_repository and not subject.has_root:
        return Examined(check, (skip(NO_REPOSITORY),), 0.0)
    try:
        found = await _within(check, lambda: check.look(subject))
    except (ConfigError, Refused, Unavailable) as error:
        found = [told(error, "mend this, and ask again")]
    except Exception as error:  # noqa: BLE001 - the others are to be told all the same
        found = [fail(_bug(error), "report it, with what `doctor --json` prints")]
    findings = tuple(_clean(finding, subject) for finding in found)
    return Examined(check, findings, anyio.current_time() - began)


async def _mended(subject: Subject, one: Examined) -> Examined:
    mend = one.check.mend
    if mend is None or (one.check.needs_repository and not subject.has_root):
        return one
    try:
        done = await _within(one.check, lambda: mend(subject))
    except Busy as error:
        return replace(one, unmended=f"{error}; it mends this itself at its next start")
    except (ConfigError, Refused, Unavailable) as error:
        return replace(one, unmended=masked(on_one_line(str(error)), subject.hidden))
    except Exception as error:  # noqa: BLE001 - as above
        return replace(one, unmended=_bug(error))
    return replace(one, mended=tuple(masked(text, subject.hidden) for text in done))


async def _within(check: Check, work: Callable[[], Awaitable[Sequence[T]]]) -> Sequence[T]:
    try:
        with anyio.fail_after(check.limit_s):
            return await work()
    except TimeoutError as error:
        msg = f"this did not end within {check.limit_s:g} s; see what it waits for"
        raise Unavailable(msg) from error


def _bug(error: Exception) -> str:
    return f"the check itself failed: {type(error).__name__}: {on_one_line(str(error))}"


def _clean(finding: Finding, subject: Subject) -> Finding:
    """Return what was found without secrets, and on one line each, whoever wrote parts of it."""
    return replace(
        finding,
        found=masked(on_one_line(finding.found), subject.hidden),
        remedy=masked(on_one_line(finding.remedy), subject.hidden),
    )

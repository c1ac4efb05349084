"""The command `doctor`: checks side by side, none able to fell the others (behaviour C1, C7)."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from chump_orchestrator import config
from chump_orchestrator.core.errors import Refused
from chump_orchestrator.doctor.checks import ALL
from chump_orchestrator.doctor.examination import Examined, examine, treat
from chump_orchestrator.doctor.findings import Check, Finding, Status, fail, ok, skip, warn, worst
from chump_orchestrator.doctor.subject import Once, Subject, subject_at
from tests.e2e.cli_repository import Repository, ended
from tests.e2e.clinic import Clinic, snapshot


def test_of_a_healthy_project_nothing_is_amiss(clinic: Clinic) -> None:
    found = clinic.found()

    amiss = {name: one for name, one in found.items() if one["status"] not in ("ok", "skip")}
    assert list(found) == [check.name for check in ALL]
    assert len(found) > 20
    # Both are warnings about where the tests run: as root in a sandbox, on a disk in memory.
    assert amiss.keys() <= {"root", "filesystem"}
    assert {n for n, one in found.items() if one["status"] == "skip"} == {
        "secrets",
        "service",
        "service-path",
        "service-drift",
        "lingering",
    }
    assert all(one["remedy"] is None for one in found.values() if one["status"] == "ok")


def test_looking_changes_nothing(clinic: Clinic) -> None:
    clinic.repository.in_ledger(ended)
    before = snapshot(clinic.root), snapshot(clinic.origin)

    clinic.found()

    assert (snapshot(clinic.root), snapshot(clinic.origin)) == before


def test_what_is_broken_is_told_with_its_remedy_and_exit_1(clinic: Clinic) -> None:
    clinic.repository.write(".chump/orchestrator.toml", "[pick]\nkynd = 'user'\n")

    said = clinic.doctor("settings")

    first, second, *rest = said.out.splitlines()
    assert (said.code, rest) == (1, [])
    assert first.startswith("fail  settings")
    assert "orchestrator.toml:2: pick.kynd" in first
    assert second.split(maxsplit=1)[0] == "->"
    assert said.err == "1 check: 1 fail\n"


def test_a_warning_is_no_failure(clinic: Clinic) -> None:
    clinic.repository.git("update-ref", "refs/chump/salvage/x-1", "HEAD")

    said = clinic.doctor("salvage")

    assert said.code == 0
    assert said.out.startswith("warn  salvage")


def test_only_what_is_named_is_looked_at_in_the_order_of_the_names(clinic: Clinic) -> None:
    assert list(clinic.found("git", "python", "git")) == ["git", "python"]


def test_a_check_that_does_not_exist_is_an_error_that_names_those_that_do(clinic: Clinic) -> None:
    said = clinic.doctor("python", "gti")

    assert (said.code, said.out) == (2, "")
    assert "'gti'" in said.err
    assert "gh-scopes" in said.err


def test_the_document_has_a_schema_and_what_a_program_needs(clinic: Clinic) -> None:
    """Behaviour C1."""
    document = clinic.doctor("--json", "consent", "python").json()

    (consent, python) = document["checks"]
    assert document["schema_version"] == 1
    assert document["ok"] is True
    assert document["counts"] == {"ok": 2, "warn": 0, "fail": 0, "skip": 0}
    assert consent.keys() == {
        "name", "theme", "asks", "status", "found", "remedy", "findings", "fixed", "not_fixed",
        "took_s",
    }  # fmt: skip
    assert python["findings"] == [{"status": "ok", "found": python["found"], "remedy": None}]


def test_without_a_repository_the_machine_is_looked_at_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repository: Repository
) -> None:
    elsewhere = tmp_path.with_name(f"{tmp_path.name}-elsewhere")
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)

    said = repository.say("doctor", "--json")

    found = {one["name"]: one["status"] for one in said.json()["checks"]}
    assert said.code == 1
    assert found["repository"] == "fail"
    assert found["python"] == found["git"] == found["limits"] == "ok"
    assert found["backlog"] == found["push"] == found["leases"] == "skip"


def test_no_secret_is_told(clinic: Clinic) -> None:
    """Promise I7."""
    clinic.patch.setenv("MY_TOKEN", "hush-hush-hush")
    clinic.gh(status=500, said="gh: hush-hush-hush went wrong (HTTP 500)\n")

    said = clinic.doctor("--json", "gh")

    assert "went wrong" in said.out
    assert "hush" not in said.out + said.err


def test_every_check_has_a_name_and_is_documented() -> None:
    page = Path(__file__).parents[2] / "docs" / "reference" / "doctor.md"
    every, mended = page.read_text("utf-8").split("## What `--fix` does")

    def rows(text: str) -> list[list[str]]:
        table = [line for line in text.splitlines() if line.startswith("| `")]
        return [[cell.strip("` ") for cell in line.split("|")[1:3]] for line in table]

    names = {check.name for check in ALL}
    assert [row for row in rows(every) if row[0] in names] == [[c.name, c.asks] for c in ALL]
    assert {row[0] for row in rows(mended)} == {check.name for check in ALL if check.mend}
    assert len(names) == len(ALL)


# --- how checks are carried out


def a_subject(folder: Path) -> Subject:
    return subject_at(folder, where=folder, ask=lambda _: None)


def a_check(name: str, *found: Finding, limit_s: float = 60.0) -> Check:
    async def look(_: Subject) -> Sequence[Finding]:
        return found

    return Check(name, "test", "all is well", look, limit_s=limit_s)


async def test_a_check_that_crashes_has_failed_and_the_others_go_on(tmp_path: Path) -> None:
    async def crash(_: Subject) -> Sequence[Finding]:
        raise ZeroDivisionError("by\nzero")

    crashing = Check("crash", "test", "it holds", crash)
    first, second = await examine(a_subject(tmp_path), [crashing, a_check("fine", ok("fine"))])

    assert first.status is Status.FAIL
    assert first.findings[0].found == "the check itself failed: ZeroDivisionError: by zero"
    assert second.findings == (ok("fine"),)


async def test_a_check_that_cannot_be_told_has_failed_with_the_reason(tmp_path: Path) -> None:
    async def refuse(_: Subject) -> Sequence[Finding]:
        raise Refused("the world said no")

    (one,) = await examine(a_subject(tmp_path), [Check("no", "test", "it holds", refuse)])

    assert one.status is Status.FAIL
    assert one.findings[0].found == "the world said no"


async def test_a_check_that_hangs_has_failed_and_the_others_are_told(tmp_path: Path) -> None:
    async def hang(_: Subject) -> Sequence[Finding]:
        await anyio.sleep_forever()
        return []

    hanging = Check("hang", "test", "it ends", hang, limit_s=0.05)
    first, second = await examine(a_subject(tmp_path), [hanging, a_check("fine", ok("fine"))])

    assert first.status is Status.FAIL
    assert "did not end within 0.05 s" in first.findings[0].found
    assert second.status is Status.OK


async def test_checks_run_side_by_side(tmp_path: Path) -> None:
    """Each of two waits for the other, so that one after the other they would never end."""
    here = [anyio.Event(), anyio.Event()]

    def meeting(own: int) -> Check:
        async def look(_: Subject) -> Sequence[Finding]:
            here[own].set()
            await here[1 - own].wait()
            return [ok("met")]

        return Check(f"meeting-{own}", "test", "they meet", look, limit_s=30.0)

    found = await examine(a_subject(tmp_path), [meeting(0), meeting(1)])

    assert [one.status for one in found] == [Status.OK, Status.OK]


@pytest.mark.parametrize(
    ("findings", "status"),
    [
        ([], Status.SKIP),
        ([skip("a")], Status.SKIP),
        ([skip("a"), ok("b")], Status.OK),
        ([ok("a"), warn("b", "c")], Status.WARN),
        ([warn("a", "b"), fail("c", "d"), ok("e")], Status.FAIL),
    ],
)
def test_the_worst_finding_is_the_checks(findings: list[Finding], status: Status) -> None:
    assert worst(findings) is status


async def test_a_question_that_several_ask_is_put_once_and_its_error_told_to_all() -> None:
    asked = []

    async def ask() -> str:
        asked.append(1)
        await anyio.lowlevel.checkpoint()
        raise Refused("no")

    once = Once(ask)
    told = []

    async def one() -> None:
        try:
            await once()
        except Refused as error:
            told.append(str(error))

    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(one)

    assert (len(asked), told) == (1, ["no", "no", "no"])


# --- how things are mended


class Ill:
    """Something that is broken until it is mended; whoever mends it is counted."""

    def __init__(self, *, broken_mend: bool = False) -> None:
        self.is_ill = True
        self.mends = 0
        self.broken_mend = broken_mend

    def check(self) -> Check:
        async def look(_: Subject) -> Sequence[Finding]:
            return [fail("ill", "mend it")] if self.is_ill else [ok("well")]

        async def mend(_: Subject) -> Sequence[str]:
            self.mends += 1
            if self.broken_mend:
                raise ZeroDivisionError
            self.is_ill = False
            return ["mended it"]

        return Check("ill", "test", "it is well", look, mend)


async def treated(folder: Path, *found: Check) -> list[Examined]:
    subject = a_subject(folder)
    return await treat(subject, await examine(subject, found), lambda: a_subject(folder))


async def test_what_was_mended_is_looked_at_again_and_what_was_done_is_told(tmp_path: Path) -> None:
    ill = Ill()

    (one,) = await treated(tmp_path, ill.check())
    (again,) = await treated(tmp_path, ill.check())

    assert (one.status, one.mended) == (Status.OK, ("mended it",))
    assert (again.status, again.mended) == (Status.OK, ())
    assert ill.mends == 1


async def test_what_cannot_be_mended_stays_as_it_is_with_the_reason(tmp_path: Path) -> None:
    (one,) = await treated(tmp_path, Ill(broken_mend=True).check())

    assert one.status is Status.FAIL
    assert one.unmended == "the check itself failed: ZeroDivisionError: "


def test_a_daemon_that_runs_is_not_interfered_with(clinic: Clinic) -> None:
    lease = clinic.root / ".chump-locks" / "old-1.json"
    lease.parent.mkdir()
    lease.write_text(
        json.dumps(
            {
                "session_id": "old-1",
                "taken_at": "2020-01-01T00:00:00Z",
                "expires_at": "2020-01-01T04:00:00Z",
                "gap_id": "DEMO-1",
                "made_by": "chump-orchestrator",
            }
        )
    )
    loaded = config.load(clinic.root)
    from chump_orchestrator import premises  # noqa: PLC0415 - only here

    with premises.daemon_lock(clinic.root, loaded):
        found = clinic.check("leases", fix=True)

    assert found.status == "warn"
    assert f"another orchestrator (pid {os.getpid()})" in found.not_fixed
    assert lease.exists()

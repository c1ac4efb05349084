"""Units as they are rendered, compared and shipped; no service manager is needed for these."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from chump_orchestrator.core.errors import ConfigError, Refused
from chump_orchestrator.service import programs, quoting, templates
from chump_orchestrator.service.difference import Kind, compared, seal, unified
from chump_orchestrator.service.launchd import Launchd
from chump_orchestrator.service.naming import SLICE, instance_of, label_of, unit_of
from chump_orchestrator.service.programs import Wanted, interpreter_of, is_cached, search
from chump_orchestrator.service.steps import Await, Remove, Run, Write, carry_out
from chump_orchestrator.service.survey import Survey
from chump_orchestrator.service.targets import path_in
from chump_orchestrator.service.units import COMMENT, Unit, system_units, user_units
from tests.service.installation import build_wheel
from tests.service.surveys import a_survey

CHECKOUT = Path(__file__).parents[2]
PROGRAM = ("/opt/chump/bin/chump-orchestrator",)


def lines_of(unit: Unit, key: str) -> list[str]:
    return [line.partition("=")[2] for line in unit.text.splitlines() if line.startswith(f"{key}=")]


def test_the_name_of_a_service_follows_from_the_path_of_its_repository(tmp_path: Path) -> None:
    one, other = tmp_path / "a" / "My_Repo!", tmp_path / "b" / "My_Repo!"
    for folder in (one, other):
        folder.mkdir(parents=True)
    link = tmp_path / "link"
    link.symlink_to(one)

    assert re.fullmatch(r"My-Repo-[0-9a-f]{6}", instance_of(one))
    assert instance_of(one) == instance_of(link)
    assert instance_of(one) != instance_of(other)
    assert unit_of(one) == f"chump-orchestrator@{instance_of(one)}.service"
    assert label_of(one) == f"dev.chump.orchestrator.{instance_of(one)}"
    assert re.fullmatch(r"repository-[0-9a-f]{6}", instance_of(Path("/")))
    assert len(instance_of(tmp_path / ("x" * 200))) < 60


@pytest.mark.parametrize(
    ("text", "word", "argument"),
    [
        ("/usr/bin", "/usr/bin", "/usr/bin"),
        ("/a b", '"/a b"', '"/a b"'),
        ("/100%", '"/100%%"', '"/100%%"'),
        ("/$HOME", "/$HOME", "/$$HOME"),
        ('/"q"', '"/\\"q\\""', '"/\\"q\\""'),
        ("/it's", '"/it\'s"', '"/it\'s"'),
        ("/a\\b", '"/a\\\\b"', '"/a\\\\b"'),
        ("", '""', '""'),
        ("/ü", "/ü", "/ü"),
    ],
)
def test_a_text_is_quoted_for_its_place_in_a_unit(text: str, word: str, argument: str) -> None:
    assert quoting.word(text) == word
    assert quoting.command(["/x", text]) == f"/x {argument}"


@pytest.mark.parametrize("text", ["/a\nb", "/a\tb", "/a\x7f", os.fsdecode(b"/\xff")])
def test_what_cannot_stand_in_a_line_is_refused(text: str) -> None:
    for quote in (quoting.word, quoting.whole, quoting.checked):
        with pytest.raises(ConfigError, match="rename"):
            quote(text)


@pytest.mark.parametrize("text", ["/ends in ", "/ends in\\"])
def test_what_cannot_end_a_line_is_refused(text: str) -> None:
    assert quoting.word(text)
    with pytest.raises(ConfigError, match="rename"):
        quoting.whole(text)


def test_a_placeholder_on_a_line_of_its_own_becomes_as_many_lines_as_it_has() -> None:
    template = "a\n  @MORE@\nb=@B@ @B@\n"

    assert templates.filled(template, {"MORE": "", "B": "@MORE@"}) == "a\nb=@MORE@ @MORE@\n"
    assert templates.filled(template, {"MORE": "1\n2", "B": "x"}) == "a\n  1\n  2\nb=x x\n"
    with pytest.raises(KeyError):
        templates.filled(template, {"B": "x"})


def rendered() -> list[Unit]:
    """Every file that is ever installed."""
    seen = a_survey('/srv/100% "my" repo', home="/var/lib/chump")
    agent = Launchd("dev", 501, {"HOME": "/Users/dev"})
    return [
        *user_units(seen, PROGRAM),
        *system_units(seen, PROGRAM, "chump", [Path("/etc/x/gh-token")]),
        *agent.units(seen, PROGRAM),
    ]


def test_nothing_is_left_to_fill_in() -> None:
    assert [unit.name for unit in rendered() if re.search(r"@[A-Z_]+@", unit.text)] == []


def test_what_is_installed_is_the_template_but_for_what_was_filled_in() -> None:
    for name, unit in zip(
        (templates.USER_UNIT, templates.SLICE, templates.SYSTEM_UNIT), rendered(), strict=False
    ):
        fixed = [x for x in templates.read(name).splitlines() if not re.search(r"@[A-Z_]+@", x)]

        assert [line for line in fixed if line not in unit.text.splitlines()] == []


def test_the_user_unit_begins_where_the_repository_is_and_finds_its_programs() -> None:
    unit, agents = user_units(a_survey("/home/dev/100% mine"), PROGRAM)

    assert unit.name == unit_of(Path("/home/dev/100% mine"))
    assert lines_of(unit, "WorkingDirectory") == ["/home/dev/100%% mine"]
    assert lines_of(unit, "Environment") == [
        "PATH=/home/dev/.local/bin:/usr/local/bin:/usr/bin:/bin"
    ]
    assert lines_of(unit, "ExecStart") == ["/opt/chump/bin/chump-orchestrator run"]
    assert lines_of(unit, "User") == []
    assert agents.name == SLICE


def test_the_system_unit_may_write_to_its_places_alone() -> None:
    seen = a_survey(
        "/srv/my repo", home="/var/lib/chump", places=("/var/lib/chump", "/srv/my repo", "/srv/o")
    )

    unit, _ = system_units(seen, PROGRAM, "chump", [Path("/etc/x/gh-token"), Path("/etc/x/key")])

    newer, _ = system_units(replace(seen, systemd=254), PROGRAM, "chump")

    places = '-/var/lib/chump "-/srv/my repo" -/srv/o'
    assert lines_of(unit, "DelegateSubgroup") == []
    assert lines_of(newer, "DelegateSubgroup") == ["daemon"]
    assert lines_of(unit, "User") == ["chump"]
    assert lines_of(unit, "BindPaths") == [places]
    assert lines_of(unit, "ReadWritePaths") == [f"{places} /tmp /var/tmp"]
    assert lines_of(unit, "RequiresMountsFor") == ['"/srv/my repo"']
    assert lines_of(unit, "LoadCredential") == ["gh-token:/etc/x/gh-token", "key:/etc/x/key"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_understands_every_line(tmp_path: Path) -> None:
    shell = shutil.which("sh") or "/bin/sh"
    seen = a_survey('/srv/100% "my" repo')
    for unit in (*user_units(seen, [shell]), *system_units(seen, [shell], "root")):
        (tmp_path / unit.name).write_text(unit.text)

    done = subprocess.run(
        [
            *("systemd-analyze", "--man=no", "verify"),
            *(str(path) for path in sorted(tmp_path.iterdir())),
        ],
        capture_output=True,
        text=True,
        check=False,
    )

    said = [line for line in done.stderr.splitlines() if "chump" in line]
    assert said == []


def test_the_wheel_has_the_very_files_of_the_two_folders(tmp_path: Path) -> None:
    with zipfile.ZipFile(build_wheel(tmp_path)) as wheel:
        shipped = {
            name.removeprefix("chump_orchestrator/service/"): wheel.read(name)
            for name in wheel.namelist()
            if re.match(r"chump_orchestrator/service/(systemd|launchd)/", name)
        }

    there = {
        f"{folder}/{path.name}": path.read_bytes()
        for folder in ("systemd", "launchd")
        for path in (CHECKOUT / folder).iterdir()
    }
    assert shipped == there
    used = {templates.USER_UNIT, templates.SYSTEM_UNIT, templates.SLICE, templates.LAUNCH_AGENT}
    assert there.keys() == used


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda text: text, Kind.SAME),
        (lambda text: seal(text.partition("\n")[2].replace("a", "b"), COMMENT), Kind.OURS),
        (lambda text: text.replace("a=1", "a=2"), Kind.EDITED),
        (lambda text: text + "\n", Kind.EDITED),
        (lambda text: text.partition("\n")[2], Kind.FOREIGN),
        (lambda _: "", Kind.FOREIGN),
    ],
    ids=["same", "other-values", "a-value", "a-line-more", "no-seal", "emptied"],
)
def test_whose_hand_a_file_is_from_is_known(
    tmp_path: Path, change: Callable[[str], str], kind: Kind
) -> None:
    wanted = seal("[A]\na=1\n", COMMENT)
    path = tmp_path / "unit"
    absent = compared(path, wanted)
    path.write_text(change(wanted))

    assert absent == (Kind.ABSENT, "")
    assert compared(path, wanted)[0] is kind


def test_a_property_list_is_sealed_below_its_first_line(tmp_path: Path) -> None:
    wanted = seal("<?xml version='1.0'?>\n<plist/>\n", "<!-- {} -->")
    path = tmp_path / "x.plist"
    path.write_text(wanted.replace("<plist/>", "<plist></plist>"))

    assert wanted.startswith("<?xml version='1.0'?>\n<!-- Written by")
    assert compared(path, wanted)[0] is Kind.EDITED


def test_a_difference_is_shown_as_diff_shows_it() -> None:
    shown = unified(Path("/x"), "a\nb\n", "a\nc\n")

    assert shown == "--- /x (installed)\n+++ /x (new)\n@@ -1,2 +1,2 @@\n a\n-b\n+c\n"


@pytest.mark.parametrize("folder", ["/usr/bin", '/100% "q" b\\s', "/a b"])
def test_the_path_of_an_installed_file_is_read_back(folder: str) -> None:
    seen = a_survey(path=(folder, "/bin"))
    agent = Launchd("dev", 501, {"HOME": "/Users/dev"})

    for unit in (user_units(seen, PROGRAM)[0], agent.units(seen, PROGRAM)[0]):
        assert path_in(unit.text) == (folder, "/bin")


def test_a_file_without_a_path_has_none() -> None:
    assert path_in("") == path_in("<?xml?><x") == path_in("[Service]\nExecStart=/x\n") == ()


def test_a_survey_is_passed_on_whole() -> None:
    seen = a_survey(found=(("git", "/usr/bin/git"), ("gh", "/x/gh")), holder=7, paused=True)

    assert Survey.from_json(seen.to_json()) == seen
    for text in ("", "[]", "{}", '{"root": 1}'):
        with pytest.raises(ValueError, match=r".*"):
            Survey.from_json(text)


# Where programs are found.


@pytest.fixture
def lasting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have this test's folder count as one for good, though it is a temporary one."""
    monkeypatch.setattr(programs, "FLEETING", ("/run",))


def a_program(folder: Path, name: str, text: str = "#!/bin/sh\n") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(text)
    path.chmod(0o755)
    return path


def wanted(*candidates: str) -> Wanted:
    return Wanted(candidates, "the agent", "install it")


@pytest.mark.usefixtures("lasting")
def test_the_path_keeps_the_order_of_the_shell_and_finds_the_same_programs(tmp_path: Path) -> None:
    one, two, root = tmp_path / "one", tmp_path / "two", tmp_path / "root"
    first = a_program(two, "agent")
    a_program(one, "agent")

    found = search([str(two), str(one), str(two), "", "relative"], [wanted("agent")], root)

    assert found.path[:2] == (str(two), str(one))
    assert found.found == (("agent", str(first)),)
    assert found.problems == ()
    assert {"/usr/bin", "/bin"} <= set(found.path)


@pytest.mark.usefixtures("lasting")
def test_what_everybody_can_write_to_or_lies_in_the_repository_is_left_out(tmp_path: Path) -> None:
    """Neither may put another git in the place of git."""
    root, open_to_all = tmp_path / "root", tmp_path / "open"
    a_program(root / "bin", "agent")
    a_program(open_to_all, "agent")
    open_to_all.chmod(0o777)
    missing = str(tmp_path / "missing")

    found = search([str(root / "bin"), str(open_to_all), missing], [wanted("agent")], root)

    assert not {str(root / "bin"), str(open_to_all), missing} & set(found.path)
    (problem,) = found.problems
    assert problem.startswith(f"agent was found as {root / 'bin' / 'agent'} only (the agent)")


def test_a_fleeting_link_to_a_folder_for_good_stands_for_that_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As version switchers of node make them for each shell."""
    real, links = tmp_path / "real", tmp_path / "fleeting"
    agent = a_program(real, "agent")
    links.mkdir()
    (links / "shell-1").symlink_to(real)
    monkeypatch.setattr(programs, "FLEETING", (str(links),))

    found = search([str(links / "shell-1")], [wanted("agent")], tmp_path / "root")

    assert found.path[0] == str(real)
    assert found.found == (("agent", str(agent)),)


@pytest.mark.usefixtures("lasting")
def test_the_interpreter_that_a_script_asks_env_for_is_looked_for_too(tmp_path: Path) -> None:
    a_program(tmp_path / "one", "agent", "#!/usr/bin/env some-interpreter\n")
    folders = [str(tmp_path / "one"), str(tmp_path / "two")]

    without = search(folders, [wanted("agent")], tmp_path / "root")
    interpreter = a_program(tmp_path / "two", "some-interpreter")
    with_it = search(folders, [wanted("agent")], tmp_path / "root")

    assert without.problems == (
        f"some-interpreter was not found on PATH ({tmp_path}/one/agent is a script for it);"
        " install some-interpreter, or correct PATH",
    )
    assert with_it.problems == ()
    assert with_it.found[1:] == (("some-interpreter", str(interpreter)),)


@pytest.mark.parametrize(
    ("line", "interpreter"),
    [
        ("#!/usr/bin/env node", "node"),
        ("#!/usr/bin/env -S node --flag", "node"),
        ("#! /usr/bin/env  A=1 python3 -u", "python3"),
        ("#!/bin/sh", ""),
        ("#!/usr/bin/env /opt/node", ""),
        ("\x7fELF", ""),
        ("", ""),
    ],
)
def test_what_a_script_asks_env_for_is_known(tmp_path: Path, line: str, interpreter: str) -> None:
    assert interpreter_of(a_program(tmp_path, "x", f"{line}\nrest\n")) == interpreter


@pytest.mark.usefixtures("lasting")
def test_of_several_candidates_the_first_counts_also_one_of_the_repository(tmp_path: Path) -> None:
    root = tmp_path / "root"
    script = a_program(root / "scripts", "retry.sh")
    a_program(tmp_path / "bin", "agent")

    found = search([str(tmp_path / "bin")], [wanted("scripts/retry.sh", "agent")], root)

    assert found.found == (("agent", str(script)),)


@pytest.mark.usefixtures("lasting")
def test_a_program_in_a_cache_is_known_as_one(tmp_path: Path) -> None:
    cached, kept = a_program(tmp_path / "cache" / "v1", "x"), a_program(tmp_path / "bin", "x")
    (tmp_path / "cache" / "CACHEDIR.TAG").touch()

    assert (is_cached(cached), is_cached(kept)) == (True, False)
    assert is_cached(Path("/run/user/1/x"))


# Steps.


async def test_steps_do_what_they_say(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "x"
    echo = Run(("sh", "-c", "echo no; exit 3"), dict(os.environ))

    await carry_out(Write(path, "text"))
    assert (path.read_text(), [p.name for p in path.parent.iterdir()]) == ("text", ["x"])
    await carry_out(Await("the file", path.exists))
    with pytest.raises(Refused, match=r"failed \(exit 3\): no"):
        await carry_out(echo)
    assert "exit 3" in await carry_out(Run(echo.argv, echo.env, may_fail=True))
    assert await carry_out(Run(echo.argv, echo.env, may_fail=True, quiet=True)) == ""
    await carry_out(Remove(path))
    await carry_out(Remove(path))
    assert not path.exists()
    with pytest.raises(ConfigError, match="cannot be changed"):
        await carry_out(Write(Path("/proc/x/y"), "text"))

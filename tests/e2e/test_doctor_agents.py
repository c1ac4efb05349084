"""`doctor` on agents and on the installed service: each check is seen to object."""

import json
import os
import shutil
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from chump_orchestrator.core.errors import Refused
from chump_orchestrator.doctor.installed import installed
from chump_orchestrator.doctor.unit_files import (
    read_environment_file,
    read_property_list,
    read_unit,
)
from chump_orchestrator.service.naming import unit_of
from tests.e2e.clinic import UNIT, Clinic

PATIENCE = timedelta(seconds=0.5)

# --- programs


def test_an_agent_that_is_not_there_is_broken(clinic: Clinic) -> None:
    (clinic.bin / "claude").unlink()
    clinic.patch.setenv("PATH", f"{clinic.bin}:{Path(shutil.which('git') or '').parent}")

    found = clinic.found("agent", "agent-login")

    assert found["agent"]["status"] == "fail"
    assert "no program for this shell" in found["agent"]["found"]
    assert "backend.claude.program" in found["agent"]["remedy"]
    assert found["agent-login"]["status"] == "skip"


def test_an_agent_that_does_not_run_is_broken(clinic: Clinic) -> None:
    clinic.script("claude", "exit 127\n", shebang="/bin/sh")

    found = clinic.check("agent")

    assert found.status == "fail"
    assert "does not tell its version" in found.found


def test_an_agent_that_hangs_is_told_and_does_not_hold_the_others_up(clinic: Clinic) -> None:
    clinic.patch.setattr("chump_orchestrator.doctor.agents.PATIENCE", PATIENCE)
    clinic.script("claude", "exec sleep 600\n", shebang="/bin/sh")

    found = clinic.found("agent", "python")

    assert found["agent"]["status"] == "fail"
    assert found["python"]["status"] == "ok"


def test_the_program_and_the_version_of_an_agent_are_told(clinic: Clinic) -> None:
    found = clinic.check("agent")

    assert found.status == "ok"
    assert found.found == f"claude: {clinic.bin}/claude, version 2.1.197"


def test_the_repositorys_own_program_is_found_first_and_not_run(clinic: Clinic) -> None:
    """Behaviour A."""
    script = clinic.repository.write("scripts/claude-retry.sh", "#!/bin/sh\ntouch was-run\n")
    script.chmod(0o755)

    found = clinic.found("agent", "agent-login")

    assert found["agent"]["found"] == f"claude: {script}"
    assert found["agent-login"]["status"] == "ok"
    assert not list(clinic.root.rglob("was-run"))


def test_every_backend_that_a_route_leads_to_is_looked_for(clinic: Clinic) -> None:
    clinic.repository.write(
        "docs/dispatch/routing.yaml",
        "routes:\n- match: {priority: P0}\n  candidates: [{backend: chump-local,"
        " provider_pfx: ACME}]\n",
    )

    found = clinic.found("agent", "agent-login")

    told = {one["found"].partition(":")[0]: one["status"] for one in found["agent"]["findings"]}
    assert told == {"chump-local": "fail", "claude": "ok"}
    assert found["agent-login"]["status"] == "warn"
    assert "ACME_API_KEY is not set" in found["agent-login"]["found"]


def test_an_agent_of_the_operators_own_is_not_asked_for_its_login(clinic: Clinic) -> None:
    clinic.settings('[backend.custom]\nargv = ["my-agent"]\n', backend="custom")
    clinic.script("my-agent", "exit 1\n", shebang="/bin/sh")

    found = clinic.found("agent", "agent-login", "consent")

    assert {name: one["status"] for name, one in found.items()} == {
        "agent": "ok",
        "agent-login": "skip",
        "consent": "ok",
    }


# --- logins


def test_an_agent_that_is_not_logged_in_is_broken(clinic: Clinic) -> None:
    clinic.claude(status='{"loggedIn": false, "authMethod": "none"}')

    found = clinic.check("agent-login")

    assert found.status == "fail"
    assert found.found == "claude: not logged in, in the environment of this shell"
    assert "claude auth login" in found.remedy


@pytest.mark.parametrize("variable", ["ANTHROPIC_API_KEY", "CLAUDE_CODE_OAUTH_TOKEN"])
def test_a_key_is_as_good_as_a_login(clinic: Clinic, variable: str) -> None:
    clinic.claude(status='{"loggedIn": false}')
    clinic.patch.setenv(variable, "sk-0123456789")

    found = clinic.check("agent-login")

    assert found.status == "ok"
    assert found.found == f"claude: {variable} is set"


def test_a_key_in_the_file_of_secrets_counts(clinic: Clinic) -> None:
    clinic.claude(status='{"loggedIn": false}')
    clinic.repository.write(".chump/secrets.env", "ANTHROPIC_API_KEY=sk-0123456789\n").chmod(0o600)

    assert clinic.check("agent-login").status == "ok"


def test_an_old_agent_that_cannot_tell_is_looked_at_from_outside(clinic: Clinic) -> None:
    clinic.claude(status="error: unknown option '--json'")

    nothing = clinic.check("agent-login")
    (clinic.home / ".claude").mkdir()
    (clinic.home / ".claude" / ".credentials.json").write_text("{}")
    something = clinic.check("agent-login")

    assert (nothing.status, something.status) == ("warn", "ok")


# --- root and consent


@pytest.mark.root
def test_an_agent_past_its_prompts_as_root_is_broken_but_for_a_sandbox(clinic: Clinic) -> None:
    clinic.patch.delenv("IS_SANDBOX")
    without = clinic.check("root")
    clinic.patch.setenv("IS_SANDBOX", "1")
    inside = clinic.check("root")

    assert without.status == "fail"
    assert "IS_SANDBOX=1" in without.remedy
    assert inside.status == "warn"


@pytest.mark.root
def test_any_other_agent_as_root_is_odd(clinic: Clinic) -> None:
    clinic.settings('[backend.custom]\nargv = ["true"]\n', backend="custom")

    assert clinic.check("root").status == "warn"


def test_without_consent_nothing_may_run(clinic: Clinic) -> None:
    """Behaviour A5."""
    text = (clinic.root / ".chump/orchestrator.toml").read_text()
    clinic.repository.write(".chump/orchestrator.toml", text.replace("consent = true", ""))

    found = clinic.check("consent")

    assert found.status == "fail"
    assert "init --yes" in found.remedy


# --- the installed service


def test_the_service_of_another_repository_is_none_of_this_one(clinic: Clinic) -> None:
    clinic.unit(WorkingDirectory=str(clinic.folder))

    assert {one["status"] for one in clinic.found("service", "service-path").values()} == {"skip"}


def test_a_service_that_can_start_is_fine(clinic: Clinic) -> None:
    clinic.unit()

    found = clinic.found("service", "service-path")

    assert found["service"]["found"] == f"{UNIT}, a user service"
    assert {one["status"] for one in found.values()} == {"ok"}


def test_a_service_whose_program_has_gone_is_broken(clinic: Clinic) -> None:
    clinic.unit(
        ExecStart=f"{clinic.folder}/venv/bin/chump-orchestrator run",
        EnvironmentFile=f"{clinic.folder}/missing.env",
    )

    found = clinic.check("service")

    assert found.status == "fail"
    assert f"would start {clinic.folder}/venv/bin/chump-orchestrator" in found.found
    assert f"needs {clinic.folder}/missing.env" in found.found
    assert "service install" in found.remedy


def test_an_environment_file_that_may_be_missing_may_be_missing(clinic: Clinic) -> None:
    clinic.unit(EnvironmentFile=f"-{clinic.folder}/missing.env")

    assert clinic.check("service").status == "ok"


def test_two_services_for_one_repository_are_broken(clinic: Clinic) -> None:
    clinic.unit()
    clinic.unit(name="chump-orchestrator@y.service")

    found = clinic.check("service")

    assert found.status == "fail"
    assert "uninstall all but one" in found.remedy


def test_what_the_services_path_does_not_lead_to_is_broken_however_this_shell_finds_it(
    clinic: Clinic,
) -> None:
    clinic.unit(Environment=f"PATH={clinic.folder}/nowhere")

    found = clinic.found("service-path", "agent", "gh", "git")

    assert found["service-path"]["status"] == "fail"
    for name in ("git", "gh", "claude"):
        assert f"{name}" in found["service-path"]["found"]
    assert f"this shell finds {clinic.bin}/gh" in found["service-path"]["remedy"]
    assert found["agent"]["status"] == "fail"
    assert f"no program for {UNIT}" in found["agent"]["found"]
    assert found["gh"]["status"] == "fail"
    assert found["git"]["status"] == "fail"


def test_a_service_without_a_path_of_its_own_is_odd(clinic: Clinic) -> None:
    clinic.unit(Environment="X=1")

    found = clinic.check("service-path")

    assert found.document["findings"][0]["status"] == "warn"
    assert "sets no PATH" in found.found


def test_the_login_of_an_agent_is_that_of_the_service(clinic: Clinic) -> None:
    """A key of this shell's does not help a service that lacks it."""
    clinic.claude(status='{"loggedIn": false}')
    clinic.patch.setenv("ANTHROPIC_API_KEY", "sk-0123456789")
    clinic.unit()

    without = clinic.check("agent-login")
    clinic.unit(EnvironmentFile=f"{clinic.folder}/keys.env")
    (clinic.folder / "keys.env").write_text("# keys\nANTHROPIC_API_KEY='sk-0123456789'\n")
    with_it = clinic.check("agent-login")

    assert without.status == "fail"
    assert UNIT in without.found
    assert with_it.status == "ok"


def test_a_credential_of_the_unit_reaches_gh_and_a_sealed_one_is_believed(clinic: Clinic) -> None:
    clinic.claude(status='{"loggedIn": false}')
    (clinic.folder / "token").write_text("ghx_0123456789\n")
    clinic.unit(
        LoadCredential=f"gh-token:{clinic.folder}/token",
        LoadCredentialEncrypted="anthropic-api-key:/etc/credstore.encrypted/key",
    )

    found = clinic.found("gh", "agent-login")

    assert found["gh"]["status"] == "ok"
    assert (clinic.bin / "asked").read_text() == "repos/acme/anvil ghx_0123456789\n"
    assert found["agent-login"]["found"] == "claude: the service manager sets ANTHROPIC_API_KEY"


def test_a_unit_as_it_would_be_written_has_not_drifted(clinic: Clinic) -> None:
    text = clinic.repository.say("service", "print", "--user").out
    path = clinic.unit(text, name=unit_of(clinic.root))

    same = clinic.check("service-drift")
    path.write_text(text.replace("Restart=on-failure", "Restart=always"))
    edited = clinic.check("service-drift")

    assert same.status == "ok", same
    assert edited.status == "warn"
    assert "changed by hand" in edited.found
    assert "service install" in edited.remedy


def test_a_unit_of_an_operators_own_has_nothing_to_drift_from(clinic: Clinic) -> None:
    clinic.unit()

    found = clinic.check("service-drift")

    assert found.status == "ok"
    assert "written by hand" in found.found


@pytest.mark.skipif(sys.platform == "darwin", reason="what it looks at is systemd's")
@pytest.mark.parametrize(("answer", "status"), [("yes", "ok"), ("no", "warn")])
def test_a_users_service_that_ends_with_the_login_is_odd(
    clinic: Clinic, answer: str, status: str
) -> None:
    clinic.unit()
    clinic.script("loginctl", f"echo {answer}\n", shebang="/bin/sh")

    found = clinic.check("lingering")

    assert found.status == status
    if status == "warn":
        assert found.remedy.startswith("loginctl enable-linger ")


# --- unit files


def test_a_unit_is_read_with_its_drop_ins_which_come_last(tmp_path: Path) -> None:
    unit = tmp_path / "x.service"
    unit.write_text(
        "# of ours\n[Service]\nUser=me\nWorkingDirectory=-%h/repository\n"
        'Environment="PATH=/a:/b" TEXT="two words" \\\n  MORE=1\n'
        "ExecStart=-/old/program run\n"
        "LimitNOFILE=1024:65536\n"
        "; another comment\nEnvironmentFile=-/etc/x\n"
        "SetCredential=gh-token:abc\nImportCredential=chump.*\n"
    )
    (tmp_path / "x.service.d").mkdir()
    (tmp_path / "x.service.d" / "10.conf").write_text(
        "[Service]\nEnvironment=MORE=2\nExecStart=\nExecStart=@/new/program name run --once\n"
        "EnvironmentFile=\n"
    )

    read = read_unit(unit, "/home/me")

    assert read.user == "me"
    assert read.folder == "/home/me/repository"
    assert read.environment == {"PATH": "/a:/b", "TEXT": "two words", "MORE": "2"}
    assert read.program == ("/new/program", "name", "run", "--once")
    assert read.environment_files == ()
    assert read.credentials == {"gh-token": "abc"}
    assert read.sealed == ("chump.*",)
    assert read.descriptors == 1024
    assert read.drop_ins == (tmp_path / "x.service.d" / "10.conf",)


def test_a_property_list_is_read_and_a_broken_one_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.plist"
    path.write_text(
        '<?xml version="1.0"?><plist version="1.0"><dict>'
        "<key>WorkingDirectory</key><string>/repository</string>"
        "<key>ProgramArguments</key><array><string>/bin/x</string><string>run</string></array>"
        "<key>EnvironmentVariables</key><dict><key>PATH</key><string>/a</string></dict>"
        "<key>SoftResourceLimits</key><dict><key>NumberOfFiles</key><integer>8192</integer></dict>"
        "</dict></plist>"
    )

    read = read_property_list(path)
    path.write_text("<plist")

    assert (read.folder, read.program) == ("/repository", ("/bin/x", "run"))
    assert (read.environment, read.descriptors) == ({"PATH": "/a"}, 8192)
    with pytest.raises(Refused, match="no property list"):
        read_property_list(path)


def test_variables_of_an_environment_file_are_read_as_the_manager_does(tmp_path: Path) -> None:
    path = tmp_path / "env"
    path.write_text("# no\n;no\nA=1\nB = two words \nC='a # b'\n=x\nnonsense\n")

    assert read_environment_file(path) == {"A": "1", "B": "two words", "C": "a # b"}


def test_a_unit_that_cannot_be_read_is_told_of(clinic: Clinic) -> None:
    path = clinic.unit()
    path.unlink()
    path.symlink_to(clinic.folder / "nowhere")

    (service,) = installed(clinic.root, dict(os.environ))
    found = clinic.check("service")

    assert "cannot be read" in service.unreadable
    assert found.status == "warn"
    assert json.dumps(str(path))[1:-1] in found.found


def test_the_logins_of_another_user_are_not_judged_by_ones_own(clinic: Clinic) -> None:
    clinic.claude(status='{"loggedIn": false}')
    clinic.unit(User="daemon")

    found = clinic.found("agent", "agent-login", "gh", "gh-scopes", "remote", "push")

    assert found.pop("agent")["found"] == f"claude: {clinic.bin}/claude"
    assert {one["found"] for one in found.values()} == {
        f"{UNIT} runs as daemon; run doctor as that user, too"
    }
    assert not (clinic.bin / "asked").exists()

"""Secrets from a service's credentials, a file and the environment: read, kept, never shown."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chump_orchestrator import config
from chump_orchestrator.adapters.worktrees.rooms import OUR_PATHS
from chump_orchestrator.core.errors import ConfigError
from chump_orchestrator.settings.secret_sources import (
    DEFAULT_FILE,
    LARGEST_VALUE,
    variable_of,
)
from chump_orchestrator.settings.secrets import secret_values

HUSH = "hush-hush-hush"


class Place:
    """A repository's folder, a folder of credentials, and what is loaded from them."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "repository"
        self.credentials = folder / "credentials"
        self.root.mkdir()
        self.credentials.mkdir()

    def settings(self, text: str) -> None:
        self._write(self.root / ".chump" / "orchestrator.toml", text.encode(), 0o644)

    def file(self, text: str | bytes, mode: int = 0o600, name: str = DEFAULT_FILE) -> Path:
        data = text if isinstance(text, bytes) else text.encode()
        return self._write(self.root / name, data, mode)

    def credential(self, name: str, value: str | bytes) -> Path:
        data = value if isinstance(value, bytes) else value.encode()
        return self._write(self.credentials / name, data, 0o400)

    def load(self) -> config.Loaded:
        return config.load(self.root, **self._given)

    def wrong(self) -> list[str]:
        """Return the lines about what is wrong, relative to the folder of all."""
        _, wrong = config.salvage(self.root, **self._given)
        return wrong.replace(f"{self.root.parent}/", "").splitlines()

    @property
    def _given(self) -> dict[str, Any]:
        return {
            "environ": {"CREDENTIALS_DIRECTORY": str(self.credentials)},
            "user_file": self.root / "none",
            "installed": lambda _: (),
        }

    def _write(self, path: Path, data: bytes, mode: int) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_bytes(data)
        path.chmod(mode)
        return path


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def values(loaded: config.Loaded) -> dict[str, str]:
    return {name: secret.value for name, secret in loaded.secrets.items()}


@pytest.mark.parametrize(
    ("credential", "variable"),
    [
        ("gh-token", "GH_TOKEN"),
        ("anthropic-api-key", "ANTHROPIC_API_KEY"),
        ("GH_TOKEN", "GH_TOKEN"),
        ("chump.openai-api-key", "CHUMP_OPENAI_API_KEY"),
    ],
)
def test_a_credential_sets_the_variable_that_it_is_named_after(
    place: Place, credential: str, variable: str
) -> None:
    place.credential(credential, HUSH)

    loaded = place.load()

    assert variable_of(credential) == variable
    assert values(loaded) == {variable: HUSH}
    assert str(loaded.secrets[variable].origin) == str(place.credentials / credential)


@pytest.mark.parametrize(
    ("content", "value"),
    [
        ("a value\n", "a value"),
        ("a value\r\n", "a value"),
        ("a value", "a value"),
        ("\ufeffa value", "a value"),
        (" kept \n\n", " kept \n"),
        (
            "-----BEGIN KEY-----\nabc\n-----END KEY-----\n",
            "-----BEGIN KEY-----\nabc\n-----END KEY-----",
        ),
    ],
)
def test_of_a_credential_only_the_last_end_of_a_line_is_left_out(
    place: Place, content: str, value: str
) -> None:
    place.credential("deploy-key", content)

    assert values(place.load()) == {"DEPLOY_KEY": value}


def test_hidden_files_beside_credentials_are_none(place: Place) -> None:
    (place.credentials / "..data").mkdir()
    place.credential(".seal", HUSH)

    assert place.load().secrets == {}


def test_credentials_outrank_the_file_which_outranks_the_environment(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("A_TOKEN", "B_TOKEN", "C_TOKEN"):
        monkeypatch.setenv(name, "from the environment")
    place.file("A_TOKEN=from the file\nB_TOKEN=from the file\n")
    place.credential("a-token", "from a credential")

    environment = config.environment(place.load())

    assert environment["A_TOKEN"] == "from a credential"
    assert environment["B_TOKEN"] == "from the file"
    assert environment["C_TOKEN"] == "from the environment"


def test_the_file_has_names_values_and_comments(place: Place) -> None:
    path = place.file(
        "# tokens of the service\n"
        "\n"
        "GH_TOKEN=ghx_1234=5678#9\n"
        "  export OPENAI_API_KEY = spaces around \n"
        "QUOTED=' in quotes '\n"
        'DOUBLE="a # and a = and $HOME"\r\n'
    )

    loaded = place.load()

    assert values(loaded) == {
        "GH_TOKEN": "ghx_1234=5678#9",
        "OPENAI_API_KEY": "spaces around",
        "QUOTED": " in quotes ",
        "DOUBLE": "a # and a = and $HOME",
    }
    assert str(loaded.secrets["OPENAI_API_KEY"].origin) == f"{path}:4"


def test_everything_wrong_with_the_file_is_told_at_once_with_its_line_and_never_quoted(
    place: Place,
) -> None:
    """Behaviour C4."""
    place.file(
        "GH_TOKEN=fine\n"
        f"{HUSH}\n"
        f"{HUSH}=x\n"
        f"OPEN='{HUSH}\n"
        "GH_TOKEN=again\n"
        f"PATH={HUSH}\n"
        f"LD_PRELOAD={HUSH}\n"
        f"CHUMP_DISPATCH_CAPACITY={HUSH}\n"
        f"NUL={HUSH}\0\n"
    )

    wrong = place.wrong()

    starts = [line.rpartition(": ")[0] + ": " for line in wrong]
    assert [line.split(":")[1] for line in starts] == ["2", "3", "4", "5", "6", "7", "8", "9"]
    assert HUSH not in "\n".join(wrong)
    assert "write NAME=VALUE" in wrong[0]
    assert "quotation mark" in wrong[2]
    assert "stands in line 1 already" in wrong[3]
    assert "is no secret" in wrong[4]
    assert "is no secret" in wrong[5]
    assert "write it into .chump/orchestrator.toml" in wrong[6]
    assert "NUL" in wrong[7]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o622, 0o610, 0o644])
def test_a_file_that_others_may_read_or_write_is_refused_with_the_remedy(
    place: Place, mode: int
) -> None:
    path = place.file(f"GH_TOKEN={HUSH}", mode)

    with pytest.raises(ConfigError) as raised:
        place.load()

    assert f"{path}: others may read or change it (mode {mode:04o})" in str(raised.value)
    assert f"chmod 600 {path}" in str(raised.value)
    assert HUSH not in str(raised.value)


@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_a_file_that_is_its_owners_alone_is_read(place: Place, mode: int) -> None:
    place.file(f"GH_TOKEN={HUSH}", mode)

    assert values(place.load()) == {"GH_TOKEN": HUSH}


@pytest.mark.root
def test_a_file_of_another_user_is_refused_with_the_remedy(place: Place) -> None:
    path = place.file(f"GH_TOKEN={HUSH}")
    os.chown(path, 65534, 65534)

    (line,) = place.wrong()

    assert "belongs to another user" in line
    assert f"chown {os.geteuid()} {path}".replace(f"{place.root.parent}/", "") in line


def test_the_default_file_may_be_missing_and_another_may_not(place: Place) -> None:
    assert place.load().secrets == {}

    place.settings('[secrets]\nfile = ".chump/tokens.env"\n')
    (line,) = place.wrong()

    assert line.startswith("repository/.chump/tokens.env: it is not there; write it")


def test_a_file_elsewhere_is_named_with_its_whole_path(place: Place) -> None:
    path = place._write(place.root.parent / "elsewhere.env", b"GH_TOKEN=far away", 0o600)
    place.settings(f'[secrets]\nfile = "{path}"\n')

    assert values(place.load()) == {"GH_TOKEN": "far away"}


def test_an_empty_name_of_a_file_is_none(place: Place) -> None:
    place.file(f"GH_TOKEN={HUSH}", 0o644)
    place.settings('[secrets]\nfile = ""\n')

    assert place.load().secrets == {}


def test_a_link_that_is_committed_leads_to_no_other_file_of_the_machine(place: Place) -> None:
    other = place._write(place.root.parent / "other.env", b"GH_TOKEN=of another", 0o600)
    (place.root / ".chump").mkdir()
    (place.root / DEFAULT_FILE).symlink_to(other)

    (line,) = place.wrong()

    assert "leads out of the repository" in line


def a_folder(path: Path) -> None:
    path.mkdir(mode=0o700)


def a_pipe(path: Path) -> None:
    os.mkfifo(path, 0o600)


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
    path.chmod(0o600)


@pytest.mark.parametrize("make", [a_folder, a_pipe, a_socket])
def test_what_is_no_ordinary_file_is_refused_and_nothing_waits_for_it(
    place: Place, make: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    (place.root / ".chump").mkdir()
    monkeypatch.chdir(place.root)
    make(Path(DEFAULT_FILE))

    (line,) = place.wrong()

    assert "no ordinary file" in line or "cannot be read" in line


def test_a_file_that_is_not_text_is_refused_with_the_line(place: Place) -> None:
    place.file(b"A=1\nB=\xff\xfe\n")

    (line,) = place.wrong()

    assert line == (
        "repository/.chump/secrets.env:2: this is not UTF-8; save the file in that encoding"
    )


def test_what_is_wrong_with_credentials_is_told_at_once(place: Place) -> None:
    """Behaviour C4."""
    place.credential("7-keys", HUSH)
    place.credential("a-token", HUSH)
    place.credential("A_TOKEN", HUSH)
    place.credential("big-key", "x" * (LARGEST_VALUE + 1))
    place.credential("home", HUSH)
    (place.credentials / "folder").mkdir()

    wrong = place.wrong()

    told = {line.partition(": ")[0].rpartition("/")[2]: line for line in wrong}
    assert sorted(told) == ["7-keys", "a-token", "big-key", "folder", "home"]
    assert HUSH not in "\n".join(wrong)
    assert "stands for A_TOKEN, as A_TOKEN does" in told["a-token"]
    assert "no ordinary file" in told["folder"]


def test_a_folder_of_credentials_that_is_not_there_is_told(place: Place) -> None:
    place.credentials.rmdir()

    (line,) = place.wrong()

    assert "CREDENTIALS_DIRECTORY cannot be read" in line


def test_an_empty_secret_counts_as_not_given_and_is_noticed(place: Place) -> None:
    path = place.credential("gh-token", "\n")
    place.file("GH_TOKEN=from the file\nOTHER=\n")

    loaded = place.load()

    assert values(loaded) == {"GH_TOKEN": "from the file"}
    assert sum("it is empty and counts as not given" in notice for notice in loaded.notices) == 2
    assert loaded.notices[0].startswith(str(path))


def test_a_secret_is_hidden_whatever_it_is_called_also_line_by_line(place: Place) -> None:
    """Promise I7."""
    place.credential("deploy", "first-line-of-it\nsecond-line-of-it\n")

    loaded = place.load()

    assert "first-line-of-it" in config.hidden(loaded)
    assert "second-line-of-it" in secret_values({}, loaded.hidden)
    assert "first-line" not in repr(loaded)


def test_an_error_that_would_quote_a_secret_has_it_masked(place: Place) -> None:
    """Promise I7."""
    place.credential("deploy", HUSH)
    place.settings(f'base_ref = "{HUSH}:x"\n')

    (line,) = place.wrong()

    assert "base_ref" in line
    assert HUSH not in line


def test_what_is_shown_of_a_secret_is_its_name_and_its_origin(place: Place) -> None:
    path = place.file("GH_TOKEN=ghx_0123456789\n")

    shown = config.show_secrets(place.load(), {"MY_TOKEN": "x", "EMPTY_TOKEN": "", "PATH": "/bin"})

    assert shown == [("GH_TOKEN", f"{path}:1"), ("MY_TOKEN", "environment")]


def test_an_agent_is_given_a_secret_only_if_it_is_given_that_variable(place: Place) -> None:
    """Behaviour D5."""
    place.file("ANTHROPIC_API_KEY=for claude\nDEPLOY_KEY=for nobody\n")

    given = config.agent_environment(config.environment(place.load()), ("ANTHROPIC_*",))

    assert given["ANTHROPIC_API_KEY"] == "for claude"
    assert "DEPLOY_KEY" not in given


def test_no_agent_is_told_where_credentials_lie() -> None:
    """Behaviour D5."""
    given = config.agent_environment({"CREDENTIALS_DIRECTORY": "/run/credentials/x"}, ("*",))

    assert given == {}


def test_git_overlooks_the_default_file() -> None:
    """Behaviour D9."""
    assert f"/{DEFAULT_FILE}" in OUR_PATHS

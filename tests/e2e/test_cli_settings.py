"""config check, show and path, and init (behaviour A5, C4)."""

import tomllib
from dataclasses import replace

import pytest

from chump_orchestrator import config
from tests.e2e.cli_repository import Repository

FILE = ".chump/orchestrator.toml"


def test_settings_that_are_fine_are_said_to_be_unless_nobody_wants_to_know(
    repository: Repository,
) -> None:
    loud, quiet = repository.say("config", "check"), repository.say("config", "check", "--quiet")

    assert (loud.code, loud.out, quiet) == (0, "", type(quiet)(0, "", ""))
    assert "fine" in loud.err


def test_every_error_is_told_at_once(repository: Repository) -> None:
    """Behaviour C4."""
    repository.write(FILE, 'max_parallel = "many"\n[pick]\nkynd = "user"\n')

    said = repository.say("config", "check", "--quiet")

    first, second = said.err.splitlines()
    assert (said.code, said.out) == (78, "")
    assert f"{FILE}:1: max_parallel" in first
    assert f"{FILE}:3: pick.kynd" in second


def test_a_routing_table_that_is_malformed_is_an_error(repository: Repository) -> None:
    """Behaviour G1."""
    repository.write("docs/dispatch/routing.yaml", "routes: 7\n")

    said = repository.say("config", "check")

    assert said.code == 78
    assert "routing.yaml" in said.err


def test_errors_of_settings_and_of_the_routing_table_are_told_at_once(
    repository: Repository,
) -> None:
    """Behaviour C4."""
    repository.write("docs/dispatch/routing.yaml", "routes: 7\n")
    repository.write(FILE, "max_parallel = 'many'\n")

    said = repository.say("config", "check")

    assert said.code == 78
    assert "max_parallel" in said.err
    assert "routing.yaml" in said.err


def test_show_tells_where_a_value_comes_from(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository.write(FILE, "max_open_pulls = 3\n")
    monkeypatch.setenv("CHUMP_DISPATCH_CAPACITY", "5")

    settings = repository.say("config", "show", "--json").json()["settings"]
    table = repository.say("config", "show").out.splitlines()

    found = {one["key"]: (one["value"], one["origin"]) for one in settings}
    assert found["max_parallel"] == ("5", "CHUMP_DISPATCH_CAPACITY")
    assert found["max_open_pulls"] == ("3", f"{repository.root / FILE}:1")
    assert found["max_open_pulls"][1] in table[2]


def test_show_masks_secrets(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behaviour C4."""
    monkeypatch.setenv("MY_TOKEN", "hush-hush-hush")
    repository.write(FILE, '[backend.claude]\nextra_args = ["--note", "hush-hush-hush"]\n')

    said = repository.say("config", "show")

    assert "hush" not in said.out
    assert "***" in said.out


def test_show_masks_what_an_argument_hands_to_an_agent(repository: Repository) -> None:
    """Behaviour C4."""
    repository.write(FILE, '[backend.custom]\nargv = ["env", "OPENAI_API_KEY=supersecret", "a"]\n')

    table = repository.say("config", "show").out
    document = repository.say("config", "show", "--json").out

    assert "supersecret" not in table + document
    assert "OPENAI_API_KEY=***" in table


def test_path_names_both_files(repository: Repository) -> None:
    said = repository.say("config", "path")

    assert said.out.splitlines() == [str(repository.root / FILE), str(config.user_settings_file())]
    assert said.err.count("does not exist") == 2


def test_init_writes_a_file_that_changes_nothing_but_consent(repository: Repository) -> None:
    """Behaviour A5."""
    before = config.load(repository.root).settings
    said = repository.say("init", "--yes")

    text = (repository.root / FILE).read_text()
    after = config.load(repository.root)
    assert said.code == 0
    assert str(repository.root / FILE) in said.out
    assert "chump-orchestrator plan" in said.err
    assert (before.consent, after.settings.consent) == (False, True)
    assert {k for k, origin in after.origins.items() if str(origin) != "default"} == {"consent"}
    assert tomllib.loads(text)["consent"] is True


def test_every_default_of_the_file_can_be_uncommented(repository: Repository) -> None:
    before = config.load(repository.root).settings
    repository.say("init", "--yes")
    path = repository.root / FILE
    head, _, body = path.read_text().partition("\n\n")
    loose = "\n".join(line.removeprefix("# ") for line in body.splitlines())
    path.write_text(f"{head}\n\n{loose}\n")

    loaded = config.load(repository.root)

    assert loaded.settings == replace(before, consent=True)
    assert str(loaded.origins["retry.max_attempts"]).startswith(str(path))


def test_init_without_anybody_to_ask_does_not_consent(repository: Repository) -> None:
    """Behaviour A5."""
    said = repository.say("init")

    assert said.code == 0
    assert "unattended" in said.err
    assert "--yes" in said.err
    assert config.load(repository.root).settings.consent is False
    assert repository.say("init", "--yes").code == 0
    assert config.load(repository.root).settings.consent is True


def test_init_leaves_a_file_that_is_there_as_it_is_but_for_consent(repository: Repository) -> None:
    text = "# mine\nmax_parallel = 7\n[pick]\nkind = 'any'\n"
    path = repository.write(FILE, text)

    untouched = repository.say("init")
    same = path.read_text()
    repository.say("init", "--yes")
    consenting = path.read_text()
    again = repository.say("init", "--yes")

    assert same == text
    assert "stays as it is" in untouched.out
    assert consenting == f"consent = true\n{text}"
    assert "stays as it is" in again.out
    assert path.read_text() == consenting


def test_init_does_not_overrule_a_no_that_somebody_wrote(repository: Repository) -> None:
    path = repository.write(FILE, "consent = false\n")

    said = repository.say("init", "--yes")

    assert said.code == 78
    assert f"{path}:1" in said.err
    assert path.read_text() == "consent = false\n"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"# mine\nmax_parallel = 7\n", b"consent = true\n# mine\nmax_parallel = 7\n"),
        (b"max_parallel = 7\r\n[pick]\r\n", b"consent = true\r\nmax_parallel = 7\r\n[pick]\r\n"),
        (
            b"\xef\xbb\xbfmax_parallel = 7\n",
            b"\xef\xbb\xbfconsent = true\nmax_parallel = 7\n",
        ),
        (b"# \xc3\xa4\n[pick]\nkind = 'any'", b"consent = true\n# \xc3\xa4\n[pick]\nkind = 'any'"),
        (b"", b"consent = true\n"),
        (
            b"max_parallel = 7\r\n# consent = false\r\n[pick]\r\n",
            b"max_parallel = 7\r\nconsent = true\r\n[pick]\r\n",
        ),
    ],
)
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664])
def test_init_adds_consent_to_a_file_and_leaves_every_other_byte_and_its_mode(
    repository: Repository, before: bytes, after: bytes, mode: int
) -> None:
    path = repository.write(FILE, "")
    path.write_bytes(before)
    path.chmod(mode)

    said = repository.say("init", "--yes")

    assert said.code == 0
    assert path.read_bytes() == after
    assert path.stat().st_mode & 0o7777 == mode
    assert config.load(repository.root).settings.consent is True
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_init_says_consent_once_in_a_file_of_its_own(repository: Repository) -> None:
    repository.say("init")
    repository.say("init", "--yes")

    text = (repository.root / FILE).read_text()
    assert [line for line in text.splitlines() if "consent" in line] == ["consent = true"]


def test_init_does_not_put_consent_where_it_would_mean_something_else(
    repository: Repository,
) -> None:
    text = "[pick]\nkind = 'any'\n# consent = false\n"
    path = repository.write(FILE, text)

    said = repository.say("init", "--yes")

    assert said.code == 0
    assert path.read_text() == f"consent = true\n{text}"


def test_init_writes_to_where_a_link_leads(
    repository: Repository, tmp_path_factory: pytest.TempPathFactory
) -> None:
    kept = tmp_path_factory.mktemp("dotfiles") / "chump.toml"
    kept.write_text("max_parallel = 7\n")
    path = repository.root / FILE
    path.parent.mkdir()
    path.symlink_to(kept)

    said = repository.say("init", "--yes")

    assert said.code == 0
    assert path.is_symlink()
    assert kept.read_text() == "consent = true\nmax_parallel = 7\n"


def test_what_init_writes_refers_to_nothing_that_the_repository_does_not_have(
    repository: Repository,
) -> None:
    repository.say("init")

    text = (repository.root / FILE).read_text()
    assert "docs/reference" not in text
    assert "chump-orchestrator config show" in text

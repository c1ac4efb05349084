"""What a secret looks like, and which paths are forbidden (behaviour P9)."""

from __future__ import annotations

import base64

import pytest

from chump_orchestrator.adapters.shipping.paths import ForbiddenPaths
from chump_orchestrator.adapters.shipping.secret_shapes import OWN, KnownSecrets, Match, shapes_in
from chump_orchestrator.settings.tables import FORBIDDEN_PATHS
from tests.adapters.a_shipment import KEY_BODY, token

KINDS = {
    "github": "GitHub token",
    "fine-grained": "GitHub token",
    "aws": "AWS access key",
    "aws-secret": "AWS secret key",
    "gitlab": "GitLab token",
    "slack": "Slack token",
    "anthropic": "Anthropic key",
    "openai": "OpenAI key",
    "google": "Google key",
    "stripe": "Stripe key",
    "npm": "npm token",
    "private-key": "private key",
}
VALUE = "the-daemon's/own+secret"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("around", ["x = '{}'\n", "{}", '{{"a": "b\\n{}"}}', "(see {},)"])
def test_the_shape_of_a_secret_is_known(kind: str, around: str) -> None:
    (match,) = shapes_in(around.format(token(kind)).encode())

    assert match.rule == KINDS[kind]
    assert match.found in token(kind).encode()


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"private-key", "aws-secret"}))
def test_a_part_of_a_longer_word_is_no_token(kind: str) -> None:
    assert list(shapes_in(f"word{token(kind)}".encode())) == []


@pytest.mark.parametrize(
    "data",
    [
        "AK" + "IAIOSFODNN7EXAMPLE",
        "gh" + "p_" + "x" * 36,
        "gh" + "p_" + "0" * 36,
        "sk-" + "ant-api03-" + "your-key-goes-here-your-key-goes-here-your-key",
        "-----BEGIN PRIVATE KEY-----\n...\n-----END PRIVATE KEY-----\n",
        "a sentence on PRIVATE KEYs and -----BEGIN RSA PRIVATE KEY-----",
        "disk-" + "proj-" + "q8Zt3LmX0vBnRw5KyH2dFsPc7GjUe9TaQ1oWi4" * 2,
        "3f" * 20 + "\n" + "9b3c" * 16,
    ],
)
def test_examples_and_hashes_are_no_secrets(data: str) -> None:
    assert list(shapes_in(f"use {data}\n".encode())) == []


KEYS = {
    "as programs write them": "-----BEGIN RSA {} KEY-----\nProc-Type: 4,ENCRYPTED\n\n{}\n",
    "of PGP": "-----BEGIN PGP {} KEY BLOCK-----\nVersion: GnuPG v2\n\n{}\n",
    "in JSON": '{{"private_key": "-----BEGIN {} KEY-----\\n{}\\n"}}',
    "in a program": '"-----BEGIN EC {} KEY-----\\n" +\n    "{}\\n"',
    "in one line": "-----BEGIN {} KEY----- {} -----END",
}


@pytest.mark.parametrize("how", KEYS)
def test_private_keys_are_known_in_every_dress(how: str) -> None:
    text = KEYS[how].format("PRIVATE", KEY_BODY)

    assert list(shapes_in(text.encode())) == [Match("private key", KEY_BODY.encode())]


def test_hostile_files_take_time_in_proportion_to_their_size() -> None:
    """A search that went back and forth would take hours here."""
    lines = (b"-----BEGIN PRIVATE KEY-----\n", b"SG.", b"-----BEGIN A: b\n a: b\n", b"sk-ant-a-")

    found = [match for line in lines for match in shapes_in(line * (400_000 // len(line)))]

    assert found == []


@pytest.mark.parametrize(
    "written",
    [
        VALUE,
        "the-daemon%27s%2Fown%2Bsecret",
        base64.b64encode(b"x:" + VALUE.encode()).decode(),
        base64.urlsafe_b64encode(VALUE.encode()).decode(),
        VALUE.encode().hex(),
    ],
    ids=["plain", "quoted", "basic authentication", "base64url", "hex"],
)
def test_our_own_secrets_are_known_however_they_are_written(written: str) -> None:
    found = list(KnownSecrets((VALUE,)).found_in(f"before {written} after".encode()))

    assert found
    assert {match.rule for match in found} == {OWN}


def test_values_that_are_too_short_or_no_secrets_are_not_looked_for() -> None:
    known = KnownSecrets(("short", f"-----BEGIN {'PRIVATE'} KEY-----", ""))

    assert list(known.found_in(f"short -----BEGIN {'PRIVATE'} KEY-----".encode())) == []


@pytest.mark.parametrize(
    ("path", "pattern"),
    [
        (".github/workflows/ci.yml", ".github/workflows/*"),
        (".GitHub/WorkFlows/ci.yml", ".github/workflows/*"),
        (".github/workflows/deep/er.yml", ".github/workflows/*"),
        (".git\u200bhub/workflows/ci.yml", ".github/workflows/*"),
        (".github/w\uff4frkflows/ci.yml", ".github/workflows/*"),
        ("docs/CODEOWNERS", "CODEOWNERS"),
        ("config/.env.production", ".env*"),
        ("certs/server.PEM", "*.pem"),
        ("home/id_ed25519", "id_ed25519"),
        (".env.example", ""),
        ("a/.env.sample", ""),
        ("workflows/ci.yml", ""),
        ("docs/github/workflows/x.yml", ""),
        ("src/monkey.py", ""),
    ],
)
def test_the_usual_forbidden_paths(path: str, pattern: str) -> None:
    assert ForbiddenPaths(FORBIDDEN_PATHS).forbidding(path) == pattern


@pytest.mark.parametrize(
    ("pattern", "path", "fits"),
    [
        ("a/*.txt", "a/x.txt", True),
        ("a/*.txt", "a/b/x.txt", False),
        ("a/**/x.txt", "a/x.txt", True),
        ("a/**/x.txt", "a/b/c/x.txt", True),
        ("a/**", "a/b/c", True),
        ("a", "b/a/c", True),
        ("/a", "b/a/c", False),
        ("/a", "a/c", True),
        ("a/", "a/c", True),
        ("x?z", "xyz", True),
        ("x?z", "x/z", False),
        ("a.b", "aXb", False),
        ("[ab]", "a", False),
    ],
)
def test_how_patterns_fit(pattern: str, path: str, fits: bool) -> None:
    assert bool(ForbiddenPaths((pattern,)).forbidding(path)) is fits


def test_of_several_patterns_the_last_that_fits_counts() -> None:
    paths = ForbiddenPaths(("docs/*", "!docs/open.md", "*.key"), always=("/.chump",))

    assert paths.forbidding("docs/closed.md") == "docs/*"
    assert paths.forbidding("docs/open.md") == ""
    assert paths.forbidding("docs/open.key") == "*.key"
    assert ForbiddenPaths(("!.chump",), always=("/.chump",)).forbidding(".chump/x") == "/.chump"

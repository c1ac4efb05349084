"""The routing table as a file (behaviour G1)."""

from __future__ import annotations

from pathlib import Path

import pytest

from chump_orchestrator.adapters import routing_file
from chump_orchestrator.adapters.routing_file import load_table
from chump_orchestrator.core.errors import ConfigError
from chump_orchestrator.core.routing import Route, RoutingTable, Rule

BACKENDS = ("claude", "chump-local")

TABLE = """# Where gaps go.
version: 1
default_candidates:
  - {backend: claude}
routes:
  - match: {priority: p1, effort: [xs, s]}
    model_class: small
    candidates:
      - backend: chump_local
        model: qwen3
        provider_pfx: TOGETHER
        why: cheap
      - backend: claude
    why: small ones
  - match:
      task_class: research
    candidates: [{backend: claude, model: opus}]
"""


def written(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "routing.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_g1_the_whole_table_is_read(tmp_path: Path) -> None:
    table = load_table(written(tmp_path, TABLE), lambda: BACKENDS)

    assert table == RoutingTable(
        rules=(
            Rule(
                (Route("chump-local", "qwen3", "TOGETHER", "cheap"), Route("claude")),
                priorities=frozenset({"P1"}),
                efforts=frozenset({"xs", "s"}),
                why="small ones",
            ),
            Rule((Route("claude", "opus"),), task_classes=frozenset({"research"})),
        ),
        default_candidates=(Route("claude"),),
    )


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "routes: []\n", "routes:\n", "null\n"])
def test_g1_a_table_without_rules_sends_nothing_anywhere(tmp_path: Path, text: str) -> None:
    assert load_table(written(tmp_path, text), lambda: BACKENDS) == RoutingTable()


def test_g1_a_missing_file_is_a_table_without_rules(tmp_path: Path) -> None:
    assert load_table(tmp_path / "routing.yaml", lambda: BACKENDS) == RoutingTable()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"routes: [\n", ":2:1: "),
        (b"routes: []\n---\nroutes: []\n", ":2:1: "),
        (b"routes: []\nroutes: []\n", ":2:1: key routes is given again"),
        (b"routes: \xff\n", ":1:9: byte 0xff is not UTF-8"),
        (b"routes: a\0b\n", ":1:10: there is a NUL in it"),
        (b"routes: " + b"[" * 200 + b"]" * 200 + b"\n", "nested deeper than 100 levels"),
        (b"- backend: claude\n", ": expected a mapping"),
        (b"routes: all\n", ": routes: expected a list"),
        (b"routes: [{candidates: [{backend: codex}]}]\n", "no backend named 'codex'; installed: "),
        (b"routes: [{match: {effort: huge}, candidates: []}]\n", "'huge' is not among xs, s, m"),
    ],
)
def test_g1_a_malformed_table_is_refused_with_its_place(
    tmp_path: Path, text: bytes, told: str
) -> None:
    path = written(tmp_path, text)

    with pytest.raises(ConfigError) as caught:
        load_table(path, lambda: BACKENDS)

    assert str(caught.value).startswith(str(path))
    assert told in str(caught.value)


def test_a_file_that_cannot_be_read_is_the_operators_business(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be read: .*; see routing\.table"):
        load_table(tmp_path, lambda: BACKENDS)


def test_a_file_beyond_the_limit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routing_file, "SIZE_LIMIT", 100)

    with pytest.raises(ConfigError, match="larger than 100 bytes"):
        load_table(written(tmp_path, TABLE), lambda: BACKENDS)

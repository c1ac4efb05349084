"""Tables on terminals of any width: nothing is cut, and only free text is folded."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest

from chump_orchestrator.adapters.ledger import SqliteLedger
from chump_orchestrator.core.causes import Cause
from chump_orchestrator.core.outcome import Outcome, OutcomeKind
from tests.e2e.cli_repository import Repository, ended
from tests.e2e.test_terminal import on_a_terminal, without_style

WHY = "exit code 7 " + "and much more " * 10
HEADERS = ["GAP", "TRY", "OUTCOME", "CAUSE", "TIME", "PULL", "BACKEND", "ENDED", "REASON"]
CELLS = ["DEMO-1", "killed", "exit-code", "1h 01m", "claude", "2026-04-27 13:01"]


async def one(ledger: SqliteLedger) -> None:
    why = Outcome(OutcomeKind.KILLED, WHY.strip(), Cause.EXIT_CODE)
    await ended(ledger, "DEMO-1", why, after=timedelta(minutes=61))


@pytest.mark.parametrize("columns", [200, 120, 80, 60, 40, 20])
def test_a_table_fits_its_terminal_without_breaking_a_word(
    repository: Repository, columns: int
) -> None:
    repository.in_ledger(one)

    code, written = on_a_terminal(repository.root, "history", columns=columns)

    shown = without_style(written)
    assert code == 0
    assert [word for word in HEADERS + CELLS if word not in shown] == []
    assert " ".join(shown.split()).count(" ".join(WHY.split())) == 1, "whole, but for its folds"
    if columns >= 80:
        assert max(map(len, shown.splitlines())) <= columns


def test_free_text_stands_beside_where_there_is_room_and_below_where_not(
    repository: Repository,
) -> None:
    repository.in_ledger(one)

    _, wide = on_a_terminal(repository.root, "history", columns=200)
    _, usual = on_a_terminal(repository.root, "history", columns=80)

    assert re.search(r"13:01  exit code 7 and", without_style(wide))
    assert re.search(r"13:01\r?\n    exit code 7 and", without_style(usual))

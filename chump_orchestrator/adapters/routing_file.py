"""The routing table as the repository has it, `docs/dispatch/routing.yaml` (behaviour G1)."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

from chump_orchestrator.core.errors import ConfigError
from chump_orchestrator.core.gap import Place
from chump_orchestrator.core.routing import RoutingTable, read_table

SIZE_LIMIT = 1024 * 1024


def load_table(path: Path, backends: Callable[[], Collection[str]]) -> RoutingTable:
    """Read the routing table; one without rules when there is no such file. Blocks.

    Raises `ConfigError` with the place when it cannot be read or is malformed, and with every
    problem at once when it says what makes no sense; a backend that is not among `backends`,
    which are asked for only where there is a table, is such a problem.
    """
    try:
        with path.open("rb") as file:
            data = file.read(SIZE_LIMIT + 1)
    except FileNotFoundError:
        return RoutingTable()
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(f"{path}: cannot be read: {reason}; see routing.table") from error
    if len(data) > SIZE_LIMIT:
        raise ConfigError(f"{path}: larger than {SIZE_LIMIT} bytes; this is no routing table")
    return _read(path, data, backends())


def _read(path: Path, data: bytes, backends: Collection[str]) -> RoutingTable:
    # Most repositories have no table, and are not to wait for a parser.
    from chump_orchestrator.adapters.yaml_nodes import (  # noqa: PLC0415 - slow to import
        Broken,
        Remark,
        compose_carefully,
        value_of,
    )

    remarks: list[Remark] = []
    try:
        root = compose_carefully(data)
        document = None if root is None else value_of(root, remarks)
    except Broken as broken:
        place = Place(str(path), broken.line, broken.column)
        raise ConfigError(f"{place}: {broken.problem}") from broken
    if remarks:
        told = (f"{Place(str(path), row + 1, column + 1)}: {text}" for text, row, column in remarks)
        raise ConfigError("\n".join(told))
    return read_table(document, backends, str(path))

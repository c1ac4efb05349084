"""Go on after what is no matter; `contextlib` would cost every shim more memory than all of this.

A `with` statement does it: what is raised inside and is one of the given kinds ends there.
"""

from types import TracebackType


class Regardless:
    """Leave the block where one of `kinds` is raised, and go on behind it."""

    __slots__ = ("_kinds",)

    def __init__(self, *kinds: type[BaseException]) -> None:
        self._kinds = kinds

    def __enter__(self) -> None:
        """Nothing has happened yet."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> bool:
        return kind is not None and issubclass(kind, self._kinds)

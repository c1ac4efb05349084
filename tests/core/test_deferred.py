"""What is promised of a data class is the same here as by the standard library."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
import pprint
import sys
from dataclasses import KW_ONLY, FrozenInstanceError, field, fields, replace
from typing import Any, ClassVar

import pytest

from chump_orchestrator.core import deferred


def a_record(made: Any) -> Any:
    class Record:
        """Says something."""

        kind: ClassVar[str] = "record"
        name: str
        count: int = 3
        seen: tuple[str, ...] = ()
        notes: list[str] = field(default_factory=list)
        secret: str = field(default="", repr=False, compare=False)
        made: list[int] = field(default_factory=lambda: [7], init=False)
        fixed: int = field(default=5, init=False)
        late: str = field(default="late", kw_only=True)

        @property
        def both(self) -> str:
            return f"{self.name}{self.count}"

    return made(Record)


OURS = a_record(deferred.dataclass(frozen=True, slots=True))
THEIRS = a_record(dataclasses.dataclass(frozen=True, slots=True))
PLAIN = a_record(deferred.dataclass(frozen=True))
MUTABLE = a_record(deferred.dataclass(slots=True))


@deferred.dataclass(frozen=True, slots=True)
class Alone:
    value: float


@deferred.dataclass(frozen=True, slots=True)
class Nothing:
    pass


@deferred.dataclass(frozen=True, slots=True)
class Checked:
    value: int

    def __post_init__(self) -> None:
        if self.value < 0:
            raise ValueError("less than nothing")


@deferred.dataclass(frozen=True, slots=True)
class Own:
    """Says itself how it looks and what it equals."""

    value: int

    def __repr__(self) -> str:
        return "mine"

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 1


@pytest.mark.parametrize(
    ("places", "names"),
    [
        (("a",), {}),
        (("a", 1), {"late": "x"}),
        (("a", 1, ("b",), ["c"], "d"), {}),
        ((), {"name": "a", "notes": ["n"], "secret": "s"}),
    ],
)
def test_an_instance_holds_what_it_was_given_and_the_defaults(
    places: tuple[Any, ...], names: dict[str, Any]
) -> None:
    ours, theirs = OURS(*places, **names), THEIRS(*places, **names)

    assert {f.name: getattr(ours, f.name) for f in fields(ours)} == {
        f.name: getattr(theirs, f.name) for f in fields(theirs)
    }
    assert repr(ours) == repr(theirs)
    assert ours.both == theirs.both


@pytest.mark.parametrize(
    ("places", "names"),
    [((), {}), (("a", 1, (), [], "", "more"), {}), (("a",), {"fixed": 1}), (("a",), {"name": "b"})],
)
def test_what_the_library_does_not_take_is_not_taken_here(
    places: tuple[Any, ...], names: dict[str, Any]
) -> None:
    with pytest.raises(TypeError) as theirs:
        THEIRS(*places, **names)
    with pytest.raises(TypeError) as ours:
        OURS(*places, **names)

    assert str(ours.value) == str(theirs.value)


def test_each_instance_gets_a_list_of_its_own() -> None:
    one, other = OURS("a"), OURS("a")
    one.notes.append("x")

    assert (one.notes, other.notes) == (["x"], [])
    assert one.made is not other.made


@pytest.mark.parametrize("cls", [OURS, PLAIN], ids=["with slots", "without"])
def test_instances_are_equal_by_the_values_that_are_compared(cls: Any) -> None:
    one = cls("a", notes=("n",), secret="x")
    same, other = cls("a", notes=("n",), secret="y"), cls("b", notes=("n",))

    assert one == same
    assert one != other
    assert one != THEIRS("a", notes=("n",))
    assert one.__eq__(3) is NotImplemented


def test_hashes_go_with_equality_and_are_those_of_the_library() -> None:
    @dataclasses.dataclass(frozen=True, slots=True)
    class Theirs:
        value: float

    nan = float("nan")

    assert hash(Alone(1.5)) == hash(Theirs(1.5)) == hash(Alone(1.5))
    assert Alone(nan) == Alone(nan)
    assert hash(Nothing()) == hash(Nothing())
    assert len({Nothing(), Nothing(), Alone(1), Alone(1)}) == 2


def test_what_can_change_has_no_hash() -> None:
    one = MUTABLE("a")
    one.count = 9

    assert one == MUTABLE("a", 9)
    with pytest.raises(TypeError, match="unhashable"):
        hash(one)


@pytest.mark.parametrize("cls", [OURS, PLAIN], ids=["with slots", "without"])
def test_what_is_frozen_cannot_be_changed(cls: Any) -> None:
    one = cls("a")

    with pytest.raises(FrozenInstanceError, match="cannot assign to field 'name'"):
        one.name = "b"
    with pytest.raises(FrozenInstanceError):
        one.other = "b"
    with pytest.raises(FrozenInstanceError, match="cannot delete field 'name'"):
        del one.name
    assert one == cls("a")


def test_slots_leave_no_room_for_anything_else() -> None:
    assert not hasattr(OURS("a"), "__dict__")
    with pytest.raises(AttributeError):
        MUTABLE("a").other = 1


def test_fields_are_those_of_the_library() -> None:
    def told(cls: Any) -> list[tuple[object, ...]]:
        return [(f.name, f.type, f.default, f.init, f.repr, f.compare) for f in fields(cls)]

    assert told(OURS) == told(THEIRS)
    assert all(map(dataclasses.is_dataclass, (OURS, OURS("a"))))
    assert dataclasses.asdict(OURS("a")) == dataclasses.asdict(THEIRS("a"))
    assert OURS.__match_args__ == THEIRS.__match_args__


def test_fields_can_be_asked_of_an_instance_before_the_class() -> None:
    cls = a_record(deferred.dataclass(frozen=True, slots=True))

    assert [f.name for f in fields(cls("a"))] == [f.name for f in fields(THEIRS)]


def test_one_can_be_made_of_another_with_some_values_changed() -> None:
    one = OURS("a", 4, secret="s")

    changed = replace(one, name="b")

    assert (changed.name, changed.count, changed.secret) == ("b", 4, "s")
    with pytest.raises((TypeError, ValueError)):
        replace(one, fixed=1)
    if sys.version_info >= (3, 13):
        assert copy.replace(one, name="b") == changed


def test_instances_match_patterns() -> None:
    match OURS("a", 4):
        case OURS(name, count=4):
            assert name == "a"
        case _:
            pytest.fail("it does not match")


def test_what_is_to_follow_on_making_one_does() -> None:
    assert Checked(1).value == 1
    with pytest.raises(ValueError, match="less than nothing"):
        Checked(-1)


def test_a_class_keeps_the_methods_that_it_has() -> None:
    assert (repr(Own(1)), Own(1) == Own(2), hash(Own(1))) == ("mine", True, 1)


def test_an_instance_can_be_copied_and_sent() -> None:
    one = Alone(1.5)

    assert copy.copy(one) == copy.deepcopy(one) == pickle.loads(pickle.dumps(one)) == one
    assert copy.copy(MUTABLE("a")) == MUTABLE("a")


def test_one_that_holds_itself_can_be_shown() -> None:
    one = OURS("a")
    one.notes.append(one)

    assert repr(one) == repr(one).replace("\n", "")
    assert "notes=[...]" in repr(one)


def test_the_parameters_can_be_asked_for() -> None:
    def parameters(cls: Any) -> list[tuple[str, object]]:
        return [(p.name, p.kind) for p in inspect.signature(cls).parameters.values()]

    assert parameters(a_record(deferred.dataclass(frozen=True, slots=True))) == parameters(THEIRS)
    assert OURS.__init__.__qualname__ == f"{OURS.__qualname__}.__init__"


def test_it_says_what_it_was_made_with() -> None:
    def made_with(cls: Any) -> tuple[bool, bool, bool]:
        told = cls.__dataclass_params__
        return told.frozen, told.eq, told.order

    assert made_with(OURS) == made_with(THEIRS) == (True, True, False)
    assert made_with(MUTABLE) == (False, True, False)
    assert "notes" in pprint.pformat([OURS("a" * 90)], width=20)


def test_nothing_is_written_before_it_is_needed() -> None:
    cls = a_record(deferred.dataclass(frozen=True, slots=True))
    before = type(vars(cls)["__init__"])

    cls("a")

    assert before is not type(vars(cls)["__init__"])
    assert inspect.isfunction(vars(cls)["__init__"])
    assert not inspect.isfunction(vars(cls)["__eq__"])


def test_what_is_not_known_here_is_refused() -> None:
    class Below(Alone):
        more: int

    class Marked:
        _: KW_ONLY
        more: int

    for wrong in (Below, Marked):
        with pytest.raises(TypeError, match="deferred data class"):
            deferred.dataclass(frozen=True, slots=True)(wrong)


def test_a_mistake_in_a_default_is_found_when_the_class_is_used() -> None:
    @deferred.dataclass(frozen=True, slots=True)
    class Wrong:
        shared: list[int] = []  # noqa: RUF012 - the mistake

    with pytest.raises(ValueError, match="mutable default"):
        fields(Wrong)

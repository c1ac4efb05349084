"""Data classes that cost little until they are used.

`dataclasses` compiles the text of half a dozen functions for every class when its module is read,
0.6 ms a class, and a command that only looks makes instances of one class in three. Here a class
gets its slots at once, and all else when it is first asked for: what makes, compares and hashes
instances is written then, and what `fields` and `replace` go by is what `dataclasses` itself makes
of the class. From then on an instance costs what it costs there.

A type checker takes `dataclass` for the one of the standard library. Of that one's features those
are here that are in use: no data class above another, no `InitVar`, no `KW_ONLY`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from reprlib import recursive_repr
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dataclasses import dataclass

__all__ = ["dataclass"]

_FIELDS = "__dataclass_fields__"
_PARAMS = "__dataclass_params__"
_LATER = (_FIELDS, _PARAMS, "__match_args__")
_NOT_OURS = ("InitVar", "dataclasses.InitVar", "KW_ONLY", "dataclasses.KW_ONLY")
_OF_THE_CLASS = ("ClassVar", "typing.ClassVar")
_OF_INSTANCES = ("__dict__", "__weakref__")
_NO_HASH = ("__hash__", None)
"""What a class has that defines `__eq__` alone."""


def _dataclass(*, frozen: bool = False, slots: bool = False) -> Callable[[type], type]:
    """Return what makes a class a data class, with the promises of the standard library's."""
    return partial(_made, frozen=frozen, slots=slots)


if not TYPE_CHECKING:
    dataclass = _dataclass


def _made(plain: type, *, frozen: bool, slots: bool) -> type:
    if not plain.__doc__:
        # `dataclasses` would write a signature there, for longer than all the rest takes.
        plain.__doc__ = plain.__name__
    if any(_FIELDS in vars(above) for above in plain.__mro__[1:]):
        raise TypeError(f"{plain.__qualname__}: a deferred data class has none above it")
    declared = dict(_declared(plain))
    methods: dict[str, Any] = {
        "__init__": _Later(partial(_init_of, declared, frozen=frozen)),
        "__repr__": _repr,
        "__eq__": _Later(_eq_of),
        "__hash__": _Later(_hash_of) if frozen else None,
        "__replace__": _replace,
    }
    if frozen:
        methods |= {"__setattr__": _refuse_setting, "__delattr__": _refuse_deleting}
    own = {name: value for name, value in vars(plain).items() if (name, value) != _NO_HASH}
    if slots:
        return _slotted(plain, declared, methods | own, frozen=frozen)
    for name in methods.keys() - own.keys():
        setattr(plain, name, methods[name])
        if isinstance(methods[name], _Later):
            methods[name].__set_name__(plain, name)
    processed: type = dataclasses.dataclass(init=False, repr=False, eq=False)(plain)
    return processed


def _declared(plain: type) -> Iterator[tuple[str, Any]]:
    """Yield the names of the fields, and their defaults as they are written."""
    for name, kind in plain.__annotations__.items():
        if not isinstance(kind, str) or kind.startswith(_NOT_OURS):
            raise TypeError(f"{plain.__qualname__}.{name}: a deferred data class knows no {kind!r}")
        if not kind.startswith(_OF_THE_CLASS):
            yield name, vars(plain).get(name, dataclasses.MISSING)


def _slotted(plain: type, declared: dict[str, Any], body: dict[str, Any], *, frozen: bool) -> type:
    body = {name: value for name, value in body.items() if name not in (*declared, *_OF_INSTANCES)}
    body |= {name: _Later(partial(_processed, plain, name, frozen=frozen)) for name in _LATER}
    if frozen:
        body = {"__getstate__": _getstate, "__setstate__": _setstate, **body}
    more = {"__slots__": tuple(declared), "__qualname__": plain.__qualname__}
    cls: type = type(plain)(plain.__name__, plain.__bases__, body | more)
    return cls


def _processed(plain: type, name: str, _: type, *, frozen: bool) -> Any:  # noqa: ANN401 - any
    """Return what `dataclasses` makes of the fields of a class."""
    # On a class of its own, as it changes what it is given and another thread may ask, too.
    body = {name: value for name, value in vars(plain).items() if name not in _OF_INSTANCES}
    again = type(plain)(plain.__name__, plain.__bases__, body)
    is_compared = name == _PARAMS
    made: Any = dataclasses.dataclass(init=False, repr=False, eq=is_compared, frozen=frozen)(again)
    return getattr(made, name)


class _Later:
    """Stands in the place of an attribute of a class until that is asked for the first time."""

    __slots__ = ("_make", "_name", "_owner")

    def __init__(self, make: Callable[[type], Any]) -> None:
        self._make = make

    def __set_name__(self, owner: type, name: str) -> None:
        self._owner, self._name = owner, name

    def __get__(self, instance: object, owner: type) -> Any:  # noqa: ANN401 - any attribute
        made = self._make(self._owner)
        setattr(self._owner, self._name, made)
        return made.__get__(instance, owner) if callable(made) else made


def _init_of(declared: dict[str, Any], cls: type, *, frozen: bool) -> Any:  # noqa: ANN401 - a function
    known: dict[str, Any] = {"__set": object.__setattr__, "__NOT_GIVEN": object()}
    places, keywords, lines = ["self"], list[str](), list[str]()
    kinds: dict[str, Any] = {}
    for name, default in declared.items():
        f: Any = default
        if not isinstance(default, dataclasses.Field):
            f = dataclasses.field(default=default)
        constant, factory = f"__default_of_{name}", f"__make_{name}"
        parameter = value = name
        if f.default_factory is not dataclasses.MISSING:
            known[factory] = f.default_factory
            parameter, value = f"{name}=__NOT_GIVEN", f"{factory}()"
            if f.init:
                value += f" if {name} is __NOT_GIVEN else {name}"
        elif f.default is not dataclasses.MISSING:
            known[constant] = f.default
            parameter, value = f"{name}={constant}", name if f.init else constant
        elif not f.init:
            continue
        if f.init:
            (keywords if f.kw_only is True else places).append(parameter)
            kinds[name] = cls.__annotations__[name]
        lines.append(f"__set(self, {name!r}, {value})" if frozen else f"self.{name} = {value}")
    if hasattr(cls, "__post_init__"):
        lines.append("self.__post_init__()")
    parameters = [*places, "*", *keywords] if keywords else places
    init = _written(cls, "__init__", parameters, lines, known)
    init.__annotations__ = {**kinds, "return": None}
    return init


def _eq_of(cls: type) -> Any:  # noqa: ANN401 - a function
    names = [f.name for f in dataclasses.fields(cls) if f.compare]
    equal = f"{_values('self', names)} == {_values('other', names)}"
    lines = [
        f"if other.__class__ is self.__class__: return {equal}",
        "return NotImplemented",
    ]
    return _written(cls, "__eq__", ["self", "other"], lines, {})


def _hash_of(cls: type) -> Any:  # noqa: ANN401 - a function
    names = [f.name for f in dataclasses.fields(cls) if (f.compare if f.hash is None else f.hash)]
    return _written(cls, "__hash__", ["self"], [f"return hash({_values('self', names)})"], {})


def _values(of: str, names: list[str]) -> str:
    return f"({''.join(f'{of}.{name}, ' for name in names)})"


def _written(
    cls: type, name: str, parameters: list[str], lines: list[str], known: dict[str, Any]
) -> Any:  # noqa: ANN401 - a function of any parameters
    body = "\n ".join(lines or ["pass"])
    exec(f"def {name}({', '.join(parameters)}):\n {body}", known)  # noqa: S102 - names of fields
    function = known.pop(name)
    function.__qualname__ = f"{cls.__qualname__}.{name}"
    function.__module__ = cls.__module__
    return function


@recursive_repr()
def _repr(self: Any) -> str:  # noqa: ANN401 - any instance
    shown = (f"{f.name}={getattr(self, f.name)!r}" for f in dataclasses.fields(self) if f.repr)
    return f"{type(self).__qualname__}({', '.join(shown)})"


def _replace(self: Any, /, **changes: Any) -> Any:  # noqa: ANN401 - any instance
    return dataclasses.replace(self, **changes)


def _getstate(self: Any) -> list[Any]:  # noqa: ANN401 - any instance
    return [getattr(self, f.name) for f in dataclasses.fields(self)]


def _setstate(self: Any, state: list[Any]) -> None:  # noqa: ANN401 - any instance
    for f, value in zip(dataclasses.fields(self), state, strict=True):
        object.__setattr__(self, f.name, value)


def _refuse_setting(_self: object, name: str, _value: object) -> None:
    raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")


def _refuse_deleting(_self: object, name: str) -> None:
    raise dataclasses.FrozenInstanceError(f"cannot delete field {name!r}")

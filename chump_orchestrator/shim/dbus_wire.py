"""How values are written in D-Bus messages, for the types that a request to a manager needs.

See "Marshaling (Wire Format)" in the D-Bus specification. Ours is written little-endian; what
others write is read in either order. Offsets count from the beginning of a message, or of a body,
which begins at a multiple of eight.
"""

_ALIGNMENTS = {"y": 1, "g": 1, "v": 1, "b": 4, "u": 4, "s": 4, "o": 4, "a": 4, "t": 8, "(": 8}
_SIZES = {"y": 1, "b": 4, "u": 4, "t": 8}


def put_all(out: bytearray, signature: str, values: list[object]) -> None:
    """Append values of the types that `signature` names; `ValueError` for one that is not so."""
    for kind, value in zip(_kinds(signature), values, strict=True):
        _put(out, kind, value)


def take_all(data: bytes, at: int, signature: str, *, little: bool) -> tuple[list[object], int]:
    """The values that begin at `at`, and where they end; `ValueError` or the like for nonsense."""
    values: list[object] = []
    for kind in _kinds(signature):
        value, at = _take(data, at, kind, little=little)
        values.append(value)
    return values, at


def padding(length: int, size: int) -> bytes:
    """What has to follow on `length` bytes, so that the next ones begin at a multiple of `size`."""
    return bytes(-length % size)


def _kinds(signature: str) -> list[str]:
    """The complete types of a signature."""
    kinds: list[str] = []
    at = 0
    while at < len(signature):
        end = _end_of(signature, at)
        kinds.append(signature[at:end])
        at = end
    return kinds


def _end_of(signature: str, at: int) -> int:
    if signature[at] == "a":
        return _end_of(signature, at + 1)
    if signature[at] == "(":
        at += 1
        while signature[at] != ")":
            at = _end_of(signature, at)
    return at + 1


def _put(out: bytearray, kind: str, value: object) -> None:
    out += padding(len(out), _ALIGNMENTS[kind[0]])
    match kind[0], value:
        case (("y" | "b" | "u" | "t"), int()):
            out += int(value).to_bytes(_SIZES[kind], "little")
        case (("s" | "o"), str()):
            data = value.encode("utf-8", "replace")
            out += len(data).to_bytes(4, "little") + data + b"\0"
        case "g", str():
            out += bytes((len(value),)) + value.encode() + b"\0"
        case "v", (str() as inner, content):
            put_all(out, "g" + inner, [inner, content])
        case "(", tuple():
            put_all(out, kind[1:-1], list(value))
        case "a", list():
            length_at = len(out)
            out += bytes(4)
            out += padding(len(out), _ALIGNMENTS[kind[1]])
            begin = len(out)
            for item in value:
                _put(out, kind[1:], item)
            out[length_at : length_at + 4] = (len(out) - begin).to_bytes(4, "little")
        case _:
            raise ValueError(f"{value!r} is not of type {kind}")


def _take(data: bytes, at: int, kind: str, *, little: bool) -> tuple[object, int]:
    at += len(padding(at, _ALIGNMENTS[kind[0]]))
    match kind[0]:
        case "y" | "b" | "u" | "t":
            return _number(data, at, _SIZES[kind], little=little)
        case "s" | "o" | "g":
            length, at = _number(data, at, 1 if kind == "g" else 4, little=little)
            if data[at + length] != 0:
                raise ValueError("a text has no end")
            return data[at : at + length].decode("utf-8", "replace"), at + length + 1
        case "v":
            inner, at = _take(data, at, "g", little=little)
            return _take(data, at, str(inner), little=little)
        case "(":
            values, at = take_all(data, at, kind[1:-1], little=little)
            return tuple(values), at
        case "a":
            length, at = _number(data, at, 4, little=little)
            at += len(padding(at, _ALIGNMENTS[kind[1]]))
            items: list[object] = []
            end = at + length
            while at < end:
                item, at = _take(data, at, kind[1:], little=little)
                items.append(item)
            return items, at
        case _:
            raise ValueError(f"there is no type {kind}")


def _number(data: bytes, at: int, size: int, *, little: bool) -> tuple[int, int]:
    if at + size > len(data):
        raise ValueError("it ends too early")
    return int.from_bytes(data[at : at + size], "little" if little else "big"), at + size

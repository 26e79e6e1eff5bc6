"""Records from a file of anybody's: each value is checked against its field's type and range."""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")
_NAMES: Mapping[type, str] = {bool: "true or false", str: "a text", NoneType: "null"}
_HUGE = 1e300  # NaN and infinity are no numbers, and integers above do not fit a float


class MisfitError(ValueError):
    """A value that its field does not take: the full key, what was seen and what is expected."""

    def __init__(self, key: str, seen: object, expected: str) -> None:
        text = seen if isinstance(seen, str) else repr(seen)
        self.key, self.expected = key or "the content", expected
        self.seen = text if len(text) <= 60 else f"{text[:60]}…"
        super().__init__(f"{self.key}: {self.seen}, expected {expected}")


@dataclass(frozen=True)
class Range:
    """Least and largest number of a field, both allowed: `Annotated[int, Range(1, 3)]`."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}"


def build(kind: type[T], raw: object, key: str = "") -> T:
    """An object of a dataclass from JSON's values; lists become tuples where the fields are.

    Numbers must be finite. `key` is where `raw` stands in the file. Raises `MisfitError` for keys
    that are missing or unknown, and for values of another type or out of range.

    >>> build(Range, {"low": 1, "high": 2.5})
    Range(low=1.0, high=2.5)
    >>> build(Range, {"low": 1, "high": None})
    Traceback (most recent call last):
    lesionseg.core.schema.MisfitError: high: None, expected a number
    """
    if not isinstance(raw, Mapping):
        raise MisfitError(key, raw, "an object with keys")
    hints = get_type_hints(kind, include_extras=True)
    known = {field.name: field for field in fields(kind) if field.init}  # type: ignore[arg-type]
    for name in raw:
        if name not in known:
            raise MisfitError(_inner(key, name), "an unknown key", f"one of {', '.join(known)}")
    for name, field in known.items():
        if name not in raw and field.default is MISSING and field.default_factory is MISSING:
            raise MisfitError(_inner(key, name), "nothing", "a value")
    return kind(**{name: _fitted(hints[name], raw[name], _inner(key, name)) for name in raw})


def _inner(key: str, name: object) -> str:
    return f"{key}.{name}" if key else str(name)


def _fitted(hint: Any, value: Any, key: str) -> Any:
    """The value as the type that a field's annotation names."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _in_range(_fitted(inner[0], value, key), inner[1], key)
    if origin in (Union, UnionType):
        return _one_of(inner, value, key)
    if origin is Literal:
        return _checked(value in inner, value, key, ", ".join(map(str, inner)))
    if origin is tuple:
        return _tuple(inner, value, key)
    if origin is not None and issubclass(origin, Mapping):
        _checked(isinstance(value, Mapping), value, key, "an object with keys")
        return {name: _fitted(inner[1], item, _inner(key, name)) for name, item in value.items()}
    if is_dataclass(hint):
        return build(hint, value, key)  # type: ignore[arg-type]  # a class, not an object
    return _scalar(hint, value, key)


def _scalar(hint: Any, value: Any, key: str) -> Any:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if hint is float:
        _checked(is_number and abs(value) < _HUGE, value, key, "a number")
        return float(value)
    if hint is int:
        return _checked(is_number and isinstance(value, int), value, key, "an integer")
    if hint is Any:
        return value
    return _checked(isinstance(value, hint), value, key, _NAMES[hint])


def _one_of(hints: tuple[Any, ...], value: Any, key: str) -> Any:
    """The value as the first type that takes it; what it is not is said of the likeliest."""
    if value is None and NoneType in hints:
        return None
    kinds = [hint for hint in hints if hint is not NoneType]
    lists = [
        hint for hint in kinds if (get_origin(hint) is tuple) == isinstance(value, list | tuple)
    ]
    return _fitted((lists or kinds)[0], value, key)


def _tuple(inner: tuple[Any, ...], value: Any, key: str) -> tuple[Any, ...]:
    _checked(isinstance(value, list | tuple), value, key, "a list")
    if inner[-1] is not Ellipsis:
        _checked(len(value) == len(inner), value, key, f"a list of {len(inner)}")
        return tuple(
            _fitted(h, v, f"{key}[{i}]") for i, (h, v) in enumerate(zip(inner, value, strict=True))
        )
    return tuple(_fitted(inner[0], item, f"{key}[{i}]") for i, item in enumerate(value))


def _in_range(value: Any, limits: Range, key: str) -> Any:
    """Numbers themselves, or each of a (nested) list."""
    if isinstance(value, tuple):
        return tuple(_in_range(item, limits, f"{key}[{i}]") for i, item in enumerate(value))
    return _checked(value is None or limits.low <= value <= limits.high, value, key, str(limits))


def _checked(right: bool, value: T, key: str, expected: str) -> T:
    if not right:
        raise MisfitError(key, value, expected)
    return value

"""A line of a table as a type: one number per column out, cells in, and its JSON schema."""

import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from functools import cache, lru_cache
from pathlib import Path
from types import NoneType
from typing import Any, ClassVar, Literal, Self, TypeVar, get_args, get_origin, get_type_hints

from lesionseg.errors import ContentError
from lesionseg.io.atomic import iterate_csv, write_csv

Row = dict[str, Any]
Point = tuple[float, ...]
Ids = tuple[int, ...]
Series = Mapping[int, float]
Named = Mapping[str, float]
RowType = TypeVar("RowType", bound="TableRow")
# voxels in array order, millimetres in the order of RAS; a 2-D point has no z
_AXES = {"vox": "zyx", "mm": "xyz"}
_JSON_TYPES = {str: "string", float: "number", int: "integer", bool: "boolean", NoneType: "null"}
_NUMBERED = (Ids, Series, Named)  # as many columns as there are numbers, `<field>_<number or name>`
_KEY = {Ids: "[0-9]+", Series: "[0-9]+", Named: ".+"}
_UNITS = ("mm", "ml", "vox", "percent", "minutes", "mb")


def axis_columns(name: str) -> tuple[str, ...]:
    """The columns of a point, by the unit that its name ends with.

    >>> axis_columns("start_vox")
    ('start_z_vox', 'start_y_vox', 'start_x_vox')
    """
    stem, _, unit = name.rpartition("_")
    return tuple(f"{stem}_{axis}_{unit}" for axis in _AXES[unit])


@dataclass(frozen=True, slots=True)
class TableRow:
    """Base of dataclasses that are one line of a table, one field a column, in order.

    A field of type `Point` is a column per axis (`start_vox` is start_z_vox, start_y_vox and
    start_x_vox; z is empty in 2-D), one of type `Ids` or `Series` a numbered column per number, one
    of type `Named` a column per name, in which `_` stands for all but letters.
    `more`: further columns that differ from run to run, by a pattern, and their types.
    """

    more: ClassVar[Mapping[str, Any]] = {}

    @classmethod
    def columns(cls, rows: Sequence["TableRow"] = ()) -> tuple[str, ...]:
        """The names of the columns; numbered ones are those that some of `rows` has."""
        names: list[str] = []
        for name, kind in _types(cls).items():
            if kind in _NUMBERED:
                seen = {i for row in rows for i in _numbered(getattr(row, name))}
                names += [f"{name}_{i}" for i in sorted(seen or ({1} if kind == Ids else seen))]
            else:
                names += _columns(name, kind)
        return tuple(names)

    @classmethod
    def upgrade(cls, row: Mapping[str, str]) -> Mapping[str, str]:
        """A line as written today: earlier versions held the numbers of a point in one cell."""
        parts: dict[str, str] = {}
        for name, kind in _types(cls).items():
            if name in row and kind == Point:
                numbers = row[name].split()
                parts |= dict.fromkeys(axis_columns(name), "")
                parts |= zip(_used(name, len(numbers)), numbers, strict=False)
            elif name in row and kind == Ids:
                parts |= {f"{name}_{i}": cell for i, cell in enumerate(row[name].split(), 1)}
        return {**parts, **row} if parts else row

    @classmethod
    def from_csv(cls, row: Mapping[str, str]) -> Self:
        """Read a line; columns of fields with a default may be missing, others are passed over.

        Raises `ValueError` naming the column that is missing or cannot be read.
        """
        row, values = cls.upgrade(row), dict[str, Any]()
        for one in fields(cls):
            kind = _types(cls)[one.name]
            columns = [name for name in _columns(one.name, kind, row) if name in row]
            if columns or kind in _NUMBERED:
                values[one.name] = _read(kind, one.name, columns, row)
            elif one.default is MISSING:
                raise ValueError(f"no column {_columns(one.name, kind)[-1]}")
        return cls(**values)

    def to_csv(self) -> Row:
        """The cells by column: true and false, None for what is undefined."""
        cells: Row = {}
        for name, kind in _types(type(self)).items():
            value = getattr(self, name)
            if kind == Point:
                written = [f"{round(number, 4):.12g}" for number in value]
                cells |= dict.fromkeys(axis_columns(name))
                cells |= zip(_used(name, len(value)), written, strict=False)
            elif kind in _NUMBERED:
                cells |= {
                    f"{name}_{i}": f"{number:.7g}" if kind == Named else number
                    for i, number in _numbered(value).items()
                }
            else:
                cells[name] = str(value).lower() if isinstance(value, bool) else value
        return cells

    @classmethod
    def json_schema(cls) -> Row:
        """JSON schema of a line as an object; an empty cell is null."""
        types = _types(cls)
        named = {
            column: _json(float | None if kind == Point else kind, column)
            for name, kind in types.items()
            if kind not in _NUMBERED
            for column in _columns(name, kind)
        }
        more = {f"^{name}$": _json(kind, name) for name, kind in cls.more.items()}
        numbered = {
            f"^{name}_{_KEY[kind]}$": _json(int | None if kind == Ids else float | None, name)
            for name, kind in types.items()
            if kind in _NUMBERED
        }
        given = [one.name for one in fields(cls) if one.default is MISSING and one.name in named]
        return {
            "type": "object",
            "properties": named,
            "patternProperties": more | numbered,
            "required": given,
            "additionalProperties": False,
        }


def write_table(path: Path, rows: Sequence[RowType], kind: type[RowType]) -> None:
    """Write rows of one type atomically; without rows the header alone."""
    write_csv(path, (row.to_csv() for row in rows), kind.columns(rows))


def read_table(path: Path, kind: type[RowType]) -> tuple[RowType, ...]:
    """Read rows of one type, also those that earlier versions wrote.

    Raises `ReadError` without a readable file, `ContentError` naming a line that does not fit.
    """
    rows = []
    for line, row in enumerate(iterate_csv(path), start=2):
        try:
            rows.append(kind.from_csv(row))
        except ValueError as error:
            raise ContentError(
                "A line of a table cannot be read.",
                where=f"{path}, line {line}",
                seen=str(error),
                remedy="write the table again with this version.",
            ) from error
    return tuple(rows)


def _types(kind: type[TableRow]) -> Mapping[str, Any]:
    return _hints(kind)  # type: ignore[arg-type]  # mypy looks at how instances are hashed


@cache
def _hints(kind: type[TableRow]) -> Mapping[str, Any]:
    hints = get_type_hints(kind)
    return {one.name: hints[one.name] for one in fields(kind)}


def _columns(name: str, kind: Any, row: Mapping[str, str] | None = None) -> tuple[str, ...]:
    if kind == Point:
        return axis_columns(name)
    if kind in _NUMBERED:
        return tuple(one for one in row or () if re.fullmatch(f"{name}_{_KEY[kind]}", one))
    return (name,)


def _used(name: str, n_axes: int) -> list[str]:
    """The columns of a point of so many axes: all, or those but z."""
    return [column for column in axis_columns(name) if n_axes == 3 or "_z_" not in column]


def _numbered(value: Ids | Series | Named) -> Mapping[Any, float]:
    numbers = value if isinstance(value, Mapping) else dict(enumerate(value, 1))
    return {
        re.sub(r"\W+", "_", key) if isinstance(key, str) else key: n for key, n in numbers.items()
    }


def _read(kind: Any, field: str, columns: Sequence[str], row: Mapping[str, str]) -> Any:
    if kind not in (Point, *_NUMBERED):
        return _cell(kind, row[columns[0]], columns[0])
    one = int if kind == Ids else float
    cells = {name: _cell(one, row[name], name) for name in columns if row[name].strip()}
    if kind == Series:
        return {int(name.rpartition("_")[2]): value for name, value in cells.items()}
    if kind == Named:
        return {name.removeprefix(f"{field}_"): value for name, value in cells.items()}
    return tuple(cells.values())


def _cell(kind: Any, cell: str, column: str) -> Any:
    try:
        if get_origin(kind) is Literal:
            return get_args(kind)[get_args(kind).index(cell)]
        return _READERS[kind](cell.strip())
    except ValueError as error:
        raise ValueError(f"{cell!r} in column {column}") from error


@lru_cache(2**14)  # places in voxels repeat, and rows of a large table share them
def _number(cell: str) -> float | None:
    """A finite number, or None for an empty or undefined cell."""
    if cell.lower() in ("", "none", "null", "nan"):
        return None
    value = float(cell)
    return value if math.isfinite(value) else None


def _whole(cell: str) -> int | None:
    value = _number(cell)
    return None if value is None else int(value)


_READERS: Mapping[Any, Callable[[str], Any]] = {
    str: sys.intern,  # a group, a label or an outcome stands in many rows
    float: float,
    int: lambda cell: _whole(cell) or 0,
    bool: lambda cell: cell.lower() in ("true", "1", "1.0", "yes"),
    float | None: _number,
    int | None: _whole,
}


def _json(kind: Any, column: str) -> Row:
    if get_origin(kind) is Literal:
        return {"enum": list(get_args(kind))}
    types = [_JSON_TYPES[one] for one in get_args(kind) or (kind,)]
    unit = column.rpartition("_")[2]
    about = {"unit": "voxels" if unit == "vox" else unit} if unit in _UNITS else {}
    return {"type": types if len(types) > 1 else types[0], **about}

"""Results on disk that are whole or absent: a temporary name in the same folder, then a rename."""

import csv
import json
import os
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from lesionseg.errors import LesionsegError, OutputError, ReadError

HALF = f".{'[0-9a-f]' * 8}-*"  # the temporary names of `atomic_path`
_MOST_VALUES = 10**6
_MOST_YAML_BYTES = 2**17  # its parser is slow: seconds for more

# What spreadsheets run, behind whatever space (OWASP, CSV injection). Apostrophes before it count,
# so that text which begins with one comes back, too.
_FORMULA = re.compile(r"'*[=+\-@]")


@contextmanager
def atomic_path(path: Path, *, lasting: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `path`, renamed onto it on success and deleted on failure.

    The temporary name begins with a dot, which readers of the folder pass by, and keeps the suffix,
    by which writers go. Missing parent folders are made. What is not `lasting` may be empty after a
    power cut, and saves the wait for the disk. Raises `OutputError` where the disk refuses; errors
    of the caller's own pass through.
    """
    temporary = path.with_name(f".{uuid.uuid4().hex[:8]}-{path.name}")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            if lasting:
                _flush(temporary)
            temporary.replace(path)
    finally:
        with suppress(OSError):  # its folder may be a file: then nothing was written either
            temporary.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise `OutputError` naming `path` where the disk refuses."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"Cannot write the file: {error.strerror or error}.",
            where=path,
            remedy="Check that the folder may be written to and that the disk has room.",
        ) from error


def create_file(path: Path, content: bytes) -> bool:
    """Write a file, whole, unless there is one; whether it was written. Folders are made.

    Of several callers one succeeds, and nobody reads half of it; on a disk without hard links the
    name may be there a moment before its content. Raises `OSError`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid.uuid4().hex[:8]}-{path.name}")
    try:
        temporary.write_bytes(content)
        _link(temporary, path)
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
    return True


def _link(temporary: Path, path: Path) -> None:
    try:
        path.hardlink_to(temporary)
    except FileExistsError:
        raise
    except OSError:  # exFAT and some network disks have no links
        with path.open("xb") as stream:
            stream.write(temporary.read_bytes())


def _flush(path: Path) -> None:
    """Have the disk hold the content before the name: else a power cut leaves an empty file."""
    descriptor = os.open(path, os.O_RDWR)  # Windows flushes what may be written alone
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def private_files() -> Iterator[None]:
    """What this process makes meanwhile is its user's alone: files 0600, folders 0700."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


def write_text(path: Path, text: str, *, lasting: bool = True) -> None:
    """Write UTF-8 text atomically, with the same bytes everywhere; `lasting`: see `atomic_path`."""
    with atomic_path(path, lasting=lasting) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, obj: object, *, lasting: bool = True) -> None:
    """Write JSON atomically; numpy numbers and paths become plain ones.

    `lasting`: see `atomic_path`. Raises `OutputError` for NaN and infinity: what is undefined is
    written as null.
    """
    try:
        text = json.dumps(obj, indent=1, allow_nan=False, ensure_ascii=False, default=_plain)
    except (ValueError, TypeError) as error:
        raise OutputError(f"The content does not fit JSON: {error}.", where=path) from error
    write_text(path, text + "\n", lasting=lasting)


def _plain(value: object) -> object:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} is not JSON")


def write_csv(path: Path, rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Write a table atomically, columns in the given order; a missing value or None stays empty.

    Text that a spreadsheet would run, as it begins with `=`, `+`, `-` or `@`, gets an apostrophe
    before it, as spreadsheets mark text; numbers do not. `read_csv` takes it away again.
    Raises `OutputError` when a row holds a key that is no column.
    """
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(columns), lineterminator="\n")
        writer.writeheader()
        for row in rows:  # one at a time: a table may have a million
            unknown = sorted(row.keys() - set(columns))
            if unknown:
                what = "The table has no such column."
                raise OutputError(what, where=path, seen=unknown, expected=list(columns))
            writer.writerow({name: _inert(cell) for name, cell in row.items()})


def append_csv(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Add rows to a table that `write_csv` wrote; a process killed meanwhile may cut the last line.

    Raises `OutputError`.
    """
    try:
        with path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(columns), lineterminator="\n")
            writer.writerows({name: _inert(cell) for name, cell in row.items()} for row in rows)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, ValueError) as error:
        raise OutputError("The table cannot be added to.", where=path, seen=error) from error


def read_csv(path: Path) -> list[dict[str, str]]:
    """Read a table as one dictionary per row; spaces around names and values are dropped.

    Commas stand between the columns or, where the first line has none, semicolons or tabs.
    Raises `ReadError` when the file is missing, no UTF-8, has no header or a row longer than it.
    """
    return list(iterate_csv(path))


def iterate_csv(path: Path) -> Iterator[dict[str, str]]:
    """The rows of `read_csv` one at a time: of a million, dictionaries take gigabytes."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            header = file.readline()  # spreadsheets write semicolons in much of Europe
            separator = next((sign for sign in ",;\t" if sign in header), ",")
            file.seek(0)
            reader = csv.DictReader(file, delimiter=separator, skipinitialspace=True)
            if not reader.fieldnames:
                expected = "a first line of column names"
                raise ReadError("The table is empty.", where=path, expected=expected)
            for row in reader:
                yield _stripped(row, path, reader.line_num)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ReadError(f"Cannot read the table: {error}.", where=path) from error


def _inert(cell: Any) -> Any:
    """A cell that no spreadsheet takes for a formula, and no reader for the end of a line.

    >>> _inert("=1+1"), _inert("-0.5"), _inert(-0.5), _inert("case")
    ("'=1+1", '-0.5', -0.5, 'case')
    """
    if not isinstance(cell, str):
        return cell
    text = cell.replace("\r\n", "\n").replace("\r", "\n").strip()  # csv quotes \n alone
    if not _FORMULA.match(text):
        return text
    with suppress(ValueError):
        float(text)
        return text
    return f"'{text}"


def _stripped(row: Mapping[str | None, Any], path: Path, line: int) -> dict[str, str]:
    if None in row:
        raise ReadError(
            f"Line {line} has more values than there are columns.",
            where=path,
            seen=row[None],
            remedy="Put values that hold a comma between double quotes.",
        )
    return {str(key).strip(): plain_text((value or "").strip()) for key, value in row.items()}


def plain_text(cell: str) -> str:
    """A cell without the apostrophe that kept a spreadsheet from running it."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def read_json(path: Path) -> Any:
    """Read JSON; raises `ReadError` when it is missing or no JSON, NaN and infinity included."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"), parse_constant=_refuse_constant)
    except (OSError, ValueError, RecursionError, LesionsegError) as error:
        raise ReadError(f"Cannot read the JSON: {error}.", where=path) from error


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping of plain values; raises `ReadError` when it is missing or none.

    Aliases that stand for more than a million values are refused: nine lines can mean 10⁹.
    """
    import yaml

    try:
        if path.stat().st_size > _MOST_YAML_BYTES:
            raise ValueError(f"longer than {_MOST_YAML_BYTES} bytes")
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        n_values = _n_values(content, {})
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        what = " ".join(str(error).split()) or type(error).__name__
        remedy = "Check its indentation and quotes, or write it again."
        raise ReadError("Cannot read the YAML.", where=path, seen=what, remedy=remedy) from error
    if not isinstance(content, dict) or n_values > _MOST_VALUES:
        seen = f"{n_values} values" if isinstance(content, dict) else type(content).__name__
        expected = f"lines key: value, at most {_MOST_VALUES} of them"
        raise ReadError(
            "The YAML file is no list of keys.", where=path, seen=seen, expected=expected
        )
    return content


def _n_values(node: Any, counted: dict[int, int]) -> int:
    """How many values a tree holds, what stands in it several times counted each time."""
    if not isinstance(node, dict | list):
        return 1
    if id(node) not in counted:
        counted[id(node)] = _MOST_VALUES + 1  # of one that holds itself
        inner = node.values() if isinstance(node, dict) else node
        counted[id(node)] = 1 + sum(_n_values(item, counted) for item in inner)
    return counted[id(node)]


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON; what is undefined is null")

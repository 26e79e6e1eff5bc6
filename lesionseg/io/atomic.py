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

from lesionseg.errors import OutputError, ReadError

HALF = f".{'[0-9a-f]' * 8}-*"  # the temporary names of `atomic_path`
_MOST_YAML_BYTES = 2**17  # its parser is slow: seconds for more

# What spreadsheets run, behind whatever space (OWASP, CSV injection). Apostrophes before it count,
# so that text which begins with one comes back, too.
_FORMULA = re.compile(r"'*[=+\-@]")


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, renamed onto it on success and deleted on failure.

    The temporary name begins with a dot, which readers of the folder pass by, and keeps the suffix,
    by which writers go. Missing parent folders are made. Raises `OutputError` where the disk
    refuses; errors of the caller's own pass through.
    """
    temporary = path.with_name(f".{uuid.uuid4().hex[:8]}-{path.name}")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            descriptor = os.open(temporary, os.O_RDWR)  # Windows flushes what may be written alone
            try:
                os.fsync(descriptor)  # the content before the name: else a power cut empties it
            finally:
                os.close(descriptor)
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
            f"{path}: cannot be written: {error.strerror or error}. "
            "Check the folder's permissions and the room on the disk."
        ) from error


@contextmanager
def private_files() -> Iterator[None]:
    """What this process makes meanwhile is its user's alone: files 0600, folders 0700."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically, with the same bytes everywhere."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, obj: object) -> None:
    """Write JSON atomically; numpy numbers and paths become plain ones.

    Raises `OutputError` for NaN and infinity: what is undefined is written as null.
    """
    try:
        text = json.dumps(obj, indent=1, allow_nan=False, ensure_ascii=False, default=_plain)
    except (ValueError, TypeError) as error:
        raise OutputError(f"{path}: the content does not fit JSON: {error}.") from error
    write_text(path, text + "\n")


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
                raise OutputError(f"{path}: no such columns: {', '.join(unknown)}.")
            writer.writerow({name: escape_formula(cell) for name, cell in row.items()})


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
                raise ReadError(f"{path}: the table has no first line of column names.")
            for row in reader:
                if None in row:
                    raise ReadError(
                        f"{path}: line {reader.line_num} has more values than there are columns. "
                        "Put values that hold a comma between double quotes."
                    )
                yield {str(key).strip(): plain_text((row[key] or "").strip()) for key in row}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ReadError(f"{path}: cannot be read as a table: {error}.") from error


def escape_formula(cell: Any) -> Any:
    """A cell that no spreadsheet takes for a formula, and no reader for the end of a line.

    >>> [escape_formula(cell) for cell in ("=1+1", "-0.5", -0.5, "case")]
    ["'=1+1", '-0.5', -0.5, 'case']
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


def plain_text(cell: str) -> str:
    """A cell without the apostrophe that kept a spreadsheet from running it."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def read_json(path: Path) -> Any:
    """Read JSON; raises `ReadError` when it is missing or no JSON, NaN and infinity included."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"), parse_constant=_no_constant)
    except (OSError, ValueError, RecursionError) as error:
        raise ReadError(f"{path}: cannot be read as JSON: {error}.") from error


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping of plain values; raises `ReadError` when it is missing or none."""
    import yaml

    try:
        if path.stat().st_size > _MOST_YAML_BYTES:
            raise ValueError(f"longer than {_MOST_YAML_BYTES} bytes")
        text = path.read_text(encoding="utf-8")
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
            raise ValueError("aliases, of which nine lines can mean 10⁹ values")
        content = yaml.safe_load(text)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        what = " ".join(str(error).split()) or type(error).__name__
        raise ReadError(f"{path}: cannot be read as YAML: {what}.") from error
    if not isinstance(content, dict):
        raise ReadError(f"{path}: {type(content).__name__}, expected lines key: value.")
    return content


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON; what is undefined is null")

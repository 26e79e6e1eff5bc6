"""CSV, JSON, YAML and text: separators, encodings, escaped formulas, size limits.

They are written atomically.
"""

import csv
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lesionseg.errors import OutputError, ReadError
from lesionseg.io.files import atomic_path

_MAX_TEXT_BYTES = 2**30
_MAX_YAML_BYTES = 2**17  # the parser needs seconds for more
_MAX_YAML_BRACKETS = 200  # the time of the parser is quadratic in their depth

# of terminals and of the direction of text, and line breaks
_CONTROLS = re.compile(r"[\0-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069]")

# The beginning of a formula in spreadsheets (OWASP, CSV injection). Leading apostrophes count too,
# so that text which begins with one in the data survives writing and reading.
_FORMULA = re.compile(r"'*[=+\-@]")


def write_text(path: Path, text: str) -> None:
    r"""Write UTF-8 text atomically (see `atomic_path`), with the same bytes on every system.

    A file name in the text may contain bytes that are not UTF-8. They are written as `\udc…`.
    """
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")


def write_json(path: Path, obj: object) -> None:
    """Write JSON atomically (see `atomic_path`).

    Args:
        path: The file.
        obj: The content. NumPy numbers and arrays and paths are converted.

    Raises:
        OutputError: If the file cannot be written, or the content has no JSON form. NaN and
            infinity have no JSON form. Callers write undefined numbers as None.
    """

    # called by `json` for values of other types; a type without `tolist` is an `AttributeError`
    def convert(value: Any) -> object:
        return str(value) if isinstance(value, Path) else value.tolist()

    try:
        text = json.dumps(obj, indent=1, allow_nan=False, ensure_ascii=False, default=convert)
    except (ValueError, TypeError, AttributeError) as error:
        raise OutputError(f"{path}: the content has no JSON form: {error}.") from error
    write_text(path, text + "\n")


def read_json(path: Path, *, allow_nan: bool = False) -> Any:
    """Read a JSON file, and return its content as Python objects.

    Args:
        path: The file.
        allow_nan: True reads NaN and Infinity as floats. They are not JSON, but other programs
            write them. A caller that needs finite numbers must check for them.

    Raises:
        ReadError: If the file is missing, not text (see `read_text`) or not JSON, or an object has
            a key twice.
    """

    # called by `json` for NaN, Infinity and -Infinity
    def read_constant(name: str) -> float:
        if allow_nan:
            return float(name)
        raise ReadError(f"{path}: {name} is not JSON. Write null for an undefined value.")

    text = read_text(path)
    try:
        return json.loads(text, parse_constant=read_constant, object_pairs_hook=require_unique_keys)
    except json.JSONDecodeError as error:
        hint = " Write double quotes around names." if "'" in text else ""
        raise ReadError(
            f"{path}: the JSON has an error in line {error.lineno}, column {error.colno}. Correct "
            f"that place.{hint}"
        ) from error
    except (RecursionError, ValueError) as error:  # too deep, a long number, a key twice
        raise ReadError(f"{path}: the JSON cannot be read: {error}. Correct the file.") from error


def require_unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object as a dictionary, or raise `ValueError` if a key occurs twice.

    For `object_pairs_hook` of `json.loads`, which alone would use the last value of a repeated key.

    Args:
        pairs: The keys and values of the object. Empty gives an empty dictionary.
    """
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {repeated!r} occurs twice")
    return content


def read_text(path: Path, max_bytes: int = _MAX_TEXT_BYTES) -> str:
    """Read text in UTF-8, or in UTF-16 if the file begins with the byte order mark of UTF-16.

    Raise `ReadError` if the file is missing, has more than `max_bytes` bytes, contains a zero
    character, or is in another encoding. Other encodings cannot be guessed safely.
    """
    try:
        if path.stat().st_size > max_bytes:
            raise ReadError(
                f"{path}: the text has more than {max_bytes / 2**20:g} MiB. Check whether it is "
                "the right file."
            )
        content = path.read_bytes()
    except OSError as error:
        reason = (error.strerror or "unknown reason").lower()
        raise ReadError(f"{path}: cannot be read: {reason}. Check the path.") from error
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ReadError(
            f"{path}: the text is not UTF-8 (line {line}). Save it as UTF-8, in a spreadsheet as "
            '"CSV UTF-8".'
        ) from error
    if "\0" in text:
        raise ReadError(f"{path}: this is not text, or it is UTF-16. Save it as UTF-8.")
    return text


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that contains a mapping, such as settings.

    Only YAML's standard types are read. The limits below exist because the parser would need
    minutes for some small files.

    Raises:
        ReadError: If the file is missing, is not a YAML mapping, contains aliases, is larger than
            128 KiB, has more than 200 opening brackets, or an integer has more than 4300 digits.
    """
    import yaml

    text = read_text(path, _MAX_YAML_BYTES)
    try:
        if text.count("[") + text.count("{") > _MAX_YAML_BRACKETS:
            raise ValueError(f"more than {_MAX_YAML_BRACKETS} brackets")
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
            raise ValueError("aliases are not supported, as nine lines can expand to 10⁹ values")
        content = yaml.safe_load(text)
        if not isinstance(content, dict):
            raise ValueError(f"{type(content).__name__}, expected lines key: value")
        str(content)  # a message could not quote an integer of more than 4300 digits
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ReadError(f"{path}: cannot be read as YAML: {reason}.") from error
    return content


def write_csv(path: Path, rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Write a CSV table atomically, as UTF-8 text in the form of `write_text`.

    A spreadsheet would run text that begins with `=`, `+`, `-` or `@` as a formula. Such text, but
    not a number, gets a leading apostrophe (`escape_formula`). `read_csv` removes the apostrophe.

    Args:
        path: The file.
        rows: One mapping per row, from column name to value. A missing value and None become an
            empty cell.
        columns: The names of the columns in their order.

    Raises:
        ValueError: If a row has a key that is not a column.
        OutputError: If the file cannot be written.
    """
    with (
        atomic_path(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        writer = csv.DictWriter(file, list(columns), lineterminator="\n")
        writer.writeheader()
        for row in rows:  # one at a time, because a table may have a million rows
            writer.writerow({name: escape_formula(cell) for name, cell in row.items()})


def read_csv(path: Path) -> list[dict[str, str]]:
    """Read a table with columns separated by commas, semicolons or tabs.

    Spaces around names and values, and the apostrophes that `write_csv` adds, are removed. Empty
    rows and empty cells after the last column are ignored, because spreadsheets write them.

    Returns:
        One dictionary per row, from column name to value.

    Raises:
        ReadError: If the file is missing, is not text in UTF-8 or UTF-16, has no header, has two
            columns of the same name, lacks a closing double quote, or has a row with values after
            the last column.
    """
    return [row for _, row in read_csv_lines(path)[1]]


def read_csv_lines(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Read a table like `read_csv`, with line numbers for messages about rows.

    The separator is the one that occurs most often in the first line, because the name of a column
    or a label may contain another one: `case;image;age, years`.

    Returns:
        The column names, and for each row the number of the line at which it ends, and its values
        by column name.

    Raises:
        ReadError: If the table cannot be read, see `read_csv`.
    """
    stream = io.StringIO(read_text(path), newline="")
    first_line = stream.readline()
    stream.seek(0)
    separator = max(",;\t", key=first_line.count)  # a comma if all are equally frequent
    # strict: a missing double quote is an error
    reader = csv.reader(stream, delimiter=separator, skipinitialspace=True, strict=True)
    rows: list[tuple[int, dict[str, str]]] = []
    try:
        names = [name.strip() for name in next(reader, [])]
        if not any(names):
            raise ReadError(
                f"{path}: the table has no column names. Write them into the first line."
            )
        for name in filter(None, names):
            if names.count(name) > 1:
                raise ReadError(f"{path}: two columns are called {name!r}. Rename or remove one.")
        for cells in reader:
            values = [plain_text(cell.strip()) for cell in cells]
            if any(values[len(names) :]):
                raise ReadError(
                    f"{path}: line {reader.line_num} has more values than there are columns. Put "
                    "values with commas in double quotes."
                )
            # the mark `"` for "as above" opens a quotation, which the next such mark closes
            if any(cell.startswith(("\n", "\r")) and separator in cell for cell in cells):
                raise ReadError(
                    f"{path}: a value in double quotes begins with a line break and contains the "
                    f"row before line {reader.line_num}. If the quotes are ditto marks, write the "
                    "value instead, otherwise remove the line break."
                )
            if any(values):
                values += [""] * (len(names) - len(values))
                rows.append((reader.line_num, dict(zip(names, values, strict=False))))
    except csv.Error as error:
        raise ReadError(
            f"{path}: a value in line {reader.line_num} cannot be read ({error}). Check if a "
            "closing double quote is missing."
        ) from error
    return names, rows


def escape_formula(cell: Any) -> Any:
    r"""Return the value of a cell in a form that spreadsheets do not run as a formula.

    Text that begins like a formula and is not a number gets a leading apostrophe, which
    spreadsheets understand as the sign of a text. Spaces around a text are removed, and its line
    ends become `\n`. Values of other types are returned unchanged.

    >>> [escape_formula(cell) for cell in ("=1+1", "-0.5", -0.5, "case")]
    ["'=1+1", '-0.5', -0.5, 'case']
    """
    if not isinstance(cell, str):
        return cell
    text = cell.replace("\r\n", "\n").replace("\r", "\n").strip()  # csv does not quote a lone \r
    if not _FORMULA.match(text):
        return text
    with suppress(ValueError):
        float(text)
        return text
    return f"'{text}"


def plain_text(cell: str) -> str:
    """Remove the leading apostrophe that `escape_formula` has added to a cell, if there is one."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def printable_text(text: str) -> str:
    r"""Escape characters of a text, such as a file name, that cannot be written or shown.

    Bytes of a file name that are not UTF-8 become `\udc…`. Control characters, which could change
    what a terminal shows, become `\x…` or `\u…`.

    >>> import os
    >>> print(printable_text(os.fsdecode(b"M\xfcller")), printable_text("Müller"))
    M\udcfcller Müller
    """
    shown = text.encode("utf-8", "backslashreplace").decode()
    return _CONTROLS.sub(lambda match: repr(match[0])[1:-1], shown)  # without the quotes of `repr`

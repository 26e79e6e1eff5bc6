"""Files of ours: whole or absent, tables and JSON, named by case ids, in folders that one writes.

A temporary name in the same folder, then a rename: whoever is killed leaves the old file.
"""

import csv
import io
import json
import os
import re
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar
from unicodedata import category

from filelock import FileLock, Timeout

from lesionseg.errors import DatasetError, LesionsegError, OutputError, ReadError

P = ParamSpec("P")
C = TypeVar("C")
T = TypeVar("T")

LOCK = ".lock"  # of a whole folder; parts of the work may have locks of their own
_DEPTH = 4  # run/fold_0/validation/probabilities
HALF = f".{'[0-9a-f]' * 8}-*"  # the temporary names of `atomic_path`
# disks take 255 bytes; the longest name made of an id is ".xxxxxxxx-<id>_instances.nii.gz"
MAX_ID_BYTES = 200
# control and format characters (bidirectional ones among them), what no encoding knows, line ends
_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_MOST_YAML_BYTES = 2**17  # its parser is slow: seconds for more

# What spreadsheets run, behind whatever space (OWASP, CSV injection). Apostrophes before it count,
# so that text which begins with one comes back, too.
_FORMULA = re.compile(r"'*[=+\-@]")


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, renamed onto it on success and deleted on failure.

    The temporary name begins with a dot, which readers pass by, and keeps the suffix, by which
    writers go. Missing parents are made. Raises `OutputError` where the disk refuses.
    """
    temporary = path.with_name(f".{uuid.uuid4().hex[:8]}-{path.name}")
    try:
        with _output_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            with temporary.open("r+b") as file:  # Windows flushes what may be written alone
                os.fsync(file)  # the content before the name: else a power cut empties it
            temporary.replace(path)
    finally:
        with suppress(OSError):  # its folder may be a file: then nothing was written either
            temporary.unlink(missing_ok=True)


@contextmanager
def _output_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}.") from error


@contextmanager
def private_files() -> Iterator[None]:
    """Give files made within mode 0600 and folders 0700: only their user can read them.

    Otherwise files and folders follow the umask, as those of other programs do.
    """
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

    def plain(value: Any) -> object:
        return str(value) if isinstance(value, Path) else value.tolist()

    try:
        text = json.dumps(obj, indent=1, allow_nan=False, ensure_ascii=False, default=plain)
    except (ValueError, TypeError, AttributeError) as error:
        raise OutputError(f"{path}: the content does not fit JSON: {error}.") from error
    write_text(path, text + "\n")


def read_json(path: Path, *, allow_nan: bool = False, unique_keys: bool = False) -> Any:
    """Read JSON. Raise `ReadError` if the file is missing or not JSON.

    Args:
        path: the file.
        allow_nan: reads NaN and Infinity, which are not JSON but which other programs write, as
            floats. The reader of a value then refuses it where a number is needed.
        unique_keys: refuses an object that has a key twice, of which only the last would count.
    """

    def refuse(name: str) -> float:
        if allow_nan:
            return float(name)
        raise ReadError(f"{path}: {name} is not JSON. Write null for what is undefined.")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        if unique_keys and len(content) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise ReadError(f"{path}: the key {twice!r} is there twice. Keep one.")
        return content

    text = _read_text(path)
    try:
        return json.loads(text, parse_constant=refuse, object_pairs_hook=once)
    except json.JSONDecodeError as error:
        hint = " JSON has double quotes around names." if "'" in text else ""
        raise ReadError(
            f"{path}: this is not JSON from line {error.lineno}, column {error.colno} on.{hint}"
        ) from error
    except RecursionError as error:
        raise ReadError(f"{path}: the JSON is nested too deeply.") from error
    except ValueError as error:  # a number of more digits than Python converts
        raise ReadError(f"{path}: the JSON holds a number that is too long.") from error


def _read_text(path: Path) -> str:
    """Read text in UTF-8, or in UTF-16 if the file begins with its byte order mark.

    Raises `ReadError` if the file is missing or in another encoding, which no program can guess.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        reason = (error.strerror or "unknown reason").lower()
        raise ReadError(f"{path}: cannot be read: {reason}.") from error
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
    """Read a YAML mapping of plain values; raises `ReadError` when it is missing or none."""
    import yaml

    try:
        if path.stat().st_size > _MOST_YAML_BYTES:
            raise ValueError(f"longer than {_MOST_YAML_BYTES} bytes")
        text = path.read_text(encoding="utf-8")
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
            raise ValueError("aliases, of which nine lines can mean 10⁹ values")
        if not isinstance(content := yaml.safe_load(text), dict):
            raise ValueError(f"{type(content).__name__}, expected lines key: value")
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        what = " ".join(str(error).split()) or type(error).__name__
        raise ReadError(f"{path}: cannot be read as YAML: {what}.") from error
    return content


def write_csv(path: Path, rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Write a table atomically, columns in the given order; a missing value or None stays empty.

    Text that a spreadsheet would run, as it begins with `=`, `+`, `-` or `@`, gets an apostrophe
    before it, as spreadsheets mark text; numbers do not. `read_csv` takes it away again.
    Raises `ValueError` when a row holds a key that is no column.
    """
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(columns), lineterminator="\n")
        writer.writeheader()
        for row in rows:  # one at a time: a table may have a million
            writer.writerow({name: escape_formula(cell) for name, cell in row.items()})


def read_csv(path: Path) -> list[dict[str, str]]:
    """Read a table as one dictionary per row. Spaces around names and values are dropped.

    Columns are separated by commas, semicolons or tabs. Rows without any value are left out, as
    are empty cells beyond the last column: spreadsheets write both. Raises `ReadError` if the file
    is missing, is not text in UTF-8 or UTF-16, has no header, has two columns of one name, or has
    a row that is longer than its header.
    """
    text = _read_text(path)
    lines = io.StringIO(text, newline="")
    reader = csv.reader(lines, delimiter=_separator(text), skipinitialspace=True)
    rows: list[dict[str, str]] = []
    try:
        names = [name.strip() for name in next(reader, [])]
        if not any(names):
            raise ReadError(f"{path}: the table has no first line of column names.")
        for name in filter(None, names):
            if names.count(name) > 1:
                raise ReadError(f"{path}: two columns are called {name!r}. Rename or remove one.")
        for cells in reader:
            values = [plain_text(cell.strip()) for cell in cells]
            if any(values[len(names) :]):
                what = f"line {reader.line_num} has more values than there are columns"
                raise ReadError(f"{path}: {what}. Put values with commas in double quotes.")
            if any(values):
                values += [""] * (len(names) - len(values))
                rows.append(dict(zip(names, values, strict=False)))
    except csv.Error as error:
        what = f"a value in line {reader.line_num} is too long"
        raise ReadError(f"{path}: {what}. Is a double quote left open?") from error
    return rows


def _separator(text: str) -> str:
    """Find the sign between the columns: the one that divides header and first rows alike.

    A heading may hold the other signs: `case;image;age, years`.
    """
    lines = [line for line in text.splitlines()[:20] if line.strip()]
    best = ","
    most = (False, 1)
    for sign in ",;\t":
        widths: list[int] = []
        with suppress(csv.Error):  # the reader of the whole table says what is wrong
            widths += map(len, csv.reader(lines, delimiter=sign, skipinitialspace=True))
        is_even = len(set(widths)) == 1
        if widths and widths[0] > 1 and (is_even, widths[0]) > most:
            best = sign
            most = (is_even, widths[0])
    return best


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


def check_case_id(case: str, where: Path, error: type[LesionsegError] = DatasetError) -> None:
    """Raise `error` unless the id can be a part of file names; `where` is what it comes from."""
    if fault := case_id_fault(case):
        raise error(f"{where}: the case id {case!r} cannot be a file name: it {fault}. Rename it.")


def case_id_fault(case: str) -> str:
    """Why an id cannot be a part of file names; "" where it can. Letters of any script pass."""
    n_bytes = len(case.encode(errors="replace"))
    faults = {
        "is empty": not case,
        "begins with a dot": case.startswith("."),
        "begins or ends with a space": case != case.strip(),
        "holds a path separator": "/" in case or "\\" in case,
        "holds a character that does not show": any(category(c) in _INVISIBLE for c in case),
        "holds a character that Windows has in no name": sys.platform == "win32"
        and not set(case).isdisjoint('<>:"|?*'),
        f"is too long, {n_bytes} of {MAX_ID_BYTES} bytes": n_bytes > MAX_ID_BYTES,
    }
    return next((fault for fault, holds in faults.items() if holds), "")


def printable_id(case: str) -> str:
    r"""The id as tables and the log show it: one that cannot be a file name as Python quotes it.

    >>> print(printable_id("a"), printable_id("a\nb"))
    a 'a\nb'
    """
    return repr(case) if case_id_fault(case) else case


@contextmanager
def locked_folder(folder: Path, name: str = LOCK) -> Iterator[None]:
    """Keep other processes that ask for the same lock out of a folder, which is made if need be.

    Who has `LOCK` removes the half-written files of killed processes, but for those in inner
    folders that have a lock of their own. The system ends the lock with
    the process, however that ends. Raises `OutputError` if another has it.
    """
    lock = FileLock(folder / name)
    is_new = not folder.exists()
    with _output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise OutputError(f"{folder}: another process is writing into this folder.") from error
    try:
        for depth in range(_DEPTH if name == LOCK else 0):
            for half in folder.glob("*/" * depth + HALF):
                if not any((inner / LOCK).exists() for inner in half.parents[:depth]):
                    with suppress(OSError):
                        half.unlink()
        yield
    finally:
        with suppress(OSError):
            (folder / name).unlink()  # while it is locked: nobody else holds this file
            if is_new:  # and nothing came into it
                folder.rmdir()
        lock.release()


def locks(key: str) -> Callable[[Callable[Concatenate[C, P], T]], Callable[Concatenate[C, P], T]]:
    """Decorate a command: it holds the lock of the folder that `key` of its settings names."""

    def decorate(command: Callable[Concatenate[C, P], T]) -> Callable[Concatenate[C, P], T]:
        @wraps(command)
        def locked(cfg: C, *args: P.args, **options: P.kwargs) -> T:
            folder = getattr(cfg, key)
            with nullcontext() if folder is None else locked_folder(Path(folder)):
                return command(cfg, *args, **options)

        return locked  # type: ignore[return-value]

    return decorate

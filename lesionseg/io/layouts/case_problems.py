"""What is wrong with the cases a dataset lists: collected, so that one message says it all."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from lesionseg.core import CaseFiles, Problem
from lesionseg.errors import DatasetError, LesionsegError
from lesionseg.io.dicom.series import split_series
from lesionseg.io.volumes import read_geometry

LACKING = "add the file; where scans may lack a channel, train with data.channel_dropout=0.3."
_MOST_SHOWN = 100
_LONGEST_NAME = 255  # bytes, of every file system in use
_COUNT = re.compile(r"[0-9]{1,9}")


class Problems:
    """Problems of single cases, in the order in which they are found."""

    def __init__(self) -> None:
        self._listed: list[Problem] = []

    @property
    def listed(self) -> tuple[Problem, ...]:
        """All of them so far."""
        return tuple(self._listed)

    def add(
        self, case: str, error: LesionsegError, *, repeated: bool = False, lacking: bool = False
    ) -> None:
        """Note one; `repeated` and `lacking`: see `core.Problem`."""
        self._listed.append(Problem(case, error, repeated, lacking))

    @contextmanager
    def of(self, case: str) -> Iterator[None]:
        """Note what is raised within, and go on behind it."""
        try:
            yield
        except LesionsegError as error:
            self.add(case, error)

    def check_file(self, case: str, file: Path, *, where: Path, named: str, by: str) -> None:
        """Note a file that is missing or empty; `named` as in the list, `by` which entry of it."""
        if not file.exists() and split_series(file) is None:  # a folder is a DICOM series
            what, remedy = "does not exist", f"Write paths relative to the folder of {where.name}."
        elif file.is_file() and file.stat().st_size == 0:
            what, remedy = "is empty", "Copy it again from its source."
        else:
            return
        what = f"A file named in {by} {what}."
        error = DatasetError(what, where=where, seen=named, remedy=remedy)
        self.add(case, error, repeated=True)


def check_name(name: str, where: Path) -> str:
    """The name, relative or not, that a list gives a file; `DatasetError` if none can have it."""
    parts = [part.encode("utf-8", "surrogateescape") for part in name.split("/")]
    if max(map(len, parts)) > _LONGEST_NAME or "\0" in name:
        seen, expected = repr(name[:40]), f"at most {_LONGEST_NAME} bytes between two slashes"
        what = "A name in the list cannot be a file's."
        raise DatasetError(what, where=where, seen=seen, expected=expected)
    return name


def is_count(value: object) -> bool:
    """Whether it is an integer from 0 of at most nine digits, or a text that says one."""
    return not isinstance(value, bool) and bool(_COUNT.fullmatch(str(value)))


def is_number(value: object) -> bool:
    """Whether it is a number that an array holds."""
    return isinstance(value, int | float) and abs(value) < 1e300  # which NaN is not


def refuse_problems(problems: Sequence[Problem], root: Path) -> None:
    """Raise what is wrong as one `DatasetError`, or the only error as it is; nothing if none is."""
    if not problems:
        return
    if len(problems) == 1:
        raise problems[0].error
    shown = "\n  ".join(str(p.error) for p in problems[:_MOST_SHOWN])
    more = len(problems) - _MOST_SHOWN
    rest = f"\n  … and {more} more" if more > 0 else ""
    raise DatasetError(f"{len(problems)} entries cannot be used:\n  {shown}{rest}", where=root)


def count_axes(cases: Sequence[CaseFiles]) -> int:
    """Spatial axes of the first image that can be read.

    Three when none can: reading the cases says what is wrong with them.
    """
    for file in (file for case in cases for file in case.images[:1]):
        with suppress(LesionsegError):
            return read_geometry(file).dims
    return 3

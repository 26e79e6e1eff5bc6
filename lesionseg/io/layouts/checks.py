"""What is asked of the cases of every layout."""

import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from lesionseg.core import CaseFiles, Dataset, Problem
from lesionseg.errors import DatasetError, LesionsegError
from lesionseg.io.dicom.series import split_series
from lesionseg.io.files import case_id_fault
from lesionseg.io.raster import SUFFIXES as RASTERS
from lesionseg.io.volumes import read_geometry

_MOST_SHOWN = 100


def is_count(value: object) -> bool:
    """Whether it is an integer from 0 of at most nine digits, or a text that says one."""
    text = str(value)
    return not isinstance(value, bool) and text.isascii() and text.isdigit() and len(text) < 10


def is_number(value: object) -> bool:
    """Whether it is a number that an array holds."""
    return isinstance(value, int | float) and abs(value) < 1e300  # which NaN is not


def file_size(path: Path) -> int | None:
    """Bytes of a file; None where there is none, or where no file can have the name."""
    try:
        state = path.stat()
    except (OSError, ValueError):
        return None
    return state.st_size if stat.S_ISREG(state.st_mode) else None


def is_colour(files: CaseFiles, n_channels: int) -> bool:
    """Whether a case is one picture whose red, green and blue are the dataset's three channels."""
    one = len(files.images) == 1 and n_channels == 3 and not files.missing
    return one and files.images[0].suffix.lower() in RASTERS


def check_channels(files: CaseFiles, dataset: Dataset) -> None:
    """Raise `DatasetError` unless the case has one file per channel that it may not lack."""
    names = dataset.channel_names
    n_files = len(files.images) + (len(files.missing) if dataset.may_lack else 0)
    if n_files != len(names) and not is_colour(files, len(names)):
        have = ", ".join(file.name for file in files.images)
        raise DatasetError(
            f"case {files.case!r} does not have one file per channel ({', '.join(names)}) but "
            f"{have}. Add the file, or where scans lack one train with data.channel_dropout=0.3."
        )


def count_axes(cases: Sequence[CaseFiles]) -> int:
    """Spatial axes of the first image that can be read; three when none can."""
    for case in cases:
        with suppress(LesionsegError, OSError):
            return read_geometry(case.images[0]).dims
    return 3  # reading the cases says what is wrong with them


def find_problems(dataset: Dataset) -> Iterator[Problem]:
    """Cases without all of their channels, and files that are missing or empty."""
    for files in dataset.cases:
        try:
            check_channels(files, dataset)
        except DatasetError as error:
            yield Problem(files.case, str(error))
        for file in (*files.images, *((files.reference,) if files.reference else ())):
            size = file_size(file)
            if size is None and not _is_folder(file) and split_series(file) is None:
                text = "does not exist. Paths in tables are relative to the table's folder."
                yield Problem(files.case, f"{file} of case {files.case!r} {text}")
            elif size == 0:
                yield Problem(files.case, f"{file} of case {files.case!r} is empty.")


def _is_folder(path: Path) -> bool:
    with suppress(OSError, ValueError):
        return path.is_dir()
    return False


def find_ambiguous(dataset: Dataset) -> Iterator[Problem]:
    """Ids that cannot be file names, or that several cases share."""
    seen: set[str] = set()
    for files in dataset.cases:
        fault = case_id_fault(files.case)
        if files.case in seen:
            text = f"the case {files.case!r} is listed more than once; suffixes do not count."
            yield Problem(files.case, text)
        elif fault:
            where = files.images[0] if files.images else dataset.root
            text = f"the case id {files.case!r} cannot be a file name: it {fault}."
            yield Problem(files.case, f"{where}: {text}")
        seen.add(files.case)


def raise_problems(problems: Sequence[Problem], root: Path) -> None:
    """Raise what is wrong as one `DatasetError`; nothing if nothing is."""
    if len(problems) == 1:
        text = problems[0].message
        raise DatasetError(text if str(root) in text else f"{root}: {text}")
    if problems:
        shown = "\n  ".join(problem.message for problem in problems[:_MOST_SHOWN])
        more = len(problems) - _MOST_SHOWN
        rest = f"\n  … and {more} more" if more > 0 else ""
        raise DatasetError(f"{root}: {len(problems)} entries cannot be used:\n  {shown}{rest}")

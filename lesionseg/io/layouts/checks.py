"""What the readers of all layouts share, and what is asked of every case."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, Field, FiniteFloat, ValidationError

from lesionseg.core import CaseFiles, Dataset, Problem
from lesionseg.errors import DatasetError, LesionsegError, misfits
from lesionseg.io.dicom.series import split_series
from lesionseg.io.files import case_id_fault
from lesionseg.io.raster import SUFFIXES as RASTERS

CHANNEL = re.compile(r"(.+)_(\d{4})")  # how nnU-Net names a case's files
Count = Annotated[int, Field(ge=0, lt=10**9)]
Number = Annotated[FiniteFloat, Field(gt=-1e9, lt=1e9)]
M = TypeVar("M", bound=BaseModel)
_MOST_SHOWN = 100


class Problems(list[Problem]):
    """What is wrong with single entries of a list; the others are read."""

    @contextmanager
    def of(self, case: str, where: object) -> Iterator[None]:
        """Take up an error of one entry, after `where` it stands."""
        try:
            yield
        except LesionsegError as error:
            self.append(Problem(case, f"{where}: {error}"))

    def raise_all(self, root: Path) -> None:
        """Raise what is wrong as one `DatasetError`; nothing if nothing is."""
        shown = [problem.message for problem in self[:_MOST_SHOWN]]
        if len(self) > 1:
            shown = [f"{root}: {len(self)} entries cannot be used:", *shown]
        if len(self) > _MOST_SHOWN:
            shown.append(f"… and {len(self) - _MOST_SHOWN} more")
        if shown:
            raise DatasetError("\n  ".join(shown))


def validated(model: type[M], entry: Any, path: Path | None = None) -> M:
    """What a file says, as a `model`. Raises `DatasetError` naming the keys that do not fit."""
    try:
        return model.model_validate(entry)
    except ValidationError as error:
        where = f"{path}: " if path else ""
        raise DatasetError(f"{where}{misfits(error, entry)[:300]}.") from error


def is_colour(files: CaseFiles, n_channels: int) -> bool:
    """Whether a case is one picture whose red, green and blue are the dataset's three channels."""
    return not files.missing and _may_be_colour(files.images, n_channels)


def missing_channels(files: Mapping[int, Path], n_channels: int) -> tuple[int, ...]:
    """The numbers without a file; none where the only file is a picture that may be in colour."""
    alone = 0 in files and _may_be_colour([*files.values()], n_channels)
    return () if alone else tuple(sorted(set(range(n_channels)) - set(files)))


def _may_be_colour(images: Sequence[Path], n_channels: int) -> bool:
    return n_channels == 3 and len(images) == 1 and images[0].suffix.lower() in RASTERS


def check_channels(files: CaseFiles, dataset: Dataset) -> None:
    """Raise `DatasetError` unless the case has one file per channel that it may not lack."""
    names = dataset.channel_names
    n_files, lacks = len(files.images) + len(files.missing), files.missing and not dataset.may_lack
    if (lacks or n_files != len(names)) and not is_colour(files, len(names)):
        have = ", ".join(file.name for file in files.images)
        raise DatasetError(
            f"case {files.case!r} does not have one file per channel ({', '.join(names)}) but "
            f"{have}. Add it (split a 4-D one into <case>_0000, …) or set data.channel_dropout=0.3."
        )


def find_problems(dataset: Dataset, *, lenient: bool) -> Problems:
    """Ids that name no files or several cases and, unless `lenient`, files that are not there."""
    problems, seen = Problems(), set[str]()
    for files in dataset.cases:
        case, first = files.case, files.images[0]
        with problems.of(case, first):
            if case in seen:
                raise DatasetError(f"{case!r} is listed more than once; suffixes do not count.")
            seen.add(case)
            if fault := case_id_fault(case):
                raise DatasetError(f"the case id {case!r} cannot be a file name: it {fault}.")
        if lenient:
            continue
        with problems.of(case, first):
            check_channels(files, dataset)
        for file in (*files.images, *((files.reference,) if files.reference else ())):
            is_there = split_series(file) is not None
            with suppress(OSError, ValueError):  # the latter where no file can have the name
                is_there = is_there or file.is_dir() or file.stat().st_size > 0
            if not is_there:
                text = "does not exist or is empty. Paths in tables are relative to the table."
                problems.append(Problem(case, f"{file} of case {case!r} {text}"))
    return problems

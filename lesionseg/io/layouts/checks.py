"""What the readers of all layouts share, and what is asked of every case."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, Field, FiniteFloat, ValidationError

from lesionseg.core import CaseFiles, Dataset, Problem, Remark
from lesionseg.errors import DatasetError, LesionsegError, count, listed, misfits
from lesionseg.io.dicom.series import split_series
from lesionseg.io.files import case_id_fault
from lesionseg.io.raster import SUFFIXES as RASTERS
from lesionseg.io.volumes import SUFFIXES, strip_suffix

CHANNEL = re.compile(r"(.+)_(\d{4})")  # how nnU-Net names a case's files
Count = Annotated[int, Field(ge=0, lt=10**9)]
Number = Annotated[FiniteFloat, Field(gt=-1e9, lt=1e9)]
M = TypeVar("M", bound=BaseModel)
_MOST_SHOWN = 100
_VISIT_PATTERN = r"(.+)[_-]\d{1,2}"
_VISIT = re.compile(_VISIT_PATTERN)
_MOST_VISITS = 8  # of a patient, on average
# what lies beside images and holds none
_BESIDE_IMAGES = (
    *(".json", ".csv", ".tsv", ".txt", ".md", ".yaml", ".yml", ".xml", ".html", ".pdf", ".log"),
    *(".bval", ".bvec", ".py", ".sh", ".db", ".ini", ".xlsx", ".docx"),
)
_VOXELS = (".raw", ".zraw", ".raw.gz", ".gz", ".bz2", ".txt", ".hex", ".ascii")  # of a header


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


def path_id(path: Path) -> str:
    """Make a case id of a relative path: folders and name, without suffix and first channel.

    >>> path_id(Path("p1/view.1.png")), path_id(Path("../p2/t1_0000.nii.gz"))
    ('p1_view.1', 'p2_t1')
    """
    folders = [part for part in path.parent.parts if part not in (path.anchor, "..")]
    return "_".join([*folders, strip_suffix(path).removesuffix("_0000")])


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


def unread_files(
    folder: Path, *, folders: bool = True, usual: tuple[str, ...] = ()
) -> list[Remark]:
    """Name the files (and `folders`) in a folder of images that are not read, in one remark.

    Hidden files and texts beside images are passed over, as are voxels that belong to a header.
    `usual`: further suffixes to pass over.
    """
    entries = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    with_voxels = any(path.suffix.lower() in (".mhd", ".nhdr") for path in entries)
    usual += _BESIDE_IMAGES + (_VOXELS if with_voxels else ())
    unread = [
        path
        for path in entries
        if not path.name.lower().endswith((*SUFFIXES, *usual)) and path.suffix and path.is_file()
    ]
    unread += [path for path in entries if folders and path.is_dir()]
    if not unread:
        return []
    kinds = sorted({"folders" if path.is_dir() else path.suffix for path in unread})
    files = count(len(unread), "entry", "entries")
    text = f"{folder}: {files} of formats that are not read here ({', '.join(kinds)}): "
    text += f"{listed(path.name for path in unread)}. Convert images to one of "
    return [Remark("unread", f"{text}{', '.join(SUFFIXES)}.")]


def group_remarks(cases: Sequence[CaseFiles]) -> Iterator[Remark]:
    """Yield a remark if names such as P08_0 and P08_1 look like several scans of one patient.

    That is if most names end in a short number behind a prefix that few others share. A prefix that
    many share names a study or a site.
    """
    members: dict[str, list[str]] = {}
    for case in cases:
        match = _VISIT.fullmatch(case.case)
        if match and not case.group:
            members.setdefault(match[1], []).append(case.case)
    several = {prefix: ids for prefix, ids in members.items() if len(ids) > 1}
    n_sharing = sum(map(len, several.values()))
    if len(members) < 2 or 2 * n_sharing < len(cases) or n_sharing > _MOST_VISITS * len(several):
        return
    first, second = sorted(next(iter(several.values())))[:2]
    yield Remark(
        "names",
        f"Case names such as {first} and {second} look like scans of one patient. If they are, set "
        f"data.group='{_VISIT_PATTERN}', so that no patient is both trained on and validated on.",
    )


def fold_remarks(dataset: Dataset) -> list[Remark]:
    """Name the cases that state no fold where others do, in one remark."""
    open_cases = [c for c in dataset.cases if c.is_labelled and c.role not in ("test", "external")]
    without = [case.case for case in open_cases if case.fold is None]
    if len(without) == len(open_cases) or not without:
        return []
    text = f"{count(len(without), 'case')} without a fold, so that they train in every fold: "
    return [Remark("folds", f"{dataset.root}: {text}{listed(without)}.")]


def find_problems(dataset: Dataset, *, lenient: bool) -> Problems:
    """Ids that name no files or several cases and, unless `lenient`, files that are not there."""
    problems, seen = Problems(), set[str]()
    for files in dataset.cases:
        case, first = files.case, files.images[0]
        with problems.of(case, first):
            if case in seen:
                text = "Suffixes do not count, and folders are joined by _. Rename one file."
                raise DatasetError(f"{case!r} is listed more than once. {text}")
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

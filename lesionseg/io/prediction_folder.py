"""A folder of predictions in which no result replaces one of another scan.

The files of a case are first written into a hidden folder, `.<case>.part`, and then moved: a case
has all of its files or none, whenever the program is killed. The candidates' file states the scan
that they are of, and comes last.
"""

import shutil
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from lesionseg.errors import ConflictError, DatasetError, LesionsegError, OutputError
from lesionseg.io.dicom.results import REPORT, SEGMENTATION
from lesionseg.io.files import check_case_id
from lesionseg.io.layouts.input_images import folded
from lesionseg.io.nnunet_output import ENDINGS as NNUNET_ENDINGS
from lesionseg.io.predictions import (
    CANDIDATES,
    MASK_ENDINGS,
    MaskNames,
    read_mask_names,
    read_source,
)
from lesionseg.io.remote import upload
from lesionseg.io.sources import ScanSource

PROBABILITIES = "_probabilities.npz"
_MASKS = ("_mask", "_instances", "_regions")
_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha", ".png", ".tif")
_OTHERS = (CANDIDATES, PROBABILITIES, REPORT, SEGMENTATION)
_PART = ".part"  # of a case whose files are being written
_MOVING = ".moving"  # of one whose files are complete and take their places
_SHOWN = 3


class PredictionFolder:
    """The results in a folder, by case; other processes may write those of other cases.

    Args:
        path: the folder, which may not exist yet.
        url: where its files are uploaded to, or the path itself (see `remote.upload`).
        names: how the masks are named.
    """

    def __init__(self, path: Path, url: str = "", names: MaskNames = "lesionseg") -> None:
        self.path = path
        self.names: MaskNames = names
        self._url = url
        self._present = {file.name for file in path.iterdir()} if path.is_dir() else set[str]()
        self._spellings: dict[str, set[str]] = defaultdict(set)
        for name in self._present:
            if name.endswith(CANDIDATES):
                case = name.removesuffix(CANDIDATES)
                self._spellings[folded(case)].add(case)

    def claim(self, case: str, source: ScanSource, *, overwrite: bool = False) -> None:
        """Make sure that results of `source` may be written as those of `case`.

        Raises `ConflictError` if the folder has results of another scan, or of an unknown one,
        under this id, unless `overwrite`; `DatasetError` for an id that cannot name files.
        """
        check_case_id(case, self.path)
        if self.names == "nnunet" and case.endswith((*_MASKS, "_candidates")):
            raise DatasetError(
                f"The mask of {case!r} would be named like another result with names=nnunet. "
                "Rename the scan."
            )
        self.recover(case)
        if overwrite:
            return
        others = self._spellings[folded(case)] - {case}
        if others:
            raise ConflictError(
                f"{self.path} holds results of {min(others)!r}, which Windows and macOS take for "
                f"{case!r}. Rename the scan, or name another output."
            )
        present = self.files(case)
        if not present:
            return
        recorded = self.source(case)
        if recorded is None:
            shown = ", ".join(present[:_SHOWN])
            raise ConflictError(
                f"{self.path} holds {shown}, which does not state the scan that it is of. Name "
                "another output, or give overwrite=true to replace it."
            )
        if recorded.is_of_same_scan(source):
            return
        if recorded.series_uid or source.series_uid:
            raise ConflictError(
                f"{self.path} holds results of another scan under this id, of {recorded}; this is "
                f"{source}. Name another output, or give overwrite=true to replace them."
            )
        raise ConflictError(
            f"{self.path} holds results of another scan under this id, of {recorded}; this is "
            f"{source}. If it is the same scan, changed, give overwrite=true; otherwise name "
            "another output."
        )

    def source(self, case: str) -> ScanSource | None:
        """Return the scan that the case's results are of; None if no file states it."""
        with suppress(LesionsegError):
            return read_source(self.path / f"{case}{CANDIDATES}")
        return None

    def cases(self) -> list[str]:
        """Return the ids of the cases that have a candidates' file."""
        return sorted(case for cases in self._spellings.values() for case in cases)

    def files(self, case: str) -> list[str]:
        """Return the names of the case's files, the candidates' first.

        `<case>.nii.gz` is one of them if masks are named so now, or were when it was predicted.
        """
        named = {self.names}
        if f"{case}{CANDIDATES}" in self._present:
            with suppress(LesionsegError):
                named.add(read_mask_names(self.path / f"{case}{CANDIDATES}"))
        kinds = dict.fromkeys((*_MASKS, *(MASK_ENDINGS[names] for names in sorted(named))))
        masks = [f"{case}{kind}{suffix}" for kind in kinds for suffix in _SUFFIXES]
        others = (*_OTHERS, *(NNUNET_ENDINGS if "nnunet" in named else ()))
        names = [f"{case}{ending}" for ending in others] + masks
        return [name for name in names if name in self._present]

    def has_results(self, case: str, source: ScanSource, suffix: str, *, masks: bool) -> bool:
        """Return True if the case has its candidates of this very content, and its mask."""
        recorded = self.source(case)
        if recorded is None or recorded.digest != source.digest:
            return False
        return not masks or (self.path / f"{case}{MASK_ENDINGS[self.names]}{suffix}").is_file()

    @contextmanager
    def writing(self, case: str) -> Iterator[Path]:
        """Yield a folder to write the case's files into; they replace earlier ones at the end.

        If writing fails, the earlier ones stay. Raises `OutputError`.
        """
        part = self._part(case)
        self._drop(part)
        try:
            with _output_errors(self.path, case):
                part.mkdir(parents=True)
                yield part
        except BaseException:
            self._drop(part)
            raise
        self._commit(case)

    def recover(self, case: str) -> bool:
        """Finish what a killed program left of the case: move its files if all were written.

        Return True if they were.
        """
        if self._moving(case).is_dir():
            self._move(case)
            return True
        part = self._part(case)
        if (part / f"{case}{CANDIDATES}").is_file():
            self._commit(case)
            return True
        self._drop(part)
        return False

    def recover_all(self) -> list[str]:
        """Do the same for every case; return those whose results were complete."""
        hidden = [Path(name) for name in self._present if name.startswith(".")]
        cases = sorted({name.stem[1:] for name in hidden if name.suffix in (_PART, _MOVING)})
        return [case for case in cases if self.recover(case)]

    def _part(self, case: str) -> Path:
        return self.path / f".{case}{_PART}"

    def _moving(self, case: str) -> Path:
        return self.path / f".{case}{_MOVING}"

    def _drop(self, part: Path) -> None:
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)

    def _commit(self, case: str) -> None:
        """Remove the case's earlier files and move the new ones to their place.

        The folder's second name says that the earlier files are gone, so that a program that goes
        on after a kill does not take moved files for earlier ones.
        """
        part = self._part(case)
        old = self.files(case)
        for file in part.iterdir():
            if file.name not in old and (self.path / file.name).exists():
                self._drop(part)
                what = f"another program has written {file.name} meanwhile"
                raise ConflictError(f"{self.path}: {what}. Run the command again.")
        with _output_errors(self.path, case):
            for name in old:
                (self.path / name).unlink(missing_ok=True)
            part.rename(self._moving(case))
        self._present -= {*old}
        self._move(case, old)

    def _move(self, case: str, old: Sequence[str] = ()) -> None:
        """Move the files that are to be moved, the candidates' last, and upload them."""
        moving = self._moving(case)
        last = f"{case}{CANDIDATES}"
        names = sorted(file.name for file in moving.iterdir())
        names.sort(key=lambda name: name == last)
        with _output_errors(self.path, case):
            for name in names:
                (moving / name).replace(self.path / name)
            moving.rmdir()
        self._present |= {*names}
        self._spellings[folded(case)].add(case)
        gone = [name for name in old if name not in names]
        upload([self.path / name for name in (*gone, *reversed(names))], self.path, self._url)


@contextmanager
def _output_errors(folder: Path, case: str) -> Iterator[None]:
    """Turn an error of the disk into an `OutputError`."""
    try:
        yield
    except OSError as error:
        what = error.strerror or error
        raise OutputError(f"{folder}: {case} cannot be written: {what}.") from error

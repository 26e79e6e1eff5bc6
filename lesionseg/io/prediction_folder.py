"""A folder of predictions in which a result never replaces the result of another scan.

The files of a case are first written into a hidden folder, `.<case>.part`, and then moved.
Therefore a case has all of its files or none, even if the program is killed. The candidate file
states the scan and is moved last. `<case>_failed.json` lists the scans that failed under a case id,
and leaves the results of the case as they are.
"""

import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lesionseg.config import MaskNames, is_url
from lesionseg.core import Geometry, Labels
from lesionseg.errors import ConflictError, DatasetError, LesionsegError
from lesionseg.io.bids_output import DESCRIPTION, write_bids_description
from lesionseg.io.case_file import (
    CaseRow,
    ScanSource,
    failed_file,
    read_failures,
    read_row,
    read_sent,
    write_failures,
)
from lesionseg.io.case_ids import check_case_id, comparison_key
from lesionseg.io.files import TEMPORARY_NAMES, output_errors
from lesionseg.io.nnunet_output import DESCRIPTIONS, write_description, write_probabilities
from lesionseg.io.nnunet_output import ENDINGS as NNUNET_ENDINGS
from lesionseg.io.remote import stored_names, upload
from lesionseg.io.result_names import (
    CANDIDATES,
    FAILED,
    MASK_ENDINGS,
    OWN_ENDINGS,
    PROBABILITIES,
    REPORT,
    SEGMENTATION,
    SENT,
)
from lesionseg.io.text import write_json
from lesionseg.io.volumes import WRITTEN, result_suffix

_MASKS = (*OWN_ENDINGS, MASK_ENDINGS["bids"])
_OTHERS = (CANDIDATES, PROBABILITIES, REPORT, SEGMENTATION, SENT)
_PART = ".part"  # folder of a case whose files are being written
_MOVING = ".moving"  # folder of a case whose files are complete and are being moved
_MAX_SHOWN = 3  # file names in a message
_ALL_FAILED = f"[!.]*{FAILED}"  # without the temporary files of a killed program


class PredictionFolder:
    """The results in a folder, by case. Other processes may write the results of other cases.

    The files in the folder and at the URL are listed once, on creation.

    Args:
        path: The folder, which may not exist yet.
        url: The URL that files are uploaded to, or the path itself (see `remote.upload`).
        names: The names of the masks, see `write_prediction`.
    """

    def __init__(self, path: Path, url: str = "", names: MaskNames = "lesionseg") -> None:
        self.path = path
        self.names: MaskNames = names
        self._url = url
        self._present = stored_names(path, url)  # masks at a URL are not downloaded
        if path.is_dir():
            self._present |= {file.name for file in path.iterdir()}
        # the case ids that some file system cannot distinguish, by their common key
        self._spellings: dict[str, set[str]] = defaultdict(set)
        for name in self._present:
            if name.endswith(CANDIDATES) and not name.startswith("."):  # macOS writes `._<name>`
                case = name.removesuffix(CANDIDATES)
                self._spellings[comparison_key(case)].add(case)
        self._rows: dict[str, CaseRow | None] = {}  # those that were read, None without a file

    def describe(self) -> None:
        """Write and upload the description that BIDS requires. Only for masks with names of BIDS.

        With other names, nothing is written.
        """
        if self.names == "bids":
            write_bids_description(self.path)
            upload([self.path / DESCRIPTION], self.path, self._url)

    def describe_probabilities(
        self, channel_names: Sequence[str], labels: Labels, scan: Path, dims: int
    ) -> None:
        """Write and upload the files that nnU-Net expects next to its probabilities.

        With names other than those of nnU-Net, nothing is written. `scan` is a scan with `dims`
        axes, whose format the masks get.

        Raises:
            ConfigError: nnU-Net cannot represent the labels.
            OutputError: A file cannot be written or uploaded.
        """
        if self.names == "nnunet":
            write_description(self.path, channel_names, labels, result_suffix(scan, dims))
            upload([self.path / name for name in DESCRIPTIONS], self.path, self._url)

    def write_probabilities(
        self,
        part: Path,
        case: str,
        probabilities: NDArray[np.float16],
        geometry: Geometry,
        labels: Labels,
    ) -> None:
        """Write the probabilities `[labels, *spatial]` of a case.

        `part` is the folder of the case's new files, see `write_case`. With names of nnU-Net, the
        files are those of nnU-Net, see `nnunet_output.write_probabilities`.
        """
        if self.names == "nnunet":
            is_region = bool(labels.regions)
            write_probabilities(part, case, probabilities, geometry, are_regions=is_region)
        else:
            np.savez_compressed(part / f"{case}{PROBABILITIES}", probabilities=probabilities)

    def require_free(self, case: str, source: ScanSource, *, overwrite: bool = False) -> None:
        """Check that results of a scan may be written under a case id.

        Files that a killed program left under this id are finished or discarded first, see
        `recover`.

        Args:
            case: The case id.
            source: The scan.
            overwrite: True allows results of any other scan to be replaced.

        Raises:
            ConflictError: The folder has results of another or an unknown scan under this id, or
                under an id whose files some file system cannot distinguish.
            DatasetError: The id cannot be a file name or, with names of nnU-Net, would give the
                mask the name of another result. `overwrite` does not allow this.
            OutputError: The files that a killed program left cannot be finished, see `recover`.
        """
        check_case_id(case, self.path)
        if self.names == "nnunet" and case.endswith((*_MASKS, "_candidates")):
            raise DatasetError(
                f"With names=nnunet, the mask of {case!r} would have the name of another result. "
                "Rename the scan."
            )
        self.recover(case)
        if overwrite:
            return
        others = self._spellings[comparison_key(case)] - {case}
        if others:
            raise ConflictError(
                f"{self.path} contains results of {min(others)!r}, which has the same file name as "
                f"{case!r} on Windows and macOS. Rename the scan, or name another output."
            )
        own = self.files(case)
        named_by_nnunet = self._files_named_by_nnunet(case) if self.names == "nnunet" else []
        of_others = [name for name in named_by_nnunet if name not in own]
        present = own + of_others
        if not present:
            return
        row = self.row(case)
        if row is None or not row.digest:
            shown = ", ".join(present[:_MAX_SHOWN])
            raise ConflictError(
                f"{self.path} contains {shown}, which does not state its scan. Name another "
                "output, or set overwrite=true to replace it."
            )
        if of_others:
            raise ConflictError(
                f"{self.path} contains {of_others[0]}, which does not belong to the results of "
                f"{case!r} there, because they were written without names=nnunet. Name another "
                "output, or set overwrite=true to replace it."
            )
        recorded = row.source
        if recorded.is_of_same_scan(source):
            return
        advice = (
            "If it is the same scan with changed content, set overwrite=true. Otherwise name "
            "another output."
        )
        if recorded.series_uid or source.series_uid:  # another UID is certainly another scan
            advice = "Name another output, or set overwrite=true to replace them."
        raise ConflictError(
            f"{self.path} contains results of another scan under this id, of {recorded}, but this "
            f"scan is {source}. {advice}"
        )

    def row(self, case: str) -> CaseRow | None:
        """Return the row that the candidate file of a case states.

        Return None if the file is missing or damaged. The file is read once, until `write_case`
        replaces it. `finished` is the time of the file. It is empty if the results are at a URL,
        because a download sets another time.
        """
        if case not in self._rows:
            row = None
            with suppress(LesionsegError):
                row = read_row(self.candidate_file(case))
                if not is_url(self._url):
                    row = replace(row, finished=self.finish_time(case))
            self._rows[case] = row
        return self._rows[case]

    def finish_time(self, case: str) -> str:
        """Return the local time at which the candidate file of a case was written (ISO 8601)."""
        time = datetime.fromtimestamp(self.candidate_file(case).stat().st_mtime)
        return time.astimezone().isoformat(timespec="seconds")

    def rows(self) -> list[CaseRow]:
        """Return the rows of all cases whose candidate file states the scan."""
        found = [self.row(case) for case in self.cases()]
        return [row for row in found if row is not None and row.digest]

    def failures(self, case: str) -> list[CaseRow]:
        """Return the rows of the scans that failed under a case id and were not predicted later."""
        return read_failures(failed_file(self.path, case))

    def all_failures(self) -> list[CaseRow]:
        """Return the rows of `failures` for all case ids."""
        return [row for file in self.path.glob(_ALL_FAILED) for row in read_failures(file)]

    def update_failures(self, row: CaseRow) -> None:
        """Record a scan that failed, and forget earlier failures that the row replaces.

        Any other row only replaces earlier failures. A failed row that has not changed since an
        earlier run is recorded already. A changed file of failures is uploaded.

        Raises:
            OutputError: The file of failures cannot be written or uploaded.
        """
        is_failed = row.status == "failed"
        if is_failed and row.is_unchanged:
            return
        before = self.failures(row.case)
        after = [failure for failure in before if not row.replaces(failure)]
        if is_failed:
            after.append(row)
        if after != before:
            self._write_failures(failed_file(self.path, row.case), after)

    def forget_failures(self, is_obsolete: Callable[[CaseRow], bool]) -> None:
        """Remove the failures for which `is_obsolete` returns True, and upload changed files."""
        for file in self.path.glob(_ALL_FAILED):
            before = read_failures(file)
            after = [row for row in before if not is_obsolete(row)]
            if after != before:
                self._write_failures(file, after)

    def _write_failures(self, file: Path, rows: Sequence[CaseRow]) -> None:
        """Write the failures of a case and upload the file, or remove it if there are none."""
        with output_errors(file):
            write_failures(file, rows)
        upload([file], self.path, self._url)

    def unsent_files(self, case: str, address: str) -> list[Path]:
        """Return the DICOM results of a case, unless `note_sent` recorded them for this address."""
        if address in read_sent(self.path / f"{case}{SENT}"):
            return []
        files = [self.path / f"{case}{ending}" for ending in (SEGMENTATION, REPORT)]
        return [file for file in files if file.is_file()]  # another process may have written them

    def note_sent(self, case: str, address: str, uids: Sequence[str]) -> None:
        """Record that the DICOM results of a case, with these UIDs, are stored at an address.

        Earlier records of other addresses stay. New results of the case remove all of them.

        Raises:
            OutputError: The record cannot be written.
        """
        name = f"{case}{SENT}"
        with output_errors(self.path / name):
            write_json(self.path / name, {**read_sent(self.path / name), address: [*uids]})
        self._present.add(name)

    def cases(self) -> list[str]:
        """Return the ids of the cases that have a candidate file, sorted."""
        return sorted(set().union(*self._spellings.values()))

    def files(self, case: str) -> list[str]:
        """Return the names of the case's present files, the candidate file first.

        `<case>.nii.gz`, `.npz` and `.pkl` are among them if the candidate file states that masks
        are named in nnU-Net's way. This may also be the candidate file that is about to replace the
        present one, because `require_free` was called before it was written.
        """
        rows = [self.row(case)]
        with suppress(LesionsegError):
            rows.append(read_row(self._part_folder(case) / f"{case}{CANDIDATES}"))
        is_nnunet = any(row is not None and row.names == "nnunet" for row in rows)
        endings = [*_OTHERS, *(f"{stem}{suffix}" for stem in _MASKS for suffix in WRITTEN)]
        own = [f"{case}{ending}" for ending in endings if f"{case}{ending}" in self._present]
        return own + self._files_named_by_nnunet(case) if is_nnunet else own

    def _files_named_by_nnunet(self, case: str) -> list[str]:
        """Return the names of the files in nnU-Net's way, also those of other programs."""
        stem = f"{case}{MASK_ENDINGS['nnunet']}"
        names = [f"{case}{ending}" for ending in NNUNET_ENDINGS]
        names += [f"{stem}{suffix}" for suffix in WRITTEN]
        return [name for name in names if name in self._present]

    def finished_row(self, case: str, key: str, *, needs_mask: bool) -> CaseRow | None:
        """Return the row of a case that has results with this key. Otherwise return None.

        Args:
            case: The case id.
            key: The hash of scan, bundle and settings.
            needs_mask: True if a mask must exist as well, False for a model without masks.
        """
        row = self.row(case)
        if row is None or not row.is_done or row.key != key:
            return None
        masks = {f"{case}{MASK_ENDINGS[self.names]}{suffix}" for suffix in WRITTEN}
        return None if needs_mask and masks.isdisjoint(self._present) else row

    @contextmanager
    def write_case(self, case: str) -> Iterator[Path]:
        """Yield a folder for the files of a case. At the end they replace the earlier files.

        They are also uploaded. If writing fails, the earlier files stay.

        Raises:
            OutputError: A file cannot be written or uploaded.
            ConflictError: Another program has written files of this case in the meantime.
        """
        part = self._part_folder(case)
        self._remove(part)
        try:
            with output_errors(self.path / case):
                part.mkdir(parents=True)
                yield part
        except BaseException:
            self._remove(part)
            raise
        self._commit(case)

    def recover(self, case: str) -> bool:
        """Finish or discard the files of a case that a killed program left.

        If all files had been written, they are moved to their place and uploaded, and the result is
        True. Otherwise they are removed, and the result is False. A link under the name of one of
        the two folders is removed: it may lead to any folder of the user.

        Raises:
            ConflictError: Another program has written a file of one of the new names.
            OutputError: A file cannot be removed, moved or uploaded.
        """
        for folder in (self._moving_folder(case), self._part_folder(case)):
            if folder.is_symlink():
                with output_errors(self.path / case):
                    folder.unlink()
        if self._moving_folder(case).is_dir():  # killed while moving or uploading
            self._move(case, [f"{case}{CANDIDATES}"])
            return True
        part = self._part_folder(case)
        if (part / f"{case}{CANDIDATES}").is_file():
            self._commit(case)
            return True
        self._remove(part)
        return False

    def recover_all(self) -> list[str]:
        """Call `recover` for every case that a killed program left. Return the finished cases.

        Incomplete files of failures are removed. No other process may be writing into the folder.
        """
        self.remove_incomplete(f"*{FAILED}")
        hidden = [Path(name) for name in self._present if name.startswith(".")]
        cases = sorted({name.stem[1:] for name in hidden if name.suffix in (_PART, _MOVING)})
        return [case for case in cases if self.recover(case)]

    def remove_incomplete(self, pattern: str) -> None:
        """Remove incomplete files that a killed program left under temporary names.

        `pattern` matches the names that the complete files would have, such as `*_failed.json`.
        """
        for incomplete in self.path.glob(f"{TEMPORARY_NAMES}{pattern}"):
            incomplete.unlink(missing_ok=True)

    def remove(self, case: str) -> None:
        """Remove the results of a case from the folder, but not from a store at a URL."""
        for name in self.files(case):
            (self.path / name).unlink(missing_ok=True)

    def candidate_file(self, case: str) -> Path:
        """Return the path of the candidate file of a case."""
        return self.path / f"{case}{CANDIDATES}"

    def _part_folder(self, case: str) -> Path:
        """Return the folder in which the files of a case are written."""
        return self.path / f".{case}{_PART}"

    def _moving_folder(self, case: str) -> Path:
        """Return the path to which `_part_folder` is renamed once the earlier files are removed."""
        return self.path / f".{case}{_MOVING}"

    def _remove(self, part: Path) -> None:
        """Remove the folder of files that were not completely written, if it exists."""
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)

    def _commit(self, case: str) -> None:
        """Remove the case's earlier files and move the new files to their place.

        Between the two steps, the folder with the new files is renamed from `.part` to `.moving`.
        If the program is killed, the name tells `recover` whether files of this case next to the
        folder are earlier files or new files that were already moved.

        Raises:
            ConflictError: Another program has written a file of one of the new names. The new files
                are then removed.
            OutputError: A file cannot be removed, moved or uploaded.
        """
        part = self._part_folder(case)
        old = self.files(case)
        for file in part.iterdir():
            is_present = file.name in self._present or (self.path / file.name).exists()
            if file.name not in old and is_present:
                self._remove(part)
                raise ConflictError(
                    f"{self.path}: another program has written {file.name} in the meantime. Run "
                    "the command again."
                )
        with output_errors(self.path / case):
            for name in old:
                (self.path / name).unlink(missing_ok=True)
            part.rename(self._moving_folder(case))
        self._present -= {*old}
        self._move(case, old)

    def _move(self, case: str, old: Sequence[str]) -> None:
        """Move the complete files to their place, the candidate file last, and upload them.

        The earlier candidate file is removed from the store first, and the new one is uploaded
        last, because readers of the store take it as the sign of a complete case.

        The empty folder is removed after the upload. If the upload fails or the program is killed,
        `recover` finds the folder and uploads all files of the case. `old` has the names of the
        earlier files, which are removed from the store too.
        """
        moving = self._moving_folder(case)
        last = f"{case}{CANDIDATES}"
        names = sorted(file.name for file in moving.iterdir())
        names.sort(key=lambda name: name == last)
        if last in old and last in names:
            with output_errors(self.path / case):
                (self.path / last).unlink(missing_ok=True)  # a download may have restored it
            upload([self.path / last], self.path, self._url)
        with output_errors(self.path / case):
            for name in names:
                (moving / name).replace(self.path / name)
        self._present |= {*names}
        self._rows.pop(case, None)
        self._spellings[comparison_key(case)].add(case)
        new = sorted(self.files(case), key=lambda name: name == last)
        removed = [name for name in old if name not in new]
        upload([self.path / name for name in (*removed, *new)], self.path, self._url)
        with output_errors(self.path / case):
            moving.rmdir()

"""Output folder of `predict`: runs that may share it (shards), conflicts, replaced files.

`io.files.locked_folder` is the lock itself.

The files of a case are first written into a hidden folder, `.<case>.part`, and then moved.
Therefore a case has all of its files or none, even if the program is killed. The candidate file
states the scan and is moved last. `<case>_failed.json` lists the scans that failed under a case id,
and leaves the results of the case as they are.
"""

import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from lesionseg.config import MaskNames, has_config, is_url
from lesionseg.errors import (
    ConflictError,
    DatasetError,
    LesionsegError,
    OutputError,
    ReadError,
)
from lesionseg.io.case_ids import check_case_id, comparison_key
from lesionseg.io.files import LOCK, TEMPORARY_NAMES, locked_folder, output_errors
from lesionseg.io.remote import stored_names, upload
from lesionseg.io.results.names import (
    ALL_FAILED,
    BIDS_MASKS,
    BIDS_SUFFIXES,
    CANDIDATES,
    FAILED,
    FILES,
    FILES_OF_NNUNET,
    FIRST_SCANS,
    PREVIEW,
    looks_like_result,
    mask_stem,
)
from lesionseg.io.results.row import (
    CaseRow,
    failed_file,
    read_failures,
    read_row,
    write_failures,
)
from lesionseg.io.text import read_json, write_json
from lesionseg.io.volumes import WRITTEN

_PART = ".part"  # folder of a case whose files are being written
_MOVING = ".moving"  # folder of a case whose files are complete and are being moved
_FILES = "**/*.*"  # pattern of the files of a case; its folders have no dot
_OF_TRAINING = ("oof", "test")  # folders of a run directory with scores and a report
_WAIT_SECONDS = 1.0
_MAX_SHOWN = 3  # file names in a message
_CASES_BY_MODEL = TypeAdapter(dict[str, list[str]])


@contextmanager
def claim(folder: Path, owner: str = "", *, lock: str = LOCK) -> Iterator[None]:
    """Lock an output folder within the context, so that no other process writes into it.

    An error protects the scores of a training, which another command would replace.

    Args:
        folder: The folder. It is created, and removed at the end if it is empty.
        owner: The command whose scores or report are written into the folder, such as `evaluate`.
            The folder may then be no run directory. "" allows a run directory.
        lock: The file of the lock, see `locked_folder`.

    Raises:
        OutputError: If `folder` is a run directory or its folder `oof` or `test` although `owner`
            is not empty, another process is writing there, or it cannot be created.
    """
    run_dir = folder.absolute()
    if run_dir.name in _OF_TRAINING and not has_config(run_dir):
        run_dir = run_dir.parent
    if owner and has_config(run_dir):
        raise OutputError(
            f"output={folder}: scores and report of the training in {run_dir} would be replaced. "
            f"Name another folder, such as {run_dir / owner}."
        )
    with locked_folder(folder, lock):
        yield


@contextmanager
def claim_table(folder: Path, table: str) -> Iterator[None]:
    """Lock an output folder within the context for one table of results.

    A run of `predict` writes all scans, or one shard of them, into one table. Several runs may
    write into the folder at the same time only if their tables are different shards of the same
    division, such as `predictions_1_of_4.csv` and `predictions_2_of_4.csv`. Such shards never
    contain the same scan, because the shard of a scan depends only on its case id. Other runs could
    predict the same scan, and each would treat the unfinished files of the other run as those of a
    killed program.

    Args:
        folder: The folder, see `claim`.
        table: `predictions.csv`, or `predictions_<shard>_of_<number>.csv`.

    Raises:
        OutputError: If another process writes this table or a table of another division, or the
            folder cannot be created.
    """
    own_lock = f".{table}.lock"  # such as .predictions_1_of_4.csv.lock
    with claim(folder, lock=own_lock):
        for other in folder.glob(".predictions*.csv.lock"):
            # "4.csv.lock" for shards of four, "" for predictions.csv
            if other.name.partition("_of_")[2] != own_lock.partition("_of_")[2]:
                # fails if another process holds the lock; it waits a little, because another job
                # holds it for a moment in this same test
                with locked_folder(folder, other.name, wait_seconds=_WAIT_SECONDS):
                    continue
        yield


class PredictionFolder:
    """The results in an output folder, by case. Other processes may write results of other cases.

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
        self._present_names = stored_names(path, url)  # masks at a URL are not downloaded
        if path.is_dir():
            self._present_names |= _list_names(path, "*") | _list_names(path, BIDS_MASKS)
        # the case ids that some file system cannot distinguish, by their common key
        self._ids_by_key: dict[str, set[str]] = defaultdict(set)
        for name in self._present_names:
            if name.endswith(CANDIDATES) and not name.startswith("."):  # macOS writes `._<name>`
                case = name.removesuffix(CANDIDATES)
                self._ids_by_key[comparison_key(case)].add(case)
        # rows that were read so far, None without a valid file
        self._row_cache: dict[str, CaseRow | None] = {}

    def claim(
        self,
        case: str,
        row: CaseRow,
        *,
        overwrite: bool | None = False,
        needs_mask: bool = True,
        needs_preview: bool = False,
    ) -> CaseRow | None:
        """Check that results of a scan may be written under a case id, and whether they exist.

        The method is called before the scan is predicted. Files that a killed program left under
        this id are finished or removed first, see `recover`.

        Args:
            case: The case id.
            row: The row of the scan, with its key and digest.
            overwrite: True allows results of any other scan to be replaced. None is for a command
                without this setting: it is the same as False, but errors do not advise
                `overwrite=true`.
            needs_mask: True if results are complete only with a mask, False for a model without
                masks.
            needs_preview: True if results are complete only with a preview picture.

        Returns:
            The row of complete results with the same key. None if the results have to be written.

        Raises:
            ConflictError: If the folder has results of another or an unknown scan under this id, or
                results under an id that differs only in a way that Windows or macOS ignores, such
                as upper and lower case.
            DatasetError: If the id cannot be a file name or, with names of nnU-Net, would give the
                mask the name of another result. `overwrite` does not allow this.
            OutputError: If the files that a killed program left cannot be finished, see `recover`.
        """
        check_case_id(case, self.path)
        if self.names == "nnunet" and looks_like_result(case):
            raise DatasetError(
                f"With names=nnunet, the mask of {case!r} would have the name of another result. "
                "Rename the scan."
            )
        self.recover(case)
        recorded = self.row(case)
        if not overwrite:
            reason = self._find_conflict(case, row, recorded)
            if reason:
                advice = "" if overwrite is None else ", or set overwrite=true to replace it"
                raise ConflictError(f"{self.path} contains {reason}. Name another output{advice}.")
        if recorded is None or recorded.key != row.key or not recorded.is_done:
            return None
        masks = {f"{mask_stem(case, self.names)}{suffix}" for suffix in WRITTEN}
        lacks_mask = needs_mask and masks.isdisjoint(self._present_names)
        lacks_preview = needs_preview and f"{case}{PREVIEW}" not in self._present_names
        return None if lacks_mask or lacks_preview else recorded

    def _find_conflict(self, case: str, row: CaseRow, recorded: CaseRow | None) -> str:
        """Return the reason why new results of a case would replace those of another scan, or "".

        The reason continues a sentence "… contains". There are three reasons: another id with the
        same file names, files of an unknown scan, and results of another scan.

        Args:
            case: The case id.
            row: The scan that would be predicted.
            recorded: The row of the results in the folder, or None without a candidate file.
        """
        # ids that differ from this one only in a way that Windows or macOS ignores
        other_ids = self._ids_by_key[comparison_key(case)] - {case}
        if other_ids:
            return (
                f"results of {min(other_ids)!r}, which has the same file name as {case!r} on "
                "Windows and macOS, so rename the scan"
            )
        # files that cannot be assigned to a scan: equal keys or two digests are necessary
        present_files = self.files(case)
        is_known = recorded is not None and (
            recorded.key == row.key != "" or "" not in (recorded.digest, row.digest)
        )
        files_of_unknown_scan = [] if is_known else [*present_files]
        if self.names == "nnunet":
            files_of_unknown_scan += [
                name
                for name in self._present_files(case, FILES_OF_NNUNET)
                if name not in present_files
            ]
        if files_of_unknown_scan:
            shown = ", ".join(files_of_unknown_scan[:_MAX_SHOWN])
            return f"{shown}, which may belong to another scan"
        if recorded is None or recorded.is_of_same_scan(row):
            return ""
        unless = ", unless it is the same scan with changed content"
        if recorded.series_uid or row.series_uid:  # another UID is certainly another scan
            unless = ""
        return (
            f"results of another scan under this id, of {recorded.scan_name}, but this scan is "
            f"{row.scan_name}{unless}"
        )

    def row(self, case: str) -> CaseRow | None:
        """Return the row in the candidate file of a case, or None without a readable file.

        The row is cached until `write_case` replaces the file. Its `finished` is the modification
        time of the file. It is left as it is if the results are at a URL, because a download sets
        another time.
        """
        if case not in self._row_cache:
            row = None
            with suppress(LesionsegError):
                row = read_row(self.candidate_file(case))
                if not is_url(self._url):
                    row = replace(row, finished=self.finish_time(case))
            self._row_cache[case] = row
        return self._row_cache[case]

    def finish_time(self, case: str) -> str:
        """Return the local time at which a case was finished, in ISO 8601 with the time zone.

        The time is the modification time of the candidate file, which is written last.
        """
        time = datetime.fromtimestamp(self.candidate_file(case).stat().st_mtime)
        return time.astimezone().isoformat(timespec="seconds")

    def rows(self) -> list[CaseRow]:
        """Return the rows of all cases that `predict` has written, which have a digest of the scan.

        Candidate files of other programs have no digest and are left out.
        """
        rows = [self.row(case) for case in self.cases()]
        return [row for row in rows if row is not None and row.digest]

    def keep_first(self, n: int, rows: Mapping[str, Sequence[CaseRow]]) -> dict[str, list[str]]:
        """Return the case ids of the first `n` scans of each model, and record them in a file.

        Later scans are compared with them to find a drift. The ids are recorded in
        `first_scans.json`, so that they stay the same if a case is removed later.

        - Models with fewer than `n` scans are left out.
        - The ids of a model that the file does not list are the first ones in `rows`.
        - If the file cannot be written, the ids are only returned.

        Args:
            n: The number of scans.
            rows: The scans of each model, by the digest of the model, in their order.
        """
        path = self.path / FIRST_SCANS
        recorded: dict[str, list[str]] = {}
        with suppress(ReadError, ValidationError):
            recorded = _CASES_BY_MODEL.validate_python(read_json(path))
        current = {model: [row.case for row in scans[:n]] for model, scans in rows.items()}
        # recorded ids replace current ones
        first = {model: cases for model, cases in current.items() if len(cases) == n} | recorded
        if first != recorded:
            with suppress(OutputError):
                write_json(path, first)
                self._upload_files([FIRST_SCANS])
        return first

    def failures(self, case: str | None = None) -> list[CaseRow]:
        """Return the rows of scans that failed and were not predicted successfully later.

        Args:
            case: The case id under which the scans failed. None returns the failures of all cases.
        """
        files = self.path.glob(ALL_FAILED) if case is None else [failed_file(self.path, case)]
        return [row for file in files for row in read_failures(file)]

    def update_failures(self, row: CaseRow) -> None:
        """Update the file of failures of a case with the row of a scan that was just processed.

        - Earlier failures that the row replaces are removed.
        - If the scan failed, the row is added.
        - A failed row with `is_unchanged` is in the file already, so the file is not written.
        - A changed file is uploaded to the URL of the results, if they have one.

        Raises:
            OutputError: If the file of failures cannot be written or uploaded.
        """
        added = [row] if row.status == "failed" else []
        if not (added and row.is_unchanged):
            file = failed_file(self.path, row.case)
            self._change_failures(file, is_obsolete=row.replaces, added=added)

    def forget_failures(self, is_obsolete: Callable[[CaseRow], bool]) -> None:
        """Remove the failures of all cases for which `is_obsolete` returns True.

        Changed files are uploaded to the URL of the results, if they have one.
        """
        for file in self.path.glob(ALL_FAILED):
            self._change_failures(file, is_obsolete, added=[])

    def _change_failures(
        self, file: Path, is_obsolete: Callable[[CaseRow], bool], added: Sequence[CaseRow]
    ) -> None:
        """Remove obsolete failures from a file of failures, add new failures, and upload the file.

        A file without failures is removed. A file without changes is neither written nor uploaded.

        Args:
            file: The file, `<case>_failed.json`.
            is_obsolete: A function that returns True for a failure to remove.
            added: The failures to add.
        """
        before = read_failures(file)
        after = [row for row in before if not is_obsolete(row)] + [*added]
        if after != before:
            with output_errors(file):
                write_failures(file, after)
            self._upload_files([file.name])

    def cases(self) -> list[str]:
        """Return the ids of the cases that have a candidate file in the folder, sorted."""
        return sorted(set().union(*self._ids_by_key.values()))

    def files(self, case: str) -> list[str]:
        """Return the names of all present files of a case, the candidate file first.

        `<case>.nii.gz`, `.npz` and `.pkl` belong to the case only if its candidate file says that
        masks are named in nnU-Net's way. Either the present candidate file or a new one in the
        hidden folder `.part` may say so, because the new mask is then about to replace such a file.
        """
        rows = [self.row(case)]
        with suppress(LesionsegError):
            rows.append(read_row(self._hidden_folder(case, _PART) / f"{case}{CANDIDATES}"))
        is_nnunet = any(row is not None and row.names == "nnunet" for row in rows)
        return self._present_files(case, (*FILES, *FILES_OF_NNUNET) if is_nnunet else FILES)

    def _present_files(self, case: str, endings: Sequence[str]) -> list[str]:
        """Return the names of the files of a case that exist in the folder or at the URL.

        The names are `<case><ending>`, in the order of `endings`, then the BIDS mask and sidecar.
        """
        names = [f"{case}{ending}" for ending in endings]
        names += [f"{mask_stem(case, 'bids')}{suffix}" for suffix in BIDS_SUFFIXES]
        return [name for name in dict.fromkeys(names) if name in self._present_names]

    @contextmanager
    def write_case(self, case: str) -> Iterator[Path]:
        """Yield a hidden folder for the new files of a case, which then replace its earlier files.

        The replacement and the upload follow at the end of the context. If an error is raised
        within the context, the earlier files stay.

        Raises:
            OutputError: If a file cannot be written or uploaded.
            ConflictError: If another program has written files of this case in the meantime.
        """
        part = self._hidden_folder(case, _PART)
        shutil.rmtree(part, ignore_errors=True)
        with output_errors(self.path / case):
            try:
                part.mkdir(parents=True)
                yield part
            except BaseException:
                shutil.rmtree(part, ignore_errors=True)
                raise
            self._replace_files(case)

    def recover(self, case: str) -> bool:
        """Finish or remove the new files of a case that a killed program left in a hidden folder.

        - In a folder `.moving`, or `.part` with a candidate file, all files are complete. They
          replace the earlier files and are uploaded.
        - Other new files are removed.
        - If a hidden folder is a link, only the link is removed, because it may lead to any folder
          of the user.

        Returns:
            True if complete files were finished, otherwise False.

        Raises:
            ConflictError: If another program has written a file of one of the new names.
            OutputError: If a file cannot be removed, moved or uploaded.
        """
        part = self._hidden_folder(case, _PART)
        moving = self._hidden_folder(case, _MOVING)
        with output_errors(self.path / case):
            for folder in (moving, part):
                if folder.is_symlink():
                    folder.unlink()
            if moving.is_dir():  # killed while moving or uploading
                # the store may still have the earlier candidate file
                self._move_files(case, old=[f"{case}{CANDIDATES}"])
                return True
            if (part / f"{case}{CANDIDATES}").is_file():
                self._replace_files(case)
                return True
        shutil.rmtree(part, ignore_errors=True)
        return False

    def recover_all(self) -> list[str]:
        """Call `recover` for every case with new files that a killed program left.

        Incomplete files of failures and of the first scans are removed, too. No other process may
        be writing into the folder.

        Returns:
            The ids of the cases that were finished, sorted.
        """
        self.remove_incomplete(f"*{FAILED}")
        self.remove_incomplete(FIRST_SCANS)
        hidden = [Path(name) for name in self._present_names if name.startswith(".")]
        # the folder .P1.part belongs to the case P1
        cases = sorted({name.stem[1:] for name in hidden if name.suffix in (_PART, _MOVING)})
        return list(filter(self.recover, cases))

    def remove_incomplete(self, pattern: str) -> None:
        """Remove incomplete files that a killed program left under temporary names.

        A file is written under a temporary name first, which is a prefix and the final name.
        `pattern` matches the final name, such as `*_failed.json`.
        """
        for incomplete in self.path.glob(f"{TEMPORARY_NAMES}{pattern}"):
            incomplete.unlink(missing_ok=True)

    def remove(self, case: str) -> None:
        """Remove the result files of a case from the folder, but not from a store at a URL."""
        for name in self.files(case):
            (self.path / name).unlink(missing_ok=True)

    def candidate_file(self, case: str) -> Path:
        """Return the path of the candidate file of a case."""
        return self.path / f"{case}{CANDIDATES}"

    def _hidden_folder(self, case: str, state: str) -> Path:
        """Return the path of the hidden folder `.<case><state>` with the new files of a case.

        `state` is `.part` while the files are written, and `.moving` while they are moved to their
        final names.
        """
        return self.path / f".{case}{state}"

    def _replace_files(self, case: str) -> None:
        """Remove the earlier files of a case and move the new files to their final names.

        Between the two steps, the folder with the new files is renamed from `.part` to `.moving`.
        If the program is killed, the name tells `recover` whether files of this case next to the
        folder are earlier files or new files that were already moved.

        Raises:
            ConflictError: If another program has written a file of one of the new names. The new
                files are then removed.
            OSError: If a file cannot be removed or moved.
            OutputError: If a file cannot be uploaded.
        """
        part = self._hidden_folder(case, _PART)
        old = self.files(case)
        for name in _list_names(part, _FILES):
            # listed on creation (also at the URL), or written into the folder since then
            is_present = name in self._present_names or (self.path / name).exists()
            if name not in old and is_present:
                shutil.rmtree(part, ignore_errors=True)
                raise ConflictError(
                    f"{self.path}: another program has written {name} in the meantime. Run "
                    "the command again."
                )
        for name in old:
            (self.path / name).unlink(missing_ok=True)
        part.rename(self._hidden_folder(case, _MOVING))
        self._present_names -= {*old}
        self._move_files(case, old)  # removes `old` also from the store at the URL

    def _move_files(self, case: str, old: Sequence[str]) -> None:
        """Move the complete files of a case from `.moving` to their final names, and upload them.

        - The candidate file is moved and uploaded last, because programs that read the store treat
          it as the sign of a complete case. For the same reason, the earlier candidate file is
          removed from the store first.
        - The empty folder is removed after the upload. If the upload fails or the program is
          killed, `recover` finds the folder and uploads all files of the case.

        Args:
            case: The case id.
            old: The names of the earlier files. Those without a new file are removed from the
                store.

        Raises:
            OSError: If a file cannot be removed or moved.
            OutputError: If a file cannot be uploaded.
        """
        moving = self._hidden_folder(case, _MOVING)
        last = f"{case}{CANDIDATES}"
        # in the order of names, the candidate file at the end
        names = sorted(_list_names(moving, _FILES), key=lambda name: (name == last, name))
        if last in old and last in names:
            (self.path / last).unlink(missing_ok=True)  # a download may have restored it
            self._upload_files([last])
        for name in names:
            (self.path / name).parent.mkdir(parents=True, exist_ok=True)
            (moving / name).replace(self.path / name)
        self._present_names |= {*names}
        self._row_cache.pop(case, None)
        self._ids_by_key[comparison_key(case)].add(case)
        new = sorted(self.files(case), key=lambda name: name == last)
        # a name without a file is removed from the store
        self._upload_files([*(name for name in old if name not in new), *new])
        shutil.rmtree(moving)  # the folders of a subject remain in it

    def _upload_files(self, names: Sequence[str]) -> None:
        """Upload files of the folder to the URL, if the results are at a URL.

        A file that the folder does not contain is removed from the store instead.
        """
        upload([self.path / name for name in names], self.path, self._url)


def _list_names(folder: Path, pattern: str) -> set[str]:
    """Return the paths in a folder that match a glob pattern, relative to this folder."""
    return {path.relative_to(folder).as_posix() for path in folder.glob(pattern)}

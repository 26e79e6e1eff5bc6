"""Predicted cases of a folder by file names; predictions.csv with rows of earlier runs."""

import logging
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from time import perf_counter
from typing import Any

from lesionseg.core import CaseFiles
from lesionseg.core.finding import Finding, collect_errors, require_no_errors
from lesionseg.errors import DatasetError, ReadError
from lesionseg.io.case_ids import check_case_id
from lesionseg.io.files import explain_missing, is_broken_link, is_file_or_broken_link
from lesionseg.io.layouts.checks import find_unread_files
from lesionseg.io.remote import upload
from lesionseg.io.results.case import PredictionFiles
from lesionseg.io.results.folder import PredictionFolder
from lesionseg.io.results.names import (
    BIDS_MASKS,
    CANDIDATES,
    KINDS,
    OTHER_BOXES,
    case_and_kind,
    without_bids_suffix,
)
from lesionseg.io.results.row import CaseRow
from lesionseg.io.text import read_csv, write_csv
from lesionseg.io.volumes import strip_suffix

_log = logging.getLogger(__name__)

TABLE = "predictions.csv"
_WRITE_SHARE = 0.05  # largest share of the time that is spent on writing the table
# digests of files that an earlier run has read, by path and state of the scan
Digests = Mapping[tuple[str, str], str]
# the names of files that are not masks, for messages
_NAME_OF_KIND = {"candidates": f"<case>{CANDIDATES}", "probabilities": "<case>.npz"}
_OF_NNUNET = (".npz", ".pkl", ".pt")  # further files that nnU-Net writes next to its predictions


def find_predictions(folder: Path) -> dict[str, PredictionFiles]:
    """Return the files of the predicted cases of a folder by case id, see `list_predictions`.

    The function raises one error that lists the cases that cannot be used, instead of returning
    findings.

    Raises:
        DatasetError: If the folder is missing or contains no prediction, or a case cannot be used.
    """
    found, findings = list_predictions(folder)
    require_no_errors(findings, folder)
    return found


def list_predictions(
    folder: Path, references: Sequence[CaseFiles] = ()
) -> tuple[dict[str, PredictionFiles], list[Finding]]:
    """Find the predicted cases of a folder, written by lesionseg or by another program.

    These files are found:

    - the files of `write_prediction`, among them candidate files without masks
    - masks of other programs (`<case>_mask.*`, `<case>_label-lesion_mask.*` or `<case>.*`)
    - nnU-Net's probabilities `<case>.npz`
    - masks `sub-*/**/*_label-lesion*_mask.*` of BIDS

    Args:
        folder: The folder.
        references: The cases with a reference. Predictions get the ids of these cases, see
            `_with_ids_of_references`.

    Returns:
        The files by case id, sorted, and the findings. An error describes a case that is left out,
        because it has two files of a kind, such as masks, its file is a link to nothing, or its id
        cannot be a file name (`check_case_id`). A warning lists the files that are not read.

    Raises:
        DatasetError: If the folder is missing or contains no prediction.
        ReadError: If there are references, and a table of `predict` in the folder cannot be read.
    """
    by_case, findings = _files_by_case(folder, (*KINDS, "candidates", "probabilities"))
    found = {case: PredictionFiles(case, **files) for case, files in by_case.items()}
    findings += find_unread_files(folder, folders=False, usual=_OF_NNUNET)
    return _with_ids_of_references(found, references, folder), findings


def _with_ids_of_references(
    predictions: Mapping[str, PredictionFiles], cases: Sequence[CaseFiles], folder: Path
) -> dict[str, PredictionFiles]:
    """Return predictions under the ids of their references, so that `evaluate` finds the pairs.

    Two programs may give the same scan different ids. Predictions without a rule keep their ids.

    Rule 1, channel numbers: `predict` gives the radiograph `xray_0000.png` the id `xray`, because
    `_0000` is a channel number. The mask `xray_0000.png` in a folder of masks has the id
    `xray_0000`. A prediction `xray` gets the id `xray_0000` if

    - there is a reference `xray_0000`, but no reference `xray`,
    - there is no prediction `xray_0000`, and
    - the file name of the scan ended in `_0000`, if a table of `predict` lists it.

    Rule 2, sessions: with `names=bids`, the prediction `sub-01_FLAIR` gets the id `sub-01`, by
    which a BIDS dataset names the session, if

    - there is a reference `sub-01`, but no reference `sub-01_FLAIR`, and
    - it is the only prediction of this session.

    Args:
        predictions: The predictions by case id.
        cases: The cases with a reference. Without any, all ids stay.
        folder: The folder of the predictions, with tables of `predict`.

    Raises:
        ReadError: If a table of `predict` cannot be read.
    """
    reference_ids = {files.case for files in cases}
    if not reference_ids:
        return {**predictions}
    n_of_session = Counter(map(without_bids_suffix, predictions))
    rows = [row for table in folder.glob("predictions*.csv") for row in read_csv(table)]
    # the file name of each scan without suffix, by case id
    stem_of_scan = {row.get("case", ""): strip_suffix(Path(row.get("path", ""))) for row in rows}
    renamed: dict[str, PredictionFiles] = {}
    for case, files in predictions.items():
        numbered = f"{case}_0000"
        session = without_bids_suffix(case)
        is_only_numbered_a_reference = numbered in reference_ids and case not in reference_ids
        # without a row in a table, the name of the scan is assumed to end in _0000
        had_channel_number = stem_of_scan.get(case, numbered).endswith("_0000")
        if is_only_numbered_a_reference and numbered not in predictions and had_channel_number:
            case = numbered
        elif session in reference_ids and case not in reference_ids and n_of_session[session] == 1:
            case = session
        renamed[case] = files
    return renamed


def find_masks(folder: Path) -> dict[str, Path]:
    """Return the reference mask of each case id in a folder, see `list_masks`.

    The function raises one error that lists the masks that cannot be used, instead of returning
    findings.

    Raises:
        DatasetError: If the folder is missing or contains no mask, or a mask cannot be used.
    """
    masks, findings = list_masks(folder)
    require_no_errors(findings, folder)
    return masks


def list_masks(folder: Path) -> tuple[dict[str, Path], list[Finding]]:
    """Return the reference masks of a folder by case id, and an error for each case left out.

    A mask and its case id are recognised by the same file names as in `list_predictions`.

    Raises:
        DatasetError: If the folder is missing or contains no mask.
    """
    by_case, findings = _files_by_case(folder, ("mask",))
    return {case: files["mask"] for case, files in by_case.items()}, findings


def _files_by_case(
    folder: Path, kinds: Collection[str]
) -> tuple[dict[str, dict[str, Path]], list[Finding]]:
    """Return the files of a folder by case and kind, and an error for each case that is left out.

    Hidden files and files of other kinds are skipped. A case is left out if one of its files cannot
    be used. Only the first error of a case is returned.

    Args:
        folder: The folder.
        kinds: The kinds to find, see `case_and_kind`.

    Raises:
        DatasetError: If the folder is missing or contains no file of these kinds.
    """
    if not folder.is_dir():
        raise DatasetError(f"{folder}: the folder does not exist. Check its name.")
    by_case: dict[str, dict[str, Path]] = {}
    findings: list[Finding] = []
    for file in sorted((*folder.iterdir(), *folder.glob(BIDS_MASKS))):
        case, kind = case_and_kind(file)
        if kind not in kinds or not is_file_or_broken_link(file):
            continue
        first = by_case.setdefault(case, {}).setdefault(kind, file)
        with collect_errors(findings, case):
            if is_broken_link(file):
                raise DatasetError(explain_missing(file))
            if first != file:
                raise DatasetError(f"{file} and {first.name} belong to the same case. Keep one.")
            check_case_id(case, file)
    if not by_case:
        names = ", ".join(_NAME_OF_KIND.get(kind, f"<case>_{kind}.*") for kind in kinds)
        raise DatasetError(
            f"{folder}: the folder contains no predictions or masks. {OTHER_BOXES} Name files of "
            f"predictions <case>.* or {names}."
        )
    first_of_case: dict[str, Finding] = {}
    for finding in findings:
        first_of_case.setdefault(finding.case, finding)
    usable = {case: by_case[case] for case in sorted(by_case) if case not in first_of_case}
    return usable, [*first_of_case.values()]


class PredictionIndex:
    """The table `predictions.csv` in an output folder, with the scans of this and earlier runs.

    The rows of earlier runs come from the case files. The table of a shard has only the rows of its
    run. Earlier tables are read because no case file contains durations, or the states of files, by
    which unchanged files are recognised (`digests`). Without digests, the files are read again.

    The table is always replaced as a whole, in the first `put` and in `close`. Further calls of
    `put` write it only if less than a twentieth of the time is spent on writing.

    A table that a killed run has left under a temporary name is removed.

    Args:
        path: The table.
        results: The output folder.
        url: The output in the settings. The table is uploaded to it if it is a URL.

    Attributes:
        digests: The digests of files that an earlier run has read.
    """

    def __init__(self, path: Path, results: PredictionFolder, url: str = "") -> None:
        self.path = path
        self.results = results
        self._url = url
        self._is_complete_table = path.name == TABLE
        self._rows_of_run: list[CaseRow] = []  # the rows of this run
        self._next_write = 0.0  # a time of `perf_counter`: the first `put` writes the table
        # a run that was killed may have left an incomplete table under a temporary name
        results.remove_incomplete(path.name)
        self._earlier: dict[tuple[str, ...], dict[str, str]] = {}  # cells, by `_result_key`
        tables = path.parent.glob("predictions*.csv")
        # the newest table last, because its cells replace those of earlier ones
        for table in sorted(tables, key=lambda file: file.stat().st_mtime_ns):
            with suppress(ReadError):  # `write` replaces a damaged table
                self._earlier |= {_result_key(cells): cells for cells in read_csv(table)}
        self.digests: Digests = {
            (cells.get("path", ""), cells.get("state", "")): cells.get("digest", "")
            for cells in self._earlier.values()
        }

    def put(self, row: CaseRow) -> None:
        """Add the row of a scan to this run, and write the table if enough time has passed.

        A failure to write is only a warning, because `close` tries again.
        """
        self._rows_of_run.append(row)
        if perf_counter() < self._next_write:
            return
        try:
            self.write()
        except Exception as error:
            _log.warning("The table is written later: %s", error)

    def has_earlier(self, row: CaseRow) -> bool:
        """Return True if an earlier table has this result with the same status and message.

        Such a row need not be logged again.
        """
        cells = self._earlier.get(_result_key(row.cells()), {})
        return (cells.get("status"), cells.get("message")) == (row.status, row.message)

    def rows(self) -> list[CaseRow]:
        """Return the rows of the table, sorted by case.

        - The table of a shard has only the rows of this run.
        - `predictions.csv` also has the rows of case files that this run has not predicted, and of
          earlier failures that no row of this run replaces.
        """
        rows = [*self._rows_of_run]
        if self._is_complete_table:
            done = {row.case for row in rows if row.is_done}
            row_of_scan = {(row.case, row.path): row for row in rows}
            rows += [row.as_kept() for row in self.results.rows() if row.case not in done]
            for failure in self.results.failures():
                newer = row_of_scan.get((failure.case, failure.path))
                if newer is None or not newer.replaces(failure):
                    rows.append(failure)
        # the results of a case before its failures
        return sorted(rows, key=lambda row: (row.case, not row.is_done, row.path))

    def _row_cells(self, row: CaseRow) -> dict[str, Any]:
        """Return the cells of a row by column, for the table.

        `CaseRow.RUN_COLUMNS`, such as the duration, are not in case files. If they are empty, the
        cells of an earlier table are used.
        """
        cells = row.cells()
        earlier = self._earlier.get(_result_key(cells), {})
        for name in CaseRow.RUN_COLUMNS:
            cells[name] = earlier.get(name) if cells[name] in ("", None) else cells[name]
        return cells

    def write(self) -> None:
        """Write the table with the rows so far, and upload it to the URL of the results.

        Nothing is written if there are no rows, as in a shard without scans.

        Raises:
            OutputError: If the table cannot be written.
        """
        begin = perf_counter()
        rows = [self._row_cells(row) for row in self.rows()]
        if not rows:  # a shard without scans
            return
        columns = CaseRow.columns()
        further = sorted({name for cells in rows for name in cells} - {*columns})
        write_csv(self.path, rows, [*columns, *further])
        upload([self.path], self.path.parent, self._url)
        now = perf_counter()
        # after 1 s of writing, no table is written for 20 s, so that writing takes 1/20 of the time
        self._next_write = now + (now - begin) / _WRITE_SHARE

    close = write  # for `closing`


def _result_key(cells: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the cells that identify a result or failure: case, path, digest and key.

    The cells find the row of the same result in an earlier table.
    """
    return tuple(cells.get(name, "") for name in ("case", "path", "digest", "key"))

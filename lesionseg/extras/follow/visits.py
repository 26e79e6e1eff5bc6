"""Visits of a patient: order by date or number, table of visits, files of each visit."""

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lesionseg.core import CaseFiles
from lesionseg.errors import ConfigError, DatasetError
from lesionseg.io import PredictionFiles, find_predictions, find_scans

_log = logging.getLogger(__name__)

# YYYY-MM-DD (with any text after it, such as a time), YYYYMMDD and YYMMDD
_DATE = re.compile(
    r"\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01]).*"
    r"|(\d\d)?\d\d(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])"
)
# A number such as 2 or 0.5. The lookahead refuses dates of another form: a number with a leading 0
# (05.2024), day or year and month (31.05, 2024.10), and month and year (1.2024). 1.9 and 12.5 are
# numbers.
_NUMBER = re.compile(
    r"(?!0\d+\.|([1-9]|[12]\d|3[01]|(19|20)\d\d)\.(0[1-9]|1[0-2])$|([1-9]|1[0-2])\.(19|20)\d\d$)"
    r"(\d{1,4}|\d+\.\d+)"
)


@dataclass(frozen=True)
class VisitFiles:
    """A patient at one visit.

    Attributes:
        case: The case id of the visit.
        prediction: The files of the prediction.
        image: The scan; None if it was not given.
        group: The id of the patient; empty if the patient has the id of the visit.
        visit: Its date or number, as the table of visits states it; empty without a table.
    """

    case: str
    prediction: PredictionFiles
    image: Path | None = None
    group: str = ""
    visit: str = ""

    @property
    def patient(self) -> str:
        """The id of the patient, which is the case id if no group is stated."""
        return self.group or self.case


FilePair = tuple[VisitFiles, VisitFiles]  # the earlier and the later visit


def visits_of_folders(
    before: Path, after: Path, before_images: str | None, after_images: str | None
) -> list[list[VisitFiles]]:
    """Return both visits of each case that is in both folders of predictions.

    The earlier visit comes first in each list. Cases in one folder only are named in a warning.

    Args:
        before: The folder of predictions of the earlier visits.
        after: The folder of predictions of the later visits.
        before_images: The folder of the scans of the earlier visits, or None.
        after_images: The folder of the scans of the later visits, or None.

    Raises:
        ConfigError: If only one folder of images is given.
        DatasetError: If the folders have no case in common.
    """
    if (before_images is None) != (after_images is None):
        raise ConfigError("Give both before_images= and after_images=, or neither.")
    first = find_predictions(before)
    second = find_predictions(after)
    in_both = sorted(first.keys() & second.keys())
    in_one = sorted(first.keys() ^ second.keys())
    if not in_both:
        raise DatasetError(
            f"{before} (with {', '.join(sorted(first)[:3])}) and {after} (with "
            f"{', '.join(sorted(second)[:3])}) have no case in common. Give the files of a "
            "patient the same name in both."
        )
    if in_one:
        _log.warning("These cases have one visit only: %s", ", ".join(in_one))
    folders = (
        (first, _scans_of_cases(before_images, in_both)),
        (second, _scans_of_cases(after_images, in_both)),
    )
    # the items of `folders` are the predictions and the scans of the earlier and the later visits
    return [
        [VisitFiles(case, predictions[case], scans.get(case)) for predictions, scans in folders]
        for case in in_both
    ]


def _scans_of_cases(folder: str | None, cases: Sequence[str]) -> dict[str, Path]:
    """Return the scans in a folder by case id. Cases without a scan are named in a warning.

    Args:
        folder: The folder of scans. None returns an empty dictionary.
        cases: The case ids that need a scan.
    """
    if folder is None:
        return {}
    # the first channel is enough to register and to show a scan
    scans = {files.case: files.images[0] for files in find_scans(Path(folder), channels=1).cases()}
    without = [case for case in cases if case not in scans]
    if without:
        _log.warning(
            "%s has no scan with the name of these cases (it has %s): %s",
            folder,
            ", ".join(list(scans)[:3]),
            ", ".join(without),
        )
    return scans


def visits_of_table(
    patients: Sequence[Sequence[CaseFiles]], folder: Path, unpredicted: Mapping[str, str]
) -> list[list[VisitFiles]]:
    """Return the visits of each patient of a table that have predictions in `folder`, in order.

    Visits that could not be predicted are left out, because files in `folder` with their names are
    results of an earlier run. Visits that cannot be compared with another one are named in a
    warning.

    Args:
        patients: The visits of each patient of the table, in order (`order_visits`).
        folder: The folder of predictions.
        unpredicted: The reason of each visit that could not be predicted, by case id.

    Raises:
        DatasetError: If no patient has two visits with predictions.
    """
    # a folder without any prediction would be an error of `find_predictions`
    n_visits = sum(map(len, patients))
    predictions = find_predictions(folder) if len(unpredicted) < n_visits else {}
    timelines: list[list[VisitFiles]] = []
    not_comparable: list[str] = []
    for visits in patients:
        timeline = [
            VisitFiles(
                files.case,
                predictions[files.case],
                files.images[0],
                group=files.group,
                visit=files.columns.get("visit", ""),
            )
            for files in visits
            if files.case in predictions and files.case not in unpredicted
        ]
        timelines.append(timeline)
        comparable = {visit.case for visit in timeline} if len(timeline) > 1 else set()
        not_comparable += [files.case for files in visits if files.case not in comparable]
    if all(len(timeline) < 2 for timeline in timelines):
        if unpredicted:
            reasons = "\n  ".join(f"{case}: {why}" for case, why in unpredicted.items())
            raise DatasetError(
                f"No pair can be followed, because visits could not be predicted:\n  {reasons}"
            )
        raise DatasetError(
            f"{folder}: no patient has predictions of two visits. Predict the missing visits, or "
            "add bundle= to predict all of them."
        )
    if not_comparable:
        _log.warning(
            "These visits have no prediction, or their patient has no other visit: %s",
            ", ".join(not_comparable),
        )
    return timelines


def order_visits(scans: Iterable[CaseFiles], table: Path) -> list[list[CaseFiles]]:
    """Order the visits of each patient by time.

    Args:
        scans: The scans. Their `group` is the patient, and their column `visit` contains a number
            or a date such as 2024-05-31, 20240531 or 240531.
        table: The file of the scans, for messages.

    Returns:
        The visits of each patient, in the order in which patients first appear. A patient may have
        a single visit.

    Raises:
        DatasetError: If no patient has two visits, or if the times of a patient's visits are
            missing, equal or of another form, or mix numbers and dates.
    """
    patients: dict[str, list[CaseFiles]] = {}
    for files in scans:
        patients.setdefault(files.group, []).append(files)
    if all(len(visits) < 2 for visits in patients.values()):
        raise DatasetError(
            f"{table}: no patient has two visits. Give both scans of a patient the same name in "
            "the column group."
        )
    for group, visits in patients.items():
        texts = {files.case: files.columns.get("visit", "").strip() for files in visits}
        time_of = {case: _parse_time(text) for case, text in texts.items()}
        if len(visits) > 1 and not _have_an_order([time_of[files.case] for files in visits]):
            shown = ", ".join(text or "missing" for text in texts.values())
            raise DatasetError(
                f"{table}: the visits of {group} cannot be ordered ({shown}). Give each its own "
                "number such as 6 or 0.5, or a date such as 2024-05-31 (not 31.05 or 31052024), in "
                "the column visit."
            )
        visits.sort(key=lambda files: time_of[files.case])
    return list(patients.values())


def _have_an_order(times: Sequence[Any]) -> bool:
    """Return True if the visits of a patient can be sorted by these times (`_parse_time`).

    No time is None, all are dates or all are numbers, and no two are equal.
    """
    kinds = {type(time) for time in times}
    return None not in times and len(kinds) == 1 and len(set(times)) == len(times)


def _parse_time(text: str) -> Any:
    """Return the time of a visit as a value to sort by, from a cell of the column `visit`.

    - A date such as "2024-05-31", "20240531" and "240531" becomes the text "20240531". Text after a
      date with hyphens, such as a time, is kept. Two-digit years from 69 on are in the 20th
      century.
    - A number such as "2" becomes a float.
    - Anything else becomes None, also a number that looks like another form of a date, such as
      "31052024" or "05.2024".
    """
    text = re.sub(r"\.0+$", "", text)  # a table program may write 20240531.0
    if not _DATE.fullmatch(text):
        return float(text) if _NUMBER.fullmatch(text) else None
    # only YYMMDD, with 6 characters, lacks the century; text comparison: "690101" > "69"
    century = "" if len(text) > 6 else "19" if text > "69" else "20"
    return century + text.replace("-", "")

"""Patients' visits by a table: which follows which, and where the prediction of each lies."""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from lesionseg.core import CaseFiles
from lesionseg.errors import ConfigError, DatasetError
from lesionseg.io.layouts.manifest import read_scan_list
from lesionseg.io.predictions import PredictionFiles, find_predictions
from lesionseg.pipeline.follow.visit_pairs import PairFiles, PairList

_log = logging.getLogger(__name__)

_DATE = re.compile(r"\d{4}-\d\d-\d\d.*|\d{8}")
_NUMBER = re.compile(r"\d+(\.\d+)?")


@dataclass(frozen=True)
class Timeline:
    """A patient's visits, the earliest first."""

    patient: str
    visits: tuple[CaseFiles, ...]


def read_timelines(table: Path) -> list[Timeline]:
    """The visits of each patient by a table `case, image, group, visit`, in order of `visit`.

    `group` is the patient, `visit` a number or a date (2024-05-31 or 20240531). Raises
    `DatasetError` for a table without these columns, a visit without a place in time, and two
    visits of a patient at the same time; also as `read_scan_list`.
    """
    patients: dict[str, list[CaseFiles]] = {}
    for files in read_scan_list(table):
        patients.setdefault(files.group, []).append(files)
    if not any(len(visits) > 1 for visits in patients.values()):
        raise DatasetError(
            "No patient has two visits.",
            where=table,
            seen=", ".join(list(patients)[:3]),
            expected="the same `group` on several lines",
            remedy="add a column group that names the patient, and a column visit.",
        )
    return [Timeline(name, _in_order(visits, table)) for name, visits in patients.items()]


def _in_order(visits: Sequence[CaseFiles], table: Path) -> tuple[CaseFiles, ...]:
    visit_names = [files.columns.get("visit", "").strip() for files in visits]
    for pattern in (_DATE, _NUMBER):
        if all(map(pattern.fullmatch, visit_names)) and len(set(visit_names)) == len(visit_names):
            dates = [one.replace("-", "") for one in visit_names]
            times = np.array(dates if pattern is _DATE else [float(one) for one in visit_names])
            return tuple(visits[i] for i in np.argsort(times))
    if len(visits) == 1:
        return tuple(visits)
    raise DatasetError(
        "The visits of a patient have no order.",
        where=table,
        seen=f"group {visits[0].group}: visits {', '.join(visit_names)}",
        expected="different numbers, or dates as 2024-05-31",
        remedy="give each visit its own number or date in the column visit.",
    )


def pairs_of(timelines: Sequence[Timeline], folder: Path) -> PairList:
    """Each visit with the one before it, as far as `folder` has predictions of both.

    A pair has the name of its later visit. Raises `DatasetError` when there is no pair.
    """
    predictions = find_predictions(folder)
    pairs, alone, lost = [], list[str](), list[str]()
    for timeline in timelines:
        there = [files for files in timeline.visits if files.case in predictions]
        lost += [files.case for files in timeline.visits if files.case not in predictions]
        pairs += [_pair(one, other, predictions) for one, other in pairwise(there)]
        alone += [there[0].case] if len(there) == 1 else []
    for names, what in ((lost, "No prediction"), (alone, "No other visit")):
        if names:
            _log.warning("%s; not followed: %s", what, ", ".join(names))
    if not pairs:
        raise DatasetError(
            "No patient has predictions of two visits.",
            where=folder,
            seen=", ".join(list(predictions)[:3]),
            expected=", ".join(f.case for t in timelines for f in t.visits[:2])[:200],
        )
    return PairList(tuple(pairs), before_only=tuple(alone))


def _pair(
    earlier: CaseFiles, later: CaseFiles, predictions: Mapping[str, PredictionFiles]
) -> PairFiles:
    return PairFiles(
        later.case,
        predictions[earlier.case],
        predictions[later.case],
        earlier.images[0],
        later.images[0],
        earlier=earlier.case,
        group=later.group,
    )


def check_source(
    before: object, after: object, visits: object, bundle: object, predictions: object
) -> None:
    """Raise `ConfigError` unless there are two folders, or a table and what it was predicted by."""
    folders = before is not None and after is not None
    table = visits is not None and (bundle is None) != (predictions is None)
    stray = (bundle, predictions) if visits is None else (before, after)
    if folders != table and all(one is None for one in stray):
        return
    given = {"before": before, "after": after, "visits": visits, "bundle": bundle}
    given["predictions"] = predictions
    raise ConfigError(
        "It is not clear what is to be followed.",
        where="follow",
        seen=", ".join(f"{k}={v}" for k, v in given.items() if v is not None) or "nothing",
        expected="before= and after=, or visits= with bundle= or predictions=",
    )

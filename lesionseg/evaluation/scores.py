"""scores.json: every number of an evaluation, from the results of its cases.

What is undefined is null. Numbers with an interval are mappings and carry their own `reason`; the
reasons of plain ones stand in `reasons`, their intervals in `ci95`, under the number's key.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from lesionseg.core import OperatingPoint, joint_unit
from lesionseg.evaluation import edge_cases
from lesionseg.evaluation.case.region_parts import REGION_LABEL
from lesionseg.evaluation.presets import Preset
from lesionseg.evaluation.results import CaseResult
from lesionseg.evaluation.rows import region_names
from lesionseg.evaluation.statistics.estimates import as_list
from lesionseg.evaluation.statistics.further_scores import detail_numbers
from lesionseg.evaluation.statistics.pooled import PooledResults
from lesionseg.evaluation.statistics.score_parts import PointScores
from lesionseg.evaluation.statistics.subgroups import (
    Columns,
    LesionColumns,
    subgroup_numbers,
    zone_numbers,
)

_log = logging.getLogger(__name__)

SCHEMA_VERSION = 2
READ_VERSIONS = (1, 2)  # version 1 differs in the default match rule alone
_EXPECTED = (
    "expected_recall",
    "expected_false_positives_per_case",
    "expected_false_positives_per_case_ci95",
    "attainable_recall",
    "confidence",
    "match_rule",
)
DEVELOPMENT_ROLES = ("train", "validation")


def summarise(
    results: Sequence[CaseResult],
    preset: Preset,
    *,
    evaluated_on: str,
    operating_point: OperatingPoint | None = None,
    labels: Mapping[int, str] | None = None,
    split_is_group_safe: bool | None = None,
    replicates: int = 1000,
    seed: int = 0,
    provenance: Mapping[str, Any] | None = None,
    columns: Columns | None = None,
    subgroups: Sequence[str] | None = None,
    lesion_columns: LesionColumns | None = None,
) -> dict[str, Any]:
    """The content of scores.json, as DESIGN's contract and docs/evaluation.md describe it.

    No result at all gives nulls throughout.

    Args:
        results: one per case.
        preset: the match rule that they were judged by.
        evaluated_on: the role of the cases.
        operating_point: None for the one that all predictions state; bare masks have none.
        labels: names of label values; others are named by their value.
        split_is_group_safe: whether no patient is on both sides of the split; None: not known.
        replicates: of the bootstrap.
        seed: of the bootstrap.
        provenance: versions and hashes, copied.
        columns: what a table says of each case, by case and column; `slice_spacing_mm` is added.
        subgroups: the columns to divide by; None for all that divide.
        lesion_columns: what a table says of each lesion, by case and lesion id.
    """
    summary = PooledResults.of(results, preset, replicates, seed)
    plain = {**summary.detection_numbers(), **summary.curve_numbers()}
    reasons = {key: number.reason for key, number in plain.items() if number.reason}
    froc = summary.froc()
    if froc is None:
        reasons["froc"] = (edge_cases.NO_LESION if summary.scored else edge_cases.UNSCORED).reason
    details = detail_numbers(summary)
    if not details["recall_by_size_and_contrast"]:
        reasons["recall_by_size_and_contrast"] = edge_cases.NO_IMAGE.reason
    spaced = _with_spacing(results, columns or {})
    parts = subgroup_numbers(summary, spaced, subgroups, lesion_columns) + zone_numbers(summary)
    if not parts:
        reasons["subgroups"] = edge_cases.NO_SUBGROUP.reason
    point = _operating_point(results, operating_point, evaluated_on)
    if point["score"] is None:
        reasons["operating_point.score"] = edge_cases.NO_OPERATING_POINT.reason
    return {
        "schema_version": SCHEMA_VERSION,
        "evaluated_on": evaluated_on,
        "preset": preset.name,
        "match_rule": preset.match_rule,
        **summary.counts(),
        "dice": summary.overlap("dice"),
        "surface_dice": {
            **summary.overlap("surface_dice"),
            "tolerance_mm": preset.surface_tolerance_mm,
        },
        "hd95_mm": summary.distance(),
        "lesion_recall": summary.recall().to_json(),
        **{key: number.value for key, number in plain.items()},
        "recall_by_size": summary.recall_by_size(),
        **details,
        "subgroups": parts,
        "size_unit": joint_unit(r.unit for r in results),
        "froc": froc,
        "operating_point": point,
        "other_criteria": summary.other_criteria(),
        "false_positives": summary.false_positives(),
        "splits": sum(r.splits for r in results),
        "merges": sum(r.merges for r in results),
        "per_label": _per_label(summary, labels or {}),
        "per_region": {
            name: _one_region(
                PooledResults.of(
                    [r.regions[name] for r in results if name in r.regions],
                    preset,
                    replicates,
                    seed,
                )
            )
            for name in region_names(results)
        },
        "missing_predictions": [r.case for r in results if r.status == "missing"],
        "split_is_group_safe": split_is_group_safe,
        "ci95": {key: as_list(number.ci95) for key, number in plain.items()},
        "reasons": reasons,
        "provenance": {
            **(provenance or {}),
            "preset": json.loads(json.dumps(asdict(preset))),  # lists, as when read back
            "bootstrap": {
                "replicates": replicates,
                "seed": seed,
                "undefined": {k: n.n_undefined for k, n in plain.items() if n.n_undefined},
            },
        },
    }


def _per_label(summary: PooledResults, labels: Mapping[int, str]) -> dict[str, Any]:
    seen = {x.label for r in summary.results for x in r.lesions}
    seen |= {c.label for r in summary.results for c in r.candidates}
    return {
        labels.get(label, str(label)): _one_label(summary.of_label(label), label)
        for label in sorted(seen | set(labels))
    }


def _one_label(part: PooledResults, label: int) -> dict[str, Any]:
    counts = part.counts()
    plain = {
        "lesion_precision": part.precision(),
        "false_positives_per_case": part.false_positives_per_case(),
        "average_precision": part.average_precision(),
    }
    names = ("n_lesions", "n_true_positive", "n_false_positive", "n_missed", "n_ignored")
    return {
        "label": label,
        "n_cases": len(part.results),
        **{name: counts[name] for name in names},
        "dice": part.label_dice(label),
        "lesion_recall": part.recall().to_json(),
        **{key: number.value for key, number in plain.items()},
        "ci95": {key: as_list(number.ci95) for key, number in plain.items()},
        "reasons": {key: number.reason for key, number in plain.items() if number.reason},
    }


def _one_region(part: PooledResults) -> dict[str, Any]:
    """A region's components as if they were all the lesions there are."""
    found = _one_label(part, REGION_LABEL)
    del found["label"]
    return {
        **found,
        "dice": part.overlap("dice"),
        "surface_dice": {
            **part.overlap("surface_dice"),
            "tolerance_mm": part.preset.surface_tolerance_mm,
        },
        "hd95_mm": part.distance(),
    }


def _with_spacing(results: Sequence[CaseResult], columns: Columns) -> Columns:
    """The columns, and how far apart slices are where no column of that name says it."""
    measured = {r.case: r.slice_spacing_mm for r in results}
    return {
        **columns,
        **{
            case: {"slice_spacing_mm": f"{mm:g}", **columns.get(case, {})}
            for case, mm in measured.items()
            if mm is not None
        },
    }


def _operating_point(
    results: Sequence[CaseResult], given: OperatingPoint | None, evaluated_on: str
) -> dict[str, Any]:
    """The point, and whether choosing it on these cases, or developing on them, flatters.

    With what its choice led to expect of unseen cases, where that is known.
    """
    predicted = [r for r in results if r.status == "ok"]
    unscored = [r.case for r in predicted if not r.scored]
    if given and unscored:
        _log.warning("No scores, so all their candidates stay accepted: %s", ", ".join(unscored))
    applies = given is not None and (not unscored or len(unscored) < len(predicted))
    stated = {given} if applies else {r.operating_point for r in predicted}
    if len(stated) > 1:
        _log.warning("The predictions state different operating points; none is reported.")
    point = stated.pop() if len(stated) == 1 else None
    chosen_on = point.chosen_on if point else None
    chosen_here = chosen_on is not None and evaluated_on in chosen_on.split("+")
    optimistic = evaluated_on in DEVELOPMENT_ROLES or chosen_here
    name, score = (point.name, point.score) if point else (None, None)
    return {
        **PointScores(name, score, chosen_on, optimistic).to_json(),
        **{name: v for name in _EXPECTED if (v := getattr(point, name, None)) is not None},
    }

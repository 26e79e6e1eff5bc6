"""A small evaluation on disk, and bright blobs on noise to look at."""

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lesionseg.core import Geometry
from lesionseg.report.inputs.case_images import Scene

# Words that claim more than a standalone comparison can show.
FORBIDDEN = ("safe", "clinically validated", "rules out", "outperforms")
SIZES = ((0.0, 3.0), (3.0, 5.0), (5.0, 10.0), (10.0, 20.0), (20.0, None))
SHAPE, SPACING = (40, 120, 100), (3.0, 1.0, 1.0)


@dataclass
class Blob:
    """A lesion or mark in voxels, and what evaluation said of it."""

    case: str
    id: int
    centre: tuple[int, int, int]
    diameter_mm: float
    detected: bool = True
    score: float = 0.9

    def box(self) -> tuple[list[int], list[int]]:
        """Start and stop."""
        half = [max(1, round(self.diameter_mm / 2 / s)) for s in SPACING]
        return (
            [c - h for c, h in zip(self.centre, half, strict=True)],
            [c + h for c, h in zip(self.centre, half, strict=True)],
        )

    def mask(self) -> np.ndarray[Any, Any]:
        """Ball on the grid."""
        grid = np.indices(SHAPE)
        parts = zip(grid, self.centre, SPACING, strict=True)
        distance = sum(((g - c) * s) ** 2 for g, c, s in parts)
        return np.asarray(distance <= (self.diameter_mm / 2) ** 2)


@dataclass
class Evaluation:
    """What one evaluation found; `write` puts the tables down as `evaluate` does."""

    lesions: list[Blob] = field(default_factory=list)
    false_positives: list[Blob] = field(default_factory=list)
    cases: tuple[str, ...] = ("a", "b", "c")
    changes: dict[str, Any] = field(default_factory=dict)
    failed: tuple[str, ...] = ()

    def scores(self) -> dict[str, Any]:
        """scores.json."""
        n, found = len(self.lesions), sum(blob.detected for blob in self.lesions)
        free = [c for c in self.cases if not any(b.case == c for b in self.lesions)]
        share = found / n if n else None
        return {
            "schema_version": 2,
            "evaluated_on": "test",
            "n_cases": len(self.cases),
            "n_groups": max(1, len(self.cases) - 1),
            "n_lesion_free_cases": len(free),
            "n_lesions": n,
            "n_candidates": found + len(self.false_positives),
            "n_true_positive": found,
            "n_false_positive": len(self.false_positives),
            "n_missed": n - found,
            "n_ignored": 1,
            "dice": {"mean": 0.55, "median": 0.6, "ci95": [0.4, 0.7]},
            "surface_dice": {"mean": 0.7, "median": 0.7, "ci95": [0.6, 0.8], "tolerance_mm": 1.0},
            "lesion_recall": {"value": share, "ci95": [0.3, 0.8], "reason": "no lesion"},
            "lesion_recall_mean_per_group": {"value": share, "ci95": None, "reason": "few"},
            "lesion_precision": {"value": 0.5, "ci95": [0.2, 0.8]},
            "lesion_f1": {"value": 0.5, "ci95": [0.3, 0.7]},
            "false_positives_per_case": len(self.false_positives) / len(self.cases),
            "false_positives_per_lesion_free_case": 0.5 if free else None,
            "recall_by_size": [self._size(*edges) for edges in SIZES],
            "size_unit": "mm",
            "froc": {
                "fp_per_case": [0.0, 0.3, 0.7, 1.0, 2.5, 6.0],
                "recall": [0.1, 0.2, 0.4, 0.5, 0.6, 0.7],
                "ci95": [[0.0, 0.3], [0.1, 0.4], [0.2, 0.6], [0.3, 0.7], [0.4, 0.8], [0.5, 0.9]],
            },
            "cpm": None,
            "cpm_reason": "under 8 scans",
            "average_precision": 0.4,
            "case_auroc": None,
            "operating_point": {
                "name": "fp_per_case:0.5",
                "score": 0.5,
                "chosen_on": "validation",
                "optimistic": False,
                "expected_false_positives_per_case": 0.9,
            },
            "preset": "lesionseg",
            "match_rule": "lesionseg 2",
            "other_criteria": {
                rule: {
                    "lesion_recall": {"value": found / n if n and rule != "iou50" else 0.0},
                    "false_positives_per_case": len(self.false_positives) / len(self.cases),
                }
                for rule in ("iou10", "any_overlap", "iou50", "centre_distance")
            },
            "per_label": {},
            "split_is_group_safe": True,
            "provenance": {"simulated": False, "version": "0.1", "model": {"name": "unet"}},
        } | self.changes

    def write(self, folder: Path) -> Path:
        """All four tables."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "scores.json").write_text(json.dumps(self.scores()), encoding="utf-8")
        _write(folder / "cases.csv", [self._case(c) for c in self.cases], CASE_COLUMNS)
        _write(folder / "lesions.csv", [_lesion(b) for b in self.lesions], LESION_COLUMNS)
        marks = [_mark(b, "true_positive") for b in self.lesions if b.detected]
        marks += [_mark(b, "false_positive") for b in self.false_positives]
        _write(folder / "candidates.csv", marks, CANDIDATE_COLUMNS)
        return folder

    def scene(self, case: str, accepted: frozenset[int]) -> Scene:
        """Blobs on smooth noise."""
        rng = np.random.default_rng(len(case))
        grid = np.indices(SHAPE)
        parts = zip(grid, SHAPE, strict=True)
        head = np.asarray(sum(((g - n / 2) / (n / 2.2)) ** 2 for g, n in parts) < 1)
        image = (300 * head + rng.normal(0, 25, SHAPE) * head).astype(np.float32)
        reference, marks = np.zeros(SHAPE, dtype=bool), np.zeros(SHAPE, dtype=bool)
        for blob in self.lesions:
            if blob.case == case:
                reference |= blob.mask()
                marks |= blob.mask() & blob.detected
        for blob in self.false_positives:
            if blob.case == case and blob.id in accepted:
                marks |= blob.mask()
        image[reference] += 300
        return Scene(image, Geometry.from_spacing(SHAPE, SPACING), reference, np.roll(marks, 1, 2))

    def _size(self, low: float, high: float | None) -> dict[str, Any]:
        inside = [
            b
            for b in self.lesions
            if low <= b.diameter_mm and (high is None or b.diameter_mm < high)
        ]
        n, found = len(inside), sum(b.detected for b in inside)
        return {
            "from_mm": low,
            "to_mm": high,
            "n": n,
            "detected": found,
            "recall": found / n if n else None,
            "ci95": [0.5 * found / n, min(1.0, 0.2 + found / n)] if n > 2 else None,
            "reason": None if n > 2 else "fewer than 3 lesions",
        }

    def _case(self, case: str) -> dict[str, Any]:
        lesions = [b for b in self.lesions if b.case == case]
        found = sum(b.detected for b in lesions)
        return {
            "case": case,
            "group": f"group {case}",
            "role": "test",
            "status": "failed" if case in self.failed else "ok",
            "n_lesions": len(lesions),
            "n_detected": found,
            "n_missed": len(lesions) - found,
            "n_false_positive": sum(b.case == case for b in self.false_positives),
            "n_ignored": 0,
            "dice": f"{found / len(lesions):.3f}" if lesions else None,
            "reference_ml": 0.5 * len(lesions) if lesions else None,
        }


def _lesion(blob: Blob) -> dict[str, Any]:
    start, stop = blob.box()
    return {
        "case": blob.case,
        "group": f"group {blob.case}",
        "lesion": blob.id,
        "label": "lesion",
        "volume_ml": 0.1,
        "diameter_mm": blob.diameter_mm,
        "near_resolution": blob.diameter_mm < 4,
        "start_vox": " ".join(map(str, start)),
        "stop_vox": " ".join(map(str, stop)),
        "detected": blob.detected,
        "detected_at": blob.score if blob.detected else None,
        "iou": 0.5 if blob.detected else None,
        "any_overlap": blob.detected,
        "iou50": False,
        "centre_distance": blob.detected,
        "iou10": blob.detected,
        "why_missed": None if blob.detected else "no_response",
    }


def _mark(blob: Blob, outcome: str) -> dict[str, Any]:
    start, stop = blob.box()
    return {
        "case": blob.case,
        "group": f"group {blob.case}",
        "candidate": blob.id,
        "label": "lesion",
        "score": blob.score,
        "diameter_mm": blob.diameter_mm,
        "start_vox": " ".join(map(str, start)),
        "stop_vox": " ".join(map(str, stop)),
        "accepted": True,
        "outcome": outcome,
        "touches_lesion": False,
        "outcome_any": outcome,
    }


def _write(path: Path, rows: list[dict[str, Any]], columns: str) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns.split())
        writer.writeheader()
        writer.writerows(rows)


CASE_COLUMNS = (
    "case group role status n_lesions n_candidates n_detected n_missed n_false_positive n_ignored "
    "dice surface_dice hd95_mm reference_ml predicted_ml case_score seconds"
)
LESION_COLUMNS = (
    "case group lesion label volume_ml diameter_mm voxels slices long_axis_mm short_axis_mm "
    "near_resolution start_vox stop_vox centre_mm detected detected_at candidate iou any_overlap "
    "iou50 centre_distance iou10 why_missed"
)
CANDIDATE_COLUMNS = (
    "case group candidate label score probability diameter_mm volume_ml start_vox stop_vox "
    "centre_mm accepted outcome lesion iou touches_lesion outcome_any"
)


def three_scans() -> Evaluation:
    """Two scans with lesions of all sizes, found and missed, and a lesion-free one."""
    return Evaluation(
        lesions=[
            Blob("a", 1, (20, 60, 50), 12.0),
            Blob("a", 2, (15, 40, 40), 6.0, detected=False),
            Blob("a", 3, (25, 80, 60), 2.5, detected=False),
            Blob("b", 1, (22, 50, 60), 24.0),
            Blob("b", 2, (12, 70, 45), 3.5),
        ],
        false_positives=[
            Blob("b", 7, (20, 90, 50), 5.0, score=0.7),
            Blob("c", 1, (20, 30, 50), 4.0),
        ],
    )


@pytest.fixture
def evaluation() -> Evaluation:
    """Three scans."""
    return three_scans()


@pytest.fixture
def scores_dir(evaluation: Evaluation, tmp_path: Path) -> Path:
    """The evaluation's tables on disk."""
    return evaluation.write(tmp_path / "scores")


MakeEvaluation = Callable[..., Evaluation]

"""Scores of random cases from files to tables. Values by hand are in tests/evaluation."""

import numpy as np
import pytest

import lesionseg
from lesionseg.core import Geometry, OperatingPoint
from lesionseg.io.results.case import write_prediction
from lesionseg.io.text import read_json
from tests.evaluation.hand_cases import prediction_of
from tests.golden.common import check, read_table, to_number
from tests.golden.small_network import write_nifti

POINT = 0.4
MEASURES = ("dice", "surface_dice", "hd95_mm")


def random_cases(n=40):
    """Yield lesions and candidates of boxes. Patients have one to four cases."""
    rng = np.random.default_rng(7)
    patient = 0
    left = 0
    for i in range(n):
        patient, left = (patient, left - 1) if left else (patient + 1, int(rng.integers(1, 4)))
        shape = np.array([9, 14, 16])
        reference = np.zeros(shape, np.int32)
        drawn = np.zeros(shape, np.int32)
        boxes = []
        for _ in range(0 if i % 5 == 0 else rng.integers(1, 6)):
            corner = rng.integers(0, shape - 2)
            sides = rng.integers(1, 6, 3)
            boxes.append((corner, sides))
        for corner, sides in boxes:
            paint(reference, corner, sides, rng)
            if rng.random() < 0.8:
                moved = np.maximum(corner + rng.integers(-1, 2, 3), 0)
                paint(drawn, moved, np.maximum(sides + rng.integers(-2, 3, 3), 1), rng)
        for _ in range(rng.integers(0, 4)):
            paint(drawn, rng.integers(0, shape - 1), rng.integers(1, 4, 3), rng)
        reference = renumber(reference)
        drawn = renumber(drawn)
        scores = (rng.integers(1, 20, int(drawn.max())) / 20).tolist()
        spacing = rng.choice([0.5, 1.0, 1.5, 3.0], 3).tolist()
        yield f"case{i:02d}", f"p{patient}", reference, drawn, scores, (), POINT, spacing


def paint(array, corner, sides, rng):
    """Paint a ragged box with the next id."""
    box = array[tuple(slice(a, a + b) for a, b in zip(corner, sides, strict=True))]
    box[rng.random(box.shape) > 0.1] = array.max() + 1


def renumber(ids):
    return np.unique(np.append(ids.ravel(), 0), return_inverse=True)[1][:-1].reshape(ids.shape)


def write_cases(folder, cases, point):
    """Write the references with a manifest, and three prediction files of each case."""
    reference = folder / "reference"
    prediction = folder / "prediction"
    for path in (reference, prediction):
        path.mkdir()
    lines = ["case,image,instances,group"]
    operating_point = OperatingPoint(f"score:{point}", point)
    for case, group, lesions, drawn, scores, labels, start, spacing in cases:
        lines.append(f"{case},{case}.nii.gz,{case}.nii.gz,{group}")
        affine = np.diag([*spacing[::-1], 1.0])
        write_nifti(reference / f"{case}.nii.gz", lesions.astype(np.uint8), affine)
        geometry = Geometry.from_spacing(drawn.shape, spacing)
        found = prediction_of(
            drawn, scores, geometry, labels, start, case, operating_point=operating_point
        )
        write_prediction(prediction, found)
    (reference / "manifest.csv").write_text("\n".join(lines) + "\n")
    return reference, prediction


def row_of_part(row):
    """Return True for a row of a label, region or subset."""
    return bool(row["label"] or row["subset"])


def values_of(output):
    """Return the values by our own names. Only this function knows keys and columns."""
    scores = read_json(output / "scores.json")
    keys = (
        *("n_cases", "n_groups", "n_lesion_free_cases", "n_lesions", "n_candidates"),
        *("n_true_positive", "n_false_positive", "n_missed", "lesion_precision", "lesion_f1"),
        *("false_positives_per_case", "false_positives_per_lesion_free_case", "specificity"),
        *("cpm", "average_precision", "case_auroc"),
    )
    value_of = {row["name"]: row["value"] for row in scores["scores"] if not row_of_part(row)}
    pooled = {key: value_of[key] for key in (*keys, "lesion_recall", "panoptic_quality")}
    for measure in MEASURES:
        pooled[measure] = [value_of[measure], value_of[f"{measure}_median"]]
    curves = {}
    for row in scores["curves"]:
        if not row_of_part(row):
            curves.setdefault(row["name"], []).append(row)
    sizes = curves["recall_by_size"]
    ends = [*(row["at"] for row in sizes[1:]), None]
    pooled["recall_by_size"] = [
        [row["at"], end, row["n"], round((row["value"] or 0) * row["n"]), row["value"]]
        for row, end in zip(sizes, ends, strict=True)
    ]
    pooled["froc"] = [[row[key] for row in curves["froc"]] for key in ("at", "value")]
    return {
        "pooled": pooled,
        "cases": {
            row["case"]: [to_number(row[key]) for key in MEASURES]
            for row in read_table(output / "cases.csv")
        },
        "lesions": {  # found at the operating point, score from which it is found, diameter in mm
            f"{row['case']} {row['lesion']}": [
                row["detected"].lower() in ("1", "true"),
                *(to_number(row[key]) for key in ("detected_at", "diameter_mm")),
            ]
            for row in read_table(output / "lesions.csv")
        },
        "candidates": {  # accepted, and its outcome if all candidates are accepted
            f"{row['case']} {row['candidate']}": [
                row["accepted"].lower() in ("1", "true"),
                row["outcome_any"],
            ]
            for row in read_table(output / "candidates.csv")
        },
    }


@pytest.mark.parametrize("preset", ["lesionseg", "instances"])
def test_scores_of_random_cases_equal_the_golden_values(preset, tmp_path):
    reference, prediction = write_cases(tmp_path, random_cases(), POINT)
    lesionseg.evaluate(reference, prediction, tmp_path / "scores", preset=preset)
    check(f"scores_random_{preset}", values_of(tmp_path / "scores"))

"""The numbers of scores.json against a scorer written apart: masks of voxels and plain loops."""

import numpy as np
import pytest

from lesionseg.core import Geometry, OperatingPoint, Reference
from lesionseg.evaluation import PRESETS, evaluate_case, summarise
from tests.evaluation.hand_cases import prediction_of
from tests.evaluation.test_matching import masks_of, naive, random_case

POINT, SPACING, VOXEL_MM3 = 0.4, (2.5, 1.5, 0.8), 3.0
EDGES, RATES = [0, 3, 5, 10, 20, np.inf], (0.125, 0.25, 0.5, 1, 2, 4, 8)
APART = dict.fromkeys(("abs", "rel"), 1e-9)


def naive_scores(cases):
    """Numbers of `(lesion masks, candidate masks, scores)` by case, at the operating point."""
    at, false, free_false, dice, volumes, sizes, ill, well = ([] for _ in range(8))
    accepted = true = 0
    for lesions, candidates, scores in cases:
        supported, found_at = naive(lesions, candidates, scores)
        at += found_at
        sizes += [2 * (3 * m.sum() * VOXEL_MM3 / (4 * np.pi)) ** (1 / 3) for m in lesions]
        false += [s for s, good in zip(scores, supported, strict=True) if not good]
        shown = [i for i, s in enumerate(scores) if s >= POINT]
        accepted, true = accepted + len(shown), true + sum(supported[i] for i in shown)
        drawn = sum(candidates[i].sum() for i in shown)
        both = sum((candidates[i] & m).sum() for i in shown for m in lesions)
        (ill if lesions else well).append(max(scores, default=0.0))
        if lesions:
            dice.append(2 * both / (drawn + sum(m.sum() for m in lesions)))
        else:
            free_false.append(sum(not supported[i] for i in shown))
        volumes.append((drawn - sum(m.sum() for m in lesions)) * VOXEL_MM3 / 1000)
    n, hits, wrong = len(cases), [a >= POINT for a in at], sum(s >= POINT for s in false)

    def counted(score):
        return sum(a >= score for a in at), sum(s >= score for s in false)

    area, before, curve = 0.0, 0, dict.fromkeys(RATES, 0.0)
    for score in sorted({*at, *false} - {-np.inf}, reverse=True):
        found, mistaken = counted(score)
        area += (found - before) / len(at) * found / (found + mistaken)
        before = found
        curve |= {r: found / len(at) for r in RATES if mistaken <= r * n}
    bins = [np.searchsorted(EDGES, sizes, side="right") == i for i in range(1, len(EDGES))]
    by_size = [np.mean(np.array(hits)[inside]) for inside in bins if inside.any()]
    return (
        {
            "lesion_recall": np.mean(hits),
            "lesion_precision": true / accepted,
            "lesion_f1": 2 * sum(hits) / (sum(hits) + len(at) + wrong),
            "false_positives_per_case": wrong / n,
            "false_positives_per_lesion_free_case": np.mean(free_false),
            "specificity": np.mean([count == 0 for count in free_false]),
            "average_precision": area,
            "cpm": np.mean(list(curve.values())),
            "case_auroc": np.mean([0.5 if a == b else a > b for a in ill for b in well]),
            "dice": np.mean(dice),
        },
        list(curve.values()),
        by_size,
        np.mean(volumes),
    )


def only(label, items, labels):
    return [x for x, own in zip(items, labels, strict=True) if label in (None, own)]


@pytest.mark.parametrize("block", range(4))
def test_scores_equal_a_naive_scorer(block):
    cases, results, preset = {None: [], 1: [], 2: []}, [], PRESETS["lesionseg"]
    for seed in range(80 * block, 80 * (block + 1), 2):  # those of three axes
        reference, labels, drawn, given, scores = random_case(seed)
        for label, some in cases.items():
            lesions = only(label, masks_of(reference), labels)
            some.append((lesions, only(label, masks_of(drawn), given), only(label, scores, given)))
        geometry = Geometry.from_spacing(reference.shape, SPACING)
        values = np.array([0, *labels])[reference]
        truth = Reference(geometry, values, instances=reference, instance_labels=labels)
        prediction, point = prediction_of(drawn, scores, geometry, given), OperatingPoint("", POINT)
        name = f"c{seed:03d}"
        results.append(evaluate_case(truth, prediction, preset, case=name, operating_point=point))
    found = summarise(results, preset, evaluated_on="test", replicates=0)
    for label, own in cases.items():
        numbers, curve, by_size, bias = naive_scores(own)
        table = found if label is None else found["per_label"][f"{label}"]
        for key in numbers if label is None else numbers.keys() & table.keys():
            value = table[key]["mean" if key == "dice" else "value"]
            assert value == pytest.approx(numbers[key], **APART), (label, key)
        if label is None:
            rows = [row["recall"] for row in found["recall_by_size"] if row["n"]]
            assert rows == pytest.approx(by_size, **APART)
            assert found["froc"]["recall"] == pytest.approx(curve, **APART)
            volume = found["lesion_load"]["volume_ml"]["bias"]["value"]
            assert volume == pytest.approx(bias, **APART)

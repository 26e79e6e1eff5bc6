import json
from dataclasses import replace

import numpy as np
import pytest

from lesionseg.core import Geometry, OperatingPoint, Reference
from lesionseg.evaluation import PRESETS, evaluate_case, summarise
from tests.evaluation.hand_cases import HAND_CASES, make_prediction, make_reference, prediction_of

PRESET = PRESETS["lesionseg"]
KEYS = (
    "schema_version evaluated_on preset n_cases n_groups n_lesion_free_cases n_lesions "
    "n_candidates n_true_positive n_false_positive n_missed dice surface_dice hd95_mm "
    "lesion_recall lesion_precision lesion_f1 false_positives_per_case "
    "false_positives_per_lesion_free_case specificity recall_by_size size_curve size_unit froc cpm "
    "average_precision case_auroc panoptic_quality lesion_load calibration operating_point "
    "other_criteria subgroups per_label split_is_group_safe missing_predictions provenance"
)


def evaluated(name, case="a", group=""):
    hand = next(c for c in HAND_CASES if c.name == name)
    return evaluate_case(
        make_reference(hand), make_prediction(hand), PRESET, case=case, group=group
    )


def judged(seed, group="", n_lesions=3, scored=True, shape=(12, 14, 16)):
    """A made-up case: boxes as lesions, two in three of them found, and some false positives."""
    rng = np.random.default_rng(seed)
    reference, drawn = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    scores = []
    for i in range(n_lesions):
        at = (slice(1, 4), slice(1 + 4 * i, 3 + 4 * i), slice(1, 3))
        reference[at] = i + 1
        if rng.random() < 0.67:
            scores.append(float(rng.random()))
            drawn[at] = len(scores)
    for i in range(int(rng.integers(0, 4))):
        scores.append(float(rng.random()))
        drawn[8:10, 3 * i : 3 * i + 2, 8:10] = len(scores)
    geometry = Geometry.from_spacing(shape, (1.0, 1.0, 1.0))
    found = prediction_of(drawn, scores, geometry, accepted_from=0.3)
    found = type(found)("a", geometry, found.candidates, found.instances, scored=scored)
    truth = Reference(geometry, instances=reference, instance_labels=(1,) * n_lesions)
    return evaluate_case(truth, found, PRESET, case=f"case{seed}", group=group)


def many(n=12, **changes):
    return [judged(s, group=f"g{s // 2}", n_lesions=s % 4, **changes) for s in range(n)]


def nulls_without_reason(scores):
    """Dotted paths of nulls that nothing explains."""
    found = []

    def walk(value, path, explained):
        if isinstance(value, dict):
            for key, item in value.items():
                walk(item, [*path, key], explained or "reason" in value)
        elif isinstance(value, list):
            for item in value:
                walk(item, path, explained)
        elif value is None and not explained:
            found.append(".".join(path))

    facts = ("to_mm", "chosen_on", "name", "split_is_group_safe")
    walk({k: v for k, v in scores.items() if k != "provenance"}, [], False)
    return [path for path in found if path.split(".")[-1] not in facts]


def test_the_keys_are_those_of_the_contract_and_json_takes_them():
    scores = summarise(many(), PRESET, evaluated_on="test", replicates=50)
    assert set(scores) == set(KEYS.split())
    json.dumps(scores, allow_nan=False)


@pytest.mark.parametrize(
    "results",
    [
        [],
        [judged(0, n_lesions=0)],
        [judged(1)],
        many(4),
        many(12, scored=False),
        many(12),
        [judged(s, n_lesions=0) for s in range(9)],
        [judged(s, n_lesions=2) for s in range(9)],
    ],
    ids=["none", "one_free", "one", "few", "unscored", "many", "all_free", "no_free"],
)
def test_every_null_has_a_reason_and_nothing_is_nan(results):
    scores = summarise(results, PRESET, evaluated_on="test", replicates=50)
    json.dumps(scores, allow_nan=False)
    assert nulls_without_reason(scores) == []


def test_counts_add_up():
    scores = summarise(many(), PRESET, evaluated_on="test", replicates=10)
    found, false = scores["n_true_positive"], scores["n_false_positive"]
    assert found + scores["n_missed"] == scores["n_lesions"]
    assert sum(row["n"] for row in scores["recall_by_size"]) == scores["n_lesions"]
    recall = scores["lesion_recall"]["value"]
    assert recall == found / scores["n_lesions"]
    precision = scores["lesion_precision"]["value"]
    assert precision == pytest.approx(found / (found + false))
    f1 = 2 * precision * recall / (precision + recall)
    assert scores["lesion_f1"]["value"] == pytest.approx(f1)
    assert scores["false_positives_per_case"]["value"] == false / scores["n_cases"]
    only = scores["per_label"]["1"]
    assert only["n_true_positive"] == found
    assert only["dice"]["mean"] == pytest.approx(scores["dice"]["mean"])


def test_all_found_and_nothing_found_are_not_certain():
    for name in ("perfect", "missed"):
        case = next(c for c in HAND_CASES if c.name == name)
        results = [
            evaluate_case(make_reference(case), make_prediction(case), PRESET, case=f"{i}")
            for i in range(9)
        ]
        scores = summarise(results, PRESET, evaluated_on="test", replicates=100)
        for key in ("lesion_f1", "cpm", "average_precision"):
            assert scores[key]["value"] in (0.0, 1.0)
            assert scores[key]["ci95"] is None
            assert "certain" in scores[key]["reason"]
        assert scores["froc"]["ci95"] == [None] * 7
        low, high = scores["lesion_recall"]["ci95"]
        assert 0.2 < high - low < 0.4


def test_the_seed_decides_the_intervals():
    one, same, other = (
        summarise(many(), PRESET, evaluated_on="test", replicates=60, seed=s) for s in (1, 1, 2)
    )
    assert one == same
    assert one["lesion_f1"]["ci95"] != other["lesion_f1"]["ci95"]
    assert one["lesion_f1"]["value"] == other["lesion_f1"]["value"]


@pytest.mark.parametrize(
    ("role", "chosen_on", "optimistic"),
    [
        ("validation", None, True),
        ("test", "validation", False),
        ("test", "test", True),
        ("external", None, False),
    ],
)
def test_a_point_chosen_on_these_cases_is_called_optimistic(role, chosen_on, optimistic):
    point = OperatingPoint("fp_per_case:1", 0.4, chosen_on)
    scores = summarise(many(2), PRESET, evaluated_on=role, operating_point=point, replicates=5)
    assert scores["operating_point"] == {
        "name": "fp_per_case:1",
        "score": 0.4,
        "chosen_on": chosen_on,
        "optimistic": optimistic,
    }


@pytest.mark.parametrize(("n_free", "given"), [(4, False), (5, True)])
def test_an_auroc_has_an_interval_from_five_cases_of_each_kind(n_free, given):
    # a tenth of the ill score lower than the others, so that replicates differ
    kinds = ["perfect"] * 10 + ["missed"] * 2 + ["false_alarm"] + ["nothing"] * (n_free - 1)
    hands = [next(c for c in HAND_CASES if c.name == kind) for kind in kinds]
    results = [
        evaluate_case(make_reference(c), make_prediction(c), PRESET, case=f"{i}")
        for i, c in enumerate(hands)
    ]
    scores = summarise(results, PRESET, evaluated_on="test", replicates=200)
    assert 0.5 < scores["case_auroc"]["value"] < 1
    assert (scores["case_auroc"]["ci95"] is not None) is given


def test_panoptic_quality_by_hand():
    # IoU 1/10 in one case, 1 in the other, a lesion missed in the third
    results = [evaluated(n, n) for n in ("exactly_a_tenth", "perfect", "missed", "false_alarm")]
    scores = summarise(results, PRESET, evaluated_on="test", replicates=0)
    assert scores["panoptic_quality"]["value"] == pytest.approx(1.1 / (2 + 0.5 + 0.5))


def test_lesion_load_by_hand():
    loads = [(2.0, 1.0), (3.0, 2.5), (0.0, 0.5), (8.0, 6.0)]
    results = [
        replace(evaluated("perfect", f"c{i}"), reference_ml=x, predicted_ml=y)
        for i, (x, y) in enumerate(loads)
    ]
    scores = summarise(results, PRESET, evaluated_on="test", replicates=0)
    load, errors = scores["lesion_load"]["volume_ml"], np.array([y - x for x, y in loads])
    assert load["bias"]["value"] == pytest.approx(errors.mean())
    limit = errors.mean() + 1.96 * errors.std(ddof=1)
    assert load["upper_limit"]["value"] == pytest.approx(limit, rel=1e-4)
    assert load["n"] == scores["lesion_load"]["n_lesions"]["n"] == 4


def grown(n_groups, seed, steep=3.0):
    """Lesions of 1 to 20 mm, found the likelier the larger; 50 % at 4 mm."""
    rng = np.random.default_rng(seed)
    base, results = evaluated("perfect"), []
    for group in range(n_groups):
        lesions = []
        for number in range(1, 13):
            mm = float(np.exp(rng.uniform(0, np.log(20))))
            p = 1 / (1 + np.exp(-steep * np.log(mm / 4)))
            found = bool(rng.random() < p)
            lesions.append(replace(base.lesions[0], lesion=number, diameter_mm=mm, detected=found))
        case = f"case{group}"
        results.append(replace(base, case=case, group=case, lesions=tuple(lesions)))
    return results


def test_the_size_curve_has_intervals_that_hold_the_truth():
    curve = summarise(grown(40, 0), PRESET, evaluated_on="test", replicates=300)["size_curve"]
    low, high = curve["d50_mm"]["ci95"]
    assert low < 4 < high
    assert low < curve["d50_mm"]["value"] < high < low + 2
    low, high = curve["d90_mm"]["ci95"]
    assert low < 4 * 9 ** (1 / 3) < high
    assert curve["diameters_mm"][0] == pytest.approx(curve["observed_mm"][0])
    for value, (low, high) in zip(curve["recall"], curve["ci95"], strict=True):
        assert low <= value <= high

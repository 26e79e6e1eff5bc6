import json

import numpy as np
import pytest

from lesionseg.core import Geometry, OperatingPoint, Reference
from lesionseg.errors import ConfigError
from lesionseg.evaluation import PRESETS, evaluate_case, find_preset, summarise
from tests.evaluation.hand_cases import HAND_CASES, make_prediction, make_reference, prediction_of

PRESET = PRESETS["lesionseg"]
CONTRACT = (
    "schema_version evaluated_on n_cases n_groups n_lesion_free_cases n_lesions n_candidates "
    "n_true_positive n_false_positive n_missed n_ignored dice surface_dice lesion_recall "
    "lesion_recall_mean_per_group lesion_precision lesion_f1 false_positives_per_case "
    "false_positives_per_lesion_free_case recall_by_size size_unit froc cpm average_precision "
    "case_auroc operating_point preset per_label split_is_group_safe provenance"
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

    def walk(value, path, own):
        if isinstance(value, dict):
            explained = "reason" in value
            for key, item in value.items():
                if key == "ci95" and isinstance(item, dict):
                    continue  # intervals of plain numbers: looked at below
                known = explained or own or ".".join([*path, key]) in scores["reasons"]
                walk(item, [*path, key], known or key in value.get("reasons", {}))
        elif isinstance(value, list):
            for item in value:
                walk(item, path, own)
        elif value is None and not own:
            found.append(".".join(path))

    facts = ("to_mm", "chosen_on", "name", "split_is_group_safe")
    walk({k: v for k, v in scores.items() if k != "provenance"}, [], False)
    return [path for path in found if path.split(".")[-1] not in facts]


def test_every_key_of_the_contract_is_there_and_json_takes_it():
    scores = summarise(many(), PRESET, evaluated_on="test", replicates=50)
    assert set(CONTRACT.split()) <= set(scores)
    assert (scores["schema_version"], scores["match_rule"]) == (2, "lesionseg 2")
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
    for part in (scores, *scores["per_label"].values()):
        assert [k for k, v in part["ci95"].items() if v is None and k not in part["reasons"]] == []


def test_counts_add_up():
    scores = summarise(many(), PRESET, evaluated_on="test", replicates=10)
    assert scores["n_true_positive"] + scores["n_missed"] == scores["n_lesions"]
    accepted = scores["n_true_positive"] + scores["n_false_positive"] + scores["n_ignored"]
    assert accepted == scores["n_accepted"] <= scores["n_candidates"]
    assert sum(row["n"] for row in scores["recall_by_size"]) == scores["n_lesions"]
    assert scores["lesion_recall"]["value"] == scores["n_true_positive"] / scores["n_lesions"]
    precision = scores["n_true_positive"] / (scores["n_true_positive"] + scores["n_false_positive"])
    assert scores["lesion_precision"] == pytest.approx(precision)
    recall = scores["lesion_recall"]["value"]
    assert scores["lesion_f1"] == pytest.approx(2 * precision * recall / (precision + recall))
    assert scores["false_positives_per_case"] == scores["n_false_positive"] / scores["n_cases"]
    only = scores["per_label"]["1"]
    assert only["n_true_positive"] == scores["n_true_positive"]
    assert only["dice"]["mean"] == pytest.approx(scores["dice"]["mean"])


def test_dice_is_the_mean_over_cases_with_a_lesion():
    results = many()
    scores = summarise(results, PRESET, evaluated_on="test", replicates=10)
    expected = [r.dice for r in results if r.lesions]
    assert scores["dice"]["mean"] == pytest.approx(np.mean(expected))
    assert scores["dice"]["median"] == pytest.approx(np.median(expected))
    assert scores["dice"]["n"] == len(expected)


def test_perfect_predictions():
    cases = [c for c in HAND_CASES if c.name in ("perfect", "nothing")] * 5
    results = [
        evaluate_case(make_reference(c), make_prediction(c), PRESET, case=f"{c.name}{i}")
        for i, c in enumerate(cases)
    ]
    scores = summarise(results, PRESET, evaluated_on="test", replicates=100)
    ones = ("lesion_precision", "lesion_f1", "cpm", "average_precision", "case_auroc")
    assert [scores[key] for key in ones] == [1.0] * 5
    assert scores["dice"]["mean"] == scores["surface_dice"]["mean"] == 1.0
    assert scores["froc"]["recall"] == [1.0] * 7
    assert all(scores["froc"]["beyond_reached"])
    assert scores["specificity"] == 1.0


def test_all_found_and_nothing_found_are_not_certain():
    for name in ("perfect", "missed"):
        case = next(c for c in HAND_CASES if c.name == name)
        results = [
            evaluate_case(make_reference(case), make_prediction(case), PRESET, case=f"{i}")
            for i in range(9)
        ]
        scores = summarise(results, PRESET, evaluated_on="test", replicates=100)
        for key in ("lesion_f1", "cpm", "average_precision"):
            assert scores[key] in (0.0, 1.0)
            assert scores["ci95"][key] is None
            assert "certain" in scores["reasons"][key]
        assert scores["froc"]["ci95"] == [None] * 7
        shares = scores["lesion_recall"]["ci95"], scores["ci95"]["lesion_recall_mean_per_group"]
        assert all(0.2 < high - low < 0.4 for low, high in shares)


def test_the_mean_over_patients_is_that_of_their_own_shares():
    results = many()
    by_group = {}
    for r in results:
        by_group.setdefault(r.group, []).extend(x.detected for x in r.lesions)
    own = [np.mean(found) for found in by_group.values() if found]
    scores = summarise(results, PRESET, evaluated_on="test", replicates=0)
    assert scores["lesion_recall_mean_per_group"] == pytest.approx(np.mean(own))


def test_the_seed_decides_the_intervals():
    one, same, other = (
        summarise(many(), PRESET, evaluated_on="test", replicates=60, seed=s) for s in (1, 1, 2)
    )
    assert one == same
    assert one["ci95"]["lesion_f1"] != other["ci95"]["lesion_f1"]
    assert one["lesion_f1"] == other["lesion_f1"]


def test_few_cases_have_no_cpm_and_few_groups_no_interval():
    scores = summarise(many(4), PRESET, evaluated_on="test", replicates=10)
    assert scores["cpm"] is None
    assert "8 cases" in scores["reasons"]["cpm"]
    assert scores["dice"]["ci95"] is None
    assert "5 groups" in scores["dice"]["reason"]


def test_scores_are_never_invented():
    scores = summarise(many(scored=False), PRESET, evaluated_on="test", replicates=10)
    for key in ("froc", "cpm", "average_precision", "case_auroc"):
        assert scores[key] is None
        assert "never invented" in scores["reasons"][key]
    assert scores["lesion_recall"]["value"] is not None


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


def test_labels_are_named_even_when_unseen():
    scores = summarise(
        many(2), PRESET, evaluated_on="test", labels={1: "metastasis", 4: "cyst"}, replicates=5
    )
    assert list(scores["per_label"]) == ["metastasis", "cyst"]
    assert scores["per_label"]["cyst"]["lesion_recall"]["value"] is None


def test_an_unknown_preset_is_refused():
    with pytest.raises(ConfigError, match="lesionseg"):
        find_preset("lesion")


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
    assert 0.5 < scores["case_auroc"] < 1
    assert (scores["ci95"]["case_auroc"] is not None) is given


def test_recall_by_long_axis_is_that_of_a_plain_count():
    results = many()
    lesions = [x for r in results for x in r.lesions]
    scores = summarise(results, PRESET, evaluated_on="test", replicates=0)
    for row in scores["recall_by_long_axis"]:
        inside = [x for x in lesions if row["from_mm"] <= x.long_axis_mm < (row["to_mm"] or np.inf)]
        assert (row["n"], row["detected"]) == (len(inside), sum(x.detected for x in inside))
    assert sum(row["n"] for row in scores["recall_by_long_axis"]) == len(lesions)

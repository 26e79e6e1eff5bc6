from lesionseg.core import Calibration, OperatingPoint
from lesionseg.inference.model_card import model_card


def holds(card, *texts):
    return [text for text in texts if text not in card] == []


def test_a_card_lists_scores_and_calls_those_of_development_optimistic(plan):
    assert holds(model_card(plan), "# Lesion model: lesion\n", "T1", "Not evaluated.")
    dice = {"mean": None, "reason": "no lesion"}
    scores = {"n_cases": 12, "lesion_recall": {"value": 0.8125, "ci95": [0.7, 0.9]}, "dice": dice}
    rows = "| lesion recall | 0.812 |", "| Dice, mean of cases with a lesion | undefined |"
    for role in ("validation", "test", "unknown"):
        card = model_card(plan, {**scores, "evaluated_on": role})
        assert holds(card, *rows)
        assert holds(card, "optimistic") == (role == "validation")


def test_points_decisions_and_provenance_are_listed(plan):
    numbers = {"lesion_recall": 0.8, "lesion_recall_ci95": (0.7, 0.9)}
    numbers |= {"false_positives_per_case": 0.9, "expected_false_positives_per_case": 1.05}
    point = OperatingPoint("fp_per_case:1", 0.412, "out-of-fold", **numbers)
    fit = Calibration("platt", -1.0, 2.0, fitted_on="out-of-fold", n_true=40, n_false=90)
    reasons = {"spacing_mm": "the median spacing of the cases"}
    full = plan.with_(operating_points=(point,), calibration=fit, n_members=5, reasons=reasons)
    card = model_card(full, provenance={"seed": 3})
    assert holds(card, "0.8 (0.7 to 0.9) with 0.9", "1.05 expected", "40 true and 90 false")
    assert holds(card, "the mean of 5", "- spacing_mm: the median spacing", "- seed: 3")

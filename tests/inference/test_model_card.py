from dataclasses import replace

from lesionseg.core import Calibration, OperatingPoint
from lesionseg.inference.model_card import model_card
from lesionseg.plan.plan import Plan


def test_a_card_without_scores_says_so(plan: Plan) -> None:
    card = model_card(plan)
    assert card.startswith("# Lesion model: lesion\n")
    assert "Not evaluated." in card
    assert "T1" in card
    assert "no operating point was chosen" in card


def test_development_scores_are_called_optimistic(plan: Plan) -> None:
    scores = {
        "evaluated_on": "validation",
        "n_cases": 12,
        "lesion_recall": {"value": 0.8125, "ci95": [0.7, 0.9]},
        "dice": {"mean": None, "reason": "no lesion"},
    }
    card = model_card(plan, scores)
    assert "validation data (development data: optimistic)" in card
    assert "| lesion recall | 0.812 |" in card
    assert "0.7 to 0.9" in card
    assert "| Dice, mean of cases with a lesion | undefined |" in card
    assert "not used in training" in model_card(plan, {**scores, "evaluated_on": "test"})
    unknown = model_card(plan, {**scores, "evaluated_on": "unknown"})
    assert "their role was not stated: they may have been used in training" in unknown
    assert "development data" not in unknown


def test_decisions_points_and_provenance_are_listed(plan: Plan) -> None:
    full = replace(
        plan,
        reasons={"spacing_mm": "the median spacing of the cases"},
        operating_points=(OperatingPoint("fp_per_case:1", 0.3, "validation"),),
    )
    card = model_card(full, provenance={"seed": 3})
    assert "- spacing_mm: the median spacing of the cases" in card
    assert "fp_per_case:1: accepted from score 0.3, chosen on validation data" in card
    assert "- seed: 3" in card


def test_an_operating_point_comes_with_what_it_gave_and_what_to_expect(plan: Plan) -> None:
    point = OperatingPoint(
        "fp_per_case:1",
        0.412,
        "out-of-fold",
        lesion_recall=0.8,
        false_positives_per_case=0.9,
        lesion_recall_ci95=(0.7, 0.9),
        expected_false_positives_per_case=1.05,
    )
    fit = Calibration("platt", -1.0, 2.0, fitted_on="out-of-fold", n_true=40, n_false=90)
    card = model_card(plan.with_(operating_points=(point,), calibration=fit, n_members=5))
    assert "out-of-fold data; there, lesion recall 0.8 (0.7 to 0.9) with 0.9" in card
    assert "0.9 false positives per case, and 1.05 expected on new cases" in card
    assert "platt calibration of its score, fitted on 40 true and 90 false" in card
    assert "the mean of 5" in card
    assert "no probabilities" in model_card(plan)

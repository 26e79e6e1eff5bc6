from lesionseg.core import Calibration, OperatingPoint
from lesionseg.inference.model_card import model_card
from lesionseg.plan.plan import Plan


def test_a_card_without_scores_says_so(plan: Plan) -> None:
    card = model_card(plan)
    assert card.startswith("# Lesion model: lesion\n")
    for text in ("Not evaluated.", "T1", "no operating point was chosen", "no probabilities"):
        assert text in card


def test_development_scores_are_called_optimistic(plan: Plan) -> None:
    scores = {
        "evaluated_on": "validation",
        "n_cases": 12,
        "lesion_recall": {"value": 0.8125, "ci95": [0.7, 0.9]},
        "dice": {"mean": None, "reason": "no lesion"},
    }
    card = model_card(plan, scores)
    assert "development data: optimistic" in card
    assert "| lesion recall | 0.812 |" in card
    assert "| Dice, mean of cases with a lesion | undefined |" in card
    for role in ("test", "unknown"):
        assert "optimistic" not in model_card(plan, {**scores, "evaluated_on": role})


def test_points_decisions_and_provenance_are_listed(plan: Plan) -> None:
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
    reasons = {"spacing_mm": "the median spacing of the cases"}
    full = plan.with_(operating_points=(point,), calibration=fit, n_members=5, reasons=reasons)
    card = model_card(full, provenance={"seed": 3})
    for text in ("0.8 (0.7 to 0.9) with 0.9", "1.05 expected", "40 true and 90 false"):
        assert text in card
    for text in ("the mean of 5", "- spacing_mm: the median spacing", "- seed: 3"):
        assert text in card

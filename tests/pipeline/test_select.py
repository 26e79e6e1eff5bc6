"""What is chosen on development predictions, by hand."""

from dataclasses import replace

import numpy as np
import pytest

from lesionseg.core import Calibration, Geometry, Reference
from lesionseg.evaluation import PRESETS, CaseResult, evaluate_case
from lesionseg.pipeline.select import (
    POINTS,
    LevelCounts,
    mean_calibration,
    select,
    select_voxel_calibration,
    unselected,
)
from lesionseg.plan.plan import Plan
from tests.evaluation.hand_cases import HandCase, make_prediction, make_reference

# two lesions of four pixels, of which the second may be missed; a speck that is none
REFERENCE = "11.22.... 11.22...."
FOUND = "11.22..3. 11.22...."
MISSED = "11.....2. 11......."


def judged(name: str, drawn: str, scores: tuple[float, ...]) -> CaseResult:
    case = HandCase(name, "", REFERENCE, drawn, scores, 0, 0, 0)
    return evaluate_case(
        make_reference(case),
        make_prediction(case),
        PRESETS["lesionseg"],
        case=name,
        group=name,
        role="validation",
    )


@pytest.fixture
def results() -> list[CaseResult]:
    """Twelve patients; the specks score as high as the lesions."""
    rng = np.random.default_rng(0)
    return [judged(f"c{i:02d}", FOUND, tuple(rng.uniform(0.3, 0.9, 3))) for i in range(12)]


FOLD_OF = {f"c{i:02d}": i % 3 for i in range(12)}


@pytest.fixture
def chosen(plan: Plan):  # type: ignore[no-untyped-def]
    """The plan with what is selected on validation cases."""

    def of(results: list[CaseResult], point: str = "fp_per_case:1", sure: float | None = None):  # type: ignore[no-untyped-def]
        return select(results, plan, point, sure, chosen_on="validation")[0]

    return of


def test_points_say_what_they_were_chosen_on_and_what_to_expect(
    results: list[CaseResult], plan: Plan
) -> None:
    out_of_fold = {"chosen_on": "out-of-fold", "fold_of": FOLD_OF}
    choice, _ = select(results, plan, "fp_per_case:3", None, **out_of_fold)
    first = choice.operating_points[0]
    assert (first.name, first.chosen_on) == ("fp_per_case:3", "out-of-fold")
    assert first.lesion_recall_ci95 is not None
    assert first.attainable_recall == 1.0
    assert [p.name for p in choice.operating_points[1:]] == list(POINTS)
    assert 0.9 < choice.operating_points[1].expected_false_positives_per_case <= 1.0
    expected = 1.0 + 0.5 / len(results)  # all are accepted: half of one more is expected
    assert first.expected_false_positives_per_case == pytest.approx(expected)
    assert f"On new patients, expect {expected:.2f}" in choice.reasons["operating point"]


def test_the_one_that_was_asked_for_accepts(results: list[CaseResult], chosen) -> None:
    assert chosen(results, "sensitivity:0.8").operating_points[0].name == "sensitivity:0.8"
    by_hand = chosen(results, "score:0.4").operating_points
    assert (by_hand[0].score, by_hand[0].chosen_on, len(by_hand)) == (0.4, None, 1 + len(POINTS))
    assert by_hand[0].false_positives_per_case is not None


def test_few_patients_are_named_with_what_they_cannot_hold(
    results: list[CaseResult], chosen
) -> None:
    some, few = chosen(results[:4], "fp_per_case:0.5", 0.9), chosen(results[:2], "fp_per_case:0.4")
    said = "only 4 patients, too few to guarantee 0.5 false positives"
    assert said in some.reasons["operating point"]
    said = "only 2 patients, too few to expect 0.4 false positives"
    assert said in few.reasons["operating point"]
    assert some.operating_points[0].confidence is None
    many = [replace(r, case=f"{r.case}{i}", group=f"{r.group}{i}") for r in results for i in (0, 1)]
    sure, expected = (chosen(many, "fp_per_case:0.5", level) for level in (0.9, None))
    assert "only" not in sure.reasons["operating point"]
    assert (sure.operating_points[0].confidence, expected.operating_points[0].confidence) == (
        0.9,
        None,
    )
    assert expected.operating_points[0].score < sure.operating_points[0].score
    assert "(95 % interval" in expected.reasons["operating point"]


def test_a_sensitivity_out_of_reach_keeps_the_default_and_says_what_could_be_had(
    chosen,
) -> None:
    few = [judged(f"c{i:02d}", MISSED, (0.9, 0.4)) for i in range(6)]
    choice = chosen(few, "sensitivity:0.9")
    assert choice.operating_points[0].name == "fp_per_case:1"
    assert "only 6 of 12 lesions (0.5) are found" in choice.reasons["operating point"]


def test_probabilities_of_a_case_come_from_a_fit_without_its_fold(
    results: list[CaseResult], plan: Plan, chosen
) -> None:
    out_of_fold = {"chosen_on": "out-of-fold", "fold_of": FOLD_OF}
    choice, fits = select(results, plan, "fp_per_case:1", None, **out_of_fold)
    assert choice.calibration is not None
    assert (choice.calibration.n_true, choice.calibration.n_false) == (24, 12)
    assert fits["c00"] == fits["c03"]
    assert fits["c00"] is None  # 8 false ones elsewhere are too few
    none = chosen(results[:6])
    assert none.calibration is None
    assert "there are 12 and 6" in none.reasons["calibration"]


def test_a_plan_forgets_what_was_chosen(plan: Plan, results: list[CaseResult]) -> None:
    planned = plan.with_(reasons={"spacing": "as measured"})
    complete, _ = select(results, planned, "fp_per_case:1", None, chosen_on="validation")
    assert complete.reasons["calibration"].startswith("fitted on 24 true")
    assert unselected(complete.with_(n_members=5)) == planned


# --- calibration of voxels ---


def counted(p: np.ndarray, lesion: np.ndarray, group: str = "a") -> LevelCounts:
    counts = LevelCounts(group)
    counts.add(p.astype(np.float32), lesion)
    return counts


def drawn(seed: int, a: float = 0.0, b: float = 1.0) -> LevelCounts:
    """Voxels that are lesion as often as logit p = a + b · what is said."""
    rng = np.random.default_rng(seed)
    said = rng.normal(-3, 0.4, 40_000)
    lesion = rng.random(len(said)) < 1 / (1 + np.exp(-(a + b * said)))
    return counted(1 / (1 + np.exp(-said)), lesion, f"p{seed}")


def test_dice_of_all_voxels_by_hand() -> None:
    counts = counted(np.array([0.9, 0.7, 0.2, 0.01]), np.array([True, False, True, False]))
    assert counts.dice(0.0) == pytest.approx(2 / 4)  # from one half: 2 voxels, 1 of 2 hit
    assert counts.dice(-2.0) == pytest.approx(4 / 5)
    assert np.isnan(counted(np.array([0.5]), np.array([False])).dice(0.0))


def test_what_a_decision_is_shown_is_counted_slab_by_slab_without_what_is_ignored(
    plan: Plan,
) -> None:
    labels = np.zeros((4, 3, 2), np.uint8)
    labels[1:3] = plan.label_values[0]
    ignore = np.zeros(labels.shape, np.bool_)
    ignore[2] = True
    counts = LevelCounts("a")
    geometry = Geometry.from_spacing(labels.shape, (1.0,) * 3)
    count = counts.counter(Reference(geometry, labels=labels, ignore=ignore), plan)
    for row, p in enumerate((0.1, 0.8, 0.8, 0.1)):
        count(0, row, np.full((1, 3, 2), p, np.float32))
    assert (counts.voxels.sum(), counts.lesion.sum()) == (18, 6)
    assert counts.dice(0.0) == 1.0


def test_a_network_that_is_far_too_unsure_is_put_right() -> None:
    fit, why = select_voxel_calibration([drawn(s, 3.0, 0.8) for s in range(3)], 0.4, "validation")
    assert fit is not None
    assert (fit.intercept, fit.slope) == (pytest.approx(3, abs=0.1), pytest.approx(0.8, abs=0.05))
    assert fit.fitted_on == "validation"
    assert fit.n_true + fit.n_false == 120_000
    assert "+0." in why
    alone, _ = select_voxel_calibration([drawn(0, 3.0, 0.8)], 0.4, "validation")
    assert alone is not None


def test_probabilities_that_are_right_are_left_alone() -> None:
    fit, why = select_voxel_calibration([drawn(s) for s in range(3)], 0.4, "validation")
    assert fit is None
    assert why.startswith("skipped")
    free = counted(np.full(9, 0.1), np.zeros(9, np.bool_))
    assert select_voxel_calibration([free], 0.4, "validation")[0] is None
    assert select_voxel_calibration([], 0.4, "validation")[0] is None


def test_the_mean_of_several_networks_takes_those_without_a_fit_as_they_are() -> None:
    assert mean_calibration([None, None]) is None
    mean = mean_calibration([Calibration("platt", 2.0, 0.6, n_true=3), None])
    assert mean is not None
    assert (mean.intercept, mean.slope, mean.n_true) == (1.0, 0.8, 3)

import itertools
from dataclasses import replace

import numpy as np
import pytest

from lesionseg.core import Reference
from lesionseg.errors import ConfigError, ContentError, DatasetError
from lesionseg.evaluation import PRESETS, evaluate_case, summarise
from lesionseg.evaluation.readers.adjudication import adjudicate, read_verdicts
from lesionseg.evaluation.statistics.calibration_curve import (
    Judgements,
    describe_calibration,
    fit_calibration,
)
from lesionseg.evaluation.statistics.compare import compare
from lesionseg.evaluation.statistics.detection import froc, pool_results
from lesionseg.evaluation.statistics.estimates import Estimator
from lesionseg.evaluation.statistics.logistic import (
    fit_counts,
    fit_logistic,
    fit_offset,
    fit_size_curve,
)
from lesionseg.evaluation.statistics.score_parts import Difference
from tests.evaluation.hand_cases import HAND_CASES, make_prediction, make_reference
from tests.evaluation.random_cases import random_cases

PRESET = PRESETS["lesionseg"]


def judge(name, case="a", group=""):
    hand = next(c for c in HAND_CASES if c.name == name)
    return evaluate_case(
        make_reference(hand), make_prediction(hand), PRESET, case=case, group=group
    )


def test_quality_of_what_is_found_by_hand():
    # IoU 1/10 in one case, 1 in the other, a lesion missed in the third
    results = [judge(n, n) for n in ("exactly_a_tenth", "perfect", "missed", "false_alarm")]
    scores = summarise(results, PRESET, evaluated_on="test", replicates=0)
    assert scores["segmentation_quality"]["value"] == pytest.approx(1.1 / 2)
    assert scores["panoptic_quality"]["value"] == pytest.approx(1.1 / (2 + 0.5 + 0.5))
    assert scores["matched_lesion_dice"]["value"] == pytest.approx((2 / 11 + 1) / 2)
    assert scores["iou"]["mean"] == pytest.approx((0.1 + 1 + 0) / 3)
    assert scores["volume_error_ml"]["mean"] is None  # no volumes in two axes


def test_quality_by_size_is_that_of_naive_pairs():
    cases = random_cases(40, 8)
    results = [
        evaluate_case(c.as_reference(), c.as_prediction(), PRESETS["instances"], case=c.name)
        for c in cases
    ]
    scores = summarise(results, PRESETS["instances"], evaluated_on="test", replicates=20)
    lesions = [x for r in results for x in r.lesions]
    false = [c for r in results for c in r.candidates if c.outcome == "false_positive"]
    assert sum(bool(row["panoptic_quality"]["value"]) for row in scores["quality_by_size"]) > 1
    for row in [scores | {"from_mm": 0, "to_mm": None}, *scores["quality_by_size"]]:
        to = row["to_mm"] or np.inf
        here = [x for x in lesions if row["from_mm"] <= x.diameter_mm < to]
        ious = [x.iou for x in here if x.detected]
        n_false = sum(row["from_mm"] <= c.diameter_mm < to for c in false)
        left = len(here) - len(ious) + n_false
        if not here:
            assert row["panoptic_quality"]["reason"] == "there is no reference lesion to find"
            continue
        rq, sq = len(ious) / (len(ious) + left / 2), np.mean(ious) if ious else None
        assert row["recognition_quality"]["value"] == pytest.approx(rq)
        assert row["segmentation_quality"]["value"] == (sq and pytest.approx(sq))
        assert row["panoptic_quality"]["value"] == pytest.approx(rq * (sq or 0))


def test_boxes_have_no_panoptic_quality():
    case = next(c for c in HAND_CASES if c.name == "perfect")
    drawn = make_prediction(case)
    box = ((*drawn.candidates[0].start_vox, *drawn.candidates[0].stop_vox),)
    reference = Reference(drawn.geometry, boxes=np.array(box), box_labels=(1,))
    results = [evaluate_case(reference, drawn, PRESET, case="a")]
    scores = summarise(results, PRESET, evaluated_on="test", replicates=0)
    assert scores["panoptic_quality"]["value"] is None
    assert "boxes" in scores["panoptic_quality"]["reason"]
    assert scores["recognition_quality"]["value"] == 1


def test_volume_error_counts_lesion_free_cases():
    cases = random_cases(12, 2)
    results = [
        evaluate_case(c.as_reference(), c.as_prediction(), PRESET, case=c.name) for c in cases
    ]
    scores = summarise(results, PRESET, evaluated_on="test", replicates=0)
    size = [np.prod(c.spacing_mm) / 1000 for c in cases]
    errors = [
        ((c.instances > 0).sum() - c.reference.sum()) * s for c, s in zip(cases, size, strict=True)
    ]
    assert scores["volume_error_ml"]["mean"] == pytest.approx(np.mean(errors))
    assert scores["volume_error_ml"]["absolute"]["mean"] == pytest.approx(np.mean(np.abs(errors)))
    bins = scores["recall_by_size_quantile"]
    assert sum(b["n"] for b in bins) == scores["n_lesions"]
    small, large = scores["recall_by_half"]
    assert (small["to_mm"], large["from_mm"], large["to_mm"]) == (5.0, 5.0, None)
    assert small["n"] + large["n"] == scores["n_lesions"]


def test_size_curve_finds_the_diameters_it_was_drawn_from():
    rng = np.random.default_rng(0)
    diameters = np.exp(rng.uniform(np.log(1), np.log(30), 4000))
    p = 1 / (1 + np.exp(-3 * (np.log(diameters) - np.log(5))))
    curve = fit_size_curve(diameters, rng.random(4000) < p)
    assert curve.d50_mm == pytest.approx(5, rel=0.05)
    assert curve.d90_mm == pytest.approx(5 * np.exp(np.log(9) / 3), rel=0.07)


def test_diameters_beyond_the_observed_sizes():
    diameters = np.linspace(8, 10, 20)
    curve = fit_size_curve(diameters, np.arange(20) % 4 > 0)
    assert curve.d50_mm < 8
    assert curve.d90_mm > 10
    falling = fit_size_curve(diameters, np.arange(20) < 12)  # larger ones are missed
    assert (falling.d50_mm, falling.d90_mm) == (0.0, np.inf)
    assert fit_size_curve(diameters, np.arange(20) > 3) is None  # only 4 missed
    separated = fit_size_curve(diameters, np.arange(20) >= 10)
    assert np.isfinite(separated.slope)
    assert separated.d50_mm == pytest.approx(9.0, abs=0.1)


def test_logistic_fit_solves_the_score_equations():
    rng = np.random.default_rng(1)
    x, y = rng.normal(3, 2, 200), rng.random(200) < 0.4
    fit = fit_logistic(x, y)
    left = y - fit.probability(x)
    assert left.sum() == pytest.approx(0, abs=1e-6)
    assert (left * x).sum() == pytest.approx(0, abs=1e-6)
    assert fit_logistic(np.full(5, 2.0), np.arange(5) < 2).slope == 0.0


def drawn(n, seed=0):
    rng = np.random.default_rng(seed)
    scores = rng.uniform(0.02, 0.98, n)
    return Judgements(scores, rng.random(n) < scores, np.arange(n) % 40)


def described(data, replicates=0):
    return describe_calibration(data, Estimator.seeded(40, replicates, 0))


def test_scores_that_are_probabilities_are_called_calibrated():
    found = described(drawn(20000))
    assert found["slope"] == pytest.approx(1, abs=0.06)
    assert found["intercept"] == pytest.approx(0, abs=0.06)
    assert found["ece"] < 0.02
    assert found["brier"] == pytest.approx(
        np.mean([p * (1 - p) for p in drawn(20000).values]), abs=0.01
    )
    assert sum(b["n"] for b in found["reliability"]) == 20000
    assert found["observed_expected"] == pytest.approx(1, abs=0.02)
    assert found["ece"] < found["ci95"]["ece_if_perfect"][1]


def test_chances_that_are_too_low_have_an_intercept_above_0_whatever_their_slope():
    # more are true than was said, though the joint intercept of Cox's fit is negative
    rng = np.random.default_rng(0)
    x = rng.normal(-2.2, 1.2, 8000)
    truth = 1 / (1 + np.exp(-(-0.32 + 0.6 * x)))
    data = Judgements(1 / (1 + np.exp(-x)), rng.random(8000) < truth, np.arange(8000) % 40)
    assert fit_logistic(x, data.true).intercept < -0.2
    found = described(data, 200)
    assert found["intercept"] > 0.05
    assert found["observed_expected"] > 1.05
    for name, value in (("slope", 0.6), ("observed_expected", truth.sum() / data.values.sum())):
        low, high = found["ci95"][name]
        assert low < value < high
    assert found["ece"] > found["ci95"]["ece_if_perfect"][1]


def test_the_offset_solves_its_score_equation():
    rng = np.random.default_rng(1)
    x, totals = rng.normal(0, 2, 50), rng.integers(1, 5, (3, 50)).astype(float)
    true = np.floor(totals * rng.random((3, 50)))
    for offset, t, n in zip(fit_offset(x, true, totals), true, totals, strict=True):
        assert t.sum() == pytest.approx((n / (1 + np.exp(-offset - x))).sum())


def test_a_perfect_model_of_few_candidates_shows_a_calibration_error_too():
    few, many = described(drawn(120)), described(drawn(12000))
    assert 0.04 < few["ece_if_perfect"] < 0.12
    assert many["ece_if_perfect"] < 0.02
    assert few["ci95"]["slope"] is None  # no replicates


@pytest.mark.parametrize("method", ["platt", "isotonic"])
def test_calibration_mends_what_is_overconfident_and_keeps_the_order(method):
    data = drawn(6000)
    logit = np.log(data.values / (1 - data.values))
    sure = Judgements(1 / (1 + np.exp(-3 * logit)), data.true, data.group)
    fit = fit_calibration(sure, method)
    mended = fit.probability(sure.values)
    assert np.abs(mended - data.values).mean() < 0.04
    assert (np.diff(mended[np.argsort(sure.values)]) >= -1e-12).all()


def test_isotonic_needs_two_hundred_of_each():
    with pytest.raises(ContentError, match="at least 200 of each"):
        fit_calibration(drawn(300), "isotonic")
    with pytest.raises(ContentError, match="at least 10 of each"):
        fit_calibration(Judgements(np.full(20, 0.5), np.arange(20) < 3, np.arange(20)))


def models(names_a, names_b):
    return [
        [judge(n, f"case{i}", f"g{i // 2}") for i, n in enumerate(names)]
        for names in (names_a, names_b)
    ]


def test_equal_models_do_not_differ():
    one, other = models(["perfect", "missed"] * 8, ["perfect", "missed"] * 8)
    found = compare(one, other, replicates=200)["lesion_recall"]
    assert (found["one"], found["difference"], found["p_value"]) == (0.5, 0.0, 1.0)
    assert found["ci95"] is None


def test_a_better_model_is_seen_to_be_better():
    one, other = models(["perfect"] * 15 + ["missed"], ["missed"] * 12 + ["perfect"] * 4)
    found = compare(one, other, replicates=500)["lesion_recall"]
    assert found["difference"] == pytest.approx(15 / 16 - 4 / 16)
    low, high = found["ci95"]
    assert 0 < low < found["difference"] < high <= 1
    assert found["p_value"] < 0.1
    back = compare(other, one, replicates=500)["lesion_recall"]
    assert back["difference"] == -found["difference"]
    assert back["p_value"] == found["p_value"]


def scored(n_groups, seed, shift, n_false=1):
    """One lesion and `n_false` false positives a patient; lesions score `shift` above."""
    rng = np.random.default_rng(seed)
    base, wrong = judge("perfect"), judge("false_alarm").candidates[0]
    return [
        replace(
            base,
            case=f"c{i}",
            group=f"g{i}",
            lesions=(replace(base.lesions[0], detected_at=float(rng.normal(shift))),),
            candidates=tuple(
                replace(wrong, score=float(rng.normal()), outcome_any="false_positive")
                for _ in range(n_false)
            ),
        )
        for i in range(n_groups)
    ]


def test_models_are_compared_at_equal_false_positives():
    one, other = scored(40, 0, 2.0), scored(40, 1, 0.0)
    found = compare(one, other, replicates=300)
    for rate in (0.5, 1, 2):
        row = found[f"recall_at_{rate:g}"]
        alone = [froc(pool_results(m), [rate])(np.ones((1, 40)))[0, 0] for m in (one, other)]
        assert (row["one"], row["other"]) == tuple(alone)
    assert found["recall_at_0.5"]["ci95"][0] > 0
    assert [name for name, row in found.items() if row["primary"]] == ["recall_at_1"]
    assert found["recall_at_1"]["p_holm"] is None
    assert compare(one, one, replicates=50)["cpm"]["p_value"] == 1.0


def test_holm_multiplies_the_smallest_by_all_and_keeps_the_order():
    found = compare(scored(40, 0, 1.0), scored(40, 1, 0.0), replicates=200)
    rows = [r for r in found.values() if r["p_holm"] is not None]
    rows.sort(key=lambda row: row["p_value"])
    assert rows[0]["p_holm"] == pytest.approx(min(1, len(rows) * rows[0]["p_value"]))
    assert all(a["p_holm"] <= b["p_holm"] for a, b in itertools.pairwise(rows))


def test_a_margin_makes_the_whole_interval_decide():
    one, other = scored(40, 0, 1.0, 3), scored(40, 1, 1.0, 3)
    low, high = compare(one, other, replicates=300)["recall_at_1"]["ci95"]
    assert low < 0 < high
    for margin, shown in ((abs(low) + 0.01, True), (abs(low) / 2, False)):
        found = compare(one, other, margin=margin, replicates=300)
        assert Difference.from_json(found["recall_at_1"]).non_inferior is shown
        assert [k for k, row in found.items() if row["margin"]] == ["recall_at_1"]
    assert Difference.from_json(compare(one, other)["recall_at_1"]).non_inferior is None
    with pytest.raises(ConfigError, match="margin"):
        compare(one, other, margin=5)


def test_the_p_value_of_few_patients_is_exact():
    one, other = models(["perfect"] * 10, ["missed"] * 10)  # five patients, all for the one
    assert compare(one, other, replicates=10)["lesion_recall"]["p_value"] == 2 / 32


def test_few_groups_give_the_difference_alone_and_other_cases_are_refused():
    one, other = models(["perfect"] * 6, ["missed"] * 6)
    found = compare(one, other)["lesion_recall"]
    assert (found["difference"], found["ci95"], found["p_value"]) == (1.0, None, None)
    assert "5 groups" in found["reason"]
    with pytest.raises(DatasetError, match="different cases"):
        compare(one, other[:-1])


ROW = {"case": "elsewhere", "candidate": "1", "start_vox": "0 4", "stop_vox": "1 7"}


def test_a_confirmed_mark_counts_as_a_lesion_in_the_second_number_only():
    results = [judge("elsewhere", "elsewhere"), judge("perfect", "perfect")]
    rows = [
        {**ROW, "verdict": "Lesion"},
        {**ROW, "case": "perfect", "verdict": "lesion"},  # no false positive: stale
        {**ROW, "candidate": "7", "verdict": ""},
    ]
    found = adjudicate(results, read_verdicts(rows, "adjudicate.csv"))
    assert (found["n_lesion"], found["n_stale"], found["n_open"]) == (1, 1, 0)
    assert found["by_reference"]["lesion_recall"] == 0.5
    assert found["by_reference"]["n_false_positive"] == 1
    assert found["adjudicated"]["lesion_recall"] == pytest.approx(2 / 3)
    assert found["adjudicated"]["n_false_positive"] == 0
    assert found["adjudicated"]["lesion_precision"] == 1.0


def test_unknown_verdicts_are_refused_with_their_line():
    with pytest.raises(ContentError, match=r"line 2.*maybe"):
        read_verdicts([{**ROW, "verdict": "maybe"}], "adjudicate.csv")
    with pytest.raises(ContentError, match="names no candidate"):
        read_verdicts([{"verdict": "lesion"}], "adjudicate.csv")


def test_fits_of_counts_are_those_of_repeated_lesions():
    rng = np.random.default_rng(3)
    x, weights = rng.normal(size=60), rng.integers(0, 4, (5, 60)).astype(float)
    true = rng.random(60) < 1 / (1 + np.exp(-x))
    fits = fit_counts(x, weights * true, weights, np.ones(60), ridge=0.0)
    for fit, row in zip(fits, weights.astype(int), strict=True):
        alone = fit_logistic(np.repeat(x, row), np.repeat(true, row))
        assert fit == pytest.approx([alone.intercept, alone.slope], rel=1e-5, abs=1e-6)
    same = fit_logistic(x, true, ridge=1 / 2.5**2)
    ones = np.ones((1, 60))
    (once,) = fit_counts(x, ones * true, ones, ones[0], ridge=1 / 2.5**2)
    assert once == pytest.approx([same.intercept, same.slope], rel=1e-5)


def grown(n_groups, seed, steep=3.0):
    """Lesions of 1 to 20 mm, found the likelier the larger; 50 % at 4 mm."""
    rng = np.random.default_rng(seed)
    base, results = judge("perfect"), []
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
    low, high = curve["d50_ci95"]
    assert low < 4 < high
    assert low < curve["d50_mm"] < high
    assert high - low < 2
    low, high = curve["d90_ci95"]
    assert low < 4 * 9 ** (1 / 3) < high
    assert len(curve["diameters_mm"]) == len(curve["recall"]) == len(curve["ci95"]) == 25
    assert curve["diameters_mm"][0] == pytest.approx(curve["observed_mm"][0])
    for value, (low, high) in zip(curve["recall"], curve["ci95"], strict=True):
        assert low <= value <= high


def test_intervals_of_diameters_are_held_within_the_observed_sizes():
    few = summarise(grown(3, 0), PRESET, evaluated_on="test", replicates=50)["size_curve"]
    assert few["d50_ci95"] is None
    assert few["ci95"] == [None] * 25
    assert "5 groups" in few["reason"]
    flat = summarise(grown(12, 1, steep=1.2), PRESET, evaluated_on="test", replicates=200)
    curve = flat["size_curve"]
    low, high = curve["d90_ci95"]
    assert 4 < low < curve["d90_mm"] < high == curve["observed_mm"][1]
    flatter = summarise(grown(12, 1, steep=0.7), PRESET, evaluated_on="test", replicates=200)
    curve = flatter["size_curve"]
    assert (curve["d90_mm"], curve["d90_outside"]) == (None, "above")

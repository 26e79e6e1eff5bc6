"""The comparison of detectors without a training: recall at a rate, the table."""

import pytest

from benchmarks.learning import vs_monai_detector as versus

LESIONS = [{"detected_at": at, "diameter_mm": 5.0} for at in (0.9, 0.6, 0.3, None)]
FALSE = [0.8, 0.5, 0.2]  # in two scans


@pytest.mark.parametrize(
    ("rate", "found"), [(0.125, 0.25), (0.5, 0.5), (1.0, 0.75), (2.0, 0.75), (8.0, 0.75)]
)
def test_recall_counts_lesions_above_the_score_that_the_rate_allows(
    rate: float, found: float
) -> None:
    assert versus.recall_at(LESIONS, FALSE, 2, rate) == found


def test_a_tie_with_a_false_positive_is_not_found() -> None:
    assert versus.recall_at([{"detected_at": 0.5}], [0.5], 1, 0.5) == 0


def test_no_lesion_is_no_recall() -> None:
    assert versus.recall_mean([], FALSE, 2) == 0


def test_the_table_has_a_row_a_tool() -> None:
    one = {"cpm": 0.5, "small_cpm": 0.4, "small_at_1": 0.3, "at_1": 0.2, "average_precision": 0.1}
    cell = one | {"n_cases": 2, "n_lesions": 4, "n_small": 3}
    text = versus.markdown({"monai": [cell], "retinanet": [cell, cell | {"cpm": 0.7}]})
    assert "| monai | 0.500 (0.500) | 0.400 | 0.300 | 0.200 | 0.100 |" in text
    assert "| retinanet | 0.600 (0.500, 0.700) |" in text

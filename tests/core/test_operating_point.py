"""Aims of operating points as text."""

import pytest

from lesionseg.core import Aim, OperatingPoint
from lesionseg.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("auto", "auto", 0),
        (" best_f1 ", "best_f1", 0),
        ("fp_per_case:0", "fp_per_case", 0),
        ("fp_per_case: 1000000", "fp_per_case", 1e6),
        ("sensitivity:1", "sensitivity", 1),
        ("sensitivity:0", "sensitivity", 0),
        ("score:0.5", "score", 0.5),
        ("score:1", "score", 1),
    ],
)
def test_aim_is_parsed_and_written(text, kind, value):
    aim = Aim.parse(text)
    assert (aim.kind, aim.value) == (kind, value)
    assert Aim.parse(str(aim)) == aim
    assert OperatingPoint(str(aim), 0.5).aim == aim


@pytest.mark.parametrize(
    "text",
    [
        "auto:1",
        "best_f1:",
        "score",
        "score:",
        "score:1.01",
        "score:-0.1",
        "score:nan",
        "sensitivity:1.5",
        "fp_per_case:1000001",
        "fp_per_case:-1",
        "recall:0.5",
        "",
    ],
)
def test_other_texts_are_errors_without_a_suggestion(text):
    with pytest.raises(ConfigError, match="operating_point=") as error:
        Aim.parse(text)
    assert "Did you mean" not in str(error.value)


@pytest.mark.parametrize(("text", "is_score"), [(0, True), (0.5, True), (1, True), (2, False)])
def test_number_without_a_kind_may_be_a_score(text, is_score):
    with pytest.raises(ConfigError) as error:
        Aim.parse(text)
    assert (f"Did you mean score:{text}?" in str(error.value)) is is_score


def test_score_after_a_wrong_kind_is_not_suggested():
    with pytest.raises(ConfigError) as error:
        Aim.parse("0.5:0.5")
    assert "Did you mean" not in str(error.value)

from dataclasses import replace

import pytest

from lesionseg.evaluation import PRESETS, evaluate_case
from tests.evaluation.hand_cases import HAND_CASES, make_prediction, make_reference

BY_RULE = [("lesionseg", case) for case in HAND_CASES]
BY_RULE += [
    ("instances", replace(case, **{"n_true": None, **case.by_pairs})) for case in HAND_CASES
]


@pytest.mark.parametrize(("preset", "case"), BY_RULE, ids=lambda x: getattr(x, "name", x))
def test_hand_case(preset, case):
    found = evaluate_case(
        make_reference(case), make_prediction(case), PRESETS[preset], case=case.name
    )
    assert found.n_detected == case.tp
    assert found.n_outcome("true_positive") == (case.tp if case.n_true is None else case.n_true)
    assert found.n_outcome("false_positive") == case.fp
    assert found.n_outcome("ignored") == case.ignored
    assert len(found.lesions) - found.n_detected == case.fn
    assert found.dice == (None if case.dice is None else pytest.approx(case.dice))
    if case.detected_at:
        assert tuple(x.detected_at for x in found.lesions) == case.detected_at
    for name, (n_found, n_false) in case.sides.items():
        assert found.sides[name] == (n_found, n_false)
        assert sum(getattr(x, name) for x in found.lesions) == n_found

"""The plan of a cross-validation whose folds have begun separately."""

from types import SimpleNamespace

import pytest

from lesionseg.config import CONFIG
from lesionseg.pipeline.cross_validate import plan_of_first_begun
from tests.models.plans import plan_of


def make_fold(run, *, side=None, bundle_side=None):
    """Return a fold that has begun or has a bundle, with square tiles of these sides."""
    for folder, n in ((run, side), (run / "bundle", bundle_side)):
        if n is not None:
            folder.mkdir(parents=True, exist_ok=True)
            plan = plan_of(strides=((1, 1), (2, 2))).with_(tile_shape=(n, n))
            (folder / "plan.json").write_text(plan.to_json(), encoding="utf-8")
            (run / CONFIG).touch()
    return SimpleNamespace(run=run, bundle=run / "bundle")


@pytest.mark.parametrize(
    ("folds", "expected"),
    [
        (({}, {}), None),
        (({}, {"side": 32}), 32),  # begun, for example on a GPU with less memory
        (({"side": 32}, {"side": 64, "bundle_side": 64}), 64),  # a finished fold comes first
    ],
)
def test_folds_that_began_separately_state_the_plan(tmp_path, folds, expected):
    made = [make_fold(tmp_path / f"fold_{i}", **sides) for i, sides in enumerate(folds)]
    plan = plan_of_first_begun(made)
    assert (plan and plan.tile_shape[0]) == expected

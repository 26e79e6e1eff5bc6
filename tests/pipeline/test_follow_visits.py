"""Patients' visits by a table: their order, what is predicted first, what is refused."""

import numpy as np
import pytest

from lesionseg.core import Geometry
from lesionseg.errors import ConfigError, DatasetError
from lesionseg.evaluation.change import order_visits
from lesionseg.io.files import read_csv
from lesionseg.io.layouts.manifest import read_scan_list
from lesionseg.pipeline import predict as predict_module
from tests.commands import follow
from tests.inference.networks import Bright
from tests.pipeline.cases import boxes, write_array

SHAPE = (12, 18, 20)
GRID = Geometry.from_spacing(SHAPE, (2, 1, 1))
OLD, NEW = (3, 4, 5, 3), (8, 10, 12, 4)
VISITS = {
    "base": ("2023-01-20", [OLD]),
    "m12": ("2024-01-31", [OLD, NEW]),
    "m6": ("2023-07-01", []),
}


def table(root, *lines):
    (root / "visits.csv").write_text("\n".join(["case,image,group,visit", *lines]))
    return root / "visits.csv"


@pytest.fixture
def visits(tmp_path):
    """A patient at three times, the last one with a new lesion, and one seen once."""
    rng = np.random.default_rng(0)
    for name, (_, places) in VISITS.items():
        mask = boxes(SHAPE, *places)
        image = rng.normal(100, 3, SHAPE) + 70 * mask
        write_array(tmp_path / f"{name}.nii.gz", image.astype(np.float32), GRID)
        write_array(tmp_path / "masks" / f"{name}.nii.gz", mask, GRID)
    write_array(tmp_path / "masks" / "once.nii.gz", mask, GRID)
    lines = [f"{name},{name}.nii.gz,P1,{when}" for name, (when, _) in VISITS.items()]
    return table(tmp_path, *lines, "once,base.nii.gz,P2,2023-01-01")


def ordered(path):
    return order_visits(read_scan_list(path), path)


def test_each_visit_is_compared_with_the_one_before(visits, tmp_path, caplog):
    by_masks = {"visits": visits, "predictions": tmp_path / "masks"}
    outcome = follow(None, None, tmp_path / "out", **by_masks)
    assert (outcome.n_pairs, outcome.exit_status) == (2, 0)
    states = [(row["case"], row["state"]) for row in read_csv(tmp_path / "out" / "changes.csv")]
    assert states == [("m6", "gone"), ("m12", "new"), ("m12", "new")]
    pairs = [(p["case"], p["earlier"]) for p in read_csv(tmp_path / "out" / "pairs.csv")]
    assert pairs == [("m6", "base"), ("m12", "m6")]
    assert "no other visit: once" in caplog.text
    for name in ("m6", "m12"):
        (tmp_path / "masks" / f"{name}.nii.gz").unlink()
    with pytest.raises(DatasetError, match="predictions of two visits"):
        follow(None, None, tmp_path / "other", **by_masks)


def test_a_bundle_predicts_the_visits_first(visits, tmp_path, bundle, monkeypatch):
    made, own = predict_module.make_predictor, {"mine": lambda _: Bright()}
    monkeypatch.setattr(predict_module, "make_predictor", lambda cfg, _: made(cfg, own))
    rows = visits.read_text().splitlines()
    lines = table(tmp_path, rows[1], rows[2], "lost,nowhere.nii.gz,P1,2025-01-01")
    outcome = follow(None, None, tmp_path / "out", visits=lines, bundle=bundle)
    assert (outcome.n_pairs, outcome.exit_status) == (1, 1)
    assert [c.state for c in outcome.changes if c.accepted].count("new") == 1
    rows = read_csv(tmp_path / "out" / "predictions" / "predictions.csv")
    study = {row["case"]: row for row in rows}
    assert study["lost"]["status"] == "failed"
    assert (study["m12"]["group"], study["m12"]["visit"]) == ("P1", "2024-01-31")


@pytest.mark.parametrize("times", [("2024-06-01", "20240531", "2023-12-31"), ("10", "9.5", "9")])
def test_dates_and_numbers_are_ordered(times, tmp_path):
    lines = (f"{case},{case}.nii,P,{when}" for case, when in zip("abc", times, strict=True))
    (timeline,) = ordered(table(tmp_path, *lines))
    assert [files.case for files in timeline] == ["c", "b", "a"]


@pytest.mark.parametrize("visits", ["P,first P,second", "P,2 P,2", "P,1 Q,2"])
def test_a_table_without_an_order_or_a_second_visit_is_refused(visits, tmp_path):
    lines = (f"{case},{case}.nii,{when}" for case, when in zip("ab", visits.split(), strict=True))
    with pytest.raises(DatasetError):
        ordered(table(tmp_path, *lines))


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"visits": "v.csv"},
        {"before": "b", "after": "a", "visits": "v.csv", "predictions": "p"},
        {"before": "b"},
    ],
)
def test_what_is_to_be_followed_must_be_clear(given, tmp_path):
    with pytest.raises(ConfigError, match="give before= and after="):
        follow(output=tmp_path / "out", **{"before": None, "after": None, **given})

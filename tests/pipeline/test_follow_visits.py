"""Patients' visits by a table: their order, what is predicted first, what is refused."""

from dataclasses import replace

import numpy as np
import pytest

from lesionseg.core import Geometry, Volume
from lesionseg.errors import ConfigError, DatasetError
from lesionseg.evaluation.change import order_visits
from lesionseg.inference.bundle import write_bundle
from lesionseg.io.files import read_csv
from lesionseg.io.layouts.manifest import read_scan_list
from lesionseg.io.volumes import write_volume
from lesionseg.pipeline import predict as predict_module
from tests.commands import follow
from tests.inference.networks import Bright

SHAPE = (12, 18, 20)
GRID = Geometry.from_spacing(SHAPE, (2, 1, 1))
OLD, NEW = (slice(3, 6), slice(4, 8), slice(5, 9)), (slice(8, 11), slice(10, 14), slice(12, 17))
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
    for name, (_, boxes) in VISITS.items():
        image, mask = rng.normal(100, 3, SHAPE), np.zeros(SHAPE, np.uint8)
        for box in boxes:
            image[box] += 70
            mask[box] = 1
        write_volume(tmp_path / f"{name}.nii.gz", Volume(image.astype(np.float32)[None], GRID))
        write_volume(tmp_path / "masks" / f"{name}.nii.gz", Volume(mask[None], GRID))
    write_volume(tmp_path / "masks" / "once.nii.gz", Volume(mask[None], GRID))
    lines = [f"{name},{name}.nii.gz,P1,{when}" for name, (when, _) in VISITS.items()]
    return table(tmp_path, *lines, "once,base.nii.gz,P2,2023-01-01")


def ordered(path):
    return order_visits(read_scan_list(path), path)


def states(out):
    return [(row["case"], row["state"]) for row in read_csv(out / "changes.csv")]


def test_each_visit_is_compared_with_the_one_before(visits, tmp_path, caplog):
    outcome = follow(None, None, tmp_path / "out", visits=visits, predictions=tmp_path / "masks")
    assert (outcome.n_pairs, outcome.exit_status) == (2, 0)
    assert states(tmp_path / "out") == [("m6", "gone"), ("m12", "new"), ("m12", "new")]
    pairs = read_csv(tmp_path / "out" / "pairs.csv")
    assert [(p["case"], p["earlier"], p["group"]) for p in pairs] == [
        ("m6", "base", "P1"),
        ("m12", "m6", "P1"),
    ]
    assert "no other visit: once" in caplog.text


def test_a_bundle_predicts_the_visits_first(visits, tmp_path, plan, monkeypatch):
    mine = replace(plan, architecture=replace(plan.architecture, name="mine"))
    write_bundle(tmp_path / "bundle", Bright(), mine, "")
    made = predict_module.make_predictor
    own = {"mine": _bright}
    monkeypatch.setattr(predict_module, "make_predictor", lambda cfg, _: made(cfg, own))
    rows = visits.read_text().splitlines()
    lines = table(tmp_path, rows[1], rows[2], "lost,nowhere.nii.gz,P1,2025-01-01")
    outcome = follow(None, None, tmp_path / "out", visits=lines, bundle=tmp_path / "bundle")
    assert (outcome.n_pairs, outcome.exit_status) == (1, 1)
    accepted = [c.state for c in outcome.changes if c.accepted]
    assert accepted.count("new") == 1
    rows = read_csv(tmp_path / "out" / "predictions" / "predictions.csv")
    study = {row["case"]: row for row in rows}
    assert study["lost"]["status"] == "failed"
    assert (study["m12"]["group"], study["m12"]["visit"]) == ("P1", "2024-01-31")


def _bright(_):
    return Bright()


@pytest.mark.parametrize("times", [("2024-06-01", "20240531", "2023-12-31"), ("10", "9.5", "9")])
def test_dates_and_numbers_are_ordered(times, tmp_path):
    lines = (f"{case},{case}.nii,P,{when}" for case, when in zip("abc", times, strict=True))
    (timeline,) = ordered(table(tmp_path, *lines))
    assert [files.case for files in timeline] == ["c", "b", "a"]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["a,a.nii,P,first", "b,b.nii,P,second"], "first, second"),
        (["a,a.nii,P,2", "b,b.nii,P,2"], "have no order"),
        (["a,a.nii,P,1", "b,b.nii,Q,2"], "no patient has two visits"),
    ],
)
def test_a_table_without_an_order_is_refused(lines, words, tmp_path):
    with pytest.raises(DatasetError, match=words):
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
    folders = {"before": None, "after": None, **given}
    with pytest.raises(ConfigError, match="give before= and after="):
        follow(output=tmp_path / "out", **folders)


def test_predictions_of_no_pair_are_refused(visits, tmp_path):
    for name in ("m6", "m12"):
        (tmp_path / "masks" / f"{name}.nii.gz").unlink()
    with pytest.raises(DatasetError, match="predictions of two visits"):
        follow(None, None, tmp_path / "out", visits=visits, predictions=tmp_path / "masks")

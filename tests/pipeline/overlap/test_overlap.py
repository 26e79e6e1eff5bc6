"""Which test cases a model has seen: by content, name, patient, and through earlier weights."""

import gzip
import shutil
from pathlib import Path

import numpy as np
import pytest

from lesionseg.core import Geometry, Volume
from lesionseg.errors import BundleError
from lesionseg.inference.bundles.bundle import write_bundle
from lesionseg.inference.bundles.model_card import model_card
from lesionseg.inference.bundles.training_cases import TrainingCase, hashed, read_training_cases
from lesionseg.io.atomic import read_csv
from lesionseg.io.volumes import write_volume
from lesionseg.models.build import build_network
from lesionseg.pipeline.dataset.data_settings import DataSettings
from lesionseg.pipeline.dataset.survey import take_survey
from lesionseg.pipeline.overlap import overlap
from lesionseg.pipeline.train.fine_tuning import training_cases
from lesionseg.plan.plan import Plan

GRID = Geometry.from_spacing((8, 8, 8), (1, 1, 1))


def write_scan(path: Path, seed: int) -> Path:
    image = np.random.default_rng(seed).normal(size=(1, 8, 8, 8)).astype(np.float32)
    write_volume(path, Volume(image, GRID))
    return path


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Four labelled cases of as many patients."""
    mask = np.zeros((1, 8, 8, 8), np.uint8)
    mask[:, 2:5, 2:5, 2:5] = 1
    lines = ["case,image,reference,group"]
    for i in range(4):
        write_scan(tmp_path / "raw" / f"c{i}.nii.gz", i)
        write_volume(tmp_path / "raw" / f"m{i}.nii.gz", Volume(mask, GRID))
        lines.append(f"Visit{i},c{i}.nii.gz,m{i}.nii.gz,P{i}")
    (tmp_path / "raw" / "manifest.csv").write_text("\n".join(lines))
    return tmp_path / "raw"


def bundle_of(folder: Path, plan: Plan, cases: tuple[TrainingCase, ...]) -> Path:
    write_bundle(folder, build_network(plan), plan, model_card(plan, cases=cases))
    return folder


@pytest.fixture
def bundle(tmp_path: Path, raw: Path, plan: Plan) -> Path:
    survey = take_survey(DataSettings(str(raw)), 0, tmp_path / "facts")
    return bundle_of(tmp_path / "bundle", plan, training_cases(survey, None))


def test_the_card_lists_all_development_cases_and_no_name(bundle: Path) -> None:
    seen = read_training_cases(bundle)
    assert {case.case for case in seen} == {hashed(f"visit{i}") for i in range(4)}
    assert {case.seen_as for case in seen} == {"train", "validation"}
    card = (bundle / "model_card.md").read_text()
    assert "has seen 4 cases" in card
    assert "Visit" not in card


def test_content_name_and_patient_each_tell(bundle: Path, raw: Path, tmp_path: Path) -> None:
    scans = tmp_path / "scans"
    scans.mkdir()
    with gzip.open(raw / "c0.nii.gz") as file:  # zipped anew, under another name
        (scans / "renamed.nii.gz").write_bytes(gzip.compress(file.read(), 1))
    write_scan(scans / "VISIT1.nii.gz", 11)
    write_scan(scans / "P2_follow_up.nii.gz", 12)
    write_scan(scans / "stranger.nii.gz", 13)
    outcome = overlap(bundle, scans, tmp_path / "out", group="(P[0-9]|.+)")
    assert {row.case: row.same for row in outcome} == {
        "renamed": "image",
        "VISIT1": "case",
        "P2_follow_up": "patient",
        "stranger": "nothing",
    }
    assert outcome.exit_status == 1
    assert outcome.summary()[0].startswith("3 of 4 cases have been seen by the model (1 by image")
    rows = read_csv(tmp_path / "out" / "overlap.csv")
    assert {row["case"]: row["seen_as"] for row in rows}["stranger"] == ""


def test_a_clean_test_set_leaves_with_0(bundle: Path, tmp_path: Path) -> None:
    outcome = overlap(bundle, write_scan(tmp_path / "new.nii.gz", 20), tmp_path)
    assert outcome.exit_status == 0
    assert [row.same for row in outcome] == ["nothing"]


def test_of_a_dataset_with_test_cases_these_are_compared(
    bundle: Path, raw: Path, tmp_path: Path
) -> None:
    table = raw / "manifest.csv"
    lines = table.read_text().splitlines()
    roles = ["role", "train", "train", "train", "test"]
    table.write_text("\n".join(f"{a},{b}" for a, b in zip(lines, roles, strict=True)))
    assert [row.case for row in overlap(bundle, raw, tmp_path)] == ["Visit3"]


def test_cases_of_earlier_weights_are_carried_along(
    bundle: Path, raw: Path, plan: Plan, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_bundle(tmp_path / "old", build_network(plan), plan, "no list")
    survey = take_survey(DataSettings(str(raw)), 0)
    later = training_cases(survey, str(bundle))
    assert sorted(case.seen_as for case in later).count("earlier") == 4
    unknown = bundle_of(tmp_path / "new", plan, training_cases(survey, str(tmp_path / "old")))
    assert "It began with weights whose cases are not known." in (
        unknown / "model_card.md"
    ).read_text("utf-8")
    overlap([unknown], write_scan(tmp_path / "a.nii.gz", 5), tmp_path)
    assert "may have seen any" in caplog.text


def test_a_bundle_without_a_list_is_refused(bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle, tmp_path / "bare")
    (tmp_path / "bare" / "model_card.md").write_text("# a card of an earlier version\n")
    with pytest.raises(BundleError, match=r"(?s)does not say which cases.*How to fix"):
        overlap(tmp_path / "bare", tmp_path, tmp_path)

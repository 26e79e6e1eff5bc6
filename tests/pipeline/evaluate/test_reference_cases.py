"""Which cases are judged: of datasets in every layout, and of the roles that were predicted."""

import json
import logging

import numpy as np
import pytest

from lesionseg.core import CaseFiles, Volume
from lesionseg.errors import DatasetError
from lesionseg.io.volumes import write_volume
from lesionseg.pipeline.evaluate.recipe import evaluate
from lesionseg.pipeline.evaluate.reference_cases import of_role, open_reference
from tests.pipeline.evaluate.test_evaluate_recipe import GEOMETRY, SHAPE, lesions, write_mask

ROLES = {"a": None, "b": None, "c": "test", "d": "test"}


def cases(roles):
    return [CaseFiles(case, (), role=role) for case, role in roles.items()]


def judged(roles, predicted, evaluated_on=None):
    return "".join(c.case for c in of_role(cases(roles), predicted, evaluated_on))


@pytest.mark.parametrize(
    ("predicted", "evaluated_on", "expected"),
    [
        ("cd", None, "cd"),  # only the test part was predicted
        ("c", None, "cd"),  # d is missed: some of its role were predicted
        ("a", None, "ab"),
        ("ac", None, "abcd"),
        ("", None, "abcd"),  # nothing in common: the caller says so
        ("abcd", "test", "cd"),
        ("ab", "test", "cd"),  # asked for, so missed
        ("abcd", "train", "ab"),
        ("cd", "validation", "ab"),
        ("cd", "external", "cd"),  # where the scans come from, not which of them
        ("abcd", "external", "abcd"),
    ],
)
def test_the_roles_asked_for_or_predicted(predicted, evaluated_on, expected):
    assert judged(ROLES, predicted, evaluated_on) == expected


def test_without_roles_every_case_is_judged():
    plain = dict.fromkeys("abc")
    assert judged(plain, "a") == judged(plain, "a", "test") == "abc"


def test_a_stated_external_role_is_a_role_like_others():
    roles = {"a": "train", "b": "external"}
    assert judged(roles, "ab", "external") == "b"
    assert judged(roles, "ab") == "ab"


def test_a_role_that_no_case_has_is_refused():
    with pytest.raises(DatasetError, match=r"evaluated_on.*validation.*test or train"):
        of_role(cases({"a": "train", "b": "test"}), "ab", "validation")


def test_what_is_left_out_is_said_with_how_to_include_it(caplog):
    with caplog.at_level(logging.INFO):
        judged(ROLES, "cd")
        judged(ROLES, "ab")
        judged(ROLES, "ab", "train")
    first, second, third = [record.getMessage() for record in caplog.records]
    assert "2 cases to train or validate on; evaluated_on=train judges them" in first
    assert "2 cases of the role test; evaluated_on=test judges them" in second
    assert "of the role train; left out: 2 of other roles" in third


@pytest.fixture
def raw(tmp_path):
    """nnU-Net raw: a and b to train on, c and d to test on, a lesion each."""
    root = tmp_path / "raw"
    image = np.random.default_rng(0).normal(100, 10, SHAPE).astype(np.float32)
    for name, role in ROLES.items():
        part = "Ts" if role else "Tr"
        (root / f"images{part}").mkdir(parents=True, exist_ok=True)
        write_volume(root / f"images{part}" / f"{name}_0000.nii.gz", Volume(image[None], GEOMETRY))
        write_mask(root / f"labels{part}" / f"{name}.nii.gz", lesions(1))
    about = {"channel_names": {"0": "T1"}, "labels": {"background": 0, "lesion": 1}}
    (root / "dataset.json").write_text(json.dumps({**about, "file_ending": ".nii.gz"}))
    return root


def test_predictions_of_the_test_part_alone(raw, tmp_path, caplog):
    """Training cases are no misses, unless they are asked for."""
    for name in "cd":
        write_mask(tmp_path / "found" / f"{name}.nii.gz", lesions(1, [0]))
    where = (raw, tmp_path / "found", tmp_path / "out")
    with caplog.at_level(logging.INFO):
        scores = evaluate(*where, replicates=5).scores
    assert (scores["n_cases"], scores["n_missed"]) == (2, 0)
    assert scores["missing_predictions"] == []
    assert scores["evaluated_on"] == "test"  # imagesTs and labelsTs say so
    assert "left out" in caplog.text.lower()
    write_mask(tmp_path / "found" / "a.nii.gz", lesions(1, [0]))
    mixed = evaluate(*where, replicates=5).scores
    assert (mixed["missing_predictions"], mixed["evaluated_on"]) == (["b"], "unknown")
    caplog.clear()
    scores = evaluate(*where, evaluated_on="test", replicates=5).scores
    assert (scores["n_cases"], scores["evaluated_on"]) == (2, "test")
    assert "No reference" not in caplog.text  # a has one, and is not judged
    assert evaluate(*where, evaluated_on="train", replicates=5).scores["missing_predictions"] == [
        "b"
    ]


def test_a_bids_folder_is_a_reference_and_its_masks_alone_are_a_folder(tmp_path):
    root, name = tmp_path / "bids", "sub-01_ses-a"
    image = Volume(np.ones((1, *SHAPE), dtype=np.float32), GEOMETRY)
    for folder in (root / "sub-01" / "ses-a" / "anat", tmp_path / "found"):
        folder.mkdir(parents=True)
    write_volume(root / "sub-01" / "ses-a" / "anat" / f"{name}_FLAIR.nii.gz", image)
    place = root / "derivatives" / "lesions" / "sub-01" / "ses-a" / "anat"
    write_mask(place / f"{name}_label-lesion_mask.nii.gz", lesions(2))
    write_mask(tmp_path / "found" / f"{name}.nii.gz", lesions(2, [0]))
    scores = evaluate(root, tmp_path / "found", tmp_path / "out", replicates=5).scores
    assert (scores["n_lesions"], scores["n_true_positive"]) == (2, 1)
    assert scores["provenance"]["convention"] == "bids"
    assert open_reference(place) is None


def test_a_datalist_is_a_reference(tmp_path):
    image = Volume(np.ones((1, *SHAPE), dtype=np.float32), GEOMETRY)
    for name in "ab":
        (tmp_path / "data").mkdir(exist_ok=True)
        write_volume(tmp_path / "data" / f"{name}.nii.gz", image)
        write_mask(tmp_path / "data" / "masks" / f"{name}.nii.gz", lesions(1))
    entry = {"image": "{}.nii.gz", "label": "masks/{}.nii.gz"}
    parts = {
        part: [{k: v.format(c) for k, v in entry.items()}]
        for part, c in (("training", "a"), ("test", "b"))
    }
    (tmp_path / "data" / "datalist.json").write_text(json.dumps(parts))
    write_mask(tmp_path / "found" / "b.nii.gz", lesions(1, [0]))
    scores = evaluate(tmp_path / "data", tmp_path / "found", tmp_path / "out", replicates=5).scores
    assert (scores["n_cases"], scores["n_true_positive"]) == (1, 1)
    assert scores["provenance"]["convention"] == "datalist"


def test_a_folder_of_masks_and_one_that_is_not_there_are_no_dataset(tmp_path):
    write_mask(tmp_path / "masks" / "a.nii.gz", lesions(1))
    assert open_reference(tmp_path / "masks") is None
    assert open_reference(tmp_path / "gone") is None

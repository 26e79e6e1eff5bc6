"""The survey of a dataset before a training: roles, and the cases of the fingerprint."""

from contextlib import nullcontext

import numpy as np
import pytest

from lesionseg.config import DataConfig, TrainConfig
from lesionseg.errors import DatasetError, TrainingError
from lesionseg.io.text import write_json
from lesionseg.pipeline.cross_validate import cross_validate
from lesionseg.pipeline.dataset_inspection import inspect_dataset, require_masks
from lesionseg.pipeline.experiment import Experiment
from tests.flow.cases import write_raw
from tests.io.layouts.box_folders import X0, X1, Y0, Y1, write_picture
from tests.pipeline.cases import boxes, write_array


@pytest.fixture
def write_eight_cases(tmp_path):
    """Return a function that writes the cases P00 to P07, each with a lesion of side 2 + number."""

    def write(splits=None):
        cases = {}
        for k in range(8):
            mask = boxes((16, 16, 16), (2, 2, 2, 2 + k))
            cases[f"P0{k}"] = ("Tr", np.random.default_rng(k).normal(100, 5, mask.shape), mask)
        root = write_raw(tmp_path / "Dataset001_eight", {"background": 0, "lesion": 1}, cases)
        if splits is not None:
            write_json(root / "splits_final.json", splits)
        return root

    return write


HELD_OUT = [
    {"train": ["P00", "P01", "P02", "P03"], "val": ["P04", "P05"], "test": ["P06"]},
    {"train": ["P04", "P05", "P02", "P03"], "val": ["P00", "P01"], "test": ["P06"]},
]


def test_cases_that_a_split_file_tests_or_leaves_out_do_not_train(
    write_eight_cases, tmp_path, caplog
):
    settings = {"root": str(write_eight_cases()), "splits": str(tmp_path / "mine.json")}
    write_json(tmp_path / "mine.json", HELD_OUT)
    inspection = inspect_dataset(DataConfig.of(**settings), seed=0)
    for role, cases in zip(("train", "validation", "test"), HELD_OUT[0].values(), strict=True):
        assert [c.case for c in inspection.of_role(role)] == cases
    assert "leaves out 1 labelled case, not used here: P07" in caplog.text
    # the fingerprint leaves them out, too: the lesions of P06 and P07 are the largest
    assert sorted(inspection.fingerprint.lesion_voxels) == [(2 + k) ** 3 for k in range(6)]
    second = inspect_dataset(DataConfig.of(fold=1, **settings), seed=0)
    assert [c.case for c in second.of_role("train")] == ["P02", "P03", "P04", "P05"]


def test_cross_validation_plans_for_the_cases_of_all_folds(write_eight_cases, caplog):
    folds = [{"train": ["P00", "P01"], "val": ["P02"]}, {"train": ["P02", "P05"], "val": ["P00"]}]
    inspection = inspect_dataset(
        DataConfig.of(root=str(write_eight_cases(folds)), fold="all"), seed=0
    )
    assert sorted(inspection.fingerprint.lesion_voxels) == [(2 + k) ** 3 for k in (0, 1, 2, 5)]
    assert "P03, P04, P06, P07" in caplog.text


def write_boxed_cases(root, role):
    """Write five pictures with masks, and the picture `boxed` of a role with a box and no mask."""
    lines = ["case,image,reference,role", f"boxed,boxed.png,,{role}"]
    write_picture(root / "boxed.png")
    for name in ("f0", "f1", "f2", "f3", "f4"):
        write_picture(root / f"{name}.png")
        write_array(root / f"{name}_mask.nii.gz", boxes((40, 64), (8, 20, 6)))
        lines.append(f"{name},{name}.png,{name}_mask.nii.gz,")
    (root / "manifest.csv").write_text("\n".join(lines))
    (root / "boxes.csv").write_text(f"case,label,x0,y0,x1,y1\nboxed,lesion,{X0},{Y0},{X1},{Y1}\n")
    return root


@pytest.mark.parametrize("role", ["test", "external", "train", "validation"])
def test_only_development_cases_with_boxes_stop_the_training_of_a_segmenter(tmp_path, role):
    inspection = inspect_dataset(
        DataConfig.of(root=write_boxed_cases(tmp_path / "raw", role)), seed=0
    )
    assert inspection.counts["boxed"] == 1
    match = r"1 reference without a mask \(case boxed: 1 box\)"
    is_scored = role in ("test", "external")
    for model in ("unet", "retina_unet"):
        with nullcontext() if is_scored else pytest.raises(DatasetError, match=match):
            require_masks(inspection, model)


@pytest.mark.parametrize(
    ("second", "group", "match"),
    [
        ({"train": ["P01", "P02"], "val": ["P00"]}, None, "'P02' is a test case of fold 0, but"),
        (
            {"train": ["P01", "P03"], "val": ["P00"]},  # P02 and P03 are one patient
            "(P0[014567]|P0(?=[23]))",
            "on 'P03' of the same patient",
        ),
        ({"train": ["P00", "P01"], "val": []}, None, r"no case is left to validate on .*fold 1"),
    ],
)
def test_folds_that_cannot_form_an_ensemble_are_refused_before_training(
    write_eight_cases, tmp_path, second, group, match
):
    folds = [{"train": ["P00"], "val": ["P01"], "test": ["P02"]}, second]
    data = {"root": str(write_eight_cases(folds)), "fold": "all", "group": group}
    cfg = TrainConfig.of(data=data)
    experiment = Experiment.open(cfg, tmp_path / "run")
    with pytest.raises(DatasetError, match=match):
        cross_validate(experiment)
    assert not (tmp_path / "run").exists()


def test_folds_with_the_same_test_cases_are_trained(write_eight_cases, tmp_path, monkeypatch):
    def begin(*_):
        raise TrainingError("training begins")

    monkeypatch.setattr("lesionseg.pipeline.cross_validate.begin", begin)
    folds = [
        {"train": ["P00"], "val": ["P01"], "test": ["P02"]},
        {"train": ["P01"], "val": ["P00"], "test": ["P02"]},
    ]
    data = {"root": str(write_eight_cases(folds)), "fold": "all"}
    experiment = Experiment.open(TrainConfig.of(data=data), tmp_path / "run")
    with pytest.raises(TrainingError, match="training begins"):
        cross_validate(experiment)

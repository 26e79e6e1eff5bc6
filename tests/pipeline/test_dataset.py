"""What a survey needs of a dataset, and simulated datasets."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from lesionseg.cli import run
from lesionseg.config import DataConfig
from lesionseg.errors import ConfigError, DatasetError
from lesionseg.phantoms import SETTINGS, simulate_once, write_xray_phantoms
from lesionseg.pipeline.dataset import may_lack, take_survey


def test_training_leaves_out_no_only_channel():
    with pytest.raises(ConfigError):
        may_lack(DataConfig.of(channel_dropout=0.3), ("FLAIR",))


def boxed(root, box=(8, 10, 9, 8)):
    """Four radiographs of 32 by 32 as COCO boxes, one of them lesion-free."""
    (root / "images").mkdir(parents=True)
    images, boxes = [], []
    for i in range(4):
        Image.fromarray(np.full((32, 32), 90, np.uint8)).save(root / "images" / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "width": 32, "height": 32})
        boxes.append({"id": i, "image_id": i, "category_id": 1, "bbox": [*box]})
    content = {"images": images, "annotations": boxes[1:], "categories": [{"id": 1, "name": "n"}]}
    (root / "annotations.json").write_text(json.dumps(content))
    return root


@pytest.mark.parametrize("model", ["unet", "retina_unet"])
def test_boxes_alone_teach_no_voxels(model, tmp_path, capsys):
    root, folder = boxed(tmp_path / "raw"), tmp_path / "run"
    assert run("train", [f"data.root={root}", f"run_dir={folder}", f"model={model}"]) == 1
    assert "3 references without a mask (case 1: 1 box)" in capsys.readouterr().err
    assert not folder.exists()


def test_a_set_of_bad_cases_without_lesions_or_references_cannot_be_used(tmp_path):
    data = DataConfig.of(root=boxed(tmp_path / "raw", box=(40, 40, 5, 5)))
    with pytest.raises(DatasetError, match=r"(?s)3 cases cannot be used(.*outside){3}"):
        take_survey(data, seed=0)
    table = tmp_path / "raw" / "annotations.json"
    table.write_text(json.dumps({**json.loads(table.read_text()), "annotations": []}))
    with pytest.raises(DatasetError, match="no lesion in 4 references"):
        take_survey(data, seed=0)
    (tmp_path / "raw" / "manifest.csv").write_text("case,image\na,images/0.png\n")
    with pytest.raises(DatasetError, match=r"no reference to learn from \(1 case\)"):
        take_survey(data, seed=0)


def test_a_dataset_is_simulated_once(tmp_path, monkeypatch):
    def write(folder, n_cases, *, progress):
        folder.mkdir()
        if not n_cases:
            raise KeyboardInterrupt
        (folder / "scan").touch()

    monkeypatch.setattr("lesionseg.phantoms.write_mri_phantoms", write)
    root = tmp_path / "new" / "set"
    with pytest.raises(KeyboardInterrupt):
        simulate_once(root, {"kind": "mri", "n_cases": 0})
    assert list(root.parent.iterdir()) == []
    simulate_once(root, {"kind": "mri", "n_cases": 2})
    assert sorted(p.name for p in root.iterdir()) == ["scan", SETTINGS]
    (root / "scan").unlink()
    simulate_once(root, {"kind": "mri", "n_cases": 2})
    assert not (root / "scan").exists()
    with pytest.raises(ConfigError):
        simulate_once(root, {"kind": "mri", "n_cases": 3})


def test_a_test_role_is_safe_where_its_patients_are_others(tmp_path):
    write_xray_phantoms(tmp_path / "raw", 4, seed=0, shape=(48, 48), pixel_mm=8.0)
    survey = take_survey(DataConfig.of(root=tmp_path / "raw"), 0)
    first, *others = survey.dataset.cases
    for tested in ("other", "same"):
        cases = (replace(first, group=tested), *(replace(c, group="same") for c in others))
        roles = survey.splits.roles | {first.case: "test"} | {c.case: "train" for c in others[1:]}
        roles[others[0].case] = "validation"  # the one patient to train and validate on
        given = replace(survey.splits, roles=roles, group_safe=False)
        found = replace(survey, dataset=replace(survey.dataset, cases=cases), splits=given)
        assert not found.is_group_safe("validation")
        assert found.is_group_safe("test") == (tested == "other")

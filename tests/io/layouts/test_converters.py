"""The converters of `examples/`: what they write is read as a manifest."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from lesionseg.core import Volume, equivalent_diameter_mm
from lesionseg.io.cases import read_case
from lesionseg.io.layouts import read_dataset
from lesionseg.io.volumes import write_volume
from lesionseg.ops.components import lesions_of
from tests.io.dicom_files import grid_of

sys.path.append(str(Path(__file__).parents[3] / "examples"))
import luna16_to_manifest
import nndetection_to_manifest


def references(root):
    dataset = read_dataset(root)
    return {files.case: read_case(files, dataset).reference for files in dataset.cases}


def test_luna16_nodules_are_balls_and_excluded_findings_are_ignored(tmp_path):
    geometry = grid_of("SPL", (2.0, 1.0, 1.0), shape=(20, 40, 40))
    for fold, uid in enumerate(("1.3.6.1", "1.3.6.2")):
        array = np.full((1, *geometry.shape), fold, np.int16)
        write_volume(tmp_path / f"subset{fold}" / f"{uid}.mha", Volume(array, geometry))
    header = "seriesuid,coordX,coordY,coordZ,diameter_mm\n"
    lps = geometry.to_mm([(10, 20, 15), (4, 30, 30), (10, 8, 8)]) * (-1, -1, 1)
    rows = [f"1.3.6.1,{x},{y},{z},{d}\n" for (x, y, z), d in zip(lps, (9.0, 0.3, -1), strict=True)]
    (tmp_path / "annotations.csv").write_text(header + "".join(rows[:2]))
    (tmp_path / "annotations_excluded.csv").write_text(header + rows[2])
    luna16_to_manifest.convert(tmp_path)
    assert {c.case: c.fold for c in read_dataset(tmp_path).cases} == {"1.3.6.1": 0, "1.3.6.2": 1}
    found = references(tmp_path)
    assert found["1.3.6.1"].labels[4, 30, 30] == 1, "smaller than a voxel, and kept"
    diameters = lesions_of(found["1.3.6.1"]).diameters_mm
    assert sorted(diameters) == pytest.approx([1.563, 9], rel=0.05)
    ignored = int(found["1.3.6.1"].ignore.sum()) * geometry.voxel_size
    assert equivalent_diameter_mm(ignored, 3) == pytest.approx(10, rel=0.05)
    assert not found["1.3.6.2"].labels.any()


@pytest.mark.parametrize("classes", [["nodule"], ["benign", "malignant"]])
def test_nndetection_instances_get_their_classes(tmp_path, write_nifti, classes):
    mask = np.zeros((5, 4, 3), np.uint8)
    mask[1, 2, 0], mask[4, 0, 2] = 1, 7
    home = tmp_path / "raw_splitted"
    write_nifti(home / "imagesTr" / "c1_0000.nii.gz", np.ones(mask.shape, np.int16))
    write_nifti(home / "labelsTr" / "c1.nii.gz", mask)
    instances = {"1": len(classes) - 1, "7": 0}
    (home / "labelsTr" / "c1.json").write_text(json.dumps({"instances": instances}))
    labels = {str(i): name for i, name in enumerate(classes)}
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels, "dim": 3}))
    nndetection_to_manifest.convert(tmp_path)
    assert read_dataset(tmp_path).labels == dict(enumerate(classes, start=1))
    found = references(tmp_path)["c1"]
    assert found.labels[0, 2, 1] == len(classes)
    assert found.labels[2, 0, 4] == 1
    assert len(lesions_of(found)) == 2

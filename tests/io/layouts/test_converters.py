"""A converter of `examples/`: what it writes is read as a manifest. LUNA16 has a flow test."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from lesionseg.io.cases import read_case
from lesionseg.io.layouts import read_dataset
from lesionseg.ops.components import lesions_of

sys.path.append(str(Path(__file__).parents[3] / "examples"))
import nndetection_to_manifest


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
    dataset = read_dataset(tmp_path)
    assert dataset.labels == dict(enumerate(classes, start=1))
    found = read_case(dataset.cases[0], dataset).reference
    assert found.labels[0, 2, 1] == len(classes)
    assert found.labels[2, 0, 4] == 1
    assert len(lesions_of(found)) == 2

"""Round trips of every file format through a dataset, and reading of real scans."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lesionseg.core import Geometry, Volume
from lesionseg.io.cases import read_case
from lesionseg.io.layouts import read_dataset
from lesionseg.io.text import write_json
from lesionseg.io.volumes import write_volume
from lesionseg.ops.components import lesions_of
from tests.io.dicom_files import (
    CT,
    grid_of,
    slice_elements,
    write_dicom_file,
    write_manifest,
    write_rtstruct,
    write_seg,
)

ROOT = Path(os.environ.get("LESIONSEG_DATA", Path(__file__).parents[3] / "shared" / "data"))
VOLUMES = [".nii", ".nii.gz", ".nrrd", ".mha"]
PICTURES = [".png", ".tif", ".tiff", ".bmp"]
GRID = grid_of("SPL")  # the orientation of axial DICOM slices
FLAT = Geometry.from_spacing((4, 6), (1.0, 1.0))
IMAGE = np.arange(5 * 4 * 6, dtype=np.uint8).reshape(5, 4, 6) + 7
MASK = np.zeros_like(IMAGE)
MASK[1, 2, 1:4] = 1  # three voxels in a row, in the slice that pictures show


def write_as(path, array):
    """Write a volume, a picture of slice 1 or a DICOM series, depending on the suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == "":
        for z, piece in enumerate(array.astype(np.uint16)):
            facts = {"Modality": "CT", "SliceThickness": 3, **slice_elements(GRID, z)}
            write_dicom_file(path / f"{z}.dcm", piece, CT, **facts)
    elif path.suffix == ".bmp":
        Image.fromarray(array[1]).save(path)
    elif path.suffix in PICTURES:
        write_volume(path, Volume(array[1:2], FLAT))
    else:
        write_volume(path, Volume(array[np.newaxis], GRID))


def check(root, layout):
    """Check the only case of a dataset against `IMAGE` and `MASK`, or their slice 1 in 2-D."""
    dataset = read_dataset(root)
    assert dataset.layout == layout
    (files,) = dataset.cases
    case = read_case(files, dataset)
    place, geometry = (np.s_[:], GRID) if dataset.dims == 3 else (1, FLAT)
    np.testing.assert_array_equal(case.image.array[0], IMAGE[place])
    assert case.image.geometry.distance_mm(geometry) < 1e-4
    np.testing.assert_array_equal(case.reference.labels > 0, MASK[place] > 0)


@pytest.mark.parametrize("ending", [*PICTURES, *VOLUMES])
def test_case_survives_a_round_trip_in_every_format(tmp_path, ending):
    write_as(tmp_path / "imagesTr" / f"A_0000{ending}", IMAGE)
    write_as(tmp_path / "labelsTr" / f"A{ending}", MASK)
    facts = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "lesion": 1}}
    write_json(tmp_path / "dataset.json", facts)
    check(tmp_path, "nnunet")


@pytest.mark.parametrize("reference", ["seg.dcm", "rtstruct.dcm", "m.nii.gz"])
@pytest.mark.parametrize("kind", ["", ".nii.gz"])
def test_dicom_series_with_dicom_references_survive_a_round_trip(tmp_path, kind, reference):
    write_as(tmp_path / f"scan{kind}", IMAGE)
    corners = ((1.5, 0.5), (1.5, 3.5), (2.5, 3.5), (2.5, 0.5))
    write_rtstruct(tmp_path / "rtstruct.dcm", GRID, (1, corners))
    write_seg(tmp_path / "seg.dcm", GRID, {"lesion": MASK > 0})
    write_as(tmp_path / "m.nii.gz", MASK)
    write_manifest(tmp_path, f"scan{kind}", reference)
    check(tmp_path, "manifest")


# set, layout, cases, test cases, groups, lesions (None if findings have two names)
SETS = [
    ("mri/ms_cs", "nnunet", 4, 0, 2, 122),
    ("mri/ms_flair_mini", "nnunet", 4, 2, 2, 122),
    ("mri/sts_mr", "nnunet", 16, 4, 16, 16),
    ("ct/lung_nodule_cubes", "nnunet", 104, 15, 104, 104),
    ("xray/lidc_drr", "coco", 230, 0, 228, 572),
    ("xray/nih_nodule_mass", "coco", 136, 0, 121, 96),
    ("xray/chestxdet_nih", "coco", 28, 0, 27, None),
]


@pytest.mark.data
@pytest.mark.parametrize(("name", "layout", "n_cases", "n_test", "n_groups", "n_lesions"), SETS)
def test_every_case_of_a_real_dataset_is_read(name, layout, n_cases, n_test, n_groups, n_lesions):
    if not (ROOT / name).is_dir():
        pytest.skip(f"no {name} here")
    dataset = read_dataset(ROOT / name)
    assert (dataset.layout, len(dataset.cases)) == (layout, n_cases)
    assert sum(c.role == "test" for c in dataset.cases) == n_test
    assert len({c.group for c in dataset.cases}) == n_groups
    found = 0
    for files in dataset.cases:
        case = read_case(files, dataset)
        assert len(case.image.array) == len(dataset.channel_names)
        found += len(lesions_of(case.reference).ids)
    assert n_lesions is None or found == n_lesions

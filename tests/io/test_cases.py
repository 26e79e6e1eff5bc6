"""Cases: a common grid, finite images, and masks with known values."""

import re
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from lesionseg.core import CaseFiles, Dataset, Geometry, Labels
from lesionseg.errors import ContentError, DatasetError, GeometryError, ReadError
from lesionseg.io.cases import read_case, read_finite, read_image
from lesionseg.io.inspection import inspect_case
from lesionseg.io.masks import read_mask
from lesionseg.io.volumes import read_volume


@pytest.fixture
def dataset(tmp_path, write_nifti):
    """Write a case of two int16 channels and a mask of 0, 1 and 4. Value 4 is ignored."""
    first = write_nifti(tmp_path / "A_0000.nii.gz", np.full((5, 4, 3), 10, np.int16))
    second = write_nifti(tmp_path / "A_0001.nii.gz", np.full((5, 4, 3), 11, np.int16))
    mask = np.zeros((5, 4, 3), np.uint8)
    mask[0, 1, 2] = 1
    mask[4, 3, 0] = 4
    reference = write_nifti(tmp_path / "A.nii.gz", mask)
    return Dataset(
        name="toy",
        root=tmp_path,
        layout="nnunet",
        dims=3,
        channel_names=("T1", "T2"),
        labels=Labels((1,), ("lesion",), ignore=4),
        cases=(CaseFiles("A", (first, second), reference, group="p1"),),
    )


def test_case_has_all_channels_and_its_reference_on_one_grid(dataset):
    case = read_case(dataset.cases[0], dataset)
    assert (case.case, case.group) == ("A", "p1")
    assert (case.image.array.dtype, case.image.array.shape) == (np.float32, (2, 3, 4, 5))
    assert case.image.array[:, 0, 0, 0].tolist() == [10, 11]
    reference = case.reference
    assert np.argwhere(reference.labels).tolist() == [[2, 1, 0]]  # in array order
    assert np.argwhere(reference.ignore).tolist() == [[0, 3, 4]]
    assert reference.instances is None
    assert reference.boxes is None
    assert read_case(replace(dataset.cases[0], reference=None), dataset).reference is None


@pytest.mark.parametrize("name", ["A_0001.nii.gz", "A.nii.gz"])
def test_grids_within_half_a_voxel_are_accepted_as_equal(dataset, write_nifti, name, caplog):
    moved = np.eye(4)
    array = np.zeros((5, 4, 3), np.int16)
    for mm in (0.0009, 0.45):
        caplog.clear()
        moved[0, 3] = mm
        write_nifti(dataset.root / name, array, moved)
        case = read_case(dataset.cases[0], dataset)
        assert case.reference.geometry.matches(case.image.geometry, 0)
        assert (f"{mm:g} mm apart" in caplog.text) == (mm > 0.001)


@pytest.mark.parametrize("name", ["A_0001.nii.gz", "A.nii.gz"])
def test_grids_with_another_shape_or_over_half_a_voxel_away_are_an_error(
    dataset, write_nifti, name
):
    array = np.zeros((5, 4, 3), np.int16)
    moved = np.eye(4)
    moved[0, 3] = 0.55
    for other, match in ((array, r"0\.55 mm"), (array[..., :2], r"\(2, 4, 5\).*\(3, 4, 5\)")):
        write_nifti(dataset.root / name, other, moved)
        with pytest.raises(GeometryError, match=rf"{name} and A_0000\.nii\.gz.*{match}"):
            read_case(dataset.cases[0], dataset)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_error_counts_nan_and_infinite_voxels(dataset, write_nifti, value):
    image = np.zeros((5, 4, 3))
    image[0, 0, :2] = value
    write_nifti(dataset.root / "A_0001.nii.gz", image)
    with pytest.raises(ContentError, match=r"A_0001\.nii\.gz.*2 voxels"):
        read_case(dataset.cases[0], dataset)


@pytest.mark.parametrize("value", [0.5, np.nan, np.inf, -1, 1e12, 255])
def test_unknown_mask_values_are_an_error(dataset, write_nifti, value):
    mask = np.zeros((5, 4, 3))
    mask[0, 0, 0] = value
    write_nifti(dataset.root / "A.nii.gz", mask)
    with pytest.raises(ContentError, match=r"A\.nii\.gz"):
        read_case(dataset.cases[0], dataset)


def test_case_without_a_file_per_channel_is_an_error(dataset):
    files = replace(dataset.cases[0], images=dataset.cases[0].images[:1])
    with pytest.raises(DatasetError, match=r"'A' does not have one file per channel.*A_0000"):
        read_case(files, dataset)


@pytest.fixture
def picture(tmp_path):
    Image.fromarray(np.zeros((4, 5), np.uint8)).save(tmp_path / "A.png")
    return CaseFiles("A", (tmp_path / "A.png",))


def test_picture_in_a_dataset_of_volumes_is_an_error(dataset, picture):
    dataset = replace(dataset, channel_names=("T1",))
    with pytest.raises(GeometryError, match="dataset have 3 axes"):
        read_image(picture, dataset)
    with pytest.raises(GeometryError, match="model reads images with 3 axes"):
        read_image(picture, dataset, is_input=True)


def test_pixel_size_comes_from_the_column_pixel_mm(dataset, picture, tmp_path):
    files = replace(picture, columns={"pixel_mm": "0.5"})
    flat = replace(dataset, dims=2, channel_names=("image",))
    mask = tmp_path / "m.png"
    mask.write_bytes(files.images[0].read_bytes())
    case = read_case(replace(files, reference=mask), flat)
    assert case.image.geometry.spacing_mm == (0.5, 0.5)
    with pytest.raises(DatasetError, match="pixel_mm of 'A'"):
        read_image(replace(files, columns={"pixel_mm": "half"}), flat)


def test_large_mask_with_one_bit_per_pixel_is_read(tmp_path):
    Image.fromarray(np.zeros((2048, 2048), bool)).save(tmp_path / "m.png")
    assert not read_mask(tmp_path / "m.png").labels.any()


def test_mask_of_any_dtype_gives_the_same_labels(tmp_path, write_nifti):
    for dtype in ("float32", "float64", "int16", "int32", "uint16"):
        mask = np.zeros((5, 4, 3), dtype)
        mask[0, 0, 0] = 7
        mask[1, 1, 1] = 300
        labels = read_mask(write_nifti(tmp_path / "m.nii.gz", mask)).labels
        assert labels.dtype == np.uint16
        assert np.unique(labels).tolist() == [0, 7, 300]


def test_labels_that_the_header_scales_are_rounded_with_a_warning(tmp_path, write_nifti, caplog):
    mask = np.zeros((5, 4, 3), np.float32)
    mask[0, 0, 0] = 1.0000153
    mask[1, 1, 1] = 1.9992
    labels = read_mask(write_nifti(tmp_path / "m.nii.gz", mask)).labels
    assert np.unique(labels).tolist() == [0, 1, 2]
    assert "m.nii.gz: mask values such as 1.0000" in caplog.text


@pytest.mark.parametrize(
    ("values", "words"),
    [([0.2, 1.0], "threshold"), ([0.5, 3.0], "nearest-neighbour"), ([1, np.inf], "such as inf")],
)
def test_mask_values_that_are_not_integers_are_an_error(tmp_path, write_nifti, values, words):
    mask = np.zeros((5, 4, 3), np.float32)
    mask[0, 0, :2] = values
    with pytest.raises(ContentError, match=rf"m\.nii.*{words}"):
        read_mask(write_nifti(tmp_path / "m.nii", mask))


@pytest.mark.parametrize("name", ["m.nii.gz", "m.nrrd"])
def test_mask_of_several_layers_gets_advice_for_masks(tmp_path, write_nifti, name):
    path = tmp_path / name
    if name.endswith(".nrrd"):
        layers = np.zeros((3, 4, 5, 2), np.uint8)
        sitk.WriteImage(sitk.GetImageFromArray(layers, isVector=True), str(path))
    else:
        write_nifti(path, np.zeros((5, 4, 3, 2), np.uint8))
    with pytest.raises(ReadError, match="one label map"):
        read_mask(path)
    with pytest.raises(ReadError, match="_0000"):
        read_volume(path)


def test_nan_voxels_become_background_if_declared(dataset, write_nifti):
    outside = np.zeros((5, 4, 3), bool)
    outside[:, :2] = True
    for lowest, expected in ((100.0, 0.0), (-1000.0, -1000.0)):  # a magnitude, Hounsfield units
        image = np.full((5, 4, 3), lowest + 7, np.float32)
        image[0, 3, 0] = lowest
        image[outside] = np.nan
        write_nifti(dataset.root / "A_0001.nii.gz", image)
        with pytest.raises(ContentError, match=r"30 voxels are NaN.*data\.nan=background"):
            read_case(dataset.cases[0], dataset)
        case = read_case(dataset.cases[0], replace(dataset, nan_background=True))
        assert set(case.image.array[1].T[outside].tolist()) == {expected}
        assert set(case.image.array[1].T[~outside].tolist()) == {lowest, lowest + 7}
        assert case.image.array[0].min() == 10


def test_infinity_is_an_error_even_if_nan_is_background(dataset, write_nifti):
    image = np.ones((5, 4, 3), np.float32)
    image[:, :2] = np.nan
    image[4, 3, 2] = np.inf
    write_nifti(dataset.root / "A_0001.nii.gz", image)
    with pytest.raises(ContentError, match="1 voxels are NaN or infinity"):
        read_case(dataset.cases[0], replace(dataset, nan_background=True))


def test_channel_of_only_nan_is_an_error_even_if_nan_is_background(dataset, write_nifti):
    write_nifti(dataset.root / "A_0001.nii.gz", np.full((5, 4, 3), np.nan, np.float32))
    with pytest.raises(ContentError, match="60 voxels are NaN or infinity"):
        read_case(dataset.cases[0], replace(dataset, nan_background=True))


def test_nan_in_a_mask_becomes_background_if_declared(dataset, write_nifti):
    mask = np.full((5, 4, 3), np.nan, np.float32)
    mask[0, 1, 2] = 1
    mask[1, 1, 1] = 0
    write_nifti(dataset.root / "A.nii.gz", mask)
    with pytest.raises(ContentError, match=r"data\.nan=background"):
        read_case(dataset.cases[0], dataset)
    labels = read_case(dataset.cases[0], replace(dataset, nan_background=True)).reference.labels
    assert np.argwhere(labels).tolist() == [[2, 1, 0]]


def test_faults_after_an_unreadable_first_image_name_the_file_with_the_grid(dataset, write_nifti):
    root = dataset.root
    third = write_nifti(root / "A_0002.nii.gz", np.zeros((5, 4, 2), np.int16))
    write_nifti(root / "A.nii.gz", np.zeros((5, 4, 6), np.uint8))
    files = dataset.cases[0]
    files.images[0].write_bytes(b"damaged")
    files = replace(files, images=(*files.images, third))
    faults = inspect_case(files, replace(dataset, channel_names=("T1", "T2", "PD"))).findings
    assert [finding.kind for finding in faults] == ["unreadable", "geometry", "geometry"]
    damaged, image, mask = (finding.message for finding in faults)
    assert "A_0000.nii.gz" in damaged
    second = r"and A_0001\.nii\.gz are not on one grid \(shapes \(%d, 4, 5\) and \(3, 4, 5\)\)"
    assert re.search(r"A_0002\.nii\.gz " + second % 2, image)
    assert re.search(r"A\.nii\.gz " + second % 6, mask)


def test_image_is_moved_and_resampled_onto_another_grid(tmp_path, write_nifti):
    """The image has 1 mm voxels, the other grid 2 mm ones at every second voxel."""
    values = np.arange(48, dtype=np.float32).reshape(6, 4, 2)
    path = write_nifti(tmp_path / "a.nii.gz", values)
    own = read_finite(path)
    axes = own.geometry.affine @ np.diag([2.0, 2.0, 2.0, 1.0])
    coarse = Geometry(tuple((n + 1) // 2 for n in own.geometry.shape), axes)
    found = read_finite(path, coarse)
    np.testing.assert_allclose(found.array, own.array[:, ::2, ::2, ::2])
    assert found.geometry.matches(coarse)
    shift = np.eye(4)
    shift[:3, 3] = own.geometry.affine[:3, 2]  # by one voxel along the last array axis
    moved = read_finite(path, own.geometry, matrix=shift)
    np.testing.assert_allclose(moved.array[..., 1:], own.array[..., :-1], rtol=1e-5)
    assert read_finite(path, matrix=shift).geometry.matches(own.geometry.move(shift))

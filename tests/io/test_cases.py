"""Cases: a common grid, finite images, and masks with known values."""

import re
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from lesionseg.core import CaseFiles, Dataset, Geometry, Labels
from lesionseg.errors import ContentError, GeometryError, LesionsegError, ReadError
from lesionseg.io.cases import read_case, read_finite, read_image
from lesionseg.io.inspection import inspect_case
from lesionseg.io.masks import read_mask
from lesionseg.io.volumes import read_volume
from tests.io.first_case import read_first

SHAPE = (5, 4, 3)


@pytest.fixture
def dataset(tmp_path, write_nifti):
    """Write a case of two int16 channels and a mask of 0, 1 and 4. Value 4 is ignored."""
    first = write_nifti(tmp_path / "A_0000.nii.gz", np.full(SHAPE, 10, np.int16))
    second = write_nifti(tmp_path / "A_0001.nii.gz", np.full(SHAPE, 11, np.int16))
    mask = np.zeros(SHAPE, np.uint8)
    mask[0, 1, 2] = 1
    mask[4, 3, 0] = 4
    files = CaseFiles("A", (first, second), write_nifti(tmp_path / "A.nii.gz", mask), group="p1")
    labels = Labels((1,), ("lesion",), ignore=4)
    return Dataset("toy", tmp_path, "nnunet", 3, ("T1", "T2"), labels, (files,))


def with_values(*values):
    """Return a volume of zeros, except for its first values."""
    array = np.zeros(SHAPE)
    array[0, 0, : len(values)] = values
    return array


IMAGE = "A_0001.nii.gz"
MASK = "A.nii.gz"
# what is wrong: file, its content, what the message says next to the name of the file
BAD_SCANS = {
    "text": (IMAGE, b"no scan", "not a NIfTI"),
    "four axes": (IMAGE, np.zeros((*SHAPE, 2), np.int16), "_0000"),
    "NaN": (IMAGE, with_values(np.nan, np.nan), "2 voxels are NaN"),
    "infinity": (IMAGE, with_values(np.inf, np.nan), "2 voxels are NaN or infinity"),
    "beyond float32": (IMAGE, with_values(1e300), "1 voxels are beyond"),
    "another shape": (IMAGE, with_values()[..., :2], r"A_0000.*\(2, 4, 5\).*\(3, 4, 5\)"),
    "mask of another shape": (MASK, with_values()[..., :2], r"A_0000.*\(2, 4, 5\).*\(3, 4, 5\)"),
    "mask of four axes": (MASK, np.zeros((*SHAPE, 2), np.uint8), "one label map"),
    "mask of fractions": (MASK, with_values(0.2, 1), "nearest-neighbour.*threshold"),
    "mask of NaN": (MASK, with_values(np.nan), r"data\.nan=background"),
    "mask of infinity": (MASK, with_values(1, np.inf), "such as inf"),
    "mask below 0": (MASK, with_values(-1), "-1.0 to 0"),
    "huge mask value": (MASK, with_values(1e12), "to 1000000000000"),
    "unknown label": (MASK, with_values(255), "255"),
}


@pytest.mark.parametrize(("name", "content", "match"), BAD_SCANS.values(), ids=BAD_SCANS)
def test_bad_scan_is_an_error_that_names_its_file(dataset, write_nifti, name, content, match):
    """Reading stops with the error, and the inspection of the case finds it, too."""
    if isinstance(content, bytes):
        (dataset.root / name).write_bytes(content)
    else:
        write_nifti(dataset.root / name, content)
    with pytest.raises(LesionsegError, match=rf"{name}.*{match}"):
        read_first(dataset)
    (finding,) = inspect_case(dataset.cases[0], dataset).findings
    assert re.search(rf"{name}.*{match}", finding.message)


def test_case_has_all_channels_and_its_reference_on_one_grid(dataset):
    case = read_first(dataset)
    assert (case.case, case.group) == ("A", "p1")
    assert (case.image.array.dtype, case.image.array.shape) == (np.float32, (2, 3, 4, 5))
    assert case.image.array[:, 0, 0, 0].tolist() == [10, 11]
    reference = case.reference
    assert np.argwhere(reference.labels).tolist() == [[2, 1, 0]]  # in array order
    assert np.argwhere(reference.ignore).tolist() == [[0, 3, 4]]
    assert reference.instances is reference.boxes is None
    assert read_case(replace(dataset.cases[0], reference=None), dataset).reference is None


@pytest.mark.parametrize("name", [IMAGE, MASK])
def test_grids_within_half_a_voxel_are_accepted_as_equal(dataset, write_nifti, name, caplog):
    moved = np.eye(4)
    for mm in (0.0009, 0.45, 0.55):
        caplog.clear()
        moved[0, 3] = mm
        write_nifti(dataset.root / name, with_values().astype(np.int16), moved)
        if mm > 0.5:
            with pytest.raises(GeometryError, match=rf"{name} and A_0000\.nii\.gz.*0\.55 mm"):
                read_first(dataset)
            return
        case = read_first(dataset)
        assert case.reference.geometry.matches(case.image.geometry, 0)
        assert (f"{mm:g} mm apart" in caplog.text) == (mm > 0.001)


@pytest.fixture
def picture(tmp_path):
    Image.new("L", (5, 4)).save(tmp_path / "A.png")
    return CaseFiles("A", (tmp_path / "A.png",))


def test_picture_in_a_dataset_of_volumes_is_an_error(dataset, picture):
    dataset = replace(dataset, channel_names=("T1",))
    with pytest.raises(GeometryError, match="dataset have 3 axes"):
        read_image(picture, dataset)
    with pytest.raises(GeometryError, match="model reads images with 3 axes"):
        read_image(picture, dataset, is_input=True)


def test_pixel_size_comes_from_the_column_pixel_mm(dataset, picture, tmp_path):
    (tmp_path / "m.png").write_bytes(picture.images[0].read_bytes())
    files = replace(picture, columns={"pixel_mm": "0.5"}, reference=tmp_path / "m.png")
    flat = replace(dataset, dims=2, channel_names=("image",))
    geometry = read_case(files, flat).image.geometry
    assert geometry.spacing_mm == (0.5, 0.5)
    np.testing.assert_allclose(
        geometry.to_mm([[2, 1]]), [[0.5, 1]]
    )  # rows are counted from the top


def test_large_mask_with_one_bit_per_pixel_is_read(tmp_path):
    Image.new("1", (2048, 2048)).save(tmp_path / "m.png")
    assert not read_mask(tmp_path / "m.png").labels.any()


@pytest.mark.parametrize("dtype", ["float32", "float64", "int16", "int32", "uint16"])
def test_mask_of_any_dtype_gives_the_same_labels(tmp_path, write_nifti, dtype):
    mask = with_values(7, 300).astype(dtype)
    labels = read_mask(write_nifti(tmp_path / "m.nii.gz", mask)).labels
    assert labels.dtype == np.uint16
    assert np.unique(labels).tolist() == [0, 7, 300]


def test_labels_that_the_header_scales_are_rounded_with_a_warning(tmp_path, write_nifti, caplog):
    mask = with_values(1.0000153, 1.9992).astype(np.float32)
    labels = read_mask(write_nifti(tmp_path / "m.nii.gz", mask)).labels
    assert np.unique(labels).tolist() == [0, 1, 2]
    assert "m.nii.gz: mask values such as 1.0000" in caplog.text


def test_nrrd_mask_of_several_layers_gets_advice_for_masks(tmp_path):
    layers = np.zeros((3, 4, 5, 2), np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(layers, isVector=True), str(tmp_path / "m.nrrd"))
    for read, advice in ((read_mask, "one label map"), (read_volume, "_0000")):
        with pytest.raises(ReadError, match=advice):
            read(tmp_path / "m.nrrd")


@pytest.mark.parametrize(("lowest", "background"), [(100, 0), (-1000, -1000)])  # MRI, CT
def test_nan_voxels_become_background_if_declared(dataset, write_nifti, lowest, background):
    image = np.full(SHAPE, lowest + 7, np.float32)
    image[0, 3, 0] = lowest
    image[:, :2] = np.nan
    write_nifti(dataset.root / IMAGE, image)
    first, second = read_first(replace(dataset, nan_background=True)).image.array
    np.testing.assert_array_equal(second.T, np.where(np.isnan(image), background, image))
    assert first.min() == 10


@pytest.mark.parametrize(
    ("image", "n"), [(with_values(np.nan, np.inf), 1), (np.full(SHAPE, np.nan), 60)]
)
def test_infinity_or_only_nan_is_an_error_even_if_nan_is_background(dataset, write_nifti, image, n):
    write_nifti(dataset.root / IMAGE, image)
    with pytest.raises(ContentError, match=f"{n} voxels are NaN or infinity"):
        read_first(replace(dataset, nan_background=True))


def test_nan_in_a_mask_becomes_background_if_declared(dataset, write_nifti):
    mask = np.full(SHAPE, np.nan, np.float32)
    mask[0, 1, 2] = 1
    mask[1, 1, 1] = 0
    write_nifti(dataset.root / MASK, mask)
    labels = read_first(replace(dataset, nan_background=True)).reference.labels
    assert np.argwhere(labels).tolist() == [[2, 1, 0]]


def test_faults_after_an_unreadable_first_image_name_the_file_with_the_grid(dataset, write_nifti):
    third = write_nifti(dataset.root / "A_0002.nii.gz", np.zeros((5, 4, 2), np.int16))
    write_nifti(dataset.root / MASK, np.zeros((5, 4, 6), np.uint8))
    (files,) = dataset.cases
    files.images[0].write_bytes(b"damaged")
    files = replace(files, images=(*files.images, third))
    problems = inspect_case(files, replace(dataset, channel_names=("T1", "T2", "PD"))).findings
    assert [finding.kind for finding in problems] == ["unreadable", "geometry", "geometry"]
    damaged, image, mask = (finding.message for finding in problems)
    assert "A_0000.nii.gz" in damaged
    assert re.search(r"A_0002\.nii\.gz and A_0001\.nii\.gz .*\(2, 4, 5\) and \(3, 4, 5\)", image)
    assert re.search(r"A\.nii\.gz and A_0001\.nii\.gz .*\(6, 4, 5\) and \(3, 4, 5\)", mask)


def test_image_is_moved_and_resampled_onto_another_grid(tmp_path, write_nifti):
    """The image has 1 mm voxels, the other grid 2 mm ones at every second voxel."""
    path = write_nifti(tmp_path / "a.nii.gz", np.arange(48, dtype=np.float32).reshape(6, 4, 2))
    own = read_finite(path)
    coarse = Geometry((1, 2, 3), own.geometry.affine @ np.diag([2.0, 2.0, 2.0, 1.0]))
    found = read_finite(path, coarse)
    np.testing.assert_allclose(found.array, own.array[:, ::2, ::2, ::2])
    assert found.geometry.matches(coarse)
    shift = np.eye(4)
    shift[:3, 3] = own.geometry.affine[:3, 2]  # by one voxel along the last array axis
    moved = read_finite(path, own.geometry, matrix=shift)
    np.testing.assert_allclose(moved.array[..., 1:], own.array[..., :-1], rtol=1e-5)
    assert read_finite(path, matrix=shift).geometry.matches(own.geometry.move(shift))

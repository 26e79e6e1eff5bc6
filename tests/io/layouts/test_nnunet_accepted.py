"""Unusual raw folders that nnU-Net accepts. They are read with a remark in the check."""

import nibabel
import numpy as np
import pytest
import tifffile

from lesionseg.errors import ContentError, DatasetError, GeometryError, ReadError
from lesionseg.io.cases import read_case
from lesionseg.io.inspection import inspect_case
from lesionseg.io.layouts import read_dataset
from lesionseg.io.text import write_json
from lesionseg.ops.components import lesion_mask
from tests.io.first_case import read_first


def count_voxels(dataset):
    """Count the lesion voxels of each case, in order."""
    references = [read_case(files, dataset).reference for files in dataset.cases]
    return [int(lesion_mask(reference).sum()) for reference in references]


def texts_of(dataset):
    """Return the text of all findings of a dataset and its cases. None of them is an error."""
    findings = [*dataset.findings]
    for files in dataset.cases:
        findings += inspect_case(files, dataset).findings
    assert "error" not in [finding.severity for finding in findings]
    return " ".join(finding.message for finding in findings)


def write_image(path, array, affine=None):
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4) if affine is None else affine), path)


def replace_affines(root, affine):
    """Give every mask another affine and another lesion voxel."""
    for path in (root / "labelsTr").glob("*.nii.gz"):
        array = np.asarray(nibabel.load(path).dataobj)
        array[2, 3, 1] = 1
        write_image(path, array, affine)


def test_mask_less_than_half_a_voxel_away_is_on_the_grid_of_its_image(nnunet_folder):
    root = nnunet_folder()
    affine = np.eye(4)
    affine[1, 3] = 0.3
    replace_affines(root, affine)
    dataset = read_dataset(root)
    assert count_voxels(dataset) == [2, 2]
    text = texts_of(dataset)
    assert "the header states another position than A_0000.nii.gz" in text
    assert "mirrored" not in text  # the axes have the same directions


@pytest.mark.parametrize("is_turned", [False, True])
def test_geometry_image_accepts_another_origin_or_direction(nnunet_folder, is_turned):
    root = nnunet_folder()
    affine = np.eye(4)
    if is_turned:
        affine[0] = (-1, 0, 0, 4)
    else:
        affine[:3, 3] = (40, -7, 3)
    replace_affines(root, affine)
    with pytest.raises(GeometryError, match=r"A\.nii\.gz.*Resample one onto the other") as caught:
        count_voxels(read_dataset(root))
    # the turned header covers the region of the image, so that it is probably right
    assert ("data.geometry=image" in str(caught.value)) != is_turned
    dataset = read_dataset(root, grid_of_image=True)
    reference = read_first(dataset).reference
    assert np.argwhere(reference.labels).tolist() == [[0, 2, 1], [1, 3, 2]]  # at the same indices
    text = texts_of(dataset)
    assert "the header states another position than A_0000.nii.gz" in text
    assert ("mirrored" in text) == is_turned


def test_another_spacing_is_an_error_even_with_geometry_image(nnunet_folder):
    root = nnunet_folder()
    replace_affines(root, np.diag([1.0, 1.2, 1.0, 1.0]))
    with pytest.raises(GeometryError, match=r"1 × 1\.2 × 1 mm, but 1 × 1 × 1 mm .* header"):
        count_voxels(read_dataset(root, grid_of_image=True))


def test_file_with_the_stated_ending_is_read_if_nii_and_nii_gz_exist(nnunet_folder):
    root = nnunet_folder()
    for name in ("imagesTr/A_0000", "labelsTr/B"):
        write_image(root / f"{name}.nii", np.ones((5, 4, 3), np.int16))
    dataset = read_dataset(root)
    assert count_voxels(dataset) == [1, 1]
    assert all(file.name.endswith(".nii.gz") for case in dataset.cases for file in case.images)
    text = texts_of(dataset)
    assert "A_0000.nii" in text
    assert "B.nii" in text


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_single_slice_of_999_millimetres_is_read_as_a_picture(nnunet_folder, axis):
    root = nnunet_folder("A", channels=1)
    spacing = np.insert([0.7, 0.7], axis, 999.0)
    image = np.arange(63, dtype=np.float32).reshape(9, 7)
    for name, array in (("imagesTr/A_0000", image), ("labelsTr/A", image == 17)):
        array = np.expand_dims(array.astype(np.float32), axis)
        write_image(root / f"{name}.nii.gz", array, np.diag([*spacing, 1.0]))
    dataset = read_dataset(root)
    assert dataset.dims == 2
    case = read_first(dataset)
    assert case.image.geometry.spacing_mm == pytest.approx((0.7, 0.7))
    np.testing.assert_array_equal(case.image.array[0], image.T)
    assert np.argwhere(case.reference.labels).tolist() == [[3, 2]]
    assert "one slice of 999 mm is read as a picture" in texts_of(dataset)


def test_single_slice_with_a_plausible_thickness_is_a_volume(nnunet_folder):
    root = nnunet_folder("A", channels=1)
    for name in ("imagesTr/A_0000", "labelsTr/A"):
        affine = np.diag([0.7, 0.7, 6.0, 1.0])
        write_image(root / f"{name}.nii.gz", np.zeros((9, 7, 1), np.uint8), affine)
    assert read_dataset(root).dims == 3


def write_stack(root, name, array, spacing=None):
    """Write a TIFF of several pages, and its spacing if it is given."""
    path = root / f"{name}.tif"
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, array, photometric="minisblack", compression="zlib")
    if spacing is not None:
        stem = path.stem.removesuffix("_0000")
        write_json(path.with_name(f"{stem}.json"), {"spacing": spacing})


def write_stacks(nnunet_folder, spacing):
    """Write two cases as stacks of 6 slices, with 8 lesion voxels each."""
    root = nnunet_folder(cases=(), file_ending=".tif", channels=1)
    mask = np.zeros((6, 9, 7), np.uint8)
    mask[1:3, 2:4, 3:5] = 1
    for case in "AB":
        write_stack(root, f"imagesTr/{case}_0000", mask.astype(np.uint16) * 999, spacing)
        write_stack(root, f"labelsTr/{case}", mask, spacing)
    return root


def test_tiff_stack_gets_its_spacing_from_the_json_file(nnunet_folder):
    dataset = read_dataset(write_stacks(nnunet_folder, [3.0, 0.5, 0.7]))
    assert dataset.dims == 3
    geometry = read_first(dataset).image.geometry
    assert geometry.shape == (6, 9, 7)
    assert geometry.spacing_mm == pytest.approx((3.0, 0.5, 0.7))
    assert count_voxels(dataset) == [8, 8]
    texts_of(dataset)


@pytest.mark.parametrize("shape", [(6, 9, 7), (9, 7)])
def test_single_file_next_to_cases_of_three_channels_is_not_in_colour(nnunet_folder, shape):
    root = nnunet_folder(cases=(), file_ending=".tif", channels=3)
    for name in ("A_0000", "A_0001", "A_0002", "B_0000"):
        write_stack(root, f"imagesTr/{name}", np.ones(shape, np.uint16), [1, 1, 1])
    for case in "AB":
        write_stack(root, f"labelsTr/{case}", np.ones(shape, np.uint8), [1, 1, 1])
    with pytest.raises(DatasetError, match="'B' does not have one file per channel"):
        read_dataset(root)
    dataset = read_dataset(root, may_lack=True)
    assert [case.missing for case in dataset.cases] == [(), (1, 2)]


def test_tiff_stack_without_spacing_has_one_millimetre_and_a_warning(nnunet_folder):
    dataset = read_dataset(write_stacks(nnunet_folder, None))
    assert read_first(dataset).image.geometry.spacing_mm == (1.0, 1.0, 1.0)
    assert "A.json states the spacing" in texts_of(dataset)


@pytest.mark.parametrize("spacing", ["[1, 1]", '"many"', "[0, 1, 1]", "[1, Infinity, 1]"])
def test_error_names_the_file_with_an_invalid_spacing(nnunet_folder, spacing):
    dataset = read_dataset(write_stacks(nnunet_folder, [1, 1, 1]))
    (dataset.root / "imagesTr" / "A.json").write_text(f'{{"spacing": {spacing}}}')
    with pytest.raises(ReadError, match=r"A\.json"):
        read_first(dataset)


def write_masks(root, values):
    """Write a mask with one voxel of each value for both cases."""
    array = np.zeros((5, 4, 3), np.uint8)
    array[: len(values), 0, 0] = values
    for case in "AB":
        write_image(root / "labelsTr" / f"{case}.nii.gz", array)


def test_every_positive_value_is_lesion_if_labels_are_merged(nnunet_folder):
    root = nnunet_folder()
    write_masks(root, [255, 255, 1])
    with pytest.raises(ContentError, match=r"255.*data\.merge_labels=true"):
        count_voxels(read_dataset(root))
    dataset = read_dataset(root, merge_labels=True)
    assert count_voxels(dataset) == [3, 3]
    assert "They count as lesion" in texts_of(dataset)


def test_error_suggests_instances_for_consecutive_mask_values(nnunet_folder):
    root = nnunet_folder()
    write_masks(root, [1, 2, 3, 4])
    with pytest.raises(ContentError, match="column instances of a manifest"):
        count_voxels(read_dataset(root))
    assert count_voxels(read_dataset(root, merge_labels=True)) == [4, 4]


def test_ignored_value_stays_ignored_if_labels_are_merged(nnunet_folder):
    root = nnunet_folder(labels={"background": 0, "lesion": 1, "ignore": 2})
    write_masks(root, [255, 2, 1])
    dataset = read_dataset(root, merge_labels=True)
    reference = read_first(dataset).reference
    assert (int(reference.labels.sum()), int(reference.ignore.sum())) == (2, 1)

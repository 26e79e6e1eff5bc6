"""Preparation of images and references: orientation, resampling, normalisation and labels."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from lesionseg.core import Case, Geometry, Labels, Reference, Volume
from lesionseg.data.cache import LesionIndex
from lesionseg.data.preprocess import prepare_case
from lesionseg.data.preprocess_image import normalise, plan_geometry, prepare_image, window_of
from lesionseg.data.preprocess_reference import prepare_reference
from lesionseg.errors import ContentError, GeometryError
from lesionseg.ops.boxes import tile_boxes
from lesionseg.ops.components import lesion_instances
from lesionseg.plan.plan import Normalisation
from tests.io.dicom_files import grid_of
from tests.models.plans import plan_of

SHAPE = (11, 14, 17)
UNSCALED = (Normalisation("dataset"),)


def make_plan(spacing_mm=(1.0, 1.0, 1.0), normalisation=UNSCALED, label_values=(1,)):
    plan = plan_of(dims=len(spacing_mm), spacing_mm=spacing_mm, normalisation=normalisation)
    return plan.with_(labels=Labels(label_values, tuple(f"lesion{v}" for v in label_values)))


def make_straight(shape, spacing=1.0):
    return Geometry.from_spacing(shape, (spacing,) * len(shape))


def centres_of(geometry):
    """Return the centres of all voxels `[n, dims]` in millimetres."""
    return geometry.to_mm(np.indices(geometry.shape).reshape(geometry.dims, -1).T)


def make_oblique(shape=SHAPE, spacing=(1.0, 1.0, 1.0), degrees=20.0):
    return grid_of("SAR", spacing, (-0.6 * degrees, 0, degrees), shape)


def prepare_labels(labels, plan, geometry=None, **settings):
    """Prepare the reference of a label map. Return it with the plan's grid."""
    geometry = geometry or make_straight(labels.shape)
    grid = plan_geometry(geometry, plan)
    reference = Reference(geometry, labels=labels, **settings)
    return prepare_reference(reference, grid, plan, where="case7"), grid


def reorient(volume, axes, flips):
    """Store the same voxels at the same positions with other axes, by numpy only."""
    step = np.eye(4)[:, [*axes, 3]]
    array = volume.array.transpose(0, *(1 + a for a in axes))
    for new, old in enumerate(axes):
        if flips[new]:
            step[old, new] = -1
            step[old, 3] = volume.geometry.shape[old] - 1
            array = np.flip(array, 1 + new)
    return Volume(array, Geometry(array.shape[1:], volume.geometry.affine @ step))


ORIENTATIONS = {
    "LPS": ((2, 1, 0), (1, 1, 0)),
    "PLS": ((1, 2, 0), (1, 1, 0)),
    "IRP": ((0, 2, 1), (1, 0, 1)),
}


@pytest.mark.parametrize("name", ORIENTATIONS)
@pytest.mark.parametrize("degrees", [0.0, 20.0])
def test_any_orientation_of_the_same_voxels_gives_the_same_array(rng, name, degrees):
    truth = Volume(rng.normal(size=(1, *SHAPE)).astype(np.float32), make_oblique(degrees=degrees))
    stored = reorient(truth, *ORIENTATIONS[name])
    np.testing.assert_array_equal(prepare_image(stored, make_plan()).array, truth.array)
    for spacing in ((1.0, 1.0, 1.0), (1.5, 0.8, 1.2)):
        prepared, expected = (prepare_image(one, make_plan(spacing)) for one in (stored, truth))
        np.testing.assert_allclose(prepared.array, expected.array, atol=1e-4)
        assert prepared.geometry.matches(expected.geometry, 1e-6)


@pytest.mark.parametrize("spacing", [(2.0, 0.7, 1.0), (0.5, 1.3, 2.0), (3.0, 3.0, 3.0)])
def test_affine_of_the_prepared_image_gives_the_positions_of_its_values(spacing):
    geometry = make_oblique(spacing=(1.7, 0.9, 1.1))
    ramps = centres_of(geometry).T.reshape(3, *SHAPE).astype(np.float32)
    plan = make_plan(spacing, UNSCALED * 3).with_(channel_names=("x", "y", "z"))
    prepared = prepare_image(Volume(ramps, geometry), plan)
    assert prepared.geometry.spacing_mm == pytest.approx(spacing)
    # the outer half voxel repeats the edge, so only positions between voxel centres are compared
    expected = centres_of(prepared.geometry)
    place = geometry.to_index(expected)
    # a coarser voxel is the mean over its extent, which must be inside as well
    reach = np.maximum(np.divide(spacing, geometry.spacing_mm), 1) / 2 - 0.5
    inside = ((place >= reach) & (place <= np.array(SHAPE) - 1 - reach)).all(axis=1)
    assert inside.mean() > 0.3
    # the mean over a part of a file voxel is its value, not the value at the middle of the part
    atol = 0.05 * max(geometry.spacing_mm) if reach.any() else 1e-3
    found = prepared.array.reshape(3, -1).T
    np.testing.assert_allclose(found[inside], expected[inside], atol=atol)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.0, 1.0, 1.0)])
def test_sheared_grid_is_resampled_to_orthogonal_axes(spacing):
    """Prepare a scan of a tilted gantry. The slices follow a line 30 degrees from their normal."""
    affine = np.eye(4)
    affine[:2, 0] = (np.cos(np.pi / 6), np.sin(np.pi / 6))
    image = np.zeros((1, 24, 40, 24), np.float32)
    image[0, 10:14, 18:22, 10:14] = 1.0
    volume = Volume(image, Geometry(image.shape[1:], affine))
    prepared = prepare_image(volume, make_plan(spacing))
    axes = prepared.geometry.affine[:3, :3] / prepared.geometry.spacing_mm
    np.testing.assert_allclose(np.abs(axes.T @ axes), np.eye(3), atol=1e-6)
    assert prepared.geometry.shape[1] > 40  # the shifted slices cover more rows
    bright = np.argwhere(prepared.array[0] > 0.5).mean(axis=0)
    centre = volume.geometry.to_mm((11.5, 19.5, 11.5))
    np.testing.assert_allclose(prepared.geometry.to_mm(bright), centre, atol=0.5)


def test_raster_is_not_reoriented_and_its_pixels_keep_their_position():
    geometry = Geometry((20, 30), np.array([[0, 0.5, 3.0], [-0.4, 0, 9.0], [0, 0, 1]]))
    ramp = centres_of(geometry)[:, 1].reshape(1, 20, 30).astype(np.float32)
    volume = Volume(ramp, geometry)
    np.testing.assert_array_equal(prepare_image(volume, make_plan((0.4, 0.5))).array, volume.array)
    coarse = prepare_image(volume, make_plan((1.0, 1.0)))
    assert coarse.geometry.shape == (8, 15)  # 8 x 15 mm, as before
    expected = centres_of(coarse.geometry)[:, 1]
    np.testing.assert_allclose(coarse.array.reshape(-1), expected, atol=0.05 * 0.4)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", ">i2", ">f4", "float64", "bool"])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.0, 1.0, 0.5)])
def test_every_dtype_of_files_gives_the_same_image(rng, spacing, dtype):
    array = rng.integers(0, 2, size=(1, *SHAPE))
    plan = make_plan(spacing)
    expected = prepare_image(Volume(array.astype(np.float32), make_oblique()), plan)
    prepared = prepare_image(Volume(array.astype(dtype), make_oblique()), plan)
    np.testing.assert_array_equal(prepared.array, expected.array)
    assert prepare_labels(array[0].astype(dtype), plan, make_oblique())[0].labels.max() == 1


def test_wrong_number_of_channels_is_an_error():
    with pytest.raises(ContentError, match="2 channels"):
        prepare_image(Volume(np.zeros((2, *SHAPE), np.float32), make_straight(SHAPE)), make_plan())


def test_grid_that_exceeds_memory_is_an_error():
    # 8 KB of voxels, 100 mm wide, would be 1600³ voxels of 1 mm: 16 GB
    volume = Volume(np.zeros((1, 16, 16, 16)), make_straight((16, 16, 16), 100.0))
    with pytest.raises(GeometryError, match=r"a: would have 1600 × 1600"):
        prepare_image(volume, make_plan(), where="a")


@pytest.mark.parametrize("spacing", [0.0015, 0.05])
def test_scan_of_only_one_or_two_prepared_voxels_is_an_error(spacing):
    volume = Volume(np.zeros((1, 30, 40, 40), np.float32), make_straight((30, 40, 40), spacing))
    with pytest.raises(GeometryError, match=r"case7: with voxels of .*Correct the spacing"):
        prepare_image(volume, make_plan(), where="case7")


def test_touching_labels_are_separate_lesions_with_consecutive_labels():
    labels = np.zeros(SHAPE, np.uint8)
    labels[2:4, 2:4, 2:4] = 7
    labels[4:6, 2:4, 2:4] = 3
    plan = make_plan(label_values=(3, 7))
    prepared, _ = prepare_labels(labels, plan)
    assert prepared.instance_labels == (2, 1)
    np.testing.assert_array_equal(prepared.labels, np.where(labels == 7, 2, labels == 3))
    empty, _ = prepare_labels(0 * labels, plan)
    assert (empty.instance_labels, empty.labels.max()) == ((), 0)
    with pytest.raises(ContentError, match="case7"):  # an unknown label
        prepare_labels(labels + 2, plan)


def test_lesion_smaller_than_a_voxel_keeps_one_voxel():
    small = [(4, 4, 4), (16, 22, 28), (1, 1, 1), (1, 1, 4)]
    labels = np.zeros((30, 30, 30), np.uint8)
    labels[tuple(np.transpose(small))] = 1
    prepared, grid = prepare_labels(labels, make_plan((3.0, 3.0, 3.0)))
    assert np.bincount(prepared.instances.ravel())[1:].tolist() == [1] * 4
    found = grid.to_mm(np.argwhere(prepared.instances))
    away = found[:, None] - make_straight(labels.shape).to_mm(small)
    assert np.linalg.norm(away, axis=2).min(axis=1).max() <= 3.0


def test_lesion_that_is_invisible_in_its_voxel_is_ignored():
    labels = np.zeros((30, 30, 30), np.uint8)
    labels[5, 5, 5] = 1  # a sixty-fourth of a voxel of 4 mm: the image cannot show it
    labels[16:18, 16:18, 16:19] = 1  # 12 of 64
    prepared, _ = prepare_labels(labels, make_plan((4.0, 4.0, 4.0)))
    np.testing.assert_array_equal(prepared.ignore, prepared.instances == 1)
    assert (prepared.instances == 2).sum() == 1


@pytest.mark.parametrize("spacing", [(2.0, 2.0, 2.0), (1.5, 0.4, 1.0), (3.0, 1.0, 0.5)])
def test_voxel_is_lesion_if_lesions_cover_half_of_it(spacing):
    """Compare with ten samples along each axis of every voxel."""
    labels = np.zeros((24, 24, 24), np.uint8)
    labels[3:9, 4:12, 2:9] = labels[13:20, 12:21, 11:20] = 1
    geometry = make_oblique(labels.shape, degrees=0.0)
    prepared, grid = prepare_labels(labels, make_plan(spacing), geometry)
    parts = (np.arange(10) + 0.5) / 10 - 0.5
    # the axes are parallel, so that the nearest file voxel along an axis depends on this axis only
    nearest = []
    for axis, n in enumerate(grid.shape):
        samples = np.zeros((n * len(parts), 3))
        samples[:, axis] = np.add.outer(np.arange(n), parts).ravel()
        nearest.append(np.rint(geometry.to_index(grid.to_mm(samples))[:, axis]).astype(int) + 1)
    outside = np.pad(labels, 1)
    sampled = outside[np.ix_(*(np.clip(index, 0, 25) for index in nearest))]
    blocks = sampled.reshape(grid.shape[0], 10, grid.shape[1], 10, grid.shape[2], 10)
    share = blocks.mean(axis=(1, 3, 5)).reshape(-1)
    clear = np.abs(share - 0.5) > 0.06
    np.testing.assert_array_equal(prepared.labels.reshape(-1)[clear], (share > 0.5)[clear])


def test_reference_and_image_are_reoriented_together():
    labels = np.zeros(SHAPE, np.int16)
    labels[3:8, 5:9, 6:14] = 1
    labels[1:3, 2:5, 1:9] = 2
    stored = reorient(Volume(labels[None], make_oblique()), *ORIENTATIONS["LPS"])
    lesion, ignore = (stored.array[0] == value for value in (1, 2))
    reference = Reference(stored.geometry, labels=lesion.astype(np.uint8), ignore=ignore)
    image = Volume(lesion[None].astype(np.float32), stored.geometry)
    prepared = prepare_case(Case("c", image, reference, "g"), make_plan())
    np.testing.assert_array_equal(prepared.reference.labels, labels == 1)
    np.testing.assert_array_equal(prepared.image.array[0] > 0.5, labels == 1)
    np.testing.assert_array_equal(prepared.reference.ignore, labels == 2)


def prepare_boxes(boxes, shape=(40, 40), spacing=1.0, ignore=None, labels=None):
    """Prepare boxes on pixels of 1 mm, by default all of label 1, for a plan of another spacing."""
    labels = labels or (1,) * len(boxes)
    source = make_straight(shape)
    boxes = np.array(boxes, np.float32)
    reference = Reference(source, boxes=boxes, box_labels=labels, ignore=ignore)
    plan = make_plan((spacing, spacing), label_values=(1, 2, 3))
    return prepare_reference(reference, plan_geometry(source, plan), plan)


def test_ignored_voxels_contain_no_lesion():
    labels = np.zeros((6, 8), np.uint8)
    labels[1:3, 1:7] = 1
    ignore = np.zeros((6, 8), bool)
    ignore[:, 4:] = True
    prepared, _ = prepare_labels(labels, make_plan((1.0, 1.0)), ignore=ignore)
    assert np.count_nonzero(prepared.labels) == np.count_nonzero(prepared.instances) == 6
    np.testing.assert_array_equal(prepared.ignore, ignore)


def test_ignored_box_is_left_out():
    ignore = np.zeros((64, 64), bool)
    ignore[:20] = True
    boxes = [[5, 5, 10, 10], [40, 40, 50, 50], [10, 30, 22, 40]]
    prepared = prepare_boxes(boxes, ignore.shape, ignore=ignore)
    assert LesionIndex.of(prepared.instances, prepared.instance_labels).ids.tolist() == [2, 3]
    np.testing.assert_array_equal(prepared.ignore, ignore)
    assert np.argwhere(prepared.instances == 3).min(axis=0).tolist() == [20, 30]


def test_boxes_are_filled_and_the_smaller_box_keeps_its_pixels():
    prepared = prepare_boxes([[2, 3, 4, 5], [0, 0, 8, 8]], (10, 12))
    assert np.bincount(prepared.instances.ravel()).tolist() == [120 - 64, 4, 60]
    assert prepared.instances[2, 3] == 1


@pytest.mark.parametrize("spacing", [1.0, 2.0])
@pytest.mark.parametrize(
    "boxes",
    [
        [[4, 6, 24, 36], [4, 6, 24, 32]],  # a smaller box covers all but the end of a larger one
        [[4, 6, 24, 36]] * 3,  # three labels at the same place
        [[0, 10, 20, 30], [10, 0, 40, 40], [12, 12, 14, 14]],  # the last one is small
    ],
)
def test_boxes_that_cover_each_other_keep_their_extent_and_label(boxes, spacing):
    labels = (1, 2, 3)[: len(boxes)]
    prepared = prepare_boxes(boxes, spacing=spacing, labels=labels)
    tile = [torch.from_numpy(array)[None] for array in (prepared.instances, prepared.labels)]
    learned, found = tile_boxes(*tile)
    assert found[0].tolist() == list(labels)
    np.testing.assert_allclose(learned[0], np.array(boxes) / spacing, atol=1)


@pytest.mark.parametrize("box", [[3, 3, 4, 5], [3, 3, 5, 5]])
def test_boxes_at_a_place_with_fewer_voxels_keep_one_each(box):
    prepared = prepare_boxes([box] * 5, (12, 12))
    assert set(np.unique(prepared.instances)) == {0, 1, 2, 3, 4, 5}


def test_box_narrower_than_a_voxel_of_the_plan_keeps_its_length():
    prepared = prepare_boxes([[4, 11, 36, 12]], spacing=4.0)
    assert np.argwhere(prepared.instances).tolist() == [[row, 2] for row in range(1, 9)]
    assert prepared.ignore is None


def test_lesion_of_several_mask_values_is_one_instance():
    labels = np.array([[0, 1, 4, 0, 0], [0, 9, 9, 0, 4]], np.uint16)
    parts = Labels((1, 9), ("whole", "core"), regions=((1, 4, 9), (9,)))
    plan = make_plan((1.0, 1.0)).with_(labels=parts)
    instances, labels_of = lesion_instances((labels > 0).astype(np.uint8))
    prepared, _ = prepare_labels(labels, plan, instances=instances, instance_labels=labels_of)
    assert prepared.labels.tolist() == [[0, 1, 2, 0, 0], [0, 3, 3, 0, 2]]
    assert prepared.instance_labels == (1, 1)
    assert prepared.instances.tolist() == [[0, 1, 1, 0, 0], [0, 1, 1, 0, 2]]
    other = plan.with_(labels=replace(parts, regions=((1, 9), (9,))))
    with pytest.raises(ContentError, match=r"\[4\]"):
        prepare_labels(labels, other, instances=instances, instance_labels=labels_of)


@pytest.mark.parametrize(
    "scheme", [Normalisation("zscore"), Normalisation("dataset", -100, 300, 40.0, 25.0)]
)
@pytest.mark.parametrize("spacing", [1.0, 1.6])
def test_missing_channel_is_zero_after_normalisation(scheme, spacing, rng):
    plan = make_plan((spacing,) * 3, (scheme,) * 2).with_(channel_names=("T1", "T2"))
    image = rng.normal(80, 9, (2, *SHAPE)).astype(np.float32)
    whole = prepare_image(Volume(image, make_oblique()), plan)
    image[1] = 0
    lacking = prepare_image(Volume(image, make_oblique(), missing=(1,)), plan)
    assert lacking.missing == (1,)
    np.testing.assert_array_equal(lacking.array, whole.array * [[[[1]]], [[[0]]]])
    np.testing.assert_array_equal(lacking.present_channels, lacking.array[:1])


@pytest.mark.parametrize(("scheme", "outlier"), [("zscore", 100), ("range", 65535)])
def test_normalised_channel_has_mean_0_and_variance_1(scheme, outlier, rng):
    array = rng.normal(100, 20, size=(1, 50, 60)).astype(np.float32)
    array[0, 0, 0] = outlier  # the tails are clipped
    normalise(array, (Normalisation(scheme),))
    assert (array.mean(), array.std()) == (pytest.approx(0, abs=1e-4), pytest.approx(1, abs=1e-4))
    assert array.max() < 5


@pytest.mark.parametrize("scheme", ["zscore", "range", "local"])
@pytest.mark.parametrize("value", [0.0, 7.3, -1e6])
def test_constant_channel_becomes_0(scheme, value):
    array = np.full((1, 9, 9, 9), value, np.float32)
    normalise(array, (Normalisation(scheme, sigma=2.0),))
    np.testing.assert_array_equal(array, 0)


def test_local_contrast_equals_a_naive_computation(rng):
    sigma = 1.4  # windows of 3 pixels
    image = rng.normal(100, 20, size=(15, 19)).astype(np.float32)
    found = image[None].copy()
    normalise(found, (Normalisation("local", sigma=sigma),))
    by_range = image[None].copy()
    normalise(by_range, (Normalisation("range"),))

    def mean_of_neighbours(values):
        padded = np.pad(values, 1, mode="symmetric")
        shifted = [padded[i : i + 15, j : j + 19] for i in range(3) for j in range(3)]
        return np.mean(shifted, axis=0)

    mean = by_range[0].astype(float)
    square = np.square(mean)
    for _ in range(3):
        mean = mean_of_neighbours(mean)
        square = mean_of_neighbours(square)
    contrast = (by_range[0] - mean) / (np.sqrt(square - mean**2) + 0.1)
    expected = by_range[0] + contrast
    np.testing.assert_allclose(found[0], expected, atol=1e-4)


def test_local_normalisation_does_not_depend_on_the_units(rng):
    film = rng.normal(size=(1, 60, 50)).astype(np.float32)
    changed = film * 300 - 70
    for array in (film, changed):
        normalise(array, (Normalisation("local", sigma=4.0),))
    np.testing.assert_allclose(film, changed, atol=1e-3)


@pytest.mark.parametrize("sigma", [1.0, 3.3, 24.0])
def test_windows_of_local_normalisation_have_the_deviation_of_the_gaussian(sigma):
    window = np.ones(window_of(sigma)) / window_of(sigma)
    weights = np.convolve(np.convolve(window, window), window)
    place = np.arange(len(weights)) - len(weights) // 2
    assert np.sqrt((weights * place**2).sum()) == pytest.approx(sigma, abs=0.5)


@pytest.mark.parametrize(
    ("scheme", "values", "expected"),
    [
        (Normalisation("zscore"), [0, 2, 0, 4], [-3, -1, -3, 1]),  # mean of the non-zero voxels
        (Normalisation("dataset", -100, 300, 50, 25), [-2000, 0, 50, 3000], [-6, -2, 0, 10]),
        (Normalisation("dataset", mean=1, std=2), [1, 2, 3, 4], [0, 0.5, 1, 1.5]),
    ],
)
def test_normalised_values_equal_those_computed_by_hand(scheme, values, expected):
    array = np.array([[values], [values]], np.float32)
    normalise(array, (scheme, *UNSCALED))
    np.testing.assert_allclose(array, [[expected], [values]])

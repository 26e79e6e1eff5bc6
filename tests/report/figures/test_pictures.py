import base64
import io
import itertools
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from lesionseg.core import Geometry
from lesionseg.report.figures.pictures import cut_views, display_axes
from lesionseg.report.figures.slice_views import View
from lesionseg.report.inputs.case_images import Scene

SPACING = (2.0, 1.0, 1.5)
SHAPE = (30, 50, 40)


def scene_in(order: tuple[int, ...], flips: tuple[int, ...]) -> tuple[Scene, np.ndarray]:
    """The same patient filed with axes permuted and flipped; and the lesion's box there.

    A lesion of 4 x 6 x 8 voxels; bright from its middle to the patient's right and front.
    """
    image = np.full(SHAPE, 100.0, dtype=np.float32)
    mask = np.zeros(SHAPE, dtype=bool)
    mask[10:14, 20:26, 8:16] = True
    image[mask] = 200
    image[:, 23:, 12:] = 400
    affine = Geometry.from_spacing(SHAPE, SPACING).affine.copy()
    affine[:3, :3] = affine[:3, :3][:, order]
    image, mask = image.transpose(order), mask.transpose(order)
    for axis in flips:
        affine[:3, 3] += affine[:3, axis] * (image.shape[axis] - 1)
        affine[:3, axis] *= -1
    image, mask = np.flip(image, flips), np.flip(mask, flips)
    voxels = np.argwhere(mask)
    box = np.stack([voxels.min(0), voxels.max(0) + 1]).astype(float)
    return Scene(image, Geometry(image.shape, affine), mask, None), box


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("flips", [(), (0,), (1, 2)])
def test_views_do_not_depend_on_how_the_file_orders_axes(
    order: tuple[int, ...], flips: tuple[int, ...]
) -> None:
    plain, box = scene_in((0, 1, 2), ())
    expected = cut_views(plain, box[0], box[1])
    other, turned_box = scene_in(order, flips)
    for want, have in zip(expected, cut_views(other, turned_box[0], turned_box[1]), strict=True):
        assert have.plane == want.plane
        assert have.pixel_mm == pytest.approx(want.pixel_mm)
        assert {frozenset(loop) for loop in have.reference} == {
            frozenset(loop) for loop in want.reference
        }


def test_axial_view_has_the_front_up_and_the_patients_right_on_the_left() -> None:
    scene, box = scene_in((0, 1, 2), ())
    axial = cut_views(scene, box[0], box[1])[0]
    rows, columns = np.nonzero(axial.image == axial.image.max())
    (loop,) = axial.reference
    ys, xs = [y for _, y in loop], [x for x, _ in loop]
    assert (axial.left, axial.top) == ("R", "A")
    assert rows.min() == 0, "front is up"
    assert min(ys) < rows.max() + 1 < max(ys)
    assert columns.min() == 0, "the right is on the left"
    assert min(xs) < columns.max() + 1 < max(xs)


def test_sizes_are_in_millimetres_and_slices_isotropic_on_the_page() -> None:
    scene, box = scene_in((0, 1, 2), ())
    axial, coronal, _ = cut_views(scene, box[0], box[1])
    assert axial.pixel_mm == (1.0, 1.5)
    assert (axial.height_mm, axial.width_mm) == (50.0, 60.0)
    assert coronal.pixel_mm == (2.0, 1.5)
    assert axial.scale == "scale(1.5 1)"


def test_cut_out_stays_inside_the_image() -> None:
    scene = Scene(
        np.zeros((200, 200, 200), dtype=np.float32), Geometry.from_spacing((200,) * 3, (1,) * 3)
    )
    for place in (0, 197):
        for view in cut_views(scene, (place,) * 3, (place + 3,) * 3):
            assert view.image.shape == (64, 64)


def test_two_dimensional_image_has_an_overview_with_a_frame() -> None:
    scene = Scene(
        np.random.default_rng(0).random((100, 200), dtype=np.float32),
        Geometry.from_spacing((100, 200), (0.5, 0.5)),
        np.pad(np.ones((4, 4), dtype=bool), ((50, 46), (20, 176))),
    )
    whole, close = cut_views(scene, (50, 20), (54, 24))
    assert (whole.width_mm, whole.height_mm) == (100.0, 50.0)
    assert whole.frame is not None
    x, y, width, height = whole.frame
    assert x <= 10 <= x + width
    assert y <= 25 <= y + height
    assert close.width_mm == width
    assert len(close.reference) == 1
    assert whole.reference == ()


def test_slice_passes_through_the_lesion_even_when_its_box_centre_does_not() -> None:
    mask = np.zeros((40, 40, 40), dtype=bool)
    mask[10, 10:20, 10:20] = True
    mask[10:20, 10, 10:20] = True
    scene = Scene(mask * 1.0, Geometry.from_spacing(mask.shape, (1, 1, 1)), mask)
    assert all(view.reference for view in cut_views(scene, (10, 10, 10), (20, 20, 20)))


def test_what_lay_under_the_score_is_outlined_where_it_touches_the_lesion() -> None:
    scene, box = scene_in((0, 1, 2), ())
    assert scene.reference is not None
    assert scene.ids_below(*box) == frozenset()
    below = np.zeros(scene.geometry.shape, dtype=np.int32)
    below[scene.reference] = 3
    below[0] = 4  # far away
    beside = replace(scene, below=below)
    ids = beside.ids_below(*box)
    assert ids == {3}
    for view in cut_views(beside, *box, below=ids):
        assert view.below == view.reference
    assert all(not view.below for view in cut_views(beside, *box))


def test_still_picture_is_in_millimetres() -> None:
    scene, box = scene_in((0, 1, 2), ())
    axial, *_ = cut_views(scene, *box)
    assert axial.points(((0, 0), (2, 0), (2, 1))) == "0,0 3,0 3,1"
    with Image.open(io.BytesIO(base64.b64decode(axial.still_uri.partition(",")[2]))) as picture:
        assert picture.size == axial.image.shape[::-1]


def test_outlines_are_drawn_corner_by_corner() -> None:
    square = ((0, 0), (2, 0), (2, 1), (0, 1))
    assert View.path([square, square[:3]]) == "M0 0h2v1h-2ZM0 0h2v1Z"


def test_neighbours_reach_just_beyond_the_lesion_and_stay_in_the_image() -> None:
    scene, box = scene_in((0, 1, 2), ())
    axial, coronal, _ = cut_views(scene, box[0], box[1])
    assert [one.offset_mm for one in axial.slices] == [-6, -4, -2, 0, 2, 4, 6]
    assert [one.offset_mm for one in coronal.slices] == [-6, -4, -2, 0, 2, 4, 6]
    assert not axial.slices[0].reference, "above the lesion"
    assert axial.slices[axial.at].reference
    low = cut_views(scene, (0, 20, 8), (2, 26, 16))[0]
    assert (low.at, len(low.slices)) == (3, 5), "the first slice of the file is the lowest"


def test_picture_is_a_strip_of_bounded_size() -> None:
    scene = Scene(
        np.random.default_rng(0).random((1000, 1200)).astype(np.float32),
        Geometry.from_spacing((1000, 1200), (1, 1)),
    )
    whole, _ = cut_views(scene, (500, 500), (520, 520))
    head, data = whole.data_uri.split(",")
    assert head == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
        assert max(picture.size) == 400
        assert picture.mode == "L"


def test_oblique_axes_go_to_the_closest_direction() -> None:
    angle = np.deg2rad(30)
    affine = np.eye(4)
    affine[:3, :3] = np.array(
        [[0, np.sin(angle), np.cos(angle)], [0, np.cos(angle), -np.sin(angle)], [1, 0, 0]]
    )
    assert display_axes(Geometry((4, 5, 6), affine)) == ((0, 1, 2), (0, 1, 2))

"""Masks that were drawn from boxes are recognised; outlines of lesions are not."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from lesionseg.core import Geometry, Reference
from lesionseg.ops.components import lesions_of
from lesionseg.plan.box_outlines import OutlineCounts, count_box_outlines, is_box_outline


def crop(mask):
    rows, columns = np.nonzero(mask)
    return mask[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]


def draw_ellipses(n):
    """Yield ellipses as different programs draw them: pixel centres, rounded corners, Pillow."""
    rng = np.random.default_rng(0)
    rows, columns = np.ogrid[:140, :140]
    for _ in range(n):
        height, width = rng.uniform(13, 90, size=2)
        top, left = rng.uniform(5, 30, size=2)
        for shift in (0, 0.5):  # the centre of a pixel, or its corner
            y = 2 * (rows + shift - top) / height - 1
            x = 2 * (columns + shift - left) / width - 1
            yield y**2 + x**2 <= 1
        picture = Image.new("L", (140, 140))
        corners = np.array([left, top, left + width, top + height], int).tolist()
        ImageDraw.Draw(picture).ellipse(corners, fill=1)
        yield np.asarray(picture) > 0


def test_ellipses_of_any_program_are_recognised():
    assert all(is_box_outline(crop(mask)) for mask in draw_ellipses(100))


def test_rectangles_are_recognised_even_if_a_row_differs():
    box = np.ones((15, 30), dtype=bool)
    assert is_box_outline(box)
    box[0, 4:9] = False
    assert is_box_outline(box)
    box[1:4, 4:9] = False
    assert not is_box_outline(box)


@pytest.mark.parametrize("angle", [20, 45])
def test_a_rotated_ellipse_is_not_from_a_box(angle):
    turn = np.deg2rad(angle)
    y, x = np.mgrid[-40:41, -40:41]
    along = x * np.cos(turn) + y * np.sin(turn)
    across = y * np.cos(turn) - x * np.sin(turn)
    assert not is_box_outline(crop((along / 36) ** 2 + (across / 16) ** 2 <= 1))


def test_a_wavy_disc_is_not_from_a_box():
    y, x = np.mgrid[-30:31, -30:31]
    radius = 20 * (1 + 0.12 * np.sin(3 * np.arctan2(y, x)))
    assert not is_box_outline(crop(np.hypot(y, x) <= radius))


def test_only_large_lesions_inside_the_image_are_tested():
    labels = np.zeros((100, 120), dtype=np.uint8)
    labels[0:20, 10:30] = 1  # at the border
    labels[40:45, 10:40] = 1  # too thin
    labels[60:80, 10:40] = 1
    labels[40:70, 60:90] = np.tri(30)
    labels[80:95, 60:90] = 2
    reference = Reference(Geometry.from_spacing(labels.shape, (1, 1)), labels)
    assert count_box_outlines(reference, lesions_of(reference)) == OutlineCounts(3, 2)


def test_volumes_boxes_and_empty_references_are_not_tested():
    cube = Reference(Geometry.from_spacing((20,) * 3, (1,) * 3), np.ones((20,) * 3, np.uint8))
    flat = Geometry.from_spacing((40, 40), (1, 1))
    empty = Reference(flat, np.zeros((40, 40), np.uint8))
    boxed = Reference(flat, boxes=np.array([[2, 2, 30, 30]], np.float32), box_labels=(1,))
    for reference in (cube, empty, boxed):
        assert count_box_outlines(reference, lesions_of(reference)) == OutlineCounts()

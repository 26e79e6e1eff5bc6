"""Small pictures: the same patient looks the same however the file orders its axes."""

import numpy as np
import pytest

from lesionseg.core import Geometry
from lesionseg.report.figures.slice_views import draw_thumbnail


@pytest.fixture
def scan() -> tuple[np.ndarray, np.ndarray, Geometry]:
    """Axes S, A, R; a bright front right corner; lesions in slices 2 and 4, more in 4."""
    image = np.random.default_rng(0).normal(50, 5, (6, 40, 30)).astype(np.float32)
    image[:, 30:, 20:] += 100
    lesions = np.zeros(image.shape, dtype=bool)
    lesions[2, 5, 5] = lesions[4, 10:12, 20:23] = True
    return image, lesions, Geometry.from_spacing(image.shape, (3.0, 1.0, 0.5))


def test_an_outline_lies_where_the_lesion_is_seen(
    scan: tuple[np.ndarray, np.ndarray, Geometry],
) -> None:
    image, lesions, geometry = scan
    drawn = draw_thumbnail(image, geometry, lesions)
    assert (drawn.height_mm, drawn.width_mm) == (40, 15)
    # rows run from front to back, columns from right to left: 12 rows and 23 columns from the end
    assert drawn.outline == "M3.5 28L5 28L5 30L3.5 30Z"


def test_the_order_of_the_axes_does_not_show(
    scan: tuple[np.ndarray, np.ndarray, Geometry],
) -> None:
    image, lesions, geometry = scan
    expected = draw_thumbnail(image, geometry, lesions)
    affine = geometry.affine.copy()
    affine[:3, 3] += affine[:3, 2] * 29
    affine[:3, 2] *= -1
    turned = Geometry((30, 6, 40), affine[:, [2, 0, 1, 3]])
    moved = [np.flip(a, 2).transpose(2, 0, 1) for a in (image, lesions)]
    assert draw_thumbnail(moved[0], turned, moved[1]) == expected


def test_a_flat_image_stays_as_it_is() -> None:
    image = np.zeros((10, 20), np.float32)
    drawn = draw_thumbnail(image, Geometry.from_spacing((10, 20), (1, 1)), None)
    assert (drawn.height_mm, drawn.width_mm, drawn.outline) == (10, 20, "")
    assert drawn.uri.startswith("data:image/png;base64,")

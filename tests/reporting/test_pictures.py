"""Pictures of lesions: cut-outs of several scenes."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from lesionseg.core import Geometry
from lesionseg.reporting import Card, Scene

GRID = Geometry.from_spacing((20, 20, 20), (1, 1, 1))


def open_picture(card):
    content = base64.b64decode(card.uri.partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(content)).convert("L"), dtype=float)


def test_scenes_are_drawn_next_to_each_other_with_their_names():
    """The upper half of one scan is bright, the lower half of the other."""
    bright = np.zeros(GRID.shape, dtype=np.float32)
    bright[:, :10] = 1
    scenes = {"": Scene(bright, GRID), "later": Scene(1 - bright, GRID)}
    box = ((8, 8, 8), (12, 12, 12))
    card = Card.draw(scenes, *box, words=("a", "4 mm", "new"), planes=1)
    assert (card.case, card.size, card.words) == ("a", "4 mm", "new")
    drawn = open_picture(card)
    height, width = drawn.shape
    assert width == pytest.approx(2 * height, abs=1)  # rounded pixels
    first, second = drawn[:, :height], drawn[:, height:]
    middle = slice(height // 3, 2 * height // 3)  # without letters and scale bar
    upper, lower = slice(height // 3, 4 * height // 9), slice(5 * height // 9, 2 * height // 3)
    above = first[upper, middle].mean() - second[upper, middle].mean()
    below = first[lower, middle].mean() - second[lower, middle].mean()
    assert abs(above) > 100
    assert above * below < 0
    without = {"": scenes[""], "other": Scene(1 - bright, GRID)}
    renamed = open_picture(Card.draw(without, *box, words=("a", "", ""), planes=1))
    np.testing.assert_array_equal(renamed[:, : height - 16], drawn[:, : height - 16])
    assert (renamed != drawn).any()

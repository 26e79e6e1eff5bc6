"""Folders of pictures with one bright rectangle, for tests of layouts with boxes."""

import numpy as np
from PIL import Image

from lesionseg.io.cases import read_case
from lesionseg.io.layouts import read_dataset

HEIGHT = 40
WIDTH = 64
# the rectangle, half-open
X0 = 16
Y0 = 4
X1 = 32
Y1 = 14


def write_picture(path, *, bright=True):
    """Write a picture of 40 rows and 64 columns, dark except for the rectangle."""
    array = np.zeros((HEIGHT, WIDTH), np.uint8)
    if bright:
        array[Y0:Y1, X0:X1] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def read_all(root, **settings):
    """Read a dataset and all of its cases. Return it with the cases by id."""
    dataset = read_dataset(root, **settings)
    return dataset, {c.case: read_case(c, dataset) for c in dataset.cases}


def assert_rectangle(case, label=1):
    """Assert that the only box of a case is the bright rectangle, in the order y, x, y, x."""
    reference = case.reference
    assert reference.boxes.tolist() == [[Y0, X0, Y1, X1]]
    assert reference.boxes.dtype == np.float32
    assert reference.box_labels == (label,)
    inside = np.zeros((HEIGHT, WIDTH), bool)
    y0, x0, y1, x1 = reference.boxes[0].astype(int)
    inside[y0:y1, x0:x1] = True
    np.testing.assert_array_equal(case.image.array[0] > 0, inside)


def assert_negative(case):
    """Assert that a case has a reference without lesions."""
    assert case.reference is not None
    assert not case.reference.labels.any()
    assert case.reference.boxes is None or not len(case.reference.boxes)

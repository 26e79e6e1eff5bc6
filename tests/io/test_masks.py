"""Masks with the values of a compressed or smoothed picture, and masks of many labels or ids."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from lesionseg.core import CaseFiles, Geometry, Volume
from lesionseg.errors import ContentError
from lesionseg.io.masks import read_instances, require_exact_values
from lesionseg.io.references import open_reference
from lesionseg.io.results.case import PredictionFiles
from lesionseg.io.volumes import write_volume
from tests.io.dicom_files import write_manifest
from tests.io.first_case import read_first_of

Y, X = np.mgrid[:64, :64]


def draw(*greys, radius=9):
    """Draw a disc of each grey value."""
    plane = np.zeros((64, 64), np.uint8)
    for place, grey in enumerate(greys):
        plane[np.hypot(Y - 20 - 25 * place, X - 22) < radius] = grey
    return plane


def compress(plane, quality):
    stream = io.BytesIO()
    Image.fromarray(plane).save(stream, "JPEG", quality=quality)
    return np.asarray(Image.open(stream))


def draw_square():
    plane = np.zeros((64, 64), np.uint8)
    plane[20:33, 9:30] = 255
    return plane


def resize(plane):
    return np.asarray(Image.fromarray(plane).resize((50, 50), Image.Resampling.BILINEAR))


def draw_ids(n, radius=1.5):
    """Draw the disc of each id from 1 to n on a grid, at a distance of 4 pixels."""
    number = Y // 4 * 16 + X // 4
    is_drawn = (np.hypot(Y % 4 - 2, X % 4 - 2) < radius) & (number < n)
    return np.where(is_drawn, number + 1, 0).astype(np.int32)


CHANGED = {
    "jpeg 50": compress(draw(255), 50),
    "jpeg 75": compress(draw(255, 255), 75),
    "jpeg 95": compress(draw(255), 95),
    "jpeg of a small lesion": compress(draw(255, radius=3), 90),
    "jpeg of a square": compress(draw_square(), 75),
    "jpeg of two values": compress(draw(127, 255), 75),
    "smoothed": gaussian_filter(draw(255), 1),
    "resized": resize(draw(255)),
    "smoothed in 16 bits": gaussian_filter(draw(250).astype(np.uint16) * 4, 0.7),
}
EXACT = {
    "0 and 255": draw(255),
    "three labels": draw(1, 2) + draw(0, 3),
    "labels around each other": np.maximum(draw(64, radius=12), draw(255, radius=6)),
    "20 ids": draw_ids(20),
    "250 ids": draw_ids(250),
    "250 touching ids": draw_ids(250, radius=2.9),
    "ids of a cropped mask": np.where(draw_ids(250) > 247, draw_ids(250), draw(3)),
    "empty": draw(),
}


@pytest.mark.parametrize("name", CHANGED)
def test_compressed_or_smoothed_mask_is_an_error_that_advises_a_threshold(name):
    with pytest.raises(ContentError, match=f"above {CHANGED[name].max() / 2:g}") as caught:
        require_exact_values(Path("m.png"), CHANGED[name])
    assert "merge_labels" not in str(caught.value)


@pytest.mark.parametrize("name", EXACT)
def test_labels_and_ids_are_exact(name):
    require_exact_values(Path("m.png"), EXACT[name], are_ids=True)
    if "cropped" not in name:
        require_exact_values(Path("m.png"), EXACT[name])


def read_reference(root, suffix, mask, *, merged):
    """Write a case of an image and a mask with a manifest. Read its reference."""
    grid = Geometry.from_spacing(mask.shape, (1.0, 1.0))
    for name, array in (("image", 0 * mask), ("mask", mask)):
        write_volume(root / f"{name}{suffix}", Volume(array[np.newaxis], grid))
    write_manifest(root, f"image{suffix}", f"mask{suffix}")
    return read_first_of(root, merge_labels=merged).reference


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("suffix", [".png", ".nii.gz", ".nrrd"])
def test_compressed_masks_are_refused_even_if_labels_are_merged(tmp_path, suffix, merged):
    with pytest.raises(ContentError, match="Threshold it at half"):
        read_reference(tmp_path, suffix, CHANGED["jpeg 75"], merged=merged)


def test_many_labels_may_be_merged(tmp_path):
    mask = EXACT["250 ids"].astype(np.uint8)
    assert read_reference(tmp_path, ".nii.gz", mask, merged=True).labels.max() == 1


def test_compressed_masks_without_a_dataset_cannot_be_scored(tmp_path):
    path = tmp_path / "A.png"
    Image.fromarray(CHANGED["jpeg 75"]).save(path)
    files = PredictionFiles("A", mask=path)
    for read in (
        lambda: open_reference(CaseFiles("A", (), reference=path), None),
        files.read,
        lambda: read_instances(path),
    ):
        with pytest.raises(ContentError, match="Threshold it at half"):
            read()
    Image.fromarray(EXACT["0 and 255"]).save(path)
    assert len(files.read().candidates) == 1

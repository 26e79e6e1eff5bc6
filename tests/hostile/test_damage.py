"""Damaged files of every format are refused, or read like by a reference decoder.

Bits are flipped, bytes are set to zero and files are cut, with seeds. A file is read wrongly if its
values are neither those of the intact file nor those of the reference: libpng for PNG, libtiff for
TIFF, pydicom for DICOM, and for other formats a reader and the checksum of the compressed voxels.
"""

import gzip
import random
import re
import warnings
import zlib

import imagecodecs
import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
import tifffile
from PIL import Image
from pydicom.pixels import apply_modality_lut
from pydicom.uid import DeflatedExplicitVRLittleEndian, RLELossless

from lesionseg.errors import LesionsegError
from lesionseg.io.volumes import read_volume
from tests.io.dicom_files import CT, write_dicom_file

RNG = np.random.default_rng(0)
Y, X = np.mgrid[:48, :56]
MASK = (((Y - 15) ** 2 + (X - 20) ** 2 < 60) + 2 * ((Y - 33) ** 2 + (X - 36) ** 2 < 30)).astype(
    "u1"
)
NOISE = (RNG.normal(120, 20, MASK.shape) + Y).clip(0, 255).astype(np.uint8)
WIDE = NOISE.astype(np.uint16) * 200
VOLUME = RNG.integers(0, 1000, (6, 8, 10)).astype(np.int16)
POSITION = {
    "ImagePositionPatient": [0, 0, 0],
    "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
    "PixelSpacing": [1, 1],
    "Modality": "CT",
    "SOPInstanceUID": "1.2.5",
}


def write_dicom(path):
    write_dicom_file(path, WIDE, CT, **POSITION)
    header = pydicom.dcmread(path)
    header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID  # the same in every run
    if path.stem == "rle":
        header.compress(RLELossless)
    elif path.stem == "deflated":
        header.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    header.save_as(path, enforce_file_format=True)


def write_picture(path):
    pixels = {"mask": MASK, "wide": WIDE}.get(path.stem, NOISE)
    Image.fromarray(pixels).save(path)


def write_nifti(path):
    nibabel.save(nibabel.Nifti1Image(VOLUME.T, np.eye(4)), path)


def write_itk(path):
    sitk.WriteImage(sitk.GetImageFromArray(VOLUME), str(path), path.stem == "packed")


def write_stack(path):
    tifffile.imwrite(path, VOLUME, photometric="minisblack", compression="zlib")


def write_palette(path):
    image = Image.frombytes("P", MASK.shape[::-1], MASK.tobytes())
    image.putpalette([0, 0, 0, 200, 0, 0, 0, 200, 0])
    image.save(path)


def write_tiff(path):
    compression = {"packed": "zlib", "plain": None}.get(path.stem, path.stem)
    tifffile.imwrite(path, NOISE, compression=compression)


def read_by_libpng(path):
    return imagecodecs.png_decode(path.read_bytes())


def read_by_libtiff(path):
    image = imagecodecs.tiff_decode(path.read_bytes())
    return image * np.uint8(255) if image.dtype == bool else image


def read_stack(path):
    return imagecodecs.tiff_decode(path.read_bytes(), index=None)


def read_by_pillow(path):
    with Image.open(path) as image:
        colours = np.moveaxis(np.asarray(image.convert("RGB")), -1, 0)
        is_grey = (colours == colours[:1]).all()
        return colours[:1] if is_grey else colours


def read_by_pydicom(path):
    header = pydicom.dcmread(path)
    return apply_modality_lut(header.pixel_array, header)


def read_by_nibabel(path):
    if path.suffix == ".gz":
        gzip.decompress(path.read_bytes())  # to the checksum at the end
    return np.asarray(nibabel.load(path).dataobj).T


def read_by_itk(path):
    image = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    if path.stem == "packed":  # ITK does not verify the checksum
        content = path.read_bytes()
        ends = [match.end() for match in re.finditer(rb"LOCAL\n|\n\n", content)]
        zlib.decompress(content[ends[0] :], wbits=zlib.MAX_WBITS | 32)
    return image


FORMATS = {
    # name of the file: (function that writes it, function that reads it)
    "mask.png": (write_picture, read_by_libpng),
    "noise.png": (write_picture, read_by_libpng),
    "wide.png": (write_picture, read_by_libpng),
    "palette.png": (write_palette, read_by_pillow),
    "plain.tif": (write_tiff, read_by_libtiff),
    "packed.tif": (write_tiff, read_by_libtiff),
    "lzw.tif": (write_tiff, read_by_libtiff),
    "packbits.tif": (write_tiff, read_by_libtiff),
    "stack.tif": (write_stack, read_stack),
    "a.jpg": (write_picture, read_by_pillow),
    "a.bmp": (write_picture, read_by_pillow),
    "plain.dcm": (write_dicom, read_by_pydicom),
    "rle.dcm": (write_dicom, read_by_pydicom),
    "deflated.dcm": (write_dicom, read_by_pydicom),
    "a.nii": (write_nifti, read_by_nibabel),
    "a.nii.gz": (write_nifti, read_by_nibabel),
    "plain.mha": (write_itk, read_by_itk),
    "packed.mha": (write_itk, read_by_itk),
    "plain.nrrd": (write_itk, read_by_itk),
    "packed.nrrd": (write_itk, read_by_itk),
}


def damage(content, seed):
    """Flip a bit, set bytes to zero, or cut the file. Half of the places are near its start."""
    draw = random.Random(seed)
    damaged = bytearray(content)
    place = draw.randrange(min(400, len(content)) if seed % 2 else len(content))
    if seed % 10 == 0:
        return damaged[:place]
    if seed % 10 == 1:
        n = draw.choice([1, 2, 4, 16])
        damaged[place : place + n] = bytes(len(damaged[place : place + n]))
    else:
        damaged[place] ^= 1 << draw.randrange(8)
    return damaged


def is_equal(seen, expected):
    seen = np.squeeze(seen)
    expected = np.squeeze(expected)
    is_same_shape = seen.shape == expected.shape
    return is_same_shape and np.allclose(seen, expected, rtol=1e-6, atol=0, equal_nan=True)


def is_like_reference(seen, path, read):
    """Return True if the reference decoder returns the same values."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return is_equal(seen, read(path))
        except Exception:  # the reference refuses the file
            return False


def find_wrong_files(path, name, n_files):
    """Return the seeds of the damaged files that are read with wrong values."""
    write, read = FORMATS[name]
    file = path / name
    write(file)
    content = file.read_bytes()
    as_labels = name in ("mask.png", "palette.png")
    intact = read_volume(file, as_labels=as_labels).array
    wrong = []
    for seed in range(n_files):
        file.write_bytes(damage(content, seed))
        try:
            seen = read_volume(file, as_labels=as_labels).array
        except LesionsegError:
            continue
        if not is_equal(seen, intact) and not is_like_reference(seen, file, read):
            wrong.append(seed)
    return wrong


@pytest.mark.parametrize("n_files", [60, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", FORMATS)
def test_no_damaged_file_is_read_wrongly(tmp_path, name, n_files):
    wrong = find_wrong_files(tmp_path, name, n_files)
    assert not wrong, f"{len(wrong)} damaged files read wrongly, expected 0: seeds {wrong}"

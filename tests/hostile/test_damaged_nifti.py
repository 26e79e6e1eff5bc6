"""NIfTI files damaged in sixteen ways: each is an error that names it."""

import gzip
import struct

import nibabel
import numpy as np
import pytest

from lesionseg.core import CaseFiles, Dataset
from lesionseg.errors import LesionsegError
from lesionseg.io.cases import read_image

# offsets in a NIfTI-1 header
DIM, DATATYPE, VOX_OFFSET, SFORM, HEADER = 40, 70, 108, 280, 352


def patched(offset, form, *values):
    """The packed file with these values in it."""

    def patch(file, rng=None):
        plain = bytearray(gzip.decompress(file))
        struct.pack_into(form, plain, offset, *values)
        return gzip.compress(bytes(plain))

    return patch


def noise_inside(file, rng):
    begin = int(rng.integers(20, len(file) // 2))
    return file[:begin] + rng.bytes(200) + file[begin + 200 :]


def few_voxels(file, rng):
    plain = gzip.decompress(file)
    return gzip.compress(plain[: int(rng.integers(HEADER, len(plain) - 4000))])


def not_finite(file, rng):
    value = rng.choice([np.nan, np.inf, -np.inf])
    return patched(HEADER + 4 * int(rng.integers(0, 500)), "<f", value)(file)


DAMAGES = {
    "cut": lambda file, rng: file[: int(rng.integers(1, len(file) - 8))],
    "noise": noise_inside,
    "checksum": lambda file, rng: file[:-8] + rng.bytes(4) + file[-4:],
    "few_voxels": few_voxels,
    "not_finite": not_finite,
    "empty": lambda file, rng: b"",
    "text": lambda file, rng: b"no image at all",
    "random": lambda file, rng: rng.bytes(3000),
    "magic": patched(344, "<4s", b"xyz\0"),
    "zero_dim": patched(DIM + 4, "<h", 0),
    "negative_dim": patched(DIM + 2, "<h", -5),
    "huge_dims": patched(DIM + 2, "<3h", 30000, 30000, 30000),
    "datatype": patched(DATATYPE, "<h", 12345),
    "far_offset": patched(VOX_OFFSET, "<f", 1e9),
    "huge_spacing": patched(SFORM, "<12f", 900, 0, 0, 0, 0, 900, 0, 0, 0, 0, 900, 0),
    "flat_affine": patched(SFORM, "<12f", 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_an_error_that_names_it(tmp_path, rng, damage):
    path = tmp_path / f"{damage}.nii.gz"
    nibabel.save(nibabel.Nifti1Image(rng.normal(size=(12, 10, 14)).astype("f4"), np.eye(4)), path)
    dataset = Dataset("x", tmp_path, "nnunet", 3, ("T1",), {1: "lesion"}, ())
    assert read_image(CaseFiles("a", (path,)), dataset).array.shape == (1, 14, 10, 12)
    whole = path.read_bytes()
    for _ in range(5):
        path.write_bytes(DAMAGES[damage](whole, rng))
        with pytest.raises(LesionsegError, match=damage):
            read_image(CaseFiles("a", (path,)), dataset)

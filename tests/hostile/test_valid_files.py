"""What is valid comes back: any grid from every format of volumes, any text, any role."""

import re
from functools import partial
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from lesionseg.core import Geometry, Volume
from lesionseg.io.atomic import read_csv, write_csv
from lesionseg.io.volumes import read_volume, write_volume
from lesionseg.plan.splits import Splits
from tests.hostile.hostile_file import each
from tests.io.dicom_files import CT, save

MM = st.floats(-500, 500, width=32)
SPACING = st.floats(0.03125, 50, width=32)


@st.composite
def rotations(draw: st.DrawFn) -> np.ndarray:
    """Axes in any order and direction, turned by any angle about the first."""
    order, signs = (
        draw(st.sampled_from(list(permutations(range(3))))),
        draw(st.sampled_from(list(product((1, -1), repeat=3)))),
    )
    angle = draw(st.floats(-3, 3, width=32))
    turn = np.eye(3)
    turn[1:, 1:] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return turn @ (np.eye(3)[list(order)] * signs)


@st.composite
def volumes(draw: st.DrawFn) -> Volume:
    """Any small array on any rectangular grid."""
    dtype = draw(st.sampled_from((np.uint8, np.int16, np.uint16, np.int32, np.float32)))
    shape = draw(st.tuples(*[st.integers(1, 4)] * 3))
    finite = npst.from_dtype(np.dtype(dtype), allow_nan=False, allow_infinity=False)
    array = draw(npst.arrays(dtype, shape, elements=finite))
    affine = np.eye(4)
    affine[:3, :3] = draw(rotations()) * draw(st.tuples(*[SPACING] * 3))
    affine[:3, 3] = draw(st.tuples(*[MM] * 3))
    return Volume(array[None], Geometry(shape, affine))


def _comes_back(path: Path, volume: Volume) -> None:
    write_volume(path, volume)
    found = read_volume(path)
    np.testing.assert_array_equal(found.array, volume.array)
    assert found.geometry.distance_mm(volume.geometry) < 1e-3


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".mha", ".nrrd"])
def test_any_volume_comes_back(ending: str, tmp_path: Path) -> None:
    each(volumes(), 15, partial(_comes_back, tmp_path / f"a{ending}"))


def test_any_slice_of_dicom_comes_back(tmp_path: Path) -> None:
    numbers = st.integers(-2000, 2000)
    spacings = st.tuples(SPACING, SPACING)

    def comes_back(drawn: tuple[np.ndarray, tuple[float, float], float, int]) -> None:
        pixels, spacing, slope, intercept = drawn
        path = save(
            tmp_path / "a.dcm",
            pixels,
            CT,
            Modality="CT",
            PixelSpacing=[f"{mm:.8g}" for mm in spacing],
            ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
            ImagePositionPatient=[0, 0, 0],
            SliceThickness=1,
            RescaleSlope=f"{slope:.8g}",
            RescaleIntercept=intercept,
        )
        found = read_volume(path)
        np.testing.assert_allclose(
            found.array[0, 0], pixels * float(f"{slope:.8g}") + intercept, rtol=1e-4, atol=1e-2
        )
        assert found.geometry.spacing_mm[1:] == pytest.approx(spacing, rel=1e-5)

    arrays = npst.arrays(np.uint16, npst.array_shapes(min_dims=2, max_dims=2, max_side=5))
    each(st.tuples(arrays, spacings, st.floats(0.125, 8, width=32), numbers), 15, comes_back)


def test_any_text_comes_back_from_a_table(tmp_path: Path) -> None:
    def comes_back(cells: tuple[str, str]) -> None:
        write_csv(tmp_path / "a.csv", [dict(zip("ab", cells, strict=True))], "ab")
        (row,) = read_csv(tmp_path / "a.csv")
        lines = (re.sub("\r\n?", "\n", cell).strip() for cell in cells)
        assert tuple(row.values()) == tuple(lines)

    plain = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=9)
    formulas = st.builds("".join, st.tuples(st.sampled_from("=+-@'\t"), plain))
    each(st.tuples(st.just("x"), formulas | plain), 60, comes_back)


def test_any_roles_come_back(tmp_path: Path) -> None:
    def comes_back(roles: dict[str, str]) -> None:
        splits = Splits(roles, group_safe=True, seed=0, note="")
        assert Splits.from_json(splits.to_json(), tmp_path) == splits

    roles = st.sampled_from(("train", "validation", "test", "external"))
    each(st.dictionaries(st.text(max_size=9), roles, min_size=1, max_size=4), 50, comes_back)

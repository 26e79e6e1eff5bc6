"""Every convention with every file type it can hold: written, recognised, read back the same."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lesionseg.core import Case, Geometry, Volume
from lesionseg.errors import ReadError
from lesionseg.io.cases import read_case
from lesionseg.io.layouts import read_dataset
from lesionseg.io.layouts.input_images import find_images
from lesionseg.io.volumes import read_volume, write_volume
from tests.io.dicom_files import CT, DX, contours, place, save, segmentation

SHAPE = (4, 5, 6)
FLAT = (5, 6)


def grid() -> Geometry:
    """Axes along +S, -A, -R, as DICOM's slices lie; three spacings, off the origin."""
    affine = np.eye(4)
    affine[:3, :3] = np.fliplr(np.diag([-0.5, -0.75, 3.0]))
    affine[:3, 3] = (10, 20, -30)
    return Geometry(SHAPE, affine)


def image(shape: tuple[int, ...]) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.uint8).reshape(shape) + 7


def mask(shape: tuple[int, ...]) -> np.ndarray:
    """One lesion of three voxels in a row of the second slice, or of the picture."""
    lesion = np.zeros(shape, np.uint8)
    lesion[(1, 2, slice(1, 4)) if len(shape) == 3 else (2, slice(1, 4))] = 1
    return lesion


def geometry(shape: tuple[int, ...]) -> Geometry:
    return grid() if len(shape) == 3 else Geometry.from_spacing(shape, (1.0, 1.0))


def write_as(path: Path, array: np.ndarray) -> Path:
    """Write an array in the format of the path's ending; no ending is a DICOM series."""
    path.parent.mkdir(parents=True, exist_ok=True)
    where = geometry(array.shape)
    if path.suffix == ".dcm" and array.ndim == 2:
        return save(path, array.astype(np.uint16), DX, Modality="DX")
    if path.suffix in ("", ".dcm"):
        for z, piece in enumerate(array if path.suffix == "" else array[:1]):
            file = path / f"{z}.dcm" if path.suffix == "" else path
            extra = {"Modality": "CT", "SliceThickness": 3, **place(where, z)}
            save(file, piece.astype(np.uint16), CT, **extra)
    elif path.suffix in (".jpg", ".bmp"):
        Image.fromarray(array).save(path, quality=100)
    elif "16" in path.stem:
        write_volume(path, Volume(array[np.newaxis].astype(np.uint16), where))
    else:
        write_volume(path, Volume(array[np.newaxis], where))
    return path


VOLUMES = [".nii", ".nii.gz", ".nrrd", ".mha"]
PICTURES = [".png", ".tif", ".tiff", ".bmp"]


def check(case: Case, shape: tuple[int, ...], off: float = 0.0) -> None:
    assert np.abs(case.image.array[0] - image(shape)).max() <= off
    assert case.image.geometry.distance_mm(geometry(shape)) < 1e-4
    np.testing.assert_array_equal(case.reference.labels > 0, mask(shape) > 0)


def read_only_case(root: Path, convention: str) -> Case:
    dataset = read_dataset(root)
    assert dataset.convention == convention
    (files,) = dataset.cases
    return read_case(files, dataset)


def nnunet(root: Path, ending: str, shape: tuple[int, ...], image_name: str = "A_0000") -> None:
    write_as(root / "imagesTr" / f"{image_name}{ending}", image(shape))
    write_as(root / "labelsTr" / f"A{ending}", mask(shape))
    facts = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "lesion": 1}}
    (root / "dataset.json").write_text(json.dumps({**facts, "file_ending": ending}))


def msd(root: Path, ending: str, shape: tuple[int, ...]) -> None:
    nnunet(root, ending, shape, "A")
    facts = {"modality": {"0": "CT"}, "labels": {"0": "background", "1": "lesion"}}
    (root / "dataset.json").write_text(json.dumps(facts))


def manifest(root: Path, ending: str, shape: tuple[int, ...]) -> None:
    write_as(root / f"a{ending}", image(shape))
    write_as(root / f"m{ending}", mask(shape))
    (root / "manifest.csv").write_text(f"case,image,reference\nA,a{ending},m{ending}\n")


def datalist(root: Path, ending: str, shape: tuple[int, ...]) -> None:
    manifest(root, ending, shape)
    (root / "manifest.csv").unlink()
    entries = [{"image": f"a{ending}", "label": f"m{ending}"}]
    (root / "list.json").write_text(json.dumps({"training": entries}))


def bids(root: Path, ending: str, shape: tuple[int, ...]) -> None:
    write_as(root / "sub-1" / "anat" / f"sub-1_FLAIR{ending}", image(shape))
    place = root / "derivatives" / "lesions" / "sub-1" / "anat"
    write_as(place / f"sub-1_label-lesion_mask{ending}", mask(shape))


Layout = Callable[[Path, str, tuple[int, ...]], None]
LAYOUTS: list[tuple[Layout, list[str]]] = [
    (nnunet, VOLUMES + PICTURES),
    (msd, VOLUMES),
    (manifest, VOLUMES + PICTURES),
    (datalist, VOLUMES + PICTURES),
    (bids, VOLUMES),
]
TABLE = [(layout, ending) for layout, endings in LAYOUTS for ending in endings]


@pytest.mark.parametrize(("layout", "ending"), TABLE, ids=[f"{f.__name__}{e}" for f, e in TABLE])
def test_a_case_comes_back_as_it_was_written(tmp_path: Path, layout: Layout, ending: str) -> None:
    shape = FLAT if ending in PICTURES else SHAPE
    layout(tmp_path, ending, shape)
    check(read_only_case(tmp_path, layout.__name__), shape)


def seg(path: Path) -> None:
    segmentation(path, grid(), {"lesion": mask(SHAPE) > 0})


def rtstruct(path: Path) -> None:
    corners = ((1.5, 0.5), (1.5, 3.5), (2.5, 3.5), (2.5, 0.5))
    contours(path, grid(), (1, corners))


def volume_mask(path: Path) -> None:
    write_as(path.with_suffix(".nii.gz"), mask(SHAPE))


@pytest.mark.parametrize("draw", [seg, rtstruct, volume_mask])
@pytest.mark.parametrize("kind", ["", ".nii.gz"])
def test_dicom_series_and_dicom_references(
    tmp_path: Path, kind: str, draw: Callable[[Path], None]
) -> None:
    write_as(tmp_path / f"scan{kind}", image(SHAPE))
    draw(tmp_path / "reference.dcm")
    named = "reference.nii.gz" if draw is volume_mask else "reference.dcm"
    (tmp_path / "manifest.csv").write_text(f"case,image,reference\nA,scan{kind},{named}\n")
    check(read_only_case(tmp_path, "manifest"), SHAPE)


def test_a_jpeg_is_an_image_and_no_mask(tmp_path: Path) -> None:
    manifest(tmp_path, ".jpg", FLAT)
    with pytest.raises(ReadError, match="lost its exact values"):
        read_only_case(tmp_path, "manifest")
    (tmp_path / "m.jpg").unlink()
    write_as(tmp_path / "m.png", mask(FLAT))
    (tmp_path / "manifest.csv").write_text("case,image,reference\nA,a.jpg,m.png\n")
    check(read_only_case(tmp_path, "manifest"), FLAT, off=3)


@pytest.mark.parametrize("ending", [*VOLUMES, *PICTURES, ".jpg", "", ".dcm"])
def test_every_file_type_is_found_for_prediction(tmp_path: Path, ending: str) -> None:
    shape = SHAPE if ending in (*VOLUMES, "", ".dcm") else FLAT
    write_as(tmp_path / f"scan{ending}", image(shape))
    (found,) = find_images(tmp_path, 1)
    assert found.case == "scan"
    assert read_volume(found.images[0]).array.shape[0] == 1

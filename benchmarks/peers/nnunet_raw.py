"""Small raw folders for nnU-Net, one for each kind of its preprocessing.

    PYTHONPATH=. python benchmarks/peers/nnunet_raw.py FOLDER

The heads and chests are lesionseg's simulated scans with other spacings, orientations, channels and
labels. `nnunet_models.py` trains on them.
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from lesionseg.core import Geometry, Volume
from lesionseg.io.layouts import read_dataset
from lesionseg.io.text import write_json
from lesionseg.io.volumes import read_volume, write_volume
from lesionseg.phantoms import write_ct_phantoms, write_mri_phantoms

Array = NDArray[Any]
N_TRAIN = 4
N_TEST = 2
LESION = {"background": 0, "lesion": 1}
# RAS directions of array axes (z, y, x) of a scan in LPS, and of a sagittal one
LPS = np.array([[0, 0, -1], [0, -1, 0], [1, 0, 0.0]])
SAGITTAL = np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0.0]])


@dataclass(frozen=True)
class Scan:
    """Channels `[C, z, y, x]`, a mask with lesions as 1, and a spacing."""

    channels: Array
    mask: Array
    spacing_mm: tuple[float, ...]


@dataclass(frozen=True)
class RawSet:
    """A raw folder's name, its `dataset.json`, and the change of a simulated scan."""

    name: str
    facts: Mapping[str, Any]
    change: Callable[[Scan, int], Scan]
    is_ct: bool = False
    shape: tuple[int, ...] = (28, 40, 36)
    spacing_mm: tuple[float, ...] = (4.0, 4.0, 4.0)
    directions: Array | None = None
    suffix: str = ".nii.gz"


def make_facts(*channels: str, labels: Mapping[str, Any] = LESION, **more: Any) -> dict[str, Any]:
    """Return the content of a `dataset.json`."""
    return {
        "channel_names": {str(i): name for i, name in enumerate(channels)},
        "labels": dict(labels),
        "numTraining": N_TRAIN,
        "file_ending": ".nii.gz",
        **more,
    }


def keep_scan(scan: Scan, _: int) -> Scan:
    """Return the simulated scan."""
    return scan


def add_channel(scan: Scan, number: int) -> Scan:
    """Add a channel of inverted contrast, and vary the spacing by case."""
    image = scan.channels[0]
    other = np.where(image > 60, 1.2 * image.max() - image, image)
    spacing = tuple(s * (1, 1.15, 0.9)[number % 3] for s in scan.spacing_mm)
    return Scan(np.stack([image, other]), scan.mask, spacing)


def strip_skull(scan: Scan, number: int) -> Scan:
    """Set voxels outside of the brain to 0, so that nnU-Net crops and normalises in its mask."""
    axes = np.ogrid[tuple(slice(-1, 1, n * 1j) for n in scan.mask.shape)]
    brain = sum((a / 0.62) ** 2 for a in axes) < 1
    holes = ndimage.binary_erosion(brain, iterations=5) & (scan.channels[0] < 150)
    spacing = tuple(s * (1, 0.8, 1.3)[number % 3] for s in scan.spacing_mm)
    return Scan(scan.channels * (brain & ~holes), scan.mask * brain, spacing)


def thicken(scan: Scan, number: int) -> Scan:
    """Keep every second slice along the first axis, of varying thickness."""
    spacing = (scan.spacing_mm[0] * (3.2, 4, 3.6)[number % 3], *scan.spacing_mm[1:])
    spacing = (spacing[0], *(s * (1, 1.1, 0.85)[number % 3] for s in spacing[1:]))
    return Scan(scan.channels[:, ::2], scan.mask[::2], spacing)


def thicken_along_x(scan: Scan, number: int) -> Scan:
    """Turn the scan into a sagittal one, with thick slices along the file's last axis."""
    turned = thicken(scan, number)
    z, y, x = turned.spacing_mm
    channels = np.moveaxis(turned.channels, 1, 3)
    return Scan(channels, np.moveaxis(turned.mask, 0, 2), (y, x, z))


def add_core(scan: Scan, number: int) -> Scan:
    """Make a lesion's inner voxels the label 2."""
    core = ndimage.binary_erosion(scan.mask > 0, structure=np.ones((2, 2, 2)))
    spacing = tuple(s * (1, 1.2, 0.9)[number % 3] for s in scan.spacing_mm)
    return Scan(scan.channels, np.where(core, 2, scan.mask), spacing)


def make_colour_picture(scan: Scan, number: int) -> Scan:
    """Return a slice with a lesion as a colour picture of three times the size."""
    row = int((scan.mask > 0).sum(axis=(1, 2)).argmax())
    grey = scan.channels[0][row]
    large = np.kron(np.clip(grey / grey.max() * 255, 0, 255), np.ones((3, 3)))
    mask = np.kron(scan.mask[row] > 0, np.ones((3, 3)))
    tints = np.array([1.0, 0.8, 0.6])[:, None, None]
    return Scan((large * tints).astype(np.uint8), mask.astype(np.uint8), (1.0, 1.0))


SETS = (
    RawSet("Dataset001_Heads2d", make_facts("FLAIR"), thicken, shape=(28, 44, 36)),
    RawSet("Dataset002_Heads", make_facts("FLAIR", "T1"), add_channel),
    RawSet("Dataset003_Stripped", make_facts("FLAIR"), strip_skull, shape=(32, 44, 40)),
    RawSet("Dataset004_Thick", make_facts("FLAIR"), thicken, shape=(40, 44, 36)),
    RawSet("Dataset005_Sagittal", make_facts("FLAIR"), thicken_along_x, shape=(40, 44, 36)),
    RawSet("Dataset006_Chests", make_facts("CT"), keep_scan, True, (32, 44, 48), (5.0, 4.0, 4.0)),
    RawSet(
        "Dataset007_Regions",
        make_facts(
            "rescale_to_0_1",
            labels={"background": 0, "whole": [1, 2], "core": 2},
            regions_class_order=[1, 2],
        ),
        add_core,
    ),
    RawSet(
        "Dataset008_Pictures",
        make_facts("R", "G", "B", file_ending=".png")
        | {"channel_names": dict.fromkeys("012", "rgb_to_0_1")},
        make_colour_picture,
        suffix=".png",
    ),
    RawSet(
        "Dataset009_Reoriented",
        make_facts("FLAIR", overwrite_image_reader_writer="NibabelIOWithReorient"),
        thicken,
        shape=(40, 44, 36),
        directions=LPS,
    ),
)


def write_raw_set(raw: RawSet, folder: Path) -> None:
    """Write the raw folder with training cases P00 … and test cases P04 …."""
    source = folder / f".simulated_{raw.name}"
    simulate = write_ct_phantoms if raw.is_ct else write_mri_phantoms
    n_lesions: Any = {"n_nodules" if raw.is_ct else "n_lesions": (6, 14)}
    simulate(
        source,
        N_TRAIN + N_TEST,
        seed=SETS.index(raw),
        lesion_free_share=0.0,
        shape=raw.shape,
        spacing_mm=raw.spacing_mm,
        **n_lesions,
    )
    root = folder / raw.name
    for number, case in enumerate(read_dataset(source).cases):
        image = read_volume(case.images[0])
        assert case.reference is not None
        mask = read_volume(case.reference, as_labels=True).array[0]
        scan = raw.change(brighten_lesions(image.array.astype(np.float32), mask, raw), number)
        part = "Tr" if number < N_TRAIN else "Ts"
        write_scan(root, part, f"P{number:02}", scan, raw)
    write_json(root / "dataset.json", dict(raw.facts))


def brighten_lesions(image: Array, mask: Array, raw: RawSet) -> Scan:
    """Make lesions larger and much brighter, so that a few steps of training find them."""
    mask = ndimage.binary_dilation(mask > 0, structure=np.ones((3, 3, 3))).astype(np.uint8)
    height = 1500.0 if raw.is_ct else 0.8 * image.max()
    return Scan(image + np.float32(height) * mask, mask, raw.spacing_mm)


def write_scan(root: Path, part: str, name: str, scan: Scan, raw: RawSet) -> None:
    """Write the channels and the mask of one case."""
    dims = len(scan.spacing_mm)
    geometry = Geometry.from_spacing(scan.mask.shape, scan.spacing_mm)
    if raw.directions is not None:
        affine = np.eye(4)
        affine[:3, :3] = raw.directions * np.asarray(scan.spacing_mm)
        affine[:3, 3] = (30, -20, 12)
        geometry = Geometry(scan.mask.shape, affine)
    mask = Volume(scan.mask[None].astype(np.uint8), geometry)
    write_volume(root / f"labels{part}" / f"{name}{raw.suffix}", mask)
    images = root / f"images{part}"
    if dims == 2:
        from PIL import Image

        images.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.moveaxis(scan.channels, 0, -1)).save(images / f"{name}_0000.png")
        return
    for number, channel in enumerate(scan.channels):
        volume = Volume(channel[None].astype(np.float32), geometry)
        write_volume(images / f"{name}_{number:04}{raw.suffix}", volume)


if __name__ == "__main__":
    for raw_set in SETS:
        write_raw_set(raw_set, Path(sys.argv[1]))

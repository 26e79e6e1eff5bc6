"""Simulated chest radiographs with nodules, whose reference is exact."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from lesionseg.core import Case, Geometry, Reference, Volume
from lesionseg.errors import require
from lesionseg.io.atomic import write_json
from lesionseg.io.volumes import write_volume
from lesionseg.phantoms.fields import Field, is_lesion_free
from lesionseg.phantoms.lesion_shapes import draw_diameters
from lesionseg.phantoms.thorax import PER_MM, Thorax, simulate_thorax

GREY_LEVELS = 4095  # 12 bit
SCATTER = 0.3  # scattered light behind an anti-scatter grid, as a share of the direct light
LATITUDE = 0.5  # share of the coarse brightness that digital radiographs' display takes away
GAP_PX = 3  # pixels left between two nodules
TRIES = 60
DEEP = 0.35  # nodules lie where the lung is at least this share of its greatest depth


@dataclass(frozen=True)
class XraySettings:
    """What the simulated radiographs look like.

    `contrast` multiplies the nodules' density; `photons` is the number a pixel receives without a
    patient; `n_nodules` the least and most of an image that has any; `diameter_mm` least, median
    and most of the log-normal diameter, `log_spread` its standard deviation in log mm.
    """

    shape: tuple[int, int] = (512, 512)
    pixel_mm: float = 0.7
    contrast: float = 1.0
    photons: float = 4e5
    n_nodules: tuple[int, int] = (1, 4)
    diameter_mm: tuple[float, float, float] = (5.0, 15.0, 30.0)
    log_spread: float = 0.45

    def __post_init__(self) -> None:
        fits = min(self.shape) * self.pixel_mm > 2 * self.diameter_mm[2]
        require(fits, "The image is too small for a chest.", seen=(self.shape, self.pixel_mm))
        least, most = self.n_nodules
        require(1 <= least <= most, "n_nodules must be (least, most).", seen=self.n_nodules)


def simulate_xray_case(
    case: str, rng: np.random.Generator, settings: XraySettings, *, lesion_free: bool = False
) -> Case:
    """Draw one frontal radiograph: image `[1, Y, X]` float32 0..4095 (bone bright), its reference.

    Chain: anatomy and nodules → Beer–Lambert → scatter → detector blur → Poisson noise →
    logarithm → display. A pixel is nodule when its centre lies inside the outline.
    """
    thorax = simulate_thorax(rng, settings.shape, settings.pixel_mm)
    instances = np.zeros(settings.shape, dtype=np.int32)
    nodules = np.zeros(settings.shape, dtype=np.float32)
    if not lesion_free:
        _add_nodules(rng, thorax, settings, nodules, instances)
    image = _expose(rng, thorax.attenuation + nodules, settings.photons)
    geometry = Geometry.from_spacing(settings.shape, (settings.pixel_mm,) * 2)
    labels = (instances > 0).astype(np.uint8)
    ids = (1,) * int(instances.max())
    reference = Reference(geometry, labels, instances=instances, instance_labels=ids)
    return Case(case, Volume(image[None], geometry), reference, group=case)


def _expose(rng: np.random.Generator, attenuation: Field, photons: float) -> Field:
    """From the exponent of attenuation to displayed levels; white is what stops most light."""
    light = np.exp(-attenuation)
    light = light + SCATTER * _blurred(light, 6.0)
    counts = rng.poisson(ndimage.gaussian_filter(light, 0.6) * photons)
    density = -np.log(np.maximum(counts, 1) / photons)
    density -= LATITUDE * _blurred(density, 5.0)
    lower, upper = np.percentile(density, (0.02, 99.7))
    levels = np.clip((density - lower) / (upper - lower), 0, 1) * GREY_LEVELS
    return np.asarray(np.rint(levels), dtype=np.float32)


def _blurred(image: Field, sigma: float) -> Field:
    """The image at an eighth of its resolution, blurred by `sigma` of those pixels, and back."""
    small = ndimage.zoom(image, 0.125, order=1, grid_mode=True, mode="nearest")
    small = ndimage.gaussian_filter(small, sigma, mode="nearest")
    factors = [n / m for n, m in zip(image.shape, small.shape, strict=True)]
    return np.asarray(ndimage.zoom(small, factors, order=1, grid_mode=True, mode="nearest"))


def _add_nodules(
    rng: np.random.Generator,
    thorax: Thorax,
    settings: XraySettings,
    nodules: Field,
    instances: NDArray[np.int32],
) -> None:
    """Write nodules' attenuation and ids 1..n, large ones first, with a gap between them."""
    sizes = (settings.n_nodules, settings.diameter_mm, settings.log_spread)
    for diameter in draw_diameters(rng, *sizes):
        for _ in range(TRIES):
            chord = _nodule_mm(rng, thorax.lung_mm, diameter, settings.pixel_mm)
            mask = chord > 0
            near = ndimage.maximum_filter(instances, 2 * GAP_PX + 1)
            if mask.any() and not near[mask].any():
                density = (PER_MM["soft"] - PER_MM["lung"]) * _solidity(rng)
                nodules += np.float32(settings.contrast * density) * chord
                instances[mask] = instances.max() + 1
                break


def _solidity(rng: np.random.Generator) -> float:
    """Density of a nodule, from lung (0) over soft tissue (1) to heavily calcified (2).

    One in eight is ground glass; most hold calcium, as healed granulomas do: the visible ones.
    """
    kind = rng.random()
    if kind < 0.125:
        return float(rng.uniform(0.7, 1.0))
    return float(rng.uniform(1.0, 1.3) if kind < 0.4 else rng.uniform(1.4, 2.2))


def _nodule_mm(
    rng: np.random.Generator, lung_mm: Field, diameter_mm: float, pixel_mm: float
) -> Field:
    """Millimetres of a lobed ball `[*spatial]` whose middle lies where the lung is deep enough."""
    deep = np.flatnonzero(lung_mm > DEEP * lung_mm.max())
    if len(deep) == 0:
        return np.zeros_like(lung_mm)
    row, column = np.unravel_index(int(rng.choice(deep)), lung_mm.shape)
    y = (np.arange(lung_mm.shape[0])[:, None] - row + rng.uniform(-0.5, 0.5)) * pixel_mm
    x = (np.arange(lung_mm.shape[1])[None, :] - column + rng.uniform(-0.5, 0.5)) * pixel_mm
    lobes, phases = rng.normal(0, (0.09, 0.05, 0.03)), rng.uniform(0, 2 * np.pi, size=3)
    angle = np.arctan2(y, x)
    waves = zip((2, 3, 5), lobes, phases, strict=True)
    outline = 1 + sum(lobe * np.cos(k * angle + phase) for k, lobe, phase in waves)
    radius = diameter_mm / 2 * outline / np.sqrt(1 + 0.5 * np.sum(lobes**2))
    chord = 2 * np.sqrt(np.maximum(radius**2 - y**2 - x**2, 0)) * (diameter_mm / 2 / radius)
    return np.asarray(chord, dtype=np.float32)


def write_xray_phantoms(
    folder: Path,
    n_cases: int,
    *,
    seed: int,
    lesion_free_share: float = 0.25,
    shape: tuple[int, int] = (512, 512),
    pixel_mm: float = 0.7,
    contrast: float = 1.0,
    photons: float = 4e5,
    n_nodules: tuple[int, int] = (1, 4),
    progress: Callable[[str, int, int], None] | None = None,
) -> None:
    """Write `n_cases` simulated chest radiographs as a COCO folder with instance masks.

    `images/` holds 12-bit levels in 16-bit PNG, `masks/` nodule ids in 8-bit PNG. Every image
    is another patient. Case i depends on `seed` and i alone. Raises `ConfigError` for impossible
    numbers.

    Args:
        folder: where the dataset is written.
        n_cases: how many radiographs.
        seed: of the random numbers.
        lesion_free_share: the share of images without a nodule, spread evenly.
        shape: pixels along y and x; this and the next four: see `XraySettings`.
        pixel_mm: the pixel's side.
        contrast: multiplies the nodules' density.
        photons: how many a pixel receives without a patient.
        n_nodules: the least and most of an image that has any.
        progress: called with case, number done and total after every case.
    """
    require(n_cases >= 1, "Cannot simulate these cases.", seen=f"{n_cases=}")
    settings = XraySettings(shape, pixel_mm, contrast, photons, n_nodules)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(n_cases):
        free = is_lesion_free(index, lesion_free_share)
        rng = np.random.default_rng([seed, index])
        case = simulate_xray_case(f"SIMX_{index:03d}", rng, settings, lesion_free=free)
        _write_case(folder, case)
        if progress:
            progress(case.case, index + 1, n_cases)
        images.append(_image_entry(index, case, pixel_mm))
        annotations += _annotations(index, case, len(annotations))
    write_json(folder / "annotations.json", _document(images, annotations, seed))


def _write_case(folder: Path, case: Case) -> None:
    geometry = case.image.geometry
    for place in ("images", "masks"):
        (folder / place).mkdir(parents=True, exist_ok=True)
    stored = Volume(case.image.array.astype(np.uint16), geometry)
    write_volume(folder / "images" / f"{case.case}.png", stored)
    if case.reference is not None and case.reference.instances is not None:
        mask = Volume(case.reference.instances.astype(np.uint8)[None], geometry)
        write_volume(folder / "masks" / f"{case.case}.png", mask)


def _image_entry(index: int, case: Case, pixel_mm: float) -> dict[str, Any]:
    height, width = case.image.geometry.shape
    return {
        "id": index + 1,
        "file_name": f"{case.case}.png",
        "mask_file": f"{case.case}.png",
        "width": width,
        "height": height,
        "pixel_mm": pixel_mm,
        "patient": f"SIMX_P{index:03d}",
    }


def _annotations(index: int, case: Case, n_before: int) -> list[dict[str, Any]]:
    """COCO entries of one case: box [x, y, width, height] in pixels, area, id in the mask."""
    if case.reference is None or case.reference.instances is None:
        return []
    entries: list[dict[str, Any]] = []
    for label, place in enumerate(ndimage.find_objects(case.reference.instances), start=1):
        rows, columns = place
        area = int((case.reference.instances[place] == label).sum())
        box = [columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start]
        entries.append(
            {
                "id": n_before + label,
                "image_id": index + 1,
                "category_id": 1,
                "bbox": [float(v) for v in box],
                "area": area,
                "iscrowd": 0,
                "segmentation": [],
                "mask_label": label,
            }
        )
    return entries


def _document(
    images: list[dict[str, Any]], annotations: list[dict[str, Any]], seed: int
) -> Mapping[str, Any]:
    return {
        "info": {
            "description": "SIMULATED chest radiographs with nodules; no patient. Beer-Lambert "
            f"projection of an analytic chest, scatter and Poisson noise; seed {seed}.",
            "license": "CC0-1.0",
        },
        "licenses": [],
        "categories": [{"id": 1, "name": "nodule", "supercategory": "lesion"}],
        "images": images,
        "annotations": annotations,
    }

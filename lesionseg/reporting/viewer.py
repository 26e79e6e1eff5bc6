"""NiiVue page of a case with candidates by score: largest volume, slider data, grey window.

It works without a network.

NiiVue does not belong to the repository. `make viewer` puts it and its licences next to this file,
and a wheel that is built after that contains them.
"""

import base64
import shutil
from collections.abc import Sequence
from math import ceil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import Geometry, Volume
from lesionseg.core.arrays import Numbers
from lesionseg.errors import ConfigError
from lesionseg.io.volumes import write_volume
from lesionseg.reporting.images import Scene, candidate_ids
from lesionseg.reporting.pictures import display_axes, draw_slices
from lesionseg.reporting.rendering import write_page

NIIVUE = Path(__file__).parent / "niivue" / "niivue.umd.js"
# A larger scan is thinned: the page shows every 2nd, 3rd … voxel along each axis.
MAX_VOXELS = 32_000_000
_WINDOW = (0.5, 99.5)  # percentiles of the grey values that are shown as black and as white


def require_niivue() -> None:
    """Raise `ConfigError` if NiiVue, which shows scans on a page, is not installed."""
    if not NIIVUE.is_file():
        raise ConfigError(
            f"{NIIVUE}: NiiVue, which shows scans, is missing. Run `make viewer` in the clone (it "
            "needs npm), or set report.viewer=false."
        )


def write_viewer(folder: Path, case: str, scene: Scene, threshold: float | None) -> None:
    """Write the viewer page of a case: `folder/case.html`.

    The page contains the voxels, and loads NiiVue from `folder`. NiiVue and its licences are copied
    there if they are missing.

    Args:
        folder: The folder of the viewer pages.
        case: The name of the case on the page, and of the page without suffix.
        scene: The image, masks and candidates of the case.
        threshold: The page first shows the candidates with at least this score. With None, it first
            shows the candidates that the prediction accepts.

    Raises:
        ConfigError: If NiiVue is not installed.
        OutputError: If the page cannot be written.
    """
    require_niivue()
    folder.mkdir(parents=True, exist_ok=True)
    for name_of_file in (NIIVUE.name, "LICENCES.txt"):
        source = NIIVUE.with_name(name_of_file)
        target = folder / name_of_file
        if source.is_file() and not target.is_file():
            shutil.copyfile(source, target)
    data = viewer_data(scene)
    if threshold is not None:
        data["threshold"] = threshold
    page = folder / f"{case}.html"
    write_page(page, "viewer.html.j2", title=case, niivue=NIIVUE.name, data=data)


def remove_viewer_pages(folder: Path) -> None:
    """Remove the viewer pages of an earlier report, which may show other cases or their real names.

    A folder without NiiVue is left as it is, because its pages are not those of a report. NiiVue
    itself remains.
    """
    if (folder / NIIVUE.name).is_file():
        for page in folder.glob("*.html"):
            page.unlink()


def viewer_data(scene: Scene, *, with_slices: bool = False) -> dict[str, Any]:
    """Return the data of a viewer page, which the script in `viewer_parts.html.j2` reads by key.

    - `volumes`: image, candidates and reference as `.nii.gz` in base64, by name. They contain every
      `step`-th voxel of each axis.
    - `candidates`: id, score, position in mm and diameter, empty without a prediction.
    - `threshold`: the score of the operating point. If there is none, it is the lowest score of an
      accepted candidate, or 0.
    - `unit`: the unit of diameters.
    - `flat`: True for a 2-D image.
    - `step`: 1, or more for a scan of more than `MAX_VOXELS` voxels.
    - `slices`: all axial slices with the accepted candidates (`draw_slices`), for a page without
      NiiVue. Each candidate then also has the number `slice` of the slice through its centre.

    Args:
        scene: The image, masks and candidates of the case.
        with_slices: True adds `slices` if the scene has a prediction.
    """
    # with this step, the thinned scan has about `MAX_VOXELS` voxels or fewer
    step = max(1, ceil((scene.image.size / MAX_VOXELS) ** (1 / scene.geometry.dims)))
    layers: dict[str, NDArray[Any]] = {"image": _scale_to_grey(scene.image)}
    if scene.prediction is not None:
        layers["candidates"] = candidate_ids(scene.prediction).astype(np.uint16)
    if scene.reference is not None:
        layers["reference"] = scene.reference.astype(np.uint8)
    prediction = scene.prediction
    candidates = () if prediction is None else prediction.candidates
    if prediction is not None and prediction.operating_point is not None:
        threshold = prediction.operating_point.score
    else:
        threshold = min((c.score for c in candidates if c.accepted), default=0.0)
    volumes = {name: _encode_base64(array, scene.geometry, step) for name, array in layers.items()}
    rows = []
    for candidate in candidates:
        row = {
            "id": candidate.id,
            "score": candidate.score,  # not rounded: the page compares it with the threshold
            "mm": _convert_mm(candidate.centre_mm, scene.geometry),
            "size": round(candidate.diameter_mm, 1),
        }
        rows.append(row)
    data: dict[str, Any] = {
        "volumes": volumes,
        "candidates": rows,
        "threshold": threshold,
        "unit": scene.geometry.size_unit,
        "flat": scene.geometry.dims == 2,
        "step": step,
    }
    if with_slices and prediction is not None:
        accepted = candidate_ids(prediction, {c.id for c in candidates if c.accepted}) > 0
        data["slices"] = draw_slices(layers["image"], scene.geometry, accepted)
        for row, candidate in zip(rows, candidates, strict=True):
            row["slice"] = _slice_through(candidate.centre_mm, scene.geometry)
    return data


def _slice_through(centre_mm: Sequence[float], geometry: Geometry) -> int:
    """Return the number of the slice of `draw_slices` that contains a position.

    The slices run from superior to inferior. A 2-D image has the single slice 0.

    Args:
        centre_mm: The position in mm of the scan.
        geometry: The grid of the scan.
    """
    if geometry.dims == 2:
        return 0
    order, flips = display_axes(geometry)
    n = geometry.shape[order[0]]
    # the array index along the axis that is closest to superior-inferior
    index = round(float(np.linalg.solve(geometry.affine, [*centre_mm, 1.0])[order[0]]))
    # axis 0 of the display may be flipped; a centre outside the scan gets the first or last slice
    return min(max(n - 1 - index if 0 in flips else index, 0), n - 1)


def _scale_to_grey(image: NDArray[Any]) -> NDArray[np.uint8]:
    """Scale an image to grey values from 0 (black) to 255 (white), for the page.

    The percentiles `_WINDOW` of its values become 0 and 255. NaN counts as the value 0.
    """
    values: NDArray[np.float32] = np.nan_to_num(np.asarray(image, np.float32))
    low, high = np.percentile(values, _WINDOW)
    scale = 255.0 / max(float(high - low), 1e-6)  # not by 0 for a constant image
    result: NDArray[np.uint8] = ((values - low) * scale).round().clip(0, 255).astype(np.uint8)
    return result


def _affine(geometry: Geometry) -> Numbers:
    """Return the affine of a volume on the page, from array index (z, y, x) to mm.

    A 3-D scan has its affine. A 2-D image has one slice, which is placed upright at the origin,
    because NiiVue shows volumes only.
    """
    if geometry.dims == 3:
        return geometry.affine
    y, x = geometry.spacing_mm
    # slices are 1 mm apart; −y because rows run downwards, but mm on the page upwards
    return np.array([[0, 0, x, 0], [0, -y, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]], float)


def _convert_mm(centre_mm: Sequence[float], geometry: Geometry) -> list[float]:
    """Convert a position from mm of the scan to mm on the page `[x, y, z]`, rounded to 0.01 mm.

    For a 2-D image these differ, because the page shows it as a volume (see `_affine`).
    """
    index = np.linalg.solve(geometry.affine, [*centre_mm, 1.0])
    index_3d = [*np.zeros(3 - geometry.dims), *index]  # z = 0 for a 2-D image
    return [round(float(v), 2) for v in (_affine(geometry) @ index_3d)[:3]]


def _encode_base64(array: NDArray[Any], geometry: Geometry, step: int) -> str:
    """Encode an array as a `.nii.gz` file in base64, which the page contains.

    The file has every `step`-th voxel of each axis. A 2-D image becomes a volume of one slice.
    """
    thinned = array[(slice(None, None, step),) * array.ndim]
    if thinned.ndim == 2:
        thinned = thinned[np.newaxis]  # one slice
    # a thinned voxel is `step` times as long along each axis
    grid = Geometry(thinned.shape, _affine(geometry) @ np.diag([step, step, step, 1.0]))
    with TemporaryDirectory() as folder:
        file = Path(folder) / "layer.nii.gz"
        write_volume(file, Volume(thinned[np.newaxis], grid))  # one channel
        return base64.b64encode(file.read_bytes()).decode()

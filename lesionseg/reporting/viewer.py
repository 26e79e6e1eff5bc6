"""A page that shows a case in NiiVue, with its candidates by score. It works without a network.

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
    """Raise `ConfigError` if NiiVue is not installed."""
    if not NIIVUE.is_file():
        raise ConfigError(
            f"{NIIVUE}: NiiVue, which shows scans, is missing. Run `make viewer` in the clone (it "
            "needs npm), or set report.viewer=false."
        )


def write_viewer(
    folder: Path, name: str, title: str, scene: Scene, threshold: float | None
) -> None:
    """Write `folder/name.html`, the page of a case that it calls `title`.

    The page first shows the candidates with a score of at least `threshold`; with None, those that
    the prediction accepts.

    The page contains the voxels and loads NiiVue from the folder, to which NiiVue and its licences
    are copied if they are missing.

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
    page = folder / f"{name}.html"
    write_page(page, "viewer.html.j2", title=title, niivue=NIIVUE.name, data=data)


def remove_viewer_pages(folder: Path) -> None:
    """Remove the pages of an earlier report, which may show other cases or their real names.

    Nothing is removed from a folder without NiiVue, because its pages are not ours.
    """
    if (folder / NIIVUE.name).is_file():
        for page in folder.glob("*.html"):
            page.unlink()


def viewer_data(scene: Scene, *, with_slices: bool = False) -> dict[str, Any]:
    """Return the data for the script of `viewer_parts.html.j2`.

    - `volumes`: image, candidates and reference as `.nii.gz` in base64. They contain every
      `step`-th voxel of each axis.
    - `candidates`: id, score, position in mm and diameter, empty without a prediction.
    - `threshold`: the score of the operating point. Without one, it is the lowest score of an
      accepted candidate, or 0.
    - `unit`: the unit of diameters.
    - `flat`: True for a 2-D image.
    - `step`: 1, or more for a scan of more than `MAX_VOXELS` voxels.
    - `slices`: only for `with_slices` and with a prediction, for a page without NiiVue. All axial
      slices with the accepted candidates, see `draw_slices`. The `slice` of a candidate is the one
      through its centre.
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
    """Return the slice of `draw_slices` that contains a position. A 2-D image has slice 0."""
    if geometry.dims == 2:
        return 0
    order, flips = display_axes(geometry)
    n = geometry.shape[order[0]]
    index = round(float(np.linalg.solve(geometry.affine, [*centre_mm, 1.0])[order[0]]))
    return min(max(n - 1 - index if 0 in flips else index, 0), n - 1)


def _scale_to_grey(image: NDArray[Any]) -> NDArray[np.uint8]:
    """Scale an image to 0 for black and 255 for white, between two percentiles. NaN counts as 0."""
    values: NDArray[np.float32] = np.nan_to_num(np.asarray(image, np.float32))
    low, high = np.percentile(values, _WINDOW)
    scale = 255.0 / max(float(high - low), 1e-6)
    result: NDArray[np.uint8] = ((values - low) * scale).round().clip(0, 255).astype(np.uint8)
    return result


def _affine(geometry: Geometry) -> Numbers:
    """Return the affine of (z, y, x) on the page. A 2-D image is placed upright at the origin."""
    if geometry.dims == 3:
        return geometry.affine
    y, x = geometry.spacing_mm
    return np.array([[0, 0, x, 0], [0, -y, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]], float)


def _convert_mm(centre_mm: Sequence[float], geometry: Geometry) -> list[float]:
    """Convert a position in the scan's mm to mm on the page `[x, y, z]`, which differ in 2-D."""
    index = np.linalg.solve(geometry.affine, [*centre_mm, 1.0])
    index_3d = [*np.zeros(3 - geometry.dims), *index]  # z = 0 for a 2-D image
    return [round(float(v), 2) for v in (_affine(geometry) @ index_3d)[:3]]


def _encode_base64(array: NDArray[Any], geometry: Geometry, step: int) -> str:
    """Encode every `step`-th voxel as `.nii.gz` in base64. A 2-D image becomes a single slice."""
    thinned = array[(slice(None, None, step),) * array.ndim]
    if thinned.ndim == 2:
        thinned = thinned[np.newaxis]
    grid = Geometry(thinned.shape, _affine(geometry) @ np.diag([step, step, step, 1.0]))
    with TemporaryDirectory() as folder:
        file = Path(folder) / "layer.nii.gz"
        write_volume(file, Volume(thinned[np.newaxis], grid))
        return base64.b64encode(file.read_bytes()).decode()

"""A case in NiiVue: three planes and 3-D, its candidates by score, without a network.

NiiVue itself is no part of the repository: `make viewer` puts it and its licences beside this
file, and a wheel built after that brings them.
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
from lesionseg.errors import ConfigError
from lesionseg.io.files import write_text
from lesionseg.io.volumes import write_volume
from lesionseg.reporting.images import Scene, candidate_ids
from lesionseg.reporting.pictures import draw_overview
from lesionseg.reporting.rendering import render

NIIVUE = Path(__file__).parent / "niivue" / "niivue.umd.js"
MAX_VOXELS = 32_000_000  # beyond, every 2nd, 3rd … voxel of each axis is shown
_WINDOW = (0.5, 99.5)  # percentiles of grey values that are shown, as black and as white


def require_niivue() -> None:
    """Raise `ConfigError` where NiiVue is not installed, with what to do."""
    if not NIIVUE.is_file():
        raise ConfigError(
            f"{NIIVUE}: NiiVue, which shows scans, is not here. Run `make viewer` in the clone (it "
            "needs npm), or leave report.viewer=false."
        )


def write_viewer(folder: Path, name: str, title: str, scene: Scene) -> Path:
    """Write `folder/name.html` and, once, NiiVue and its licences; returns the page's path.

    Raises `ConfigError` without NiiVue, `OutputError`.
    """
    require_niivue()
    folder.mkdir(parents=True, exist_ok=True)
    for name_of_file in (NIIVUE.name, "LICENCES.txt"):
        source, target = NIIVUE.with_name(name_of_file), folder / name_of_file
        if source.is_file() and not target.is_file():
            shutil.copyfile(source, target)
    write_text(folder / f"{name}.html", viewer_page(title, scene))
    return folder / f"{name}.html"


def viewer_page(title: str, scene: Scene) -> str:
    """Return the page of one case, with its voxels inside, and NiiVue next to it.

    `title` is what the page calls the case.
    """
    return render("viewer.html.j2", title=title, niivue=NIIVUE.name, data=viewer_data(scene))


def viewer_data(scene: Scene, *, with_picture: bool = False) -> dict[str, Any]:
    """Return the data for the script of `viewer_parts.html.j2`; no list without a prediction.

    `volumes` are `.nii.gz` in base64, every `step`-th voxel of each axis; `flat`: of two axes;
    `picture`: one slice with what is accepted, for a page without NiiVue.
    """
    step = max(1, ceil((scene.image.size / MAX_VOXELS) ** (1 / scene.geometry.dims)))
    layers: dict[str, NDArray[Any]] = {"image": _grey(scene.image)}
    if scene.prediction is not None:
        layers["candidates"] = candidate_ids(scene.prediction).astype(np.uint16)
    if scene.reference is not None:
        layers["reference"] = scene.reference.astype(np.uint8)
    given = scene.prediction
    candidates = () if given is None else given.candidates
    threshold = min((c.score for c in candidates if c.accepted), default=0.0)
    if given is not None and given.operating_point is not None:
        threshold = given.operating_point.score
    data = {
        "volumes": {name: _base64(array, scene.geometry, step) for name, array in layers.items()},
        "candidates": [
            {
                "id": c.id,
                "score": c.score,  # unrounded: some are at the threshold
                "mm": _shown_mm(c.centre_mm, scene.geometry),
                "size": round(c.diameter_mm, 1),
            }
            for c in candidates
        ],
        "threshold": threshold,
        "flat": scene.geometry.dims == 2,
        "step": step,
    }
    if with_picture and given is not None:
        below = frozenset(c.id for c in candidates if not c.accepted)
        accepted = candidate_ids(given, below) > 0
        data["picture"] = draw_overview(scene.image, scene.geometry, accepted)
    return data


def _grey(image: NDArray[Any]) -> NDArray[np.uint8]:
    values: NDArray[np.float32] = np.nan_to_num(np.asarray(image, dtype=np.float32))
    low, high = np.percentile(values, _WINDOW)
    scaled: NDArray[np.float32] = (values - low) * (255.0 / max(float(high - low), 1e-6))
    return scaled.round().clip(0, 255).astype(np.uint8)


def _affine(geometry: Geometry) -> NDArray[np.float64]:
    """Return the matrix from (z, y, x) to the patient; for two axes, to a light box."""
    if geometry.dims == 3:
        return geometry.affine
    y, x = geometry.spacing_mm
    return np.array([[0, 0, x, 0], [0, -y, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]], dtype=np.float64)


def _shown_mm(centre_mm: Sequence[float], geometry: Geometry) -> list[float]:
    index = np.linalg.solve(geometry.affine, [*centre_mm, 1.0])
    place = _affine(geometry) @ [*np.zeros(3 - geometry.dims), *index]
    return [round(float(v), 2) for v in place[:3]]


def _base64(array: NDArray[Any], geometry: Geometry, step: int) -> str:
    """Return every `step`-th voxel as `.nii.gz` in base64; two axes as a single slice."""
    thinned = array[(slice(None, None, step),) * array.ndim]
    thinned = thinned.reshape((1,) * (3 - array.ndim) + thinned.shape)
    grid = Geometry(thinned.shape, _affine(geometry) @ np.diag([step, step, step, 1.0]))
    with TemporaryDirectory() as folder:
        file = Path(folder) / "layer.nii.gz"
        write_volume(file, Volume(thinned[np.newaxis], grid))
        return base64.b64encode(file.read_bytes()).decode()

"""Which scans `predict` warns of: scans like those of the training, and the same scans damaged.

    python benchmarks/robustness/input_check.py RUN DIR [--most 40]

RUN is a finished training run, DIR holds 3-D scans of one channel that it did not train on. A line
per damage says how many scans are warned of. The last two are not looked for: see the docs.
"""

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from lesionseg.core import Geometry, Volume
from lesionseg.inference.bundle import read_bundle
from lesionseg.inference.input_check import check_scan
from lesionseg.inference.predictor import Predictor
from lesionseg.io.layouts.input_images import find_images

Damage = Callable[[Volume], Volume]


def with_array(volume: Volume, array: NDArray[np.floating], mm: float = 1.0) -> Volume:
    """Other values on the same corner and axes; `mm` multiplies the last axis' spacing."""
    affine = volume.geometry.affine.copy()
    affine[:, volume.geometry.dims - 1] *= mm
    values = np.ascontiguousarray(array, dtype=np.float32)
    return Volume(values, Geometry(values.shape[1:], affine))


def thick(volume: Volume, *, header: bool) -> Volume:
    """Four slices averaged into one; without `header` interpolated back to the thin grid."""
    a = volume.array
    merged = a[..., : a.shape[-1] // 4 * 4].reshape(*a.shape[:-1], -1, 4).mean(-1)
    if header:
        return with_array(volume, merged, 4.0)
    zoom = (1.0, 1.0, 1.0, a.shape[-1] / merged.shape[-1])
    return with_array(volume, ndimage.zoom(merged, zoom, order=1, grid_mode=True, mode="nearest"))


def bent(volume: Volume) -> Volume:
    """What is of middle intensity becomes dark."""
    low, width = volume.array.min(), max(float(np.ptp(volume.array)), 1e-6)
    return with_array(volume, low + width * ((volume.array - low) / width) ** 2.5)


def noisy(volume: Volume) -> Volume:
    """Noise of the scan's own standard deviation."""
    noise = np.random.default_rng(0).normal(size=volume.array.shape)
    return with_array(volume, volume.array + volume.array.std() * noise)


def half(volume: Volume) -> Volume:
    """Half of the slices are lost: a box of zeros."""
    array = volume.array.copy()
    array[:, : array.shape[1] // 2] = 0
    return with_array(volume, array)


DAMAGES: Mapping[str, Damage] = {
    "none": lambda v: v,
    "contrast bent": bent,
    "dark and bright exchanged": lambda v: with_array(v, v.array.max() + v.array.min() - v.array),
    "half zeroed": half,
    "thick slices": lambda v: thick(v, header=True),
    "thick slices, header thin": lambda v: thick(v, header=False),
    "blurred by 2 voxels": lambda v: with_array(v, ndimage.gaussian_filter(v.array, (0, 2, 2, 2))),
    "noise of one standard deviation": noisy,
    "one value everywhere": lambda v: with_array(v, np.full_like(v.array, v.array.mean())),
    "spacing in cm": lambda v: Volume(
        v.array, Geometry(v.geometry.shape, v.geometry.affine @ np.diag([0.1, 0.1, 0.1, 1]))
    ),
    "cut to the middle half": lambda v: with_array(
        v, v.array[(slice(None), *(slice(n // 4, n - n // 4) for n in v.geometry.shape))]
    ),
    "stored with 1024 more (not looked for)": lambda v: with_array(v, v.array + 1024),
    "upside down (not looked for)": lambda v: with_array(v, v.array[..., ::-1]),
}


def main() -> None:
    """Look at each scan in every way, and print who is warned of."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("scans", type=Path)
    parser.add_argument("--most", type=int, default=40)
    options = parser.parse_args()
    bundle = read_bundle(options.run)
    predictor = Predictor(bundle)
    cases = find_images(options.scans, 1)[: options.most]
    volumes = [predictor.read(case) for case in cases]
    warned = {}
    for name, damage in DAMAGES.items():
        scans = [predictor.prepare_volume(damage(v), name) for v in volumes]
        verdicts = [
            check_scan(bundle.check, s.image.array, s.file_geometry, bundle.plan, ()) for s in scans
        ]
        warned[name] = sum(bool(v.warning) for v in verdicts)
        print(f"| {name} | {warned[name]} of {len(volumes)} |")
    looked_for = [n for name, n in warned.items() if name != "none" and "not looked" not in name]
    result = {
        "damaged": sum(looked_for) / (len(looked_for) * len(volumes)),
        "clean": warned["none"] / len(volumes),
    }
    print(json.dumps({"bench": "input_check", "share_warned_of": result}))


if __name__ == "__main__":
    main()

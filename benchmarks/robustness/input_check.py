"""Warnings of `predict` for scans like those of the training, and for the same scans damaged.

    python benchmarks/robustness/input_check.py RUN DIR [--most 40]
    python benchmarks/robustness/input_check.py --data DATASET [--most 120]

RUN is a finished training run. DIR contains 3-D scans of one channel that were not used in
training. Each line states a damage and the number of scans with a warning. The check does not look
for the last two damages: see the docs.

DATASET is a dataset's folder, of pictures or volumes. Nothing is trained: the check needs only the
plan and the prepared scans. Patients are divided into two thirds for training and a third that is
held out, ten times. Both lines are shares of held-out scans: unchanged, and as photographic
negatives.
"""

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from lesionseg.core import Geometry, Volume
from lesionseg.data.preprocess_image import prepare_image
from lesionseg.inference.bundle import read_bundle
from lesionseg.inference.input_check import (
    N_SCANS,
    InputCheck,
    PolarityFeatures,
    compare_scan,
    grid_statistics,
    image_statistics,
    make_input_check,
    polarity_features,
)
from lesionseg.inference.predictor import Predictor
from lesionseg.io import read_case, read_dataset
from lesionseg.io.scans import find_scans
from lesionseg.plan.fingerprint import fingerprint_of, measure_case
from lesionseg.plan.make import make_plan
from lesionseg.plan.plan import Plan

Damage = Callable[[Volume], Volume]


def replace_array(volume: Volume, array: NDArray[np.floating], mm: float = 1.0) -> Volume:
    """Return other values with the same corner and axes. `mm` multiplies the last axis' spacing."""
    affine = volume.geometry.affine.copy()
    affine[:, volume.geometry.dims - 1] *= mm
    values = np.ascontiguousarray(array, dtype=np.float32)
    return Volume(values, Geometry(values.shape[1:], affine))


def thicken(volume: Volume, *, header: bool) -> Volume:
    """Average four slices into one. Without `header`, interpolate back to the thin grid."""
    a = volume.array
    merged = a[..., : a.shape[-1] // 4 * 4].reshape(*a.shape[:-1], -1, 4).mean(-1)
    if header:
        return replace_array(volume, merged, 4.0)
    zoom = (1.0, 1.0, 1.0, a.shape[-1] / merged.shape[-1])
    return replace_array(
        volume, ndimage.zoom(merged, zoom, order=1, grid_mode=True, mode="nearest")
    )


def darken_middle(volume: Volume) -> Volume:
    """Make middle intensities dark."""
    low = volume.array.min()
    width = max(float(np.ptp(volume.array)), 1e-6)
    return replace_array(volume, low + width * ((volume.array - low) / width) ** 2.5)


def add_noise(volume: Volume) -> Volume:
    """Add noise with the standard deviation of the scan."""
    noise = np.random.default_rng(0).normal(size=volume.array.shape)
    return replace_array(volume, volume.array + volume.array.std() * noise)


def zero_half(volume: Volume) -> Volume:
    """Set half of the slices to zero."""
    array = volume.array.copy()
    array[:, : array.shape[1] // 2] = 0
    return replace_array(volume, array)


def keep(volume: Volume) -> Volume:
    """Return the scan itself."""
    return volume


def invert(volume: Volume) -> Volume:
    """Exchange dark and bright."""
    return replace_array(volume, volume.array.max() + volume.array.min() - volume.array)


def blur(volume: Volume) -> Volume:
    """Blur the scan by 2 voxels."""
    return replace_array(volume, ndimage.gaussian_filter(volume.array, (0, 2, 2, 2)))


def fill_with_mean(volume: Volume) -> Volume:
    """Set all voxels to the mean."""
    return replace_array(volume, np.full_like(volume.array, volume.array.mean()))


def state_cm(volume: Volume) -> Volume:
    """State the spacing in cm instead of mm."""
    affine = volume.geometry.affine @ np.diag([0.1, 0.1, 0.1, 1])
    return Volume(volume.array, Geometry(volume.geometry.shape, affine))


def crop_middle(volume: Volume) -> Volume:
    """Crop the middle half of each axis."""
    middle = tuple(slice(n // 4, n - n // 4) for n in volume.geometry.shape)
    return replace_array(volume, volume.array[(slice(None), *middle)])


def add_1024(volume: Volume) -> Volume:
    """Add 1024 to all voxels."""
    return replace_array(volume, volume.array + 1024)


def turn_upside_down(volume: Volume) -> Volume:
    """Reverse the last axis."""
    return replace_array(volume, volume.array[..., ::-1])


DAMAGES: Mapping[str, Damage] = {
    "none": keep,
    "contrast bent": darken_middle,
    "dark and bright exchanged": invert,
    "half zeroed": zero_half,
    "thick slices": partial(thicken, header=True),
    "thick slices, header thin": partial(thicken, header=False),
    "blurred by 2 voxels": blur,
    "noise of one standard deviation": add_noise,
    "one value everywhere": fill_with_mean,
    "spacing in cm": state_cm,
    "cut to the middle half": crop_middle,
    "stored with 1024 more (not looked for)": add_1024,
    "upside down (not looked for)": turn_upside_down,
}


N_DIVISIONS = 10
HELD_OUT_PART = 3  # one in three patients


@dataclass(frozen=True, eq=False)
class Look:
    """The numbers of one scan that the check uses: grid, intensities and polarity."""

    grid: Mapping[str, float]
    image: Mapping[str, float]
    features: Mapping[str, PolarityFeatures]


def look_at(volume: Volume, plan: Plan) -> Look:
    """Prepare a scan like in training and prediction. Return its numbers."""
    order = volume.geometry.canonical_order
    prepared = prepare_image(volume, plan).array
    return Look(
        grid_statistics(
            [volume.geometry.shape[a] for a in order],
            [volume.geometry.spacing_mm[a] for a in order],
        ),
        image_statistics(prepared, plan.channel_names),
        polarity_features(prepared, plan.channel_names),
    )


def make_negative(volume: Volume) -> Volume:
    """Exchange dark and bright in every channel."""
    array = np.stack([channel.max() + channel.min() - channel for channel in volume.array])
    return Volume(array, volume.geometry, volume.valid, volume.missing)


def is_warned(check: InputCheck, look: Look) -> bool:
    """Return True if the check says that the scan is unlike the training scans."""
    return bool(check.compare({**look.grid, **look.image}, look.features)[1])


def measure_dataset(root: Path, most: int) -> None:
    """Measure hits on negatives and false warnings on held-out scans of a dataset."""
    dataset = read_dataset(root)
    files = [case for case in dataset.cases if case.reference or case.annotations]
    files = files[:: max(1, -(-len(files) // most))]
    cases = [read_case(case, dataset) for case in files]
    facts = [measure_case(case, case.reference) for case in cases if case.reference is not None]
    plan = make_plan(fingerprint_of(dataset, facts), dataset, memory_gb=8, device="cpu")
    looks = [look_at(case.image, plan) for case in cases]
    negatives = [look_at(make_negative(case.image), plan) for case in cases]
    patients = np.array([case.group for case in cases])
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(N_DIVISIONS):
        shuffled = rng.permutation(np.unique(patients))
        held_out = np.isin(patients, shuffled[: len(shuffled) // HELD_OUT_PART])
        training = np.flatnonzero(~held_out)
        training = training[:: max(1, -(-len(training) // N_SCANS))]  # like `training_ranges`
        check = make_input_check(
            [looks[n].grid for n in training],
            [looks[n].image for n in training],
            [looks[n].features for n in training],
        )
        if check is None:
            raise SystemExit(f"{root}: too few scans for a check.")
        places = np.flatnonzero(held_out)
        clean = np.mean([is_warned(check, looks[n]) for n in places])
        hit = np.mean([is_warned(check, negatives[n]) for n in places])
        shares.append((clean, hit))
    clean, hit = np.mean(shares, axis=0)
    print(f"| {root.name} | {len(cases)} scans, {len(set(patients))} patients |")
    print(f"| held out, as they are | warned of {clean:.1%} |")
    print(f"| held out, dark and bright exchanged | warned of {hit:.1%} |")
    result = {"negative": float(hit), "clean": float(clean)}
    print(json.dumps({"bench": "input_check", "data": root.name, "share_warned_of": result}))


def main() -> None:
    """Damage each scan in every way, and print the number of warnings."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, nargs="?")
    parser.add_argument("scans", type=Path, nargs="?")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--most", type=int, default=40)
    options = parser.parse_args()
    if options.data is not None:
        measure_dataset(options.data, options.most)
        return
    if options.scans is None:
        parser.error("name RUN and DIR, or --data DATASET")
    bundle = read_bundle(options.run)
    predictor = Predictor(bundle)
    cases = find_scans(options.scans, 1).cases()[: options.most]
    volumes = [predictor.read(case) for case in cases]
    warned = {}
    for name, damage in DAMAGES.items():
        scans: list[Any] = [predictor.prepare_volume(damage(v), name) for v in volumes]
        warned[name] = 0
        for scan in scans:
            array = scan.image
            found = compare_scan(bundle.check, array, scan.file_geometry, bundle.plan, ())
            warned[name] += bool(found.warning)
        print(f"| {name} | {warned[name]} of {len(volumes)} |")
    looked_for = [n for name, n in warned.items() if name != "none" and "not looked" not in name]
    result = {
        "damaged": sum(looked_for) / (len(looked_for) * len(volumes)),
        "clean": warned["none"] / len(volumes),
    }
    print(json.dumps({"bench": "input_check", "share_warned_of": result}))


if __name__ == "__main__":
    main()

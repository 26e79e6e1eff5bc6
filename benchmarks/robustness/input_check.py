"""Which scans `predict` warns of: scans like those of the training, and the same scans damaged.

    python benchmarks/robustness/input_check.py RUN DIR [--most 40]
    python benchmarks/robustness/input_check.py --data DATASET [--most 120]

RUN is a finished training run, DIR holds 3-D scans of one channel that it did not train on. A line
per damage says how many scans are warned of. The last two are not looked for: see the docs.

DATASET is a dataset's folder, of pictures or volumes. Nothing is trained: the check needs only the
plan and the prepared scans. Patients are divided into two thirds for training and a third that is
held out, ten times. Both lines are shares of held-out scans: as they are, and as photographic
negatives.
"""

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from lesionseg.core import Geometry, Volume
from lesionseg.data.preprocess import prepare_image
from lesionseg.inference.bundle import read_bundle
from lesionseg.inference.input_check import (
    N_SCANS,
    InputCheck,
    PolarityFeatures,
    check_scan,
    grid_statistics,
    image_statistics,
    make_input_check,
    polarity_features,
)
from lesionseg.inference.predictor import Predictor
from lesionseg.io import read_case, read_dataset
from lesionseg.io.layouts.input_images import find_images
from lesionseg.plan.fingerprint import facts_of, fingerprint_of
from lesionseg.plan.make import make_plan
from lesionseg.plan.plan import Plan

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


N_DIVISIONS = 10
HELD_OUT_PART = 3  # one in three patients


@dataclass(frozen=True, eq=False)
class Look:
    """What the check sees of one scan: grid, intensities and polarity."""

    grid: Mapping[str, float]
    image: Mapping[str, float]
    features: Mapping[str, PolarityFeatures]


def look_at(volume: Volume, plan: Plan) -> Look:
    """Prepare a scan as training and prediction do, and take its numbers."""
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


def negative(volume: Volume) -> Volume:
    """Exchange dark and bright in every channel."""
    array = np.stack([channel.max() + channel.min() - channel for channel in volume.array])
    return Volume(array, volume.geometry, volume.valid, volume.missing)


def is_warned(check: InputCheck, look: Look) -> bool:
    """Return True if the check says that the scan is unlike the training scans."""
    return bool(check.compare({**look.grid, **look.image}, look.features)[1])


def on_dataset(root: Path, most: int) -> None:
    """Measure hits on negatives and false warnings on held-out scans of a dataset."""
    dataset = read_dataset(root)
    files = [case for case in dataset.cases if case.reference or case.annotations]
    files = files[:: max(1, -(-len(files) // most))]
    cases = [read_case(case, dataset) for case in files]
    facts = [facts_of(case, case.reference) for case in cases if case.reference is not None]
    plan = make_plan(fingerprint_of(dataset, facts), dataset, memory_gb=8, device="cpu")
    looks = [look_at(case.image, plan) for case in cases]
    negatives = [look_at(negative(case.image), plan) for case in cases]
    patients = np.array([case.group for case in cases])
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(N_DIVISIONS):
        shuffled = rng.permutation(np.unique(patients))
        held_out = np.isin(patients, shuffled[: len(shuffled) // HELD_OUT_PART])
        training = np.flatnonzero(~held_out)
        training = training[:: max(1, -(-len(training) // N_SCANS))]  # as `training_ranges` does
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
    """Look at each scan in every way, and print who is warned of."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, nargs="?")
    parser.add_argument("scans", type=Path, nargs="?")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--most", type=int, default=40)
    options = parser.parse_args()
    if options.data is not None:
        on_dataset(options.data, options.most)
        return
    if options.scans is None:
        parser.error("name RUN and DIR, or --data DATASET")
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

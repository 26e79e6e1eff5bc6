"""Is this a scan like those of the training? A few numbers of it against their range.

The numbers: spacing and extent of the file's grid; per channel, percentiles of the normalised
intensities and the mean difference of neighbouring voxels along each axis (thick slices that were
interpolated, blur, noise). The bundle keeps the median of each number over the training scans and
how far a scan may be from it: 5 scaled MADs, or a fifth more than the farthest training scan. A
scan beyond is still predicted, with one sentence that says what is unlike the training. Mirrored
scans and swapped channels of like contrast are not seen.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import Geometry, InputVerdict
from lesionseg.errors import BundleError
from lesionseg.plan.fingerprint import canonical_order
from lesionseg.plan.plan import Plan

Statistics = Mapping[str, float]

LEAST_SCANS, N_SCANS = 5, 64  # needed for a check, and looked at
N_MAD = 5.0
MAD_TO_STD = 1.4826
BEYOND_FARTHEST = 1.2
PERCENTILES = (5, 25, 50, 75, 95, 99)
MOST_PLACES = 48  # looked at along each axis
# the least that a number may vary: of logarithms, and of normalised intensities
LEAST_LOG, LEAST_INTENSITY = np.log(1.5), 0.5


@dataclass(frozen=True)
class InputCheck:
    """Of each number's name the training scans' median, and how far from it a scan may be."""

    medians: Statistics
    tolerances: Statistics

    def __call__(self, numbers: Statistics) -> InputVerdict:
        """How unlike the training scans a scan is: 1 is the limit, above which a sentence says why.

        Numbers that the training scans do not have are left out; of none the score is None.
        """
        ratios = {
            name: abs(value - self.medians[name]) / self.tolerances[name]
            for name, value in numbers.items()
            if name in self.medians
        }
        if not ratios:
            return InputVerdict()
        name = max(ratios, key=lambda name: ratios[name])
        score = ratios[name]
        if score <= 1:
            return InputVerdict(score)
        middle, width = self.medians[name], self.tolerances[name]
        seen, low, high = numbers[name], middle - width, middle + width
        if name.startswith("log "):
            name, seen, low, high = name[4:], *(float(np.exp(v)) for v in (seen, low, high))
        return InputVerdict(
            score, f"Unlike the training scans: {name} is {seen:.3g}, not {low:.3g} to {high:.3g}."
        )

    def to_json(self) -> str:
        """Both as JSON, for the header of the weights."""
        return json.dumps({"medians": dict(self.medians), "tolerances": dict(self.tolerances)})

    @classmethod
    def from_json(cls, text: str, where: object) -> "InputCheck":
        """Read it back; raises `BundleError` naming `where` for anything but finite numbers."""
        try:
            raw = json.loads(text)
            medians, tolerances = (
                {str(name): float(value) for name, value in raw[key].items()}
                for key in ("medians", "tolerances")
            )
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise BundleError(f"{where}: the ranges of training scans cannot be read.") from error
        finite = np.isfinite([*medians.values(), *tolerances.values()]).all()
        if (
            medians.keys() != tolerances.keys()
            or not finite
            or min(tolerances.values(), default=1) <= 0
        ):
            raise BundleError(
                f"{where}: the ranges of training scans are not finite, or not ranges."
            )
        return cls(medians, tolerances)


def make_input_check(
    grids: Sequence[Statistics], images: Sequence[Statistics]
) -> InputCheck | None:
    """What new scans are compared with; None for fewer than five scans.

    `grids`: `grid_statistics` of the training scans' files, `images`: `image_statistics` of the
    same scans prepared, or of some of them, in any order.
    """
    if min(len(grids), len(images)) < LEAST_SCANS:
        return None
    medians, tolerances = {}, {}
    for rows in (grids, images):
        for name in rows[0]:
            values = np.array([row[name] for row in rows])
            middle = float(np.median(values))
            apart = np.abs(values - middle)
            spread = N_MAD * MAD_TO_STD * float(np.median(apart))
            least = LEAST_LOG if name.startswith("log ") else LEAST_INTENSITY
            medians[name] = middle
            tolerances[name] = max(least, spread, BEYOND_FARTHEST * float(apart.max()))
    return InputCheck(medians, tolerances)


def grid_statistics(shape: Sequence[int], spacing_mm: Sequence[float]) -> dict[str, float]:
    """Logarithms of the spacing and the extent along each axis of the canonical order."""
    axes = ("S", "A", "R") if len(shape) == 3 else ("the columns", "the rows")
    numbers = {}
    for axis, n, mm in zip(axes, shape, spacing_mm, strict=True):
        numbers[f"log spacing along {axis} in mm"] = float(np.log(mm))
        numbers[f"log extent along {axis} in mm"] = float(np.log(n * mm))
    return numbers


def image_statistics(image: NDArray[Any], channel_names: Sequence[str]) -> dict[str, float]:
    """Percentiles and differences of neighbours of a prepared image `[C, *plan]`, per channel.

    At most 48 evenly spaced places along each axis are looked at.
    """
    axes = ("S", "A", "R") if image.ndim == 4 else ("the columns", "the rows")
    step = tuple(slice(None, None, max(1, -(-n // MOST_PLACES))) for n in image.shape[1:])
    numbers = {}
    for name, channel in zip(channel_names, image, strict=True):
        sample = np.asarray(channel[step], dtype=np.float32)
        for q, value in zip(PERCENTILES, np.percentile(sample, PERCENTILES), strict=True):
            numbers[f"the {q} % percentile of {name}"] = float(value)
        for axis, axis_name in enumerate(axes):
            n = channel.shape[axis]
            first = np.arange(0, max(n - 1, 1), max(1, -(-n // MOST_PLACES)))
            others = tuple(s for a, s in enumerate(step) if a != axis)
            planes = np.moveaxis(channel, axis, 0)
            pair = (planes[np.minimum(first + i, n - 1)][(slice(None), *others)] for i in (0, 1))
            one, next_one = (np.asarray(p, dtype=np.float32) for p in pair)
            difference = float(np.abs(next_one - one).mean())
            numbers[f"log difference of neighbours along {axis_name} in {name}"] = float(
                np.log(difference + 1e-3)
            )
    return numbers


def check_scan(
    check: InputCheck | None,
    image: NDArray[Any],
    file: Geometry,
    plan: Plan,
    missing: Sequence[int],
) -> InputVerdict:
    """Whether a prepared image `[C, *plan]` of a file's grid is like those of the training.

    Without a check only a channel without any contrast is found. Of missing channels nothing is
    asked.
    """
    given = [c for c in range(len(image)) if c not in missing]
    names, lacking = [plan.channel_names[c] for c in given], plan.names_of(missing)
    for c, name in zip(given, names, strict=True):
        if image[c].size == 0 or image[c].min() == image[c].max():
            empty = f"Channel {name} is empty: all its voxels are equal."
            return InputVerdict(warning=empty, missing=lacking)
    if check is None:
        return InputVerdict(missing=lacking)
    order = canonical_order(file)
    numbers = grid_statistics([file.shape[a] for a in order], [file.spacing_mm[a] for a in order])
    for c, name in zip(given, names, strict=True):
        numbers |= image_statistics(image[c : c + 1], [name])
    verdict = check(numbers)
    return InputVerdict(verdict.score, verdict.warning, lacking)

"""Is this a scan like those of the training? A few numbers of it against their range.

The numbers: spacing and extent of the file's grid; per channel, percentiles of the normalised
intensities and the mean difference of neighbouring voxels along each axis (thick slices that were
interpolated, blur, noise). The bundle keeps the median of each number over the training scans (of
grids, over validation scans too) and how far a scan may be from it: 5 scaled MADs, or a fifth more
than the farthest of these. A scan beyond is still predicted, with one sentence that says what is
unlike the training. Mirrored scans and swapped channels of like contrast are not seen.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, FiniteFloat

from lesionseg.core import Geometry, InputCheckResult
from lesionseg.data.cache import CachedCase
from lesionseg.errors import DatasetError
from lesionseg.plan.fingerprint import Fingerprint
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


class InputCheck(BaseModel, frozen=True):
    """Of each number's name the training scans' median, and how far from it a scan may be."""

    medians: dict[str, FiniteFloat]
    tolerances: dict[str, Annotated[FiniteFloat, Field(gt=0)]]

    def compare(self, numbers: Statistics) -> tuple[float | None, str]:
        """How unlike the training scans a scan is: 1 is the limit, above which a sentence says why.

        Numbers that the training scans do not have are left out; of none the score is None.
        """
        ratios = {
            name: abs(value - self.medians[name]) / self.tolerances[name]
            for name, value in numbers.items()
            if name in self.medians and name in self.tolerances
        }
        name = max(ratios, key=lambda name: ratios[name], default="")
        if ratios.get(name, 0) <= 1:
            return ratios.get(name), ""
        middle, width = self.medians[name], self.tolerances[name]
        said = [numbers[name], middle - width, middle + width]
        if name.startswith("log "):
            said = [float(np.exp(value)) for value in said]
        seen, low, high = (f"{value:.3g}" for value in said)
        return ratios[name], (
            "This scan looks unlike the training scans, so do not rely on the result: "
            f"{name.removeprefix('log ')} is {seen} (training: {low} to {high})."
        )


def training_ranges(
    cases: Sequence[CachedCase], plan: Plan, fingerprint: Fingerprint
) -> InputCheck | None:
    """The check that the training cases make, up to 64 complete ones; None for too few."""
    complete = [case for case in cases if not case.missing]
    some = complete[:: max(1, -(-len(complete) // N_SCANS))]
    return make_input_check(
        list(map(grid_statistics, fingerprint.shapes, fingerprint.spacings_mm)),
        [image_statistics(case.image, plan.channel_names) for case in some],
    )


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
    return InputCheck(medians=medians, tolerances=tolerances)


def grid_statistics(shape: Sequence[int], spacing_mm: Sequence[float]) -> dict[str, float]:
    """Logarithms of the spacing and the extent along each axis of the canonical order."""
    numbers = {}
    for axis, n, mm in zip(_axes(len(shape)), shape, spacing_mm, strict=True):
        numbers[f"log spacing along {axis} in mm"] = float(np.log(mm))
        numbers[f"log extent along {axis} in mm"] = float(np.log(n * mm))
    return numbers


def image_statistics(
    channels: Iterable[NDArray[Any]], channel_names: Sequence[str]
) -> dict[str, float]:
    """Percentiles and differences of neighbours of a prepared image's channels `[*plan]`.

    At most 48 evenly spaced places along each axis are looked at.
    """
    numbers = {}
    for name, channel in zip(channel_names, channels, strict=True):
        steps = [max(1, -(-n // MOST_PLACES)) for n in channel.shape]
        sample = np.asarray(channel[tuple(slice(None, None, s) for s in steps)], dtype=np.float32)
        for q, value in zip(PERCENTILES, np.percentile(sample, PERCENTILES), strict=True):
            numbers[f"the {q} % percentile of {name}"] = float(value)
        for axis, axis_name in enumerate(_axes(channel.ndim)):
            n = channel.shape[axis]
            first = np.arange(0, max(n - 1, 1), steps[axis])
            others = tuple(slice(None, None, s) for a, s in enumerate(steps) if a != axis)
            planes = np.moveaxis(channel, axis, 0)
            pair = (planes[np.minimum(first + i, n - 1)][(slice(None), *others)] for i in (0, 1))
            one, next_one = (np.asarray(p, dtype=np.float32) for p in pair)
            difference = float(np.abs(next_one - one).mean())
            numbers[f"log difference of neighbours along {axis_name} in {name}"] = float(
                np.log(difference + 1e-3)
            )
    return numbers


def _axes(dims: int) -> tuple[str, ...]:
    return ("S", "A", "R") if dims == 3 else ("the columns", "the rows")


def check_missing(plan: Plan, missing: Sequence[int]) -> None:
    """Raise `DatasetError` for a scan without these channels, unless it may lack that one."""
    if len(missing) > plan.may_lack:
        names = ", ".join(plan.channel_names[c] for c in missing)
        raise DatasetError(
            f"The scan has no {names}. This model may lack "
            f"{'one channel' if plan.may_lack else 'none'}: train with data.channel_dropout."
        )


def check_scan(
    check: InputCheck | None,
    image: NDArray[Any],
    file: Geometry,
    plan: Plan,
    missing: Sequence[int],
) -> InputCheckResult:
    """Whether a prepared image `[C, *plan]` of a file's grid is like those of the training.

    Without a check only a channel without any contrast is found. Of missing channels nothing is
    asked; the warning names them.
    """
    given = [c for c in range(len(image)) if c not in missing]
    names, lacking = (
        [plan.channel_names[c] for c in given],
        tuple(plan.channel_names[c] for c in missing),
    )
    order, score, warning = file.canonical_order, None, ""
    empty = [n for c, n in zip(given, names, strict=True) if not np.ptp(image[c])]
    if empty:
        warning = f"Channel {empty[0]} is empty: all its voxels are equal."
    elif check is not None:
        sides = [file.shape[a] for a in order], [file.spacing_mm[a] for a in order]
        numbers = grid_statistics(*sides) | image_statistics((image[c] for c in given), names)
        score, warning = check.compare(numbers)
    if lacking:
        without = f"Predicted without {', '.join(lacking)}: expect lower sensitivity."
        warning = f"{without} {warning}".strip()
    return InputCheckResult(score, warning, lacking)

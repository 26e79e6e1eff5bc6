"""Measure how often the month page gives an alarm: in years without a change, and after one.

    python benchmarks/robustness/drift.py --write FOLDER
    for kind in same noise blur; do
      lesionseg predict bundle=runs/demo_mri input=FOLDER/$kind output=FOLDER/found_$kind \\
        inference=fast
    done
    python benchmarks/robustness/drift.py FOLDER

The first command writes 100 simulated heads like those of `make demo`, whose model predicts them,
and 8 of them with further noise of 4 % of white matter's signal, and blurred by 0.6 voxels.
The last command fits a smooth distribution (a Gaussian kernel estimate of log `input_score` and
`n_accepted`) to the results of each kind, draws scans from it, and prints the share of repeats with
an alarm, for several numbers of extreme values that the usual range leaves out. A year without a
change has 2 500 scans of `same` after the first 30. A change has 10 scans of another kind after 100
of `same`; only an alarm among these 10 counts.
"""

import argparse
import csv
import sys
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy import ndimage
from scipy.stats import gaussian_kde

from lesionseg.core import Volume
from lesionseg.core.arrays import Integers
from lesionseg.evaluation.drift import N_FIRST, WATCHED, WatchedValue
from lesionseg.io.results.folder import PredictionFolder
from lesionseg.io.results.row import CaseRow
from lesionseg.io.volumes import read_volume, write_volume
from lesionseg.phantoms import write_mri_phantoms

HEADS = {107: 60, 207: 20, 307: 20}  # numbers of heads by seed
CHANGED = 8  # heads that are predicted with noise, and blurred
NOISE = 0.04  # standard deviation, as a share of the signal of white matter
BLUR = 0.6  # standard deviation in voxels
SCANS = 2500  # of a year
YEARS = 500
REPEATS = 200  # of a change
BEFORE = 100  # later scans before a change
WITHIN = 10  # scans after a change
LEFT_OUT = (0, 2, 4)  # highest, and lowest, values of the first scans
IN_A_ROW = (5, 6, 7, 8, 9, 10)
CHANGES = ("noise", "blur")


def write_scans(folder: Path) -> None:
    """Write the simulated heads, and some of them with noise and blurred."""
    rng = np.random.default_rng(0)
    for kind in ("same", *CHANGES):
        (folder / kind).mkdir(parents=True)
    written = 0
    for seed, n in HEADS.items():
        raw = folder / f"heads_{seed}"
        write_mri_phantoms(raw, n, seed=seed, contrast=1.5, lesion_free_share=0)
        for path in sorted((raw / "imagesTr").iterdir()):
            scan = read_volume(path)
            array = scan.array.astype(np.float32)
            changed: dict[str, NDArray[Any]] = {"same": array}
            if written < CHANGED:
                white = np.median(array[array > 0.15 * array.max()])
                changed["noise"] = array + rng.normal(scale=NOISE * white, size=array.shape)
                changed["blur"] = ndimage.gaussian_filter(array, (0, BLUR, BLUR, BLUR))
            for kind, values in changed.items():
                volume = Volume(values.astype(np.float32), scan.geometry)
                write_volume(folder / kind / f"{seed}_{path.name}", volume)
            written += 1


class Scans:
    """A smooth distribution of the watched values of the scans in an output folder of `predict`."""

    def __init__(self, folder: Path) -> None:
        rows = PredictionFolder(folder).rows()
        scores = np.log(np.array([row.input_score for row in rows], dtype=float))
        self._fit = gaussian_kde([scores, [row.n_accepted for row in rows]])

    def draw(self, n: int, rng: Generator, case: str = "") -> list[CaseRow]:
        """Draw the rows of `n` scans, which all have the same case id."""
        log_scores, accepted = self._fit.resample(n, rng)
        scores = np.exp(log_scores).tolist()
        counts = np.maximum(np.round(accepted), 0).astype(int).tolist()
        pairs = zip(scores, counts, strict=True)
        return [CaseRow(case, input_score=score, n_accepted=count) for score, count in pairs]


def longest_runs(histories: Iterable[list[CaseRow]], case: str = "") -> Integers:
    """Return the number of scans of the longest drift, `[histories, LEFT_OUT, WATCHED]`.

    Args:
        histories: The scans of each repeat. The case id of the first ones is "first".
        case: Only drifts count whose last scan has this case id. "" counts all.
    """
    longest = []
    for rows in histories:
        runs = []
        for n_extremes, name in product(LEFT_OUT, WATCHED):
            value = WatchedValue(name, rows, {"first"}, n_extremes)
            drifts = value.find_drifts(min(IN_A_ROW))
            lengths = [len(one.rows) for one in drifts if case in ("", one.rows[-1].case)]
            runs.append(max(lengths, default=0))
        longest.append(runs)
    return np.reshape(longest, (-1, len(LEFT_OUT), len(WATCHED)))


def quiet_years(same: Scans, n: int) -> Iterator[list[CaseRow]]:
    """Yield the scans of `n` years without a change."""
    rng = np.random.default_rng(0)
    for _ in range(n):
        yield [*same.draw(N_FIRST, rng, "first"), *same.draw(SCANS, rng)]


def changes(same: Scans, changed: Scans, n: int) -> Iterator[list[CaseRow]]:
    """Yield the scans before `n` changes, and the first ones after it."""
    rng = np.random.default_rng(1)
    for _ in range(n):
        before = [*same.draw(N_FIRST, rng, "first"), *same.draw(BEFORE, rng)]
        yield [*before, *changed.draw(WITHIN, rng, "changed")]


def main() -> None:
    """Write the scans, or print a row for each kind of scans and watched value."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--write", action="store_true", help="write the scans to predict")
    parser.add_argument("--quick", action="store_true", help="a tenth of the repeats")
    given = parser.parse_args()
    if given.write:
        write_scans(given.folder)
        return
    share = 10 if given.quick else 1
    same = Scans(given.folder / "found_same")
    years = quiet_years(same, YEARS // share)
    longest = {"same": longest_runs(years)}
    for kind in CHANGES:
        repeats = changes(same, Scans(given.folder / f"found_{kind}"), REPEATS // share)
        longest[kind] = longest_runs(repeats, "changed")
    out = csv.writer(sys.stdout, lineterminator="\n")
    columns = [f"alarms with {k} in a row %" for k in IN_A_ROW]
    out.writerow(["scans", "watched", "left out", "repeats", *columns])
    for kind, runs in longest.items():
        for row, n_extremes in enumerate(LEFT_OUT):
            own = runs[:, row]
            for column, name in enumerate(WATCHED):
                out.writerow([kind, name, n_extremes, len(own), *alarms(own[:, column])])
            out.writerow([kind, "any", n_extremes, len(own), *alarms(own.max(axis=1))])


def alarms(longest: Integers) -> list[str]:
    """Return the percentage of histories with an alarm, for each number of scans in a row."""
    return [f"{100 * np.mean(longest >= k):.1f}" for k in IN_A_ROW]


if __name__ == "__main__":
    main()

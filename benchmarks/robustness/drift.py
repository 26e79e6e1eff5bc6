"""Measure how often the month page gives an alarm: in years without a change, and after one.

    python benchmarks/robustness/drift.py --write FOLDER
    lesionseg train data.root=FOLDER/train run_dir=FOLDER/run trainer.max_steps=150 \\
      model.tile_shape=[32,32,32] model.base_features=8 operating_point=fp_per_case:0.5
    for kind in same noise blur; do
      lesionseg predict bundle=FOLDER/run input=FOLDER/$kind output=FOLDER/found_$kind
    done
    python benchmarks/robustness/drift.py FOLDER

The first command writes small simulated heads: 20 for the training, 120 others, and 40 of these
with noise of 4 % of the highest intensity, and blurred by 0.6 voxels. The last command fits a
smooth distribution (a Gaussian kernel estimate of log `input_score` and `n_accepted`) to the
results of each kind, draws scans from it, and prints the share of repeats with an alarm. A year
without a change has 2 500 scans of `same` after the first 30. A change has 10 scans of another kind
after 100 of `same`; only an alarm among these 10 counts.
"""

import argparse
import csv
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.random import Generator
from scipy import ndimage
from scipy.stats import gaussian_kde

from lesionseg.core import Volume
from lesionseg.evaluation.drift import N_FIRST, WATCHED, WatchedValue
from lesionseg.io.results.folder import PredictionFolder
from lesionseg.io.results.row import CaseRow
from lesionseg.io.volumes import read_volume, write_volume
from lesionseg.phantoms import write_mri_phantoms

SHAPE = (64, 80, 64)  # voxels of 1.5 mm
HEADS = 120
CHANGED = 40  # heads that are predicted with noise, and blurred
NOISE = 0.04  # standard deviation, as a share of the highest intensity
BLUR = 0.6  # standard deviation in voxels
SCANS = 2500  # of a year
YEARS = 500
REPEATS = 200  # of a change
BEFORE = 100  # later scans before a change
WITHIN = 10  # scans after a change
IN_A_ROW = (3, 4, 5, 6, 7)
CHANGES = ("noise", "blur")


def write_scans(folder: Path) -> None:
    """Write the simulated heads, and some of them with noise and blurred."""
    write_mri_phantoms(folder / "train", 20, seed=1, shape=SHAPE, contrast=1.5)
    write_mri_phantoms(folder / "raw", HEADS, seed=107, shape=SHAPE, contrast=1.5)
    rng = np.random.default_rng(0)
    for number, path in enumerate(sorted((folder / "raw" / "imagesTr").iterdir())):
        scan = read_volume(path)
        for kind in ("same", *CHANGES):
            (folder / kind).mkdir(exist_ok=True)
        write_volume(folder / "same" / path.name, scan)
        if number < CHANGED:
            array = scan.array
            noise = rng.normal(scale=NOISE * array.max(), size=array.shape)
            blurred = ndimage.gaussian_filter(array, (0, BLUR, BLUR, BLUR))
            for kind, changed in (("noise", array + noise), ("blur", blurred)):
                new = Volume(changed.astype(np.float32), scan.geometry)
                write_volume(folder / kind / path.name, new)


class Scans:
    """A smooth distribution of the watched values of the scans in an output folder of `predict`."""

    def __init__(self, folder: Path) -> None:
        rows = PredictionFolder(folder).rows()
        scores = np.log([row.input_score for row in rows])
        self._fit = gaussian_kde([scores, [row.n_accepted for row in rows]])

    def draw(self, n: int, rng: Generator, case: str = "") -> list[CaseRow]:
        """Draw the rows of `n` scans, which all have the same case id."""
        log_scores, accepted = self._fit.resample(n, rng)
        scores = np.exp(log_scores).tolist()
        counts = np.maximum(np.round(accepted), 0).astype(int).tolist()
        pairs = zip(scores, counts, strict=True)
        return [CaseRow(case, input_score=score, n_accepted=count) for score, count in pairs]


def count_alarms(
    histories: Iterable[list[CaseRow]], names: Collection[str], case: str = ""
) -> dict[int, float]:
    """Return the share of histories with an alarm, by the number of scans in a row.

    Args:
        histories: the scans of each repeat. The case id of the first ones is "first".
        names: the watched values.
        case: only alarms count whose last scan has this case id. "" counts all.
    """
    n_repeats = 0
    n_alarms = Counter[int]()
    for rows in histories:
        n_repeats += 1
        watched = [WatchedValue(name, rows, {"first"}) for name in names]
        runs = [drift.rows for value in watched for drift in value.find_drifts(min(IN_A_ROW))]
        lengths = [len(run) for run in runs if case in ("", run[-1].case)]
        n_alarms.update(k for k in IN_A_ROW if k <= max(lengths, default=0))
    return {k: n_alarms[k] / n_repeats for k in IN_A_ROW}


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
    kinds = {kind: Scans(given.folder / f"found_{kind}") for kind in ("same", *CHANGES)}
    share = 10 if given.quick else 1
    out = csv.writer(sys.stdout, lineterminator="\n")
    out.writerow(
        ["scans", "watched", "repeats", *(f"alarms with {k} in a row %" for k in IN_A_ROW)]
    )
    for kind, scans in kinds.items():
        for names in ([*WATCHED], *([name] for name in WATCHED)):
            if kind == "same":
                n, histories = YEARS // share, quiet_years(scans, YEARS // share)
                alarms = count_alarms(histories, names)
            else:
                n, histories = REPEATS // share, changes(kinds["same"], scans, REPEATS // share)
                alarms = count_alarms(histories, names, "changed")
            out.writerow([kind, " ".join(names), n, *(f"{100 * a:.1f}" for a in alarms.values())])
            sys.stdout.flush()


if __name__ == "__main__":
    main()

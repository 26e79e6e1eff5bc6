"""Simulated colour photographs of the retina with many small bright lesions, and no patient.

    python benchmarks/phantoms/fundus.py FOLDER --cases 40 --test 15 --seed 1

Each picture has a vignette, a bright disc, dark vessels, and about 60 soft yellow lesions of 2 to
10 pixels by default. Pale, grey and reddish spots of the same sizes are distractors and not in the
mask.
"""

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

Picture = NDArray[np.float64]

BACKGROUND = (168.0, 82.0, 38.0)  # red, green, blue of the retina, 0 to 255
LESION = (62.0, 78.0, 30.0)  # added at the centre of a lesion of contrast 1
# added at the centre of a spot that is not a lesion: pale, grey and reddish
DISTRACTORS = ((60.0, 26.0, 22.0), (34.0, 38.0, 62.0), (48.0, -6.0, -4.0))


@dataclass(frozen=True)
class FundusSettings:
    """Settings of the pictures.

    Attributes:
        side: Rows and columns.
        n_lesions: Mean number of lesions of a picture (Poisson).
        n_distractors: Mean number of spots that are not lesions.
        diameter: Least and most diameter of lesions in pixels, log-uniform.
        contrast: Least and most factor of a lesion's colour.
        noise: Standard deviation of the noise in grey values.
    """

    side: int = 400
    n_lesions: float = 60.0
    n_distractors: float = 40.0
    diameter: tuple[float, float] = (2.5, 10.0)
    contrast: tuple[float, float] = (0.35, 1.0)
    noise: float = 4.0


def draw_fundus(
    rng: Generator, settings: FundusSettings
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Draw a picture `[rows, columns, 3]` and its lesion mask `[rows, columns]`."""
    side = settings.side
    rows, columns = np.mgrid[:side, :side]
    middle = side / 2 + rng.uniform(-6, 6, size=2)
    distance = np.hypot(rows - middle[0], columns - middle[1]) / (side / 2)
    field = distance < 0.97
    light = (1 - 0.45 * distance**2) * (1 + 0.15 * _smooth(rng, side, 60))
    picture = np.array(BACKGROUND) * rng.uniform(0.85, 1.15, size=3)
    picture = picture * (1 + 0.12 * _smooth(rng, side, 12))[..., None]
    shift = rng.uniform(-20, 20), rng.choice([-1, 1]) * 0.26 * side
    disc = middle + np.array(shift)
    near = np.hypot(rows - disc[0], columns - disc[1]) / (0.075 * side)
    picture += np.array([70.0, 90.0, 60.0]) / (1 + np.exp(6 * (near - 1)))[..., None]
    picture *= 1 - _vessels(rng, side, disc)[..., None] * np.array([0.25, 0.5, 0.45])
    free = field & (near > 1.4)
    for _ in range(rng.poisson(settings.n_distractors)):
        spot = _spot(rng, side, free, settings.diameter)
        colour = np.array(DISTRACTORS[rng.integers(len(DISTRACTORS))])
        picture += spot[..., None] * colour * rng.uniform(*settings.contrast)
    mask = np.zeros((side, side), dtype=np.uint8)
    for _ in range(rng.poisson(settings.n_lesions)):
        spot = _spot(rng, side, free, settings.diameter)
        picture += spot[..., None] * np.array(LESION) * rng.uniform(*settings.contrast)
        mask[spot >= 0.5] = 1
    picture = picture * light[..., None]
    picture = ndimage.gaussian_filter(picture, (0.6, 0.6, 0))
    picture += rng.normal(0, settings.noise, size=picture.shape)
    picture *= field[..., None]
    return np.rint(np.clip(picture, 0, 255)).astype(np.uint8), mask * field


def _smooth(rng: Generator, side: int, width: float) -> Picture:
    """Return smooth noise of mean 0 and standard deviation 1."""
    drawn = ndimage.gaussian_filter(rng.normal(size=(side, side)), width, mode="wrap")
    return np.asarray((drawn - drawn.mean()) / drawn.std())


def _spot(rng: Generator, side: int, free: NDArray[np.bool_], diameter: Sequence[float]) -> Picture:
    """Return a soft, slightly irregular spot: 1 in the middle, ½ at its outline."""
    places = np.argwhere(free)
    row, column = places[rng.integers(len(places))]
    radius = np.exp(rng.uniform(*np.log(diameter))) / 2
    angle = rng.uniform(0, np.pi)
    stretch = rng.uniform(1, 1.5)
    reach = max(14, math.ceil(2 * radius + 4))
    low = np.maximum([int(row) - reach, int(column) - reach], 0)
    y, x = np.mgrid[low[0] : min(row + reach + 1, side), low[1] : min(column + reach + 1, side)]
    y = y - row + rng.uniform(-0.5, 0.5)
    x = x - column + rng.uniform(-0.5, 0.5)
    along = (np.cos(angle) * y + np.sin(angle) * x) / np.sqrt(stretch)
    across = (np.cos(angle) * x - np.sin(angle) * y) * np.sqrt(stretch)
    wave = 1 + 0.15 * np.sin(3 * np.arctan2(across, along) + rng.uniform(0, 6))
    spot = np.zeros((side, side))
    softness = 0.35 * radius + 0.4
    value = 1 / (1 + np.exp((np.hypot(along, across) - radius * wave) / (0.5 * softness)))
    spot[low[0] : low[0] + y.shape[0], low[1] : low[1] + y.shape[1]] = value
    return spot


def _vessels(rng: Generator, side: int, disc: NDArray[np.float64]) -> Picture:
    """Return dark vessels that leave the disc: 1 in the middle of a vessel, 0 outside."""
    drawn = np.zeros((side, side))
    for _ in range(10):
        place = disc.copy()
        heading = rng.uniform(0, 2 * np.pi)
        width = rng.uniform(1.5, 3.5)
        for _ in range(int(0.9 * side)):
            heading += rng.normal(0, 0.06)
            place += np.sin(heading), np.cos(heading)
            row, column = (int(v) for v in place)
            if not (0 <= row < side and 0 <= column < side):
                break
            drawn[row, column] = max(drawn[row, column], width)
            width *= 0.997
    soft = [
        np.minimum(ndimage.gaussian_filter((drawn > w) * 1.0, w * 0.6) * w * 1.6, 1)
        for w in (0.5, 1.2, 2.0)
    ]
    result: Picture = np.max(soft, axis=0)
    return result


def write_fundus(
    folder: Path, n_cases: int, n_test: int, seed: int, settings: FundusSettings
) -> Path:
    """Write `n_cases` pictures and `n_test` test pictures in nnU-Net's layout. Return `folder`."""
    for part in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for number in range(n_cases + n_test):
        picture, mask = draw_fundus(np.random.default_rng([seed, number]), settings)
        part = "Tr" if number < n_cases else "Ts"
        Image.fromarray(picture).save(folder / f"images{part}" / f"SIMF{number:03d}_0000.png")
        Image.fromarray(mask).save(folder / f"labels{part}" / f"SIMF{number:03d}.png")
    content = {
        "name": "SIMULATED retina",
        "channel_names": {"0": "R", "1": "G", "2": "B"},
        "labels": {"background": 0, "lesion": 1},
        "numTraining": n_cases,
        "file_ending": ".png",
    }
    (folder / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cases", type=int, default=40)
    parser.add_argument("--test", type=int, default=15)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--contrast", type=float, nargs=2, default=FundusSettings.contrast)
    parser.add_argument("--noise", type=float, default=FundusSettings.noise)
    parser.add_argument("--diameter", type=float, nargs=2, default=FundusSettings.diameter)
    given = parser.parse_args()
    settings = FundusSettings(
        contrast=tuple(given.contrast), noise=given.noise, diameter=tuple(given.diameter)
    )
    write_fundus(given.folder, given.cases, given.test, given.seed, settings)


if __name__ == "__main__":
    main()

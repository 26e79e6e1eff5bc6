"""Contrast of the lesions of radiographs with their surroundings.

    python benchmarks/learning/film_contrast.py --data DIR … --table contrast.csv

The contrast of a lesion is |m − s| / d: m is the mean of the pixels in the ellipse inscribed in its
box, s and d are the mean and the standard deviation of the pixels around it. The ring around it
reaches from 1.1 to 3 times the ellipse. At a contrast of 1, the mean of a lesion differs from that
of its surroundings by as much as the pixels of the surroundings vary.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.learning import films
from lesionseg.io.cases import read_case
from lesionseg.io.layouts import read_dataset
from lesionseg.ops.components import lesions_of

RING = (1.1, 3.0)  # of the ellipse's half axes


def main() -> None:
    """Print and write one row for each set."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="dataset folders")
    parser.add_argument("--table", type=Path, help="a CSV file for the rows")
    options = parser.parse_args()
    films.show([measure(root) for root in options.data], options.table)


def measure(root: Path) -> dict[str, Any]:
    """Return the quartiles of contrast and width of the lesions of a set."""
    dataset = read_dataset(root)
    contrasts = []
    widths = []
    for files in dataset.cases:
        case = read_case(files, dataset)
        if case.reference is None:
            continue
        image = case.image.array.mean(axis=0)
        for box in lesions_of(case.reference).boxes:
            contrasts.append(contrast(image, box))
            widths.append(100 * float(np.sqrt(np.prod(box[2:] - box[:2]))) / max(image.shape))
    low, middle, high = np.nanpercentile(contrasts, (25, 50, 75)).round(2)
    return {
        "set": root.resolve().name,
        "lesions": len(contrasts),
        "median width in % of the film": round(float(np.median(widths)), 1),
        "contrast of a quarter of the lesions up to": low,
        "median contrast": middle,
        "contrast of a quarter of the lesions from": high,
        "share with a contrast of 1 or more": round(float(np.mean(np.array(contrasts) >= 1)), 2),
    }


def contrast(image: NDArray[np.float32], box: NDArray[np.float64]) -> float:
    """Return the contrast of a box `[y0, x0, y1, x1]`; nan if no pixel is inside or around it.

    >>> film = np.tile(np.float32([0, 2]), (40, 20))  # mean 1, standard deviation 1
    >>> film[17:22, 18:21] = film[18:21, 17:22] = 4  # a disc
    >>> round(contrast(film, np.array([17.0, 17.0, 22.0, 22.0])), 1)
    3.0
    """
    centre = (box[:2] + box[2:] - 1) / 2
    half = (box[2:] - box[:2]) / 2
    low = np.maximum(np.floor(centre - RING[1] * half), 0).astype(int)
    high = np.ceil(centre + RING[1] * half).astype(int) + 1
    around = image[low[0] : high[0], low[1] : high[1]]
    rows, columns = np.ogrid[: around.shape[0], : around.shape[1]]
    y = (rows + low[0] - centre[0]) / half[0]
    x = (columns + low[1] - centre[1]) / half[1]
    radius = np.hypot(y, x)
    inside = around[radius <= 1]
    ring = around[(radius > RING[0]) & (radius <= RING[1])]
    if not inside.size or not ring.size or ring.std() == 0:
        return float("nan")
    return float(abs(inside.mean() - ring.mean()) / ring.std())


if __name__ == "__main__":
    main()

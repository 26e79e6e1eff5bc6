"""Turn a LUNA16 folder into a dataset that lesionseg reads: a mask per scan and `manifest.csv`.

    python examples/luna16_to_manifest.py LUNA16

LUNA16 (luna16.grand-challenge.org, "Data") states each nodule's centre, in the MetaImage's
millimetres (LPS), and its diameter: nodules are drawn as balls of label 1 into `masks/`. Findings
of `annotations_excluded.csv` become label 2, `ignore`. `subset<k>` is fold k; scans without a
nodule get an empty mask. The scans stay where they are.
"""

import re
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

from lesionseg.core import Geometry, Volume
from lesionseg.io import read_csv, read_geometry, write_csv, write_json, write_volume

EXCLUDED_MM = 10.0  # diameter that the challenge's scoring uses if a finding states none (-1)


def balls(table: Path) -> dict[str, list[tuple[np.ndarray, float]]]:
    """Return centre (RAS mm) and diameter of each finding by scan. Empty without the table."""
    found = defaultdict(list)
    for row in read_csv(table) if table.is_file() else ():
        x, y, z, diameter = (float(row[k]) for k in ("coordX", "coordY", "coordZ", "diameter_mm"))
        found[row["seriesuid"]].append((np.array([-x, -y, z]), max(diameter, 0) or EXCLUDED_MM))
    return found


def draw(mask: np.ndarray, geometry: Geometry, centre: np.ndarray, diameter: float, value: int):
    """Set the background voxels whose centre is inside the ball, or the nearest if none is."""
    nearest = np.rint(geometry.to_index([centre])[0]).astype(int)
    reach = np.ceil(diameter / 2 / np.array(geometry.spacing_mm)).astype(int) + 1
    low, high = np.maximum(nearest - reach, 0), np.minimum(nearest + reach + 1, geometry.shape)
    axes = [np.arange(a, b) for a, b in zip(low, high, strict=True)]
    index = np.stack([g.ravel() for g in np.meshgrid(*axes, indexing="ij")], axis=1)
    distance = np.linalg.norm(geometry.to_mm(index) - centre, axis=1)
    voxels = index[distance <= diameter / 2] if len(index) else index
    voxels = tuple((voxels if len(voxels) else nearest[None]).T)
    mask[voxels] = np.where(mask[voxels] == 0, value, mask[voxels])


def convert(root: Path) -> None:
    """Write `masks/`, `labels.json` and `manifest.csv` into a LUNA16 folder."""
    nodules, excluded = (balls(root / f"{n}.csv") for n in ("annotations", "annotations_excluded"))
    rows = []
    for scan in sorted(root.glob("subset*/*.mh[ad]")):
        geometry = read_geometry(scan)
        mask = np.zeros(geometry.shape, np.uint8)
        for value, findings in ((1, nodules[scan.stem]), (2, excluded[scan.stem])):
            for centre, diameter in findings:
                draw(mask, geometry, centre, diameter, value)
        name = f"masks/{scan.stem}.nii.gz"
        write_volume(root / name, Volume(mask[None], geometry))
        fold = re.sub(r"\D", "", scan.parent.name)
        image = scan.relative_to(root).as_posix()
        rows.append({"case": scan.stem, "image": image, "reference": name, "fold": fold})
    write_json(root / "labels.json", {"1": "nodule", "2": "ignore"})
    write_csv(root / "manifest.csv", rows, ("case", "image", "reference", "fold"))


if __name__ == "__main__":
    convert(Path(sys.argv[1]))

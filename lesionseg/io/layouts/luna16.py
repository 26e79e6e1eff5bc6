"""LUNA16: `annotations.csv` with nodules in world coordinates, beside MetaImage scans.

Format: luna16.grand-challenge.org, "Data". Coordinates are those of the MetaImage header (LPS).
"""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import CaseFiles, Dataset, Geometry, Reference
from lesionseg.errors import DatasetError, GeometryError
from lesionseg.io.atomic import read_csv
from lesionseg.io.layouts.case_problems import Problems
from lesionseg.io.volumes import is_image_file, strip_suffix
from lesionseg.ops.components import mask_boxes

logger = logging.getLogger(__name__)

ANNOTATIONS = "annotations.csv"
EXCLUDED = "annotations_excluded.csv"
_COLUMNS = ("seriesuid", "coordX", "coordY", "coordZ", "diameter_mm")
_SUBSET = re.compile(r"subset(\d+)")
# what the challenge's own scoring takes where an excluded finding states no diameter (-1)
_EXCLUDED_MM = 10.0


@dataclass(frozen=True)
class Ball:
    """A finding: its centre in RAS millimetres (x, y, z) and its diameter."""

    centre_mm: tuple[float, float, float]
    diameter_mm: float


def recognises_luna16(root: Path) -> bool:
    """Whether the folder holds LUNA16's `annotations.csv`."""
    path = root / ANNOTATIONS
    if not path.is_file():
        return False
    with path.open(encoding="utf-8-sig", errors="replace") as stream:
        return stream.readline().strip().startswith("seriesuid,")


def read_luna16(root: Path) -> Dataset:
    """Read a LUNA16 folder: every scan is a case, `subset<k>` its fold; scans without a nodule too.

    A nodule is a ball; findings of `annotations_excluded.csv` are ignored. Raises `DatasetError`.
    """
    scans = {strip_suffix(f): f for f in sorted(root.rglob("*")) if is_image_file(f)}
    problems = Problems()
    nodules, excluded = (_balls(root / name, problems) for name in (ANNOTATIONS, EXCLUDED))
    if unknown := sorted(set(nodules) - set(scans)):
        logger.warning("%d annotated scans are not there.", len(unknown))
    if not scans:
        raise DatasetError("No scan found.", where=root, expected="subset*/<seriesuid>.mhd")
    folders = {file: _SUBSET.fullmatch(file.parent.name) for file in scans.values()}
    cases = tuple(
        CaseFiles(
            case=case,
            images=(file,),
            fold=int(match[1]) if (match := folders[file]) else None,
            annotations={"balls": nodules.get(case, ()), "ignored": excluded.get(case, ())},
        )
        for case, file in scans.items()
    )
    logger.info("LUNA16 states centres and diameters: nodules are drawn as balls.")
    return Dataset(
        root.name, root, "luna16", 3, ("CT",), {1: "nodule"}, cases, problems=problems.listed
    )


def read_balls(files: CaseFiles, geometry: Geometry) -> Reference:
    """Reference of a case whose lesions are balls: instances in the file's order, label 1.

    A ball smaller than a voxel holds the nearest one; where two overlap the smaller keeps the
    voxel. Ignored balls become `ignore`. Raises `GeometryError` for one outside the image.
    """
    balls: Sequence[Ball] = files.annotations["balls"]
    instances = np.zeros(geometry.shape, dtype=np.int32)
    order = sorted(range(len(balls)), key=lambda i: -balls[i].diameter_mm)
    for index in order:
        instances[_inside(files.case, balls[index], geometry)] = index + 1
    ignore = np.zeros(geometry.shape, dtype=bool)
    for ball in files.annotations["ignored"]:
        ignore[_inside(files.case, ball, geometry)] = True
    ignore &= instances == 0
    visible = [i for i in range(1, len(balls) + 1) if (instances == i).any()]
    renumber = np.zeros(len(balls) + 1, dtype=np.int32)
    renumber[visible] = np.arange(1, len(visible) + 1)
    instances = renumber[instances]
    return Reference(
        geometry,
        labels=(instances > 0).astype(np.uint8),
        instances=instances,
        instance_labels=(1,) * len(visible),
        boxes=mask_boxes(instances, len(visible)),
        box_labels=(1,) * len(visible),
        ignore=ignore if ignore.any() else None,
    )


def _inside(case: str, ball: Ball, geometry: Geometry) -> tuple[NDArray[np.int64], ...]:
    """Indices of the voxels whose centre lies in a ball."""
    centre = geometry.to_index([ball.centre_mm])[0]
    nearest = np.rint(centre).astype(int)
    if (nearest < 0).any() or (nearest >= geometry.shape).any():
        raise GeometryError(
            "A finding lies outside its scan.",
            where=case,
            seen=f"voxel {nearest.tolist()}",
            expected=f"within {geometry.shape}",
        )
    reach = np.ceil(ball.diameter_mm / 2 / np.array(geometry.spacing_mm)).astype(int) + 1
    low, high = np.maximum(nearest - reach, 0), np.minimum(nearest + reach + 1, geometry.shape)
    grids = np.meshgrid(*(np.arange(a, b) for a, b in zip(low, high, strict=True)), indexing="ij")
    index = np.stack([g.ravel() for g in grids], axis=1)
    distance = np.linalg.norm(geometry.to_mm(index) - np.array(ball.centre_mm), axis=1)
    voxels = index[distance <= ball.diameter_mm / 2]
    return tuple((voxels if len(voxels) else nearest[np.newaxis]).T)


def _balls(path: Path, problems: Problems) -> Mapping[str, tuple[Ball, ...]]:
    """Findings of a table by scan; none when it is not there."""
    balls: dict[str, tuple[Ball, ...]] = {}
    for row in read_csv(path) if path.is_file() else []:
        try:
            case = row[_COLUMNS[0]]
            x, y, z, diameter = (float(row[name]) for name in _COLUMNS[1:])
        except (KeyError, ValueError):
            error = DatasetError(
                "A finding is incomplete.", where=path, seen=row, expected=", ".join(_COLUMNS)
            )
            problems.add(row.get(_COLUMNS[0], ""), error)
            continue
        size = diameter if diameter > 0 else _EXCLUDED_MM
        balls[case] = (*balls.get(case, ()), Ball((-x, -y, z), size))
    return balls

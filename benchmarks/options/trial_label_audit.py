"""Does the label audit find wrong references? Spoil a tenth of a simulated set's labels and look.

Run: python benchmarks/options/trial_label_audit.py --seed 2 --output runs/trial_label_audit

Makes simulated heads with exact references, then spoils a tenth of the lesions: a third dropped, a
third added on normal tissue, a third moved by more than their diameter. Trains on the spoilt set
with the audit on and asks how many of the list's first rows are spoilt places.
"""

import argparse
import json
import logging
import platform
import shutil
import sys
from dataclasses import asdict, dataclass
from math import dist
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy import ndimage

from lesionseg import __version__
from lesionseg.core import Geometry, Volume, equivalent_diameter_mm
from lesionseg.io.atomic import write_json
from lesionseg.io.volumes import read_volume, write_volume
from lesionseg.losses import DiceFocalLoss
from lesionseg.models.build import build_network
from lesionseg.ops.components import lesion_instances
from lesionseg.phantoms import write_mri_phantoms
from lesionseg.pipeline.dataset.data_settings import DataSettings
from lesionseg.pipeline.dataset.survey import take_survey
from lesionseg.pipeline.train.learning import decide, prepare_cases
from lesionseg.plan.make import PlanOverrides
from lesionseg.report.figures.chart_drawing import FOUND, GRID, INK, RC
from lesionseg.training.callbacks.focal_balance import FocalBalance
from lesionseg.training.callbacks.label_audit import SNAPSHOTS, LabelAudit, read_snapshots
from lesionseg.training.callbacks.suspects import Snapshot, Suspect, rank_suspects
from lesionseg.training.fit import fit
from lesionseg.training.learning_settings import Learning
from lesionseg.training.settings import AuditSettings, OptimiserSettings, TrainerSettings

SPOILT_SHARE = 0.1
TOPS = (10, 20, 50)
TRIES = 400
# a narrow network on small tiles, so that minutes on two cores are enough to learn something
MODEL = PlanOverrides(tile_shape=(32, 32, 32), batch_size=4, base_features=8)
LEARNING = OptimiserSettings(lr=3e-3)


@dataclass(frozen=True)
class Spoilt:
    """A wrong place of a spoilt reference: a lesion that is none, or a spot that is one."""

    how: str  # dropped, added, moved (the mask at its new place), left (the lesion's old place)
    kind: str  # what the audit has to call it: lesion or spot
    case: str
    centre_mm: tuple[float, ...]
    diameter_mm: float


@dataclass(frozen=True, eq=False)
class Lesion:
    """One lesion of a mask: voxels relative to its first corner, and that corner."""

    case: str
    corner: NDArray[np.int64]
    shape: NDArray[np.bool_]

    def voxels(self, corner: NDArray[np.int64]) -> NDArray[np.int64]:
        """Its voxels `[n, dims]` when it lies at `corner`."""
        return np.argwhere(self.shape) + corner


def spoil(folder: Path, share: float, rng: np.random.Generator) -> list[Spoilt]:
    """Spoil that share of all lesions in the masks of an nnU-Net raw folder."""
    paths = sorted((folder / "labelsTr").glob("*.nii.gz"))
    masks = {path.name.removesuffix(".nii.gz"): read_volume(path) for path in paths}
    images = {
        name: read_volume(folder / "imagesTr" / f"{name}_0000.nii.gz").array[0] for name in masks
    }
    lesions = [lesion for name in masks for lesion in _lesions(name, masks[name].array[0])]
    chosen = rng.permutation(len(lesions))[: round(share * len(lesions))]
    arrays = {name: np.array(mask.array[0]) for name, mask in masks.items()}
    found: list[Spoilt] = []
    for how, group in zip(("dropped", "added", "moved"), np.array_split(chosen, 3), strict=True):
        for i in group:
            found += _spoil_one(how, lesions[i], arrays, images, masks, rng)
    for path in paths:
        name = path.name.removesuffix(".nii.gz")
        write_volume(path, Volume(arrays[name][None], masks[name].geometry), like=path)
    return found


def _lesions(case: str, labels: NDArray[Any]) -> list[Lesion]:
    instances = lesion_instances(labels).instances
    return [
        Lesion(case, np.array([s.start for s in box]), instances[box] == i)
        for i, box in enumerate(ndimage.find_objects(instances), start=1)
    ]


def _spoil_one(
    how: str,
    lesion: Lesion,
    arrays: dict[str, NDArray[Any]],
    images: dict[str, NDArray[Any]],
    masks: dict[str, Volume],
    rng: np.random.Generator,
) -> list[Spoilt]:
    geometry = masks[lesion.case].geometry
    array, here = arrays[lesion.case], lesion.voxels(lesion.corner)
    if how == "dropped":
        array[tuple(here.T)] = 0
        return [_place("dropped", "spot", lesion.case, here, geometry)]
    if how == "added":  # a copy of its shape somewhere in any head
        case = str(rng.choice(sorted(arrays)))
        corner = _free_corner(lesion, arrays[case], images[case], rng, None)
        there = lesion.voxels(corner)
        arrays[case][tuple(there.T)] = 1
        return [_place("added", "lesion", case, there, masks[case].geometry)]
    corner = _free_corner(lesion, array, images[lesion.case], rng, geometry)
    there = lesion.voxels(corner)
    array[tuple(here.T)] = 0
    array[tuple(there.T)] = 1
    return [
        _place("moved", "lesion", lesion.case, there, geometry),
        _place("left", "spot", lesion.case, here, geometry),
    ]


def _free_corner(
    lesion: Lesion,
    labels: NDArray[Any],
    image: NDArray[Any],
    rng: np.random.Generator,
    near: Geometry | None,
) -> NDArray[np.int64]:
    """A corner at which the shape lies on tissue, three voxels away from any lesion.

    With `near`, between one and a half and three diameters from where it was.
    """
    smooth = ndimage.gaussian_filter(image.astype(np.float32), 1.5)
    free = smooth > 0.5 * np.percentile(smooth, 90)
    free &= ~ndimage.binary_dilation(labels > 0, np.ones((3, 3, 3)), iterations=3)
    room = np.array(labels.shape) - lesion.shape.shape
    for _ in range(TRIES):
        corner = rng.integers(0, room + 1)
        if near is not None:
            diameter = _diameter(int(lesion.shape.sum()), near)
            direction = rng.standard_normal(labels.ndim)
            step = direction / np.linalg.norm(direction) * diameter * rng.uniform(1.5, 3.0)
            corner = lesion.corner + np.rint(step / near.spacing_mm).astype(np.int64)
        if (corner < 0).any() or (corner > room).any():
            continue
        if free[tuple(lesion.voxels(corner).T)].all():
            return corner
    if near is not None:  # no room close by
        return _free_corner(lesion, labels, image, rng, None)
    raise RuntimeError("There is no room for another lesion.")


def _place(how: str, kind: str, case: str, voxels: NDArray[np.int64], geometry: Geometry) -> Spoilt:
    centre = geometry.to_mm(voxels.mean(axis=0, keepdims=True))[0]
    diameter = _diameter(len(voxels), geometry)
    return Spoilt(how, kind, case, tuple(float(v) for v in centre), diameter)


def _diameter(n_voxels: int, geometry: Geometry) -> float:
    return float(equivalent_diameter_mm(n_voxels * geometry.voxel_size, geometry.dims))


def train(folder: Path, run: Path, budget: TrainerSettings, seed: int) -> list[Snapshot]:
    """Train on the whole set with the audit on; the snapshots."""
    data = DataSettings(root=str(folder), validation_fraction=0.0)
    found = take_survey(data, seed)
    plan = decide(found, MODEL, TrainerSettings(budget="auto", accelerator="auto"), run)
    cases = prepare_cases(found, plan, data, run)
    audit = AuditSettings(enabled=True)
    fit(
        build_network(plan, seed=seed),
        plan,
        cases,
        Learning(DiceFocalLoss(alpha=0.75, gamma=2.0), budget, optimiser=LEARNING, seed=seed),
        run,
        callbacks=[FocalBalance(run), LabelAudit(cases, plan, audit, run)],
    )
    return read_snapshots(run / SNAPSHOTS)


def hit(suspect: Suspect, spoilt: list[Spoilt]) -> Spoilt | None:
    """The nearest spoilt place of the suspect's kind within the larger diameter of the two."""
    place = suspect.place
    near = [
        (distance, i)
        for i, wrong in enumerate(spoilt)
        if (wrong.kind, wrong.case) == (place.kind, place.case)
        and (distance := dist(wrong.centre_mm, place.centre_mm))
        < max(wrong.diameter_mm, place.diameter_mm)
    ]
    return spoilt[min(near)[1]] if near else None


def judge(suspects: list[Suspect], spoilt: list[Spoilt]) -> dict[str, Any]:
    """Precision of the list's top, average precision, and what a random order would give.

    A spoilt place counts once; a second row on it is a miss. Places that no row names count as
    missed in the average precision.
    """
    hits: list[Spoilt | None] = []
    for suspect in suspects:
        found = hit(suspect, spoilt)
        hits.append(None if found in hits else found)
    right = np.array([found is not None for found in hits])
    precision = np.cumsum(right) / np.arange(1, len(right) + 1)
    hows = ("dropped", "added", "moved", "left")
    return {
        "rows": len(suspects),
        "spoilt_places": {how: sum(s.how == how for s in spoilt) for how in hows},
        "base_rate": float(right.mean()),
        "average_precision": float((precision * right).sum() / len(spoilt)),
        "top": {
            str(n): {
                "precision": float(right[:n].mean()),
                "lesion_rows": sum(s.place.kind == "lesion" for s in suspects[:n]),
                **{how: sum(f is not None and f.how == how for f in hits[:n]) for how in hows},
            }
            for n in TOPS
        },
        "spoilt_by_rank": [rank for rank, found in enumerate(right, start=1) if found],
    }


def main(arguments: list[str] | None = None) -> None:
    """Make, spoil, train, look, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=400, help="about 3 minutes on 2 idle cores")
    parser.add_argument("--minutes", type=float, help="instead of steps")
    parser.add_argument("--cases", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs/trial_label_audit"))
    parser.add_argument("--figure", type=Path, help="an SVG of precision against rows read")
    chosen = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    shutil.rmtree(chosen.output, ignore_errors=True)
    folder = chosen.output / "dataset"
    write_mri_phantoms(
        folder, chosen.cases, seed=chosen.seed, shape=(64, 80, 64), n_lesions=(6, 20)
    )
    spoilt = spoil(folder, SPOILT_SHARE, np.random.default_rng(chosen.seed))
    write_json(chosen.output / "spoilt.json", [asdict(place) for place in spoilt])
    steps = chosen.steps if chosen.minutes is None else None
    budget = TrainerSettings(max_minutes=chosen.minutes, max_steps=steps)
    snapshots = train(folder, chosen.output / "run", budget, chosen.seed)
    result = {
        "trial": "label_audit",
        "seed": chosen.seed,
        "cases": chosen.cases,
        "steps": steps,
        "minutes": chosen.minutes,
        "machine": f"{torch.get_num_threads()} CPU cores",
        "versions": {
            "lesionseg": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
        **judge(rank_suspects(snapshots), spoilt),
    }
    write_json(chosen.output / "label_audit_trial.json", result)
    if chosen.figure is not None:
        draw(result, chosen.figure)
    print_table(result)


def draw(result: dict[str, Any], path: Path) -> None:
    """Precision and share of the spoilt places found against the rows read, as SVG."""
    ranks = np.array(result["spoilt_by_rank"])
    read = np.arange(1, result["rows"] + 1)
    found = np.searchsorted(ranks, read, side="right")
    n_places = sum(result["spoilt_places"].values())
    with mpl.rc_context(RC):
        figure = Figure(figsize=(7.6, 3.0), layout="constrained")
        left, right = figure.subplots(1, 2)
        left.plot(read, found / read, color=FOUND, linewidth=2, label="label audit")
        left.axhline(result["base_rate"], color=INK, linestyle=":", label="random order")
        left.set_ylabel("share of the rows that are spoilt")
        left.set_xlim(1, min(200, result["rows"]))
        right.plot(read, found / n_places, color=FOUND, linewidth=2)
        right.plot(read, result["base_rate"] * read / n_places, ":", color=INK)
        right.set_ylabel("share of the spoilt places found")
        right.set_xlim(1, result["rows"])
        for axes in (left, right):
            axes.set_xlabel("rows read")
            axes.set_ylim(0, 1.02)
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(axis="y", color=GRID, linewidth=0.8)
        left.legend(frameon=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="svg", metadata={"Date": None})


def print_table(result: dict[str, Any]) -> None:
    """The table of docs/label_audit.md."""
    print("| first rows | precision | dropped | added | moved | left |")
    print("|---|---|---|---|---|---|")
    for n, row in result["top"].items():
        counts = " | ".join(str(row[how]) for how in ("dropped", "added", "moved", "left"))
        print(f"| {n} | {row['precision']:.2f} | {counts} |")
    counts = " | ".join(str(n) for n in result["spoilt_places"].values())
    print(f"| all {result['rows']} (random order) | {result['base_rate']:.3f} | {counts} |")
    print(f"average precision {result['average_precision']:.3f}")
    print(json.dumps({"trial": "label_audit", **result}), file=sys.stdout)


if __name__ == "__main__":
    main()

"""Follow-up on simulated pairs: new lesions found, stable ones called changed.

    python benchmarks/robustness/follow_simulated.py  # simulated ellipsoids, about 3 minutes
    python benchmarks/robustness/follow_simulated.py masks=DIR  # real, segmented twice with errors

The operating point is chosen on stable pairs and judged on others. No number is one of patients.
"""

import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from scipy import ndimage

from lesionseg.core import Volume
from lesionseg.io.atomic import read_csv, read_json
from lesionseg.io.cases import read_mask
from lesionseg.io.predictions import find_masks
from lesionseg.io.volumes import write_volume
from lesionseg.phantoms import VisitSettings, write_visit_phantoms
from lesionseg.phantoms.visits import segment, stable_only
from lesionseg.pipeline.follow import follow

N_PAIRS = 40
BOUNDARIES_MM = (0.2, 0.3, 0.5)


def quiet(*_: object) -> None:
    """No bar."""


def changed_share(changes: list[dict[str, str]]) -> tuple[int, int]:
    """Of lesions that did not change: how many are called changed, and how many there are."""
    return sum(row["accepted"] == "true" for row in changes), len(changes)


def stable_called_changed(root: Path, retest: Path | None) -> tuple[int, int]:
    """Follow pairs in which nothing changed, not even by a spurious lesion."""
    out = root / "out"
    follow(root / "before", root / "after", out, retest=retest, progress=quiet)
    return changed_share(read_csv(out / "changes.csv"))


def simulate(root: Path, name: str, settings: VisitSettings, seed: int) -> Path:
    """A folder of pairs."""
    return write_visit_phantoms(root / name, N_PAIRS, settings, seed)


def simulated(boundary_mm: float) -> str:
    """One line of the table."""
    settings = VisitSettings(boundary_mm=boundary_mm, n_false=2.0)
    clean = replace(settings, n_false=0.0)
    with TemporaryDirectory() as folder:
        root = Path(folder)
        retest = simulate(root, "retest", stable_only(clean), 1)
        still = simulate(root, "still", stable_only(clean), 2)
        chosen_on = simulate(root, "chosen_on", stable_only(settings), 3)
        judged_on = simulate(root, "judged_on", stable_only(settings), 4)
        changed = simulate(root, "changed", settings, 5)
        by_grid = stable_called_changed(still, None)
        measured = stable_called_changed(still, retest)
        rates, recalls = [], []
        for pairs in (judged_on, changed):
            follow(
                pairs / "before",
                pairs / "after",
                pairs / "out",
                reference=pairs / "new",
                stable=chosen_on,
                retest=retest,
                progress=quiet,
            )
        accepted = read_csv(judged_on / "out" / "pairs.csv")
        rates.append(sum(int(row["new_accepted"]) for row in accepted) / len(accepted))
        for low, high in ((0, 5), (5, 99)):
            lesions = read_csv(changed / "out" / "lesions.csv")
            some = [x for x in lesions if low <= float(x["diameter_mm"]) < high]
            recalls.append(f"{sum(x['detected'] == 'true' for x in some)} of {len(some)}")
        states = read_csv(changed / "out" / "changes.csv")
        grown = sum(x["state"] == "enlarged" and x["accepted"] == "true" for x in states)
        factor = read_json(changed / "out" / "follow.json")["rule"]["repeatability"]
    cells = [
        f"{boundary_mm:g}",
        *(f"{n} of {m} ({100 * n / m:.1f} %)" for n, m in (by_grid, measured)),
        f"{factor:.2f}",
        f"{rates[0]:.2f}",
        *recalls,
        f"{grown}, {N_PAIRS}",
    ]
    return "| " + " | ".join(cells) + " |"


def real_masks(folder: Path, boundary_mm: float) -> str:
    """One line: each mask segmented twice with errors of its surface, moved by part of a voxel."""
    with TemporaryDirectory() as temporary:
        root = Path(temporary)
        for number, (case, path) in enumerate(find_masks(folder).items()):
            mask = read_mask(path)
            assert mask.labels is not None
            spacing, rng = mask.geometry.spacing_mm, np.random.default_rng(number)
            inner, outer = (
                ndimage.distance_transform_edt(m, sampling=spacing)
                for m in (mask.labels > 0, mask.labels == 0)
            )
            # a voxel's own edge lies half a voxel from its centre
            depth = np.where(mask.labels > 0, inner, -outer) - np.where(
                mask.labels > 0, 0.5, -0.5
            ) * min(spacing)
            settings = VisitSettings(
                shape=mask.geometry.shape, spacing_mm=spacing, boundary_mm=boundary_mm, n_false=0
            )
            for visit in ("before", "after"):
                shift = rng.uniform(-0.5, 0.5, 3) * (visit == "after")
                moved = ndimage.shift(depth, shift, order=1, mode="nearest")
                drawn = segment(rng, settings, moved.astype(np.float32))
                write_volume(root / visit / f"{case}.nii.gz", Volume(drawn[None], mask.geometry))
        n, m = stable_called_changed(root, None)
        k, _ = stable_called_changed(root, root)
        factor = read_json(root / "out" / "follow.json")["rule"]["repeatability"]
    shares = [f"{changed} of {m} ({100 * changed / m:.1f} %)" for changed in (n, k)]
    return f"| {boundary_mm:g} | {' | '.join(shares)} | {factor:.2f} |"


def main() -> None:
    """Print the table."""
    given = dict(argument.split("=", 1) for argument in sys.argv[1:])
    if "masks" in given:
        print("| surface error, mm | changed, grid alone | changed, with retest | factor |")
        print("|---|---|---|---|")
        for boundary_mm in BOUNDARIES_MM:
            print(real_masks(Path(given["masks"]), boundary_mm), flush=True)
        return
    print(
        "| surface error, mm | stable called changed, grid alone | with retest | factor"
        " | false new per pair | new under 5 mm | new from 5 mm | called enlarged, of true |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for boundary_mm in BOUNDARIES_MM:
        print(simulated(boundary_mm), flush=True)


if __name__ == "__main__":
    main()

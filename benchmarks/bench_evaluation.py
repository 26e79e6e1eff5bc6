"""Judging one brain case of 1 mm, against panoptica and surface-distance on the same masks.

python benchmarks/bench_evaluation.py [--quick]

Ours does everything `evaluate` does for a case: matching under four criteria, Dice, surface Dice,
HD95, sizes, tables' rows. panoptica computes Dice, IoU and panoptic quality; surface-distance the
surface Dice and HD95 of the whole masks. Equal numbers are checked before any time is printed.
The peers live in an environment of their own: `make peers`.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from table import Row, device_name, print_report, versions

from lesionseg.core import Candidate, Geometry, Prediction, Reference
from lesionseg.evaluation import PRESETS, evaluate_case, summarise
from lesionseg.ops.components import lesion_instances, mask_boxes

ROOT = Path(__file__).resolve().parents[1]
PEERS = ROOT / ".peers/bin/python"
SHAPE = (182, 218, 182)


def brain_case(seed: int, n_lesions: int = 30) -> tuple[Reference, Prediction]:
    """Balls strewn over a brain-sized grid; predicted ones moved, a third missed, some false."""
    rng = np.random.default_rng(seed)
    reference, predicted = np.zeros(SHAPE, dtype=np.uint8), np.zeros(SHAPE, dtype=np.uint8)
    for _ in range(n_lesions):
        centre, radius = rng.integers(20, 160, 3), rng.uniform(1.0, 7.0)
        _ball(reference, centre, radius)
        if rng.random() < 0.7:
            _ball(predicted, centre + rng.integers(-1, 2, 3), radius * rng.uniform(0.8, 1.2))
    for _ in range(5):
        _ball(predicted, rng.integers(20, 160, 3), rng.uniform(1.0, 3.0))
    geometry = Geometry.from_spacing(SHAPE, (1.0, 1.0, 1.0))
    found = lesion_instances(predicted)
    boxes = mask_boxes(found.instances, len(found.labels)).tolist()
    candidates = tuple(
        Candidate(i + 1, 1, float(rng.random()), tuple(b[:3]), tuple(b[3:]), (0.0,) * 3, 1.0, None)
        for i, b in enumerate(boxes)
    )
    ranked = tuple(sorted(candidates, key=lambda c: -c.score))
    prediction = Prediction(f"case{seed}", geometry, ranked, found.instances)
    return Reference(geometry, labels=reference), prediction


def _ball(mask: np.ndarray, centre: np.ndarray, radius: float) -> None:
    reach = int(np.ceil(radius))
    grid = np.stack(np.meshgrid(*[np.arange(-reach, reach + 1)] * 3, indexing="ij"), -1)
    mask[tuple((grid[(grid**2).sum(-1) <= radius**2] + centre).T)] = 1


def time_ours(cases: list[tuple[Reference, Prediction]], rounds: int) -> float:
    """Milliseconds a case, the best round."""
    times = []
    for _ in range(rounds):
        begin = time.perf_counter()
        for reference, prediction in cases:
            evaluate_case(reference, prediction, PRESETS["lesionseg"], case=prediction.case)
        times.append((time.perf_counter() - begin) / len(cases) * 1e3)
    return min(times)


def peers_times(cases: list[tuple[Reference, Prediction]], rounds: int) -> dict[str, dict]:
    """Milliseconds a case and numbers of each peer, from the peers' environment."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "cases.npz", Path(folder) / "times.json"
        arrays = {f"{i}/reference": r.labels for i, (r, _) in enumerate(cases)}
        arrays |= {f"{i}/prediction": p.instances > 0 for i, (_, p) in enumerate(cases)}
        np.savez_compressed(source, **arrays)
        script = ROOT / "benchmarks/time_evaluation_peers.py"
        run = [PEERS, script, source, target, str(rounds)]
        subprocess.run(run, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return json.loads(target.read_text())


def check_equal(cases: list[tuple[Reference, Prediction]], peers: dict[str, dict]) -> None:
    """Refuse to print times of unequal numbers."""
    for i, (reference, prediction) in enumerate(cases):
        ours = evaluate_case(reference, prediction, PRESETS["panoptica"], case="a")
        values = dict(ours.official)
        np.testing.assert_allclose(ours.dice, peers["panoptica"]["numbers"][i]["dice"], rtol=1e-9)
        np.testing.assert_allclose(values["pq"], peers["panoptica"]["numbers"][i]["pq"], rtol=1e-9)
        surface = peers["surface_distance"]["numbers"][i]
        np.testing.assert_allclose(ours.surface_dice, surface["surface_dice"], rtol=1e-9)
        np.testing.assert_allclose(ours.hd95_mm, surface["hd95_mm"], rtol=1e-9)


def time_hundred() -> float:
    """Seconds for 100 cases and 1000 bootstraps, the making of the cases left out."""
    results, seconds = [], 0.0
    for seed in range(100):
        reference, prediction = brain_case(seed)
        begin = time.perf_counter()
        results.append(
            evaluate_case(reference, prediction, PRESETS["lesionseg"], case=prediction.case)
        )
        seconds += time.perf_counter() - begin
    begin = time.perf_counter()
    summarise(results, PRESETS["lesionseg"], evaluated_on="test", replicates=1000)
    return seconds + time.perf_counter() - begin


def main() -> None:
    """Print the table and the line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    cases = [brain_case(seed) for seed in range(2 if quick else 5)]
    ours, rows, skipped = time_ours(cases, 3), [], {}
    if PEERS.is_file():
        peers = peers_times(cases, 2)
        check_equal(cases, peers)
        rows = [Row("evaluate_case", ours, "ms", k, p["ms"]) for k, p in peers.items()]
        both = sum(p["ms"] for p in peers.values())
        rows.append(Row("evaluate_case", ours, "ms", "panoptica+surface_distance", both))
    else:
        skipped["evaluate_case"] = "make peers"
    if not quick:
        sys.stdout.write(f"100 cases with 1000 bootstraps: {time_hundred():.1f} s\n")
    print_report(
        "evaluation",
        rows,
        device=device_name(),
        versions=versions("numpy", "scipy", "connected-components-3d"),
        skipped=skipped,
    )


if __name__ == "__main__":
    main()

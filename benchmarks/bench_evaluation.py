"""Time of evaluating one brain case of 1 mm, compared with panoptica and surface-distance.

    python benchmarks/bench_evaluation.py [--quick]

All programs get the same two label masks and find the components. `evaluate_case`: ours computes
everything that `evaluate` computes for a case (matching under four criteria, Dice, surface Dice,
HD95, sizes, rows of tables). panoptica computes only Dice and panoptic quality, or its defaults
(`panoptica_defaults`, including surface distances of instances). surface-distance computes the
surface Dice and HD95 of the complete masks. Dice, surface Dice and HD95 must be equal before any
time is printed. The peers run in their own environment: `make peers`.
"""

import argparse
import json
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common.table import Row, device_name, print_report, versions
from lesionseg.core import Candidate, Geometry, Prediction, Reference
from lesionseg.evaluation import PRESETS, CaseRows, match_case
from lesionseg.ops.components import lesion_instances, lesions_of

ROOT = Path(__file__).resolve().parents[1]
PEERS = ROOT / ".peers/bin/python"
SHAPE = (182, 218, 182)


@dataclass(frozen=True, eq=False)
class Pair:
    """Two label masks on one grid of 1 mm."""

    reference: np.ndarray
    prediction: np.ndarray

    def evaluate(self) -> CaseRows:
        """Evaluate the masks like `evaluate` evaluates a case."""
        geometry = Geometry.from_spacing(self.reference.shape, (1.0, 1.0, 1.0))
        reference = Reference(geometry, labels=self.reference)
        prediction = make_prediction(self.prediction, geometry)
        return match_case(reference, prediction, PRESETS["lesionseg"], case="case").rows()


def make_prediction(mask: np.ndarray, geometry: Geometry) -> Prediction:
    """Return the components as candidates. Scores differ, so that the curves have work to do."""
    instances, _ = lesion_instances(mask)
    boxes = lesions_of(Reference(geometry, labels=mask)).boxes.tolist()
    candidates = []
    for i, box in enumerate(boxes):
        score = 1 - i / (len(boxes) + 1)
        start = tuple(box[:3])
        stop = tuple(box[3:])
        candidates.append(Candidate(i + 1, 1, score, start, stop, (0.0, 0.0, 0.0), 1.0, None))
    return Prediction("case", geometry, tuple(candidates), instances)


def draw_brain_case(seed: int, n_lesions: int = 30) -> Pair:
    """Draw balls on a grid of a brain.

    Predictions are moved, a third is missing, five are false.
    """
    rng = np.random.default_rng(seed)
    reference = np.zeros(SHAPE, dtype=np.uint8)
    predicted = np.zeros(SHAPE, dtype=np.uint8)
    for _ in range(n_lesions):
        centre = rng.integers(20, 160, 3)
        radius = rng.uniform(1.0, 7.0)
        _paint_ball(reference, centre, radius)
        if rng.random() < 0.7:
            _paint_ball(predicted, centre + rng.integers(-1, 2, 3), radius * rng.uniform(0.8, 1.2))
    for _ in range(5):
        _paint_ball(predicted, rng.integers(20, 160, 3), rng.uniform(1.0, 3.0))
    return Pair(reference, predicted)


def _paint_ball(mask: np.ndarray, centre: np.ndarray, radius: float) -> None:
    reach = int(np.ceil(radius))
    grid = np.stack(np.meshgrid(*[np.arange(-reach, reach + 1)] * 3, indexing="ij"), -1)
    mask[tuple((grid[(grid**2).sum(-1) <= radius**2] + centre).T)] = 1


def time_ours(cases: list[Pair], rounds: int) -> float:
    """Return the milliseconds per case of the fastest round."""
    times = []
    for _ in range(rounds):
        begin = time.perf_counter()
        for case in cases:
            case.evaluate()
        times.append((time.perf_counter() - begin) / len(cases) * 1e3)
    return min(times)


def time_peers(cases: list[Pair], rounds: int) -> dict[str, dict]:
    """Return milliseconds per case and the numbers of each peer, from the peers' environment."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "cases.npz"
        target = Path(folder) / "times.json"
        arrays: dict[str, Any] = {f"{i}/reference": case.reference for i, case in enumerate(cases)}
        arrays |= {f"{i}/prediction": case.prediction for i, case in enumerate(cases)}
        np.savez_compressed(source, **arrays)
        script = ROOT / "benchmarks/peers/time_evaluation_peers.py"
        run: list[str | Path] = [PEERS, script, source, target, str(rounds)]
        subprocess.run(run, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        result: dict[str, dict] = json.loads(target.read_text())
        return result


def check_equal(cases: list[Pair], peers: dict[str, dict]) -> None:
    """Check that all programs compute the same numbers."""
    for i, case in enumerate(cases):
        (ours,) = (row for row in case.evaluate().cases if row["part"] == "")
        surface = peers["surface_distance"]["numbers"][i]
        np.testing.assert_allclose(
            ours["dice"], peers["panoptica"]["numbers"][i]["dice"], rtol=1e-9
        )
        np.testing.assert_allclose(ours["surface_dice"], surface["surface_dice"], rtol=1e-9)
        np.testing.assert_allclose(ours["hd95_mm"], surface["hd95_mm"], rtol=1e-9)


def main() -> None:
    """Print the table and the line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    n = 2 if parser.parse_args().quick else 5
    cases = [draw_brain_case(seed) for seed in range(n)]
    cases[0].evaluate()  # compiles
    ours = time_ours(cases, 5)
    rows = []
    skipped = {}
    if PEERS.is_file():
        peers = time_peers(cases, 2)
        check_equal(cases, peers)
        rows = [Row("evaluate_case", ours, "ms", k, p["ms"]) for k, p in peers.items()]
        both = sum(peers[name]["ms"] for name in ("panoptica", "surface_distance"))
        rows.append(Row("evaluate_case", ours, "ms", "panoptica+surface_distance", both))
    else:
        skipped["evaluate_case"] = "make peers"
    print_report(
        "evaluation",
        rows,
        device=device_name(),
        versions=versions("numpy", "scipy", "connected-components-3d"),
        skipped=skipped,
    )


if __name__ == "__main__":
    main()

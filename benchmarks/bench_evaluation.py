"""Evaluating one brain case of 1 mm, against panoptica and surface-distance on the same masks.

    python benchmarks/bench_evaluation.py [--quick]

All get two label masks and find the components themselves. `evaluate_case`: ours does everything
`evaluate` does for a case (matching under four criteria, Dice, surface Dice, HD95, sizes, rows of
tables); panoptica Dice and panoptic quality alone, or what it does by default
(`panoptica_defaults`, surface distances of instances too); surface-distance the surface Dice and
HD95 of the whole masks. Dice, surface Dice and HD95 are checked to be equal before any time is
printed. The peers live in an environment of their own: `make peers`.
"""

import argparse
import json
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.common.table import Row, device_name, print_report, versions
from lesionseg.core import Candidate, Geometry, Prediction, Reference
from lesionseg.evaluation import PRESETS, CaseResult, match_case
from lesionseg.ops.components import lesion_instances, lesions_of

ROOT = Path(__file__).resolve().parents[1]
PEERS = ROOT / ".peers/bin/python"
SHAPE = (182, 218, 182)


@dataclass(frozen=True, eq=False)
class Pair:
    """Two label masks on one grid of 1 mm."""

    reference: np.ndarray
    prediction: np.ndarray

    def evaluate(self) -> CaseResult:
        """Everything `evaluate` does for the masks of a case."""
        geometry = Geometry.from_spacing(self.reference.shape, (1.0, 1.0, 1.0))
        reference = Reference(geometry, labels=self.reference)
        prediction = as_prediction(self.prediction, geometry)
        return match_case(reference, prediction, PRESETS["lesionseg"], case="case").result()


def as_prediction(mask: np.ndarray, geometry: Geometry) -> Prediction:
    """The components as candidates; scores by place, for the curves to have something to do."""
    instances, _ = lesion_instances(mask)
    boxes = lesions_of(Reference(geometry, labels=mask)).boxes.tolist()
    n = len(boxes)
    candidates = tuple(
        Candidate(i + 1, 1, 1 - i / (n + 1), tuple(b[:3]), tuple(b[3:]), (0.0, 0.0, 0.0), 1.0, None)
        for i, b in enumerate(boxes)
    )
    return Prediction("case", geometry, candidates, instances)


def brain_case(seed: int, n_lesions: int = 30) -> Pair:
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
    return Pair(reference, predicted)


def _ball(mask: np.ndarray, centre: np.ndarray, radius: float) -> None:
    reach = int(np.ceil(radius))
    grid = np.stack(np.meshgrid(*[np.arange(-reach, reach + 1)] * 3, indexing="ij"), -1)
    mask[tuple((grid[(grid**2).sum(-1) <= radius**2] + centre).T)] = 1


def time_ours(cases: list[Pair], rounds: int) -> float:
    """Milliseconds a case, the best round."""
    times = []
    for _ in range(rounds):
        begin = time.perf_counter()
        for case in cases:
            case.evaluate()
        times.append((time.perf_counter() - begin) / len(cases) * 1e3)
    return min(times)


def peers_times(cases: list[Pair], rounds: int) -> dict[str, dict]:
    """Milliseconds a case and numbers of each peer, from the peers' environment."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "cases.npz", Path(folder) / "times.json"
        arrays = {f"{i}/reference": case.reference for i, case in enumerate(cases)}
        arrays |= {f"{i}/prediction": case.prediction for i, case in enumerate(cases)}
        np.savez_compressed(source, **arrays)
        script = ROOT / "benchmarks/peers/time_evaluation_peers.py"
        run = [PEERS, script, source, target, str(rounds)]
        subprocess.run(run, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return json.loads(target.read_text())


def check_equal(cases: list[Pair], peers: dict[str, dict]) -> None:
    """Refuse to print times of unequal numbers."""
    for i, case in enumerate(cases):
        ours, surface = case.evaluate(), peers["surface_distance"]["numbers"][i]
        np.testing.assert_allclose(ours.dice, peers["panoptica"]["numbers"][i]["dice"], rtol=1e-9)
        np.testing.assert_allclose(ours.surface_dice, surface["surface_dice"], rtol=1e-9)
        np.testing.assert_allclose(ours.hd95_mm, surface["hd95_mm"], rtol=1e-9)


def main() -> None:
    """Print the table and the line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    n = 2 if parser.parse_args().quick else 5
    cases = [brain_case(seed) for seed in range(n)]
    cases[0].evaluate()  # compiles
    ours, rows, skipped = time_ours(cases, 5), [], {}
    if PEERS.is_file():
        peers = peers_times(cases, 2)
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

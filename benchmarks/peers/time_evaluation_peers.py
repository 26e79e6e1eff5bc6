"""Time panoptica and surface-distance for bench_evaluation.py, in the peers' environment.

python time_evaluation_peers.py cases.npz times.json ROUNDS
"""

import json
import sys
import time
import warnings
from pathlib import Path

import numpy as np
from scipy import ndimage

np.Inf = np.inf  # type: ignore[attr-defined]  # noqa: NPY201 - surface-distance was written for NumPy 1
warnings.simplefilter("ignore")


def main(source, target, rounds):
    """Write the milliseconds per case and the numbers of each peer."""
    with np.load(source) as arrays:
        n = len(arrays.files) // 2
        cases = [(arrays[f"{i}/reference"], arrays[f"{i}/prediction"]) for i in range(n)]
    peers = {
        "panoptica": make_panoptica("DSC", "IOU"),
        "panoptica_defaults": make_panoptica(),
        "surface_distance": make_surface_distance(),
    }
    times = {name: time_peer(run, cases, int(rounds)) for name, run in peers.items()}
    Path(target).write_text(json.dumps(times))


def time_peer(run, cases, rounds):
    """Return the milliseconds of the fastest round, and the numbers of the first run."""
    numbers = [run(*case) for case in cases]  # compiles and imports
    best = np.inf
    for _ in range(rounds):
        begin = time.perf_counter()
        for case in cases:
            run(*case)
        best = min(best, (time.perf_counter() - begin) / len(cases) * 1e3)
    return {"ms": best, "numbers": numbers}


def make_panoptica(*metrics):
    """Return panoptica with these metrics of instances, or with its defaults (also ASSD)."""
    from panoptica import InputType, Metric, Panoptica_Evaluator
    from panoptica.instance_approximator import ConnectedComponentsInstanceApproximator
    from panoptica.instance_matcher import NaiveThresholdMatching

    evaluator = Panoptica_Evaluator(
        expected_input=InputType.SEMANTIC,
        instance_approximator=ConnectedComponentsInstanceApproximator(),
        instance_matcher=NaiveThresholdMatching(),
        instance_metrics=[Metric[name] for name in metrics] or None,
        global_metrics=[Metric.DSC],
    )

    def run(reference, prediction):
        results = evaluator.evaluate(
            prediction.astype(np.uint8), reference.astype(np.uint8), verbose=False
        )
        found = next(iter(results.values()))
        return {"dice": float(found.global_bin_dsc), "pq": float(found.pq)}

    return run


def make_surface_distance():
    """Return a function for surface Dice at 1 mm and HD95 of the complete masks."""
    import surface_distance.metrics as peer

    peer.ndimage.filters = peer.ndimage.morphology = ndimage

    def run(reference, prediction):
        distances = peer.compute_surface_distances(
            reference.astype(bool), prediction.astype(bool), (1.0, 1.0, 1.0)
        )
        return {
            "surface_dice": float(peer.compute_surface_dice_at_tolerance(distances, 1.0)),
            "hd95_mm": float(peer.compute_robust_hausdorff(distances, 95)),
        }

    return run


if __name__ == "__main__":
    main(*sys.argv[1:])

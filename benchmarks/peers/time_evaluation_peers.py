"""Time panoptica and surface-distance; runs in the peers' environment, for bench_evaluation.

python time_evaluation_peers.py cases.npz times.json ROUNDS
"""

import json
import sys
import time
import warnings
from pathlib import Path

import numpy as np
from scipy import ndimage

np.Inf = np.inf  # noqa: NPY201 - surface-distance was written for NumPy 1
warnings.simplefilter("ignore")


def main(source, target, rounds):
    """Write milliseconds a case and the numbers of each peer."""
    with np.load(source) as arrays:
        n = len(arrays.files) // 2
        cases = [(arrays[f"{i}/reference"], arrays[f"{i}/prediction"]) for i in range(n)]
    peers = {
        "panoptica": panoptica("DSC", "IOU"),
        "panoptica_defaults": panoptica(),
        "surface_distance": surface_distance(),
    }
    times = {name: timed(run, cases, int(rounds)) for name, run in peers.items()}
    Path(target).write_text(json.dumps(times))


def timed(run, cases, rounds):
    """The best round, and what the first run gave."""
    numbers = [run(*case) for case in cases]  # compiles and imports
    best = np.inf
    for _ in range(rounds):
        begin = time.perf_counter()
        for case in cases:
            run(*case)
        best = min(best, (time.perf_counter() - begin) / len(cases) * 1e3)
    return {"ms": best, "numbers": numbers}


def panoptica(*metrics):
    """panoptica with these metrics of instances, or with those it has by default (ASSD too)."""
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
        pair = prediction.astype(np.uint8), reference.astype(np.uint8)
        found = next(iter(evaluator.evaluate(*pair, verbose=False).values()))
        return {"dice": float(found.global_bin_dsc), "pq": float(found.pq)}

    return run


def surface_distance():
    """Surface Dice at 1 mm and HD95 of the whole masks."""
    import surface_distance.metrics as peer

    peer.ndimage.filters = peer.ndimage.morphology = ndimage

    def run(reference, prediction):
        pair = reference.astype(bool), prediction.astype(bool)
        distances = peer.compute_surface_distances(*pair, (1.0, 1.0, 1.0))
        return {
            "surface_dice": float(peer.compute_surface_dice_at_tolerance(distances, 1.0)),
            "hd95_mm": float(peer.compute_robust_hausdorff(distances, 95)),
        }

    return run


if __name__ == "__main__":
    main(*sys.argv[1:])

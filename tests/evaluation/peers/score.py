"""Score cases with the official packages; runs in the peers' environment (`make peers`).

python score.py cases.npz scores.json

`cases.npz` holds `<case>/reference`, `<case>/instances`, `<case>/scores`, `<case>/spacing`.
"""

import json
import sys
import warnings
from pathlib import Path

import numpy as np
from scipy import ndimage

np.Inf = np.inf  # noqa: NPY201 - surface-distance was written for NumPy 1
warnings.simplefilter("ignore")

RATES = (0.1, 0.5, 1.0)


def main(source, target):
    cases = read(source)
    scores = {
        "picai": picai(cases),
        "panoptica": {name: panoptica(case) for name, case in cases.items()},
        "surface_distance": {name: surface(case) for name, case in cases.items()},
    }
    Path(target).write_text(json.dumps(scores, indent=1, sort_keys=True) + "\n")


def read(source):
    cases = {}
    with np.load(source) as arrays:
        for key in arrays.files:
            name, kind = key.split("/")
            cases.setdefault(name, {})[kind] = arrays[key]
    return dict(sorted(cases.items()))


def picai(cases):
    from picai_eval import evaluate

    maps = [np.append(0.0, c["scores"])[c["instances"]] for c in cases.values()]
    references = [c["reference"].astype(np.int32) for c in cases.values()]
    found = evaluate(maps, references, num_parallel_calls=1)
    rates = {f"sensitivity_at_{r:g}_fp_per_case": found.lesion_TPR_at_FPR(r) for r in RATES}
    whole = {"auroc": found.auroc, "average_precision": found.AP, "score": found.score}
    return {k: float(v) for k, v in (whole | rates).items()}


def panoptica(case):
    from panoptica import InputType, Metric, Panoptica_Evaluator
    from panoptica.instance_approximator import ConnectedComponentsInstanceApproximator
    from panoptica.instance_matcher import NaiveThresholdMatching

    global _evaluator
    if "_evaluator" not in globals():
        _evaluator = Panoptica_Evaluator(
            expected_input=InputType.SEMANTIC,
            instance_approximator=ConnectedComponentsInstanceApproximator(),
            instance_matcher=NaiveThresholdMatching(),
            instance_metrics=[Metric.DSC, Metric.IOU],
            global_metrics=[Metric.DSC],
        )
    prediction = (case["instances"] > 0).astype(np.uint8)
    reference = case["reference"].astype(np.uint8)
    found = next(iter(_evaluator.evaluate(prediction, reference, verbose=False).values()))
    names = {"pq": "pq", "sq": "sq", "rq": "rq", "pq_dice": "pq_dsc", "sq_dice": "sq_dsc"}
    return {ours: defined(lambda t=theirs: getattr(found, t)) for ours, theirs in names.items()}


def surface(case):
    import surface_distance.metrics as peer

    peer.ndimage.filters = peer.ndimage.morphology = ndimage
    reference, prediction = case["reference"].astype(bool), case["instances"] > 0
    if not reference.any() or not prediction.any():
        return {"surface_dice_1mm": None, "hd95_mm": None}
    distances = peer.compute_surface_distances(reference, prediction, case["spacing"].tolist())
    return {
        "surface_dice_1mm": float(peer.compute_surface_dice_at_tolerance(distances, 1.0)),
        "hd95_mm": float(peer.compute_robust_hausdorff(distances, 95)),
    }


def defined(read_value):
    value = read_value()
    return None if value is None or not np.isfinite(value) else float(value)


if __name__ == "__main__":
    main(*sys.argv[1:])

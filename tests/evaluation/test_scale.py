"""Evaluation grows with the number of lesions, and 10⁵ of them fit into a gigabyte.

pytest -m slow tests/evaluation/test_scale.py
"""

import json
import subprocess
import sys
import time

import numpy as np
import pytest

from lesionseg.core import Geometry, Reference
from lesionseg.evaluation import PRESETS, evaluate_case, summarise
from lesionseg.evaluation.tables import write_scores
from lesionseg.ops.host_memory import peak_memory_mb
from tests.evaluation.hand_cases import prediction_of

PER_CASE = 100  # lesions on a lattice, of which 80 are found, and 20 false positives


def run(n_lesions, folder):
    """Seconds of the processor, and the most memory beyond the imports, in megabytes."""
    geometry = Geometry.from_spacing((40, 40, 32), (1.0,) * 3)
    reference, drawn = (np.zeros(geometry.shape, np.int32) for _ in range(2))
    for i, (z, y, x) in enumerate(np.ndindex(5, 5, 4)):
        at = tuple(slice(8 * k, 8 * k + 3) for k in (z, y, x))
        moved = tuple(slice(s.start + 4 * (i >= 80), s.stop + 4 * (i >= 80)) for s in at)
        reference[at] = drawn[moved] = i + 1
    truth = Reference(geometry, instances=reference, instance_labels=(1,) * PER_CASE)
    scores = np.random.default_rng(0).random(PER_CASE).tolist()
    prediction = prediction_of(drawn, scores, geometry)
    preset, before, start = PRESETS["lesionseg"], peak_memory_mb(), time.process_time()
    results = [
        evaluate_case(truth, prediction, preset, case=f"c{i}") for i in range(n_lesions // PER_CASE)
    ]
    assert summarise(results, preset, evaluated_on="test")["n_true_positive"] == 0.8 * n_lesions
    write_scores(folder, results, {})
    return time.process_time() - start, peak_memory_mb() - before


@pytest.mark.slow
def test_a_hundred_thousand_lesions(tmp_path):
    code = "import sys, json; from pathlib import Path; from tests.evaluation.test_scale import run"
    code += "; print(json.dumps(run(int(sys.argv[1]), Path(sys.argv[2]))))"
    found = {}
    for n in (10_000, 100_000):
        command = [sys.executable, "-c", code, str(n), str(tmp_path)]
        found[n] = json.loads(subprocess.check_output(command, text=True).splitlines()[-1])
    (few, _), (many, megabytes) = found.values()
    assert many < 13 * few
    assert megabytes < 1000

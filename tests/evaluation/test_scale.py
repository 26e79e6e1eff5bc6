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


def run(n_cases, folder):
    """Seconds of the processor and megabytes beyond the imports; 80 of 100 lesions are found."""
    geometry = Geometry.from_spacing((40, 40, 32), (1.0,) * 3)
    reference, drawn = (np.zeros(geometry.shape, np.int32) for _ in range(2))
    for i, (z, y, x) in enumerate(np.ndindex(5, 5, 4)):
        at = tuple(slice(8 * k, 8 * k + 3) for k in (z, y, x))
        moved = tuple(slice(s.start + 4 * (i >= 80), s.stop + 4 * (i >= 80)) for s in at)
        reference[at] = drawn[moved] = i + 1
    truth = Reference(geometry, instances=reference, instance_labels=(1,) * 100)
    prediction = prediction_of(drawn, np.random.default_rng(0).random(100).tolist(), geometry)
    preset, before, start = PRESETS["lesionseg"], peak_memory_mb(), time.process_time()
    results = [evaluate_case(truth, prediction, preset, case=f"c{i}") for i in range(n_cases)]
    assert summarise(results, preset, evaluated_on="test")["n_true_positive"] == 80 * n_cases
    write_scores(folder, results, {})
    return time.process_time() - start, peak_memory_mb() - before


@pytest.mark.slow
def test_a_hundred_thousand_lesions(tmp_path):
    code = "import sys, json; from pathlib import Path; from tests.evaluation.test_scale import run"
    code += "; print(json.dumps(run(int(sys.argv[1]), Path(sys.argv[2]))))"
    commands = [[sys.executable, "-c", code, str(n), str(tmp_path)] for n in (100, 1000)]
    lines = [subprocess.check_output(c, text=True).splitlines()[-1] for c in commands]
    (few, _), (many, megabytes) = map(json.loads, lines)
    assert many < 13 * few
    assert megabytes < 1000

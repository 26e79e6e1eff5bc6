"""Write tests/gold/official.json: what the official packages and programs give on random cases.

make peers && .venv/bin/python -m tests.evaluation.peers.freeze
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from lesionseg.ops.components import label_components
from tests.evaluation.random_cases import random_cases

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
PEERS = ROOT / ".peers/bin/python"
GOLD = ROOT / "tests/gold/official.json"
PROGRAMS = PEERS.parents[1] / "programs"
PACKAGE_CASES = {"n": 200, "seed": 11}
PROGRAM_CASES = {"n": 50, "seed": 12, "size": 28}


def peer_scores(cases):
    """What picai_eval, panoptica and surface-distance give on these cases."""
    return _scores(cases, "score.py")


def program_scores(cases):
    """What the challenges' own programs give on these cases."""
    return _scores(cases, "programs.py", PROGRAMS)


def _scores(cases, script, *more):
    arrays = {}
    for case in cases:
        arrays[f"{case.name}/reference"] = case.reference
        arrays[f"{case.name}/instances"] = case.instances
        arrays[f"{case.name}/scores"] = np.array(case.scores, dtype=float)
        arrays[f"{case.name}/spacing"] = np.array(case.spacing_mm)
        arrays[f"{case.name}/lesions"] = label_components(case.reference)
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "cases.npz", Path(folder) / "scores.json"
        np.savez_compressed(source, **arrays)
        run = [PEERS, HERE / script, source, target, *more]
        subprocess.run(run, check=True, stdout=subprocess.DEVNULL)
        return json.loads(target.read_text())


if __name__ == "__main__":
    gold = {
        "cases": PACKAGE_CASES,
        **peer_scores(random_cases(**PACKAGE_CASES)),
        "program_cases": PROGRAM_CASES,
        "programs": program_scores(random_cases(**PROGRAM_CASES)),
    }
    GOLD.write_text(json.dumps(gold, indent=1) + "\n")
    sys.stdout.write(f"{GOLD}\n")

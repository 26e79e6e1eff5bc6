"""Write tests/gold/official.json: what the official packages give on 200 random cases.

make peers && .venv/bin/python -m tests.evaluation.peers.freeze
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from tests.evaluation.random_cases import random_cases

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
PEERS = ROOT / ".peers/bin/python"
GOLD = ROOT / "tests/gold/official.json"
N_CASES, SEED = 200, 11


def peer_scores(cases):
    """What picai_eval, panoptica and surface-distance give on these cases."""
    arrays = {}
    for case in cases:
        arrays[f"{case.name}/reference"] = case.reference
        arrays[f"{case.name}/instances"] = case.instances
        arrays[f"{case.name}/scores"] = np.array(case.scores, dtype=float)
        arrays[f"{case.name}/spacing"] = np.array(case.spacing_mm)
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "cases.npz", Path(folder) / "scores.json"
        np.savez_compressed(source, **arrays)
        script = HERE / "score.py"
        run = [PEERS, script, source, target]
        subprocess.run(run, check=True, stdout=subprocess.DEVNULL)
        return json.loads(target.read_text())


if __name__ == "__main__":
    scores = peer_scores(random_cases(N_CASES, SEED))
    GOLD.write_text(json.dumps({"n_cases": N_CASES, "seed": SEED, **scores}, indent=1) + "\n")
    sys.stdout.write(f"{GOLD}\n")

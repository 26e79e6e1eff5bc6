"""A training to be killed, run as a program of its own: `python killed.py RUN_DIR`."""

import sys
from datetime import timedelta
from pathlib import Path

from lesionseg.losses import DiceFocalLoss
from lesionseg.models import build_network
from lesionseg.training import fit
from tests.training.conftest import Squares, config, small_plan


def train(run_dir: Path) -> fit.FitResult:
    """Forty steps on few and small tiles."""
    cfg = config(max_steps=40, log_every_n_steps=1, workers=1)
    network, loss = build_network(small_plan()), DiceFocalLoss()
    return fit.fit(network, small_plan(), Squares(), cfg, run_dir, loss=loss)


if __name__ == "__main__":
    fit.CHECKPOINT_EVERY = timedelta(0)
    train(Path(sys.argv[1]))

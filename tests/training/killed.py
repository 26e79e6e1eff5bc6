"""A training to be killed, run as a program of its own: `python killed.py RUN_DIR`."""

import sys
from pathlib import Path

from lesionseg.losses import DiceFocalLoss
from lesionseg.models import build_network
from lesionseg.training import Learning, OptimiserSettings, TrainerSettings
from lesionseg.training.fit import FitResult, fit
from tests.training.conftest import Squares, small_plan


def train(run_dir: Path, checkpoint_every_minutes: float = 1.0) -> FitResult:
    """Forty steps on few and small tiles."""
    settings = TrainerSettings(
        max_steps=40,
        log_every=1,
        workers=1,
        accelerator="cpu",
        precision="32-true",
        checkpoint_every_minutes=checkpoint_every_minutes,
        progress=False,
    )
    optimiser = OptimiserSettings(lr=1e-2)
    network = build_network(small_plan())
    learning = Learning(DiceFocalLoss(), settings, optimiser=optimiser)
    return fit(network, small_plan(), Squares(), learning, run_dir)


if __name__ == "__main__":
    train(Path(sys.argv[1]), checkpoint_every_minutes=0.0)

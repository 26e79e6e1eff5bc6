"""The command line: Hydra overrides in, the recipe of a command called with its settings.

lesionseg train data.root=DIR model=unet loss.gamma=2
python scripts/train.py data.root=DIR model=unet loss.gamma=2
"""

from lesionseg.cli.command import main, run
from lesionseg.cli.compose import compose
from lesionseg.config import COMMANDS, conf_dir

__all__ = ["COMMANDS", "compose", "conf_dir", "main", "run"]

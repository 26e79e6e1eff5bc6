"""The command line: it parses Hydra overrides and runs a command with the resulting settings.

lesionseg train data.root=DIR model=unet loss.gamma=2
python scripts/train.py data.root=DIR model=unet loss.gamma=2
"""

from lesionseg.cli.command import main, run
from lesionseg.cli.compose import compose
from lesionseg.config import COMMANDS, conf_dir

__all__ = ["COMMANDS", "compose", "conf_dir", "main", "run"]

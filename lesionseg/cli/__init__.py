"""The command line: Hydra overrides in, one recipe of `pipeline` called with plain typed arguments.

lesionseg train data.root=DIR model=unet loss.gamma=2
python scripts/train.py data.root=DIR model=unet loss.gamma=2
"""

from lesionseg.cli.command import main, run
from lesionseg.cli.command_table import COMMANDS
from lesionseg.cli.compose import compose, conf_dir

__all__ = ["COMMANDS", "compose", "conf_dir", "main", "run"]

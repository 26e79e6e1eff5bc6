"""`python scripts/train.py`: see `--help`."""

import sys

from lesionseg.cli import run

if __name__ == "__main__":
    sys.exit(run("train", sys.argv[1:]))

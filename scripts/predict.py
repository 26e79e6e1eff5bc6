"""`python scripts/predict.py`: see `--help`."""

import sys

from lesionseg.cli import run

if __name__ == "__main__":
    sys.exit(run("predict", sys.argv[1:]))

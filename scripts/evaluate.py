"""`python scripts/evaluate.py`: see `--help`."""

import sys

from lesionseg.cli import run

if __name__ == "__main__":
    sys.exit(run("evaluate", sys.argv[1:]))

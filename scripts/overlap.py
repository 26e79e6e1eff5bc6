"""`python scripts/overlap.py`: see `--help`."""

import sys

from lesionseg.cli import run

if __name__ == "__main__":
    sys.exit(run("overlap", sys.argv[1:]))

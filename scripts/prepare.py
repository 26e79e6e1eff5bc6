"""`python scripts/prepare.py`: see `--help`."""

import sys

from lesionseg.cli import run

if __name__ == "__main__":
    sys.exit(run("prepare", sys.argv[1:]))

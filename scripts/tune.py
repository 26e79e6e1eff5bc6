"""`python scripts/tune.py`: see `--help`."""

import sys

from lesionseg.cli import run

if __name__ == "__main__":
    sys.exit(run("tune", sys.argv[1:]))

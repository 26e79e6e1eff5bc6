"""`python scripts/follow.py`: see `--help`."""

import sys

from lesionseg.cli import run

if __name__ == "__main__":
    sys.exit(run("follow", sys.argv[1:]))

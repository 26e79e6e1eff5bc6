"""`python scripts/info.py`: see `--help`."""

import sys

from lesionseg.cli import run

if __name__ == "__main__":
    sys.exit(run("info", sys.argv[1:]))

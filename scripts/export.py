"""`python scripts/export.py`: see `--help`."""

import sys

from lesionseg.cli import run

if __name__ == "__main__":
    sys.exit(run("export", sys.argv[1:]))

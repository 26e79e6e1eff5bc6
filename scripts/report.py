"""`python scripts/report.py`: see `--help`."""

import sys

from lesionseg.cli import run

if __name__ == "__main__":
    sys.exit(run("report", sys.argv[1:]))

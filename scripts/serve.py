"""`python scripts/serve.py`: see `--help`."""

import sys

from lesionseg.cli import run

if __name__ == "__main__":
    sys.exit(run("serve", sys.argv[1:]))

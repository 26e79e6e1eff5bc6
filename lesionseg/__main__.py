"""`python -m lesionseg COMMAND …`, the same as `lesionseg COMMAND …`."""

import sys

from lesionseg.cli import main

if __name__ == "__main__":
    sys.exit(main())

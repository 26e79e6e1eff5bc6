"""Draw docs/figures/report.png: the first screen of the demo's report, for the README.

python docs/figures/make_report_picture.py [runs/demo_mri/test/report.html]

Needs Chromium, and the run that `make demo` leaves. The scans are simulated.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

HERE = Path(__file__).resolve().parent
SIZE = "900,1180"
COLOURS = 64


def main(page: Path) -> None:
    """Draw the page's first screen, in few colours."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        sys.exit("There is no Chromium to draw the page with.")
    with tempfile.TemporaryDirectory() as scratch:
        shot = Path(scratch) / "report.png"
        options = ("--headless", "--no-sandbox", "--hide-scrollbars", f"--window-size={SIZE}")
        subprocess.run(
            [browser, *options, f"--screenshot={shot}", page.resolve().as_uri()],
            check=True,
            capture_output=True,
        )
        picture = Image.open(shot).convert("RGB").quantize(COLOURS)
        picture.save(HERE / "report.png", optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo_mri/test/report.html"))

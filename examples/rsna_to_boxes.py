"""Turn the RSNA pneumonia challenge into a dataset that lesionseg reads.

It is written as `boxes.csv` and `manifest.csv`:

    python examples/rsna_to_boxes.py RSNA

The table `stage_2_train_labels.csv` (Shih et al. 2019, doi.org/10.1148/ryai.2019180041) has a row
per box with Target 1, or one row with Target 0 for an image without lung opacity. Images stay where
they are, and those that no row lists are left out.
"""

import sys
from pathlib import Path

from lesionseg.io import read_csv, strip_suffix, write_csv
from lesionseg.io.volumes import is_image_file

SIDES = ("x", "y", "width", "height")
CORNERS = ("x0", "y0", "x1", "y1")


def convert(root: Path) -> None:
    """Write `boxes.csv` and `manifest.csv` into a folder of the challenge."""
    image_of: dict[str, Path] = {}
    for file in sorted(filter(is_image_file, root.rglob("*"))):
        if image_of.setdefault(strip_suffix(file), file) != file:
            raise SystemExit(f"{image_of[strip_suffix(file)]} and {file} have one name. Keep one.")
    tables = sorted(root.glob("stage_[12]_train_labels.csv"))
    if not tables:
        raise SystemExit(f"{root}: the table stage_2_train_labels.csv does not exist.")
    table = tables[-1]
    boxes = []
    for row in read_csv(table):
        case = row["patientId"]
        sides = [row[name] for name in SIDES]
        if row["Target"] != ("1" if any(sides) else "0"):
            raise SystemExit(f"{table}: {case} has Target {row['Target']!r} and the box {sides}.")
        box = dict.fromkeys(CORNERS, "")
        if any(sides):
            x, y, width, height = map(float, sides)
            box = dict(zip(CORNERS, (x, y, x + width, y + height), strict=True))
        boxes.append({"case": case, "label": "lung opacity" if any(sides) else "", **box})
    write_csv(root / "boxes.csv", boxes, ("case", "label", *CORNERS))
    listed = dict.fromkeys(row["case"] for row in boxes if row["case"] in image_of)
    images = [{"case": case, "image": image_of[case].relative_to(root)} for case in listed]
    write_csv(root / "manifest.csv", images, ("case", "image"))


if __name__ == "__main__":
    convert(Path(sys.argv[1]))

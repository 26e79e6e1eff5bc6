"""Turn a VinDr-CXR folder into a dataset that lesionseg reads: `boxes.csv` and `manifest.csv`.

    python examples/vindr_to_boxes.py VINDR

VinDr-CXR (Nguyen et al. 2022, doi.org/10.1038/s41597-022-01498-w) has `train.csv` from Kaggle, or
`annotations/annotations_train.csv` and `annotations_test.csv` from PhysioNet, which give the roles.
`class_id` gives the order of the labels, and `rad_id` is the reader. Images stay where they are,
and those that no row lists are left out.
"""

import sys
from pathlib import Path

from lesionseg.io import read_csv, strip_suffix, write_csv, write_json
from lesionseg.io.volumes import is_image_file

TABLES = {"annotations_train.csv": "train", "annotations_test.csv": "test", "train.csv": "train"}
CORNERS = {"x0": "x_min", "y0": "y_min", "x1": "x_max", "y1": "y_max"}


def find_tables(root: Path) -> list[Path]:
    """Return the tables of a VinDr-CXR folder."""
    places = [root / place / name for place in (".", "annotations") for name in TABLES]
    tables = [path for path in places if path.is_file()]
    if not tables:
        raise SystemExit(f"{root}: none of the tables {', '.join(TABLES)} exists.")
    return tables


def convert(root: Path) -> None:
    """Write `boxes.csv`, `labels.json` and `manifest.csv` into a VinDr-CXR folder."""
    image_of: dict[str, Path] = {}
    for file in sorted(filter(is_image_file, root.rglob("*"))):
        if image_of.setdefault(strip_suffix(file), file) != file:
            raise SystemExit(f"{image_of[strip_suffix(file)]} and {file} have one name. Keep one.")
    tables = find_tables(root)
    boxes, id_of = [], {}
    role_of: dict[str, str] = {}
    for path in tables:
        role = TABLES[path.name] if len(tables) > 1 else ""
        for row in read_csv(path):
            case, label, class_id = row["image_id"], row["class_name"], row.get("class_id", "")
            corners = {ours: row[theirs] for ours, theirs in CORNERS.items()}
            if role_of.setdefault(case, role) != role:
                raise SystemExit(f"{path}: the image {case} is in the tables of two roles.")
            if label.casefold() == "no finding":
                label, corners = "", dict.fromkeys(CORNERS, "")
            elif not label or not any(corners.values()):
                raise SystemExit(f"{path}: {case} has a class without a box, or the reverse.")
            elif id_of.setdefault(label, class_id) != class_id:
                raise SystemExit(f"{path}: the class {label} has two values of class_id.")
            boxes.append({"case": case, "label": label, **corners, "reader": row.get("rad_id", "")})
    if any(id_of.values()) and len(set(id_of.values())) < len(id_of):
        raise SystemExit(f"{root}: two classes have one class_id. Give each class its own.")
    names = sorted(id_of, key=lambda name: (int(id_of[name] or 0), name))
    labels = {str(value): name for value, name in enumerate(names or ["lesion"], start=1)}
    write_json(root / "labels.json", labels)
    write_csv(root / "boxes.csv", boxes, ("case", "label", *CORNERS, "reader"))
    listed = [case for case in role_of if case in image_of]  # lesionseg names absent images
    rows = [
        {"case": case, "image": image_of[case].relative_to(root), "role": role_of[case]}
        for case in listed
    ]
    write_csv(root / "manifest.csv", rows, ("case", "image", "role"))


if __name__ == "__main__":
    convert(Path(sys.argv[1]))

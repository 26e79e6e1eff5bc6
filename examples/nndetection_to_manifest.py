"""Turn an nnDetection task into a dataset that lesionseg reads: `manifest.csv` next to its files.

    python examples/nndetection_to_manifest.py Task000_Mine

nnDetection's masks hold instance ids, and `<case>.json` the class of each (readme, "Adding New
Data Sets"). With one class, the masks are used unchanged (column `instances`). With several
classes, masks of label values are written to `masks/`, and lesions of one label that touch become
one.
"""

import json
import sys
from pathlib import Path

import numpy as np

from lesionseg.core import Volume
from lesionseg.io import read_volume, strip_suffix, write_csv, write_json, write_volume


def convert(root: Path) -> None:
    """Write `manifest.csv`, `labels.json` and perhaps `masks/` into a task's folder."""
    facts = json.loads((root / "dataset.json").read_text())
    labels = {int(k) + 1: name for k, name in facts["labels"].items()}
    home = root / "raw_splitted" if (root / "raw_splitted").is_dir() else root
    rows, reference = [], "instances" if len(labels) == 1 else "reference"
    for part, role in (("Tr", ""), ("Ts", "test")):
        for mask in sorted((home / f"labels{part}").glob("*.nii.gz")):
            case = strip_suffix(mask)
            label_of = json.loads(mask.with_name(f"{case}.json").read_text())["instances"]
            if len(labels) > 1:
                volume = read_volume(mask, as_labels=True)
                values = np.zeros(int(volume.array.max()) + 1, np.uint8)
                for number, kind in label_of.items():
                    values[int(number)] = int(kind) + 1
                mask = root / "masks" / mask.name
                write_volume(mask, Volume(values[volume.array], volume.geometry))
            images = sorted((home / f"images{part}").glob(f"{case}_[0-9][0-9][0-9][0-9].nii.gz"))
            files = {"image" if i == 0 else f"image_{i:04d}": f for i, f in enumerate(images)}
            files[reference] = mask
            paths = {name: file.relative_to(root).as_posix() for name, file in files.items()}
            rows.append({"case": case, **paths, "role": role})
    write_json(root / "labels.json", {str(k): name for k, name in labels.items()})
    write_csv(root / "manifest.csv", rows, tuple(rows[0]))


if __name__ == "__main__":
    convert(Path(sys.argv[1]))

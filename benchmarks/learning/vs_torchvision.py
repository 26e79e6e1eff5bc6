"""Our RetinaNet against torchvision's on radiographs: same images, minutes, device and scoring.

    python benchmarks/learning/vs_torchvision.py --data DIR [DIR …] --minutes 8 \
        --output runs/vs_torchvision

Both train on the same images, ours with everything that belongs to `train.py model=retinanet`
(reading and planning not counted), torchvision's `retinanet_resnet50_fpn` from scratch at 512
pixels in the peers' environment (`make peers`; see `train_torchvision.py`). With `--steps` both
learn for so many steps instead; `--backbone resnet18 --side 256` is a peer for machines without a
GPU. The validation images that neither learnt from are scored by `evaluate`; the recall is that at
1 false positive an image. A set that was done is not done again; `--tools` makes one of them at a
time, on a core each: ours first, whose split of the images the other takes.
"""

import argparse
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import table
from lesionseg.cli import run
from lesionseg.core import Reference
from lesionseg.io.atomic import write_json
from lesionseg.io.cases import read_case
from lesionseg.io.layouts.conventions import read_dataset
from lesionseg.ops.components import lesion_instances, mask_boxes

TOOLS = ("ours", "torchvision")
ROOT = Path(__file__).resolve().parents[2]
PEERS = ROOT / ".peers" / "bin" / "python"


def main() -> None:
    """Make what is missing, then print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="COCO folders")
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=TOOLS)
    parser.add_argument("--minutes", type=float, default=8.0, help="of training each")
    parser.add_argument("--steps", type=int, help="of either, in place of minutes")
    parser.add_argument("--backbone", default="resnet50", help="torchvision's: resnet18 is lighter")
    parser.add_argument("--side", type=int, default=512, help="pixels of torchvision's images")
    parser.add_argument("--overrides", nargs="*", default=[], help="of train.py")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs/vs_torchvision"))
    options = parser.parse_args()
    logging.getLogger("lesionseg").setLevel(logging.ERROR)
    rows, skipped = [], {}
    for data in options.data:
        scores = {who: measured(who, data, options) for who in options.tools}
        what = f"recall_at_1fp_{data.name}"
        for who, found in scores.items():
            print(data.name, who, json.dumps(found))
        if len(scores) < len(TOOLS):
            continue
        ours, peer = (scores[who]["recall_at_1fp"] for who in TOOLS)
        if peer:
            rows.append(table.RecallRow(what, ours, "recall", "torchvision", peer))
        else:
            skipped[what] = f"torchvision's found nothing, ours {ours:.3f}"
    table.print_report(
        "vs_torchvision",
        rows,
        device=table.device_name(),
        versions=table.versions(),
        skipped=skipped,
    )


def measured(who: str, data: Path, options: argparse.Namespace) -> dict[str, Any]:
    """What one of them reached on one set; from an earlier run where there is one."""
    limit = f"{options.steps}steps" if options.steps else f"{options.minutes:g}min"
    peer = f"{options.backbone}_{options.side}"
    folder = options.output / f"{data.name}__s{options.seed}__{limit}__{peer}"
    path = folder / f"{who}.json"
    if not path.is_file():
        {"ours": train_ours, "torchvision": train_peer}[who](data, folder, options)
        scores = json.loads((folder / who / "scores.json").read_text())
        froc = scores["froc"]
        found = {
            "recall_at_1fp": dict(zip(froc["fp_per_case"], froc["recall"], strict=True))[1.0],
            "average_precision": scores["average_precision"],
            "cpm": scores["cpm"],
            "n_cases": scores["n_cases"],
            "n_lesions": scores["n_lesions"],
            "seed": options.seed,
            "limit": limit,
            "overrides": options.overrides if who == "ours" else [],
        }
        path.write_text(json.dumps(found))
    kept: dict[str, Any] = json.loads(path.read_text())
    if who == "ours" and kept.get("overrides", []) != options.overrides:
        sys.exit(
            f"{path} was made with the overrides {kept.get('overrides', [])}: use a new --output"
        )
    return kept


def train_ours(data: Path, folder: Path, options: argparse.Namespace) -> None:
    """Train and judge by the command line."""
    settings = [
        f"data.root={data}",
        f"run_dir={folder / 'ours'}",
        f"data.cache_dir={options.output / 'cache'}",
        "model=retinanet",
        f"seed={options.seed}",
        f"trainer.max_minutes={'null' if options.steps else options.minutes}",
        f"trainer.max_steps={options.steps or 'null'}",
        "trainer.budget=null",
        "trainer.validate_every_minutes=null",  # nothing is chosen on the images that judge
        "trainer.progress=false",
        "report=tables",
        "replicates=200",
        *options.overrides,
    ]
    if run("train", settings):
        sys.exit("our training failed")


def train_peer(data: Path, folder: Path, options: argparse.Namespace) -> None:
    """Train torchvision's on the same split, and judge its boxes."""
    split = folder / "ours" / "splits.json"
    if not split.is_file():
        sys.exit(f"{split} is missing: run --tools ours first, whose split torchvision's takes.")
    roles = json.loads(split.read_text())["roles"]
    listed: dict[str, list[dict[str, Any]]] = {"train": [], "test": []}
    dataset = read_dataset(data)
    for files in dataset.cases:
        part = {"train": "train", "validation": "test"}.get(roles.get(files.case, ""))
        if part is None:
            continue
        reference = read_case(files, dataset).reference
        assert reference is not None
        boxes = boxes_of(reference).tolist()
        listed[part].append({"case": files.case, "image": str(files.images[0]), "boxes": boxes})
    (folder / "list.json").write_text(json.dumps(listed))
    command = [str(PEERS), str(ROOT / "benchmarks" / "peers" / "train_torchvision.py")]
    names = ("minutes", "steps", "seed", "side", "backbone")
    write_json(folder / "job.json", {name: getattr(options, name) for name in names})
    command += [str(folder / name) for name in ("list.json", "job.json", "torchvision_found")]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    chosen = folder / "reference"
    write_part(data, {row["case"] for row in listed["test"]}, chosen)
    judged = [f"reference={chosen}", f"prediction={folder / 'torchvision_found'}"]
    if run("evaluate", [*judged, f"output={folder / 'torchvision'}", "replicates=200"]):
        sys.exit("evaluating torchvision's boxes failed")


def boxes_of(reference: Reference) -> "np.ndarray[Any, np.dtype[np.float32]]":
    """Boxes `[n, 4]` of a reference's lesions."""
    if reference.instances is not None:
        return mask_boxes(reference.instances, len(reference.instance_labels))
    if reference.labels is not None:
        found = lesion_instances(reference.labels)
        return mask_boxes(found.instances, len(found.labels))
    return np.zeros((0, 4), np.float32) if reference.boxes is None else reference.boxes


def write_part(data: Path, cases: set[str], folder: Path) -> None:
    """A COCO folder with some of the cases, its files linked."""
    folder.mkdir(parents=True, exist_ok=True)
    raw = json.loads((data / "annotations.json").read_text())
    images = [image for image in raw["images"] if Path(image["file_name"]).stem in cases]
    kept = {image["id"] for image in images}
    raw["images"] = images
    raw["annotations"] = [a for a in raw["annotations"] if a["image_id"] in kept]
    (folder / "annotations.json").write_text(json.dumps(raw))
    for name in ("images", "masks"):
        link = folder / name
        if (data / name).is_dir() and not link.exists():
            link.symlink_to((data / name).resolve())


if __name__ == "__main__":
    main()

"""nnU-Net's 2-D network on radiographs, with the films, minutes and scores of `films.py`.

    python benchmarks/learning/films_nnunet.py --data DIR … --minutes 20 --seeds 0 1 2 \\
        --output runs/films

It is for sets with masks. nnU-Net trains as in `vs_nnunet.py` with its cut plan (`make peers`). Its
candidates come from our rule for maps of probabilities, and their boxes are compared with boxes.
Training and validation films are those of `films.py`.

A finished cell (set × minutes × seed) is a file in OUTPUT/cells and is not made again. An
interrupted cell continues from its last checkpoint, for the minutes that remain.
"""

import argparse
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.learning import films, vs_nnunet
from lesionseg.core import CaseFiles
from lesionseg.evaluation import MatchedCase
from lesionseg.io.cases import read_case
from lesionseg.io.text import read_json, write_json


def main() -> None:
    """Train and score the missing cells, then print the table."""
    options = arguments()
    films.set_up(options.threads)
    rows = []
    for root in options.data:
        setting = vs_nnunet.prepare(root.resolve(), options)
        rows += [make_cell(setting, seed) for seed in options.seeds]
    films.show(rows, options.table)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="dataset folders")
    parser.add_argument("--minutes", type=float, default=20.0, help="wall-clock minutes per cell")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("runs/films"))
    parser.add_argument("--table", type=Path, help="a CSV file for the rows")
    parser.set_defaults(steps=None, clock="wall", workers=1, accelerator="cpu")  # of vs_nnunet.py
    parser.set_defaults(group=None, overrides=[])
    options = parser.parse_args()
    options.output = options.output.resolve()
    return options


def make_cell(setting: vs_nnunet.Setting, seed: int) -> Mapping[str, Any]:
    """Return the row of a cell: read it if it is finished, otherwise train and score."""
    options = setting.options
    name = f"{setting.name}__nnunet_cut__{options.minutes:g}min__s{seed}"
    path = options.output / "cells" / f"{name}.json"
    if path.is_file():
        row: Mapping[str, Any] = read_json(path)
        return row
    folder = options.output / "runs" / name
    shutil.rmtree(folder / "nnunet", ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    trained = vs_nnunet.run_tool(setting, "nnunet_cut", seed, folder)
    kept = vs_nnunet.Kept(folder, setting.plan)

    def match(files: CaseFiles) -> list[MatchedCase]:
        case = read_case(files, setting.found.dataset)
        return films.match_boxes(case, kept.predict_volume(case.image, files.case))

    scores = films.summarise_boxes([match(files) for files in setting.scored])
    made = {
        "set": setting.name,
        "variant": "nnunet_cut",
        "overrides": "",
        "steps": trained["steps"],
        "seed": seed,
        **films.scores_of_row(scores),
        "spacing": "x".join(f"{mm:g}" for mm in setting.plan.spacing_mm),
        "tile": "x".join(map(str, trained["tile"])),
        "batch": trained["batch"],
        "anchor_stride": None,
        "training_minutes": round(trained["minutes"], 2),
    }
    write_json(path, made)
    (folder / "nnunet.pth").unlink(missing_ok=True)
    shutil.rmtree(folder / "nnunet", ignore_errors=True)
    return made


if __name__ == "__main__":
    main()

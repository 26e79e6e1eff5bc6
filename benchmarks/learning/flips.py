"""Score networks with and without mirrored views (`inference=best`), as CSV rows.

    python benchmarks/learning/flips.py OUTPUT --data DIR [DIR …] --csv rows.csv

OUTPUT is the folder of cells that `vs_nnunet.py` made with lesionseg. Each cell of one of the sets
has a bundle, which predicts the scored cases again with mirrored views. Two rows are written for
each cell: as it is, and with mirrored views. Finished rows are not made again.
"""

import argparse
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from benchmarks.learning import vs_nnunet
from benchmarks.learning.cell_rows import row_of
from benchmarks.peers.cell_lesionseg import write_log_odds
from lesionseg.config import InferenceConfig
from lesionseg.inference.predictor import Predictor
from lesionseg.io.text import read_json, write_json


def main() -> None:
    """Predict and score the cells that have no score with mirrored views yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, help="OUTPUT of vs_nnunet.py")
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="dataset folders")
    parser.add_argument("--group", help="data.group")
    parser.add_argument("--csv", type=Path, required=True, help="file of the rows")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for root in options.data:
        setting = vs_nnunet.prepare_scoring(root, options.output, options.group)
        for path in sorted((options.output / "cells").glob(f"{setting.name}__lesionseg*.json")):
            cell = read_json(path)
            mirrored = mirror_cell(setting, cell, options.output / "runs" / path.stem)
            rows += [{"flips": flips, **row_of(c)} for flips, c in ((0, cell), (1, mirrored))]
    table = pd.DataFrame(rows)
    table.to_csv(options.csv, index=False, lineterminator="\n")
    print(table[["flips", "set", "tool", "steps", "seed", "accepted_dice", "AP", "found_at_1_FP"]])


def mirror_cell(setting: vs_nnunet.Setting, cell: Any, run: Path) -> dict[str, Any]:
    """Return a cell as its bundle scores with mirrored views. `run` is the folder of its run."""
    path = run / "flips.json"
    if not path.is_file():
        folder = run / "flips"
        folder.mkdir(exist_ok=True)
        predictor = Predictor(run / "bundle", settings=InferenceConfig.of(flips=True))
        write_log_odds(predictor, setting.scored, setting.found.dataset, folder)
        write_json(path, {**cell, **vs_nnunet.score_cell(setting, folder)})
    mirrored: dict[str, Any] = read_json(path)
    return mirrored


if __name__ == "__main__":
    main()

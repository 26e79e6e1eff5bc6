"""Score the mean of several networks of one set, as CSV rows.

    python benchmarks/learning/members.py OUTPUT --data DIR --csv rows.csv --cells CELL CELL …

OUTPUT is the folder of `vs_nnunet.py`, CELL the name of a file in OUTPUT/cells without `.json`. The
probabilities of the cells are averaged, as `predict` does with an ensemble, and in a second row
their log-odds. Rows are appended to the CSV.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.learning import vs_nnunet
from benchmarks.learning.cell_rows import row_of
from lesionseg.io.text import read_json


def main() -> None:
    """Average the log-odds files of the cells, score both means, and append two rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, help="OUTPUT of vs_nnunet.py")
    parser.add_argument("--data", type=Path, required=True, help="dataset folder")
    parser.add_argument("--group", help="data.group")
    parser.add_argument("--cells", nargs="+", required=True, help="names of cells")
    parser.add_argument("--csv", type=Path, required=True, help="file of the rows")
    options = parser.parse_args()
    setting = vs_nnunet.prepare_scoring(options.data, options.output, options.group)
    cells = [read_json(options.output / "cells" / f"{name}.json") for name in options.cells]
    rows = []
    for mean in ("probabilities", "log-odds"):
        folder = options.output / "members" / mean
        folder.mkdir(parents=True, exist_ok=True)
        for case in vs_nnunet.identity(setting):
            files = [options.output / "runs" / name / f"{case}.npy" for name in options.cells]
            odds = np.stack([np.load(file).astype(np.float64) for file in files])
            if mean == "probabilities":
                p = vs_nnunet.probabilities(odds).mean(axis=0).clip(1e-38, 1 - 2**-53)
                average = np.log(p) - np.log1p(-p)
            else:
                average = odds.mean(axis=0)
            np.save(folder / f"{case}.npy", average.astype(np.float32))
        scored = row_of({**cells[0], **vs_nnunet.score_cell(setting, folder)})
        steps = " ".join(str(cell["steps"]) for cell in cells)
        seeds = " ".join(str(cell["seed"]) for cell in cells)
        minutes = round(sum(cell["minutes"] for cell in cells), 1)
        together = {"steps": steps, "seed": seeds, "minutes": minutes}
        rows.append({"members": len(cells), "mean of": mean} | scored | together)
    done = pd.read_csv(options.csv) if options.csv.is_file() else pd.DataFrame()
    table = pd.concat([done, pd.DataFrame(rows)])
    table.to_csv(options.csv, index=False, lineterminator="\n")
    print(table.tail(2).to_string(index=False))


if __name__ == "__main__":
    main()

"""Evaluate a mask with the package BraTS-evaluation, as JSON on standard output.

    .brats/bin/python benchmarks/peers/brats.py PREDICTION REFERENCE

The package is under the AGPL, so it has an environment of its own: make brats
"""

import json
import sys

from brats_evaluation import config_path, evaluate_single_exam
from panoptica import Panoptica_Evaluator

KEYS = ("tp", "fp", "fn", "rec", "prec", "sq_dsc")


def main() -> None:
    """Print the numbers of each region."""
    evaluator = Panoptica_Evaluator.load_from_config(str(config_path("mets")))
    found = evaluate_single_exam(sys.argv[1], sys.argv[2], "case", evaluator)
    if "error" in found:
        sys.exit(found["error"])
    regions = {name: row for name, row in found.items() if isinstance(row, dict)}
    print(json.dumps({name: {key: row[key] for key in KEYS} for name, row in regions.items()}))


if __name__ == "__main__":
    main()

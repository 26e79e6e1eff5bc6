"""A dataset of development cases alone, divided: some teach, the others are judged.

    python benchmarks/learning/divide_set.py --data DIR/mri/ms_cs --judge MSCS_19 \
        --output runs/ms_26to19
    python benchmarks/learning/divide_set.py --data DIR/ct/luna_nodules --group 'LUNA_([0-9]+)' \
        --every 3 --output runs/luna_dev

Copies a raw folder of nnU-Net: the judged of its development cases become the test cases, its own
test cases are left out. Judged is a case in whose name `--judge` finds something, or of every
`--every`-th patient (or scan), in the order of their names; `--group` is `data.group`.
"""

import argparse
import re
import shutil
from pathlib import Path

from lesionseg.core import CaseFiles
from lesionseg.io.atomic import read_json, write_json
from lesionseg.io.layouts.conventions import assign_groups, read_dataset


def main() -> None:
    """Divide one dataset."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--judge", default="", help="expression found in a judged case's name")
    parser.add_argument("--every", type=int, default=0, help="every n-th patient is judged")
    parser.add_argument("--group", help="expression that finds the patient, as data.group")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    found = [case for case in read_dataset(options.data).cases if case.role != "test"]
    cases = assign_groups(found, options.group)
    groups = sorted({case.group for case in cases})
    chosen = set(groups[:: options.every]) if options.every else set()
    judged = [
        case
        for case in cases
        if (options.judge and re.search(options.judge, case.case)) or case.group in chosen
    ]
    if not judged or len(judged) == len(cases):
        raise SystemExit(f"{len(judged)} of {len(cases)} cases would be judged: see --help.")
    if unlabelled := [case.case for case in cases if case.reference is None]:
        raise SystemExit(f"No label file (this divides masks alone): {', '.join(unlabelled)}.")
    for case in cases:
        copy(case, options.output, "Ts" if case in judged else "Tr")
    description = read_json(options.data / "dataset.json")
    description |= {"numTraining": len(cases) - len(judged), "numTest": len(judged)}
    write_json(options.output / "dataset.json", description)
    print(f"{len(cases) - len(judged)} cases teach, {len(judged)} are judged: {options.output}")


def copy(case: CaseFiles, folder: Path, part: str) -> None:
    """A case's images and its label into `imagesTr` and `labelsTr`, or `…Ts`."""
    for kind, files in (("images", case.images), ("labels", filter(None, [case.reference]))):
        (folder / f"{kind}{part}").mkdir(parents=True, exist_ok=True)
        for file in files:
            shutil.copyfile(file, folder / f"{kind}{part}" / file.name)


if __name__ == "__main__":
    main()

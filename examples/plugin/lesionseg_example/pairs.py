"""A layout: one folder per case with `scan.nii.gz` and `lesions.nii.gz`."""

from pathlib import Path

from lesionseg.core import CaseFiles, Labels
from lesionseg.io import Layout, Row, Table


def recognises(root: Path) -> bool:
    """Return True if some folder contains a scan."""
    return any(root.glob("*/scan.nii.gz"))


def read(root: Path) -> Table:
    """Return one row per folder; a case without `lesions.nii.gz` has no reference."""
    rows = []
    for scan in sorted(root.glob("*/scan.nii.gz")):
        mask = scan.with_name("lesions.nii.gz")
        files = CaseFiles(scan.parent.name, (scan,), reference=mask if mask.exists() else None)
        rows.append(Row(files))
    return Table(root, rows, Labels.of({1: "lesion"}), channel_names=("scan",))


PAIRS = Layout("pairs", "CASE/scan.nii.gz and CASE/lesions.nii.gz", recognises, read)

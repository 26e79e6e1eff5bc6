"""A layout: one folder per case with `scan.nii.gz` and `lesions.nii.gz`."""

from pathlib import Path

from lesionseg.core import CaseFiles, Dataset, Labels
from lesionseg.io import Convention


def recognises(root: Path) -> bool:
    """Return True if some folder contains a scan."""
    return any(root.glob("*/scan.nii.gz"))


def read(root: Path) -> Dataset:
    """Return one case per folder; a case without `lesions.nii.gz` has no reference."""
    cases = [
        CaseFiles(
            case=scan.parent.name,
            images=(scan,),
            reference=mask if (mask := scan.with_name("lesions.nii.gz")).exists() else None,
        )
        for scan in sorted(root.glob("*/scan.nii.gz"))
    ]
    labels = Labels.of({1: "lesion"})
    return Dataset(root.name, root, "pairs", 3, ("scan",), labels, tuple(cases))


PAIRS = Convention("pairs", "CASE/scan.nii.gz and CASE/lesions.nii.gz", recognises, read)

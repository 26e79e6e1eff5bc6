"""changes.csv of three pairs: new, gone, grown, merged, split and stable lesions."""

import numpy as np
import pytest

from tests.golden.common import check, command, number, table
from tests.golden.small_network import write_nifti

SHAPE = (12, 30, 34)
AFFINE = np.diag([1.0, 1.2, 2.5, 1.0])
PAIRS = {  # case: lesions before and after, as first z, y, x and sides
    "a": ([(1, 2, 2, 3, 5, 5), (7, 20, 20, 2, 4, 4)], [(1, 2, 2, 3, 5, 5), (6, 8, 25, 3, 6, 5)]),
    "b": (
        [(2, 3, 3, 4, 6, 6), (2, 3, 10, 4, 6, 6), (8, 20, 5, 2, 5, 12), (9, 2, 25, 2, 3, 3)],
        [(2, 3, 3, 4, 6, 13), (8, 20, 5, 2, 5, 5), (8, 20, 11, 2, 5, 6), (8, 1, 23, 3, 8, 8)],
    ),
    "c": ([], [(3, 4, 5, 1, 2, 2), (5, 10, 10, 4, 7, 7)]),
}
COLUMNS = (
    *("case", "state", "accepted", "lesion_before_1", "lesion_before_2", "lesion_after_1"),
    *("lesion_after_2", "volume_before_ml", "volume_after_ml", "change_ml", "smallest_change_ml"),
    *("diameter_before_mm", "diameter_after_mm"),
)


def drawn(boxes):
    mask = np.zeros(SHAPE, np.uint8)
    for *corner, d, h, w in boxes:
        mask[tuple(slice(a, a + n) for a, n in zip(corner, (d, h, w), strict=True))] = 1
    return mask


@pytest.mark.parametrize("settings", [{}, {"overlap": 0.5, "confidence": 0.8}])
def test_changes(settings, tmp_path):
    for i, visit in enumerate(("before", "after")):
        (tmp_path / visit).mkdir()
        for case, visits in PAIRS.items():
            write_nifti(tmp_path / visit / f"{case}.nii.gz", drawn(visits[i]), AFFINE)
    folders = {key: tmp_path / key for key in ("before", "after", "output")}
    assert command("follow", **folders, **settings, register="headers") == 0
    rows = table(tmp_path / "output" / "changes.csv")
    found = {f"{i}": {k: number(row[k], "") for k in COLUMNS} for i, row in enumerate(rows)}
    check("changes_strict" if settings else "changes", found)

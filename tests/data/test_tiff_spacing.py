"""The file that states the spacing of a TIFF stack is part of the scan."""

import os

import numpy as np
import pytest
import tifffile

from lesionseg.core import CaseFiles
from lesionseg.io.contents import case_digest, content_files, image_state

OLD = 1_600_000_000


@pytest.mark.parametrize("name", ["scan.json", "scan_0000.json"])
def test_a_corrected_spacing_changes_the_hashes_of_a_scan(tmp_path, name):
    """A cached case or a kept prediction with the old spacing must not be used."""
    stack = tmp_path / "scan_0000.tif"
    tifffile.imwrite(stack, np.zeros((3, 8, 9), np.uint8), photometric="minisblack")
    os.utime(stack, (OLD, OLD))
    files = CaseFiles("scan", (stack,))
    states = [(case_digest(files), image_state([stack]))]
    for spacing in (1, 2):
        path = tmp_path / name
        path.write_text(f'{{"spacing": [{spacing}, 1, 1]}}')
        os.utime(path, (OLD + spacing, OLD + spacing))
        assert content_files(stack) == (stack, path)
        states.append((case_digest(files), image_state([stack])))
    assert len({digest for digest, _ in states}) == 3
    assert len({state for _, state in states}) == 3

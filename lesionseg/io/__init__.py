"""Files: the only package that knows formats, dataset layouts and how files order their axes.

In come paths; out come datasets of case files (`layouts/`), cases and volumes in memory (`cases`,
`volumes`, `dicom/`) and predictions, which are written as well. A folder at a URL is downloaded
before (`remote`). The formats' libraries are imported when one is read.
"""

from lesionseg.io.cases import read_case, read_image, read_mask
from lesionseg.io.files import (
    atomic_path,
    read_csv,
    read_json,
    write_csv,
    write_json,
    write_text,
)
from lesionseg.io.layouts.conventions import Convention, read_dataset
from lesionseg.io.layouts.input_images import find_images
from lesionseg.io.predictions import (
    find_masks,
    find_predictions,
    read_prediction,
    write_prediction,
)
from lesionseg.io.volumes import (
    case_suffix,
    read_geometry,
    read_volume,
    strip_suffix,
    write_volume,
)

__all__ = [
    "Convention",
    "atomic_path",
    "case_suffix",
    "find_images",
    "find_masks",
    "find_predictions",
    "read_case",
    "read_csv",
    "read_dataset",
    "read_geometry",
    "read_image",
    "read_json",
    "read_mask",
    "read_prediction",
    "read_volume",
    "strip_suffix",
    "write_csv",
    "write_json",
    "write_prediction",
    "write_text",
    "write_volume",
]

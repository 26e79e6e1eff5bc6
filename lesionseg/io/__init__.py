"""Reading and writing files: the only package that knows formats, dataset layouts and file axes.

It reads paths into datasets of case files (`layouts/`), cases and volumes in memory (`cases`,
`volumes`, `dicom/`) and predictions, and it writes predictions. A folder at a URL is downloaded
first (`remote`). The library of a format is imported only if such a file is read.
"""

from typing import TYPE_CHECKING

from lesionseg.lazy import lazy_names

if TYPE_CHECKING:
    from lesionseg.io.case_ids import split_channel as split_channel
    from lesionseg.io.cases import read_case as read_case
    from lesionseg.io.cases import read_finite as read_finite
    from lesionseg.io.cases import read_image as read_image
    from lesionseg.io.files import atomic_path as atomic_path
    from lesionseg.io.files import digest_of as digest_of
    from lesionseg.io.files import locked_folder as locked_folder
    from lesionseg.io.files import made_folder as made_folder
    from lesionseg.io.grids import GridPair as GridPair
    from lesionseg.io.itk import itk_image as itk_image
    from lesionseg.io.layouts import Layout as Layout
    from lesionseg.io.layouts import read_dataset as read_dataset
    from lesionseg.io.layouts.manifest import read_scan_list as read_scan_list
    from lesionseg.io.layouts.table import Row as Row
    from lesionseg.io.layouts.table import Table as Table
    from lesionseg.io.limits import MAY_PASS as MAY_PASS
    from lesionseg.io.limits import limit_voxels as limit_voxels
    from lesionseg.io.masks import read_mask as read_mask
    from lesionseg.io.model_address import read_card as read_card
    from lesionseg.io.results.case import PredictionFiles as PredictionFiles
    from lesionseg.io.results.case import write_prediction as write_prediction
    from lesionseg.io.results.index import find_predictions as find_predictions
    from lesionseg.io.scans import UNREADABLE as UNREADABLE
    from lesionseg.io.scans import FoundScans as FoundScans
    from lesionseg.io.scans import Scan as Scan
    from lesionseg.io.scans import describe_scan as describe_scan
    from lesionseg.io.scans import dicom_scan as dicom_scan
    from lesionseg.io.scans import find_scans as find_scans
    from lesionseg.io.scans import kind_of_name as kind_of_name
    from lesionseg.io.text import read_csv as read_csv
    from lesionseg.io.text import read_json as read_json
    from lesionseg.io.text import write_csv as write_csv
    from lesionseg.io.text import write_json as write_json
    from lesionseg.io.text import write_text as write_text
    from lesionseg.io.volumes import format_suffix as format_suffix
    from lesionseg.io.volumes import is_dicom_image as is_dicom_image
    from lesionseg.io.volumes import read_geometry as read_geometry
    from lesionseg.io.volumes import read_volume as read_volume
    from lesionseg.io.volumes import strip_suffix as strip_suffix
    from lesionseg.io.volumes import write_volume as write_volume

_HOMES = {
    "FoundScans": "scans",
    "GridPair": "grids",
    "Layout": "layouts",
    "MAY_PASS": "limits",
    "PredictionFiles": "results.case",
    "Row": "layouts.table",
    "Scan": "scans",
    "Table": "layouts.table",
    "UNREADABLE": "scans",
    "atomic_path": "files",
    "describe_scan": "scans",
    "dicom_scan": "scans",
    "digest_of": "files",
    "find_predictions": "results.index",
    "find_scans": "scans",
    "format_suffix": "volumes",
    "is_dicom_image": "volumes",
    "itk_image": "itk",
    "kind_of_name": "scans",
    "limit_voxels": "limits",
    "locked_folder": "files",
    "made_folder": "files",
    "read_card": "model_address",
    "read_case": "cases",
    "read_csv": "text",
    "read_dataset": "layouts",
    "read_finite": "cases",
    "read_geometry": "volumes",
    "read_image": "cases",
    "read_json": "text",
    "read_mask": "masks",
    "read_scan_list": "layouts.manifest",
    "read_volume": "volumes",
    "split_channel": "case_ids",
    "strip_suffix": "volumes",
    "write_csv": "text",
    "write_json": "text",
    "write_prediction": "results.case",
    "write_text": "text",
    "write_volume": "volumes",
}
__all__ = [*_HOMES]
__getattr__, __dir__ = lazy_names(__name__, _HOMES)

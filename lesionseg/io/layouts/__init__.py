"""Reading dataset folders of every known layout, recognised by their content.

The result is a `Dataset` of case files with labels, groups and roles. Tables are read completely.
Only the header of the first image is read. BIDS also needs the grids of the first session, and
DICOM radiographs need the header of each image. References in tables are drawn when a case is read.
"""

from typing import TYPE_CHECKING

from lesionseg.lazy import lazy_names

if TYPE_CHECKING:
    from lesionseg.io.layouts.manifest import read_scan_list as read_scan_list
    from lesionseg.io.layouts.read import Layout as Layout
    from lesionseg.io.layouts.read import find_layout as find_layout
    from lesionseg.io.layouts.read import find_missing_files as find_missing_files
    from lesionseg.io.layouts.read import list_dataset as list_dataset
    from lesionseg.io.layouts.read import read_dataset as read_dataset
    from lesionseg.io.layouts.read import read_dataset_of as read_dataset_of
    from lesionseg.io.layouts.read import recognise_layout as recognise_layout
    from lesionseg.io.layouts.read import require_usable as require_usable
    from lesionseg.io.layouts.table import ReadingRules as ReadingRules
    from lesionseg.io.layouts.table import Row as Row
    from lesionseg.io.layouts.table import Table as Table

_HOMES = {
    "Layout": "read",
    "ReadingRules": "table",
    "Row": "table",
    "Table": "table",
    "find_layout": "read",
    "find_missing_files": "read",
    "list_dataset": "read",
    "read_dataset": "read",
    "read_dataset_of": "read",
    "read_scan_list": "manifest",
    "recognise_layout": "read",
    "require_usable": "read",
}
__all__ = [*_HOMES]
__getattr__, __dir__ = lazy_names(__name__, _HOMES)

"""A predicted case on disk: may it be written, its files, and the index of all cases of a folder.

`names` are the endings of files, `row` is the line of a case in `predictions.csv` and in its JSON
files, `case` reads and writes the files of one case, `folder` claims and replaces them, and `index`
lists the cases of a folder.
"""

from typing import TYPE_CHECKING

from lesionseg.lazy import lazy_names

if TYPE_CHECKING:
    from lesionseg.io.results.case import PredictionFiles as PredictionFiles
    from lesionseg.io.results.case import write_prediction as write_prediction
    from lesionseg.io.results.folder import PredictionFolder as PredictionFolder
    from lesionseg.io.results.index import PredictionIndex as PredictionIndex
    from lesionseg.io.results.index import find_masks as find_masks
    from lesionseg.io.results.index import find_predictions as find_predictions
    from lesionseg.io.results.index import list_predictions as list_predictions
    from lesionseg.io.results.names import CANDIDATES as CANDIDATES
    from lesionseg.io.results.names import REPORT as REPORT
    from lesionseg.io.results.names import SEGMENTATION as SEGMENTATION
    from lesionseg.io.results.names import SENT as SENT
    from lesionseg.io.results.row import CaseRow as CaseRow

_HOMES = {
    "CANDIDATES": "names",
    "CaseRow": "row",
    "PredictionFiles": "case",
    "PredictionFolder": "folder",
    "PredictionIndex": "index",
    "REPORT": "names",
    "SEGMENTATION": "names",
    "SENT": "names",
    "find_masks": "index",
    "find_predictions": "index",
    "list_predictions": "index",
    "write_prediction": "case",
}
__all__ = [*_HOMES]
__getattr__, __dir__ = lazy_names(__name__, _HOMES)

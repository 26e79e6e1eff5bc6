"""DICOM results and a PACS: `predict` writes SEG and SR, and fetches and stores by DICOMweb.

`outputs` is what `predict` calls, and `change_report` what `follow` calls. `results` writes the
files, `result_objects` makes them with highdicom, and `dicomweb` is the client of a server.
"""

from typing import TYPE_CHECKING

from lesionseg.lazy import lazy_names

if TYPE_CHECKING:
    from lesionseg.extras.pacs.change_report import ChangeReport as ChangeReport
    from lesionseg.extras.pacs.dicomweb import DicomWeb as DicomWeb
    from lesionseg.extras.pacs.outputs import DicomOutputs as DicomOutputs
    from lesionseg.extras.pacs.result_origin import Comparison as Comparison
    from lesionseg.extras.pacs.result_origin import ResultOrigin as ResultOrigin
    from lesionseg.extras.pacs.results import require_highdicom as require_highdicom
    from lesionseg.extras.pacs.results import write_dicom_results as write_dicom_results

_HOMES = {
    "ChangeReport": "change_report",
    "Comparison": "result_origin",
    "DicomOutputs": "outputs",
    "DicomWeb": "dicomweb",
    "ResultOrigin": "result_origin",
    "require_highdicom": "results",
    "write_dicom_results": "results",
}
__all__ = [*_HOMES]
__getattr__, __dir__ = lazy_names(__name__, _HOMES)

"""DICOM images, and references (SEG, RTSTRUCT): their headers, slices and scans."""

from typing import TYPE_CHECKING

from lesionseg.lazy import lazy_names

if TYPE_CHECKING:
    from lesionseg.io.dicom.elements import text as text
    from lesionseg.io.dicom.grouping import DicomScan as DicomScan
    from lesionseg.io.dicom.grouping import describe_headers as describe_headers
    from lesionseg.io.dicom.headers import NO_IMAGE as NO_IMAGE
    from lesionseg.io.dicom.headers import is_radiograph as is_radiograph
    from lesionseg.io.dicom.headers import read_header as read_header
    from lesionseg.io.dicom.series import DicomSlice as DicomSlice
    from lesionseg.io.dicom.series import read_slices as read_slices

_HOMES = {
    "DicomScan": "grouping",
    "DicomSlice": "series",
    "NO_IMAGE": "headers",
    "describe_headers": "grouping",
    "is_radiograph": "headers",
    "read_header": "headers",
    "read_slices": "series",
    "text": "elements",
}
__all__ = [*_HOMES]
__getattr__, __dir__ = lazy_names(__name__, _HOMES)

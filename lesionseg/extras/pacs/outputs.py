"""SEG and SR in `predict`: written or withheld, sent to a PACS, recorded as sent."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from lesionseg.core import Prediction
from lesionseg.errors import ContentError, GeometryError, LesionsegError, ReadError
from lesionseg.extras.pacs.dicomweb import DicomWeb
from lesionseg.extras.pacs.result_origin import ResultOrigin
from lesionseg.extras.pacs.results import require_highdicom, write_dicom_results
from lesionseg.io import Scan, is_dicom_image, write_json
from lesionseg.io.results import REPORT, SEGMENTATION, SENT, CaseRow, PredictionFolder
from lesionseg.pipeline import Outputs

logger = logging.getLogger(__name__)

NO_SEGMENTATION = "No DICOM segmentation: no accepted candidate has voxels."
_RECORD = TypeAdapter(dict[str, list[str]])


def read_sent(record: Path) -> dict[str, list[str]]:
    """Read the record of the results of a case that were stored in a PACS.

    Args:
        record: The file `<case>_sent.json`.

    Returns:
        The SOP Instance UIDs of the stored results by address of the service. It is empty if the
        file is missing or damaged.
    """
    with suppress(OSError, ValidationError):
        return _RECORD.validate_json(record.read_bytes())
    return {}


class DicomOutputs(Outputs):
    """The segmentation and the report of each DICOM scan, and the PACS in which they are stored.

    The file `<case>_sent.json` records where the results of a case were stored, by the address and
    the UIDs. New results of the case remove it, as every file of the case.

    Args:
        written: True, or "all" to include scans with a warning.
        send: The address of a DICOMweb service. None stores nothing.
    """

    def __init__(self, written: bool | Literal["all"], send: str | None) -> None:
        super().__init__(written)
        self._service = None if send is None else DicomWeb("send", send)

    def check(self, scans: Sequence[Scan]) -> None:
        """Raise `ConfigError` if a scan is DICOM, but highdicom is not installed.

        highdicom is the package that writes the results. The check runs before the prediction.
        """
        if any(scan.dicom for scan in scans):
            require_highdicom()

    def add_files(
        self,
        row: CaseRow,
        scan: Scan,
        prediction: Prediction,
        mask_names: Mapping[int, str],
        folder: Path,
    ) -> str:
        """Write the DICOM segmentation and report of a predicted scan.

        Args:
            row: The row of the case in the table of results.
            scan: The scan.
            prediction: The prediction on this scan.
            mask_names: The names of the label values of the mask.
            folder: The folder of the results.

        Returns:
            The reason why an object is missing, for the table of results:

            - The scan has no contrast (status `blank`).
            - The scan has a warning, and the setting is not "all".
            - The scan's headers do not allow the objects. This is also logged as a warning.
            - No accepted candidate has voxels, so there is no segmentation.

            "" if nothing is missing, if the scan is not DICOM, or if the model has no masks, so
            that only the report is written.
        """
        image = scan.files.images[0]
        # a file that was being copied when the folder was listed has no `scan.dicom`
        if not is_dicom_image(image):
            return ""
        if row.status == "blank":
            return "No DICOM results: the scan has no contrast."
        if row.status == "warned" and self.written != "all":
            return self.WITHHELD
        origin = ResultOrigin(row.bundle, row.key)
        try:
            is_segmented = write_dicom_results(
                image, prediction, origin, prediction.labels, folder=folder, mask_labels=mask_names
            )
        except ContentError as error:  # the mask and the candidates are written nevertheless
            message = f"No DICOM results: {scan.shorten_paths(str(error))}"
            logger.warning("%s: %s", scan.case, message)
            return message
        except (ReadError, GeometryError):
            scan.require_unchanged(row.state)
            raise
        if is_segmented or prediction.instances is None:
            return ""
        return NO_SEGMENTATION

    def after_commit(self, case: str, results: PredictionFolder) -> str:
        """Store the DICOM results of a case in the PACS, after all its files are written.

        Nothing is stored without a PACS, if the results were stored before, or if the attempt of
        this run has failed. The next run tries again.

        Returns:
            The reason why the results could not be stored, which is also logged as a warning.
            Otherwise "".
        """
        # `unsent` contains the reason for each case that could not be stored
        if self._service is None or case in self.unsent:
            return self.unsent.get(case, "")
        address = self._service.address
        record = results.path / f"{case}{SENT}"
        sent = read_sent(record)
        files = [results.path / f"{case}{ending}" for ending in (SEGMENTATION, REPORT)]
        files = [file for file in files if file.is_file()]
        if address in sent or not files:
            return ""
        try:
            write_json(record, {**sent, address: self._service.store(files)})
        except LesionsegError as error:
            logger.warning("%s: the DICOM results are not in the PACS. %s", case, error)
            self.unsent[case] = f"Not in the PACS: {error}"
            return self.unsent[case]
        self.sent.append(case)
        return ""

    def finish(self, results: PredictionFolder) -> None:
        """Store the results of all cases that are not stored yet, at the end of a run.

        `results` is the folder of the results. It may have results of an earlier run, whose scans
        no longer exist.
        """
        for case in results.cases():
            self.after_commit(case, results)

"""Link of `predict` to DICOM results of the extra `pacs`: withheld results, missing extra."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from lesionseg.core import Prediction
from lesionseg.extra import find_extra, has_extra
from lesionseg.io.results.folder import PredictionFolder
from lesionseg.io.results.row import CaseRow
from lesionseg.io.scans import Scan
from lesionseg.io.volumes import is_dicom_image

logger = logging.getLogger(__name__)

_EXTRA_MISSING = (
    "No DICOM results: this installation lacks the extra, lesionseg/extras/pacs. Install lesionseg "
    "again to add it, or set dicom_output=false."
)


class Outputs:
    """Further files of a case, such as DICOM results, which an extra writes and sends.

    This class writes and sends nothing. The extra `pacs` has a subclass that does.

    Args:
        written: The value of `dicom_output`: False, True or "all". The key of a case's results
            contains this value.
        reason: The reason why a DICOM scan has no such files, for its row; empty if the settings do
            not ask for such files.

    Attributes:
        sent: The cases whose files were sent.
        unsent: The reasons why files could not be sent, by case.
    """

    # the message of a case whose scan is unlike the training scans
    WITHHELD = "No DICOM results: the scan has a warning. dicom_output=all writes them."

    def __init__(self, written: bool | Literal["all"] = False, reason: str = "") -> None:
        """Begin with no file sent."""
        self.written = written  # the setting `dicom_output`
        self.sent: list[str] = []  # case ids
        self.unsent: dict[str, str] = {}  # the reasons by case id
        self._why_no_dicom = reason  # a sentence for the rows of DICOM scans; "" if not expected

    def check(self, scans: Sequence[Scan]) -> None:
        """Check before the first scan that the further files of these scans can be written.

        This class warns if a DICOM scan will have no DICOM results. A subclass raises
        `ConfigError`.
        """
        if self._why_no_dicom and any(scan.dicom for scan in scans):
            logger.warning("%s", self._why_no_dicom)

    def add_files(
        self,
        row: CaseRow,
        scan: Scan,
        prediction: Prediction,
        mask_names: Mapping[int, str],
        folder: Path,
    ) -> str:
        """Write the further files of a case, and return a sentence for its row, or "".

        This class writes nothing. It returns why a DICOM scan has no DICOM results. In a subclass,
        an error fails the case, and the files become visible together with the other files of the
        case.

        Args:
            row: The row of the case, with status, key and digest of the bundle.
            scan: The scan.
            prediction: The prediction.
            mask_names: The names of the values of the mask.
            folder: The folder of the new files.
        """
        if self._why_no_dicom and is_dicom_image(scan.files.images[0]):
            return self._why_no_dicom
        return ""

    def after_commit(self, case: str, results: PredictionFolder) -> str:
        """Send the files of a case that is new or unchanged. Return why this failed, or "".

        This class sends nothing.
        """
        return ""

    def finish(self, results: PredictionFolder) -> None:
        """Send the files of earlier cases that could not be sent before, at the end of a run.

        This class sends nothing.
        """


def open_outputs(dicom_output: bool | Literal["all"], send: str | None) -> Outputs:
    """Return the object that writes and sends DICOM results, as the settings ask.

    With `dicom_output=true`, the default, and without the extra `pacs`, the object writes nothing
    and gives the reason.

    Args:
        dicom_output: True, False, or "all" for scans with a warning, too.
        send: The address of the PACS to which the results are sent; None to send nothing.

    Raises:
        ConfigError: If the extra is missing, and `dicom_output` is "all" or `send` is given; or if
            `send` is wrong.
    """
    if not dicom_output:
        return Outputs()
    if dicom_output == "all" or send is not None or has_extra("pacs"):
        setting = "dicom_output=all" if send is None else "send"
        result: Outputs = find_extra("pacs", setting).DicomOutputs(dicom_output, send)
        return result
    return Outputs(reason=_EXTRA_MISSING)

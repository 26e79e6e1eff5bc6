"""Store the DICOM results of `predict` in a PACS: each once, and again if it failed."""

import logging

from lesionseg.errors import LesionsegError
from lesionseg.io.dicomweb import DicomWeb
from lesionseg.io.results.folder import PredictionFolder

logger = logging.getLogger(__name__)


class ResultSender:
    """Stores the DICOM results of an output folder at a DICOMweb service.

    The folder records for each case where its results were stored.

    Args:
        service: The service. None stores nothing.
        results: The output folder.

    Attributes:
        sent: The cases whose results were stored.
        unsent: The cases whose results could not be stored, with the reasons.
    """

    def __init__(self, service: DicomWeb | None, results: PredictionFolder) -> None:
        self._service = service
        self._results = results
        self.sent: list[str] = []
        self.unsent: dict[str, str] = {}

    def send(self, case: str) -> None:
        """Store the results of a case, unless they are stored or have just failed.

        A failure is a warning and the reason in `unsent`. The next run tries again.
        """
        if self._service is None or case in self.unsent:
            return
        address = self._service.address
        files = self._results.unsent_files(case, address)
        if not files:
            return
        try:
            self._results.note_sent(case, address, self._service.store(files))
            self.sent.append(case)
        except LesionsegError as error:
            self.unsent[case] = f"Not in the PACS: {error}"
            logger.warning("%s: the DICOM results are not in the PACS. %s", case, error)

    def send_waiting(self) -> None:
        """Store the results that wait, of all cases in the folder. Their scans may be gone."""
        for case in self._results.cases():
            self.send(case)

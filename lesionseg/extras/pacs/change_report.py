"""DICOM report of changes (`<case>_sr.dcm`): its scan, conflicts with other studies, writing."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lesionseg.core import CaseFiles, Prediction
from lesionseg.errors import ConflictError, DatasetError
from lesionseg.extras.pacs.result_origin import Comparison, ResultOrigin
from lesionseg.extras.pacs.results import require_highdicom, write_dicom_results
from lesionseg.io import Scan, describe_scan, digest_of, is_dicom_image
from lesionseg.io.dicom import read_header, text
from lesionseg.io.results import CANDIDATES, REPORT, PredictionFiles


@dataclass(frozen=True)
class ChangeReport:
    """A DICOM report that is about to be written.

    Attributes:
        folder: Its folder.
        scan: The scan of the later visit, to whose patient the report belongs.
        state: The state of the scan's files when the report was planned.
    """

    folder: Path
    scan: Scan
    state: str

    @classmethod
    def check(cls, images: Iterable[Path]) -> None:
        """Raise `ConfigError` if an image is DICOM, but highdicom is not installed.

        highdicom is the package that writes the report. The check runs before a visit is read, so
        that the command ends early.
        """
        if any(map(is_dicom_image, images)):
            require_highdicom()

    @classmethod
    def plan(cls, image: Path, predicted: PredictionFiles, folder: Path) -> "ChangeReport | None":
        """Check that a report can be written for a visit, and remove the report of an earlier run.

        The earlier report is removed before the visits are compared, because they may no longer be
        comparable.

        Args:
            image: The scan of the later visit.
            predicted: The prediction of this visit.
            folder: The folder of the report.

        Returns:
            The report to write, or None if the scan is not a DICOM image. Nothing is removed then.

        Raises:
            DatasetError: If the prediction belongs to another DICOM series than the scan.
            ConflictError: If the folder has predictions of the case, or a report of another study.
            ReadError: If the scan, the candidate file or the earlier report cannot be read.
            ContentError: If the candidate file is not valid, see `PredictionFiles.read_row`.
        """
        case = predicted.case
        scan = describe_scan(CaseFiles(case, (image,)))
        series = scan.dicom
        if series is None:
            return None
        row = predicted.read_row()
        if row is not None and row.series_uid not in ("", series.series_uid):
            raise DatasetError(
                f"the prediction belongs to series {row.series_uid}, but the scan {image.name} is "
                f"series {series.series_uid}. Name the images that were predicted."
            )
        if (folder / f"{case}{CANDIDATES}").is_file():
            raise ConflictError(
                f"output={folder} contains predictions of {case}, whose report would be "
                "replaced. Name another output, or give dicom_output=false."
            )
        path = folder / f"{case}{REPORT}"
        if path.is_file() and text(read_header(path), "StudyInstanceUID") != series.study_uid:
            raise ConflictError(
                f"output={folder} contains a report of another study under this name, {path.name}. "
                "Name another output."
            )
        path.unlink(missing_ok=True)
        return cls(folder, scan, scan.state())

    def write(
        self,
        prediction: Prediction,
        labels: Mapping[int, str],
        since: Mapping[int, tuple[str, float | None]],
        remark: str,
    ) -> None:
        """Write the DICOM report on the changes since the earlier visit.

        The UIDs of the report depend on the comparison, so that an archive keeps reports of
        different comparisons.

        Args:
            prediction: The prediction of the later visit.
            labels: The names of the prediction's labels, by label value.
            since: The comparison with the earlier visit, see `Comparison`.
            remark: A sentence for the comment of the report.

        Raises:
            ResourceError: If the scan has got, lost or changed a file since the report was planned.
            LesionsegError: If the report cannot be written, see `write_dicom_results`.
        """
        comparison = Comparison(since, remark)
        write_dicom_results(
            self.scan.files.images[0],
            prediction,
            ResultOrigin("follow-up", digest_of(repr(comparison))[:16]),
            labels,
            folder=self.folder,
            comparison=comparison,
            check=lambda: self.scan.require_unchanged(self.state),
        )

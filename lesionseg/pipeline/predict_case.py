"""Process a scan for `predict`: read it, run the networks, write its files."""

import logging
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from lesionseg.config import PredictConfig, ServeConfig
from lesionseg.core import CaseFiles, InputCheckResult, Prediction
from lesionseg.errors import (
    ConflictError,
    ContentError,
    DatasetError,
    GeometryError,
    LesionsegError,
    OutputError,
    ReadError,
    ResourceError,
)
from lesionseg.evaluation.measures import counts_of
from lesionseg.host_memory import peak_memory_mb, trim_memory
from lesionseg.inference.decision import Inferred, Slab
from lesionseg.inference.nnunet.scan import NnunetScan
from lesionseg.inference.predictor import Predictor, PreparedScan
from lesionseg.inference.read_ahead import memory_budget, needed_bytes, read_ahead
from lesionseg.io.dicom.results import (
    REPORT,
    SEGMENTATION,
    ResultOrigin,
    write_dicom_results,
)
from lesionseg.io.files import digest_of, explain_missing, printable_text
from lesionseg.io.nnunet_output import write_probabilities
from lesionseg.io.prediction_folder import PROBABILITIES, PredictionFolder
from lesionseg.io.predictions import write_prediction
from lesionseg.io.scans import Scan, ScanSource
from lesionseg.io.volumes import is_dicom_image, read_geometry, result_suffix
from lesionseg.io.zone_files import find_zones
from lesionseg.models.build import NetworkFactory
from lesionseg.ops.components import candidates_of, present_values
from lesionseg.pipeline.predict_selection import explain_too_few_slices, is_archive
from lesionseg.pipeline.predict_tables import (
    CONFLICT,
    CaseRow,
    begun_row,
)
from lesionseg.version import __version__

logger = logging.getLogger(__name__)

WARNED = "No DICOM results: the scan has a warning. dicom_output=all writes them."
NO_SEGMENTATION = "No DICOM segmentation: no accepted candidate has voxels."
EarlierRows = Mapping[str, Sequence[CaseRow]]  # rows of earlier runs, by case
_FAULT = "fault"  # key of a scan that cannot be predicted, for any content of its files


def make_predictor(
    cfg: PredictConfig | ServeConfig, architectures: Mapping[str, NetworkFactory] | None = None
) -> Predictor:
    """Return the predictor for the settings of `predict` or `serve`."""
    return Predictor(
        cfg.bundle,
        settings=cfg.inference,
        device=cfg.device,
        operating_point=cfg.operating_point,
        raster_mm=cfg.raster_mm if isinstance(cfg, PredictConfig) else None,
        architectures=architectures,
        trust=cfg.trust,
    )


def predict_cases(work: "CaseWork", scans: Sequence[Scan]) -> Generator[CaseRow]:
    """Predict scans. Yield the row of each, in order, after its results are written.

    The row of a scan that fails states the reason, and its earlier results stay. Close the
    generator to stop; the results written so far stay.
    """
    read = partial(work.attempt, work.read)
    infer = partial(work.attempt, work.infer)
    write = partial(work.attempt, work.write)
    yield from read_ahead(scans, read, infer, write, fits=work.fits)


class CaseWork:
    """The steps `read`, `infer` and `write` of scans. `attempt` runs one and handles errors.

    Args:
        cfg: the settings.
        predictor: the model.
        output: the folder of the results.
        known: rows of earlier runs; unchanged results are kept.
        digest: the digest of the model's bundles, see `joint_digest`.
    """

    def __init__(
        self,
        cfg: PredictConfig,
        predictor: Predictor,
        output: Path,
        known: EarlierRows,
        digest: str,
    ) -> None:
        self.cfg = cfg
        self.predictor = predictor
        self.results = PredictionFolder(output, cfg.output, cfg.names)
        self.known = known
        self.zones = None if cfg.zones is None else find_zones(Path(cfg.zones))
        self.bundle = digest
        self.budget = memory_budget(cfg.inference)
        # rows of finished scans and of those in progress; a row with a status is final
        self.rows: dict[tuple[str, str], CaseRow] = {}
        self.sizes: dict[tuple[str, str], int] = {}

    def attempt(self, step: Callable[..., Any], scan: Scan, made: Any = None) -> Any:
        """Run one step for the scan. `made` is the result of the previous step; `read` has none.

        Return its result, or the row of the scan if it is final: complete, failed or skipped.
        """
        row = self.rows.setdefault(scan.key, begun_row(scan, self.bundle))
        if row.status:
            return row
        begin = perf_counter()
        try:
            result = step(scan) if made is None else step(scan, made)
        except Exception as error:  # a damaged file may make any library raise anything
            result = self._record_failure(scan, error)
        row = self.rows[scan.key]
        if not row.is_unchanged:
            seconds = round(row.seconds + perf_counter() - begin, 3)
            row = replace(row, seconds=seconds, peak_memory_mb=peak_memory_mb())
            if row.status:
                finished = datetime.now().astimezone().isoformat(timespec="seconds")
                row = replace(row, finished=finished)
            self.rows[scan.key] = row
        return row if isinstance(result, CaseRow) else result

    def _record_failure(self, scan: Scan, error: Exception) -> CaseRow:
        """Set and return the row of a failed scan.

        If the scan failed for the same reason in an earlier run, this is the row of that run.
        """
        text = str(error) or repr(error)
        if isinstance(error, FileNotFoundError) and error.filename:
            text = explain_missing(Path(error.filename))
        elif isinstance(error, OSError) and error.filename and error.strerror:
            text = f"{error.filename}: cannot be read: {error.strerror.lower()}."
        text = printable_text(_shorten_paths(text, scan))
        row = self.rows[scan.key]
        key = row.key if _is_final(error) else ""
        if isinstance(error, ConflictError):
            key = CONFLICT
        row = replace(row, status="failed", message=text, key=key)
        earlier = self._earlier_failure(row)
        if earlier is not None and earlier.message == text:
            row = replace(earlier, is_unchanged=True)
        else:
            logger.debug("%s failed.", row.case, exc_info=error)
        self.rows[scan.key] = row
        return row

    def _earlier_failure(self, row: CaseRow) -> CaseRow | None:
        """Return the row of an earlier run in which the same scan failed for the same reason."""
        for earlier in self.known.get(row.case, ()):
            is_same = (earlier.path, earlier.digest, earlier.key) == (row.path, row.digest, row.key)
            if earlier.status == "failed" and row.key and is_same:
                return earlier
        return None

    def fits(self, scans: Sequence[Scan]) -> bool:
        """Return True if these scans fit into memory together."""
        for scan in scans:
            if scan.key not in self.sizes:
                self.sizes[scan.key] = 0
                if scan.fault or scan.left_out:
                    continue
                with suppress(Exception):  # the step `read` will raise the same error
                    geometry = read_geometry(scan.files.images[0], raster_mm=1.0)
                    self.sizes[scan.key] = needed_bytes(geometry, self.predictor.plan)
        return sum(self.sizes[scan.key] for scan in scans) <= self.budget

    def read(self, scan: Scan) -> PreparedScan | NnunetScan | CaseRow:
        """Return the scan on the plan's grid, or its row if there is nothing to do.

        A scan has nothing to do if it is left out, if its result or failure is already recorded for
        the same files, or if it has too few slices.

        Raises:
            ConflictError: if the output has results of another scan under the same case id.
            DatasetError: if the scan has a fault that was found when the folder was listed.
            ResourceError: if its files change while they are read.
            LesionsegError: if a file is wrong.
        """
        if scan.left_out:
            return self._skip(scan, scan.left_out)
        if scan.fault:
            if not scan.is_unreadable:  # otherwise, the scan is tried again in each run
                self.rows[scan.key] = self._describe_faulty_scan(scan)
            raise DatasetError(scan.fault)
        state = scan.state()
        source = self._source(scan, state)
        row = self.rows[scan.key].with_source(source, state)
        row = replace(row, key=self._key(scan.files, source.digest))
        self.rows[scan.key] = row
        self.results.claim(scan.case, source, overwrite=self.cfg.overwrite)
        earlier = self._earlier_result(scan, row, source) or self._earlier_failure(row)
        if earlier is not None:
            row = _renew(earlier, row)
            self.rows[scan.key] = row
            return row
        reason = explain_too_few_slices(
            scan,
            self.cfg.series,
            self.predictor.plan,
            archive=is_archive(Path(self.cfg.input)),
        )
        if reason:
            return self._skip(scan, reason)
        prepared = self.predictor.prepare(scan.files)
        scan.require_unchanged(state)
        trim_memory()
        return prepared

    def _describe_faulty_scan(self, scan: Scan) -> CaseRow:
        """Return the row of a scan with a fault.

        It states the content, so that the scan is recognised after it was renamed.
        """
        row = replace(self.rows[scan.key], key=_FAULT)
        with suppress(LesionsegError, OSError):  # the fault is reported instead
            if scan.files.images:
                state = scan.state()
                row = row.with_source(self._source(scan, state), state)
        return row

    def _skip(self, scan: Scan, reason: str) -> CaseRow:
        """Set and return the row of a scan that is not predicted."""
        message = f"{reason[:1].upper()}{reason[1:]}."
        row = replace(self.rows[scan.key], status="skipped", message=message)
        for earlier in self.known.get(row.case, ()):
            was = (earlier.path, earlier.status, earlier.message)
            if was == (row.path, row.status, row.message):
                row = replace(earlier, is_unchanged=True)
        self.rows[scan.key] = row
        return row

    def _source(self, scan: Scan, state: str) -> ScanSource:
        """Return digest and UIDs of the scan. Reuse the digest if its files are unchanged."""
        digest = ""
        for row in self.known.get(self.rows[scan.key].case, ()):
            if row.digest and (row.path, row.state) == (scan.path, state):
                digest = row.digest
                break
        return scan.identify(digest)

    def _earlier_result(self, scan: Scan, row: CaseRow, source: ScanSource) -> CaseRow | None:
        """Return the row of existing results of the same content, bundle and settings, or None."""
        plan = self.predictor.plan
        suffix = result_suffix(scan.files.images[0], plan.dims)
        masks = plan.candidate_rule.source != "detection"
        rows = [r for r in self.known.get(row.case, ()) if r.is_done and r.key == row.key]
        if rows and self.results.has_results(scan.case, source, row.key, suffix, masks=masks):
            return rows[0]
        return None

    def infer(self, scan: Scan, prepared: PreparedScan | NnunetScan) -> Inferred:
        """Run the networks. Keep probabilities in a file if they do not fit into memory."""
        is_large = needed_bytes(prepared.file_geometry, self.predictor.plan) > self.budget
        folder = self.results.path if is_large else None
        inferred = self.predictor.infer(prepared, folder=folder)
        trim_memory()  # otherwise glibc would keep the memory of the tiles
        return inferred

    def write(self, scan: Scan, inferred: Inferred) -> CaseRow:
        """Restore the file's grid, find the candidates and write the case's files.

        Raises:
            ResourceError: if the scan's files changed since they were read, because the DICOM
                results and the header of the masks refer to them.
            LesionsegError: if a file cannot be written.
        """
        row = self.rows[scan.key]
        with self.results.write_case(scan.case) as new_files:
            prediction = self._decide(scan, inferred, new_files)
            zone_names, prediction = self._assign_zones(scan, inferred, prediction)
            message = self._write_dicom(scan, row, prediction, new_files)
            image = scan.files.images[0]
            write_prediction(
                new_files,
                prediction,
                suffix=result_suffix(image, self.predictor.plan.dims),
                like=image,
                names=self.cfg.names,
                source=row.source,
                key=row.key,
            )
            scan.require_unchanged(row.state)
        amounts = dict(
            counts_of(prediction.candidates, self.predictor.plan.labels.lesion_names, zone_names)
        )
        volume_ml = amounts.pop("volume_ml")  # it has its own column
        checked = prediction.input
        row = replace(
            row,
            status=_status(checked),
            message=message,
            n_candidates=len(prediction.candidates),
            n_accepted=sum(c.accepted for c in prediction.candidates),
            volume_ml=volume_ml,
            missing=" ".join(checked.missing if checked else ()),
            operating_point=self.predictor.operating_point().name,
            warning=" ".join(prediction.warnings),
            input_score=checked.score if checked else None,
            amounts=amounts,
        )
        self.rows[scan.key] = row
        return row

    def _decide(self, scan: Scan, inferred: Inferred, new_files: Path) -> Prediction:
        """Return the prediction. Write its probabilities if the settings say so.

        `new_files` is the folder of the case's files until they are complete.
        """
        if not self.cfg.save_probabilities:
            return self.predictor.decide(inferred, scan.case)
        shape = (len(self.predictor.plan.labels), *inferred.file_geometry.shape)
        probabilities = np.zeros(shape, dtype=np.float16)

        def keep(label: int, first: int, slab: Slab) -> None:
            probabilities[label, first : first + len(slab)] = slab

        prediction = self.predictor.decide(inferred, scan.case, keep)
        if self.cfg.names == "nnunet":
            write_probabilities(
                new_files,
                scan.case,
                probabilities,
                inferred.file_geometry,
                are_regions=bool(self.predictor.plan.labels.regions),
            )
        else:
            path = new_files / f"{scan.case}{PROBABILITIES}"
            np.savez_compressed(path, probabilities=probabilities)
        return prediction

    def _assign_zones(
        self, scan: Scan, inferred: Inferred, prediction: Prediction
    ) -> tuple[list[str], Prediction]:
        """Return the names of the scan's zones, and the prediction with a zone per candidate.

        Without a mask of zones (`zones=`), return no names and the same prediction.
        """
        if self.zones is None:
            return [], prediction
        # a mask that is a picture states no pixel size and has that of the scan
        pixel_mm = inferred.file_geometry.spacing_mm[0]
        zones = self.zones.read(scan.case, pixel_mm)
        if zones is None:
            return [], prediction
        zone_of = zones.of(candidates_of(prediction))  # one name per candidate
        values = [value for value in present_values(zones.values) if value > 0]
        names = [zones.names.get(value, str(value)) for value in values]
        return names, prediction.with_zones(zone_of)

    def _write_dicom(
        self, scan: Scan, row: CaseRow, prediction: Prediction, new_files: Path
    ) -> str:
        """Write a DICOM scan's segmentation and report. Return why one is missing, or ""."""
        if not self.cfg.dicom_output or not is_dicom(scan):
            return ""
        status = _status(prediction.input)
        if status == "blank":
            return "No DICOM results: the scan has no contrast."
        if status == "warned" and self.cfg.dicom_output != "all":
            return WARNED
        plan = self.predictor.plan
        try:
            is_segmented = write_dicom_results(
                scan.files.images[0],
                prediction,
                ResultOrigin(__version__, self.bundle, row.key),
                plan.labels.lesion_names,
                report=new_files / f"{scan.case}{REPORT}",
                segmentation=new_files / f"{scan.case}{SEGMENTATION}",
                mask_labels=plan.labels.value_names,
            )
        except ContentError as error:  # the mask and the candidates are written nevertheless
            message = f"No DICOM results: {_shorten_paths(str(error), scan)}"
            logger.warning("%s: %s", scan.case, message)
            return message
        except (ReadError, GeometryError):
            scan.require_unchanged(row.state)
            raise
        if is_segmented or prediction.instances is None:
            return ""
        return NO_SEGMENTATION

    def _key(self, files: CaseFiles, digest: str) -> str:
        """Return a hash of the bundle, the settings and a case's content.

        A later run keeps the results of a row with the same key. The limit of memory is not part of
        it, because it does not change results.
        """
        cfg = self.cfg
        zones = None
        zone_mask = ""
        if self.zones is not None:
            zones = dict(self.zones.names)
            if files.case in self.zones.masks:
                zone_mask = digest_of(self.zones.masks[files.case])
        inference = cfg.inference.model_copy(update={"max_memory_gb": None})
        model = (self.bundle, inference, self.predictor.operating_point(), cfg.raster_mm)
        output = (cfg.save_probabilities, cfg.names, cfg.dicom_output, zones, zone_mask)
        text = repr((__version__, model, output, files.missing, files.pixel_mm, digest))
        return digest_of(text)[:16]


def _shorten_paths(text: str, scan: Scan) -> str:
    """Return a message in which the paths of the scan begin with its own folder."""
    for image in scan.files.images:
        text = text.replace(f"{image.parent}/", "")
    return text


def _renew(earlier: CaseRow, row: CaseRow) -> CaseRow:
    """Return the row of an earlier run for the same scan, with the facts of this run's `row`."""
    return replace(
        earlier.as_kept().with_source(row.source, row.state),
        group=row.group,
        visit=row.visit,
        path=row.path,
        is_unchanged=True,
    )


def _status(checked: InputCheckResult | None) -> str:
    """Return the status of a predicted scan from the result of its input check."""
    if checked is None:
        return "done"
    if checked.blank:
        return "blank"
    return "warned" if checked.is_warned else "done"


def _is_final(error: Exception) -> bool:
    """Return True if the same files will fail again, because the fault is in their content."""
    if isinstance(error, ResourceError | OutputError):
        return False
    cause = error.__cause__
    while cause is not None:
        if isinstance(cause, MemoryError) or (isinstance(cause, OSError) and cause.errno):
            return False  # a disk, a network or a permission
        cause = cause.__cause__
    return isinstance(error, ReadError | GeometryError | ContentError | DatasetError)


def is_dicom(scan: Scan) -> bool:
    """Return True if the scan's files are DICOM images."""
    with suppress(OSError):  # a file that cannot be opened fails when it is read
        return bool(scan.files.images) and is_dicom_image(scan.files.images[0])
    return False

"""Process a scan for `predict`: read it, run the networks, write its files."""

import logging
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from lesionseg.config import PredictConfig
from lesionseg.core import CaseFiles, InputCheckResult, Prediction
from lesionseg.core.arrays import Slab
from lesionseg.errors import (
    CASE_ERRORS,
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
from lesionseg.inference.decision import Inferred
from lesionseg.inference.predictor import Predictor, PreparedScan
from lesionseg.inference.read_ahead import memory_budget, needed_bytes, read_ahead
from lesionseg.io.dicom.result_origin import ResultOrigin
from lesionseg.io.dicom.results import write_dicom_results
from lesionseg.io.files import digest_of
from lesionseg.io.nnunet_probabilities import write_probabilities
from lesionseg.io.results.case import write_prediction
from lesionseg.io.results.folder import PredictionFolder
from lesionseg.io.results.index import Digests
from lesionseg.io.results.names import PROBABILITIES
from lesionseg.io.results.row import CaseRow
from lesionseg.io.scans import Scan
from lesionseg.io.text import printable_text
from lesionseg.io.volumes import is_dicom_image, read_geometry
from lesionseg.io.zone_files import ZoneFolder
from lesionseg.models.build import NetworkFactory
from lesionseg.ops.components import candidates_of, present_values
from lesionseg.pipeline.predict_selection import explain_too_few_slices, is_archive
from lesionseg.version import __version__

logger = logging.getLogger(__name__)

WARNED = "No DICOM results: the scan has a warning. dicom_output=all writes them."
NO_SEGMENTATION = "No DICOM segmentation: no accepted candidate has voxels."
_FAULT = "fault"  # key of a scan that cannot be predicted, for any content of its files


def make_predictor(
    cfg: PredictConfig, architectures: Mapping[str, NetworkFactory] | None = None
) -> Predictor:
    """Return the predictor for the settings."""
    return Predictor(
        cfg.bundle,
        settings=cfg.inference,
        device=cfg.device,
        operating_point=cfg.operating_point,
        pixel_mm=cfg.pixel_mm,
        architectures=architectures,
        trust=cfg.trust,
    )


def open_zones(cfg: PredictConfig) -> ZoneFolder | None:
    """Return the masks of zones that the settings name, or None if they name none.

    Raises:
        ConfigError: if `inference.keep_zones` has an unknown name.
        DatasetError: if the folder has no masks, or several tables of names.
    """
    if cfg.zones is None:
        return None
    zones = ZoneFolder.find(Path(cfg.zones))
    zones.check_names(cfg.inference.keep_zones or ())
    return zones


def predict_cases(work: "CaseWork", scans: Sequence[Scan]) -> Generator[CaseRow]:
    """Predict scans. Yield the row of each, in order, after its results are written.

    The row of a scan that fails states the reason, and its earlier results stay. Close the
    generator to stop; the results written so far stay.
    """
    started = [StartedScan(scan, scan.row(work.bundle)) for scan in scans]
    read = partial(work.attempt, work.read)
    infer = partial(work.attempt, work.infer)
    write = partial(work.attempt, work.write)
    for item in read_ahead(started, read, infer, write, fits=work.fits):
        item.scan.release()
        yield item.row


@dataclass
class StartedScan:
    """A scan that is predicted, and its row, which the steps complete.

    Attributes:
        scan: the scan.
        row: its row. A row with a status is final.
        n_bytes: the memory that it needs; None if this is not yet computed.
    """

    scan: Scan
    row: CaseRow
    n_bytes: int | None = None

    @property
    def case(self) -> str:
        """The case id."""
        return self.scan.case

    def update(self, **values: Any) -> None:
        """Change attributes of the row."""
        self.row = replace(self.row, **values)

    def finish(self, status: str, message: str, **values: Any) -> None:
        """Make the row final: the scan failed or is skipped. `values`: further attributes."""
        self.update(status=status, message=message, finished=_now(), **values)

    def repeat(self, earlier: CaseRow) -> None:
        """Replace the row by that of an earlier run, and mark it as unchanged.

        Patient, visit, path and state stay those of this run.
        """
        row = self.row
        self.row = replace(
            earlier.as_kept(),
            group=row.group,
            visit=row.visit,
            path=row.path,
            state=row.state,
            is_unchanged=True,
        )


class CaseWork:
    """The steps `read`, `infer` and `write` of scans. `attempt` runs one and handles errors.

    Args:
        cfg: the settings.
        predictor: the model.
        results: the folder of the results, in which unchanged results are kept.
        digests: the digests of files that earlier runs have read.
        bundle: the digest of the model's bundles, see `joint_digest`.
        zones: the masks of zones; None without the setting.
    """

    def __init__(
        self,
        cfg: PredictConfig,
        predictor: Predictor,
        results: PredictionFolder,
        digests: Digests,
        bundle: str,
        zones: ZoneFolder | None,
    ) -> None:
        self.cfg = cfg
        self.predictor = predictor
        self.results = results
        self.digests = digests
        self.zones = zones
        self.bundle = bundle
        self.budget = memory_budget(cfg.inference)

    def attempt(self, step: Callable[..., Any], item: StartedScan, *made: Any) -> Any:
        """Run one step, unless the row of the scan is final. Return its result.

        `made` is the result of the previous step; `read` has none. An error makes the row final,
        and the result is then the item, as that of the last step is. Seconds and memory are noted
        in the row.
        """
        result: Any = item
        if item.row.status:
            return result
        begin = perf_counter()
        try:
            result = step(item, *made)
        except Exception as error:  # a damaged file may make any library raise anything
            self._fail(item, error)
        if not item.row.is_unchanged:
            seconds = round((item.row.seconds or 0) + perf_counter() - begin, 3)
            item.update(seconds=seconds, peak_memory_mb=peak_memory_mb())
        return result

    def _fail(self, item: StartedScan, error: Exception) -> None:
        """Make the row that of a failed scan. Log the traceback of a new failure.

        If an earlier run has recorded the failure with the same message (`_earlier_failure`), the
        row is that of the earlier run.
        """
        text = str(error) or repr(error)
        key = item.row.key if _is_final(error) else ""
        if isinstance(error, ConflictError):
            key = CaseRow.CONFLICT
        item.finish("failed", printable_text(_shorten_paths(text, item.scan)), key=key)
        earlier = self._earlier_failure(item.row)
        if earlier is not None and earlier.message == item.row.message:
            item.repeat(earlier)
        else:
            logger.debug("%s failed.", item.row.case, exc_info=error)

    def _earlier_failure(self, row: CaseRow) -> CaseRow | None:
        """Return the row of an earlier run in which this scan failed, otherwise None.

        Its path, content and key must be those of `row`. A failure that may pass, such as one of
        the network, has no key and is not returned.
        """
        for earlier in self.results.failures(row.case):
            is_same = (earlier.path, earlier.digest, earlier.key) == (row.path, row.digest, row.key)
            if row.key and is_same:
                return earlier
        return None

    def fits(self, items: Sequence[StartedScan]) -> bool:
        """Return True if these scans fit into memory together, or at most one is unfinished.

        A scan that has not been fetched counts as the largest of the other ones, one whose header
        cannot be read as nothing.
        """
        unfinished = [item for item in items if not item.row.status]
        if len(unfinished) < 2:  # the headers of an archive of finished scans are not read
            return True
        for item in unfinished:
            if item.n_bytes is None and item.scan.is_present:
                item.n_bytes = 0
                if item.scan.fault or item.scan.left_out:
                    continue
                with suppress(Exception):  # the step `read` will raise the same error
                    geometry = read_geometry(item.scan.files.images[0], pixel_mm=1.0)
                    item.n_bytes = needed_bytes(geometry, self.predictor.plan)
        known = [item.n_bytes for item in unfinished if item.n_bytes is not None]
        n_unknown = len(unfinished) - len(known)
        return sum(known) + n_unknown * max(known, default=0) <= self.budget

    def read(self, item: StartedScan) -> PreparedScan | None:
        """Return the scan on the plan's grid, or None if there is nothing to do.

        A scan has nothing to do if it is left out, if its result or failure is already recorded for
        the same files, or if it has too few slices. Its row is then final. Otherwise, content and
        key are written into the row, and files of a killed run under this case id are recovered.

        Raises:
            ConflictError: if the output has results of another scan under the same case id that
                `cfg.overwrite` does not allow to replace.
            DatasetError: if the scan has a fault that was found when the folder was listed, or no
                zones although they are needed, or if its id cannot be a file name.
            ResourceError: if its files change while they are read.
            LesionsegError: if a file is wrong.
        """
        scan = item.scan
        if scan.left_out:
            _skip(item, scan.left_out)
            return None
        if scan.fault:
            if not scan.is_unreadable:  # otherwise, the scan is tried again in each run
                item.update(key=_FAULT)
                # with its content, the scan is recognised after it was renamed
                with suppress(LesionsegError, OSError):  # the fault is reported instead
                    if scan.files.images:
                        self._record_content(item)
            raise DatasetError(scan.fault)
        self._record_content(item)
        item.update(key=self._key(scan.files, item.row.digest))
        self._require_zones(scan.case)
        plan = self.predictor.plan
        has_masks = plan.candidate_rule.source != "detection"
        overwrite = self.cfg.overwrite
        earlier = self.results.claim(scan.case, item.row, overwrite=overwrite, needs_mask=has_masks)
        earlier = earlier or self._earlier_failure(item.row)
        if earlier is not None:
            item.repeat(earlier)
            return None
        is_in_archive = is_archive(Path(self.cfg.input))
        reason = explain_too_few_slices(scan, self.cfg.series, plan, archive=is_in_archive)
        if reason:
            _skip(item, reason)
            return None
        scan.fetch()
        prepared = self.predictor.prepare(scan.files)
        item.scan.require_unchanged(item.row.state)
        trim_memory()
        return prepared

    def _require_zones(self, case: str) -> None:
        """Raise `DatasetError` if the settings keep zones, but the case has no mask of zones."""
        if self.cfg.inference.keep_zones is None or self.zones is None:
            return
        if case not in self.zones.masks:
            raise DatasetError(
                f"{self.cfg.zones} has no mask of {case}, which inference.keep_zones needs. Add "
                "it, or leave the setting out."
            )

    def _record_content(self, item: StartedScan) -> None:
        """Write the digest and the state of the scan's files into its row.

        If an earlier run has read the files in this state, they are not read again.
        """
        scan = item.scan
        state = scan.state()
        digest = self.digests.get((scan.path, state)) or scan.digest()
        item.update(digest=digest, state=state)

    def infer(self, item: StartedScan, prepared: PreparedScan) -> Inferred:
        """Run the networks. Keep probabilities in a file if they do not fit into memory."""
        is_large = needed_bytes(prepared.file_geometry, self.predictor.plan) > self.budget
        folder = self.results.path if is_large else None
        inferred = self.predictor.infer(prepared, folder=folder)
        trim_memory()  # otherwise glibc would keep the memory of the tiles
        return inferred

    def write(self, item: StartedScan, inferred: Inferred) -> StartedScan:
        """Restore the file's grid, find the candidates, write the case's files, complete the row.

        Raises:
            ResourceError: if the scan's files changed since they were read, because the DICOM
                results and the header of the masks refer to them.
            LesionsegError: if a file cannot be written.
        """
        with self.results.write_case(item.case) as new_files:
            prediction = self._find_candidates(item.case, inferred, new_files)
            zone_names, prediction = self._assign_zones(item.case, inferred, prediction)
            message = self._write_dicom(item, prediction, new_files)
            image = item.scan.files.images[0]
            row = replace(item.row, message=message, **self._describe(prediction, zone_names))
            write_prediction(
                new_files,
                prediction,
                like=image,
                names=self.cfg.names,
                row=row,
            )
            item.scan.require_unchanged(item.row.state)
        item.row = replace(row, finished=self.results.finish_time(item.case))
        return item

    def _describe(self, prediction: Prediction, zone_names: Sequence[str]) -> dict[str, Any]:
        """Return the attributes of a row that describe a prediction."""
        lesion_names = self.predictor.plan.labels.lesion_names
        amounts = dict(counts_of(prediction.candidates, lesion_names, zone_names))
        checked = prediction.input
        return {
            "status": _status(checked),
            "n_candidates": len(prediction.candidates),
            "n_accepted": sum(c.accepted for c in prediction.candidates),
            "volume_ml": amounts.pop("volume_ml"),  # it has its own column
            "missing": " ".join(checked.missing if checked else ()),
            "operating_point": self.predictor.operating_point().name,
            "warning": " ".join(prediction.warnings),
            "input_score": checked.score if checked else None,
            "disagreement": prediction.disagreement,
            "amounts": amounts,
        }

    def _find_candidates(self, case: str, inferred: Inferred, new_files: Path) -> Prediction:
        """Return the prediction. Write its probabilities if the settings say so.

        `new_files` is the folder of the case's files until they are complete.
        """
        if not self.cfg.save_probabilities:
            return self.predictor.decide(inferred, case)
        labels = self.predictor.plan.labels
        shape = (len(labels), *inferred.file_geometry.shape)
        probabilities = np.zeros(shape, dtype=np.float16)

        def keep(label: int, first: int, slab: Slab) -> None:
            probabilities[label, first : first + len(slab)] = slab

        prediction = self.predictor.decide(inferred, case, keep)
        if self.cfg.names == "nnunet":
            grid = inferred.file_geometry
            is_region = bool(labels.regions)
            write_probabilities(new_files, case, probabilities, grid, are_regions=is_region)
        else:
            file = new_files / f"{case}{PROBABILITIES}"
            np.savez_compressed(file, probabilities=probabilities)
        return prediction

    def _assign_zones(
        self, case: str, inferred: Inferred, prediction: Prediction
    ) -> tuple[list[str], Prediction]:
        """Return the names of the scan's zones, and the prediction with a zone per candidate.

        Candidates outside the zones to keep are rejected. Without a mask of zones, return no names
        and the same prediction.
        """
        if self.zones is None:
            return [], prediction
        # a mask that is a picture states no pixel size and has that of the scan
        pixel_mm = inferred.file_geometry.spacing_mm[0]
        zones = self.zones.read(case, pixel_mm)
        if zones is None:
            return [], prediction
        zone_of = zones.of(candidates_of(prediction))  # one name per candidate
        values = [value for value in present_values(zones.values) if value > 0]
        names = [zones.names.get(value, str(value)) for value in values]
        prediction = prediction.with_zones(zone_of)
        kept = self.cfg.inference.keep_zones
        if kept is not None:
            prediction = prediction.reject_outside_zones(kept)
        return names, prediction

    def _write_dicom(self, item: StartedScan, prediction: Prediction, new_files: Path) -> str:
        """Write a DICOM scan's segmentation and report. Return why one is missing, or "".

        Return "" also if none are wanted, because the settings ask for none or the scan has another
        format, and if only the report is written, because the model has no masks to segment. A scan
        without contrast gets none. A scan with a warning gets them only if the settings ask for
        `all`. Headers that do not allow them are the reason, and are logged as a warning.
        """
        scan = item.scan
        image = scan.files.images[0]
        # a file that was being copied when the folder was listed has no `scan.dicom`
        if not self.cfg.dicom_output or not is_dicom_image(image):
            return ""
        status = _status(prediction.input)
        if status == "blank":
            return "No DICOM results: the scan has no contrast."
        if status == "warned" and self.cfg.dicom_output != "all":
            return WARNED
        plan = self.predictor.plan
        try:
            is_segmented = write_dicom_results(
                image,
                prediction,
                ResultOrigin(self.bundle, item.row.key),
                plan.labels.lesion_names,
                folder=new_files,
                mask_labels=plan.labels.value_names,
            )
        except ContentError as error:  # the mask and the candidates are written nevertheless
            message = f"No DICOM results: {_shorten_paths(str(error), scan)}"
            logger.warning("%s: %s", scan.case, message)
            return message
        except (ReadError, GeometryError):
            item.scan.require_unchanged(item.row.state)
            raise
        if is_segmented or prediction.instances is None:
            return ""
        return NO_SEGMENTATION

    def _key(self, files: CaseFiles, digest: str) -> str:
        """Return a hash of the version, the bundle, the settings and a case's content (`digest`).

        A later run keeps the results of a row with the same key. Settings that do not change
        results, such as the limit of memory, are not part of it.
        """
        cfg = self.cfg
        zones = None
        zone_mask = ""
        if self.zones is not None:
            zones = dict(self.zones.names)
            if files.case in self.zones.masks:
                zone_mask = digest_of(self.zones.masks[files.case])
        inference = cfg.inference.model_copy(update={"max_memory_gb": None})
        model = (self.bundle, inference, self.predictor.operating_point(), cfg.pixel_mm)
        output = (cfg.save_probabilities, cfg.names, cfg.dicom_output, zones, zone_mask)
        text = repr((__version__, model, output, files.missing, files.pixel_mm, digest))
        return digest_of(text)[:16]


def _shorten_paths(text: str, scan: Scan) -> str:
    """Return a message in which the files of the scan have names instead of paths."""
    for image in scan.files.images:
        text = text.replace(f"{image.parent}/", "")
    return text


def _skip(item: StartedScan, reason: str) -> None:
    """Make the row that of a skipped scan. `reason`: a sentence without capital and full stop."""
    item.finish("skipped", f"{reason[:1].upper()}{reason[1:]}.")


def _now() -> str:
    """Return the present time as text, with the time zone."""
    return datetime.now().astimezone().isoformat(timespec="seconds")


def _status(checked: InputCheckResult | None) -> str:
    """Return the status of a predicted scan from its input check, if it has one.

    It is `blank`, `warned`, or otherwise `done`.
    """
    if checked is None:
        return "done"
    if checked.blank:
        return "blank"
    return "warned" if checked.is_warned else "done"


def _is_final(error: Exception) -> bool:
    """Return True if the same files will fail again, because the fault is in their content."""
    if isinstance(error, ResourceError | OutputError):
        return False
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError) or (isinstance(cause, OSError) and cause.errno):
            return False  # a disk, a network or a permission
        cause = cause.__cause__
    return isinstance(error, CASE_ERRORS)

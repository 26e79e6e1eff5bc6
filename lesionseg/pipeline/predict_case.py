"""One scan in `predict`: steps, status, unchanged results, scans that fit into memory together.

A scan has the status done, warned, blank or failed.
"""

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
    ConfigError,
    ConflictError,
    DatasetError,
    LesionsegError,
    OutputError,
    ResourceError,
)
from lesionseg.evaluation.measures import counts_of
from lesionseg.host_memory import peak_memory_mb, trim_memory
from lesionseg.inference.bundle import joint_digest
from lesionseg.inference.decision import Inferred
from lesionseg.inference.predictor import Predictor, PreparedScan
from lesionseg.inference.read_ahead import memory_budget, needed_bytes, read_ahead
from lesionseg.io.dicom.headers import read_acquisition
from lesionseg.io.files import digest_of
from lesionseg.io.nnunet_probabilities import write_probabilities
from lesionseg.io.results.bids_files import write_sidecar
from lesionseg.io.results.case import write_prediction
from lesionseg.io.results.folder import PredictionFolder
from lesionseg.io.results.index import Digests
from lesionseg.io.results.names import PREVIEW, PROBABILITIES
from lesionseg.io.results.row import CaseRow
from lesionseg.io.scans import Scan
from lesionseg.io.text import printable_text
from lesionseg.io.volumes import read_geometry
from lesionseg.io.zone_files import ZoneFolder
from lesionseg.models.build import NetworkFactory
from lesionseg.ops.components import candidates_of, present_values
from lesionseg.pipeline.predict_outputs import open_outputs
from lesionseg.pipeline.predict_selection import explain_too_few_slices, is_archive
from lesionseg.version import __version__

logger = logging.getLogger(__name__)

_PROBLEM = "fault"  # key of a scan that cannot be predicted, for any content of its files


def make_predictor(
    cfg: PredictConfig, architectures: Mapping[str, NetworkFactory] | None = None
) -> Predictor:
    """Load the networks of the bundle, and return the predictor with the given settings.

    Raises:
        ConfigError: If the settings ask for probabilities, but the model predicts only boxes.
    """
    predictor = Predictor(
        cfg.bundle,
        settings=cfg.inference,
        device=cfg.device,
        operating_point=cfg.operating_point,
        pixel_mm=cfg.pixel_mm,
        architectures=architectures,
        trust=cfg.trust,
    )
    if cfg.save_probabilities and not predictor.plan.has_voxels:
        raise ConfigError(
            "save_probabilities=true: this model predicts boxes, so there are no probabilities. "
            "Leave the setting out."
        )
    return predictor


def open_zones(folder: str | None, kept: Sequence[str] | None) -> ZoneFolder | None:
    """Find the masks of anatomical zones in a folder. Return None if the setting names no folder.

    Args:
        folder: The setting `zones`.
        kept: The names of the zones whose candidates are kept; None for all zones.

    Raises:
        ConfigError: If `kept` has an unknown name.
        DatasetError: If the folder has no masks, or several tables of names.
    """
    if folder is None:
        return None
    zones = ZoneFolder.find(Path(folder))
    zones.check_names(kept or ())
    return zones


@dataclass
class StartedScan:
    """A scan that is predicted, and its row of the table, to which each step adds cells.

    Attributes:
        scan: The scan.
        row: The row of the scan. A row with a status is final, and no further step is run.
        n_bytes: The memory that the scan needs; None if this is not yet computed.
    """

    scan: Scan
    row: CaseRow
    n_bytes: int | None = None

    @property
    def case(self) -> str:
        """The case id."""
        return self.scan.case

    def update(self, **values: Any) -> None:
        """Set attributes of the row, such as `digest="…"`."""
        self.row = replace(self.row, **values)

    def finish(self, status: str, message: str, **values: Any) -> None:
        """Make the row final, for a scan that failed or is skipped. Later steps ignore the scan.

        Args:
            status: `failed` or `skipped`.
            message: The reason, a sentence.
            values: Further attributes of the row.
        """
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        self.update(status=status, message=message, finished=now, **values)

    def repeat(self, earlier: CaseRow) -> None:
        """Replace the row by the row of an earlier run, and mark it as unchanged.

        Patient, visit, path and file state are still those of this run, because the file may have
        been renamed.
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
    """The model of a run, with which it predicts scans in the steps `read`, `infer` and `write`.

    Args:
        cfg: The settings.
        architectures: The caller's own networks; see `Predictor`.

    Attributes:
        outputs: Writes the further files of a case, such as DICOM results.
        bundle: The digest of the model's bundles, see `joint_digest`.
        predictor: The model.
        zones: The masks of anatomical zones; None without the setting.
        results: The output folder, in which unchanged results are kept.
        digests: The digests of files that earlier runs have read.
    """

    results: PredictionFolder  # given to `predict`, like the digests
    digests: Digests

    def __init__(
        self, cfg: PredictConfig, architectures: Mapping[str, NetworkFactory] | None = None
    ) -> None:
        """Load the model and check the settings before the first scan."""
        self.cfg = cfg
        self.outputs = open_outputs(cfg.dicom_output, cfg.send)  # a wrong address ends the run
        self.bundle = joint_digest(cfg.bundle)  # of the networks that are loaded now
        self.predictor = make_predictor(cfg, architectures)
        self.zones = open_zones(cfg.zones, cfg.inference.keep_zones)
        self.budget = memory_budget(cfg.inference)  # in bytes

    def predict(
        self, scans: Sequence[Scan], results: PredictionFolder, digests: Digests
    ) -> Generator[CaseRow]:
        """Predict scans one after another, and yield the row of each after its results are written.

        Reading, inference and writing of different scans run at the same time. The order of the
        rows is that of the scans. The row of a scan that fails contains the reason, and the scan's
        earlier results are not deleted. If the caller closes the generator, the run stops, and the
        results written so far stay.

        Args:
            scans: The scans.
            results: The output folder.
            digests: The digests of files that earlier runs have read, so that the files are not
                read again.
        """
        self.results = results
        self.digests = digests
        started = [StartedScan(scan, scan.row(self.bundle)) for scan in scans]
        read = partial(self.attempt, self.read)
        infer = partial(self.attempt, self.infer)
        write = partial(self.attempt, self.write)
        # each step catches its own error, so that the other scans are predicted
        for item in read_ahead(started, read, infer, write, fits=self.fits):
            item.scan.release()  # removes the files that were fetched from a PACS
            yield item.row

    def attempt(self, step: Callable[..., Any], item: StartedScan, *made: Any) -> Any:
        """Run one step for a scan, catch its error, and return the result of the step.

        If the row is already final, the step is not run. An error makes the row final (failed). In
        both cases the scan itself is returned in place of a result. The duration and the peak
        memory are added to the row, unless the row is that of an earlier run.

        Args:
            step: `read`, `infer` or `write`.
            item: The scan.
            made: The result of the previous step; nothing for `read`.
        """
        result: Any = item
        if item.row.status:
            return result
        begin = perf_counter()
        try:
            result = step(item, *made)
        except Exception as error:  # a damaged file may make any library raise anything
            self._record_failure(item, error)
        if not item.row.is_unchanged:
            seconds = round((item.row.seconds or 0) + perf_counter() - begin, 3)
            item.update(seconds=seconds, peak_memory_mb=peak_memory_mb())
        return result

    def _record_failure(self, item: StartedScan, error: Exception) -> None:
        """Make the row of a scan final with the status `failed` and the error as its message.

        If an earlier run has failed with the same message on the same content, the row of that run
        is repeated. Otherwise, the traceback is logged.
        """
        text = str(error) or repr(error)  # some errors of libraries have no text
        # without a key, a later run tries the scan again
        key = item.row.key if _is_final(error) else ""
        if isinstance(error, ConflictError):
            key = CaseRow.CONFLICT
        item.finish("failed", printable_text(item.scan.shorten_paths(text)), key=key)
        earlier = self._earlier_failure(item.row)
        if earlier is not None and earlier.message == item.row.message:
            item.repeat(earlier)
        else:
            logger.debug("%s failed.", item.row.case, exc_info=error)

    def _earlier_failure(self, row: CaseRow) -> CaseRow | None:
        """Return the row of an earlier run in which this scan failed for a lasting reason, or None.

        Path, content and key of the failed scan must be those of `row`. A failure that may pass,
        such as a network error, has no key and is never returned, so that the scan is tried again.
        """
        for earlier in self.results.failures(row.case):
            is_same = (earlier.path, earlier.digest, earlier.key) == (row.path, row.digest, row.key)
            if row.key and is_same:
                return earlier
        return None

    def fits(self, items: Sequence[StartedScan]) -> bool:
        """Return True if these scans fit into memory together, or if at most one is unfinished.

        `read_ahead` asks this before it reads a further scan. A scan from a PACS that is not
        fetched yet counts as much as the largest known scan. A scan whose header cannot be read
        counts as zero.
        """
        unfinished = [item for item in items if not item.row.status]
        if len(unfinished) < 2:  # the headers of an archive of finished scans are not read
            return True
        for item in unfinished:
            if item.n_bytes is None and item.scan.is_present:
                item.n_bytes = 0  # it stays 0 if the header cannot be read
                if item.scan.problem or item.scan.left_out:
                    continue
                with suppress(Exception):  # the step `read` will raise the same error
                    # 1 mm if the file states no pixel size; an estimate is enough
                    geometry = read_geometry(item.scan.files.images[0], pixel_mm=1.0)
                    item.n_bytes = needed_bytes(geometry, self.predictor.plan)
        # scans that are not fetched yet count as much as the largest known scan
        known_bytes = [item.n_bytes for item in unfinished if item.n_bytes is not None]
        n_unknown = len(unfinished) - len(known_bytes)
        return sum(known_bytes) + n_unknown * max(known_bytes, default=0) <= self.budget

    def read(self, item: StartedScan) -> PreparedScan | None:
        """Read a scan and resample it to the plan's grid. Return None if it needs no prediction.

        A scan needs no prediction if

        - it is left out by the settings,
        - its result or failure is already recorded for the same content, model and settings,
        - or it has too few slices.

        The row is then final. Otherwise, content digest and key are written into the row. Files
        that a killed run left under this case id are recovered.

        Raises:
            ConflictError: If the output has results of another scan under the same case id that
                `cfg.overwrite` does not allow to replace.
            DatasetError: If the scan has a fault that was found when the folder was listed, or no
                zones although they are needed, or if its id cannot be a file name.
            ResourceError: If its files change while they are read.
            LesionsegError: If a file is wrong.
        """
        scan = item.scan
        if scan.left_out:
            _skip(item, scan.left_out)
            return None
        if scan.problem:
            if not scan.is_unreadable:  # otherwise, the scan is tried again in each run
                item.update(key=_PROBLEM)
                # with its content, the scan is recognised after it was renamed
                with suppress(LesionsegError, OSError):  # the fault is reported instead
                    if scan.files.images:
                        self._record_content(item)
            raise DatasetError(scan.problem)
        # reuse the recorded result or failure of the same content
        self._record_content(item)
        item.update(key=self._result_key(scan.files, item.row.digest))
        self._require_zones(scan.case)
        plan = self.predictor.plan
        earlier = self.results.claim(
            scan.case,
            item.row,
            overwrite=self.cfg.overwrite,
            # a detector finds boxes and writes no mask
            needs_mask=plan.candidate_rule.source != "detection",
            needs_preview=self.cfg.preview,
        ) or self._earlier_failure(item.row)
        if earlier is not None:
            item.repeat(earlier)
            return None
        is_in_archive = is_archive(Path(self.cfg.input))
        reason = explain_too_few_slices(scan, self.cfg.series, plan, archive=is_in_archive)
        if reason:
            _skip(item, reason)
            return None
        # read the scan
        scan.fetch()
        if scan.dicom is not None:
            item.update(**read_acquisition(scan.dicom.files[0]))
        prepared = self.predictor.prepare(scan.files)
        item.scan.require_unchanged(item.row.state)
        trim_memory()  # gives the memory of the file's voxels back to the system
        return prepared

    def _require_zones(self, case: str) -> None:
        """Raise `DatasetError` if a case has no mask of zones, although the settings need one.

        The settings need the mask if only candidates in some zones are kept.
        """
        if self.cfg.inference.keep_zones is None or self.zones is None:
            return
        if case not in self.zones.masks:
            raise DatasetError(
                f"{self.cfg.zones} has no mask of {case}, which inference.keep_zones needs. Add "
                "it, or leave the setting out."
            )

    def _record_content(self, item: StartedScan) -> None:
        """Write the digest and the state of the scan's files into its row.

        The state is a text that changes if a file changes. If an earlier run has digested the files
        in this state, they are not read again.
        """
        scan = item.scan
        state = scan.state()
        item.update(digest=self.digests.get((scan.path, state)) or scan.digest(), state=state)

    def infer(self, item: StartedScan, prepared: PreparedScan) -> Inferred:
        """Run the networks on a prepared scan.

        If the probabilities do not fit into memory, they are stored in a temporary file in the
        output folder.
        """
        is_large = needed_bytes(prepared.file_geometry, self.predictor.plan) > self.budget
        inferred = self.predictor.infer(prepared, folder=self.results.path if is_large else None)
        trim_memory()  # otherwise glibc would keep the memory of the tiles
        return inferred

    def write(self, item: StartedScan, inferred: Inferred) -> StartedScan:
        """Resample a prediction to the file's grid, find the candidates, and write all files.

        The files become visible together at the end. The row is then complete.

        Raises:
            ResourceError: If the scan's files changed since they were read, because the DICOM
                results and the header of the masks refer to them.
            LesionsegError: If a file cannot be written.
        """
        with self.results.write_case(item.case) as new_files:
            prediction = self._find_candidates(item.case, inferred, new_files)
            zone_names, prediction = self._assign_zones(item.case, inferred, prediction)
            row = replace(item.row, **self._describe_prediction(prediction, zone_names))
            mask_names = self.predictor.plan.labels.value_names
            message = self.outputs.add_files(row, item.scan, prediction, mask_names, new_files)
            row = replace(row, message=message)
            write_prediction(
                new_files,
                prediction,
                like=item.scan.files.images[0],
                names=self.cfg.names,
                row=row,
            )
            if self.cfg.names == "bids" and prediction.instances is not None:
                images = item.scan.files.images
                write_sidecar(new_files, item.case, images, self.results.path)
            if self.cfg.preview:
                from lesionseg.reporting import write_preview  # imports matplotlib

                write_preview(new_files / f"{item.case}{PREVIEW}", item.scan.files, prediction)
            item.scan.require_unchanged(item.row.state)
        item.row = replace(row, finished=self.results.finish_time(item.case))
        return item

    def _describe_prediction(
        self, prediction: Prediction, zone_names: Sequence[str]
    ) -> dict[str, Any]:
        """Return the attributes of a row that describe a prediction, such as counts and warnings.

        `zone_names` are the zones of the scan, for the number of candidates in each zone.
        """
        lesion_names = self.predictor.plan.labels.lesion_names
        amounts = dict(counts_of(prediction.candidates, lesion_names, zone_names))
        checked = prediction.input
        return {
            "status": _status_of_scan(checked),
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
        """Return the prediction of a case. Write its probabilities if the settings ask for it.

        The probabilities are an array of float16, [label, Z, Y, X]. They are written in the format
        of nnU-Net with `names=nnunet`, otherwise as a compressed NumPy file.

        Args:
            case: The case id.
            inferred: The output of the networks.
            new_files: The folder of the case's files until all of them are complete.
        """
        if not self.cfg.save_probabilities:
            return self.predictor.decide(inferred, case)
        labels = self.predictor.plan.labels
        probabilities = np.zeros((len(labels), *inferred.file_geometry.shape), np.float16)

        def copy_slab(label: int, first: int, slab: Slab) -> None:
            """Copy the probabilities of a label in the slices from `first` on into the array."""
            probabilities[label, first : first + len(slab)] = slab

        prediction = self.predictor.decide(inferred, case, on_slab=copy_slab)
        if self.cfg.names == "nnunet":
            grid = inferred.file_geometry
            are_regions = bool(labels.regions)
            write_probabilities(new_files, case, probabilities, grid, are_regions=are_regions)
        else:
            np.savez_compressed(new_files / f"{case}{PROBABILITIES}", probabilities=probabilities)
        return prediction

    def _assign_zones(
        self, case: str, inferred: Inferred, prediction: Prediction
    ) -> tuple[list[str], Prediction]:
        """Assign an anatomical zone to each candidate. Reject candidates outside the zones to keep.

        Return the names of the scan's zones, and the changed prediction. Without a mask of zones
        for the case, return no names and the same prediction.
        """
        if self.zones is None:
            return [], prediction
        # a mask that is a picture states no pixel size and has that of the scan, in both directions
        pixel_mm = inferred.file_geometry.spacing_mm[0]
        zones = self.zones.read(case, pixel_mm)
        if zones is None:
            return [], prediction
        zone_of = zones.of(candidates_of(prediction))  # one name per candidate
        values = [value for value in present_values(zones.values) if value > 0]
        names = [zones.names.get(value, str(value)) for value in values]
        prediction = prediction.with_zones(zone_of)
        zones_to_keep = self.cfg.inference.keep_zones
        if zones_to_keep is not None:
            prediction = prediction.reject_outside_zones(zones_to_keep)
        return names, prediction

    def _result_key(self, files: CaseFiles, digest: str) -> str:
        """Return a hash of all that determines a case's results, so that a later run knows them.

        The results depend on the version, the bundle, the settings, the mask of zones and the
        content of the scan (`digest`). Settings that do not change results, such as the limit of
        memory, are left out.
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
        output = (cfg.save_probabilities, cfg.names, self.outputs.written, zones, zone_mask)
        text = repr((__version__, model, output, files.missing, files.pixel_mm, digest))
        return digest_of(text)[:16]  # 64 bits are enough to tell results apart


def _skip(item: StartedScan, reason: str) -> None:
    """Make the row of a scan final with the status `skipped`.

    `reason` has no capital letter and no full stop. They are added for the message.
    """
    item.finish("skipped", f"{reason[:1].upper()}{reason[1:]}.")


def _status_of_scan(checked: InputCheckResult | None) -> str:
    """Return the status of a predicted scan, which depends on the check of its input.

    The status is `blank` if a channel has no contrast, `warned` if the scan is unlike the training
    scans, and otherwise `done`, also without a check (None).
    """
    if checked is None:
        return "done"
    if checked.blank:
        return "blank"
    return "warned" if checked.is_warned else "done"


def _is_final(error: Exception) -> bool:
    """Return True if the same files will fail again in a later run, because their content is wrong.

    Return False if the reason may pass: a lack of memory or an error of disk, network or
    permission, also as the cause of another error.
    """
    if isinstance(error, ResourceError | OutputError):
        return False
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError) or (isinstance(cause, OSError) and cause.errno):
            # a lack of memory, or an error of the system, which has a number (`errno`), unlike an
            # `OSError` that a reader raises for a damaged file
            return False
        cause = cause.__cause__  # the error from which this one was raised
    return isinstance(error, CASE_ERRORS)

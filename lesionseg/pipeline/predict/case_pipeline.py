"""Predict a list of cases: read and prepare, network, restore and write, all three at once."""

import logging
import resource
import sys
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import blake2b
from pathlib import Path
from time import perf_counter

import torch

from lesionseg import __version__
from lesionseg.core import CaseFiles
from lesionseg.errors import LesionsegError
from lesionseg.inference.bundles.bundle import bundle_digest
from lesionseg.inference.inference_settings import InferenceSettings
from lesionseg.inference.predictor import Predictor
from lesionseg.inference.steps import Inferred, PreparedScan
from lesionseg.io.case_ids import printable_id
from lesionseg.io.dicom.source_images import ResultOrigin
from lesionseg.io.dicom.stack import Tilt
from lesionseg.io.formats.volumes import read_geometry
from lesionseg.io.local_files import content_files
from lesionseg.models.build import NetworkFactory
from lesionseg.pipeline.predict.case_writing import CaseOutputs, SaveProbabilities, write_case
from lesionseg.pipeline.predict.dicom_output import NO_SEGMENTATION
from lesionseg.pipeline.predict.memory_share import MemoryBudget, default_budget, needed_bytes
from lesionseg.pipeline.predict.predictions_table import PredictionRow, Status
from lesionseg.pipeline.predict.stages import Halt, Queue, overlapped
from lesionseg.pipeline.run.capabilities import require_voxels
from lesionseg.pipeline.run.redaction import redact_any

logger = logging.getLogger(__name__)

NAME = "this case"  # what a message calls it whose file is not to be named
# "ru_maxrss" counts kilobytes, but bytes on a Mac
_RSS_PER_MB = 2**20 if sys.platform == "darwin" else 2**10


@dataclass(frozen=True)
class PredictJob:
    """What a worker must know to predict cases, beside their files: plain values, picklable.

    `bundles`: folders; several make an ensemble. The rest: see `predict`.
    """

    bundles: tuple[Path, ...]
    output: Path
    inference: InferenceSettings = field(default_factory=InferenceSettings)
    operating_point: str | None = None
    device: str | tuple[str, ...] = "auto"
    raster_mm: float | None = None
    tilt: Tilt = "refuse"
    save_probabilities: SaveProbabilities = "none"
    dicom_output: bool = True
    identifiers: bool = False

    @property
    def devices(self) -> tuple[str, ...]:
        """The devices that share the cases: those named, or every GPU, or whatever there is."""
        if not isinstance(self.device, str):
            return self.device
        n_gpus = torch.cuda.device_count() if self.device == "auto" else 0
        return tuple(f"cuda:{i}" for i in range(n_gpus)) if n_gpus > 1 else (self.device,)

    def predictors(
        self, architectures: Mapping[str, NetworkFactory] | None = None
    ) -> tuple[Predictor, ...]:
        """The predictors that the job asks for, one a device."""
        return tuple(self._predictor(device, architectures) for device in self.devices)

    def _predictor(
        self, device: str, architectures: Mapping[str, NetworkFactory] | None
    ) -> Predictor:
        return Predictor(
            self.bundles,
            device=device,
            operating_point=self.operating_point,
            settings=self.inference,
            raster_mm=self.raster_mm,
            tilt=self.tilt,
            architectures=architectures,
        )


def predict_cases(
    job: PredictJob,
    cases: Sequence[CaseFiles],
    *,
    known: Mapping[str, PredictionRow] | None = None,
    predictors: Sequence[Predictor] = (),
) -> Generator[PredictionRow]:
    """Predict cases into `job.output`; yields the row of each as soon as it is written.

    Rows come in the order of `cases`, with several devices as they are done. `known` are rows of
    earlier runs: what is unchanged is kept. A case that fails gives a row that says why; nothing it
    wrote is left. `predictors` saves building the job's anew: one a device, which share the cases.
    Close the generator to give the rest up: what is written stays.
    """
    predictors = predictors or job.predictors()
    passage = _CasePipeline(job, predictors, known or {})
    # a GPU is fed by a thread that reads and relieved by one that writes
    steps = (
        [passage.read for _ in predictors],
        [partial(passage.infer, predictor) for predictor in predictors],
        [passage.write for _ in predictors],
    )
    with closing(overlapped(cases, *steps)) as finished:
        for work in finished:
            yield work.row


@dataclass(eq=False)
class _CaseTask:
    """One case on its way; `row` is there as soon as nothing is left to do."""

    files: CaseFiles
    row: PredictionRow | None = None
    seconds: float = 0.0
    input: str = ""
    key: str = ""
    n_bytes: int = 0
    prepared: PreparedScan | None = None
    inferred: Inferred | None = None

    def hand_over(self) -> PreparedScan | None:
        """What was prepared; it is no longer held here."""
        prepared, self.prepared = self.prepared, None
        return prepared


class _CasePipeline:
    """The three steps of one call."""

    def __init__(
        self, job: PredictJob, predictors: Sequence[Predictor], known: Mapping[str, PredictionRow]
    ) -> None:
        predictor = predictors[0]
        self.job, self.predictor, self.known = job, predictor, known
        self.alone = len(predictors) == 1
        if job.save_probabilities != "none":
            require_voxels(predictor.plan, "save_probabilities", "probabilities of voxels")
        self.targets = CaseOutputs(job.output, job.save_probabilities, job.dicom_output)
        gigabytes = job.inference.max_memory_gb
        total = default_budget() if gigabytes is None else int(gigabytes * 2**30)
        self.budget = MemoryBudget(total)
        self.bundle = _joint_digest(job.bundles)
        choices = (predictor.operating_point, job.inference.that_matter(), job.raster_mm, job.tilt)
        self.choices = repr((__version__, self.bundle, *choices, job.save_probabilities))

    def read(self, cases: Iterator[CaseFiles], halt: Halt) -> Iterator[_CaseTask]:
        """Step 1: what is unchanged is kept, the rest read and brought to the plan's grid."""
        for files in cases:
            work = _CaseTask(files)
            with self._guarded(work):
                self._read(work, halt)
            yield work

    def infer(
        self, predictor: Predictor, works: Iterator[_CaseTask], halt: Halt
    ) -> Iterator[_CaseTask]:
        """Step 2: the network, tile by tile."""
        # what waits now may be another device's a moment later: several never wait for the next
        # case with tiles of the last in hand, whose memory its reader may be waiting for
        ready = works.ready if self.alone and isinstance(works, Queue) else lambda: self.alone
        found = predictor.infer_all(
            ((work, work.hand_over()) for work in works),
            ready=ready,
            on_tile=lambda *_: halt.check(),
            spill=self._spill,
        )
        for work, outcome in found:
            with self._guarded(work):
                if isinstance(outcome, Exception):
                    raise outcome
                if outcome is not None:
                    work.inferred = outcome
                    work.seconds += outcome.seconds
            del outcome
            yield work

    def write(self, works: Iterator[_CaseTask], _: Halt) -> Iterator[_CaseTask]:
        """Step 3: back to the file's grid, candidates, files."""
        for work in works:
            with self._guarded(work):
                if work.inferred is not None:
                    point = self.predictor.operating_point
                    origin = ResultOrigin(__version__, self.bundle, work.key, point)
                    told = write_case(
                        self.predictor, work.inferred, work.files, self.targets, origin
                    )
                    work.row = replace(self._row(work, "done"), **told)
            work.inferred = None
            self.budget.give_back(work.files.case)
            yield work

    def _read(self, work: _CaseTask, halt: Halt) -> None:
        files, plan = work.files, self.predictor.plan
        work.input = _content_digest(files, self.bundle)
        work.key = _digest(self.choices, work.input)
        work.row = self._kept(work)
        if work.row is not None:
            return
        self.targets.clear(files, plan)
        geometry = read_geometry(files.images[0], raster_mm=self.job.raster_mm, tilt=self.job.tilt)
        if geometry.dims == plan.dims:  # else reading it says so
            work.n_bytes = needed_bytes(geometry, plan)
            self.budget.take(files.case, work.n_bytes, halt)
        work.prepared = self.predictor.prepare(
            self.predictor.read(files), files.case, overwrite=True
        )

    def _spill(self, work: _CaseTask) -> Path | None:
        """Where probabilities go that would not fit beside the rest."""
        return self.job.output if work.n_bytes > self.budget.total_bytes else None

    def _kept(self, work: _CaseTask) -> PredictionRow | None:
        """The row of an earlier run, if it was done with the same key and its files are there."""
        row = self.known.get(work.files.case)
        if row is None or row.status == "failed" or row.key != work.key:
            return None
        segmented = row.message != NO_SEGMENTATION
        outputs = self.targets.paths(work.files, self.predictor.plan, segmented=segmented)
        return replace(row, status="kept") if all(p.is_file() for p in outputs) else None

    def _row(self, work: _CaseTask, status: Status, message: str = "") -> PredictionRow:
        return PredictionRow(
            case=printable_id(work.files.case),
            status=status,
            message=message,
            seconds=round(work.seconds, 3),
            peak_memory_mb=peak_memory_mb(),
            bundle=self.bundle,
            input=work.input,
            key=work.key,
        )

    def _told(self, error: Exception, files: CaseFiles) -> str:
        """What a failed case's row and the log say of it; where it lies only if that was asked."""
        if self.job.identifiers:
            text = str(error) if isinstance(error, LesionsegError) else repr(error)
        else:
            text = redact_any(error, files, NAME)
        return text.encode("utf-8", "backslashreplace").decode()  # file names may be no Unicode

    def _fail(self, work: _CaseTask, error: Exception) -> None:
        """Tell what went wrong and remove what was written; never raises an `Exception`."""
        work.prepared = work.inferred = None
        work.row = self._row(work, "failed", self._told(error, work.files))
        logger.warning("Case %s failed: %s", work.row.case, work.row.message)
        logger.debug("Case %s failed.", work.row.case, exc_info=error)
        with suppress(Exception):  # what cannot even be named or removed was not written by us
            self.targets.clear(work.files, self.predictor.plan)

    @contextmanager
    def _guarded(self, work: _CaseTask) -> Iterator[None]:
        """Time a step; whatever it raises becomes the case's row, and what it wrote is removed."""
        begin = perf_counter()
        try:
            yield
        except Exception as error:  # a damaged file may make any library raise anything
            self._fail(work, error)
        finally:
            work.seconds += perf_counter() - begin
            if work.row is not None and work.row.status != "kept":
                work.row = replace(work.row, seconds=round(work.seconds, 3))


def peak_memory_mb() -> int:
    """The most memory that this process has held at one time."""
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / _RSS_PER_MB)


def _joint_digest(bundles: Sequence[Path]) -> str:
    """Sixteen hexadecimal digits: a bundle's own, those of several taken together."""
    digests = [bundle_digest(folder) for folder in bundles]
    return digests[0] if len(digests) == 1 else _digest(*digests)


def _digest(*parts: str) -> str:
    return blake2b(repr(parts).encode(), digest_size=8).hexdigest()


def _content_digest(files: CaseFiles, key: str) -> str:
    """Sixteen hexadecimal digits that change with the scan's bytes.

    Keyed, lest the table tell who has the same scan elsewhere that it is the same.
    """
    digest = blake2b(digest_size=8, key=key.encode())
    for path in (part for image in files.images for part in content_files(image)):
        with path.open("rb") as file:
            while piece := file.read(2**22):
                digest.update(piece)
    return digest.hexdigest()

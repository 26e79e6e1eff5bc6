"""The command's cases: what is unchanged is kept, what fails becomes a row, the rest is written."""

import logging
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from time import perf_counter

import torch

from lesionseg import __version__
from lesionseg.core import CaseFiles
from lesionseg.data.cache.fill import cores
from lesionseg.errors import LesionsegError
from lesionseg.inference.bundles.bundle import bundle_digest
from lesionseg.inference.inference_settings import InferenceSettings
from lesionseg.inference.predictor import Predictor
from lesionseg.io.case_ids import printable_id
from lesionseg.io.dicom.source_images import ResultOrigin
from lesionseg.io.dicom.stack import Tilt
from lesionseg.io.formats.decoder import CRASHED
from lesionseg.io.formats.guard import FileLimits, limits
from lesionseg.io.local_files import content_files, fetch_images
from lesionseg.io.predictions import MaskNames
from lesionseg.io.remote.mirror import send
from lesionseg.io.volumes import read_geometry
from lesionseg.io.zone_files import find_zones
from lesionseg.models.build import NetworkFactory
from lesionseg.ops.host_memory import peak_memory_mb
from lesionseg.pipeline.dataset.capabilities import require_voxels
from lesionseg.pipeline.predict.case_pipeline import (
    CaseTask,
    MemoryBudget,
    needed_bytes,
    through_steps,
)
from lesionseg.pipeline.predict.case_writing import (
    NO_SEGMENTATION,
    CaseOutputs,
    SaveProbabilities,
    write_case,
)
from lesionseg.pipeline.predict.predictions_table import PredictionRow, Status
from lesionseg.pipeline.predict.stages import Halt
from lesionseg.pipeline.run.run_log import redact_any

logger = logging.getLogger(__name__)

MOST_READERS = 4  # of a GPU
NAME = "this case"  # what a message calls it whose file is not to be named


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
    names: MaskNames = "lesionseg"
    dicom_output: bool = True
    identifiers: bool = False
    trust: bool = False
    zones: Path | None = None
    limits: FileLimits = field(default_factory=limits)

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
        """The predictors that the job asks for, one per device."""
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
            trust=self.trust,
        )


def predict_cases(
    job: PredictJob,
    cases: Sequence[CaseFiles],
    *,
    known: Mapping[str, PredictionRow] | None = None,
    predictors: Sequence[Predictor] = (),
) -> Generator[PredictionRow]:
    """Predict cases into `job.output`; yields the row of each as soon as it is written.

    Rows come in the order of `cases`, with several devices or readers as they are done. `known` are
    rows of earlier runs: what is unchanged is kept. A case that fails gives a row that says why;
    nothing it wrote is left. `predictors` saves building the job's again: one per device, which
    share the cases. Close the generator to give the rest up: what is written stays.
    """
    predictors = predictors or job.predictors()
    steps = _JobSteps(job, predictors[0], known or {})
    tasks = (_JobTask(files) for files in cases)
    readers = readers_of(job.inference, predictors)
    run = through_steps(tasks, predictors, steps.read, steps.write, steps.spill, readers=readers)
    with closing(run) as finished:
        for task in finished:
            if task.row is not None:
                yield task.row


def readers_of(inference: InferenceSettings, predictors: Sequence[Predictor]) -> int:
    """Threads that read for each predictor, and as many that write."""
    if inference.readers != "auto":
        return inference.readers
    if any(predictor.device.type == "cpu" for predictor in predictors):
        return 1
    return min(max(cores() // (2 * len(predictors)), 1), MOST_READERS)


@dataclass(eq=False)
class _JobTask(CaseTask):
    """One case of a job; `row` is there as soon as nothing is left to do."""

    row: PredictionRow | None = None
    seconds: float = 0.0
    input: str = ""
    key: str = ""
    n_bytes: int = 0


class _JobSteps:
    """What a job does before and after the network."""

    def __init__(
        self, job: PredictJob, predictor: Predictor, known: Mapping[str, PredictionRow]
    ) -> None:
        self.job, self.predictor, self.known = job, predictor, known
        if job.save_probabilities != "none":
            require_voxels(predictor.plan, "save_probabilities", "probabilities of voxels")
        self.zones = None if job.zones is None else find_zones(job.zones)
        self.targets = CaseOutputs(job.output, job.save_probabilities, job.dicom_output, job.names)
        self.budget = MemoryBudget.of(job.inference.max_memory_gb)
        self.bundle = _joint_digest(job.bundles)
        choices = (predictor.operating_point, job.inference.that_matter(), job.raster_mm, job.tilt)
        self.choices = repr((__version__, self.bundle, *choices, job.save_probabilities))

    def read(self, task: _JobTask, halt: Halt) -> None:
        """What is unchanged is kept, the rest read and brought to the plan's grid."""
        with self._guarded(task):
            self._read(task, halt)

    def write(self, task: _JobTask) -> None:
        """Back to the file's grid, candidates, files."""
        with self._guarded(task):
            if task.error is not None:
                raise task.error
            if task.inferred is not None:
                task.seconds += task.inferred.seconds
                point = self.predictor.decide.point(task.inferred.missing)
                origin = ResultOrigin(__version__, self.bundle, task.key, point)
                zones = self.zones.read(task.files.case) if self.zones else None
                counts = write_case(
                    self.predictor, task.inferred, task.files, self.targets, origin, zones
                )
                send(self.targets.paths(task.files, self.predictor.plan))
                task.row = replace(self._row(task, "done"), **counts)
        self.budget.give_back(task.files.case)

    def spill(self, task: _JobTask) -> Path | None:
        """Where probabilities go that would not fit beside the rest."""
        return self.job.output if task.n_bytes > self.budget.total_bytes else None

    def _read(self, task: _JobTask, halt: Halt) -> None:
        files, plan = task.files, self.predictor.plan
        fetch_images(files.images)
        task.input = _content_digest(files, self.bundle)
        lacking = map(str, files.missing)
        task.key = _digest(self.choices, task.input, *self._zone_digests(files), *lacking)
        task.row = self._kept(task)
        if task.row is not None:
            return
        self.targets.clear(files, plan)
        geometry = read_geometry(files.images[0], raster_mm=self.job.raster_mm, tilt=self.job.tilt)
        if geometry.dims == plan.dims:  # else reading it says so
            task.n_bytes = needed_bytes(geometry, plan)
            self.budget.take(files.case, task.n_bytes, halt)
        task.prepared = self.predictor.scans.open(files)

    def _zone_digests(self, files: CaseFiles) -> list[str]:
        """What tells whether a case's zones are those of an earlier run; empty without any."""
        if self.zones is None or files.case not in self.zones.masks:
            return []
        mask = CaseFiles(files.case, (self.zones.masks[files.case],))
        return [_content_digest(mask, self.bundle), repr(sorted(self.zones.names.items()))]

    def _kept(self, task: _JobTask) -> PredictionRow | None:
        """The row of an earlier run with the same key: done, with its files, or a crash."""
        row = self.known.get(task.files.case)
        if row is None or row.key != task.key:
            return None
        if row.status == "failed":
            return self._left_out(row) if row.message.startswith(CRASHED) else None
        segmented = row.message != NO_SEGMENTATION
        outputs = self.targets.paths(task.files, self.predictor.plan, segmented=segmented)
        return replace(row, status="kept") if all(p.is_file() for p in outputs) else None

    def _left_out(self, row: PredictionRow) -> PredictionRow:
        logger.warning("Case %s is left out: the same file crashed the reader before.", row.case)
        return row

    def _row(self, task: _JobTask, status: Status, message: str = "") -> PredictionRow:
        return PredictionRow(
            case=printable_id(task.files.case),
            status=status,
            message=message,
            seconds=round(task.seconds, 3),
            peak_memory_mb=peak_memory_mb(),
            bundle=self.bundle,
            input=task.input,
            key=task.key,
        )

    def _message(self, error: Exception, files: CaseFiles) -> str:
        """What a failed case's row and the log say of it; where it lies only if that was asked."""
        if self.job.identifiers:
            text = str(error) if isinstance(error, LesionsegError) else repr(error)
        else:
            text = redact_any(error, files, NAME)
        return text.encode("utf-8", "backslashreplace").decode()  # file names may be no Unicode

    def _fail(self, task: _JobTask, error: Exception) -> None:
        """Say what went wrong and remove what was written; never raises an `Exception`."""
        task.prepared = task.inferred = task.error = None
        task.row = self._row(task, "failed", self._message(error, task.files))
        logger.warning("Case %s failed: %s", task.row.case, task.row.message)
        logger.debug("Case %s failed.", task.row.case, exc_info=error)
        with suppress(Exception):  # what cannot even be named or removed was not written by us
            self.targets.clear(task.files, self.predictor.plan)
            send(self.targets.paths(task.files, self.predictor.plan))

    @contextmanager
    def _guarded(self, task: _JobTask) -> Iterator[None]:
        """Time a step; whatever it raises becomes the case's row, and what it wrote is removed."""
        begin = perf_counter()
        try:
            yield
        except Exception as error:  # a damaged file may make any library raise anything
            self._fail(task, error)
        finally:
            task.seconds += perf_counter() - begin
            if task.row is not None and task.row.status != "kept":
                task.row = replace(task.row, seconds=round(task.seconds, 3))


def _joint_digest(bundles: Sequence[Path]) -> str:
    """Sixteen hexadecimal digits: a bundle's own, those of several taken together."""
    digests = [bundle_digest(folder) for folder in bundles]
    return digests[0] if len(digests) == 1 else _digest(*digests)


def _digest(*parts: str) -> str:
    return blake2b(repr(parts).encode(), digest_size=8).hexdigest()


def _content_digest(files: CaseFiles, key: str) -> str:
    """Sixteen hexadecimal digits that change with the scan's bytes.

    Keyed, so that the table does not show who has the same scan elsewhere.
    """
    digest = blake2b(digest_size=8, key=key.encode())
    for path in (part for image in files.images for part in content_files(image)):
        with path.open("rb") as file:
            while piece := file.read(2**22):
                digest.update(piece)
    return digest.hexdigest()

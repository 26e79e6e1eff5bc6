"""Predict: a bundle and a folder of scans in; masks, candidates and a status per scan out."""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from hashlib import blake2b
from pathlib import Path
from time import perf_counter
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lesionseg import __version__
from lesionseg.core import CaseFiles, Geometry, Prediction, Volume
from lesionseg.errors import ConfigError, DatasetError, LesionsegError
from lesionseg.inference.bundle import bundle_digest
from lesionseg.inference.predictor import Predictor
from lesionseg.inference.settings import InferenceSettings
from lesionseg.io.atomic import read_csv, write_csv
from lesionseg.io.images import find_images
from lesionseg.io.predictions import write_prediction
from lesionseg.io.volumes import content_files, result_suffix, write_volume
from lesionseg.models.build import NetworkFactory
from lesionseg.pipeline.progress import Advance, bar
from lesionseg.plan.plan import Plan

logger = logging.getLogger(__name__)

Status = Literal["done", "kept", "failed"]
TABLE = "predictions.csv"
_STATUSES: Mapping[str, Status] = {"done": "done", "kept": "kept", "failed": "failed"}


@dataclass(frozen=True)
class PredictionRow:
    """One line of `predictions.csv`.

    `status`: "done" now, "kept" from an earlier run because scan, bundle and settings are the
    same, or "failed" for the reason in `message`. `seconds` is the time it took when it was done.
    `key` tells whether anything changed since.
    """

    case: str
    status: Status
    message: str = ""
    seconds: float = 0.0
    n_candidates: int = 0
    n_accepted: int = 0
    key: str = ""


class Predicted(tuple[PredictionRow, ...]):
    """The rows of one call, a case each, in order of case id."""

    __slots__ = ()

    @property
    def exit_status(self) -> int:
        """1 when a case failed, else 0."""
        return int(any(row.status == "failed" for row in self))

    def summary(self) -> list[str]:
        """How many cases were done, kept and failed, and why each failed one did."""
        counts = Counter(row.status for row in self)
        accepted = sum(row.n_accepted for row in self)
        first = (
            f"{len(self)} cases: {counts['done']} predicted, {counts['kept']} kept from an "
            f"earlier run, {counts['failed']} failed; {accepted} candidates accepted."
        )
        return [first, *(f"{r.case}: {r.message}" for r in self if r.status == "failed")]


def predict(
    bundle: str | Path,
    input: str | Path,
    output: str | Path,
    *,
    inference: InferenceSettings | None = None,
    operating_point: str | None = None,
    device: str = "auto",
    raster_mm: float | None = None,
    save_probabilities: bool = False,
    architectures: Mapping[str, NetworkFactory] | None = None,
    progress: Advance | None = None,
) -> Predicted:
    """Predict every case found in `input` (a folder, a glob or a file); one row each.

    Writes mask, instances and candidates of each case to `output`, in the scan's own geometry and
    format, with `save_probabilities` also `probabilities/<case>_<label>`, and `predictions.csv`
    anew after every case; rows of other cases in that file stay. A case that fails does not stop
    the others. Started again, it leaves out what is done and unchanged. `operating_point`,
    `device`, `raster_mm` and `architectures`: see `Predictor`. `progress(case, done, total)` is
    called after every case, in place of a bar. Raises `BundleError` or `ConfigError` for an
    unusable bundle or setting and an output folder that is the input folder, `DatasetError` when
    there is no case.
    """
    settings = inference or InferenceSettings()
    predictor = Predictor(
        bundle,
        device=device,
        operating_point=operating_point,
        overlap=settings.overlap,
        flips=settings.flips,
        batch_size=settings.batch_size,
        precision=settings.precision,
        raster_mm=raster_mm,
        architectures=architectures,
    )
    choices = (
        __version__,
        bundle_digest(Path(bundle)),
        repr((predictor.operating_point, settings, raster_mm, save_probabilities)),
    )
    cases = _find_cases(Path(input), Path(output), predictor.plan)
    table = _Table(Path(output))
    rows = []
    with bar("Predicting") as advance:
        for files in cases:
            row = _predict_case(predictor, files, table, choices, save_probabilities)
            table.put(row)
            rows.append(row)
            (progress or advance)(row.case, len(rows), len(cases))
    return Predicted(rows)


class _Table:
    """`predictions.csv` in the output folder, rewritten after every case."""

    def __init__(self, output: Path) -> None:
        self.folder = output
        self._path = output / TABLE
        known = read_csv(self._path) if self._path.is_file() else []
        self._rows = {row.case: row for row in map(_parse_row, known) if row is not None}

    def kept(self, case: str, key: str, outputs: Iterable[Path]) -> PredictionRow | None:
        """The row of an earlier run, if it was done with the same key and its files are there."""
        row = self._rows.get(case)
        if row is None or row.status == "failed" or row.key != key:
            return None
        return replace(row, status="kept") if all(p.is_file() for p in outputs) else None

    def discard(self, case: str, outputs: Iterable[Path]) -> None:
        """Remove what an earlier run wrote of a case, lest it be taken for this run's."""
        if case in self._rows:
            for path in outputs:
                path.unlink(missing_ok=True)

    def put(self, row: PredictionRow) -> None:
        """Add or replace a row on disk."""
        self._rows[row.case] = row
        columns = [field.name for field in fields(PredictionRow)]
        write_csv(self._path, [asdict(r) for r in self._rows.values()], columns)


def _parse_row(raw: Mapping[str, str]) -> PredictionRow | None:
    """A row of our own; None for a line some other program wrote."""
    try:
        return PredictionRow(
            case=raw["case"],
            status=_STATUSES[raw["status"]],
            message=raw["message"],
            seconds=float(raw["seconds"]),
            n_candidates=int(raw["n_candidates"]),
            n_accepted=int(raw["n_accepted"]),
            key=raw["key"],
        )
    except (KeyError, ValueError):
        return None


def _find_cases(source: Path, output: Path, plan: Plan) -> list[CaseFiles]:
    """The cases of `source`, results of an earlier run in `output` left out."""
    if source.is_dir() and output.exists() and source.samefile(output):
        raise ConfigError(
            "The output folder is the input folder: its masks would be taken for scans.",
            where="output",
            seen=output,
            remedy="choose another folder; it may lie inside the input folder.",
        )
    results = output.resolve()
    found = find_images(source, len(plan.channel_names))
    cases = [c for c in found if not any(results in p.resolve().parents for p in c.images)]
    if not cases:
        raise DatasetError("There is no scan to predict.", where=source)
    return cases


def _predict_case(
    predictor: Predictor,
    files: CaseFiles,
    table: _Table,
    choices: Sequence[str],
    save_probabilities: bool,
) -> PredictionRow:
    """One case, whatever happens; only an interruption by the user goes through."""
    start, key = perf_counter(), ""
    suffix = result_suffix(files.images[0], predictor.plan.dims)
    names = (f"_mask{suffix}", f"_instances{suffix}", "_candidates.json")
    outputs = [table.folder / f"{files.case}{name}" for name in names]
    try:
        key = _key(files, choices)
        kept = table.kept(files.case, key, outputs)
        if kept is not None:
            return kept
        volume = predictor.read(files)
        prediction = _decide(predictor, files, volume, table.folder, save_probabilities)
        write_prediction(table.folder, prediction, suffix=suffix, like=files.images[0])
    except Exception as error:  # a damaged file may make any library raise anything
        message = str(error) if isinstance(error, LesionsegError) else repr(error)
        logger.warning("Case %s failed: %s", files.case, message)
        logger.debug("Case %s failed.", files.case, exc_info=error)
        table.discard(files.case, outputs)
        return PredictionRow(files.case, "failed", message, _since(start), key=key)
    n_accepted = sum(c.accepted for c in prediction.candidates)
    n_candidates = len(prediction.candidates)
    return PredictionRow(files.case, "done", "", _since(start), n_candidates, n_accepted, key)


def _since(start: float) -> float:
    return round(perf_counter() - start, 3)


def _decide(
    predictor: Predictor, files: CaseFiles, volume: Volume, output: Path, save_probabilities: bool
) -> Prediction:
    if not save_probabilities:
        return predictor.predict_volume(volume, files.case)
    probabilities = predictor.probabilities(volume)
    saved = _saving(probabilities, volume.geometry, files, output, predictor.plan)
    return predictor.decide(saved, volume.geometry, files.case)


def _saving(
    probabilities: Iterable[NDArray[np.float32]],
    geometry: Geometry,
    files: CaseFiles,
    output: Path,
    plan: Plan,
) -> Iterator[NDArray[np.float32]]:
    """Write each label's probabilities to `probabilities/<case>_<label>` on their way."""
    suffix = result_suffix(files.images[0], plan.dims).replace(".png", ".tif")
    for channel, label in zip(probabilities, plan.label_values, strict=True):
        path = output / "probabilities" / f"{files.case}_{label}{suffix}"
        write_volume(path, Volume(channel[np.newaxis], geometry), like=files.images[0])
        yield channel


def _key(files: CaseFiles, choices: Sequence[str]) -> str:
    """Sixteen hexadecimal digits that change with the scan's bytes, the bundle or a setting."""
    digest = blake2b(repr(tuple(choices)).encode(), digest_size=8)
    for path in (part for image in files.images for part in content_files(image)):
        with path.open("rb") as file:
            while piece := file.read(2**22):
                digest.update(piece)
    return digest.hexdigest()

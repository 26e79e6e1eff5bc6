"""Predict: a bundle and a folder of scans in; masks, candidates and a status per scan out."""

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, get_args

from lesionseg.core import CaseFiles
from lesionseg.errors import DatasetError, one_of, require
from lesionseg.inference.inference_settings import InferenceSettings
from lesionseg.io.atomic import private_files
from lesionseg.io.folder_locks import locked_folder
from lesionseg.io.layouts.input_images import find_images
from lesionseg.io.predictions import MaskNames
from lesionseg.io.remote.local_disk import LocalDisk, local_disk
from lesionseg.io.remote.mirror import mirror
from lesionseg.io.remote.remote_folder import is_url
from lesionseg.io.zone_files import find_zones
from lesionseg.models.build import NetworkFactory
from lesionseg.pipeline.dataset.data_settings import DicomSettings
from lesionseg.pipeline.predict.case_writing import SaveProbabilities, check_dicom_output
from lesionseg.pipeline.predict.predict_job import PredictJob, predict_cases
from lesionseg.pipeline.predict.predictions_table import (
    PredictionRow,
    PredictionTable,
    PredictOutcome,
    Shard,
)
from lesionseg.pipeline.predict.ray_engine import predict_on_ray
from lesionseg.pipeline.predict.study_table import write_study
from lesionseg.pipeline.run.cluster import EngineName
from lesionseg.pipeline.run.outcome import Advance, bar
from lesionseg.plan.plan import Plan


def predict(
    bundle: str | Path | Sequence[str | Path],
    input: str | Path,
    output: str | Path,
    *,
    inference: InferenceSettings | None = None,
    operating_point: str | None = None,
    device: str | Sequence[str] = "auto",
    raster_mm: float | None = None,
    dicom: DicomSettings | None = None,
    save_probabilities: SaveProbabilities = "none",
    names: MaskNames = "lesionseg",
    dicom_output: bool = True,
    zones: str | Path | None = None,
    identifiers: bool = False,
    trust: bool = False,
    engine: EngineName = "local",
    num_shards: int = 1,
    shard_index: int = 0,
    local_dir: str | Path | None = None,
    local_gb: float = 100.0,
    architectures: Mapping[str, NetworkFactory] | None = None,
    progress: Advance | None = None,
) -> PredictOutcome:
    """Predict every case found in `input`; one row each, by case id.

    Writes mask, instances and candidates of each case to `output`, in the scan's own geometry and
    format. Beside them lie `predictions.csv` and, unless sharded, `study.csv`, in which rows of
    other cases stay. A case that fails does not stop the others. Started again, it leaves out what
    is done and unchanged. Reading, the network and writing overlap. What is written is its user's
    alone (files 0600, folders 0700). Input and output may be URLs: a scan comes when its turn does,
    and results go as they are done. Raises `BundleError` or `ConfigError` for an unusable bundle or
    setting, `DatasetError` when there is no case. `OutputError`: another process writes into the
    output folder.

    Args:
        bundle: a run directory or a bundle's folder, or several that are averaged.
        input: a folder, a glob, a file or a manifest (see `find_images`), or a folder's URL.
        output: the folder for the results, made where there is none, or its URL.
        inference: overlap, mirrored views, batch size, precision and memory.
        operating_point: accepts candidates; see `choose_operating_point`.
        device: one, or several that share the cases; "auto" is every GPU.
        raster_mm: pixel size in mm of images that state none; see `Predictor`.
        dicom: what is done with a tilted gantry.
        save_probabilities: also write `probabilities/<case>_<label>` in these numbers.
        names: "nnunet" calls masks `<case>.nii.gz`, in place of `<case>_mask.nii.gz`.
        dicom_output: DICOM scans also get a segmentation object and a structured report.
        zones: a folder of anatomy masks named by case, on any grid, and a table of names;
            candidates and burden are given by zone (`io.zone_files`).
        identifiers: messages of failed cases name folders and files.
        trust: networks and transforms that the bundle names may be imported; see `Predictor`.
        engine: "local", or "ray" for a cluster whose machines all see the same folders.
        num_shards: how many equal calls share the cases, each with a table of its own.
        shard_index: which of them this is, from 0.
        local_dir: where copies of what lies at URLs may be; None: the user's cache folder.
        local_gb: the most that copies of the input, and of the output, may take.
        architectures: the caller's own networks; see `Predictor`.
        progress: called with case, number done and total after every case, in place of a bar.
    """
    one_of("engine", engine, get_args(EngineName), where="engine")
    one_of("choice of names", names, get_args(MaskNames), where="names")
    folders = (bundle,) if isinstance(bundle, (str, Path)) else tuple(bundle)
    disk = local_disk(local_dir, local_gb)
    job = PredictJob(
        bundles=tuple(Path(folder) for folder in folders),
        output=_local(output, disk, new=True, tables=(".csv",)),
        inference=inference or InferenceSettings(),
        operating_point=operating_point,
        device=device if isinstance(device, str) else tuple(device),
        raster_mm=raster_mm,
        tilt=(dicom or DicomSettings()).tilt,
        save_probabilities=save_probabilities,
        names=names,
        dicom_output=dicom_output,
        identifiers=identifiers,
        trust=trust,
        zones=None if zones is None else Path(zones),
    )
    shard = Shard(shard_index, num_shards)
    predictors = job.predictors(architectures)
    cases = shard.of(find_cases(_local(input, disk), job.output, predictors[0].plan))
    if dicom_output:
        check_dicom_output(cases)
    if job.zones is not None:
        find_zones(job.zones).check([files.case for files in cases])
    with _locked(job.output, shard):
        table = PredictionTable(job.output, shard)
        if engine == "ray":
            finished = predict_on_ray(job, cases, table.rows, architectures)
        else:
            finished = predict_cases(job, cases, known=table.rows, predictors=predictors)
        rows = _gather(finished, table, len(cases), progress)
        if num_shards == 1:  # else several would write it
            write_study(job.output, cases, table.rows)
    return PredictOutcome(sorted(rows, key=lambda row: row.case))


def _local(place: str | Path, disk: LocalDisk, **how: Any) -> Path:
    """The folder itself; of a URL, the local folder that mirrors it (`how`: see `mirror`)."""
    return mirror(str(place), disk, **how) if is_url(str(place)) else Path(place)


@contextmanager
def _locked(folder: Path, shard: Shard) -> Iterator[None]:
    """What is written is its user's alone, and the output this shard's and its like's."""
    with (
        private_files(),
        locked_folder(folder, shared=True),
        locked_folder(folder, f".{shard.table}.lock"),
    ):
        yield


def _gather(
    finished: Generator[PredictionRow],
    table: PredictionTable,
    n_cases: int,
    progress: Advance | None,
) -> list[PredictionRow]:
    """The rows as cases are done, each put into the table."""
    rows: list[PredictionRow] = []
    with closing(table), bar("Predicting") as advance, closing(finished):
        for row in finished:
            table.put(row)
            rows.append(row)
            (progress or advance)(row.case, len(rows), n_cases)
    return rows


def find_cases(source: Path, output: Path, plan: Plan) -> list[CaseFiles]:
    """The cases of `source`, results of an earlier run in `output` left out."""
    require(
        output.is_dir() or not output.exists(),
        "The output is a file.",
        where="output",
        seen=output,
        expected="a folder; one that does not exist is made",
    )
    require(
        not (source.is_dir() and output.exists() and source.samefile(output)),
        "The output folder is the input folder: its masks would be taken for scans.",
        where="output",
        seen=output,
        remedy="choose another folder; it may lie inside the input folder.",
    )
    results = output.resolve()
    scans = find_images(source, len(plan.channel_names))
    cases = [c for c in scans if not any(_lies_in(results, p) for p in c.images)]
    if not cases:
        raise DatasetError("There is no scan to predict.", where=source)
    return cases


def _lies_in(folder: Path, path: Path) -> bool:
    try:
        return folder in path.resolve().parents
    except (OSError, ValueError, RuntimeError):  # no such path, or a circle: reading it says so
        return False

"""`predict`: a bundle and a folder of scans in; masks, candidates and a status per scan out."""

import logging
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial
from glob import escape
from hashlib import blake2b
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from lesionseg import __version__
from lesionseg.config import PredictConfig, ServeConfig
from lesionseg.core import CaseFiles
from lesionseg.errors import ConfigError, DatasetError
from lesionseg.evaluation.measures import counts_of
from lesionseg.inference.bundle import bundle_digest
from lesionseg.inference.decision import Inferred, Slab
from lesionseg.inference.nnunet.prepare import NnunetScan
from lesionseg.inference.predictor import Predictor, PreparedScan
from lesionseg.inference.volumes import needed_bytes, read_ahead
from lesionseg.io.cases import content_files
from lesionseg.io.dicom.results import (
    REPORT,
    SEGMENTATION,
    ResultOrigin,
    require_highdicom,
    write_dicom_results,
)
from lesionseg.io.files import atomic_path, check_case_id, locked_folder
from lesionseg.io.layouts.input_images import find_images
from lesionseg.io.predictions import MASK_ENDINGS, write_prediction
from lesionseg.io.remote import download, upload
from lesionseg.io.volumes import is_dicom_image, read_geometry, result_suffix
from lesionseg.io.zone_files import find_zones
from lesionseg.models.build import NetworkFactory
from lesionseg.ops.components import candidates_of, present_values
from lesionseg.ops.host_memory import default_budget, peak_memory_mb, trim_memory
from lesionseg.pipeline.log import Advance, bar
from lesionseg.pipeline.predict_tables import (
    TABLE,
    PredictionTable,
    PredictOutcome,
    Row,
    begun_row,
)
from lesionseg.plan.plan import Plan

logger = logging.getLogger(__name__)

_MASKS = ("_instances", "_regions")
_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha", ".png")
_OTHERS = ("_probabilities.npz", REPORT, SEGMENTATION)
NO_SEGMENTATION = "No DICOM segmentation: no accepted candidate has voxels."


def predict(
    cfg: PredictConfig,
    *,
    architectures: Mapping[str, NetworkFactory] | None = None,
    progress: Advance | None = None,
) -> PredictOutcome:
    """Predict every case found in `cfg.input`; one row each, by case id.

    Writes mask, instances and candidates of each case to `cfg.output`, in the scan's own geometry
    and format, and `predictions.csv`, in which rows of other cases stay. A case that fails does not
    stop the others. Started again, it leaves out what is done and unchanged. Files follow
    the umask. Input and output may be URLs.

    Args:
        cfg: see conf/predict.yaml.
        architectures: the caller's own networks; see `Predictor`.
        progress: called with case, number done and total after every case, in place of a bar.

    Raises:
        BundleError, ConfigError: for an unusable bundle or setting.
        DatasetError: when there is no case.
        OutputError: when another process writes into the output folder.
    """
    predictor = make_predictor(cfg, architectures)
    if cfg.save_probabilities and not predictor.plan.has_voxels:
        raise ConfigError("save_probabilities=true: a network without voxels has none to save.")
    folder = download(cfg.output, new=True)
    found = find_cases(download(cfg.input), folder, predictor.plan)
    cases = found[cfg.shard_index :: cfg.num_shards]
    if cfg.dicom_output and any(map(_is_dicom, cases)):
        require_highdicom()
    if cfg.zones is not None:
        find_zones(Path(cfg.zones)).check([files.case for files in cases])
    name = TABLE
    if cfg.num_shards > 1:  # no two processes write the same file
        name = f"predictions_{cfg.shard_index}_of_{cfg.num_shards}.csv"
    rows: list[Row] = []
    with (
        locked_folder(folder, f".{name}.lock"),
        closing(PredictionTable(folder / name, cfg.output)) as table,
        bar("Predicting", progress) as advance,
    ):
        if cfg.engine == "ray":
            from lesionseg.pipeline.predict_ray import predict_on_ray

            finished = predict_on_ray(cfg, folder, cases, table.earlier, architectures)
        else:
            finished = predict_cases(cfg, predictor, folder, cases, table.earlier)
        with closing(finished):
            for row in finished:
                table.put(row)
                rows.append(row)
                advance(row["case"], len(rows), len(cases))
    return PredictOutcome(tuple(sorted(rows, key=lambda row: row["case"])), folder)


def make_predictor(
    cfg: PredictConfig | ServeConfig, architectures: Mapping[str, NetworkFactory] | None = None
) -> Predictor:
    """The predictor that the settings ask for."""
    return Predictor(
        cfg.bundle,
        settings=cfg.inference,
        device=cfg.device,
        operating_point=cfg.operating_point,
        raster_mm=cfg.raster_mm if isinstance(cfg, PredictConfig) else None,
        architectures=architectures,
        trust=cfg.trust,
    )


def find_cases(source: Path, output: Path, plan: Plan) -> list[CaseFiles]:
    """The cases of `source`, results of an earlier run in `output` left out."""
    if output.exists() and not output.is_dir():
        raise ConfigError(f"output={output} is a file. Name a folder.")
    if source.is_dir() and output.exists() and source.samefile(output):
        raise ConfigError(
            f"output={output} is the input folder itself. Name another one, which may lie in it."
        )
    results = output.resolve()

    def is_result(path: Path) -> bool:
        try:
            return results in path.resolve().parents
        except (OSError, ValueError, RuntimeError):  # no such path, or a circle: reading says so
            return False

    scans = find_images(source, len(plan.channel_names))
    cases = [files for files in scans if not any(map(is_result, files.images))]
    if not source.is_dir() and len(cases) < len(scans):
        raise ConfigError(f"output={output} holds scans of {source}. Name another folder.")
    if not cases:
        raise DatasetError(f"{source}: there is no scan to predict.")
    return cases


def predict_cases(
    cfg: PredictConfig,
    predictor: Predictor,
    output: Path,
    cases: Sequence[CaseFiles],
    known: Mapping[str, Row],
) -> Generator[Row]:
    """Predict cases into `output`; yields the row of each, in order, as soon as it is written.

    `known`: rows of earlier runs; what is unchanged is kept. A case that fails gives a row that
    says why; nothing it wrote is left. Close the generator to give the rest up: what is written
    stays.
    """
    work = CaseWork(cfg, predictor, output, known)
    steps = (partial(work.attempt, step) for step in (work.read, work.infer, work.write))
    yield from read_ahead(cases, *steps, fits=work.fits)


class CaseWork:
    """What is done with a case, in three steps, of which `attempt` makes a row whatever happens."""

    def __init__(
        self,
        cfg: PredictConfig,
        predictor: Predictor,
        output: Path,
        known: Mapping[str, Row],
    ) -> None:
        self.cfg, self.predictor, self.output, self.known = cfg, predictor, output, known
        self.zones = None if cfg.zones is None else find_zones(Path(cfg.zones))
        self.bundle = "+".join(bundle_digest(Path(folder)) for folder in cfg.bundle)
        gigabytes = cfg.inference.max_memory_gb
        self.budget = default_budget() if gigabytes is None else int(gigabytes * 2**30)
        self.rows: dict[str, Row] = {}  # of cases on their way; with a status where nothing is left
        self.sizes: dict[str, int] = {}

    def attempt(self, step: Callable[..., Any], files: CaseFiles, made: Any = None) -> Any:
        """What a step makes of the case, or its row where that is complete, as of one that failed.

        Nothing that a failed case wrote is left.
        """
        row = self.rows.setdefault(files.case, {**begun_row(files), "bundle": self.bundle})
        if row["status"]:
            return row
        begin = perf_counter()
        try:
            return step(files, row) if made is None else step(files, row, made)
        except Exception as error:  # a damaged file may make any library raise anything
            text = str(error) or repr(error)
            for image in files.images:  # where a scan lies may name a patient
                text = text.replace(f"{image.parent}/", "")
            text = text.encode("utf-8", "backslashreplace").decode()
            row |= {"status": "failed", "message": text}
            logger.warning("Case %s failed: %s", row["case"], text)
            logger.debug("Case %s failed.", row["case"], exc_info=error)
            with suppress(Exception):  # what cannot even be named was not written by us
                self._clear(files)
            return row
        finally:
            if row["status"] != "kept":
                seconds = row["seconds"] + perf_counter() - begin
                row |= {"seconds": round(seconds, 3), "peak_memory_mb": peak_memory_mb()}

    def fits(self, cases: Sequence[CaseFiles]) -> bool:
        """Whether these cases may be in memory together."""
        for files in cases:
            if files.case not in self.sizes:
                self.sizes[files.case] = 0
                with suppress(Exception):  # reading it says what is wrong
                    geometry = read_geometry(files.images[0], raster_mm=1.0)
                    self.sizes[files.case] = needed_bytes(geometry, self.predictor.plan)
        return sum(self.sizes[files.case] for files in cases) <= self.budget

    def read(self, files: CaseFiles, row: Row) -> PreparedScan | NnunetScan | Row:
        """The scan on the plan's grid, or its row where it is done and unchanged."""
        row["key"] = self._key(files)
        earlier = self.known.get(files.case, {})
        if earlier.get("key") == row["key"] and earlier["status"] != "failed":
            has_masks = self.predictor.plan.candidate_rule.source != "detection"
            if all(path.is_file() for path in self._paths(files)[: 1 + has_masks]):
                row.update({**earlier, "group": row["group"], "visit": row["visit"]}, status="kept")
                return row
        self._clear(files)
        scan = self.predictor.prepare(files)
        trim_memory()
        return scan

    def infer(self, _: CaseFiles, row: Row, scan: PreparedScan | NnunetScan) -> Inferred:
        """What the networks say; too large a case keeps its probabilities in a file."""
        is_large = needed_bytes(scan.file_geometry, self.predictor.plan) > self.budget
        inferred = self.predictor.infer(scan, folder=self.output if is_large else None)
        trim_memory()  # glibc would keep what tiles have freed beside what follows
        return inferred

    def write(self, files: CaseFiles, row: Row, inferred: Inferred) -> Row:
        """Back to the file's grid, candidates, files; the candidates' file comes last."""
        cfg, plan = self.cfg, self.predictor.plan
        image = files.images[0]
        if cfg.save_probabilities:
            shape = (len(plan.label_values), *inferred.file_geometry.shape)
            probabilities = np.empty(shape, dtype=np.float16)

            def keep(label: int, first: int, slab: Slab) -> None:
                probabilities[label, first : first + len(slab)] = slab

            prediction = self.predictor.decide(inferred, files.case, keep)
            with atomic_path(self.output / f"{files.case}_probabilities.npz") as path:
                np.savez_compressed(path, probabilities=probabilities)
        else:
            prediction = self.predictor.decide(inferred, files.case)
        mm = inferred.file_geometry.spacing_mm[0]
        zones = self.zones.read(files.case, mm) if self.zones else None
        zone_names: list[str] = []
        if zones is not None:
            pairs = zip(prediction.candidates, zones.of(candidates_of(prediction)), strict=True)
            placed = tuple(replace(candidate, zone=zone) for candidate, zone in pairs)
            prediction = replace(prediction, candidates=placed)
            present = (value for value in present_values(zones.values) if value > 0)
            zone_names = [zones.names.get(value, str(value)) for value in present]
        point = self.predictor.operating_point()
        if cfg.dicom_output and _is_dicom(files):
            is_segmented = write_dicom_results(
                image,
                prediction,
                ResultOrigin(__version__, self.bundle, row["key"]),
                plan.lesion_labels,
                report=self.output / f"{files.case}{REPORT}",
                segmentation=self.output / f"{files.case}{SEGMENTATION}",
                mask_labels=dict(zip(plan.label_values, plan.label_names, strict=True)),
            )
            if not is_segmented and prediction.instances is not None:
                row["message"] = NO_SEGMENTATION
        suffix = result_suffix(image, plan.dims)
        write_prediction(self.output, prediction, suffix=suffix, like=image, names=cfg.names)
        upload(filter(Path.is_file, self._paths(files)), self.output, cfg.output)
        row |= {
            "status": "done",
            "n_candidates": len(prediction.candidates),
            "n_accepted": sum(c.accepted for c in prediction.candidates),
            "missing": " ".join(prediction.input.missing if prediction.input else ()),
            "operating_point": point.name,
            **counts_of(prediction.candidates, plan.lesion_labels, zone_names),
        }
        if prediction.input:
            checked = prediction.input
            row |= {"warning": checked.warning, "input_score": checked.score}
        if prediction.n_left_out:
            row["warning"] = f"{row['warning']} {prediction.left_out_note}".strip()
        return row

    def _key(self, files: CaseFiles) -> str:
        """Changes with bundle, settings, and size or time of change of a case's files."""
        cfg, paths = self.cfg, [path for image in files.images for path in content_files(image)]
        if self.zones is not None and files.case in self.zones.masks:
            paths.append(self.zones.masks[files.case])
        states = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
        how = cfg.inference.model_copy(update={"max_memory_gb": None})
        choices = (self.bundle, how, self.predictor.operating_point(), cfg.raster_mm)
        zones = self.zones and dict(self.zones.names)
        written = (cfg.save_probabilities, cfg.names, cfg.dicom_output, zones)
        whole = repr((__version__, choices, written, files.missing, files.pixel_mm, states))
        return blake2b(whole.encode(), digest_size=8).hexdigest()

    def _paths(self, files: CaseFiles) -> list[Path]:
        """The files that a case may get, the candidates' first, then its mask's.

        Raises `DatasetError` for an id that cannot name files, or would name others.
        """
        check_case_id(files.case, files.images[0])
        suffix = result_suffix(files.images[0], self.predictor.plan.dims)
        masks = (f"{kind}{suffix}" for kind in (MASK_ENDINGS[self.cfg.names], *_MASKS))
        endings = "_candidates.json", *masks, *_OTHERS
        return [self.output / f"{files.case}{ending}" for ending in endings]

    def _clear(self, files: CaseFiles) -> None:
        paths = self._paths(files)
        halves = [h for p in paths for h in self.output.glob(f".????????-{escape(p.name)}")]
        if paths[0].is_file():  # an earlier run's masks may be of other suffixes
            kinds = (files.case + kind for kind in ("_mask", *_MASKS))
            paths += [self.output / (kind + suffix) for kind in kinds for suffix in _SUFFIXES]
        gone = [path for path in dict.fromkeys(paths) if path.is_file()]
        for file in (*gone, *halves):
            file.unlink(missing_ok=True)
        upload(gone, self.output, self.cfg.output)


def _is_dicom(files: CaseFiles) -> bool:
    with suppress(OSError):  # a file that cannot be opened fails by itself
        return is_dicom_image(files.images[0])
    return False

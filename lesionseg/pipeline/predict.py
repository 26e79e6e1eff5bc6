"""`predict`: a bundle and a folder of scans in; masks, candidates and a status per scan out."""

import logging
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from lesionseg.config import PredictConfig, SeriesConfig
from lesionseg.errors import (
    ConfigError,
    DatasetError,
    count,
)
from lesionseg.io.dicom.results import (
    require_highdicom,
)
from lesionseg.io.files import locked_folder
from lesionseg.io.layouts.input_images import (
    FoundScan,
    FoundScans,
    explain_nothing_found,
    find_scans,
    mark_clashes,
)
from lesionseg.io.nnunet_output import check_nnunet_labels, write_description
from lesionseg.io.prediction_folder import PredictionFolder
from lesionseg.io.remote import download, upload
from lesionseg.io.volumes import result_suffix
from lesionseg.io.zone_files import find_zones
from lesionseg.models.build import NetworkFactory
from lesionseg.pipeline.case_work import is_dicom, make_predictor, predict_cases
from lesionseg.pipeline.log import Advance, bar
from lesionseg.pipeline.predict_log import PredictLog, predict_log
from lesionseg.pipeline.predict_selection import is_archive, select
from lesionseg.pipeline.predict_tables import (
    TABLE,
    CaseRow,
    PredictionTable,
    PredictOutcome,
    left_out_row,
    rebuilt_row,
)
from lesionseg.plan.plan import Plan

logger = logging.getLogger(__name__)


def predict(
    cfg: PredictConfig,
    *,
    architectures: Mapping[str, NetworkFactory] | None = None,
    progress: Advance | None = None,
) -> PredictOutcome:
    """Predict every scan found in `cfg.input`; one row each, by case id.

    Writes mask, instances and candidates of each case to `cfg.output`, in the scan's own geometry
    and format, and `predictions.csv`, in which rows of other cases stay. A case that fails does not
    stop the others. Started again, it leaves out what is done and unchanged, and what failed and is
    unchanged. Results of another scan are never replaced unless `cfg.overwrite`. Files follow the
    umask. Input and output may be URLs.

    Args:
        cfg: see conf/predict.yaml.
        architectures: the caller's own networks; see `Predictor`.
        progress: called with case, number done and total after every case, instead of a bar.

    Raises:
        BundleError, ConfigError: for an unusable bundle or setting.
        DatasetError: when there is no case.
        OutputError: when another process writes into the output folder.
    """
    folder = download(cfg.output, new=True)
    is_whole = cfg.num_shards == 1
    # no two processes write the same file
    name = TABLE if is_whole else f"predictions_{cfg.shard_index}_of_{cfg.num_shards}.csv"
    stem = name.removesuffix(".csv")
    with predict_log(folder, stem, url=cfg.output, json_lines=cfg.json_lines) as log:
        outcome = _predict(cfg, folder, folder / name, log, architectures, progress)
        log.end(outcome)
    return outcome


def _predict(
    cfg: PredictConfig,
    folder: Path,
    table_path: Path,
    log: PredictLog,
    architectures: Mapping[str, NetworkFactory] | None,
    progress: Advance | None,
) -> PredictOutcome:
    """Predict into a folder, with the rows in `table_path`."""
    predictor = make_predictor(cfg, architectures)
    if cfg.save_probabilities and not predictor.plan.has_voxels:
        raise ConfigError("save_probabilities=true: a network without voxels has none to save.")
    as_nnunet = cfg.save_probabilities and cfg.names == "nnunet"
    if as_nnunet:
        check_nnunet_labels(predictor.plan.labels)
    source = download(cfg.input)
    found = find_cases(source, folder, predictor.plan, cfg.series)
    scans = list(found.scans[cfg.shard_index :: cfg.num_shards])
    if cfg.dicom_output and any(map(is_dicom, scans)):
        require_highdicom()
    if cfg.zones is not None:
        find_zones(Path(cfg.zones)).check([scan.case for scan in found.scans])
    log.note("input", f"{count(len(scans), 'scan')} in {cfg.input}.")
    rows: list[CaseRow] = []
    first = next((scan.files.images[0] for scan in scans if scan.files.images), None)
    if as_nnunet and first is not None:
        suffix = result_suffix(first, predictor.plan.dims)
        write_description(folder, predictor.plan.channel_names, predictor.plan.labels, suffix)
        upload([folder / name for name in ("dataset.json", "plans.json")], folder, cfg.output)
    with (
        locked_folder(folder, f".{table_path.name}.lock"),
        closing(PredictionTable(table_path, cfg.output)) as table,
        bar("Predicting", progress) as advance,
    ):
        results = PredictionFolder(folder, cfg.output, cfg.names)
        if cfg.num_shards == 1:
            _restore(results, table)
            table.forget_left_out()
        scans = [_as_before(scan, results) for scan in scans]
        if cfg.shard_index == 0:
            for kind in found.left_out:
                table.put(left_out_row(kind))
        if cfg.engine == "ray":
            from lesionseg.pipeline.predict_ray import predict_on_ray

            finished = predict_on_ray(cfg, folder, scans, table.earlier, architectures)
        else:
            finished = predict_cases(cfg, predictor, folder, scans, table.earlier)
        with closing(finished):
            for row in finished:
                table.put(row)
                rows.append(row)
                log.case(row)
                if row.status == "failed" and not row.is_unchanged:
                    said = {"of_case": True}
                    logger.warning("%s failed: %s", row.case, row.message, extra=said)
                advance(row.case, len(rows), len(scans))
    rows.sort(key=lambda row: (row.case, row.path))
    return PredictOutcome(tuple(rows), folder, found.left_out)


def _restore(results: PredictionFolder, table: PredictionTable) -> None:
    """Finish what a killed run left in the folder, and give rows to results without one."""
    for case in results.recover_all():
        logger.info("The results of %s, which an interrupted run had made, are in place.", case)
    for case in results.cases():
        if not any(row.is_done for row in table.earlier.get(case, ())):
            row = rebuilt_row(results, case)
            if row is not None:
                table.put(row)


def _as_before(scan: FoundScan, results: PredictionFolder) -> FoundScan:
    """Return the scan under the id that the folder has its series' results under.

    The only series of a folder is called like the folder, one of several also by number and UID.
    Results keep their name if another series comes into the folder, or leaves it.
    """
    if scan.fault or not scan.other_case or scan.dicom is None:
        return scan
    for case in (scan.case, scan.other_case):
        source = results.source(case)
        if source is not None and source.series_uid == scan.dicom.series_uid:
            return replace(scan, files=replace(scan.files, case=case, group=case))
    return scan


def find_cases(source: Path, output: Path, plan: Plan, series: SeriesConfig) -> FoundScans:
    """Find the scans of `source`, without the results of an earlier run in `output`.

    Those that `series` leaves out, and localisers and lone slices of an archive, are among them
    with the reason.

    Raises `ConfigError` for an output that is a file or the input itself, `DatasetError` without
    scans.
    """
    if output.exists() and not output.is_dir():
        raise ConfigError(f"output={output} is a file. Name a folder.")
    if source.is_dir() and output.exists() and source.samefile(output):
        raise ConfigError(
            f"output={output} is the input folder itself. Name another one, which may be in it."
        )
    results = output.resolve()
    is_single = source.is_file() and source.suffix.lower() != ".csv"
    if is_single and results in source.resolve().parents:
        raise ConfigError(f"output={output} holds the scan {source}. Name another folder.")
    found = find_scans(source, len(plan.channel_names), dims=plan.dims, results=results)
    if not found.scans:
        raise DatasetError(explain_nothing_found(source, found))
    found = select(found, series, plan, archive=is_archive(source))
    return replace(found, scans=tuple(mark_clashes(found.scans)))

"""`predict`: write masks, candidates and a status for each scan of a folder."""

import logging
import shutil
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from lesionseg.config import MaskNames, PredictConfig, SeriesConfig, is_dicomweb, is_url
from lesionseg.errors import ConfigError, DatasetError, LesionsegError, OutputError, count
from lesionseg.inference.bundle import joint_digest
from lesionseg.io.dicom.results import require_highdicom
from lesionseg.io.dicomweb import DicomWeb
from lesionseg.io.nnunet_probabilities import write_description
from lesionseg.io.remote import download, upload
from lesionseg.io.results.folder import PredictionFolder, claim_table
from lesionseg.io.results.index import TABLE, PredictionIndex, left_out_row
from lesionseg.io.results.names import write_bids_description
from lesionseg.io.results.row import CaseRow
from lesionseg.io.scans import FoundScans, Scan, find_scans
from lesionseg.io.volumes import result_suffix
from lesionseg.models.build import NetworkFactory
from lesionseg.pipeline.log import Advance, bar
from lesionseg.pipeline.predict_case import (
    CaseWork,
    make_predictor,
    open_zones,
    predict_cases,
)
from lesionseg.pipeline.predict_log import PredictLog, predict_log
from lesionseg.pipeline.predict_outcome import PredictOutcome
from lesionseg.pipeline.predict_selection import explain_unwanted, is_archive, select_shard
from lesionseg.pipeline.predict_send import ResultSender
from lesionseg.plan.plan import Plan

logger = logging.getLogger(__name__)

# files of an output at a URL that a run reads: case files, tables and logs, but no masks
_DOWNLOADED = (".json", ".csv", ".log", ".jsonl")


def predict(
    cfg: PredictConfig,
    *,
    architectures: Mapping[str, NetworkFactory] | None = None,
    progress: Advance | None = None,
) -> PredictOutcome:
    """Predict every scan found in `cfg.input`. Return the outcome, with a row per scan.

    `cfg.output` receives mask, instances and candidates of each case, in the scan's own geometry
    and format, and `predictions.csv`, an index of all case files in the folder, with a log. A shard
    has a table and a log of its own. A case that fails does not stop the run. A later run skips
    unchanged cases that were done before, or failed because of their files.
    Results of another scan are replaced only with `cfg.overwrite`. Permissions of files follow the
    umask. Input and output may be URLs. The input may be a PACS, from which each scan is fetched
    when it is read. With `cfg.send`, DICOM results are stored in a PACS.

    Args:
        cfg: see conf/predict.yaml.
        architectures: the caller's own networks; see `Predictor`.
        progress: called with case, number done and total after every case, instead of a bar.

    Raises:
        BundleError: if the bundle cannot be used.
        ConfigError: if a setting is wrong.
        DatasetError: if no scan is found, or no scan has a mask of zones.
        ReadError: if the input, the output at a URL, or a model cannot be downloaded or read.
        OutputError: if another process writes to the output folder, or a file that belongs to no
            single case cannot be written.
    """
    folder = download(cfg.output, new=True, endings=_DOWNLOADED)
    _check_places(cfg.input, folder)  # before the log is written into the folder
    is_whole = cfg.num_shards == 1
    # each shard writes its own table, so two processes never write the same file
    name = TABLE if is_whole else f"predictions_{cfg.shard_index}_of_{cfg.num_shards}.csv"
    stem = name.removesuffix(".csv")
    with predict_log(
        folder, stem, url=cfg.output, json_lines=cfg.json_lines, private=cfg.private
    ) as log:
        outcome = _predict(cfg, folder, folder / name, log, architectures, progress)
        log.note_end(outcome)
    return outcome


def _predict(
    cfg: PredictConfig,
    folder: Path,
    table_path: Path,
    log: PredictLog,
    architectures: Mapping[str, NetworkFactory] | None,
    progress: Advance | None,
) -> PredictOutcome:
    """Predict into a folder, with the rows in `table_path`. The other arguments: see `predict`.

    If no scan is found, only results that wait are sent to the PACS, before the error. A shard
    sends none of them.
    """
    source = DicomWeb("input", cfg.input) if is_dicomweb(cfg.input) else None
    target = None if cfg.send is None else DicomWeb("send", cfg.send)
    digest = joint_digest(cfg.bundle)  # of the networks that are loaded now
    predictor = make_predictor(cfg, architectures)
    _check_probability_settings(cfg, predictor.plan)
    fetched = folder / f".{table_path.name}.fetched"
    is_whole = cfg.num_shards == 1
    try:
        found = _find(cfg, folder, predictor.plan, source, fetched)
    except DatasetError:
        if target is not None and is_whole and folder.is_dir():
            with claim_table(folder, table_path.name):
                results = PredictionFolder(folder, cfg.output, cfg.names)
                ResultSender(target, results).send_waiting()
        raise
    scans = select_shard(found.scans, cfg.shard_index, cfg.num_shards)
    if cfg.dicom_output and any(scan.dicom for scan in scans):
        require_highdicom()
    zones = open_zones(cfg)
    if zones is not None:
        zones.check([scan.case for scan in found.scans])
    log.note("input", _describe_input(cfg, len(scans), len(found.scans)))
    rows: list[CaseRow] = []
    with (
        claim_table(folder, table_path.name),
        _removed(fetched),
        bar("Predicting", progress) as advance,
    ):
        results = PredictionFolder(folder, cfg.output, cfg.names)
        _describe_output(cfg, folder, scans, predictor.plan)
        if is_whole:  # another shard may be writing its cases now
            _complete_interrupted(results)
        scans = [_keep_earlier_id(scan, results) for scan in scans]
        with closing(PredictionIndex(table_path, results, cfg.output)) as index:
            work = CaseWork(cfg, predictor, results, index.digests, digest, zones)
            if cfg.shard_index == 0:
                for kind in found.left_out:
                    index.put(left_out_row(kind))
            sender = ResultSender(target, results)
            with closing(_run_engine(work, scans, architectures)) as finished:
                for finished_row in finished:
                    row = _send(finished_row, sender)
                    _record(row, results, index, log)
                    rows.append(row)
                    advance(row.case, len(rows), len(scans))
            if is_whole:
                sender.send_waiting()
                _forget_remedied(results, found.scans, rows, found.root)
    rows.sort(key=lambda row: (row.case, row.path))
    return PredictOutcome(
        tuple(rows),
        folder,
        found.left_out,
        table_path.name,
        sent=None if target is None else tuple(sender.sent),
        unsent=tuple(sender.unsent),
    )


def _send(row: CaseRow, sender: ResultSender) -> CaseRow:
    """Store the DICOM results of a case in the PACS. Return its row, with the reason if it fails.

    The row of a failed or skipped scan is not changed, because later runs compare its message.
    """
    if not row.is_done:
        return row
    sender.send(row.case)
    reason = sender.unsent.get(row.case, "")
    return replace(row, message=f"{row.message} {reason}".strip())


def _complete_interrupted(results: PredictionFolder) -> None:
    """Complete the results of the cases that a killed run has written but not moved. Log them.

    Incomplete results of a killed run are removed.
    """
    for case in results.recover_all():
        logger.info("The results of %s, from an interrupted run, were completed.", case)


@contextmanager
def _removed(folder: Path) -> Iterator[None]:
    """Remove a folder before and after the context. A run that was killed may have left it."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _find(
    cfg: PredictConfig, output: Path, plan: Plan, pacs: DicomWeb | None, fetched: Path
) -> FoundScans:
    """Find the scans of the input. Those of a PACS will be fetched into the folder `fetched`.

    Files at a URL are downloaded now.

    `output`: the folder of results, which are not scans. `pacs`: None for an input of files.

    Raises:
        DatasetError: if no scan is found.
        ReadError: if the input cannot be read, downloaded or searched.
    """
    if pacs is not None:
        unwanted = partial(explain_unwanted, cfg=cfg.series, plan=plan, archive=True)
        return pacs.find_scans(fetched, unwanted)
    source = download(cfg.input)
    if cfg.engine == "ray":  # its processes run in another folder
        source = source.absolute()
    return find_input_scans(source, output, plan, cfg.series, names=cfg.names)


def _describe_input(cfg: PredictConfig, n_own: int, n_found: int) -> str:
    """Return the sentence of the log on the scans of the input, and on those of this shard."""
    found = f"{count(n_found, 'scan')} in {cfg.input}"
    if cfg.num_shards == 1:
        return f"{found}."
    own = str(n_own) if n_own else "none"
    return f"Shard {cfg.shard_index} of {cfg.num_shards} predicts {own} of {found}."


def _check_probability_settings(cfg: PredictConfig, plan: Plan) -> None:
    """Raise `ConfigError` if the settings ask for probabilities, but the model predicts boxes."""
    if cfg.save_probabilities and not plan.has_voxels:
        raise ConfigError(
            "save_probabilities=true: this model predicts boxes, so there are no probabilities. "
            "Leave the setting out."
        )


def _describe_output(cfg: PredictConfig, folder: Path, scans: Sequence[Scan], plan: Plan) -> None:
    """Write the files that BIDS requires, or that nnU-Net expects next to its probabilities."""
    images = [image for scan in scans for image in scan.files.images]
    written: list[Path] = []
    if cfg.names == "bids":
        written = write_bids_description(folder)
    elif cfg.names == "nnunet" and cfg.save_probabilities and images:
        suffix = result_suffix(images[0], plan.dims)
        written = write_description(folder, plan.channel_names, plan.labels, suffix)
    upload(written, folder, cfg.output)


def _run_engine(
    work: CaseWork,
    scans: Sequence[Scan],
    architectures: Mapping[str, NetworkFactory] | None,
) -> Generator[CaseRow]:
    """Predict the scans in this process or on a Ray cluster, as the settings state."""
    if work.cfg.engine == "ray":
        from lesionseg.pipeline.predict_ray import predict_on_ray

        return predict_on_ray(work.cfg, work.results.path, scans, work.digests, architectures)
    return predict_cases(work, scans)


def _record(
    row: CaseRow, results: PredictionFolder, index: PredictionIndex, log: PredictLog
) -> None:
    """Write the row of a finished scan to the table and log, and update its recorded failures.

    The log has no line for results and reasons of an earlier run that are unchanged. Warn of a scan
    that failed just now, and if the file of failures cannot be written.
    """
    try:
        results.update_failures(row)
    except OutputError as error:  # the table has the row nevertheless
        logger.warning("%s", error)
    index.put(row)
    if not (row.is_unchanged or index.has_earlier(row)):
        log.note_case(row)
    if row.status == "failed" and not row.is_unchanged:
        extra = {"of_case": True}  # the files have the line of `note_case` instead
        logger.warning("%s failed: %s", row.case, row.message, extra=extra)


def _forget_remedied(
    results: PredictionFolder, scans: Sequence[Scan], rows: Sequence[CaseRow], root: Path
) -> None:
    """Forget earlier failures of scans that have been remedied.

    No scan of this run has the path of such a failure. One of these conditions is true:

    - The file belongs to another scan of this run: the slices of its series were copied again.
    - The same scan has another row: it was renamed.

    Otherwise the failure stays. That its path does not exist proves nothing: an input that is
    emptied every night no longer contains the scans that failed, and paths of another input begin
    elsewhere. `root` is the folder below which the paths of this run begin.
    """
    paths = {scan.path for scan in scans}
    files: set[Path] = set()
    for scan in scans:
        files.update(scan.files.images if scan.dicom is None else scan.dicom.files)
    known: set[str] = set()
    for row in (*rows, *results.rows()):
        known |= {row.digest, row.scan_uid} - {""}

    def is_remedied(failure: CaseRow) -> bool:
        """Return True if a failure meets the conditions above."""
        if failure.path in paths:
            return False
        return root / failure.path in files or not known.isdisjoint(
            (failure.digest, failure.scan_uid)
        )

    results.forget_failures(is_remedied)


def _keep_earlier_id(scan: Scan, results: PredictionFolder) -> Scan:
    """Return the scan with the case id under which the folder has results of its DICOM series.

    The id of a series depends on its folder: it is the folder's name if the folder contains one
    series, and otherwise also has the number and UID of the series. Without this step, the id
    would change if another series is added to the folder or removed. A series without UID is
    recognised by the digest of its files. A scan without such results, or with a fault, is returned
    unchanged.
    """
    if scan.fault or not scan.other_case or scan.dicom is None:
        return scan
    for case in (scan.case, scan.other_case):
        row = results.row(case)
        if row is not None and _is_of_series(row, scan, scan.dicom.series_uid):
            return replace(scan, files=replace(scan.files, case=case, group=case))
    return scan


def _is_of_series(row: CaseRow, scan: Scan, series_uid: str) -> bool:
    """Return True if a result was computed from this DICOM series.

    Return False for a series without UID that cannot be read.
    """
    if series_uid:
        return row.series_uid == series_uid
    with suppress(LesionsegError):  # reading the scan reports the error
        return row.digest == scan.digest()
    return False


def find_input_scans(
    source: Path,
    output: Path,
    plan: Plan,
    series: SeriesConfig,
    *,
    names: MaskNames = "lesionseg",
) -> FoundScans:
    """Find the scans of `source`, except results of an earlier run in `output`.

    Scans that are not predicted, because of `series` or because they are localisers or single
    slices of an archive, are included with the reason. `names`: the names of masks in `output`.

    Raises:
        DatasetError: if no scan is found.
        ReadError: see `find_scans`.
    """
    archive = is_archive(source)
    found = find_scans(
        source,
        len(plan.channel_names),
        dims=plan.dims,
        results=output.resolve(),
        unwanted=partial(explain_unwanted, cfg=series, plan=plan, archive=archive),
        names=names,
    )
    if not found.scans:
        raise DatasetError(found.explain_nothing_found())
    return found


def _check_places(place: str, output: Path) -> None:
    """Raise `ConfigError` if the output is a file, or is or contains the input (`place`).

    A table of scans may be in the output. A URL is not compared with it.
    """
    if output.exists() and not output.is_dir():
        raise ConfigError(f"output={output} is a file. Name a folder.")
    source = Path(place).resolve()
    is_table = source.is_file() and source.suffix.lower() == ".csv"
    if is_url(place) or is_table or not output.exists():
        return
    # wildcards are names that no folder has
    if any(folder.exists() and folder.samefile(output) for folder in (source, *source.parents)):
        raise ConfigError(
            f"output={output} contains the input {place}, so its scans would count as results. "
            "Name another folder, for example one inside the input."
        )

"""`predict`: all scans of an input: engine, earlier results, drift messages, files of a folder.

Masks, candidates and a status are written for each scan.
"""

import logging
import shutil
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from lesionseg.config import PredictConfig, is_dicomweb, is_url
from lesionseg.errors import ConfigError, DatasetError, LesionsegError, OutputError, count
from lesionseg.evaluation.drift import watch
from lesionseg.extra import find_extra
from lesionseg.io.nnunet_probabilities import write_description
from lesionseg.io.remote import download, upload
from lesionseg.io.results.bids_files import write_bids_description
from lesionseg.io.results.folder import PredictionFolder, claim_table
from lesionseg.io.results.index import PredictionIndex
from lesionseg.io.results.row import CaseRow
from lesionseg.io.scans import FoundScans, Scan, find_scans
from lesionseg.io.volumes import result_suffix
from lesionseg.models.build import NetworkFactory
from lesionseg.pipeline.log import Advance, bar
from lesionseg.pipeline.predict_case import (
    CaseWork,
)
from lesionseg.pipeline.predict_log import PredictLog, predict_log
from lesionseg.pipeline.predict_outcome import PredictOutcome
from lesionseg.pipeline.predict_outputs import Outputs
from lesionseg.pipeline.predict_selection import Shard, explain_skipped, is_archive
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
    """Predict every scan found in `cfg.input`, and return the outcome with a row per scan.

    Mask, instances and candidates of each case are written to `cfg.output`, in the scan's own
    geometry and file format. The table `predictions.csv` lists all cases of the folder, and a log
    lists the events. A shard (one of several jobs that divide the scans) has its own table and log.

    A case that fails does not stop the run. A later run skips unchanged scans that are done, or
    that failed because of their content. Results of another scan under the same case id are
    replaced only with `cfg.overwrite`. Permissions of files follow the umask.

    Input and output may be URLs. The input may be a PACS, from which each scan is fetched just
    before it is read. With `cfg.send`, DICOM results are stored in a PACS.

    Args:
        cfg: See conf/predict.yaml.
        architectures: The caller's own networks; see `Predictor`.
        progress: Called with case, number done and total after every case, instead of a bar.

    Raises:
        BundleError: If the bundle cannot be used.
        ConfigError: If a setting is wrong.
        DatasetError: If no scan is found, or no scan has a mask of zones.
        ReadError: If the input, the output at a URL, or a model cannot be downloaded or read.
        OutputError: If another process writes to the output folder, or a file that belongs to no
            single case cannot be written.
    """
    if cfg.engine == "ray":  # its processes run in another folder
        cfg = cfg.with_absolute_paths()
    # of an output at a URL, only tables, logs and JSON files are needed, not the masks
    folder = download(cfg.output, new=True, endings=_DOWNLOADED)
    _check_places(cfg.input, folder)  # before the log is written into the folder
    shard = Shard(cfg.shard_index, cfg.num_shards)
    stem = shard.table.removesuffix(".csv")
    with predict_log(
        folder, stem, url=cfg.output, json_lines=cfg.json_lines, private=cfg.private
    ) as log:
        outcome = _predict(cfg, folder, shard, log, architectures, progress)
        log.note_end(outcome)
    return outcome


def _predict(
    cfg: PredictConfig,
    folder: Path,
    shard: Shard,
    log: PredictLog,
    architectures: Mapping[str, NetworkFactory] | None,
    progress: Advance | None,
) -> PredictOutcome:
    """Find the scans of a shard and predict them into the local output folder.

    If no scan is found, DICOM results that an earlier run could not send are sent to the PACS
    before the error is raised. A run that is only one of several shards does not send them.

    Args:
        cfg: The settings.
        folder: The local output folder.
        shard: The scans that this run predicts.
        log: The log of the run.
        architectures: The caller's own networks by their names in the plan, or None.
        progress: Called with case, number done and total after every case; None shows a bar.
    """
    # load the model and find the scans; a PACS address is checked before the model is loaded
    is_pacs = is_dicomweb(cfg.input)
    pacs = find_extra("pacs", "input").DicomWeb("input", cfg.input) if is_pacs else None
    work = CaseWork(cfg, architectures)
    plan = work.predictor.plan
    outputs = work.outputs
    fetched = folder / f".{shard.table}.fetched"
    try:
        if pacs is None:
            source = download(cfg.input)
            found = find_input_scans(source, folder, plan, cfg)
        else:
            # a PACS is an archive: the user did not choose each of its scans
            unwanted = partial(explain_skipped, cfg=cfg.series, plan=plan, archive=True)
            found = pacs.find_scans(fetched, unwanted)
    except DatasetError:
        if cfg.send is not None and shard.is_whole and folder.is_dir():
            with claim_table(folder, shard.table):
                outputs.finish(PredictionFolder(folder, cfg.output, cfg.names))
        raise
    # choose the scans of this shard
    scans = shard.select(found.scans)
    outputs.check(scans)
    if work.zones is not None:
        work.zones.check([scan.case for scan in found.scans])
    scans_in_input = f"{count(len(found.scans), 'scan')} in {cfg.input}."
    share = f"Shard {shard.index} of {shard.n_shards} predicts {len(scans) or 'none'} of "
    log.note("input", scans_in_input if shard.is_whole else share + scans_in_input)
    with (
        claim_table(folder, shard.table),
        _temporary_folder(fetched),
        bar("Predicting", progress) as advance,
    ):
        # prepare the output folder
        results = PredictionFolder(folder, cfg.output, cfg.names)
        example_file = next((scan.files.images[0] for scan in scans if scan.files.images), None)
        _describe_output(
            results, cfg.output, plan, example_file if cfg.save_probabilities else None
        )
        if shard.is_whole:  # another shard may be writing its cases now
            for case in results.recover_all():
                logger.info("The results of %s, from an interrupted run, were completed.", case)
        scans = [_keep_earlier_id(scan, results) for scan in scans]
        # predict, and write each row as soon as its scan is finished
        with closing(PredictionIndex(folder / shard.table, results, cfg.output)) as index:
            # notes on files that are not scans; the first shard writes them for all
            for note in found.left_out if shard.index == 0 else ():
                index.put(CaseRow(note.file, status="skipped", message=f"{note.message}."))
            rows: list[CaseRow] = []
            with closing(_run_engine(work, scans, index, architectures)) as finished:
                for finished_row in finished:
                    row = _send_files(finished_row, outputs, results)
                    _record_row(row, results, index, log)
                    rows.append(row)
                    advance(row.case, len(rows), len(scans))
            # these steps concern all scans of the folder, so a shard leaves them out
            drifts: tuple[str, ...] = ()
            if shard.is_whole:
                outputs.finish(results)
                _forget_remedied(results, found.scans, rows, found.root)
                drifts = _find_new_drifts(results, rows)
    rows.sort(key=lambda row: (row.case, row.path))
    return PredictOutcome(
        tuple(rows),
        folder,
        found.left_out,
        shard.table,
        sent=None if cfg.send is None else tuple(outputs.sent),
        unsent=tuple(outputs.unsent),
        drifts=drifts,
    )


def _find_new_drifts(results: PredictionFolder, rows: Sequence[CaseRow]) -> tuple[str, ...]:
    """Return a sentence for each drift to which a scan of this run contributes.

    A drift is a sequence of scans with a value outside its usual range, see `evaluation.drift`.
    Drifts of only older scans are left out, because earlier runs have reported them. An unchanged
    scan, which was not predicted again, does not count as a scan of this run.
    """
    new = {row.case for row in rows if not row.is_unchanged}
    # each watched value is a series of numbers, such as volumes, of all scans of a model
    drifts = [drift for value in watch(results) for drift in value.find_drifts()]
    return tuple(drift.sentence for drift in drifts if new & {row.case for row in drift.rows})


def _send_files(row: CaseRow, outputs: Outputs, results: PredictionFolder) -> CaseRow:
    """Send the DICOM results of a finished case, and return its row with the reason if this fails.

    The row of a failed or skipped scan is returned unchanged, because later runs compare its
    message.
    """
    if not row.is_done:
        return row
    return replace(row, message=f"{row.message} {outputs.after_commit(row.case, results)}".strip())


@contextmanager
def _temporary_folder(folder: Path) -> Iterator[None]:
    """Remove a temporary folder before and after the context.

    A run that was killed may have left the folder.
    """
    shutil.rmtree(folder, ignore_errors=True)
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _describe_output(results: PredictionFolder, url: str, plan: Plan, scan: Path | None) -> None:
    """Write the files that describe an output folder in the conventions of BIDS or nnU-Net.

    BIDS requires a description of the dataset. nnU-Net expects one next to its probabilities. The
    files are uploaded if the output is a URL.

    Args:
        results: The output folder, whose names follow a convention.
        url: The output in the settings.
        plan: The plan of the model.
        scan: The path of a scan, whose format the results have; None if no probabilities are saved.
    """
    written: list[Path] = []
    if results.names == "bids":
        written = write_bids_description(results.path)
    elif results.names == "nnunet" and scan is not None:
        suffix = result_suffix(scan, plan.dims)
        written = write_description(results.path, plan.channel_names, plan.labels, suffix)
    upload(written, results.path, url)


def _run_engine(
    work: CaseWork,
    scans: Sequence[Scan],
    index: PredictionIndex,
    architectures: Mapping[str, NetworkFactory] | None,
) -> Generator[CaseRow]:
    """Yield the rows of predicted scans from this process or a Ray cluster, by `cfg.engine`."""
    results = index.results
    if work.cfg.engine == "ray":
        from lesionseg.pipeline.predict_ray import predict_on_ray

        return predict_on_ray(work.cfg, results.path, scans, index.digests, architectures)
    return work.predict(scans, results, index.digests)


def _record_row(
    row: CaseRow, results: PredictionFolder, index: PredictionIndex, log: PredictLog
) -> None:
    """Write the row of a finished scan to the table, the log and the file of recorded failures.

    A result or a reason that is unchanged since an earlier run is not logged again. Warn of a scan
    that failed in this run, and if the file of failures cannot be written.

    Args:
        row: The row.
        results: The output folder with the recorded failures.
        index: The table.
        log: The log.
    """
    try:
        results.update_failures(row)
    except OutputError as error:  # the table has the row nevertheless
        logger.warning("%s", error)
    index.put(row)
    if not (row.is_unchanged or index.has_earlier(row)):
        log.note_case(row)
    if row.status == "failed" and not row.is_unchanged:
        # `of_case` keeps it out of the log files, which have the line of `note_case` instead
        extra = {"of_case": True}
        logger.warning("%s failed: %s", row.case, row.message, extra=extra)


def _forget_remedied(
    results: PredictionFolder, scans: Sequence[Scan], rows: Sequence[CaseRow], root: Path
) -> None:
    """Remove the recorded failures of scans whose cause has been remedied.

    A failure is removed if no scan of this run has its path, and one of these conditions is true:

    - Its file belongs to another scan of this run. This happens if the slices of the series were
      copied again.
    - A row has the same content or UID. This happens if the scan was renamed.

    Otherwise the failure stays. It may not be removed only because its path does not exist: an
    input that is emptied every night no longer contains the scans that failed.

    Args:
        results: The output folder with the recorded failures.
        scans: All scans of the input.
        rows: The rows of this run.
        root: The folder to which the paths of the scans are relative.
    """
    paths = {scan.path for scan in scans}
    files: set[Path] = set()
    for scan in scans:
        files.update(scan.files.images if scan.dicom is None else scan.dicom.files)
    known_ids: set[str] = set()
    for row in (*rows, *results.rows()):
        known_ids |= {row.digest, row.scan_uid} - {""}

    def is_remedied(failure: CaseRow) -> bool:
        """Return True if the failure meets the conditions above."""
        if failure.path in paths:
            return False
        return root / failure.path in files or not known_ids.isdisjoint(
            (failure.digest, failure.scan_uid)
        )

    results.forget_failures(is_remedied)


def _keep_earlier_id(scan: Scan, results: PredictionFolder) -> Scan:
    """Return the scan under the case id that its DICOM series had in an earlier run.

    A series in a folder has the folder's name as its case id. If the folder contains several
    series, the id also has the number and UID of the series. Without this step, the id would change
    if a series is added to the folder or removed, and the scan would be predicted twice. The other
    of the two possible ids is `other_case`. A scan without earlier results, with an error
    (`problem`), or that is no series in a folder is returned unchanged.
    """
    if scan.problem or not scan.other_case or scan.dicom is None:
        return scan
    for case in (scan.case, scan.other_case):
        row = results.row(case)
        if row is not None and _is_of_series(row, scan, scan.dicom.series_uid):
            return replace(scan, files=replace(scan.files, case=case, group=case))
    return scan


def _is_of_series(row: CaseRow, scan: Scan, series_uid: str) -> bool:
    """Return True if a result was computed from this DICOM series.

    The UID is compared, or the digest of the files if the series has no UID. Return False if these
    files cannot be read.

    Args:
        row: The row of the result.
        scan: The scan.
        series_uid: The Series Instance UID of the scan; "" if it has none.
    """
    if series_uid:
        return row.series_uid == series_uid
    with suppress(LesionsegError):  # reading the scan reports the error
        return row.digest == scan.digest()
    return False


def find_input_scans(source: Path, output: Path, plan: Plan, cfg: PredictConfig) -> FoundScans:
    """Find the scans of `source`, except for results of an earlier run in `output`.

    Scans that will not be predicted are included, with the reason: those that `cfg.series`
    excludes, and localisers and single slices of an archive.

    Raises:
        DatasetError: If no scan is found.
        ReadError: If the input cannot be searched, see `find_scans`.
    """
    found = find_scans(
        source,
        len(plan.channel_names),
        dims=plan.dims,
        results=output.resolve(),
        unwanted=partial(explain_skipped, cfg=cfg.series, plan=plan, archive=is_archive(source)),
        names=cfg.names,
        by_patient_id=cfg.subject == "PatientID",
    )
    if not found.scans:
        raise DatasetError(found.explain_nothing_found())
    return found


def _check_places(place: str, output: Path) -> None:
    """Raise `ConfigError` if the output is a file, or if the output folder contains the input.

    Scans inside the output folder would count as results. A table of scans may be in the output
    folder. A URL is not checked.
    """
    if output.exists() and not output.is_dir():
        raise ConfigError(f"output={output} is a file. Name a folder.")
    source = Path(place).resolve()
    is_table = source.is_file() and source.suffix.lower() == ".csv"
    if is_url(place) or is_table or not output.exists():
        return
    # a source with wildcards does not exist itself, but its parents do
    if any(folder.exists() and folder.samefile(output) for folder in (source, *source.parents)):
        raise ConfigError(
            f"output={output} contains the input {place}, so its scans would count as results. "
            "Name another folder, for example one inside the input."
        )

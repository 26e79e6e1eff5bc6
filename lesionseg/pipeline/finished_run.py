"""The record of a finished training, so that the same command does not repeat it."""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lesionseg.config import ReportSection
from lesionseg.core.records import read_record
from lesionseg.errors import ReadError
from lesionseg.evaluation.scores import SCORES_FILE, has_current_format
from lesionseg.io.bundle_folder import BundleFiles
from lesionseg.io.files import digest_of
from lesionseg.io.text import read_text, write_json
from lesionseg.pipeline.dataset_inspection import ALL_FOLDS, DatasetInspection
from lesionseg.pipeline.experiment import BUNDLE
from lesionseg.pipeline.log import command_line
from lesionseg.pipeline.report import report_run
from lesionseg.pipeline.run_dir import settings_to_train_further

FINISHED = "finished.json"


@dataclass(frozen=True)
class FinishedRun:
    """The record of a finished training.

    Attributes:
        at: Date and time of the end.
        minutes: Duration of the command that finished it, without interrupted ones.
        files: Paths below the run directory; if one is missing, the training is not finished.
        page: The path of the report below the run directory; None without a report.
        data: Digest of the cases and their roles.
        report: Digest of the settings of the report.
    """

    at: str
    minutes: float
    files: tuple[str, ...]
    page: str | None
    data: str
    report: str

    def lines(self, run: Path, config: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the time of the end, and the command that trains these weights further.

        `config` is the configuration of the run, as `config_of` returns it.
        """
        settings = settings_to_train_further(run, config)
        note = "starts from these weights"
        if config["data"].get("fold") == ALL_FOLDS:
            note = "starts from the weights of one fold; the others in the same way"
        return (
            f"Finished at {self.at}, after {self.minutes:.1f} minutes. Nothing is repeated.",
            f"Further: {command_line('train', settings)}  # {note}",
        )


def write_finished(
    run: Path,
    inspection: DatasetInspection,
    report: ReportSection,
    page: Path | None,
    minutes: float,
) -> None:
    """Write the record of a run that has its bundle, its scores and its report.

    `page` is the report, None if there is none. `minutes` is the duration of this command.
    """
    scores = [folder / SCORES_FILE for folder in (run, run / "oof", run / "test")]
    bundle = BundleFiles(run / BUNDLE)
    files = [bundle.weights, bundle.plan, *filter(Path.is_file, scores)]
    record = FinishedRun(
        at=time.strftime("%Y-%m-%d %H:%M"),
        minutes=round(minutes, 2),
        files=tuple(path.relative_to(run).as_posix() for path in files),
        page=None if page is None else page.relative_to(run).as_posix(),
        data=_data_digest(inspection),
        report=_report_digest(report),
    )
    write_json(run / FINISHED, asdict(record))


def reuse_finished(
    run: Path, inspection: DatasetInspection, report: ReportSection
) -> FinishedRun | None:
    """Return the record of a finished run, or None if the run is not finished.

    It is not finished if its record is missing or damaged, a file is missing, cases or their roles
    have changed, or its scores have the format of an earlier version. The report of a finished run
    is drawn again if its settings or its study file have changed, or the page is missing.
    """
    try:
        record = read_record(FinishedRun, read_text(run / FINISHED), FINISHED, ReadError)
    except ReadError:
        return None
    if record.data != _data_digest(inspection):
        return None
    files = [run / name for name in record.files]
    scores = [path for path in files if path.name == SCORES_FILE]
    if not all(map(Path.is_file, files)) or not all(map(has_current_format, scores)):
        return None
    is_drawn = record.page is None or (run / record.page).is_file()
    if is_drawn and record.report == _report_digest(report):
        return record
    page = report_run(run, inspection.dataset, report)
    drawn = replace(
        record,
        page=None if page is None else page.relative_to(run).as_posix(),
        report=_report_digest(report),
    )
    write_json(run / FINISHED, asdict(drawn))
    return drawn


def _data_digest(inspection: DatasetInspection) -> str:
    """Return a digest of the cases and their roles."""
    return _short_hash([inspection.digests, inspection.splits.roles])


def _report_digest(report: ReportSection) -> str:
    """Return a digest of the settings of the report, and of the answers in its study file."""
    study = "" if report.study is None else read_text(Path(report.study))
    return _short_hash([report.to_plain(), study])


def _short_hash(content: Any) -> str:
    """Return a short hash of plain data."""
    return digest_of(json.dumps(content, sort_keys=True, default=dict))[:16]

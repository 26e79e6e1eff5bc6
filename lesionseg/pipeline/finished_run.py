"""finished.json: record of a finished training; when the same `train` command is not repeated."""

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
        minutes: Duration of the command that finished it, without interrupted commands before.
        files: Paths relative to the run directory. If a file is missing, the training is not
            finished.
        page: The path of the report relative to the run directory; None without a report.
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
        """Return two lines for the terminal: when the training ended, and how to train it further.

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
    """Write `finished.json`, the record of a run that has its bundle, its scores and its report.

    Args:
        run: The run directory.
        inspection: The cases and their roles.
        report: The settings of the report.
        page: The path of the report; None if there is no report.
        minutes: The duration of this command.
    """
    # scores of the validation, of the out-of-fold predictions and of the test, as far as they exist
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
    """Return the record of a finished run, so that `train` does not repeat it.

    Return None if the run is not finished, that is, if one of these is true:

    - The record is missing or damaged.
    - A file of the bundle or of the scores is missing.
    - The cases or their roles have changed.
    - The scores have the format of an earlier version.

    The report of a finished run is drawn again if its settings or its study file have changed, or
    if the page is missing. The record is then updated.
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
    """Return a digest of the cases' files and roles, to notice a change after the training."""
    return _short_hash([inspection.digests, inspection.splits.roles])


def _report_digest(report: ReportSection) -> str:
    """Return a digest of the report's settings and of its study file.

    The study file contains the user's answers about the study. If the digest changes, the report is
    drawn again.
    """
    study = "" if report.study is None else read_text(Path(report.study))
    return _short_hash([report.to_plain(), study])


def _short_hash(content: Any) -> str:
    """Return the first 16 hexadecimal digits of a hash of plain data, as JSON with sorted keys."""
    return digest_of(json.dumps(content, sort_keys=True, default=dict))[:16]

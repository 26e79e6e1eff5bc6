"""The record of a finished training: the same command says so, and repeats nothing."""

import hashlib
import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lesionseg.config import TrainConfig
from lesionseg.errors import ReadError
from lesionseg.io.bundle_folder import PLAN, WEIGHTS
from lesionseg.io.files import read_json, write_json
from lesionseg.pipeline.dataset import Survey
from lesionseg.pipeline.report import report_run

FINISHED = "finished.json"


@dataclass(frozen=True)
class Finished:
    """When a training was complete, and what it was complete for.

    `files`: paths below the run directory, without which it is not complete. `page`: the report to
    open. `data` and `report`: digests of the cases and of the settings of the report.
    """

    at: str
    minutes: float
    files: tuple[str, ...]
    page: str | None
    data: str
    report: str


def write_finished(
    run: Path, page: Path | None, minutes: float, survey: Survey, cfg: TrainConfig
) -> None:
    """Record that the run has its bundle, scores and report, made of these cases."""
    scores = [folder / "scores.json" for folder in (run, run / "oof", run / "test")]
    files = [run / "bundle" / WEIGHTS, run / "bundle" / PLAN, *filter(Path.is_file, scores)]
    record = Finished(
        at=time.strftime("%Y-%m-%d %H:%M"),
        minutes=round(minutes, 2),
        files=tuple(path.relative_to(run).as_posix() for path in files),
        page=None if page is None else page.relative_to(run).as_posix(),
        data=_digest([survey.sources, survey.splits.roles]),
        report=_digest(cfg.report.plain()),
    )
    write_json(run / FINISHED, asdict(record))


def read_finished(run: Path, survey: Survey, cfg: TrainConfig) -> Finished | None:
    """Return the record of a finished run, or None if something is left to do.

    Something is left to do if a file is missing or cases have changed, such as new test cases. If
    only the settings of the report have changed, or the page is missing, the page is drawn again.
    """
    try:
        content = read_json(run / FINISHED)
        record = Finished(**{**content, "files": tuple(content["files"])})
    except (ReadError, KeyError, TypeError):
        return None
    if record.data != _digest([survey.sources, survey.splits.roles]):
        return None
    if not all((run / name).is_file() for name in record.files):
        return None
    is_drawn = record.page is None or (run / record.page).is_file()
    if is_drawn and record.report == _digest(cfg.report.plain()):
        return record
    page = report_run(run, survey.dataset, cfg.report)
    drawn = replace(
        record,
        page=None if page is None else page.relative_to(run).as_posix(),
        report=_digest(cfg.report.plain()),
    )
    write_json(run / FINISHED, asdict(drawn))
    return drawn


def _digest(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, default=dict)
    return hashlib.sha256(text.encode()).hexdigest()[:16]

"""`report`: page of scores or month page, next command after a review, removal of old pages."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lesionseg.config import ReportConfig, ReportSection
from lesionseg.core import Dataset
from lesionseg.evaluation.scores import SCORES_FILE, remove_scores
from lesionseg.io.results.folder import PredictionFolder, claim
from lesionseg.pipeline.log import bar, command_line
from lesionseg.pipeline.outcome import Outcome
from lesionseg.pipeline.scores_folder import find_scores
from lesionseg.reporting.month import write_month_page
from lesionseg.reporting.viewer import require_niivue
from lesionseg.reporting.write import read_study, write_report

ADJUDICATION = "adjudicate.csv"


@dataclass(frozen=True)
class ReportOutcome(Outcome):
    """A report on scores.

    Attributes:
        page: The page to open.
        settings: The settings of an evaluation with the answers of a reader.
    """

    page: Path
    settings: Mapping[str, object]

    @property
    def adjudication(self) -> Path | None:
        """The table of false positives that a reader can fill in; None if it does not exist."""
        table = self.page.parent / ADJUDICATION
        return table if table.is_file() else None

    def record(self) -> dict[str, Any]:
        """Return the paths of the page and of the table for a reader, for `--json`."""
        return {"page": self.page, "adjudication": self.adjudication}

    def summary(self) -> list[str]:
        """Return lines for the terminal: the page, and the table that a reader can fill in."""
        lines = [f"Open:    {self.page}"]
        if self.adjudication is not None:
            lines.append(f"Fill in: {self.adjudication}, with lesion, no_lesion or unsure")
            lines.append("Then evaluate with adjudication= and the settings of these scores.")
        return lines

    @property
    def next(self) -> str | None:
        """The command to run next: `evaluate` with a reader's answers; None without their table.

        The output of this command is the folder `adjudicated`, so that the old scores are not
        replaced: the settings of their evaluation are not known here.
        """
        if self.adjudication is None:
            return None
        return command_line("evaluate", {**self.settings, "adjudication": self.adjudication})


@dataclass(frozen=True)
class MonthOutcome(Outcome):
    """The page of a model in use.

    Attributes:
        page: The page to open.
        drifts: A sentence for each drift since the first scans.
    """

    page: Path
    drifts: Sequence[str]

    def record(self) -> dict[str, Any]:
        """Return the path of the page and the sentences on drifts, for `--json`."""
        return {"page": self.page, "drifts": self.drifts}

    def summary(self) -> list[str]:
        """Return lines for the terminal: the sentences on drifts, and the page."""
        return [*self.drifts, f"Open:    {self.page}"]


def report(cfg: ReportConfig) -> ReportOutcome | MonthOutcome:
    """Write `output/report.html` on scores, with tables and pictures next to it.

    `cfg.scores` is the output folder of `evaluate` or a run directory. A run directory also
    contains the predictions and the history of the training. For a cross-validation, the
    out-of-fold scores are used. A run directory can be the output only of its own scores.

    With `cfg.predictions` instead of `cfg.scores`, write `output/month.html`, a page that monitors
    a model in use and needs no references.

    Raises:
        DatasetError: If `cfg.predictions` has no results.
        OutputError: If the report of a training would be replaced by one on other scores.
        ReadError: If `scores.json` cannot be read.
    """
    if cfg.scores is None:
        page = Path(cfg.output) / "month.html"
        with claim(page.parent):
            # the settings require `predictions` if there are no `scores`
            drifts = write_month_page(page, PredictionFolder(Path(cfg.predictions or "")))
        return MonthOutcome(page, drifts)
    scores = find_scores(Path(cfg.scores))
    compare = None if cfg.compare is None else find_scores(Path(cfg.compare))
    output = Path(cfg.output)
    # a run directory is allowed only for its own scores ("")
    owner = "" if find_scores(output).resolve() == scores.resolve() else "report"
    with claim(output, owner), bar("Drawing pictures") as advance:
        page = write_report(
            scores,
            output,
            images=_path_or_none(cfg.images),
            reference=_path_or_none(cfg.reference),
            prediction=_path_or_none(cfg.prediction),
            compare=compare,
            options=cfg.report,
            progress=advance,
        )
    settings = {
        "reference": cfg.reference or "MASKS",
        "prediction": cfg.prediction or "FOUND",
        "output": Path(cfg.scores) / "adjudicated",
    }
    return ReportOutcome(page, settings)


def _path_or_none(text: str | None) -> Path | None:
    """Return a setting as a path, or None if the setting is None."""
    return None if text is None else Path(text)


def check_report(settings: ReportSection) -> None:
    """Check before a training that its report can be drawn at the end.

    Raises:
        ConfigError: If the study file has an unknown key, or the viewer is not installed.
        ReadError: If the study file cannot be read.
    """
    read_study(None if settings.study is None else Path(settings.study))
    if settings.viewer:
        require_niivue()


def remove_report(folder: Path) -> None:
    """Remove scores, their tables and report pages of an earlier run from a folder.

    The folder need not exist. Other files are not removed, such as the table of a reader's answers.
    """
    remove_scores(folder)
    for name in ("report.html", "report.pdf", "pseudonyms.csv"):
        (folder / name).unlink(missing_ok=True)


def report_run(run: Path, dataset: Dataset, settings: ReportSection) -> Path | None:
    """Write the reports of a run directory, and return the path of the most relevant one.

    The report on validation or out-of-fold cases is written to `report.html` in the run directory,
    and the report on test cases to `test/report.html`. The latter is returned if the run has test
    scores, otherwise the former. Return None if the run has no scores.

    Args:
        run: The run directory.
        dataset: The dataset, for the pictures.
        settings: The settings of the report.
    """
    pages = []
    # each folder of scores, and the folder of its report
    for scores, output in ((run, run), (run / "oof", run), (run / "test", run / "test")):
        if (scores / SCORES_FILE).is_file():
            with bar("Drawing pictures") as advance:
                page = write_report(
                    scores, output, images=dataset, options=settings, progress=advance
                )
            pages.append(page)
    return pages[-1] if pages else None  # the test is the last

"""`report`: a page and a PDF from the tables that `evaluate` wrote, and the images behind them."""

from dataclasses import dataclass
from pathlib import Path

from lesionseg.config import ReportConfig, ReportSection
from lesionseg.core import Dataset
from lesionseg.errors import ReadError
from lesionseg.io.files import locked_folder
from lesionseg.pipeline.log import bar, command_line
from lesionseg.pipeline.outcome import Outcome
from lesionseg.reporting.write import write_report

ADJUDICATION = "adjudicate.csv"


@dataclass(frozen=True)
class ReportOutcome(Outcome):
    """A report on scores.

    Attributes:
        page: the page to open.
        cfg: the settings.
    """

    page: Path
    cfg: ReportConfig

    @property
    def adjudication(self) -> Path | None:
        """The table of false positives in which a reader writes answers; None if there is none."""
        table = self.page.parent / ADJUDICATION
        return table if table.is_file() else None

    def summary(self) -> list[str]:
        """Return the page, and the table that a reader may fill in."""
        lines = [f"Open:    {self.page}"]
        if self.adjudication is not None:
            lines.append(f"Fill in: {self.adjudication}, with lesion, no_lesion or unsure")
        return lines

    @property
    def next(self) -> str | None:
        """`evaluate` with the answers of a reader; None if there is nothing to adjudicate."""
        if self.adjudication is None:
            return None
        return command_line(
            "evaluate",
            reference=self.cfg.reference or "MASKS",
            prediction=self.cfg.prediction or "FOUND",
            output=self.cfg.scores,
            adjudication=self.adjudication,
        )


def report(cfg: ReportConfig) -> ReportOutcome:
    """Write `output/report.html`, and the tables and pictures next to it.

    `cfg.scores` is the output folder of `evaluate`, or a run directory, which brings its
    predictions and its training's history.

    Raises:
        ReadError: if there are no scores.
    """
    scores = Path(cfg.scores)
    if not (scores / "scores.json").is_file():
        raise ReadError(
            f"{scores / 'scores.json'}: there are no scores. Run evaluate first, and give its "
            "output folder or a run directory as scores=."
        )
    given = {
        name: Path(value)
        for name in ("images", "reference", "prediction", "compare")
        if (value := getattr(cfg, name)) is not None
    }
    with locked_folder(Path(cfg.output)), bar("Drawing pictures") as advance:
        page = write_report(scores, Path(cfg.output), options=cfg.report, progress=advance, **given)
    return ReportOutcome(page, cfg)


def report_run(run: Path, dataset: Dataset, settings: ReportSection) -> Path | None:
    """Write the reports of a run directory and return the path of the last one.

    The page on validation or out-of-fold cases is `report.html` in the run directory itself, the
    one on test cases is in `test`. None if the run has no scores, as without validation cases.
    """
    pages = []
    for scores, output in ((run, run), (run / "oof", run), (run / "test", run / "test")):
        if (scores / "scores.json").is_file():
            with bar("Drawing pictures") as advance:
                page = write_report(
                    scores, output, images=dataset, options=settings, progress=advance
                )
            pages.append(page)
    return pages[-1] if pages else None

"""`report`: a page and a PDF from the tables that `evaluate` wrote, and the images behind them."""

from pathlib import Path

from lesionseg.config import ReportConfig, ReportSection
from lesionseg.core import Dataset
from lesionseg.errors import ReadError
from lesionseg.io.files import locked_folder
from lesionseg.pipeline.log import bar, say, typed
from lesionseg.reporting.write import write_report


def report(cfg: ReportConfig) -> Path:
    """Write `output/report.html`, and what lies beside it; returns the page.

    `cfg.scores` is the output folder of `evaluate`, or a run directory, which brings its
    predictions and its training's history. Raises `ReadError` where there are no scores.
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
    say(f"Open:    {page}")
    if (false := page.parent / "adjudicate.csv").is_file():
        then = {
            "reference": cfg.reference or "MASKS",
            "prediction": cfg.prediction or "FOUND",
            "output": scores,
            "adjudication": false,
        }
        words = f"write lesion, no_lesion or unsure in {false}"
        say(f"Next:    {words}, then {typed('evaluate', **then)}")
    return page


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

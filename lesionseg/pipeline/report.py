"""`report`: a page and a PDF from the tables that `evaluate` wrote, and the images behind them."""

from pathlib import Path

from lesionseg.config import ReportConfig, ReportSection
from lesionseg.core import Dataset
from lesionseg.errors import ReadError
from lesionseg.io.files import locked_folder
from lesionseg.pipeline.log import bar, say
from lesionseg.report.write import write_report

COMPARED = "compare"  # the second model's tables in an output folder of evaluate


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
    with locked_folder(Path(cfg.output)):
        page = _write(scores, Path(cfg.output), cfg.report, **given)
    say(f"Open:    {page}")
    return page


def report_run(run: Path, dataset: Dataset, settings: ReportSection) -> Path | None:
    """Write the reports of a run directory: validation or out of fold, and test; the last's path.

    None when the run has no scores at all, as without a case to validate on.
    """
    pages = [
        _write(folder, folder, settings, images=dataset)
        for folder in (run, run / "oof", run / "test")
        if (folder / "scores.json").is_file()
    ]
    return pages[-1] if pages else None


def _write(
    folder: Path,
    output: Path,
    settings: ReportSection,
    *,
    images: Path | Dataset | None = None,
    reference: Path | None = None,
    prediction: Path | None = None,
    compare: Path | None = None,
) -> Path:
    if compare is None and (folder / COMPARED / "scores.json").is_file():
        compare = folder / COMPARED
    own = (place for place in (folder / "validation", folder / "predictions") if place.is_dir())
    history = folder / "metrics.csv"
    with bar("Drawing pictures") as advance:
        return write_report(
            folder,
            output,
            images=images,
            reference=reference,
            prediction=prediction or next(own, None),
            history=history if history.is_file() else None,
            compare=compare,
            options=settings,
            progress=advance,
        )

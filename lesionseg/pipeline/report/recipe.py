"""The recipe of `report`: a page from the tables that `evaluate` wrote, and the images."""

from dataclasses import dataclass
from pathlib import Path

from lesionseg.core import Dataset
from lesionseg.errors import ReadError
from lesionseg.io.folder_locks import locks
from lesionseg.pipeline.run.outcome import CommandOutcome, bar
from lesionseg.report.write import ReportOptions, write_report

COMPARED = "compare"  # the second model's tables in an output folder of evaluate


@dataclass(frozen=True)
class ReportSettings:
    """What a report is: title, study.yaml, PDF, viewer, and whether names are printed."""

    title: str | None = None
    study: str | None = None
    identifiers: bool = False
    pdf: bool = True
    viewer: bool = False

    def options(self, title: str | None = None) -> ReportOptions:
        """The same as `write_report` takes it."""
        return ReportOptions(
            title=title or self.title,
            study=None if self.study is None else Path(self.study),
            identifiers=self.identifiers,
            pdf=self.pdf,
            viewer=self.viewer,
        )


@dataclass(frozen=True)
class ReportOutcome(CommandOutcome):
    """Where the page lies."""

    page: Path

    def summary(self) -> list[str]:
        """The page's path."""
        return [f"Report: {self.page}"]


@locks("output")
def report(
    scores: str | Path,
    output: str | Path,
    *,
    images: str | Path | None = None,
    reference: str | Path | None = None,
    prediction: str | Path | None = None,
    compare: str | Path | None = None,
    title: str | None = None,
    report: ReportSettings | None = None,
) -> ReportOutcome:
    """Write `output/report.html`, and what lies beside it.

    Raises `ReadError` when there are no scores, naming the file and what to do.

    Args:
        scores: the output folder of `evaluate`, or a run directory, which brings its predictions
            and its training's history.
        output: the folder for the page.
        images: a dataset root or a folder of images; None: no pictures.
        reference: a dataset root or a folder of masks; None: that of `images`.
        prediction: the folder of the predictions; None: the run directory's own.
        compare: the output folder of `evaluate` for another model or reader on the same scans;
            None: the folder `compare` in `scores`, if there is one.
        title: of the page; None: that of `report`.
        report: the number of pictures, names, the PDF.
    """
    folder, settings = Path(scores), report or ReportSettings()
    if not (folder / "scores.json").is_file():
        raise ReadError(
            "There are no scores to report.",
            where=folder / "scores.json",
            seen="no such folder" if not folder.is_dir() else "a folder without it",
            remedy="run evaluate first, and give its output folder or a run directory as scores.",
        )
    page = _write(
        folder,
        Path(output),
        images=_path(images),
        reference=_path(reference),
        prediction=_path(prediction),
        compare=_path(compare),
        options=settings.options(title),
    )
    return ReportOutcome(page)


def report_run(run: Path, dataset: Dataset, settings: ReportSettings) -> Path | None:
    """Write the reports of a run directory: validation or out of fold, and test; the first's path.

    None when the run has no scores at all, as without a case to validate on.
    """
    pages = [
        _write(folder, folder, images=dataset, options=settings.options())
        for folder in (run, run / "oof", run / "test")
        if (folder / "scores.json").is_file()
    ]
    return pages[0] if pages else None


def _write(
    folder: Path,
    output: Path,
    *,
    images: Path | Dataset | None,
    options: ReportOptions,
    reference: Path | None = None,
    prediction: Path | None = None,
    compare: Path | None = None,
) -> Path:
    beside = folder / COMPARED
    if compare is None and (beside / "scores.json").is_file():
        compare = beside
    history = folder / "metrics.csv"
    with bar("Drawing pictures") as advance:
        return write_report(
            folder,
            output,
            images=images,
            reference=reference,
            prediction=prediction or _predictions_of(folder),
            history=history if history.is_file() else None,
            compare=compare,
            options=options,
            progress=advance,
        )


def _predictions_of(folder: Path) -> Path | None:
    """A run directory's own predictions, where it has them."""
    places = (folder / "validation", folder / "predictions")
    return next((place for place in places if place.is_dir()), None)


def _path(given: str | Path | None) -> Path | None:
    return None if given is None else Path(given)

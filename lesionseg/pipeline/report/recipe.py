"""The recipe of `report`: a page from the tables that `evaluate` wrote, and the images."""

from dataclasses import dataclass, replace
from pathlib import Path

from lesionseg.core import Dataset
from lesionseg.errors import ReadError, one_of, require
from lesionseg.io.folder_locks import locks
from lesionseg.pipeline.run.outcome import CommandOutcome, bar
from lesionseg.report.sections.gallery import Limits
from lesionseg.report.write import Options, write_report

GALLERIES = ("page", "all")
COMPARED = "compare"  # the second model's tables in an output folder of evaluate


@dataclass(frozen=True)
class ReportSettings:
    """What a report is: its title, the most pictures of each kind, and what lies beside the page.

    `missed`, `false_positives`, `found`: the most pictures; fewer are shown where the page would
    grow too large. `gallery`: `page`, or `all` to write every miss and every false positive into
    the folder `gallery` as well. `identifiers`: print the real names of cases and patients.
    `study`: a study.yaml with what a report cannot know by itself. `name`, `other_name`: what this
    model or reader and the one it is compared with are called; None: the usual words. `viewer`: a
    page for every scan, to scroll through. `two_readers`: sheets and pictures for two blinded
    readers. `language`: `en` or `de`.
    """

    title: str | None = None
    missed: int = 120
    false_positives: int = 60
    found: int = 12
    gallery: str = "page"
    identifiers: bool = False
    study: str | None = None
    pdf: bool = True
    name: str | None = None
    other_name: str | None = None
    viewer: bool = False
    two_readers: bool = False
    language: str = "en"

    def __post_init__(self) -> None:
        for name in ("missed", "false_positives", "found"):
            require(
                getattr(self, name) >= 0,
                "The number of pictures must not be negative.",
                where=f"report.{name}",
                seen=getattr(self, name),
                remedy="take 0 for none.",
            )
        one_of("gallery", self.gallery, GALLERIES, where="report.gallery")

    def options(self, title: str | None = None) -> Options:
        """The same as `lesionseg.report` takes it."""
        return Options(
            title=title or self.title,
            limits=Limits(self.missed, self.false_positives, self.found),
            pdf=self.pdf,
            identifiers=self.identifiers,
            whole_gallery=self.gallery == "all",
            study=None if self.study is None else Path(self.study),
            names=(self.name, self.other_name),
            viewer=self.viewer,
            two_readers=self.two_readers,
            language=self.language,
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
    acceptance: str | Path | None = None,
    elsewhere: str | Path | None = None,
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
        acceptance: a YAML file of limits stated beforehand; the page says whether these scans meet
            them. None: no such test.
        elsewhere: the output folder of `evaluate` for the same model on other scans, such as its
            test set: the page lays case mix and numbers side by side. None: none.
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
        options=replace(
            settings.options(title), acceptance=_path(acceptance), elsewhere=_path(elsewhere)
        ),
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
    options: Options,
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

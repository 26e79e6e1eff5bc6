"""Fields that the template of the report page receives; pictures on top."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lesionseg.evaluation.scores import Provenance
from lesionseg.reporting.charts import Chart
from lesionseg.reporting.pictures import Card
from lesionseg.reporting.rendering import KeyFigure, render_sentence
from lesionseg.reporting.whole_images import LabelKey, WholeImage
from lesionseg.reporting.words import Basis, Measure

IMAGES_ON_TOP = 3  # whole images on the first screen


@dataclass(frozen=True)
class Pictures:
    """The pictures of a report. All fields are empty for a report without images.

    Attributes:
        top: The largest missed lesions or, without any, the smallest found ones, in one plane, for
            the first screen.
        missed: Missed lesions, largest first.
        false_positives: False positives, highest score first.
        found: Some of the found lesions, smallest first.
        outlines: Class in style.css and description of each outline that occurs in the pictures.
        whole_images: Whole images of two axes with boxes. The first ones are on the first screen.
        labels: Letter and colour of each label in the whole images. Empty if there is one label.
        box_outlines: Class and description of each kind of box that occurs in the whole images.
    """

    top: Sequence[Card] = ()
    missed: Sequence[Card] = ()
    false_positives: Sequence[Card] = ()
    found: Sequence[Card] = ()
    outlines: Sequence[tuple[str, str]] = ()
    whole_images: Sequence[WholeImage] = ()
    labels: Sequence[LabelKey] = ()
    box_outlines: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True, eq=False)
class ReportContent:
    """Everything that the page shows.

    Attributes:
        title: Title of the page.
        identity: The tested program, its dataset and the date.
        tags: Warnings at the top, each with a sentence.
        role: Role of the scans, followed by a separator. Empty if it is unknown or a tag names it.
        headline: One sentence about lesions and false positives.
        key_figures: The four numbers of the first screen.
        basis: Length of the training and choice of the limit. None if they are unknown.
        charts: The two charts of the first screen.
        pictures: Pictures of lesions and false positives.
        n_found: Number of found lesions, with and without a picture.
        n_missed: Number of missed lesions, with and without a picture.
        n_false_positive: Number of false positives, with and without a picture.
        false_positive_rule: A sentence that says which markings are false positives.
        limitations: Limitations of the evaluation, in one line.
        more_charts: Charts that are folded on the page.
        slider: Data of the threshold slider. None for a page without it.
        measures: All measures.
        measures_note: Reason that several measures share for having no interval. Empty if none.
        case_rows: One row per scan.
        label_rows: One row per label. Empty if there is only one.
        about: Names and values about the test.
        comparison: Rows of the table that compares two programs, first the header. Empty if only
            one was evaluated.
        n_compared: Number of scans on which the differences rest.
    """

    title: str
    identity: Provenance
    tags: Sequence[tuple[str, str]]
    role: str
    headline: str
    key_figures: Sequence[KeyFigure]
    basis: Basis | None
    charts: Sequence[Chart]
    pictures: Pictures
    n_found: int
    n_missed: int
    n_false_positive: int
    false_positive_rule: str
    limitations: str
    more_charts: Sequence[Chart]
    slider: Mapping[str, Any] | None
    measures: Sequence[Measure]
    measures_note: str
    case_rows: Sequence[Mapping[str, Any]]
    label_rows: Sequence[Mapping[str, Any]]
    about: Sequence[tuple[str, str]]
    comparison: Sequence[Sequence[str]]
    n_compared: int

    @property
    def identity_line(self) -> str:
        """The tested program, its dataset and the date in one line, shown below the title."""
        return render_sentence("identity_line", identity=self.identity)

    @property
    def n_images_on_top(self) -> int:
        """Maximum number of whole images on the first screen. The template reads this property."""
        return IMAGES_ON_TOP

    @property
    def top_title(self) -> str:
        """The title above the pictures of the first screen."""
        return render_sentence("top_title", report=self)

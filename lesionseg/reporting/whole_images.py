"""Complete 2-D images (radiographs) with boxes: number of images and boxes, letters, colours.

A box is stated in rows of the image, x first, so that the units of both axes have the same length
in mm. The page draws it as SVG over the picture, so that it is sharp at any size.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any, Literal

import numpy as np
import pandas as pd
from PIL import Image

from lesionseg.errors import format_score
from lesionseg.reporting.evaluation_tables import EvaluationTables
from lesionseg.reporting.images import Scene
from lesionseg.reporting.pictures import JPEG_QUALITY, display_levels, jpeg_uri
from lesionseg.reporting.rendering import render_sentence
from lesionseg.reporting.words import size_words, why_missed

MAX_WHOLE_IMAGES = 16
MAX_BOXES = 60  # of one image; more cannot be distinguished
MAX_SIDE = 900  # of the picture, in pixels; the boxes stay sharp
IMAGE_WINDOW = (0.5, 99.7)  # percentiles of the grey values that are shown as black and white
# Light colours, which differ for colour-blind readers (after Okabe and Ito 2008) and, except for
# white, are not those of outlines. With more labels, colours occur again, but with another letter.
LABEL_COLOURS = ("#f0e442", "#a9b8ff", "#ffffff", "#5ad1a5", "#e3a6d2", "#c9b08a")
TEXT_SIZE = 0.032  # height of the text in an image, relative to its width

BoxKind = Literal["reference", "accepted", "below"]


@dataclass(frozen=True)
class LabelKey:
    """The letter and the colour by which a label is shown."""

    letter: str
    colour: str
    name: str


@dataclass(frozen=True)
class ImageBox:
    """A box on a whole image, in rows of the image.

    Attributes:
        kind: `reference` for a lesion, `accepted` for a marking, and `below` for a marking under
            the operating point.
        x: Left edge.
        y: Upper edge.
        width: Extent along x.
        height: Extent along y.
        words: "missed" or the score. It may be empty.
        label: Letter and colour of its label. None if there is one label.
        is_error: True for a missed lesion or a false positive.
    """

    kind: BoxKind
    x: float
    y: float
    width: float
    height: float
    words: str = ""
    label: LabelKey | None = None
    is_error: bool = False

    @property
    def text(self) -> str:
        """The text next to the box: the letter of its label, and the words."""
        return f"{self.label.letter} {self.words}".strip() if self.label else self.words


@dataclass(frozen=True)
class BoxTag:
    """The text of a box and the rectangle behind it, in rows of the image.

    Attributes:
        box: The box of the text.
        left: Left edge of the rectangle.
        top: Upper edge of the rectangle.
        width: Extent along x.
        height: Extent along y.
    """

    box: ImageBox
    left: float
    top: float
    width: float
    height: float

    def overlaps(self, other: "BoxTag") -> bool:
        """Return True if the rectangles of both texts overlap. Common edges are no overlap."""
        return (
            self.left < other.left + other.width
            and other.left < self.left + self.width
            and self.top < other.top + other.height
            and other.top < self.top + self.height
        )


@dataclass(frozen=True)
class WholeImage:
    """A whole image, its boxes and its caption.

    Attributes:
        uri: The picture as a data URI. It may have fewer pixels than the image.
        width: Width of the image, in rows.
        height: Number of rows of the image.
        case: Name of the scan.
        words: Caption.
        boxes: The boxes in the order of drawing: errors last, and dashed ones after solid ones, so
            that both can be seen if they are equal.
    """

    uri: str
    width: float
    height: int
    case: str
    words: str
    boxes: Sequence[ImageBox]

    @property
    def text_size(self) -> float:
        """Height of the texts of the boxes, in rows of the image."""
        return TEXT_SIZE * self.width

    def tags(self) -> list[BoxTag]:
        """Return the text of each box with its position, in the order of drawing.

        Boxes that are drawn later choose first. The text of an earlier box avoids their texts, if
        another position within the image is free. Boxes without text have no tag.
        """
        tags: list[BoxTag] = []
        for box in reversed(self.boxes):
            if box.text:
                options = self._possible_tags(box)
                free = [tag for tag in options if not any(map(tag.overlaps, tags))]
                tags.append((free or options)[0])
        return tags[::-1]  # in the order of drawing again

    def _possible_tags(self, box: ImageBox) -> list[BoxTag]:
        """Return the possible positions of the text of a box within the image, the preferred first.

        The text of a lesion is preferably above its box, and the text of a marking below, so that
        both can be read if the boxes are equal. Otherwise, the text is on the opposite side, inside
        the box, or to the right or left of it. If the image is hardly higher than the text, the
        only position is at its lower edge.
        """
        # of the text: a line with its margins, and about 0.64 of the text size per character
        height = 1.25 * self.text_size
        width = (0.64 * len(box.text) + 0.6) * self.text_size
        right = box.x + box.width
        above = box.y - height
        below = box.y + box.height
        tops = [above, below, box.y] if box.kind == "reference" else [below, above, box.y]
        # the left upper corners: for each height, flush with the left and the right edge of the box
        corners = [(left, top) for top in tops for left in (box.x, right - width)]
        corners += [(right, box.y), (box.x - width, box.y)]
        # the largest position at which the text is within the image
        last_left = max(self.width - width, 0.0)
        last_top = self.height - height
        tags = [
            BoxTag(box, min(max(left, 0.0), last_left), top, width, height)
            for left, top in corners
            if 0 <= top <= last_top
        ]
        # no place is left only in an image that is hardly higher than the text
        return tags or [BoxTag(box, min(max(box.x, 0.0), last_left), last_top, width, height)]


def choose_whole_images(tables: EvaluationTables) -> list[str]:
    """Return the scans of 2-D images to show completely, at most `MAX_WHOLE_IMAGES`.

    Scans with the largest missed lesions alternate with scans with the most confident false
    positives. Scans with found lesions only follow. If any image has three axes, no scan is
    returned.
    """
    if tables.scores.image_axes != (2,):  # the numbers of axes that occur
        return []
    false = tables.false_positives.sort_values("score", ascending=False)
    by_miss = tables.missed["case"].unique().tolist()
    by_false = false["case"].unique().tolist()
    # alternately from both lists; the shorter one is filled with None
    turns = [case for pair in zip_longest(by_miss, by_false) for case in pair if case]
    return list(dict.fromkeys([*turns, *tables.found["case"]]))[:MAX_WHOLE_IMAGES]


def label_keys(tables: EvaluationTables) -> dict[str, LabelKey]:
    """Return the letter and colour of each label that lesions or markings have, by label name.

    The labels of scores.json come first, in their order, then all others by name. With a single
    label, the result is empty, because boxes then need no letter.
    """
    labels_in_tables = {*tables.lesions["label"], *tables.candidates["label"]}
    names = [name for name in tables.scores.labels if name in labels_in_tables]
    names += sorted(labels_in_tables - set(names))
    if len(names) < 2:
        return {}
    return {
        name: LabelKey(_label_letter(k), LABEL_COLOURS[k % len(LABEL_COLOURS)], name)
        for k, name in enumerate(names)
    }


def _label_letter(number: int) -> str:
    """Return the letter of the label with this number: A to Z, then AA to ZZ (numbers 0 to 701).

    >>> _label_letter(0), _label_letter(25), _label_letter(26)
    ('A', 'Z', 'AA')
    """
    first, second = divmod(number, 26)
    # 64 + 1 is the code of A, and 0 means that there is no first letter
    return (chr(64 + first) if first else "") + chr(65 + second)


def draw_whole_image(scene: Scene, case: str, tables: EvaluationTables) -> WholeImage:
    """Draw the complete 2-D image of a scan, with the boxes of its lesions and markings.

    At most `MAX_BOXES` boxes are drawn, errors first. The caption states how many are left out.

    Args:
        scene: The image of the scan.
        case: Name of the scan in the tables.
        tables: The tables of the evaluation.
    """
    key_of_label = label_keys(tables)
    lesions = tables.lesions[tables.lesions["case"] == case]
    markings = tables.candidates[tables.candidates["case"] == case]
    boxes = [
        *_lesion_boxes(lesions, key_of_label),
        *_marking_boxes(markings, key_of_label),
        *_nearest_boxes(lesions, markings, key_of_label),
    ]
    shown = sorted(boxes, key=lambda box: not box.is_error)[:MAX_BOXES]
    # later boxes are drawn over earlier ones: errors are on top, and markings above lesions
    drawing_order = sorted(shown, key=lambda box: (box.is_error, box.kind != "reference"))
    height, width = scene.geometry.shape
    spacing_y, spacing_x = scene.geometry.spacing_mm
    # boxes are in rows of the image: x is scaled so that both axes have the same unit
    stretch = spacing_x / spacing_y
    return WholeImage(
        uri=draw_picture(scene),
        width=width * stretch,
        height=height,
        case=case,
        words=_image_caption(
            lesions,
            markings,
            tables,
            n_left_out=len(boxes) - len(shown),
            several_labels=bool(key_of_label),
        ),
        boxes=[replace(box, x=box.x * stretch, width=box.width * stretch) for box in drawing_order],
    )


def _lesion_boxes(
    lesions: pd.DataFrame, key_of_label: Mapping[str, LabelKey]
) -> Iterator[ImageBox]:
    """Yield the box of each lesion, the largest first. A missed lesion is an error."""
    for _, row in lesions.sort_values("diameter_mm", ascending=False).iterrows():
        words = "" if row["detected"] else "missed"
        yield _box_of_row("reference", row, key_of_label, words, is_error=not row["detected"])


def _marking_boxes(
    markings: pd.DataFrame, key_of_label: Mapping[str, LabelKey]
) -> Iterator[ImageBox]:
    """Yield the box of each accepted marking, the highest score first.

    A false positive is an error.
    """
    for _, row in markings[markings["accepted"]].sort_values("score", ascending=False).iterrows():
        is_false = row["outcome"] == "false_positive"
        yield _box_of_row("accepted", row, key_of_label, _score_words(row), is_error=is_false)


def _nearest_boxes(
    lesions: pd.DataFrame, markings: pd.DataFrame, key_of_label: Mapping[str, LabelKey]
) -> Iterator[ImageBox]:
    """Yield the boxes of markings below the operating point that are nearest to a missed lesion.

    The boxes show why the lesion was missed. All rows are of one scan.
    """
    nearest = lesions[~lesions["detected"]]["nearest_candidate"]
    for _, row in markings[~markings["accepted"] & markings["candidate"].isin(nearest)].iterrows():
        yield _box_of_row("below", row, key_of_label, _score_words(row), is_error=False)


def _score_words(row: Mapping[str, Any]) -> str:
    """Return the score of a marking as text; "" if it has no score.

    Args:
        row: The row of the marking in candidates.csv.
    """
    return "" if pd.isna(row["score"]) else format_score(float(row["score"]))


def _box_of_row(
    kind: BoxKind,
    row: Mapping[str, Any],
    key_of_label: Mapping[str, LabelKey],
    words: str,
    *,
    is_error: bool,
) -> ImageBox:
    """Return the box to draw for a lesion or a marking, in pixels of the image.

    Args:
        kind: Lesion, accepted marking, or marking below the operating point.
        row: The row of lesions.csv or candidates.csv.
        key_of_label: The letter and colour of each label. Empty with a single label.
        words: The text at the box.
        is_error: True for a missed lesion or a false positive.
    """
    x = float(row["start_x_vox"])
    y = float(row["start_y_vox"])
    return ImageBox(
        kind=kind,
        x=x,
        y=y,
        width=float(row["stop_x_vox"]) - x,
        height=float(row["stop_y_vox"]) - y,
        words=words,
        label=key_of_label.get(str(row["label"])),
        is_error=is_error,
    )


def _image_caption(
    lesions: pd.DataFrame,
    markings: pd.DataFrame,
    tables: EvaluationTables,
    n_left_out: int,
    *,
    several_labels: bool,
) -> str:
    """Return the caption of a whole image.

    The caption states the numbers of lesions, found lesions and false positives, the largest missed
    lesion, and the number of boxes that are not drawn.

    Args:
        lesions: The lesions of the scan.
        markings: The markings of the scan.
        tables: The tables of the evaluation.
        n_left_out: The number of boxes that are not drawn.
        several_labels: True states the label of the missed lesion.
    """
    missed = lesions[~lesions["detected"]]
    words = ""
    if len(missed):
        row = missed.sort_values(tables.size_column, ascending=False).iloc[0]
        name = f"{row['label']} of " if several_labels else ""
        words = f"{name}{size_words(row, tables)}, {why_missed(row, tables)}"
    return render_sentence(
        "whole_image_caption",
        n_found=len(lesions) - len(missed),
        n_lesions=len(lesions),
        n_false=int((markings["outcome"] == "false_positive").sum()),
        missed=words,
        n_left_out=n_left_out,
    )


def draw_picture(scene: Scene) -> str:
    """Return the image of a scene as a JPEG in a data URI. The page draws the boxes over it.

    A larger image is reduced to at most `MAX_SIDE` pixels per side.
    """
    image = np.moveaxis(scene.colours, 0, -1) if scene.colours is not None else scene.image
    picture = Image.fromarray(display_levels(image, IMAGE_WINDOW))
    picture.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.BOX)
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=JPEG_QUALITY)
    return jpeg_uri(buffer)

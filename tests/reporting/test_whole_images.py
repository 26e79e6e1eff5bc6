"""Whole images on the page: places of boxes, letters of labels, the choice of scans."""

import base64
import io
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from lesionseg.config import ReportSection
from lesionseg.core import Candidate, Geometry, OperatingPoint, Prediction, Volume
from lesionseg.errors import ReadError
from lesionseg.io.results.case import write_prediction
from lesionseg.io.text import write_json
from lesionseg.io.volumes import write_volume
from lesionseg.reporting.evaluation_tables import read_evaluation
from lesionseg.reporting.images import CaseFolders, Scene
from lesionseg.reporting.whole_images import (
    MAX_BOXES,
    MAX_SIDE,
    ImageBox,
    WholeImage,
    choose_whole_images,
    draw_picture,
    draw_whole_image,
    label_keys,
)
from lesionseg.reporting.write import write_report
from tests.commands import evaluate
from tests.grids import unit_grid

WIDTH, HEIGHT = 120, 50  # x, y: more columns than rows
GRID = unit_grid(HEIGHT, WIDTH)
# label, x, y, width, height
LESIONS = {
    "a": [(1, 70, 5, 40, 10), (2, 10, 30, 8, 6)],
    "b": [(1, 20, 20, 10, 10)],
    "c": [(2, 60, 10, 12, 12)],
    "free": [],
}
# label, score, x, y, width, height; the highest score first
MARKINGS = {
    "a": [(2, 0.9, 11, 31, 8, 6), (1, 0.3, 75, 6, 30, 8)],
    "b": [(1, 0.8, 20, 20, 10, 10), (1, 0.7, 90, 30, 15, 12)],
    "c": [(2, 0.95, 60, 10, 12, 12)],
    "free": [(2, 0.97, 5, 5, 20, 10)],
}


POINT = OperatingPoint("score:0.5", 0.5, "validation")


def write_films(root, lesions=LESIONS, markings=MARKINGS, names=("nodule", "mass")):
    """Write a COCO dataset of PNG films, and predictions of boxes."""
    images = []
    annotations = []
    (root / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number, (case, boxes) in enumerate(lesions.items(), 1):
        pixels = rng.integers(0, 255, (HEIGHT, WIDTH), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"images/{case}.png")
        images.append({"id": number, "file_name": f"{case}.png", "width": WIDTH, "height": HEIGHT})
        for label, *box in boxes:
            own = {"id": len(annotations) + 1, "image_id": number}
            annotations.append({**own, "category_id": label, "bbox": box})
        found = []
        for rank, (label, score, x, y, width, height) in enumerate(markings[case], 1):
            box = (y, x, y + height, x + width)
            found.append(Candidate.from_box(rank, label, score, box, GRID))
        write_prediction(root / "found", Prediction(case, GRID, tuple(found), None).accept(POINT))
    categories = [{"id": k, "name": name} for k, name in enumerate(names, 1)]
    document = {"images": images, "annotations": annotations, "categories": categories}
    write_json(root / "annotations.json", document)


def evaluate_films(root):
    """Evaluate the predictions of films. Return the tables of the report."""
    evaluate(root / "data", root / "data/found", root / "scores")
    return read_evaluation(root / "scores", identifiers=True)


def open_picture(scene):
    return Image.open(io.BytesIO(base64.b64decode(draw_picture(scene).partition(",")[2])))


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    root = tmp_path_factory.mktemp("films")
    write_films(root / "data")
    evaluate_films(root)
    return root


@pytest.fixture(scope="module")
def tables(study):
    return read_evaluation(study / "scores", identifiers=True)


@pytest.fixture(scope="module")
def page(study):
    path = write_report(
        study / "scores",
        study / "page",
        images=study / "data",
        reference=study / "data",
        prediction=study / "data/found",
        options=ReportSection.of(identifiers=True, pdf=False),
    )
    return path.read_text(encoding="utf-8")


def find_film(page, case):
    """Return the SVG of a scan without its picture."""
    whole_images = re.findall(r"<svg class=\"film\".*?</svg>", page, flags=re.DOTALL)
    chosen = [image for image in whole_images if f'aria-label="{case}:' in image]
    assert len(chosen) == 1
    return chosen[0]


def find_boxes(image, kind):
    """Return error, x, y, width and height of the boxes of a kind."""
    found = re.findall(
        rf'<rect class="{kind}( error)?" x="([^"]+)" y="([^"]+)" width="([^"]+)" height="([^"]+)"',
        image,
    )
    return [(bool(error), *map(float, numbers)) for error, *numbers in found]


def test_boxes_are_at_their_pixels_with_x_first(page):
    image = find_film(page, "a")
    assert f'viewBox="0 0 {WIDTH} {HEIGHT}"' in image
    assert f'width="{WIDTH}" height="{HEIGHT}"' in image  # the picture fills the image
    assert sorted(find_boxes(image, "reference")) == [(False, 10, 30, 8, 6), (True, 70, 5, 40, 10)]
    assert find_boxes(image, "accepted") == [(False, 11, 31, 8, 6)]
    assert find_boxes(image, "below") == [(False, 75, 6, 30, 8)]
    assert find_boxes(find_film(page, "free"), "accepted") == [(True, 5, 5, 20, 10)]


def test_labels_have_letters_and_the_key_names_them(page):
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", find_film(page, "a"))
    assert sorted(texts) == ["A 0.3", "A missed", "B", "B 0.9"]
    for letter, name in (("A", "nodule"), ("B", "mass")):
        assert re.search(rf'class="letter"[^>]*>{letter}</b>{name}', page)
    assert "1 of 2 lesions found, no false positive. Missed: nodule of 16.7" in page
    assert "no lesion, 1 false positive." in page


def test_table_of_labels_has_lesions_detections_and_false_positives(page):
    table = page.partition("Label by label")[2].partition("</table>")[0]
    rows = [re.findall(r"<t[dh](?: [^>]*)?>([^<]*)<", row)[:4] for row in table.split("</tr>")]
    assert rows[1:3] == [["nodule", "2", "1", "1"], ["mass", "2", "2", "1"]]


def test_scans_with_large_misses_and_confident_false_positives_come_first(tables):
    assert choose_whole_images(tables) == ["a", "free", "b", "c"]
    volumes = replace(tables, scores=replace(tables.scores, image_axes=(3,)))
    assert choose_whole_images(volumes) == []


def test_three_images_are_on_the_first_screen_and_the_others_below(page):
    top, _, below = page.partition('<p class="limits">')
    assert [part.count('class="film"') for part in (top, below)] == [3, 1]
    # WeasyPrint draws an image without the styles of the page: boxes would be black areas
    style = find_film(page, "a").partition("<style>")[2].partition("</style>")[0]
    assert ".film rect { fill: none;" in style


def test_pixels_that_are_not_square_keep_their_shape(tables):
    grid = Geometry.from_spacing((HEIGHT, WIDTH), (1.0, 0.5))
    image = draw_whole_image(Scene(np.zeros(grid.shape), grid), "free", tables)
    assert (image.width, image.height) == (WIDTH / 2, HEIGHT)
    (box,) = image.boxes
    assert (box.x, box.y, box.width, box.height) == (2.5, 5, 10, 10)


def test_boxes_beyond_the_limit_are_stated_and_one_label_needs_no_letter(tmp_path):
    lesions = {"a": [(1, 2 * k % 110, k % 40, 4, 4) for k in range(MAX_BOXES + 7)]}
    write_films(tmp_path / "data", lesions, {"a": []}, names=("nodule",))
    tables = evaluate_films(tmp_path)
    assert label_keys(tables) == {}
    image = draw_whole_image(Scene(np.zeros(GRID.shape), GRID), "a", tables)
    assert len(image.boxes) == MAX_BOXES
    assert f"{len(tables.lesions) - MAX_BOXES} boxes not drawn." in image.words


def test_texts_of_boxes_stay_inside_the_image_and_do_not_overlap():
    places = [(30, 80), (33, 81), (36, 82), (0, 0), (88, 0), (0, 188), (88, 188)]
    boxes = [ImageBox("accepted", x, y, 12, 12, "0.31") for x, y in places]
    boxes.append(ImageBox("reference", 50, 0, 10, 200, "missed"))
    tags = WholeImage("", 100, 200, "a", "", boxes).tags()
    assert [tag.box for tag in tags] == boxes  # the order of drawing
    for k, tag in enumerate(tags):
        assert 0 <= tag.left <= 100 - tag.width
        assert 0 <= tag.top <= 200 - tag.height
        assert not any(tag.overlaps(other) for other in tags[:k])


def test_text_of_a_lesion_is_above_its_box_and_that_of_a_marking_below():
    lesion = ImageBox("reference", 40, 80, 20, 20, "missed")
    marking = ImageBox("accepted", 40, 80, 20, 20, "0.31")
    above, below = WholeImage("", 100, 200, "a", "", (lesion, marking)).tags()
    assert (above.top + above.height, below.top) == (80, 100)
    crowd = WholeImage("", 100, 200, "a", "", [marking] * 20).tags()
    assert len(crowd) == 20
    assert crowd[0].top == 100  # without a free place, the usual one


def test_large_films_become_small_pictures_and_keep_their_colours():
    green = np.zeros((3, 2000, 1000), dtype=np.uint8)
    green[1] = 200
    picture = open_picture(Scene(green[0], unit_grid(2000, 1000), colours=green))
    assert picture.size == (MAX_SIDE // 2, MAX_SIDE)
    red, level, blue = np.asarray(picture)[10, 15]
    assert level > 190
    assert max(red, blue) < 10


def test_images_in_subfolders_are_found_by_their_whole_path(tmp_path):
    for patient, level in (("p1", 10), ("p2", 200)):
        (tmp_path / patient).mkdir()
        Image.fromarray(np.full((8, 9), level, np.uint8)).save(tmp_path / patient / "scan.png")
    folders = CaseFolders(tmp_path)
    assert folders.load("p2_scan", frozenset()).image.max() == 200
    with pytest.raises(ReadError, match="have the ids p1_scan, p2_scan"):
        folders.load("scan", frozenset())


def test_nan_in_an_image_is_shown_as_background(tmp_path):
    array = np.full((1, 4, 5, 6), 7.0, np.float32)
    array[0, 0] = np.nan
    write_volume(tmp_path / "a.nii.gz", Volume(array, unit_grid(4, 5, 6)))
    image = CaseFolders(tmp_path).load("a").image
    assert (image.min(), image.max()) == (0, 7)


def test_reports_merge_readers_by_the_rule_of_the_evaluation(tmp_path):
    data = tmp_path / "data"
    write_films(data, {"a": []}, {"a": []})
    (data / "annotations.json").unlink()
    (data / "boxes.csv").write_text(
        "case,label,x0,y0,x1,y1,reader\n"
        "a,nodule,10,10,20,20,R1\na,nodule,10,10,20,20,R2\n"
        "a,nodule,40,20,50,30,R2\na,,,,,,R3\n"
    )
    scores = evaluate(data, data / "found", tmp_path / "scores", min_readers=1).scores
    assert scores.count("n_lesions") == 2
    by_rule = CaseFolders(data, made=scores.provenance).load("a", frozenset())
    assert by_rule.reference.sum() == 200
    assert CaseFolders(data).load("a", frozenset()).reference.sum() == 100

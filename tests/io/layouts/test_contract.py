"""One contract for all layouts: a good folder, and the faults that each of them must report.

Every layout writes the same two films: `a` shows the bright rectangle, `b` has no lesion.
"""

import json
from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lesionseg.errors import LesionsegError
from lesionseg.io.cases import read_case
from lesionseg.io.layouts import list_dataset, read_dataset
from lesionseg.io.layouts.annotated_lesions import LESIONS_KEY
from lesionseg.ops.components import lesion_mask
from tests.io.first_case import read_first
from tests.io.layouts.box_folders import HEIGHT, WIDTH, X0, X1, Y0, Y1, read_all, write_picture

BOX = (X0, Y0, X1, Y1)
OUTSIDE = (WIDTH + 5, 2, WIDTH + 9, 6)


class Layout(ABC):
    """A layout that writes its folder from the cases, the box of `a` and its label value."""

    images = "images"
    table: str | None = None  # the file with the annotations
    has_masks = False

    def write(self, root, *, cases=("a", "b"), box=BOX, label=1):
        for case in cases:
            write_picture(root / self.image(case), bright=case == "a")
        self.write_labels(root, cases, box, label)

    def image(self, case):
        return f"{self.images}/{case}.png"

    @abstractmethod
    def write_labels(self, root, cases, box, label):
        """Write the annotations of the cases."""


class MaskLayout(Layout):
    """A layout with a mask per case."""

    masks = "masks"
    has_masks = True

    def mask(self, case):
        return f"{self.masks}/{case}.png"

    def write_labels(self, root, cases, box, label):
        for case in cases:
            array = np.zeros((HEIGHT, WIDTH), np.uint8)
            if case == "a":
                array[Y0:Y1, X0:X1] = label
            (root / self.mask(case)).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(root / self.mask(case))
        if self.table is not None:
            (root / self.table).write_text(self.text(cases))

    def text(self, cases):
        """Return the content of `table`. Layouts without a table do not call it."""
        return ""


class Manifest(MaskLayout):
    table = "manifest.csv"

    def text(self, cases):
        rows = [f"{case},{self.image(case)},{self.mask(case)}" for case in cases]
        return "\n".join(["case,image,reference", *rows])


class Datalist(MaskLayout):
    table = "datalist.json"

    def text(self, cases):
        entries = [{"image": self.image(c), "label": self.mask(c), "case": c} for c in cases]
        return json.dumps({"training": entries})


class NnUNet(MaskLayout):
    images = "imagesTr"
    masks = "labelsTr"
    table = "dataset.json"

    def image(self, case):
        return f"imagesTr/{case}_0000.png"

    def text(self, _):
        labels = {"background": 0, "lesion": 1}
        return json.dumps({"channel_names": {"0": "film"}, "labels": labels})


class Bids(MaskLayout):
    def image(self, case):
        return f"sub-{case}/anat/sub-{case}_XR.png"

    def mask(self, case):
        return f"derivatives/sub-{case}/sub-{case}_label-lesion_mask.png"


class Boxes(Layout):
    table = "boxes.csv"

    def write_labels(self, root, cases, box, label):
        cells = {case: ",".join(map(str, box)) if case == "a" else ",,," for case in cases}
        name = "lesion" if label == 1 else label
        lines = [f"{case},{name},{cells[case]}" for case in cases]
        (root / self.table).write_text("\n".join(["case,label,x0,y0,x1,y1", *lines]))
        (root / "labels.json").write_text('{"1": "lesion"}')


class Coco(Layout):
    table = "annotations.json"

    def write_labels(self, root, cases, box, label):
        x0, y0, x1, y1 = box
        lesion = {"image_id": "a", "category_id": label, "bbox": [x0, y0, x1 - x0, y1 - y0]}
        content = {
            "images": [{"id": case, "file_name": f"{case}.png"} for case in cases],
            "annotations": [lesion] if "a" in cases else [],
            "categories": [{"id": 1, "name": "lesion"}],
        }
        (root / self.table).write_text(json.dumps(content))


class Yolo(Layout):
    table = "data.yaml"

    def write_labels(self, root, cases, box, label):
        x0, y0, x1, y1 = np.divide(box, [WIDTH, HEIGHT, WIDTH, HEIGHT])
        line = f"{label - 1} {(x0 + x1) / 2} {(y0 + y1) / 2} {x1 - x0} {y1 - y0}"
        (root / "labels").mkdir(exist_ok=True)
        for case in cases:
            (root / "labels" / f"{case}.txt").write_text(line if case == "a" else "")
        (root / self.table).write_text("names: [lesion]\ntrain: images\n")


LAYOUTS = [Manifest(), Datalist(), NnUNet(), Bids(), Boxes(), Coco(), Yolo()]
MASKS = [layout for layout in LAYOUTS if layout.has_masks]
TABLES = [layout for layout in LAYOUTS if layout.table]


def name_of(layout):
    return type(layout).__name__


@pytest.mark.parametrize("layout", LAYOUTS, ids=name_of)
def test_good_folder_has_one_lesion_and_one_lesion_free_case(tmp_path, layout):
    layout.write(tmp_path)
    dataset, cases = read_all(tmp_path)
    assert [case.removeprefix("sub-") for case in cases] == ["a", "b"]
    assert dataset.labels.value_names == {1: "lesion"}
    assert dataset.lesions_are_boxes != layout.has_masks
    assert not dataset.findings
    film, empty = cases.values()
    bright = film.image.array[0] > 0
    np.testing.assert_array_equal(lesion_mask(film.reference), bright)
    assert not lesion_mask(empty.reference).any()


@pytest.mark.parametrize("layout", LAYOUTS, ids=name_of)
def test_missing_image_is_an_error_that_names_the_case(tmp_path, layout):
    layout.write(tmp_path)
    if isinstance(layout, Yolo):  # the text file remains without an image
        (tmp_path / layout.image("a")).unlink()
        kinds = [(one.kind, one.severity) for one in read_dataset(tmp_path).findings]
        assert kinds == [("left_out", "warning")]
        return
    (tmp_path / layout.image("a")).unlink()
    with pytest.raises(LesionsegError, match=r"'a'|sub-a"):
        read_dataset(tmp_path)


@pytest.mark.parametrize("layout", MASKS, ids=name_of)
def test_missing_mask_is_reported(tmp_path, layout):
    layout.write(tmp_path)
    (tmp_path / layout.mask("b")).unlink()
    if isinstance(layout, Bids):  # a session without a mask is not labelled
        (finding,) = read_dataset(tmp_path).findings
        assert (finding.kind, finding.severity) == ("left_out", "warning")
        assert "sub-b" in finding.message
        return
    with pytest.raises(LesionsegError, match="'b'"):
        read_dataset(tmp_path)


@pytest.mark.parametrize("layout", [Boxes(), Yolo()], ids=name_of)
def test_image_without_an_entry_is_lesion_free_with_a_note(tmp_path, layout):
    layout.write(tmp_path)
    write_picture(tmp_path / layout.image("c"), bright=False)
    dataset = read_dataset(tmp_path)
    (finding,) = dataset.findings
    assert (finding.kind, finding.severity) == ("not_in_table", "note")
    assert dataset.cases[2].annotations[LESIONS_KEY].lesions == ()


@pytest.mark.parametrize("layout", LAYOUTS, ids=name_of)
def test_repeated_id_is_an_error(tmp_path, layout):
    layout.write(tmp_path)
    if isinstance(layout, Manifest | Datalist | Coco):
        layout.write(tmp_path, cases=("a", "b", "a"))
    else:
        copy = (tmp_path / layout.image("a")).with_suffix(".bmp")
        write_picture(copy)
    first = list_dataset(tmp_path).errors[0]
    assert first.case.endswith("a")


@pytest.mark.parametrize("layout", [one for one in LAYOUTS if name_of(one) != "Bids"], ids=name_of)
def test_id_that_cannot_be_a_file_name_is_an_error(tmp_path, layout):
    case = "c\u202ed"
    layout.write(tmp_path, cases=("a", case))
    with pytest.raises(LesionsegError, match=r"'c\\u202ed' cannot be a file name"):
        read_dataset(tmp_path)


@pytest.mark.parametrize("layout", MASKS, ids=name_of)
def test_mask_of_another_size_is_an_error_of_its_case(tmp_path, layout):
    layout.write(tmp_path)
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / layout.mask("a"))
    if isinstance(layout, Bids):  # the grids of the first session decide about the channels
        with pytest.raises(LesionsegError, match="on the grid of the mask"):
            read_dataset(tmp_path)
        return
    dataset = read_dataset(tmp_path)
    with pytest.raises(LesionsegError, match=Path(layout.mask("a")).name):
        read_first(dataset)
    assert read_case(dataset.cases[1], dataset).reference is not None


@pytest.mark.parametrize("layout", LAYOUTS, ids=name_of)
def test_unknown_label_is_an_error(tmp_path, layout):
    layout.write(tmp_path, label=7)
    with pytest.raises(LesionsegError, match=r"\b[67]\b"):
        read_all(tmp_path)


@pytest.mark.parametrize("layout", [Boxes(), Coco()], ids=name_of)
def test_box_outside_its_image_is_an_error_of_its_case(tmp_path, layout):
    layout.write(tmp_path, box=OUTSIDE)
    dataset = read_dataset(tmp_path)
    match = rf"{layout.table}: .*outside its image.*x 69 to 73 of 0 to 64, y 2 to 6 of 0 to 40"
    with pytest.raises(LesionsegError, match=match):
        read_first(dataset)


@pytest.mark.parametrize("layout", TABLES, ids=name_of)
@pytest.mark.parametrize("content", [b"", b'{"a": [1', b"\xff\xfe\x00", b"a,\x00b\n"])
def test_damaged_table_is_an_error_that_names_it(tmp_path, layout, content):
    layout.write(tmp_path)
    (tmp_path / layout.table).write_bytes(content)
    with pytest.raises(LesionsegError) as caught:
        read_dataset(tmp_path)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("layout", LAYOUTS, ids=name_of)
def test_folder_without_cases_is_an_error(tmp_path, layout):
    layout.write(tmp_path, cases=())
    with pytest.raises(LesionsegError):
        read_dataset(tmp_path)


@pytest.mark.parametrize(
    ("second", "is_similar"), [("mass", True), ("MASS", True), ("Mass ", True), ("Masses", False)]
)
@pytest.mark.parametrize("layout", [Manifest(), Boxes(), NnUNet()], ids=name_of)
def test_labels_that_differ_in_case_or_blanks_are_a_finding(tmp_path, layout, second, is_similar):
    layout.write(tmp_path)
    (tmp_path / "labels.json").write_text(json.dumps({"1": "Mass", "2": second}))
    if layout.table == "dataset.json":
        facts = {"channel_names": {"0": "film"}, "labels": {"background": 0, "Mass": 1, second: 2}}
        (tmp_path / "dataset.json").write_text(json.dumps(facts))
    kinds = [finding.kind for finding in list_dataset(tmp_path).findings]
    assert ("label_names" in kinds) == is_similar
    assert "label_names" not in [f.kind for f in list_dataset(tmp_path, merge_labels=True).findings]

"""COCO folders: boxes, polygons, RLE, instance masks, and errors in them."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from lesionseg.core import Labels
from lesionseg.errors import ContentError, DatasetError, LesionsegError, ReadError
from lesionseg.io.cases import read_case
from lesionseg.io.layouts import read_dataset
from lesionseg.io.layouts.annotated_lesions import AnnotatedLesion
from lesionseg.io.layouts.drawn_lesions import draw_outlines
from lesionseg.io.references import References
from lesionseg.io.text import write_json
from lesionseg.io.worker import run_in_worker
from lesionseg.ops.components import lesion_mask
from tests.io.first_case import read_first, read_first_of
from tests.io.layouts.box_folders import assert_negative, read_all, write_picture

SQUARE = [[2.0, 1.0, 5.0, 1.0, 5.0, 4.0, 2.0, 4.0]]  # x 2 to 5, y 1 to 4


@pytest.fixture
def write_folder(tmp_path):
    """Write image `a.png` of 8 by 10 (height, width) with the given annotations."""

    def write(annotations=(), mask=None, facts=None, **image):
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(np.zeros((8, 10), np.uint8)).save(tmp_path / "images" / "a.png")
        entry = {"id": 7, "file_name": "a.png", "width": 10, "height": 8, **image}
        if mask is not None:
            (tmp_path / "masks").mkdir(exist_ok=True)
            Image.fromarray(mask.astype(np.uint8)).save(tmp_path / "masks" / "a.png")
            entry = {"mask_file": "a.png", **entry}
        content = {
            "images": [entry],
            "annotations": [{"image_id": 7, "category_id": 20, **a} for a in annotations],
            "categories": [{"id": 30, "name": "mass"}, {"id": 20, "name": "nodule"}],
            **(facts or {}),
        }
        (tmp_path / "annotations.json").write_text(json.dumps(content))
        return tmp_path

    return write


def _read_masks(root, **settings):
    """Read the reference of the only case, with its instances and its labels."""
    reference = read_first_of(root, **settings).reference
    return reference, reference.instances, reference.labels


def test_image_without_further_fields_has_the_defaults(write_folder):
    dataset = read_dataset(write_folder())
    assert (dataset.layout, dataset.dims, dataset.channel_names) == ("coco", 2, ("image",))
    assert dataset.labels == Labels((1, 2), ("nodule", "mass"))  # by category id
    assert dataset.cases[0].columns == {"pixel_mm": ""}
    assert read_first_of(dataset.root).image.geometry.spacing_mm == (1, 1)


def test_image_fields_give_patient_pixel_size_role_and_columns(write_folder):
    root = write_folder(patient="p9", pixel_mm=0.2, role="test", fold=2, view="PA")
    dataset = read_dataset(root)
    files = dataset.cases[0]
    assert (files.case, files.group, files.role, files.fold) == ("a", "p9", "test", 2)
    assert files.columns == {"pixel_mm": "0.2", "view": "PA"}
    assert read_case(files, dataset).image.geometry.spacing_mm == (0.2, 0.2)


def test_boxes_become_starts_and_stops_in_the_order_y_x_inside_the_image(write_folder):
    boxes = [{"bbox": [2, 1, 3.5, 4]}, {"bbox": [-2, 5, 6, 60], "category_id": 30}]
    reference, instances, labels = _read_masks(write_folder(boxes))
    assert reference.boxes.tolist() == [[1, 2, 5, 5.5], [5, 0, 8, 4]]
    assert (reference.box_labels, reference.boxes.dtype) == ((1, 2), np.float32)
    assert instances is labels is None


POLYGON = {"bbox": [2, 1, 3, 3], "mask_label": 1, "segmentation": SQUARE, "category_id": 30}
FILLED_SQUARE = np.zeros((8, 10))
FILLED_SQUARE[1:4, 2:5] = 1


@pytest.mark.parametrize(("merged", "label"), [(False, 2), (True, 1)])
def test_polygon_is_filled(write_folder, merged, label):
    reference, instances, labels = _read_masks(write_folder([POLYGON]), merge_labels=merged)
    np.testing.assert_array_equal(instances, FILLED_SQUARE)
    np.testing.assert_array_equal(labels, FILLED_SQUARE * label)
    assert reference.instance_labels == (label,)


def test_polygon_smaller_than_a_pixel_keeps_one_pixel(write_folder):
    triangle = [[3.1, 2.1, 3.2, 2.1, 3.2, 2.2]]
    annotation = {"bbox": [3.1, 2.1, 0.1, 0.1], "segmentation": triangle}
    _, instances, _ = _read_masks(write_folder([annotation]))
    assert np.argwhere(instances).tolist() == [[2, 3]]


def test_rle_is_decoded(write_folder):
    mask = np.zeros((8, 10), np.uint8)
    mask[2:4, 6:9] = 1
    rle = coco_mask.encode(np.asfortranarray(mask))["counts"].decode()
    for counts in (rle, [6 * 8 + 2, 2, 6, 2, 6, 2, 8 + 4]):  # runs down the columns
        drawing = {"segmentation": {"size": [8, 10], "counts": counts}}
        for box in ({"bbox": [6, 2, 3, 2]}, {}, {"bbox": []}):
            reference, instances, _ = _read_masks(write_folder([drawing | box]))
            np.testing.assert_array_equal(instances, mask)
            assert reference.boxes.tolist() == [[2, 6, 4, 9]]


def test_smaller_of_two_overlapping_polygons_keeps_the_pixel(write_folder):
    big = [[0.0, 0.0, 8.0, 0.0, 8.0, 8.0, 0.0, 8.0]]
    small = {"bbox": [2, 1, 3, 3], "segmentation": SQUARE, "category_id": 30}
    root = write_folder([small, {"bbox": [0, 0, 8, 8], "segmentation": big}])
    reference, instances, labels = _read_masks(root)
    assert np.bincount(instances.ravel()).tolist() == [16, 9, 64 - 9]
    assert reference.instance_labels == (2, 1)
    assert labels[2, 3] == 2


TWO = np.zeros((8, 10), np.uint8)
TWO[1:3, 1:3] = 9
TWO[5, 5] = 4


def test_instance_mask_is_preferred_to_polygons(write_folder, caplog):
    nodule = {"bbox": [5, 5, 1, 1], "mask_label": 4, "segmentation": SQUARE}
    mass = {"bbox": [1, 1, 2, 2], "mask_label": 9, "segmentation": SQUARE, "category_id": 30}
    reference, instances, labels = _read_masks(write_folder([nodule, mass], TWO))
    expected = (TWO == 4) + 2 * (TWO == 9)
    assert instances.dtype == np.int32
    np.testing.assert_array_equal(instances, expected)
    np.testing.assert_array_equal(labels, expected)
    assert reference.instance_labels == reference.box_labels == (1, 2)
    # a finding under two names is left out once
    twice = [{**mass, "mask_label": 8}, mass, nodule]
    reference, instances, _ = _read_masks(write_folder(twice, TWO))
    assert "1 lesion left out, because no pixel of a.png has the mask_label" in caplog.text
    assert reference.instance_labels == reference.box_labels == (2, 1)
    assert reference.boxes.tolist() == [[1, 1, 3, 3], [5, 5, 6, 6]]
    np.testing.assert_array_equal(instances, (TWO == 9) + 2 * (TWO == 4))


def test_crowd_next_to_a_mask_needs_no_value_in_it(write_folder):
    nodule = {"bbox": [5, 5, 1, 1], "mask_label": 4}
    mass = {"bbox": [1, 1, 2, 2], "mask_label": 9, "category_id": 30}
    crowd = {"bbox": [8, 6, 2, 2], "iscrowd": 1}
    reference, _, labels = _read_masks(write_folder([nodule, mass, crowd], TWO))
    assert np.bincount(labels.ravel()).tolist() == [75, 1, 4]
    assert reference.ignore.sum() == 4


def test_crowds_are_ignored(write_folder):
    crowds = [
        {"bbox": [2, 1, 3, 3], "segmentation": SQUARE, "iscrowd": 1},
        {"bbox": [8, 6, 1.5, 2], "iscrowd": 1},
    ]
    reference, _, labels = _read_masks(write_folder(crowds))
    assert reference.ignore.sum() == 9 + 4
    assert not labels.any()


@pytest.mark.parametrize("outline", [{}, {"segmentation": SQUARE}])
def test_lesion_in_a_crowd_is_not_ignored(write_folder, outline):
    crowd = {"bbox": [1, 0, 7, 7], "iscrowd": 1}
    ignore = read_first_of(write_folder([{**LESION, **outline}, crowd])).reference.ignore
    assert (ignore.sum(), ignore[1:4, 2:5].any()) == (49 - 9, False)


LESION = {"bbox": [2, 1, 3, 3], "id": 3}
ANNOTATIONS = [
    ({"bbox": [2, 1, 3]}, "bbox"),
    ({"bbox": [2, 1, 0, 4]}, "annotation 3: bbox"),
    ({"bbox": [2, 1, float("nan"), 4]}, "bbox.2.: nan"),
    ({"bbox": None}, "annotation 3: .*Write a bbox or a segmentation"),
    ({"image_id": None}, "not listed"),
    ({"image_id": 7.0}, "image 7.0 or category 20 is not listed"),
    ({"bbox": [6, 4, 3, 3], "segmentation": SQUARE}, "disagree.*0 of 9"),
    ({"segmentation": [[1.0, 2.0]]}, "annotation 3: segmentation"),
    ({"segmentation": [[2, 1, 5, 1, 5, 4, 2]]}, "segmentation"),
    ({"segmentation": [["a"] * 6]}, "segmentation"),
    ({"segmentation": [[1e9] * 6]}, "segmentation"),
    ({"segmentation": [[1e5] * 6]}, "cannot be drawn"),
    ({"segmentation": {"counts": [9], "size": [3, 3]}}, "have the size"),
    ({"segmentation": {"size": [8, 10]}}, "counts"),
    # forms of other programs
    ({"attributes": {"rotation": 30}}, "the box is rotated"),
    ({"rotation": 30}, "the box is rotated"),
    ({"rotation": 90}, "the box is rotated"),
    ({"bbox": [5, 2, 6, 2, 30]}, "bbox"),
    ({"bbox": [0.2, 0.1, 0.6, 0.2]}, "annotation 3: .*shares of the image"),
]
OUTLINES = [
    ({"size": [8, 10], "counts": [80]}, "empty"),
    ([[50, 50, 53, 50, 53, 53]], "annotation 3: the box .*x 50 to 53 of 0 to 10"),
    ([[0.2, 0.1, 0.8, 0.1, 0.8, 0.3]], "shares of the image"),
    (SQUARE[0], "must be a list"),
    (5, "segmentation: 5 must be a list"),
    ([], "there is no place"),
]


@pytest.mark.parametrize(
    ("change", "match"),
    [*ANNOTATIONS, *(({"bbox": None, "segmentation": o}, match) for o, match in OUTLINES)],
)
def test_invalid_annotation_is_an_error(write_folder, change, match):
    with pytest.raises(LesionsegError, match=match):
        read_first_of(write_folder([{**LESION, **change}]))


SAME_ID = [{"id": 7, "file_name": name} for name in ("a.png", "b.png")]
SAME_CATEGORY = [{"id": 20, "name": name} for name in ("nodule", "mass")]
IN_MASK = {**LESION, "mask_label": 4}
WRONG = [
    ({"width": 20}, r"a\.png .*annotations state"),
    ({"height": 10, "width": 8}, "orientation tag"),  # the sides are exchanged
    ({"height": 9, "width": 8}, "Correct"),
    ({"pixel_mm": float("nan")}, "pixel_mm of 'a' is nan"),
    ({"file_name": f"{'a' * 300}.png"}, r"a\.png of case .* does not exist"),
    ({"facts": {"images": SAME_ID}}, r"annotations\.json: b\.png has the id 7 of another image"),
    ({"facts": {"images": []}}, r"annotations\.json"),
    ({"facts": {"images": [1]}}, r"annotations\.json"),
    ({"facts": {"images": [{"id": 1}]}}, r"annotations\.json"),
    ({"facts": {"categories": SAME_CATEGORY}}, "category 20 is called 'mass', but 'nodule'"),
    ({"mask": np.ones((4, 4)), "annotations": [{**LESION, "mask_label": 1}]}, "its image"),
    ({"mask_file": "gone.png", "annotations": [IN_MASK]}, r"masks/gone\.png of case 'a'"),
    ({"mask_file": "gone.png", "annotations": [POLYGON]}, r"masks/gone\.png of case 'a'"),
    # only the second annotation is named
    (
        {"mask": TWO, "annotations": [{**IN_MASK, "id": 1}, LESION]},
        r"^\S+: annotation 3: .* a\.png",
    ),
]


@pytest.mark.parametrize(("wrong", "match"), WRONG)
def test_invalid_image_or_mask_is_an_error(write_folder, wrong, match):
    with pytest.raises(LesionsegError, match=match):
        read_first_of(write_folder(**wrong))


@pytest.mark.parametrize(
    ("settings", "are_boxes"),
    [
        ({"annotations": [LESION]}, True),
        ({"annotations": [POLYGON]}, False),
        ({"annotations": [IN_MASK], "mask": TWO}, False),
        ({}, False),
    ],
)
def test_dataset_states_if_lesions_are_boxes_without_outlines(write_folder, settings, are_boxes):
    assert read_dataset(write_folder(**settings)).lesions_are_boxes == are_boxes


@pytest.mark.parametrize("labels", [(4,), (4, 4), (4, 9, 0), ()])
def test_mask_that_does_not_fit_its_annotations_is_an_error(write_folder, labels):
    annotations = [{"bbox": [1, 1, 2, 2], "mask_label": label} for label in labels]
    with pytest.raises(ContentError, match=r"a\.png.*do not fit together"):
        read_first_of(write_folder(annotations, TWO))


# --- folders of other programs ---


def write_coco(path, names, categories=((1, "nodule"),), folder=None):
    """Write a COCO file with a box in each of the images of 96 by 96 pixels, and these images."""
    entries = {"images": [], "annotations": []}
    for k, name in enumerate(names):
        image = (folder or path.parent / "images") / name
        image.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (96, 96)).save(image)
        entries["images"].append({"id": k, "file_name": name, "width": 96, "height": 96})
        box = {"id": k, "image_id": k, "category_id": categories[0][0], "bbox": [20, 30, 9, 9]}
        entries["annotations"].append(box)
    path.parent.mkdir(parents=True, exist_ok=True)
    named = [{"id": number, "name": name} for number, name in categories]
    write_json(path, {**entries, "categories": named})
    return path.parent


def test_equal_names_in_different_folders_are_different_cases(tmp_path):
    names = ("p1/view1.png", "p2/view1.png", "images/p3/view1.png", "p1/view1.v2.png")
    root = write_coco(tmp_path / "annotations.json", names, folder=tmp_path)
    ids = [c.case for c in read_dataset(root).cases]
    assert ids == ["p1_view1", "p2_view1", "p3_view1", "p1_view1.v2"]


PARTS = [
    ("annotations/instances_{}2017.json", "images/{}2017", "val"),
    ("annotations/{}.json", "{}", "Val"),
    ("{}/_annotations.coco.json", "{}", "valid"),
    ("{}/_annotations.coco.json", "{}", "Valid"),
]


@pytest.mark.parametrize(("table", "folder", "validation"), PARTS)
def test_names_of_files_and_folders_give_roles(tmp_path, table, folder, validation):
    for part in ("train", validation, "test"):
        images = tmp_path / folder.format(part)
        write_coco(tmp_path / table.format(part), (f"{part}.png",), folder=images)
    (tmp_path / "annotations").mkdir(exist_ok=True)
    (tmp_path / "annotations" / "captions_train2017.json").write_text("{}")  # not read
    dataset = read_dataset(tmp_path)
    roles = {"train": "train", validation: "validation", "test": "test"}
    assert {case.case: case.role for case in dataset.cases} == roles
    assert all(case.images[0].is_file() for case in dataset.cases)


def test_single_file_gives_no_roles(tmp_path):
    path = tmp_path / "annotations" / "instances_train2017.json"
    dataset = read_dataset(write_coco(path, ("a.png",), folder=tmp_path / "train2017").parent)
    assert [case.role for case in dataset.cases] == [None]


def test_polygon_without_a_box_gets_the_box_of_its_pixels(write_folder):
    reference, instances, _ = _read_masks(
        write_folder([{"segmentation": SQUARE}, {"segmentation": SQUARE}])
    )
    assert reference.annotated_boxes.boxes.tolist() == [[1, 2, 4, 5]] * 2
    assert reference.boxes.tolist() == [[1, 2, 4, 5]]  # the second hides the first
    assert np.argwhere(instances).tolist() == [[y, x] for y in (1, 2, 3) for x in (2, 3, 4)]


def test_invalid_polygon_of_one_of_several_readers_is_an_error(write_folder):
    """Their polygons only give boxes."""
    own = {reader: {"segmentation": SQUARE, "reader": reader} for reader in "AB"}
    unknown_size = {"width": None, "height": None}
    reference = read_first_of(write_folder([*own.values()], **unknown_size)).reference
    assert reference.boxes.tolist() == [[1, 2, 4, 5]]
    wrong = {**own["B"], "id": 2, "segmentation": [[2, 1, 5, 1, 5, 4, 2]]}
    with pytest.raises(DatasetError, match=r"annotations\.json: annotation 2: segmentation"):
        read_dataset(write_folder([own["A"], wrong], **unknown_size))


def test_nan_in_unused_fields_is_allowed(write_folder):
    root = write_folder([{"bbox": [2, 1, 3, 3], "area": float("nan")}], score=float("nan"))
    assert read_first_of(root).reference.boxes.tolist() == [[1, 2, 4, 5]]


def test_remark_names_unlisted_images(write_folder):
    root = write_folder()
    for name in ("b.png", "c.png", "d.dcm.bz2"):
        (root / "images" / name).write_bytes((root / "images" / "a.png").read_bytes())
    warnings = " ".join(remark.message for remark in read_dataset(root).findings)
    assert "2 images not listed, left out: b.png, c.png." in warnings
    assert "(.bz2): d.dcm.bz2" in warnings


PLACES = [
    ("annotations.json", "images/p1/view1.png"),
    ("annotations/instances_train2017.json", "train2017/p1/view1.png"),
    ("annotations/instances_default.json", "images/p1/view1.png"),
    ("train/_annotations.coco.json", "train/p1/view1.png"),
    ("_annotations.coco.json", "p1/view1.png"),
]
OUTLINE = [[16, 4, 32, 4, 32, 14, 16, 14]]
LESIONS_KEY = [
    {"bbox": [16, 4, 16, 10]},
    {"bbox": [16, 4, 16, 10], "segmentation": OUTLINE},
    {"segmentation": OUTLINE},
]


@pytest.mark.parametrize(("table", "name"), PLACES)
@pytest.mark.parametrize("lesion", LESIONS_KEY)
def test_box_is_the_bright_rectangle_in_every_place(tmp_path, table, name, lesion):
    write_picture(tmp_path / name)
    write_picture((tmp_path / name).parents[1] / "p2" / "view1.png", bright=False)
    images = [{"id": n, "file_name": f"p{n}/view1.png", "width": 64, "height": 40} for n in (1, 2)]
    annotations = [{"id": 0, "image_id": 1, "category_id": 0, **lesion}]
    categories = [{"id": 0, "name": "nodule"}]
    (tmp_path / table).parent.mkdir(exist_ok=True)
    content = {"images": images, "annotations": annotations, "categories": categories}
    write_json(tmp_path / table, content)
    dataset, cases = read_all(tmp_path)
    assert [*cases] == ["p1_view1", "p2_view1"]
    assert dataset.labels.value_names == {1: "nodule"}
    first = cases["p1_view1"]
    assert first.reference.boxes.tolist() == [[4, 16, 14, 32]]
    np.testing.assert_array_equal(lesion_mask(first.reference), first.image.array[0] > 0)
    assert_negative(cases["p2_view1"])


FRACATLAS = "Annotations/COCO JSON/COCO_fracture_masks.json"


def test_file_of_any_name_and_place_is_read_if_it_is_named(tmp_path):
    """FracAtlas publishes its annotations so, with images in two folders."""
    images = tmp_path / "images"
    write_coco(tmp_path / FRACATLAS, ("a.png",), folder=images / "Fractured")
    write_picture(images / "Non_fractured" / "b.png")
    with pytest.raises(DatasetError, match=r"COCO_fracture_masks\.json .*data\.annotations"):
        read_dataset(tmp_path)
    dataset, cases = read_all(tmp_path, annotations=FRACATLAS)
    assert cases["a"].reference.boxes.tolist() == [[30, 20, 39, 29]]
    references = References.find(tmp_path, annotations=FRACATLAS)
    assert (references.cases, references.are_masks) == ([*dataset.cases], False)
    assert "1 image not listed, left out: b.png" in dataset.findings[0].message
    write_picture(images / "Non_fractured" / "a.png")
    with pytest.raises(DatasetError, match=r"are both called a\.png"):
        read_dataset(tmp_path, annotations=FRACATLAS)
    with pytest.raises(ReadError, match=r"gone\.json"):
        read_dataset(tmp_path, annotations="gone.json")


def test_drawings_are_cropped_because_an_image_may_have_hundreds_of_lesions():
    square = ((300.0, 200.0, 310.0, 200.0, 310.0, 204.0, 300.0, 204.0),)
    (part,) = run_in_worker(draw_outlines, "a", [AnnotatedLesion(1, outline=square)], (3000, 4000))
    assert part.mask.shape == (4, 10)
    image = np.zeros((3000, 4000), np.uint8)
    part.paint(image, 7)
    assert image[200:204, 300:310].sum() == image.sum() == 7 * 40


def test_separators_of_windows_in_file_names_are_read(write_folder):
    mask = np.zeros((8, 10))
    mask[2:4, 3:5] = 1
    lesion = {"bbox": [3, 2, 2, 2], "mask_label": 1}
    root = write_folder([lesion], mask, file_name="images\\a.png", mask_file=".\\a.png")
    dataset = read_dataset(root)
    assert [case.case for case in dataset.cases] == ["a"]
    assert read_first(dataset).reference.labels.sum() == 4


def test_null_names_no_reader(write_folder):
    dataset = read_dataset(write_folder([{**LESION, "reader": None}]))
    assert dataset.cases[0].annotations["lesions"].readers == ()


BOX = {"bbox": [2, 1, 6, 2]}


@pytest.mark.parametrize("turn", [0, 1e-13, 180, 359.999, 360, None])
def test_attributes_of_cvat_give_only_reader_and_rotation(write_folder, turn):
    attributes = {"rotation": turn, "reader": "r", "iscrowd": "no", "mask_label": "high"}
    root = write_folder([{**BOX, "attributes": attributes}])
    assert read_first_of(root).reference.boxes.tolist() == [[1, 2, 3, 8]]


def test_rotation_does_not_change_a_polygon(write_folder):
    lesion = {"bbox": [2, 1, 3, 3], "segmentation": SQUARE, "attributes": {"rotation": 30}}
    reference, _, labels = _read_masks(write_folder([lesion]))
    assert reference.boxes.tolist() == [[1, 2, 4, 5]]
    np.testing.assert_array_equal(labels, FILLED_SQUARE)


@pytest.mark.parametrize("box", [[0, 0, 1, 1], [0, 0, 0, 0], [-1, -1, -1, -1], [], None])
def test_category_no_finding_states_that_there_is_no_lesion(write_folder, box):
    facts = {"categories": [{"id": 20, "name": "nodule"}, {"id": 9, "name": "No finding"}]}
    root = write_folder([{"bbox": box, "segmentation": [], "category_id": 9}], facts=facts)
    dataset, cases = read_all(root)
    assert dataset.labels.value_names == {2: "nodule"}
    assert_negative(cases["a"])


@pytest.mark.parametrize("is_roboflow", [True, False])
def test_equal_file_names_in_several_files_give_ids_by_path(tmp_path, is_roboflow):
    prefix = "" if is_roboflow else "images_"
    for part in ("train", "valid"):
        folder = tmp_path / prefix.replace("_", "/") / part
        table = tmp_path / "annotations" / f"instances_{part}.json"
        if is_roboflow:
            table = folder / "_annotations.coco.json"
        write_coco(table, ("a.png", f"{part}.png"), folder=folder)
    _, cases = read_all(tmp_path)
    assert [*cases] == [f"{prefix}train_a", "train", f"{prefix}valid_a", "valid"]
    assert all(case.reference.boxes.tolist() == [[30, 20, 39, 29]] for case in cases.values())

"""COCO folders: boxes, polygons, RLE, instance masks, and errors in them."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from lesionseg.core import Labels
from lesionseg.errors import ContentError, DatasetError, GeometryError, ReadError
from lesionseg.io.cases import read_case
from lesionseg.io.layouts import read_dataset
from lesionseg.ops.components import lesion_mask
from tests.io.layouts.box_folders import assert_negative, read_all, write_picture

SQUARE = [[2.0, 1.0, 5.0, 1.0, 5.0, 4.0, 2.0, 4.0]]  # x 2 to 5, y 1 to 4


@pytest.fixture
def folder(tmp_path):
    """Write image `a.png` of 8 by 10 (height, width) with the given annotations."""

    def write(annotations=(), mask=None, facts=None, **image):
        for part, array in {"images": np.zeros((8, 10)), "masks": mask}.items():
            (tmp_path / part).mkdir(exist_ok=True)
            if array is not None:
                Image.fromarray(array.astype(np.uint8)).save(tmp_path / part / "a.png")
        masked = {} if mask is None else {"mask_file": "a.png"}
        entry = {"id": 7, "file_name": "a.png", "width": 10, "height": 8, **masked, **image}
        content = {
            "images": [entry],
            "annotations": [{"image_id": 7, "category_id": 20, **a} for a in annotations],
            "categories": [{"id": 30, "name": "mass"}, {"id": 20, "name": "nodule"}],
            **(facts or {}),
        }
        (tmp_path / "annotations.json").write_text(json.dumps(content))
        return tmp_path

    return write


def _case(root, **settings):
    dataset = read_dataset(root, **settings)
    return read_case(dataset.cases[0], dataset)


def _draw(root, **settings):
    """Read a case's reference, its instances and its labels."""
    reference = _case(root, **settings).reference
    return reference, reference.instances, reference.labels


def test_image_fields_give_patient_pixel_size_role_and_columns(folder):
    dataset = read_dataset(folder())
    assert (dataset.convention, dataset.dims, dataset.channel_names) == ("coco", 2, ("image",))
    assert dataset.labels == Labels((1, 2), ("nodule", "mass"))  # by category id
    assert dataset.cases[0].columns == {"pixel_mm": ""}
    assert _case(dataset.root).image.geometry.spacing_mm == (1, 1)
    root = folder(patient="p9", pixel_mm=0.2, role="test", fold=2, view="PA")
    dataset = read_dataset(root)
    files = dataset.cases[0]
    assert (files.case, files.group, files.role, files.fold) == ("a", "p9", "test", 2)
    assert files.columns == {"pixel_mm": "0.2", "view": "PA"}
    assert read_case(files, dataset).image.geometry.spacing_mm == (0.2, 0.2)


def test_boxes_become_starts_and_stops_in_the_order_y_x(folder):
    root = folder([{"bbox": [2, 1, 3.5, 4]}, {"bbox": [0, 0, 1, 2], "category_id": 30}])
    reference, instances, labels = _draw(root)
    assert reference.boxes.tolist() == [[1, 2, 5, 5.5], [0, 0, 2, 1]]
    assert (reference.box_labels, reference.boxes.dtype) == ((1, 2), np.float32)
    assert instances is labels is None
    cut = _draw(folder([{"bbox": [-2, 5, 6, 60]}]))[0]  # to the image
    assert cut.boxes.tolist() == [[5, 0, 8, 4]]
    reference, instances, labels = _draw(folder())  # lesion-free
    assert instances.shape == labels.shape == (8, 10)
    assert not np.any([instances, labels])
    assert (reference.instance_labels, reference.boxes.shape) == ((), (0, 4))


def test_dataset_states_if_lesions_are_boxes_without_outlines(folder):
    box = {"bbox": [2, 1, 3, 3], "mask_label": 1}
    assert read_dataset(folder([box])).lesions_are_boxes
    assert not read_dataset(folder([{**box, "segmentation": SQUARE}])).lesions_are_boxes
    assert not read_dataset(folder([box], TWO)).lesions_are_boxes
    assert not read_dataset(folder()).lesions_are_boxes


def test_a_polygon_is_drawn(folder):
    polygon = [{"bbox": [2, 1, 3, 3], "mask_label": 1, "segmentation": SQUARE, "category_id": 30}]
    expected = np.zeros((8, 10))
    expected[1:4, 2:5] = 1
    reference, instances, labels = _draw(folder(polygon, mask_file="gone.png"))
    np.testing.assert_array_equal(instances, expected)
    np.testing.assert_array_equal(labels, expected * 2)
    assert reference.instance_labels == (2,)
    reference, _, labels = _draw(folder(polygon), merge_labels=True)
    np.testing.assert_array_equal(labels, expected)
    assert reference.instance_labels == (1,)
    speck = [[3.1, 2.1, 3.2, 2.1, 3.2, 2.2]]  # too small for a pixel keeps one
    _, instances, _ = _draw(folder([{"bbox": [3.1, 2.1, 0.1, 0.1], "segmentation": speck}]))
    assert np.argwhere(instances).tolist() == [[2, 3]]


def test_rle_is_drawn(folder):
    mask = np.zeros((8, 10), np.uint8)
    mask[2:4, 6:9] = 1
    rle = coco_mask.encode(np.asfortranarray(mask))["counts"].decode()
    for counts in (rle, [6 * 8 + 2, 2, 6, 2, 6, 2, 8 + 4]):  # runs down the columns
        drawing = {"size": [8, 10], "counts": counts}
        _, instances, _ = _draw(folder([{"bbox": [6, 2, 3, 2], "segmentation": drawing}]))
        np.testing.assert_array_equal(instances, mask)


def test_smaller_of_two_overlapping_polygons_keeps_the_pixel(folder):
    big = [[0.0, 0.0, 8.0, 0.0, 8.0, 8.0, 0.0, 8.0]]
    small = {"bbox": [2, 1, 3, 3], "segmentation": SQUARE, "category_id": 30}
    root = folder([small, {"bbox": [0, 0, 8, 8], "segmentation": big}])
    reference, instances, labels = _draw(root)
    assert np.bincount(instances.ravel()).tolist() == [16, 9, 64 - 9]
    assert reference.instance_labels == (2, 1)
    assert labels[2, 3] == 2


TWO = np.zeros((8, 10), np.uint8)
TWO[1:3, 1:3], TWO[5, 5] = 9, 4


def test_instance_mask_is_preferred_to_polygons(folder, caplog):
    nodule = {"bbox": [5, 5, 1, 1], "mask_label": 4, "segmentation": SQUARE}
    mass = {"bbox": [1, 1, 2, 2], "mask_label": 9, "segmentation": SQUARE, "category_id": 30}
    reference, instances, labels = _draw(folder([nodule, mass], TWO))
    assert instances.dtype == np.int32
    assert (instances[5, 5], instances[1, 1]) == (1, 2)
    assert (labels[5, 5], labels[1, 1]) == (1, 2)
    assert reference.instance_labels == reference.box_labels == (1, 2)
    # a finding under two names is left out once
    reference, instances, _ = _draw(folder([{**mass, "mask_label": 8}, mass, nodule], TWO))
    assert "1 lesion left out" in caplog.text
    assert reference.instance_labels == reference.box_labels == (2, 1)
    assert reference.boxes.tolist() == [[1, 1, 3, 3], [5, 5, 6, 6]]
    assert (instances[1, 1], instances[5, 5]) == (1, 2)


def test_crowds_are_ignored_except_for_lesions_in_them(folder):
    crowds = [
        {"bbox": [2, 1, 3, 3], "segmentation": SQUARE, "iscrowd": 1},
        {"bbox": [8, 6, 1.5, 2], "iscrowd": 1},
    ]
    reference, _, labels = _draw(folder(crowds))
    assert reference.ignore.sum() == 9 + 4
    assert not labels.any()
    crowd = {"bbox": [1, 0, 7, 7], "iscrowd": 1}
    for drawn in ({}, {"segmentation": SQUARE}):
        within = _case(folder([{"bbox": [2, 1, 3, 3], **drawn}, crowd])).reference
        assert within.ignore.sum() == 49 - 9
        assert not within.ignore[1:4, 2:5].any()


LESION = {"bbox": [2, 1, 3, 3]}
ANNOTATIONS = [
    ({"bbox": [2, 1, 3]}, "bbox"),
    ({"bbox": [2, 1, 0, 4], "id": 5}, "annotation 5: bbox"),
    ({"bbox": [2, 1, float("nan"), 4]}, "annotation None: bbox.2.: nan"),
    ({"category_id": 99}, "99 is not listed"),
    ({"image_id": None}, "not listed"),
    (
        {"bbox": [50, 50, 3, 3]},
        r"case a: .*annotation None: the box .*x 50 to 53 of 0 to 10, y 50 to 53 of 0 to 8",
    ),
    ({"bbox": [6, 4, 3, 3], "segmentation": SQUARE}, "disagree.*0 of 9"),
    *(({"segmentation": [p]}, "cannot be drawn") for p in ([1.0, 2.0], ["a"] * 6, [1e9] * 6)),
    ({"segmentation": {"counts": [9], "size": [3, 3]}}, "have the size"),
    ({"segmentation": {"size": [8, 10]}}, "cannot be drawn"),
]
IMAGES = [[], [1], [{"id": 1}]]
TWICE = [{"id": number, "file_name": "a.png"} for number in (7, 8)]
WRONG = [
    *(({"annotations": [{**LESION, **change}]}, match) for change, match in ANNOTATIONS),
    ({"width": 20}, r"a\.png .*annotations state"),
    ({"file_name": "gone.png"}, r"gone\.png"),
    ({"facts": {"images": TWICE}}, "'a' is listed more than once"),
    *(({"facts": {"images": images}}, r"annotations\.json") for images in IMAGES),
    ({"mask": np.ones((4, 4)), "annotations": [{**LESION, "mask_label": 1}]}, "its image"),
]


@pytest.mark.parametrize(("wrong", "match"), WRONG)
def test_invalid_annotation_is_an_error(folder, wrong, match):
    with pytest.raises((DatasetError, ReadError, ContentError, GeometryError), match=match):
        _case(folder(**wrong))


@pytest.mark.parametrize("labels", [(4,), (4, 4), (4, 9, 0), ()])
def test_mask_that_does_not_fit_its_annotations_is_an_error(folder, labels):
    annotations = [{"bbox": [1, 1, 2, 2], "mask_label": label} for label in labels]
    with pytest.raises(ContentError, match=r"a\.png.*do not fit together"):
        _case(folder(annotations, TWO))


# --- layouts that others write ---


def write_coco(path, names, categories=((1, "nodule"),), boxes=((20, 30, 9, 9),), folder=None):
    """Write a COCO file with equal boxes for images of 96 by 96 pixels, and these images."""
    for name in names:
        place = (folder or path.parent / "images") / name
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((96, 96), np.uint8)).save(place)
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [
        {"id": k, "file_name": name, "width": 96, "height": 96} for k, name in enumerate(names)
    ]
    annotations = [
        {"id": k, "image_id": k, "category_id": categories[0][0], "bbox": box}
        for k in range(len(names))
        for box in boxes
    ]
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for number, name in categories],
    }
    path.write_text(json.dumps(content))
    return path.parent


def roles(dataset):
    return [(case.case, case.role) for case in dataset.cases]


def test_equal_names_in_different_folders_are_different_cases(tmp_path):
    names = ("p1/view1.png", "p2/view1.png", "images/p3/view1.png", "p1/view1.v2.png")
    dataset = read_dataset(write_coco(tmp_path / "annotations.json", names[:2]))
    assert [c.case for c in dataset.cases] == ["p1_view1", "p2_view1"]
    for case, name in zip(dataset.cases, names, strict=False):
        assert case.images == (tmp_path / "images" / name,)
        assert read_case(case, dataset).reference.boxes.tolist() == [[30, 20, 39, 29]]
    root = write_coco(tmp_path / "b" / "annotations.json", names, folder=tmp_path / "b")
    ids = [c.case for c in read_dataset(root).cases]
    assert ids == ["p1_view1", "p2_view1", "p3_view1", "p1_view1.v2"]


def test_names_of_coco_files_give_roles(tmp_path):
    train = tmp_path / "annotations" / "instances_train2017.json"
    write_coco(train, ("a.png", "b.png"), folder=tmp_path / "train2017")
    (tmp_path / "annotations" / "captions_train2017.json").write_text("{}")
    dataset = read_dataset(tmp_path)
    assert roles(dataset) == [("a", None), ("b", None)]  # one part is no division
    assert dataset.cases[0].images[0] == tmp_path / "train2017" / "a.png"
    val = tmp_path / "annotations" / "instances_val2017.json"
    write_coco(val, ("c.png",), folder=tmp_path / "images" / "val2017")
    dataset = read_dataset(tmp_path)
    assert roles(dataset) == [("a", "train"), ("b", "train"), ("c", "validation")]
    assert read_case(dataset.cases[2], dataset).image.geometry.shape == (96, 96)
    write_coco(val, ("c.png",), ((1, "mass"),), folder=tmp_path / "images" / "val2017")
    with pytest.raises(DatasetError, match="category 1 is called 'mass' here, but 'nodule'"):
        read_dataset(tmp_path)


def test_roboflow_s_folders_give_roles(tmp_path):
    for part, role in (("train", "train"), ("valid", "validation"), ("test", "test")):
        folder = tmp_path / part
        write_coco(folder / "_annotations.coco.json", (f"{role}.png",), folder=folder)
    dataset = read_dataset(tmp_path)
    assert roles(dataset) == [(r, r) for r in ("train", "validation", "test")]
    alone = write_coco(tmp_path / "x" / "_annotations.coco.json", ("a.png",), folder=tmp_path / "x")
    assert roles(read_dataset(alone)) == [("a", None)]


def test_segmentation_without_a_box_gets_the_box_of_its_pixels(folder):
    reference, instances, _ = _draw(folder([{"segmentation": SQUARE}, {"segmentation": SQUARE}]))
    assert reference.stated.boxes.tolist() == [[1, 2, 4, 5]] * 2
    assert reference.boxes.tolist() == [[1, 2, 4, 5]]  # the second hides the first
    assert np.argwhere(instances).tolist() == [[y, x] for y in (1, 2, 3) for x in (2, 3, 4)]
    mask = np.zeros((8, 10), np.uint8)
    mask[2:4, 6:9] = 1
    counts = coco_mask.encode(np.asfortranarray(mask))["counts"].decode()
    drawing = {"size": [8, 10], "counts": counts}
    for box in ({}, {"bbox": []}):
        reference, instances, _ = _draw(folder([{"segmentation": drawing, **box}]))
        assert reference.boxes.tolist() == [[2, 6, 4, 9]]
        np.testing.assert_array_equal(instances > 0, mask)
    wrong = {"size": [8, 10], "counts": [80]}
    for segmentation, match in ((wrong, "empty"), ([[1, 2, 3]], "cannot be drawn")):
        with pytest.raises(ContentError, match=match):
            _case(folder([{"segmentation": segmentation}]))
    with pytest.raises(DatasetError, match="Write a bbox or a segmentation"):
        _case(folder([{"id": 3}]))


def test_nan_in_unused_fields_is_allowed(folder):
    root = folder([{"bbox": [2, 1, 3, 3], "area": float("nan")}], score=float("nan"))
    assert _case(root).reference.boxes.tolist() == [[1, 2, 4, 5]]
    with pytest.raises(DatasetError, match="pixel_mm of 'a' is nan"):
        _case(folder(pixel_mm=float("nan")))


def test_remark_names_unlisted_images(folder, caplog):
    root = folder()
    for name in ("b.png", "c.png", "d.dcm.bz2"):
        (root / "images" / name).write_bytes((root / "images" / "a.png").read_bytes())
    said = [remark.message for remark in read_dataset(root).remarks]
    assert any(
        "2 images next to the listed images, left out: b.png, c.png." in text for text in said
    )
    assert any("(.bz2): d.dcm.bz2" in text for text in said)


PLACES = [
    ("annotations.json", "images/p1/view1.png"),
    ("annotations/instances_train2017.json", "train2017/p1/view1.png"),
    ("annotations/instances_default.json", "images/p1/view1.png"),
    ("train/_annotations.coco.json", "train/p1/view1.png"),
    ("_annotations.coco.json", "p1/view1.png"),
]
OUTLINE = [[16, 4, 32, 4, 32, 14, 16, 14]]
LESIONS = [
    {"bbox": [16, 4, 16, 10]},
    {"bbox": [16, 4, 16, 10], "segmentation": OUTLINE},
    {"segmentation": OUTLINE},
]


@pytest.mark.parametrize(("table", "name"), PLACES)
@pytest.mark.parametrize("lesion", LESIONS)
def test_box_is_the_bright_rectangle_in_every_place(tmp_path, table, name, lesion):
    write_picture(tmp_path / name)
    write_picture((tmp_path / name).parents[1] / "p2" / "view1.png", bright=False)
    images = [
        {"id": number, "file_name": f"p{number}/view1.png", "width": 64, "height": 40}
        for number in (1, 2)
    ]
    content = {
        "images": images,
        "annotations": [{"id": 0, "image_id": 1, "category_id": 0, **lesion}],
        "categories": [{"id": 0, "name": "nodule"}],
    }
    (tmp_path / table).parent.mkdir(exist_ok=True)
    (tmp_path / table).write_text(json.dumps(content))
    dataset, cases = read_all(tmp_path)
    assert [*cases] == ["p1_view1", "p2_view1"]
    assert dataset.labels.value_names == {1: "nodule"}
    reference = cases["p1_view1"].reference
    assert reference.boxes.tolist() == [[4, 16, 14, 32]]
    assert reference.box_labels == (1,)
    bright = cases["p1_view1"].image.array[0] > 0
    np.testing.assert_array_equal(lesion_mask(reference), bright)
    assert_negative(cases["p2_view1"])

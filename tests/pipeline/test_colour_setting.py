"""`data.colour=true`: pictures of any layout are learnt in colour."""

from dataclasses import replace

import numpy as np
import pytest
import tifffile
from PIL import Image

import lesionseg
from lesionseg.cli import run
from lesionseg.config import DataConfig, ReportSection
from lesionseg.core import Geometry, OperatingPoint, Prediction
from lesionseg.errors import ConfigError, DatasetError
from lesionseg.inference.bundle import Bundle
from lesionseg.inference.predictor import Predictor
from lesionseg.io.cases import read_case
from lesionseg.io.layouts import read_dataset, require_usable
from lesionseg.io.results.case import write_prediction
from lesionseg.io.scans import find_scans
from lesionseg.io.text import read_json, write_json
from lesionseg.pipeline.run_dir import check_config, save_config
from lesionseg.pipeline.survey import open_dataset, take_survey
from lesionseg.reporting.images import Sources
from lesionseg.reporting.pictures import draw_cutouts
from lesionseg.reporting.write import write_report
from tests.commands import check
from tests.inference.networks import Bright
from tests.io.dicom_files import SECONDARY_CAPTURE, write_dicom_file
from tests.models.plans import plan_of
from tests.pipeline.cases import write_array

SHAPE = (48, 40)
LESION = slice(10, 20), slice(8, 24)  # y, x
BOX = "8,10,24,20"  # of boxes.csv: x0, y0, x1, y1
NAMES = ("colour", "grey", "lossy", "equal")
LUMA = [0.299, 0.587, 0.114]


def draw_pictures():
    """Return the pixels of four pictures: colours, grey, and grey that is saved as colours."""
    rng = np.random.default_rng(0)
    colours = rng.integers(60, 90, (*SHAPE, 3)).astype(np.uint8)
    colours[LESION] = (220, 40, 30)
    grey = rng.integers(0, 255, SHAPE).astype(np.uint8)
    equal = np.stack([grey.T.reshape(SHAPE)] * 3, axis=-1)
    return {"colour": colours, "grey": grey, "lossy": 255 - grey, "equal": equal}


def write_pictures(folder):
    """Write the pictures into a folder and return their file names."""
    folder.mkdir(parents=True)
    names = [f"{name}.{'jpg' if name == 'lossy' else 'png'}" for name in NAMES]
    for name, pixels in zip(names, draw_pictures().values(), strict=True):
        Image.fromarray(pixels).save(folder / name)
    return names


def write_coco(root):
    height, width = SHAPE
    images = []
    for number, name in enumerate(write_pictures(root / "images"), 1):
        images.append({"id": number, "file_name": name, "width": width, "height": height})
    lesion = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [8, 10, 16, 10]}
    categories = [{"id": 1, "name": "polyp"}]
    document = {"images": images, "annotations": [lesion], "categories": categories}
    write_json(root / "annotations.json", document)


def write_boxes(root):
    write_pictures(root / "images")
    rows = [
        "case,label,x0,y0,x1,y1",
        f"colour,polyp,{BOX}",
        "grey,,,,,",
        "lossy,,,,,",
        "equal,,,,,",
    ]
    (root / "boxes.csv").write_text("\n".join(rows))


def write_manifest(root):
    rows = ["case,image,reference"]
    for name in write_pictures(root / "images"):
        case = name.partition(".")[0]
        mask = np.zeros(SHAPE, np.uint8)
        mask[LESION] = case == "colour"
        Image.fromarray(mask).save(root / f"{case}_mask.png")
        rows.append(f"{case},images/{name},{case}_mask.png")
    (root / "manifest.csv").write_text("\n".join(rows))


def write_yolo(root):
    write_pictures(root / "images")
    (root / "labels").mkdir()
    (root / "labels" / "colour.txt").write_text("0 0.4 0.3125 0.4 0.208333")
    (root / "data.yaml").write_text("names: [polyp]\ntrain: images\n")


def write_nnunet(root):
    write_manifest(root)
    (root / "images").rename(root / "imagesTr")
    (root / "labelsTr").mkdir()
    for mask in root.glob("*_mask.png"):
        mask.rename(root / "labelsTr" / mask.name.replace("_mask", ""))
    (root / "manifest.csv").unlink()
    content = {"channel_names": {"0": "photo"}, "labels": {"background": 0, "polyp": 1}}
    write_json(root / "dataset.json", content)


def settings(root, **more):
    return DataConfig.of(root=str(root), colour=True, **more)


LAYOUTS = (write_coco, write_boxes, write_manifest, write_yolo, write_nnunet)


@pytest.mark.parametrize("write", LAYOUTS)
def test_pictures_of_every_layout_have_three_channels(tmp_path, write, caplog):
    root = tmp_path / "data"
    write(root)
    dataset = open_dataset(settings(root))
    assert dataset.channel_names == ("red", "green", "blue")
    assert dataset.is_colour
    cases = {files.case: read_case(files, dataset) for files in dataset.cases}
    drawn = draw_pictures()
    expected = {
        "colour": np.moveaxis(drawn["colour"], -1, 0),
        "grey": np.stack([drawn["grey"]] * 3),
        "lossy": np.stack([np.asarray(Image.open(next(root.rglob("lossy.jpg"))))] * 3),
        "equal": np.moveaxis(drawn["equal"], -1, 0),
    }
    assert cases.keys() == expected.keys()
    for case, array in expected.items():
        np.testing.assert_array_equal(cases[case].image.array, array)
    assert "in colour" not in caplog.text
    fingerprint = take_survey(settings(root, validation_fraction=0.0), seed=0).fingerprint
    assert (fingerprint.modality, len(fingerprint.channels)) == ("colour", 3)


def test_without_the_setting_only_brightness_is_used_and_one_note_names_the_setting(
    tmp_path, caplog
):
    root = tmp_path / "data"
    write_manifest(root)
    Image.fromarray(draw_pictures()["colour"]).save(root / "images" / "grey.png")
    dataset = read_dataset(root)
    arrays = [read_case(files, dataset).image.array for files in dataset.cases]
    np.testing.assert_array_equal(arrays[0][0], np.rint(draw_pictures()["colour"] @ LUMA))
    assert (len(arrays[0]), dataset.is_colour) == (1, False)
    assert caplog.text.count("Set data.colour=true to use their three colours.") == 1


def test_check_counts_the_pictures_in_colour(tmp_path):
    root = tmp_path / "data"
    write_manifest(root)
    Image.fromarray(255 - draw_pictures()["colour"]).save(root / "images" / "grey.png")
    (note,) = (line for line in check(root, tmp_path / "a.html").summary() if "in colour" in line)
    assert note.startswith("- note, 2 cases (colour, grey): ")
    assert "Set data.colour=true" in note
    found = check(root, tmp_path / "b.html", data={"colour": True})
    assert {f.kind for f in found.findings} == {"model", "lesion_free"}  # no equal channels


def test_prepare_plans_three_channels_and_is_resumed_with_the_same_setting(tmp_path, capsys):
    root = tmp_path / "data"
    write_boxes(root)
    command = [f"data.root={root}", f"run_dir={tmp_path / 'run'}", "data.validation_fraction=0"]
    command += ["trainer.accelerator=cpu", "model.tile_shape=[32,32]", "model.base_features=4"]
    assert run("prepare", [*command, "data.colour=true"]) == 0
    plan = read_json(tmp_path / "run" / "plan.json")
    assert plan["channel_names"] == ["red", "green", "blue"]
    assert plan["modality"] == "colour"
    assert len(plan["normalisation"]) == 3
    assert run("prepare", [*command, "data.colour=true"]) == 0
    capsys.readouterr()
    assert run("prepare", command) == 2
    assert "data.colour: True → False" in " ".join(capsys.readouterr().err.split())


def test_run_of_a_version_without_the_setting_can_be_resumed(tmp_path):
    now = {"command": "train", "data": {"colour": False, "geometry": "header", "nan": "error"}}
    save_config(tmp_path, {"command": "train", "data": {}})
    check_config(tmp_path, now)
    with pytest.raises(ConfigError, match=r"data\.colour: False → True"):
        check_config(tmp_path, {"command": "train", "data": {**now["data"], "colour": True}})


# --- what cannot be learnt in colour ---


def write_two_channels(root):
    write_pictures(root)
    (root / "manifest.csv").write_text("case,image,image_0001\na,colour.png,grey.png\n")


def write_volumes(root):
    root.mkdir()
    write_array(root / "a.nii", np.zeros((3, 4, 5), np.float32))
    (root / "manifest.csv").write_text("case,image\na,a.nii\n")


def write_stack(root):
    root.mkdir()
    tifffile.imwrite(root / "a.tif", np.zeros((2, 8, 9), np.uint8), photometric="minisblack")
    (root / "manifest.csv").write_text("case,image\na,a.tif\n")


def write_radiograph(root):
    write_pictures(root)
    facts = {"Modality": "DX", "PixelSpacing": [1, 1], "ImagerPixelSpacing": [1, 1]}
    write_dicom_file(root / "b.dcm", np.zeros(SHAPE, np.uint16), SECONDARY_CAPTURE, **facts)
    (root / "manifest.csv").write_text("case,image\na,colour.png\nb,b.dcm\n")


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (write_two_channels, r"one picture per case, .* 2 channels \(image, image_0001\)"),
        (write_volumes, r"two axes, but the images have 3\. Remove the setting"),
        (write_stack, r"two axes, but the images have 3\. Remove the setting"),
        (write_radiograph, r"the image of 'b' is b\.dcm\. Convert it"),
    ],
)
def test_other_images_are_refused_with_advice(tmp_path, write, words):
    root = tmp_path / "data"
    write(root)
    with pytest.raises(DatasetError, match=rf"data: data\.colour=true .*{words}"):
        require_usable(open_dataset(settings(root)))
    dataset = open_dataset(settings(root))
    (problem,) = (p for p in dataset.errors if "data.colour=true" in p.message)
    assert (problem.case, dataset.is_colour) == ("", False)


def test_three_channels_of_dataset_json_stay_as_they_are(tmp_path):
    root = tmp_path / "data"
    write_nnunet(root)
    content = read_json(root / "dataset.json")
    content["channel_names"] = {"0": "R", "1": "G", "2": "B"}
    write_json(root / "dataset.json", content)
    assert open_dataset(settings(root)).channel_names == ("R", "G", "B")
    (root / "imagesTr" / "grey.png").rename(root / "imagesTr" / "grey_0000.png")
    for number in (1, 2):
        Image.fromarray(draw_pictures()["grey"]).save(root / "imagesTr" / f"grey_000{number}.png")
    with pytest.raises(DatasetError, match="'colour' does not have one file per channel"):
        require_usable(open_dataset(settings(root)))


# --- prediction and report ---


def test_model_in_colour_predicts_grey_and_colour_pictures(tmp_path, caplog):
    names = write_pictures(tmp_path / "images")
    plan = replace(plan_of(n_channels=3, channel_names=("red", "green", "blue")), modality="colour")
    predictor = Predictor(Bundle((Bright(),), plan))
    cases = find_scans(tmp_path / "images", 3).cases()
    assert sorted(files.images[0].name for files in cases) == sorted(names)
    for files in cases:
        assert len(predictor.read(files).array) == 3
    brightness = Predictor(Bundle((Bright(),), plan_of(n_channels=1)))
    assert len(brightness.read(cases[0]).array) == 1
    assert "colour.png is in colour. Only its brightness is used." in caplog.text
    assert "data.colour" not in caplog.text


def test_report_shows_the_colours_of_pictures_and_the_greys_of_others(tmp_path, caplog):
    data = tmp_path / "data"
    write_coco(data)
    grid = Geometry.from_spacing(SHAPE, (1.0, 1.0))
    point = OperatingPoint("score:0.5", 0.5)
    for case in NAMES:
        write_prediction(
            tmp_path / "found", Prediction(case, grid, (), None, operating_point=point)
        )
    lesionseg.evaluate(data, tmp_path / "found", tmp_path / "scores")
    options = ReportSection.of(pdf=False)
    write_report(tmp_path / "scores", tmp_path / "page", images=data, options=options)
    assert "in colour" not in caplog.text
    sources = Sources(data)
    scene = sources.load("colour", frozenset())
    drawn = draw_pictures()["colour"]
    np.testing.assert_array_equal(scene.colours, np.moveaxis(drawn, -1, 0))
    np.testing.assert_allclose(scene.image, drawn @ LUMA, rtol=1e-6)
    (whole, _) = draw_cutouts({"": scene}, (10, 8), (20, 24)).axes
    np.testing.assert_array_equal(whole.images[0].get_array(), drawn)
    for case in ("grey", "equal", "lossy"):
        assert sources.load(case, frozenset()).colours is None

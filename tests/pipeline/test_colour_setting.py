"""`data.colour=true`: pictures of any layout are learnt in colour."""

from dataclasses import replace

import numpy as np
import pytest
import tifffile
from PIL import Image

from lesionseg.cli import run
from lesionseg.config import DataConfig
from lesionseg.core import Geometry, OperatingPoint, Prediction
from lesionseg.errors import DatasetError
from lesionseg.inference.bundle import Bundle
from lesionseg.inference.predictor import Predictor
from lesionseg.io.cases import read_case
from lesionseg.io.layouts import read_dataset, require_usable
from lesionseg.io.results.case import write_prediction
from lesionseg.io.scans import find_scans
from lesionseg.io.text import read_json, write_json
from lesionseg.pipeline.dataset_inspection import inspect_dataset, open_dataset
from lesionseg.reporting.images import CaseFolders
from lesionseg.reporting.pictures import draw_cutouts
from tests.commands import check, evaluate, report
from tests.inference.networks import Bright
from tests.io.dicom_files import SECONDARY_CAPTURE, write_dicom_file
from tests.io.layouts.box_folders import HEIGHT, WIDTH, X0, X1, Y0, Y1
from tests.io.layouts.test_contract import LAYOUTS, Boxes, Coco, Manifest, NnUNet, name_of
from tests.models.plans import plan_of
from tests.pipeline.cases import write_array

SHAPE = (HEIGHT, WIDTH)
LUMA = [0.299, 0.587, 0.114]


def draw_pictures():
    """Return the pixels of three pictures: colours, grey, and grey that is saved as colours."""
    rng = np.random.default_rng(0)
    colours = rng.integers(60, 90, (*SHAPE, 3)).astype(np.uint8)
    colours[Y0:Y1, X0:X1] = (220, 40, 30)
    grey = rng.integers(0, 255, SHAPE).astype(np.uint8)
    return {"a": colours, "b": grey, "c": np.stack([255 - grey] * 3, axis=-1)}


def write_pictures(folder):
    folder.mkdir(parents=True)
    for case, pixels in draw_pictures().items():
        Image.fromarray(pixels).save(folder / f"{case}.png")


def write_layout(layout, root):
    """Write the pictures as a dataset. The picture in colour has the lesion."""
    layout.write(root, cases=("a", "b", "c"))
    for case, pixels in draw_pictures().items():
        Image.fromarray(pixels).save(root / layout.image(case))


def settings(root, **more):
    return DataConfig.of(root=str(root), colour=True, **more)


@pytest.mark.parametrize("layout", LAYOUTS, ids=name_of)
def test_pictures_of_every_layout_have_three_channels(tmp_path, layout, caplog):
    root = tmp_path / "data"
    write_layout(layout, root)
    dataset = open_dataset(settings(root))
    assert dataset.channel_names == ("red", "green", "blue")
    assert dataset.is_colour
    assert len(dataset.cases) == 3
    drawn = draw_pictures()
    drawn["b"] = np.stack([drawn["b"]] * 3, axis=-1)
    for files in dataset.cases:
        pixels = np.moveaxis(drawn[files.case.removeprefix("sub-")], -1, 0)
        np.testing.assert_array_equal(read_case(files, dataset).image.array, pixels)
    assert "in colour" not in caplog.text
    fingerprint = inspect_dataset(settings(root, validation_fraction=0.0), seed=0).fingerprint
    assert (fingerprint.modality, len(fingerprint.channels)) == ("colour", 3)


def test_without_the_setting_only_brightness_is_used_and_one_note_names_the_setting(
    tmp_path, caplog
):
    root = tmp_path / "data"
    write_layout(Manifest(), root)
    Image.fromarray(255 - draw_pictures()["a"]).save(root / "images" / "b.png")
    dataset = read_dataset(root)
    arrays = [read_case(files, dataset).image.array for files in dataset.cases]
    np.testing.assert_array_equal(arrays[0][0], np.rint(draw_pictures()["a"] @ LUMA))
    assert (len(arrays[0]), dataset.is_colour) == (1, False)
    assert caplog.text.count("Set data.colour=true") == 1
    (note,) = (line for line in check(root, tmp_path / "a.html").summary() if "in colour" in line)
    assert note.startswith("- note, 2 cases (a, b): ")
    found = check(root, tmp_path / "b.html", data={"colour": True})
    assert {f.kind for f in found.findings} == {"model", "lesion_free"}  # no equal channels


def test_prepare_plans_three_channels_and_is_resumed_with_the_same_setting(tmp_path, capsys):
    root = tmp_path / "data"
    write_layout(Boxes(), root)
    command = [f"data.root={root}", f"run_dir={tmp_path / 'run'}", "data.validation_fraction=0"]
    command += ["trainer.accelerator=cpu", "model.tile_shape=[32,32]", "model.base_features=4"]
    for _ in range(2):
        assert run("prepare", [*command, "data.colour=true"]) == 0
    plan = read_json(tmp_path / "run" / "plan.json")
    assert plan["channel_names"] == ["red", "green", "blue"]
    assert (plan["modality"], len(plan["normalisation"])) == ("colour", 3)
    assert run("prepare", command) == 2
    assert "data.colour: True → False" in " ".join(capsys.readouterr().err.split())


# --- what cannot be learnt in colour ---


def write_two_channels(root):
    write_pictures(root)
    (root / "manifest.csv").write_text("case,image,image_0001\na,a.png,b.png\n")


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
    (root / "manifest.csv").write_text("case,image\na,a.png\nb,b.dcm\n")


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
    write_layout(NnUNet(), root)
    content = read_json(root / "dataset.json")
    write_json(root / "dataset.json", content | {"channel_names": {"0": "R", "1": "G", "2": "B"}})
    assert open_dataset(settings(root)).channel_names == ("R", "G", "B")
    for number in (1, 2):
        Image.fromarray(draw_pictures()["b"]).save(root / "imagesTr" / f"b_000{number}.png")
    with pytest.raises(DatasetError, match="'a' does not have one file per channel"):
        require_usable(open_dataset(settings(root)))


# --- prediction and report ---


def test_model_in_colour_predicts_grey_and_colour_pictures(tmp_path, caplog):
    write_pictures(tmp_path / "images")
    plan = replace(plan_of(n_channels=3, channel_names=("red", "green", "blue")), modality="colour")
    predictor = Predictor(Bundle((Bright(),), plan))
    cases = find_scans(tmp_path / "images", 3).cases()
    assert [len(predictor.read(files).array) for files in cases] == [3, 3, 3]
    brightness = Predictor(Bundle((Bright(),), plan_of(n_channels=1)))
    assert len(brightness.read(cases[0]).array) == 1
    assert "a.png is in colour" in caplog.text
    assert "data.colour" not in caplog.text


def test_report_shows_the_colours_of_pictures_and_the_greys_of_others(tmp_path, caplog):
    data = tmp_path / "data"
    write_layout(Coco(), data)
    grid = Geometry.from_spacing(SHAPE, (1.0, 1.0))
    point = OperatingPoint("score:0.5", 0.5)
    for case in "abc":
        empty = Prediction(case, grid, (), None, operating_point=point)
        write_prediction(tmp_path / "found", empty)
    evaluate(data, tmp_path / "found", tmp_path / "scores")
    report(tmp_path / "scores", tmp_path / "page", images=data)
    assert "in colour" not in caplog.text
    scene = CaseFolders(data).load("a", frozenset())
    drawn = draw_pictures()["a"]
    np.testing.assert_allclose(scene.image, drawn @ LUMA, rtol=1e-6)
    (whole, _) = draw_cutouts({"": scene}, (10, 8), (20, 24)).axes
    np.testing.assert_array_equal(whole.images[0].get_array(), drawn)
    assert CaseFolders(data).load("c", frozenset()).colours is None

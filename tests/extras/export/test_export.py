"""Exported networks give the same numbers in other programs as the bundle."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from unittest import mock

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from lesionseg.config import InferenceConfig
from lesionseg.core import Calibration, CaseFiles, Geometry, Labels, Selection
from lesionseg.data.tiling import TileGrid
from lesionseg.errors import BundleError, ConfigError, OutputError
from lesionseg.extras.export.formats import (
    INFERENCE_CONFIG,
    METADATA,
    PROGRAM,
    README,
    inference_config,
    largest_difference,
    metadata,
    trace,
    write_onnx,
)
from lesionseg.inference.box_candidates import BoxCollector
from lesionseg.inference.bundle import Bundle, read_bundle, write_bundle
from lesionseg.inference.predictor import Predictor
from lesionseg.inference.probabilities import label_probabilities
from lesionseg.inference.window import SlidingWindow
from lesionseg.io.text import read_json
from lesionseg.io.volumes import read_volume
from lesionseg.models.build import build_network
from lesionseg.models.heads import DetectorOutput
from lesionseg.plan.plan import AnchorPlan, FocalCorrection, Normalisation
from tests.commands import export
from tests.pipeline.cases import write_array

onnxruntime = pytest.importorskip("onnxruntime")
quiet_monai = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
SAR = np.array([[0, 0, 1.5, -9], [0, 1, 0, -4], [2, 0, 0, 3], [0, 0, 0, 1.0]])
CALIBRATED = Selection(voxel_calibration=Calibration(intercept=-1.5, slope=2.0))
# coarser than the plan, so both interpolate; on a finer grid ours averages and MONAI samples
LPS = np.array([[0, -1.8, 0, 40], [0.1, 0, -1.6, 30], [2.4, 0, 0.1, 3], [0, 0, 0, 1.0]])
# slices of a CT scanner that is tilted by about 20°
TILTED = np.array([[0, 0, 1.6, -9], [0.9, 1.1, 0, -4], [2.4, 0, 0, 3], [0, 0, 0, 1.0]])


def _make_plan(plan, dims, n_channels, activation):
    """Make a plan of two labels whose network was trained with a focal loss."""
    strides = ((1,) * dims, (2,) * dims)
    kernels = ((3,) * dims,) * 2
    ways = Normalisation("zscore"), Normalisation("dataset", -50.0, 180.0, 60.0, 30.0)
    return replace(
        plan,
        dims=dims,
        modality="mri" if dims == 3 else "xray",
        channel_names=("T1", "FLAIR")[:n_channels],
        labels=Labels((1, 4), ("ring", "spot")),
        spacing_mm=(2.0, 1.0, 1.5) if dims == 3 else (0.2, 0.2),
        normalisation=ways[:n_channels] if dims == 3 else (Normalisation("range"),),
        tile_shape=(16, 16, 24)[3 - dims :],
        architecture=replace(plan.architecture, strides=strides, kernels=kernels),
        activation=activation,
        link=FocalCorrection((0.25, 0.5), 2.0) if activation == "sigmoid" else None,
    )


def _make_network(plan, seed=0):
    """Make a U-Net whose logits vary as much as those of a trained network."""
    network = build_network(plan, seed=seed)
    with torch.no_grad():
        for parameter in network.heads.parameters():
            parameter.mul_(150.0 if parameter.ndim > 1 else 0.2)
    return network.eval()


@pytest.fixture
def bundle(tmp_path, plan):
    two = _make_plan(plan, 3, 2, "sigmoid")
    write_bundle(tmp_path / "run/bundle", _make_network(two), two, "# the card\n")
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("dims", "activation", "n_members"),
    [(2, "softmax", 2), pytest.param(3, "sigmoid", 1, marks=pytest.mark.slow)],
)
def test_onnx_gives_the_bundles_probabilities_for_any_number_of_tiles(
    tmp_path, plan, dims, activation, n_members, rng
):
    """Compare also the mean of an ensemble, and the contents of `model.json`."""
    two = _make_plan(plan, dims, dims - 1, activation)
    networks = [_make_network(two, seed) for seed in range(n_members)]
    # the calibration follows the average over tiles, so the network does not contain it
    write_bundle(tmp_path / "bundle", networks, two, "", selection=CALIBRATED)
    assert export(tmp_path / "bundle", tmp_path / "out").difference < 1e-4
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["model.json", "model.onnx"]
    session, note = _open_export(tmp_path / "out")
    (image,) = session.get_inputs()
    (output,) = session.get_outputs()
    for node, stated in ((image, note["input"]), (output, note["output"])):
        assert (node.name, node.shape) == (stated["name"], stated["shape"])
    for name in ("plan", "selection"):
        assert note[name] == read_json(tmp_path / f"bundle/{name}.json")
    window = SlidingWindow(networks, two, InferenceConfig.of(precision="fp32"))
    for n_tiles in (1, 3):
        tiles = rng.normal(size=(n_tiles, dims - 1, *two.tile_shape)).astype(np.float32)
        own = window.predict(torch.from_numpy(tiles)).numpy()
        assert own.std() > 0.05
        (found,) = session.run(None, {"image": tiles})
        np.testing.assert_allclose(found, own, atol=2e-5)


def _open_export(folder):
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    return session, read_json(folder / "model.json")


def _make_detector_plan(plan, dims, name):
    """Make a plan of two labels for a detector of two levels, trained with a focal loss."""
    sizes = (((3.0,) * dims, (5.0,) * dims), ((9.0,) * dims, (12.0,) * dims))
    anchors = AnchorPlan((0, 1), sizes, width=8, depth=1, prior=0.5, alpha=(0.25, 0.5), gamma=2.0)
    two = _make_plan(plan, dims, 1, "sigmoid")
    return two.with_(architecture=replace(two.architecture, name=name), anchors=anchors)


@pytest.mark.parametrize(
    ("name", "dims"),
    [
        ("retina_unet", 2),
        pytest.param("retinanet", 2, marks=pytest.mark.slow),
        pytest.param("retina_unet", 3, marks=pytest.mark.slow),
    ],
)
def test_onnx_gives_the_scores_and_boxes_of_a_detector(tmp_path, plan, dims, name, rng):
    planned = _make_detector_plan(plan, dims, name)
    network = build_network(planned).eval()
    write_bundle(tmp_path / "bundle", network, planned, "")
    assert export(tmp_path / "bundle", tmp_path / "out").difference < 1e-4
    session, note = _open_export(tmp_path / "out")
    names = [node["name"] for node in (note["boxes"]["scores"], note["boxes"]["boxes"])]
    tiles = rng.normal(size=(3, 1, *planned.tile_shape)).astype(np.float32)
    with torch.no_grad():
        output = network(torch.from_numpy(tiles))
    grid = TileGrid(planned.tile_shape, planned.tile_shape, 0.0)
    for i, (scores, boxes) in enumerate(zip(*session.run(names, {"image": tiles}), strict=True)):
        assert list(scores.shape) == note["boxes"]["scores"]["shape"][1:]
        collector = BoxCollector(grid, planned)
        tile = DetectorOutput(output.class_logits[i : i + 1], output.box_deltas[i : i + 1])
        collector.add(tile, [0], ())
        own = collector.finish()
        best = np.unravel_index(scores.argmax(), scores.shape)
        assert own.scores[0] == pytest.approx(scores[best], abs=1e-5)
        assert int(own.labels[0]) == best[1] + 1
        inside = np.clip(boxes[best[0]], 0, planned.tile_shape * 2)
        np.testing.assert_allclose(own.boxes[0], inside, atol=1e-3)
    if name == "retina_unet":
        (found,) = session.run([note["output"]["name"]], {"image": tiles})
        own_voxels = label_probabilities(output.segmentation[0], planned)
        np.testing.assert_allclose(found, own_voxels, atol=2e-5)
    else:
        assert "output" not in note


class Certain(nn.Module):
    """A network with logits from −48 to 48, as after a long training."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(16.0))

    def forward(self, image):
        logits = self.gain * image.clamp(-3, 3)
        return [torch.cat([logits, -logits], 1)]


def test_onnx_of_large_logits_equals_the_bundle(tmp_path, plan):
    certain = Bundle((Certain(),), _make_plan(plan, 3, 1, "sigmoid"))
    assert largest_difference(certain, write_onnx(tmp_path / "model.onnx", trace(certain))) < 1e-5


class Rare(nn.Module):
    """A network that finds nothing in noise."""

    def forward(self, image):
        return [torch.cat([image - 12, image - 14], 1)]


def test_export_without_lesions_is_an_error_if_the_network_finds_none(plan):
    rare = Bundle((Rare(),), _make_plan(plan, 3, 1, "softmax"))
    nothing = np.zeros((1, 2, 16, 16, 24), np.float32)
    with pytest.raises(OutputError, match="log-odds"):
        largest_difference(rare, lambda _: [nothing])


def _make_scan(rng, shape):
    """Return smooth noise with two bright spots and air on one side."""
    image = rng.normal(100, 8, shape).astype(np.float32)
    image[(slice(4, 8), slice(6, 11), slice(20, 25))[-len(shape) :]] += 80
    image[(slice(18, 22), slice(14, 18), slice(8, 12))[-len(shape) :]] += 60
    image[..., :3] = 0
    return image


def test_monai_metadata_has_intended_use_authors_license_and_value_ranges(plan):
    wide = Normalisation("dataset", lower=-100.0, upper=300.0, mean=50.0, std=50.0)
    narrow = Normalisation("dataset", lower=-10.0, upper=10.0, mean=0.0, std=1.0)
    for schemes, value_range in (
        ((wide, narrow), [-10.0, 10.0]),
        ((wide, Normalisation("zscore")), []),
    ):
        found = metadata(plan.with_(normalisation=schemes), "0123")
        assert found["network_data_format"]["inputs"]["image"]["value_range"] == value_range
    assert "Not for diagnosis" in found["intended_use"]
    assert "0123" in found["authors"]
    assert found["license"] == "unknown"


def _run_monai(root, bundle, *files, overlap=0.0):
    """Export a bundle and run it on files like `python -m monai.bundle run`.

    Return the probabilities and the mask of the first file, and the probabilities of our predictor
    without a body mask, which MONAI's layout cannot contain.
    """
    from monai.bundle import run

    export(bundle, root / "monai", format="monai")
    run(
        bundle_root=str(root / "monai"),
        config_file=str(root / "monai/configs/inference.json"),
        meta_file=str(root / "monai/configs/metadata.json"),
        logging_file=False,
        device="$torch.device('cpu')",
        dataset_dir=str(files[0].parent),
        output_dir=str(root / "out"),
        **{"inferer#overlap": overlap},
    )
    name = files[0].name.partition(".")[0]
    (mask,) = (root / "out").glob(f"{name}_mask.*")
    settings = InferenceConfig.of(precision="fp32", overlap=overlap)
    predictor = Predictor(bundle, device="cpu", settings=settings)
    with mock.patch("lesionseg.inference.predictor.find_body", return_value=None):
        own = predictor.probabilities(predictor.read(CaseFiles("a", files)))
    assert own.std() > 0.05
    found = np.asarray(nibabel.load(root / f"out/{name}_prob.nii.gz").dataobj)
    return found.T.reshape(own.shape), read_volume(mask), own


def _paint(probabilities):
    best = np.array([1, 4])[probabilities.argmax(0)]
    return np.where(probabilities.max(0) >= 0.5, best, 0)


@pytest.mark.slow  # a process that imports torch and MONAI
@pytest.mark.skipif(os.name == "nt", reason="the command is quoted for a POSIX shell")
@pytest.mark.parametrize("name", ["exported", 'it\'s "two" wörds'])
def test_printed_command_of_monai_runs_as_it_is(bundle, tmp_path, rng, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    programs = Path(sys.executable).parent
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    for channel in range(2):
        scan = _make_scan(rng, (20, 31, 45))
        write_array(tmp_path / f"SCANS/a_000{channel}.nii.gz", scan, Geometry(scan.shape, TILTED))
    command = export(bundle, name, format="monai").next
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / name / "eval/a_0000_mask.nii.gz").is_file()


@pytest.mark.parametrize(
    ("affine", "shape", "overlap", "largest", "mean"),
    # ours are stored as float16 between the steps, and MONAI places the last tiles differently
    [(LPS, (20, 40, 20), 0.5, 0.05, 2e-3), (TILTED, (20, 31, 45), 0.0, 3e-4, 5e-5)],
    ids=["rotated with another spacing", "tilted, same tiles"],
)
@quiet_monai
def test_monai_bundle_gives_our_probabilities(
    bundle, tmp_path, rng, affine, shape, overlap, largest, mean
):
    files = [tmp_path / f"images/a_000{c}.nii.gz" for c in range(2)]
    for file in files:
        write_array(file, _make_scan(rng, shape), Geometry(shape, affine))
    found, mask, own = _run_monai(tmp_path, bundle, *files, overlap=overlap)
    readme = (tmp_path / "monai/docs/README.md").read_text()
    assert readme.startswith("# the card\n\n## Differences from lesionseg\n\n")
    assert "resampled to 2 × 1 × 1.5 mm" in readme
    assert "lesionseg." not in (tmp_path / "monai/configs/inference.json").read_text()
    # both programs extrapolate differently beyond the centres of the outermost voxels
    difference = np.abs(found - own)[:, 2:-2, 2:-2, 2:-2]
    assert difference.max() < largest
    assert difference.mean() < mean
    np.testing.assert_allclose(mask.geometry.affine, affine, atol=1e-4)
    np.testing.assert_array_equal(mask.array[0], _paint(found))


@quiet_monai
@pytest.mark.parametrize("has_nan", [False, True])
def test_monai_bundle_calibrates_voxels_and_reads_nan_as_we_do(plan, tmp_path, rng, has_nan):
    two = _make_plan(plan, 3, 1, "sigmoid").with_(nan_background=has_nan)
    write_bundle(tmp_path / "bundle", _make_network(two), two, "", selection=CALIBRATED)
    image = _make_scan(rng, (32, 32, 48))
    if has_nan:
        image[image == 0] = np.nan
    file = tmp_path / "images/a.nii"
    write_array(file, image, Geometry(image.shape, SAR))
    found, mask, own = _run_monai(tmp_path, tmp_path / "bundle", file)
    np.testing.assert_allclose(found, own, atol=2e-3)
    np.testing.assert_array_equal(mask.array[0], _paint(found))


@quiet_monai
@pytest.mark.parametrize(
    ("changes", "shape", "border"),
    [
        ({}, (32, 48), 0),
        ({"normalisation": (Normalisation("local", sigma=5.0),)}, (32, 48), 0),
        # on a CPU, the plan often has half the resolution of the pictures
        ({"spacing_mm": (0.4, 0.4), "raster_mm": 0.2}, (64, 96), 2),
    ],
    ids=["range", "local", "resampled"],
)
def test_monai_bundle_for_radiographs_gives_our_probabilities(
    plan, tmp_path, rng, changes, shape, border
):
    flat = _make_plan(plan, 2, 1, "softmax").with_(**changes)
    write_bundle(tmp_path / "bundle", _make_network(flat), flat, "")
    file = tmp_path / "images/x.png"
    write_array(file, np.clip(_make_scan(rng, shape), 0, 255).astype(np.uint8))
    _check_picture(tmp_path, file, border)


def _check_picture(root, file, border=0):
    """Compare the results for a picture, without pixels at its border."""
    found, mask, own = _run_monai(root, root / "bundle", file)
    inside = (..., *[slice(border, n - border) for n in own.shape[1:]])
    np.testing.assert_allclose(found[inside], own[inside], atol=2e-3)
    assert 0 < (mask.array > 0).mean() < 1
    assert (mask.array[0] == _paint(own))[inside].mean() > 0.999


@quiet_monai
@pytest.mark.parametrize("n_channels", [1, 3])
def test_monai_bundle_reads_pictures_in_colour_as_we_do(plan, tmp_path, rng, n_channels):
    """A network of one channel sees the brightness, one of three channels the colours."""
    flat = _make_plan(plan, 2, 1, "softmax").with_(
        modality="colour" if n_channels == 3 else "xray",
        channel_names=("red", "green", "blue")[:n_channels],
        normalisation=(Normalisation("range"),) * n_channels,
    )
    write_bundle(tmp_path / "bundle", _make_network(flat), flat, "")
    colours = np.clip(_make_scan(rng, (3, 32, 48)), 0, 255).astype(np.uint8)
    colours[0] = 255 - colours[0]  # red differs from the brightness
    file = tmp_path / "images/photo.png"
    file.parent.mkdir()
    Image.fromarray(np.moveaxis(colours, 0, -1)).save(file)
    _check_picture(tmp_path, file)


def test_later_regions_are_painted_over_earlier_ones(plan):
    labels = Labels((1, 4), ("ring", "spot"), regions=((1, 4), (4,)))
    two = replace(_make_plan(plan, 3, 1, "sigmoid"), labels=labels)
    steps = inference_config(two)["postprocessing"]["transforms"]
    (text,) = (step["func"] for step in steps if step["_target_"] == "Lambdad")
    paint = eval(text.removeprefix("$").replace("@threshold", "0.5"), {"torch": torch})
    probabilities = torch.tensor([[0.9, 0.9, 0.1, 0.6], [0.8, 0.2, 0.1, 0.5]])[:, None, None]
    assert paint(probabilities).flatten().tolist() == [4, 1, 0, 4]


class _Unexportable(nn.Module):
    def forward(self, image):
        return [image if float(image.sum()) > 0 else -image]


def test_unexportable_or_deviating_network_is_an_error(plan, bundle, tmp_path):
    boxes = _make_detector_plan(plan, 2, "retinanet")  # unsupported by MONAI and in ensembles
    detector = build_network(boxes)
    for unexportable in (Bundle((_Unexportable(),), plan), Bundle((detector, detector), boxes)):
        with pytest.raises(ConfigError):
            trace(unexportable)
    write_bundle(tmp_path / "boxes", detector, boxes, "")
    with pytest.raises(ConfigError):
        export(tmp_path / "boxes", tmp_path / "out", format="monai")
    with pytest.raises(BundleError):
        export(tmp_path / "none", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    for value in (0.0, np.nan):
        wrong = np.full((1, 2, 16, 16, 24), value, np.float32)
        with pytest.raises(OutputError):
            largest_difference(read_bundle(bundle), lambda _: [wrong])  # noqa: B023


@pytest.mark.parametrize(
    ("format", "names"),
    [
        ("onnx", ("model.onnx", "model.json")),
        ("monai", (PROGRAM, INFERENCE_CONFIG, METADATA, README)),
    ],
)
def test_deviating_program_does_not_replace_an_earlier_one(
    bundle, tmp_path, monkeypatch, format, names
):
    def fail(*_):
        raise OutputError("The exported network differs.")

    earlier = [tmp_path / "out" / name for name in names]
    for file in earlier:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("earlier")
    # torch takes seconds to write a program of ONNX
    monkeypatch.setattr(
        "lesionseg.extras.export.recipe.write_onnx", lambda path, *_: path.write_text("new")
    )
    monkeypatch.setattr("lesionseg.extras.export.recipe.largest_difference", fail)
    with pytest.raises(OutputError, match="differs"):
        export(bundle, tmp_path / "out", format=format)
    assert [file.read_text() for file in earlier] == ["earlier"] * len(names)
    assert {file for file in (tmp_path / "out").rglob("*") if file.is_file()} == {*earlier}

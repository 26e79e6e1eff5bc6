"""MONAI's bundles as a source of probabilities: what is taken over, and what is refused."""

import json
from pathlib import Path
from typing import Any

import monai.transforms
import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from monai.data import MetaTensor
from monai.networks.nets import BasicUNet
from torch import nn

from lesionseg.cli import run
from lesionseg.core import Geometry, Volume
from lesionseg.data.prepared_case import prepare_image
from lesionseg.errors import BundleError
from lesionseg.inference.bundles.bundle import bundle_digest, read_bundle
from lesionseg.inference.bundles.monai_bundle import metadata
from lesionseg.inference.bundles.monai_reader import Reoriented, read_monai_bundle
from lesionseg.models.build import TRUSTED

NETWORK = {
    "_target_": "BasicUNet",
    "spatial_dims": 3,
    "in_channels": 1,
    "out_channels": 2,
    "features": [4, 4, 4, 4, 4, 4],
}
CONFIG: dict[str, Any] = {
    "imports": ["$import glob"],
    "device": "$torch.device('cpu')",
    "pixdim": [2.0, 1.5, 1.0],
    "network_def": NETWORK,
    "network": "$@network_def.to(@device)",
    "preprocessing": {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "LoadImaged", "keys": "image"},
            {"_target_": "EnsureChannelFirstd", "keys": "image"},
            {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"},
            {"_target_": "Spacingd", "keys": "image", "pixdim": "@pixdim"},
            {
                "_target_": "ScaleIntensityRanged",
                "keys": "image",
                "a_min": -100,
                "a_max": 300,
                "b_min": -1,
                "b_max": 1,
                "clip": True,
            },
        ],
    },
    "shown": {"tile": "$(16, 32, 48)"},
    "inferer": {
        "_target_": "SlidingWindowInferer",
        "roi_size": "@shown#tile",
        "device": "$torch.device('cpu')",
    },
    "postprocessing": {
        "_target_": "Compose",
        "transforms": [{"_target_": "Activationsd", "keys": "pred", "softmax": True}],
    },
}
SCALE = CONFIG["preprocessing"]["transforms"][-1]
GRID = CONFIG["preprocessing"]["transforms"][2:4]
CROP = {"_target_": "CropForegroundd", "keys": "image", "source_key": "image"}


def preprocessing(
    *intensities: dict[str, Any], axcodes: str = "RAS", mode: str = "bilinear"
) -> Any:
    """A chain on a grid of 2, 1.5 and 1 mm along its axes."""
    grid = [{**GRID[0], "axcodes": axcodes}, {**GRID[1], "mode": mode}]
    return {"preprocessing": {"_target_": "Compose", "transforms": [*grid, *intensities]}}


METADATA = {
    "network_data_format": {
        "inputs": {"image": {"modality": "CT", "num_channels": 1, "channel_def": {"0": "image"}}},
        "outputs": {"pred": {"num_channels": 2, "channel_def": {"0": "background", "1": "spleen"}}},
    }
}


def write(folder: Path, state: Any = None, **changes: Any) -> Path:
    (folder / "configs").mkdir(parents=True)
    (folder / "models").mkdir()
    (folder / "configs" / "inference.json").write_text(json.dumps({**CONFIG, **changes}))
    (folder / "configs" / "metadata.json").write_text(json.dumps(METADATA))
    arguments = {key: value for key, value in NETWORK.items() if key != "_target_"}
    torch.manual_seed(0)
    network = BasicUNet(**arguments)
    torch.save(network.state_dict() if state is None else state, folder / "models" / "model.pt")
    return folder


def test_yaml_says_what_json_says(tmp_path: Path) -> None:
    folder = write(tmp_path / "b")
    network, plan = read_monai_bundle(folder, trust=False)
    config = folder / "configs" / "inference.json"
    digest = bundle_digest(folder)
    config.with_suffix(".yaml").write_text(yaml.safe_dump(json.loads(config.read_text())))
    config.unlink()
    again, its = read_monai_bundle(folder, trust=False)
    assert its == plan
    assert bundle_digest(folder) != digest
    image = torch.rand(1, 1, 32, 32, 32)
    assert torch.equal(network(image)[0], again(image)[0])


def test_references_in_a_circle_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "b", network_def="@a", a="@b", b="@a")
    with pytest.raises(BundleError, match="circle"):
        read_monai_bundle(folder, trust=False)


def test_grid_scale_tile_and_labels_are_taken_over(tmp_path: Path) -> None:
    bundle = read_bundle(write(tmp_path / "spleen"))
    plan = bundle.plan
    assert plan.spacing_mm == (1.0, 1.5, 2.0)
    assert plan.tile_shape == (48, 32, 16)
    assert (plan.activation, plan.label_names, plan.modality) == ("softmax", ("spleen",), "ct")
    (scale,) = plan.normalisation
    assert (scale.lower, scale.upper) == (-100, 300)
    assert [(v - scale.mean) / scale.std for v in (-100, 300)] == [-1, 1]
    tile = torch.randn(1, 1, 48, 32, 16)
    with torch.no_grad():
        (logits,) = bundle.network(tile)
        inner: Any = bundle.network.network
        own = inner(tile.permute(0, 1, 4, 3, 2)).permute(0, 1, 4, 3, 2)
    torch.testing.assert_close(logits, own)


@pytest.mark.parametrize(
    "intensities",
    [
        [{"_target_": "NormalizeIntensityd", "keys": "image", "nonzero": True}],
        [
            {"_target_": "monai.transforms.NormalizeIntensityd", "keys": ["image"]},
            {"_target_": "ScaleIntensityd", "keys": "image", "minv": -1.0, "maxv": 1.0},
            CROP,
        ],
        [
            {
                "_target_": "ScaleIntensityRangePercentilesd",
                "keys": "image",
                "lower": 5,
                "upper": 95,
                "b_min": 0,
                "b_max": 1,
                "clip": True,
            }
        ],
        [SCALE, {"_target_": "ShiftIntensityd", "keys": "image", "offset": 0.5}],
    ],
)
def test_voxels_are_those_of_monai_s_own_chain(
    tmp_path: Path, intensities: list[dict[str, Any]]
) -> None:
    plan = read_bundle(write(tmp_path / "b", **preprocessing(*intensities))).plan
    values = np.random.default_rng(0).normal(50, 80, (1, 6, 7, 8)).astype(np.float32)
    values[:, :2] = 0
    scan = Volume(values.copy(), Geometry.from_spacing((6, 7, 8), plan.spacing_mm))
    item = {"image": torch.from_numpy(values)}
    for given in intensities:
        if given is not CROP:
            name = given["_target_"].rpartition(".")[2]
            arguments = {key: value for key, value in given.items() if key != "_target_"}
            item = getattr(monai.transforms, name)(**arguments)(item)
    np.testing.assert_allclose(prepare_image(scan, plan).array, item["image"], atol=1e-5)


@pytest.mark.parametrize("axcodes", ["RAS", "LPS", "SPL", "AIR"])
def test_the_network_sees_tiles_on_its_own_axes(tmp_path: Path, axcodes: str) -> None:
    bundle = read_bundle(write(tmp_path / "b", **preprocessing(SCALE, axcodes=axcodes)))
    directions = axcodes.translate(str.maketrans("LPI", "RAS"))
    sides = dict(zip(directions, (2.0, 1.5, 1.0), strict=True))
    assert bundle.plan.spacing_mm == tuple(sides[axis] for axis in "SAR")
    ras = torch.arange(4 * 5 * 6.0).reshape(1, 4, 5, 6)  # x, y, z
    turn = monai.transforms.Orientation(axcodes, labels=(("L", "R"), ("P", "A"), ("I", "S")))
    oriented = turn(MetaTensor(ras, affine=torch.eye(4))).as_tensor()
    seen: list[torch.Tensor] = []

    class Watched(nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            seen.append(image)
            return image

    (logits,) = Reoriented(Watched(), axcodes).eval()(ras.permute(0, 3, 2, 1)[None])
    torch.testing.assert_close(seen[0][0], oriented)
    torch.testing.assert_close(logits[0], ras.permute(0, 3, 2, 1))


def test_the_command_predicts_with_it(tmp_path: Path) -> None:
    bundle = write(tmp_path / "spleen")
    scan = tmp_path / "scan.nii.gz"
    values = np.random.default_rng(0).normal(0, 50, (12, 20, 24)).astype(np.float32)
    nib.save(nib.Nifti1Image(values, np.diag([2.0, 1.5, 1.0, 1.0])), scan)
    output = tmp_path / "out"
    assert run("predict", [f"bundle={bundle}", f"input={scan}", f"output={output}"]) == 0
    assert (output / "scan_candidates.json").is_file()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network_def": {**NETWORK, "_target_": "antigravity.fly"}}, "antigravity.fly would be"),
        ({"network_def": {**NETWORK, "pretrained": True}}, "would be imported"),
        ({"network_def": "$torch.load('x')"}, "expressions are not run"),
        ({"network_def": {**NETWORK, "in_channels": "$__import__('os').getpid()"}}, "not run"),
        ({"preprocessing": {"transforms": [{"_target_": "mine.Sharpend"}]}}, "Sharpend"),
        ({"postprocessing": {"transforms": []}}, "Activationsd"),
        (preprocessing(CROP, {"_target_": "ScaleIntensityd", "keys": "image"}), "after CropFore"),
        (preprocessing({"_target_": "ScaleIntensityd", "keys": ["image", "label"]}), "the key"),
        (preprocessing(), "no scaling"),
        (preprocessing(SCALE, axcodes="RAR"), "axcodes RAR"),
        (preprocessing(SCALE, mode="nearest"), "mode bilinear"),
        ({"preprocessing": {"transforms": [*GRID[::-1], SCALE]}}, "Orientationd first"),
        ({"inferer": {"roi_size": [16, 16]}}, "roi_size"),
    ],
)
def test_what_cannot_be_taken_over_is_named(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(BundleError, match=message):
        read_bundle(write(tmp_path / "strange", **changes))


def test_trust_lets_its_own_class_be_imported(tmp_path: Path) -> None:
    mine = {"_target_": f"{__name__}.Mine"}
    folder = write(tmp_path / "mine", Mine().state_dict(), network_def=mine)
    with pytest.raises(BundleError, match=r"Mine would be imported.*trust=true"):
        read_bundle(folder)
    assert isinstance(read_bundle(folder, TRUSTED).network.network, Mine)


@pytest.mark.parametrize("state", [{"a": torch.zeros(1)}, {"weights": Path("code")}])
def test_weights_are_tensors_and_fit(tmp_path: Path, state: Any) -> None:
    with pytest.raises(BundleError, match=r"do not fit|tensors alone"):
        read_bundle(write(tmp_path / "odd", state))


class Mine(nn.Module):
    """A network that a bundle brings along."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(1, 2, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.conv(image)
        return logits


@pytest.mark.filterwarnings("ignore:No hash value provided")
def test_what_we_export_passes_monai_s_check_of_metadata(tmp_path: Path) -> None:
    """With the specification's required keys in place of the schema, which MONAI downloads."""
    pytest.importorskip("jsonschema")
    from monai.bundle import verify_metadata

    needed = "version changelog monai_version pytorch_version numpy_version task description"
    needed += " required_packages_version authors copyright network_data_format schema"
    schema, exported = tmp_path / "schema.json", tmp_path / "metadata.json"
    schema.write_text(json.dumps({"type": "object", "required": needed.split()}))
    plan = read_bundle(write(tmp_path / "spleen")).plan
    exported.write_text(json.dumps(metadata(plan, "0")))
    verify_metadata(meta_file=str(exported), filepath=str(schema))
    exported.write_text(json.dumps({**metadata(plan, "0"), "schema": "x"} | {"task": None}))
    schema.write_text(json.dumps({"properties": {"task": {"type": "string"}}}))
    with pytest.raises(ValueError, match="Failed validating"):
        verify_metadata(meta_file=str(exported), filepath=str(schema))

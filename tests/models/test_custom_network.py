"""Networks of other packages: construction, trial, wrapping, and import only with trust."""

import pytest
import torch
from torch import nn

from lesionseg.errors import BundleError, ConfigError
from lesionseg.models.build import TRUSTED, allowed_architectures, build_network
from lesionseg.models.custom_network import backbone_pyramid, custom_backbone, probe_network
from lesionseg.plan.plan import Plan
from lesionseg.training.objective import supervised_strides
from tests.models.plans import plan_of

MEDNEXT = {"init_filters": 8, "kernel_size": 3, "blocks_down": (1, 1), "blocks_up": (1, 1)}
MEDNEXT["deep_supervision"] = True
HERE = "tests.models.test_custom_network"


class TenLines(nn.Module):
    """A network as a user may write it."""

    def __init__(self, in_channels, out_channels, width=4):
        super().__init__()
        self.first = nn.Conv3d(in_channels, width, 3, padding=1)
        self.last = nn.Conv3d(width, out_channels, 1)

    def forward(self, image):
        return self.last(self.first(image).relu())


class Halves(nn.Module):
    """A network with two outputs, the coarser first. Tiles must be multiples of 16."""

    def __init__(self, wide=1):
        super().__init__()
        self.conv = nn.Conv3d(2, wide, 1)

    def forward(self, image):
        if image.shape[2] % 16:
            raise ValueError("sides must be multiples of 16")
        logits = self.conv(image)
        return {"half": nn.functional.avg_pool3d(logits, 2), "whole": logits}


class Pyramid(nn.Module):
    """A backbone whose `out_channels` is the width of its maps, as in MONAI and torchvision."""

    def __init__(self, in_channels, out_channels=6):
        super().__init__()
        self.fine = nn.Conv3d(in_channels, out_channels, 1)
        self.coarse = nn.Conv3d(out_channels, out_channels, 2, stride=2)

    def forward(self, image):
        fine = self.fine(image)
        return [fine, self.coarse(fine)]


class Backbone(nn.Module):
    """A backbone with one map of half the resolution."""

    def __init__(self, in_channels):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 4, 2, stride=2)

    def forward(self, image):
        return [self.conv(image)]


class ThreeColours(Backbone):
    """A backbone that ignores the number of channels it is given."""

    def __init__(self):
        super().__init__(3)


class NeedsValues(Backbone):
    """A backbone that the meta device cannot run, because it reads the value of a voxel."""

    def forward(self, image):
        return [self.conv(image) * (1 + float(image[0, 0, 0, 0]))]


class Classifier(Backbone):
    """A network that returns a vector per image instead of maps."""

    def forward(self, image):
        return self.conv(image).mean(dim=(2, 3))


class Patches(nn.Module):
    """A network of patches of 14 pixels, which no multiple of 8 fits."""

    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, image):
        if image.shape[-1] % 14:
            raise ValueError("sides must be multiples of 14")
        return self.conv(image)


def make_plan(name="custom", tile=(16, 16, 16), **network):
    return plan_of(name, len(tile), n_channels=2, table={"network": network}, tile_shape=tile)


def make_target(name, **arguments):
    return {"_target_": f"{HERE}.{name}", **arguments}


def test_channels_are_inserted_and_the_first_prediction_is_the_prior():
    network = build_network(make_plan(**make_target("TenLines", width=8)), architectures=TRUSTED)
    with torch.no_grad():
        (logits,) = network(torch.zeros(2, 2, 16, 16, 16))
    assert logits.shape == (2, 1, 16, 16, 16)
    assert logits.mean().sigmoid().item() == pytest.approx(0.01, rel=0.5)


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"_target_": "missing_package.Network"},
        {"_target_": "builtins.dict"},
        {"_target_": "torch.nn"},
        {"_target_": "math.pi"},
        {"_target_": 3.5},
        make_target("Nothing"),
        make_target("TenLines", depth=3),
    ],
)
def test_network_that_cannot_be_built_is_an_error(spec):
    with pytest.raises(ConfigError, match=r"model\.network"):
        build_network(make_plan(**spec), architectures=TRUSTED)


@pytest.mark.parametrize("name", ["custom", "retinanet"])
def test_class_of_a_bundle_is_imported_only_with_trust(name):
    for architectures in (None, allowed_architectures(False)):
        with pytest.raises(BundleError, match=r"antigravity\.fly.*trust=true"):
            build_network(make_plan(name, _target_="antigravity.fly"), architectures=architectures)


@pytest.mark.parametrize("tile", [(16, 16, 16), (16, 32)])
def test_network_of_monai_is_built_by_its_target(tile):
    spec = {"_target_": "monai.networks.nets.MedNeXt", **MEDNEXT}
    ready = probe_network(make_plan(tile=tile, **spec), by_hand=True)
    assert len(supervised_strides(ready.architecture)) == 3
    assert Plan.from_json(ready.to_json()) == ready
    network = build_network(ready, architectures=TRUSTED).eval()
    with torch.no_grad():
        (logits,) = network(torch.zeros(1, 2, *ready.tile_shape))
    assert logits.shape == (1, 1, *ready.tile_shape)


def test_tile_that_no_rounding_fits_is_set_by_hand():
    with pytest.raises(ConfigError, match=r"multiples of 14\. Set model\.tile_shape"):
        probe_network(make_plan(tile=(64, 64), **make_target("Patches")), by_hand=False)
    chosen = make_plan(tile=(56, 56), **make_target("Patches"))
    assert probe_network(chosen, by_hand=True).tile_shape == (56, 56)


def test_tile_that_rounding_fits_is_named_if_it_was_set_by_hand():
    halves = make_plan(tile=(20, 16, 16), **make_target("Halves"))
    with pytest.raises(ConfigError, match=r"Set model.tile_shape=\[16, 16, 16\]"):
        probe_network(halves, by_hand=True)


@pytest.mark.parametrize(
    ("batch", "keeps_batch", "expected"), [(8, False, 7), (2, False, 2), (8, True, 8)]
)
def test_larger_tile_has_a_smaller_batch_and_a_reason(batch, keeps_batch, expected):
    """8 tiles of 28 × 32 × 32 have the voxels of 7 tiles of 32 × 32 × 32."""
    reasons = {"tile_shape": "28 × 32 × 32, as planned", "memory": "9 GB"}
    plan = make_plan(tile=(28, 32, 32), **make_target("Halves"))
    plan = plan.with_(batch_size=batch, reasons=reasons)
    ready = probe_network(plan, by_hand=False, keeps_batch=keeps_batch)
    assert (ready.tile_shape, ready.batch_size) == ((32, 32, 32), expected)
    assert ready.reasons["tile_shape"].startswith("32 × 32 × 32, ")
    assert ready.reasons["tile_shape"].endswith("chose 28 × 32 × 32, as planned")
    assert ("batch_size" in ready.reasons) == (expected != batch)
    assert "memory" not in ready.reasons


def test_coarser_outputs_are_supervised_on_their_own_grid():
    ready = probe_network(make_plan(tile=(20, 16, 16), **make_target("Halves")), by_hand=False)
    assert ready.architecture.levels == ((1, 1, 1), (2, 2, 2))
    assert ready.architecture.strides[1] == (16, 16, 16)
    network = build_network(ready, architectures=TRUSTED)
    tiles = torch.zeros(2, 2, 16, 16, 16)
    assert [x.shape[-1] for x in network.train()(tiles)] == [16, 8]
    assert [x.shape[-1] for x in network.eval()(tiles)] == [16]


def test_wrong_channels_are_refused_and_our_own_plans_unchanged():
    with pytest.raises(ConfigError):
        probe_network(make_plan(**make_target("Halves", wide=3)), by_hand=False)
    ours = make_plan("unet")
    assert probe_network(ours, by_hand=False) is ours


@pytest.mark.parametrize(("chosen", "width"), [({}, 6), ({"out_channels": 3}, 3)])
def test_backbone_keeps_its_own_number_of_output_channels(chosen, width):
    target = make_target("Pyramid", **chosen)
    assert backbone_pyramid("retinanet", target, 3, 2).features == (width, width)
    maps = custom_backbone(target, 2, (16, 16, 16))(torch.zeros(1, 2, 16, 16, 16))
    assert [tuple(x.shape[1:3]) for x in maps] == [(width, 16), (width, 8)]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (make_target("ThreeColours"), r"model\.backbone does not accept images of 1 channel"),
        (make_target("Classifier"), r"model\.backbone returns \[\[1, 4\]\]"),
        ({"_target_": "torch.nn"}, r"model\.backbone\._target_=torch\.nn is a module"),
    ],
)
def test_backbone_that_cannot_read_the_images_is_an_error(target, message):
    with pytest.raises(ConfigError, match=message):
        backbone_pyramid("retinanet", target, 2, 1)


def test_backbone_that_the_meta_device_cannot_run_is_run_on_the_cpu():
    found = backbone_pyramid("retinanet", make_target("NeedsValues"), 2, 1)
    assert (found.features, found.strides) == ((4,), ((2, 2),))

"""Bytes of a training step: against counts by hand, larger tiles, and nnU-Net's published ones."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from lesionseg.losses import DetectionLoss, DiceCrossEntropyLoss, FocalLoss, LesionWiseFocalLoss
from lesionseg.models.build import build_network
from lesionseg.models.heads import SegmentationHead
from lesionseg.plan.anchors import fit_anchors
from lesionseg.plan.plan import Normalisation, Plan
from lesionseg.plan.rules import network_shape
from lesionseg.training.device.step_memory import StepMemory, saved_by_network
from lesionseg.training.settings import OptimiserSettings
from lesionseg.training.step.detection_objective import make_objective


def plan_of(name, tile, batch=2, spacing=(1.0, 1.0, 1.0), widths=(32, 320)):
    shape = network_shape(tile, spacing[-len(tile) :], *widths, name=name)
    boxes = [(6.0,) * len(tile), (20.0,) * len(tile)]
    return Plan(
        dims=len(tile),
        modality="ct",
        channel_names=("CT",),
        label_values=(1,),
        label_names=("lesion",),
        spacing_mm=spacing[-len(tile) :],
        normalisation=(Normalisation("zscore"),),
        tile_shape=tile,
        batch_size=batch,
        architecture=shape,
        lesion_fraction=1e-3,
        anchors=fit_anchors(boxes, shape).value if "retina" in name else None,
    )


def test_a_convolution_a_norm_and_an_activation_by_hand():
    def build(plan):
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1, bias=False),
            nn.InstanceNorm2d(8),
            nn.LeakyReLU(inplace=True),
        )

    weights, saved, output = saved_by_network(build, plan_of("unet", (16, 16), 1), half=True)
    # half copies of the image, of the convolution's output and of the activation's; the norm's
    # mean and deviation of 8 channels in fp32 and its running ones, which are empty
    assert weights == 72
    assert saved == pytest.approx(2 * 16 * 16 * (1 + 8 + 8), abs=200)
    assert output.shape == (1, 8, 16, 16)


@pytest.mark.parametrize("name", ["unet", "residual_unet", "retinanet", "retina_unet"])
def test_what_is_saved_grows_with_voxels_and_tiles(name):
    plan = plan_of(name, (64, 64), 1, widths=(8, 32))
    bytes_of = partial(saved_by_network, build_network, half=True)
    _, small, _ = bytes_of(plan)
    _, large, _ = bytes_of(plan.with_(tile_shape=(128, 64), batch_size=3))
    assert large == pytest.approx(6 * small, rel=0.01)


@pytest.mark.parametrize("loss", [FocalLoss(), DiceCrossEntropyLoss(), LesionWiseFocalLoss()])
@pytest.mark.parametrize("name", ["unet", "retinanet", "retina_unet"])
def test_every_network_and_loss_is_counted_without_a_gpu(name, loss):
    plan = plan_of(name, (64, 64), widths=(8, 32))
    memory = StepMemory(teach=partial(make_objective, loss, DetectionLoss()))
    one, four = (memory(plan.with_(batch_size=n)) for n in (1, 4))
    fixed = one - (four - one) / 3
    assert one < four
    assert fixed == pytest.approx(memory.weights_gb(n_weights(plan)))


def n_weights(plan):
    return sum(weight.numel() for weight in build_network(plan).parameters())


def test_fp32_takes_about_twice_the_activations():
    plan = plan_of("unet", (64, 64), 64, widths=(8, 32))
    half, full = (StepMemory(half=half) for half in (True, False))
    bare = [memory(plan) - memory.weights_gb(n_weights(plan)) for memory in (half, full)]
    assert 1.5 < bare[1] / bare[0] < 2


class HalfHead(nn.Module):
    """A head as nnU-Net has it, in half precision: ours copies its features to fp32."""

    def __init__(self, head):
        super().__init__()
        self.conv = head.conv

    def forward(self, x):
        return self.conv(x).float()


def with_half_heads(plan):
    network = build_network(plan)
    network.heads = nn.ModuleList(
        HalfHead(head) for head in network.heads if isinstance(head, SegmentationHead)
    )
    return network


# Peak memory as nvidia-smi says, GB: MIC-DKFZ/nnUNet, documentation/resenc_presets.md. Patch and
# batch: what the planners of that repository make of LiTS (1 × 0.77 × 0.77 mm, median 432 × 512 ×
# 512 voxels) at 8, 8, 24 and 40 GB; the page does not say on which dataset it was measured.
PUBLISHED = [
    ("unet", (128, 128, 128), 7.7),
    ("residual_unet", (128, 128, 128), 9.1),
    ("residual_unet", (160, 224, 192), 22.7),
    ("residual_unet", (192, 256, 256), 36.6),
]


@pytest.mark.parametrize(("name", "tile", "published"), PUBLISHED)
def test_nnunets_networks_take_what_nnunet_publishes(name, tile, published):
    plan = plan_of(name, tile, spacing=(1.0, 0.7676, 0.7676))
    levels = len(plan.architecture.features) - 1  # all of them are supervised there
    plan = plan.with_(
        architecture=replace(plan.architecture, n_supervised=levels),
        activation="softmax",
    )
    memory = StepMemory(
        build=with_half_heads,
        teach=partial(make_objective, DiceCrossEntropyLoss(activation="softmax"), DetectionLoss()),
        optimiser=OptimiserSettings(name="sgd"),
        averages=False,
    )
    assert memory(plan) == pytest.approx(published, rel=0.15)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_the_prediction_is_near_what_a_gpu_reserves():
    from lesionseg.training.device.memory_probe import Probe
    from lesionseg.training.device.step_memory import CONTEXT_GB
    from lesionseg.training.settings import TrainerSettings

    plan = plan_of("unet", (128, 128, 128))
    teach = partial(make_objective, FocalLoss(), DetectionLoss())
    probe = Probe(
        build=build_network,
        teach=teach,
        settings=TrainerSettings(max_steps=1),
        optimiser=OptimiserSettings(),
        device=torch.device("cuda"),
        dtype=torch.bfloat16,
    )
    peak = probe.peak_gb(plan)
    assert peak is not None
    assert peak + CONTEXT_GB == pytest.approx(StepMemory(teach=teach)(plan), rel=0.25)

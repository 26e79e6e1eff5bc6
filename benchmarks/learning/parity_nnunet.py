"""nnU-Net's network, loss and optimiser, and ours: one loss curve from the same batches?

    PYTHONPATH=. .peers/bin/python benchmarks/learning/parity_nnunet.py [--steps 50] [--residual] \
        [--per-tile]

in the peers' environment (`make peers`). nnU-Net's own trainer makes its network, loss and
optimiser from a small plan and takes its own training steps. Our engine (`fit_tiles`, with
`experiment=nnunet_recipe`) begins with the same weights, read from a checkpoint that the trainer
writes, and sees the same tiles of noise with bright spheres. Ours has 1 − Dice where nnU-Net has
−Dice: 1 is taken off. Prints both curves and their largest distance; fp32 on both sides, whose sums
are in another order, so that distances grow with the steps.
"""

import argparse
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from benchmarks.peers.torchvision_on_cpu import supply_nms

supply_nms()  # before what imports torchvision

import pytorch_lightning as pl  # noqa: E402

from benchmarks.common.recipe import recipe  # noqa: E402
from lesionseg.models import build_network  # noqa: E402
from lesionseg.models.nnunet_weights import architecture_of, read_checkpoint  # noqa: E402
from lesionseg.plan.plan import Normalisation, Plan  # noqa: E402
from lesionseg.training.fit import fit_tiles  # noqa: E402

TILE, FEATURES = (32, 32, 32), (8, 16, 32, 64)
STRIDES, KERNEL = ((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2)), (3, 3, 3)
EXPONENT, RATE = 0.9, 1e-2


class Spheres(Dataset[dict[str, Tensor]]):
    """Tile i: noise with bright spheres of 2 to 5 voxels in radius, none in every third."""

    def __len__(self) -> int:
        return 1 << 20

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        draw = np.random.default_rng(index)
        labels = np.zeros(TILE, bool)
        places = np.stack(np.indices(TILE), -1)
        for _ in range(index % 3):
            away = places - draw.integers(6, 26, 3)
            labels |= (away**2).sum(-1) <= draw.integers(2, 6) ** 2
        image = draw.normal(size=TILE) + labels
        drawn = torch.from_numpy(labels)
        return {
            "image": torch.from_numpy(image[None].astype(np.float32)),
            "labels": drawn.to(torch.uint8),
            "instances": drawn.int(),
            "valid": torch.ones(TILE, dtype=torch.bool),
        }


class Losses(pl.Callback):
    """The loss of every step."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        """Keep it."""
        self.seen.append(float(module.latest.loss) - 1)


def main() -> None:
    """Both curves."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--residual", action="store_true", help="the residual encoder")
    parser.add_argument("--per-tile", action="store_true", help="nnU-Net's batch_dice: false")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "checkpoint_final.pth"
        theirs = nnunet_losses(checkpoint, options)
        ours = our_losses(checkpoint, options, Path(folder))
    distances = [abs(a - b) for a, b in zip(theirs, ours, strict=True)]
    print("step  nnU-Net    ours       distance")
    for step in range(0, options.steps, max(options.steps // 10, 1)):
        print(f"{step:4}  {theirs[step]:+.6f}  {ours[step]:+.6f}  {distances[step]:.1e}")
    print(f"last  {theirs[-1]:+.6f}  {ours[-1]:+.6f}  {distances[-1]:.1e}")
    print(f"largest distance {max(distances):.1e}")


def nnunet_losses(checkpoint: Path, options: argparse.Namespace) -> list[float]:
    """nnU-Net's own steps; its first weights go to `checkpoint`."""
    for name in ("raw", "preprocessed", "results"):
        os.environ[f"nnUNet_{name}"] = str(checkpoint.parent)
    cases = checkpoint.parent / "Dataset001_parity" / "nnUNetPlans_3d_fullres"
    cases.mkdir(parents=True)
    (cases / "none.b2nd").touch()  # the trainer looks at what kind its cases are
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    torch.manual_seed(0)
    described = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "lesion": 1}}
    trainer = nnUNetTrainer(
        plans(options),
        "3d_fullres",
        "all",
        described | {"file_ending": ".nii.gz"},
        torch.device("cpu"),
    )
    trainer.initialize()
    trainer.save_checkpoint(str(checkpoint))
    trainer.network.train()
    tiles, losses = Spheres(), []
    scales = trainer._get_deep_supervision_scales()
    from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import (
        DownsampleSegForDSTransform,
    )

    coarser = DownsampleSegForDSTransform(scales)
    for step in range(options.steps):
        for group in trainer.optimizer.param_groups:
            group["lr"] = RATE * (1 - step / options.steps) ** EXPONENT
        pair = [tiles[2 * step], tiles[2 * step + 1]]
        levels = [coarser._apply_to_segmentation(tile["labels"][None].short()) for tile in pair]
        target = [torch.stack(level) for level in zip(*levels, strict=True)]
        batch = {"data": torch.stack([tile["image"] for tile in pair]), "target": target}
        losses.append(float(trainer.train_step(batch)["loss"]))
    return losses


def plans(options: argparse.Namespace) -> dict[str, Any]:
    """A small plan as nnU-Net writes it."""
    n = len(FEATURES)
    kind = "ResidualEncoderUNet" if options.residual else "PlainConvUNet"
    package = "dynamic_network_architectures.architectures.unet"
    blocks = (
        {"n_blocks_per_stage": [1, 2, 2, 2]} if options.residual else {"n_conv_per_stage": [2] * n}
    )
    arguments = {
        "n_stages": n,
        "features_per_stage": list(FEATURES),
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [list(KERNEL)] * n,
        "strides": [list(s) for s in STRIDES],
        "n_conv_per_stage_decoder": [1 if options.residual else 2] * (n - 1),
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    return {
        "dataset_name": "Dataset001_parity",
        "plans_name": "nnUNetPlans",
        "continue_training": False,
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {},
        "configurations": {
            "3d_fullres": {
                "data_identifier": "nnUNetPlans_3d_fullres",
                "preprocessor_name": "DefaultPreprocessor",
                "batch_size": 2,
                "patch_size": list(TILE),
                "spacing": [1.0, 1.0, 1.0],
                "normalization_schemes": ["CTNormalization"],
                "use_mask_for_norm": [False],
                "batch_dice": not options.per_tile,
                "architecture": {
                    "network_class_name": f"{package}.{kind}",
                    "arch_kwargs": arguments | blocks,
                    "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
                },
            }
        },
    }


def our_losses(checkpoint: Path, options: argparse.Namespace, run: Path) -> list[float]:
    """The same steps by our engine, heads too beginning with nnU-Net's weights."""
    more = [f"+loss.per_tile={str(options.per_tile).lower()}", "trainer.precision=32-true"]
    learning = recipe(["experiment=nnunet_recipe", *more]).learning
    limits = {"max_steps": options.steps, "budget": None, "workers": 0, "progress": False}
    trainer = replace(learning.trainer, accelerator="cpu", compile=False, **limits)
    weights = read_checkpoint(checkpoint)
    name = "residual_unet" if options.residual else "unet"
    plan = Plan(
        dims=3,
        modality="ct",
        channel_names=("CT",),
        label_values=(1,),
        label_names=("lesion",),
        spacing_mm=(1.0, 1.0, 1.0),
        normalisation=(Normalisation("dataset"),),
        tile_shape=TILE,
        batch_size=2,
        architecture=architecture_of(weights, name, checkpoint.name),
        lesion_fraction=0.01,
        activation="softmax",
    )
    network, seen = build_network(plan), Losses()
    mine = network.state_dict()
    network.load_state_dict({key: weights[key] for key in mine})
    fit_tiles(network, plan, Spheres(), replace(learning, trainer=trainer), run, callbacks=[seen])
    return seen.seen


if __name__ == "__main__":
    main()

"""Model folders in the form that nnUNetv2_train writes, with random weights."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from lesionseg.io.text import write_json
from lesionseg.models.unet import UNet
from lesionseg.plan.plan import Architecture
from tests.models.nnunet_names import to_nnunet_weights

SPLINES = "resample_data_or_seg_to_shape"
LOGIT_OPTIONS = {"order": 1, "order_z": 0, "force_separate_z": None}


@dataclass(frozen=True)
class SmallModel:
    """A small nnU-Net model: the content of its plans and the network of its checkpoints."""

    channels: tuple[str, ...] = ("FLAIR",)
    labels: Mapping[str, Any] = field(default_factory=lambda: {"background": 0, "lesion": 1})
    regions_class_order: tuple[int, ...] = ()
    patch: tuple[int, ...] = (8, 8, 12)
    spacing: tuple[float, ...] = (2.0, 1.0, 1.0)
    schemes: tuple[str, ...] = ("ZScoreNormalization",)
    use_mask: tuple[bool, ...] = (False,)
    transpose: tuple[int, int, int] = (0, 1, 2)
    reader: str = "SimpleITKIO"
    residual: bool = False
    blocks: int = 2
    configuration: str = "3d_fullres"
    image_resampling: str = SPLINES
    image_options: Mapping[str, Any] = field(
        default_factory=lambda: {"order": 3, "order_z": 0, "force_separate_z": None}
    )
    mirror_axes: tuple[int, ...] | None = (0, 1, 2)
    n_folds: int = 1
    median_spacing: tuple[float, ...] = (2.0, 1.0, 1.0)
    more: Mapping[str, Any] = field(default_factory=dict)

    @property
    def n_outputs(self):
        """The number of channels of the logits."""
        return len(self.regions_class_order) or len(self.labels)

    def with_(self, **changes):
        """Return a copy of the model with changed fields."""
        return replace(self, **changes)

    def architecture(self):
        """Make an architecture of three stages. The first halves only the last axis."""
        dims = len(self.patch)
        ones = (1,) * dims
        return Architecture(
            name="residual_unet" if self.residual else "unet",
            features=(4, 6, 8),
            strides=(ones, (*ones[1:], 2), (2,) * dims),
            kernels=((*ones[1:], 3), (3,) * dims, (3,) * dims),
            layout="nnunet",
            n_supervised=2,
            blocks=1 if self.residual else self.blocks,
            encoder_blocks=(1, 2, 2) if self.residual else (),
        )

    def network(self, fold=0):
        """Make a network of random weights that predicts some lesions."""
        network = UNet(
            len(self.patch),
            len(self.channels),
            self.architecture(),
            (0.0,) * self.n_outputs,
            residual=self.residual,
        )
        generator = torch.Generator().manual_seed(fold)
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                if "norm" in name:
                    parameter.copy_(name.endswith("weight") + 0.2 * noise)
                elif name.startswith("heads"):
                    parameter.copy_(noise * name.endswith("weight"))
                else:
                    parameter.copy_(0.3 * noise)
        return network.eval()

    def plans(self):
        """Make the content of `plans.json`."""
        name = "ResidualEncoderUNet" if self.residual else "PlainConvUNet"
        own = {
            "patch_size": list(self.patch),
            "spacing": list(self.spacing),
            "normalization_schemes": list(self.schemes),
            "use_mask_for_norm": list(self.use_mask),
            "preprocessor_name": "DefaultPreprocessor",
            "batch_size": 2,
            "resampling_fn_data": self.image_resampling,
            "resampling_fn_data_kwargs": {"is_seg": False, **self.image_options},
            "resampling_fn_probabilities": SPLINES,
            "resampling_fn_probabilities_kwargs": {"is_seg": False, **LOGIT_OPTIONS},
            "architecture": {
                "network_class_name": f"dynamic_network_architectures.architectures.unet.{name}",
                "arch_kwargs": {
                    "strides": [list(s) for s in self.architecture().strides],
                    "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
                    "norm_op_kwargs": {"eps": 1e-05, "affine": True},
                    "dropout_op": None,
                    "nonlin": "torch.nn.LeakyReLU",
                    "nonlin_kwargs": {"inplace": True},
                },
                "_kw_requires_import": ["norm_op", "dropout_op", "nonlin"],
            },
            **self.more,
        }
        intensities = {
            "mean": 60.0,
            "std": 40.0,
            "percentile_00_5": -20.0,
            "percentile_99_5": 150.0,
        }
        return {
            "dataset_name": "Dataset001_X",
            "plans_name": "nnUNetPlans",
            "image_reader_writer": self.reader,
            "transpose_forward": list(self.transpose),
            "original_median_spacing_after_transp": list(self.median_spacing),
            "label_manager": "LabelManager",
            "foreground_intensity_properties_per_channel": {
                str(i): intensities for i in range(len(self.channels))
            },
            "configurations": {"base": own, self.configuration: {"inherits_from": "base"}},
        }

    def info(self):
        """Make the content of `dataset.json`."""
        names = {str(i): name for i, name in enumerate(self.channels)}
        info = {"channel_names": names, "labels": dict(self.labels), "file_ending": ".nii.gz"}
        if self.regions_class_order:
            info["regions_class_order"] = list(self.regions_class_order)
        return info

    def write(self, results, **content):
        """Write the model folder into `results`. `content` replaces keys of the checkpoints."""
        folder = results / f"Dataset001_X/nnUNetTrainer__nnUNetPlans__{self.configuration}"
        folder.mkdir(parents=True)
        write_json(folder / "plans.json", self.plans())
        write_json(folder / "dataset.json", self.info())
        for fold in range(self.n_folds):
            (folder / f"fold_{fold}").mkdir()
            checkpoint = {
                "network_weights": to_nnunet_weights(self.network(fold).state_dict()),
                "trainer_name": "nnUNetTrainer",
                "init_args": {"configuration": self.configuration, "device": torch.device("cpu")},
                "inference_allowed_mirroring_axes": self.mirror_axes,
                **content,
            }
            torch.save(checkpoint, folder / f"fold_{fold}" / "checkpoint_final.pth")
        return folder

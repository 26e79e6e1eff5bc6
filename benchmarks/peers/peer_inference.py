"""Predict from NIfTI to NIfTI with nnU-Net's predictor or a MONAI script, for bench_inference.py.

    PYTHONPATH=. python benchmarks/peers/peer_inference.py nnunet|monai FOLDER

Run this in the peers' environment. FOLDER contains `bundle/`, its weights `network.pt` and the
scans `in/<case>.nii.gz`. Masks are written to `FOLDER/<peer>/`. Both programs use our network with
the same weights. The last line is JSON: seconds per case without imports and loading of weights,
and the peak memory of the process.
"""

import json
import resource
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from lesionseg.models.build import build_network
from lesionseg.plan.plan import Plan


class TwoChannels(nn.Module):
    """A network with logits of background and lesion. Their softmax equals our sigmoid."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """Return logits `[B, 2, *spatial]`."""
        logits = self.network(image)[0]
        return torch.cat((torch.zeros_like(logits), logits), dim=1)


def main() -> None:
    """Predict with one peer, and print time and memory."""
    peer = sys.argv[1]
    folder = Path(sys.argv[2])
    plan = Plan.from_json((folder / "bundle" / "plan.json").read_text())
    network = build_network(plan)
    network.load_state_dict(torch.load(folder / "network.pt", weights_only=True))
    network.eval()
    scans = sorted((folder / "in").glob("*.nii.gz"))
    output = folder / peer
    output.mkdir(exist_ok=True)
    with torch.inference_mode():  # convolutions choose their algorithms
        network(torch.zeros(1, len(plan.channel_names), *plan.tile_shape))
    run = make_nnunet(network, plan) if peer == "nnunet" else make_monai(network, plan)
    begin = time.perf_counter()
    run(scans, output)
    seconds = (time.perf_counter() - begin) / len(scans)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "peak_mb": peak}))


def make_nnunet(network: nn.Module, plan: Plan):
    """Return `nnUNetPredictor` with its defaults, except that mirroring is off."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    predictor = nnUNetPredictor(
        tile_step_size=0.5,
        use_gaussian=True,
        use_mirroring=False,
        perform_everything_on_device=False,
        device=torch.device("cpu"),
        verbose=False,
        allow_tqdm=False,
    )
    manager = PlansManager(nnunet_plans(plan))
    two_channels = TwoChannels(network)
    labels = {"background": 0, "lesion": 1}
    names = {str(i): name for i, name in enumerate(plan.channel_names)}
    facts = {"channel_names": names, "labels": labels, "file_ending": ".nii.gz"}
    predictor.manual_initialization(
        two_channels,
        manager,
        manager.get_configuration("3d_fullres"),
        [two_channels.state_dict()],
        facts,
        "nnUNetTrainer",
        None,
    )

    def run(scans: list[Path], output: Path) -> None:
        predictor.predict_from_files_sequential(
            [[str(scan)] for scan in scans],
            [str(output / scan.name.removesuffix(".nii.gz")) for scan in scans],
        )

    return run


def nnunet_plans(plan: Plan) -> dict[str, object]:
    """Return the parts of nnU-Net's plans that prediction reads."""
    resample = "resample_data_or_seg_to_shape"
    image = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    labels = {"is_seg": True, "order": 1, "order_z": 0, "force_separate_z": None}
    logits = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
    configuration = {
        "data_identifier": "bench",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": list(plan.tile_shape),
        "median_image_size_in_voxels": list(plan.tile_shape),
        "spacing": list(plan.spacing_mm),
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": resample,
        "resampling_fn_data_kwargs": image,
        "resampling_fn_seg": resample,
        "resampling_fn_seg_kwargs": labels,
        "resampling_fn_probabilities": resample,
        "resampling_fn_probabilities_kwargs": logits,
        "architecture": {
            "network_class_name": "ours",
            "arch_kwargs": {},
            "_kw_requires_import": [],
        },
        "batch_dice": False,
    }
    return {
        "dataset_name": "Dataset001_Bench",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": list(plan.spacing_mm),
        "original_median_shape_after_transp": list(plan.tile_shape),
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"3d_fullres": configuration},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            str(i): {} for i in range(len(plan.channel_names))
        },
    }


def make_monai(network: nn.Module, plan: Plan):
    """Return a prediction like in MONAI's tutorials, with `sliding_window_inference`."""
    from monai import transforms as mt
    from monai.inferers import sliding_window_inference

    before = mt.Compose(
        [
            mt.LoadImaged("image"),
            mt.EnsureChannelFirstd("image"),
            mt.Orientationd("image", axcodes="RAS", labels=(("L", "R"), ("P", "A"), ("I", "S"))),
            mt.Spacingd("image", pixdim=plan.spacing_mm[::-1], mode="bilinear"),
            mt.NormalizeIntensityd("image", nonzero=True, channel_wise=True),
        ]
    )
    after = mt.Compose(
        [
            mt.Invertd("pred", transform=before, orig_keys="image", nearest_interp=False),
            mt.Activationsd("pred", sigmoid=True),
            mt.AsDiscreted("pred", threshold=0.5),
        ]
    )

    def predict_turned(tiles: Tensor) -> Tensor:
        # MONAI's axes are x, y, z
        result: Tensor = network(tiles.permute(0, 1, 4, 3, 2))[0].permute(0, 1, 4, 3, 2)
        return result

    def run(scans: list[Path], output: Path) -> None:
        save = mt.SaveImaged(
            "pred", output_dir=output, output_postfix="", separate_folder=False, print_log=False
        )
        with torch.inference_mode():
            for scan in scans:
                case = before({"image": scan})
                case["pred"] = sliding_window_inference(
                    case["image"][None],
                    plan.tile_shape[::-1],
                    1,
                    predict_turned,
                    0.5,
                    mode="gaussian",
                )[0]
                save(after(case))

    return run


if __name__ == "__main__":
    main()

"""Write a model folder of nnU-Net and predict with its predictor, for bench_inference.py.

    PYTHONPATH=. python benchmarks/peers/peer_nnunet_model.py FOLDER quick|full

Run this in the peers' environment. The scans are `FOLDER/in/<case>.nii.gz`. The model is written to
`FOLDER/nnunet_model`, masks to `FOLDER/nnunet_out`. The weights are random, and the last biases
prevent detections. The last line is JSON: seconds per case without imports and loading of weights,
and the peak memory of the process.
"""

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers.torchvision_on_cpu import supply_nms

supply_nms()  # nnU-Net imports torchvision

from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor  # noqa: E402
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans  # noqa: E402

SPACING = [1.2, 1.1, 1.1]  # the scans have 1 mm, so scans and results are resampled
CONFIGURATION = "3d_fullres"


def make_plans(*, quick: bool) -> dict[str, Any]:
    """Return the content of `plans.json`: a plain U-Net of five stages, narrower if `quick`."""
    features = [8, 16, 32, 64, 64] if quick else [16, 32, 64, 128, 160]
    n = len(features)
    splines = {"is_seg": False, "order_z": 0, "force_separate_z": None}
    architecture = {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": n,
            "features_per_stage": features,
            "conv_op": "torch.nn.modules.conv.Conv3d",
            "kernel_sizes": [[3, 3, 3]] * n,
            "strides": [[1, 1, 1], *[[2, 2, 2]] * (n - 1)],
            "n_conv_per_stage": [2] * n,
            "n_conv_per_stage_decoder": [2] * (n - 1),
            "conv_bias": True,
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
            "norm_op_kwargs": {"eps": 1e-05, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }
    configuration = {
        "data_identifier": "bench",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [64] * 3 if quick else [96] * 3,
        "median_image_size_in_voxels": [160, 160, 160],
        "spacing": SPACING,
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": {"order": 3, **splines},
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_seg_kwargs": {"order": 1, **splines, "is_seg": True},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": {"order": 1, **splines},
        "architecture": architecture,
        "batch_dice": False,
    }
    return {
        "dataset_name": "Dataset001_Bench",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": SPACING,
        "original_median_shape_after_transp": [160, 160, 160],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {CONFIGURATION: configuration},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": {}},
    }


def save_model(folder: Path, *, quick: bool) -> None:
    """Save a model folder with one fold like a trainer."""
    content = make_plans(quick=quick)
    architecture = content["configurations"][CONFIGURATION]["architecture"]
    torch.manual_seed(0)
    network = get_network_from_plans(
        architecture["network_class_name"],
        architecture["arch_kwargs"],
        architecture["_kw_requires_import"],
        1,
        2,
        deep_supervision=False,
    )
    with torch.no_grad():
        for layer in network.decoder.seg_layers:
            layer.bias.copy_(torch.tensor([30.0, -30.0]))
    (folder / "fold_0").mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(content))
    labels = {"background": 0, "lesion": 1}
    facts = {"channel_names": {"0": "FLAIR"}, "labels": labels, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(facts))
    checkpoint = {
        "network_weights": network.state_dict(),
        "trainer_name": "nnUNetTrainer",
        "init_args": {"configuration": CONFIGURATION, "fold": 0},
        "inference_allowed_mirroring_axes": (0, 1, 2),
    }
    torch.save(checkpoint, folder / "fold_0" / "checkpoint_final.pth")


def main() -> None:
    """Save the model, predict with mirroring off, and print time and memory."""
    folder = Path(sys.argv[1])
    size = sys.argv[2]
    model = folder / "nnunet_model"
    if not model.exists():
        save_model(model, quick=size == "quick")
    predictor = nnUNetPredictor(
        tile_step_size=0.5,
        use_gaussian=True,
        use_mirroring=False,
        perform_everything_on_device=False,
        device=torch.device("cpu"),
        allow_tqdm=False,
    )
    predictor.initialize_from_trained_model_folder(str(model), (0,))
    output = folder / "nnunet_out"
    output.mkdir(exist_ok=True)
    tile = predictor.configuration_manager.patch_size
    with torch.inference_mode():  # convolutions choose their algorithms
        predictor.network.eval()(torch.zeros(1, 1, *tile))
    scans = sorted((folder / "in").glob("*.nii.gz"))
    begin = time.perf_counter()
    predictor.predict_from_files_sequential(
        [[str(scan)] for scan in scans],
        [str(output / scan.name.removesuffix(".nii.gz")) for scan in scans],
    )
    seconds = (time.perf_counter() - begin) / len(scans)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "peak_mb": peak}))


if __name__ == "__main__":
    main()

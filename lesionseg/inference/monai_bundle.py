"""A bundle in MONAI's layout, which `monai.bundle` runs without lesionseg being installed.

DIR/
├── configs/metadata.json    what goes in, what comes out
├── configs/inference.json   read, orient, resample, normalise, slide, undo, save
├── models/model.pt2         network and weights, as torch's exported program
└── docs/README.md           the model card

The configuration names classes of MONAI, torch and numpy only; normalisation is written as
expressions of the plan's own numbers. MONAI has no transform that takes mean and deviation from the
non-zero voxels and applies them to all.
"""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from lesionseg import __version__
from lesionseg.plan.plan import Normalisation, Plan

PROGRAM = "models/model.pt2"
CONFIG, METADATA, README = "configs/inference.json", "configs/metadata.json", "docs/README.md"
_SCHEMA = (
    "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/"
    "meta_schema_20240725.json"
)
_MODALITIES = {"mri": "MR", "ct": "CT", "xray": "CR"}
_RAS = [["L", "R"], ["P", "A"], ["I", "S"]]


# as `data.prepared_case.plan_geometry`: what the image covers, about the same centre, in new voxels
_GRID = (
    "$lambda x: (lambda a, z, n, p: (lambda k: MetaTensor(torch.zeros((1, *k)), affine="
    "torch.as_tensor(np.block([[z, "
    "(a[:3].dot([*((n - 1) / 2), 1]) - z.dot((k - 1) / 2))[:, None]], "
    "[np.zeros((1, 3)), np.ones((1, 1))]]))))"
    "(np.maximum(np.rint(n * np.linalg.norm(a[:3, :3], axis=0) / p), 1).astype(int)))"
    "(np.asarray(x.affine, dtype=float), "
    "zoom_affine(np.asarray(x.affine, dtype=float), {spacing}, diagonal=False)[:3, :3], "
    "np.array(x.shape[1:]), np.array({spacing}))"
)


def inference_config(plan: Plan) -> dict[str, Any]:
    """MONAI's `inference.json`: a probability map and a label map for every image of a folder.

    Images are NIfTI in 3-D and PNG in 2-D, those of several channels named `<case>_0000.<suffix>`
    and on. The label map holds, where the highest probability reaches `threshold`, that label's
    value (of regions the last one's): MONAI has no candidates; lesionseg's own rule is in its plan.
    """
    return {
        "imports": [
            "$import glob",
            "$import numpy as np",
            "$import torch",
            "$from monai.data import MetaTensor",
            "$from monai.data.utils import zoom_affine",
            "$from torch.export.passes import move_to_device_pass",
        ],
        "bundle_root": ".",
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "dataset_dir": "$@bundle_root + '/images'",
        "output_dir": "$@bundle_root + '/eval'",
        "threshold": 0.5,
        "images": f"$sorted(glob.glob(@dataset_dir + '/*{_first_channel(plan)}'))",
        "data": _data(plan),
        "network_def": "$move_to_device_pass("
        f"torch.export.load(@bundle_root + '/{PROGRAM}'), str(@device)).module()",
        **{f"normalise_{c}": _scheme(n) for c, n in enumerate(plan.normalisation)},
        "preprocessing": _compose(_preprocessing(plan)),
        "dataset": {"_target_": "Dataset", "data": "@data", "transform": "@preprocessing"},
        "inferer": {
            "_target_": "SlidingWindowInferer",
            "roi_size": list(plan.tile_shape),
            "sw_batch_size": 1,
            "overlap": 0.5,
            "mode": "gaussian",
        },
        "postprocessing": _compose(_postprocessing(plan)),
        "slide": "$lambda tensor: @inferer(tensor[None].to(@device), @network_def)[0].cpu()",
        "predict": "$torch.inference_mode()(lambda item: @postprocessing({**item, 'pred': "
        "MetaTensor(@slide(item['image'].as_tensor()))}))",
        "run": ["$[@predict(item) for item in @dataset]"],
    }


def metadata(plan: Plan, digest: str) -> dict[str, Any]:
    """MONAI's `metadata.json`; `digest` tells which of our bundles it was made from."""
    return {
        "schema": _SCHEMA,
        "version": __version__,
        "changelog": {__version__: f"exported from the lesionseg bundle {digest}"},
        "monai_version": version("monai"),
        "pytorch_version": version("torch").partition("+")[0],
        "numpy_version": version("numpy"),
        "required_packages_version": {"nibabel": version("nibabel"), "pillow": version("pillow")},
        "name": "lesionseg",
        "task": f"Segmentation of {', '.join(plan.label_names)}",
        "description": "For research only; no medical device. See docs/README.md.",
        "authors": "see docs/README.md",
        "copyright": "see docs/README.md",
        "network_data_format": {
            "inputs": {
                "image": _format(plan, plan.channel_names)
                | {"type": "image", "format": "magnitude", "modality": _MODALITIES[plan.modality]}
            },
            "outputs": {
                "pred": _format(plan, plan.label_names)
                | {"type": "probabilities", "format": "segmentation", "value_range": [0, 1]}
            },
        },
    }


def _format(plan: Plan, names: Sequence[str]) -> dict[str, Any]:
    """What MONAI's metadata says of a tensor whose channels have these names."""
    return {
        "num_channels": len(names),
        "spatial_shape": list(plan.tile_shape),
        "dtype": "float32",
        "value_range": [],
        "is_patch_data": True,
        "channel_def": {str(c): name for c, name in enumerate(names)},
    }


def _first_channel(plan: Plan) -> str:
    suffix = ".png" if plan.dims == 2 else ".nii.gz"
    return suffix if len(plan.channel_names) == 1 else f"_0000{suffix}"


def _data(plan: Plan) -> str:
    n, first = len(plan.channel_names), _first_channel(plan)
    if n == 1:
        return "$[{'image': f} for f in @images]"
    rest = first.removeprefix("_0000")
    return (
        f"$[{{'image': [f[:-{len(first)}] + f'_{{c:04d}}{rest}' for c in range({n})]}} "
        "for f in @images]"
    )


def _preprocessing(plan: Plan) -> list[dict[str, Any]]:
    channels = ", ".join(f"@normalise_{c}(t[{c}])" for c in range(len(plan.channel_names)))
    normalise = {
        "_target_": "Lambdad",
        "keys": "image",
        "func": f"$lambda x: MetaTensor((lambda t: torch.stack([{channels}]))(x.as_tensor()))"
        ".copy_meta_from(x)",
    }
    reader = "PILReader" if plan.dims == 2 else "NibabelReader"
    read: list[dict[str, Any]] = [
        {"_target_": "LoadImaged", "keys": "image", "image_only": True, "reader": reader},
        {"_target_": "EnsureChannelFirstd", "keys": "image"},
        {"_target_": "EnsureTyped", "keys": "image", "dtype": "$torch.float32"},
    ]
    return [*read, *_to_plan_grid(plan), normalise, *map(dict, plan.prepare_extra)]


def _to_plan_grid(plan: Plan) -> list[dict[str, Any]]:
    """MONAI reads axes as (x, y, z), lesionseg as (z, y, x); a PNG has no pixel size to change."""
    if plan.dims == 2:
        return [{"_target_": "Transposed", "keys": "image", "indices": [0, 2, 1]}]
    return [
        {"_target_": "Orientationd", "keys": "image", "axcodes": "SAR", "labels": _RAS},
        {"_target_": "CopyItemsd", "keys": "image", "names": "grid"},
        {"_target_": "Lambdad", "keys": "grid", "func": _GRID.format(spacing=[*plan.spacing_mm])},
        {
            "_target_": "ResampleToMatchd",
            "keys": "image",
            "key_dst": "grid",
            "mode": "bilinear",
            "padding_mode": "border",
            "dtype": "$torch.float32",
        },
    ]


def _postprocessing(plan: Plan) -> list[dict[str, Any]]:
    values = list(plan.label_values)
    dtype = "np.uint8" if max(values) < 256 else "np.uint16"
    label_map = (  # the label of the highest probability, where it reaches the threshold
        "$lambda p: (p.amax(0, keepdim=True) >= @threshold) * "
        f"torch.tensor({values})[p.argmax(0, keepdim=True)]"
    )
    if plan.regions:  # they overlap: the last that reaches the threshold is painted over the others
        label_map = (
            f"$lambda p: torch.tensor({[0, *values]})[((p >= @threshold) * torch.arange(1, "
            "len(p) + 1).reshape(-1, *[1] * (p.ndim - 1))).amax(0, keepdim=True)]"
        )
    return [
        {
            "_target_": "Invertd",
            "keys": "pred",
            "transform": "@preprocessing",
            "orig_keys": "image",
            "nearest_interp": False,
        },
        _saved("pred", "prob", ".nii.gz", "$np.float32"),
        {"_target_": "Lambdad", "keys": "pred", "func": label_map, "overwrite": "mask"},
        _saved("mask", "mask", ".png" if plan.dims == 2 else ".nii.gz", f"${dtype}"),
    ]


def _saved(key: str, postfix: str, suffix: str, dtype: str) -> dict[str, Any]:
    return {
        "_target_": "SaveImaged",
        "keys": key,
        "output_dir": "@output_dir",
        "output_postfix": postfix,
        "output_ext": suffix,
        "output_dtype": dtype,
        "separate_folder": False,
        "resample": False,
        "print_log": False,
    }


def _compose(transforms: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {"_target_": "Compose", "transforms": list(transforms)}


def _scheme(scheme: Normalisation) -> str:
    """One channel's normalisation as an expression on a tensor `[*spatial]` (`data.onto_grid`)."""
    if scheme.scheme == "dataset":
        return f"$lambda v: ({_clipped('v', scheme)} - {scheme.mean!r}) / {scheme.std!r}"
    standard = (
        "(lambda c, m, s: (c - m) / (s if s > 1e-6 * abs(m) else 1.0))"
        "({c}, *(lambda i: (float(i.mean()), float(i.std(correction=0))) "
        "if i.numel() else (0.0, 0.0))({inside}.double()))"
    )
    if scheme.scheme == "zscore":
        clipped = _clipped("v", scheme)
        text = standard.replace("{c}", clipped).replace("{inside}", f"{clipped}[v != 0]")
        return f"$lambda v: {text}"
    text = standard.replace("{c}", "c").replace("{inside}", "c")
    limits = "np.percentile(v.flatten()[:: -(-v.numel() // (1 << 22))].numpy(), (0.5, 99.5))"
    return f"$lambda v: (lambda c: {text})(v.clamp(*map(float, {limits})))"


def _clipped(name: str, scheme: Normalisation) -> str:
    if scheme.lower is None and scheme.upper is None:
        return name
    return f"{name}.clamp({scheme.lower!r}, {scheme.upper!r})"

"""A MONAI Bundle as one of ours: its network, weights and pre-processing, read and not run.

FOLDER/configs/inference.json (or .yaml), configs/metadata.json and models/model.pt become a
`Bundle` whose plan says the same. What has no equal here is refused by name; expressions (`$…`)
are read only where they are plain values.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from lesionseg.errors import BundleError, LesionsegError
from lesionseg.inference.bundles.monai_config import MonaiConfig, read_object
from lesionseg.models.foreign_network import TARGET, as_levels, load
from lesionseg.plan.plan import Activation, Architecture, Modality, Normalisation, Plan

_Steps = tuple[tuple[str, Mapping[str, Any]], ...]  # transforms by name, and their settings
METADATA, WEIGHTS = "configs/metadata.json", "models/model.pt"
# the first that is there
CONFIGS = tuple(f"configs/inference.{suffix}" for suffix in ("json", "yaml", "yml"))
_NETS = "monai.networks.nets."
_MODALITIES: Mapping[str, Modality] = {"CT": "ct", "MR": "mri", "MRI": "mri"}
# they change no voxel that a network of ours would see otherwise
_HARMLESS = ("LoadImaged", "EnsureChannelFirstd", "EnsureTyped", "CropForegroundd")
_GRID = ("Orientationd", "Spacingd")
# done by MONAI itself at prediction, in their order; the second line counts all voxels of an image
_INTENSITY = ("ScaleIntensityRanged", "ThresholdIntensityd", "ShiftIntensityd")
_OF_IMAGE = ("NormalizeIntensityd", "ScaleIntensityd", "ScaleIntensityRangePercentilesd")
# which of our axes (2 is z) runs along, or against, each direction of RAS
_DIRECTIONS = {"S": 2, "I": 2, "A": 3, "P": 3, "R": 4, "L": 4}
_REVERSED = "ILP"


class Reoriented(nn.Module):
    """A network of tiles on axes such as RAS as one of `[B, C, z, y, x]` with a list of logits."""

    def __init__(self, network: nn.Module, axcodes: str = "RAS") -> None:
        super().__init__()
        self.network = network
        order = [_DIRECTIONS[code] for code in axcodes]
        self.flips = [_DIRECTIONS[code] for code in axcodes if code in _REVERSED]
        self.order = (0, 1, *order)
        self.back = (0, 1, *(2 + order.index(axis) for axis in (2, 3, 4)))

    def forward(self, image: Tensor) -> list[Tensor]:
        """Logits, finest first; in eval mode the finest alone."""
        levels = as_levels(self.network(image.flip(self.flips).permute(self.order)), image.ndim)
        wanted = levels[: None if self.training else 1]
        return [level.permute(self.back).flip(self.flips) for level in wanted]


def is_monai_bundle(folder: Path) -> bool:
    """Whether a folder is laid out as MONAI's bundles are."""
    return bool(_configs(folder)) and (folder / METADATA).is_file()


def bundle_files(folder: Path) -> tuple[Path, ...]:
    """The files that a bundle is read from."""
    return _configs(folder)[0], folder / METADATA, folder / WEIGHTS


def _configs(folder: Path) -> list[Path]:
    return [folder / name for name in CONFIGS if (folder / name).is_file()]


def read_monai_bundle(folder: Path, *, trust: bool) -> tuple[nn.Module, Plan]:
    """The network in eval mode, with its weights, and a plan of the same pre-processing.

    Without `trust` the network is one of `monai.networks.nets`, made without anything pretrained.
    Weights are read as tensors alone. Raises `BundleError` naming what cannot be read here.
    """
    path, metadata, weights = bundle_files(folder)
    config = MonaiConfig.read(path)
    spec = config.value("network_def")
    if not isinstance(spec, Mapping) or TARGET not in spec:
        raise config.fault("network_def", spec, f"a dictionary with {TARGET}")
    plan = _plan(config, read_object(metadata))
    network = _network(dict(spec), path, trust)
    try:
        network.load_state_dict(_weights(weights))
    except RuntimeError as error:
        raise BundleError(
            "The weights do not fit the network.",
            where=weights,
            seen=str(error).splitlines()[0],
        ) from error
    return Reoriented(network, _axcodes(config)).eval(), plan


def _network(spec: dict[str, Any], config: Path, trust: bool) -> nn.Module:
    name = str(spec.pop(TARGET))
    target = name if "." in name else f"{_NETS}{name}"
    known = target.startswith(_NETS) and "." not in target.removeprefix(_NETS)
    pretrained = any("pretrained" in key and value for key, value in spec.items())
    if not trust and (not known or pretrained):
        raise BundleError(
            f"The bundle's network is code or weights from elsewhere: {target} would be imported.",
            where=config,
            seen="pretrained weights" if pretrained else target,
            remedy="add trust=true, if you trust whoever made the bundle.",
        )
    arguments = {key: value for key, value in spec.items() if not key.startswith("_")}
    try:
        made = load(target)(**arguments)
    except LesionsegError as error:
        raise BundleError(error.what, where=config, seen=error.seen) from error
    except Exception as error:  # of the constructor's own choice
        raise BundleError(
            "The bundle's network cannot be built.", where=config, seen=str(error)
        ) from error
    if not isinstance(made, nn.Module):
        raise BundleError("This is no torch.nn.Module.", where=config, seen=target)
    return made


def _weights(path: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, UnpicklingError, EOFError) as error:
        raise BundleError(
            "The weights cannot be read as tensors alone.",
            where=path,
            seen=str(error).splitlines()[0],
            expected="a state_dict saved by torch.save",
        ) from error
    for key in ("model", "state_dict", "network"):
        state = state[key] if isinstance(state.get(key), Mapping) else state
    return dict(state)


def _plan(config: MonaiConfig, metadata: Mapping[str, Any]) -> Plan:
    try:
        formats = metadata["network_data_format"]
        image, output = formats["inputs"]["image"], formats["outputs"]["pred"]
        channels = _names(image, int(image["num_channels"]), "image")
        outputs = _names(output, int(output["num_channels"]), "label")
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(
            "The MONAI bundle does not say its channels.",
            where=config.path.parents[1] / METADATA,
            seen=repr(error),
            expected="network_data_format with inputs.image and outputs.pred",
        ) from error
    activation = _activation(config)
    labels = outputs[1:] if activation == "softmax" else outputs
    tile = config.value("inferer#roi_size")
    if not isinstance(tile, list | tuple) or len(tile) != 3:
        raise config.fault("inferer#roi_size", tile, "a roi_size of three numbers")
    steps = _preprocessing(config)
    scale, extra = _intensities(config, steps)
    ones = (1, 1, 1)
    return Plan(
        dims=3,
        modality=_MODALITIES.get(str(image.get("modality", "")).upper(), "mri"),
        channel_names=channels,
        label_values=tuple(range(1, len(labels) + 1)),
        label_names=labels,
        spacing_mm=_spacing(config, steps),
        normalisation=(scale,) * len(channels),
        prepare_extra=extra,
        tile_shape=tuple(int(n) for n in _on_our_axes(config, tile)),
        batch_size=1,
        architecture=Architecture("monai_bundle", (1,), (ones,), ((3, 3, 3),)),
        lesion_fraction=0.01,
        activation=activation,
        reasons={"architecture": f"read from the MONAI bundle {config.path.parents[1].name}"},
    )


def _names(part: Mapping[str, Any], n: int, word: str) -> tuple[str, ...]:
    titles = part.get("channel_def") or {}
    return tuple(str(titles.get(str(k), f"{word}_{k}")) for k in range(n))


def _activation(config: MonaiConfig) -> Activation:
    for name, entry in config.transforms("postprocessing"):
        if name == "Activationsd" and entry.get("sigmoid") is True:
            return "sigmoid"
        if name == "Activationsd" and entry.get("softmax") is True:
            return "softmax"
        if name == "AsDiscreted" and entry.get("argmax") is True:  # of logits: channels exclude
            return "softmax"
    raise config.fault("postprocessing", "no activation", "Activationsd with sigmoid or softmax")


def _preprocessing(config: MonaiConfig) -> _Steps:
    """Every transform that is not harmless; unknown ones are refused by name."""
    steps = tuple(config.transforms("preprocessing"))
    known = (*_HARMLESS, *_GRID, *_INTENSITY, *_OF_IMAGE)
    strange = [name for name, _ in steps if name not in known]
    if strange:
        raise config.fault("preprocessing", ", ".join(strange), ", ".join(known))
    names = [name for name, _ in steps]
    cropped = names[names.index("CropForegroundd") :] if "CropForegroundd" in names else ()
    for name in _OF_IMAGE:
        if name in cropped:
            raise config.fault("preprocessing", f"{name} after CropForegroundd", f"{name} before")
    return tuple(step for step in steps if step[0] not in _HARMLESS)


def _axcodes(config: MonaiConfig) -> str:
    """The axes that the network sees, such as RAS."""
    chain = dict(config.transforms("preprocessing"))
    axes = config.plain(chain.get("Orientationd", {}).get("axcodes"), "preprocessing")
    if not isinstance(axes, str) or sorted(_DIRECTIONS.get(code, 0) for code in axes) != [2, 3, 4]:
        raise config.fault("preprocessing", f"axcodes {axes}", "Orientationd, axcodes such as RAS")
    return axes


def _on_our_axes(config: MonaiConfig, values: Sequence[Any]) -> list[Any]:
    """One value per axis of the network as (z, y, x)."""
    by_axis = {_DIRECTIONS[code]: v for code, v in zip(_axcodes(config), values, strict=True)}
    return [by_axis[axis] for axis in (2, 3, 4)]


def _spacing(config: MonaiConfig, steps: _Steps) -> tuple[float, ...]:
    names, given = [name for name, _ in steps], dict(steps).get("Spacingd", {})
    pixdim = config.plain(given.get("pixdim"), "preprocessing")
    if not isinstance(pixdim, list | tuple) or len(pixdim) != 3:
        raise config.fault("preprocessing", f"pixdim {pixdim}", "Spacingd with three numbers")
    if config.plain(given.get("mode", "bilinear"), "preprocessing") not in ("bilinear", 1):
        raise config.fault("preprocessing", f"mode {given['mode']}", "Spacingd, mode bilinear")
    own_axes = names.index("Spacingd") < names.index("Orientationd")
    if own_axes and len(set(pixdim)) > 1:
        raise config.fault("preprocessing", "Spacingd on a file's own axes", "Orientationd first")
    return tuple(float(mm) for mm in _on_our_axes(config, pixdim))


def _intensities(
    config: MonaiConfig, steps: _Steps
) -> tuple[Normalisation, tuple[Mapping[str, Any], ...]]:
    """Ours where it says the same, else none and MONAI's transforms in their order."""
    chain = [step for step in steps if step[0] not in _GRID]
    if not chain:
        raise config.fault("preprocessing", "no scaling", ", ".join(_INTENSITY + _OF_IMAGE))
    if [name for name, _ in chain] == ["ScaleIntensityRanged"]:
        return _scale(config.plain(chain[0][1], "preprocessing")), ()
    return Normalisation("dataset"), tuple(_spec(config, *step) for step in chain)


def _spec(config: MonaiConfig, name: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    """A transform as `prepare.extra` names it: MONAI's, whatever its `_target_` said before."""
    given: dict[str, Any] = config.plain(entry, "preprocessing")
    if given.get("keys") not in ("image", ["image"]):
        raise config.fault("preprocessing", f"{name} of {given.get('keys')}", "the key image")
    plain = {key: value for key, value in given.items() if not key.startswith("_")}
    return {TARGET: f"monai.transforms.{name}", **plain}


def _scale(given: Mapping[str, Any]) -> Normalisation:
    """(v − mean) / std of ScaleIntensityRanged."""
    low, high = float(given["a_min"]), float(given["a_max"])
    first, last = float(given.get("b_min") or 0), float(given.get("b_max", 1))
    std = (high - low) / (last - first)
    lower, upper = (low, high) if given.get("clip") else (None, None)
    return Normalisation("dataset", lower, upper, mean=low - first * std, std=std)

"""Exported files: ONNX and torch programs, MONAI's inference.json, metadata.json and README.

The first two take prepared tiles `[B, C, *tile]` float32 and return the outputs of
`ExportedNetwork`. The number of tiles is arbitrary, but their shape is the plan's: instance norm
uses the statistics of the whole tile, so the result depends on its shape.

`monai.bundle` runs MONAI's layout without lesionseg. Its configuration only names classes of
MONAI, torch and numpy. Normalisation is written as expressions, because MONAI has no transform that
computes mean and standard deviation from the non-zero voxels and applies them to all voxels.

DIR/
├── configs/metadata.json    inputs and outputs
├── configs/inference.json   read, orient, resample, normalise, infer, restore, save
├── models/model.pt2         network and weights, as torch's exported program
└── docs/README.md           the model card, and the differences from lesionseg
"""

import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.special import logit
from torch import Tensor, nn
from torch.export import ExportedProgram

from lesionseg.config import InferenceConfig
from lesionseg.core import Calibration, describe_sides
from lesionseg.data import LOCAL_STD_FLOOR, SAME_MM, window_of
from lesionseg.errors import ConfigError, OutputError, pip_install
from lesionseg.inference import (
    MAX_ANCHORS,
    SAME_LESION_IN_A_TILE,
    Bundle,
    box_scores,
    label_probabilities,
)
from lesionseg.models import n_logits
from lesionseg.ops import decode_boxes, grid_anchors
from lesionseg.plan import Normalisation, Plan
from lesionseg.version import __version__

OPSET = 18
INPUT = "image"
PROBABILITIES_OUTPUT = "probabilities"
SCORES = "scores"
BOXES_OUTPUT = "boxes"
# the last step on voxels, in the note of an ONNX file
_CALIBRATE = (
    "calibrate unless selection.voxel_calibration is null: p > 0 becomes sigmoid(intercept + slope "
    "* log(q / (1 - q))), where q is p clipped to 1e-6 to 1 - 1e-6"
)
LOGITS = "logits"  # the output of nnU-Net models, which average logits
# largest accepted difference of probabilities between two programs with the same weights
SAME_PROBABILITY = 1e-3
SAME_LOG_ODDS = 1e-2

Runner = Callable[[NDArray[np.float32]], Sequence[NDArray[np.float32]]]


def output_names(plan: Plan) -> tuple[str, ...]:
    """Return the names of an exported network's outputs, in the order of `ExportedNetwork`."""
    if plan.nnunet is not None:
        return (LOGITS,)
    if plan.anchors is None:
        return (PROBABILITIES_OUTPUT,)
    return (
        (SCORES, BOXES_OUTPUT, PROBABILITIES_OUTPUT) if plan.has_voxels else (SCORES, BOXES_OUTPUT)
    )


def network_tile(plan: Plan) -> tuple[int, ...]:
    """Return the spatial shape of the tiles that the network accepts.

    For an nnU-Net model, it is nnU-Net's patch. A 2-D nnU-Net model has two axes, even if its plan
    has three.
    """
    return plan.tile_shape if plan.nnunet is None else plan.nnunet.patch


class ExportedNetwork(nn.Module):
    """A module whose outputs can be used without plan and anchors.

    The effect of the focal loss is undone. Probabilities are not calibrated, because the
    calibration follows the average over tiles. Segmentation networks return the mean of their
    probabilities `[B, K, *tile]`. nnU-Net models return the mean of their logits; those of the
    background come first unless the labels are regions. Detectors return scores `[B, n, K]`, boxes
    `[B, n, 2·dims]` in voxels of the tile and, for a Retina U-Net, probabilities.

    It contains the networks of the bundle themselves, and sets them to eval mode.
    """

    def __init__(self, bundle: Bundle) -> None:
        super().__init__()
        plan = bundle.plan
        self.networks = nn.ModuleList(network.eval() for network in bundle.networks)
        self._plan = plan
        self.anchors: Tensor  # only of detectors; a buffer, which the exported file contains
        if plan.anchors is not None:
            self.register_buffer("anchors", grid_anchors(plan.anchor_levels))

    def forward(self, image: Float[Tensor, "b c *tile"]) -> Tensor | tuple[Tensor, ...]:
        """Return probabilities, an nnU-Net model's logits, or the tuple of a detector's outputs.

        `output_names` gives the order. Probabilities and logits are means over the networks.
        """
        plan = self._plan
        outputs = [network(image) for network in self.networks]
        # a segmentation network returns a list of logits, the finest first
        if plan.nnunet is not None:
            return torch.stack([levels[0] for levels in outputs]).mean(0)
        if plan.anchors is None:
            of_networks = torch.stack([label_probabilities(levels[0], plan) for levels in outputs])
            return of_networks.mean(0)
        (output,) = outputs  # `trace` rejects several detectors
        boxes = decode_boxes(output.box_deltas, self.anchors)
        detections = (box_scores(output.class_logits, plan), boxes)
        if not output.segmentation:
            return detections
        return (*detections, label_probabilities(output.segmentation[0], plan))


def trace(bundle: Bundle) -> ExportedProgram:
    """Trace the networks of a bundle as one program of torch, which both export formats contain.

    The program accepts any number of tiles. The networks of the bundle are set to float32 and eval
    mode in place.

    Raises:
        ConfigError: If torch cannot export the network, or if the bundle has several detectors.
    """
    if bundle.plan.anchors is not None and len(bundle.networks) > 1:
        raise ConfigError(
            f"bundle: boxes of {len(bundle.networks)} detectors cannot be averaged. Export each "
            "bundle separately."
        )
    network = ExportedNetwork(bundle).float()
    # two tiles, because torch would treat a batch size of 1 as a constant
    example = torch.zeros((2, len(bundle.plan.channel_names), *network_tile(bundle.plan)))
    # axis 0 of the image may have any length
    dynamic_axes = {INPUT: {0: torch.export.Dim("batch")}}
    try:
        with torch.no_grad(), _hide_warnings():
            return torch.export.export(network, (example,), dynamic_shapes=dynamic_axes)
    except (RuntimeError, ValueError, TypeError) as error:
        raise ConfigError(
            f"{bundle.plan.architecture.name}: the network cannot be exported "
            f"({str(error).splitlines()[0]}). Remove operations that depend on the voxels' values."
        ) from error


def write_program(path: Path, program: ExportedProgram) -> Runner:
    """Write a program in torch's format for exported programs (`.pt2`), and read it again.

    Args:
        path: The file to write.
        program: The program.

    Returns:
        A function that runs the written program on tiles, for `largest_difference`.
    """
    with _hide_warnings():
        torch.export.save(program, path)
        module = torch.export.load(path).module()

    def run(tiles: NDArray[np.float32]) -> Sequence[NDArray[np.float32]]:
        """Run the written program on tiles `[B, C, *tile]`, and return its outputs as arrays."""
        with torch.inference_mode():
            return _to_arrays(module(torch.from_numpy(tiles)))

    return run


def write_onnx(
    path: Path,
    program: ExportedProgram,
    opset: int = OPSET,
    outputs: Sequence[str] = (PROBABILITIES_OUTPUT,),
) -> Runner:
    """Write a program as ONNX.

    Args:
        path: The file to write.
        program: The program.
        opset: Version of ONNX's operators.
        outputs: Names of the program's outputs.

    Returns:
        A function that runs the written file on tiles with onnxruntime, for `largest_difference`.

    Raises:
        ConfigError: If the packages of the extra `export` are missing, or if they cannot write the
            opset.
    """
    try:
        import onnx
        import onnxruntime  # type: ignore[import-untyped]
        import onnxscript  # noqa: F401  torch writes ONNX through it
    except ImportError as error:
        raise ConfigError(f"format=onnx: {error}. {pip_install('export')}") from error
    try:
        with _hide_warnings():
            onnx_program: Any = torch.onnx.export(
                program,
                dynamo=True,  # the exporter for programs of torch.export
                opset_version=opset,
                input_names=[INPUT],
                output_names=list(outputs),
                dynamic_shapes={INPUT: {0: "batch"}},
                verbose=False,
            )
    except (RuntimeError, ValueError) as error:
        advice = f"opset={OPSET}" if opset != OPSET else "other versions of torch and onnxscript"
        raise ConfigError(
            f"opset={opset}: ONNX cannot be written ({str(error).splitlines()[0]}). Use {advice}."
        ) from error
    onnx_program.save(path, external_data=False)  # graph and weights in one file
    onnx.checker.check_model(str(path))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(tiles: NDArray[np.float32]) -> Sequence[NDArray[np.float32]]:
        """Run the written ONNX file on tiles `[B, C, *tile]`, and return its outputs as arrays."""
        return [np.asarray(output) for output in session.run(list(outputs), {INPUT: tiles})]

    return run


def onnx_note(bundle: Bundle, digest: str, opset: int, difference: float) -> dict[str, Any]:
    """Describe an ONNX file for other programs: input, output, and lesionseg's steps around it.

    The result is the content of `model.json`. It contains plan and selection, and the default
    overlap of tiles. Another program that must find the same candidates also needs parts of the
    source code: the mask of the body (`body`), the search for candidates (`candidates`, with
    `TOP_VOXELS` and `PROMINENCE`), the lower scores of boxes that an edge of a tile cuts, and the
    fusion of voxels and boxes (both in `box_candidates`).

    Args:
        bundle: The exported bundle.
        digest: Identifies the bundle.
        opset: The opset of the ONNX file.
        difference: The result of `largest_difference`.

    Returns:
        A dict that can be written as JSON.
    """
    plan = bundle.plan
    # entries of all models
    note: dict[str, Any] = {
        "schema_version": 1,
        "lesionseg_version": __version__,
        "bundle": digest,
        "opset": opset,
        "largest_difference": difference,
        "input": {
            "name": INPUT,
            "shape": ["batch", len(plan.channel_names), *network_tile(plan)],
            "dtype": "float32",
            "axes": ["S", "A", "R"] if plan.dims == 3 else ["row", "column"],
        },
        "tiles": {
            "overlap": InferenceConfig.of().overlap,
            "overlap_is": "the default of predict, which inference.overlap changes",
            "outside": 0.0,
            "weight": "Gaussian, standard deviation an eighth of the tile along each axis",
        },
        "plan": json.loads(plan.to_json()),
        "selection": json.loads(bundle.selection.to_json()),
    }
    # the output for voxels, and how tiles are averaged
    if plan.nnunet is not None:
        shape = ["batch", n_logits(plan), *plan.nnunet.patch]
        note["output"] = {"name": LOGITS, "shape": shape, "dtype": "float32"}
        if plan.dims == 3:
            note["input"]["axes"] = "the last of the file's axes after plan.nnunet.transpose"
        note["tiles"]["weight"] = (
            "Gaussian, standard deviation an eighth of the tile along each axis, centred at n // 2"
        )
        note["tiles"]["then"] = (
            "average logits over tiles, resize them to the cropped scan (plan.nnunet."
            f"logit_resampling), {plan.activation}, {_CALIBRATE}"
        )
    elif plan.has_voxels:
        shape = ["batch", len(plan.labels), *plan.tile_shape]
        note["output"] = {"name": PROBABILITIES_OUTPUT, "shape": shape, "dtype": "float32"}
        note["tiles"]["then"] = (
            "average probabilities over tiles, resample them linearly to the scan's grid, "
            f"{_CALIBRATE}"
        )
    if plan.dims == 3 and plan.nnunet is None:
        note["tiles"]["body"] = (
            "lesionseg detects nothing outside a mask of the body (lesionseg/inference/body.py), "
            "which this file does not describe"
        )
    if plan.anchors is not None:
        n = sum(level.n_anchors for level in plan.anchor_levels)
        note["boxes"] = {  # one per anchor; `box_candidates` describes their processing
            "scores": {"name": SCORES, "shape": ["batch", n, len(plan.labels.lesion_names)]},
            "boxes": {"name": BOXES_OUTPUT, "shape": ["batch", n, 2 * plan.dims]},
            "dtype": "float32",
            "box": "starts, then stops, half-open, in voxels of the tile",
            "lowest_score": plan.box_floor,
            "one_lesion_in_a_tile": {"iou": SAME_LESION_IN_A_TILE, "most_anchors": MAX_ANCHORS},
            "one_lesion_in_all_tiles": {"iou": plan.anchors.merge_iou, "by": "nms"},
        }
    return note


def largest_difference(bundle: Bundle, run: Runner) -> float:
    """Compare the outputs of an exported file and of the bundle's networks on a random tile.

    Logits are converted to probabilities before. Differences of boxes are divided by the longest
    side of the tile. Log-odds are compared, too, because probabilities near 0 always differ little:
    an export that never finds a lesion would otherwise seem equal on a tile without lesions.

    Args:
        bundle: The exported bundle.
        run: Runs the exported file (`write_onnx`, `write_program`).

    Returns:
        The largest difference of probabilities and boxes.

    Raises:
        OutputError: If the difference is above 1e-3, or the difference of log-odds above 1e-2, or
            if an output is NaN.
    """
    plan = bundle.plan
    shape = (1, len(plan.channel_names), *network_tile(plan))
    tiles = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    with torch.inference_mode():
        expected_outputs = _to_arrays(ExportedNetwork(bundle)(torch.from_numpy(tiles)))
    exported_outputs = run(tiles)
    if plan.nnunet is not None:
        expected_outputs = _convert_to_probabilities(expected_outputs, plan)
        exported_outputs = _convert_to_probabilities(exported_outputs, plan)
    differences = []
    log_odds = [0.0]  # differences of log-odds
    for name, exported, expected in zip(
        output_names(plan), exported_outputs, expected_outputs, strict=True
    ):
        scale = max(shape[2:]) if name == BOXES_OUTPUT else 1
        differences.append(np.abs(exported - expected).max() / scale)
        if name != BOXES_OUTPUT:
            log_odds.append(np.abs(_log_odds(exported) - _log_odds(expected)).max())
    difference = float(np.max(differences))
    log_odds_difference = float(np.max(log_odds))
    # both comparisons are False for NaN
    is_same = difference <= SAME_PROBABILITY and log_odds_difference <= SAME_LOG_ODDS
    if not is_same:
        raise OutputError(
            f"The exported network's outputs differ from the bundle's by {difference:.3g}, and "
            f"their log-odds by {log_odds_difference:.3g}. Try another opset, or other versions "
            "of torch and onnxruntime."
        )
    return difference


def _log_odds(probabilities: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the log-odds of probabilities, to compare two programs also near 0 and 1.

    Probabilities are clipped to 1e-4 to 1 − 1e-4, because float32 is too inexact beyond.
    """
    result: NDArray[np.float64] = logit(probabilities.astype(float).clip(1e-4, 1 - 1e-4))
    return result


def _convert_to_probabilities(
    logits: Sequence[NDArray[np.float32]], plan: Plan
) -> list[NDArray[np.float32]]:
    """Convert the logits of an nnU-Net model to probabilities, array by array."""
    return [label_probabilities(torch.from_numpy(array), plan).numpy() for array in logits]


def _to_arrays(outputs: Tensor | Sequence[Tensor]) -> list[NDArray[np.float32]]:
    """Convert the outputs of a network, a tensor or a sequence of tensors, to a list of arrays."""
    if isinstance(outputs, Tensor):
        return [outputs.numpy()]
    return [tensor.numpy() for tensor in outputs]


@contextmanager
def _hide_warnings() -> Iterator[None]:
    """Hide the warnings and the log of torch's exporter, because a user cannot act on them."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


# --- MONAI's layout ------------------------------------------------------------------------------

PROGRAM = "models/model.pt2"
INFERENCE_CONFIG = "configs/inference.json"
METADATA = "configs/metadata.json"
README = "docs/README.md"
_SCHEMA = (
    "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/"
    "meta_schema_20240725.json"
)
_MODALITIES = {"mri": "MR", "ct": "CT", "xray": "CR", "colour": "XC"}  # as in DICOM
# As `io.cases.nan_to_background`, for an image x of several channels c.
_WITHOUT_NAN = (
    "$lambda x: MetaTensor(torch.stack([torch.where(c.isnan(), c[~c.isnan()].min().clamp(max=0), c)"
    " for c in x.as_tensor()])).copy_meta_from(x)"
)
# Functions that give a picture of Pillow the channels of `io.cases.read_image`. Grey pictures of
# more than 8 bits (modes I and F) keep their values.
_COLOURS = "$lambda picture: picture.convert('RGB')"
_BRIGHTNESS = "$lambda picture: picture if picture.mode[0] in 'IF' else picture.convert('L')"
_RAS = [["L", "R"], ["P", "A"], ["I", "S"]]


# An empty image on the grid of `data.preprocess_image.plan_geometry`: the same extent and centre as
# the image x, with the plan's spacing. In the expression, a is the affine of the image, n its
# shape, p the new spacing, z the directions of the axes times the new spacing, and k the new shape.
_GRID = (
    "$lambda x: (lambda a, z, n, p: (lambda k: MetaTensor(torch.zeros((1, *k)), affine="
    "torch.as_tensor(np.block([[z, "
    "(a[:3].dot([*((n - 1) / 2), 1]) - z.dot((k - 1) / 2))[:, None]], "
    "[np.zeros((1, 3)), np.ones((1, 1))]]))))"
    "(np.maximum(np.rint(np.abs((z / p).T.dot(a[:3, :3])).dot(n) / p), 1).astype(int)))"
    "(np.asarray(x.affine, dtype=float), "
    "zoom_affine(np.asarray(x.affine, dtype=float), {spacing}, diagonal=False)[:3, :3], "
    "np.array(x.shape[1:]), np.array({spacing}))"
)
# The same for a picture, which states no pixel size. In the expression, p is the plan's spacing in
# pixels of the picture, n the picture's shape, and k the new shape.
_PIXEL_GRID = (
    "$lambda x: (lambda a, n, p: (lambda k: MetaTensor(torch.zeros((1, *k)), affine="
    "torch.as_tensor(a.dot(np.diag([*p, *np.ones(len(a) - 2)]) + np.pad("
    "((n - 1) / 2 - p * (k - 1) / 2)[:, None], ((0, len(a) - 2), (len(a) - 1, 0)))))))"
    "(np.maximum(np.rint(n / p), 1).astype(int)))"
    "(np.asarray(x.affine, dtype=float), np.array(x.shape[1:]), np.array({pixels}))"
)


def inference_config(plan: Plan, calibration: Calibration | None = None) -> dict[str, Any]:
    """Compose MONAI's `inference.json`, with which `monai.bundle` predicts a folder of images.

    For each image, MONAI writes a probability map and a label map. It writes no candidates, because
    MONAI has no rule for them.

    - Images are NIfTI (`.nii`, `.nii.gz`) in 3-D and PNG in 2-D. If there are several channels,
      the files are called `<case>_0000.<suffix>`, `<case>_0001.<suffix>` and so on. The three
      colours of one picture are in one file.
    - A voxel of the label map has the value of the label with the highest probability if the
      probability is at least `threshold`, otherwise 0. If the labels are regions, it has the value
      of the last region whose probability is at least `threshold`.

    Args:
        plan: Plan of the network.
        calibration: Calibration of the voxels (`Selection.voxel_calibration`), or None.

    Returns:
        A dict that can be written as JSON. In MONAI's configurations, a text that begins with "$"
        is a Python expression, and "@name" refers to another entry.
    """
    n_channels = len(plan.channel_names)
    suffix = ".png" if plan.dims == 2 else ".nii"
    ending = suffix  # of the first channel's file, whose path is f in the expression `files`
    files = "f"
    if n_channels > 1 and not _is_in_colour(plan):
        # f with the number of each channel in the place of 0000
        ending = f"_0000{suffix}"
        files = (
            f"[f'_{{c:04d}}{suffix}'.join(f.rsplit('{ending}', 1)) for c in range({n_channels})]"
        )
    compressed = "" if plan.dims == 2 else f" + glob.glob(@dataset_dir + '/*{ending}.gz')"
    return {
        "imports": [
            "$import glob",
            "$import numpy as np",
            "$import torch",
            "$from monai.data import MetaTensor",
            "$from monai.data.utils import zoom_affine",
            "$from scipy.ndimage import uniform_filter",
            "$from torch.export.passes import move_to_device_pass",
        ],
        "bundle_root": ".",
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "dataset_dir": "$@bundle_root + '/images'",
        "output_dir": "$@bundle_root + '/eval'",
        "threshold": 0.5,
        "images": f"$sorted(glob.glob(@dataset_dir + '/*{ending}'){compressed})",
        "data": f"$[{{'image': {files}}} for f in @images]",
        "network_def": "$move_to_device_pass("
        f"torch.export.load(@bundle_root + '/{PROGRAM}'), str(@device)).module()",
        **{
            f"normalise_{c}": _normalisation_text(scheme)
            for c, scheme in enumerate(plan.normalisation)
        },
        "preprocessing": _config_entry("Compose", transforms=_preprocessing(plan)),
        "dataset": _config_entry("Dataset", data="@data", transform="@preprocessing"),
        "inferer": _config_entry(
            "SlidingWindowInferer",
            roi_size=list(plan.tile_shape),
            sw_batch_size=1,
            overlap=0.5,  # the default of lesionseg
            mode="gaussian",
        ),
        "postprocessing": _config_entry("Compose", transforms=_postprocessing(plan, calibration)),
        "slide": "$lambda tensor: @inferer(tensor[None].to(@device), @network_def)[0].cpu()",
        "predict": "$torch.inference_mode()(lambda item: @postprocessing({**item, 'pred': "
        "MetaTensor(@slide(item['image'].as_tensor()))}))",
        "run": ["$[@predict(item) for item in @dataset]"],
    }


def monai_readme(plan: Plan, card: str) -> str:
    """Compose `docs/README.md` of MONAI's layout: the model card, and differences from lesionseg.

    Args:
        plan: Plan of the network.
        card: Text of the bundle's model card.
    """
    lines = [
        "## Differences from lesionseg",
        "",
        f"- Scans are resampled to {describe_sides(plan.spacing_mm)} mm by linear interpolation. "
        "lesionseg takes the mean over a voxel, so probabilities differ for scans that are finer "
        "than this.",
        "- Candidates and operating points are missing. The label map contains the voxels whose "
        f"probability reaches `threshold` in `{INFERENCE_CONFIG}`.",
        "- Voxels within two voxels of the border of a resampled scan differ, because MONAI and "
        "lesionseg continue the scan in different ways.",
        "- lesionseg finds nothing in a scan that has the same value everywhere. Here, it may.",
    ]
    if plan.dims == 3:
        lines += [
            "- lesionseg detects nothing in the air around the body. Here, it may.",
            "- The tiles of lesionseg begin at the body and those of MONAI at the corner of the "
            "scan, so probabilities differ, most of all in scans that are little larger than a "
            "tile.",
        ]
    return "\n".join([*card.rstrip().splitlines(), "", *lines, ""])


def _is_in_colour(plan: Plan) -> bool:
    """Return True if the channels are the three colours of one picture, stored in one file."""
    return plan.modality == "colour" and len(plan.channel_names) == 3


def metadata(plan: Plan, digest: str) -> dict[str, Any]:
    """Compose MONAI's `metadata.json`, whose keys MONAI's schema (`_SCHEMA`) defines.

    Args:
        plan: Plan of the network.
        digest: Identifies the bundle that was exported.
    """
    return {
        "schema": _SCHEMA,
        "version": __version__,
        "changelog": {__version__: f"exported from the lesionseg bundle {digest}"},
        "monai_version": version("monai"),
        "pytorch_version": version("torch").partition("+")[0],
        "numpy_version": version("numpy"),
        "required_packages_version": {
            "nibabel": version("nibabel"),
            "pillow": version("pillow"),
            "scipy": version("scipy"),
        },
        "name": "lesionseg",
        "task": f"Segmentation of {', '.join(plan.labels.names)}",
        "description": "For research only, not a medical device. See docs/README.md.",
        "intended_use": f"Research on {', '.join(plan.labels.names)} in "
        f"{_MODALITIES[plan.modality]} images. Not for diagnosis or treatment.",
        "authors": f"whoever trained the lesionseg bundle {digest}",
        "copyright": f"whoever trained the lesionseg bundle {digest}",
        "license": "unknown",  # that of the weights, which whoever trained them states
        "network_data_format": {
            "inputs": {
                "image": _data_format(plan, plan.channel_names)
                | {"type": "image", "format": "magnitude", "modality": _MODALITIES[plan.modality]}
                | {"value_range": _value_range(plan.normalisation)}
            },
            "outputs": {
                "pred": _data_format(plan, plan.labels.names)
                | {"type": "probabilities", "format": "segmentation", "value_range": [0, 1]}
            },
        },
    }


def _data_format(plan: Plan, names: Sequence[str]) -> dict[str, Any]:
    """Describe an input or output of the network, in the form that MONAI's `metadata.json` needs.

    Args:
        plan: Plan of the network.
        names: Names of the channels of the input or output.
    """
    return {
        "num_channels": len(names),
        "spatial_shape": list(plan.tile_shape),
        "dtype": "float32",
        "is_patch_data": True,
        "channel_def": {str(c): name for c, name in enumerate(names)},
    }


def _value_range(channels: Sequence[Normalisation]) -> list[float]:
    """Return the lowest and the highest intensity after normalisation, for MONAI's metadata.

    The two intensities are known only if each channel is normalised by statistics of the dataset
    and clipped at both ends. Otherwise, for example if a channel is scaled by the statistics of
    each scan, the list is empty.
    """
    ends = [
        (limit - channel.mean) / channel.std
        for channel in channels
        for limit in (channel.lower, channel.upper)
        if channel.scheme == "dataset" and limit is not None
    ]
    # both ends of all channels must be known
    return [min(ends), max(ends)] if len(ends) == 2 * len(channels) else []


def _config_entry(target: str, **arguments: Any) -> dict[str, Any]:
    """Return the entry from which MONAI constructs an object: name of its class, and arguments."""
    return {"_target_": target, **arguments}


def _preprocessing(plan: Plan) -> list[dict[str, Any]]:
    """Compose the MONAI transforms before the network: read, orient, resample, normalise.

    MONAI reads axes in the order (x, y, z), lesionseg in the order (z, y, x). A PNG states no pixel
    size, so the pixel size that the plan assumes is used.
    """
    # read the file
    reader: dict[str, Any] = {"reader": "NibabelReader"}
    if plan.dims == 2:
        converter = _COLOURS if _is_in_colour(plan) else _BRIGHTNESS
        reader = {"reader": "PILReader", "converter": converter}
    float32 = "$torch.float32"
    steps = [
        _config_entry("LoadImaged", keys="image", image_only=True, **reader),
        _config_entry("EnsureChannelFirstd", keys="image"),
        _config_entry("EnsureTyped", keys="image", dtype=float32),
    ]
    if plan.nan_background:
        steps.append(_config_entry("Lambdad", keys="image", func=_WITHOUT_NAN))
    # orient the axes, and resample to the plan's grid
    grid: str | None = _GRID.format(spacing=list(plan.spacing_mm))
    if plan.dims == 2:
        # PILReader gives [C, columns, rows]
        steps.append(_config_entry("Transposed", keys="image", indices=[0, 2, 1]))
        pixels = _spacing_in_pixels(plan)
        # a picture of the plan's pixel size is not resampled
        grid = None if set(pixels) == {1.0} else _PIXEL_GRID.format(pixels=pixels)
    else:
        # the axes z, y, x: to superior, anterior and right
        steps.append(_config_entry("Orientationd", keys="image", axcodes="SAR", labels=_RAS))
    if grid is not None:
        steps += [
            _config_entry("CopyItemsd", keys="image", names="grid"),
            _config_entry("Lambdad", keys="grid", func=grid),
            _config_entry(
                "ResampleToMatchd",
                keys="image",
                key_dst="grid",
                mode="bilinear",
                padding_mode="border",
                dtype=float32,
            ),
        ]
    # normalise each channel by the entry `normalise_<c>` of the configuration
    channels = ", ".join(f"@normalise_{c}(t[{c}])" for c in range(len(plan.channel_names)))
    stacked = f"(lambda t: torch.stack([{channels}]))(x.as_tensor())"
    normalise_all = f"$lambda x: MetaTensor({stacked}).copy_meta_from(x)"
    return [
        *steps,
        _config_entry("Lambdad", keys="image", func=normalise_all),
        *map(dict, plan.prepare_extra),
    ]


def _spacing_in_pixels(plan: Plan) -> list[float]:
    """Return the plan's spacing as a multiple of a picture's pixel size, along each axis.

    The multiple is exactly 1 if the spacings are so similar that the axis is not resampled.
    """
    pixel_mm = plan.assumed_pixel_mm
    return [1.0 if abs(mm - pixel_mm) <= SAME_MM else mm / pixel_mm for mm in plan.spacing_mm]


def _postprocessing(plan: Plan, calibration: Calibration | None) -> list[dict[str, Any]]:
    """Compose the MONAI transforms after the network.

    The transforms resample the probabilities to the file's grid (`Invertd` undoes the
    preprocessing), calibrate, and save probabilities and label map. MONAI evaluates a text that
    begins with "$" as a Python expression. Probabilities are saved as NIfTI even in 2-D, because
    PNG cannot store floats.
    """
    values = list(plan.labels.values)
    label_map = (  # the label of the highest probability, if that reaches the threshold
        "$lambda p: (p.amax(0, keepdim=True) >= @threshold) * "
        f"torch.tensor({values})[p.argmax(0, keepdim=True)]"
    )
    if plan.labels.regions:
        # Regions overlap, and later ones are painted over earlier ones. The expression therefore
        # numbers the regions from 1, and takes the highest number that reaches the threshold.
        label_map = (
            f"$lambda p: torch.tensor({[0, *values]})[((p >= @threshold) * torch.arange(1, "
            "len(p) + 1).reshape(-1, *[1] * (p.ndim - 1))).amax(0, keepdim=True)]"
        )
    calibrate = []
    if calibration is not None:  # as `probabilities.calibrated_voxels`
        function = (
            f"$lambda p: torch.where(p > 0, ({calibration.intercept!r} + {calibration.slope!r} * "
            "p.logit(1e-6)).sigmoid(), p)"
        )
        calibrate = [_config_entry("Lambdad", keys="pred", func=function)]
    return [
        _config_entry(
            "Invertd",
            keys="pred",
            transform="@preprocessing",
            orig_keys="image",
            nearest_interp=False,
        ),
        *calibrate,
        _save_step("pred", "prob", ".nii.gz", "$np.float32"),
        _config_entry("Lambdad", keys="pred", func=label_map, overwrite="mask"),
        _save_step("mask", "mask", ".png" if plan.dims == 2 else ".nii.gz", "$np.uint8"),
    ]


def _save_step(key: str, postfix: str, suffix: str, dtype: str) -> dict[str, Any]:
    """Return the MONAI transform that saves an image as `<case>_<postfix><suffix>`.

    Args:
        key: Key of the image in MONAI's dict of a case.
        postfix: End of the file's name.
        suffix: Suffix of the file, which decides its format.
        dtype: Number type of the file, as an expression.
    """
    return _config_entry(
        "SaveImaged",
        keys=key,
        output_postfix=postfix,
        print_log=False,
        output_ext=suffix,
        output_dtype=dtype,
        output_dir="@output_dir",
        separate_folder=False,
        resample=False,
    )


def _normalisation_text(scheme: Normalisation) -> str:
    """Write the normalisation of a channel as a Python expression that MONAI evaluates.

    The expression is a function of a tensor `[*spatial]`. It computes the same as
    `data.preprocess_image`. For example, the scheme "dataset" gives
    `$lambda v: (v.clamp(-1000.0, 1000.0) - 40.5) / 210.0`.
    """
    if scheme.scheme == "dataset":
        return f"$lambda v: ({_clip_text(scheme)} - {scheme.mean!r}) / {scheme.std!r}"
    # c: the clipped tensor, i: the voxels whose mean m and standard deviation s are used. A
    # standard deviation of rounding errors counts as 1.
    zscore_text = (
        "(lambda c, m, s: (c - m) / (s if s > 1e-6 * abs(m) else 1.0))"
        "({c}, *(lambda i: (float(i.mean()), float(i.std(correction=0))) "
        "if i.numel() else (0.0, 0.0))({inside}.double()))"
    )
    if scheme.scheme == "zscore":
        clipped = _clip_text(scheme)
        function = zscore_text.replace("{c}", clipped).replace("{inside}", f"{clipped}[v != 0]")
        return f"$lambda v: {function}"
    function = zscore_text.replace("{c}", "c").replace("{inside}", "c")
    # percentiles of at most 2²² voxels
    limits = "np.percentile(v.flatten()[:: -(-v.numel() // (1 << 22))].numpy(), (0.5, 99.5))"
    by_range = f"(lambda c: {function})(v.clamp(*map(float, {limits})))"
    if scheme.scheme == "range":
        return f"$lambda v: {by_range}"
    local_mean = "t.numpy()"
    for _ in range(3):  # three box filters approximate a Gaussian
        local_mean = f"uniform_filter({local_mean}, {window_of(scheme.sigma)})"
    # n: the tensor scaled by its range, mean: the local mean
    local = (
        "(lambda n, mean: n + (n - mean(n)) / "
        f"((mean(n * n) - mean(n) ** 2).clamp(min=0).sqrt() + {LOCAL_STD_FLOOR}))"
    )
    return f"$lambda v: {local}({by_range}, lambda t: torch.as_tensor({local_mean}))"


def _clip_text(scheme: Normalisation) -> str:
    """Write the clipping of a tensor `v` as a Python expression; "v" if there are no limits."""
    if scheme.lower is None and scheme.upper is None:
        return "v"
    return f"v.clamp({scheme.lower!r}, {scheme.upper!r})"

"""A bundle's network as one file that other programs run: ONNX, or torch's exported program.

Both take a prepared tile `[B, C, *tile]` float32 and give what `ExportedNetwork` says. The number
of tiles is free; their shape is the plan's, because instance norm takes its statistics from the
whole tile, so that a tile of another shape is another function.
"""

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import ExportedProgram

from lesionseg.errors import ConfigError, OutputError, pip_install
from lesionseg.inference.bundle import Bundle
from lesionseg.inference.probabilities import box_scores, calibrated_voxels, label_probabilities
from lesionseg.io.files import atomic_path
from lesionseg.ops.anchors import grid_anchors
from lesionseg.ops.boxes import decode_boxes
from lesionseg.plan.plan import Plan

OPSET = 18
INPUT = "image"
PROBABILITIES, SCORES, BOXES = "probabilities", "scores", "boxes"
# of fp32 runs of the same weights by two programs; probabilities lie in [0, 1]
SAME_PROBABILITY = 1e-3

Runner = Callable[[NDArray[np.float32]], Sequence[NDArray[np.float32]]]


def output_names(plan: Plan) -> tuple[str, ...]:
    """What an exported network gives, in order."""
    if plan.anchors is None:
        return (PROBABILITIES,)
    return (SCORES, BOXES, PROBABILITIES) if plan.has_voxels else (SCORES, BOXES)


class ExportedNetwork(nn.Module):
    """Networks whose outputs need neither plan nor anchors, the focal loss's effect undone.

    Segmentation networks give the mean of their probabilities `[B, K, *tile]`; a detector gives
    scores `[B, n, K]`, boxes `[B, n, 2·dims]` in voxels of the tile and a Retina U-Net's
    probabilities after them.
    """

    def __init__(self, networks: Sequence[nn.Module], plan: Plan) -> None:
        super().__init__()
        self.networks, self._plan = nn.ModuleList(network.eval() for network in networks), plan
        self.anchors: Tensor
        if plan.anchors is not None:
            levels = plan.anchors.levels(plan.architecture.strides, plan.tile_shape)
            self.register_buffer("anchors", grid_anchors(levels))

    def forward(self, image: Float[Tensor, "b c *tile"]) -> Tensor | tuple[Tensor, ...]:
        """Probabilities, or a detector's outputs."""
        plan = self._plan
        outputs = [network(image) for network in self.networks]
        if plan.anchors is None:
            total = torch.stack([label_probabilities(levels[0], plan) for levels in outputs])
            return calibrated_voxels(total.mean(0), plan.voxel_calibration)
        (output,) = outputs
        boxes = decode_boxes(output.box_deltas, self.anchors)
        detections = (box_scores(output.class_logits, plan), boxes)
        if not output.segmentation:
            return detections
        voxels = label_probabilities(output.segmentation[0], plan)
        return (*detections, calibrated_voxels(voxels, plan.voxel_calibration))


def trace(bundle: Bundle) -> ExportedProgram:
    """The bundle's network as a program for any number of tiles of the plan's shape.

    Raises `ConfigError` for a network that torch cannot export, or for several detectors.
    """
    if bundle.plan.anchors is not None and len(bundle.networks) > 1:
        raise ConfigError(
            f"bundle: {len(bundle.networks)} detectors have no mean. Export each by itself."
        )
    network = ExportedNetwork(bundle.networks, bundle.plan).float()
    # a batch of one would be taken for a constant
    example = torch.zeros(2, len(bundle.plan.channel_names), *bundle.plan.tile_shape)
    free = {INPUT: {0: torch.export.Dim("batch")}}
    try:
        with torch.no_grad(), _torch_quiet():
            return torch.export.export(network, (example,), dynamic_shapes=free)
    except (RuntimeError, ValueError, TypeError) as error:
        raise ConfigError(
            f"{bundle.plan.architecture.name}: the network cannot be exported "
            f"({str(error).splitlines()[0]}). Its operations may not depend on the voxels' values."
        ) from error


def write_program(path: Path, program: ExportedProgram) -> Runner:
    """Write torch's own format (`.pt2`) and return what a reader of the file computes."""
    with atomic_path(path) as temporary, _torch_quiet():
        torch.export.save(program, temporary)
    with _torch_quiet():
        module = torch.export.load(path).module()

    def run(tiles: NDArray[np.float32]) -> Sequence[NDArray[np.float32]]:
        with torch.inference_mode():
            return _arrays(module(torch.from_numpy(tiles)))

    return run


def write_onnx(
    path: Path,
    program: ExportedProgram,
    opset: int = OPSET,
    outputs: Sequence[str] = (PROBABILITIES,),
) -> Runner:
    """Write ONNX and return what onnxruntime computes from the file; `outputs`: their names.

    Raises `ConfigError` where the packages of the extra `export` are missing or the opset is one
    that they cannot write.
    """
    try:
        import onnx
        import onnxruntime  # type: ignore[import-untyped]
        import onnxscript  # noqa: F401  torch writes ONNX through it
    except ImportError as error:
        raise ConfigError(f"format=onnx: {error}. {pip_install('export')}") from error
    try:
        with _torch_quiet():
            written: Any = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=opset,
                input_names=[INPUT],
                output_names=list(outputs),
                dynamic_shapes={INPUT: {0: "batch"}},
                verbose=False,
            )
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"opset={opset}: ONNX cannot be written ({str(error).splitlines()[0]}). "
            f"Use opset={OPSET}."
        ) from error
    with atomic_path(path) as temporary:
        written.save(temporary, external_data=False)
    onnx.checker.check_model(str(path))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(tiles: NDArray[np.float32]) -> Sequence[NDArray[np.float32]]:
        return [np.asarray(output) for output in session.run(list(outputs), {INPUT: tiles})]

    return run


def largest_difference(bundle: Bundle, run: Runner, *, n_tiles: int = 1) -> float:
    """How far an exported file's probabilities are from the network's own, on random tiles.

    Boxes count by the tile's longest side. Raises `OutputError` above 1e-3: the file computes
    something else.
    """
    shape = (n_tiles, len(bundle.plan.channel_names), *bundle.plan.tile_shape)
    tiles = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    with torch.inference_mode():
        network = ExportedNetwork(bundle.networks, bundle.plan)
        own = _arrays(network(torch.from_numpy(tiles)))
    apart = [
        np.abs(theirs - ours).max() / (max(shape[2:]) if name == BOXES else 1)
        for name, theirs, ours in zip(output_names(bundle.plan), run(tiles), own, strict=True)
    ]
    difference = float(np.max(apart))  # NaN where there is one
    if not difference <= SAME_PROBABILITY:
        raise OutputError(
            f"The exported network's probabilities are {difference:.3g} from the bundle's. "
            "Try another opset, or other versions of torch and onnxruntime."
        )
    return difference


def _arrays(outputs: Tensor | Sequence[Tensor]) -> list[NDArray[np.float32]]:
    return [t.numpy() for t in ((outputs,) if isinstance(outputs, Tensor) else outputs)]


@contextmanager
def _torch_quiet() -> Iterator[None]:
    """Without torch's notes to itself: deprecated internals, torchvision's absence."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)

"""A bundle's network as one file that other programs run: ONNX, or torch's exported program.

Both take a prepared tile `[B, C, *tile]` float32 and give `[B, K, *tile]` float32: probabilities of
the plan's labels, the focal loss's effect undone (`inference.probabilities`), averaged over an
ensemble's members. A detector gives scores `[B, n, K]` and boxes `[B, n, 2·dims]` of its anchors.
The number of tiles is free; their shape is the plan's, because instance norm takes its statistics
from the whole tile, so that a tile of another shape is another function.
"""

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import ExportedProgram

from lesionseg.errors import ConfigError, OutputError, pip_install
from lesionseg.inference.bundle import Bundle
from lesionseg.inference.probabilities import DetectorNetwork, ProbabilityNetwork
from lesionseg.io.files import atomic_path
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


def trace(bundle: Bundle) -> ExportedProgram:
    """The bundle's network as a program for any number of tiles of the plan's shape.

    Raises `ConfigError` for a network that torch cannot export, for several detectors, or for one
    that neither segments nor detects.
    """
    network = _with_plain_outputs(bundle).float()
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


def _with_plain_outputs(bundle: Bundle) -> nn.Module:
    if bundle.plan.anchors is None:
        return ProbabilityNetwork(bundle.networks, bundle.plan)
    if len(bundle.networks) > 1:
        raise ConfigError(
            f"bundle: {len(bundle.networks)} detectors have no mean. Export each by itself."
        )
    return DetectorNetwork(bundle.networks[0], bundle.plan)


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
    onnx, onnxruntime = _onnx_packages()
    try:
        with _torch_quiet():
            written = torch.onnx.export(
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
    if written is None:  # what torch's stub allows, and its code does not
        raise OutputError(f"{path}: torch returned no ONNX program.")
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
        own = _arrays(_with_plain_outputs(bundle)(torch.from_numpy(tiles)))
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


def _onnx_packages() -> tuple[Any, Any]:
    try:
        import onnx
        import onnxruntime  # type: ignore[import-untyped]
        import onnxscript  # noqa: F401  torch writes ONNX through it
    except ImportError as error:
        raise ConfigError(f"format=onnx: {error}. {pip_install('export')}") from error
    return onnx, onnxruntime


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

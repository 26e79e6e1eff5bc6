"""A network slid over a whole volume in overlapping tiles."""

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from lesionseg.data.tiling import TileGrid
from lesionseg.errors import GeometryError
from lesionseg.inference.probabilities import label_probabilities
from lesionseg.inference.stitch import Stitcher
from lesionseg.models.precision import fast_dtype, fast_memory_format
from lesionseg.ops.windows import gaussian_weight
from lesionseg.plan.plan import Plan

OnTile = Callable[[int, int], None]


def predict_probabilities(
    network: nn.Module,
    image: Float[Tensor, "c *spatial"],
    plan: Plan,
    *,
    overlap: float = 0.5,
    batch_size: int | None = None,
    flips: bool = False,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
    on_tile: OnTile | None = None,
) -> Float[Tensor, "k *spatial"]:
    """Probabilities `[K, *spatial]` float32 of the K lesion labels, on the image's grid.

    `image` is prepared for `plan`. Logits become probabilities before tiles are averaged, with
    Gaussian weights; what the focal loss did to them is undone (`plan.link`). Softmax's
    background channel is dropped. `flips` averages the probabilities
    over the mirrored images too (`flip_axes`). `device` None is the network's; the result stays
    there if it fits. `dtype` bfloat16 or float16 computes under autocast, float32 without, None
    chooses (`models.precision`). `on_tile(done, total)` is called after every batch. The network is
    put into eval mode. Raises `GeometryError` for an image or output that does not fit the plan.
    """
    _refuse_misfit(image, plan)
    device = device or device_of(network)
    dtype = dtype or fast_dtype(device)
    layout = fast_memory_format(plan.dims, dtype, device)
    # torch's own stub does not know the keyword
    network = network.to(device=device, memory_format=layout).eval()  # type: ignore[call-overload]
    grid = TileGrid(tuple(image.shape[1:]), plan.tile_shape, overlap)
    home = _home(device, (len(image) + len(plan.label_values) + 1) * prod(grid.padded_shape))
    padded = _pad(image.to(device=home, dtype=torch.float32), grid)
    weight = gaussian_weight(plan.tile_shape)
    stitcher = Stitcher(grid.padded_shape, len(plan.label_values), weight, device=home)
    size = batch_size or (plan.batch_size if device.type == "cuda" else 1)
    views = flip_axes(plan) if flips else ((),)
    with torch.inference_mode(), _autocast(device, dtype):
        for batch in _batches(len(grid), size):
            tiles = torch.stack([padded[(slice(None), *grid.slices(i))] for i in batch])
            outputs = _mean_over_flips(network, tiles.to(device), plan, views)
            for i, output in zip(batch, outputs, strict=True):
                stitcher.add(output, grid.slices(i))
            if on_tile is not None:
                on_tile(batch[-1] + 1, len(grid))
    return stitcher.finish()[(slice(None), *grid.inside)]


def flip_axes(plan: Plan) -> tuple[tuple[int, ...], ...]:
    """Every set of spatial axes to mirror, the empty one first.

    An X-ray is seen only as it is: a radiograph has an up and a side, and the network was trained
    on no mirrored one.
    """
    axes = () if plan.modality == "xray" else tuple(range(plan.dims))
    return tuple(c for n in range(len(axes) + 1) for c in combinations(axes, n))


def _autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    on = dtype != torch.float32
    return torch.autocast(device.type, dtype=dtype if on else torch.bfloat16, enabled=on)


def _mean_over_flips(
    network: nn.Module, tiles: Tensor, plan: Plan, views: Sequence[tuple[int, ...]]
) -> Tensor:
    total: Tensor | float = 0.0
    for axes in views:
        flipped = [axis + 2 for axis in axes]
        total = total + _probabilities(network, tiles.flip(flipped), plan).flip(flipped)
    return torch.as_tensor(total) / len(views)


def _probabilities(network: nn.Module, tiles: Tensor, plan: Plan) -> Tensor:
    logits: Tensor = network(tiles)[0].float()
    n_expected = len(plan.label_values) + (plan.activation == "softmax")
    if logits.shape != (len(tiles), n_expected, *tiles.shape[2:]):
        raise GeometryError(
            "The network's output does not fit the plan.",
            seen=tuple(logits.shape),
            expected=(len(tiles), n_expected, *tiles.shape[2:]),
        )
    return label_probabilities(logits, plan)


def _pad(image: Tensor, grid: TileGrid) -> Tensor:
    """Zeros around an image smaller than the tile, as in training."""
    amounts = [n for before_after in reversed(grid.pad) for n in before_after]
    return functional.pad(image, amounts) if any(amounts) else image


def _batches(n: int, size: int) -> Iterator[list[int]]:
    for start in range(0, n, size):
        yield list(range(start, min(start + size, n)))


def _home(device: torch.device, n_values: int) -> torch.device:
    """Where image and sums lie: on the device if float32 values fill less than half its room."""
    if device.type == "cuda" and 4 * n_values > torch.cuda.mem_get_info(device)[0] / 2:
        return torch.device("cpu")
    return device


def device_of(network: nn.Module) -> torch.device:
    """Where the network's weights lie; the CPU when it has none."""
    first = next(network.parameters(), None)
    return torch.device("cpu") if first is None else first.device


def _refuse_misfit(image: Tensor, plan: Plan) -> None:
    expected = (len(plan.channel_names), plan.dims)
    if (image.shape[0], image.ndim - 1) != expected:
        raise GeometryError(
            "The image does not fit the plan.",
            seen=f"{image.shape[0]} channels and {image.ndim - 1} spatial axes",
            expected=f"{expected[0]} channels and {expected[1]} spatial axes",
        )

"""All tiles of a batch changed at once, in about as many launches as one of them would take.

Workers read the tiles, draw what happens to them and pack both into one piece of memory. A GPU gets
it in one copy and does what `augment.apply` does tile by tile on a CPU, to within rounding; only
the noise is drawn from another generator.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from lesionseg.data.augmentation.augment import Change, TileTensors
from lesionseg.data.augmentation.intensity import Intensity, axis_matrices
from lesionseg.data.augmentation.movement import Movement, grid_positions

_MASKS = ("labels", "instances", "valid")
_ALIGN = 16  # bytes; arrays begin at multiples of it

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, eq=False)
class PackedBatch:
    """Named arrays one after another in a uint8 tensor, `data`: pieces of volumes, and all numbers.

    `layout`: first byte, shape and dtype of each. A change that no tile undergoes has no array.
    `seed`: of the noise.
    """

    data: Tensor
    layout: Mapping[str, tuple[int, tuple[int, ...], torch.dtype]]
    seed: int

    def pin_memory(self) -> "PackedBatch":
        """In memory from which a GPU can copy by itself; torch's loader asks for it."""
        return replace(self, data=self.data.pin_memory())

    def to(self, device: torch.device) -> "PackedBatch":
        """On another device, without waiting for the copy."""
        return replace(self, data=self.data.to(device, non_blocking=True))

    def __contains__(self, name: str) -> bool:
        return name in self.layout

    def __getitem__(self, name: str) -> Tensor:
        first, shape, dtype = self.layout[name]
        n = int(np.prod(shape)) * dtype.itemsize
        return self.data[first : first + n].view(dtype).reshape(shape)


def pack(
    pieces: Sequence[TileTensors], changes: Sequence[Change], shape: tuple[int, ...]
) -> PackedBatch:
    """What `finish` makes a batch of tiles of `shape` of; pieces as `augment.apply` takes them."""
    arrays = _volumes(pieces)
    if "unannotated" in pieces[0]:
        arrays["unannotated"] = np.stack([piece["unannotated"].numpy() for piece in pieces])
    arrays |= _movements(
        [c.movement for c in changes], [c.intensity for c in changes], shape, arrays
    )
    n_channels = pieces[0]["image"].shape[0]
    arrays |= _intensities([c.intensity for c in changes], shape, n_channels)
    if any(c.missing for c in changes):
        present = [[k not in c.missing for k in range(n_channels)] for c in changes]
        arrays["present"] = np.array(present).reshape(*np.shape(present), *(1,) * len(shape))
    layout, end = {}, 0
    for name, array in arrays.items():
        first = -(-end // _ALIGN) * _ALIGN
        end = first + array.nbytes
        layout[name] = (first, array.shape, torch.from_numpy(array[:0]).dtype)
    data = np.empty(end, dtype=np.uint8)
    for name, array in arrays.items():
        first = layout[name][0]
        data[first : first + array.nbytes].view(array.dtype)[:] = array.ravel()
    return PackedBatch(torch.from_numpy(data), layout, changes[0].intensity.seed)


def finish(batch: PackedBatch) -> TileTensors:
    """Carry out the changes on the device of the batch.

    `image` `[B, C, *tile]` is fp32; of the masks `[B, *tile]` `labels` are uint8, `instances` int32
    and `valid` bool; `unannotated` `[B, K]` bool where the pieces have it.
    """
    grid = _grid(batch)
    n = len(batch["image"])
    image = _sampled(batch["image"], grid[:n], "bilinear")
    masks = _sampled(batch["masks"], grid[-n:], "nearest")
    small = masks[:, ::2].to(torch.uint8)
    image = _changed(image, batch)
    tiles = {
        "image": image.where(batch["present"], 0) if "present" in batch else image,
        "labels": small[:, 0],
        "instances": masks[:, 1].int(),
        "valid": small[:, 1].view(torch.bool),
    }
    return tiles | ({name: batch[name] for name in ("unannotated",) if name in batch})


def _volumes(pieces: Sequence[TileTensors]) -> Arrays:
    """All pieces `[B, C, *largest]`, each in the first corner: the rest is read by none."""
    largest = np.max([piece["labels"].shape for piece in pieces], axis=0)
    kinds = [np.result_type(*(p[key].numpy() for key in _MASKS)) for p in pieces]
    kind = np.result_type(np.uint8, *kinds)
    images = [piece["image"].numpy() for piece in pieces]
    image = np.zeros((len(pieces), len(images[0]), *largest), np.result_type(*images))
    masks = np.zeros((len(pieces), len(_MASKS), *largest), kind)
    for b, piece in enumerate(pieces):
        here = tuple(slice(n) for n in piece["labels"].shape)
        image[b][(slice(None), *here)] = images[b]
        for c, key in enumerate(_MASKS):
            masks[b, c][here] = piece[key].numpy()
    return {"image": image, "masks": masks}


def _movements(
    movements: Sequence[Movement],
    intensities: Sequence[Intensity],
    shape: tuple[int, ...],
    volumes: Mapping[str, NDArray[Any]],
) -> Arrays:
    """From where voxels come, as `grid_sample` counts: −1 … 1 over the volume, last axis first.

    The sum of one vector an axis, `line_0` `[G, dims, n_0]` …, and a bend of `knots` by weights
    `[G, n_0, k_0]`. G: the images' grids, which may be coarser (what is beyond is not looked at),
    then the masks' if they differ; else one for both.
    """
    coarse = [i.coarse_shape(shape) for i in intensities]
    wanted = [*zip(movements, coarse, strict=True)]
    if any(c != shape for c in coarse):
        wanted += [(movement, shape) for movement in movements]
    scale = 2 / np.array(volumes["masks"].shape[2:])
    lines = [_lines(m.onto(shape, out), shape, scale) for m, out in wanted]
    arrays = {f"line_{axis}": np.stack(line) for axis, line in enumerate(zip(*lines, strict=True))}
    bend = next((m.bend for m in movements if m.bend is not None), None)
    if bend is None:
        return arrays
    still = np.zeros_like(bend.knots)
    knots = np.stack([still if m.bend is None else m.bend.knots for m, _ in wanted])
    scaled = np.moveaxis(knots, 1, -1) * scale
    arrays["knots"] = scaled[..., ::-1].astype(np.float32)
    weights = [bend.weights(grid_positions(shape, out, shape)) for _, out in wanted]
    return arrays | {f"bend_{a}": np.stack(w) for a, w in enumerate(zip(*weights, strict=True))}


def _lines(
    matrix: NDArray[np.float64], shape: tuple[int, ...], scale: NDArray[np.float64]
) -> list[NDArray[np.float32]]:
    """What each axis of the output adds to the place in the source, `[dims, n]`, last row first."""
    lines = [matrix[:, a, None] * np.arange(n) for a, n in enumerate(shape)]
    lines[0] = lines[0] + matrix[:, -1:] + 0.5
    lines = [line * scale[:, None] for line in lines]
    lines[0] = lines[0] - 1
    return [line[::-1].astype(np.float32) for line in lines]


def _intensities(changes: Sequence[Intensity], shape: tuple[int, ...], n_channels: int) -> Arrays:
    """Numbers of each change, `[B, C, 1 …]`; of coarse, sliced, blurred tiles a matrix an axis."""
    arrays: Arrays = {}
    if any(c.mixes(shape) for c in changes):
        matrices = [axis_matrices(c, shape) for c in changes]
        for axis, (n, each) in enumerate(zip(shape, zip(*matrices, strict=True), strict=True)):
            padded = [np.pad(m, ((0, 0), (0, n - m.shape[1]))) for m in each]
            arrays[f"matrix_{axis}"] = np.stack(padded).astype(np.float32)
    ones, zeros = (1.0,) * n_channels, (0.0,) * n_channels
    if any(c.contrast is not None or c.brightness is not None for c in changes):
        arrays["contrast"] = np.array([c.contrast or ones for c in changes], np.float32)
        arrays["brightness"] = np.array([c.brightness or zeros for c in changes], np.float32)
    if any(c.noise for c in changes):
        arrays["noise"] = np.array([[c.noise] for c in changes], np.float32)
    if any(c.gamma is not None for c in changes):
        arrays["gamma"] = np.array([[c.gamma or 1.0] for c in changes], np.float32)
    columns = ("contrast", "brightness", "noise", "gamma")
    return {
        name: array.reshape(*array.shape, *(1,) * len(shape)) if name in columns else array
        for name, array in arrays.items()
    }


def _grid(batch: PackedBatch) -> Tensor:
    """Places to read `[G, *tile, dims]`."""
    dims = batch["image"].ndim - 2
    lines = [batch[f"line_{axis}"] for axis in range(dims)]
    lines = [
        line[(..., *[slice(None) if a == b else None for b in range(dims)])]
        for a, line in enumerate(lines)
    ]
    places = lines[-1]
    for line in lines[-2::-1]:
        places = line + places
    if "knots" in batch:
        places += _along_axes(batch["knots"], [batch[f"bend_{axis}"] for axis in range(dims)])
    return places.movedim(1, -1)


def _sampled(volume: Tensor, grid: Tensor, mode: str) -> Tensor:
    return functional.grid_sample(
        volume.float(), grid, mode=mode, padding_mode="border", align_corners=False
    )


def _changed(image: Tensor, batch: PackedBatch) -> Tensor:
    """As `intensity.change_intensity`, which says it."""
    if "matrix_0" in batch:
        image = _along_axes(
            image.movedim(1, -1), [batch[f"matrix_{a}"] for a in range(image.ndim - 2)]
        )
    if "contrast" in batch:
        image = torch.addcmul(batch["brightness"], image, batch["contrast"])
    if "noise" in batch:
        draw = torch.Generator(image.device).manual_seed(batch.seed)
        noise = torch.randn(image.shape, generator=draw, device=image.device)
        image = image.addcmul_(noise, batch["noise"])
    return _gamma(image, batch["gamma"]) if "gamma" in batch else image


def _gamma(image: Tensor, power: Tensor) -> Tensor:
    """Each channel above its least value to a power, with mean and deviation restored."""
    axes = tuple(range(2, image.ndim))
    std, mean = torch.std_mean(image, axes, correction=0)
    curved = (image - image.amin(axes, keepdim=True)).pow_(power)
    # one channel of a batch norm for each image of a channel: its weight is their deviation
    normed = functional.batch_norm(
        curved.reshape(1, -1, *image.shape[2:]),
        None,
        None,
        std.flatten(),
        mean.flatten(),
        training=True,
        eps=1e-12,
    )
    return normed.reshape(image.shape)


def _along_axes(array: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """Multiply `[B, *inp, C]` by matrices `[B, out, inp]` of each axis; `[B, C, *out]`.

    Each product takes the first axis and leaves it last, so that nothing is copied meanwhile.
    """
    for matrix in matrices:
        product = torch.bmm(array.flatten(2).mT, matrix.mT)
        array = product.reshape(len(product), *array.shape[2:], matrix.shape[1])
    return array

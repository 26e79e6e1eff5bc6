"""Sliding-window inference: apply networks to a whole volume in overlapping tiles.

image ──▶ TileGrid ──▶ batches of tiles ──▶ networks ──▶ Stitcher ──▶ Store (probabilities)
                                                    └──▶ BoxCollector ──▶ Boxes
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations, product
from math import prod
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from lesionseg.config import InferenceConfig
from lesionseg.data.tiling import TileGrid
from lesionseg.errors import ConfigError, GeometryError
from lesionseg.host_memory import reuse_memory
from lesionseg.inference.agreement import EnsembleAgreement
from lesionseg.inference.body import Body
from lesionseg.inference.box_candidates import BoxCollector, Boxes
from lesionseg.inference.probabilities import label_probabilities
from lesionseg.inference.stitch import (
    LogitStore,
    Stitcher,
    Store,
    gaussian_weight,
    nnunet_weight,
)
from lesionseg.models.build import autocast_dtype, set_memory_format
from lesionseg.models.custom_network import n_logits
from lesionseg.models.heads import DetectorOutput
from lesionseg.ops.boxes import split_box
from lesionseg.ops.cudnn_benchmark import fastest_convolutions
from lesionseg.ops.device_memory import first_line, free_bytes, is_out_of_memory
from lesionseg.plan.plan import Plan

log = logging.getLogger(__name__)

_SLICES_AT_ONCE = 8  # tiles of a 2-D network of nnU-Net on a CPU, which one slice does not fill


@dataclass(frozen=True, eq=False)
class _CoveredPart:
    """The part of an image that tiles cover: the body's bounding box, at least one tile wide.

    Along an axis of the image that is shorter than a tile, it is the whole axis. `shape` is that of
    the image. `region` is the covered part of the image. `offset` is the place in the image of the
    first voxel of the padded tile grid. `body` is None if the whole image is covered.
    """

    shape: tuple[int, ...]
    region: tuple[slice, ...]
    grid: TileGrid
    offset: tuple[int, ...]
    body: Body | None

    @classmethod
    def of(
        cls,
        shape: tuple[int, ...],
        tile_shape: tuple[int, ...],
        overlap: float,
        body: Body | None,
    ) -> "_CoveredPart":
        """Return the part of an image of this shape that tiles of `tile_shape` cover."""
        region = []
        spans = tuple(slice(0, n) for n in shape) if body is None else body.box
        for box, tile, n in zip(spans, tile_shape, shape, strict=True):
            body_width = box.stop - box.start
            width = max(body_width, min(tile, n))
            # a region that is wider than the body is centred on it, but stays within the image
            centred = box.start - (width - body_width) // 2
            start = min(max(centred, 0), n - width)
            region.append(slice(start, start + width))
        grid = TileGrid(tuple(r.stop - r.start for r in region), tile_shape, overlap)
        offset = tuple(r.start - before for r, (before, _) in zip(region, grid.pad, strict=True))
        return cls(shape, tuple(region), grid, offset, body)

    def tiles(self) -> list[int]:
        """Return the numbers of the tiles that touch the body."""
        return list(filter(self._touches, range(len(self.grid))))

    def _touches(self, number: int) -> bool:
        """Return True if the tile contains a part of the body."""
        if self.body is None:
            return True
        spans = zip(self.grid.slices(number), self.offset, strict=True)
        return self.body.touches(tuple(slice(s.start + n, s.stop + n) for s, n in spans))

    def write_rows(self, store: Store, first: int, average: Tensor) -> None:
        """Write finished rows of the padded tile grid to their place in the image.

        Args:
            store: The destination, in coordinates of the image.
            first: The row of the padded grid, along the first axis, with which `average` begins.
            average: The finished rows `[K, rows, *padded]`. The padding is not written.
        """
        own_rows, *rest = self.grid.inside
        start = max(first, own_rows.start)
        stop = min(first + average.shape[1], own_rows.stop)
        if start >= stop:  # all rows are padding
            return
        rows = average[(slice(None), slice(start - first, stop - first), *rest)]
        where = (slice(start + self.offset[0], stop + self.offset[0]), *self.region[1:])
        inside = None if self.body is None else torch.from_numpy(self.body.mask(where))
        store.write(where, rows, inside)

    def move_to_image(self, found: Boxes) -> Boxes:
        """Move boxes from the region to the image. Drop boxes with centres outside the body."""
        shifted = found.boxes + torch.tensor([r.start for r in self.region] * 2)
        kept = torch.ones(len(found), dtype=torch.bool)
        if self.body is not None:
            centres, _ = split_box(shifted)
            # rounding may put the centre of a thin box on the outer face of the last voxel
            voxels = centres.long().clamp(min=0).minimum(torch.tensor(self.shape) - 1)
            for i, voxel in enumerate(voxels.tolist()):
                kept[i] = self.body.touches(tuple(slice(v, v + 1) for v in voxel))
        return Boxes(shifted[kept], found.scores[kept], found.labels[kept], found.n_left_out)


class SlidingWindow:
    """A sliding window with networks on a device. Call it with an image.

    Logits are converted to probabilities before tiles, views and networks are averaged
    (`label_probabilities`). The logits of an nnU-Net model are averaged instead, as by
    `nnUNetPredictor`, with its tiles, padding, weights and mirrored views. Tiles for such a model
    have three axes; a 2-D network processes them slice by slice.

    The networks are moved to the device and put into eval mode. A GPU computes as many tiles at a
    time as a training step has (`batch_size`), a CPU one. If they do not fit into memory,
    `batch_size` is halved for good.

    Args:
        networks: The members of an ensemble, or one network.
        plan: Tile shape, channels and labels.
        settings: Overlap of tiles, mirrored views and precision. None uses the defaults in `conf/`.
            With the precision "auto", the device computes in the type of `autocast_dtype`, and a
            GPU with an nnU-Net model in float16.
        device: Device of the computation. None is the device of the first network.
        memory_format: Memory format of the weights. None keeps it, for a network in training.
    """

    def __init__(
        self,
        networks: Sequence[nn.Module],
        plan: Plan,
        settings: InferenceConfig | None = None,
        *,
        device: torch.device | None = None,
        memory_format: torch.memory_format | None = None,
    ) -> None:
        settings = settings or InferenceConfig.of()
        self.plan = plan
        self.overlap = settings.overlap
        self.device = device or next(networks[0].parameters(), torch.empty(0)).device
        if self.device.type == "cuda" and self.device.index is None:
            # "cuda" without an index may be another GPU in another thread
            self.device = torch.device("cuda", torch.cuda.current_device())
        dtypes = {
            "auto": autocast_dtype(self.device),
            "bf16": torch.bfloat16,
            "fp32": torch.float32,
        }
        self.dtype = dtypes[settings.precision]
        self.networks = [network.to(self.device).eval() for network in networks]
        if memory_format is not None:
            for network in self.networks:
                set_memory_format(network, memory_format)
        # one tile occupies all cores of a CPU, so a batch would only take more memory there
        self.batch_size = plan.batch_size if self.device.type == "cuda" else 1
        flip_axes = plan.allowed_flips
        self.tile_shape = plan.tile_shape
        self.n_outputs = plan.n_voxel_channels  # channels that `predict` returns for each voxel
        recipe = plan.nnunet
        self.is_in_slices = recipe is not None and recipe.network_dims == 2
        if recipe is not None:
            flip_axes = recipe.mirror_axes
            # a prepared scan always has three axes, that of a picture with one slice
            self.tile_shape = (1,) * (3 - len(plan.tile_shape)) + plan.tile_shape
            self.n_outputs = n_logits(plan)
            if self.device.type == "cuda" and settings.precision == "auto":
                self.dtype = torch.float16
            if self.device.type == "cpu" and self.is_in_slices:
                self.batch_size = _SLICES_AT_ONCE
        # all combinations of the axes along which tiles were flipped in training
        self.flips = mirrored_views(flip_axes if settings.flips else ())

    def tile_weight(self) -> Tensor:
        """Return the weights of the average over overlapping tiles, `[*tile]`."""
        weight_of = gaussian_weight if self.plan.nnunet is None else nnunet_weight
        return weight_of(self.tile_shape)

    def new_store(self, shape: tuple[int, ...], folder: Path | None = None) -> Store:
        """Return a store for the outputs `[K, *shape]`: probabilities, or logits of nnU-Net.

        `folder` is that of its file; None keeps it in memory.
        """
        kind = Store if self.plan.nnunet is None else LogitStore
        return kind((self.n_outputs, *shape), folder=folder)

    def __call__(
        self,
        image: Float[Tensor, "c *spatial"],
        *,
        body: Body | None = None,
        store: Store | None = None,
        agreement: EnsembleAgreement | None = None,
    ) -> tuple[Store, Boxes | None]:
        """Return probabilities `[K, *spatial]` of the plan's labels and a detector's boxes.

        An nnU-Net model gives logits instead of probabilities. Overlapping tiles are averaged with
        Gaussian weights. Image and sums are on the device, unless they need more than half of the
        free memory of a GPU.

        Args:
            image: Prepared image `[C, *spatial]`, with the plan's channels and axes.
            body: Mask of the body. Tiles without a part of the body are skipped. Outside the body,
                probabilities are 0 and boxes are dropped. None is the whole image.
            store: Receives the outputs. None is a new store in memory, see `new_store`.
            agreement: Receives the voxels that the networks mark, if there are several.

        Returns:
            The store and the boxes. K is 0 if the network predicts no voxels. The boxes are None
            if it predicts none, or if the plan's rule uses only voxels.

        Raises:
            GeometryError: If an output of the network does not fit the plan.
            ContentError: If a score of a detector's boxes is NaN.
        """
        plan = self.plan
        shape = tuple(image.shape[1:])
        store = store or self.new_store(shape)
        covered = _CoveredPart.of(shape, self.tile_shape, self.overlap, body)
        grid = covered.grid
        tiles = covered.tiles()
        sums_device = self._memory_device(len(image), grid)
        array = image[(slice(None), *covered.region)].to(sums_device).float()
        is_padded = any(before or after for before, after in grid.pad)
        if is_padded:  # an image smaller than a tile is padded with 0, as in training
            # torch expects the last axis first
            array = functional.pad(array, [n for pair in reversed(grid.pad) for n in pair])
        finish_rows = partial(covered.write_rows, store)
        stitcher = Stitcher(
            grid.padded_shape, self.n_outputs, self.tile_weight(), finish_rows, sums_device
        )
        detects = plan.has_boxes and plan.candidate_rule.source != "segmentation"
        n_readings = len(self.networks) * len(self.flips)
        collector = BoxCollector(grid, plan, n_readings) if detects else None
        with reuse_memory(is_wanted=self.device.type == "cpu"):
            n_done = 0
            while n_done < len(tiles):
                some = tiles[n_done : n_done + self.batch_size]
                batch = torch.stack([array[(slice(None), *grid.slices(i))] for i in some])
                predicted = self._predict_if_it_fits(batch, some, collector, agreement)
                if predicted is None:
                    self._halve_batch(len(some))
                    continue
                for i, p in zip(some, predicted, strict=True):
                    stitcher.add(p, grid.slices(i))
                if collector is not None:
                    collector.gather()
                n_done += len(some)
            stitcher.finish()
        return store, None if collector is None else covered.move_to_image(collector.finish())

    def _predict_if_it_fits(
        self,
        tiles: Tensor,
        numbers: Sequence[int],
        collector: BoxCollector | None,
        agreement: EnsembleAgreement | None,
    ) -> Tensor | None:
        """Return the result of `predict`, or None if there is too little memory for the batch.

        The boxes of the batch are dropped then. The error is passed on if a single tile does not
        fit.
        """
        try:
            return self.predict(tiles, numbers, collector, agreement)
        except RuntimeError as error:
            if len(tiles) == 1 or not is_out_of_memory(error):
                raise
        if collector is not None:
            collector.forget_waiting()
        return None

    def _halve_batch(self, n_tiles: int) -> None:
        """Halve the number of tiles after a batch of `n_tiles` did not fit, with a warning."""
        self.batch_size = n_tiles // 2
        log.warning("Out of memory with %d tiles; continued with %d.", n_tiles, self.batch_size)
        torch.cuda.empty_cache()  # nothing happens without a GPU

    def _memory_device(self, n_channels: int, grid: TileGrid) -> torch.device:
        """Return the device for image and sums.

        It is the CPU if they need more than half of the GPU's free memory.
        """
        if self.device.type != "cuda":
            return self.device
        n_voxels = prod(grid.padded_shape)
        # the sums of the outputs and of the weights, one tile high
        n_sums = (self.n_outputs + 1) * self.tile_shape[0] * (n_voxels // grid.padded_shape[0])
        needed_bytes = 4 * (n_channels * n_voxels + n_sums)  # float32
        if needed_bytes > free_bytes(self.device) / 2:
            return torch.device("cpu")
        return self.device

    @torch.inference_mode()
    def predict(
        self,
        tiles: Float[Tensor, "b c *tile"],
        numbers: Sequence[int] = (),
        collector: BoxCollector | None = None,
        agreement: EnsembleAgreement | None = None,
    ) -> Float[Tensor, "b k *tile"]:
        """Return mean probabilities or logits float32 over networks and mirrored views.

        Boxes are added to `collector`, with the `numbers` of the tiles in its grid. The voxels that
        each of several networks marks are added to `agreement`. Raise `GeometryError` if an output
        of the network does not fit the plan.
        """
        n_tiles = len(tiles)  # the tiles that fill the batch are not counted
        n_views = len(self.flips)
        total = None
        own = None  # the sum over the views of one network
        marks = []
        if self.is_in_slices:  # the tiles have one slice
            tiles = tiles[:, :, 0]
        tiles = self._fill_batch(tiles.to(self.device))
        readings = list(product(self.networks, self.flips))
        for reading, (network, axes) in enumerate(readings):
            mirrored = [axis + 2 for axis in axes]
            output = self._run(network, tiles.flip(mirrored) if axes else tiles)
            if isinstance(output, DetectorOutput):
                if collector is not None:
                    collector.add(output, numbers, axes, reading)
                output = output.segmentation
            p = self._voxel_values(output, tiles, n_tiles)
            p = p.flip(mirrored) if axes else p
            total = p if total is None else total + p
            if agreement is not None:
                own = p if own is None else own + p
                if (reading + 1) % n_views == 0:
                    marks.append(self.marked(own / n_views))
                    own = None
        if agreement is not None:
            agreement.add(marks)
        mean = torch.as_tensor(total)
        if len(readings) > 1:
            mean = mean / len(readings)
        return mean[:, :, None] if self.is_in_slices else mean

    def _voxel_values(self, output: Sequence[Tensor], tiles: Tensor, n_tiles: int) -> Tensor:
        """Convert the logits of the first `n_tiles` tiles to the values that are averaged.

        The first of `output` has the finest logits. There are no values if the network predicts
        only boxes. Raise `GeometryError` if the logits do not fit the plan.
        """
        if not self.plan.has_voxels:
            return tiles.new_zeros((n_tiles, 0, *tiles.shape[2:]), dtype=torch.float32)
        expected = (len(tiles), n_logits(self.plan), *tiles.shape[2:])
        if output[0].shape != expected:
            raise GeometryError(
                f"The network returned the shape {tuple(output[0].shape)} for tiles "
                f"{tuple(tiles.shape)}, but the plan needs logits of the shape {expected}."
            )
        logits = output[0][:n_tiles]
        # nnU-Net averages logits over views
        return logits.float() if self.plan.nnunet else label_probabilities(logits, self.plan)

    def marked(self, values: Float[Tensor, "b k *tile"]) -> Bool[Tensor, "b labels *tile"]:
        """Return the voxels whose probability is sufficient for a candidate, for each label."""
        if self.plan.nnunet is not None:
            values = label_probabilities(values, self.plan)
        return values >= self.plan.candidate_rule.extent

    def _fill_batch(self, tiles: Tensor) -> Tensor:
        """Repeat the last tile on a GPU until their number is a power of two or fills the batch.

        cuDNN times its algorithms for each new number of tiles, so there should be few of them.
        """
        n_missing = min(1 << (len(tiles) - 1).bit_length(), self.batch_size) - len(tiles)
        if self.device.type != "cuda" or n_missing <= 0:
            return tiles
        return torch.cat([tiles, tiles[-1:].expand([n_missing, *tiles.shape[1:]])])

    def _run(self, network: nn.Module, tiles: Tensor) -> Any:
        """Run a network in the precision of the settings."""
        is_low = self.dtype != torch.float32
        # autocast has no float32, so a disabled one gets any other type
        autocast_type = self.dtype if is_low else torch.bfloat16
        autocast = torch.autocast(self.device.type, autocast_type, enabled=is_low)
        with fastest_convolutions(), autocast:
            return network(tiles)


def mirrored_views(axes: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Return all subsets of the axes, the empty one first.

    >>> mirrored_views((0, 2))
    ((), (0,), (2,), (0, 2))
    """
    views: list[tuple[int, ...]] = []
    for n_axes in range(len(axes) + 1):
        views += combinations(axes, n_axes)
    return tuple(views)


def choose_device(name: str | torch.device) -> torch.device:
    """Return the device of a name. "auto" is the GPU if there is one, otherwise the CPU.

    Raises:
        ConfigError: If the device is unknown or not available.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = first_line(str(error))
        raise ConfigError(
            f"device={name}: {reason}. Choose auto or cpu; for a GPU, read docs/install.md."
        ) from error
    return device

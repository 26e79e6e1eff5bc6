"""Sliding window: loop over tiles and mirrored views, batch halved if memory runs out, `device`.

Networks are applied to a volume in overlapping tiles.

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
        """Compute which part of an image tiles have to cover, and the grid of these tiles.

        Args:
            shape: Spatial shape of the image.
            tile_shape: Shape of a tile.
            overlap: Overlap of neighbouring tiles, as a fraction of the tile.
            body: Mask of the body. None covers the entire image.
        """
        region = []
        spans = tuple(slice(0, n) for n in shape) if body is None else body.box
        for span, tile_width, n in zip(spans, tile_shape, shape, strict=True):
            body_width = span.stop - span.start
            width = max(body_width, min(tile_width, n))
            # a region that is wider than the body is centred on it, but stays within the image
            centred = span.start - (width - body_width) // 2
            start = min(max(centred, 0), n - width)
            region.append(slice(start, start + width))
        grid = TileGrid(tuple(r.stop - r.start for r in region), tile_shape, overlap)
        # the image position of the first voxel of the padded grid
        offset = tuple(r.start - before for r, (before, _) in zip(region, grid.pad, strict=True))
        return cls(shape=shape, region=tuple(region), grid=grid, offset=offset, body=body)

    def tiles(self) -> list[int]:
        """Return the numbers of the tiles that contain a part of the body, ascending.

        The networks predict only these tiles.
        """
        return list(filter(self._touches, range(len(self.grid))))

    def _touches(self, number: int) -> bool:
        """Return True if tile `number` of the grid contains a part of the body."""
        if self.body is None:
            return True
        spans = zip(self.grid.slices(number), self.offset, strict=True)
        return self.body.touches(
            tuple(slice(s.start + shift, s.stop + shift) for s, shift in spans)
        )

    def write_rows(self, store: Store, first: int, average: Tensor) -> None:
        """Write finished rows of the padded tile grid to the store, without the padding.

        `Stitcher` calls this function. Voxels outside the body become 0.

        Args:
            store: The destination, with the shape of the image.
            first: Number of the first row of `average` in the padded grid, along the first axis.
            average: The finished rows `[K, rows, *padded]`.
        """
        # the part of the padded grid that is not padding
        unpadded_rows, *rest = self.grid.inside
        start = max(first, unpadded_rows.start)
        stop = min(first + average.shape[1], unpadded_rows.stop)
        if start >= stop:  # all rows are padding
            return
        rows = average[(slice(None), slice(start - first, stop - first), *rest)]
        where = (slice(start + self.offset[0], stop + self.offset[0]), *self.region[1:])
        inside = None if self.body is None else torch.from_numpy(self.body.mask(where))
        store.write(where, rows, inside)

    def move_to_image(self, boxes: Boxes) -> Boxes:
        """Convert boxes from voxels of the covered region to voxels of the image.

        Boxes whose centre is outside the body are dropped.
        """
        in_image = boxes.boxes + torch.tensor(
            [r.start for r in self.region] * 2
        )  # starts and stops
        is_in_body = torch.ones(len(boxes), dtype=torch.bool)
        if self.body is not None:
            centres, _ = split_box(in_image)
            # rounding may put the centre of a thin box on the outer face of the last voxel
            voxels = centres.long().clamp(min=0).minimum(torch.tensor(self.shape) - 1)
            for i, voxel in enumerate(voxels.tolist()):
                is_in_body[i] = self.body.touches(tuple(slice(v, v + 1) for v in voxel))
        return Boxes(
            boxes=in_image[is_in_body],
            scores=boxes.scores[is_in_body],
            labels=boxes.labels[is_in_body],
            n_left_out=boxes.n_left_out,
        )


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
        # a network without parameters is on the device of new tensors
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
        recipe = plan.nnunet  # the plan of an nnU-Net model; None for all other models
        self.is_in_slices = recipe is not None and recipe.network_dims == 2
        if recipe is not None:  # nnU-Net's values replace those above
            flip_axes = recipe.mirror_axes
            # a prepared scan always has three axes, that of a picture with one slice
            self.tile_shape = (1,) * (3 - len(plan.tile_shape)) + plan.tile_shape
            self.n_outputs = n_logits(plan)
            if self.device.type == "cuda" and settings.precision == "auto":
                self.dtype = torch.float16  # as nnU-Net itself
            if self.device.type == "cpu" and self.is_in_slices:
                self.batch_size = _SLICES_AT_ONCE
        # all combinations of the axes along which tiles were flipped in training
        self.flips = mirrored_views(flip_axes if settings.flips else ())

    def tile_weight(self) -> Tensor:
        """Return the weights `[*tile]` with which overlapping tiles are averaged.

        The weights are a Gaussian over the tile, for an nnU-Net model nnU-Net's (`nnunet_weight`).
        """
        weight_of = gaussian_weight if self.plan.nnunet is None else nnunet_weight
        return weight_of(self.tile_shape)

    def new_store(self, shape: tuple[int, ...], folder: Path | None = None) -> Store:
        """Return an empty store for the outputs `[K, *shape]` of the networks.

        The store will contain probabilities, or logits for an nnU-Net model.

        Args:
            shape: Spatial shape of the image.
            folder: Folder of the file of the store. None is a store in memory.
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
        """Predict the probabilities `[K, *spatial]` of the plan's labels and a detector's boxes.

        For an nnU-Net model, logits are predicted instead of probabilities. Overlapping tiles are
        averaged with Gaussian weights. The image and the sums of tiles are in the memory of the
        device. If they need more than half of a GPU's free memory, they are in the CPU's memory.

        Args:
            image: Prepared image `[C, *spatial]`, with the plan's channels and axes.
            body: Mask of the body. Tiles without a part of the body are skipped. Outside the body,
                probabilities are 0 and boxes are dropped. None is the entire image.
            store: Receives the outputs. None is a new store in memory, see `new_store`.
            agreement: Receives the voxels that each of several networks marks as lesion. None does
                not compute the disagreement of the networks.

        Returns:
            The store and the boxes. K is 0 if the network predicts only boxes. The boxes are None
            if the network predicts no boxes, or if the plan's candidate rule uses only voxels.

        Raises:
            GeometryError: If an output of the network does not fit the plan.
            ContentError: If a score of a detector's boxes is NaN.
        """
        plan = self.plan
        # choose the tiles, and copy and pad the part of the image that they cover
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
        # prepare the average of tiles, and the list of boxes
        finish_rows = partial(covered.write_rows, store)
        stitcher = Stitcher(
            grid.padded_shape,
            self.n_outputs,
            weight=self.tile_weight(),
            finish_rows=finish_rows,
            device=sums_device,
        )
        detects = plan.has_boxes and plan.candidate_rule.source != "segmentation"
        n_readings = len(self.networks) * len(self.flips)
        collector = BoxCollector(grid, plan, n_readings) if detects else None
        # predict the tiles in batches
        with reuse_memory(is_wanted=self.device.type == "cpu"):
            n_done = 0
            while n_done < len(tiles):
                batch_tiles = tiles[n_done : n_done + self.batch_size]
                batch = torch.stack([array[(slice(None), *grid.slices(i))] for i in batch_tiles])
                predicted = self._predict_if_it_fits(batch, batch_tiles, collector, agreement)
                if predicted is None:
                    self._halve_batch(len(batch_tiles))
                    continue
                for i, p in zip(batch_tiles, predicted, strict=True):
                    stitcher.add(p, grid.slices(i))
                if collector is not None:
                    collector.gather()
                n_done += len(batch_tiles)
            stitcher.finish()
        return store, None if collector is None else covered.move_to_image(collector.finish())

    def _predict_if_it_fits(
        self,
        tiles: Tensor,
        numbers: Sequence[int],
        collector: BoxCollector | None,
        agreement: EnsembleAgreement | None,
    ) -> Tensor | None:
        """Predict a batch of tiles, or return None if the batch does not fit into memory.

        If it does not fit, the boxes of the batch are dropped, so that the caller can predict the
        tiles again in smaller batches. If the batch has only one tile, the error is raised.

        Args:
            tiles: Tiles of the prepared image `[B, C, *tile]`.
            numbers: Numbers of the tiles in the grid.
            collector: Receives the boxes of a detector. None drops them.
            agreement: Receives the voxels that each network marks. None marks no voxels.
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
        """Set `batch_size` to half of a batch of `n_tiles` tiles that did not fit into memory.

        A warning is logged. All later batches have the new size.
        """
        self.batch_size = n_tiles // 2
        log.warning("Out of memory with %d tiles; continued with %d.", n_tiles, self.batch_size)
        torch.cuda.empty_cache()  # nothing happens without a GPU

    def _memory_device(self, n_channels: int, grid: TileGrid) -> torch.device:
        """Return the device whose memory contains the image and the sums of overlapping tiles.

        Usually, this is the device of the networks. If the image and the sums need more than half
        of the free memory of a GPU, it is the CPU.

        Args:
            n_channels: Number of channels of the image.
            grid: The tiles of the image.
        """
        if self.device.type != "cuda":
            return self.device
        n_voxels = prod(grid.padded_shape)
        # the sums of the outputs and of the weights: as many rows as a tile has, because the tiles
        # come in the order of their first rows, and `Stitcher` writes rows that are finished
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
        """Predict a batch of tiles with each network and each mirrored view, and average.

        Args:
            tiles: Tiles of the prepared image.
            numbers: Numbers of the tiles in the grid of `collector`.
            collector: Receives the boxes of a detector. None drops them.
            agreement: Receives the voxels that each network marks as lesion (`marked`).

        Returns:
            Mean probabilities of the labels, or mean logits of an nnU-Net model, float32.

        Raises:
            GeometryError: If an output of the network does not fit the plan.
        """
        n_tiles = len(tiles)  # the tiles that fill the batch are not counted
        n_views = len(self.flips)
        total = None
        view_sum = None  # the sum over the views of one network
        marks = []
        if self.is_in_slices:  # tiles of one slice lose the axis of slices, and regain it below
            tiles = tiles[:, :, 0]
        tiles = self._fill_batch(tiles.to(self.device))
        readings = list(product(self.networks, self.flips))  # all views of one network in a row
        for reading, (network, axes) in enumerate(readings):
            mirrored = [axis + 2 for axis in axes]  # after the axes of batch and channels
            output = self._run(network, tiles.flip(mirrored) if axes else tiles)
            if isinstance(output, DetectorOutput):
                if collector is not None:
                    collector.add(output, numbers, axes, reading)
                output = output.segmentation
            p = self._voxel_values(output, tiles, n_tiles)
            p = p.flip(mirrored) if axes else p
            total = p if total is None else total + p
            if agreement is not None:
                view_sum = p if view_sum is None else view_sum + p
                if (reading + 1) % n_views == 0:  # the last view of this network
                    marks.append(self.marked(view_sum / n_views))
                    view_sum = None
        if agreement is not None:
            agreement.add(marks)
        mean = torch.as_tensor(total)  # not None, because there is at least one reading
        if len(readings) > 1:
            mean = mean / len(readings)
        return mean[:, :, None] if self.is_in_slices else mean

    def _voxel_values(self, output: Sequence[Tensor], tiles: Tensor, n_tiles: int) -> Tensor:
        """Convert the output of a network for voxels to probabilities, or logits for nnU-Net.

        nnU-Net averages logits over views, so the logits of its models are not converted.

        Args:
            output: Logits of the network's outputs. The first output has the finest resolution, and
                coarser outputs are ignored.
            tiles: The tiles that the network got.
            n_tiles: Number of tiles. Further rows only fill the batch, and are dropped.

        Returns:
            An array `[n_tiles, K, *tile]` float32. K is 0 if the network predicts only boxes.

        Raises:
            GeometryError: If the logits do not fit the plan.
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
        return logits.float() if self.plan.nnunet else label_probabilities(logits, self.plan)

    def marked(self, values: Float[Tensor, "b k *tile"]) -> Bool[Tensor, "b labels *tile"]:
        """Return a mask of the voxels that one network marks as lesion, to compare the networks.

        A voxel is marked if its probability is at least the extent of the plan's candidate rule.

        Args:
            values: Mean over the views of one network: probabilities, or logits of an nnU-Net
                model.
        """
        if self.plan.nnunet is not None:
            values = label_probabilities(values, self.plan)
        return values >= self.plan.candidate_rule.extent

    def _fill_batch(self, tiles: Tensor) -> Tensor:
        """Enlarge a batch on a GPU to a power of two of tiles, by repeating the last tile.

        The batch gets at most `batch_size` tiles. cuDNN measures the speed of its algorithms again
        for each new batch size, so there should be few different sizes. On a CPU, the batch is
        returned unchanged.
        """
        # 1 << (n - 1).bit_length() is the lowest power of two that is at least n
        n_missing = min(1 << (len(tiles) - 1).bit_length(), self.batch_size) - len(tiles)
        if self.device.type != "cuda" or n_missing <= 0:
            return tiles
        return torch.cat([tiles, tiles[-1:].expand([n_missing, *tiles.shape[1:]])])

    def _run(self, network: nn.Module, tiles: Tensor) -> Any:
        """Run a network on a batch of tiles, in the precision of the settings (`dtype`).

        Return the output of the network: a sequence of logits, or a `DetectorOutput`.
        """
        is_low = self.dtype != torch.float32
        # autocast has no float32, so a disabled one gets any other type
        autocast_type = self.dtype if is_low else torch.bfloat16
        autocast = torch.autocast(self.device.type, autocast_type, enabled=is_low)
        with fastest_convolutions(), autocast:
            return network(tiles)


def mirrored_views(axes: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Return the axes along which each view is mirrored: all subsets of the axes.

    The first subset is empty, which is the view that is not mirrored.

    >>> mirrored_views((0, 2))
    ((), (0,), (2,), (0, 2))
    """
    return tuple(view for n in range(len(axes) + 1) for view in combinations(axes, n))


def choose_device(name: str | torch.device) -> torch.device:
    """Return the torch device for the setting `device`, after a check that the device works.

    Args:
        name: Name of a device such as "cpu" or "cuda:1". "auto" is the GPU if there is one,
            otherwise the CPU.

    Raises:
        ConfigError: If the device is unknown or not available.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # the latter if torch is built without CUDA
        reason = first_line(str(error))
        raise ConfigError(
            f"device={name}: {reason}. Choose auto or cpu; for a GPU, read docs/install.md."
        ) from error
    return device

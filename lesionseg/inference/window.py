"""A network slid over a whole volume in overlapping tiles.

image ──▶ TileGrid ──▶ batches of tiles ──▶ networks ──▶ Stitcher ──▶ Store (probabilities)
                                                    └──▶ BoxCollector ──▶ Boxes
"""

from collections.abc import Callable, Sequence
from itertools import combinations
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from lesionseg.data.tiling import TileGrid
from lesionseg.errors import GeometryError
from lesionseg.inference.body import Body
from lesionseg.inference.boxes import BoxCollector, Boxes
from lesionseg.inference.probabilities import label_probabilities
from lesionseg.inference.stitch import Stitcher, Store
from lesionseg.models.build import fast_dtype
from lesionseg.models.heads import DetectorOutput
from lesionseg.ops.boxes import split_box
from lesionseg.ops.windows import gaussian_weight
from lesionseg.plan.plan import Plan

OnBatch = Callable[[int, int], None]  # called with the tiles done and all tiles of the scan


class SlidingWindow:
    """Networks on a device, and how they are slid over volumes: call it with an image.

    Logits become probabilities before anything is averaged: softmax's background is dropped, what
    the focal loss did to them is undone (`plan.link`). The networks are put into eval mode.

    Args:
        networks: the members of an ensemble, or one network.
        plan: tile shape, channels and labels.
        overlap: the fraction in [0, 1) of a tile that its neighbour covers too.
        flips: average over mirrored images (`flip_axes`): 2^dims times the work.
        batch_size: tiles at a time; None is the plan's on a GPU and 1 on a CPU.
        device: where to compute; None is the first network's.
        dtype: bfloat16 or float16 computes under autocast, float32 without; None: the fastest.
        memory_format: of the weights; None leaves them, for a network in training.
    """

    def __init__(
        self,
        networks: Sequence[nn.Module],
        plan: Plan,
        *,
        overlap: float = 0.5,
        flips: bool = False,
        batch_size: int | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        memory_format: torch.memory_format | None = None,
    ) -> None:
        self.plan, self.overlap = plan, overlap
        self.device = device or device_of(networks[0])
        self.dtype = dtype or fast_dtype(self.device)
        self.networks = [network.to(self.device).eval() for network in networks]
        for network in self.networks if memory_format else ():
            network.to(memory_format=memory_format)  # type: ignore[call-overload]  # torch's stub
        self.batch_size = batch_size or (plan.batch_size if self.device.type == "cuda" else 1)
        self.flips = flip_axes(plan) if flips else ((),)

    def __call__(
        self,
        image: Float[Tensor, "c *spatial"],
        *,
        body: Body | None = None,
        store: Store | None = None,
        on_batch: OnBatch | None = None,
    ) -> tuple[Store, Boxes | None]:
        """Probabilities `[K, *spatial]` of the plan's labels and a detector's boxes.

        Tiles cover the body's box (the whole image without a `body`); those that the body does not
        touch are left out. Overlapping tiles are averaged with Gaussian weights; outside the body
        probabilities are 0, and boxes have their centre inside. Image and sums lie on the device if
        they fill less than half its memory. K is 0 for a network without voxels, boxes are None
        for one without boxes. `store`: where probabilities go; None: float16 in memory. Raises
        `GeometryError` for an image or an output that does not fit the plan.
        """
        plan, shape = self.plan, tuple(image.shape[1:])
        if (image.shape[0], len(shape)) != (len(plan.channel_names), plan.dims):
            raise GeometryError(
                f"The image has {image.shape[0]} channels and {len(shape)} spatial axes; the plan "
                f"has {len(plan.channel_names)} and {plan.dims}."
            )
        n_channels = plan.n_voxel_channels
        store = store or Store((n_channels, *shape))
        region = _region(shape, plan.tile_shape, body)
        grid = TileGrid(tuple(r.stop - r.start for r in region), plan.tile_shape, self.overlap)
        offset = [r.start - before for r, (before, _) in zip(region, grid.pad, strict=True)]
        tiles = [
            i for i in range(len(grid)) if body is None or body.touches(_moved(grid, i, offset))
        ]
        sums = (n_channels + 1) * plan.tile_shape[0] * prod(grid.padded_shape[1:])
        memory = _memory(self.device, image.shape[0] * prod(grid.padded_shape) + sums)
        covered = _padded(image[(slice(None), *region)].to(memory).float(), grid)

        def take_rows(first: int, average: Tensor) -> None:
            inside, *rest = grid.inside
            start, stop = max(first, inside.start), min(first + average.shape[1], inside.stop)
            if start >= stop:  # padding
                return
            rows = average[(slice(None), slice(start - first, stop - first), *rest)]
            where = (slice(start + offset[0], stop + offset[0]), *region[1:])
            if body is not None:
                mask = body.rows(where[0].start, where[0].stop)[(slice(None), *where[1:])]
                rows = rows * torch.from_numpy(mask).to(rows.device)
            store.write(where, rows)

        weight = gaussian_weight(plan.tile_shape)
        stitcher = Stitcher(
            grid.padded_shape, n_channels, weight, take_rows, gaps=body is not None, device=memory
        )
        detects = plan.has_boxes and plan.candidate_rule.source != "segmentation"
        collector = BoxCollector(grid, plan) if detects else None
        for first in range(0, len(tiles), self.batch_size):
            some = tiles[first : first + self.batch_size]
            batch = torch.stack([covered[(slice(None), *grid.slices(i))] for i in some])
            for i, p in zip(some, self.predict(batch, some, collector), strict=True):
                stitcher.add(p, grid.slices(i))
            if on_batch is not None:
                on_batch(first + len(some), len(tiles))
        stitcher.finish()
        if collector is None:
            return store, None
        return store, _in_body(collector.finish(), [r.start for r in region], body)

    @torch.inference_mode()
    def predict(
        self,
        tiles: Float[Tensor, "b c *tile"],
        numbers: Sequence[int] = (),
        collector: BoxCollector | None = None,
    ) -> Float[Tensor, "b k *tile"]:
        """Mean probabilities float32 over networks and mirrored views.

        Boxes go to `collector`, with the tiles' `numbers` in its grid. Raises `GeometryError` for
        an output that does not fit the plan.
        """
        tiles, total = tiles.to(self.device), None
        for network in self.networks:
            for axes in self.flips:
                mirrored = [axis + 2 for axis in axes]
                with torch.autocast(
                    self.device.type,
                    torch.bfloat16 if self.dtype == torch.float32 else self.dtype,
                    enabled=self.dtype != torch.float32,
                ):
                    output = network(tiles.flip(mirrored) if axes else tiles)
                if isinstance(output, DetectorOutput):
                    if collector is not None:
                        collector.add(output, numbers, axes)
                    output = output.segmentation
                p = self._probabilities(output, tiles)
                p = p.flip(mirrored) if axes else p
                total = p if total is None else total + p
        n_views = len(self.networks) * len(self.flips)
        mean = torch.as_tensor(total)
        return mean if n_views == 1 else mean / n_views

    def _probabilities(self, levels: Sequence[Tensor], tiles: Tensor) -> Tensor:
        if not self.plan.has_voxels:
            return tiles.new_zeros((len(tiles), 0, *tiles.shape[2:]), dtype=torch.float32)
        logits = levels[0]
        n_logits = len(self.plan.label_values) + (self.plan.activation == "softmax")
        if logits.shape != (len(tiles), n_logits, *tiles.shape[2:]):
            raise GeometryError(
                f"The network gave {tuple(logits.shape)} for tiles {tuple(tiles.shape)}; the plan "
                f"has {n_logits} channels of logits."
            )
        return label_probabilities(logits, self.plan)


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
) -> Float[Tensor, "k *spatial"]:
    """Probabilities `[K, *spatial]` float32 of the plan's labels, on the image's own grid.

    `image` `[C, *spatial]` is prepared for the plan; for the rest see `SlidingWindow`.
    """
    window = SlidingWindow(
        (network,),
        plan,
        overlap=overlap,
        flips=flips,
        batch_size=batch_size,
        device=device,
        dtype=dtype,
    )
    store = Store((plan.n_voxel_channels, *image.shape[1:]), dtype=torch.float32)
    return window(image, store=store)[0].values


def flip_axes(plan: Plan) -> tuple[tuple[int, ...], ...]:
    """Every set of spatial axes to mirror, the empty one first.

    An X-ray is seen only as it is: a radiograph has an up and a side, and the network was trained
    on no mirrored one.
    """
    axes = () if plan.modality == "xray" else tuple(range(plan.dims))
    return tuple(c for n in range(len(axes) + 1) for c in combinations(axes, n))


def device_of(network: nn.Module) -> torch.device:
    """Where the network's weights lie; the CPU when it has none."""
    first = next(network.parameters(), None)
    return torch.device("cpu") if first is None else first.device


def _region(
    shape: tuple[int, ...], tile_shape: tuple[int, ...], body: Body | None
) -> tuple[slice, ...]:
    """The part of the image that tiles cover: the body's box, at least a tile wide if it can be."""
    if body is None:
        return tuple(slice(0, n) for n in shape)
    region = []
    for box, tile, n in zip(body.box, tile_shape, shape, strict=True):
        width = max(box.stop - box.start, min(tile, n))
        missing = width - (box.stop - box.start)
        start = min(max(box.start - missing // 2, 0), n - width)
        region.append(slice(start, start + width))
    return tuple(region)


def _moved(grid: TileGrid, i: int, offset: Sequence[int]) -> tuple[slice, ...]:
    """Tile i in voxels of the image, cut where it reaches before its first."""
    pairs = zip(grid.slices(i), offset, strict=True)
    return tuple(slice(max(s.start + o, 0), max(s.stop + o, 0)) for s, o in pairs)


def _padded(image: Tensor, grid: TileGrid) -> Tensor:
    """Zeros around an image smaller than the tile, as in training."""
    amounts = [n for before_after in reversed(grid.pad) for n in before_after]
    return functional.pad(image, amounts) if any(amounts) else image


def _memory(device: torch.device, n_values: int) -> torch.device:
    """The device, if float32 values fill less than half its memory; else the host."""
    if device.type == "cuda" and 4 * n_values > torch.cuda.mem_get_info(device)[0] / 2:
        return torch.device("cpu")
    return device


def _in_body(boxes: Boxes, offset: Sequence[int], body: Body | None) -> Boxes:
    """The boxes in voxels of the image; those in the air are left out."""
    moved = boxes.boxes + torch.tensor([*offset, *offset])
    if body is None:
        return Boxes(moved, boxes.scores, boxes.labels)
    centre = split_box(moved)[0].long().clamp(min=0).minimum(torch.tensor(body.shape) - 1)
    inside = torch.tensor(
        [bool(body.rows(z, z + 1)[(0, *rest)]) for z, *rest in centre.tolist()], dtype=torch.bool
    )
    return Boxes(moved[inside], boxes.scores[inside], boxes.labels[inside])

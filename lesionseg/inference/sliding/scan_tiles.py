"""One image on its way under the network: which tiles of it are computed, and what they give."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from lesionseg.data.tiling import TileGrid
from lesionseg.errors import GeometryError
from lesionseg.inference.candidates.box_candidates import BoxCollector, FoundBoxes
from lesionseg.inference.sliding.body import Body
from lesionseg.inference.sliding.stitch import Stitcher, Store
from lesionseg.models.heads import DetectorOutput
from lesionseg.ops.boxes import split_box
from lesionseg.ops.transfers import to_device
from lesionseg.ops.windows import gaussian_weight
from lesionseg.plan.plan import Plan


@dataclass(frozen=True, eq=False)
class BoxView:
    """A detector's output for tiles that it saw mirrored along the spatial axes `flipped`."""

    output: DetectorOutput
    flipped: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class TileOutput:
    """Mean probabilities `[B, K, *tile]` float32 (K = 0 without voxels), and a detector's views."""

    probabilities: Tensor
    views: tuple[BoxView, ...] = ()


class ScanTiles:
    """One image on the plan's grid: its tiles, and what becomes of their outputs.

    Tiles cover the body (the whole image without one), within its box, wherever it fits inside the
    image; those that the body does not touch are left out. Probabilities are averaged with Gaussian
    weights and 0 outside the body, with or without skipping; a detector's `boxes` have their centre
    in the body. Image and sums lie on `device` if they fill less than half its memory, else in the
    host's. Raises `GeometryError` for an image that does not fit the plan.

    Args:
        image: `[C, *spatial]`, prepared for the plan.
        plan: tile shape, channels and labels.
        store: where the probabilities `[K, *spatial]` go.
        overlap: the fraction in [0, 1) of a tile that its neighbour covers too.
        body: where the patient is; None for the whole image.
        skip: whether tiles outside the body are left out.
        n_views: how often each tile is seen, networks times mirrored views.
        device: where to compute; None for the image's own.
    """

    def __init__(
        self,
        image: Float[Tensor, "c *spatial"],
        plan: Plan,
        store: Store,
        *,
        overlap: float = 0.5,
        body: Body | None = None,
        skip: bool = True,
        n_views: int = 1,
        device: torch.device | None = None,
    ) -> None:
        _refuse_misfit(image, plan)
        n_channels = plan.n_voxel_channels
        self.store, self._body = store, body
        self._region = _region(tuple(image.shape[1:]), plan.tile_shape, body)
        covered = image[(slice(None), *self._region)]
        grid = TileGrid(tuple(covered.shape[1:]), plan.tile_shape, overlap)
        n_sums = (n_channels + 1) * prod(grid.padded_shape[1:]) * plan.tile_shape[0]
        memory = _memory(device or image.device, covered.numel() + n_sums)
        self._image = _pad(to_device(covered, memory).float(), grid)
        self._grid = grid
        inside = [i for i in range(len(grid)) if self._touches_body(grid.slices(i))]
        self._tiles = inside if skip else list(range(len(grid)))
        self._collector = _collector(plan, grid, n_views, inside)
        self.boxes: FoundBoxes | None = None
        self._stitcher = Stitcher(
            grid.padded_shape,
            n_channels,
            gaussian_weight(plan.tile_shape),
            self._take_rows,
            gaps=body is not None,
            device=memory,
        )
        self.n_done, self.seconds = 0, 0.0
        self.error: Exception | None = None

    def __len__(self) -> int:
        return len(self._tiles)

    @property
    def is_closed(self) -> bool:
        """Whether nothing more is to be done: complete, or given up."""
        return self.error is not None or self.n_done == len(self)

    def tile(self, i: int) -> Tensor:
        """Tile i `[C, *tile]`, of those that are computed."""
        return self._image[(slice(None), *self._grid.slices(self._tiles[i]))]

    def put(self, i: int, output: TileOutput, row: int) -> None:
        """Take the output for tile i, one `row` of a batch; tiles come in order."""
        if self._collector is not None:
            for view in output.views:
                self._collector.add(view.output.tile(row), [self._tiles[i]], view.flipped)
        self._stitcher.add(output.probabilities[row], self._grid.slices(self._tiles[i]))
        self.n_done = i + 1
        if self.n_done == len(self):
            self._stitcher.finish()
            self._image = self._image.new_empty(0)
            self.boxes = self._found_boxes()

    def _found_boxes(self) -> FoundBoxes | None:
        """All views' boxes as one list, on the image's grid; those in the air are left out."""
        if self._collector is None:
            return None
        merged = self._collector.finish()
        offset = torch.tensor([region.start for region in self._region] * 2)
        boxes = merged.boxes + offset
        if self._body is None:
            return replace(merged, boxes=boxes)
        limit = torch.tensor(self._body.shape) - 1
        centre = split_box(boxes)[0].long().clamp(min=0).minimum(limit)
        in_body = torch.tensor(
            [bool(self._body.rows(z, z + 1)[(0, *rest)]) for z, *rest in centre.tolist()],
            dtype=torch.bool,
        )
        return FoundBoxes(boxes[in_body], merged.scores[in_body], merged.labels[in_body])

    def _touches_body(self, slices: tuple[slice, ...]) -> bool:
        if self._body is None:
            return True
        pairs = zip(slices, self._grid.pad, self._region, self._body.shape, strict=True)
        there = tuple(
            slice(max(s.start - before + region.start, 0), min(s.stop - before + region.start, n))
            for s, (before, _), region, n in pairs
        )
        return self._body.touches(there)

    def _take_rows(self, first: int, average: Tensor) -> None:
        """Put finished rows where they belong; padding is dropped and air is 0."""
        inside, *rest = self._grid.inside
        start, stop = max(first, inside.start), min(first + average.shape[1], inside.stop)
        if start >= stop:
            return
        rows = average[(slice(None), slice(start - first, stop - first), *rest)]
        offset = self._region[0].start - inside.start
        where = (slice(start + offset, stop + offset), *self._region[1:])
        if self._body is not None:
            mask = self._body.rows(where[0].start, where[0].stop)[(slice(None), *where[1:])]
            rows = rows * to_device(torch.from_numpy(mask), rows.device)
        self.store.write(where, rows)
        self.store.release()


def _collector(
    plan: Plan, grid: TileGrid, n_views: int, tiles: Sequence[int]
) -> BoxCollector | None:
    if not plan.has_boxes or plan.candidate_rule.source == "segmentation":
        return None
    return BoxCollector(grid, plan, n_views=n_views, tiles=tiles)


def _region(
    shape: tuple[int, ...], tile_shape: tuple[int, ...], body: Body | None
) -> tuple[slice, ...]:
    """The part of the image that tiles cover: the body's box, at least a tile wide if it can be."""
    if body is None:
        return tuple(slice(0, n) for n in shape)
    region = []
    for box, tile, n in zip(body.box, tile_shape, shape, strict=True):
        missing = max(min(tile, n) - (box.stop - box.start), 0)
        start = min(max(box.start - missing // 2, 0), n - (box.stop - box.start) - missing)
        region.append(slice(start, start + (box.stop - box.start) + missing))
    return tuple(region)


def _pad(image: Tensor, grid: TileGrid) -> Tensor:
    """Zeros around an image smaller than the tile, as in training."""
    amounts = [n for before_after in reversed(grid.pad) for n in before_after]
    return functional.pad(image, amounts) if any(amounts) else image


def _memory(device: torch.device, n_values: int) -> torch.device:
    """Where image and sums lie: on the device if float32 values fill less than half its memory."""
    if device.type == "cuda" and 4 * n_values > torch.cuda.mem_get_info(device)[0] / 2:
        return torch.device("cpu")
    return device


def _refuse_misfit(image: Tensor, plan: Plan) -> None:
    expected = (len(plan.channel_names), plan.dims)
    if (image.shape[0], image.ndim - 1) != expected:
        raise GeometryError(
            "The image does not fit the plan.",
            seen=f"{image.shape[0]} channels and {image.ndim - 1} spatial axes",
            expected=f"{expected[0]} channels and {expected[1]} spatial axes",
        )

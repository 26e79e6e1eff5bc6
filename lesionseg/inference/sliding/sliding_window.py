"""A network slid over whole volumes in overlapping tiles."""

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import combinations
from time import perf_counter
from typing import Generic, Self, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lesionseg.errors import ConfigError, GeometryError
from lesionseg.inference.inference_settings import Flips, InferenceSettings
from lesionseg.inference.probabilities import label_probabilities
from lesionseg.inference.sliding.scan_tiles import BoxView, ScanTiles, TileOutput
from lesionseg.inference.sliding.stitch import Store
from lesionseg.models.heads import DetectorOutput
from lesionseg.models.precision import fast_dtype
from lesionseg.plan.plan import Plan

log = logging.getLogger(__name__)

OnTile = Callable[[int, int], None]
Tag = TypeVar("Tag")


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
    """Probabilities `[K, *spatial]` float32 of the K channels of the plan, on the image's grid.

    Args:
        network: one that segments, of the plan's architecture.
        image: `[C, *spatial]`, prepared for the plan.
        plan: tile shape, channels and labels.
        overlap: the fraction in [0, 1) of a tile that its neighbour covers too.
        batch_size: tiles at a time; None is the plan's on a GPU and 1 on a CPU.
        flips: whether to average over mirrored images: 2^dims times the work.
        device: where to compute; None is the network's.
        dtype: bfloat16 or float16 computes under autocast; None chooses.
        on_tile: called with the tiles done and all tiles, after every batch.
    """
    window = SlidingWindow(
        (network,), plan, batch_size=batch_size, flips=flips, device=device, dtype=dtype
    )
    store = Store((plan.n_voxel_channels, *image.shape[1:]), dtype=torch.float32)
    scan = ScanTiles(image, plan, store, overlap=overlap, device=window.device)
    for _ in window.run(iter([Task(None, scan)]), on_tile=on_tile):
        if scan.error is not None:
            raise scan.error
    return store.values


@dataclass(frozen=True, eq=False)
class Task(Generic[Tag]):
    """A scan and what goes with it; without a scan it only keeps its place in the order."""

    tag: Tag
    scan: ScanTiles | None


class SlidingWindow:
    """Networks at work on a device: the mean of their outputs for a batch of tiles.

    Logits become probabilities before anything is averaged; what the focal loss did to them is
    undone (`plan.link`), softmax's background is dropped. A batch holds tiles of several scans and
    is always full, with zeros where tiles are lacking. So no tile's result depends on what else is
    predicted. The networks are put into eval mode. Raises `ConfigError` without a network.

    Args:
        networks: the members of an ensemble, or one network.
        plan: tile shape, channels and labels.
        batch_size: tiles at a time; None is the plan's on a GPU and 1 on a CPU.
        flips: whether to average over mirrored images (`flip_axes`): 2^dims times the work; or
            along which sets of axes images are mirrored.
        device: where to compute; None is the first network's.
        dtype: bfloat16 or float16 computes under autocast, float32 without; None chooses.
        layout: the memory format of the weights; None leaves them, for a network in training.
    """

    def __init__(
        self,
        networks: Sequence[nn.Module],
        plan: Plan,
        *,
        batch_size: int | None = None,
        flips: Flips = False,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        layout: torch.memory_format | None = None,
    ) -> None:
        if not networks:
            raise ConfigError("A predictor needs a network.", where="bundle")
        self.plan, self.device = plan, device or device_of(networks[0])
        self._dtype = dtype or fast_dtype(self.device)
        self._networks = [n.to(self.device).eval() for n in networks]
        for network in self._networks if layout else ():
            network.to(memory_format=layout)  # type: ignore[call-overload]  # torch's stub lacks it
        self.batch_size = batch_size or (plan.batch_size if self.device.type == "cuda" else 1)
        all_axes = flip_axes(plan) if flips else ((),)
        self._mirrored = flips if isinstance(flips, tuple) else all_axes
        # views that go through a network as one batch
        self._at_once = len(self._mirrored) if self.device.type == "cuda" else 1

    @classmethod
    def by_settings(
        cls,
        networks: Sequence[nn.Module],
        plan: Plan,
        settings: InferenceSettings,
        device: torch.device | None = None,
        layout: torch.memory_format | None = None,
    ) -> Self:
        """The window that a user's settings ask for."""
        if device is None and networks:
            device = device_of(networks[0])
        return cls(
            networks,
            plan,
            batch_size=settings.batch_size,
            flips=settings.flips,
            device=device,
            dtype=None if device is None else settings.dtype(device),
            layout=layout,
        )

    def run(
        self,
        tasks: Iterator[Task[Tag]],
        *,
        ready: Callable[[], bool] = lambda: True,
        on_tile: OnTile | None = None,
    ) -> Iterator[Task[Tag]]:
        """Yield the tasks in order, each when its scan is complete or has an `error`.

        For `ready` and `on_tile` see the drawing in `inference.sliding`.
        """
        waiting: list[_Tile] = []
        opened: deque[Task[Tag]] = deque()
        for task in tasks:
            opened.append(task)
            tiles = _tiles(task.scan)
            while tiles:
                waiting.append(tiles.pop(0))
                if len(waiting) == self.batch_size:
                    self._compute(waiting, on_tile)
            del task  # nothing here holds on to a volume while the next one is waited for
            if not ready():
                self._compute(waiting, on_tile)
            while opened and (opened[0].scan is None or opened[0].scan.is_closed):
                yield opened.popleft()
        self._compute(waiting, on_tile)
        yield from opened

    @property
    def n_views(self) -> int:
        """How often each tile is seen: networks times mirrored views."""
        return len(self._networks) * len(self._mirrored)

    def predict(self, tiles: Float[Tensor, "b c *tile"]) -> TileOutput:
        """The mean over networks and mirrored views; raises `GeometryError` for a misfit.

        On a GPU the views of a network are one batch, unless its memory does not suffice for them.
        """
        try:
            return self._predict(tiles)
        except torch.OutOfMemoryError:  # not tried again in here, where it holds on to memory
            if self._at_once == 1:
                raise
        log.info("The GPU's memory does not suffice for all mirrored views at once.")
        self._at_once = 1
        return self._predict(tiles)

    def _predict(self, tiles: Tensor) -> TileOutput:
        total: Tensor | None = None
        views = []
        for network in self._networks:
            for first in range(0, len(self._mirrored), self._at_once):
                some = self._mirrored[first : first + self._at_once]
                shown = [_mirrored(tiles, axes) for axes in some]
                seen = torch.cat(shown) if len(shown) > 1 else shown[0]
                output = network(seen)
                for axes, rows, p in self._of_views(some, self._probabilities(output, seen)):
                    if isinstance(output, DetectorOutput):
                        views.append(BoxView(output.tiles(rows), axes))
                    total = p if total is None else total + p
        mean = torch.as_tensor(total)
        return TileOutput(mean if self.n_views == 1 else mean / self.n_views, tuple(views))

    def _of_views(
        self, views: Sequence[tuple[int, ...]], p: Tensor
    ) -> Iterator[tuple[tuple[int, ...], slice, Tensor]]:
        """Of each view its axes, its rows in the batch and its probabilities, turned back."""
        n = len(p) // len(views)
        for i, axes in enumerate(views):
            rows = slice(i * n, (i + 1) * n)
            yield axes, rows, _mirrored(p[rows], axes)

    def _probabilities(self, output: Sequence[Tensor] | DetectorOutput, tiles: Tensor) -> Tensor:
        levels = output.segmentation if isinstance(output, DetectorOutput) else output
        if not self.plan.has_voxels:
            return tiles.new_zeros((len(tiles), 0, *tiles.shape[2:]), dtype=torch.float32)
        logits = levels[0]
        n_expected = len(self.plan.label_values) + (self.plan.activation == "softmax")
        if logits.shape != (len(tiles), n_expected, *tiles.shape[2:]):
            raise GeometryError(
                "The network's output does not fit the plan.",
                seen=tuple(logits.shape),
                expected=(len(tiles), n_expected, *tiles.shape[2:]),
            )
        return label_probabilities(logits, self.plan)

    def _compute(self, waiting: list["_Tile"], on_tile: OnTile | None) -> None:
        """Compute the tiles that wait; what goes wrong with a scan is its own error."""
        batch, waiting[:] = [t for t in waiting if t.scan.error is None], []
        if not batch:
            return
        begin = perf_counter()
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode())
            stack.enter_context(_autocast(self.device, self._dtype))
            self._predict_batch(batch)
        for tile in batch:
            tile.scan.seconds += (perf_counter() - begin) / len(batch)
        if on_tile is not None:
            on_tile(batch[-1].i + 1, len(batch[-1].scan))

    def _predict_batch(self, batch: Sequence["_Tile"]) -> None:
        """Show tiles to the networks; where that fails, those of each scan by themselves."""
        scans = list(dict.fromkeys(t.scan for t in batch))
        output: TileOutput | None = None
        try:
            tiles = [t.scan.tile(t.i) for t in batch]
            tiles += [torch.zeros_like(tiles[0])] * (self.batch_size - len(tiles))
            # tiles of one batch may lie on different devices
            output = self.predict(torch.stack([t.to(self.device) for t in tiles]))
        except Exception as error:  # not tried again in here, where it holds on to memory
            if len(scans) == 1:
                scans[0].error = error
                return
        if output is None:
            for scan in scans:
                self._predict_batch([t for t in batch if t.scan is scan])
            return
        for row, tile in enumerate(batch):
            tile.put(output, row)


@dataclass(frozen=True)
class _Tile:
    scan: ScanTiles
    i: int

    def put(self, output: TileOutput, row: int) -> None:
        """Hand the scan the output for this tile, unless the scan was given up."""
        if self.scan.error is not None:
            return
        try:
            self.scan.put(self.i, output, row)
        except Exception as error:  # a full disk, say: no other scan's fault
            self.scan.error = error


def _tiles(scan: ScanTiles | None) -> list[_Tile]:
    return [] if scan is None else [_Tile(scan, i) for i in range(len(scan))]


def flip_axes(plan: Plan) -> tuple[tuple[int, ...], ...]:
    """Every set of spatial axes to mirror, the empty one first.

    An X-ray is seen only as it is: a radiograph has an up and a side, and the network was trained
    on no mirrored one.
    """
    axes = () if plan.modality == "xray" else tuple(range(plan.dims))
    return tuple(c for n in range(len(axes) + 1) for c in combinations(axes, n))


def _mirrored(tiles: Tensor, axes: Sequence[int]) -> Tensor:
    """Tiles `[B, C, *tile]` mirrored along spatial axes."""
    return tiles.flip([axis + 2 for axis in axes]) if axes else tiles


def device_of(network: nn.Module) -> torch.device:
    """Where the network's weights lie; the CPU when it has none."""
    first = next(network.parameters(), None)
    return torch.device("cpu") if first is None else first.device


def _autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    on = dtype != torch.float32
    return torch.autocast(device.type, dtype=dtype if on else torch.bfloat16, enabled=on)

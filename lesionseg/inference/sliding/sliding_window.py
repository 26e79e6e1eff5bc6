"""A network slid over whole volumes in overlapping tiles."""

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
from lesionseg.inference.inference_settings import InferenceSettings
from lesionseg.inference.probabilities import label_probabilities
from lesionseg.inference.sliding.scan_tiles import ScanTiles
from lesionseg.inference.sliding.store import Store
from lesionseg.models.detector_output import DetectorOutput
from lesionseg.models.precision import fast_dtype
from lesionseg.plan.plan import Plan

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

    `image` is prepared for `plan`; see `ScanTiles` and `SlidingWindow` for the rest.
    """
    slider = SlidingWindow(
        (network,), plan, batch_size=batch_size, flips=flips, device=device, dtype=dtype
    )
    store = Store((plan.n_voxel_channels, *image.shape[1:]), dtype=torch.float32)
    slide = ScanTiles(image, plan, store, overlap=overlap, device=slider.device)
    for _ in slider.run(iter([Task(None, slide)]), on_tile=on_tile):
        if slide.error is not None:
            raise slide.error
    return store.values


@dataclass(frozen=True, eq=False)
class Task(Generic[Tag]):
    """A slide and what goes with it; without a slide it only keeps its place in the order."""

    tag: Tag
    slide: ScanTiles | None


@dataclass(frozen=True, eq=False)
class NetworkView:
    """What one network says of tiles mirrored along the spatial axes `flipped`."""

    output: DetectorOutput
    flipped: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class TileOutput:
    """Mean probabilities `[B, K, *tile]` float32 (K = 0 without voxels), and a detector's looks."""

    probabilities: Tensor
    looks: tuple[NetworkView, ...] = ()


class SlidingWindow:
    """Networks at work on a device: the mean of what they say of a batch of tiles.

    Logits become probabilities before anything is averaged; what the focal loss did to them is
    undone (`plan.link`), softmax's background is dropped. `flips` averages over the mirrored
    images too (`flip_axes`). `device` None is the network's. `dtype` bfloat16 or float16 computes
    under autocast, float32 without, None chooses (`models.precision`). `batch_size` None is the
    plan's on a GPU and 1 on a CPU; a batch holds tiles of several images and is always full, with
    zeros where tiles are lacking, so that no tile's result depends on what else is predicted.
    The networks are put into eval mode, and their weights into `layout`; None leaves them, since a
    network in training goes on with what it is left with. Raises `ConfigError` without a network.
    """

    def __init__(
        self,
        networks: Sequence[nn.Module],
        plan: Plan,
        *,
        batch_size: int | None = None,
        flips: bool = False,
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
        self._views = flip_axes(plan) if flips else ((),)

    @classmethod
    def by_settings(
        cls,
        networks: Sequence[nn.Module],
        plan: Plan,
        settings: InferenceSettings,
        device: torch.device | None = None,
        layout: torch.memory_format | None = None,
    ) -> Self:
        """The slider that a user's settings ask for."""
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
        """Yield the tasks in order, each when its slide is complete or has an `error`.

        `ready()` tells whether the next task can be had without waiting; if not, tiles are not
        kept waiting for company. `on_tile(done, total)` is called after every batch.
        """
        waiting: list[_Tile] = []
        opened: deque[Task[Tag]] = deque()
        for task in tasks:
            opened.append(task)
            tiles = _tiles(task.slide)
            while tiles:
                waiting.append(tiles.pop(0))
                if len(waiting) == self.batch_size:
                    self._compute(waiting, on_tile)
            del task  # nothing here holds on to a volume while the next one is waited for
            if not ready():
                self._compute(waiting, on_tile)
            while opened and (opened[0].slide is None or opened[0].slide.is_closed):
                yield opened.popleft()
        self._compute(waiting, on_tile)
        yield from opened

    @property
    def n_looks(self) -> int:
        """How often each tile is seen."""
        return len(self._networks) * len(self._views)

    def look(self, tiles: Float[Tensor, "b c *tile"]) -> "TileOutput":
        """What networks and mirrored views say; raises `GeometryError` for a misfit."""
        total: Tensor | None = None
        looks = []
        for network in self._networks:
            for axes in self._views:
                turned = [axis + 2 for axis in axes]
                output = network(tiles.flip(turned) if axes else tiles)
                if isinstance(output, DetectorOutput):
                    looks.append(NetworkView(output, axes))
                found = self._probabilities(output, tiles)
                found = found.flip(turned) if axes else found
                total = found if total is None else total + found
        mean = (
            torch.as_tensor(total) if self.n_looks == 1 else torch.as_tensor(total) / self.n_looks
        )
        return TileOutput(mean, tuple(looks))

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
        """Compute the tiles that wait; what goes wrong with a slide is its own error."""
        batch, waiting[:] = [t for t in waiting if t.slide.error is None], []
        if not batch:
            return
        begin = perf_counter()
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode())
            stack.enter_context(_autocast(self.device, self._dtype))
            self._pass(batch)
        for tile in batch:
            tile.slide.seconds += (perf_counter() - begin) / len(batch)
        if on_tile is not None:
            on_tile(batch[-1].i + 1, len(batch[-1].slide))

    def _pass(self, batch: Sequence["_Tile"]) -> None:
        """Show tiles to the networks; where that fails, those of each slide by themselves."""
        slides = list(dict.fromkeys(t.slide for t in batch))
        try:
            tiles = [t.slide.tile(t.i) for t in batch]
            tiles += [torch.zeros_like(tiles[0])] * (self.batch_size - len(tiles))
            # tiles of one batch may lie on different devices
            seen = self.look(torch.stack([t.to(self.device) for t in tiles]))
        except Exception as error:
            if len(slides) == 1:
                slides[0].error = error
                return
            seen = None  # not tried again in here, where the error holds on to memory
        if seen is None:
            for slide in slides:
                self._pass([t for t in batch if t.slide is slide])
            return
        for row, tile in enumerate(batch):
            tile.take(seen, row)


@dataclass(frozen=True)
class _Tile:
    slide: ScanTiles
    i: int

    def take(self, seen: TileOutput, row: int) -> None:
        """Hand the slide what was seen of its tile, unless it was given up."""
        if self.slide.error is not None:
            return
        try:
            for look in seen.looks:
                self.slide.see(self.i, look.output.tile(row), look.flipped)
            self.slide.put(self.i, seen.probabilities[row])
        except Exception as error:  # a full disk, say: no other slide's fault
            self.slide.error = error


def _tiles(slide: ScanTiles | None) -> list[_Tile]:
    return [] if slide is None else [_Tile(slide, i) for i in range(len(slide))]


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


def _autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    on = dtype != torch.float32
    return torch.autocast(device.type, dtype=dtype if on else torch.bfloat16, enabled=on)

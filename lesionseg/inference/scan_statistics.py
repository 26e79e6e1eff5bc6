"""What is taken of a scan to compare it with the training scans: a vector of numbers per kind."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from lesionseg.core import Geometry
from lesionseg.data.tiling import TileGrid
from lesionseg.models.backbone import Encoder
from lesionseg.plan.fingerprint import canonical_order
from lesionseg.plan.plan import Plan

Vector: TypeAlias = NDArray[np.float64]
Sample: TypeAlias = NDArray[np.float32]

QUANTILES = (1, 5, 25, 50, 75, 95, 99)
N_SAMPLED, N_THUMBNAIL, N_TILES = 48, 8, 2


@dataclass(frozen=True, eq=False)
class ScanStatistics:
    """What is compared of one scan: a vector of each kind, and a thumbnail `[C, 8, …]`."""

    vectors: Mapping[str, Vector]
    thumbnail: NDArray[np.float32]


def entry_names(plan: Plan) -> dict[str, list[str]]:
    """What each number of a vector is, by kind; of features only the network knows."""
    axes = ("S", "A", "R") if plan.dims == 3 else ("the columns", "the rows")
    channels, orders = plan.channel_names, ("first", "second")
    quantiles = [f"the {q} % quantile of channel {c}" for c in channels for q in QUANTILES]
    pairs = [f"the correlation of {a} and {b}" for a, b in combinations(channels, 2)]
    return {
        "grid": [f"{what} along {a} in mm" for what in ("the spacing", "the extent") for a in axes],
        "intensity": quantiles + pairs,
        "empty": [
            f"the share without detail of the {half} half of {c} along {a}"
            for c in channels
            for a in axes
            for half in orders
        ],
        "sharpness": [
            f"the mean {n} difference of neighbours along {a} in {c}"
            for c in channels
            for a in axes
            for n in orders
        ],
        "orientation": [
            "the correlation of the coarse image with the training scans' mean",
            "the gain of that correlation by turning or mirroring",
        ],
    }


def scan_statistics(
    image: NDArray[Any], file: Geometry, network: nn.Module, plan: Plan
) -> ScanStatistics:
    """Statistics of a prepared image `[C, *plan]` whose file's grid was `file`."""
    order = canonical_order(file)
    vectors, thumbnail = image_statistics(image)
    vectors["grid"] = grid_vector(
        [file.shape[a] for a in order], [file.spacing_mm[a] for a in order]
    )
    features = pooled_features(network, image, plan)
    return ScanStatistics(
        vectors if features is None else {**vectors, "features": features}, thumbnail
    )


def grid_vector(shape: Sequence[int], spacing_mm: Sequence[float]) -> Vector:
    """Logarithms of the voxels' and the scan's sides in mm, `[2 · dims]`."""
    spacing = np.asarray(spacing_mm, dtype=np.float64)
    return np.asarray(np.log(np.concatenate([spacing, np.asarray(shape) * spacing])))


def image_statistics(image: NDArray[Any]) -> tuple[dict[str, Vector], NDArray[np.float32]]:
    """Intensities, emptiness and sharpness of an image `[C, *spatial]`, and its thumbnail.

    At most 48 places along each axis are looked at, with their next two neighbours. Per channel:
    quantiles of what is above its minimum, then correlations of channels; the share of either half
    of each axis that equals its neighbours; logarithms of the mean first and second difference.
    """
    here, ahead = _sampled(image)
    dims = here.ndim - 1
    quantiles, empty, sharp = [], [], []
    for c, channel in enumerate(here):
        inside = channel[channel > channel.min()]
        quantiles += np.percentile(inside if inside.size else channel, QUANTILES).tolist()
        flat = np.all([np.float16(channel) == np.float16(a[0][c]) for a in ahead], axis=0)
        for axis, (one, two) in enumerate(ahead):
            empty += [half.mean() for half in np.array_split(flat, 2, axis)]
            first, second = one[c] - channel, two[c] - 2 * one[c] + channel
            is_textured = ~flat if not flat.all() else flat
            sharp += [np.log(np.abs(d[is_textured]).mean() + 1e-3) for d in (first, second)]
    if len(here) > 1:
        with np.errstate(invalid="ignore"):
            r = np.atleast_2d(np.nan_to_num(np.corrcoef(here.reshape(len(here), -1))))
        quantiles += [r[pair] for pair in combinations(range(len(here)), 2)]
    vectors = {"intensity": quantiles, "empty": empty, "sharpness": sharp}
    pool = functional.adaptive_avg_pool2d if dims == 2 else functional.adaptive_avg_pool3d
    thumbnail = pool(torch.from_numpy(here), N_THUMBNAIL).numpy()
    return {kind: np.array(v, dtype=np.float64) for kind, v in vectors.items()}, thumbnail


def _sampled(
    image: NDArray[Any],
) -> tuple[NDArray[np.float32], list[tuple[NDArray[np.float32], NDArray[np.float32]]]]:
    """Evenly spaced voxels, and of each axis those one and two further on."""
    n_channels, *shape = image.shape
    places = [np.unique(np.linspace(0, max(n - 3, 0), N_SAMPLED).astype(int)) for n in shape]

    def at(axis: int, step: int) -> NDArray[np.float32]:
        moved = [
            np.minimum(p + step * (a == axis), n - 1)
            for a, (p, n) in enumerate(zip(places, shape, strict=True))
        ]
        return np.asarray(image[np.ix_(range(n_channels), *moved)], dtype=np.float32)

    return at(0, 0), [(at(axis, 1), at(axis, 2)) for axis in range(len(shape))]


def orientation(thumbnail: NDArray[np.float32], template: NDArray[np.float32]) -> Vector:
    """Correlation of a thumbnail with a template, and by how much a turned one's is higher."""
    axes = range(1, thumbnail.ndim)
    wanted = _standardised(template)
    fits = [
        float((_standardised(np.flip(thumbnail.transpose(0, *order), flipped)) * wanted).mean())
        for order in permutations(axes)
        for n in range(thumbnail.ndim)
        for flipped in combinations(axes, n)
    ]
    return np.array([fits[0], max(fits[1:]) - fits[0]])


def _standardised(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray((values - values.mean()) / (values.std() + 1e-6))


@torch.inference_mode()
def pooled_features(network: nn.Module, image: NDArray[Any], plan: Plan) -> Vector | None:
    """Means and standard deviations of the backbone's second stage over a few tiles, `[2 · width]`.

    None for a network without an encoder of ours.
    """
    encoder = getattr(network, "encoder", None)
    if encoder is None:
        return None
    device = next(network.parameters()).device
    was_training = network.training
    network.eval()
    features = []
    for tile in _tiles(image, plan):
        one = tile[None].to(device)
        maps = encoder(one, 2) if isinstance(encoder, Encoder) else encoder(one)
        second = maps[:2][-1][0].flatten(1).float()
        features.append(torch.cat([second.mean(1), second.std(1)]).cpu())
    network.train(was_training)
    return torch.stack(features).mean(0).double().numpy()


def _tiles(image: NDArray[Any], plan: Plan) -> Iterator[Tensor]:
    """A few tiles `[C, *tile]`, evenly spaced over those that cover the image."""
    grid = TileGrid(tuple(image.shape[1:]), plan.tile_shape, 0.0)
    inner = np.linspace(0, len(grid) - 1, N_TILES + 2)[1:-1]
    for i in np.unique(inner.round().astype(int)):
        slices = [
            slice(max(s.start - before, 0), max(s.stop - before, 0))
            for s, (before, _) in zip(grid.slices(int(i)), grid.pad, strict=True)
        ]
        part = torch.from_numpy(np.array(image[(slice(None), *slices)], dtype=np.float32))
        yield functional.pad(part, [n for pair in reversed(grid.pad) for n in pair])

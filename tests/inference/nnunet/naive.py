"""A naive implementation of nnU-Net's prediction, with loops, SciPy and whole arrays."""

from itertools import combinations, product
from math import ceil

import numpy as np
import torch
from scipy import ndimage

from tests.inference.nnunet.small_models import LOGIT_OPTIONS


def predict(model, image, spacing, *, mirrored):
    """Return the probabilities `[K, z, y, x]` of an image `[C, z, y, x]` in its own axis order."""
    axes = [1 + a for a in model.transpose]
    image = image.transpose(0, *axes).astype(np.float64)
    spacing = tuple(spacing[a] for a in model.transpose)
    present = ndimage.binary_fill_holes((image != 0).any(axis=0))
    places = np.argwhere(present)
    crop = tuple(slice(a, b + 1) for a, b in zip(places.min(0), places.max(0), strict=True))
    whole = image.shape[1:]
    image = image[(slice(None), *crop)]
    present = present[crop]
    image = np.stack(
        [normalise_channel(model, c, channel, present) for c, channel in enumerate(image)]
    )
    target = model.spacing if len(model.spacing) == 3 else (spacing[0], *model.spacing)
    shape = [round(a / b * n) for a, b, n in zip(spacing, target, image.shape[1:], strict=True)]
    cropped = image.shape[1:]
    image = np.stack([resize(c, shape, spacing, target, model.image_options) for c in image])
    logits = slide(model, image, mirrored)
    logits = np.stack([resize(c, cropped, target, spacing, LOGIT_OPTIONS) for c in logits])
    if model.regions_class_order:
        p = 1 / (1 + np.exp(-logits))
    else:
        p = (np.exp(logits) / np.exp(logits).sum(0))[1:]
    out = np.zeros((len(p), *whole))
    out[(slice(None), *crop)] = p
    return out.transpose(0, *(1 + model.transpose.index(a) for a in range(3)))


def normalise_channel(model, c, channel, present):
    """Normalise one channel by the model's scheme."""
    scheme = model.schemes[c]
    if scheme == "ZScoreNormalization":
        inside = present if model.use_mask[c] else np.ones_like(present)
        scaled = (channel - channel[inside].mean()) / channel[inside].std()
        return np.where(inside, scaled, channel)
    if scheme == "CTNormalization":
        return (channel.clip(-20, 150) - 60) / 40
    if scheme == "RescaleTo01Normalization":
        return (channel - channel.min()) / (channel.max() - channel.min())
    return channel / 255 if scheme == "RGBTo01Normalization" else channel


def resize(array, shape, before, after, options):
    """Resize one channel. Thick slices are resized one by one, then along their axis."""
    if tuple(shape) == array.shape:
        return array
    order = options.get("order", 3)
    axis = None
    for spacing in (before, after):
        if axis is None and max(spacing) / min(spacing) > 3 and spacing.count(max(spacing)) == 1:
            axis = int(np.argmax(spacing))
    if axis is None:
        return zoom(array, shape, order)
    planes = [n for a, n in enumerate(shape) if a != axis]
    stack = np.stack([zoom(p, planes, order) for p in np.moveaxis(array, axis, 0)], axis)
    sizes = zip(shape, stack.shape, strict=True)
    places = [(np.arange(n) + 0.5) * m / n - 0.5 for n, m in sizes]
    grid = np.meshgrid(*places, indexing="ij")
    return ndimage.map_coordinates(stack, grid, order=options.get("order_z", 0), mode="nearest")


def zoom(array, shape, order):
    """Zoom an array by splines of one order. The values stay within the array's range."""
    factors = np.divide(shape, array.shape)
    larger = ndimage.zoom(array, factors, order=order, mode="nearest", grid_mode=True)
    return larger.clip(array.min(), array.max())


def slide(model, image, mirrored):
    """Average the logits over overlapping tiles, mirrored views and folds."""
    flat = len(model.patch) == 2
    tile = (1, *model.patch) if flat else model.patch
    missing = [max(t - n, 0) for t, n in zip(tile, image.shape[1:], strict=True)]
    pad = [(0, 0), *((m // 2, m - m // 2) for m in missing)]
    padded = np.pad(image, pad)
    spike = np.zeros(tile)
    spike[tuple(t // 2 for t in tile)] = 1
    weight = ndimage.gaussian_filter(spike, [t / 8 for t in tile], mode="constant")
    weight = (weight / weight.max() * 10).astype(np.float16).astype(np.float64)
    weight[weight == 0] = weight[weight > 0].min()
    total = np.zeros((model.n_outputs, *padded.shape[1:]))
    weights = np.zeros(padded.shape[1:])
    networks = [model.network(fold) for fold in range(model.n_folds)]
    allowed = model.mirror_axes if mirrored else ()
    views = [c for n in range(len(allowed) + 1) for c in combinations(allowed, n)]
    for starts in product(*map(tile_starts, padded.shape[1:], tile)):
        place = tuple(slice(s, s + t) for s, t in zip(starts, tile, strict=True))
        batch = torch.from_numpy(padded[(slice(None), *place)]).float()[None]
        batch = batch[:, :, 0] if flat else batch
        mean = 0
        for network in networks:
            for view in views:
                flips = [a + 2 for a in view]
                with torch.no_grad():
                    mean = mean + network(batch.flip(flips))[0].flip(flips)
        output = (mean / (len(networks) * len(views)))[0].double().numpy()
        total[(slice(None), *place)] += weight * output.reshape(len(output), *tile)
        weights[place] += weight
    inside = tuple(slice(a, a + n) for (a, _), n in zip(pad[1:], image.shape[1:], strict=True))
    return (total / weights)[(slice(None), *inside)]


def tile_starts(n, tile):
    """Return the starts of tiles that overlap by half."""
    count = ceil((n - tile) / (tile * 0.5)) + 1
    step = (n - tile) / (count - 1) if count > 1 else 0
    return [int(np.round(step * i)) for i in range(count)]

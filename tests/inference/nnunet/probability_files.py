"""Folders in the form that nnUNetv2_predict --save_probabilities writes."""

import numpy as np

from lesionseg.core import Volume
from lesionseg.io.text import write_json
from lesionseg.io.volumes import write_volume
from tests.grids import unit_grid


def softmax_of(*labels):
    """Make probabilities `[1 + K, *spatial]` float32 with the background first."""
    foreground = np.stack(labels).astype(np.float64)
    background = 1 - foreground.sum(axis=0, keepdims=True)
    return np.concatenate([background, foreground]).astype(np.float32)


def blobs(shape, *places):
    """Draw cubes, each given by first voxel, side and probability. Other voxels have 0.001."""
    p = np.full(shape, 0.001)
    for first, side, value in places:
        p[tuple(slice(a, a + side) for a in first)] = value
    return p


def write_outputs(folder, case, probabilities, mask, geometry=None, suffix=".nii.gz"):
    """Write the archive and the mask of one case."""
    folder.mkdir(parents=True, exist_ok=True)
    grid = geometry or unit_grid(*mask.shape)
    write_volume(folder / f"{case}{suffix}", Volume(mask[None].astype(np.uint8), grid))
    np.savez_compressed(folder / f"{case}.npz", probabilities=probabilities)


def write_labels(folder, labels, **more):
    """Write the `dataset.json` that nnU-Net copies into an output folder."""
    info = {"channel_names": {"0": "FLAIR"}, "labels": labels, "file_ending": ".nii.gz", **more}
    write_json(folder / "dataset.json", info)

"""Small masks, scans and commands for the tests of several recipes."""

import numpy as np

from lesionseg.core import Geometry, Volume
from lesionseg.io.text import write_json
from lesionseg.io.volumes import write_volume
from lesionseg.phantoms import write_xray_phantoms


def boxes(shape, *places, value=1):
    """Return a mask `[z, y, x]` of cubes. A place is a cube's first voxel and its side."""
    mask = np.zeros(shape, np.uint8)
    for *first, side in places:
        mask[tuple(slice(a, a + side) for a in first)] = value
    return mask


def write_array(path, array, geometry=None):
    """Write an array as an image file. Without a geometry, the voxels measure 1 mm."""
    grid = geometry or Geometry.from_spacing(array.shape, (1.0,) * array.ndim)
    write_volume(path, Volume(array[None], grid))


def write_scan(path, geometry, seed=0):
    noise = np.random.default_rng(seed).normal(100, 10, geometry.shape)
    write_array(path, noise.astype(np.float32), geometry)


def write_boxes(folder, case, *boxes, **more):
    """Write candidates without masks, as any program may. A box: score, start, stop, label."""
    keys = ("score", "start_vox", "stop_vox", "label")
    candidates = [dict(zip(keys, box, strict=False)) for box in boxes]
    write_json(folder / f"{case}_candidates.json", {"candidates": candidates, **more})


def small_training(folder, *more, n_cases=3):
    """Draw radiographs and return the arguments of a training of one step."""
    write_xray_phantoms(folder / "raw", n_cases, seed=0, shape=(48, 48), pixel_mm=8.0)
    small = "max_minutes=null max_steps=1 workers=0"
    command = [f"data.root={folder / 'raw'}", f"run_dir={folder / 'run'}", "report.pdf=false"]
    command += [f"trainer.{setting}" for setting in small.split()]
    command += ["model.tile_shape=[32,32]", "model.batch_size=1", "model.base_features=4"]
    return [*command, *more]


def counts(scores, *names):
    """Return several counts of scores, in the order of their names."""
    return tuple(scores.count(name) for name in names)

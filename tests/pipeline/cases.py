"""Small masks, scans and commands for the tests of several recipes."""

import gzip

import numpy as np

from lesionseg.core import Geometry, Volume
from lesionseg.io.text import write_json
from lesionseg.io.volumes import write_volume
from lesionseg.phantoms import write_xray_phantoms
from tests.commands import predict
from tests.inference.networks import make_bright
from tests.io.dicom_files import CT, grid_of, slice_elements, write_dicom_file


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


def write_dicom_series(folder, voxels, uid, prefix="", **elements):
    """Write an MR series with slices 2 mm apart. An array `[z, y, x]` has a file per slice."""
    grid = grid_of("SPL", spacing=(2.0, 1.0, 1.0), shape=voxels.shape)
    shared = {"Modality": "MR", "SeriesInstanceUID": uid, "SeriesNumber": 3}
    shared |= {"RescaleSlope": 1, "RescaleIntercept": 0, **elements}
    for z, pixels in enumerate(voxels.astype(np.int16)):
        file = folder / f"{prefix}{z:03d}.dcm"
        write_dicom_file(file, pixels, CT, **shared, **slice_elements(grid, z))


def predict_bright(bundle, source, output, **options):
    """Run `predict` with a bundle of the network `Bright`. DICOM results are written on request."""
    options = {"dicom_output": False, "architectures": {"mine": make_bright}, **options}
    return predict(bundle, source, output, device="cpu", **options)


def statuses(outcome):
    """Return the status of each case of a prediction."""
    return {row.case: row.status for row in outcome.rows}


def contents(folder):
    """Return the content of every result by name.

    Tables and files of failures are left out because they contain times.
    """
    found = {}
    for file in folder.iterdir():
        if file.is_file() and not file.name.endswith((".csv", ".log", "_failed.json")):
            content = file.read_bytes()
            found[file.name] = gzip.decompress(content) if file.suffix == ".gz" else content
    return found


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

"""Peak memory of preparing and reading a dataset of 10 and of 1 000 small simulated cases.

    python benchmarks/memory_loading.py [N ...]

Each number of cases runs in a process of its own, which prepares all of them with as many workers
as there are cores and then reads 500 augmented tiles. Prints the peak resident memory in MB.
"""

import multiprocessing
import resource
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from bench_loading import lesions, make_plan

from lesionseg.core import Case, CaseFiles, Dataset, Geometry, Reference, Volume
from lesionseg.data.augment import AugmentationSettings, build_augmentation
from lesionseg.data.fill import fill_cache
from lesionseg.data.dataset import TileDataset
from lesionseg.data.sampling import TileSampler

SHAPE, TILE = (64, 72, 64), (48, 48, 48)


def main() -> None:
    """One line for each number of cases."""
    sizes = [int(n) for n in sys.argv[1:]] or [10, 1000]
    for n in sizes:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            print(f"{n:5} cases: peak {pool.apply(walk, (n,)):.0f} MB", flush=True)


def walk(n: int) -> float:
    """Prepare and read; the process's peak resident memory in MB."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source"
        source.write_bytes(b"simulated")
        files = [CaseFiles(f"c{i:04}", (source,), source, group=f"g{i}") for i in range(n)]
        dataset = Dataset("toy", Path(folder), "manifest", 3, ("T1",), {1: "x"}, tuple(files))
        plan = make_plan().with_(tile_shape=TILE)
        cases = fill_cache(dataset, files, plan, Path(folder) / "cache", read=simulate)
        sampler = TileSampler(cases, TILE, n_tiles=500, seed=0)
        change = build_augmentation(AugmentationSettings(), plan)
        tiles = TileDataset(cases, sampler, change, TILE)
        for i in range(500):
            tiles[i]
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def simulate(files: CaseFiles) -> Case:
    """Noise and cubes instead of a file."""
    rng = np.random.default_rng(int(files.case[1:]))
    geometry = Geometry.from_spacing(SHAPE, (1.0, 1.0, 1.0))
    image = rng.normal(size=(1, *SHAPE)).astype(np.float32)
    return Case(
        files.case, Volume(image, geometry), Reference(geometry, lesions(rng, SHAPE)), files.group
    )


if __name__ == "__main__":
    main()

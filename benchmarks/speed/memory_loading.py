"""Peak memory of preparing and reading a dataset of 10 and of 1 000 small simulated cases.

    python benchmarks/speed/memory_loading.py [--quick] [N ...]

Each number of cases runs in a process of its own, which prepares all of them with as many workers
as there are cores and then reads augmented tiles. Prints the peak resident memory in MB, and how
many bytes each case takes: its names (`CaseFiles`), its entry of the open cache, its share of the
sampler (counted by tracemalloc). `--quick`: smaller cases.
"""

import argparse
import gc
import multiprocessing
import resource
import tempfile
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.bench_loading import lesions, make_plan
from lesionseg.core import Case, CaseFiles, Dataset, Geometry, Reference, Volume
from lesionseg.data.augment import AugmentationSettings
from lesionseg.data.cache import fill_cache
from lesionseg.data.sampling import SamplingSettings, TileSampler
from lesionseg.data.tiles import TileDataset


@dataclass(frozen=True)
class Sizes:
    """Voxels of a case and of a tile, and how many tiles are read."""

    case: tuple[int, ...] = (64, 72, 64)
    tile: tuple[int, ...] = (48, 48, 48)
    n_tiles: int = 500


QUICK = Sizes((24, 28, 24), (16, 16, 16), 100)
COUNTED = 200  # cases; each takes as many bytes as the next, and counting is slow


@dataclass(frozen=True)
class Used:
    """Peak resident memory in MB, and bytes that one case takes in memory."""

    peak_mb: float
    files: float
    entry: float
    sampler: float
    lesions: float


def main() -> None:
    """One line for each number of cases."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("n", type=int, nargs="*", default=[10, 1000])
    chosen = parser.parse_args()
    for n, used in measure(chosen.n, QUICK if chosen.quick else Sizes()).items():
        print(
            f"{n:5} cases: peak {used.peak_mb:.0f} MB; bytes a case of {used.lesions:.1f} lesions: "
            f"names {used.files:.0f}, entry {used.entry:.0f}, sampler {used.sampler:.0f}",
            flush=True,
        )


def measure(numbers: list[int], sizes: Sizes) -> dict[int, Used]:
    """What each number of cases takes; each in a process of its own, all at once."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(len(numbers), mp_context=context) as pool:
        return dict(zip(numbers, pool.map(partial(walk, sizes=sizes), numbers), strict=True))


def walk(n: int, sizes: Sizes) -> Used:
    """Prepare and read, note the peak; then open all once more and count."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        source = place / "source"
        source.write_bytes(b"simulated")
        plan = make_plan().with_(tile_shape=sizes.tile)
        dataset = Dataset("toy", place, "manifest", 3, ("T1",), {1: "x"}, tuple(name(source, n)))
        fill = partial(
            fill_cache, dataset, dataset.cases, plan, place / "cache", read=partial(simulate, sizes)
        )
        cases = fill()
        tiles = TileDataset(
            cases, plan, SamplingSettings(), AugmentationSettings(), n_tiles=sizes.n_tiles, seed=0
        )
        for i in range(sizes.n_tiles):
            tiles[i]
        peak = peak_mb()
        some = dataset.cases[:COUNTED]
        again = partial(fill_cache, dataset, some, plan, place / "cache", read=refuse, workers=1)
        sampler = partial(TileSampler, settings=SamplingSettings())
        return Used(
            peak,
            files=growth(lambda: name(source, n)) / n,
            entry=growth(again) / len(some),
            sampler=growth(lambda: sampler(cases, sizes.tile, n_tiles=100, seed=0)) / n,
            lesions=sum(len(case.lesions) for case in cases) / n,
        )


def refuse(files: CaseFiles) -> Case:
    """All cases are in the cache by now."""
    raise AssertionError(files.case)


def peak_mb() -> float:
    """The most memory this process has had in use; of its own, not of the one it came from."""
    status = Path("/proc/self/status")
    if status.exists():
        words = status.read_text().split()
        return int(words[words.index("VmHWM:") + 1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def growth(make: Callable[[], object]) -> float:
    """Bytes that what `make` returns holds."""
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    kept = make()
    gc.collect()
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    del kept
    return grown


def name(source: Path, n: int) -> list[CaseFiles]:
    """Cases that all name one file."""
    files = Path(source)
    return [CaseFiles(f"c{i:07}", (files,), files, group=f"g{i}") for i in range(n)]


def simulate(sizes: Sizes, files: CaseFiles) -> Case:
    """Noise and cubes instead of a file."""
    rng = np.random.default_rng(int(files.case[1:]))
    geometry = Geometry.from_spacing(sizes.case, (1.0, 1.0, 1.0))
    image = rng.normal(size=(1, *sizes.case)).astype(np.float32)
    return Case(
        files.case,
        Volume(image, geometry),
        Reference(geometry, lesions(rng, sizes.case)),
        files.group,
    )


if __name__ == "__main__":
    main()

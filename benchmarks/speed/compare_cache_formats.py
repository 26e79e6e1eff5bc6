"""The formats a cache may have, side by side: writing a case, reading tiles of it, its size.

    python benchmarks/speed/compare_cache_formats.py [N]

One 192 × 224 × 192 case of float16: noise inside an ellipsoid, zeros outside. N (40) tiles of 96³
at random places are read from each format in turn, each time from the opened file; the medians are
shown, by the clock. Files are in the operating system's cache. Then eight cases of 112 × 160 × 144
are prepared (oriented, resampled, normalised) by one and two threads, and by two processes.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import torch
import zarr
from zarr.codecs import BloscCodec

from benchmarks.bench_loading import CASE, TILE, lesions, make_plan
from lesionseg.core import Case, Geometry, Reference, Volume
from lesionseg.data.prepared_case import prepare_case
from lesionseg.data.tiling import read_tile

Array = np.ndarray[Any, Any]
SMALL = (112, 160, 144)


def main() -> None:
    """Print two tables."""
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 40
    torch.set_num_threads(1)
    blosc2.set_nthreads(1)
    zarr.config.set({"threading.max_workers": 1, "async.concurrency": 1})
    with tempfile.TemporaryDirectory() as folder:
        formats(Path(folder), n)
    prepare()


def formats(folder: Path, n: int) -> None:
    """Write once, then read n tiles from each in turn."""
    image, rng = volume(), np.random.default_rng(1)
    opened, lines = {}, {}
    for name, (write, read) in kinds().items():
        path = folder / name.replace(" ", "_")
        begin = time.perf_counter()
        write(path, image)
        lines[name] = f"{(time.perf_counter() - begin) * 1e3:8.0f} ms {size_mb(path):8.1f} MB"
        opened[name] = (path, read)
    times: dict[str, list[float]] = {name: [] for name in opened}
    for i in range(n + 1):
        start = [int(rng.integers(s - t + 1)) for s, t in zip(CASE, TILE, strict=True)]
        for name, (path, read) in opened.items():
            begin = time.perf_counter()
            tile = read(path, start)
            if i:
                times[name].append((time.perf_counter() - begin) * 1e3)
            assert tile.shape == (1, *TILE)
    print(f"{'format':<28} {'a tile':>11} {'writing':>11} {'on disk':>11}")
    for name, line in lines.items():
        print(f"{name:<28} {np.median(times[name]):8.2f} ms {line}")


def kinds() -> dict[str, tuple[Callable[[Path, Array], None], Callable[[Path, list[int]], Array]]]:
    """How each format is written, and how a tile is read from the closed file."""
    fast, small = ("lz4", blosc2.Codec.LZ4, 5), ("zstd", blosc2.Codec.ZSTD, 5)
    return {
        "npy memory map": (np_write, np_read),
        "blosc2 LZ4, chunks 32³": (blosc_writer(fast, 32), blosc_read),
        "blosc2 Zstandard, chunks 96³": (blosc_writer(small, 96), blosc_read),
        "zarr 3 LZ4, chunks 32³": (zarr_writer(fast, 32), zarr_read),
        "zarr 3 Zstandard, chunks 96³": (zarr_writer(small, 96), zarr_read),
        "zarr 3 plain, chunks 32³": (zarr_writer(None, 32), zarr_read),
    }


def np_write(path: Path, image: Array) -> None:
    """As the cache does."""
    with path.open("wb") as stream:
        np.save(stream, image)


def np_read(path: Path, start: list[int]) -> Array:
    """Its header parsed anew, which the cache spares itself."""
    return read_tile(np.load(path, mmap_mode="r"), start, TILE)


def blosc_writer(codec: tuple[str, Any, int], chunk: int) -> Callable[[Path, Array], None]:
    """blosc2 with its shuffle filter."""

    def write(path: Path, image: Array) -> None:
        settings = {"codec": codec[1], "clevel": codec[2], "nthreads": 1}
        chunks = (1, chunk, chunk, chunk)
        blosc2.asarray(image, chunks=chunks, urlpath=str(path), cparams=settings)

    return write


def blosc_read(path: Path, start: list[int]) -> Array:
    """A slice of the opened file."""
    where = (slice(None), *(slice(s, s + t) for s, t in zip(start, TILE, strict=True)))
    return np.asarray(blosc2.open(str(path), mode="r")[where])


def zarr_writer(codec: tuple[str, Any, int] | None, chunk: int) -> Callable[[Path, Array], None]:
    """zarr with one file a chunk."""

    def write(path: Path, image: Array) -> None:
        packed = None if codec is None else BloscCodec(cname=codec[0], clevel=codec[2])
        made = zarr.create_array(
            store=str(path),
            shape=image.shape,
            dtype=image.dtype,
            chunks=(1, chunk, chunk, chunk),
            compressors=packed,
        )
        made[:] = image

    return write


def zarr_read(path: Path, start: list[int]) -> Array:
    """A slice of the opened array."""
    where = (slice(None), *(slice(s, s + t) for s, t in zip(start, TILE, strict=True)))
    return np.asarray(zarr.open_array(str(path), mode="r")[where])


def prepare() -> None:
    """Seconds a case, by threads and processes."""
    print("\nPreparing a case of 112 × 160 × 144, resampled from 1.25 to 1 mm")
    pools: dict[str, Callable[[], Executor]] = {
        "1 thread": lambda: ThreadPoolExecutor(1),
        "2 threads": lambda: ThreadPoolExecutor(2),
        "2 processes": lambda: ProcessPoolExecutor(2),
    }
    prepare_one(0)
    for name, make in pools.items():
        with make() as pool:
            list(pool.map(prepare_one, range(2)))  # workers have started
            begin = time.perf_counter()
            list(pool.map(prepare_one, range(8)))
            print(f"{name:<12} {(time.perf_counter() - begin) / 8:.2f} s")


def prepare_one(number: int) -> int:
    """One simulated case on the plan's grid; bytes made."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(number)
    geometry = Geometry.from_spacing(SMALL, (1.25, 1.0, 1.0))
    image = rng.normal(size=(1, *SMALL)).astype(np.float32)
    case = Case("a", Volume(image, geometry), Reference(geometry, lesions(rng, SMALL)), "a")
    return prepare_case(case, make_plan()).image.array.nbytes


def volume() -> Array:
    """Noise inside an ellipsoid."""
    axes = np.ogrid[tuple(slice(-1, 1, s * 1j) for s in CASE)]
    body = sum(a**2 for a in axes) < 0.8
    noise = np.random.default_rng(0).normal(size=CASE)
    return (noise * body).astype(np.float16)[None]


def size_mb(path: Path) -> float:
    """Megabytes of a file or of all files of a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files) / 1e6


if __name__ == "__main__":
    main()

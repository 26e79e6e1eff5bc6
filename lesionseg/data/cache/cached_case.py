"""One prepared case on disk: what its folder holds, and how it is written and read.

<case>/
├── image.npy      [C, *spatial] float16
├── labels.npy     [*spatial] uint8
├── instances.npy  [*spatial] the smallest unsigned integer that holds the ids
├── valid.npy      [*spatial] bool, only where something is not valid
└── case.json      geometry, lesions, hash of the source files
"""

import json
import math
import mmap
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import Geometry
from lesionseg.data.cache.lesion_table import CachedLesion, LesionTable, find_lesions
from lesionseg.data.prepared_case import PreparedCase
from lesionseg.data.prepared_reference import PreparedReference
from lesionseg.errors import ReadError

CACHE_VERSION = 4
MAX_VALID_SEEDS = 512
_HALF_MAX = float(np.finfo(np.float16).max)
# Version 1.0 of the .npy format, C order, numbers only: what `_save` writes.
_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '(?P<dtype>[<|][biuf][0-9])', 'fortran_order': False, "
    rb"'shape': \((?P<shape>[0-9, ]*)\), \} *\n",
    re.DOTALL,
)
_LONGEST_HEADER = 1024


class CacheSource(Protocol):
    """Where a case's folder can be had again."""

    def fetch(self, folder: Path) -> None:
        """Put a copy of the case at `folder`, whole. Raises `ReadError`."""


@dataclass(frozen=True, eq=False)
class CachedCase:
    """A prepared case on disk. Its arrays are read-only memory maps, mapped again at each access.

    No file stays open in between, so that thousands of cases cost no file handles. The object
    travels to worker processes as a few numbers. `source` is the hash of the files it is made of.
    `is_mixed`: a lesion's voxels may hold other labels than its own (regions). `valid_seeds`: some
    background voxels that teach, spread over it, where not all do; None where all do. `missing`:
    channels of which there was no file; they are 0. With an `origin`, `folder` is a copy, fetched
    when it is read and not there. `unannotated`: as in `PreparedReference`.
    """

    case: str
    group: str
    folder: Path
    source: str
    geometry: Geometry
    channels: int
    lesions: LesionTable
    has_valid: bool
    is_mixed: bool = False
    valid_seeds: tuple[tuple[int, ...], ...] | None = None
    missing: tuple[int, ...] = ()
    origin: CacheSource | None = None
    unannotated: tuple[int, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """Spatial shape on the plan's grid."""
        return self.geometry.shape

    @property
    def image(self) -> NDArray[np.float16]:
        """Normalised image `[C, *spatial]` float16."""
        return self._map("image")

    @property
    def labels(self) -> NDArray[np.uint8]:
        """Label map `[*spatial]` uint8: 0 background, k for the plan's k-th mask value."""
        return self._map("labels")

    @property
    def instances(self) -> NDArray[np.unsignedinteger[Any]]:
        """Lesion ids `[*spatial]`, 0 elsewhere, in the smallest unsigned integer that fits."""
        return self._map("instances")

    @property
    def valid(self) -> NDArray[np.bool_] | None:
        """Voxels that teach `[*spatial]`; None when all do."""
        return self._map("valid") if self.has_valid else None

    def _map(self, name: str) -> NDArray[Any]:
        path = self.folder / f"{name}.npy"
        try:
            mapped = self._fetched(path) if self.origin else _map_array(path)
        except (OSError, ValueError) as error:
            raise ReadError(
                "A cached array cannot be read.",
                where=path,
                seen=error,
                remedy="start again: the cache builds what is missing.",
            ) from error
        return mapped

    def _fetched(self, path: Path) -> NDArray[Any]:
        """The array of a copy, whose folder's time says when it was used."""
        try:
            mapped = _map_array(path)
            os.utime(self.folder)
        except FileNotFoundError:
            if self.origin is None:
                raise
            self.origin.fetch(self.folder)
            mapped = _map_array(path)
        return mapped


def _map_array(path: Path) -> NDArray[Any]:
    """The array of a .npy file, its pages read when they are touched; `ValueError` if cut short."""
    with path.open("rb") as stream:
        written = os.fstat(stream.fileno())
        layout = _layout(path, written.st_mtime_ns, written.st_size)
        pages = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    return np.ndarray(layout.shape, layout.dtype, pages, layout.offset)


@dataclass(frozen=True)
class _Layout:
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int


@lru_cache(maxsize=1 << 16)
def _layout(path: Path, modified_ns: int, size: int) -> _Layout:
    """What the header says: parsing it takes longer than reading a tile.

    NumPy parses headers by `ast`, which fails now and then in threads on Python 3.11.7
    (CPython issue 106905: "AST constructor recursion depth mismatch").
    """
    with path.open("rb") as stream:
        header = _HEADER.match(stream.read(_LONGEST_HEADER))
    if header is None:
        raise ValueError("not an array as the cache writes it")
    shape = tuple(int(n) for n in header["shape"].split(b",") if n.strip())
    layout = _Layout(shape, np.dtype(header["dtype"].decode()), header.end())
    if size != layout.offset + math.prod(shape) * layout.dtype.itemsize:
        raise ValueError(f"{size} bytes do not hold the shape {shape}")
    return layout


def write_cached_case(
    folder: Path, prepared: PreparedCase, reference: PreparedReference, source: str
) -> None:
    """Fill an empty folder with a prepared case; `source` is the hash of the files it is made of.

    Raises nothing of its own: `OSError` where the disk refuses.
    """
    _save(folder, "image", _half(prepared.image.array))
    _save(folder, "labels", reference.labels)
    n = len(reference.instance_labels)
    _save(folder, "instances", reference.instances.astype(np.min_scalar_type(n)))
    if reference.valid is not None:
        _save(folder, "valid", reference.valid)
    geometry = prepared.image.geometry
    entry = {
        "version": CACHE_VERSION,
        "source": source,
        "case": prepared.case,
        "group": prepared.group,
        "channels": prepared.image.array.shape[0],
        "missing": prepared.image.missing,
        "shape": geometry.shape,
        "affine": geometry.affine.tolist(),
        "has_valid": reference.valid is not None,
        "is_mixed": _is_mixed(reference),
        "valid_seeds": _valid_seeds(reference),
        "unannotated": reference.unannotated,
        "lesions": [asdict(lesion) for lesion in find_lesions(reference)],
    }
    (folder / "case.json").write_text(json.dumps(entry), encoding="utf-8")


def _save(folder: Path, name: str, array: NDArray[Any]) -> None:
    np.save(folder / f"{name}.npy", np.ascontiguousarray(array), allow_pickle=False)


def _half(array: NDArray[np.float32]) -> NDArray[np.float16]:
    """Float16, with what is out of its range held at its ends instead of infinity."""
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    return np.clip(half, -_HALF_MAX, _HALF_MAX, out=half)


def _is_mixed(reference: PreparedReference) -> bool:
    inside = reference.instances > 0
    own = np.array((0, *reference.instance_labels), dtype=np.uint8)
    return bool((reference.labels[inside] != own[reference.instances[inside]]).any())


def _valid_seeds(reference: PreparedReference) -> list[list[int]] | None:
    """Valid voxels of background, evenly spaced in C order."""
    if reference.valid is None:
        return None
    flat = np.flatnonzero(reference.valid & (reference.instances == 0))
    n = min(len(flat), MAX_VALID_SEEDS)
    places = flat[np.linspace(0, max(len(flat) - 1, 0), n).round().astype(np.int64)]
    seeds: list[list[int]] = np.stack(
        np.unravel_index(places, reference.valid.shape), axis=1
    ).tolist()
    return seeds


def read_cached_case(folder: Path) -> CachedCase:
    """Read a case's folder; raises `ReadError` when a part of it is missing or does not fit."""
    path = folder / "case.json"
    try:
        cached = case_from_json(json.loads(path.read_text(encoding="utf-8")), folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ReadError(
            "The cache holds no such case, or a damaged one.",
            where=path,
            seen=repr(error),
            remedy="prepare the dataset again: the cache makes what is missing.",
        ) from error
    _check_arrays(cached)
    return cached


def case_from_json(
    raw: Mapping[str, Any], folder: Path, origin: CacheSource | None = None
) -> CachedCase:
    """The case that a `case.json` tells of; `ValueError` or `KeyError` for another format."""
    if raw["version"] != CACHE_VERSION:
        raise ValueError(f"version {raw['version']}")
    lesions = (
        CachedLesion(
            id=lesion["id"],
            label=lesion["label"],
            start=tuple(lesion["start"]),
            stop=tuple(lesion["stop"]),
            voxels=lesion["voxels"],
            seeds=tuple(tuple(seed) for seed in lesion["seeds"]),
        )
        for lesion in raw["lesions"]
    )
    seeds = raw["valid_seeds"]
    return CachedCase(
        case=raw["case"],
        group=raw["group"],
        folder=folder,
        source=raw["source"],
        geometry=Geometry(tuple(raw["shape"]), np.array(raw["affine"])),
        channels=raw["channels"],
        lesions=LesionTable(lesions, len(raw["shape"])),
        has_valid=raw["has_valid"],
        is_mixed=raw["is_mixed"],
        valid_seeds=None if seeds is None else tuple(tuple(seed) for seed in seeds),
        missing=tuple(raw.get("missing", ())),
        origin=origin,
        unannotated=tuple(raw.get("unannotated", ())),  # older entries have none
    )


def _check_arrays(cached: CachedCase) -> None:
    """Map each array once: a file cut short or of another shape raises `ReadError`."""
    shape = cached.shape
    wanted = {"image": (cached.channels, *shape), "labels": shape, "instances": shape}
    if cached.has_valid:
        wanted["valid"] = shape
    for name, expected in wanted.items():
        seen = getattr(cached, name).shape
        if seen != expected:
            raise ReadError(
                f"The cached {name} does not fit its case.",
                where=cached.folder,
                seen=seen,
                expected=expected,
            )

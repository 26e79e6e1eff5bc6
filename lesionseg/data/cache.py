"""Prepared cases on disk: memory maps that tiles are copied out of, and tables of lesions.

folder/<key of plan and dataset>/<2 characters>/<case>/
├── image.npy      [C, *spatial] float16
├── labels.npy     [*spatial] uint8
├── instances.npy  [*spatial] the smallest unsigned integer that holds the ids
├── valid.npy      [*spatial] bool, only where something is not valid
└── case.json      geometry, lesions, hash of the source files

The two characters spread the cases over 256 folders: no disk likes 10⁵ entries in one.
"""

import hashlib
import json
import logging
import math
import mmap
import os
import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from os import PathLike
from pathlib import Path
from time import time_ns
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from lesionseg.core import Case, CaseFiles, Dataset, Geometry
from lesionseg.data.preprocess import PreparedCase, prepare_case
from lesionseg.errors import ConfigError, ContentError, OutputError, ReadError
from lesionseg.io.cases import content_files, read_case
from lesionseg.io.dicom.series import split_series
from lesionseg.io.itk import SUFFIXES as ITK
from lesionseg.io.layouts import read_dataset
from lesionseg.io.limits import reading
from lesionseg.plan.plan import Plan

logger = logging.getLogger(__name__)

CACHE_VERSION = 7
MAX_WORKERS = 8  # each holds a case, and disks are busy with that many
MAX_SEEDS = 32
MAX_VALID_SEEDS = 512
# a file that changed so shortly before may change again within one tick of its clock
_SETTLED_NS = 2_000_000_000
_HALF_MAX = float(np.finfo(np.float16).max)
# Version 1.0 of the .npy format, C order, numbers only: what `_save` writes.
_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '(?P<dtype>[<|][biuf][0-9])', 'fortran_order': False, "
    rb"'shape': \((?P<shape>[0-9, ]*)\), \} *\n",
    re.DOTALL,
)
_LONGEST_HEADER = 1024


@dataclass(frozen=True, eq=False)
class LesionIndex:
    """Where the lesions of a cached case are, one row each; tiles are drawn by it.

    `ids` `[n]`: voxel value in the instances, ascending. `labels` `[n]`: k for the plan's k-th
    label. `voxels` `[n]`: their number. `boxes` `[n, 2·dims]`: half-open, in voxels of the plan's
    grid. `seeds` `[m, dims]`: at most 32 voxels of each lesion, spread over it; those of row i
    begin at `first_seed[i]`.
    """

    ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    voxels: NDArray[np.int64]
    boxes: NDArray[np.int64]
    seeds: NDArray[Any]
    first_seed: NDArray[np.int64]

    @classmethod
    def of(cls, instances: NDArray[np.int32], labels: Sequence[int]) -> "LesionIndex":
        """List lesions. Ids that no voxel has are left out.

        Args:
            instances: lesion ids 1..n `[*spatial]`, 0 elsewhere.
            labels: the label of each id, from 1 on.
        """
        where = np.flatnonzero(instances)
        ids = instances.reshape(-1)[where]
        order = np.argsort(ids, kind="stable")
        distinct, first = np.unique(ids[order], return_index=True)
        groups = np.split(where[order], first[1:]) if len(distinct) else []
        places = [np.stack(np.unravel_index(flat, instances.shape), axis=1) for flat in groups]
        boxes = [np.concatenate([p.min(axis=0), p.max(axis=0) + 1]) for p in places]
        seeds = [p[_evenly_spaced(len(p), MAX_SEEDS)] for p in places]
        return cls.from_json(
            instances.ndim,
            ids=distinct,
            labels=[labels[i - 1] for i in distinct.tolist()],
            voxels=[len(p) for p in places],
            boxes=boxes,
            seeds=np.concatenate(seeds) if seeds else [],
        )

    @classmethod
    def from_json(
        cls, dims: int, *, ids: Any, labels: Any, voxels: Any, boxes: Any, seeds: Any
    ) -> "LesionIndex":
        """Build an index from lists or arrays. Raise `ValueError` if they do not fit together."""
        rows = [np.array(column, dtype=np.int64) for column in (ids, labels, voxels)]
        boxes = np.array(boxes, dtype=np.int64).reshape(-1, 2 * dims)
        seeds = np.array(seeds, dtype=np.int64).reshape(-1, dims)
        first = np.cumsum([0, *np.minimum(rows[2], MAX_SEEDS)])
        if {len(row) for row in rows} != {len(boxes)} or len(seeds) != first[-1]:
            raise ValueError("the lesions' columns do not fit together")
        small = seeds.astype(np.min_scalar_type(int(seeds.max(initial=0))))
        return cls(rows[0], rows[1], rows[2], boxes, small, first[:-1])

    def to_json(self) -> dict[str, list[Any]]:
        """Return the arguments of `from_json`."""
        columns = ("ids", "labels", "voxels", "boxes", "seeds")
        return {name: getattr(self, name).tolist() for name in columns}

    def __len__(self) -> int:
        return len(self.ids)

    def seeds_of(self, row: int) -> NDArray[Any]:
        """Return the seed voxels `[k, dims]` of the lesion in that row."""
        start = int(self.first_seed[row])
        return self.seeds[start : start + min(int(self.voxels[row]), MAX_SEEDS)]

    def label_of_id(self) -> NDArray[np.uint8]:
        """Return the label of the lesion with each id, from id 0 (background, 0) on."""
        table = np.zeros(int(self.ids[-1]) + 1 if len(self) else 1, dtype=np.uint8)
        table[self.ids] = self.labels
        return table


@dataclass(frozen=True, eq=False)
class CachedCase:
    """A prepared case on disk. Its arrays are read-only memory maps, mapped again at each access.

    No file stays open in between, so that thousands of cases cost no file handles. The object
    travels to worker processes as a few numbers. `source` is the hash of the files it is made of.
    `is_mixed`: a lesion's voxels may hold other labels than its own (regions). `valid_seeds`: some
    background voxels that teach, spread over it, where not all do; None where all do. `missing`:
    channels of which there was no file; they are 0. `unannotated`: the labels that a reader did not
    look for.
    """

    case: str
    group: str
    folder: Path
    source: str
    geometry: Geometry
    channels: int
    lesions: LesionIndex
    has_valid: bool
    is_mixed: bool = False
    valid_seeds: tuple[tuple[int, ...], ...] | None = None
    missing: tuple[int, ...] = ()
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
            return _map_array(path)
        except (OSError, ValueError) as error:
            raise ReadError(
                f"{path}: cannot read the cached array ({error}). Start again."
            ) from error


def _map_array(path: Path) -> NDArray[Any]:
    """The array of a .npy file, its pages read when they are touched; `ValueError` if cut short."""
    with path.open("rb") as stream:
        written = os.fstat(stream.fileno())
        shape, dtype, offset = _layout(path, written.st_mtime_ns, written.st_size)
        pages = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    return np.ndarray(shape, dtype, pages, offset)


@lru_cache(maxsize=1 << 16)
def _layout(path: Path, modified_ns: int, size: int) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Shape, dtype and offset that the header says: parsing it takes longer than reading a tile.

    NumPy parses headers by `ast`, which fails now and then in threads on Python 3.11.7
    (CPython issue 106905: "AST constructor recursion depth mismatch").
    """
    with path.open("rb") as stream:
        header = _HEADER.match(stream.read(_LONGEST_HEADER))
    if header is None:
        raise ValueError("not an array as the cache writes it")
    shape = tuple(int(n) for n in header["shape"].split(b",") if n.strip())
    dtype = np.dtype(header["dtype"].decode())
    if size != header.end() + math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{size} bytes do not hold the shape {shape}")
    return shape, dtype, header.end()


def write_cached_case(folder: Path, prepared: PreparedCase, source: str) -> None:
    """Fill an empty folder with a prepared case; `source` is the hash of the files it is made of.

    Raises `ContentError` for a case without a reference, `OSError` where the disk refuses.
    """
    reference, geometry = prepared.reference, prepared.image.geometry
    if reference is None or reference.labels is None or reference.instances is None:
        raise ContentError(f"{prepared.case}: has no reference and cannot teach. Leave it out.")
    instances = reference.instances
    with np.errstate(over="ignore"):  # what float16 cannot hold becomes its ends, not infinity
        half = prepared.image.array.astype(np.float16)
    _save(folder, "image", np.clip(half, -_HALF_MAX, _HALF_MAX, out=half))
    _save(folder, "labels", reference.labels)
    n = len(reference.instance_labels)
    _save(folder, "instances", instances.astype(np.min_scalar_type(n)))
    valid_seeds = None
    if reference.ignore is not None:
        valid = ~reference.ignore
        _save(folder, "valid", valid)
        flat = np.flatnonzero(valid & (instances == 0))
        # by chance: equal steps through rows of a plane lie on its diagonals
        at = np.random.default_rng(0).random(min(len(flat), MAX_VALID_SEEDS)) * len(flat)
        places = flat[at.astype(np.int64)]
        valid_seeds = np.stack(np.unravel_index(places, geometry.shape), axis=1).tolist()
    inside = instances > 0
    own = np.array((0, *reference.instance_labels), dtype=np.uint8)
    entry = {
        "version": CACHE_VERSION,
        "source": source,
        "case": prepared.case,
        "group": prepared.group,
        "channels": prepared.image.array.shape[0],
        "missing": prepared.image.missing,
        "shape": geometry.shape,
        "affine": geometry.affine.tolist(),
        "has_valid": reference.ignore is not None,
        "is_mixed": bool((reference.labels[inside] != own[instances[inside]]).any()),
        "valid_seeds": valid_seeds,
        "unannotated": reference.unannotated,
        "lesions": LesionIndex.of(instances, reference.instance_labels).to_json(),
    }
    (folder / "case.json").write_text(json.dumps(entry), encoding="utf-8")


def _save(folder: Path, name: str, array: NDArray[Any]) -> None:
    np.save(folder / f"{name}.npy", np.ascontiguousarray(array), allow_pickle=False)


def _evenly_spaced(n: int, most: int) -> NDArray[np.int64]:
    return np.asarray(np.linspace(0, max(n - 1, 0), min(n, most)).round().astype(np.int64))


def read_cached_case(folder: Path) -> CachedCase:
    """Read a case's folder; raises `ReadError` when a part of it is missing or does not fit."""
    path = folder / "case.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if raw["version"] != CACHE_VERSION:
            raise ValueError(f"version {raw['version']}")
        seeds = raw["valid_seeds"]
        cached = CachedCase(
            case=raw["case"],
            group=raw["group"],
            folder=folder,
            source=raw["source"],
            geometry=Geometry(tuple(raw["shape"]), np.array(raw["affine"])),
            channels=raw["channels"],
            lesions=LesionIndex.from_json(len(raw["shape"]), **raw["lesions"]),
            has_valid=raw["has_valid"],
            is_mixed=raw["is_mixed"],
            valid_seeds=None if seeds is None else tuple(map(tuple, seeds)),
            missing=tuple(raw["missing"]),
            unannotated=tuple(raw["unannotated"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ReadError(
            f"{path}: no case, or a damaged one ({error!r}). Prepare it again."
        ) from error
    # mapping an array reads its header alone: a file may be cut short or of another shape
    wanted = {"image": (cached.channels, *cached.shape)}
    wanted |= dict.fromkeys(("labels", "instances"), cached.shape)
    for name, shape in (wanted | {"valid": cached.shape} if cached.has_valid else wanted).items():
        if getattr(cached, name).shape != shape:
            raise ReadError(f"{folder / name}.npy: its shape is not {shape}. Prepare it again.")
    return cached


def open_dataset(root: str | PathLike[str], *, group: str | None = None) -> Dataset:
    """What a data folder holds, in whatever layout; `.datalist()` of it is for MONAI.

    `group`: see `lesionseg.io.layouts.read_dataset`, which says what it raises.
    """
    return read_dataset(Path(root), group=group)


def fill_cache(
    dataset: Dataset,
    cases: Sequence[CaseFiles],
    plan: Plan,
    folder: Path | str,
    *,
    read: Callable[[CaseFiles], Case] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    workers: int | None = None,
    source: Callable[[CaseFiles], str] | None = None,
) -> list[CachedCase]:
    """Prepare every case that the cache lacks; the cached cases in the order of `cases`.

    Several processes may fill one cache: who finds a case locked by another waits for it. What is
    made stays made: the next call goes on where an interrupted one stopped. The first error ends
    the call. Raises `OutputError` where the disk refuses.

    Args:
        dataset: which the cases are of.
        cases: to prepare.
        plan: the grid and normalisation; another plan has another entry.
        folder: of the cache.
        read: turns a case's files into arrays; None for `read_case`.
        progress: called here after each case with its id, how many are done and how many there are.
        workers: threads, each with one case; None for one per core, at most eight.
        source: turns a case's files into the hash of their content; None for `source_hash`.
    """
    if "://" in str(folder):
        raise ConfigError(f"data.cache_dir={folder}: a cache is a folder; mount what is remote.")
    place = Path(folder) / cache_key(dataset, plan)
    make = partial(
        _find_or_make,
        place,
        lambda files: prepare_case((read or partial(read_case, dataset=dataset))(files), plan),
        source or source_hash,
    )
    filled: dict[int, CachedCase] = {}
    with ThreadPoolExecutor(workers or min(cores(), MAX_WORKERS)) as pool:
        futures = {pool.submit(make, files): i for i, files in enumerate(cases)}
        try:
            for future in as_completed(futures):
                filled[futures[future]] = future.result()
                if progress is not None:
                    progress(cases[futures[future]].case, len(filled), len(cases))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [filled[i] for i in range(len(cases))]


def cores() -> int:
    """Processor cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _find_or_make(
    place: Path,
    prepare: Callable[[CaseFiles], PreparedCase],
    source: Callable[[CaseFiles], str],
    files: CaseFiles,
) -> CachedCase:
    # named by its content: what another training reads is never replaced
    wanted = source(files)
    name = hashlib.sha256(f"{files.case} {wanted}".encode()).hexdigest()
    folder, entry = place / name[:2], place / name[:2] / name
    if (cached := _find(entry, wanted)) is not None:
        return cached
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            if (cached := _find(entry, wanted)) is not None:  # another process has made it
                return cached
            if entry.exists():
                logger.warning("The cached case %s is damaged and made anew.", files.case)
            prepared, scratch = prepare(files), folder / f".{name}"
            for leftover in (scratch, entry):  # of a run that was killed, and what is damaged
                shutil.rmtree(leftover, ignore_errors=True)
            scratch.mkdir()
            try:
                write_cached_case(scratch, prepared, wanted)
                scratch.replace(entry)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
            return read_cached_case(entry)
    except OSError as error:
        raise OutputError(f"{place}: cannot write the cache ({error}).") from error


def _find(entry: Path, source: str) -> CachedCase | None:
    """The case at `entry` if it is whole and of files with this `source_hash`; else None."""
    try:
        cached = read_cached_case(entry)
    except ReadError:
        return None
    return cached if cached.source == source else None


def cache_key(dataset: Dataset, plan: Plan) -> str:
    """16 characters that change with whatever plan and dataset decide about prepared arrays."""
    decisions = {
        "version": CACHE_VERSION,
        "dims": plan.dims,
        "channels": plan.channel_names,
        "spacing_mm": plan.spacing_mm,
        "normalisation": [asdict(n) for n in plan.normalisation],
        "label_values": plan.labels.values,
        "labels": [*dataset.labels.mask_names.items(), *dataset.labels.merged.items()],
        "regions": plan.labels.regions,
        "ignore_label": dataset.labels.ignore,
        "extra": plan.prepare_extra,
    }
    text = json.dumps(decisions, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_states(paths: Iterable[Path]) -> tuple[tuple[str, int, int], ...] | None:
    """Path, bytes and time of change (ns) of all files of these images, of a series of its folder.

    None where they are unknown: a header whose voxels may lie elsewhere, what is missing or new.
    """
    states = []
    for path in paths:
        place = (split_series(path) or (path,))[0]
        if place.suffix.lower() in ITK:
            return None
        try:
            files = sorted(place.iterdir()) if place.is_dir() else [place]
            states += [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
        except OSError:
            return None
    if any(changed > time_ns() - _SETTLED_NS for _, _, changed in states):
        return None
    return tuple(dict.fromkeys(states))


def source_hash(files: CaseFiles) -> str:
    """SHA-256 of the content of a case's files and of what tables say of its lesions."""
    digest = hashlib.sha256()
    named = (*files.images, *((files.reference,) if files.reference else ()))
    for path in (part for image in named for part in content_files(image)):
        with reading(path), path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    facts = [files.annotations, files.group, *files.annotated, *files.missing, files.pixel_mm]
    digest.update(json.dumps(facts, sort_keys=True, default=str).encode())
    return digest.hexdigest()

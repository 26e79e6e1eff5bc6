"""The cache of prepared cases: its files, key and version, memory maps, threads that fill it.

folder/<key of plan and dataset>/<2 characters>/<hash of the case's id and files>/
├── image.npy      [C, *spatial] float16
├── labels.npy     [*spatial] uint8
├── instances.npy  [*spatial] in the smallest unsigned integer type that fits the ids
├── valid.npy      [*spatial] bool, only if some voxels are not valid
└── case.json      geometry, lesions, hash of the source files

The two characters begin the hash. They distribute the cases over 256 folders, because a folder with
10⁵ entries is slow.
"""

import json
import logging
import math
import mmap
import os
import re
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from lesionseg.core import CaseFiles, Dataset, Geometry
from lesionseg.core.arrays import Flags, Integers
from lesionseg.data.preprocess import PreparedCase, prepare_case
from lesionseg.errors import ConfigError, ContentError, OutputError, ReadError
from lesionseg.io.cases import read_case
from lesionseg.io.contents import case_digest
from lesionseg.io.files import digest_of
from lesionseg.ops.components import group_voxels
from lesionseg.plan.plan import Plan, to_tuples

logger = logging.getLogger(__name__)

CACHE_VERSION = 9
MAX_WORKERS = 8  # each keeps a case in memory, and a disk is not faster with more
MAX_SEEDS = 32
MAX_VALID_SEEDS = 512
_HALF_MAX = float(np.finfo(np.float16).max)
# The header that `_save_array` writes: version 1.0 of the .npy format, C order, numbers only.
_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '(?P<dtype>[<|][biuf][0-9])', 'fortran_order': False, "
    rb"'shape': \((?P<shape>[0-9, ]*)\), \} *\n",
    re.DOTALL,
)
_LONGEST_HEADER = 1024


@dataclass(frozen=True, eq=False)
class LesionIndex:
    """The positions of the lesions of a cached case, from which the sampler chooses tiles.

    Attributes:
        ids: Voxel value in the instances `[n]`, ascending.
        labels: The number k of the plan's k-th label `[n]`; 1 with regions.
        voxels: Number of voxels `[n]`.
        boxes: `[n, 2·dims]`, half-open, in voxels of the plan's grid.
        seeds: At most 32 evenly spaced voxels of each lesion `[m, dims]`.
        first_seed: Row of the first seed of each lesion `[n]`.
    """

    ids: Integers
    labels: Integers
    voxels: Integers
    boxes: Integers
    seeds: NDArray[Any]
    first_seed: Integers

    @classmethod
    def of(cls, instances: NDArray[np.int32], labels: Sequence[int]) -> "LesionIndex":
        """Build the index of the lesions in a mask of ids. Ids without voxels are left out.

        Args:
            instances: Lesion ids 1..n `[*spatial]`, 0 elsewhere.
            labels: The label of each id, in the order of ids 1..n.
        """
        ids, all_voxels, first = group_voxels(instances)
        n_voxels = []
        boxes = []
        seeds = []
        for voxels in np.split(all_voxels, first[1:]) if len(ids) else ():  # one part per id
            n_voxels.append(len(voxels))
            boxes.append(np.concatenate([voxels.min(axis=0), voxels.max(axis=0) + 1]))
            n_seeds = min(len(voxels), MAX_SEEDS)
            # evenly spaced among the voxels in C order
            seeds.append(voxels[np.linspace(0, len(voxels) - 1, n_seeds).round().astype(np.int64)])
        return cls.from_json(
            instances.ndim,
            ids=ids,
            labels=[labels[lesion - 1] for lesion in ids.tolist()],  # ids start at 1
            voxels=n_voxels,
            boxes=boxes,
            seeds=np.concatenate(seeds) if seeds else [],
        )

    @classmethod
    def from_json(
        cls, dims: int, *, ids: Any, labels: Any, voxels: Any, boxes: Any, seeds: Any
    ) -> "LesionIndex":
        """Build an index from the columns of case.json, which are lists or arrays.

        `dims` is the number of spatial axes. The columns are the attributes of this class, except
        `first_seed`, which is computed. Raise `ValueError` if the lengths of the columns do not fit
        together.
        """
        ids = np.array(ids, np.int64)
        labels = np.array(labels, np.int64)
        voxels = np.array(voxels, np.int64)
        boxes = np.array(boxes, np.int64).reshape(-1, 2 * dims)
        seeds = np.array(seeds, np.int64).reshape(-1, dims)
        # a lesion has as many seeds as voxels, but at most `MAX_SEEDS`
        seed_ends = np.cumsum([0, *np.minimum(voxels, MAX_SEEDS)])
        have_equal_lengths = len(ids) == len(labels) == len(voxels) == len(boxes)
        if not have_equal_lengths or len(seeds) != seed_ends[-1]:
            raise ValueError("the lesions' columns do not fit together")
        # the smallest dtype, because every process of the loader holds all seeds
        seeds = seeds.astype(np.min_scalar_type(int(seeds.max(initial=0))))
        # the seeds of a lesion begin where those of the lesion before end
        return cls(ids, labels, voxels, boxes, seeds, first_seed=seed_ends[:-1])

    def to_json(self) -> dict[str, list[Any]]:
        """Return the columns for case.json as lists by name, from which `from_json` reads."""
        columns = ("ids", "labels", "voxels", "boxes", "seeds")
        return {name: getattr(self, name).tolist() for name in columns}

    def __len__(self) -> int:
        return len(self.ids)

    def seeds_of(self, row: int) -> NDArray[Any]:
        """Return the seed voxels `[k, dims]` of the lesion in row `row` of this index.

        The sampler places tiles around these voxels.
        """
        start = int(self.first_seed[row])
        return self.seeds[start : start + min(int(self.voxels[row]), MAX_SEEDS)]

    def label_of_id(self) -> NDArray[np.uint8]:
        """Return a table whose entry i is the label of the lesion with id i.

        The entry is 0 for the background (id 0) and for ids without a lesion. Indexing the table by
        a mask of ids gives a mask of labels.
        """
        # the last id is the highest
        table = np.zeros(int(self.ids[-1]) + 1 if len(self) else 1, np.uint8)
        table[self.ids] = self.labels
        return table


@dataclass(frozen=True, eq=False)
class CachedCase:
    """A prepared case on disk. Its arrays are read-only memory maps, mapped again at each access.

    No file stays open in between, so that thousands of cases need no file handles. Only a few
    numbers are sent to worker processes.

    Attributes:
        case: Id of the case.
        group: Id of the patient.
        folder: Contains the arrays.
        source: Hash of the source files.
        geometry: The plan's grid.
        channels: Number of channels.
        lesions: Positions of the lesions.
        has_valid: True if some voxels are not valid.
        is_mixed: True if voxels of a lesion may have other labels than the lesion (regions).
        valid_seeds: Random valid background voxels; None if all voxels are valid.
        missing: Indices of the channels without a file; they are 0.
        unannotated: Labels that the reader did not annotate, k for the plan's k-th mask value.
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
        """The spatial shape on the plan's grid."""
        return self.geometry.shape

    @property
    def image(self) -> NDArray[np.float16]:
        """The normalised image `[C, *spatial]` float16."""
        return self._open_array("image")

    @property
    def labels(self) -> NDArray[np.uint8]:
        """The label map `[*spatial]` uint8: 0 background, k for the plan's k-th mask value."""
        return self._open_array("labels")

    @property
    def instances(self) -> NDArray[np.unsignedinteger[Any]]:
        """The lesion ids `[*spatial]`, 0 elsewhere, in the smallest unsigned integer type."""
        return self._open_array("instances")

    @property
    def valid(self) -> Flags | None:
        """True for voxels `[*spatial]` that count in training; None if all voxels count."""
        return self._open_array("valid") if self.has_valid else None

    def _open_array(self, name: str) -> NDArray[Any]:
        """Return the array of the file `<name>.npy` in the case's folder as a memory map.

        Raise `ReadError` if the file is missing or damaged.
        """
        path = self.folder / f"{name}.npy"
        try:
            return _map_array(path)
        except (OSError, ValueError) as error:
            raise ReadError(
                f"{path}: cannot read the cached array ({error}). Run the command again."
            ) from error


def _map_array(path: Path) -> NDArray[Any]:
    """Return the array of a .npy file as a read-only memory map, without reading its values.

    Raise `ValueError` if the header is not one that the cache writes, or the file is truncated.
    """
    with path.open("rb") as stream:
        status = os.fstat(stream.fileno())
        layout = _read_layout(path, status.st_mtime_ns, status.st_size)
        mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)  # 0: all bytes
    return np.ndarray(layout.shape, layout.dtype, mapped, layout.offset)


class _ArrayLayout(NamedTuple):
    """The header of a .npy file. The values begin at byte `offset`."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int


@lru_cache(maxsize=1 << 16)
def _read_layout(path: Path, modified_ns: int, size: int) -> _ArrayLayout:
    """Read shape, dtype and the offset of the values from the header of a .npy file.

    Results are cached, because parsing takes longer than reading a tile. The cache is keyed by all
    arguments, so a changed file is read again. A regular expression parses the header, because
    NumPy uses `ast`, which sometimes fails in threads on Python 3.11.7 (CPython issue 106905: "AST
    constructor recursion depth mismatch").

    Args:
        path: The file.
        modified_ns: Time of the file's last change in nanoseconds. Used only as a key.
        size: Size of the file in bytes, which must fit the header.

    Raises:
        ValueError: If the cache cannot have written the header, or the size does not fit.
    """
    with path.open("rb") as stream:
        header = _HEADER.match(stream.read(_LONGEST_HEADER))
    if header is None:
        raise ValueError("the header is not one that the cache writes")
    shape = tuple(int(n) for n in header["shape"].split(b",") if n.strip())
    dtype = np.dtype(header["dtype"].decode())
    if size != header.end() + math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{size} bytes do not fit the shape {shape}")
    return _ArrayLayout(shape, dtype, offset=header.end())


def write_cached_case(folder: Path, prepared: PreparedCase, source: str) -> None:
    """Write the arrays and the case.json of a prepared case to an empty folder.

    The arrays are the image, the labels, the lesion ids and, if the reference ignores voxels, the
    valid voxels. The image is rounded to float16, and clipped to the range of float16.

    Args:
        folder: The folder, which exists.
        prepared: The case.
        source: Hash of the case's source files, by which a later run recognises changed files.

    Raises:
        ContentError: If the case has no reference.
        OSError: If the disk is not writable.
    """
    reference = prepared.reference
    geometry = prepared.image.geometry
    if reference is None or reference.labels is None or reference.instances is None:
        raise ContentError(
            f"{prepared.case}: has no reference and cannot be used in training. Leave it out."
        )
    instances = reference.instances
    with np.errstate(over="ignore"):  # values outside of float16 are clipped below
        half_image = prepared.image.array.astype(np.float16)
    _save_array(folder, "image", np.clip(half_image, -_HALF_MAX, _HALF_MAX, out=half_image))
    _save_array(folder, "labels", reference.labels)
    n_ids = len(reference.instance_labels)
    _save_array(folder, "instances", instances.astype(np.min_scalar_type(n_ids)))
    valid_seeds = None
    if reference.ignore is not None:
        valid = ~reference.ignore
        _save_array(folder, "valid", valid)
        valid_seeds = _draw_seeds(valid & (instances == 0))
    inside = instances > 0
    label_of_id = np.array((0, *reference.instance_labels), np.uint8)
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
        "is_mixed": bool((reference.labels[inside] != label_of_id[instances[inside]]).any()),
        "valid_seeds": valid_seeds,
        "unannotated": reference.unannotated,
        "lesions": LesionIndex.of(instances, reference.instance_labels).to_json(),
    }
    (folder / "case.json").write_text(json.dumps(entry), encoding="utf-8")


def _save_array(folder: Path, name: str, array: NDArray[Any]) -> None:
    """Write an array to the file `<name>.npy` in a case's folder, in C order."""
    np.save(folder / f"{name}.npy", np.ascontiguousarray(array), allow_pickle=False)


def _draw_seeds(is_background: Flags) -> list[list[int]]:
    """Draw at most `MAX_VALID_SEEDS` background voxels, around which background tiles are placed.

    The voxels are random, because voxels at equal steps would be located on diagonals. A voxel may
    be drawn twice. The fixed seed of the generator gives the same voxels in each run.

    Args:
        is_background: True for valid voxels `[*spatial]` without a lesion.

    Returns:
        The array index of each voxel; empty if there is no background.
    """
    flat = np.flatnonzero(is_background)
    drawn = np.random.default_rng(0).random(min(len(flat), MAX_VALID_SEEDS)) * len(flat)
    index = flat[drawn.astype(np.int64)]
    result: list[list[int]] = np.stack(
        np.unravel_index(index, is_background.shape), axis=1
    ).tolist()
    return result


def read_cached_case(folder: Path) -> CachedCase:
    """Read the case.json of a cached case and check the headers of its arrays.

    Raise `ReadError` if a file is missing or damaged, if another version of the cache wrote it, or
    if an array does not have the shape that case.json gives.
    """
    path = folder / "case.json"
    try:
        raw = dict(to_tuples(json.loads(path.read_text(encoding="utf-8"))))
        version = raw.pop("version")
        if version != CACHE_VERSION:
            raise ValueError(f"version {version}")
        geometry = Geometry(raw.pop("shape"), np.array(raw.pop("affine")))
        lesions = LesionIndex.from_json(geometry.dims, **raw.pop("lesions"))
        cached = CachedCase(folder=folder, geometry=geometry, lesions=lesions, **raw)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ReadError(
            f"{path}: the cached case is missing or damaged ({error!r}). Prepare it again."
        ) from error
    # Mapping an array reads only its header. `cached.image` and the other properties raise
    # `ReadError` for a missing or truncated file, so only the shapes are compared here.
    shapes = {
        "image": (cached.channels, *cached.shape),
        "labels": cached.shape,
        "instances": cached.shape,
    }
    if cached.has_valid:
        shapes["valid"] = cached.shape
    for name, shape in shapes.items():
        if getattr(cached, name).shape != shape:
            raise ReadError(
                f"{folder / name}.npy: its shape is not {shape}. Prepare the case again."
            )
    return cached


def fill_cache(
    dataset: Dataset,
    cases: Sequence[CaseFiles],
    plan: Plan,
    folder: Path | str,
    *,
    progress: Callable[[str, int, int], None] | None = None,
    workers: int | None = None,
    source: Callable[[CaseFiles], str] | None = None,
) -> list[CachedCase]:
    """Prepare every case that the cache lacks. Return all cases.

    Several processes may fill the same cache: a process waits for a case that another process
    prepares. If the call is interrupted, prepared cases stay in the cache. The first error ends the
    call.

    Args:
        dataset: The dataset of the cases, with its settings for reading.
        cases: The files of the cases.
        plan: The grid and normalisation. Plans with other settings have separate entries.
        folder: The cache's folder.
        progress: Called in this thread after each case with its id, the number of finished cases
            and the number of all cases.
        workers: Number of threads, each with one case; None or 0 for one per core, at most eight.
        source: Computes the hash of the content of a case's files; None for `case_digest`.

    Returns:
        The cached cases in the order of `cases`; empty if there are none.

    Raises:
        ConfigError: If the folder is remote.
        OutputError: If the disk is not writable.
        LesionsegError: If a case fails: the first error.
    """
    if "://" in str(folder):
        raise ConfigError(
            f"data.cache_dir={folder}: the cache must be a local folder. Mount the remote folder, "
            "or choose a local one."
        )
    cache_folder = Path(folder) / cache_key(dataset, plan)
    find_or_prepare = partial(_find_or_prepare, cache_folder, dataset, plan, source or case_digest)
    cached_cases: list[CachedCase] = []
    pool = ThreadPoolExecutor(workers or min(cores(), MAX_WORKERS))
    try:
        for cached in pool.map(find_or_prepare, cases):
            cached_cases.append(cached)
            if progress is not None:
                progress(cached.case, len(cached_cases), len(cases))
    finally:
        pool.shutdown(cancel_futures=True)
    return cached_cases


def cores() -> int:
    """Return the number of processor cores that this process may use, for numbers of threads.

    A scheduler or container may allow fewer cores than the machine has.
    """
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _find_or_prepare(
    cache_folder: Path,
    dataset: Dataset,
    plan: Plan,
    source: Callable[[CaseFiles], str],
    files: CaseFiles,
) -> CachedCase:
    """Return a cached case. If the cache lacks the case, prepare and write it before.

    A damaged entry is replaced with a warning. Raise `OutputError` if the folder is not writable.

    Args:
        cache_folder: The folder of the plan's entries.
        dataset: The dataset of the case.
        plan: The grid and normalisation.
        source: Computes the hash of the content of the case's files.
        files: The files of the case.
    """
    # The name depends on the content. A changed case gets a new entry, and a training that reads
    # the old one can continue.
    content_hash = source(files)
    name = digest_of(f"{files.case} {content_hash}")
    subfolder = cache_folder / name[:2]  # one of 256, as a folder with 10⁵ entries is slow
    entry = subfolder / name
    if (cached := _find_entry(entry, content_hash)) is not None:
        return cached
    try:
        subfolder.mkdir(parents=True, exist_ok=True)
        with FileLock(subfolder.with_suffix(".lock")):
            if (
                cached := _find_entry(entry, content_hash)
            ) is not None:  # another process has made it
                return cached
            if entry.exists():
                logger.warning("The cached case %s is damaged and is prepared again.", files.case)
            prepared = prepare_case(read_case(files, dataset), plan)
            scratch = subfolder / f".{name}"
            for leftover in (scratch, entry):  # `scratch` of a killed process, a damaged `entry`
                shutil.rmtree(leftover, ignore_errors=True)
            scratch.mkdir()
            try:
                write_cached_case(scratch, prepared, content_hash)
                scratch.replace(entry)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
            return read_cached_case(entry)
    except OSError as error:
        raise OutputError(f"{cache_folder}: cannot write the cache ({error}).") from error


def _find_entry(entry: Path, source: str) -> CachedCase | None:
    """Return the cached case in the folder `entry`, or None if it cannot be used.

    A case is used only if all its files are complete and the hash of its source files is `source`.
    """
    try:
        cached = read_cached_case(entry)
    except ReadError:
        return None
    return cached if cached.source == source else None


def cache_key(dataset: Dataset, plan: Plan) -> str:
    """Return the name of a plan's subfolder in the cache: a hash of 16 characters.

    The hash is computed from the version of the cache and from all settings on which prepared
    arrays depend, so that other settings never read these arrays.
    """
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
    return digest_of(json.dumps(decisions, sort_keys=True))[:16]

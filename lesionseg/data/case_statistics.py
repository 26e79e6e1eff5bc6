"""Statistics of each case for the fingerprint: stored file and its version, reuse, threads.

The file (`STATISTICS_FILE`) is kept, so that a case is read once.
"""

import json
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, fields
from math import prod
from pathlib import Path
from threading import Condition
from typing import Any

import numpy as np

from lesionseg.core import CaseFiles, Dataset
from lesionseg.data.cache import MAX_WORKERS, cores
from lesionseg.errors import DatasetError, LesionsegError, OutputError
from lesionseg.host_memory import default_budget
from lesionseg.io.cases import read_case
from lesionseg.io.contents import case_digest, image_state
from lesionseg.io.files import digest_of
from lesionseg.io.text import write_text
from lesionseg.plan.fingerprint import MAX_SAMPLED, SAMPLED, CaseStatistics, measure_case
from lesionseg.plan.plan import to_tuples
from lesionseg.plan.plausibility import ReferenceStatistics

Record = tuple[CaseStatistics | None, str]
STATISTICS_FILE = "facts.json"
_VERSION = 5  # version of the entries in facts.json
_SAMPLES = ("sample", "lesion_sample")  # arrays [C, n], in base64
_SHOWN_ERRORS = 20
_IRRELEVANT = {"name", "cases", "findings", "may_lack", "split_file"}


def read_records(
    dataset: Dataset, folder: Path | None, progress: Callable[[str, int, int], None]
) -> dict[str, Record]:
    """Return the statistics of each case and the hash of its files, by case id.

    Threads read the cases that `folder/facts.json` does not contain, but only as many at the same
    time as fit into memory. The file is written at the end, also after an interruption.

    Args:
        dataset: The cases.
        folder: The folder of `facts.json`; None to read and write no such file.
        progress: Called after each case with its id, the number of finished cases and the number of
            all cases.

    Returns:
        For each case a pair: the statistics (None without a reference), and the SHA-256 of its
        files.

    Raises:
        LesionsegError: If exactly one case cannot be used. It is the error of that case.
        DatasetError: If several cases cannot be used.
    """
    reader = _RecordReader(dataset, folder)
    records: dict[str, Record] = {}
    errors: list[LesionsegError] = []
    pool = ThreadPoolExecutor(min(cores(), MAX_WORKERS))
    try:
        for files, result in zip(dataset.cases, pool.map(reader.read, dataset.cases), strict=True):
            if isinstance(result, LesionsegError):
                errors.append(result)
            else:
                records[files.case] = result
            progress(files.case, len(records) + len(errors), len(dataset.cases))
    finally:
        pool.shutdown(cancel_futures=True)
        reader.save()
    if errors:
        raise _combine_errors(errors, dataset.root)
    return records


class _RecordReader:
    """A reader of the statistics of cases, which reuses entries of `folder/facts.json`.

    The key of an entry is the path of the case's first image. An entry is reused if path, size,
    times of change and inode of all files are the same, and also the case's entry in the dataset,
    the reading settings and the number of sampled voxels (`_digest_state`).
    """

    def __init__(self, dataset: Dataset, folder: Path | None) -> None:
        self.dataset = dataset
        self.folder = folder
        # At least 64 voxels per case. A power of two, so that a few further cases do not change the
        # samples of known cases.
        voxels = max(64, min(SAMPLED, MAX_SAMPLED // max(len(dataset.cases), 1)))
        self.n_voxels = 1 << (voxels.bit_length() - 1)
        # the fields of the dataset that change how a case is read
        names = {f.name for f in fields(dataset)} - _IRRELEVANT
        self.settings = {name: getattr(dataset, name) for name in sorted(names)}
        self._known = _read_entries(folder)
        self._new: dict[str, Any] = {}
        self._memory = _SharedMemory(default_budget())

    def read(self, files: CaseFiles) -> Record | LesionsegError:
        """Return the record of a case: from facts.json if possible, otherwise from its files.

        If the case cannot be used, the error is returned instead of raised, so that the other cases
        are still read. A computed record is stored for `save`, unless the case's files have changed
        during the reading.
        """
        state = self._digest_state(files) if self.folder else None
        entry = self._known.get(str(files.images[0]))
        if entry and entry["state"] == state:
            return _statistics_from_json(entry["facts"]), str(entry["source"])
        try:
            with self._memory.hold():
                case = read_case(files, self.dataset)
                # The image has 4 bytes per value. Reference, lesions and copies of a channel took 8
                # more bytes per voxel in a test; the rest is a reserve.
                self._memory.note(case.image.array.nbytes + 12 * prod(case.image.geometry.shape))
                reference = case.reference
                statistics = (
                    None if reference is None else measure_case(case, reference, self.n_voxels)
                )
                del case, reference  # before the memory counts as free
            source = case_digest(files)
        except LesionsegError as error:
            return error
        if state is not None and state == self._digest_state(files):
            entry = {"state": state, "facts": _statistics_to_json(statistics), "source": source}
            self._new[str(files.images[0])] = entry
        return statistics, source

    def save(self) -> None:
        """Add the computed records to facts.json.

        Nothing happens without a folder, without computed records, or if the file cannot be
        written.
        """
        if self.folder is not None and self._new:
            with suppress(OutputError):  # without the file, the next start only takes longer
                # another run may have added entries in between
                entries = _read_entries(self.folder) | self._new
                write_text(self.folder / STATISTICS_FILE, json.dumps(entries))

    def _digest_state(self, files: CaseFiles) -> str | None:
        """Return a digest of everything on which the record of a case depends.

        The digest covers the case's entry in the dataset, the reading settings, and path, size,
        times of change and inode of its files. An entry of facts.json is reused only if its digest
        is equal. Return None if a file is missing or has just changed.
        """
        states = image_state(filter(None, (*files.images, files.reference)))
        if states is None:
            return None
        content = _VERSION, vars(files), states, self.settings, self.n_voxels
        return digest_of(json.dumps(content, sort_keys=True, default=str))


class _SharedMemory:
    """A limit of the memory of the cases that threads read at the same time.

    Each case is assumed to need as much memory as the largest case so far. The first case is read
    before all other cases, because no size is known yet. If two cases do not fit into `n_bytes`,
    one case is read at a time.

    Args:
        n_bytes: The memory for all cases together.
    """

    def __init__(self, n_bytes: int) -> None:
        self.n_bytes = n_bytes
        self._n_reading = 0
        self._largest = 0  # bytes of the largest case so far; 0 if none was measured
        self._changed = Condition()

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Wait until a further case fits into the memory, and count this case until the exit."""
        with self._changed:
            self._changed.wait_for(self._fits_another)
            self._n_reading += 1
        try:
            yield
        finally:
            with self._changed:
                self._n_reading -= 1
                self._changed.notify_all()

    def _fits_another(self) -> bool:
        """Return True if a further case fits into the memory, or if no case is being read.

        Until a first case has been measured (`_largest` is 0), only one case is read.
        """
        if self._n_reading == 0:
            return True
        return self._largest > 0 and (self._n_reading + 1) * self._largest <= self.n_bytes

    def note(self, n_bytes: int) -> None:
        """Record the memory that a case needed, which is the estimate for later cases."""
        with self._changed:
            self._largest = max(self._largest, n_bytes)
            self._changed.notify_all()


def _combine_errors(errors: list[LesionsegError], root: Path) -> LesionsegError:
    """Combine the errors of cases into one error. A single error is returned as it is.

    Several errors give a `DatasetError` that names the dataset's folder `root` and lists at most
    `_SHOWN_ERRORS` messages.
    """
    if len(errors) == 1:
        return errors[0]
    shown = "\n  ".join(map(str, errors[:_SHOWN_ERRORS]))
    n_more = len(errors) - _SHOWN_ERRORS
    more = f"\n  … and {n_more} more" if n_more > 0 else ""
    return DatasetError(f"{root}: {len(errors)} cases cannot be used:\n  {shown}{more}")


def _statistics_to_json(statistics: CaseStatistics | None) -> dict[str, Any] | None:
    """Convert statistics to a dictionary for JSON; None stays None.

    The sampled intensities are little-endian float32 in base64.
    """
    if statistics is None:
        return None
    values = asdict(statistics)
    for name in _SAMPLES:
        values[name] = b64encode(values[name].astype("<f4").tobytes()).decode()
    return values


def _statistics_from_json(values: dict[str, Any] | None) -> CaseStatistics | None:
    """Restore statistics from the dictionary of `_statistics_to_json`; None stays None."""
    if values is None:
        return None
    arguments = to_tuples(values)
    arguments["reference"] = ReferenceStatistics(**arguments["reference"])
    for name in _SAMPLES:
        sample = np.frombuffer(b64decode(values[name]), "<f4")
        # `nonzero` has one number per channel
        arguments[name] = sample.reshape(len(values["nonzero"]), -1)
    return CaseStatistics(**arguments)


def _read_entries(folder: Path | None) -> dict[str, dict[str, Any]]:
    """Return the entries of facts.json, by the path of each case's first image.

    The result is empty without a folder, or if the file is missing or damaged.
    """
    try:
        return dict(json.loads((folder / STATISTICS_FILE).read_bytes())) if folder else {}
    except (OSError, ValueError, TypeError):
        return {}  # if the file is missing or damaged, the cases are read again

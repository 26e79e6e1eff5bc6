"""Facts of a dataset's cases in one `facts.json`: a second start reads no scan that is unchanged.

A file's path, size and time of change stand for its content, as for make, rsync and git.
"""

import json
from base64 import b64decode, b64encode
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from lesionseg.core import CaseFiles, Dataset
from lesionseg.data.cache import cores, source_hash
from lesionseg.errors import LesionsegError, OutputError
from lesionseg.io.cases import file_states, read_case
from lesionseg.io.files import write_text
from lesionseg.plan.fingerprint import CaseFacts, facts_of, voxels_per_case

FILE = "facts.json"
MOST_READERS = 8  # each holds a case, and disks are busy with that many
_ARRAYS = ("sample", "lesion_sample")
_IRRELEVANT = {"name", "cases", "problems", "incomplete_reference", "may_lack"}


@dataclass(frozen=True)
class CaseRecord:
    """What is known of a case: None for one without a reference; SHA-256 of its files."""

    facts: CaseFacts | None
    source: str


def read_records(
    dataset: Dataset, folder: Path | None, progress: Callable[[str, int, int], None]
) -> list[CaseRecord | LesionsegError]:
    """What is known of each case, in order, or why it cannot be used; threads read new cases.

    Records lie in `folder/facts.json` (None: nowhere), written at the end or when interrupted.
    """
    # a power of two: a few cases more do not ask for another sample of all the others
    voxels = 1 << (voxels_per_case(len(dataset.cases)).bit_length() - 1)
    names = {f.name for f in fields(dataset)} - _IRRELEVANT
    reading = {name: getattr(dataset, name) for name in sorted(names)}
    known, new = _read(folder), dict[str, Any]()

    def state_of(files: CaseFiles) -> str | None:
        """What the facts come from: the case's entry, its files, and how they are read."""
        states = file_states((*files.images, *((files.reference,) if files.reference else ())))
        content = vars(files), states, reading, voxels, [f.name for f in fields(CaseFacts)]
        text = json.dumps(content, sort_keys=True, default=str)
        return None if states is None else sha256(text.encode()).hexdigest()

    def record(files: CaseFiles) -> CaseRecord | LesionsegError:
        state = state_of(files) if folder else None
        entry = known.get(str(files.images[0]))
        if entry and entry["state"] == state:
            return CaseRecord(_facts(entry["facts"]), entry["source"])
        try:
            case = read_case(files, dataset)
            marked = case.reference
            facts = None if marked is None else facts_of(case, marked, voxels)
            made = CaseRecord(facts, source_hash(files))
        except LesionsegError as error:
            return error
        if state is not None and state == state_of(files):
            entry = {"state": state, "facts": _plain(facts), "source": made.source}
            new[str(files.images[0])] = entry
        return made

    records = []
    pool = ThreadPoolExecutor(min(cores(), MOST_READERS))
    try:
        for files, made in zip(dataset.cases, pool.map(record, dataset.cases), strict=True):
            records.append(made)
            progress(files.case, len(records), len(dataset.cases))
    finally:
        pool.shutdown(cancel_futures=True)
        if folder is not None and new:
            with suppress(OutputError):  # it costs time at the next start, nothing else
                write_text(folder / FILE, json.dumps(_read(folder) | new))
    return records


def _plain(facts: CaseFacts | None) -> dict[str, Any] | None:
    """The facts as JSON holds them, samples in base64."""
    if facts is None:
        return None
    samples = {n: b64encode(getattr(facts, n).astype("<f4").tobytes()).decode() for n in _ARRAYS}
    return {**asdict(facts), **samples}


def _facts(values: dict[str, Any] | None) -> CaseFacts | None:
    if values is None:
        return None
    plain = {name: _tuples(value) for name, value in values.items()}
    for name in _ARRAYS:
        sample = np.frombuffer(b64decode(values[name]), "<f4")
        plain[name] = sample.reshape(len(values["nonzero"]), -1)
    return CaseFacts(**plain)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _read(folder: Path | None) -> dict[str, dict[str, Any]]:
    try:
        return dict(json.loads((folder / FILE).read_bytes())) if folder else {}
    except (OSError, ValueError, TypeError):
        return {}  # missing or damaged: the cases are read again

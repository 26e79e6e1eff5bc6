"""facts.json: what the fingerprint needs of each case, kept so that a case is read once."""

import json
from base64 import b64decode, b64encode
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, fields
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from lesionseg.core import CaseFiles, Dataset
from lesionseg.data.cache import MAX_WORKERS, cores, file_states, source_hash
from lesionseg.errors import DatasetError, LesionsegError, OutputError
from lesionseg.io.cases import read_case
from lesionseg.io.files import write_text
from lesionseg.plan.fingerprint import MOST_SAMPLED, SAMPLED, CaseFacts, facts_of
from lesionseg.plan.plausibility import ReferenceFacts

Record = tuple[CaseFacts | None, str]
FACTS_FILE = "facts.json"
_VERSION = 3  # of what is kept of a case, and how
_SAMPLES = ("sample", "lesion_sample")  # arrays [C, n], in base64
_IRRELEVANT = {"name", "cases", "problems", "remarks", "may_lack", "split_file"}


def read_records(
    dataset: Dataset, folder: Path | None, progress: Callable[[str, int, int], None]
) -> dict[str, Record]:
    """Each case's facts, None without a reference, and SHA-256 of its files; threads read new ones.

    Raises the error of the only case that cannot be used, of several a `DatasetError`.
    Records lie in `folder/facts.json` (None: nowhere), written at the end or when interrupted, by
    the path of the first image; a file's path, size and time of change stand for its content.
    """
    # a power of two: a few cases more do not ask for another sample of all the others
    voxels = max(64, min(SAMPLED, MOST_SAMPLED // max(len(dataset.cases), 1)))
    voxels = 1 << (voxels.bit_length() - 1)
    names = {f.name for f in fields(dataset)} - _IRRELEVANT
    reading = {name: getattr(dataset, name) for name in sorted(names)}
    known, new = _read(folder), dict[str, Any]()

    def state_of(files: CaseFiles) -> str | None:
        """What the facts come from: the case's entry, its files, and how they are read."""
        states = file_states((*files.images, *((files.reference,) if files.reference else ())))
        content = _VERSION, vars(files), states, reading, voxels
        text = json.dumps(content, sort_keys=True, default=str)
        return None if states is None else sha256(text.encode()).hexdigest()

    def record(files: CaseFiles) -> Record | LesionsegError:
        state = state_of(files) if folder else None
        entry = known.get(str(files.images[0]))
        if entry and entry["state"] == state:
            return _facts(entry["facts"]), str(entry["source"])
        try:
            case = read_case(files, dataset)
            marked = case.reference
            facts = None if marked is None else facts_of(case, marked, voxels)
            source = source_hash(files)
        except LesionsegError as error:
            return error
        if state is not None and state == state_of(files):
            entry = {"state": state, "facts": _plain(facts), "source": source}
            new[str(files.images[0])] = entry
        return facts, source

    records, errors = dict[str, Record](), list[LesionsegError]()
    pool = ThreadPoolExecutor(min(cores(), MAX_WORKERS))
    try:
        for files, made in zip(dataset.cases, pool.map(record, dataset.cases), strict=True):
            if isinstance(made, LesionsegError):
                errors.append(made)
            else:
                records[files.case] = made
            progress(files.case, len(records) + len(errors), len(dataset.cases))
    finally:
        pool.shutdown(cancel_futures=True)
        if folder is not None and new:
            with suppress(OutputError):  # it costs time at the next start, nothing else
                write_text(folder / FACTS_FILE, json.dumps(_read(folder) | new))
    if len(errors) == 1:
        raise errors[0]
    if errors:
        shown = "\n  ".join(str(error) for error in errors[:20])
        more = f"\n  … and {len(errors) - 20} more" if len(errors) > 20 else ""
        text = f"{len(errors)} cases cannot be used:\n  {shown}{more}"
        raise DatasetError(f"{dataset.root}: {text}")
    return records


def _plain(facts: CaseFacts | None) -> dict[str, Any] | None:
    if facts is None:
        return None
    samples = {n: b64encode(getattr(facts, n).astype("<f4").tobytes()).decode() for n in _SAMPLES}
    return {**asdict(facts), **samples}


def _facts(values: dict[str, Any] | None) -> CaseFacts | None:
    if values is None:
        return None
    plain = {name: _tuples(value) for name, value in values.items()}
    plain["reference"] = ReferenceFacts(**{k: _tuples(v) for k, v in values["reference"].items()})
    for name in _SAMPLES:
        sample = np.frombuffer(b64decode(values[name]), "<f4")
        plain[name] = sample.reshape(len(values["nonzero"]), -1)
    return CaseFacts(**plain)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _read(folder: Path | None) -> dict[str, dict[str, Any]]:
    try:
        return dict(json.loads((folder / FACTS_FILE).read_bytes())) if folder else {}
    except (OSError, ValueError, TypeError):
        return {}  # missing or damaged: the cases are read again

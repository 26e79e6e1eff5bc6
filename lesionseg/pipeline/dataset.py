"""What every command first learns about a dataset: its cases, lesions and roles."""

import json
import logging
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from hashlib import sha256
from inspect import signature
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

import lesionseg.phantoms
from lesionseg.config import DataConfig
from lesionseg.core import CaseFiles, Dataset
from lesionseg.data.cache import cores, source_hash
from lesionseg.errors import ConfigError, DatasetError, LesionsegError, OutputError, count, nearest
from lesionseg.io.cases import file_states, read_case
from lesionseg.io.files import read_json, write_json, write_text
from lesionseg.io.layouts import read_dataset
from lesionseg.io.remote import download
from lesionseg.pipeline.log import bar
from lesionseg.plan.fingerprint import (
    CaseFacts,
    Fingerprint,
    facts_of,
    fingerprint_of,
    voxels_per_case,
)
from lesionseg.plan.plan import sources_of
from lesionseg.plan.splits import Splits, fold_numbers, make_splits

log = logging.getLogger(__name__)

Record = tuple[CaseFacts | None, str]
ALL_FOLDS = "all"
CACHE, FACTS = "cache", "facts"  # folders beside the run directories, and within the first
SETTINGS = "simulation.json"
FACTS_FILE = "facts.json"
_MOST_READERS = 8  # each holds a case, and disks are busy with that many
_ARRAYS = ("sample", "lesion_sample")
_IRRELEVANT = {"name", "cases", "problems", "incomplete_reference", "may_lack"}


def facts_folder(data: DataConfig, run: Path) -> Path:
    """The folder of `facts.json`: with the prepared cases, on this machine."""
    return (run.parent / CACHE if data.cache_dir is None else Path(data.cache_dir)) / FACTS


def may_lack(data: DataConfig, channels: Sequence[str]) -> bool:
    """Whether a scan may lack a channel; raises `ConfigError` where there is but one."""
    if data.channel_dropout and len(channels) < 2:
        raise ConfigError(
            f"data.channel_dropout={data.channel_dropout} leaves nothing of the only channel "
            f"({', '.join(channels)}). Set it to 0."
        )
    return bool(data.channel_dropout)


@dataclass(frozen=True)
class Survey:
    """What is known of a dataset before anything is decided.

    `counts` and `sizes`: number and median diameter of the lesions of each labelled case. `boxed`:
    number of lesions of each case whose reference has boxes and no mask. `sources`: SHA-256 of each
    case's files.
    """

    dataset: Dataset
    fingerprint: Fingerprint
    splits: Splits
    counts: Mapping[str, int] = field(default_factory=dict)
    sizes: Mapping[str, float] = field(default_factory=dict)
    boxed: Mapping[str, int] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)

    def of_role(self, role: str) -> tuple[CaseFiles, ...]:
        """The cases of one role, in the dataset's order."""
        return tuple(c for c in self.dataset.cases if self.splits.roles.get(c.case) == role)


def take_survey(data: DataConfig, seed: int, facts: Path | None = None) -> Survey:
    """Read every case and divide the dataset; all folds: as the first one.

    A case of which `facts/facts.json` tells is not read again while its files are the same. The
    fingerprint is taken from development cases only. Raises `DatasetError` naming every bad file,
    an unlabelled dataset, one without a lesion, and one that leaves nothing to validate on.
    """
    dataset = open_dataset(data)
    with bar("Reading the dataset") as advance:
        records = read_records(dataset, facts, advance)
    known = {case: found for case, (found, _) in records.items() if found is not None}
    held_out = {files.case for files in dataset.cases if files.role in ("test", "external")}
    taken = [found for case, found in known.items() if case not in held_out]
    counts = {case: len(found.diameters_mm) for case, found in known.items()}
    if not taken:
        raise DatasetError(
            f"{data.root}: there is no reference to learn from ({count(len(records), 'case')}). "
            "Add masks, or predict with an existing bundle."
        )
    if sum(counts.values()) == 0:
        raise DatasetError(
            f"{data.root}: there is no lesion in {count(len(counts), 'reference')}. Check the "
            "label values in the masks, or add cases with lesions."
        )
    survey = Survey(
        dataset,
        fingerprint_of(dataset, taken),
        Splits({}, True, seed, ""),
        counts,
        {case: median(found.diameters_mm or (0.0,)) for case, found in known.items()},
        {case: counts[case] for case, found in known.items() if found.boxed},
        {case: source for case, (_, source) in records.items()},
    )
    fold = folds_of(survey, data)[0] if data.fold == ALL_FOLDS else data.fold
    survey = divided(survey, data, seed, None if fold is None else int(fold))
    if not survey.of_role("validation") and data.validation_fraction > 0:
        raise DatasetError(
            f"{data.root}: no case is left to validate on ({len(survey.of_role('train'))} to train "
            "on). Add a case, or train without validation: data.validation_fraction=0."
        )
    return survey


def divided(survey: Survey, data: DataConfig, seed: int, fold: int | None) -> Survey:
    """The same dataset with the roles of one fold, or of the split that the settings ask for."""
    splits = make_splits(
        survey.dataset,
        survey.counts,
        validation_fraction=data.validation_fraction,
        seed=seed,
        given=Path(data.splits) if data.splits else None,
        fold=fold,
        n_folds=data.n_folds,
        sizes=survey.sizes,
    )
    return replace(survey, splits=splits)


def folds_of(survey: Survey, data: DataConfig) -> tuple[int, ...]:
    """The numbers of the folds that cross-validation goes through."""
    given = Path(data.splits) if data.splits else None
    return fold_numbers(survey.dataset, survey.counts, given=given, n_folds=data.n_folds)


def open_dataset(data: DataConfig, *, lenient: bool = False) -> Dataset:
    """The dataset of `data.root`; simulated first when the settings say so and it is missing.

    `lenient`: see `read_dataset`. Raises `DatasetError`, or `ConfigError` where other settings
    simulated it.
    """
    root = download(data.root)
    if data.phantoms is not None:
        simulate_once(root, data.phantoms)
    return read_dataset(
        root,
        group=data.group,
        merge_labels=data.merge_labels,
        may_lack=data.channel_dropout > 0,
        lenient=lenient,
    )


def require_masks(survey: Survey, architecture: str) -> None:
    """Raise `DatasetError` for a network that learns voxels where a reference has boxes alone.

    Filled boxes would be taken for the lesions' outlines.
    """
    if "segmentation" in sources_of(architecture) and survey.boxed:
        case, n_boxes = next(iter(survey.boxed.items()))
        raise DatasetError(
            f"model={architecture} learns from masks; {count(len(survey.boxed), 'reference')} "
            f"without a mask (case {case}: {count(n_boxes, 'box', 'boxes')}). Train "
            "model=retinanet, or add masks."
        )


def simulate_once(root: Path, phantoms: Mapping[str, Any]) -> None:
    """Simulate a dataset at `root`, unless it lies there already.

    `phantoms`: the `kind` and what `phantoms.write_<kind>_phantoms` takes, which is kept beside the
    data. Raises `ConfigError` for others, and when `root` was simulated with others, `OutputError`
    when it cannot be written.
    """
    settings = {key: value for key, value in phantoms.items() if key != "kind"}
    kind = phantoms.get("kind")
    write = getattr(lesionseg.phantoms, f"write_{kind}_phantoms", None)
    if write is None:
        raise ConfigError(f"data.phantoms.kind={kind}: not mri, ct or xray.")
    takes = signature(write).parameters
    for name in settings.keys() - takes.keys():
        raise ConfigError(f"data.phantoms takes no setting {name!r}.{nearest(name, takes)}")
    if root.exists():
        path = root / SETTINGS
        before = read_json(path) if path.is_file() else settings
        if before != settings:
            raise ConfigError(
                f"{root} was simulated with other settings ({before}, not {settings}). Name "
                "another folder, data.root=, or remove this one."
            )
        return
    log.info("Simulated scans are written to %s.", root)
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=root.parent, prefix=f".{root.name}-") as folder:
            made = Path(folder) / root.name
            with bar("Simulating scans") as advance:
                write(made, **settings, progress=advance)
            write_json(made / SETTINGS, settings)
            if not root.exists():  # another process may have been quicker
                made.replace(root)
    except OSError as error:
        raise OutputError(f"{root}: the simulated dataset cannot be written: {error}.") from error


def read_records(
    dataset: Dataset, folder: Path | None, progress: Callable[[str, int, int], None]
) -> dict[str, Record]:
    """Each case's facts, None without a reference, and SHA-256 of its files; threads read new ones.

    Raises the error of the only case that cannot be used, of several a `DatasetError`.
    Records lie in `folder/facts.json` (None: nowhere), written at the end or when interrupted, by
    the path of the first image; a file's path, size and time of change stand for its content.
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
    pool = ThreadPoolExecutor(min(cores(), _MOST_READERS))
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
        return dict(json.loads((folder / FACTS_FILE).read_bytes())) if folder else {}
    except (OSError, ValueError, TypeError):
        return {}  # missing or damaged: the cases are read again

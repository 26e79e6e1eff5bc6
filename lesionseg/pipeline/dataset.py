"""What every command first learns about a dataset: its cases, lesions and roles."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from lesionseg.core import CaseFiles, Dataset
from lesionseg.errors import ConfigError, DatasetError, LesionsegError, OutputError
from lesionseg.io.files import read_json, write_json
from lesionseg.io.layouts.conventions import read_dataset
from lesionseg.io.remote import download
from lesionseg.pipeline.facts import read_records
from lesionseg.pipeline.log import bar
from lesionseg.plan.fingerprint import Fingerprint, fingerprint_of
from lesionseg.plan.plan import sources_of
from lesionseg.plan.splits import Splits, fold_numbers, make_splits

log = logging.getLogger(__name__)

ALL_FOLDS = "all"
CACHE, FACTS = "cache", "facts"  # folders beside the run directories, and within the first
SETTINGS = "simulation.json"


@dataclass(frozen=True)
class DataSettings:
    """Where the data lie and how they are divided; see `conf/data/folder.yaml`.

    `fold` of `n_folds` validates in place of a share of the groups; "all" is every one of them.
    `phantoms` writes a simulated dataset to a folder when `root` does not exist yet, and is given
    `progress`. `channel_dropout` above 0: one channel is left out of so many training tiles, and
    scans may lack one. Raises `ConfigError`.
    """

    root: str
    group: str | None = None
    convention: str | None = None
    merge_labels: bool = False
    validation_fraction: float = 0.2
    fold: int | str | None = None
    n_folds: int = 5
    splits: str | None = None
    cache_dir: str | None = None
    phantoms: Callable[..., None] | None = None
    channel_dropout: float = 0.0

    def __post_init__(self) -> None:
        fold = 0 if self.fold in (None, ALL_FOLDS) else self.fold
        for right, name, expected in (
            (0 <= self.validation_fraction < 1, "validation_fraction", "from 0 to under 1"),
            (0 <= self.channel_dropout < 1, "channel_dropout", "a share from 0 to under 1"),
            (self.n_folds >= 2, "n_folds", "2 or more"),
            # a file may have more folds than n_folds
            (isinstance(fold, int) and fold >= 0, "fold", f"a fold from 0 on, or {ALL_FOLDS}"),
        ):
            if not right:
                raise ConfigError(f"data.{name}={getattr(self, name)} must be {expected}.")

    def facts(self, run: Path) -> Path:
        """The folder of `facts.json`: with the prepared cases, on this machine."""
        return (run.parent / CACHE if self.cache_dir is None else Path(self.cache_dir)) / FACTS

    def may_lack(self, channels: Sequence[str]) -> bool:
        """Whether a scan may lack a channel; raises `ConfigError` where there is but one."""
        if self.channel_dropout and len(channels) < 2:
            raise ConfigError(
                f"data.channel_dropout={self.channel_dropout} leaves nothing of the only channel "
                f"({', '.join(channels)}). Set it to 0."
            )
        return bool(self.channel_dropout)


@dataclass(frozen=True)
class Survey:
    """What is known of a dataset before anything is decided.

    `burden` and `sizes`: number and median diameter of the lesions of each labelled case. `boxed`:
    number of lesions of each case whose reference has boxes and no mask. `sources`: SHA-256 of each
    case's files.
    """

    dataset: Dataset
    fingerprint: Fingerprint
    splits: Splits
    burden: Mapping[str, int] = field(default_factory=dict)
    sizes: Mapping[str, float] = field(default_factory=dict)
    boxed: Mapping[str, int] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)

    def of_role(self, role: str) -> tuple[CaseFiles, ...]:
        """The cases of one role, in the dataset's order."""
        return tuple(c for c in self.dataset.cases if self.splits.roles.get(c.case) == role)


def take_survey(data: DataSettings, seed: int, facts: Path | None = None) -> Survey:
    """Read every case and divide the dataset; all folds: as the first one.

    A case of which `facts/facts.json` tells is not read again while its files are the same. The
    fingerprint is taken from development cases only. Raises `DatasetError` naming every bad file,
    an unlabelled dataset, one without a lesion, and one that leaves nothing to validate on.
    """
    dataset = open_dataset(data)
    with bar("Reading the dataset") as advance:
        records = read_records(dataset, facts, advance)
    raise_all([record for record in records if isinstance(record, LesionsegError)], data.root)
    read = [r for r in records if not isinstance(r, LesionsegError)]
    pairs = list(zip(dataset.cases, read, strict=True))
    known = {files.case: r.facts for files, r in pairs if r.facts is not None}
    held_out = {files.case for files in dataset.cases if files.role in ("test", "external")}
    taken = [kept for case, kept in known.items() if case not in held_out]
    burden = {case: len(kept.diameters_mm) for case, kept in known.items()}
    if not taken:
        raise DatasetError(
            f"{data.root}: none of the {len(dataset.cases)} cases has a reference to learn from. "
            "Add masks, or predict with an existing bundle."
        )
    if sum(burden.values()) == 0:
        raise DatasetError(
            f"{data.root}: there is no lesion in any of the {len(burden)} references. "
            "Check the label values in the masks, or add cases with lesions."
        )
    survey = Survey(
        dataset,
        fingerprint_of(dataset, taken),
        Splits({}, True, seed, ""),
        burden,
        {case: median(kept.diameters_mm or (0.0,)) for case, kept in known.items()},
        {case: burden[case] for case, kept in known.items() if kept.boxed},
        {files.case: record.source for files, record in pairs},
    )
    fold = folds_of(survey, data)[0] if data.fold == ALL_FOLDS else data.fold
    survey = divided(survey, data, seed, None if fold is None else int(fold))
    if not survey.of_role("validation") and data.validation_fraction > 0:
        raise DatasetError(
            f"{data.root}: no case is left to validate on ({len(survey.of_role('train'))} to train "
            "on). Add a case, or train without validation: data.validation_fraction=0."
        )
    return survey


def divided(survey: Survey, data: DataSettings, seed: int, fold: int | None) -> Survey:
    """The same dataset with the roles of one fold, or of the split that the settings ask for."""
    splits = make_splits(
        survey.dataset,
        survey.burden,
        validation_fraction=data.validation_fraction,
        seed=seed,
        given=Path(data.splits) if data.splits else None,
        fold=fold,
        n_folds=data.n_folds,
        sizes=survey.sizes,
    )
    return replace(survey, splits=splits)


def folds_of(survey: Survey, data: DataSettings) -> tuple[int, ...]:
    """The numbers of the folds that cross-validation goes through."""
    given = Path(data.splits) if data.splits else None
    return fold_numbers(survey.dataset, survey.burden, given=given, n_folds=data.n_folds)


def open_dataset(data: DataSettings, *, lenient: bool = False) -> Dataset:
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
        convention=data.convention,
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
            f"model={architecture} learns from masks, but {len(survey.boxed)} case(s) have boxes "
            f"alone (case {case}: {n_boxes} boxes). Train model=retinanet, or add masks."
        )


def raise_all(errors: Sequence[LesionsegError], root: str | Path) -> None:
    """Raise the only error as it is, several as one `DatasetError`; nothing where there is none."""
    if len(errors) == 1:
        raise errors[0]
    if errors:
        shown = "\n  ".join(str(error) for error in errors[:20])
        more = f"\n  … and {len(errors) - 20} more" if len(errors) > 20 else ""
        raise DatasetError(f"{root}: {len(errors)} cases cannot be used:\n  {shown}{more}")


def simulate_once(root: Path, write: Callable[..., None]) -> None:
    """Let `write(folder, progress=…)` simulate a dataset at `root`, unless it lies there already.

    `write` is a `functools.partial`; its arguments are kept beside the data. Raises `ConfigError`
    when `root` was simulated with others, `OutputError` when it cannot be written.
    """
    settings = dict(getattr(write, "keywords", {}))
    if root.exists():
        path = root / SETTINGS
        before = read_json(path) if path.is_file() else settings
        if before != settings:
            raise ConfigError(
                f"{root} was simulated with other settings ({before}, not {settings}). Name "
                "another folder, data.root=, or remove this one."
            )
        return
    log.info("Simulating a dataset in %s (these are no real scans)", root)
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=root.parent, prefix=f".{root.name}-") as folder:
            made = Path(folder) / root.name
            with bar("Simulating scans") as advance:
                write(made, progress=advance)
            write_json(made / SETTINGS, settings)
            if not root.exists():  # another process may have been quicker
                made.replace(root)
    except OSError as error:
        raise OutputError(f"{root}: the simulated dataset cannot be written: {error}.") from error

"""The inspection of a dataset: its cases, lesions and roles. All decisions start from it."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import median

from lesionseg.config import DataConfig
from lesionseg.core import CaseFiles, Dataset, Role
from lesionseg.data.case_statistics import read_records
from lesionseg.errors import ConfigError, DatasetError, count, join_names
from lesionseg.io.layouts import list_dataset, require_usable
from lesionseg.io.remote import download
from lesionseg.io.split_files import SplitFile
from lesionseg.phantoms import simulate_once
from lesionseg.pipeline.log import bar
from lesionseg.plan.fingerprint import Fingerprint, fingerprint_of
from lesionseg.plan.plan import heads_of
from lesionseg.plan.plausibility import (
    ReferenceStatistics,
    find_implausible,
    has_no_background,
    implausible_lines,
)
from lesionseg.plan.splits import LesionStatistics, Splits, fold_numbers, make_splits

log = logging.getLogger(__name__)

ALL_FOLDS = "all"
CACHE = "cache"  # folder next to the run directories
STATISTICS = "facts"  # folder in the cache


def cache_folder(data: DataConfig, run: Path) -> Path:
    """Return the folder of prepared cases: that of the settings, or one next to the run."""
    return Path(data.cache_dir or run.parent / CACHE)


def may_lack(data: DataConfig, channels: Sequence[str]) -> bool:
    """Return True if a scan may lack a channel, because training drops channels.

    Raises:
        ConfigError: If channels are dropped, but there is only one.
    """
    if data.channel_dropout and len(channels) < 2:
        raise ConfigError(
            f"data.channel_dropout={data.channel_dropout} would remove the only channel "
            f"({', '.join(channels)}). Set it to 0."
        )
    return bool(data.channel_dropout)


@dataclass(frozen=True)
class DatasetInspection:
    """A dataset, its statistics and the roles of its cases.

    Attributes:
        dataset: The cases of all roles.
        fingerprint: The statistics of the development cases.
        splits: The role of each case.
        counts: Number of lesions of each labelled case.
        lesions: The median diameter and the label values of these lesions.
        boxed: Number of lesions of each development case whose reference has boxes and no mask.
        digests: SHA-256 of the files of each case, also without a reference.
    """

    dataset: Dataset
    fingerprint: Fingerprint
    splits: Splits
    counts: Mapping[str, int] = field(default_factory=dict)
    lesions: LesionStatistics = field(default_factory=LesionStatistics)
    boxed: Mapping[str, int] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)

    def of_role(self, role: str) -> tuple[CaseFiles, ...]:
        """Return the cases of one role, in the dataset's order, also those without a reference."""
        return tuple(c for c in self.dataset.cases if self.splits.roles.get(c.case) == role)

    def is_group_safe(self, role: str) -> bool:
        """Return True if no patient of the role was used for training.

        For test and external cases, no patient may have been used for validation either.
        """
        seen = {files.patient for files in self.of_role("train")}
        if role != "validation":
            seen |= {files.patient for files in self.of_role("validation")}
        return not seen & {files.patient for files in self.of_role(role)}


def inspect_dataset(
    data: DataConfig, seed: int, statistics: Path | None = None
) -> DatasetInspection:
    """Read every case and divide the dataset. The roles are those of the first fold to train.

    A case whose statistics are in `statistics/facts.json` is read again only if its files have
    changed. The fingerprint describes only development cases: no test cases, and no cases that a
    split file leaves out. Doubtful references, and cases that the split leaves out, are warnings.

    Args:
        data: The settings of the data.
        seed: The seed of the division.
        statistics: The folder of `facts.json`, which is brought up to date; None: every case is
            read.

    Raises:
        DatasetError: If files cannot be used (the message lists up to 100 of them), if references,
            lesions or background are missing (`require_lesions`), or if the split cannot be made
            (`first_splits`).
        ConfigError: If `data.group` is not a regular expression, if phantoms were simulated with
            other settings, or see `first_splits`.
    """
    dataset = open_dataset(data)
    require_usable(dataset)
    with bar("Reading the dataset") as advance:
        records = read_records(dataset, statistics, advance)
    known = {case: found for case, (found, _) in records.items() if found is not None}
    references = {case: found.reference for case, found in known.items()}
    for line in implausible_lines(find_implausible(dataset, references)):
        log.warning(line)
    counts = {case: len(found.diameters_mm) for case, found in known.items()}
    require_lesions(dataset, counts, references)
    sizes = {case: median(found.diameters_mm or (0.0,)) for case, found in known.items()}
    lesions = LesionStatistics(sizes, {case: one.labels for case, one in references.items()})
    splits = first_splits(dataset, counts, lesions, data, seed)
    development = _development_cases(dataset, splits, data)
    used = development | splits.roles.keys()
    left_out = [case for case in known if case not in used]
    if left_out:
        file = data.splits or dataset.split_file
        cases = count(len(left_out), "labelled case")
        log.warning("%s leaves out %s, not used here: %s.", file, cases, join_names(left_out))
    developed = {case: found for case, found in known.items() if case in development}
    return DatasetInspection(
        dataset=dataset,
        fingerprint=fingerprint_of(dataset, list(developed.values())),
        splits=splits,
        counts=counts,
        lesions=lesions,
        boxed={case: counts[case] for case, found in developed.items() if found.boxed},
        digests={case: source for case, (_, source) in records.items()},
    )


def require_lesions(
    dataset: Dataset,
    counts: Mapping[str, int],
    references: Mapping[str, ReferenceStatistics],
) -> None:
    """Raise `DatasetError` if references, lesions or background to learn from are missing.

    `counts`: the number of lesions of each labelled case. `references`: the statistics of their
    references.
    """
    held_out = {files.case for files in dataset.cases if files.role in ("test", "external")}
    development = counts.keys() - held_out
    if not development:
        cases = count(len(dataset.cases), "case")
        raise DatasetError(
            f"{dataset.root}: there is no reference to learn from ({cases}). Add masks, or predict "
            "with an existing bundle."
        )
    if sum(counts.values()) == 0:
        raise DatasetError(
            f"{dataset.root}: there is no lesion in {count(len(counts), 'reference')}. Check the "
            "label values in the masks, or add cases with lesions."
        )
    if not any(counts[case] for case in development):
        raise DatasetError(
            f"{dataset.root}: only test cases have lesions, so no lesion can be learned. Move "
            "cases with lesions into training."
        )
    if has_no_background({case: references[case] for case in development & references.keys()}):
        raise DatasetError(
            f"{dataset.root}: every voxel of the references is lesion, so there is no background "
            "to learn from. Write 0 for background into the masks."
        )


def first_splits(
    dataset: Dataset,
    counts: Mapping[str, int],
    lesions: LesionStatistics,
    data: DataConfig,
    seed: int,
) -> Splits:
    """Divide the dataset. If all folds are trained, return the splits of the first one.

    Raises:
        DatasetError: If the split cannot be made, if no training case has a lesion, or if no case
            is left for validation although the settings ask for it.
        ConfigError: If `data.validation_fraction=0` contradicts the split file or the fold.
    """
    fold = data.fold
    if fold == ALL_FOLDS:
        fold = fold_numbers(dataset, counts, given=_given(data), n_folds=data.n_folds)[0]
    splits = make_splits(
        dataset,
        counts,
        validation_fraction=data.validation_fraction,
        seed=seed,
        given=_given(data),
        fold=None if fold is None else int(fold),
        n_folds=data.n_folds,
        lesions=lesions,
    )
    trained = [case for case, role in splits.roles.items() if role == "train"]
    if not any(map(counts.get, trained)):
        raise DatasetError(
            f"{data.root}: no training case has a lesion ({splits.note}), so no lesion can be "
            "learned. Move cases with lesions into training."
        )
    if "validation" in splits.roles.values() or data.validation_fraction <= 0:
        return splits
    if fold is not None:  # only a split file has folds without cases
        raise DatasetError(
            f"{data.root}: no case is left to validate on ({splits.note}). List cases in "
            '"val" of this fold, or remove the fold from the file.'
        )
    raise DatasetError(
        f"{data.root}: no case is left to validate on ({len(trained)} to train on). Add a "
        "case, or train without validation: data.validation_fraction=0."
    )


def _development_cases(dataset: Dataset, splits: Splits, data: DataConfig) -> set[str]:
    """Return the cases that at least one fold uses for training or validation."""
    folds = [splits.roles]
    file = data.splits or dataset.split_file
    if file is not None and data.fold == ALL_FOLDS:
        folds += SplitFile.read(Path(file)).folds
    used = ("train", "validation")
    return {case for roles in folds for case, role in roles.items() if role in used}


def with_fold(inspection: DatasetInspection, data: DataConfig, seed: int) -> DatasetInspection:
    """Return the inspection with the roles of the fold that the settings name.

    Raises:
        DatasetError: If the fold has no case for validation, or no lesion for training.
    """
    splits = first_splits(inspection.dataset, inspection.counts, inspection.lesions, data, seed)
    return replace(inspection, splits=splits)


def folds_of(inspection: DatasetInspection, data: DataConfig) -> tuple[int, ...]:
    """Return the numbers of the folds that cross-validation trains.

    Raises:
        DatasetError: If the split file has no list of folds, or if there are fewer than two folds.
    """
    return fold_numbers(
        inspection.dataset, inspection.counts, given=_given(data), n_folds=data.n_folds
    )


def _given(data: DataConfig) -> Path | None:
    """Return the split file that the settings name, or None."""
    return Path(data.splits) if data.splits else None


def open_dataset(data: DataConfig) -> Dataset:
    """List the dataset of `data.root`, which is downloaded first if it is a URL.

    If it is missing and the settings describe phantoms, they are simulated there. Cases that cannot
    be used are findings, see `list_dataset`.

    Raises:
        DatasetError: If the dataset has no known layout, or its description is wrong.
        ConfigError: If the dataset was simulated with other settings.
    """
    root = download(data.root)
    if data.phantoms is not None:
        simulate_once(root, data.phantoms, partial(bar, "Simulating scans"))
    return list_dataset(
        root,
        group=data.group,
        merge_labels=data.merge_labels,
        may_lack=data.channel_dropout > 0,
        nan_background=data.nan == "background",
        grid_of_image=data.geometry == "image",
        min_readers=data.min_readers,
        annotations=data.annotations,
        colour=data.colour,
    )


def labelled_cases(inspection: DatasetInspection, role: Role) -> list[CaseFiles]:
    """Return the cases of a role that have a reference, as cases of this role."""
    return [replace(c, role=role) for c in inspection.of_role(role) if c.is_labelled]


def require_masks(inspection: DatasetInspection, architecture: str) -> None:
    """Raise `DatasetError` for a model of masks if a development case with lesions has only boxes.

    The model would learn filled boxes as the outlines of lesions.
    """
    if "segmentation" in heads_of(architecture) and inspection.boxed:
        case, n_boxes = next(iter(inspection.boxed.items()))
        raise DatasetError(
            f"model={architecture} learns from masks; {count(len(inspection.boxed), 'reference')} "
            f"without a mask (case {case}: {count(n_boxes, 'box', 'boxes')}). Train "
            "model=retinanet, or add masks."
        )

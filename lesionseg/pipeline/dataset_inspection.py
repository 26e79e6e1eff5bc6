"""Inspection of `data.root`: cases, roles, folds, cache folder, errors without usable lesions.

All decisions start from it.
"""

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
    """Return the folder of prepared cases: `data.cache_dir`, by default `cache` next to the run."""
    return Path(data.cache_dir or run.parent / CACHE)


def may_lack(data: DataConfig, channels: Sequence[str]) -> bool:
    """Return True if a scan may lack a channel at prediction, because training drops channels.

    The plan records this, so that `predict` accepts a scan with a missing channel.

    Args:
        data: The settings of the data, with the probability of dropping a channel.
        channels: The names of the channels.

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
        splits: The role of each case: train, validation, test or external.
        counts: Number of lesions of each labelled case.
        lesions: The median lesion diameter and the label values of each labelled case.
        boxed: Number of lesions of each development case whose reference has boxes and no mask.
        digests: SHA-256 of the files of each case, with or without a reference.
    """

    dataset: Dataset
    fingerprint: Fingerprint
    splits: Splits
    counts: Mapping[str, int] = field(default_factory=dict)
    lesions: LesionStatistics = field(default_factory=LesionStatistics)
    boxed: Mapping[str, int] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)

    def of_role(self, role: str) -> tuple[CaseFiles, ...]:
        """Return the cases of a role in the dataset's order, even cases without a reference."""
        return tuple(c for c in self.dataset.cases if self.splits.roles.get(c.case) == role)

    def is_group_safe(self, role: str) -> bool:
        """Return True if no patient of the role was trained on, so that its scores are independent.

        For test and external cases, no patient may have been used for validation either.
        """
        used_patients = {files.patient for files in self.of_role("train")}
        if role != "validation":
            used_patients |= {files.patient for files in self.of_role("validation")}
        return not used_patients & {files.patient for files in self.of_role(role)}


def inspect_dataset(
    data: DataConfig, seed: int, statistics: Path | None = None
) -> DatasetInspection:
    """Read every case of the dataset, compute its statistics, and assign a role to each case.

    The statistics of each case are cached in `statistics/facts.json`, and the case is read again
    only if its files have changed. If all folds are trained (`data.fold=all`), the roles are those
    of the first fold. The fingerprint describes only development cases: no test cases, and no cases
    that a split file leaves out. Warn of implausible references, and of cases that the split leaves
    out.

    Args:
        data: The settings of the data.
        seed: The seed of the split.
        statistics: The folder of `facts.json`, which is updated; None reads every case.

    Raises:
        DatasetError: If files cannot be used (the message lists up to 100 of them), if references,
            lesions or background are missing (`require_lesions`), or if the split cannot be made
            (`first_splits`).
        ConfigError: If `data.group` is not a regular expression, if phantoms were simulated with
            other settings, or if `data.validation_fraction=0` contradicts the split.
    """
    dataset = open_dataset(data)
    require_usable(dataset)
    with bar("Reading the dataset") as advance:
        records = read_records(dataset, statistics, advance)
    # A record is the statistics of a case (None without a reference) and the digest of its files.
    labelled = {case: measured for case, (measured, _) in records.items() if measured is not None}
    references = {case: measured.reference for case, measured in labelled.items()}
    for line in implausible_lines(find_implausible(dataset, references)):
        log.warning(line)
    counts = {case: len(measured.diameters_mm) for case, measured in labelled.items()}
    require_lesions(dataset, counts, references)
    # the median diameter; 0 for a case without lesions
    sizes = {case: median(measured.diameters_mm or (0.0,)) for case, measured in labelled.items()}
    lesions = LesionStatistics(
        sizes, {case: measured.labels for case, measured in references.items()}
    )
    splits = first_splits(dataset, counts, lesions, data, seed)
    development = _development_cases(dataset, splits, data)
    assigned = development | splits.roles.keys()
    left_out = [case for case in labelled if case not in assigned]
    if left_out:
        file = data.splits or dataset.split_file
        cases = count(len(left_out), "labelled case")
        log.warning("%s leaves out %s, not used here: %s.", file, cases, join_names(left_out))
    in_development = {case: measured for case, measured in labelled.items() if case in development}
    return DatasetInspection(
        dataset=dataset,
        fingerprint=fingerprint_of(dataset, list(in_development.values())),
        splits=splits,
        counts=counts,
        lesions=lesions,
        boxed={case: counts[case] for case, measured in in_development.items() if measured.boxed},
        digests={case: digest for case, (_, digest) in records.items()},
    )


def require_lesions(
    dataset: Dataset,
    counts: Mapping[str, int],
    references: Mapping[str, ReferenceStatistics],
) -> None:
    """Raise `DatasetError` if no network can learn from the references.

    A network cannot learn if no development case has a reference, if no development case has a
    lesion, or if every voxel of the references is lesion.

    Args:
        dataset: The listed dataset.
        counts: The number of lesions of each labelled case.
        references: The statistics of the references by case id.
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
    """Divide the cases into roles for the fold `data.fold`, or for the first fold if it is `all`.

    Args:
        dataset: The listed dataset.
        counts: The number of lesions of each labelled case.
        lesions: The sizes and label values of the lesions, by which the split is stratified.
        data: The settings of the split.
        seed: The seed of the split.

    Raises:
        DatasetError: If the split cannot be made, if no training case has a lesion, or if no case
            remains for validation although the settings ask for validation.
        ConfigError: If `data.validation_fraction=0` contradicts the split file or the fold.
    """
    fold = data.fold
    if fold == ALL_FOLDS:
        fold = fold_numbers(dataset, counts, given=_split_file_setting(data), n_folds=data.n_folds)[
            0
        ]
    splits = make_splits(
        dataset,
        counts,
        validation_fraction=data.validation_fraction,
        seed=seed,
        given=_split_file_setting(data),
        fold=None if fold is None else int(fold),
        n_folds=data.n_folds,
        lesions=lesions,
    )
    trained = [case for case, role in splits.roles.items() if role == "train"]
    if not any(map(counts.get, trained)):  # each count is 0, or None without a reference
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
    """Return the ids of the cases that at least one fold uses for training or validation.

    With `data.fold=all` and a split file, all folds of the file count, otherwise only `splits`.
    """
    folds = [splits.roles]
    file = data.splits or dataset.split_file
    if file is not None and data.fold == ALL_FOLDS:
        folds += SplitFile.read(Path(file)).folds
    used = ("train", "validation")
    return {case for roles in folds for case, role in roles.items() if role in used}


def with_fold(inspection: DatasetInspection, data: DataConfig, seed: int) -> DatasetInspection:
    """Return the inspection with the roles of the fold that `data.fold` names.

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
        inspection.dataset, inspection.counts, given=_split_file_setting(data), n_folds=data.n_folds
    )


def _split_file_setting(data: DataConfig) -> Path | None:
    """Return the path of the split file in the settings (`data.splits`), None if it is not set."""
    return Path(data.splits) if data.splits else None


def open_dataset(data: DataConfig) -> Dataset:
    """List the cases of `data.root`, without reading their images.

    A URL is downloaded first. If the settings describe phantoms and the folder is missing, the
    phantoms are simulated into it. Cases that cannot be used are findings of the dataset, see
    `list_dataset`.

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
        may_lack=data.channel_dropout > 0,  # channels
        nan_background=data.nan == "background",
        grid_of_image=data.geometry == "image",
        min_readers=data.min_readers,
        annotations=data.annotations,
        colour=data.colour,
    )


def labelled_cases(inspection: DatasetInspection, role: Role) -> list[CaseFiles]:
    """Return the cases of a role that have a reference, each with `role` set to this role."""
    return [replace(c, role=role) for c in inspection.of_role(role) if c.is_labelled]


def require_masks(inspection: DatasetInspection, architecture: str) -> None:
    """Raise `DatasetError` if a model that learns from masks would get references that are boxes.

    The model would learn filled boxes as the outlines of lesions. Only development cases with
    lesions count. A detector, which has no segmentation head, accepts boxes.
    """
    if "segmentation" in heads_of(architecture) and inspection.boxed:
        case, n_boxes = next(iter(inspection.boxed.items()))
        raise DatasetError(
            f"model={architecture} learns from masks; {count(len(inspection.boxed), 'reference')} "
            f"without a mask (case {case}: {count(n_boxes, 'box', 'boxes')}). Train "
            "model=retinanet, or add masks."
        )

"""Find the references for `evaluate`: in a dataset, or in a folder of masks."""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lesionseg.config import EvaluateConfig
from lesionseg.core import CaseFiles, Dataset, Finding
from lesionseg.errors import DatasetError
from lesionseg.io.layouts import find_convention, list_dataset, read_dataset_of
from lesionseg.io.layouts.checks import FIRST_CHANNEL
from lesionseg.io.layouts.readers import IGNORED_BOXES
from lesionseg.io.predictions import PredictionFiles, list_masks
from lesionseg.io.text import read_csv
from lesionseg.io.volumes import is_image_file, strip_suffix

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReferenceRules:
    """Rules by which references are read.

    Attributes:
        by_image: see `Dataset.grid_of_image`.
        min_readers: see `read_dataset`.
        merge_labels: see `read_dataset`. Without a dataset, see `with_labels_of_outputs`.
        annotations: see `read_dataset`.
    """

    by_image: bool = False
    min_readers: int | None = None
    merge_labels: bool = False
    annotations: str | None = None

    @classmethod
    def of(cls, cfg: EvaluateConfig) -> "ReferenceRules":
        """Return the rules that the settings of `evaluate` state."""
        return cls(cfg.geometry == "image", cfg.min_readers, cfg.merge_labels, cfg.annotations)


DEFAULT_RULES = ReferenceRules()


def open_references(
    folder: Path, faults: list[Finding], rules: ReferenceRules = DEFAULT_RULES
) -> tuple[Dataset | None, list[CaseFiles]]:
    """Return the dataset of a folder and its labelled cases. A folder of masks has no dataset.

    A folder of masks that belongs to a dataset, such as nnU-Net's `labelsTs`, gives this part of
    the dataset. If the folder directly contains masks with BIDS names, it is a folder of masks.

    Args:
        folder: the dataset or the masks.
        faults: a list to which the errors of unusable cases are appended.
        rules: the rules by which references are read.

    Raises:
        DatasetError: if no reference is found.
    """
    name = find_convention(folder)
    # a BIDS dataset has its files in subfolders
    are_masks_of_bids = name == "bids" and any(is_image_file(f) for f in folder.iterdir())
    if rules.annotations is None and (name is None or are_masks_of_bids):
        masks, findings = list_masks(folder)
        faults += findings
        dataset = read_dataset_of(masks, merge_labels=rules.merge_labels)
        if dataset is not None:
            return replace(dataset, grid_of_image=rules.by_image), list(dataset.cases)
        return None, [CaseFiles(case, (), reference=path) for case, path in masks.items()]
    dataset, labelled = _list_labelled(folder, faults, rules)
    if not labelled:
        raise DatasetError(
            f"{folder}: no case has a reference to compare with. Add masks, or name another folder "
            "as reference=."
        )
    return dataset, labelled


def _list_labelled(
    root: Path,
    faults: list[Finding],
    rules: ReferenceRules,
    known: Collection[str] = frozenset(),
) -> tuple[Dataset, list[CaseFiles]]:
    """Return a dataset and its labelled cases. Cases in `known` are left out.

    The errors of cases are appended to `faults`, and those of the whole dataset are logged.
    """
    dataset = list_dataset(
        root,
        merge_labels=rules.merge_labels,
        may_lack=True,
        grid_of_image=rules.by_image,
        min_readers=rules.min_readers,
        annotations=rules.annotations,
    )
    wrong = [finding for finding in dataset.errors if finding.case not in known]
    faults += [finding for finding in wrong if finding.case]
    for finding in dataset.findings:
        if finding.kind == IGNORED_BOXES:
            log.info(finding.message)
        elif finding.severity == "error" and not finding.case:
            log.warning(finding.message)
    left_out = {*known, *(finding.case for finding in wrong)}
    return dataset, [c for c in dataset.cases if c.is_labelled and c.case not in left_out]


def with_ids_of_references(
    predictions: Mapping[str, PredictionFiles], cases: Sequence[CaseFiles], folder: Path
) -> dict[str, PredictionFiles]:
    """Return predictions under the ids of their references.

    For a model with one channel, `_0000` at the end of a file name is a channel number. Thus
    `predict` gives the film `film_0000.png` the id `film`, but the id of a mask `film_0000.png` in
    a folder of masks is `film_0000`. Such a prediction gets the id of the reference, unless there
    is a reference `film`, or the table of `predict` states that the prediction is of another file.
    """
    known = {files.case for files in cases}
    path_of: dict[str, str] = {}  # the predicted file, by case
    for table in folder.glob("predictions*.csv"):
        for row in read_csv(table):
            path_of[row.get("case", "")] = row.get("path", "")
    renamed: dict[str, PredictionFiles] = {}
    for case, files in predictions.items():
        numbered = f"{case}{FIRST_CHANNEL}"
        is_only_numbered_known = numbered in known and case not in known
        is_free = numbered not in predictions
        is_same_file = True
        if case in path_of:
            is_same_file = strip_suffix(Path(path_of[case])).endswith(FIRST_CHANNEL)
        is_renamed = is_only_numbered_known and is_free and is_same_file
        renamed[numbered if is_renamed else case] = files
    return renamed


def all_references(
    folder: Path, faults: list[Finding], rules: ReferenceRules = DEFAULT_RULES
) -> tuple[Dataset | None, list[CaseFiles]]:
    """Return the references of a folder, and of the whole dataset to which it belongs.

    For example, `labelsTs` of a dataset returns the cases of `labelsTr` as well. For `faults` and
    errors, see `open_references`.
    """
    dataset, labelled = open_references(folder, faults, rules)
    if dataset is None or dataset.root == folder:
        return dataset, labelled
    in_folder = {files.case for files in labelled}
    whole, others = _list_labelled(dataset.root, faults, rules, in_folder)
    return whole, [*labelled, *others]

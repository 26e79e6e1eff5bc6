"""The references of a folder: a dataset, or a folder of masks."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from lesionseg.core import CaseFiles, Dataset, Finding, Geometry, Reference
from lesionseg.errors import DatasetError
from lesionseg.io.cases import read_mask, read_reference
from lesionseg.io.exact_values import require_exact_values
from lesionseg.io.layouts import find_convention, list_dataset, read_dataset_of
from lesionseg.io.layouts.checks import FIRST_CHANNEL
from lesionseg.io.layouts.readers import IGNORED_BOXES
from lesionseg.io.predictions import PredictionFiles, list_masks
from lesionseg.io.text import read_csv
from lesionseg.io.volumes import is_image_file, read_geometry, strip_suffix

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReferenceRules:
    """Rules by which references are read.

    Attributes:
        by_image: See `Dataset.grid_of_image`.
        min_readers: See `read_dataset`.
        merge_labels: See `read_dataset`. Without a dataset, see `with_labels_of_outputs`.
        nan_background: See `Dataset.nan_background`.
        annotations: See `list_dataset`.
    """

    by_image: bool = False
    min_readers: int | None = None
    merge_labels: bool = False
    nan_background: bool = False
    annotations: str | None = None

    def list_dataset(self, root: Path) -> Dataset:
        """List the cases of a dataset, which may lack channels. See `list_dataset`."""
        return list_dataset(
            root,
            merge_labels=self.merge_labels,
            may_lack=True,
            nan_background=self.nan_background,
            grid_of_image=self.by_image,
            min_readers=self.min_readers,
            annotations=self.annotations,
        )


@dataclass(frozen=True)
class References:
    """The references of a folder.

    Attributes:
        dataset: The dataset of the folder, or the dataset that its masks belong to. None if the
            masks belong to none.
        cases: The cases with a reference.
        findings: The errors of cases that cannot be used.
        are_masks: True for a folder of masks, False for that of a dataset.
    """

    dataset: Dataset | None = None
    cases: list[CaseFiles] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    are_masks: bool = True


def find_references(folder: Path, rules: ReferenceRules) -> References:
    """Find the references in a dataset or in a folder of masks.

    A folder of masks that belongs to a dataset, such as nnU-Net's `labelsTs`, gives this part of
    the dataset. If the folder directly contains masks with BIDS names, it is a folder of masks.

    Raises:
        DatasetError: No reference is found.
    """
    name = find_convention(folder)
    # a BIDS dataset has its files in subfolders
    are_masks_of_bids = name == "bids" and any(map(is_image_file, folder.iterdir()))
    if rules.annotations is None and (name is None or are_masks_of_bids):
        return _find_masks(folder, rules)
    references = _list_labelled(folder, rules)
    if not references.cases:
        raise DatasetError(
            f"{folder}: no case has a reference to compare with. Add masks, or name another folder "
            "as reference=."
        )
    return references


def find_all_references(folder: Path, rules: ReferenceRules) -> References:
    """Find the references of a folder, and those of the whole dataset to which it belongs.

    For example, `labelsTs` of a dataset returns the cases of `labelsTr` as well. For errors, see
    `find_references`.
    """
    found = find_references(folder, rules)
    if found.dataset is None or found.dataset.root == folder:
        return found
    known = {files.case for files in found.cases}
    whole = _list_labelled(found.dataset.root, rules)
    others = [files for files in whole.cases if files.case not in known]
    findings = [finding for finding in whole.findings if finding.case not in known]
    return replace(whole, cases=found.cases + others, findings=found.findings + findings)


def _find_masks(folder: Path, rules: ReferenceRules) -> References:
    """Find the references in a folder of masks."""
    masks, findings = list_masks(folder)
    dataset = read_dataset_of(masks, merge_labels=rules.merge_labels)
    if dataset is None:
        cases = [CaseFiles(case, (), reference=path) for case, path in masks.items()]
    else:
        dataset = replace(
            dataset, grid_of_image=rules.by_image, nan_background=rules.nan_background
        )
        cases = [*dataset.cases]
    return References(dataset, cases, findings)


def _list_labelled(root: Path, rules: ReferenceRules) -> References:
    """Find the labelled cases of a dataset. The findings of the whole dataset are logged."""
    dataset = rules.list_dataset(root)
    for finding in dataset.findings:
        if finding.kind == IGNORED_BOXES:
            logger.info(finding.message)
        elif finding.severity == "error" and not finding.case:
            logger.warning(finding.message)
    wrong = [finding for finding in dataset.errors if finding.case]
    left_out = {finding.case for finding in wrong}
    cases = [c for c in dataset.cases if c.is_labelled and c.case not in left_out]
    return References(dataset, cases, wrong, are_masks=False)


def open_reference(
    files: CaseFiles, dataset: Dataset | None, geometry: Geometry | None = None
) -> Reference:
    """Read the reference of a case on the grid of its image. Only the header of the image is read.

    If the case has no image, the reference has the given grid or keeps that of its mask.

    Args:
        files: The case.
        dataset: Its dataset, or None for a mask without one.
        geometry: The grid of the image, if `files` lists no image.

    Raises:
        DatasetError: The case has no reference.
    """
    reference = None
    if files.images:
        geometry = None
    if dataset is not None:
        if not files.images and geometry is None and files.reference is not None:
            geometry = read_geometry(files.reference, raster_mm=files.pixel_mm)
        reference = read_reference(files, dataset, geometry)
    elif files.reference is not None:
        raster_mm = files.pixel_mm if geometry is None else geometry.spacing_mm[0]
        reference = read_mask(files.reference, raster_mm=raster_mm)
        require_exact_values(files.reference, np.asarray(reference.labels))
    if reference is None:
        raise DatasetError(f"Case {files.case} has no reference. Add its mask, or remove the case.")
    return reference


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
    rows = [row for table in folder.glob("predictions*.csv") for row in read_csv(table)]
    stems = {row.get("case", ""): strip_suffix(Path(row.get("path", ""))) for row in rows}
    renamed: dict[str, PredictionFiles] = {}
    for case, files in predictions.items():
        numbered = f"{case}{FIRST_CHANNEL}"
        is_only_numbered_known = numbered in known and case not in known
        is_free = numbered not in predictions
        is_same_file = stems.get(case, numbered).endswith(FIRST_CHANNEL)
        is_renamed = is_only_numbered_known and is_free and is_same_file
        renamed[numbered if is_renamed else case] = files
    return renamed

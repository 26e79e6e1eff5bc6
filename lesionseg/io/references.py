"""References for `evaluate`: a dataset or a folder of masks, their labels, reading of one."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Unpack

import numpy as np

from lesionseg.core import CaseFiles, Dataset, Finding, Geometry, Labels, Reference
from lesionseg.core.finding import require_no_errors
from lesionseg.errors import DatasetError
from lesionseg.io.cases import read_reference
from lesionseg.io.layouts import list_dataset, read_dataset_of, recognise_layout
from lesionseg.io.layouts.readers import IGNORED_BOXES
from lesionseg.io.layouts.table import ReadingRules
from lesionseg.io.masks import read_mask, require_exact_values
from lesionseg.io.results.case import PredictionFiles
from lesionseg.io.results.index import list_masks
from lesionseg.io.volumes import count_axes, is_image_file, read_geometry

logger = logging.getLogger(__name__)

# merged labels of masks whose labels are not stated: no value of 8 bits is unknown
_ANY_VALUE = Labels.of(dict.fromkeys(range(1, 256), "lesion"))


@dataclass(frozen=True)
class References:
    """The references (ground truth) of a folder, which predictions are compared with.

    Attributes:
        dataset: The dataset of the folder, or the dataset that the masks of the folder belong to.
            None if the masks belong to no dataset.
        cases: The cases with a reference.
        findings: The errors of cases that cannot be used.
        are_masks: True for a folder of masks, False for the folder of a dataset.
    """

    dataset: Dataset | None = None
    cases: list[CaseFiles] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    are_masks: bool = True

    @classmethod
    def find(cls, folder: Path, **rules: Unpack[ReadingRules]) -> "References":
        """Find the references in a dataset or in a folder of masks.

        A folder is a dataset if its layout is recognised or `rules` name COCO annotations. A folder
        that directly contains masks with BIDS names is a folder of masks, because a BIDS dataset
        has its files in subfolders. If the folder is the mask folder of a dataset, such as
        nnU-Net's `labelsTs`, only the cases with a mask in this folder are returned.

        Args:
            folder: The folder.
            rules: Settings of the reading of datasets, see `ReadingRules`.

        Raises:
            DatasetError: If no usable reference is found, or the dataset cannot be listed.
            ReadError: If a table cannot be read.
        """
        layout = recognise_layout(folder)
        is_bids = layout is not None and layout.name == "bids"
        # a BIDS dataset has its files in subfolders
        are_masks_of_bids = is_bids and any(map(is_image_file, folder.iterdir()))
        if rules.get("annotations") is None and (layout is None or are_masks_of_bids):
            return _find_masks(folder, rules)
        references = _list_labelled(folder, rules)
        if not references.cases:
            require_no_errors(references.findings, folder)  # the reasons, if there are any
            raise DatasetError(
                f"{folder}: no case has a reference to compare with. Add masks, or name another "
                "folder as reference=."
            )
        return references

    @classmethod
    def find_all(cls, folder: Path, **rules: Unpack[ReadingRules]) -> "References":
        """Find the references of a folder, and all other references of the same dataset.

        For example, nnU-Net's `labelsTs` returns the cases of `labelsTr` as well. The cases of
        `folder` come first. A folder of masks that belongs to no dataset has no further cases. For
        arguments and errors, see `find`.
        """
        found = cls.find(folder, **rules)
        if found.dataset is None or found.dataset.root == folder:
            return found
        found_ids = {files.case for files in found.cases}
        complete = _list_labelled(found.dataset.root, rules)
        others = [files for files in complete.cases if files.case not in found_ids]
        findings = [finding for finding in complete.findings if finding.case not in found_ids]
        return replace(complete, cases=found.cases + others, findings=found.findings + findings)

    def with_labels_of(
        self, predictions: Mapping[str, PredictionFiles], *, merge_labels: bool
    ) -> Dataset | None:
        """Return the dataset of the references, which has the labels for an evaluation.

        For masks that belong to no dataset, a dataset is made with the labels of the predictions.
        Its number of axes is that of the first readable mask, or 3 if no mask is readable.

        Args:
            predictions: The predictions by case id. The labels of the made dataset come from the
                first prediction that has labels of nnU-Net.
            merge_labels: True makes one label of all mask values in a made dataset, also if no
                labels are known.

        Returns:
            The dataset, or None if no labels are known or there are no cases.

        Raises:
            LesionsegError: If the labels of nnU-Net's probabilities are not valid.
        """
        if self.dataset is not None or not self.cases:
            return self.dataset
        nnunet_labels = (files.read_nnunet_labels() for files in predictions.values())
        labels = next((labels for labels in nnunet_labels if labels is not None), None)
        if merge_labels:
            labels = (labels or _ANY_VALUE).merge()
        if labels is None:
            return None
        masks = [files.reference for files in self.cases if files.reference is not None]
        folder = masks[0].parent if masks else Path()
        return Dataset(
            name=folder.name,
            root=folder,
            layout="masks",
            dims=count_axes(masks, default=3),
            channel_names=("image",),
            labels=labels,
            cases=tuple(self.cases),
        )


def _find_masks(folder: Path, rules: ReadingRules) -> References:
    """Find the references in a folder of masks, and the dataset that the masks belong to, if any.

    For `rules`, see `ReadingRules`. Raise `DatasetError` if the folder has no masks.
    """
    masks, findings = list_masks(folder)
    dataset = read_dataset_of(masks, **rules)
    if dataset is not None:
        return References(dataset, [*dataset.cases], findings)
    cases = [CaseFiles(case, images=(), reference=path) for case, path in masks.items()]
    return References(cases=cases, findings=findings)


def _list_labelled(root: Path, rules: ReadingRules) -> References:
    """List the labelled cases of the dataset at `root` that can be used, and the errors of cases.

    A case with an error is left out. Errors that belong to no case, and notes on ignored boxes, are
    logged. For `rules`, see `ReadingRules`. Cases may lack channels, because only the references
    are needed.
    """
    # missing channels are no error, because only references are read
    dataset = replace(list_dataset(root, **rules), may_lack=True)
    for finding in dataset.findings:
        if finding.kind == IGNORED_BOXES:
            logger.info(finding.message)
        elif finding.severity == "error" and not finding.case:
            logger.warning(finding.message)
    case_errors = [finding for finding in dataset.errors if finding.case]
    left_out = {finding.case for finding in case_errors}
    cases = [c for c in dataset.cases if c.is_labelled and c.case not in left_out]
    return References(dataset, cases, case_errors, are_masks=False)


def open_reference(
    files: CaseFiles, dataset: Dataset | None, geometry: Geometry | None = None
) -> Reference:
    """Read the reference of a case, for a comparison with a prediction.

    The grid of the reference is:

    - With a dataset and an image in `files`: the grid of the image. Only the header of the image is
      read, except for a radiograph (see `read_reference`).
    - With a dataset, but without an image: `geometry`, or the grid of the mask if it is None.
    - Without a dataset: the grid of the mask.

    Args:
        files: The files of the case.
        dataset: The dataset of the case. None for a mask without a dataset, whose values are read
            unchanged.
        geometry: The grid of the image if `files` contains no image, otherwise not used. Without a
            dataset, only its pixel size is used, for a picture.

    Raises:
        DatasetError: If the case has no reference.
        LesionsegError: If the reference cannot be used, see `read_case`.
    """
    reference = None
    if files.images:
        geometry = None
    if dataset is not None:
        if not files.images and geometry is None and files.reference is not None:
            geometry = read_geometry(files.reference, pixel_mm=files.pixel_mm)
        reference = read_reference(files, dataset, geometry)
    elif files.reference is not None:
        pixel_mm = files.pixel_mm if geometry is None else geometry.spacing_mm[0]
        reference = read_mask(files.reference, pixel_mm=pixel_mm)
        require_exact_values(files.reference, np.asarray(reference.labels))
    if reference is None:
        raise DatasetError(f"Case {files.case} has no reference. Add its mask, or remove the case.")
    return reference

"""`prepare check=true`: problems of cases, leaks, equal images, spacing outliers, exit status.

A page shows them.
"""

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lesionseg.config import AUTO_MODEL, DataConfig, ModelConfig
from lesionseg.core import Case, CaseFiles, Dataset, Finding, describe_sides, joint_unit
from lesionseg.core.finding import Severity, collect_errors
from lesionseg.io.files import digest_of
from lesionseg.io.inspection import inspect_case
from lesionseg.ops.components import lesion_mask
from lesionseg.pipeline.chosen_model import model_for
from lesionseg.pipeline.dataset_inspection import (
    first_splits,
    open_dataset,
    require_lesions,
)
from lesionseg.pipeline.log import bar, command_line
from lesionseg.pipeline.outcome import Outcome
from lesionseg.plan.model_choice import ReferenceKinds
from lesionseg.plan.plan import heads_of
from lesionseg.plan.plausibility import ReferenceStatistics, find_implausible, reference_statistics
from lesionseg.plan.splits import LesionStatistics
from lesionseg.reporting.dataset_page import (
    MEANING,
    PIXELS,
    CasePreview,
    findings_lines,
    preview_case,
    write_dataset_report,
)
from lesionseg.reporting.evaluation_tables import write_pseudonyms

log = logging.getLogger(__name__)

NEEDS_DETECTOR = "boxed"  # kind of the finding that a model of masks gets boxes
SPACING_FACTOR = 2.0  # a spacing is an outlier if it differs from the median by more than this
SAME_REFERENCE_VOXELS = 100  # equal references with fewer voxels may be a coincidence


@dataclass(frozen=True)
class CheckOutcome(Outcome):
    """The findings of a check, and the page that shows them.

    Attributes:
        findings: The findings that concern no single case, then those of each case by case id.
        pseudonyms: The name of each case on the page, by case id.
        page: The path of the page.
        settings: The settings of the next command.
    """

    findings: tuple[Finding, ...]
    pseudonyms: Mapping[str, str]
    page: Path
    settings: Mapping[str, object]

    @property
    def can_train(self) -> bool:
        """True if `train` can start with this dataset: no finding is an error."""
        return all(f.severity != "error" for f in self.findings)

    @property
    def exit_status(self) -> int:
        """The exit status: 1 if `train` cannot start with this dataset, otherwise 0."""
        return int(not self.can_train)

    def record(self) -> dict[str, Any]:
        """Return the path of the page and all findings as plain data, for `--json`.

        The findings contain the real case ids and file names, not the pseudonyms of the page.
        """
        return {"page": self.page, "findings": [asdict(finding) for finding in self.findings]}

    def summary(self) -> list[str]:
        """Return lines for the terminal: findings, their cases and files, totals, and the page.

        A finding has the case id and the pseudonym, so that a reader finds the case on the page.
        """
        lines = findings_lines(self.findings, self.pseudonyms)
        if not self.can_train:
            lines.append("Correct the errors, and check again.")
        return [*lines, f"Open:    {self.page}"]

    @property
    def next(self) -> str:
        """The command to run next: `train`, or this check again if a finding is an error."""
        if self.can_train:
            return command_line("train", self.settings)
        return command_line("prepare", {"check": "true", **self.settings})


@dataclass(frozen=True)
class _InspectedCase:
    """The statistics of a case that are needed after its arrays are freed.

    A case that cannot be read has only `files`, `preview`, `findings` and `patient`.

    Attributes:
        files: The files of the case.
        preview: The row and the pictures of the case on the page.
        findings: The findings that concern only this case.
        patient: Hash of the patient's identifier; empty if no file contains an identifier.
        image_digests: Hashes of the voxels, one per channel that the case has.
        reference_key: A text that is equal for equal references. It is a hash of the voxels, or the
            path of the file if few voxels are lesion. Empty if the case has no lesion, or few
            voxels and no file.
        axes: Anatomical directions of the array axes, such as SAR (superior, anterior, right).
            Empty in 2-D.
        unit: The unit of lesion sizes.
        reference_statistics: The statistics of the reference; None if the case has no reference.
        is_boxed: True if the lesions are boxes without a mask.
    """

    files: CaseFiles
    preview: CasePreview
    findings: tuple[Finding, ...]
    patient: str = ""
    image_digests: tuple[str, ...] = ()
    reference_key: str = ""
    axes: str = ""
    unit: str = ""
    reference_statistics: ReferenceStatistics | None = None
    is_boxed: bool = False


def check_dataset(
    data: DataConfig,
    model: ModelConfig,
    seed: int,
    page: Path,
    *,
    settings: Mapping[str, object],
    identifiers: bool = False,
) -> CheckOutcome:
    """Inspect every case of `data.root`, compare the cases with each other, and write an HTML page.

    `prepare check=true` calls this before a training, so that all errors of a dataset are listed at
    once. By default, the page calls the cases `case 01`, `case 02`, …, and the table
    `pseudonyms.csv` next to the page maps these pseudonyms to the case ids.

    Args:
        data: The dataset, and its split into folds.
        model: The model of the training that follows.
        seed: The seed of the split.
        page: The path of the page to write.
        settings: The settings of the next command, which the outcome prints.
        identifiers: True writes the case ids into the page instead of pseudonyms. No table of
            pseudonyms remains then.

    Returns:
        The findings and the page. Findings that concern no single case come first, then those of
        each case by case id.

    Raises:
        DatasetError: If the dataset has no known layout, or its description is wrong.
    """
    dataset = open_dataset(data)
    inspected: list[_InspectedCase] = []
    with bar("Checking the dataset") as advance:
        n_digits = len(str(len(dataset.cases)))
        by_name = sorted(dataset.cases, key=lambda files: files.case)
        for number, files in enumerate(by_name, start=1):
            name = f"case {number:0{n_digits}d}"  # with leading zeros, so that names sort
            inspected.append(_inspect(files, dataset, name))
            advance(name, number, len(dataset.cases))
    # compare the cases, and sort the findings by case; findings without a case come first
    position_of = {case.files.case: i for i, case in enumerate(inspected)}
    references = {
        case.files.case: case.reference_statistics
        for case in inspected
        if case.reference_statistics
    }
    unsorted = [
        *_findings_of_cases(dataset, inspected, references),
        *_find_training_problems(dataset, inspected, references, data, seed),
        *_notes_on_model(dataset, inspected, model),
    ]
    findings = sorted(unsorted, key=lambda f: position_of.get(f.case, -1))
    # write the page and the table of pseudonyms
    previews = {case.files.case: case.preview for case in inspected}
    if identifiers:
        previews = {case: replace(preview, name=case) for case, preview in previews.items()}
    write_dataset_report(
        page,
        previews,
        findings,
        dataset.channel_names,
        # the page writes the unit of an unknown pixel size as a word
        joint_unit(case.unit for case in inspected if case.unit).replace("px", PIXELS),
        Path(data.root).resolve().name,
        identifiers=identifiers,
    )
    name_on_page = {case: preview.name for case, preview in previews.items()}
    # without names, an earlier table is removed
    write_pseudonyms(
        page.parent,
        {} if identifiers else {preview: case for case, preview in name_on_page.items()},
    )
    if any(finding.kind == NEEDS_DETECTOR for finding in findings):
        # the printed command then trains a model that learns from boxes
        settings = {**settings, "model": "retinanet"}
    return CheckOutcome(tuple(findings), name_on_page, page, settings)


def _findings_of_cases(
    dataset: Dataset,
    inspected: Sequence[_InspectedCase],
    references: Mapping[str, ReferenceStatistics],
) -> Iterator[Finding]:
    """Yield the findings of the listing, of each case, of comparing cases, and of the references.

    A finding of the listing loses its case id if that case could not be listed. Two kinds of
    finding are suppressed, because rejected entries of the dataset's table would explain them:

    - `lesion_free` of a case, if the listing has an error for this case,
    - `empty_label` of the dataset, if the listing has any error.

    Args:
        dataset: The listed dataset.
        inspected: The inspected cases.
        references: The statistics of the references by case id.
    """
    cases = {case.files.case for case in inspected}
    for finding in dataset.findings:
        yield finding if finding.case in cases else replace(finding, case="")
    # if some of the table's rows were rejected, an empty reference does not mean "no lesion"
    faulty = {finding.case for finding in dataset.errors}
    for case in inspected:
        for finding in case.findings:
            if finding.kind != "lesion_free" or finding.case not in faulty:
                yield finding
    yield from _compare_cases(inspected)
    for finding in find_implausible(dataset, references):
        if finding.kind != "empty_label" or not dataset.errors:
            yield finding


def _make_finding(
    kind: str, case: str = "", detail: str = "", severity: Severity = "warning"
) -> Finding:
    """Return a finding whose message is the standard explanation of its kind, plus `detail`."""
    return Finding(kind, MEANING[kind] + detail, case, severity)


def _notes_on_model(
    dataset: Dataset, inspected: Sequence[_InspectedCase], model: ModelConfig
) -> Iterator[Finding]:
    """Yield at most one note on the model that the training will use.

    If the settings name a model: a note that it learns from masks, but a case has only boxes. If
    the settings say `model=auto`: a note on the model that `train` would choose for the cases for
    training and validation, and why. A dataset without lesions gets no note on `model=auto`.
    """
    if model.architecture != AUTO_MODEL:
        learns_from_masks = "segmentation" in heads_of(model.architecture)
        if learns_from_masks and any(case.is_boxed for case in inspected):
            yield _make_finding(NEEDS_DETECTOR, severity="note")
        return
    if not any(case.preview.diameters for case in inspected):
        return
    development = [case for case in inspected if case.files.role not in ("test", "external")]
    statistics = [
        case.reference_statistics for case in development if case.reference_statistics is not None
    ]
    kinds = ReferenceKinds(
        dims=dataset.dims,
        n_with_lesions=sum(bool(case.preview.diameters) for case in development),
        n_boxed=sum(case.is_boxed for case in development),
        n_outlines=sum(one.n_outlines for one in statistics),
        n_box_outlines=sum(one.n_box_outlines for one in statistics),
    )
    chosen = model_for(model, kinds)
    yield _make_finding(
        "model", detail=f" {chosen.value}, because {chosen.reason}.", severity="note"
    )


def _find_training_problems(
    dataset: Dataset,
    inspected: Sequence[_InspectedCase],
    references: Mapping[str, ReferenceStatistics],
    data: DataConfig,
    seed: int,
) -> list[Finding]:
    """Return the error with which `train` would refuse this dataset, even with all cases readable.

    The list has one finding, or is empty if `train` could start. The check makes the split of the
    training. A labelled case that cannot be read counts as a case with one lesion, so that the
    split can be made without its files.

    Args:
        dataset: The listed dataset.
        inspected: The inspected cases.
        references: The statistics of the readable references by case id.
        data: The settings of the split.
        seed: The seed of the split.
    """
    diameters = {case.files.case: case.preview.diameters for case in inspected}
    # the median diameter; 0 for a case without lesions
    sizes = {case: float(np.median(lesion_mm or (0.0,))) for case, lesion_mm in diameters.items()}
    counts = {
        case.files.case: len(case.preview.diameters) if case.files.case in references else 1
        for case in inspected
        if case.files.case in references or case.files.is_labelled
    }
    labels = {case: statistics.labels for case, statistics in references.items()}
    findings: list[Finding] = []
    with collect_errors(findings, "", kind="no_training"):  # "": it concerns no single case
        require_lesions(dataset, counts, references)
        first_splits(dataset, counts, LesionStatistics(sizes, labels), data, seed)
    return findings


def _inspect(files: CaseFiles, dataset: Dataset, pseudonym: str) -> _InspectedCase:
    """Read a case, draw its pictures for the page, and return its statistics and findings.

    The arrays of the case are freed afterwards. If the case cannot be read, the result has the
    error as a finding and only the attributes that need no arrays.

    Args:
        files: The files of the case.
        dataset: The dataset, for the labels and the reading rules.
        pseudonym: The name of the case on the page.
    """
    inspection = inspect_case(files, dataset)
    case = inspection.case
    findings = [*inspection.findings]
    if inspection.has_text:
        findings.append(_make_finding("burned_in", files.case))
    preview = preview_case(pseudonym, files, case)
    if case is None:
        return _InspectedCase(files, preview, tuple(findings), inspection.patient)
    image = case.image
    reference = case.reference
    lesions = None if reference is None else lesion_mask(reference)
    is_empty = lesions is not None and not lesions.any()
    is_ignored = _has_ignored_regions(case)
    # warnings and notes on this case; `notes` has the kind of each note and its condition
    if any(channel.min() == channel.max() for channel in image.present_channels):
        findings.append(_make_finding("constant", files.case))
    notes = {
        "detector": image.geometry.unit != "mm",  # a radiograph, measured at the detector
        "unlabelled": lesions is None,
        "lesion_free": is_empty and not is_ignored,
        "only_ignored": is_empty and is_ignored,
    }
    findings += [_make_finding(kind, files.case, severity="note") for kind in notes if notes[kind]]
    # small lesions may be equal by coincidence, so the path of the file identifies them
    reference_key = ""
    if lesions is not None and np.count_nonzero(lesions) >= SAME_REFERENCE_VOXELS:
        reference_key = _array_digest(lesions)
    elif files.reference is not None and not is_empty:
        reference_key = os.path.realpath(files.reference)
    return _InspectedCase(
        files=files,
        preview=preview,
        findings=tuple(findings),
        patient=inspection.patient,
        image_digests=tuple(map(_array_digest, image.present_channels)),
        reference_key=reference_key,
        axes=inspection.axes,
        unit=image.geometry.size_unit,
        reference_statistics=None if reference is None else reference_statistics(reference),
        is_boxed=reference is not None and reference.mask() is None and len(preview.diameters) > 0,
    )


def _has_ignored_regions(case: Case) -> bool:
    """Return True if the reference marks image voxels as ignored (neither lesion nor background).

    Ignored voxels of the padding around the image (outside `image.valid`) do not count. A case
    without a reference gives False.
    """
    if case.reference is None or case.reference.ignore is None:
        return False
    ignored = case.reference.ignore
    return bool((ignored if case.image.valid is None else ignored & case.image.valid).any())


def _compare_cases(inspected: Sequence[_InspectedCase]) -> Iterator[Finding]:
    """Yield the findings that only a comparison of cases can show.

    - `same_channels`: two channels of one case, from several files, have equal voxels.
    - `duplicate`: cases share an image.
    - `same_reference`: cases share a reference.
    - `same_patient`: cases of one patient, or with equal images, belong to different groups.
    - `leak`: related cases are divided between training, validation and test.
    - `spacing`: the voxel size is an outlier.
    - `orientation`: the array axes have other anatomical directions than in most cases.
    """
    for case in inspected:
        has_files = len(case.files.images) > 1  # a grey picture may have three equal colours
        if has_files and len(set(case.image_digests)) < len(case.image_digests):
            yield _make_finding("same_channels", case.files.case)
    for group in _groups_sharing(inspected, lambda case: case.image_digests):
        yield from _findings_of_group("duplicate", group)
    for group in _groups_sharing(inspected, lambda case: (case.reference_key,)):
        yield from _findings_of_group("same_reference", group)
    related = list(_groups_sharing(inspected, lambda case: (case.patient, *case.image_digests)))
    for group in related:
        if len({case.files.group for case in group}) > 1:
            yield from _findings_of_group("same_patient", group)
    same_group = _groups_sharing(inspected, lambda case: (case.files.group,))
    yield from _find_leaks([*related, *same_group])
    yield from _find_spacing_outliers([case for case in inspected if case.preview.spacing_mm])
    counts = Counter(case.axes for case in inspected if case.axes)  # "" in 2-D
    most_frequent = max(counts, key=counts.__getitem__, default="")
    for case in inspected:
        if case.axes not in ("", most_frequent):
            detail = f" Axes {case.axes}; most cases {most_frequent}."
            yield _make_finding("orientation", case.files.case, detail, severity="note")


def _find_leaks(groups: Sequence[Sequence[_InspectedCase]]) -> Iterator[Finding]:
    """Yield a finding for each case of a group that is divided between training and evaluation.

    Such a group, for example the cases of one patient, makes scores too optimistic. It has cases
    for training or validation as well as test or external cases, or it has cases for training as
    well as validation. A case without a role counts as a case for training. A group may be divided
    between test and external cases, because neither role is used for training.
    """
    leaked: set[str] = set()
    for group in groups:
        roles = {case.files.role for case in group}
        # some cases are unseen and others are not
        is_divided = bool(roles & {"test", "external"}) and not roles <= {"test", "external"}
        # some cases validate and others train
        is_divided |= "validation" in roles and bool(roles & {"train", None})
        if is_divided:
            leaked |= {case.files.case for case in group}
    for name in sorted(leaked):
        yield _make_finding("leak", name)


def _findings_of_group(kind: str, group: Sequence[_InspectedCase]) -> Iterator[Finding]:
    """Yield a finding of this kind for each case of a group. Its message lists the other cases."""
    for case in group:
        others = [other.files.case for other in group if other is not case]
        yield _make_finding(kind, case.files.case, f" Also: {', '.join(others)}.")


def _groups_sharing(
    inspected: Sequence[_InspectedCase], keys: Callable[[_InspectedCase], tuple[str, ...]]
) -> Iterator[list[_InspectedCase]]:
    """Yield each group of two or more cases that have a key in common, such as equal images.

    A group that shares several keys is yielded once.

    Args:
        inspected: The cases.
        keys: Returns the keys of a case, such as the hashes of its channels. Empty keys are
            ignored.
    """
    by_key: dict[str, dict[str, _InspectedCase]] = {}  # cases by id, for each key
    for case in inspected:
        for key in keys(case):
            if key:
                by_key.setdefault(key, {})[case.files.case] = case
    # equal groups that several keys share become one entry
    by_members = {tuple(members): list(members.values()) for members in by_key.values()}
    for group in by_members.values():
        if len(group) > 1:
            yield group


def _find_spacing_outliers(cases: Sequence[_InspectedCase]) -> Iterator[Finding]:
    """Yield a finding for each case whose voxel size is above twice or below half the median size.

    The median is computed for each axis. Fewer than three cases have no outlier, because the median
    of two does not show which case is unusual.
    """
    if len(cases) < 3:
        return
    median = np.median([case.preview.spacing_mm for case in cases], axis=0)
    for case in cases:
        ratio = np.array(case.preview.spacing_mm) / median
        factor = np.maximum(ratio, 1 / ratio)  # the same for twice and for half the median
        if (factor > SPACING_FACTOR).any():
            size = describe_sides(case.preview.spacing_mm)
            detail = f" {size} mm; usual {describe_sides(median)} mm."
            yield _make_finding("spacing", case.files.case, detail)


def _array_digest(array: NDArray[np.generic]) -> str:
    """Return a hash of shape, data type and values, used to recognise equal images and references.

    The hash does not depend on the file format.
    """
    return digest_of(repr((array.shape, str(array.dtype))), np.ascontiguousarray(array).data)

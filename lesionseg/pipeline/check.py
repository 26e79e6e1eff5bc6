"""`prepare check=true`: find every problem of every case, and write a page that shows them."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lesionseg.config import TrainConfig
from lesionseg.core import CaseFiles, Dataset, joint_unit
from lesionseg.errors import LesionsegError
from lesionseg.io.inspection import inspect_case
from lesionseg.io.nifti import axis_codes
from lesionseg.ops.components import lesion_mask
from lesionseg.pipeline.log import bar, command_line
from lesionseg.pipeline.outcome import Outcome
from lesionseg.pipeline.survey import first_splits, require_lesions
from lesionseg.plan.plan import sources_of
from lesionseg.plan.plausibility import ReferenceFacts, find_doubts, reference_facts
from lesionseg.reporting.dataset_page import (
    PIXELS,
    CaseLook,
    Finding,
    findings_lines,
    look_at,
    write_dataset_report,
)

SPACING_FACTOR = 2.0  # a case is an outlier if its spacing differs from the median by more
SAME_REFERENCE_VOXELS = 100  # equal references with fewer voxels may be a coincidence


@dataclass(frozen=True)
class CheckOutcome(Outcome):
    """The findings of a check, and the page that shows them.

    Attributes:
        findings: the problems of all cases.
        pseudonyms: the name of each case on the page.
        page: the file of the page.
        root: the dataset's folder, for the next command.
        model: the model to train, for the next command; None for the default.
    """

    findings: tuple[Finding, ...]
    pseudonyms: Mapping[str, str]
    page: Path
    root: str = "DIR"
    model: str | None = None

    @property
    def can_train(self) -> bool:
        """True if `train` can start with this dataset: no finding is an error."""
        return all(f.severity != "error" for f in self.findings)

    @property
    def exit_status(self) -> int:
        """1 if a case cannot be used, otherwise 0, even if there are too few cases to train on."""
        errors = (f for f in self.findings if f.severity == "error" and f.kind != "no_training")
        return int(any(errors))

    def summary(self) -> list[str]:
        """Return a line per finding with its cases and files, the totals, and the page."""
        lines = findings_lines(self.findings, self.pseudonyms)
        if not self.can_train:
            lines.append("Correct the errors, and check again.")
        return [*lines, f"Open:    {self.page}"]

    @property
    def next(self) -> str:
        """The command that trains, or this check again if errors have to be corrected first."""
        dataset = {"data.root": self.root}
        if self.model is not None:
            dataset["model"] = self.model
        if self.can_train:
            return command_line("train", dataset)
        return command_line("prepare", {"check": "true"} | dataset)


@dataclass(frozen=True)
class _Trace:
    """The facts of a case that are needed after its arrays are freed.

    Attributes:
        files: the files of the case.
        look: its row and pictures on the page.
        findings: the problems of the case itself.
        patient: hash of the patient's identifier.
        images: hashes of the voxels, one per channel.
        reference: hash of the voxels; empty if the reference has too few of them.
        axes: anatomical directions of the array axes, such as LAS.
        unit: the unit of lesion sizes.
        reference_facts: None if the case has no reference.
        is_boxed: its lesions are boxes without a mask.
    """

    files: CaseFiles
    look: CaseLook
    findings: tuple[Finding, ...]
    patient: str = ""
    images: tuple[str, ...] = ()
    reference: str = ""
    axes: str = ""
    unit: str = ""
    reference_facts: ReferenceFacts | None = None
    is_boxed: bool = False


def check_dataset(
    dataset: Dataset,
    page: Path,
    *,
    root: str = "DIR",
    identifiers: bool = False,
    cfg: TrainConfig | None = None,
) -> CheckOutcome:
    """Inspect the cases one by one, compare them, and write the page.

    Args:
        dataset: the cases.
        page: the file of the page.
        root: the dataset's folder, for the next command.
        identifiers: the page names cases; otherwise it contains their numbers.
        cfg: the settings of the next training, by default those of `train`.
    """
    traces: list[_Trace] = []
    with bar("Checking the dataset") as advance:
        for number, files in enumerate(dataset.cases, start=1):
            name = f"case {number:0{len(str(len(dataset.cases)))}d}"
            traces.append(_inspect(files, dataset, name))
            advance(name, number, len(dataset.cases))
    names = {t.files.case: t.look.name for t in traces}
    findings = [
        Finding(p.case if p.case in names else "", "listed", "error", named=p.message)
        for p in dataset.problems
    ]
    findings += [
        Finding(r.case, r.kind, "note" if r.is_note else "warning", named=r.message)
        for r in dataset.remarks
    ]
    findings += [finding for trace in traces for finding in trace.findings]
    findings += _compare(traces)
    references = {t.files.case: t.reference_facts for t in traces if t.reference_facts is not None}
    findings += [
        Finding(doubt.case, doubt.kind, "warning", doubt.detail)
        for doubt in find_doubts(dataset, references)
    ]
    cfg = cfg or TrainConfig.of(data={"root": root})
    findings += _training_faults(dataset, traces, references, cfg)
    is_boxed = any(trace.is_boxed for trace in traces)
    needs_detector = is_boxed and "segmentation" in sources_of(cfg.model.architecture)
    if needs_detector:
        findings.append(Finding("", "boxed", "note"))
    order = {case: i for i, case in enumerate(names)}
    findings.sort(key=lambda f: order.get(f.case, -1))
    unit = joint_unit(t.unit for t in traces if t.unit).replace("px", PIXELS)
    looks = {t.files.case: t.look for t in traces}
    if identifiers:
        looks = {case: replace(look, name=case) for case, look in looks.items()}
    write_dataset_report(
        page,
        looks,
        findings,
        dataset.channel_names,
        unit,
        Path(root).resolve().name,
        identifiers=identifiers,
    )
    shown = {case: look.name for case, look in looks.items()}
    model = "retinanet" if needs_detector else None
    return CheckOutcome(tuple(findings), shown, page, root, model)


def _training_faults(
    dataset: Dataset,
    traces: Sequence[_Trace],
    references: Mapping[str, ReferenceFacts],
    cfg: TrainConfig,
) -> Iterator[Finding]:
    """Yield a finding if `train` could not start even if every case were readable.

    A labelled case that cannot be read is assumed to have one lesion, so that the split can be
    checked.
    """
    counts = {t.files.case: 1 for t in traces if t.files.is_labelled}
    counts |= {t.files.case: len(t.look.diameters) for t in traces if t.reference_facts is not None}
    sizes = {t.files.case: float(np.median(t.look.diameters or (0.0,))) for t in traces}
    for check in (
        partial(require_lesions, dataset, counts, references, len(traces)),
        partial(first_splits, dataset, counts, sizes, cfg.data, cfg.seed),
    ):
        try:
            check()
        except LesionsegError as error:
            yield Finding("", "no_training", "error", named=str(error))
            return


def _inspect(files: CaseFiles, dataset: Dataset, pseudonym: str) -> _Trace:
    """Read a case and return its facts and problems."""
    found = inspect_case(files, dataset)
    case_id = files.case
    flaws = [Finding(case_id, kind, "error", named=str(e)) for kind, e in found.faults]
    flaws += [Finding(case_id, "remark", "note", named=text) for text in found.remarks]
    if found.burned_in:
        flaws.append(Finding(case_id, "burned_in", "warning"))
    look = look_at(pseudonym, files, found.case)
    if found.case is None:
        return _Trace(files, look, tuple(flaws), found.patient)
    image = found.case.image
    reference = found.case.reference
    lesions = None if reference is None else lesion_mask(reference)
    for kind, severity, applies in (
        ("constant", "warning", any(c.min() == c.max() for c in image.present_channels)),
        ("unoriented", "warning", not found.oriented),
        ("detector", "note", image.geometry.unit != "mm"),
        ("unlabelled", "note", lesions is None),
        ("lesion_free", "note", lesions is not None and not lesions.any()),
    ):
        if applies:
            flaws.append(Finding(case_id, kind, severity))
    is_telling = lesions is not None and np.count_nonzero(lesions) >= SAME_REFERENCE_VOXELS
    return _Trace(
        files,
        look,
        tuple(flaws),
        found.patient,
        tuple(_digest(channel) for channel in image.present_channels),
        _digest(lesions) if lesions is not None and is_telling else "",
        axis_codes(image.geometry) if image.geometry.dims == 3 else "",
        image.geometry.size_unit,
        None if reference is None else reference_facts(reference),
        reference is not None and reference.mask() is None and len(look.diameters) > 0,
    )


def _compare(traces: Sequence[_Trace]) -> Iterator[Finding]:
    """Yield the findings of comparing cases: duplicates, leaks, outliers of spacing and axes."""
    for trace in traces:
        if len(set(trace.images)) < len(trace.images):
            detail = " Two of its channels are equal."
            yield Finding(trace.files.case, "duplicate", "warning", detail)

    def find_in_group(kind: str, group: Sequence[_Trace]) -> Iterator[Finding]:
        for trace in group:
            others = tuple(t.files.case for t in group if t is not trace)
            yield Finding(trace.files.case, kind, "warning", others=others)

    for group in _groups_sharing(traces, lambda t: t.images):
        yield from find_in_group("duplicate", group)
    patients = list(_groups_sharing(traces, lambda t: (t.patient,)))
    contents = list(_groups_sharing(traces, lambda t: (*t.images, t.reference)))
    groups = _groups_sharing(traces, lambda t: (t.files.group,))
    reported = set[object]()
    for group in (*patients, *contents):
        cases = tuple(t.files.case for t in group)
        if len({t.files.group for t in group}) > 1 and cases not in reported:
            reported.add(cases)
            yield from find_in_group("same_patient", group)
    leaked = {
        trace.files.case
        for group in (*patients, *contents, *groups)
        if len({t.files.role in ("test", "external") for t in group}) > 1
        for trace in group
    }
    yield from (Finding(case, "leak", "warning") for case in sorted(leaked))
    yield from _spacing_outliers([t for t in traces if t.look.spacing_mm])
    turned = [t for t in traces if t.axes]
    for usual, _ in Counter(t.axes for t in turned).most_common(1):
        for trace in turned:
            if trace.axes != usual:
                detail = f" Axes {trace.axes}; most cases {usual}."
                yield Finding(trace.files.case, "orientation", "note", detail)


def _groups_sharing(
    traces: Sequence[_Trace], keys: Callable[[_Trace], tuple[str, ...]]
) -> Iterator[list[_Trace]]:
    """Yield each group of two or more cases that share a key, without repetition."""
    by_key: dict[str, dict[str, _Trace]] = {}
    for trace in traces:
        for key in filter(None, keys(trace)):
            by_key.setdefault(key, {})[trace.files.case] = trace
    groups = {tuple(members): list(members.values()) for members in by_key.values()}
    yield from (group for group in groups.values() if len(group) > 1)


def _spacing_outliers(readable: Sequence[_Trace]) -> Iterator[Finding]:
    """Yield cases whose spacing along an axis is more than twice or less than half the median."""
    axes = max((len(t.look.spacing_mm) for t in readable), default=0)
    alike = [t for t in readable if len(t.look.spacing_mm) == axes]
    if len(readable) < 3:
        return
    median = np.median([t.look.spacing_mm for t in alike], axis=0)
    for trace in alike:
        ratio = np.array(trace.look.spacing_mm) / median
        if (np.maximum(ratio, 1 / ratio) > SPACING_FACTOR).any():
            own = " × ".join(f"{s:.3g}" for s in trace.look.spacing_mm)
            usual = " × ".join(f"{s:.3g}" for s in median)
            detail = f" {own} mm; usual {usual} mm."
            yield Finding(trace.files.case, "spacing", "warning", detail)


def _digest(array: NDArray[np.generic]) -> str:
    """Return a hash of shape, type and values. It does not depend on the file format."""
    digest = hashlib.sha256(repr((array.shape, str(array.dtype))).encode())
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()

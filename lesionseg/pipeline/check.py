"""The recipe of `prepare check=true`: every problem of every case, and a page that shows them."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import Case, CaseFiles, Dataset, Geometry
from lesionseg.io.inspection import Inspected, inspect_case
from lesionseg.pipeline.lesions import lesion_diameters, lesion_mask
from lesionseg.pipeline.progress import bar
from lesionseg.plan.fingerprint import canonical_order
from lesionseg.report.dataset_page import CaseLook, Remark, write_dataset_report
from lesionseg.report.dataset_text import MEANING
from lesionseg.report.thumbnail import draw_thumbnail

SPACING_FACTOR = 2.0  # from the median of the cases: beyond it a case is an outlier
_TELLING = 100  # voxels from which two equal references are no coincidence
_SAMPLED = 100_000  # voxels looked at for the percentiles of a channel


@dataclass(frozen=True)
class Finding:
    """One problem of one case. `text` names files, for the person who has to mend them."""

    case: str
    kind: str
    severity: str
    text: str


@dataclass(frozen=True)
class Checked:
    """All findings, the number of cases, and where the page lies."""

    n_cases: int
    findings: tuple[Finding, ...]
    pseudonyms: Mapping[str, str]
    page: Path

    @property
    def exit_status(self) -> int:
        """1 when a case cannot be used."""
        return int(any(f.severity == "error" for f in self.findings))

    def summary(self) -> list[str]:
        """A line a finding, the verdict, and where the page lies."""
        lines = [f"- {f.severity}, {self.pseudonyms[f.case]}, {f.text}" for f in self.findings]
        bad = len({f.case for f in self.findings if f.severity == "error"})
        warned = len({f.case for f in self.findings if f.severity == "warning"})
        verdict = f"{self.n_cases} cases read, {bad} cannot be used, {warned} should be looked at."
        return [*lines, verdict, f"Dataset report: {self.page}"]


@dataclass(frozen=True)
class _Trace:
    """What is kept of a case to compare it with the others, once its arrays are forgotten."""

    files: CaseFiles
    look: CaseLook
    images: tuple[str, ...] = ()
    reference: str | None = None
    patient: str | None = None
    axes: str = ""
    flaws: tuple[Finding, ...] = ()


def check_dataset(dataset: Dataset, page: Path) -> Checked:
    """Inspect every case, one after the other in memory, compare them, and write the page."""
    traces = []
    with bar("Checking the dataset") as advance:
        for number, files in enumerate(dataset.cases, start=1):
            name = f"case {number:0{len(str(len(dataset.cases)))}d}"
            traces.append(_trace(files, dataset, name))
            advance(files.case, number, len(dataset.cases))
    findings = [f for trace in traces for f in trace.flaws]
    for compare in (_same_content, _same_patient, _leaks, _spacing_outliers, _turned):
        findings += compare(traces)
    order = {files.case: i for i, files in enumerate(dataset.cases)}
    findings.sort(key=lambda f: order[f.case])
    looks = [replace(t.look, remarks=_remarks(t.files.case, findings)) for t in traces]
    write_dataset_report(page, looks, dataset.channel_names, _unit(dataset))
    names = {t.files.case: t.look.pseudonym for t in traces}
    return Checked(len(traces), tuple(findings), names, page)


def _remarks(case: str, findings: Sequence[Finding]) -> tuple[Remark, ...]:
    found = (Remark(f.kind, f.severity) for f in findings if f.case == case)
    return tuple(dict.fromkeys(found))


def _unit(dataset: Dataset) -> str:
    stated = any(
        c.columns.get("pixel_mm") or "pixel_size_source" in c.columns for c in dataset.cases
    )
    return "mm" if dataset.dims == 3 or stated else "pixels"


def _trace(files: CaseFiles, dataset: Dataset, pseudonym: str) -> _Trace:
    found = inspect_case(files, dataset)
    role = files.role or ""
    flaws = tuple(
        Finding(files.case, fault.kind, "error", f"{files.case}: {fault.error}")
        for fault in found.faults
    )
    if found.case is None:
        return _Trace(files, CaseLook(pseudonym, role), flaws=flaws)
    image, reference = found.case.image, found.case.reference
    lesions = None if reference is None else lesion_mask(reference)
    return _Trace(
        files=files,
        look=CaseLook(
            pseudonym,
            role,
            shape=image.geometry.shape,
            spacing_mm=_canonical(image.geometry),
            diameters=lesion_diameters(reference),
            ranges=tuple(_range(channel) for channel in image.array),
            thumbnail=draw_thumbnail(image.array[0], image.geometry, lesions),
        ),
        images=tuple(_digest(channel) for channel in image.array),
        reference=_digest(lesions) if lesions is not None and lesions.sum() >= _TELLING else None,
        patient=found.patient,
        axes=_axes(image.geometry),
        flaws=tuple(_single_flaws(files, found, found.case, lesions)),
    )


def _single_flaws(
    files: CaseFiles, found: Inspected, case: Case, lesions: NDArray[np.bool_] | None
) -> Iterator[Finding]:
    """What can be said of a case by itself."""
    if any(channel.min() == channel.max() for channel in case.image.array):
        yield _finding(files, "constant", "warning")
    if not found.oriented:
        yield _finding(files, "unoriented", "warning")
    if found.burned_in:
        yield _finding(files, "burned_in", "warning")
    if lesions is None:
        yield _finding(files, "unlabelled", "note")
    elif not lesions.any():
        yield _finding(files, "lesion_free", "note")


def _finding(files: CaseFiles, kind: str, severity: str, detail: str = "") -> Finding:
    return Finding(files.case, kind, severity, f"{files.case}: {MEANING[kind]}{detail}")


def _same_content(traces: Sequence[_Trace]) -> Iterator[Finding]:
    """Images that are there twice, within a case or between cases."""
    for trace in traces:
        if len(set(trace.images)) < len(trace.images):
            yield _finding(trace.files, "duplicate", "warning", " Two of its channels are equal.")
    for group in _sharing(traces, lambda t: t.images):
        for trace in group:
            others = ", ".join(t.files.case for t in group if t is not trace)
            yield _finding(trace.files, "duplicate", "warning", f" Also in: {others}.")


def _same_patient(traces: Sequence[_Trace]) -> Iterator[Finding]:
    """Cases of different groups with the same patient's identifier, image or reference."""
    told: set[tuple[str, str]] = set()
    for key in (_patient_of, _content_of):
        for group in _sharing(traces, key):
            if len({t.files.group for t in group}) < 2:
                continue
            for trace in group:
                others = ", ".join(t.files.case for t in group if t is not trace)
                if (trace.files.case, others) not in told:
                    told.add((trace.files.case, others))
                    yield _finding(trace.files, "same_patient", "warning", f" Also: {others}.")


def _leaks(traces: Sequence[_Trace]) -> Iterator[Finding]:
    """What is in the test role and elsewhere as well."""
    told: set[str] = set()
    for key in (_patient_of, _content_of, lambda t: (t.files.group,)):
        for group in _sharing(traces, key):
            if len({t.files.role in ("test", "external") for t in group}) < 2:
                continue
            for trace in group:
                if trace.files.case not in told:
                    told.add(trace.files.case)
                    yield _finding(trace.files, "leak", "warning")


def _patient_of(trace: _Trace) -> tuple[str, ...]:
    return (trace.patient,) if trace.patient else ()


def _content_of(trace: _Trace) -> tuple[str, ...]:
    return (*trace.images, trace.reference) if trace.reference else trace.images


def _sharing(
    traces: Sequence[_Trace], keys: Callable[[_Trace], tuple[str, ...]]
) -> Iterator[list[_Trace]]:
    """Groups of two or more cases that share a key; each group once."""
    by_key: dict[str, dict[str, _Trace]] = {}
    for trace in traces:
        for key in keys(trace):
            by_key.setdefault(key, {})[trace.files.case] = trace
    seen: set[tuple[str, ...]] = set()
    for members in by_key.values():
        if len(members) > 1 and tuple(members) not in seen:
            seen.add(tuple(members))
            yield list(members.values())


def _spacing_outliers(traces: Sequence[_Trace]) -> Iterator[Finding]:
    """Cases whose spacing is more than twice, or less than half, the median along an axis."""
    readable = [t for t in traces if t.look.spacing_mm]
    if len(readable) < 3:
        return
    median = np.median([t.look.spacing_mm for t in readable], axis=0)
    for trace in readable:
        ratio = np.array(trace.look.spacing_mm) / median
        if (np.maximum(ratio, 1 / ratio) > SPACING_FACTOR).any():
            sizes = " × ".join(f"{s:.3g}" for s in trace.look.spacing_mm)
            usual = " × ".join(f"{s:.3g}" for s in median)
            yield _finding(trace.files, "spacing", "warning", f" {sizes} mm; usual {usual} mm.")


def _turned(traces: Sequence[_Trace]) -> Iterator[Finding]:
    """Cases whose axes run otherwise than those of most."""
    readable = [t for t in traces if t.axes]
    usual = Counter(t.axes for t in readable).most_common(1)
    for trace in readable:
        if trace.axes != usual[0][0]:
            detail = f" Axes {trace.axes}; most cases {usual[0][0]}."
            yield _finding(trace.files, "orientation", "note", detail)


def _axes(geometry: Geometry) -> str:
    """Where the array axes run, as letters such as SAR; empty in 2-D."""
    if geometry.dims != 3:
        return ""
    directions = geometry.affine[:3, :3] / np.asarray(geometry.spacing_mm)
    letters = ("LR", "PA", "IS")
    along = [int(np.abs(column).argmax()) for column in directions.T]
    return "".join(letters[row][int(directions[row, axis] > 0)] for axis, row in enumerate(along))


def _canonical(geometry: Geometry) -> tuple[float, ...]:
    return tuple(round(geometry.spacing_mm[a], 6) for a in canonical_order(geometry))


def _range(channel: NDArray[np.float32]) -> tuple[float, float, float]:
    """The 0.5, 50 and 99.5 percentile of a channel, its lowest value (background) left out."""
    flat = channel.reshape(-1)
    sample = flat[:: max(1, flat.size // _SAMPLED)]
    above = sample[sample > sample.min()]
    low, middle, high = np.percentile(above if above.size else sample, (0.5, 50, 99.5))
    return float(low), float(middle), float(high)


def _digest(array: NDArray[np.generic]) -> str:
    """Hash of shape and values: the same voxels in another file or format give the same."""
    digest = hashlib.sha256(repr((array.shape, str(array.dtype))).encode())
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()

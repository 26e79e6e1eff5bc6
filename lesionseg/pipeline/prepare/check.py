"""The recipe of `prepare check=true`: every problem of every case, and a page that shows them."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import Case, CaseFiles, Dataset, Geometry, Problem, joint_unit
from lesionseg.io.inspection import Inspected, inspect_case
from lesionseg.ops.components import lesion_mask, lesions_of
from lesionseg.pipeline.prepare.check_between import Trace, compare_cases
from lesionseg.pipeline.prepare.findings import CheckOutcome, Finding
from lesionseg.pipeline.run.outcome import bar
from lesionseg.pipeline.run.run_log import redact, redact_error
from lesionseg.plan.fingerprint import canonical_order
from lesionseg.report.dataset import MEANING, PIXELS, CaseLook, write_dataset_report
from lesionseg.report.pictures import draw_overview

_TELLING = 100  # voxels from which two equal references are no coincidence
_SAMPLED = 100_000  # voxels looked at for the percentiles of a channel
# of a radiograph: `dicom_xray.radiograph_columns`
_TAKEN = ("laterality", "view", "presentation_intent", "pixel_size_source")


def check_dataset(dataset: Dataset, page: Path, *, identifiers: bool = False) -> CheckOutcome:
    """Inspect every case, one after the other in memory, compare them, and write the page.

    The page names nobody; with `identifiers` the summary that is printed does.
    """
    traces = []
    with bar("Checking the dataset") as advance:
        for number, files in enumerate(dataset.cases, start=1):
            name = f"case {number:0{len(str(len(dataset.cases)))}d}"
            traces.append(_trace(files, dataset, name))
            advance(name, number, len(dataset.cases))
    names = {t.files.case: t.look.name for t in traces}
    findings = [_listed(p, dataset, names) for p in dataset.problems if not _is_repeated(p, names)]
    findings += [f for trace in traces for f in trace.flaws]
    findings += compare_cases(traces)
    order = {case: i for i, case in enumerate(names)}
    findings.sort(key=lambda f: order.get(f.case, -1))
    looks = [replace(t.look, remarks=_remarks(t.files.case, findings)) for t in traces]
    unlisted = _remarks_of_none(findings, names)
    unit = joint_unit(t.unit for t in traces if t.unit).replace("px", PIXELS)
    write_dataset_report(page, looks, dataset.channel_names, unit, unlisted)
    return CheckOutcome(len(traces), tuple(findings), names, page, identifiers)


def _is_repeated(problem: Problem, names: dict[str, str]) -> bool:
    """Whether reading the case says it as well."""
    return problem.repeated and problem.case in names


def _listed(problem: Problem, dataset: Dataset, names: dict[str, str]) -> Finding:
    case = problem.case if problem.case in names else ""
    files = next((c for c in dataset.cases if c.case == case), None)
    public = redact_error(problem.error, files, names.get(case, ""))
    return Finding(case, "listed", "error", str(problem.error), public)


def _remarks(case: str, findings: Sequence[Finding]) -> tuple[tuple[str, str], ...]:
    remarks = ((f.kind, f.severity) for f in findings if f.case == case)
    return tuple(dict.fromkeys(remarks))


def _remarks_of_none(findings: Sequence[Finding], names: dict[str, str]) -> int:
    """How many entries of the list are no case that could be looked at."""
    return sum(f.case not in names for f in findings)


def _trace(files: CaseFiles, dataset: Dataset, pseudonym: str) -> Trace:
    inspected = inspect_case(files, dataset)
    role, taken = files.role or "", tuple(files.columns.get(name, "") for name in _TAKEN)
    known = Trace(
        files,
        CaseLook(pseudonym, role, taken=", ".join(t.lower() for t in taken if t)),
        patient=inspected.patient,
    )
    known = replace(known, flaws=tuple(_stated_flaws(known, inspected)))
    return known if inspected.case is None else _measured(known, inspected, inspected.case)


def _stated_flaws(known: Trace, inspected: Inspected) -> Iterator[Finding]:
    """What inspecting the case's files has said of it."""
    files, pseudonym = known.files, known.look.name
    for fault in inspected.faults:
        public = redact_error(fault.error, files, pseudonym)
        yield Finding(files.case, fault.kind, "error", str(fault.error), public)
    for text in inspected.remarks:
        texts = (f"{MEANING['remark']} {t}" for t in (text, redact(text, files, pseudonym)))
        yield Finding(files.case, "remark", "note", *texts)
    if inspected.burned_in:
        yield known.finding("burned_in", "warning")


def _measured(known: Trace, inspected: Inspected, case: Case) -> Trace:
    """The trace of a readable case, with what its voxels tell."""
    image, reference = case.image, case.reference
    lesions = None if reference is None else lesion_mask(reference)
    diameters = [] if reference is None else lesions_of(reference).diameters_mm.tolist()
    look = replace(
        known.look,
        shape=image.geometry.shape,
        spacing_mm=_canonical(image.geometry),
        diameters=tuple(diameters),
        ranges=tuple(_range(channel) for channel in image.array),
        picture=draw_overview(image.array[0], image.geometry, lesions),
    )
    return replace(
        known,
        look=look,
        images=tuple(_digest(channel) for channel in image.present),
        reference=_digest(lesions) if lesions is not None and lesions.sum() >= _TELLING else None,
        axes=_axes(image.geometry),
        unit=image.geometry.size_unit,
        flaws=(*known.flaws, *_single_flaws(known, inspected, case, lesions)),
    )


def _single_flaws(
    known: Trace, inspected: Inspected, case: Case, lesions: NDArray[np.bool_] | None
) -> Iterator[Finding]:
    """What can be said of a readable case by itself."""
    if any(channel.min() == channel.max() for channel in case.image.present):
        yield known.finding("constant", "warning")
    if not inspected.oriented:
        yield known.finding("unoriented", "warning")
    if case.image.geometry.unit != "mm":
        yield known.finding("detector", "note")
    if lesions is None:
        yield known.finding("unlabelled", "note")
    elif not lesions.any():
        yield known.finding("lesion_free", "note")


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

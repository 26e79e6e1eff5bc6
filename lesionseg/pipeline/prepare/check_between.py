"""What only shows when the cases of a dataset are compared with each other."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lesionseg.core import CaseFiles
from lesionseg.pipeline.prepare.findings import Finding
from lesionseg.report.dataset import MEANING, CaseLook

SPACING_FACTOR = 2.0  # from the median of the cases: beyond it a case is an outlier


@dataclass(frozen=True)
class Trace:
    """What is kept of a case to compare it with the others, once its arrays are forgotten.

    `images` and `reference` are hashes of voxels, `patient` one of the patient's identifier.
    `axes` says where the array axes run. `unit` is that of its sizes.
    """

    files: CaseFiles
    look: CaseLook
    images: tuple[str, ...] = ()
    reference: str | None = None
    patient: str | None = None
    axes: str = ""
    unit: str = ""
    flaws: tuple[Finding, ...] = ()

    def finding(
        self, kind: str, severity: str, detail: str = "", *, others: "Sequence[Trace]" = ()
    ) -> Finding:
        """A finding of this case; `others` are named behind the detail."""
        text = f"{MEANING[kind]}{detail}"
        named = ", ".join(t.files.case for t in others)
        called = ", ".join(t.look.name for t in others)
        if not others:
            return Finding(self.files.case, kind, severity, text, text)
        return Finding(
            self.files.case, kind, severity, f"{text} Also: {named}.", f"{text} Also: {called}."
        )


def compare_cases(traces: Sequence[Trace]) -> Iterator[Finding]:
    """Every finding that two or more cases give together."""
    yield from _same_content(traces)
    yield from _same_patient(traces)
    yield from _leaks(traces)
    yield from _spacing_outliers(traces)
    yield from _with_other_axes(traces)


def _same_content(traces: Sequence[Trace]) -> Iterator[Finding]:
    """Images that are there twice, within a case or between cases."""
    for trace in traces:
        if len(set(trace.images)) < len(trace.images):
            yield trace.finding("duplicate", "warning", " Two of its channels are equal.")
    for group in _sharing(traces, lambda t: t.images):
        for trace in group:
            others = [t for t in group if t is not trace]
            yield trace.finding("duplicate", "warning", others=others)


def _same_patient(traces: Sequence[Trace]) -> Iterator[Finding]:
    """Cases of different groups with the same patient's identifier, image or reference."""
    reported: set[tuple[str, ...]] = set()
    for key in (_patient_of, _content_of):
        for group in _sharing(traces, key):
            if len({t.files.group for t in group}) < 2:
                continue
            for trace in group:
                others = [t for t in group if t is not trace]
                pair = (trace.files.case, *(t.files.case for t in others))
                if pair not in reported:
                    reported.add(pair)
                    yield trace.finding("same_patient", "warning", others=others)


def _leaks(traces: Sequence[Trace]) -> Iterator[Finding]:
    """What is in the test role and elsewhere as well."""
    reported: set[str] = set()
    for key in (_patient_of, _content_of, lambda t: (t.files.group,)):
        for group in _sharing(traces, key):
            if len({t.files.role in ("test", "external") for t in group}) < 2:
                continue
            for trace in group:
                if trace.files.case not in reported:
                    reported.add(trace.files.case)
                    yield trace.finding("leak", "warning")


def _patient_of(trace: Trace) -> tuple[str, ...]:
    return (trace.patient,) if trace.patient else ()


def _content_of(trace: Trace) -> tuple[str, ...]:
    return (*trace.images, trace.reference) if trace.reference else trace.images


def _sharing(
    traces: Sequence[Trace], keys: Callable[[Trace], tuple[str, ...]]
) -> Iterator[list[Trace]]:
    """Groups of two or more cases that share a key; each group once."""
    by_key: dict[str, dict[str, Trace]] = {}
    for trace in traces:
        for key in keys(trace):
            by_key.setdefault(key, {})[trace.files.case] = trace
    seen: set[tuple[str, ...]] = set()
    for members in by_key.values():
        if len(members) > 1 and tuple(members) not in seen:
            seen.add(tuple(members))
            yield list(members.values())


def _spacing_outliers(traces: Sequence[Trace]) -> Iterator[Finding]:
    """Cases whose spacing is more than twice, or less than half, the median along an axis."""
    readable = [t for t in traces if t.look.spacing_mm]
    if len(readable) < 3:
        return
    axes = max(len(t.look.spacing_mm) for t in readable)
    readable = [t for t in readable if len(t.look.spacing_mm) == axes]
    median = np.median([t.look.spacing_mm for t in readable], axis=0)
    for trace in readable:
        ratio = np.array(trace.look.spacing_mm) / median
        if (np.maximum(ratio, 1 / ratio) > SPACING_FACTOR).any():
            sizes = " × ".join(f"{s:.3g}" for s in trace.look.spacing_mm)
            usual = " × ".join(f"{s:.3g}" for s in median)
            yield trace.finding("spacing", "warning", f" {sizes} mm; usual {usual} mm.")


def _with_other_axes(traces: Sequence[Trace]) -> Iterator[Finding]:
    """Cases whose axes run otherwise than those of most."""
    readable = [t for t in traces if t.axes]
    usual = Counter(t.axes for t in readable).most_common(1)
    for trace in readable:
        if trace.axes != usual[0][0]:
            detail = f" Axes {trace.axes}; most cases {usual[0][0]}."
            yield trace.finding("orientation", "note", detail)

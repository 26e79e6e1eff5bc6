"""A dataset on one page: faults, a picture of every case, lesion sizes, intensities, spacings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from lesionseg.core import Case, CaseFiles
from lesionseg.errors import count
from lesionseg.io.files import write_text
from lesionseg.ops.components import lesion_mask, lesions_of
from lesionseg.plan.plausibility import DOUBTS
from lesionseg.reporting.charts import FOUND, Chart, new_figure
from lesionseg.reporting.pictures import draw_overview
from lesionseg.reporting.rendering import Tile, render

# each kind of finding, explained to a reader of the page
MEANING: Mapping[str, str] = {
    "listed": "The dataset's list has a wrong entry for a case.",
    "listed_otherwise": "The dataset's list states other cases than its folders contain.",
    "unread": "A folder contains files of formats that are not read.",
    "left_out": "Files next to the cases are left out.",
    "file_ending": "No file has the ending that the dataset states.",
    "names": "File names could be understood in two ways.",
    "columns": "The table has an unknown column whose name resembles a known one.",
    "folds": "Some cases have no fold: they train in every fold.",
    "unreadable": "A file cannot be read.",
    "channels": "Channel files are missing or too many.",
    "geometry": "The files of the case are not on one grid, or slices are missing.",
    "not_finite": "The image contains NaN or infinite voxels.",
    "labels": "The reference contains values that are not labels, or does not fit its table.",
    **DOUBTS,
    "no_training": "Training cannot start.",
    "boxed": "The references are boxes without masks: train model=retinanet.",
    "constant": "A channel has the same value everywhere.",
    "duplicate": "Two cases have the same image.",
    "same_patient": "Two names seem to belong to the same patient: a split could separate them.",
    "leak": "The same image or patient is in training and in the test role.",
    "spacing": "The voxel size is far from that of the other cases.",
    "orientation": "The orientation differs from most cases. Preparation rotates the image.",
    "unoriented": "The file does not state the orientation: left and right may be swapped.",
    "burned_in": "The file states that text, such as a name, may be burned into the pixels.",
    "detector": "Sizes are measured at the detector, where objects appear larger than they are.",
    "remark": "Reading the file gave a warning.",
    "lesion_free": "The reference is empty: the case counts as lesion-free.",
    "unlabelled": "The case has no reference.",
}
SEVERITY: Mapping[str, str] = {
    "error": "cannot be used",
    "warning": "needs a look",
    "note": "for information",
}
PIXELS = "pixels"
_SAMPLED = 100_000  # about this number of voxels is used for the percentiles of a channel
# columns that describe how a radiograph was acquired
_TAKEN = ("laterality", "view", "presentation_intent", "pixel_size_source")


@dataclass(frozen=True)
class Finding:
    """One problem of one case.

    Attributes:
        case: Id of the case. Empty for an entry of the dataset's list that is not a case.
        kind: A key of `MEANING`.
        severity: A key of `SEVERITY`.
        detail: An addition to the meaning, without names of files or patients.
        named: The whole sentence for the terminal, which may name files and patients.
        others: Ids of further cases with the same problem.
    """

    case: str
    kind: str
    severity: str
    detail: str = ""
    named: str = ""
    others: tuple[str, ...] = ()


@dataclass(frozen=True)
class CaseLook:
    """The picture and numbers of one case on the page.

    Attributes:
        name: Pseudonym or id of the case.
        role: Role of the case.
        shape: Shape of the image. Empty, like the following fields, if the case cannot be read.
        spacing_mm: Spacing along S, A and R; in 2-D down and across.
        diameters: Equivalent diameters of its lesions.
        ranges: The 0.5, 50 and 99.5 percentiles of each channel.
        picture: The picture as a data URI.
        taken: How a radiograph was acquired.
    """

    name: str
    role: str = ""
    shape: tuple[int, ...] = ()
    spacing_mm: tuple[float, ...] = ()
    diameters: tuple[float, ...] = ()
    ranges: tuple[tuple[float, float, float], ...] = ()
    picture: str = ""
    taken: str = ""


def look_at(name: str, files: CaseFiles, case: Case | None) -> CaseLook:
    """Collect the picture and numbers of a case under the name that the page shows.

    `case` is None if the case cannot be read.
    """
    stated = (files.columns[key] for key in _TAKEN if files.columns.get(key))
    taken = ", ".join(word.lower() if len(word) > 3 else word for word in stated)  # PA, L
    if case is None:
        return CaseLook(name, files.role or "", taken=taken)
    image = case.image
    grid = image.geometry
    reference = case.reference
    lesions = None if reference is None else lesion_mask(reference)
    return CaseLook(
        name,
        files.role or "",
        shape=grid.shape,
        spacing_mm=tuple(round(grid.spacing_mm[axis], 6) for axis in grid.canonical_order),
        diameters=() if reference is None else tuple(lesions_of(reference).diameters_mm.tolist()),
        ranges=tuple(_measure_range(channel) for channel in image.array),
        picture=draw_overview(image.array[0], grid, lesions),
        taken=taken,
    )


def _measure_range(channel: NDArray[np.float32]) -> tuple[float, float, float]:
    """Return the 0.5, 50 and 99.5 percentiles of the voxels above the channel's lowest value."""
    flat = channel.reshape(-1)
    sample = flat[:: max(1, flat.size // _SAMPLED)]
    above = sample[sample > sample.min()]
    low, middle, high = np.percentile(above if above.size else sample, (0.5, 50, 99.5))
    return float(low), float(middle), float(high)


def describe(finding: Finding) -> str:
    """Describe a finding with the names of cases and files."""
    text = finding.named or MEANING[finding.kind] + finding.detail
    if finding.others:
        text += f" Also: {', '.join(finding.others)}."
    return text


def findings_lines(findings: Sequence[Finding], pages: Mapping[str, str]) -> list[str]:
    """Return one line per finding, with the names of cases and files, and a line of totals.

    Equal notes share a line. `pages` contains the name of each case on the page. It is printed next
    to the case's own name, so that a reader finds the picture.
    """
    lines = list[str]()
    notes = dict[str, list[str]]()
    for finding in findings:
        if finding.severity == "note":
            notes.setdefault(describe(finding), []).append(finding.case)
        else:
            shown = pages.get(finding.case, "")
            place = f" ({shown})" if shown not in ("", finding.case) else ""
            name = finding.case or "the list of cases"
            lines.append(f"- {finding.severity}, {name}{place}: {describe(finding)}")
    for text, cases in notes.items():
        named = f", {count(len(cases), 'case')} ({_list_first(cases, 5)})" if any(cases) else ""
        lines.append(f"- note{named}: {text}")
    n_read = count(len(pages), "case")
    n_warned = _count_cases(findings, "warning")
    need = "needs" if n_warned == 1 else "need"
    n_bad = _count_cases(findings, "error")
    return [*lines, f"{n_read} read, {n_bad} cannot be used, {n_warned} {need} a look."]


def _count_cases(findings: Sequence[Finding], severity: str) -> int:
    """Count the cases with a finding of this severity. A wrong entry counts as a case."""
    own = [finding for finding in findings if finding.severity == severity]
    entries = [finding for finding in own if finding.kind == "listed" and not finding.case]
    return len({finding.case for finding in own} - {""}) + len(entries)


def write_dataset_report(
    path: Path,
    looks: Mapping[str, CaseLook],
    findings: Sequence[Finding],
    channels: Sequence[str],
    unit: str,
    name: str = "",
    *,
    identifiers: bool = False,
) -> None:
    """Write the page of a dataset atomically.

    Args:
        path: The file to write.
        looks: The picture and numbers of each case by its id.
        findings: The problems of all cases.
        channels: The names of the channels.
        unit: The unit of sizes.
        name: The name of the dataset.
        identifiers: True also lists every finding with the names of cases and files.

    Raises:
        OutputError: if the file cannot be written.
    """
    diameters = [d for look in looks.values() for d in look.diameters]
    free = sum(f.kind == "lesion_free" for f in findings)
    summary = f"{name}: " if name else ""
    summary += f"{count(len(looks), 'case')}, {count(len(diameters), 'lesion')}"
    summary += f"; {count(free, 'case')} without any." if free else "."
    if unlisted := sum(f.kind == "listed" and not f.case for f in findings):
        entries = count(unlisted, "entry", "entries")
        summary += f" {entries} of the list could not be taken as a case."
    table = []
    for severity, words in SEVERITY.items():
        for kind, meaning in MEANING.items():
            own = [f.case for f in findings if (f.kind, f.severity) == (kind, severity)]
            if names := [look.name for case, look in looks.items() if case in own]:
                which = _list_first(names, 20)
                table.append({"": words, "what": meaning, "cases": len(names), "which": which})
            if "" in own:
                which = "not in the pictures below"
                table.append({"": words, "what": meaning, "cases": own.count(""), "which": which})
    named = [
        {"case": finding.case or "the list of cases", "what": describe(finding)}
        for finding in findings
        if identifiers and finding.severity != "note"
    ]
    bad = _count_cases(findings, "error")
    look = _count_cases(findings, "warning")
    total = len(looks) + unlisted
    headline = f"{bad} of {total} cases cannot be used" if bad else "Every case can be used"
    headline += f", {look} {'needs' if look == 1 else 'need'} a look." if look else "."
    sizes = "no lesion is marked"
    if diameters:
        low, middle, high = (f"{d:.3g}" for d in np.percentile(diameters, (0, 50, 100)))
        sizes = f"of {low} to {high} {unit}, half of them under {middle} {unit}"
    tiles = [
        Tile(
            str(len(looks)),
            f"{'case' if len(looks) == 1 else 'cases'}, {free or 'none'} of them without a lesion",
        ),
        Tile(
            str(len(diameters)),
            f"{'lesion' if len(diameters) == 1 else 'lesions'} {sizes}" if diameters else sizes,
            not diameters,
        ),
        Tile(str(bad), "cannot be used", bad > 0),
        Tile(str(look), "needs a look" if look == 1 else "need a look", look > 0),
    ]
    html = render(
        "dataset.html.j2",
        summary=summary,
        headline=headline,
        tiles=tiles,
        findings=table,
        named=named,
        identifiers=identifiers,
        looks=[*looks.values()],
        unit=unit,
        flat=any(len(look.shape) == 2 for look in looks.values()),
        charts=_charts([*looks.values()], diameters, channels, unit),
    )
    write_text(path, html)


def _list_first(names: Sequence[str], most: int) -> str:
    """List the first names, with an ellipsis if there are more."""
    return ", ".join(names[:most]) + (" …" if len(names) > most else "")


def _charts(
    looks: Sequence[CaseLook], diameters: Sequence[float], channels: Sequence[str], unit: str
) -> list[Chart]:
    """Draw the lesion sizes, the intensities of each channel, and the spacings."""
    charts = []
    readable = [look for look in looks if look.ranges]
    if diameters:
        figure, axes = new_figure()
        axes.hist(diameters, bins=min(30, max(5, len(diameters) // 3)), color=FOUND)
        axes.set(xlabel=f"diameter, {unit}", ylabel="lesions")
        charts.append(Chart("Lesion sizes", "Equivalent diameters of all lesions.", figure))
    for k, channel in enumerate(channels if readable else ()):
        figure, axes = new_figure()
        rows = np.array([look.ranges[k] for look in readable if len(look.ranges) > k])
        if not len(rows):
            continue
        numbers = np.arange(1, len(rows) + 1)
        axes.vlines(numbers, rows[:, 0], rows[:, 2], color=FOUND)
        axes.plot(numbers, rows[:, 1], "o", color="white", mec=FOUND, markersize=4)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel="case", ylabel="intensity")
        caption = "The 0.5 to 99.5 percentiles of each case; the ring is the median."
        charts.append(Chart(f"Intensities: {channel}", caption, figure))
    if readable and unit != PIXELS:
        figure, axes = new_figure()
        spacings = np.array([look.spacing_mm for look in readable], dtype=float)
        for axis in range(spacings.shape[1]):
            jitter = axis + np.linspace(-0.2, 0.2, len(spacings))
            axes.plot(jitter, spacings[:, axis], "o", color=FOUND, alpha=0.6)
        names = ("slices", "rows", "columns")[-spacings.shape[1] :]
        axes.set_xticks(range(spacings.shape[1]), names)
        axes.set(ylabel=f"spacing, {unit}", ylim=(0, None))
        charts.append(Chart("Spacings", "Voxel size of each case along each axis.", figure))
    return charts

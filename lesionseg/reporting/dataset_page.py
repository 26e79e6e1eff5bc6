"""Page of a dataset: text of each finding, picture of every case, charts of spacings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from lesionseg.core import Case, CaseFiles, Finding
from lesionseg.core.arrays import Numbers
from lesionseg.core.finding import LISTED, NO_CASE
from lesionseg.errors import count
from lesionseg.io.channels import is_colour
from lesionseg.ops.components import lesion_mask, lesions_of
from lesionseg.plan.plausibility import QUESTIONS
from lesionseg.reporting.charts import FOUND, Chart, new_figure
from lesionseg.reporting.pictures import draw_overview
from lesionseg.reporting.rendering import write_page

# each kind of finding, and its explanation on the page
MEANING: Mapping[str, str] = {
    LISTED: "The dataset's list has a wrong entry for a case.",
    NO_CASE: "The dataset has no labelled case.",
    "listed_otherwise": "The dataset's list and its folders contain different cases.",
    "unread": "A folder contains files of formats that are not read.",
    "left_out": "Files next to the cases are left out.",
    "names": "File names could be understood in two ways.",
    "columns": "The table has an unknown column whose name resembles a known one.",
    "repeated_rows": "The table repeats rows. Each box counts once.",
    "crowds": "Crowd annotations are ignored.",
    "ignored_boxes": "Boxes that too few of several readers marked are ignored.",
    "not_in_table": "Images without a row in the table count as lesion-free.",
    "label_names": "Labels have the same name up to case, or mean that there is no lesion.",
    "folds": "Some cases have no fold. They are training cases in every fold.",
    "unreadable": "A file cannot be read.",
    "channels": "Channel files are missing, too many, or the mask of the case.",
    "geometry": "The files of the case are not on one grid, or slices are missing.",
    "not_finite": "The image contains NaN or infinite voxels.",
    "labels": "The reference contains values that are not labels, or does not fit its table.",
    **QUESTIONS,
    "no_training": "Training cannot start.",
    "boxed": "The references are boxes without masks: train model=retinanet.",
    "model": "The model that train chooses:",
    "constant": "A channel has the same value everywhere.",
    "duplicate": "Two cases have the same image.",
    "same_channels": "Two channels of the case have the same image.",
    "same_reference": "Two cases have the same mask.",
    "same_patient": "Two names seem to belong to the same patient: a split could separate them.",
    "leak": "The same image or patient has two roles, such as train and test.",
    "spacing": "The voxel size is far from that of the other cases.",
    "orientation": "The orientation differs from most cases. Preparation rotates the image.",
    "unoriented": "The file does not state the orientation: left and right may be swapped.",
    "burned_in": "The file states that text, such as a name, may be part of the pixels.",
    "detector": "Sizes are measured at the detector, where objects appear larger than they are.",
    "remark": "Reading the file gave a warning.",
    "lesion_free": "The reference is empty: the case counts as lesion-free.",
    "only_ignored": "The reference has only ignored voxels: the case counts as lesion-free.",
    "unlabelled": "The case has no reference.",
}
SEVERITY: Mapping[str, str] = {
    "error": "cannot be used",
    "warning": "needs a look",
    "note": "for information",
}
PIXELS = "pixels"
_SAMPLED = 100_000  # voxels, about, that are used for the percentiles of a channel


@dataclass(frozen=True)
class CasePreview:
    """The picture and numbers of one case on the page.

    Attributes:
        name: Pseudonym or id of the case.
        role: Role of the case.
        shape: Shape of the image. Empty, like the following fields, if the case cannot be read.
        spacing_mm: Spacing along S, A and R; in 2-D down and across. In pixels without a pixel
            size.
        diameters: Equivalent diameters of its lesions.
        ranges: The 0.5, 50 and 99.5 percentiles of each channel. NaN for a missing channel.
        picture: The picture as a data URI.
    """

    name: str
    role: str = ""
    shape: tuple[int, ...] = ()
    spacing_mm: tuple[float, ...] = ()
    diameters: tuple[float, ...] = ()
    ranges: tuple[tuple[float, float, float], ...] = ()
    picture: str = ""


def preview_case(name: str, files: CaseFiles, case: Case | None) -> CasePreview:
    """Collect the picture and the numbers of one case for the page of the dataset.

    Args:
        name: The name that the page shows, a pseudonym or the id.
        files: The files of the case.
        case: The case that was read, or None if it cannot be read. The preview then has only the
            name and the role, and its other fields are empty.
    """
    if case is None:
        return CasePreview(name, files.role or "")
    image = case.image
    grid = image.geometry
    mask = None
    diameters: list[float] = []
    if case.reference is not None:
        mask = lesion_mask(case.reference)
        diameters = lesions_of(case.reference).diameters_mm.tolist()
    ranges = [_measure_range(channel) for channel in image.array]
    for index in image.missing:  # channels without a file, whose array has no measured values
        ranges[index] = (np.nan, np.nan, np.nan)
    # the picture shows the first present channel, or the colours `[y, x, 3]` of a colour picture
    shown = image.present_channels[0]
    if grid.dims == 2 and is_colour(files, len(image.array)):
        shown = np.moveaxis(image.array, 0, -1)
    return CasePreview(
        name,
        files.role or "",
        shape=tuple(grid.shape[axis] for axis in grid.canonical_order),
        # without the rounding errors of float32 headers
        spacing_mm=tuple(round(grid.spacing_mm[axis], 6) for axis in grid.canonical_order),
        diameters=tuple(diameters),
        ranges=tuple(ranges),
        picture=draw_overview(shown, grid, mask),
    )


def _measure_range(channel: NDArray[np.float32]) -> tuple[float, float, float]:
    """Return the 0.5, 50 and 99.5 percentiles of the intensities of a channel.

    Only voxels above the lowest intensity count, because this intensity is usually air or the
    padding around the scan. In a constant channel, all voxels count. In a large channel, every n-th
    voxel is used, about `_SAMPLED` in total, to save time.
    """
    flat = channel.reshape(-1)
    sample = flat[:: max(1, flat.size // _SAMPLED)]
    above = sample[sample > sample.min()]
    if not above.size:  # a constant channel
        above = sample
    low, middle, high = np.percentile(above, (0.5, 50, 99.5))
    return float(low), float(middle), float(high)


def findings_lines(findings: Sequence[Finding], pseudonyms: Mapping[str, str]) -> list[str]:
    """Return the findings of a dataset as lines for the terminal, and last a line with the totals.

    - An error or a warning has its own line, with the id of the case. The case's name on the page
      follows in parentheses, so that a reader finds the picture.
    - Notes follow the errors and warnings. Equal notes share a line, which names at most five
      cases.

    Args:
        findings: The findings of all cases.
        pseudonyms: The name of each case on the page by its id.
    """
    lines: list[str] = []
    notes: dict[str, list[str]] = {}  # the cases of each note, by its text
    for finding in findings:
        if finding.severity == "note":
            # the line names the cases itself, so cases with the same note can share it
            text = finding.message.removeprefix(f"{finding.case}: ")
            notes.setdefault(text, []).append(finding.case)
        else:
            pseudonym = pseudonyms.get(finding.case, "")
            on_page = f" ({pseudonym})" if pseudonym not in ("", finding.case) else ""
            name = finding.case or "the list of cases"
            lines.append(f"- {finding.severity}, {name}{on_page}: {finding.message}")
    for text, cases in notes.items():
        who = ""  # a note about the whole dataset names no case
        if any(cases):
            who = f", {count(len(cases), 'case')} ({_list_first(cases, 5)})"
        lines.append(f"- note{who}: {text}")
    cases_read = count(len(pseudonyms), "case")
    n_warned = _count_cases(findings, "warning")
    verb = "needs" if n_warned == 1 else "need"
    n_unusable = _count_cases(findings, "error")
    return [*lines, f"{cases_read} read, {n_unusable} cannot be used, {n_warned} {verb} a look."]


def _count_cases(findings: Sequence[Finding], severity: str) -> int:
    """Count the cases that have a finding of this severity, for the totals.

    An entry of the dataset's list that is not a case counts as one more case (`_is_unlisted`).
    Other findings without a case, about the complete dataset, do not count.
    """
    cases: set[str] = set()
    n_entries = 0
    for finding in findings:
        if finding.severity != severity:
            continue
        if finding.case:
            cases.add(finding.case)
        elif _is_unlisted(finding):
            n_entries += 1
    return len(cases) + n_entries


def _is_unlisted(finding: Finding) -> bool:
    """Return True for a finding about the dataset's list that belongs to no case.

    Such a finding concerns an entry of the list that is not a case, or a list without any case.
    """
    return finding.kind in (LISTED, NO_CASE) and not finding.case


def write_dataset_report(
    path: Path,
    previews: Mapping[str, CasePreview],
    findings: Sequence[Finding],
    channels: Sequence[str],
    unit: str,
    name: str,
    *,
    identifiers: bool,
) -> None:
    """Write the page of a dataset atomically.

    Args:
        path: The file to write.
        previews: The picture and numbers of each case by its id.
        findings: The findings of all cases.
        channels: The names of the channels.
        unit: The unit of sizes.
        name: The name of the dataset.
        identifiers: True also lists errors and warnings with the names of cases and files.

    Raises:
        OutputError: If the file cannot be written.
    """
    named: list[dict[str, str]] = []  # findings with names, which a page to share must not have
    if identifiers:
        for finding in findings:
            if finding.severity != "note":
                case = finding.case or "the list of cases"
                named.append({"case": case, "finding": finding.message})
    all_previews = [*previews.values()]
    diameters = [d for preview in all_previews for d in preview.diameters]
    write_page(
        path,
        "dataset.html.j2",
        name=name,
        n_lesion_free=sum(f.kind in ("lesion_free", "only_ignored") for f in findings),
        n_unlisted=sum(map(_is_unlisted, findings)),
        n_unusable=_count_cases(findings, "error"),
        n_warned=_count_cases(findings, "warning"),
        can_train=all(finding.kind != "no_training" for finding in findings),
        n_lesions=len(diameters),
        # smallest, median and largest diameter
        sizes=np.percentile(diameters, (0, 50, 100)) if diameters else None,
        models=[finding.message for finding in findings if finding.kind == "model"],
        findings=_findings_table(previews, findings),
        named=named,
        identifiers=identifiers,
        previews=all_previews,
        unit=unit,
        flat=any(len(preview.shape) == 2 for preview in all_previews),  # if an image is 2-D
        charts=_draw_charts(all_previews, channels, unit),
    )


def _findings_table(
    previews: Mapping[str, CasePreview], findings: Sequence[Finding]
) -> list[dict[str, object]]:
    """Return the table of findings: one row per severity and kind of finding, errors first.

    A row has the severity (column ""), the meaning of the kind ("finding"), the number of cases
    ("cases") and their names on the page ("which"). One kind has up to three rows:

    - The cases that have a picture on the page.
    - The entries of the dataset's list that are not cases (`_is_unlisted`).
    - The findings about the whole dataset, without a number of cases.

    The kind "model", the choice of the model, has no row, because the summary states it.
    """
    table: list[dict[str, object]] = []
    for severity, words in SEVERITY.items():
        for kind, meaning in MEANING.items():
            if kind == "model":  # it is in the summary
                continue
            findings_of_kind = [f for f in findings if f.kind == kind and f.severity == severity]
            cases = [finding.case for finding in findings_of_kind]
            row: dict[str, object] = {"": words, "finding": meaning}
            names = [preview.name for case, preview in previews.items() if case in cases]
            if names:
                table.append({**row, "cases": len(names), "which": _list_first(names, 20)})
            n_entries = sum(map(_is_unlisted, findings_of_kind))
            if n_entries:
                table.append({**row, "cases": n_entries, "which": "not in the pictures below"})
            # findings without a case are either such entries, or about the whole dataset
            if cases.count("") > n_entries:
                table.append({**row, "cases": None, "which": "the whole dataset"})
    return table


def _list_first(names: Sequence[str], maximum: int) -> str:
    """Join the first `maximum` names with commas, and add an ellipsis if there are more names."""
    return ", ".join(names[:maximum]) + (" …" if len(names) > maximum else "")


def _draw_charts(
    previews: Sequence[CasePreview], channels: Sequence[str], unit: str
) -> list[Chart]:
    """Draw the charts of lesion sizes, of the intensities of each channel, and of voxel spacings.

    A chart without data is left out. The chart of spacings is also left out if no pixel size is
    known (`unit` is `PIXELS`).
    """
    charts = []
    readable = [preview for preview in previews if preview.ranges]
    diameters = [d for preview in previews for d in preview.diameters]
    if diameters:
        figure, axes = new_figure()
        n_bins = min(30, max(5, len(diameters) // 3))  # about three lesions per bar
        axes.hist(diameters, bins=n_bins, color=FOUND)
        axes.set(xlabel=f"diameter, {unit}", ylabel="lesions")
        charts.append(Chart("Lesion sizes", "Equivalent diameters of all lesions.", figure))
    for index, channel in enumerate(channels):
        # an unreadable case has no ranges, and a case may lack the last channels
        with_channel = [n for n, preview in enumerate(previews) if len(preview.ranges) > index]
        # by the number of the case on the page, which begins at 1
        ranges = {n + 1: previews[n].ranges[index] for n in with_channel}
        if ranges:
            charts.append(_draw_intensities(channel, [*ranges], np.array([*ranges.values()])))
    if readable and unit != PIXELS:
        charts.append(_draw_spacings(np.array([preview.spacing_mm for preview in readable]), unit))
    return charts


def _draw_intensities(channel: str, numbers: Sequence[int], ranges: Numbers) -> Chart:
    """Draw the range of intensities of one channel, with a vertical line and a ring per case.

    Args:
        channel: The name of the channel.
        numbers: The position of each case on the x axis.
        ranges: The 0.5, 50 and 99.5 percentiles of each case `[n, 3]`.
    """
    figure, axes = new_figure()
    axes.vlines(numbers, ranges[:, 0], ranges[:, 2], color=FOUND)
    axes.plot(numbers, ranges[:, 1], "o", color="white", mec=FOUND, markersize=4)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="case", ylabel="intensity")
    caption = "Lines: the 0.5 to 99.5 percentiles of each case. Rings: the median."
    return Chart(f"Intensities: {channel}", caption, figure)


def _draw_spacings(spacings: Numbers, unit: str) -> Chart:
    """Draw the voxel spacings `[n, dims]` of the cases, with a column of dots per axis.

    The dots of an axis are spread sideways, so that equal spacings do not hide each other.
    """
    figure, axes = new_figure()
    n_cases, dims = spacings.shape
    for axis in range(dims):
        x_of_cases = axis + np.linspace(-0.2, 0.2, n_cases)
        axes.plot(x_of_cases, spacings[:, axis], "o", color=FOUND, alpha=0.6)
    axes.set_xticks(range(dims), ("slices", "rows", "columns")[-dims:])  # a 2-D image has no slices
    axes.set(ylabel=f"spacing, {unit}", ylim=(0, None))
    return Chart("Spacings", "Voxel size of each case along each axis.", figure)

"""The page of `follow`, which shows the changes of lesions between two visits."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from lesionseg.core import Geometry, OperatingPoint, Prediction
from lesionseg.core.arrays import Flags, Numbers
from lesionseg.evaluation.change import (
    STATES,
    ChangeRule,
    LesionChange,
    VisitPair,
    count_states,
)
from lesionseg.io.cases import read_finite
from lesionseg.io.text import write_text
from lesionseg.ops.interpolation import resample_to
from lesionseg.reporting.charts import ACCENT, FOUND, OTHER, Chart, new_figure
from lesionseg.reporting.images import Scene
from lesionseg.reporting.pictures import DPI, INCHES, Card, data_uri, draw_cutout
from lesionseg.reporting.rendering import per_scan, render, say

VISITS = ("earlier", "later")
UNSURE = "#b3b3b3"  # colour of a lesion without a sure change
MAX_PICTURES = 40  # pictures of the largest lesions; the tables list every change
# the changes that the page shows with pictures, in this order
WITH_PICTURES = ("new", "enlarged", "shrunk", "gone", "merged", "split")


def draw_changes(
    pair: VisitPair, changes: Sequence[LesionChange], name: str, images: Sequence[Path]
) -> list[tuple[LesionChange, Card]]:
    """Draw the accepted changes at both visits, at the same place and with both outlines.

    Return the `MAX_PICTURES` largest with their pictures.

    Args:
        pair: The two visits.
        changes: Changes of the pair. `accepted` decides which are drawn.
        name: The name of the pair on the page.
        images: The scans of the earlier and the later visit.
    """
    accepted = sorted((c for c in changes if c.accepted), key=_max_diameter_mm, reverse=True)
    if not accepted:
        return []
    grid = pair.after.geometry
    before = _lesions_to_outline(pair.before, [c.lesion_before for c in accepted])
    after = _lesions_to_outline(pair.after, [c.lesion_after for c in accepted])
    scenes = []
    places = ((pair.placed, pair.matrix), (grid, None))
    for image, (source, matrix) in zip(images, places, strict=True):
        scan = _read_on_grid(image, source, matrix, grid)
        scenes.append(Scene(scan, grid, reference=before, accepted=after))
    cards = []
    for change in accepted[:MAX_PICTURES]:
        figure = _draw_visits(scenes, pair, change)
        diameters = (change.diameter_before_mm, change.diameter_after_mm)
        sizes = [f"{d:.1f} {grid.size_unit}" for d in diameters if d]
        words = say("change", change=change, visit=_find_visit_of_candidates(pair, change))
        cards.append((change, Card(data_uri(figure), name, " → ".join(sizes), words)))
    return cards


def _lesions_to_outline(visit: Prediction, of_changes: Iterable[Sequence[int]]) -> Flags:
    """Return the voxels of a visit's accepted candidates and of the candidates of changes.

    A lesion of a change need not be accepted at both visits. Boxes have no voxels.
    """
    if visit.instances is None:
        return np.zeros(visit.geometry.shape, dtype=bool)
    ids = {candidate.id for candidate in visit.candidates if candidate.accepted}
    ids.update(number for numbers in of_changes for number in numbers)
    return np.isin(visit.instances, sorted(ids))


def _find_visit_of_candidates(pair: VisitPair, change: LesionChange) -> str:
    """Return the visit at which the lesion is only a candidate below the threshold, or ""."""
    visits = (pair.before, pair.after)
    of_visits = (change.lesion_before, change.lesion_after)
    for name, visit, ids in zip(VISITS, visits, of_visits, strict=True):
        own = [candidate for candidate in visit.candidates if candidate.id in ids]
        if own and not any(candidate.accepted for candidate in own):
            return name
    return ""


def _draw_visits(scenes: Sequence[Scene], pair: VisitPair, change: LesionChange) -> Figure:
    """Draw the place of a change in both scenes, next to each other."""
    lesions = [c for c in pair.before.candidates if c.id in change.lesion_before]
    lesions += [c for c in pair.after.candidates if c.id in change.lesion_after]
    start = np.min([c.start_vox for c in lesions], axis=0).tolist()
    stop = np.max([c.stop_vox for c in lesions], axis=0).tolist()
    figure = Figure(figsize=(2 * INCHES, INCHES), facecolor="black")
    for k, scene in enumerate(scenes):
        cutout = draw_cutout(scene, start, stop, planes=1)
        cutout.set_dpi(DPI)
        canvas: Any = FigureCanvasAgg(cutout)
        canvas.draw()
        axes = figure.add_axes((k / 2, 0, 1 / 2, 1))
        axes.imshow(np.asarray(canvas.buffer_rgba()))
        axes.set_axis_off()
        axes.text(
            0.03,
            0.03,
            VISITS[k],
            color="white",
            fontsize=8,
            transform=axes.transAxes,
            path_effects=[withStroke(linewidth=2, foreground="black")],
        )
    return figure


def _read_on_grid(
    path: Path, mask_grid: Geometry, matrix: Numbers | None, target: Geometry
) -> NDArray[np.float32]:
    """Read the first channel of a scan, and resample it onto the grid `target`.

    A picture has the grid of its mask, `mask_grid`. A volume has its own grid, which may differ
    from that of its mask. `matrix` is the affine from the RAS mm of the volume to those of
    `target`, or None if both have the same coordinates.
    """
    volume = read_finite(path)
    array = volume.array[:1]
    grid = mask_grid
    if volume.geometry.dims == 3:
        affine = volume.geometry.affine
        grid = Geometry(volume.geometry.shape, affine if matrix is None else matrix @ affine)
    if grid.matches(target):
        return np.asarray(array[0], dtype=np.float32)
    return resample_to(array, grid, target, "linear")[0].numpy()


def lowest_score(point: OperatingPoint | None) -> float:
    """Return the lowest score of a reported new lesion: 0 without an operating point."""
    return 0.0 if point is None else point.score


def write_change_report(
    report: Any,
    prediction: Prediction,
    changes: Sequence[LesionChange],
    point: OperatingPoint | None,
) -> None:
    """Write a DICOM structured report of the later visit, with the changes since the earlier one.

    New lesions below the operating point `point` are left out. The comment lists the lesions that
    are gone, and those that are new but too thin to be sure.

    Raises:
        OutputError: if the file cannot be written.
        ResourceError: if the scan has changed since the report was planned.
    """
    # by id of a lesion at the later visit: its change and its earlier volume
    since: dict[int, tuple[str, float | None]] = {}
    gone: list[str] = []
    thin: list[str] = []
    for change in changes:
        if change.state == "gone":
            gone.append(_size_before(change, prediction.geometry.size_unit))
        if change.state == "new" and _score(change) < lowest_score(point):
            continue
        if change.state == "new" and _is_too_thin(change):
            thin += map(str, change.lesion_after)
        for lesion in change.lesion_after:
            since[lesion] = (change.state, change.volume_before_ml)
    candidates = tuple(replace(c, accepted=c.id in since) for c in prediction.candidates)
    remark = say("change_report", gone=gone, thin=thin)
    report.write(
        replace(prediction, candidates=candidates, operating_point=None),
        {c.label: f"lesion of label {c.label}" for c in candidates},
        since,
        remark,
    )


def _size_before(change: LesionChange, unit: str) -> str:
    """Return the size at the earlier visit with its unit, and a note if the lesion is too thin.

    The size is the volume, in 2-D the diameter.
    """
    if change.volume_before_ml is None:
        size = f"{change.diameter_before_mm or 0:.3g} {unit}"
    else:
        size = f"{change.volume_before_ml:.3g} ml"
    return f"{size} (too thin to be sure)" if _is_too_thin(change) else size


def write_follow_page(
    path: Path,
    changes: Sequence[LesionChange],
    names: Mapping[str, str],
    cards: Iterable[tuple[LesionChange, Card]],
    rule: ChangeRule,
    point: OperatingPoint | None,
    unit: str,
    alignments: Mapping[str, str],
) -> Path:
    """Write the page of all pairs of visits.

    Args:
        path: The file to write.
        changes: The changes of all pairs.
        names: The name of each pair on the page by its id, also of pairs that were not compared.
        cards: The changes with their pictures.
        rule: The rule by which the changes were found.
        point: The operating point that accepts new lesions. None accepts all of them.
        unit: The unit of diameters.
        alignments: How the visits of each compared pair were aligned, `headers` or `rigid`, in the
            order of the page.

    Returns:
        The path of the page.
    """
    accepted = [c for c in changes if c.accepted]
    pairs = [_row_of_pair(case, names[case], changes) for case in alignments]
    kinds_of_alignment = list(dict.fromkeys(alignments.values()))
    if len(kinds_of_alignment) > 1:
        for row, kind in zip(pairs, alignments.values(), strict=True):
            row["aligned by"] = kind
    change_rows = [_row_of_change(names[c.case], c, unit) for c in accepted]
    has_volumes = any(
        c.volume_before_ml is not None or c.volume_after_ml is not None for c in changes
    )
    if not has_volumes:  # 2-D images
        for row in pairs + change_rows:
            del row["ml before"]
            del row["ml after"]
    expected = ""
    if point is not None:
        expected = per_scan(point.expected_false_positives_per_case, "false new lesion", "pair")
    html = render(
        "follow.html.j2",
        states=STATES,
        sizes={
            state: [_max_diameter_mm(c) for c in accepted if c.state == state] for state in STATES
        },
        n_thin=_count_thin(changes, lowest_score(point)),
        n_stable=sum(change.state == "stable" for change in changes),
        unit=unit,
        charts=[_draw_chart(changes, unit)] if changes else [],
        rule=rule,
        point=point,
        expected=expected,
        sections=_group_cards(cards),
        aligned=kinds_of_alignment,
        pairs=pairs,
        not_compared=[name for case, name in names.items() if case not in alignments],
        changes=change_rows,
    )
    write_text(path, html)
    return path


def _group_cards(
    cards: Iterable[tuple[LesionChange, Card]],
) -> dict[str, list[Card]]:
    """Return the pictures of each kind in `WITH_PICTURES` that has any, the largest lesion first.

    Only the pictures of the largest `MAX_PICTURES` lesions of all kinds are shown.
    """
    largest = sorted(cards, key=lambda drawn: _max_diameter_mm(drawn[0]), reverse=True)
    sections: dict[str, list[Card]] = {state: [] for state in WITH_PICTURES}
    for change, card in largest[:MAX_PICTURES]:
        if change.state in sections:
            sections[change.state].append(card)
    return {state: own for state, own in sections.items() if own}


def _count_thin(changes: Sequence[LesionChange], threshold: float) -> int:
    """Count new lesions from the threshold on and gone lesions that are too thin to be sure."""
    return sum(_is_too_thin(change) and _score(change) >= threshold for change in changes)


def _is_too_thin(change: LesionChange) -> bool:
    """Return True if a new or gone lesion is too thin to be sure.

    If the smallest detectable change is 100 % or more, even the whole lesion is within the error
    of measurement.
    """
    return change.state in ("new", "gone") and change.smallest_change_percent >= 100


def _score(change: LesionChange) -> float:
    """Return the score of a new lesion, and 1 for other changes, which are always reported."""
    return 1.0 if change.score is None else change.score


def _max_diameter_mm(change: LesionChange) -> float:
    """Return the larger diameter of both visits."""
    return max(change.diameter_before_mm or 0.0, change.diameter_after_mm or 0.0)


def _draw_chart(changes: Sequence[LesionChange], unit: str) -> Chart:
    """Draw the diameter of each lesion at the later visit against that at the earlier one."""
    figure, axes = new_figure()
    smaller = ("gone", "shrunk")
    for change in sorted(changes, key=lambda one: one.accepted):  # accepted changes on top
        colour = FOUND if change.state in smaller else ACCENT
        if change.state == "stable" or not change.accepted:
            colour = UNSURE
        x = change.diameter_before_mm or 0.0
        y = change.diameter_after_mm or 0.0
        axes.plot(x, y, "o", color=colour, mec="white", mew=0.6, markersize=6)
    top = 1.08 * max(axes.get_xlim()[1], axes.get_ylim()[1])
    axes.plot([0, top], [0, top], color=OTHER, linewidth=1, zorder=0)
    axes.set(xlim=(-0.02 * top, top), ylim=(-0.02 * top, top))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set(xlabel=f"diameter at the earlier visit, {unit}", ylabel=f"at the later visit, {unit}")
    caption = "Orange: new, larger, merged or split. Blue: gone or smaller. Grey: no sure change."
    return Chart("Every lesion, earlier and later", caption, figure)


def _row_of_pair(case: str, name: str, changes: Sequence[LesionChange]) -> dict[str, object]:
    """Return the row of a pair of visits by column.

    The numbers are those of sure changes and stable lesions, the volumes those of all lesions.
    """
    own = [c for c in changes if c.case == case]
    return {
        "pair": name,
        **count_states(c for c in own if c.accepted or c.state == "stable"),
        "ml before": sum(c.volume_before_ml or 0.0 for c in own),
        "ml after": sum(c.volume_after_ml or 0.0 for c in own),
    }


def _row_of_change(name: str, change: LesionChange, unit: str) -> dict[str, object]:
    """Return the row of a change by column."""
    return {
        "pair": name,
        "change": change.state,
        "lesion before": " ".join(map(str, change.lesion_before)),
        "lesion after": " ".join(map(str, change.lesion_after)),
        f"{unit} before": change.diameter_before_mm,
        f"{unit} after": change.diameter_after_mm,
        "ml before": change.volume_before_ml,
        "ml after": change.volume_after_ml,
        "change, %": change.change_percent,
        "detectable from, %": change.smallest_change_percent,
    }

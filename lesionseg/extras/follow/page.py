"""The page follow.html: pictures and captions of changes, their maximum, colours, chart."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lesionseg.core import OperatingPoint, Prediction, joint_unit
from lesionseg.extras.follow.changes import (
    STATES,
    ChangeRule,
    LesionChange,
    VisitPair,
    count_states,
)
from lesionseg.extras.follow.pairs import FollowedPair
from lesionseg.io import read_finite
from lesionseg.reporting import Card, Chart, Scene, new_figure, write_page

VISITS = ("earlier", "later")
# colours of lesions in the chart, which colour-blind readers can distinguish
MORE = "#d55e00"  # new, larger, merged or split
LESS = "#0072b2"  # gone or smaller
UNSURE_COLOUR = "#b3b3b3"  # without a sure change
MAX_PICTURES = 40  # pictures of the largest lesions; the tables list every change


def draw_changes(
    pair: VisitPair, changes: Sequence[LesionChange], name: str, images: Sequence[Path]
) -> list[tuple[LesionChange, Card]]:
    """Draw the accepted changes at both visits: the same slice of both scans, with both outlines.

    Args:
        pair: The two visits.
        changes: The changes of the pair. Only accepted ones are drawn.
        name: The name of the pair on the page.
        images: The scans of the earlier and the later visit.

    Returns:
        The changes with the largest lesions, at most `MAX_PICTURES`, each with its picture.
    """
    accepted = [change for change in changes if change.accepted]
    accepted.sort(key=lambda change: change.max_diameter_mm, reverse=True)
    if not accepted:
        return []
    grid = pair.after.geometry
    before = _lesions_to_outline(pair.before, [c.lesion_before for c in accepted])
    after = _lesions_to_outline(pair.after, [c.lesion_after for c in accepted])
    # both scans on the grid of the later one; the earlier lesions have the colour of a reference
    scenes = {
        visit: Scene(
            read_finite(image, grid, matrix=matrix).array[0].astype(np.float32),
            grid,
            reference=before,
            accepted=after,
        )
        for visit, image, matrix in zip(VISITS, images, (pair.matrix, None), strict=True)
    }
    # a picture shows the box around the lesions of both visits
    cards = []
    for change in accepted[:MAX_PICTURES]:
        lesions = [c for c in pair.before.candidates if c.id in change.lesion_before]
        lesions += [c for c in pair.after.candidates if c.id in change.lesion_after]
        start = np.min([c.start_vox for c in lesions], axis=0).tolist()
        stop = np.max([c.stop_vox for c in lesions], axis=0).tolist()
        diameters = (change.diameter_before_mm, change.diameter_after_mm)
        sizes = [f"{d:.1f} {grid.size_unit}" for d in diameters if d]  # one if new or gone
        visit_below = _find_visit_below_limit(pair, change)
        words = (name, " → ".join(sizes), _change_words(change, visit_below))
        cards.append((change, Card.draw(scenes, start, stop, words=words, planes=1)))
    return cards


def _lesions_to_outline(
    visit: Prediction, ids_of_changes: Iterable[Sequence[int]]
) -> NDArray[np.bool_]:
    """Return the mask `[*spatial]` of the lesions of a visit to outline in the pictures.

    The lesions are the accepted candidates, and the candidates of accepted changes, which need not
    be accepted at this visit. Boxes have no voxels, so they are not outlined.

    Args:
        visit: The prediction of the visit.
        ids_of_changes: The ids of the candidates of each change.
    """
    if visit.instances is None:
        return np.zeros(visit.geometry.shape, bool)
    ids = {candidate.id for candidate in visit.candidates if candidate.accepted}
    ids.update(candidate for candidates in ids_of_changes for candidate in candidates)
    return np.isin(visit.instances, sorted(ids))


def _find_visit_below_limit(pair: VisitPair, change: LesionChange) -> str:
    """Return the visit at which no candidate of a change is accepted, "earlier" or "later".

    The caption states that the lesion is below the limit there. Return "" if there is no such
    visit. A visit without candidates of the change, such as before a new lesion, is none.
    """
    visits = ((pair.before, change.lesion_before), (pair.after, change.lesion_after))
    for name, (visit, ids) in zip(VISITS, visits, strict=True):
        accepted = [c.accepted for c in visit.candidates if c.id in ids]
        if accepted and not any(accepted):
            return name
    return ""


def _change_words(change: LesionChange, visit: str) -> str:
    """Return the caption of a change: the state, the change in per cent, and the detectable change.

    Args:
        change: The change.
        visit: The visit at which the lesion is below the limit (`_find_visit_below_limit`), or "".
    """
    words: str = change.state
    if change.change_percent is not None:
        words += f", {change.change_percent:+.0f} % (detectable from "
        words += f"{change.smallest_change_percent:.0f} %)"
    return f"{words}; below the limit at the {visit} visit" if visit else words


def write_follow_page(
    path: Path,
    followed: Mapping[str, FollowedPair],
    *,
    names: Mapping[str, str],
    rule: ChangeRule,
    point: OperatingPoint | None,
) -> None:
    """Write the page of all pairs of visits.

    Args:
        path: The file to write.
        followed: The compared pairs by id, in the order of the page.
        names: The name of each pair on the page by its id, also of pairs that were not compared.
        rule: The rule by which the changes were found.
        point: The operating point that accepts new lesions. None accepts all of them.
    """
    pairs = followed.values()
    changes = [change for pair in pairs for change in pair.changes]
    accepted = [change for change in changes if change.accepted]
    unit = joint_unit(pair.unit for pair in pairs)
    alignments = list(dict.fromkeys(pair.alignment for pair in pairs))
    # the numbers are those of sure changes and stable lesions, the volumes those of all lesions
    pair_rows = [
        {
            "pair": names[case],
            **count_states(c for c in pair.changes if c.accepted or c.state == "stable"),
            "ml before": sum(c.volume_before_ml or 0.0 for c in pair.changes),
            "ml after": sum(c.volume_after_ml or 0.0 for c in pair.changes),
            "aligned by": pair.alignment,
        }
        for case, pair in followed.items()
    ]
    change_rows = [
        {
            "pair": names[change.case],
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
        for change in accepted
    ]
    left_out = set() if len(alignments) > 1 else {"aligned by"}  # columns of both tables
    if all(c.volume_before_ml is c.volume_after_ml is None for c in changes):  # 2-D images
        left_out |= {"ml before", "ml after"}
    for row in pair_rows + change_rows:
        for column in left_out:
            row.pop(column, None)
    write_page(
        path,
        "follow.html.j2",
        states=STATES,
        sizes={
            state: [c.max_diameter_mm for c in accepted if c.state == state] for state in STATES
        },
        n_thin=sum(change.is_too_thin and change.reaches(point) for change in changes),
        n_stable=sum(change.state == "stable" for change in changes),
        unit=unit,
        charts=[_draw_chart(changes, unit)] if changes else [],
        rule=rule,
        point=point,
        sections=_group_cards(card for pair in pairs for card in pair.cards),
        aligned=alignments,
        pairs=pair_rows,
        not_compared=[name for case, name in names.items() if case not in followed],
        changes=change_rows,
    )


def _group_cards(cards: Iterable[tuple[LesionChange, Card]]) -> dict[str, list[Card]]:
    """Return the pictures by state, in the order of `STATES`, the largest lesion first.

    Only the pictures of the `MAX_PICTURES` largest lesions of all states are shown. States without
    a picture are left out.
    """
    # the first item of each pair is the change
    largest = sorted(cards, key=lambda pair: pair[0].max_diameter_mm, reverse=True)[:MAX_PICTURES]
    sections = {
        state: [card for change, card in largest if change.state == state] for state in STATES
    }
    return {state: cards_of_state for state, cards_of_state in sections.items() if cards_of_state}


def _draw_chart(changes: Sequence[LesionChange], unit: str) -> Chart:
    """Draw the diameter of each lesion at the later visit against its diameter at the earlier one.

    A dot on the diagonal did not change. A new lesion has 0 at the earlier visit, and a lesion that
    is gone has 0 at the later one.

    Args:
        changes: The changes of all pairs.
        unit: The unit of diameters.
    """
    figure, axes = new_figure()
    for change in sorted(changes, key=lambda change: change.accepted):  # accepted ones on top
        colour = LESS if change.state in ("gone", "shrunk") else MORE
        if change.state == "stable" or not change.accepted:
            colour = UNSURE_COLOUR
        # a lesion that a visit lacks has no diameter there, and is drawn on the axis
        x = change.diameter_before_mm or 0.0
        y = change.diameter_after_mm or 0.0
        axes.plot(x, y, "o", color=colour, mec="white", mew=0.6, markersize=6)
    # equal axes; the margins show dots at 0 and at the end completely
    end = 1.08 * max(axes.get_xlim()[1], axes.get_ylim()[1])
    axes.plot([0, end], [0, end], color="0.6", linewidth=1, zorder=0)
    axes.set(xlim=(-0.02 * end, end), ylim=(-0.02 * end, end))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set(xlabel=f"diameter at the earlier visit, {unit}", ylabel=f"at the later visit, {unit}")
    caption = "Orange: new, larger, merged or split. Blue: gone or smaller. Grey: no sure change."
    return Chart("Every lesion, earlier and later", caption, figure)

"""The page of `follow`: what became of each lesion between two visits."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from lesionseg.core import OperatingPoint
from lesionseg.errors import count
from lesionseg.evaluation.change import STATES, ChangeRule, LesionChange
from lesionseg.io.files import write_text
from lesionseg.report.images import Scene
from lesionseg.report.pictures import DPI, INCHES, Card, data_uri, draw_cutout
from lesionseg.report.rendering import render

MAX_PICTURES = 40  # the largest changes; the tables hold every one
SENTENCES: Mapping[str, str] = {
    "new": "Nothing was there at the earlier visit.",
    "enlarged": "Larger by more than the smallest detectable change.",
    "shrunk": "Smaller by more than the smallest detectable change.",
    "gone": "Nothing is there at the later visit.",
    "merged": "Several lesions that became one.",
    "split": "One lesion that became several.",
}


def draw_change(
    change: LesionChange, name: str, before: Scene, after: Scene, box: NDArray[np.float64]
) -> Card:
    """One change: both visits at the same place, with the outlines of both visits.

    Both scenes lie on the later grid; `reference` of each is the earlier visit's mask, `accepted`
    the later one's. `box` `[2, dims]` (start, stop) is around the lesions of both visits.
    """
    pair = Figure(figsize=(2 * INCHES, INCHES), facecolor="black")
    for k, scene in enumerate((before, after)):
        one = draw_cutout(scene, box[0].tolist(), box[1].tolist(), planes=1)
        one.set_dpi(DPI)
        canvas: Any = FigureCanvasAgg(one)
        canvas.draw()
        axes = pair.add_axes((k / 2, 0, 1 / 2, 1))
        axes.imshow(np.asarray(canvas.buffer_rgba()))
        axes.set_axis_off()
    sizes = [f"{d:.1f} mm" for d in (change.diameter_before_mm, change.diameter_after_mm) if d]
    words: str = change.state
    if change.change_percent is not None:
        least = change.smallest_change_percent
        words += f", {change.change_percent:+.0f} % (detectable from {least:.0f} %)"
    return Card(data_uri(pair), name, " → ".join(sizes), words)


def write_follow_page(
    path: Path,
    changes: Sequence[LesionChange],
    names: Mapping[str, str],
    cards: Iterable[tuple[LesionChange, Card]],
    rule: ChangeRule,
    point: OperatingPoint | None,
) -> Path:
    """Write the page to `path` and return it; `names` are the shown ones of all cases, in order.

    `point` accepts new lesions; None: each of them counts.
    """
    accepted = [c for c in changes if c.accepted]
    counts = Counter(c.state for c in accepted)
    summary = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])

    def extent(pair: tuple[LesionChange, Card]) -> float:
        return max(pair[0].diameter_before_mm or 0.0, pair[0].diameter_after_mm or 0.0)

    ordered = sorted(cards, key=extent, reverse=True)[:MAX_PICTURES]
    sections = [
        (state.capitalize(), sentence, [card for change, card in ordered if change.state == state])
        for state, sentence in SENTENCES.items()
        if any(change.state == state for change, _ in ordered)
    ]
    html = render(
        "follow.html.j2",
        headline=f"{count(len(names), 'pair')}: {summary or 'no change'}.",
        rule=rule,
        point=point,
        sections=sections,
        pairs=[_pair(case, names[case], changes) for case in names],
        changes=[_change(names[c.case], c) for c in accepted],
    )
    write_text(path, html)
    return path


def _pair(case: str, name: str, changes: Sequence[LesionChange]) -> dict[str, object]:
    own = [c for c in changes if c.case == case]
    counts = Counter(c.state for c in own if c.accepted or c.state == "stable")
    return {
        "pair": name,
        **{state: counts[state] for state in STATES},
        "ml before": sum(c.volume_before_ml or 0.0 for c in own),
        "ml after": sum(c.volume_after_ml or 0.0 for c in own),
    }


def _change(name: str, change: LesionChange) -> dict[str, object]:
    return {
        "pair": name,
        "change": change.state,
        "lesion before": " ".join(map(str, change.lesion_before)),
        "lesion after": " ".join(map(str, change.lesion_after)),
        "mm before": change.diameter_before_mm,
        "mm after": change.diameter_after_mm,
        "ml before": change.volume_before_ml,
        "ml after": change.volume_after_ml,
        "change, %": change.change_percent,
        "detectable from, %": change.smallest_change_percent,
    }

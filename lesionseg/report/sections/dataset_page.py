"""A dataset on one self-contained page: faults, pictures of every case, sizes and intensities."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lesionseg.io.atomic import write_text
from lesionseg.report.figures import dataset_figures
from lesionseg.report.figures.chart_drawing import draw_svg
from lesionseg.report.figures.slice_views import Thumbnail
from lesionseg.report.rendering import render
from lesionseg.report.text import dataset_words as dataset_text


@dataclass(frozen=True)
class Remark:
    """One finding about one case: its kind (`dataset_text.MEANING`) and its severity."""

    kind: str
    severity: str


@dataclass(frozen=True)
class CaseLook:
    """What the page shows of one case, called by a `pseudonym`; empty where it cannot be read.

    `spacing_mm` along S, A, R (2-D: down, across); `ranges` has the 0.5, 50 and 99.5 percentile
    of each channel. `taken`: what a radiograph states, in the order of `dataset_text.TAKEN`.
    """

    pseudonym: str
    role: str = ""
    shape: tuple[int, ...] = ()
    spacing_mm: tuple[float, ...] = ()
    diameters: tuple[float, ...] = ()
    ranges: tuple[tuple[float, float, float], ...] = ()
    thumbnail: Thumbnail | None = None
    remarks: tuple[Remark, ...] = ()
    taken: tuple[str, ...] = ()

    @property
    def exposure(self) -> str:
        """What is stated of how a radiograph was taken, in a line."""
        return ", ".join(value.lower() for value in self.taken if value)


def write_dataset_report(
    path: Path,
    looks: Sequence[CaseLook],
    channels: Sequence[str],
    unit: str,
    n_unlisted: int = 0,
) -> Path:
    """Write the page to `path`, whole or not at all, and return it.

    `unit` is that of sizes; `n_unlisted` entries of the dataset's list were no case at all.
    """
    diameters = [d for look in looks for d in look.diameters]
    readable = [look for look in looks if look.ranges]
    charts = []
    if diameters:
        draw = partial(dataset_figures.size_histogram, diameters=diameters, unit=unit)
        alt = dataset_text.alt_sizes(len(diameters))
        charts.append(
            (dataset_text.SIZES, draw_svg(draw, 3.0).data_uri, dataset_text.SIZE_TEXT, alt)
        )
    if readable:
        ranges = partial(
            dataset_figures.intensity_ranges,
            channels=channels,
            ranges=[look.ranges for look in readable],
        )
        uri, caption = (
            draw_svg(ranges, 1.2 + 1.6 * len(channels)).data_uri,
            dataset_text.INTENSITY_TEXT,
        )
        charts.append((dataset_text.INTENSITIES, uri, caption, caption))
    if readable and unit != dataset_text.PIXELS:  # a pixel is as large as a pixel
        spacings = [look.spacing_mm for look in readable]
        scatter = partial(dataset_figures.spacing_scatter, spacings=spacings, unit=unit)
        caption = dataset_text.SPACING_TEXT
        charts.append((dataset_text.SPACINGS, draw_svg(scatter, 3.0).data_uri, caption, caption))
    write_text(path, _render(looks, charts, len(diameters), n_unlisted))
    return path


def _render(
    looks: Sequence[CaseLook], charts: Sequence[Any], n_lesions: int, n_unlisted: int
) -> str:
    n_free = sum(any(r.kind == "lesion_free" for r in look.remarks) for look in looks)
    return render(
        "dataset.html.j2",
        text=dataset_text,
        summary=dataset_text.counts(len(looks), n_lesions, n_free)
        + dataset_text.unlisted(n_unlisted),
        radiographs=_radiographs(looks),
        findings=_findings(looks),
        charts=charts,
        looks=looks,
    )


def _radiographs(looks: Sequence[CaseLook]) -> list[tuple[str, str, int]]:
    """What is stated, its value and how many radiographs state it; none without radiographs."""
    taken = [look.taken for look in looks if any(look.taken)]
    rows = []
    for place, name in enumerate(dataset_text.TAKEN):
        if not any(values[place] for values in taken):
            continue
        counts = Counter(values[place].lower() or dataset_text.NOT_STATED for values in taken)
        rows += [(name, value, n) for value, n in counts.most_common(10)]
    return rows


def _findings(looks: Sequence[CaseLook]) -> list[tuple[str, str, int, str]]:
    """Severity, meaning, number and pseudonyms of the cases of each kind, the worst first."""
    rows = []
    for severity, words in dataset_text.SEVERITY.items():
        for kind, meaning in dataset_text.MEANING.items():
            names = [look.pseudonym for look in looks if Remark(kind, severity) in look.remarks]
            shown = ", ".join(names[:20]) + (" …" if len(names) > 20 else "")
            rows += [(words, meaning, len(names), shown)] if names else []
    return rows

"""The words that stand for the charts, and those along their axes."""

from collections.abc import Iterable, Mapping, Sequence

from lesionseg.evaluation.rows import CaseRow
from lesionseg.evaluation.score_sections import FrocPoint, Scores
from lesionseg.evaluation.statistics.score_parts import (
    CalibrationScores,
    ContrastCell,
    Difference,
    SizeCurveScores,
    SubgroupScores,
)
from lesionseg.report.text.amounts import (
    difference,
    measured,
    percent,
    range_words,
    rate,
    signed,
    size_range,
)
from lesionseg.report.text.catalog import counted, entry, say
from lesionseg.report.text.definitions import measure_name


def axis_sizes(unit: str) -> str:
    """Below the bars by size."""
    plain = unit in ("mm", "px")
    return say("AXIS_SIZES", diameter=say("AXIS_DIAMETER") if plain else axis_diameter(unit))


def axis_diameter(unit: str) -> str:
    """Below the curve along the size."""
    return f"{say('AXIS_DIAMETER')} ({measured(unit)})"


def bar_key(*, detected: bool, near: bool) -> str:
    """What a part of a bar counts."""
    return say("FOUND" if detected else "MISSED") + (say("NEAR_TOO") if near else "")


def found_at(share: float, diameter: float, unit: str) -> str:
    """Beside a point of the curve along the size.

    >>> found_at(0.5, 6.21, "mm")
    '50\xa0% at 6.2 mm'
    """
    return say("FOUND_AT", share=percent(share), size=f"{rate(diameter)} {unit}")


def of(found: int, n: int) -> str:
    """A count of a count."""
    return say("OF", found=found, n=n)


def _joined(name: str, lines: Iterable[str], /, **values: object) -> str:
    return say(name, all="; ".join(lines), **values)


def _by_size(scores: Scores) -> Iterable[str]:
    for group in scores.recall_by_size:
        yield f"{size_range(group, scores.size_unit)}: {of(group.detected, group.n)}"


def alt_sizes(scores: Scores) -> str:
    """The chart of recall by size in words."""
    return _joined("ALT_SIZES", _by_size(scores))


def alt_froc(points: Sequence[FrocPoint]) -> str:
    """The ends of the FROC curve in words."""
    ends = {"first": points[0], "last": points[-1]}
    rates = {f"{end}_rate": rate(point.fp_per_case) for end, point in ends.items()}
    return say("ALT_FROC", **{end: percent(p.recall) for end, p in ends.items()}, **rates)


def alt_dice(cases: Iterable[CaseRow], median: float | None) -> str:
    """The chart of Dice per case in words."""
    values = [case.dice for case in cases if case.dice is not None]
    scans = counted(len(values), "scan")
    if not values:
        return say("ALT_DICE_NONE", scans=scans)
    middle = "" if median is None else say("ALT_MEDIAN", median=median)
    return say("ALT_DICE", scans=scans, low=min(values), high=max(values), median=middle)


def alt_curve(curve: SizeCurveScores, unit: str) -> str:
    """The curve along the size in words."""
    first, last = (found_at(curve.recall[at], curve.diameters_mm[at], unit) for at in (0, -1))
    return say("ALT_CURVE", first=first, last=last)


def alt_cells(cells: Iterable[ContrastCell], unit: str) -> str:
    """Fields of size and contrast in words."""
    lines = (
        say(
            "ALT_CELL",
            size=range_words(*cell.size, unit),
            contrast=range_words(*cell.contrast, ""),
            found=of(cell.detected, cell.n),
        )
        for cell in cells
        if cell.n
    )
    return _joined("ALT_CELLS", lines)


def alt_reliability(calibration: CalibrationScores) -> str:
    """The reliability curve in words."""
    lines = (
        say("ALT_BIN", stated=percent(b.mean_probability), true=percent(b.true_share))
        for b in calibration.bins
        if b.n
    )
    return _joined("ALT_RELIABILITY", lines, candidates=counted(calibration.n, "candidate"))


def alt_subgroups(subgroups: Iterable[SubgroupScores]) -> str:
    """The forest of subgroups in words."""
    lines = (f"{g.by} {g.value}: {of(g.detected, g.n_lesions)}" for g in subgroups)
    return _joined("ALT_SUBGROUPS", lines)


def margin_sentence(differences: Mapping[str, Difference], names: tuple[str, str]) -> str:
    """Whether the one is not inferior by the margin stated for the primary endpoint; else empty."""
    for key, row in differences.items():
        if row.margin is not None:
            verdict = entry("NON_INFERIOR")[row.non_inferior].format(low=signed(-row.margin))
            name = measure_name(key)
            return say(
                "NON_INFERIORITY",
                name=names[0],
                other=names[1],
                measure=name if entry("NOUNS_ARE_CAPITAL") else name.lower(),
                margin=row.margin,
                verdict=verdict,
            )
    return ""


def alt_differences(differences: Mapping[str, Difference]) -> str:
    """The differences in words."""
    lines = (f"{measure_name(k)}: {difference(row.difference)}" for k, row in differences.items())
    return _joined("ALT_DIFFERENCES", lines)


def alt_froc_pair(both: Iterable[Scores], names: Iterable[str]) -> str:
    """The operating points of both in words."""
    lines = []
    for scores, name in zip(both, names, strict=True):
        recall = scores.estimate("lesion_recall").value
        false = scores.estimate("false_positives_per_case").value
        if recall is not None and false is not None:
            lines.append(say("ALT_POINT", name=name, share=percent(recall), rate=rate(false)))
    return _joined("ALT_FROC_PAIR", lines)


def alt_sizes_pair(both: Iterable[Scores], names: Iterable[str]) -> str:
    """Recall by size of both in words."""
    lines = (
        _joined("ALT_SIZES_OF", _by_size(scores), name=name)
        for scores, name in zip(both, names, strict=True)
    )
    return " ".join(lines)


def alt_course(gradient: Sequence[float]) -> str:
    """The chart of shares in words, from the last shares of the gradient."""
    if not gradient:
        return say("ALT_HIGHEST")
    parts = zip(entry("PART_NAMES"), gradient, strict=True)
    return say("ALT_COURSE", parts=", ".join(f"{name} {share:.0%}" for name, share in parts))


def alt_cumulative(tenths: Mapping[str, float]) -> str:
    """The cumulative curves in words, from the share that the hardest tenth of voxels holds."""
    tenth = entry("HARDEST_TENTH")
    return _joined("ALT_CUMULATIVE", (tenth[n].format(share=s) for n, s in tenths.items()))

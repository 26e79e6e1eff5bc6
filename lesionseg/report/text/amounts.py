"""Numbers in words: counts, shares with their intervals, sizes, and why there is none."""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from lesionseg.evaluation.statistics.estimates import CI, UNSTATED, Estimate
from lesionseg.evaluation.statistics.score_parts import SizeGroup
from lesionseg.report.result_tables import Tables
from lesionseg.report.text.catalog import counted, entry, say

ROWS_ON_PAPER, CASES_ON_PAPER = 40, 25  # of a table; of the one below each patient's dots
# Under this many lesions a percentage without an interval pretends to a precision it lacks.
MIN_FOR_PERCENT = 10
# Under this many patients there is no interval (docs/metrics.md).
MIN_GROUPS = 5
NONE = "–"


def number(value: float | None, digits: int = 2) -> str:
    """A number for a table, or a dash; no zero has a sign.

    >>> number(-0.001), number(None)
    ('0.00', '–')
    """
    return NONE if value is None else f"{round(value, digits) + 0.0:.{digits}f}"


def percent(part: float) -> str:
    r"""A share in whole percent; never rounded up to 100 % or down to 0 %.

    >>> percent(0.5), percent(0.999), percent(0.001)
    ('50\xa0%', '99\xa0%', '1\xa0%')
    """
    shown = round(100 * part)
    if (shown == 100 and part < 1) or (shown == 0 and part > 0):
        shown = 99 if shown else 1
    return f"{shown}\N{NO-BREAK SPACE}%"


def rate(value: float) -> str:
    """A rate to two digits, so that a small one is not rounded away.

    >>> rate(0.041), rate(0.84), rate(103.2)
    ('0.041', '0.84', '103')
    """
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def score(value: float) -> str:
    """A score to three digits, or to as many as tell it from 1.

    >>> score(0.05534), score(0.99972), score(1.0)
    ('0.0553', '0.9997', '1')
    """
    digits = next(d for d in range(3, 18) if value >= 1 or float(f"{value:.{d}g}") < 1)
    return f"{value:.{digits}g}"


def optional_rate(value: float | None) -> str:
    """A rate for a table, or a dash."""
    return NONE if value is None else rate(value)


def rate_interval(value: float | None, ci95: CI | None) -> str:
    """A rate with its interval where it has one, or a dash.

    >>> rate_interval(0.5, (0.25, 1.0)), rate_interval(0.5, None)
    ('0.5 (0.25 to 1)', '0.5')
    """
    if value is None or ci95 is None:
        return optional_rate(value)
    return f"{rate(value)} ({between(*map(rate, ci95))})"


def between(low: object, high: object) -> str:
    """From one end to the other."""
    return say("BETWEEN", low=low, high=high)


def range_words(low: float, high: float | None, unit: str, form: str = "g") -> str:
    """A range of sizes or contrasts; None: no upper end.

    >>> range_words(2, 5, "mm"), range_words(0, 2, ""), range_words(5, None, "")
    ('2 to 5 mm', 'under 2', '5 and more')
    >>> range_words(3.1416, 4.5678, "mm", ".3g")
    '3.14 to 4.57 mm'
    """
    after = f" {unit}" if unit else ""
    if high is None:
        return say("AND_MORE", low=f"{low:{form}}{after}")
    end = f"{high:{form}}{after}"
    return say("UNDER", high=end) if low == 0 else between(f"{low:{form}}", end)


def size_range(group: SizeGroup, unit: str) -> str:
    """A size group in words.

    >>> size_range(SizeGroup(20, None, 1, 1, Estimate(1.0)), "mm")
    '20 mm and more'
    """
    return range_words(group.from_mm, group.to_mm, unit)


def size(value: float | None) -> str:
    """A diameter to a tenth, rounded down: what lies under an edge never reads as the edge.

    >>> size(2.95), size(3.0), size(None)
    ('2.9', '3.0', '–')
    """
    return NONE if value is None else f"{math.floor(10 * value + 1e-6) / 10:.1f}"


def size_heading(unit: str) -> str:
    """The heading of a column of sizes: where they were measured when that matters."""
    name = str(entry("HEADINGS_SIZE")[0])
    return name if unit in ("mm", "px") else f"{name} ({measured(unit)})"


def measured(unit: str) -> str:
    """A unit, and where it was measured, in the reader's language."""
    return str(entry("MEASURED").get(unit, unit))


def and_interval(estimate: Estimate) -> str:
    """The 95 % CI to be put behind a share; empty without one."""
    if estimate.ci95 is None:
        return ""
    low, high = _percents(estimate.ci95)
    return say("INTERVAL", low=low, high=f"{high}\N{NO-BREAK SPACE}%")


def in_brackets(estimate: Estimate, shown: Callable[[float], str] | None = None) -> str:
    """The 95 % CI to be put behind a number: of a share, or as `shown`; empty without one."""
    if estimate.ci95 is None:
        return ""
    low, high = map(shown, estimate.ci95) if shown else _percents(estimate.ci95)
    return say("IN_BRACKETS", low=low, high=high if shown else f"{high}\N{NO-BREAK SPACE}%")


def bounds(estimate: Estimate) -> str:
    """The ends of an interval in percent; `none` without one."""
    if estimate.ci95 is None:
        return say("NO_INTERVAL")
    low, high = _percents(estimate.ci95)
    return between(low, f"{high}\N{NO-BREAK SPACE}%")


def _percents(ends: CI) -> tuple[int, int]:
    """In whole percent; an end above 0 % or below 100 % hides neither of them."""
    low, high = (round(100 * end) for end in ends)
    return min(low, 99) if ends[0] < 1 else low, max(high, 1) if ends[1] > 0 else high


def share(found: int, of: int, estimate: Estimate) -> str:
    """A share in percent; a dash for none, and for few lesions without an interval."""
    if of == 0 or (estimate.ci95 is None and of < MIN_FOR_PERCENT):
        return NONE
    return percent(found / of)


def share_found(found: int, of: int, estimate: Estimate) -> str:
    r"""A share of lesions in percent with its count and CI; of few without one the count alone.

    >>> share_found(68, 70, Estimate(0.97, (0.9, 0.99)))
    '97\xa0% (68/70; 95 % CI 90 to 99\xa0%)'
    >>> share_found(2, 3, Estimate(0.67))
    '2/3'
    """
    if of == 0:
        return say("NO_LESION")
    if estimate.ci95 is None and of < MIN_FOR_PERCENT:
        return f"{found}/{of}"
    return f"{percent(found / of)} ({found}/{of}{and_interval(estimate)})"


def diameter(
    size: Estimate, unit: str, observed: CI | None = None, outside: str | None = None
) -> str:
    """A size with its interval, or why there is none; what lies beyond the observed sizes as such.

    >>> diameter(Estimate(6.21, (4.0, 25.0)), "mm", (1.0, 25.0))
    '6.2 mm (95 % CI 4 to > 25 mm)'
    >>> diameter(Estimate(None, (12.0, 25.0)), "mm", (1.0, 25.0), "above")
    '> 25 mm (outside data; 95 % CI 12 to > 25 mm)'
    """
    low, high = observed or (-math.inf, math.inf)

    def show(value: float) -> str:
        return f"{'< ' * (value <= low)}{'> ' * (value >= high)}{rate(value)}"

    if outside is None or observed is None:
        return _with_interval(size, show, f" {unit}")
    beyond = f"{show(high if outside == 'above' else low)} {unit}"
    if size.ci95 is None:
        return say("OUTSIDE", size=beyond)
    start, stop = map(show, size.ci95)
    return say("OUTSIDE_INTERVAL", size=beyond, low=start, high=f"{stop} {unit}")


def difference(estimate: Estimate) -> str:
    """A difference with its sign and, where it has one, its CI.

    >>> difference(Estimate(0.1, (-0.02, 0.22)))
    '+0.10 (95 % CI −0.02 to +0.22)'
    """
    return _with_interval(estimate, signed)


def points(value: float | None, ci95: CI | None) -> str:
    r"""A difference of shares in percentage points with its CI, or a dash.

    >>> points(0.104, (-0.02, 0.22)), points(None, None)
    ('+10 (−2 to +22)', '–')
    """
    if value is None:
        return NONE
    shown = [f"{round(100 * v):+d}".replace("-", "\N{MINUS SIGN}") for v in (value, *(ci95 or ()))]
    return f"{shown[0]} ({between(*shown[1:])})" if ci95 else shown[0]


def signed(value: float) -> str:
    """A number with its sign, a true minus."""
    return f"{value:+.2f}".replace("-", "\N{MINUS SIGN}")


def p_value(p: float | None) -> str:
    """A p-value to two digits.

    >>> p_value(0.0004), p_value(0.043)
    ('under 0.001', '0.043')
    """
    if p is None:
        return NONE
    return say("UNDER", high=0.001) if p < 0.001 else f"{p:.2g}"


def measure(estimate: Estimate) -> str:
    """A number of any kind with its CI, where it has one, or `not defined` with the reason."""
    if estimate.ci95 is not None and estimate.ci95[0] == estimate.ci95[1]:
        estimate = replace(estimate, ci95=None)  # all resampled patients give the same
    return _with_interval(estimate, number)


def _with_interval(estimate: Estimate, show: Callable[[float], str], unit: str = "") -> str:
    if estimate.value is None:
        return undefined(estimate.reason)
    shown = f"{show(estimate.value)}{unit}"
    if estimate.ci95 is None:
        return shown
    low, high = map(show, estimate.ci95)
    return shown + say("IN_BRACKETS", low=low, high=f"{high}{unit}")


def undefined(reason: str | None) -> str:
    """That a number is not defined, and why."""
    return say("UNDEFINED", reason=reason_words(reason))


def interval_sentence(tables: Tables) -> str:
    """Why numbers have no CI, each reason once, and how many more patients would help.

    An interval narrows with the square root of the number of independent patients, so half the
    width takes four times as many in all. Patients without lesions do not count towards any.
    """
    reasons = {
        reason_words(reason.removesuffix(" are too few for an interval"))
        for reason in _reasons(tables.scores.raw)
    }
    none = say("NO_INTERVALS", reasons="; ".join(sorted(reasons))) if reasons else ""
    return f"{none} {_more_patients(tables)}".strip()


def reason_words(reason: str | None) -> str:
    """Why there is no number, as scores.json says; in the reader's language where it is known.

    >>> reason_words("fewer than 5 groups, or no case with a lesion")
    'fewer than 5 patients, or no scan with a lesion'
    """
    why = re.sub(r"\bcase", "scan", re.sub(r"\bgroup", "patient", reason or UNSTATED))
    return str(entry("REASONS").get(why, why))


def _reasons(node: Any) -> Iterator[str]:
    """Why a number that is defined has no interval, of every number in scores.json."""
    if isinstance(node, list):
        for one in node:
            yield from _reasons(one)
    if not isinstance(node, Mapping):
        return
    if node.get("ci95", 0) is None and node.get("reason"):
        if any(node.get(key) is not None for key in ("value", "mean", "recall")):
            yield str(node["reason"])
    elif isinstance(node.get("ci95"), Mapping):
        reasons = node.get("reasons") or {}
        missing = (key for key, pair in node["ci95"].items() if pair is None)
        yield from (reasons[k] for k in missing if node.get(k) is not None and reasons.get(k))
    for one in node.values():
        yield from _reasons(one)


def _more_patients(tables: Tables) -> str:
    scores = tables.scores
    if scores.estimate("lesion_recall").ci95 is None:
        missing = MIN_GROUPS - len({lesion.group or lesion.case for lesion in tables.lesions})
        if not tables.lesions or missing <= 0:
            return ""
        return say("MORE_PATIENTS", patients=counted(missing, "more patient"))
    return say("HALF_AS_WIDE", n=f"{3 * scores.n_groups:,}".replace(",", " "))

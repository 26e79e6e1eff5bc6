"""The further numbers of scores.json as dataclasses; None or `()` where an evaluation has none."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lesionseg.report.inputs.scores_file import (
    CI,
    UNSTATED,
    Estimate,
    read_estimate,
    read_interval,
)

ROW_OF_COMPARISON = {"one", "other", "difference"}


@dataclass(frozen=True)
class SizeCurveRow:
    """Chance of being found along the diameter, with its intervals (None: none there).

    `d50` and `d90`: the diameters found with 50 and 90 % probability.
    """

    diameters: tuple[float, ...]
    recall: tuple[float, ...]
    intervals: tuple[CI | None, ...]
    d50: Estimate
    d90: Estimate


@dataclass(frozen=True)
class Bin:
    """Candidates whose stated chance lies in `[from, to)`: how many, and how many found one."""

    start: float
    stop: float
    n: int
    stated: float
    true: float


@dataclass(frozen=True)
class Reliability:
    """How well stated chances hold; `of` is what was taken for a chance."""

    of: str
    n: int
    bins: tuple[Bin, ...]
    numbers: Mapping[str, float]


@dataclass(frozen=True)
class SubgroupScores:
    """Cases of one value of a column, or of one range of values."""

    by: str
    value: str
    n_cases: int
    n_groups: int
    n_lesions: int
    detected: int
    recall: Estimate
    false_per_case: float | None
    dice: float | None


@dataclass(frozen=True)
class RegionScores:
    """A region judged by itself: its Dice, and its components as if they were all the lesions."""

    name: str
    n_cases: int
    n_lesions: int
    detected: int
    recall: Estimate
    dice: Estimate


@dataclass(frozen=True)
class ContrastCell:
    """Lesions of a size and of a contrast to their surroundings; None: no upper bound."""

    size: tuple[float, float | None]
    contrast: tuple[float, float | None]
    n: int
    detected: int
    recall: Estimate


@dataclass(frozen=True)
class Difference:
    """One number of two models on the same cases, `one - other` with its interval."""

    key: str
    one: float | None
    other: float | None
    difference: Estimate
    p_value: float | None


@dataclass(frozen=True)
class Details:
    """All of them; `reasons` says by key of scores.json why one is not there."""

    size_curve: SizeCurveRow | None
    reliability: Reliability | None
    subgroups: tuple[SubgroupScores, ...]
    cells: tuple[ContrastCell, ...]
    differences: tuple[Difference, ...]
    regions: tuple[RegionScores, ...]
    reasons: Mapping[str, str]


def read_details(raw: Mapping[str, Any]) -> Details:
    """Whatever of it a scores.json has; raises `KeyError`, `TypeError` or `ValueError` if broken.

    >>> read_details({"calibration": {"of": None, "reason": "no scores"}}).reasons["calibration"]
    'no scores'
    """
    found = Details(
        _size_curve(raw.get("size_curve") or {}),
        _reliability(raw.get("calibration") or {}),
        tuple(_subgroup(row) for row in raw.get("subgroups") or ()),
        tuple(_cell(row) for row in raw.get("recall_by_size_and_contrast") or ()),
        _differences(raw.get("comparison") or {}),
        tuple(_region(name, one) for name, one in (raw.get("per_region") or {}).items()),
        {},
    )
    said = raw.get("reasons") or {}
    reasons = {
        key: (one.get("reason") if isinstance(one := raw.get(key), Mapping) else None)
        or said.get(key)
        or UNSTATED
        for key in ("size_curve", "calibration", "subgroups", "recall_by_size_and_contrast")
    }
    return Details(**{**vars(found), "reasons": reasons})


def _size_curve(raw: Mapping[str, Any]) -> SizeCurveRow | None:
    if not raw.get("diameters_mm"):
        return None
    reason = str(raw.get("reason") or UNSTATED)
    d50, d90 = (
        Estimate(_optional(raw.get(f"{name}_mm")), read_interval(raw.get(f"{name}_ci95")), reason)
        for name in ("d50", "d90")
    )
    pairs = raw.get("ci95") or [None] * len(raw["diameters_mm"])
    return SizeCurveRow(
        tuple(map(float, raw["diameters_mm"])),
        tuple(map(float, raw["recall"])),
        tuple(read_interval(pair) for pair in pairs),
        d50,
        d90,
    )


def _reliability(raw: Mapping[str, Any]) -> Reliability | None:
    if not raw.get("reliability"):
        return None
    bins = tuple(
        Bin(
            float(row["from"]),
            float(row["to"]),
            int(row["n"]),
            float(row["mean_probability"]),
            float(row["true_share"]),
        )
        for row in raw["reliability"]
    )
    names = ("brier", "slope", "intercept", "ece")
    numbers = {name: float(raw[name]) for name in names if raw.get(name) is not None}
    return Reliability(str(raw.get("of") or "score"), sum(b.n for b in bins), bins, numbers)


def _subgroup(row: Mapping[str, Any]) -> SubgroupScores:
    return SubgroupScores(
        str(row["by"]),
        str(row["value"]),
        int(row["n_cases"]),
        int(row["n_groups"]),
        int(row["n_lesions"]),
        int(row["detected"]),
        _estimate(row, "recall"),
        _optional(row.get("false_positives_per_case")),
        _optional(row.get("dice")),
    )


def _region(name: str, one: Mapping[str, Any]) -> RegionScores:
    n = int(one["n_lesions"])
    return RegionScores(
        name,
        int(one["n_cases"]),
        n,
        n - int(one["n_missed"]),
        read_estimate(one, "lesion_recall"),
        read_estimate(one, "dice"),
    )


def _cell(row: Mapping[str, Any]) -> ContrastCell:
    return ContrastCell(
        (float(row["from_mm"]), _optional(row.get("to_mm"))),
        (float(row["contrast_from"]), _optional(row.get("contrast_to"))),
        int(row["n"]),
        int(row["detected"]),
        _estimate(row, "recall"),
    )


def _differences(raw: Mapping[str, Any]) -> tuple[Difference, ...]:
    rows = {key: row for key, row in raw.items() if isinstance(row, Mapping)}
    return tuple(
        Difference(
            key,
            _optional(row["one"]),
            _optional(row["other"]),
            _estimate(row, "difference"),
            _optional(row.get("p_value")),
        )
        for key, row in rows.items()
        if set(row) >= ROW_OF_COMPARISON
    )


def _estimate(row: Mapping[str, Any], key: str) -> Estimate:
    reason = str(row.get("reason") or row.get("ci95_reason") or UNSTATED)
    return Estimate(_optional(row.get(key)), read_interval(row.get("ci95")), reason)


def _optional(value: Any) -> float | None:
    return None if value is None else float(value)

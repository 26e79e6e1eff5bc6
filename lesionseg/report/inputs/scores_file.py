"""scores.json as dataclasses: every number with its interval, or with the reason it has none."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from lesionseg.errors import ContentError, ReadError
from lesionseg.io.atomic import read_json

SCHEMA_VERSION = 1
HALF_MM = 5.0
UNSTATED = "the reason is not stated"
CI = tuple[float, float]


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval; `value` or `ci95` may be None, then `reason` says why."""

    value: float | None
    ci95: CI | None = None
    reason: str = UNSTATED


@dataclass(frozen=True)
class SizeGroup:
    """Lesions of `from_mm` up to (not including) `to_mm`; None: no upper bound."""

    from_mm: float
    to_mm: float | None
    n: int
    detected: int
    recall: Estimate


@dataclass(frozen=True)
class FrocPoint:
    """Lesion recall at a rate of false positives; `reached` is False beyond the last candidate."""

    fp_per_case: float
    recall: float
    ci95: CI | None
    reached: bool


@dataclass(frozen=True)
class AcceptedFrom:
    """The score from which candidates were accepted, and whether these cases chose it."""

    score: float | None
    chosen_on: str | None
    optimistic: bool


@dataclass(frozen=True)
class Scores:
    """What the report prints of scores.json; `raw` is the whole file.

    `recall_by_half`: the lesions under 5 mm and those of 5 mm or more; `recall_by_quantile`: in
    groups of about as many lesions. `size_unit` is short, such
    as mm; `size_said` may add where it was measured, such as mm at the detector.
    """

    evaluated_on: str
    n_cases: int
    n_groups: int
    n_lesion_free_cases: int
    n_lesions: int
    n_true_positive: int
    n_false_positive: int
    n_missed: int
    n_ignored: int
    recall_by_size: tuple[SizeGroup, ...]
    recall_by_half: tuple[SizeGroup, ...]
    recall_by_quantile: tuple[SizeGroup, ...]
    froc: tuple[FrocPoint, ...]
    operating_point: AcceptedFrom
    size_unit: str
    size_said: str
    split_is_group_safe: bool | None
    provenance: Mapping[str, Any]
    raw: Mapping[str, Any]

    def estimate(self, key: str) -> Estimate:
        """The number stored under `key`, in any of the shapes the contract allows."""
        return read_estimate(self.raw, key)

    @property
    def median_dice(self) -> float | None:
        """Median Dice over the cases with a reference lesion, None when not defined."""
        median = (self.raw.get("dice") or {}).get("median")
        return None if median is None else float(median)

    @property
    def n_touching(self) -> int:
        """False positives that touch some lesion without matching it."""
        return int((self.raw.get("false_positives") or {}).get("touching_lesion") or 0)

    def false_marks_under(self, rule: str) -> float | None:
        """False positives per case under another rule of what found means."""
        found = (self.raw.get("other_criteria") or {}).get(rule) or {}
        rate = found.get("false_positives_per_case")
        return None if rate is None else float(rate)

    @property
    def simulated(self) -> bool:
        """Whether the scans were made by a program."""
        return bool(self.provenance.get("simulated", False))

    @property
    def incomplete_reference(self) -> bool:
        """Whether the reference is known to leave lesions out."""
        return bool(self.provenance.get("incomplete_reference", False))

    @property
    def preset(self) -> str:
        """Name of the match rule."""
        preset = self.raw.get("preset") or "not stated"
        return str(preset.get("name", "not stated") if isinstance(preset, Mapping) else preset)


def read_scores(path: Path) -> Scores:
    """Read a scores.json.

    Raises `ReadError` when the file is missing and `ContentError` when it is of another version
    or lacks a key that the contract promises.
    """
    if not path.is_file():
        raise ReadError(
            "There are no scores to report.",
            where=path,
            expected="a scores.json",
            remedy="run evaluate first, and give its output folder.",
        )
    raw = read_json(path)
    if not isinstance(raw, Mapping) or raw.get("schema_version", SCHEMA_VERSION) != SCHEMA_VERSION:
        raise ContentError(
            "This is no scores.json that can be read here.",
            where=path,
            seen=raw.get("schema_version") if isinstance(raw, Mapping) else type(raw).__name__,
            expected=f"schema_version {SCHEMA_VERSION}",
            remedy="run evaluate again with this version.",
        )
    try:
        return _scores(raw)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ContentError(
            "The scores lack something the report needs.",
            where=path,
            seen=f"{type(error).__name__}: {error}",
            expected="the keys of scores.json, schema_version 1",
            remedy="run evaluate again with this version.",
        ) from error


def read_estimate(raw: Mapping[str, Any], key: str) -> Estimate:
    """The number under `key`: plain, or a mapping with `value` or `mean`, `ci95` and `reason`.

    The interval and the reason of a plain one stand in `ci95` and `reasons`, under the same key.

    >>> read_estimate({"cpm": None, "reasons": {"cpm": "under 8 cases"}}, "cpm").reason
    'under 8 cases'
    """
    found, reason = raw.get(key), _reason(raw, key)
    if not isinstance(found, Mapping):
        intervals = raw.get("ci95")
        # in a row of a table `ci95` is the row's own interval, not one a key
        interval = read_interval(intervals.get(key)) if isinstance(intervals, Mapping) else None
        return Estimate(None if found is None else float(found), interval, reason)
    value = found.get("value", found.get("mean"))
    return Estimate(
        None if value is None else float(value),
        read_interval(found.get("ci95")),
        str(found.get("reason") or found.get("ci95_reason") or reason),
    )


def _reason(raw: Mapping[str, Any], key: str) -> str:
    reasons = raw.get("reasons") or {}
    return str(raw.get(f"{key}_reason") or reasons.get(key) or UNSTATED)


def read_interval(pair: Iterable[Any] | None) -> CI | None:
    """The two ends of an interval, None for none."""
    values = tuple(pair or ())
    if len(values) != 2 or None in values:
        return None
    return float(values[0]), float(values[1])


def _scores(raw: Mapping[str, Any]) -> Scores:
    counts = {name: int(raw[name]) for name in COUNTS}
    groups = tuple(_size_group(group) for group in raw["recall_by_size"])
    unit = str(raw.get("size_unit") or "mm")
    return Scores(
        **counts,
        evaluated_on=str(raw["evaluated_on"]),
        recall_by_size=groups,
        recall_by_half=_halves(raw, groups),
        recall_by_quantile=tuple(_size_group(g) for g in raw.get("recall_by_size_quantile") or ()),
        froc=_froc(raw.get("froc")),
        operating_point=_accepted_from(raw.get("operating_point") or {}),
        size_unit=unit.split()[0].rstrip(","),
        size_said=unit,
        split_is_group_safe=raw.get("split_is_group_safe"),
        provenance=cast(Mapping[str, Any], raw.get("provenance") or {}),
        raw=raw,
    )


COUNTS = (
    "n_cases",
    "n_groups",
    "n_lesion_free_cases",
    "n_lesions",
    "n_true_positive",
    "n_false_positive",
    "n_missed",
    "n_ignored",
)


def _size_group(group: Mapping[str, Any]) -> SizeGroup:
    upper, recall = group.get("to_mm"), group.get("recall")
    estimate = Estimate(
        None if recall is None else float(recall),
        read_interval(group.get("ci95")),
        str(group.get("reason") or group.get("ci95_reason") or UNSTATED),
    )
    return SizeGroup(
        float(group["from_mm"]),
        None if upper is None else float(upper),
        int(group["n"]),
        int(group["detected"]),
        estimate,
    )


def _halves(raw: Mapping[str, Any], groups: tuple[SizeGroup, ...]) -> tuple[SizeGroup, ...]:
    """Smaller and larger lesions; without an interval where the scores do not give them so."""
    given = tuple(_size_group(group) for group in raw.get("recall_by_half") or ())
    return given or tuple(_together(side) for side in _sides(groups) if side)


def _sides(groups: tuple[SizeGroup, ...]) -> tuple[list[SizeGroup], list[SizeGroup]]:
    small = [group for group in groups if group.from_mm < HALF_MM]
    return small, [group for group in groups if group.from_mm >= HALF_MM]


def _together(groups: list[SizeGroup]) -> SizeGroup:
    n, found = sum(g.n for g in groups), sum(g.detected for g in groups)
    recall = Estimate(found / n if n else None)
    return SizeGroup(groups[0].from_mm, groups[-1].to_mm, n, found, recall)


def _froc(raw: Mapping[str, Any] | None) -> tuple[FrocPoint, ...]:
    """The defined points of the curve by ascending rate; `()` when there is none."""
    raw = raw or {}
    rates, recalls = raw.get("fp_per_case") or (), raw.get("recall") or ()
    intervals = raw.get("ci95") or [None] * len(rates)
    beyond = raw.get("beyond_reached") or [False] * len(rates)
    points = zip(rates, recalls, intervals, beyond, strict=True)
    defined = [
        FrocPoint(float(rate), float(recall), read_interval(pair), not far)
        for rate, recall, pair, far in points
        if recall is not None
    ]
    return tuple(sorted(defined, key=lambda point: point.fp_per_case))


def _accepted_from(raw: Mapping[str, Any]) -> AcceptedFrom:
    score = raw.get("score")
    return AcceptedFrom(
        None if score is None else float(score),
        raw.get("chosen_on"),
        bool(raw.get("optimistic", False)),
    )

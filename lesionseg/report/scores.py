"""scores.json as dataclasses: every number with its interval, or with the reason it has none."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from lesionseg.errors import ContentError, ReadError
from lesionseg.io.atomic import read_json

SCHEMA_VERSION = 1
UNSTATED = "the reason is not stated"


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval; `value` or `ci95` may be None, then `reason` says why."""

    value: float | None
    ci95: tuple[float, float] | None = None
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
class Froc:
    """Lesion recall against false positives per case; one interval or None per point."""

    fp_per_case: tuple[float, ...]
    recall: tuple[float, ...]
    ci95: tuple[tuple[float, float] | None, ...]


@dataclass(frozen=True)
class AcceptedFrom:
    """The score from which candidates were accepted, and whether these cases chose it."""

    score: float | None
    chosen_on: str | None
    optimistic: bool


@dataclass(frozen=True)
class Scores:
    """What the report prints of scores.json; `raw` is the whole file."""

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
    froc: Froc | None
    operating_point: AcceptedFrom
    size_unit: str
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

    >>> read_estimate({"cpm": None, "reasons": {"cpm": "under 8 cases"}}, "cpm").reason
    'under 8 cases'
    """
    found, reason = raw.get(key), _reason(raw, key)
    if not isinstance(found, Mapping):
        return Estimate(None if found is None else float(found), None, reason)
    value = found.get("value", found.get("mean"))
    return Estimate(
        None if value is None else float(value),
        _interval(found.get("ci95")),
        str(found.get("reason") or found.get("ci95_reason") or reason),
    )


def _reason(raw: Mapping[str, Any], key: str) -> str:
    reasons = raw.get("reasons") or {}
    return str(raw.get(f"{key}_reason") or reasons.get(key) or UNSTATED)


def _interval(pair: Iterable[Any] | None) -> tuple[float, float] | None:
    values = tuple(pair or ())
    if len(values) != 2 or None in values:
        return None
    return float(values[0]), float(values[1])


def _scores(raw: Mapping[str, Any]) -> Scores:
    counts = {name: int(raw[name]) for name in COUNTS}
    return Scores(
        **counts,
        evaluated_on=str(raw["evaluated_on"]),
        recall_by_size=tuple(_size_group(group) for group in raw["recall_by_size"]),
        froc=_froc(raw.get("froc")),
        operating_point=_accepted_from(raw.get("operating_point") or {}),
        size_unit=str(raw.get("size_unit") or "mm"),
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
        _interval(group.get("ci95")),
        str(group.get("reason") or group.get("ci95_reason") or UNSTATED),
    )
    return SizeGroup(
        float(group["from_mm"]),
        None if upper is None else float(upper),
        int(group["n"]),
        int(group["detected"]),
        estimate,
    )


def _froc(raw: Mapping[str, Any] | None) -> Froc | None:
    if not raw or not raw.get("fp_per_case"):
        return None
    n = len(raw["fp_per_case"])
    intervals = raw.get("ci95") or [None] * n
    return Froc(
        tuple(float(x) for x in raw["fp_per_case"]),
        tuple(float(y) for y in raw["recall"]),
        tuple(_interval(pair) for pair in intervals),
    )


def _accepted_from(raw: Mapping[str, Any]) -> AcceptedFrom:
    score = raw.get("score")
    return AcceptedFrom(
        None if score is None else float(score),
        raw.get("chosen_on"),
        bool(raw.get("optimistic", False)),
    )

"""Rows and objects of scores.json as types: written by `statistics`, read by whoever prints."""

from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Self, get_type_hints

from lesionseg.evaluation.statistics.estimates import (
    CI,
    UNSTATED,
    Estimate,
    as_float,
    as_interval,
    as_list,
)

HALF_MM = 5.0  # lesions under it are called small
_READERS: Mapping[Any, Callable[[Any], Any]] = {
    int: int,
    str: str,
    bool: bool,
    float: float,
    float | None: as_float,
    str | None: lambda value: value,
    CI | None: lambda value: as_interval(value),
}
_NULLABLE = (float | None, str | None)


class JsonObject:
    """Base of dataclasses whose fields are the keys of a JSON object, in order.

    An `Estimate` takes its field's key for the value and the object's `ci95` and `reason`, or an
    object of its own. A field's metadata may give its key.
    """

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Self:
        """Read an object; keys that may be null, and fields with a default, may be missing.

        Raises `KeyError` for another missing key, `TypeError` or `ValueError` for a broken value.
        """
        hints, values = get_type_hints(cls), dict[str, Any]()
        for one in fields(cls):  # type: ignore[arg-type]
            key, kind = one.metadata.get("key", one.name), hints[one.name]
            if kind is Estimate:
                values[one.name] = Estimate.from_json(raw, key)
            elif key in raw or (one.default is MISSING and kind not in _NULLABLE):
                values[one.name] = _READERS[kind](raw[key])
            elif one.default is MISSING:
                values[one.name] = None
        return cls(**values)

    def to_json(self) -> dict[str, Any]:
        """The object as scores.json has it, the reason of its estimate last."""
        found: dict[str, Any] = {}
        for one in fields(self):  # type: ignore[arg-type]
            key, value = one.metadata.get("key", one.name), getattr(self, one.name)
            found |= value.to_json(key) if isinstance(value, Estimate) else {key: value}
        reason = {"reason": found.pop("reason")} if "reason" in found else {}
        return found | reason


@dataclass(frozen=True)
class SizeGroup(JsonObject):
    """Recall of the lesions of `from_mm` up to (not including) `to_mm`; None: no upper bound.

    `split`: those that several detections overlap; `merged`: those that share a detection.
    """

    from_mm: float
    to_mm: float | None
    n: int
    detected: int
    recall: Estimate
    split: int = 0
    merged: int = 0

    def holds(self, diameter_mm: float) -> bool:
        """Whether a lesion of this diameter belongs to the group."""
        return self.from_mm <= diameter_mm and (self.to_mm is None or diameter_mm < self.to_mm)


@dataclass(frozen=True)
class SizeQuality(JsonObject):
    """How well the lesions of `from_mm` up to (not including) `to_mm` are found and outlined."""

    from_mm: float
    to_mm: float | None
    panoptic_quality: Estimate
    recognition_quality: Estimate
    segmentation_quality: Estimate


@dataclass(frozen=True)
class ContrastCell(JsonObject):
    """Recall of lesions of a size and of a contrast to their surroundings, as `SizeGroup`."""

    from_mm: float
    to_mm: float | None
    contrast_from: float
    contrast_to: float | None
    n: int
    detected: int
    recall: Estimate

    @property
    def size(self) -> tuple[float, float | None]:
        """The diameters from and to."""
        return self.from_mm, self.to_mm

    @property
    def contrast(self) -> tuple[float, float | None]:
        """The contrasts from and to."""
        return self.contrast_from, self.contrast_to


@dataclass(frozen=True)
class SubgroupScores(JsonObject):
    """Cases of one value of a column, or of one range of values.

    `recall_difference`: recall here minus that of all other lesions.
    """

    by: str
    value: str
    n_cases: int
    n_groups: int
    n_lesions: int
    detected: int
    recall: Estimate
    false_positives_per_case: float | None
    dice: float | None
    false_positives_ci95: CI | None = None
    recall_difference: float | None = None
    difference_ci95: CI | None = None


@dataclass(frozen=True)
class Difference(JsonObject):
    """A number of two models on the same cases: `one`, `other`, and one minus other.

    `p_holm`: the p-value of one among many; None of the `primary` endpoint, which stands alone.
    `margin`: by how much the one may be worse in it; None: not stated.
    """

    one: float | None
    other: float | None
    difference: Estimate
    p_value: float | None
    p_holm: float | None = None
    primary: bool = False
    margin: float | None = None

    @property
    def non_inferior(self) -> bool | None:
        """Whether the whole interval lies above −margin; None without a margin or an interval."""
        if self.margin is None or self.difference.ci95 is None:
            return None
        return self.difference.ci95[0] > -self.margin


@dataclass(frozen=True)
class PartScores(JsonObject):
    """The cases judged by one label, as far as they annotate it, or one region alone.

    Older files do not state the `n_cases` of a label.
    """

    lesion_recall: Estimate
    dice: Estimate
    false_positives_per_case: Estimate
    n_cases: int = 0
    n_lesions: int = 0
    n_missed: int = 0

    @property
    def n_detected(self) -> int:
        """Lesions found at the operating point."""
        return self.n_lesions - self.n_missed


@dataclass(frozen=True)
class PointScores(JsonObject):
    """The score from which candidates were accepted, and whether these cases chose it."""

    name: str | None
    score: float | None
    chosen_on: str | None
    optimistic: bool = False


@dataclass(frozen=True)
class CalibrationBin(JsonObject):
    """Candidates whose stated chance lies in `[start, stop)`: how many, and how many are lesions.

    `mean_probability`: the mean of the stated chances; `true_share`: of those that are lesions.
    """

    start: float = field(metadata={"key": "from"})
    stop: float = field(metadata={"key": "to"})
    n: int
    mean_probability: float
    true_share: float


@dataclass(frozen=True)
class CalibrationScores:
    """How well stated chances hold; `of` is what was taken for a chance: probability or score."""

    of: str
    bins: tuple[CalibrationBin, ...]
    numbers: Mapping[str, Estimate]

    @property
    def n(self) -> int:
        """Candidates in all bins."""
        return sum(one.n for one in self.bins)

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> "CalibrationScores | None":
        """Read `calibration`; None without a reliability curve."""
        if not raw.get("reliability"):
            return None
        names = ("slope", "intercept", "observed_expected", "ece", "ece_if_perfect", "brier")
        known = (name for name in names if raw.get(name) is not None)
        numbers = {name: Estimate.from_json(raw, name) for name in known}
        bins = tuple(map(CalibrationBin.from_json, raw["reliability"]))
        return cls(str(raw.get("of") or "score"), bins, numbers)


@dataclass(frozen=True)
class SizeCurveScores:
    """Chance of being found along the diameter, with its intervals (None: none there).

    `intercept` and `slope` are the fit's, `d50` and `d90` the diameters found with 50 and 90 %
    probability; all without a value, and no diameters, where no curve could be fitted. One without
    a value lies `above` or `below` all of `observed_mm` (`d50_outside`, `d90_outside`); an end of
    an interval that is an end of `observed_mm` may lie beyond.
    """

    intercept: float | None
    slope: float | None
    d50: Estimate
    d90: Estimate
    observed_mm: CI | None = None
    diameters_mm: tuple[float, ...] = ()
    recall: tuple[float, ...] = ()
    ci95: tuple[CI | None, ...] = ()
    reason: str | None = None
    d50_outside: str | None = None
    d90_outside: str | None = None

    def to_json(self) -> dict[str, Any]:
        """`size_curve` of scores.json."""
        return {
            "intercept": self.intercept,
            "slope": self.slope,
            "d50_mm": self.d50.value,
            "d90_mm": self.d90.value,
            "d50_ci95": as_list(self.d50.ci95),
            "d90_ci95": as_list(self.d90.ci95),
            **({"d50_outside": self.d50_outside} if self.d50_outside else {}),
            **({"d90_outside": self.d90_outside} if self.d90_outside else {}),
            **({"observed_mm": list(self.observed_mm)} if self.observed_mm else {}),
            "diameters_mm": list(self.diameters_mm),
            "recall": list(self.recall),
            "ci95": [as_list(pair) for pair in self.ci95],
            **({"reason": self.reason} if self.reason else {}),
        }

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> "SizeCurveScores | None":
        """Read `size_curve`; None where no curve could be fitted."""
        diameters = tuple(map(float, raw.get("diameters_mm") or ()))
        if not diameters:
            return None
        reason = str(raw.get("reason") or UNSTATED)
        d50, d90 = (
            Estimate(as_float(raw.get(f"{name}_mm")), as_interval(raw.get(f"{name}_ci95")), reason)
            for name in ("d50", "d90")
        )
        return cls(
            as_float(raw.get("intercept")),
            as_float(raw.get("slope")),
            d50,
            d90,
            as_interval(raw.get("observed_mm")),
            diameters,
            tuple(map(float, raw["recall"])),
            tuple(map(as_interval, raw.get("ci95") or [None] * len(diameters))),
            reason,
            raw.get("d50_outside"),
            raw.get("d90_outside"),
        )

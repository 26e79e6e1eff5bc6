"""The parts of scores.json as types: written by `evaluation`, read by whoever prints them."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Self, get_type_hints

from lesionseg.evaluation.presets import FIRST_RULE
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
    """Cases of one value of a column, or of one range of values."""

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


@dataclass(frozen=True)
class Difference(JsonObject):
    """A number of two models on the same cases: `one`, `other`, and one minus other.

    `p_holm`: the p-value of one among many; None of the `primary` endpoint, which stands alone.
    """

    one: float | None
    other: float | None
    difference: Estimate
    p_value: float | None
    p_holm: float | None = None
    primary: bool = False


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


@dataclass(frozen=True)
class FrocPoint:
    """Lesion recall at a rate of false positives; `reached` is False beyond the last candidate."""

    fp_per_case: float
    recall: float
    ci95: CI | None
    reached: bool


def read_froc(raw: Mapping[str, Any] | None) -> tuple[FrocPoint, ...]:
    """The defined points of `froc` by ascending rate; `()` when there is none."""
    raw = raw or {}
    rates, recalls = raw.get("fp_per_case") or (), raw.get("recall") or ()
    intervals = raw.get("ci95") or [None] * len(rates)
    beyond = raw.get("beyond_reached") or [False] * len(rates)
    points = zip(rates, recalls, intervals, beyond, strict=True)
    defined = (
        FrocPoint(float(rate), float(recall), as_interval(pair), not far)
        for rate, recall, pair, far in points
        if recall is not None
    )
    return tuple(sorted(defined, key=lambda point: point.fp_per_case))


@dataclass(frozen=True)
class Details:
    """The further numbers; None or empty where an evaluation has none.

    `reasons` says by key of scores.json why one is not there. `differences` are by the key of
    their number, `regions` by name.
    """

    size_curve: SizeCurveScores | None
    calibration: CalibrationScores | None
    subgroups: tuple[SubgroupScores, ...]
    cells: tuple[ContrastCell, ...]
    differences: Mapping[str, Difference]
    regions: Mapping[str, PartScores]
    reasons: Mapping[str, str]

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> "Details":
        """Whatever of it a scores.json has; errors as those of `JsonObject.from_json`.

        >>> Details.from_json({"calibration": {"reason": "no scores"}}).reasons["calibration"]
        'no scores'
        """
        keys = ("size_curve", "calibration", "subgroups", "recall_by_size_and_contrast")
        return cls(
            SizeCurveScores.from_json(raw.get("size_curve") or {}),
            CalibrationScores.from_json(raw.get("calibration") or {}),
            tuple(map(SubgroupScores.from_json, raw.get("subgroups") or ())),
            tuple(map(ContrastCell.from_json, raw.get("recall_by_size_and_contrast") or ())),
            {
                key: Difference.from_json(row)
                for key, row in (raw.get("comparison") or {}).items()
                if isinstance(row, Mapping) and {"one", "other", "difference"} <= set(row)
            },
            _parts(raw.get("per_region")),
            {key: _why_absent(raw, key) for key in keys},
        )


def _why_absent(raw: Mapping[str, Any], key: str) -> str:
    own = raw[key].get("reason") if isinstance(raw.get(key), Mapping) else None
    return own or (raw.get("reasons") or {}).get(key) or UNSTATED


def _parts(raw: Mapping[str, Any] | None) -> dict[str, PartScores]:
    found = (raw or {}).items()
    return {name: PartScores.from_json(one) for name, one in found if isinstance(one, Mapping)}


@dataclass(frozen=True)
class Scores:
    """What is read of scores.json; `raw` is the whole file.

    `recall_by_half`: the lesions under 5 mm and those of 5 mm or more; `recall_by_quantile`: in
    groups of about as many lesions. `size_unit` is short, such as mm; `size_said` may add where it
    was measured, such as mm at the detector.
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
    operating_point: PointScores
    labels: Mapping[str, PartScores]
    size_said: str
    split_is_group_safe: bool | None
    provenance: Mapping[str, Any]
    raw: Mapping[str, Any]

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> "Scores":
        """Read a whole scores.json; errors as those of `JsonObject.from_json`."""
        counts = {name: int(raw[name]) for name in cls.__annotations__ if name.startswith("n_")}
        groups = _groups(raw["recall_by_size"])
        return cls(
            **counts,
            evaluated_on=str(raw["evaluated_on"]),
            recall_by_size=groups,
            recall_by_half=_groups(raw.get("recall_by_half")) or in_halves(groups),
            recall_by_quantile=_groups(raw.get("recall_by_size_quantile")),
            froc=read_froc(raw.get("froc")),
            operating_point=PointScores.from_json(raw.get("operating_point") or {}),
            labels=_parts(raw.get("per_label")),
            size_said=str(raw.get("size_unit") or "mm"),
            split_is_group_safe=raw.get("split_is_group_safe"),
            provenance=raw.get("provenance") or {},
            raw=raw,
        )

    def estimate(self, key: str) -> Estimate:
        """The number stored under `key`, in any of the shapes the contract allows."""
        return Estimate.from_json(self.raw, key)

    @property
    def size_unit(self) -> str:
        """What lengths are, in short."""
        return self.size_said.split()[0].rstrip(",")

    @property
    def n_detected(self) -> int:
        """Lesions found at the operating point."""
        return self.n_lesions - self.n_missed

    @property
    def median_dice(self) -> float | None:
        """Median Dice over the cases with a reference lesion, None when not defined."""
        return as_float((self.raw.get("dice") or {}).get("median"))

    @property
    def n_touching(self) -> int:
        """False positives that touch some lesion without matching it."""
        return int((self.raw.get("false_positives") or {}).get("touching_lesion") or 0)

    @property
    def other_rules(self) -> Mapping[str, Mapping[str, Any]]:
        """The numbers under other rules of what found means, by the rule's name."""
        return self.raw.get("other_criteria") or {}

    def recall_under(self, rule: str) -> float | None:
        """Recall under another rule."""
        return Estimate.from_json(self.other_rules.get(rule) or {}, "lesion_recall").value

    def false_positives_under(self, rule: str) -> float | None:
        """False positives per case under another rule."""
        return as_float((self.other_rules.get(rule) or {}).get("false_positives_per_case"))

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
        """Name of the preset."""
        preset = self.raw.get("preset") or "not stated"
        return str(preset.get("name", "not stated") if isinstance(preset, Mapping) else preset)

    @property
    def match_rule(self) -> str:
        """The match rule with its version; files of schema 1 by default have version 1's."""
        named = FIRST_RULE if self.preset == "lesionseg" else self.preset
        return str(self.raw.get("match_rule") or named)


def _groups(rows: Iterable[Mapping[str, Any]] | None) -> tuple[SizeGroup, ...]:
    return tuple(map(SizeGroup.from_json, rows or ()))


def in_halves(groups: Iterable[SizeGroup]) -> tuple[SizeGroup, ...]:
    """The groups under 5 mm as one and those above as another, without intervals.

    For a scores.json that does not hold them: resampling needs the cases.
    """
    parts = list(groups)
    small = [group for group in parts if group.from_mm < HALF_MM]
    large = [group for group in parts if group.from_mm >= HALF_MM]
    return tuple(_together(half) for half in (small, large) if half)


def _together(groups: list[SizeGroup]) -> SizeGroup:
    n, detected = sum(g.n for g in groups), sum(g.detected for g in groups)
    recall = Estimate(detected / n if n else None, None, UNSTATED)
    return SizeGroup(groups[0].from_mm, groups[-1].to_mm, n, detected, recall)

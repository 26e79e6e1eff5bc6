"""scores.json as a type: written by `evaluation`, read by whoever prints it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lesionseg.evaluation.presets import FIRST_RULE
from lesionseg.evaluation.statistics.estimates import (
    CI,
    UNSTATED,
    Estimate,
    as_float,
    as_interval,
)
from lesionseg.evaluation.statistics.score_parts import (
    HALF_MM,
    CalibrationScores,
    ContrastCell,
    Difference,
    PartScores,
    PointScores,
    SizeCurveScores,
    SizeGroup,
    SizeQuality,
    SubgroupScores,
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
    quality: tuple[SizeQuality, ...]
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
            tuple(map(SizeQuality.from_json, raw.get("quality_by_size") or ())),
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
class SecondReader:
    """Another reader judged against the reference, on the `n_cases` cases that he read."""

    n_cases: int
    lesion_recall: Estimate
    false_positives_per_case: Estimate
    recall_by_size: tuple[SizeGroup, ...]
    recall_by_half: tuple[SizeGroup, ...]

    @classmethod
    def from_json(cls, raw: Mapping[str, Any] | None) -> "SecondReader | None":
        """Read `second_reader`; None without one."""
        if not raw:
            return None
        return cls(
            int(raw["n_cases"]),
            Estimate.from_json(raw, "lesion_recall"),
            Estimate.from_json(raw, "false_positives_per_case"),
            _groups(raw["recall_by_size"]),
            _groups(raw["recall_by_half"]),
        )


@dataclass(frozen=True)
class Scores:
    """What is read of scores.json; `raw` is the whole file.

    `recall_by_half`: the lesions under 5 mm and those of 5 mm or more; `recall_by_quantile`: in
    groups of about as many lesions; `recall_by_long_axis`: by that in place of the diameter.
    `size_unit` is short, such as mm; `size_said` may add where it was measured, such as mm at the
    detector.
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
    recall_by_long_axis: tuple[SizeGroup, ...]
    froc: tuple[FrocPoint, ...]
    operating_point: PointScores
    labels: Mapping[str, PartScores]
    second_reader: SecondReader | None
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
            recall_by_long_axis=_groups(raw.get("recall_by_long_axis")),
            froc=read_froc(raw.get("froc")),
            operating_point=PointScores.from_json(raw.get("operating_point") or {}),
            labels=_parts(raw.get("per_label")),
            second_reader=SecondReader.from_json(raw.get("second_reader")),
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

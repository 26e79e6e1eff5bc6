"""The types of scores.json, which contains every number of an evaluation.

The names of fields are the keys of the file, in the order of the file. An undefined number is None
(`null` in the file), and `reason` states why. docs/evaluation.md describes the numbers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError

from lesionseg.core import Aim
from lesionseg.errors import ConfigError, ContentError, ReadError, describe_misfits
from lesionseg.evaluation.intervals import CI, Estimate
from lesionseg.io.files import read_json

SCHEMA_VERSION = 3
SCORES_FILE = "scores.json"
SECOND_MODEL = "compare"  # folder of a second model's scores, in that of the first one's
DEVELOPMENT_ROLES = ("train", "validation")
PERCENT_OF_WIDTH = "% of the image width"  # the unit of sizes if an image has no pixel size
# keys that are left out of the file if they have no value
_OPTIONAL_KEYS = frozenset(
    {
        "reason",
        "is_default",
        "expected_false_positives_per_case",
        "confidence",
        "n_cases",
        "n_patients",
        "n_false_positives",
        "p_holm",
        "failed_cases",
        "comparison",
        "adjudication",
    }
)


_UNSTATED = Estimate(None)


@dataclass(frozen=True, kw_only=True)
class MeanEstimate:
    """The mean over the cases with a defined value, its 95 % interval, and the median."""

    mean: float | None = None
    ci95: CI | None = None
    reason: str | None = None
    median: float | None = None
    n: int = 0

    @property
    def value(self) -> float | None:
        """The mean, under the name that a single number has."""
        return self.mean


@dataclass(frozen=True, kw_only=True)
class SurfaceDice(MeanEstimate):
    """The mean surface Dice. `tolerance_mm`: distance up to which surfaces agree."""

    tolerance_mm: float = 1.0


@dataclass(frozen=True, kw_only=True)
class SurfaceDistance(MeanEstimate):
    """The mean HD95. `n_undefined`: cases with a lesion, but without a surface to measure from."""

    n_undefined: int = 0


@dataclass(frozen=True, kw_only=True)
class Froc:
    """Recall at each of several rates of false positives per case. None without scores."""

    fp_per_case: tuple[float, ...] = ()
    recall: tuple[float | None, ...] | None = ()
    ci95: tuple[CI | None, ...] | None = ()
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class BoxPrecision:
    """Average precision of bounding boxes as in COCO, the mean over all labels with a lesion.

    `average_precision` and `ci95` are its values at each of `iou`, None without scores. `ap_40`
    and `ap_50` are those at 0.4 and 0.5. `ap_40_75` and `ap_50_95` are means over this range of
    IoUs. `rsna_score` is TP / (TP + FP + FN) of the accepted candidates, the mean over the IoUs
    from 0.4 to 0.75 and then over the cases.

    The `max_per_case` candidates with the highest scores in each case and label take part.
    `n_left_out` is the number of the remaining ones.
    """

    iou: tuple[float, ...] = ()
    average_precision: tuple[float | None, ...] | None = None
    ci95: tuple[CI | None, ...] | None = None
    reason: str | None = None
    ap_40: Estimate = _UNSTATED
    ap_50: Estimate = _UNSTATED
    ap_40_75: Estimate = _UNSTATED
    ap_50_95: Estimate = _UNSTATED
    rsna_score: Estimate = _UNSTATED
    max_per_case: int = 100
    n_left_out: int = 0


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Mean of predicted minus reference values of `n` cases, and the limits of agreement."""

    n: int = 0
    bias: Estimate = _UNSTATED
    lower_limit: Estimate = _UNSTATED
    upper_limit: Estimate = _UNSTATED


@dataclass(frozen=True, kw_only=True)
class LesionLoad:
    """Agreement of the lesion volume and of the number of lesions by case."""

    volume_ml: Agreement = Agreement()
    n_lesions: Agreement = Agreement()


@dataclass(frozen=True, kw_only=True)
class SizeClass:
    """Recall of lesions with a diameter in `[from_mm, to_mm)`. The last class has `to_mm` None.

    The bounds, and all sizes of `SizeCurve`, are in `size_unit` of the scores.
    """

    from_mm: float
    to_mm: float | None
    n: int
    detected: int
    recall: float | None
    ci95: CI | None
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class SizeCurve:
    """A logistic curve: P(found) = 1 / (1 + exp(−(intercept + slope·ln diameter))).

    `recall` and `ci95` are its values at `diameters_mm`. Lesions of the diameter `d50_mm` are found
    with a probability of 50 %, those of `d90_mm` with 90 %.
    """

    intercept: float
    slope: float
    d50_mm: Estimate
    d90_mm: Estimate
    observed_mm: tuple[float, float]
    diameters_mm: tuple[float, ...]
    recall: tuple[float | None, ...]
    ci95: tuple[CI | None, ...]
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class NoSizeCurve:
    """The reason why no curve could be fitted."""

    slope: None = None
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class ReliabilityBin:
    """The candidates with a probability in `[from_, to)`, and the share of true positives."""

    from_: Annotated[float, Field(alias="from")]  # `from` is a keyword of Python
    to: float
    n: int
    mean_probability: float
    true_share: float


@dataclass(frozen=True, kw_only=True)
class CalibrationScores:
    """Agreement of the candidates' probabilities, or of their scores, with the outcomes."""

    of: Literal["probability", "score"]
    n: int
    brier: float
    slope: float
    observed_expected: float | None
    reliability: tuple[ReliabilityBin, ...]


@dataclass(frozen=True, kw_only=True)
class NoCalibration:
    """The reason why the calibration of scored candidates is undefined."""

    of: None
    reason: str


@dataclass(frozen=True, kw_only=True)
class Unscored:
    """The reason why candidates without scores have no calibration."""

    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class PointInUse:
    """The operating point that decided which candidates were accepted.

    `name` and `score` are None if the prediction's own accepted candidates were taken.
    `optimistic`: the point was chosen on these cases, or the program was developed on them.
    The other fields are those of `core.OperatingPoint`.
    """

    name: str | None = None
    score: float | None = None
    chosen_on: str | None = None
    optimistic: bool = False
    reason: str | None = None
    is_default: bool = False
    expected_false_positives_per_case: float | None = None
    confidence: float | None = None
    n_cases: int | None = None
    n_patients: int | None = None
    n_false_positives: int | None = None

    @property
    def aim(self) -> Aim | None:
        """The aim of the point. None if its name is not a known aim."""
        try:
            return None if self.name is None else Aim.parse(self.name)
        except ConfigError:
            return None


@dataclass(frozen=True, kw_only=True)
class CriterionScores:
    """Recall and false positives of the accepted candidates under one match criterion."""

    lesion_recall: Estimate
    false_positives_per_case: Estimate


@dataclass(frozen=True, kw_only=True)
class Subgroup:
    """The numbers of the cases with one value of a column, or of the lesions in one zone."""

    by: str
    value: str
    n_cases: int
    n_groups: int
    n_lesions: int
    n_detected: int
    lesion_recall: Estimate
    false_positives_per_case: Estimate
    dice: float | None


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Numbers of cases, groups, lesions and candidates."""

    n_cases: int
    n_groups: int
    n_lesion_free_cases: int
    n_lesions: int
    n_candidates: int
    n_true_positive: int
    n_false_positive: int
    n_missed: int


@dataclass(frozen=True, kw_only=True)
class LabelScores(Counts):
    """The numbers of one label, or of one region."""

    dice: MeanEstimate
    lesion_recall: Estimate
    lesion_precision: Estimate
    false_positives_per_case: Estimate
    average_precision: Estimate
    box_precision: BoxPrecision = BoxPrecision()


@dataclass(frozen=True, kw_only=True)
class FailedCase:
    """A case that could not be scored, and the reason."""

    case: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A number of two models on the same cases, and their difference `one − other`.

    `p_holm`: the p-value, corrected for the number of all secondary measures (Holm).
    """

    one: float | None
    other: float | None
    difference: float | None
    ci95: CI | None
    reason: str | None = None
    p_value: float | None = None
    p_holm: float | None = None


@dataclass(frozen=True, kw_only=True)
class PrimaryDifference(Difference):
    """The difference of the primary measure, whose p-value is not corrected.

    `not_inferior`: True if the interval is above `−margin`. None without a margin or an interval.
    """

    primary: Literal[True]
    margin: float | None = None
    not_inferior: bool | None = None


@dataclass(frozen=True, kw_only=True)
class AdjudicatedNumbers:
    """The main numbers by the reference, without or with the lesions that a reader confirmed."""

    n_lesions: int
    n_false_positive: int
    lesion_recall: Estimate
    lesion_precision: Estimate
    false_positives_per_case: Estimate


@dataclass(frozen=True, kw_only=True)
class Adjudication:
    """The answers of a reader to the false positives, and both sets of numbers.

    `n_open`: false positives without an answer. `n_stale`: answers about candidates that are not
    false positives any more, or that have moved.
    """

    n_lesion: int
    n_no_lesion: int
    n_unsure: int
    n_open: int
    n_stale: int
    by_reference: AdjudicatedNumbers
    adjudicated: AdjudicatedNumbers


@dataclass(frozen=True)
class Provenance:
    """The origin of scores: versions, hashes, data and model.

    `stated` is the content of the file. The properties give access to the keys that the library
    uses.
    """

    stated: Mapping[str, Any]

    def states(self, key: str) -> bool:
        """Return True if the file has the key, even if its value is null."""
        return key in self.stated

    def _text(self, key: str) -> str:
        """Return a text of the file, empty if it is not stated."""
        return str(self.stated.get(key) or "")

    def _count(self, key: str) -> int | None:
        """Return a number of the file, None if it is not stated."""
        value = self.stated.get(key)
        return value if isinstance(value, int) else None

    @property
    def dataset(self) -> str:
        """The name of the dataset, empty if it is not stated."""
        return self._text("dataset")

    @property
    def date(self) -> str:
        """The day of the evaluation, such as 2026-01-31."""
        return self._text("date")

    @property
    def model(self) -> str:
        """The architecture."""
        return self._text("model")

    @property
    def bundle(self) -> str:
        """The digest of the bundle that made the predictions."""
        return self._text("bundle")

    @property
    def version(self) -> str:
        """The version of lesionseg."""
        return self._text("lesionseg")

    @property
    def commit(self) -> str:
        """The commit of lesionseg."""
        return self._text("git_commit")

    @property
    def scored_part(self) -> str:
        """The part of the lesions that was scored, empty if all were."""
        return self._text("scored")

    @property
    def simulated(self) -> bool:
        """True if the scans are simulated."""
        return bool(self.stated.get("simulated"))

    @property
    def of_training(self) -> bool:
        """True if `train` wrote the scores."""
        return self.states("training_steps") or self.states("folds")

    @property
    def training_patients(self) -> int | None:
        """Number of patients in the training cases."""
        return self._count("training_patients")

    @property
    def training_scans(self) -> int | None:
        """Number of training cases."""
        return self._count("training_scans")

    @property
    def min_readers(self) -> int | None:
        """The number of readers who must have marked a reference lesion, None for the default."""
        return self._count("min_readers")

    @property
    def merges_labels(self) -> bool:
        """True if all labels of the references were merged into one."""
        return bool(self.stated.get("merge_labels"))

    @property
    def training_steps(self) -> int | None:
        """Number of training steps, of all networks together."""
        return self._count("training_steps")

    @property
    def n_networks(self) -> int:
        """Number of networks, of which a cross-validation trains one per fold."""
        return self._count("folds") or 1

    @property
    def training_minutes(self) -> float:
        """Duration of the training in minutes, 0 if it is not stated."""
        return float(self.stated.get("training_minutes") or 0.0)

    @property
    def rule_threshold(self) -> float | None:
        """The threshold of the match criterion."""
        preset = self.stated.get("preset") or {}
        value = (preset.get("criterion") or {}).get("threshold")
        return None if value is None else float(value)

    @property
    def rule_assignment(self) -> str:
        """The way in which the match criterion assigns candidates to lesions; "" if unknown."""
        preset = self.stated.get("preset") or {}
        return str((preset.get("criterion") or {}).get("assignment", ""))


def _as_provenance(content: object) -> object:
    """Wrap the content of the key `provenance` in the form of `Provenance`."""
    return {"stated": content} if isinstance(content, Mapping) else content


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """The role of the evaluated cases, and the preset of the match rule."""

    schema_version: int = SCHEMA_VERSION
    evaluated_on: str = "unknown"
    preset: str = "lesionseg"


@dataclass(frozen=True, kw_only=True)
class Scores(Counts, Evaluated):
    """Every number of an evaluation, as in scores.json.

    A number that is missing in a file of an earlier version is undefined, without a reason.
    `image_axes` are the numbers of axes that occur among the images, such as `(2,)`.
    `failed_cases`, `comparison` and `adjudication` are None if the evaluation has none.
    """

    image_axes: tuple[int, ...] = ()
    dice: MeanEstimate = MeanEstimate()
    surface_dice: SurfaceDice = SurfaceDice()
    hd95_mm: SurfaceDistance = SurfaceDistance()
    lesion_recall: Estimate = _UNSTATED
    lesion_precision: Estimate = _UNSTATED
    lesion_f1: Estimate = _UNSTATED
    false_positives_per_case: Estimate = _UNSTATED
    false_positives_per_lesion_free_case: Estimate = _UNSTATED
    specificity: Estimate = _UNSTATED
    cpm: Estimate = _UNSTATED
    average_precision: Estimate = _UNSTATED
    case_auroc: Estimate = _UNSTATED
    panoptic_quality: Estimate = _UNSTATED
    froc: Froc = Froc()
    box_precision: BoxPrecision = BoxPrecision()
    lesion_load: LesionLoad = LesionLoad()
    recall_by_size: tuple[SizeClass, ...] = ()
    size_curve: SizeCurve | NoSizeCurve = NoSizeCurve()
    size_unit: str = "mm"
    calibration: CalibrationScores | NoCalibration | Unscored = Unscored()
    operating_point: PointInUse = PointInUse()
    other_criteria: Mapping[str, CriterionScores] = field(default_factory=dict)
    subgroups: tuple[Subgroup, ...] = ()
    per_label: Mapping[str, LabelScores] = field(default_factory=dict)
    split_is_group_safe: bool | None = None
    missing_predictions: tuple[str, ...] = ()
    provenance: Annotated[Provenance, BeforeValidator(_as_provenance)] = Provenance({})
    failed_cases: tuple[FailedCase, ...] | None = None
    comparison: Mapping[str, PrimaryDifference | Difference] | None = None
    adjudication: Adjudication | None = None

    @property
    def is_point_chosen_here(self) -> bool:
        """True if the operating point was chosen on these cases, and they are test cases."""
        chosen_on = (self.operating_point.chosen_on or "").split("+")
        is_chosen_on_others = not any(role and role not in DEVELOPMENT_ROLES for role in chosen_on)
        if is_chosen_on_others or self.evaluated_on in DEVELOPMENT_ROLES:
            return False
        return self.operating_point.optimistic

    @property
    def has_boxes(self) -> bool:
        """True if boxes are what matters: the images have two axes, or no case has masks."""
        return self.image_axes == (2,) or (self.n_lesions > 0 and self.dice.mean is None)

    def measures(self) -> dict[str, int | Estimate | MeanEstimate]:
        """Return the numbers that concern all cases by their keys, in the order of the file.

        The average precision of boxes is left out for masks of three axes.
        """
        boxes: dict[str, Estimate] = {}
        if self.has_boxes:
            boxes = {
                "ap_40": self.box_precision.ap_40,
                "ap_50": self.box_precision.ap_50,
                "ap_40_75": self.box_precision.ap_40_75,
                "ap_50_95": self.box_precision.ap_50_95,
                "rsna_score": self.box_precision.rsna_score,
            }
        return {
            "n_cases": self.n_cases,
            "n_groups": self.n_groups,
            "n_lesion_free_cases": self.n_lesion_free_cases,
            "n_lesions": self.n_lesions,
            "n_candidates": self.n_candidates,
            "n_true_positive": self.n_true_positive,
            "n_false_positive": self.n_false_positive,
            "n_missed": self.n_missed,
            "dice": self.dice,
            "surface_dice": self.surface_dice,
            "hd95_mm": self.hd95_mm,
            "lesion_recall": self.lesion_recall,
            "lesion_precision": self.lesion_precision,
            "lesion_f1": self.lesion_f1,
            "false_positives_per_case": self.false_positives_per_case,
            "false_positives_per_lesion_free_case": self.false_positives_per_lesion_free_case,
            "specificity": self.specificity,
            "cpm": self.cpm,
            "average_precision": self.average_precision,
            "case_auroc": self.case_auroc,
            "panoptic_quality": self.panoptic_quality,
            **boxes,
        }

    def to_json(self) -> dict[str, Any]:
        """Return the content of scores.json."""
        content = _plain(self)
        assert isinstance(content, dict)  # noqa: S101
        return content

    @classmethod
    def from_json(cls, content: object, where: str | Path = SCORES_FILE) -> "Scores":
        """Build scores from the content of a scores.json.

        Args:
            content: The JSON of the file.
            where: The file's name for messages.

        Raises:
            ContentError: if a value does not fit its key, or the counts are missing.
        """
        if not isinstance(content, Mapping) or "n_lesions" not in content:
            raise ContentError(
                f"{where}: the key n_lesions is missing, so this is not a scores.json of evaluate. "
                "Run evaluate again."
            )
        try:
            return _ADAPTER.validate_python(dict(content))
        except ValidationError as error:
            raise ContentError(
                f"{where}: {describe_misfits(error, content)}. Run evaluate again."
            ) from error


_ADAPTER = TypeAdapter(Scores)


def read_scores(path: Path) -> Scores:
    """Read a scores.json.

    Args:
        path: The file.

    Returns:
        The scores.

    Raises:
        ReadError: if the file does not exist or is not JSON.
        ContentError: if a value does not fit its key, or the counts are missing.
    """
    if not path.is_file():
        raise ReadError(
            f"{path}: this file does not exist. Run evaluate first and give its output."
        )
    return Scores.from_json(read_json(path), path)


def read_provenance(path: Path) -> Provenance:
    """Read the provenance of a scores.json. It is empty if the file does not exist.

    Raises:
        ReadError: if the file is not JSON.
    """
    content = read_json(path) if path.is_file() else None
    stated = content.get("provenance") if isinstance(content, Mapping) else None
    return Provenance(stated if isinstance(stated, Mapping) else {})


def _is_unset(value: object) -> bool:
    """Return True if an optional key is left out: for None, and for a flag that is False.

    The number 0 equals False in Python, but it is a value and is written.
    """
    return value is None or value is False


def _plain(value: object) -> object:
    """Convert a value to JSON. Optional keys without a value are left out."""
    if isinstance(value, Provenance):
        return dict(value.stated)
    if is_dataclass(value):
        return {
            one.name.removesuffix("_"): _plain(getattr(value, one.name))
            for one in fields(value)
            if not (one.name in _OPTIONAL_KEYS and _is_unset(getattr(value, one.name)))
        }
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value

"""Operating points: the lowest score of an accepted candidate, and the aim it is chosen for."""

from dataclasses import dataclass
from typing import Literal

from lesionseg.errors import ConfigError

AimKind = Literal["auto", "best_f1", "fp_per_case", "sensitivity", "score"]
_WITHOUT_VALUE: tuple[AimKind, ...] = ("auto", "best_f1")
_WITH_VALUE: tuple[AimKind, ...] = ("fp_per_case", "sensitivity", "score")
_ADVICE = "Write auto, best_f1, fp_per_case:1, sensitivity:0.9 or score:0.5, with your own number"


@dataclass(frozen=True)
class Aim:
    """The aim that the score of an operating point is chosen for.

    `auto`: the default rule (`evaluation.operating_point_choice.default_rate`). `best_f1`: the
    highest F1 of lesions. `fp_per_case`: `value` false positives per case. `sensitivity`: a
    lesion recall of `value`. `score`: the score `value` itself.
    """

    kind: AimKind
    value: float = 0.0

    @classmethod
    def parse(cls, text: str | float) -> "Aim":
        """Parse an aim such as `fp_per_case:1` or `best_f1`.

        Raises:
            ConfigError: if the text is not an aim, such as a number without a kind. A rate must be
                from 0 to 10⁶, any other number from 0 to 1.

        >>> Aim.parse("fp_per_case:0.50")
        Aim(kind='fp_per_case', value=0.5)
        >>> str(Aim.parse("best_f1"))
        'best_f1'
        """
        name, colon, number = str(text).strip().partition(":")
        name = name.strip()
        if not colon:
            for kind in _WITHOUT_VALUE:
                if name == kind:
                    return cls(kind)
        value = _parse_number(number)
        for kind in _WITH_VALUE:
            highest = 1e6 if kind == "fp_per_case" else 1
            if name == kind and value is not None and 0 <= value <= highest:
                return cls(kind, value)
        hint = ""
        if not colon:  # perhaps a number without a kind
            score = _parse_number(name)
            if score is not None and 0 <= score <= 1:
                hint = f" Did you mean score:{name}?"
        raise ConfigError(
            f"operating_point={text}: this is not an operating point.{hint} {_ADVICE}."
        )

    def __str__(self) -> str:
        if self.kind in _WITHOUT_VALUE:
            return self.kind
        return f"{self.kind}:{self.value:.10g}"


def _parse_number(text: str) -> float | None:
    """Convert a text to a number; return None if it is not a number."""
    try:
        return float(text)
    except ValueError:
        return None


@dataclass(frozen=True)
class OperatingPoint:
    """The lowest score of an accepted candidate, and the aim that it was chosen for.

    Attributes:
        name: the aim as text (`str(Aim)`), as in files.
        score: candidates with this score or a higher one are accepted.
        chosen_on: role of the cases that it was chosen on, such as `validation` or `out-of-fold`.
            Several roles are joined by `+`. None for a score given by hand, or if the cases have
            no role.
        lesion_recall: lesion recall of those cases.
        false_positives_per_case: rate of false positives in those cases.
        lesion_recall_ci95: 95 % confidence interval of the recall for patients like these.
        false_positives_per_case_ci95: the same for false positives per case.
        expected_false_positives_per_case: mean rate to expect in new cases.
        attainable_recall: highest recall that any score reaches. None without lesions.
        confidence: probability that an equal number of new cases has at most the false positives
            per case of the aim. None if no probability was requested, or if it cannot be kept.
        lesion_f1: F1 of the lesions of those cases.
        is_default: True if the default rule (`auto`) chose the aim.
        n_cases: number of cases that it was chosen on. None if unknown or not chosen.
        n_patients: number of their patients.
        n_false_positives: number of false positives in those cases.
    """

    name: str
    score: float
    chosen_on: str | None = None
    lesion_recall: float | None = None
    false_positives_per_case: float | None = None
    lesion_recall_ci95: tuple[float, float] | None = None
    false_positives_per_case_ci95: tuple[float, float] | None = None
    expected_false_positives_per_case: float | None = None
    attainable_recall: float | None = None
    confidence: float | None = None
    lesion_f1: float | None = None
    is_default: bool = False
    n_cases: int | None = None
    n_patients: int | None = None
    n_false_positives: int | None = None

    @property
    def aim(self) -> Aim:
        """The aim, parsed from the name. Raises `ConfigError` if the name is not an aim."""
        return Aim.parse(self.name)

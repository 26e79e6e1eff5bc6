"""Operating points: the score from which a candidate is accepted, and its aim."""

from dataclasses import dataclass
from typing import Literal

from lesionseg.errors import ConfigError

AimKind = Literal["auto", "best_f1", "fp_per_case", "sensitivity", "score"]
_WITHOUT_VALUE: tuple[AimKind, ...] = ("auto", "best_f1")
_WITH_VALUE: tuple[AimKind, ...] = ("fp_per_case", "sensitivity", "score")
_HOW = "Write auto, best_f1, fp_per_case:1, sensitivity:0.9 or score:0.5, or another number"


@dataclass(frozen=True)
class Aim:
    """The aim of an operating point: what its score is chosen for.

    `auto`: the default rule (`evaluation.operating_point_choice.default_rate`). `best_f1`: the
    highest F1 of lesions. `fp_per_case`: a rate `value` of false positives per case. `sensitivity`:
    a share `value` of the lesions found. `score`: the score `value` itself.
    """

    kind: AimKind
    value: float = 0.0

    @classmethod
    def parse(cls, text: str | float) -> "Aim":
        """Read an aim as users write it, such as `fp_per_case:1` or `best_f1`.

        Raises:
            ConfigError: if the text names no aim, or a number that is out of range.

        >>> Aim.parse("fp_per_case:0.50")
        Aim(kind='fp_per_case', value=0.5)
        >>> str(Aim.parse("best_f1"))
        'best_f1'
        """
        kind, colon, number = str(text).strip().partition(":")
        kind = kind.strip()
        for known in _WITHOUT_VALUE:
            if kind == known and not colon:
                return cls(known)
        value = _number(number)
        for known in _WITH_VALUE:
            within = value is not None and 0 <= value <= (1e6 if known == "fp_per_case" else 1)
            if kind == known and value is not None and within:
                return cls(known, value)
        bare = _number(kind) if not colon else None
        hint = f" Did you mean score:{kind}?" if bare is not None and 0 <= bare <= 1 else ""
        raise ConfigError(f"operating_point={text}: this names no operating point.{hint} {_HOW}.")

    def __str__(self) -> str:
        if self.kind in _WITHOUT_VALUE:
            return self.kind
        return f"{self.kind}:{self.value:.10g}"


def _number(text: str) -> float | None:
    """Return the number that a text states, None if it states none."""
    try:
        return float(text)
    except ValueError:
        return None


@dataclass(frozen=True)
class OperatingPoint:
    """The score from which a candidate is accepted, and what it was chosen for.

    `name` is the aim as text (`str(Aim)`), as files state it. `chosen_on`: the role of the cases it
    was chosen on (`validation` or `out-of-fold`), None for a score given by hand.
    `lesion_recall`, `false_positives_per_case` and `lesion_f1` are the values of those cases, the
    first two with 95 % intervals for patients like these.
    `expected_false_positives_per_case` is the rate that new cases have on average.
    `attainable_recall` is the highest recall of any score. `confidence`: the chance that as many
    new cases have no more false positives per case than the aim; None if no chance was asked for,
    or none can be kept. `is_default`: the aim was chosen by the default rule (`auto`).
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

    @property
    def aim(self) -> Aim:
        """The aim that the name states."""
        return Aim.parse(self.name)

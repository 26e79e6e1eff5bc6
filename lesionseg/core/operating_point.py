"""Fields of an operating point in a bundle: score, aim, expected recall and false positives.

The score is the lowest one of an accepted candidate. `evaluation.operating_points` chooses it.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class OperatingPoint:
    """The lowest score of an accepted candidate, and the aim that it was chosen for.

    Attributes:
        name: The aim as text (`str(evaluation.operating_points.OperatingPointAim)`), as in files.
        score: Candidates with this score or a higher one are accepted.
        chosen_on: Role of the cases that it was chosen on, such as `validation` or `out-of-fold`.
            Several roles are joined by `+`. None for a score given by hand, or if the cases have
            no role.
        lesion_recall: Lesion recall of those cases.
        false_positives_per_case: Rate of false positives in those cases.
        lesion_recall_ci95: 95 % confidence interval of the recall for patients like these.
        false_positives_per_case_ci95: The same for false positives per case.
        expected_false_positives_per_case: Mean rate to expect in new cases.
        attainable_recall: Highest recall that any score reaches. None without lesions.
        confidence: Probability that an equal number of new cases has at most the false positives
            per case of the aim. None if no probability was requested, or if it cannot be kept.
        lesion_f1: F1 of the lesions of those cases.
        is_default: True if the default rule (`auto`) chose the aim.
        n_cases: Number of cases that it was chosen on. None if unknown or not chosen.
        n_patients: Number of their patients.
        n_false_positives: Number of false positives in those cases.
        promised: Sensitivity that is promised for new patients: the mean share of their lesions
            that are found. None if the aim is not a sensitivity, or if it cannot be promised.
        why_not_promised: Why a sensitivity is not promised. None if it is, or if none was asked
            for.
        expected_recall_per_patient: Mean share of found lesions to expect in new patients with
            lesions.
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
    # not in the text of the point, which is a part of the key of a predicted case
    promised: float | None = field(default=None, repr=False)
    why_not_promised: str | None = field(default=None, repr=False)
    expected_recall_per_patient: float | None = field(default=None, repr=False)

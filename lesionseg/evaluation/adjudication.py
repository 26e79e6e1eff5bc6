"""Scores with and without the false positives that a reader confirmed as lesions."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lesionseg.errors import ContentError
from lesionseg.evaluation.case_results import CaseResult
from lesionseg.evaluation.curves import sums_by_group
from lesionseg.evaluation.intervals import NO_CASE, NO_LESION, proportion, rate
from lesionseg.evaluation.scores import AdjudicatedNumbers, Adjudication

LESION = "lesion"
NO_LESION_HERE = "no_lesion"
UNSURE = "unsure"
WORDS = (LESION, NO_LESION_HERE, UNSURE)


@dataclass(frozen=True)
class Answer:
    """The answer of a reader to one false positive.

    `box_vox` is the box of the candidate when the reader answered. If the candidate now has another
    box, the answer is stale.
    """

    case: str
    candidate: int
    box_vox: tuple[float, ...]
    word: str


def read_answers(rows: Sequence[Mapping[str, str]], where: str) -> list[Answer]:
    """Read the rows of adjudicate.csv that have an answer.

    Raise `ContentError` for a row that cannot be used.
    """
    found = []
    for line, row in enumerate(rows, 2):
        cell = row.get("answer") or ""
        if not cell:
            continue
        word = cell.strip().lower().replace(" ", "_").replace("-", "_")
        if word not in WORDS:
            raise ContentError(
                f"{where}, line {line}: the answer {cell!r} is not known. Write {LESION}, "
                f"{NO_LESION_HERE}, {UNSURE} or nothing."
            )
        try:
            ends = (row.get(f"{end}_{axis}_vox") for end in ("start", "stop") for axis in "zyx")
            box = tuple(float(cell) for cell in ends if cell)
            found.append(Answer(row["case"], int(float(row["candidate"])), box, word))
        except (KeyError, ValueError) as error:
            raise ContentError(
                f"{where}, line {line}: the case, the candidate or its box is missing or is not a "
                f"number ({error}). Copy these cells from a new adjudicate.csv of the report."
            ) from error
    return found


def adjudicate(results: Sequence[CaseResult], answers: Sequence[Answer]) -> Adjudication:
    """Compute the main numbers without and with the lesions that a reader confirmed.

    A false positive with the answer `lesion` counts as a found lesion. Lesions that both the
    reference and the model miss remain unknown, so the adjudicated recall is too high. Answers
    about candidates that are no longer false positives, or that have moved, are counted as stale.

    Raises:
        ContentError: if two answers to the same candidate differ.
    """
    boxes = {
        (r.case, c.candidate): (*c.start_vox, *c.stop_vox)
        for r in results
        for c in r.candidates
        if c.outcome == "false_positive"
    }
    valid = [a for a in answers if _is_same_box(boxes.get((a.case, a.candidate), ()), a.box_vox)]
    word_of: dict[tuple[str, int], str] = {}
    for answer in valid:
        first = word_of.setdefault((answer.case, answer.candidate), answer.word)
        if first != answer.word:
            raise ContentError(
                f"adjudication: candidate {answer.candidate} of {answer.case} has two answers, "
                f"{first} and {answer.word}. Keep one of them."
            )
    confirmed = Counter(case for (case, _), word in word_of.items() if word == LESION)
    words = Counter(word_of.values())
    return Adjudication(
        n_lesion=words[LESION],
        n_no_lesion=words[NO_LESION_HERE],
        n_unsure=words[UNSURE],
        n_open=len(boxes) - len(word_of),
        n_stale=len(answers) - len(valid),
        by_reference=_count_results(results, {}),
        adjudicated=_count_results(results, confirmed),
    )


def _is_same_box(box: tuple[float, ...], other: tuple[float, ...]) -> bool:
    """Return True if two boxes are equal, except for rounding. An empty box equals no box."""
    if not box or len(box) != len(other):
        return False
    return all(abs(a - b) < 1e-3 for a, b in zip(box, other, strict=True))


def _count_results(
    results: Sequence[CaseResult], confirmed: Mapping[str, int]
) -> AdjudicatedNumbers:
    """Compute the main numbers. `confirmed` false positives of a case count as found lesions."""
    groups = sorted({r.group for r in results})
    n_true = []
    n_false = []
    n_found = []
    n_lesions = []
    for r in results:
        n_confirmed = confirmed.get(r.case, 0)
        n_true.append(r.n_outcome("true_positive") + n_confirmed)
        n_false.append(r.n_outcome("false_positive") - n_confirmed)
        n_found.append(r.n_detected + n_confirmed)
        n_lesions.append(len(r.lesions) + n_confirmed)
    true = sums_by_group(groups, results, n_true)
    false = sums_by_group(groups, results, n_false)
    found = sums_by_group(groups, results, n_found)
    lesions = sums_by_group(groups, results, n_lesions)
    cases = sums_by_group(groups, results, [r.annotated_share for r in results])
    return AdjudicatedNumbers(
        n_lesions=int(lesions.sum()),
        n_false_positive=int(false.sum()),
        lesion_recall=proportion(found, lesions, NO_LESION),
        lesion_precision=proportion(true, true + false, "nothing was accepted"),
        false_positives_per_case=rate(false, cases, NO_CASE),
    )

"""False positives that a person found to be lesions the reference lacks: both numbers."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lesionseg.errors import ContentError
from lesionseg.evaluation.case_results import CaseResult
from lesionseg.evaluation.curves import sums_by_group
from lesionseg.evaluation.intervals import NO_CASE, NO_LESION, proportion, rate
from lesionseg.evaluation.scores import AdjudicatedNumbers, Adjudication

LESION, NO_LESION_HERE, UNSURE = WORDS = ("lesion", "no_lesion", "unsure")


@dataclass(frozen=True)
class Answer:
    """The answer of a reader to a false positive. `box_vox` shows if it is still the same one."""

    case: str
    candidate: int
    box_vox: tuple[float, ...]
    word: str


def read_answers(rows: Sequence[Mapping[str, str]], where: str) -> list[Answer]:
    """Read the filled-in rows of adjudicate.csv. Raise `ContentError` for an unusable row."""
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
                f"{where}, line {line}: no case, candidate and box as the report wrote them "
                f"({error})."
            ) from error
    return found


def adjudicate(results: Sequence[CaseResult], answers: Sequence[Answer]) -> Adjudication:
    """Compute the main numbers by the reference alone and with the confirmed lesions added to it.

    A false positive with the answer `lesion` counts as a lesion that was found; lesions that both
    the reference and the model miss stay unknown, so the adjudicated recall flatters the model.
    Answers on candidates that are no longer false positives, or have moved, are counted as stale.
    """
    boxes = {
        (r.case, c.candidate): (*c.start_vox, *c.stop_vox)
        for r in results
        for c in r.candidates
        if c.outcome == "false_positive"
    }
    fresh = [
        v
        for v in answers
        if len(box := boxes.get((v.case, v.candidate), ())) == len(v.box_vox) > 0
        and all(abs(a - b) < 1e-3 for a, b in zip(box, v.box_vox, strict=True))
    ]
    word_of: dict[tuple[str, int], str] = {}
    for v in fresh:
        if word_of.setdefault((v.case, v.candidate), v.word) != v.word:
            raise ContentError(
                f"adjudication: two answers to candidate {v.candidate} of {v.case}, "
                f"{word_of[v.case, v.candidate]} and {v.word}. Keep the one agreed on."
            )
    confirmed = Counter(case for (case, _), word in word_of.items() if word == LESION)
    words = Counter(word_of.values())
    return Adjudication(
        n_lesion=words[LESION],
        n_no_lesion=words[NO_LESION_HERE],
        n_unsure=words[UNSURE],
        n_open=len(boxes) - len(word_of),
        n_stale=len(answers) - len(fresh),
        by_reference=_numbers(results, {}),
        adjudicated=_numbers(results, confirmed),
    )


def _numbers(results: Sequence[CaseResult], confirmed: Mapping[str, int]) -> AdjudicatedNumbers:
    """Compute the main numbers, with a case's `confirmed` false positives counted as found."""
    groups = sorted({r.group for r in results})
    rows = [
        (
            r.n_outcome("true_positive") + n,
            r.n_outcome("false_positive") - n,
            r.n_detected + n,
            len(r.lesions) + n,
            r.annotated_share,
        )
        for r in results
        for n in [confirmed.get(r.case, 0)]
    ]
    true, false, found, lesions, cases = (
        sums_by_group(groups, results, [row[i] for row in rows]) for i in range(5)
    )
    return AdjudicatedNumbers(
        n_lesions=int(lesions.sum()),
        n_false_positive=int(false.sum()),
        lesion_recall=proportion(found, lesions, NO_LESION),
        lesion_precision=proportion(true, true + false, "nothing was accepted"),
        false_positives_per_case=rate(false, cases, NO_CASE),
    )

"""False positives that a person found to be lesions the reference lacks: both numbers."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lesionseg.errors import ContentError
from lesionseg.evaluation import edge_cases
from lesionseg.evaluation.results import CandidateResult, CaseResult
from lesionseg.evaluation.statistics.detection import sums_by_group
from lesionseg.evaluation.statistics.estimates import as_list, proportion, rate
from lesionseg.evaluation.table_row import Point, TableRow

LESION, NO_LESION, UNSURE = "lesion", "no_lesion", "unsure"
# what people write, spaces and hyphens taken as underscores, capitals as small letters
_WORDS = {
    **dict.fromkeys(("lesion", "yes", "true_lesion"), LESION),
    **dict.fromkeys(("no_lesion", "not_lesion", "no", "not_a_lesion"), NO_LESION),
    **dict.fromkeys(("unsure", "unclear", "?"), UNSURE),
}


@dataclass(frozen=True, kw_only=True)
class AdjudicationRow(TableRow):
    """One line of adjudicate.csv: a false positive and, in the last three columns, who says what.

    The box tells whether the candidate is still the same one.
    """

    case: str
    candidate: int
    label: str = ""
    score: float | None = None
    diameter_mm: float | None = None
    centre_mm: Point = ()
    start_vox: Point
    stop_vox: Point
    touches_lesion: bool = False
    verdict: str = ""
    reader: str = ""
    comment: str = ""


def read_verdicts(rows: Sequence[Mapping[str, str]], where: str) -> list[AdjudicationRow]:
    """The filled-in rows of adjudicate.csv; raises `ContentError` for a row that is not usable."""
    return [_verdict(row, i, where) for i, row in enumerate(rows, 2) if row.get("verdict")]


def verdict_word(cell: str, where: str) -> str:
    """What a person wrote as one of three words; raises `ContentError` where it is none."""
    word = cell.strip().lower().replace(" ", "_").replace("-", "_")
    if word not in _WORDS:
        raise ContentError(
            "This verdict is not known.",
            where=where,
            seen=cell,
            expected=f"{LESION}, {NO_LESION}, {UNSURE} or nothing",
        )
    return _WORDS[word]


def _verdict(row: Mapping[str, str], line: int, where: str) -> AdjudicationRow:
    word = verdict_word(row["verdict"], f"{where}, line {line}")
    try:
        return replace(AdjudicationRow.from_csv(row), verdict=word)
    except ValueError as error:
        raise ContentError(
            "The row names no candidate.",
            where=f"{where}, line {line}",
            seen=f"{error} in {dict(row)}",
            expected="case, candidate and the box as the report wrote them",
        ) from error


def adjudicate(
    results: Sequence[CaseResult], verdicts: Sequence[AdjudicationRow]
) -> dict[str, Any]:
    """The main numbers by the reference alone and with the confirmed lesions added to it.

    A false positive with the verdict `lesion` counts as a lesion that was found; lesions that both
    the reference and the model miss stay unknown, so the adjudicated recall flatters the model.
    Verdicts on candidates that are no longer false positives, or have moved, are counted as stale.
    """
    false = {
        (r.case, c.candidate): c
        for r in results
        for c in r.candidates
        if c.outcome == "false_positive"
    }
    fresh = [v for v in verdicts if _same(false.get((v.case, v.candidate)), v)]
    confirmed = Counter(v.case for v in fresh if v.verdict == LESION)
    n_of = {word: sum(v.verdict == word for v in fresh) for word in (LESION, NO_LESION, UNSURE)}
    return {
        **{f"n_{word}": n for word, n in n_of.items()},
        "n_open": len(false) - len({(v.case, v.candidate) for v in fresh}),
        "n_stale": len(verdicts) - len(fresh),
        "by_reference": _numbers(results, {}),
        "adjudicated": _numbers(results, confirmed),
    }


def _same(candidate: CandidateResult | None, verdict: AdjudicationRow) -> bool:
    if candidate is None:
        return False
    here = (*candidate.start_vox, *candidate.stop_vox)
    there = (*verdict.start_vox, *verdict.stop_vox)
    return len(here) == len(there) and all(
        abs(a - b) < 1e-3 for a, b in zip(here, there, strict=True)
    )


def _numbers(results: Sequence[CaseResult], confirmed: Mapping[str, int]) -> dict[str, Any]:
    """The main numbers with intervals, a case's `confirmed` false positives counted as found."""
    groups = sorted({r.group for r in results})
    real = [confirmed.get(r.case, 0) for r in results]

    def by_group(values: Sequence[float], more: int = 0) -> NDArray[np.float64]:
        found = [v + more * n for v, n in zip(values, real, strict=True)]
        return sums_by_group(groups, results, found)

    true = by_group([r.n_outcome("true_positive") for r in results], 1)
    false = by_group([r.n_outcome("false_positive") for r in results], -1)
    found = by_group([r.n_detected for r in results], 1)
    lesions = by_group([len(r.lesions) for r in results], 1)
    cases = by_group([r.annotated_share for r in results])
    estimates = {
        "lesion_recall": proportion(found, lesions, edge_cases.NO_LESION),
        "lesion_precision": proportion(true, true + false, edge_cases.NOTHING_ACCEPTED),
        "false_positives_per_case": rate(false, cases, edge_cases.NO_CASE),
    }
    return {
        "n_lesions": int(lesions.sum()),
        "n_false_positive": int(false.sum()),
        **{key: one.value for key, one in estimates.items()},
        "ci95": {key: as_list(one.ci95) for key, one in estimates.items()},
        "reasons": {key: one.reason for key, one in estimates.items() if one.reason},
    }

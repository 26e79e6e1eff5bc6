"""Which scorer a preset stands for, what it takes of a case and how it sums cases up."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from lesionseg.evaluation.case.match_case import CaseMatch
from lesionseg.evaluation.official import box_challenges as boxes
from lesionseg.evaluation.official import curves
from lesionseg.evaluation.official import mask_challenges as masks
from lesionseg.evaluation.official.curves import Values
from lesionseg.evaluation.presets import Scorer
from lesionseg.evaluation.results import CaseResult, OfficialCase
from lesionseg.evaluation.statistics.bootstrap import Draws, Interval, percentiles

_MASK_SCORERS: Mapping[str, Callable[[masks.MaskPair], Values]] = {
    "panoptica": masks.panoptica_case,
    "brats2023": partial(masks.brats_case, dilations=3, min_mm3=50.0),
    "brats2023_men": partial(masks.brats_case, dilations=1, min_mm3=50.0),
    "brats2023_met": partial(masks.brats_case, dilations=1, min_mm3=2.0),
    "isles22": masks.isles22_case,
    "msseg": masks.msseg_case,
    "autopet": masks.autopet_case,
}


@dataclass(frozen=True)
class OfficialScores:
    """The numbers of another scorer; `n` cases gave them, `reason` why there are none."""

    scorer: str
    values: Values
    n: int
    reason: str | None = None


def score_case(scorer: Scorer | None, judged: CaseMatch) -> OfficialCase:
    """What the scorer needs of a case; None for scorers that need nothing beyond the result."""
    if scorer == "coco":
        return boxes.coco_case(judged)
    if scorer == "nndetection":
        return boxes.nndetection_case(judged)
    if scorer is None or scorer not in _MASK_SCORERS:
        return None
    pair = masks.mask_pair(judged)
    return None if pair is None else _MASK_SCORERS[scorer](pair)


def score_cases(scorer: Scorer, results: Sequence[CaseResult]) -> OfficialScores:
    """The scorer's numbers over all cases; means over the cases that define them for masks.

    Scorers of candidates need scores, scorers of masks need masks; else there are no numbers.
    """
    if scorer in _MASK_SCORERS:
        return _means(scorer, [r.official for r in results if isinstance(r.official, Mapping)])
    if not all(r.scored for r in results):
        return OfficialScores(scorer, {}, 0, "the candidates have no scores")
    if scorer == "picai":
        return OfficialScores(scorer, curves.picai_scores(results), len(results))
    if scorer == "luna16":
        return OfficialScores(scorer, curves.luna_scores(results), len(results))
    cases = [r.official for r in results if isinstance(r.official, tuple)]
    sum_up = boxes.coco_scores if scorer == "coco" else boxes.nndetection_scores
    return OfficialScores(scorer, sum_up(cases), len(cases))


def score_intervals(
    scorer: Scorer, results: Sequence[CaseResult], weights: Draws
) -> dict[str, Interval]:
    """Percentile interval of each of the scorer's numbers, of whole groups drawn again.

    `weights` `[replicates, groups]`: how often each group, in the order of its name, is drawn. The
    scorer judges each drawing as it judges the cases themselves.
    """
    groups = sorted({r.group for r in results})
    of_group: dict[str, list[CaseResult]] = {group: [] for group in groups}
    for result in results:
        of_group[result.group].append(result)
    drawn = [
        score_cases(
            scorer,
            [
                result
                for group, times in zip(groups, row.tolist(), strict=True)
                for result in of_group[group] * times
            ],
        ).values
        for row in weights
    ]
    names = score_cases(scorer, results).values
    columns = {
        name: np.array([_or_nan(values.get(name)) for values in drawn], dtype=np.float64)
        for name in names
    }
    return {name: percentiles(column, len(groups)) for name, column in columns.items()}


def _or_nan(value: float | None) -> float:
    return np.nan if value is None else value


def _means(scorer: str, cases: Sequence[Mapping[str, float | None]]) -> OfficialScores:
    if not cases:
        return OfficialScores(scorer, {}, 0, "no case has masks to compare")
    defined = {name: [c[name] for c in cases] for name in cases[0]}
    means = {name: _mean([v for v in column if v is not None]) for name, column in defined.items()}
    return OfficialScores(scorer, means, len(cases))


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None

"""What is pooled over all cases: counts, means, proportions and curves."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from operator import attrgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lesionseg.evaluation import edge_cases
from lesionseg.evaluation.edge_cases import EdgeCase
from lesionseg.evaluation.presets import SIDE_CRITERIA, Preset
from lesionseg.evaluation.results import CaseResult, Outcome
from lesionseg.evaluation.statistics import detection
from lesionseg.evaluation.statistics.bootstrap import Statistic, pooled_design_effect
from lesionseg.evaluation.statistics.detection import Pool, pool_results, sums_by_group
from lesionseg.evaluation.statistics.estimates import (
    Estimate,
    Estimator,
    as_list,
    proportion,
    rate,
    undefined_numbers,
)
from lesionseg.evaluation.statistics.score_parts import SizeGroup
from lesionseg.evaluation.statistics.size_bins import (
    OfSize,
    Selection,
    bins_between,
    of_diameter,
)

Mean = Callable[[NDArray[np.float64], NDArray[np.float64], EdgeCase], Estimate]
mean_share: Mean = partial(proportion, least_deff=0.0)


@dataclass(frozen=True, eq=False)
class PooledResults:
    """All cases, or one label's share of them, and how to estimate from them.

    `scored`: whether all candidates have scores; without, the curves are undefined.
    """

    results: tuple[CaseResult, ...]
    preset: Preset
    pool: Pool
    estimator: Estimator
    scored: bool

    @classmethod
    def of(
        cls, results: Sequence[CaseResult], preset: Preset, replicates: int, seed: int
    ) -> "PooledResults":
        """Pool the results, and draw the bootstrap's groups once."""
        pool = pool_results(results)
        estimator = Estimator.seeded(len(pool.groups), replicates, seed)
        return cls(tuple(results), preset, pool, estimator, all(r.scored for r in results))

    def of_label(self, label: int) -> "PooledResults":
        """The lesions and candidates of one label, matched within this label.

        Of the cases in which a reader looked for it.
        """
        results = tuple(_of_label(r, label) for r in self.results if r.annotated.get(label, True))
        pool, whole = pool_results(results), self.estimator
        if len(pool.groups) < whole.n_groups:
            whole = Estimator.seeded(len(pool.groups), len(whole.weights), whole.seed)
        return replace(self, results=results, pool=pool, estimator=whole)

    def sums(self, values: Sequence[float]) -> NDArray[np.float64]:
        """A value by case, summed by group."""
        return sums_by_group(self.pool.groups, self.results, values)

    def n_outcome(self, outcome: Outcome) -> NDArray[np.float64]:
        """Candidates of an outcome at the operating point, by group."""
        return self.sums([r.n_outcome(outcome) for r in self.results])

    def counts(self) -> dict[str, int]:
        """The counts of cases, lesions and candidates."""
        n_lesions = sum(len(r.lesions) for r in self.results)
        n_found = sum(r.n_detected for r in self.results)
        return {
            "n_cases": len(self.results),
            "n_groups": len(self.pool.groups),
            "n_lesion_free_cases": sum(r.is_lesion_free for r in self.results),
            "n_lesions": n_lesions,
            "n_candidates": sum(len(r.candidates) for r in self.results),
            "n_accepted": sum(c.accepted for r in self.results for c in r.candidates),
            "n_true_positive": n_found,
            "n_false_positive": sum(r.n_outcome("false_positive") for r in self.results),
            "n_missed": n_lesions - n_found,
            "n_ignored": sum(r.n_outcome("ignored") for r in self.results),
        }

    def recall(self) -> Estimate:
        """Share of the lesions found at the operating point."""
        return proportion(*self.lesion_sums, edge_cases.NO_LESION)

    @cached_property
    def lesion_sums(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Lesions found, and all of them, by group."""
        return self._tally(attrgetter("detected"), lambda _: True)

    def _share(self, found: Selection) -> Estimate:
        return proportion(*self._tally(found, lambda _: True), edge_cases.NO_LESION)

    def _tally(
        self, found: Selection, chosen: Selection
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The chosen lesions that were found, and all chosen ones, by group."""
        kept = [[x for x in r.lesions if chosen(x)] for r in self.results]
        hits = self.sums([sum(map(found, lesions)) for lesions in kept])
        return hits, self.sums([len(x) for x in kept])

    def precision(self) -> Estimate:
        """Share of the judged accepted candidates that found a lesion."""
        hits, false = self.n_outcome("true_positive"), self.n_outcome("false_positive")
        return proportion(hits, hits + false, edge_cases.NOTHING_ACCEPTED)

    def false_positives_per_case(self) -> Estimate:
        """False positives over all cases, lesion-free or not."""
        cases = self.pool.cases_by_group
        return rate(self.n_outcome("false_positive"), cases, edge_cases.NO_CASE)

    def detection_numbers(self) -> dict[str, Estimate]:
        """The plain numbers at the operating point."""
        lesions = self.sums([len(r.lesions) for r in self.results])
        found = self.sums([r.n_detected for r in self.results])
        false = self.n_outcome("false_positive")
        f1 = detection.ratio(2 * found, found + lesions + false)
        any_lesion = (lesions > 0).astype(np.float64)
        shares = np.divide(found, lesions, out=np.zeros_like(found), where=lesions > 0)
        return {
            "lesion_recall_mean_per_group": mean_share(shares, any_lesion, edge_cases.NO_LESION),
            "lesion_precision": self.precision(),
            "lesion_f1": self.one(f1, lesions, edge_cases.NO_LESION),
            "false_positives_per_case": self.false_positives_per_case(),
            **self._lesion_free_numbers(),
        }

    def _lesion_free_numbers(self) -> dict[str, Estimate]:
        free = [r.is_lesion_free for r in self.results]
        cases = self.sums(free)
        n_false = [r.n_outcome("false_positive") for r in self.results]
        false = self.sums([f * n for f, n in zip(free, n_false, strict=True)])
        clean = self.sums([f and n == 0 for f, n in zip(free, n_false, strict=True)])
        none = edge_cases.NO_LESION_FREE_CASE
        volumes = [r.false_positive_ml for r in self.results]
        ml = self.sums([f * (v or 0.0) for f, v in zip(free, volumes, strict=True)])
        millilitres = self._ratio(ml, cases, none)
        if cases.any() and None in volumes:
            millilitres = Estimate(None, None, edge_cases.NO_VOLUME.reason)
        return {
            "false_positives_per_lesion_free_case": rate(false, cases, none),
            "false_positive_ml_per_lesion_free_case": millilitres,
            "specificity": proportion(clean, cases, none),
        }

    def curve_numbers(self) -> dict[str, Estimate]:
        """The plain numbers that need scores."""
        names = ("cpm", "average_precision", "case_auroc")
        if not self.scored:
            return dict(zip(names, undefined_numbers(edge_cases.UNSCORED, 3), strict=True))
        cpm = self._curve(detection.cpm(self.pool, self.preset.fp_per_case))[0]
        if cpm.value is not None and len(self.results) < edge_cases.MIN_CASES_FOR_CPM:
            cpm = Estimate(None, None, edge_cases.TOO_FEW_CASES_FOR_CPM.reason)
        area = self.average_precision()
        return {
            "cpm": cpm,
            "average_precision": area,
            "case_auroc": detection.case_auroc(self.pool),
        }

    def average_precision(self) -> Estimate:
        """Average precision; undefined without scores."""
        if not self.scored:
            return undefined_numbers(edge_cases.UNSCORED, 1)[0]
        return self._curve(detection.average_precision(self.pool))[0]

    def _curve(self, statistic: Statistic) -> list[Estimate]:
        lesions = self.sums([len(r.lesions) for r in self.results])
        items = len(self.pool.detected_at) + len(self.pool.false_score) + 1
        return self.estimator.bootstrapped(statistic, lesions, edge_cases.NO_LESION, items)

    def one(
        self, statistic: Statistic, support: NDArray[np.float64], undefined: EdgeCase
    ) -> Estimate:
        """A statistic of one value with its interval; see `Estimator.bootstrapped`."""
        return self.estimator.bootstrapped(statistic, support, undefined, len(self.results))[0]

    def _ratio(
        self, above: NDArray[np.float64], below: NDArray[np.float64], undefined: EdgeCase
    ) -> Estimate:
        return self.one(detection.ratio(above, below), below, undefined)

    def froc(self) -> dict[str, Any] | None:
        """The curve at the preset's rates; None without lesions or scores."""
        if not self.scored or not len(self.pool.detected_at):
            return None
        rates = list(self.preset.fp_per_case)
        points = self._curve(detection.froc(self.pool, rates))
        reached = self.pool.reached_fp_per_case
        found: dict[str, Any] = {
            "fp_per_case": rates,
            "recall": [p.value for p in points],
            "ci95": [as_list(p.ci95) for p in points],
            "beyond_reached": [rate > reached for rate in rates],
            "reached_fp_per_case": reached,
        }
        reason = next((p.reason for p in points if p.reason), None)
        return found if reason is None else {**found, "reason": reason}

    def overlap(self, attribute: str) -> dict[str, Any]:
        """Mean and median of a score from 0 to 1 by case over the cases where it is defined."""
        return self.average([getattr(r, attribute) for r in self.results], mean_share)

    def average(self, values: Sequence[float | None], mean: Mean | None = None) -> dict[str, Any]:
        """Mean with interval, and median, of the defined values by case."""
        defined = [v for v in values if v is not None]
        counted = self.sums([v is not None for v in values])
        total = self.sums([v or 0.0 for v in values])
        estimate = (mean or self._ratio)(total, counted, edge_cases.NO_MASKED_CASE)
        found = estimate.to_json("mean")
        median = float(np.median(defined)) if defined else None
        return {"mean": found.pop("mean"), "median": median, **found, "n": len(defined)}

    def distance(self) -> dict[str, Any]:
        """HD95 over the cases with a prediction; those without are counted."""
        undefined = [r for r in self.results if r.lesions and r.hd95_mm is None]
        distances = self.average([r.hd95_mm for r in self.results])
        return {**distances, "n_undefined": len(undefined)}

    def label_dice(self, label: int) -> dict[str, Any]:
        """Dice of one label over the cases that have a lesion of it."""
        counts = [r.counts.get(label) if r.lesions else None for r in self.results]
        return self.average([None if c is None else c.dice for c in counts], mean_share)

    def recall_by_size(self) -> list[dict[str, Any]]:
        """Recall in groups of equivalent diameter, `[from, to)`."""
        return self.recall_between(self.preset.size_edges_mm)

    def recall_between(
        self, edges: Sequence[float], of_size: OfSize | None = None
    ) -> list[dict[str, Any]]:
        """Recall between neighbouring sizes, `[from, to)`, the last without upper bound.

        `of_size` selects the lesions of a size; None: by diameter.
        """
        bins = bins_between(edges)
        inside = [(of_size or of_diameter)(*each) for each in bins]
        return [
            SizeGroup(
                low, high, *of_bin, *(self._n(f, here) for f in ("split", "merged"))
            ).to_json()
            for (low, high), here, of_bin in zip(bins, inside, self.recalls(inside), strict=True)
        ]

    def _n(self, flag: str, inside: Selection) -> int:
        """Lesions inside that have a flag."""
        has = attrgetter(flag)
        return sum(inside(x) and has(x) for r in self.results for x in r.lesions)

    def recalls(self, bins: Sequence[Selection]) -> list[tuple[int, int, Estimate]]:
        """Lesions of each bin, those found, recall; bins of all or none share a design effect."""
        tallies = [self._tally(attrgetter("detected"), chosen) for chosen in bins]
        deff = pooled_design_effect([h for h, _ in tallies], [t for _, t in tallies])
        return [
            (int(all_.sum()), int(hits.sum()), proportion(hits, all_, edge_cases.NO_LESION, deff))
            for hits, all_ in tallies
        ]

    def other_criteria(self) -> dict[str, Any]:
        """Recall and false positives of the accepted candidates under the side criteria."""
        return {criterion.name: self._criterion(criterion.name) for criterion in SIDE_CRITERIA}

    def _criterion(self, name: str) -> dict[str, Any]:
        false = sum(r.sides[name].false_positive for r in self.results)
        found = {
            "lesion_recall": self._share(attrgetter(name)).to_json(),
            "n_false_positive": false,
            "n_ignored": sum(r.sides[name].ignored for r in self.results),
        }
        if not self.results:
            none = edge_cases.NO_CASE
            return {**found, "false_positives_per_case": none.value, "reason": none.reason}
        return {**found, "false_positives_per_case": false / self.pool.n_cases}

    def false_positives(self) -> dict[str, int]:
        """False positives that touch some lesion, and those elsewhere."""
        false = [c for r in self.results for c in r.candidates if c.outcome == "false_positive"]
        touching = sum(c.touches_lesion for c in false)
        return {"touching_lesion": touching, "elsewhere": len(false) - touching}


def _of_label(r: CaseResult, label: int) -> CaseResult:
    """A case with one label alone: itself where it has no other, so that no copies are held."""
    part = r.within_labels or r
    lesions = tuple(x for x in part.lesions if x.label == label)
    candidates = tuple(c for c in part.candidates if c.label == label)
    if part is r and not r.annotated and (lesions, candidates) == (r.lesions, r.candidates):
        return r
    return replace(r, annotated={}, lesions=lesions, candidates=candidates)

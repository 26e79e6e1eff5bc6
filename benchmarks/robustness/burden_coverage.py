"""How often the intervals of a case's number and volume of lesions hold on patients left out.

    python benchmarks/robustness/burden_coverage.py SCORES [SCORES …]

SCORES: folders with the cases.csv and candidates.csv of `evaluate` or `train`. Half of the patients
at random tells the errors, the other half is looked at; twenty times.
"""

import sys
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from lesionseg.evaluation.rows import CandidateRow, CaseRow
from lesionseg.evaluation.statistics.burden import burden_errors, count_interval, volume_interval
from lesionseg.evaluation.table_row import read_table

TIMES = 20
MM3 = 1e-3  # to which volumes are written


def judged(folder: Path) -> list[Any]:
    """What `burden_errors` looks at, from the tables; a score of 1 for what was accepted."""
    accepted = defaultdict(list)
    for row in read_table(folder / "candidates.csv", CandidateRow):
        if row.accepted:
            accepted[row.case].append(SimpleNamespace(score=1.0, volume_ml=row.volume_ml))
    return [
        SimpleNamespace(
            group=row.group,
            lesions=(None,) * row.n_lesions,
            candidates=accepted[row.case],
            reference_ml=row.reference_ml,
            annotated_share=row.annotated_share,
        )
        for row in read_table(folder / "cases.csv", CaseRow)
    ]


def coverage(cases: list[Any]) -> str:
    """Cells of the table: share of intervals that hold, and their mean width."""
    rng, groups = np.random.default_rng(0), sorted({case.group for case in cases})
    counts, volumes = [], []
    for _ in range(TIMES):
        chosen = set(rng.permutation(groups)[: len(groups) // 2].tolist())
        errors = burden_errors([case for case in cases if case.group in chosen], 0.5)
        for case in (case for case in cases if case.group not in chosen):
            if errors[0] is not None:
                low, high = count_interval(len(case.candidates), errors[0])
                counts.append((low <= len(case.lesions) <= high, high - low))
            if errors[1] is not None and case.reference_ml is not None:
                ml = sum(cast(float, c.volume_ml) for c in case.candidates)
                least, most = volume_interval(ml, errors[1])
                volumes.append((least - MM3 <= case.reference_ml <= most + MM3, most - least))
    return " | ".join(
        f"{np.mean([h for h, _ in x]):.1%} | {np.mean([w for _, w in x]):.2g}" if x else "– | –"
        for x in (counts, volumes)
    )


def main() -> None:
    """Print the table."""
    print("| scores | cases | number held | mean width | volume held | mean width, ml |")
    print("|---|---|---|---|---|---|")
    for name in sys.argv[1:]:
        cases = judged(Path(name))
        print(f"| {Path(name).name} | {len(cases)} | {coverage(cases)} |")


if __name__ == "__main__":
    main()

"""Two readers judge the false positives, blinded to scores and each other: agreement and causes."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lesionseg.errors import ContentError
from lesionseg.evaluation import edge_cases
from lesionseg.evaluation.readers.adjudication import (
    LESION,
    NO_LESION,
    UNSURE,
    AdjudicationRow,
    adjudicate,
    verdict_word,
)
from lesionseg.evaluation.results import CaseResult
from lesionseg.evaluation.statistics.bootstrap import Statistic, Weights
from lesionseg.evaluation.statistics.estimates import Estimator
from lesionseg.evaluation.table_row import Point, TableRow, read_table

KEY_TABLE = "key.csv"
FIRST_TABLE = "reader_A.csv"
SHEETS = (FIRST_TABLE, "reader_B.csv")
VERDICTS = (LESION, NO_LESION, UNSURE)


@dataclass(frozen=True, kw_only=True)
class SheetRow(TableRow):
    """One line of a reader's sheet: an item, and in the last three columns what the reader says.

    `case` is the report's name for it.
    """

    item: int
    case: str = ""
    diameter_mm: float | None = None
    centre_mm: Point = ()
    verdict: str = ""
    cause: str = ""
    comment: str = ""


@dataclass(frozen=True, kw_only=True)
class KeyRow(AdjudicationRow):
    """One line of key.csv: which false positive an item is."""

    item: int


@dataclass(frozen=True)
class TwoReaders:
    """The key of all items, and the lines that each reader has filled in, by item."""

    key: Mapping[int, KeyRow]
    sheets: tuple[Mapping[int, SheetRow], Mapping[int, SheetRow]]

    @classmethod
    def read(cls, folder: Path) -> "TwoReaders":
        """Read the key and both sheets; raises `ReadError`, or `ContentError` with the line."""
        key = {row.item: row for row in read_table(folder / KEY_TABLE, KeyRow)}
        first, second = (_filled(folder / name, key) for name in SHEETS)
        return cls(key, (first, second))

    def numbers(
        self, results: Sequence[CaseResult], replicates: int = 1000, seed: int = 0
    ) -> dict[str, Any]:
        """`adjudicate` by what both say, and how far they agree; else a verdict is `unsure`.

        `kappa` is Cohen's (1960), with a bootstrap of whole groups; `causes`: how often each
        reader states each cause, and both the same one.
        """
        first, second = self.sheets
        both = sorted({*first} & {*second})
        pairs = [(first[item].verdict, second[item].verdict) for item in both]
        joint = [
            replace(self.key[item], verdict=a if a == b else UNSURE)
            for item, (a, b) in zip(both, pairs, strict=True)
        ]
        agreed = sum(a == b for a, b in pairs)
        kappa = _kappa_estimate([row.case for row in joint], pairs, results, replicates, seed)
        return {
            **adjudicate(results, joint),
            "readers": {
                "n_both": len(both),
                "n_one": len({*first} ^ {*second}),
                "n_agreed": agreed,
                "agreement": agreed / len(both) if both else None,
                "kappa": kappa,
            },
            "causes": self._causes(both),
        }

    def _causes(self, both: Sequence[int]) -> list[dict[str, Any]]:
        """The commonest first; empty where nobody states one."""
        own = [Counter(row.cause for row in sheet.values() if row.cause) for sheet in self.sheets]
        first, second = self.sheets
        same = Counter(first[i].cause for i in both if first[i].cause == second[i].cause)
        ordered = sorted(own[0] | own[1], key=lambda c: (-own[0][c] - own[1][c], c))
        return [
            {"cause": c, "reader_A": own[0][c], "reader_B": own[1][c], "both": same[c]}
            for c in ordered
        ]


def _filled(path: Path, key: Mapping[int, KeyRow]) -> dict[int, SheetRow]:
    found: dict[int, SheetRow] = {}
    for line, row in enumerate(read_table(path, SheetRow), start=2):
        where = f"{path}, line {line}"
        if row.item not in key or row.item in found:
            raise ContentError(
                "The line is about no item of the key, or about one named before.",
                where=where,
                seen=row.item,
                remedy=f"keep the column item as the report wrote it, and {KEY_TABLE} beside.",
            )
        if row.verdict.strip():
            cause = row.cause.strip().lower()
            found[row.item] = replace(row, verdict=verdict_word(row.verdict, where), cause=cause)
    return found


def _kappa_estimate(
    cases: Sequence[str],
    pairs: Sequence[tuple[str, str]],
    results: Sequence[CaseResult],
    replicates: int,
    seed: int,
) -> dict[str, Any]:
    group_of = {r.case: r.group for r in results}
    groups = {name: i for i, name in enumerate(dict.fromkeys(group_of.get(c, c) for c in cases))}
    counts = np.zeros((len(groups), len(VERDICTS), len(VERDICTS)))
    for case, (a, b) in zip(cases, pairs, strict=True):
        group = groups[group_of.get(case, case)]
        counts[group, VERDICTS.index(a), VERDICTS.index(b)] += 1
    estimator = Estimator.seeded(len(groups), replicates, seed)
    several = len({word for pair in pairs for word in pair}) > 1
    support = counts.sum((1, 2)) * several
    undefined = edge_cases.NO_AGREEMENT
    return estimator.bootstrapped(kappa(counts), support, undefined, len(pairs))[0].to_json()


def kappa(counts: NDArray[np.float64]) -> Statistic:
    """Statistic: Cohen's kappa of `counts` `[groups, k, k]`, undefined where chance agrees."""

    def statistic(weights: Weights) -> NDArray[np.float64]:
        table = np.tensordot(weights.astype(np.float64), counts, axes=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            share = table / table.sum((1, 2), keepdims=True)
            agreed = np.trace(share, axis1=1, axis2=2)
            chance = (share.sum(1) * share.sum(2)).sum(1)
            found = np.where(chance < 1, (agreed - chance) / (1 - chance), np.nan)
        return found[:, None]

    return statistic

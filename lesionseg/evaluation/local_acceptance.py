"""A local acceptance test: limits stated beforehand, the sample they need, and pass or fail.

A criterion passes when the whole 95 % interval lies on the right side of its limit. So the sample
must be large enough for the interval, not for the number alone.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from scipy.special import ndtri

from lesionseg.errors import ConfigError, ReadError, one_of, require
from lesionseg.evaluation.score_sections import Scores
from lesionseg.evaluation.statistics.estimates import Estimate

# by key of scores.json: what is counted, and whether it is a share
UNITS: Mapping[str, tuple[str, bool]] = {
    "lesion_recall": ("lesion", True),
    "case_sensitivity": ("scan with lesions", True),
    "case_specificity": ("scan without lesions", True),
    "false_positives_per_case": ("scan", False),
}
_KEYS = ("number", "at_least", "at_most", "expected")
_PLAN_KEYS = ("criteria", "stated_on", "stated_by", "power", "design_effect")


@dataclass(frozen=True)
class AcceptanceCriterion:
    """A number of scores.json must be at least, or with `upper` at most, `limit`.

    `expected`: what the model is believed to reach, on the right side of the limit.
    """

    number: str
    limit: float
    expected: float
    upper: bool = False

    def passed(self, found: Estimate) -> bool:
        """Whether the whole interval meets the limit; False without one."""
        if found.ci95 is None:
            return False
        return found.ci95[1] <= self.limit if self.upper else found.ci95[0] >= self.limit

    def n_needed(self, power: float, design_effect: float) -> int:
        """How many of `UNITS` show it with that chance, if what is expected is true.

        Of the score test that Wilson's interval inverts (Fleiss, Levin & Paik 2003), for rates
        with Poisson's variance; times the design effect of patients.

        >>> AcceptanceCriterion("lesion_recall", 0.8, 0.9).n_needed(0.8, 1.0)
        108
        """
        share = UNITS[self.number][1]
        spread = [
            math.sqrt(value * (1 - value) if share else value)
            for value in (self.limit, self.expected)
        ]
        reach = float(ndtri(0.975)) * spread[0] + float(ndtri(power)) * spread[1]
        return math.ceil(design_effect * (reach / (self.expected - self.limit)) ** 2)


@dataclass(frozen=True)
class AcceptancePlan:
    """The criteria of a file, when and by whom they were stated, and the file's SHA-256.

    `power`: the chance of passing that the sample is planned for. `design_effect`: by how much
    lesions and false positives of one patient, being alike, enlarge it.
    """

    criteria: tuple[AcceptanceCriterion, ...]
    stated_on: date
    sha256: str
    stated_by: str = ""
    power: float = 0.8
    design_effect: float = 2.0


@dataclass(frozen=True)
class AcceptanceResult:
    """One criterion with what was found, and the sample: needed and there, in units and scans."""

    criterion: AcceptanceCriterion
    found: Estimate
    n_needed: int
    n_there: int
    scans_needed: int | None

    @property
    def passed(self) -> bool:
        """Whether the criterion is met."""
        return self.criterion.passed(self.found)


def judge(plan: AcceptancePlan, scores: Scores) -> tuple[AcceptanceResult, ...]:
    """Each criterion against the scores."""
    # older files do not state it; a case of which not all labels are known may be neither
    stated = scores.raw.get("case_sensitivity") or {}
    with_lesions = stated.get("n", scores.n_cases - scores.n_lesion_free_cases)
    there = {
        "lesion_recall": scores.n_lesions,
        "case_sensitivity": with_lesions,
        "case_specificity": scores.n_lesion_free_cases,
        "false_positives_per_case": scores.n_cases,
    }
    found = []
    for one in plan.criteria:
        clustered = one.number in ("lesion_recall", "false_positives_per_case")
        needed = one.n_needed(plan.power, plan.design_effect if clustered else 1.0)
        n = there[one.number]
        scans = math.ceil(needed * scores.n_cases / n) if n else None
        found.append(AcceptanceResult(one, scores.estimate(one.number), needed, n, scans))
    return tuple(found)


def read_acceptance(path: Path) -> AcceptancePlan:
    """Read acceptance.yaml.

    Raises `ReadError` for a file that is missing or no YAML mapping, `ConfigError` for a key or
    value that is wrong, saying which is right.
    """
    import yaml

    try:
        content = path.read_bytes()
        raw = yaml.safe_load(content)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ReadError("Cannot read the acceptance file.", where=path, seen=error) from error
    if not isinstance(raw, dict) or not raw.get("criteria"):
        raise ReadError(
            "The acceptance file has no criteria.", where=path, expected="criteria: [ ]"
        )
    for key in raw:
        one_of("key", str(key), _PLAN_KEYS, where=str(path))
    stated_on = raw.get("stated_on")
    if not isinstance(stated_on, date):
        raise ConfigError(
            "An acceptance test needs the date on which its criteria were stated.",
            where=f"{path}: stated_on",
            seen=stated_on,
            remedy="write a date such as 2025-03-01.",
        )
    power = _number(raw.get("power", 0.8), 0.0, 1.0, f"{path}: power")
    return AcceptancePlan(
        tuple(_criterion(row, f"{path}: criteria") for row in raw["criteria"]),
        stated_on,
        hashlib.sha256(content).hexdigest(),
        str(raw.get("stated_by") or ""),
        power,
        _number(raw.get("design_effect", 2.0), 0.99, math.inf, f"{path}: design_effect"),
    )


def _criterion(row: Any, where: str) -> AcceptanceCriterion:
    require(isinstance(row, dict), "A criterion is a mapping.", where=where, seen=row)
    for key in row:
        one_of("key", str(key), _KEYS, where=where)
    number = str(row.get("number"))
    one_of("number", number, UNITS, where=where)
    share = UNITS[number][1]
    side = "at_least" if share else "at_most"
    most = 1.0 if share else math.inf
    limit = _number(row.get(side), 0.0, most, f"{where}: {number}: {side}")
    expected = _number(row.get("expected"), 0.0, most, f"{where}: {number}: expected")
    if expected == limit or (expected > limit) is not share:
        raise ConfigError(
            "What is expected must be better than the limit, or no sample is large enough.",
            where=f"{where}: {number}",
            seen=f"expected {expected:g}, {side} {limit:g}",
        )
    return AcceptanceCriterion(number, limit, expected, upper=not share)


def _number(value: Any, low: float, high: float, where: str) -> float:
    """A number between two others, neither of them."""
    require(
        isinstance(value, int | float) and not isinstance(value, bool) and low < value < high,
        "A number of the acceptance file is missing or out of range.",
        where=where,
        seen=value,
        remedy=f"write a number between {low:g} and {high:g}.",
    )
    return float(value)

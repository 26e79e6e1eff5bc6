"""study.yaml: what a report cannot know by itself, and the way from found to evaluated."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lesionseg.errors import ConfigError
from lesionseg.io.atomic import read_yaml
from lesionseg.report import text
from lesionseg.report.result_tables import Tables

COUNTS = ("n_found", "n_excluded")


@dataclass(frozen=True)
class Study:
    """What was supplied, by key of `text.STUDY`; blank keys are absent."""

    answers: Mapping[str, str] = field(default_factory=dict)
    n_found: int | None = None
    n_excluded: int | None = None

    def lines(self) -> list[tuple[str, str]]:
        """Every question with its answer, or with `not stated`."""
        return [
            (question, self.answers.get(key, text.NOT_STATED))
            for key, question in text.STUDY.items()
        ]


@dataclass(frozen=True)
class Flow:
    """Scans from found to evaluated; None where it is not stated."""

    n_found: int | None
    n_excluded: int | None
    exclusions: str
    n_entered: int
    n_failed: int

    @property
    def n_with_result(self) -> int:
        """Scans that have a prediction to judge."""
        return self.n_entered - self.n_failed

    def lines(self) -> list[tuple[str, str]]:
        """The steps from found to evaluated, with their numbers."""
        steps = (
            (text.FLOW_FOUND, self.n_found),
            (text.FLOW_EXCLUDED, self.n_excluded),
            (text.FLOW_ENTERED, self.n_entered),
            (text.FLOW_FAILED, self.n_failed),
            (text.FLOW_RESULT, self.n_with_result),
        )
        return [(words, text.NOT_STATED if n is None else str(n)) for words, n in steps]

    @property
    def n_unexplained(self) -> int:
        """Scans that the stated numbers leave unaccounted for."""
        if self.n_found is None:
            return 0
        return self.n_found - (self.n_excluded or 0) - self.n_entered


def read_study(path: Path | None) -> Study:
    """Read a study.yaml; None gives an empty one.

    Raises `ReadError` for a file that is missing or no YAML mapping, `ConfigError` for a key that
    there is none of, naming the nearest, and for a count that is no whole number.
    """
    if path is None:
        return Study()
    answers = {key: value for key, value in read_yaml(path).items() if value not in (None, "")}
    for key in answers:
        if key not in (*text.STUDY, *COUNTS):
            near = difflib.get_close_matches(str(key), [*text.STUDY, *COUNTS], n=1)
            raise ConfigError(
                f"There is no key {key!r} in a study file.",
                where=path,
                expected=near[0] if near else ", ".join([*COUNTS, *text.STUDY]),
            )
    found, excluded = (_count(answers.pop(name, None), f"{path}: {name}") for name in COUNTS)
    return Study({key: _words(value) for key, value in answers.items()}, found, excluded)


def make_flow(tables: Tables, study: Study) -> Flow:
    """The way of the scans, from the tables and what was supplied."""
    failed = sum(case.failed for case in tables.cases)
    exclusions = study.answers.get("exclusions", text.NOT_STATED)
    return Flow(study.n_found, study.n_excluded, exclusions, tables.scores.n_cases, failed)


def _count(value: Any, where: str) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ConfigError("A number of scans is no whole number.", where=where, seen=value)
    return value


def _words(value: Any) -> str:
    return "; ".join(map(str, value)) if isinstance(value, list) else " ".join(str(value).split())

"""Where the figures come from, and what cases are called: nothing names a person or place."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from lesionseg.evaluation.rows import CandidateRow, CaseRow, LesionRow
from lesionseg.evaluation.score_sections import Scores
from lesionseg.evaluation.table_row import TableRow, write_table
from lesionseg.io.atomic import read_yaml
from lesionseg.report import text
from lesionseg.report.result_tables import Tables

# Long hexadecimal numbers: hashes of data, which others could recompute from the same files.
HASH = re.compile(r"\b[0-9a-fA-F]{32,}\b")
PATH = re.compile(r"[/\\]")
# settings that hold a place, even where it has no separator
ABOUT_DATA = re.compile(r"(^|[._])(root|dir|path|file|splits)$")


def origin(scores: Scores, run: Path, *, identifiers: bool) -> list[tuple[str, str]]:
    """Everything the scores say of their origin and, of a run directory, its settings.

    Nested keys are joined by dots. Without `identifiers`, paths and hashes are withheld.
    """
    facts = {
        "preset": scores.preset,
        "evaluated_on": scores.evaluated_on,
        "split_is_group_safe": scores.split_is_group_safe,
        "operating_point": scores.raw.get("operating_point") or {},
        **scores.provenance,
        **({"config": config} if (config := _config(run)) else {}),
    }
    lines = [(key, _words(value)) for key, value in _flatten(facts)]
    return [(key, value if identifiers else withhold(key, value)) for key, value in lines]


def trained_model(scores: Scores, run: Path) -> str:
    """The network of a run directory and what trained it; empty for other evaluations."""
    network = (_config(run).get("model") or {}).get("architecture")
    if not isinstance(network, str):
        return ""
    made = scores.provenance
    return text.trained(network, str(made.get("lesionseg", "")), str(made.get("git_commit") or ""))


def withhold(key: str, value: str) -> str:
    """The value, or a word in its place when it is a path, a hash or the name of a data set.

    >>> withhold("seed", "0"), withhold("data_sha256", "0123456789abcdef" * 4)[:8]
    ('0', 'withheld')
    """
    module = key.endswith("_target_")
    found = HASH.search(value) or PATH.search(value) or ABOUT_DATA.search(key)
    known = not found or module or value == text.NOT_STATED
    return value if known else text.say("WITHHELD")


def _config(run: Path) -> Mapping[str, Any]:
    """The resolved configuration of a run directory; empty when these scores have none."""
    path = (run.parent if run.name == "test" else run) / "config.yaml"
    return read_yaml(path) if path.is_file() else {}


def _words(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(_words(item) for item in value)
    if isinstance(value, bool):
        return str(text.ANSWERS[value])
    return str(text.NOT_STATED if value is None else value)


def _flatten(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


Named = TypeVar("Named", CaseRow, LesionRow, CandidateRow)
# Shorter names would be found by chance in any text.
MIN_SEARCHED = 4


@dataclass(frozen=True)
class PseudonymRow(TableRow):
    """One line of pseudonyms.csv: what a case and its patient are called on the page."""

    pseudonym: str
    case: str
    patient_pseudonym: str
    group: str


@dataclass(frozen=True)
class Names:
    """The shown name of each case and each group."""

    cases: Mapping[str, str]
    groups: Mapping[str, str]

    def real_case(self, shown: str) -> str:
        """The case behind a shown name."""
        return next(case for case, name in self.cases.items() if name == shown)


def make_pseudonyms(tables: Tables) -> Names:
    """`case 1`, `patient 1` and so on, in the order of cases.csv."""
    return Names(
        _numbered((row.case for row in tables.cases), text.PSEUDONYM_CASE),
        _numbered((row.group for row in tables.cases), text.PSEUDONYM_PATIENT),
    )


def rename(tables: Tables, names: Names) -> Tables:
    """The same tables with the shown names; rows of unlisted cases keep no name at all.

    A subgroup that is one case or patient has its shown name too.
    """

    def shown(row: Named) -> Named:
        case, group = names.cases.get(row.case), names.groups.get(row.group)
        return replace(row, case=case or text.NONE, group=group or text.NONE)

    real = {**names.groups, **names.cases}
    subgroups = tuple(
        replace(group, value=real.get(group.value, group.value))
        for group in tables.details.subgroups
    )
    return replace(
        tables,
        details=replace(tables.details, subgroups=subgroups),
        cases=tuple(map(shown, tables.cases)),
        lesions=tuple(map(shown, tables.lesions)),
        candidates=tuple(map(shown, tables.candidates)),
    )


def write_pseudonyms(path: Path, tables: Tables, names: Names) -> None:
    """Write which case each pseudonym stands for: a file to keep, not to pass on."""
    rows = [
        PseudonymRow(names.cases[row.case], row.case, names.groups[row.group], row.group)
        for row in tables.cases
    ]
    write_table(path, rows, PseudonymRow)


def names_in(page: str, names: Names) -> tuple[str, ...]:
    """Real names of cases and groups that stand in a page's text, pictures left out."""
    words = re.sub(r"data:image/[^\"']*", "", page)
    real = {*names.cases, *names.groups} - {*names.cases.values(), *names.groups.values()}
    parts = set(re.findall(r"\w+", words))
    return tuple(
        name
        for name in sorted(real)
        # what is quick first: of 100 000 names nearly none has all its parts in the page
        if len(name) >= MIN_SEARCHED
        and parts.issuperset(re.findall(r"\w+", name))
        and name in words
        and re.search(rf"(?<!\w){re.escape(name)}(?!\w)", words)
    )


def _numbered(values: Iterable[str], word: str) -> dict[str, str]:
    return {value: f"{word} {n}" for n, value in enumerate(dict.fromkeys(values), start=1)}

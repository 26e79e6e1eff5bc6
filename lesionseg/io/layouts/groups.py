"""Which cases belong together: a group, most often a patient, must not straddle a split."""

import logging
import re
from collections.abc import Sequence
from dataclasses import replace

from lesionseg.core import CaseFiles
from lesionseg.errors import ConfigError, DatasetError

logger = logging.getLogger(__name__)

_BIDS_SUBJECT = re.compile(r"(?:^|_)(sub-[A-Za-z0-9]+)")
_HALF = re.compile(r"(.*[^_.-])[_.-]?([LR])")


def assign_groups(
    cases: Sequence[CaseFiles], pattern: str | None, *, setting: str = "data.group"
) -> tuple[CaseFiles, ...]:
    """Give every case its group.

    With a `pattern` (regular expression searched in the case id) the group is its first bracket,
    or the whole match. Else it is the first of these that applies: what the dataset says (already
    in `case.group`), the BIDS subject `sub-…` in the id, the common part of two ids that differ
    only in a last L or R (two halves of one patient), the id itself. `setting` is what messages
    call the pattern. Raises `DatasetError` for a case that `pattern` does not fit, and
    `ConfigError` for one that is not a regular expression.
    """
    if pattern is not None:
        compiled = _compiled(pattern, setting)
        return tuple(replace(c, group=_by_pattern(c.case, compiled, setting)) for c in cases)
    halves = _halves([c.case for c in cases if not c.group], setting)
    return tuple(replace(c, group=c.group or _by_name(c.case, halves)) for c in cases)


def _compiled(pattern: str, setting: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ConfigError(
            f"The group pattern is not a regular expression: {error}.",
            where=setting,
            seen=pattern,
        ) from error


def _by_pattern(case: str, pattern: re.Pattern[str], setting: str) -> str:
    match = pattern.search(case)
    group = "" if match is None else (match.group(1) if pattern.groups else match.group(0))
    if not group:
        raise DatasetError(
            f"The group pattern does not fit the case {case!r}.",
            where=setting,
            seen=pattern.pattern,
            remedy="Change the pattern so that it finds the patient in every case id.",
        )
    return group


def _by_name(case: str, halves: dict[str, str]) -> str:
    subject = _BIDS_SUBJECT.search(case)
    return subject.group(1) if subject else halves.get(case, case)


def _halves(ids: Sequence[str], setting: str) -> dict[str, str]:
    """Group of each id whose twin, with L for R or R for L at its end, is there too."""
    present = set(ids)
    found = {
        case: match.group(1)
        for case in ids
        if (match := _HALF.fullmatch(case)) and case[:-1] + "LR"[case[-1] == "L"] in present
    }
    if found:
        logger.info(
            "%d cases differ only in a last L or R and are taken as halves of %d patients; "
            "%s=<regular expression> says otherwise.",
            len(found),
            len(set(found.values())),
            setting,
        )
    return found

"""The recipe of `overlap`: a test set's cases against those that a model has seen."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lesionseg.core import CaseFiles
from lesionseg.evaluation.table_row import TableRow, write_table
from lesionseg.inference.bundles.training_cases import TrainingCase, hashed, read_training_cases
from lesionseg.io.layouts.conventions import assign_groups, read_dataset, recognised
from lesionseg.io.layouts.input_images import find_images
from lesionseg.io.local_files import image_digests
from lesionseg.pipeline.run.outcome import Advance, CommandOutcome, bar

_log = logging.getLogger(__name__)

Same = Literal["image", "case", "patient", "nothing"]


@dataclass(frozen=True, kw_only=True)
class OverlapRow(TableRow):
    """One line of overlap.csv: a case, and what it shares with one that the model has seen.

    `same`: an image's content (of any channel), else the case's name, else the patient's, else
    nothing. `seen_as`: what the model used that case for; see `TrainingCase`.
    """

    case: str
    group: str = ""
    same: Same
    seen_as: str = ""


class OverlapOutcome(tuple[OverlapRow, ...], CommandOutcome):
    """One row per case, in the order of the dataset."""

    @property
    def exit_status(self) -> int:
        """1 when the model has seen a case or a patient, else 0."""
        return int(any(row.same != "nothing" for row in self))

    def summary(self) -> list[str]:
        """How many cases were seen, by what that shows, and which."""
        counts = Counter(row.same for row in self)
        shared = ", ".join(f"{counts[same]} by {same}" for same in ("image", "case", "patient"))
        seen = [row for row in self if row.same != "nothing"]
        return [
            f"{len(seen)} of {len(self)} cases have been seen by the model ({shared}).",
            *(f"{row.case}: same {row.same} as in {row.seen_as}" for row in seen[:20]),
            *([f"… and {len(seen) - 20} more"] if len(seen) > 20 else []),
        ]


def overlap(
    bundle: str | Path | Sequence[str | Path],
    input: str | Path,
    output: str | Path = ".",
    *,
    group: str | None = None,
    progress: Advance | None = None,
) -> OverlapOutcome:
    """Say which cases of a test set a model has seen; writes `overlap.csv` into `output`.

    `input`: a dataset in any layout, of which the test and external cases are looked at where it
    states such roles, or a folder of scans. `group`: regular expression on the case id that names
    the patient. Several bundles have seen what any of them has. Raises `BundleError` for a bundle
    that lists no training cases, `DatasetError` without cases, `ReadError` for a broken file.
    """
    bundles = (bundle,) if isinstance(bundle, str | Path) else tuple(bundle)
    seen = [case for one in bundles for case in read_training_cases(Path(one))]
    if any(case.seen_as == "unknown" for case in seen):
        _log.warning("The model began with weights whose cases are not known: it may have seen any")
    cases, rows = assign_groups(_cases(Path(input)), group, setting="group"), []
    known = _known(seen)
    with bar("Comparing") as advance:
        for done, files in enumerate(cases, start=1):
            rows.append(_row(files, known))
            (progress or advance)(files.case, done, len(cases))
    write_table(Path(output) / "overlap.csv", rows, OverlapRow)
    return OverlapOutcome(rows)


def _cases(source: Path) -> Sequence[CaseFiles]:
    if recognised(source) is None:
        return find_images(source, 1)
    cases = read_dataset(source, may_lack=True).cases
    untouched = [case for case in cases if case.role in ("test", "external")]
    if untouched and len(untouched) < len(cases):
        _log.info("Only the %d test cases of %d are compared.", len(untouched), len(cases))
    return untouched or cases


_Known = dict[tuple[Same, str], str]


def _known(seen: Sequence[TrainingCase]) -> _Known:
    """What each hash was seen as: training before validation before earlier."""
    known: _Known = {}
    for case in seen:
        hashes: list[tuple[Same, str]] = [("image", image) for image in case.images]
        hashes += [("case", case.case), ("patient", case.patient), ("patient", case.case)]
        for key in hashes:
            known.setdefault(key, case.seen_as)
    return known


def _row(files: CaseFiles, known: _Known) -> OverlapRow:
    hashes: list[tuple[Same, str]] = [("image", image) for image in image_digests(files)]
    hashes += [("case", hashed(files.case)), ("patient", hashed(files.group or files.case))]
    same, digest = next((key for key in hashes if key in known), ("nothing", ""))
    return OverlapRow(
        case=files.case, group=files.group, same=same, seen_as=known.get((same, digest), "")
    )

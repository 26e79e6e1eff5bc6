"""The recipe of `follow`: pair the visits, say what became of each lesion, judge what is new."""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from lesionseg.errors import DatasetError, require
from lesionseg.evaluation import find_preset
from lesionseg.evaluation.change import (
    STATES,
    ChangeRule,
    LesionChange,
    find_changes,
    repeatability,
)
from lesionseg.io.atomic import write_json
from lesionseg.io.folder_locks import locks
from lesionseg.io.predictions import find_masks
from lesionseg.pipeline.follow.change_report import is_reported
from lesionseg.pipeline.follow.gathered_pairs import Gathered, summary_json
from lesionseg.pipeline.follow.new_lesions import (
    choose_point,
    judge_new,
    new_lesions,
)
from lesionseg.pipeline.follow.visit_list import check_source, pairs_of, read_timelines
from lesionseg.pipeline.follow.visit_pairs import (
    PairFiles,
    Register,
    VisitPair,
    check_labels,
    check_register,
    find_pairs,
    open_pair,
)
from lesionseg.pipeline.judging.case_pairs import Scoring
from lesionseg.pipeline.run.outcome import Advance, CommandOutcome, aligned, bar

_log = logging.getLogger(__name__)

VISITS = ("before", "after")  # the two folders of test–retest and of stable pairs


@dataclass(frozen=True)
class FollowOutcome(CommandOutcome):
    """The changes, as they stand in `output/changes.csv`, and how many pairs there were.

    `n_failed`: visits that could not be predicted.
    """

    changes: tuple[LesionChange, ...]
    n_pairs: int
    output: Path
    n_failed: int = 0

    @property
    def exit_status(self) -> int:
        """1 when a visit could not be predicted, else 0."""
        return int(self.n_failed > 0)

    def summary(self) -> list[str]:
        """How many lesions are in each state, how many of them count, and per pair."""
        everyone = Counter(c.state for c in self.changes)
        accepted = Counter(c.state for c in self.changes if c.accepted)
        rows = [
            (s, str(everyone[s]), str(accepted[s]), f"{accepted[s] / self.n_pairs:.2f}")
            for s in STATES
        ]
        lines = aligned([("", "lesions", "accepted", "per pair"), *rows])
        return [*lines, f"{self.n_pairs} pairs: {self.output / 'changes.csv'}"]


@locks("output")
def follow(
    before: str | Path | None,
    after: str | Path | None,
    output: str | Path,
    *,
    visits: str | Path | None = None,
    bundle: str | Path | Sequence[str | Path] | None = None,
    predictions: str | Path | None = None,
    operating_point: str | None = None,
    before_images: str | Path | None = None,
    after_images: str | Path | None = None,
    register: str = "auto",
    reference: str | Path | None = None,
    stable: str | Path | Sequence[str] | None = None,
    false_new_per_pair: float = 0.5,
    rate_confidence: float | None = 0.9,
    retest: str | Path | None = None,
    overlap: float = 0.1,
    confidence: float = 0.99,
    replicates: int = 1000,
    dicom_output: bool = True,
    identifiers: bool = False,
    seed: int = 0,
    progress: Advance | None = None,
) -> FollowOutcome:
    """Compare two visits case by case; writes changes.csv, pairs.csv, follow.json, follow.html.

    Either two folders, or a table of visits, each compared with the one before; with a `bundle`
    they are predicted first, into `output/predictions`. Cases of one folder alone, and visits
    without another, are named in a warning and in follow.json. Raises `ConfigError`,
    `DatasetError`, `ReadError`, `GeometryError` or `ContentError`, and then writes nothing.

    Args:
        before: masks or predictions of the earlier visit, named by case; None with `visits`.
        after: those of the later visit, named alike.
        output: the folder for the tables.
        visits: a table `case, image, group, visit` of patients' visits; see `read_timelines`.
        bundle: predicts the visits of the table; several are averaged.
        predictions: a folder of masks or predictions of them, named by case, in place of `bundle`.
        operating_point: of the prediction; None: the bundle's first.
        before_images: the earlier scans, named by case: to register by, and for pictures.
        after_images: the later ones.
        register: `headers` trusts positions, `rigid` registers, `auto` does so where grids differ.
        reference: masks of the new lesions by case, on the later grid; writes scores.json.
        stable: case ids among the pairs, or a folder with `before` and `after` (and the scans in
            `before_images` and `after_images`), in which nothing is new: the operating point is
            chosen on them. None: every new lesion counts.
        false_new_per_pair: what the operating point is chosen for.
        rate_confidence: the chance that as many other pairs keep to it; None: the rate observed.
        retest: a folder with `before` and `after`, scanned twice without a change: the smallest
            change is estimated from them. None: the grid's own error alone.
        overlap: see `ChangeRule`.
        confidence: see `ChangeRule`.
        replicates: of the bootstrap behind every interval.
        dicom_output: pairs whose later scan is DICOM also get a structured report of the changes.
        identifiers: print the real names of cases on the page.
        seed: of the bootstrap.
        progress: called with case, number done and total, in place of a bar.
    """
    require(
        false_new_per_pair >= 0,
        "A rate cannot be negative.",
        where="false_new_per_pair",
        seen=false_new_per_pair,
    )
    check_source(before, after, visits, bundle, predictions)
    way, rule = check_register(register), ChangeRule(overlap, confidence)
    if before is not None and after is not None:
        scans = _path(before_images), _path(after_images)
        lists, n_failed = find_pairs(Path(before), Path(after), *scans), 0
    else:
        timelines, n_failed = read_timelines(Path(str(visits))), 0
        folder = Path(output) / "predictions" if predictions is None else Path(predictions)
        if bundle is not None:
            n_failed = _predict(bundle, Path(str(visits)), folder, operating_point, progress)
        lists = pairs_of(timelines, folder)
    masks = {} if reference is None else _reference_masks(Path(reference), lists.pairs)
    if retest is not None:
        rule = replace(rule, repeatability=_repeatability(Path(retest), rule, way))
    point = None
    if stable is not None:
        results = [
            judge_new(new_lesions(pair.prediction, changes), None)
            for _, pair, changes in _followed(_stable_pairs(stable, lists.pairs), rule, way)
        ]
        point = choose_point(results, false_new_per_pair, rate_confidence)
    if dicom_output:
        any(map(is_reported, lists.pairs))  # before anything is read
    reports = Path(output) if dicom_output else None
    gathered = Gathered(_shown_names(lists.pairs, identifiers), reports)
    with bar("Following") if progress is None else nullcontext(progress) as advance:
        for files, pair, changes in _followed(lists.pairs, rule, way, advance):
            gathered.add(files, pair, changes, point, masks.get(pair.case))
    folder = Path(output)
    if masks:
        scoring = Scoring(
            find_preset("lesionseg"),
            "unknown",
            operating_point=point,
            replicates=replicates,
            seed=seed,
            provenance={"judged": "new lesions between two visits"},
        )
        scoring.write(folder, gathered.judged, scoring.sum_up(gathered.judged))
    gathered.write(folder, rule, point)
    write_json(folder / "follow.json", summary_json(lists, rule, point))
    return FollowOutcome(tuple(gathered.changes), len(lists.pairs), folder, n_failed)


def _predict(
    bundle: str | Path | Sequence[str | Path],
    table: Path,
    output: Path,
    operating_point: str | None,
    progress: Advance | None,
) -> int:
    """Predict all visits; how many could not be."""
    from lesionseg.pipeline.predict import predict  # here: masks alone need no network

    rows = predict(bundle, table, output, operating_point=operating_point, progress=progress)
    for row in rows:
        if row.status == "failed":
            _log.warning("Visit %s could not be predicted: %s", row.case, row.message)
    return sum(row.status == "failed" for row in rows)


def _shown_names(pairs: Sequence[PairFiles], identifiers: bool) -> dict[str, str]:
    """What each case is called on the page: its name, or its place in pairs.csv."""
    cases = [files.case for files in pairs]
    numbered = {case: f"case {n}" for n, case in enumerate(cases, start=1)}
    return {case: case for case in cases} if identifiers else numbered


def _followed(
    pairs: Sequence[PairFiles], rule: ChangeRule, way: Register, progress: Advance | None = None
) -> Iterator[tuple[PairFiles, VisitPair, list[LesionChange]]]:
    """Each pair with its changes; refuses visits whose labels differ when all have been read."""
    labels: tuple[set[int], set[int]] = set(), set()
    for done, files in enumerate(pairs, start=1):
        pair = open_pair(files, way)
        for seen, visit in zip(labels, (pair.before, pair.after), strict=True):
            seen |= set(visit.lesions.labels.tolist())
        yield files, pair, find_changes(pair.case, pair.before, pair.after, rule)
        if progress:
            progress(pair.case, done, len(pairs))
    check_labels(*labels)


def _repeatability(folder: Path, rule: ChangeRule, way: Register) -> float:
    followed = _followed(_pairs_in(folder), rule, way)
    return repeatability([change for *_, found in followed for change in found], rule)


def _pairs_in(folder: Path) -> Sequence[PairFiles]:
    """The pairs of a folder that holds `before` and `after`, and perhaps the scans of both."""
    scans = [folder / f"{visit}_images" for visit in VISITS]
    images = scans if all(place.is_dir() for place in scans) else []
    return find_pairs(*(folder / visit for visit in VISITS), *images).pairs


def _stable_pairs(
    stable: str | Path | Sequence[str], pairs: Sequence[PairFiles]
) -> Sequence[PairFiles]:
    """The pairs in which nothing is new: a folder's, or those of the named cases."""
    if isinstance(stable, str | Path) and Path(stable).is_dir():
        return _pairs_in(Path(stable))
    named = {str(stable)} if isinstance(stable, str | Path) else set(stable)
    stable_pairs = [pair for pair in pairs if pair.case in named]
    unknown = sorted(named - {pair.case for pair in pairs})
    if unknown or not stable_pairs:
        raise DatasetError(
            "A stable case is not among the pairs.",
            where="stable",
            seen=", ".join(unknown) or "no case",
            expected=f"a folder, or cases such as {', '.join(pair.case for pair in pairs[:3])}",
        )
    return stable_pairs


def _reference_masks(folder: Path, pairs: Sequence[PairFiles]) -> Mapping[str, Path]:
    """The masks of change of the pairs; those without one are named in a warning, not judged."""
    masks = find_masks(folder)
    present = {pair.case: masks[pair.case] for pair in pairs if pair.case in masks}
    if not present:
        raise DatasetError(
            "No reference of change has the name of a pair.",
            where=folder,
            seen=", ".join(list(masks)[:3]),
            expected=", ".join(pair.case for pair in pairs[:3]),
        )
    missing = [pair.case for pair in pairs if pair.case not in present]
    if missing:
        _log.warning("No reference of change; not judged: %s", ", ".join(missing))
    return present


def _path(given: str | Path | None) -> Path | None:
    return None if given is None else Path(given)

"""`evaluate`: compares predicted files with reference files, case by case.

In come two folders of anybody's masks, boxes or candidates; out go `scores.json` and the tables of
cases, lesions and candidates.
"""

import logging
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from lesionseg.config import EvaluateConfig
from lesionseg.core import UNKNOWN_ROLE, CaseFiles, Dataset, OperatingPoint
from lesionseg.errors import ConfigError, DatasetError
from lesionseg.evaluation import find_preset
from lesionseg.evaluation.adjudication import adjudicate, read_verdicts
from lesionseg.evaluation.compare import compare as compare_models
from lesionseg.inference.decision import choose_operating_point
from lesionseg.io.files import locks, read_csv
from lesionseg.io.layouts.conventions import assign_groups, read_dataset, recognised
from lesionseg.io.predictions import find_masks, find_predictions
from lesionseg.io.volumes import is_image_file
from lesionseg.io.zone_files import find_zones
from lesionseg.pipeline.log import Advance, bar, scores_lines
from lesionseg.pipeline.score import (
    CasePair,
    Scoring,
    match_pairs,
    open_reference,
    prediction_reader,
    read_columns,
)

__all__ = ["EvaluateOutcome", "evaluate"]

_log = logging.getLogger(__name__)
COMPARED = "compare"  # where the second model's tables lie in an output folder
UNSTATED = ("train", "validation")  # what a case without a stated role may be


@dataclass(frozen=True)
class EvaluateOutcome:
    """The scores, as they stand in `output/scores.json`."""

    scores: Mapping[str, Any]
    output: Path

    def summary(self) -> list[str]:
        """The table of the most important numbers."""
        return scores_lines({str(self.scores["evaluated_on"]): self.scores})


@locks("output")
def evaluate(cfg: EvaluateConfig, *, progress: Advance | None = None) -> EvaluateOutcome:
    """Compare a folder of predictions with references; writes scores.json and three tables.

    A case without prediction counts as missed lesions; a prediction without reference is named in a
    warning. Of a dataset that states roles those of `cfg.evaluated_on` alone are evaluated; None:
    cases of a role of which nothing was predicted are left out, and the role is the one that the
    dataset states of all the others, else `unknown`. A second model's tables (`cfg.compare`) go
    into `output/compare`. `progress` is called with case, number done and total, in place of a bar.
    Raises `ConfigError`, `DatasetError`, `ReadError`, `GeometryError` or `ContentError`, and then
    writes nothing.
    """
    point, rule, output = (
        _operating_point(cfg.operating_point),
        find_preset(cfg.preset),
        Path(cfg.output),
    )
    dataset, labelled = open_references(Path(cfg.reference))
    chosen = of_role(labelled, find_predictions(Path(cfg.prediction)), cfg.evaluated_on)
    stated = {c.role for c in chosen}
    role = cfg.evaluated_on or (stated.pop() if len(stated) == 1 else None) or UNKNOWN_ROLE
    cases = assign_groups(chosen, cfg.groups, setting="groups")
    pairs_with = partial(
        _pairs, cases, {c.case for c in labelled}, dataset, role=role, resample=cfg.resample
    )
    pairs = pairs_with(Path(cfg.prediction))
    if cfg.zones is not None:
        anatomy = find_zones(Path(cfg.zones))
        anatomy.check([pair.case for pair in pairs])
        pairs = [replace(pair, zones=anatomy.read) for pair in pairs]
    others = None if cfg.compare is None else pairs_with(Path(cfg.compare))
    verdicts = None
    if cfg.adjudication is not None:
        verdicts = read_verdicts(read_csv(Path(cfg.adjudication)), cfg.adjudication)
    scoring = Scoring(
        rule,
        role,
        point,
        labels=dataset.lesion_labels if dataset else {},
        replicates=cfg.replicates,
        seed=cfg.seed,
        provenance=_provenance(dataset),
        columns=read_columns(cases, Path(cfg.columns) if cfg.columns else None),
        subgroups=cfg.subgroups,
    )
    with bar("Scoring") if progress is None else nullcontext(progress) as advance:
        results = [m.result(point) for m in match_pairs(pairs, rule, progress=advance)]
    scores = scoring.sum_up(results)
    if others is not None:
        second = [match.result() for match in match_pairs(others, rule)]
        scores["comparison"] = compare_models(
            results,
            second,
            fp_per_case=rule.fp_per_case,
            margin=cfg.margin,
            replicates=cfg.replicates,
            seed=cfg.seed,
        )
        own = replace(scoring, operating_point=None, columns=None, subgroups=None, provenance={})
        own.write(output / COMPARED, second, own.sum_up(second))
    if verdicts is not None:
        scores["adjudication"] = adjudicate(results, verdicts)
    scoring.write(output, results, scores)
    return EvaluateOutcome(scores, output)


def open_references(folder: Path) -> tuple[Dataset | None, list[CaseFiles]]:
    """The dataset that a folder holds (None for a folder of masks), and all labelled cases.

    Masks named after BIDS that lie in the folder itself are a folder of masks. Raises
    `DatasetError` where there is no reference.
    """
    name = recognised(folder)
    if name is None or (name == "bids" and any(is_image_file(f) for f in folder.iterdir())):
        masks = find_masks(folder)
        return None, [CaseFiles(case, (), reference=path) for case, path in masks.items()]
    dataset = read_dataset(folder, may_lack=True)
    labelled = [c for c in dataset.cases if c.is_labelled]
    if not labelled:
        raise DatasetError(f"{folder}: no case has a reference to compare with.")
    return dataset, labelled


def of_role(
    cases: Sequence[CaseFiles], predicted: Collection[str], evaluated_on: str | None
) -> list[CaseFiles]:
    """The cases to evaluate: of the role that is asked for, else of the roles that were predicted.

    Nothing is left out where the cases state no role. A case that states none counts as one to
    train or validate on. `external` says where the scans come from: it chooses only among cases
    some of which state it. Raises `DatasetError` when no case has the role that is asked for.
    """
    stated = {c.role for c in cases}
    if stated == {None}:
        return list(cases)
    if evaluated_on is None or (evaluated_on == "external" and "external" not in stated):
        roles: set[str | None] = {c.role for c in cases if c.case in predicted} or {*stated}
        hint = "without any prediction; evaluated_on= evaluates them"
    else:
        roles = {evaluated_on} | ({None} if evaluated_on in UNSTATED else set())
        hint = "of other roles"
    chosen = [c for c in cases if c.role in roles]
    if not chosen:
        names = " or ".join(sorted(role or UNSTATED[0] for role in stated))
        raise DatasetError(
            f"evaluated_on: no case of the reference has the role {evaluated_on}; there is {names}."
        )
    if len(chosen) < len(cases):
        _log.info("Left out: %d cases %s.", len(cases) - len(chosen), hint)
    return chosen


def _pairs(
    cases: Sequence[CaseFiles],
    labelled: Collection[str],
    dataset: Dataset | None,
    folder: Path,
    *,
    role: str,
    resample: bool,
) -> list[CasePair]:
    """Each case with its prediction in `folder`; warns of those without a counterpart.

    Raises `DatasetError` when no prediction is a case's.
    """
    files_of, ids = find_predictions(folder), {c.case for c in cases}
    missing, extra = sorted(ids - {*files_of}), sorted({*files_of} - {*labelled})
    if len(missing) == len(ids):
        raise DatasetError(
            f"{folder}: no prediction has the name of a reference, such as {missing[0]} "
            f"(there are {', '.join(extra[:3]) or 'none'}). Name them <case>_mask.* or <case>.*."
        )
    if missing:
        _log.warning("No prediction; all lesions count as missed: %s", ", ".join(missing))
    if extra:
        _log.warning("No reference; these predictions are left out: %s", ", ".join(extra))
    regions = dataset.regions if dataset else ()
    read = partial(prediction_reader, resample=resample, united=bool(regions))
    return [
        CasePair(
            case=files.case,
            reference=partial(open_reference, files, dataset),
            prediction=read(files_of[files.case]) if files.case in files_of else None,
            group=files.group,
            role=files.role or role,
            regions=regions,
        )
        for files in cases
    ]


def _operating_point(point: str | float | None) -> OperatingPoint | None:
    """The operating point as a user names it, `score:0.37` or 0.37; None: the predictions' own."""
    if point is None:
        return None
    name = str(point) if ":" in str(point) else f"score:{point}"
    if name.partition(":")[0].strip() in ("fp_per_case", "sensitivity"):
        raise ConfigError(
            f"operating_point: only a bundle knows the score of {point}. Write score:<0 to 1>; the "
            "bundle's plan.json lists the scores."
        )
    return choose_operating_point((), name)


def _provenance(dataset: Dataset | None) -> dict[str, Any]:
    if dataset is None:
        return {}
    return {
        "dataset": dataset.name,
        "convention": dataset.convention,
        "simulated": "simulated" in dataset.name.lower(),
        "incomplete_reference": dataset.incomplete_reference,
    }

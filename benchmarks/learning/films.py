"""Variants of a detector's recipe on radiographs: sensitivity and average precision after N steps.

    python benchmarks/learning/films.py --data DIR … --steps 600 --seeds 0 1 --output runs/films
    python benchmarks/learning/films.py --data DIR --variants "native=model.spacing_mm=[1,1]"

Each variant trains on 70 % of the patients of a set and is scored on the others. Boxes are compared
with boxes, also if the network draws masks, and all labels of a set count as one. The default
variant has the settings of `train` with `model=retinanet`.

A cell (set × variant × steps × seed) that is finished is a file in OUTPUT/cells and is not
repeated. An interrupted cell continues from its last checkpoint. `--table` writes all cells as CSV.
"""

import argparse
import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from benchmarks.learning.held_out import held_out
from lesionseg.cli import compose
from lesionseg.core import Candidate, Case, CaseFiles, Prediction, Volume
from lesionseg.data.cache import CachedCase
from lesionseg.evaluation import (
    MatchedCase,
    Scores,
    SummarySettings,
    Tables,
    match_case,
    summarise,
)
from lesionseg.evaluation.criteria import find_preset
from lesionseg.inference.bundle import Bundle
from lesionseg.inference.predictor import Predictor
from lesionseg.inference.read_ahead import predict_volumes
from lesionseg.io.cases import read_case
from lesionseg.io.text import read_json, write_json
from lesionseg.pipeline.dataset_inspection import DatasetInspection, inspect_dataset
from lesionseg.pipeline.experiment import Experiment
from lesionseg.pipeline.planning import plan_run, with_focal_correction
from lesionseg.pipeline.prepare import prepare_cases
from lesionseg.pipeline.train_fold import train_network
from lesionseg.plan.plan import Plan

COVERAGE = find_preset("lesionseg")
IOU40 = find_preset("iou:0.4")
PRESETS = (COVERAGE, IOU40)
COMMON = (
    "model=retinanet",
    "data.merge_labels=true",
    "trainer.accelerator=cpu",
    "trainer.workers=0",
    "trainer.validate_every_minutes=null",
    "trainer.lightning.enable_progress_bar=false",
)
VALIDATION_SHARE = 0.3

TrainFunction = Callable[[Experiment, Plan, Sequence[CachedCase]], tuple[Predictor, int]]

log = logging.getLogger("films")


@dataclass(frozen=True)
class CellName:
    """The identity of a cell.

    Attributes:
        dataset: Name of the set's folder.
        variant: Name of the variant.
        overrides: The settings in which the variant differs from the default.
        steps: Number of training steps.
        seed: Seed of weights and tiles.
    """

    dataset: str
    variant: str
    overrides: tuple[str, ...]
    steps: int
    seed: int

    @property
    def text(self) -> str:
        """The name of the cell's files."""
        return f"{self.dataset}__{self.variant}__{self.steps}steps__s{self.seed}"


def main(train: TrainFunction | None = None) -> None:
    """Train and score the missing cells, then print the table.

    Args:
        train: Trains a network and returns its predictor; None trains ours.
    """
    options = arguments()
    set_up(options.threads)
    rows = []
    for seed in options.seeds:
        for name, overrides in options.variants.items():
            for root in options.data:
                cell = CellName(root.name, name, overrides, options.steps, seed)
                rows.append(make_cell(cell, root, options.output, train or train_ours))
    show(rows, options.table)


def set_up(threads: int) -> None:
    """Limit the threads, and log only the cells and errors."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("lesionseg").setLevel(logging.ERROR)
    torch.set_num_threads(threads)


def show(rows: Sequence[Mapping[str, Any]], path: Path | None) -> None:
    """Print the rows of a table, and write them as CSV if there is a path."""
    table = pd.DataFrame(rows)
    print(table.to_string(index=False))
    if path is not None:
        table.to_csv(path, index=False)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="dataset folders")
    parser.add_argument(
        "--variants",
        nargs="*",
        default=["default="],
        help="NAME=OVERRIDE;OVERRIDE of train, for example 'default=' 'large=model.batch_size=8'",
    )
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("runs/films"))
    parser.add_argument("--table", type=Path, help="a CSV file for the rows")
    options = parser.parse_args()
    options.output = options.output.resolve()
    options.data = [root.resolve() for root in options.data]
    options.variants = dict(read_variant(text) for text in options.variants)
    return options


def read_variant(text: str) -> tuple[str, tuple[str, ...]]:
    """Return name and overrides of a variant.

    >>> read_variant("large=model.batch_size=8;optim.lr=0.001")
    ('large', ('model.batch_size=8', 'optim.lr=0.001'))
    """
    name, _, overrides = text.partition("=")
    return name, tuple(filter(None, overrides.split(";")))


def train_ours(
    experiment: Experiment, plan: Plan, cases: Sequence[CachedCase]
) -> tuple[Predictor, int]:
    """Train the plan's network. Return its predictor and the number of steps."""
    fitted = train_network(experiment, plan, cases, validate=None)
    cfg = experiment.cfg
    predictor = Predictor(
        Bundle((fitted.network,), with_focal_correction(plan, cfg.loss, cfg.detection)),
        device=fitted.device,
        settings=cfg.inference,
    )
    return predictor, fitted.steps


def make_cell(
    cell: CellName, root: Path, output: Path, train: TrainFunction = train_ours
) -> Mapping[str, Any]:
    """Return the row of a cell: read it if it is finished, otherwise train and score."""
    path = output / "cells" / f"{cell.text}.json"
    if path.is_file():
        row: Mapping[str, Any] = read_json(path)
        if row["overrides"] != ";".join(cell.overrides):
            sys.exit(f"{path} has other overrides: give the variant another name.")
        return row
    run = output / "runs" / cell.text
    run.mkdir(parents=True, exist_ok=True)
    typed = [*COMMON, f"data.root={root}", f"seed={cell.seed}", f"trainer.max_steps={cell.steps}"]
    cfg: Any = compose("train", [*typed, *cell.overrides])
    held = held_out(root, output / "cache", validation_fraction=VALIDATION_SHARE)
    found = held.as_development(inspect_dataset(held.data, 0, output / "cache" / "facts"))
    experiment = Experiment.on(cfg.model_copy(update={"data": held.data}), found, run)
    plan = plan_run(experiment)
    cases = prepare_cases(found, plan, experiment.cache)
    is_new = not (run / "checkpoints" / "last.ckpt").is_file()
    before = time.process_time()
    predictor, steps = train(experiment, plan, cases)
    trained = (time.process_time() - before) / 60
    before = time.process_time()
    scores = score(predictor, found)
    made = {
        "set": cell.dataset,
        "variant": cell.variant,
        "overrides": ";".join(cell.overrides),
        "steps": steps,
        "seed": cell.seed,
        **scores_of_row(scores),
        "spacing": "x".join(f"{mm:g}" for mm in plan.spacing_mm),
        "tile": "x".join(map(str, plan.tile_shape)),
        "batch": plan.batch_size,
        "anchor_stride": finest_stride(plan),
        "training_cpu_minutes": round(trained, 2) if is_new else None,
        "scoring_cpu_minutes": round((time.process_time() - before) / 60, 2),
    }
    write_json(path, made)
    log.info("%s: CPM %.3f, AP at IoU .4 %.3f", cell.text, made["cpm"] or 0, made["ap40"] or 0)
    return made


def finest_stride(plan: Any) -> float | None:
    """Return the stride of the finest level with anchors; None for a network without anchors."""
    if plan.anchors is None:
        return None
    return float(plan.anchor_levels[0].stride[0])


def score(predictor: Predictor, found: DatasetInspection) -> dict[str, Scores]:
    """Predict the validation films, and score the boxes by both match rules."""
    opened: dict[str, Case] = {}

    def read(files: CaseFiles) -> Volume:
        opened[files.case] = read_case(files, found.dataset)
        return opened[files.case].image

    def match(files: CaseFiles, prediction: Prediction) -> list[MatchedCase]:
        return match_boxes(opened.pop(files.case), prediction)

    cases = found.of_role("validation")
    with closing(predict_volumes(predictor, cases, read, match)) as predicted:
        return summarise_boxes(list(predicted))


def match_boxes(case: Case, prediction: Prediction) -> list[MatchedCase]:
    """Match the boxes of a film with its lesions, once by each of `PRESETS`."""
    boxes = without_masks(prediction)
    return [
        match_case(
            case.reference,  # type: ignore[arg-type]  # all films have a reference
            boxes,
            preset,
            case=case.case,
            group=case.group,
            role="validation",
        )
        for preset in PRESETS
    ]


def summarise_boxes(matches: Sequence[Sequence[MatchedCase]]) -> dict[str, Scores]:
    """Return the scores of all films by each of `PRESETS`. `matches` has one item per film."""
    scores = {}
    for preset, of_preset in zip(PRESETS, zip(*matches, strict=True), strict=True):
        tables = Tables.of(one.rows(surface=False) for one in of_preset)
        settings = SummarySettings(evaluated_on="validation", replicates=0)
        scores[preset.name] = summarise(tables, preset, settings)
    return scores


def scores_of_row(scores: Mapping[str, Scores]) -> dict[str, Any]:
    """Return the scores of a cell under the names of the table's columns."""
    coverage = scores[COVERAGE.name]
    iou40 = scores[IOU40.name]
    recall = {point.at: point.value for point in coverage.curve("froc")}
    return {
        "cpm": coverage["cpm"].value,
        "ap": coverage["average_precision"].value,
        "ap40": iou40["average_precision"].value,
        "recall_half_fp": recall[0.5],
        "recall_1fp": recall[1.0],
        "recall_4fp": recall[4.0],
        "cpm40": iou40["cpm"].value,
        "films": coverage.count("n_cases"),
        "lesions": coverage.count("n_lesions"),
        "candidates": coverage.count("n_candidates"),
    }


def without_masks(prediction: Prediction) -> Prediction:
    """Return the prediction with the candidates' boxes instead of their masks."""
    boxes: Sequence[Candidate] = [
        Candidate.from_box(
            one.id,
            one.label,
            one.score,
            (*one.start_vox, *one.stop_vox),
            prediction.geometry,
        )
        for one in prediction.candidates
    ]
    return replace(prediction, candidates=tuple(boxes), instances=None)


if __name__ == "__main__":
    main()

"""Lesions found by nnU-Net v2 and by lesionseg, from the same raw folder in the same minutes.

    python benchmarks/learning/vs_nnunet.py --data DIR [DIR …] --minutes 20 --output runs/vs_nnunet
    python benchmarks/learning/vs_nnunet.py --data DIR --tools lesionseg nnunet_cut \
        --seeds 0 1 2 --threads 1
    python benchmarks/learning/vs_nnunet.py --data DIR --tools lesionseg --overrides loss=dice_focal

Both tools train on the same cases with the same device, threads and wall-clock minutes. All labels
of a set count as one. The test cases of a set are scored, or a share of its patients if it has
none. The minutes begin at the raw files: plans and preprocessing count, prediction does not.
Candidates of both tools come from the same rule. Their operating point is the default one, chosen
on the scored cases: 1 false positive per case, or 1 per 10 lesions if that is more.

`nnunet` follows nnU-Net's own plan. `nnunet_cut` follows it with at most two tiles per step in 3-D
and four in 2-D, of at most the size that lesionseg has at two tiles per step, and with the features
of lesionseg (`cell_nnunet.py`). It also follows `--overrides` of tile and features. `nnunet_tiles`
has the tile, the tiles per step and the features of lesionseg's own plan instead, and
`nnunet_resenc` is `nnunet_cut` with the planner and the residual encoder of ResEnc M. The
learning-rate schedule of all tools covers the minutes. nnU-Net runs in the environment of the
peers (`make peers`).

With `--clock processor`, the minutes are those of the processor in the training process, without
its loader. Plans and preprocessing do not count. On a machine with other work, each training then
gets an equal share. With `--steps`, all tools train for this number of steps instead, regardless of
the time.

A finished cell (set × tool × minutes or steps × seed) is a file in OUTPUT/cells and is not made
again. An interrupted cell continues from its last checkpoint, for the minutes or steps that remain.
`cell_rows.py` writes cells as CSV. On 2-D sets, a cell also contains the scores of `films.py`, for
which boxes are compared with boxes.
"""

import argparse
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.ndimage import labeled_comprehension

from benchmarks.common import table
from benchmarks.learning import films
from benchmarks.learning.held_out import (
    CHOOSING,
    cases_scored,
    false_positives,
    held_out,
    lesions_found,
)
from benchmarks.learning.voxel_dice import voxel_dice
from benchmarks.learning.vs_nnunet_table import markdown, report
from lesionseg.cli import compose
from lesionseg.config import TrainConfig
from lesionseg.core import NO_SELECTION, CaseFiles, Prediction, Role, Volume
from lesionseg.evaluation import Scores, choose
from lesionseg.evaluation.operating_points import DEFAULT_AIM
from lesionseg.inference.decision import find_by_rule
from lesionseg.inference.predictor import Predictor
from lesionseg.io.cases import read_case, read_image
from lesionseg.io.results.case import write_prediction
from lesionseg.io.results.index import find_predictions
from lesionseg.io.text import read_json, write_json, write_text
from lesionseg.pipeline.dataset_inspection import (
    DatasetInspection,
    inspect_dataset,
    labelled_cases,
)
from lesionseg.pipeline.experiment import Experiment
from lesionseg.pipeline.planning import plan_run
from lesionseg.pipeline.score_cases import ScoredCases, score_cases
from lesionseg.pipeline.score_roles import select_and_accept, write_role_scores
from lesionseg.plan.plan import Plan

ROOT = Path(__file__).resolve().parents[2]
PEERS = ROOT / ".peers" / "bin" / "python"
SCORED_BY = TrainConfig.of(data={"root": "."})  # scoring settings of all tools
PLANS = {  # of cell_nnunet.py, and nnU-Net's planner
    "nnunet_cut": ("cut", "ExperimentPlanner"),
    "nnunet_tiles": ("tiles", "ExperimentPlanner"),
    "nnunet_resenc": ("cut", "nnUNetPlannerResEncM"),
    "nnunet": ("own", "ExperimentPlanner"),
}
TOOLS = ("lesionseg", *PLANS)
DATASET = "Dataset001_compared"
LARGEST_TILES = "model.batch_size=2"  # with a given batch, a plan has the largest tiles
SIZES = ("model.tile_shape=", "model.base_features=")
BATCH = {2: 4, 3: 2}  # dimensions: tiles per step of nnU-Net's cut plan
HIGHEST = 8  # number of voxels whose mean ranks a candidate
SPREAD = 10.0  # log-odds with a score of 3/4
EXTENTS = (0.1, 0.2, 0.35, 0.5, 0.65, 0.8)  # thresholds of outlines; each tool may use its best


@dataclass(frozen=True)
class Setting:
    """A set and the way in which all tools are scored on it.

    Attributes:
        name: Name of the set's folder.
        root: Folder of the set.
        found: Survey with the scored cases as validation cases.
        plan: Plan with the largest tiles. Its candidate rule is used for all tools.
        own_plan: Plan of lesionseg without overrides.
        options: Command line.
    """

    name: str
    root: Path
    found: DatasetInspection
    plan: Plan
    own_plan: Plan
    options: argparse.Namespace

    @property
    def scored(self) -> tuple[CaseFiles, ...]:
        """The cases on which no tool trains."""
        return self.found.of_role("validation")


class Kept:
    """A predictor that reads the log-odds of a tool from files.

    Extents of candidates follow the candidate rule on float32 probabilities. A candidate is ranked
    by the mean log-odds of its eight highest voxels. Probabilities would round to 1, and candidates
    would have equal scores.
    """

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.folder = folder
        self.plan = plan

    def predict_volume(self, volume: Volume, case: str) -> Prediction:
        """Return the candidates of a case. None of them is accepted yet."""
        odds = np.load(self.folder / f"{case}.npy")
        found = find_by_rule(
            probabilities(odds).astype(np.float32),
            volume.geometry,
            self.plan.candidate_rule,
            self.plan.labels,
        )
        if not found.candidates:
            return Prediction(case, volume.geometry, (), found.instances)
        numbers = [candidate.id for candidate in found.candidates]
        scores = labeled_comprehension(
            odds.max(axis=0), found.instances, numbers, score, np.float64, 0.0
        )
        scored = tuple(
            replace(candidate, score=float(value))
            for candidate, value in zip(found.candidates, scores, strict=True)
        )
        return Prediction(case, volume.geometry, scored, found.instances)


def probabilities(odds: Any) -> Any:
    """Return the probabilities of log-odds in float64."""
    return 1 / (1 + np.exp(-np.asarray(odds, np.float64)))


def score(odds: "np.ndarray[Any, Any]") -> float:
    """Return a score from 0 to 1 that increases with the mean of the eight highest log-odds."""
    return 0.5 + float(np.arctan(np.sort(odds)[-HIGHEST:].mean(dtype=np.float64) / SPREAD)) / np.pi


def main() -> None:
    """Run the missing cells, then print and write the table."""
    options = arguments()
    torch.set_num_threads(options.threads)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("lesionseg").setLevel(logging.ERROR)
    cells: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    for root in options.data:
        setting = prepare(root.resolve(), options)
        cells[setting.name] = {
            tool: [make_cell(setting, tool, seed) for seed in options.seeds]
            for tool in options.tools
        }
    text = markdown(cells)
    if options.table:
        write_text(options.table, text)
    print(f"\n{text}")
    report(cells, options.accelerator)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="dataset folders")
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=list(TOOLS))
    parser.add_argument("--minutes", type=float, default=20.0, help="minutes per cell, by --clock")
    parser.add_argument("--clock", choices=["wall", "processor"], default="wall", help="see above")
    parser.add_argument("--steps", type=int, help="training steps of each tool, instead of minutes")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of each tool")
    parser.add_argument("--workers", type=int, default=1, help="loaders of nnU-Net")
    parser.add_argument("--accelerator", choices=["cpu", "gpu"], default="cpu")
    parser.add_argument("--group", help="data.group; intervals resample these groups")
    parser.add_argument("--choosing-fraction", type=float, default=0.0, help="see above")
    parser.add_argument(
        "--overrides",
        nargs="*",
        default=[],
        help="of train.py; part of a cell's name",
    )
    parser.add_argument("--variant", help="name of a cell's overrides, instead of the overrides")
    parser.add_argument("--output", type=Path, default=Path("runs/vs_nnunet"))
    parser.add_argument("--table", type=Path, help="file for a Markdown table")
    options = parser.parse_args()
    options.output = options.output.resolve()
    return options


def prepare(root: Path, options: argparse.Namespace) -> Setting:
    """Divide the set for all tools, and make the plans that nnU-Net's changed plans follow."""
    name = root.name
    held = held_out(root, options.output / "cache", group=options.group)
    found = held.as_development(inspect_dataset(held.data, seed=0), options.choosing_fraction)
    folder = options.output / "plans" / name
    folder.mkdir(parents=True, exist_ok=True)
    typed = [f"data.root={root}", "data.merge_labels=true"]
    if not options.steps:  # a plan for a CPU depends on the minutes
        typed.append(f"trainer.max_minutes={options.minutes}")
    typed.append(f"trainer.accelerator={options.accelerator}")

    def plan_with(*overrides: str) -> Plan:
        """Return the plan of lesionseg with these settings, and write it into `folder`."""
        cfg: Any = compose("train", [*typed, *overrides])
        return plan_run(Experiment.on(cfg, found, folder))

    own_plan = plan_with()
    plan = plan_with(LARGEST_TILES, *sizes(options))
    return Setting(name, root, found, plan, own_plan, options)


def prepare_scoring(root: Path, output: Path, group: str | None) -> Setting:
    """Return the setting by which cells of a set in `output` are scored again."""
    options = argparse.Namespace(
        output=output.resolve(),
        group=group,
        choosing_fraction=0.0,
        steps=1,
        accelerator="cpu",
        overrides=[],
    )
    return prepare(root.resolve(), options)


def sizes(options: argparse.Namespace) -> list[str]:
    """Return the overrides that nnU-Net's cut plan follows too."""
    return [text for text in options.overrides if text.startswith(SIZES)]


def make_cell(setting: Setting, tool: str, seed: int) -> Mapping[str, Any]:
    """Return the numbers of a cell: read them if it is finished, otherwise train and score."""
    options = setting.options
    overrides = options.overrides if tool == "lesionseg" else sizes(options)
    differing = [options.variant] if options.variant and tool == "lesionseg" else overrides
    variant = "_".join([tool, *differing])
    limit = f"{options.steps}steps" if options.steps else minutes_text(options)
    name = f"{setting.name}__{variant}__{limit}__{options.threads}t__s{seed}"
    path = options.output / "cells" / f"{name}.json"
    folder = options.output / "runs" / name
    if path.is_file():
        kept: Mapping[str, Any] = read_json(path)
        if kept["identity"] != identity(setting):
            sys.exit(f"{path} scored other cases: use a new --output")
        if kept["overrides"] != " ".join(overrides):
            sys.exit(f"{path} has other overrides: give the variant another name")
        return kept
    shutil.rmtree(folder / "nnunet", ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    made = run_tool(setting, tool, seed, folder)
    cell = {
        "set": setting.name,
        "tool": variant,
        "overrides": " ".join(overrides),
        "seed": seed,
        **made,
        **score_cell(setting, folder),
    }
    write_json(path, cell)
    (folder / "nnunet.pth").unlink(missing_ok=True)
    for left in ("nnunet", "cache", "checkpoints"):
        shutil.rmtree(folder / left, ignore_errors=True)
    logging.info("%s: %d steps, recall %.3f", name, cell["steps"], cell["recall"] or 0)
    return cell


def minutes_text(options: argparse.Namespace) -> str:
    """Return the limit of time in the name of a cell."""
    kind = "cpu" if options.clock == "processor" else ""
    return f"{options.minutes:g}{kind}min"


def run_tool(setting: Setting, tool: str, seed: int, folder: Path) -> dict[str, Any]:
    """Let one tool train and predict in its own process. Its start counts.

    If a former process has trained and predicted, its facts are returned.
    """
    finished = folder / "made.json"  # the process writes it last
    if finished.is_file():
        facts: dict[str, Any] = read_json(finished)
        return facts
    options = setting.options
    job: dict[str, Any] = {
        "data": str(setting.root),
        "output": str(folder),
        "minutes": options.minutes,
        "steps": options.steps,
        "clock": options.clock,
        "seed": seed,
        "threads": options.threads,
        "group": options.group,
        "choosing_fraction": options.choosing_fraction,
        "accelerator": options.accelerator,
        "device": "cuda" if options.accelerator == "gpu" else "cpu",
    }
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {
        "OMP_NUM_THREADS": str(options.threads),
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
    }
    if tool == "lesionseg":
        job |= {"overrides": options.overrides}
        python, script = sys.executable, "cell_lesionseg.py"
    else:
        job |= nnunet_job(setting, tool, folder / "nnunet")
        folders = ("raw", "preprocessed", "results")
        environment |= {f"nnUNet_{name}": str(folder / "nnunet" / name) for name in folders}
        environment |= {"nnUNet_n_proc_DA": str(options.workers)}
        python, script = str(PEERS), "cell_nnunet.py"
    job["began"] = time.time()
    write_json(folder / "job.json", job)
    with (folder / "log.txt").open("w") as log:
        command = [python, str(ROOT / "benchmarks" / "peers" / script), str(folder / "job.json")]
        subprocess.run(command, check=True, env=environment, stdout=log, stderr=subprocess.STDOUT)
    made: dict[str, Any] = read_json(finished)
    return made


def nnunet_job(setting: Setting, tool: str, folder: Path) -> dict[str, Any]:
    """Write the cases in nnU-Net's layout (this time does not count), and return its job."""
    plan = setting.own_plan if tool == "nnunet_tiles" else setting.plan
    dims = plan.dims
    raw = folder / "raw" / DATASET
    for part in ("imagesTr", "labelsTr", "imagesTs"):
        (raw / part).mkdir(parents=True)
    for part in ("preprocessed", "results"):
        (folder / part).mkdir()
    hand_over = link_case if dims == 3 else draw_case
    learning = setting.found.of_role("train")
    written = [hand_over(setting, files, raw, "Tr") for files in learning]
    predicted = (*setting.scored, *setting.found.of_role(CHOOSING))
    scans = {files.case: hand_over(setting, files, raw, "Ts") for files in predicted}
    described = {
        "channel_names": {str(i): name for i, name in enumerate(plan.channel_names)},
        "labels": {"background": 0, "lesion": 1},
        "numTraining": len(learning),
        "file_ending": "".join(written[0][0].suffixes),
    }
    write_json(raw / "dataset.json", described)
    kind, planner = PLANS[tool]
    return {
        "dataset": DATASET,
        "plan": kind,
        "planner": planner,
        "configuration": "2d" if dims == 2 else "3d_fullres",
        "tile": list(plan.tile_shape),
        "tile_voxels": int(np.prod(plan.tile_shape)),
        "batch": plan.batch_size if tool == "nnunet_tiles" else BATCH[dims],
        "features": [plan.architecture.features[0], max(plan.architecture.features)],
        "scans": {case: [str(path) for path in paths] for case, paths in scans.items()},
    }


def link_case(setting: Setting, files: CaseFiles, raw: Path, part: str) -> list[Path]:
    """Link the files of a case under nnU-Net's names, and return the links of its channels."""
    suffix = "".join(files.images[0].suffixes)
    paths = [
        raw / f"images{part}" / f"{files.case}_{i:04d}{suffix}" for i in range(len(files.images))
    ]
    for link, path in zip(paths, files.images, strict=True):
        link.symlink_to(path.resolve())
    if part == "Tr" and files.reference is not None:
        (raw / "labelsTr" / f"{files.case}{suffix}").symlink_to(files.reference.resolve())
    return paths


def score_kept(kept: Kept | Predictor, found: DatasetInspection, run: Path) -> Scores:
    """Write the candidates of a tool into `run/validation` and score the validation cases."""
    experiment = Experiment(SCORED_BY, found, run)
    scored = match_kept(kept, experiment, "validation")
    folder = run / "validation"
    predictions = find_predictions(folder)
    selection, scored = select_and_accept(experiment, scored, predictions, folder, NO_SELECTION)
    return write_role_scores(scored, experiment, run, selection.point, is_group_safe=True)


def match_kept(kept: Kept | Predictor, experiment: Experiment, role: Role) -> ScoredCases:
    """Write the candidates of a tool into `run/<role>` and match them with the references."""
    cases = labelled_cases(experiment.inspection, role)
    if not cases:
        sys.exit(f"{experiment.run}: no case to score")
    folder = experiment.run / role
    for files in cases:
        image = read_image(files, experiment.dataset)
        write_prediction(folder, kept.predict_volume(image, files.case))
    return score_cases(cases, find_predictions(folder), experiment.match_options)


def score_chosen(setting: Setting, folder: Path) -> dict[str, Any] | None:
    """Score a cell with the threshold of the training patients on whom no tool is trained.

    Return None if there are none.
    """
    if not setting.found.of_role(CHOOSING):
        return None
    kept = Kept(folder, setting.plan)
    experiment = Experiment(SCORED_BY, setting.found, folder / "chosen")
    choosing = match_kept(kept, experiment, CHOOSING)
    point = choose(choosing.tables(surface=False), DEFAULT_AIM, chosen_on="validation")
    tables = match_kept(kept, experiment, "validation").tables(point, surface=False)
    lesions = tables.lesions[["group", "diameter_mm", "detected"]]
    n_false = int((tables.candidates["outcome"] == "false_positive").sum())
    return {
        "choosing_cases": len(choosing.matches),
        "lesions": lesions.rename(columns={"detected": "found"}).to_dict("records"),
        "FP_per_case": round(n_false / len(tables.cases), 3),
        "dice": round(float(tables.cases["dice"][tables.cases["n_lesions"] > 0].mean()), 4),
    }


def draw_case(setting: Setting, files: CaseFiles, raw: Path, part: str) -> list[Path]:
    """Write a picture and its mask as PNG, because nnU-Net does not read JPEG."""
    from PIL import Image

    case = read_case(files, setting.found.dataset)
    channels = case.image.array
    is_colour = setting.found.dataset.is_colour  # one file of three channels
    pictures = [np.moveaxis(channels, 0, -1)] if is_colour else list(channels)
    paths = [raw / f"images{part}" / f"{files.case}_{i:04d}.png" for i in range(len(pictures))]
    for picture, path in zip(pictures, paths, strict=True):
        Image.fromarray(picture.astype(np.uint8 if picture.max() < 256 else np.uint16)).save(path)
    labels = case.reference.labels if case.reference is not None else None
    drawn = np.zeros(case.image.geometry.shape, np.uint8) if labels is None else labels > 0
    if part == "Tr":
        Image.fromarray(drawn.astype(np.uint8)).save(raw / "labelsTr" / f"{files.case}.png")
    return paths


def score_cell(setting: Setting, folder: Path) -> dict[str, Any]:
    """Score a cell: candidates at 1 false positive per case, and Dice of the probabilities."""
    scores = score_kept(Kept(folder, setting.plan), setting.found, folder)
    boxes = score_boxes(setting, folder) if setting.plan.dims == 2 else None
    return {
        "identity": identity(setting),
        "preset": scores.preset,
        "device": table.device_name("cuda" if torch.cuda.is_available() else "cpu"),
        "recall": scores["lesion_recall"].value,
        "false_positives_per_case": scores["false_positives_per_case"].value,
        "dice_accepted": scores["dice"].value,
        **voxel_dice(folder, setting.scored, setting.found.dataset),
        "average_precision": scores["average_precision"].value,
        "cpm": scores["cpm"].value,
        "panoptic_quality": scores["panoptic_quality"].value,
        "froc": {
            "fp_per_case": [point.at for point in scores.curve("froc")],
            "recall": [point.value for point in scores.curve("froc")],
        },
        "by_extent": [score_extent(setting, folder, extent) for extent in EXTENTS],
        "boxes": boxes,
        "n_cases": scores.count("n_cases"),
        "lesions": lesions_found(folder),
        "cases": cases_scored(folder),
        "false_positives": false_positives(folder),
        "chosen": score_chosen(setting, folder),
    }


def score_boxes(setting: Setting, folder: Path) -> Mapping[str, Any]:
    """Score the boxes of all candidates of a tool, as `films.py` does."""
    kept = Kept(folder, setting.plan)
    cases = (read_case(files, setting.found.dataset) for files in setting.scored)
    matches = [
        films.match_boxes(case, kept.predict_volume(case.image, case.case)) for case in cases
    ]
    return films.scores_of_row(films.summarise_boxes(matches))


def score_extent(setting: Setting, folder: Path, extent: float) -> dict[str, float | None]:
    """Score a tool's probabilities with another threshold for the outlines of candidates."""
    rule = replace(setting.plan.candidate_rule, extent=extent)
    plan = replace(setting.plan, candidate_rule=rule)
    scores = score_kept(Kept(folder, plan), setting.found, folder / "by_extent")
    return {
        "extent": extent,
        "dice_accepted": scores["dice"].value,
        "average_precision": scores["average_precision"].value,
        "recall": scores["lesion_recall"].value,
    }


def identity(setting: Setting) -> list[str]:
    """Return the scored cases. Cells with different scored cases must not be compared."""
    return [files.case for files in setting.scored]


if __name__ == "__main__":
    main()

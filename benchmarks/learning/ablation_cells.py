"""Cells of an ablation: one set, some ways to learn, some seeds; each trained and judged alike.

One survey, split and cache for all; a cell that was finished is a file in OUTPUT/cells and is not
made again, and one that was interrupted goes on from its last checkpoint. All cases of the test
role are judged, or of the validation role where there is no test role; the score from which
candidates are accepted is the lowest with 1 false positive a case on these very cases, for every
cell alike.
"""

import argparse
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

from benchmarks.common import table
from benchmarks.learning.ablation_table import PRESET
from benchmarks.learning.held_out import HeldOut, cases_judged, held_out, lesions_found
from lesionseg.errors import LesionsegError
from lesionseg.inference.predictor import Predictor
from lesionseg.io.atomic import read_json, write_json
from lesionseg.phantoms import write_mri_phantoms
from lesionseg.pipeline.dataset import Survey, take_survey
from lesionseg.pipeline.judging.choice import ChoiceSettings
from lesionseg.pipeline.judging.judge_role import judge_validation
from lesionseg.pipeline.judging.role_steps import Rules
from lesionseg.pipeline.run.run_dir import data_hash
from lesionseg.pipeline.train.learning import decide, learn, linked, prepare_cases
from lesionseg.plan.make import PlanOverrides
from lesionseg.plan.plan import Plan
from lesionseg.training.learning_settings import Learning
from lesionseg.training.settings import TrainerSettings

FRACTION = 1e-4
PHANTOMS: Mapping[str, Any] = {"n_cases": 36, "n_test": 16, "n_lesions": (2, 8)}
TINY: Mapping[str, Any] = {
    "n_cases": 9,
    "n_test": 6,
    "n_lesions": (1, 3),
    "shape": (48, 56, 48),
    "spacing_mm": (3.0, 3.0, 3.0),
}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Budget:
    """How long a cell trains: minutes of the clock, or steps, which a busy machine cannot cut."""

    minutes: float | None
    steps: int | None = None

    def __str__(self) -> str:
        return f"{self.steps}steps" if self.steps else f"{self.minutes:g}min"


@dataclass(frozen=True)
class Setting:
    """What all cells of one ablation share."""

    found: Survey
    held: HeldOut
    output: Path
    budget: Budget
    accelerator: str
    quick: bool
    overrides: Sequence[str] = ()  # of `train.py`, for all cells

    @property
    def name(self) -> str:
        """The dataset folder's name."""
        return Path(self.found.dataset.root).name

    @cached_property
    def data(self) -> str:
        """What the dataset's content is known by."""
        return data_hash(self.found.dataset)


@dataclass(frozen=True)
class Variant:
    """One way to learn, by its name; the trainer's budget, device and seed are the cell's."""

    name: str
    plan: Plan
    learning: Learning

    def taught(self, setting: Setting, seed: int) -> Learning:
        """The learning under the budget, on the device, from the seed."""
        trainer = replace(
            self.learning.trainer,
            max_minutes=None if setting.budget.steps else setting.budget.minutes,
            max_steps=setting.budget.steps,
            accelerator=setting.accelerator,
            workers=0 if setting.quick else 1,
            progress=False,
        )
        return replace(self.learning, trainer=trainer, seed=seed)


def cell_arguments(parser: argparse.ArgumentParser) -> None:
    """The part of the command line that says what the cells share."""
    parser.add_argument("--data", type=Path, help="a dataset folder; default: simulated heads")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="of training a cell")
    parser.add_argument("--steps", type=int, help="of training a cell, instead of minutes")
    parser.add_argument("--overrides", nargs="*", default=[], help="of train.py, for all cells")
    parser.add_argument("--table", type=Path, help="where a Markdown table goes")
    parser.add_argument("--accelerator", default="auto", choices=["auto", "cpu", "gpu"])


def prepare(options: argparse.Namespace, output: Path, *, quick: bool = False) -> Setting:
    """Read and divide the set, once for all cells; simulated heads without `data`."""
    root = options.data or simulated(output, TINY if quick else PHANTOMS)
    held = held_out(root, output / "cache")
    found = held.as_development(take_survey(held.data, seed=0))
    budget = Budget(options.minutes, options.steps)
    return Setting(found, held, output, budget, options.accelerator, quick, options.overrides)


def simulated(output: Path, how: Mapping[str, Any]) -> Path:
    """Heads with few small lesions, written once."""
    root = output / f"phantoms_{how['n_cases']}"
    if not (root / "dataset.json").is_file():
        write_mri_phantoms(root, seed=1, lesion_fraction=FRACTION, **how)
    return root


def planned(setting: Setting, chosen: PlanOverrides) -> Plan:
    """The plan of all cells that learn on this grid with this network."""
    if setting.quick:
        chosen = replace(chosen, tile_shape=(32, 32, 32), base_features=4, batch_size=2)
    return decide(
        setting.found,
        chosen,
        TrainerSettings(budget="auto", accelerator=setting.accelerator),
        setting.output / "plan",
    )


def caption(setting: Setting, plan: Plan, seeds: Sequence[int]) -> str:
    """What the table's numbers are and what they were made with."""
    device = "gpu" if setting.accelerator == "gpu" else table.device_name()
    budget = setting.budget
    long = f"{budget.steps} steps" if budget.steps else f"{budget.minutes:g} minutes"
    n_cases = len(setting.found.of_role("train"))
    return (
        f"Lesion recall at 1 false positive a case (95 % interval) of a {plan.architecture.name} "
        f"on the {setting.held.role} cases of {setting.name}; lesions are "
        f"{plan.lesion_fraction:.1e} of the voxels; {n_cases} training cases; "
        f"{long} a cell on {device}; tiles "
        f"{'×'.join(map(str, plan.tile_shape))}, batch {plan.batch_size}; seeds "
        f"{', '.join(map(str, seeds))}"
        + (f"; {' '.join(setting.overrides)}." if setting.overrides else ".")
    )


def make_cell(setting: Setting, variant: Variant, seed: int) -> dict[str, Any]:
    """The cell's numbers: read where they are, else trained and judged."""
    network = variant.plan.architecture.name
    root = setting.name + ("" if network == "unet" else f"__{network}")
    name = f"{root}__{variant.name}__s{seed}__{setting.budget}"
    path = setting.output / "cells" / f"{name}.json"
    known_by = "\n".join(
        [variant.plan.to_json(), setting.data, PRESET.match_rule, *setting.overrides]
    )
    identity = sha256(known_by.encode()).hexdigest()[:16]
    if path.is_file():
        cell: dict[str, Any] = read_json(path)
        if cell["identity"] != identity:
            raise SystemExit(
                f"{path} was made with other data, plan, rules or overrides: use a new --output"
            )
        log.info("%s: done before", name)
        return cell
    try:
        cell = train_and_judge(setting, variant, seed, setting.output / "runs" / name)
    except LesionsegError as error:
        raise SystemExit(f"{name}: {error}") from error
    cell = {"identity": identity, "loss": variant.name, "seed": seed, **cell}
    write_json(path, cell)
    log.info("%s: recall %.3f in %d steps", name, cell["recall"] or 0, cell["steps"])
    return cell


def train_and_judge(setting: Setting, variant: Variant, seed: int, run: Path) -> dict[str, Any]:
    """Train one way and judge what came out."""
    learning, found = variant.taught(setting, seed), setting.found
    cases = prepare_cases(found, variant.plan, setting.held.data, setting.output)
    fitted = learn(variant.plan, cases, learning, run)
    predictor = Predictor.from_network(
        fitted.network,
        linked(variant.plan, learning.loss, learning.detection),
        device=fitted.device,
    )
    replicates = 100 if setting.quick else 1000
    wishes = ChoiceSettings(
        calibration="none", replicates=replicates, rate_confidence=None, calibrate_voxels=False
    )
    judged = judge_validation(predictor, found, run, Rules(PRESET, wishes, {}))
    if judged is None:
        raise SystemExit(f"There is no {setting.held.role} case to judge.")
    shutil.rmtree(run / "checkpoints")
    scores = judged.scores
    return {
        "minutes": fitted.minutes,
        "steps": fitted.steps,
        "skipped": fitted.skipped,
        "device": table.device_name(fitted.device),
        "evaluated_on": setting.held.role,
        "recall": scores["lesion_recall"]["value"],
        "dice": scores["dice"]["mean"],
        "average_precision": scores["average_precision"],
        "cpm": scores["cpm"],
        "false_positives_per_case": scores["false_positives_per_case"],
        "lesions": lesions_found(run),
        "cases": cases_judged(run),
    }

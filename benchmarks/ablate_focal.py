"""Focal loss against cross-entropy, weighted, mined and with Dice: who finds the small lesions?

    python benchmarks/ablate_focal.py --output runs/ablate --minutes 10 --seeds 0 1 2
    python benchmarks/ablate_focal.py --data DIR --losses ce focal --minutes 60
    python benchmarks/ablate_focal.py --model retinanet --losses focal mined_ce
    python benchmarks/ablate_focal.py --quick

With `--model retinanet` the losses are those of the anchors; `dice_…` are of voxels alone. The
library's own recipe throughout: one survey, plan, cache and split for all; cells differ by loss
and seed alone (a seed decides the first weights and the tiles). Without `--data` the heads are
simulated, with lesions in at most 1e-4 of the voxels. All cases of the test role are judged, or of
the validation role where there is no test role; the score from which candidates are accepted is the
lowest with 1 false positive a case on these very cases, for every loss alike.

A finished cell is a file in OUTPUT/cells; the same command makes only what is missing, and a cell
that was interrupted goes on from its last checkpoint. Intervals are Wilson's over the lesions of
all seeds, widened by how alike the lesions of one patient are.
"""

import argparse
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import table
import torch
from ablation_table import PRESET, markdown, report
from torch import nn

from lesionseg.data.augment import AugmentationSettings
from lesionseg.data.cache import CachedCase
from lesionseg.data.phantom import write_mri_phantoms
from lesionseg.data.sampling import SamplingSettings
from lesionseg.errors import LesionsegError
from lesionseg.inference.predictor import Predictor
from lesionseg.io.atomic import read_csv, read_json, write_json, write_text
from lesionseg.io.conventions import read_dataset
from lesionseg.losses import (
    CrossEntropyLoss,
    DiceCrossEntropyLoss,
    DiceFocalLoss,
    FocalLoss,
    MinedCrossEntropyLoss,
)
from lesionseg.losses.detection import DetectionLoss
from lesionseg.pipeline.choice import Wishes
from lesionseg.pipeline.judge import Rules, judge_validation
from lesionseg.pipeline.learning import Learning, decide, learn, linked, prepare_cases
from lesionseg.pipeline.provenance import data_hash
from lesionseg.pipeline.settings import DataSettings
from lesionseg.pipeline.survey import Survey, survey
from lesionseg.plan.make import PlanOverrides
from lesionseg.plan.plan import Plan
from lesionseg.training.settings import OptimiserSettings, TrainerSettings

LOSSES: Mapping[str, Callable[[], nn.Module]] = {
    "ce": CrossEntropyLoss,
    # the α that Lin et al. found best without focusing (arXiv 1708.02002, table 1a)
    "weighted_ce": lambda: FocalLoss(alpha=0.75, gamma=0.0),
    # three background voxels a lesion voxel, the hardest (SSD; nnDetection samples 1 : 3 too)
    "mined_ce": lambda: MinedCrossEntropyLoss(ratio=3.0),
    "focal": lambda: FocalLoss(alpha=0.25, gamma=2.0),
    "dice_ce": DiceCrossEntropyLoss,
    "dice_focal": lambda: DiceFocalLoss(alpha=0.75, gamma=2.0),
}
ANCHOR_LOSSES: Mapping[str, Callable[[], DetectionLoss]] = {
    # α = ½ halves the cross-entropy: its weight against the boxes' terms, which stay, is kept low
    "ce": lambda: DetectionLoss(alpha=0.5, gamma=0.0),
    "weighted_ce": lambda: DetectionLoss(alpha=0.75, gamma=0.0),
    "mined_ce": lambda: DetectionLoss("hard_negatives"),
    "focal": DetectionLoss,
    "varifocal": lambda: DetectionLoss("varifocal"),
}
REFERENCE = "focal"  # the loss whose numbers stand as ours
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
class Setting:
    """What all cells of one run of this script share."""

    found: Survey
    plan: Plan
    cases: list[CachedCase]
    role: str
    output: Path
    minutes: float
    accelerator: str
    quick: bool
    identity: str

    def cell(self, loss: str, seed: int) -> str:
        """The name of a cell: set, loss, seed and minutes."""
        root = Path(self.found.dataset.root).name
        name = self.plan.architecture.name
        root += "" if name == "unet" else f"__{name}"
        return f"{root}__{loss}__s{seed}__{self.minutes:g}min"


def main() -> None:
    """Make the missing cells, then print and write the table."""
    options = arguments()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("lesionseg").setLevel(logging.ERROR)
    if options.quick:
        torch.set_num_threads(1)  # tiles too small to share
    with output_folder(options) as output:
        setting = prepare(options, output)
        cells = {
            loss: [make_cell(setting, loss, seed) for seed in options.seeds]
            for loss in options.losses
        }
        text = markdown(cells, caption(setting, options.seeds))
        if options.table:
            write_text(options.table, text)
        print(f"\n{text}")
        report(cells, REFERENCE)


def arguments() -> argparse.Namespace:
    """The command line, the quick run's smaller values filled in."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="a dataset folder; default: simulated heads")
    parser.add_argument("--model", choices=["unet", "retinanet"], default="unet")
    names = sorted({*LOSSES, *ANCHOR_LOSSES})
    parser.add_argument("--losses", nargs="+", choices=names, help="default: all of the model")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="of training a cell")
    parser.add_argument("--output", type=Path, help="default: runs/ablate_focal")
    parser.add_argument("--table", type=Path, help="where a Markdown table goes")
    parser.add_argument("--accelerator", default="auto", choices=["auto", "cpu", "gpu"])
    parser.add_argument("--quick", action="store_true", help="tiny cells, kept only with --output")
    options = parser.parse_args()
    known = LOSSES if options.model == "unet" else ANCHOR_LOSSES
    options.losses = options.losses or list(known)
    if unknown := sorted(set(options.losses) - known.keys()):
        parser.error(f"{options.model} has no loss {', '.join(unknown)}")
    if options.quick:
        options.minutes = 1 / 60
    return options


@contextmanager
def output_folder(options: argparse.Namespace) -> Iterator[Path]:
    """The folder of cells; a quick run's is thrown away unless it is named."""
    if options.output or not options.quick:
        yield options.output or Path("runs/ablate_focal")
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def prepare(options: argparse.Namespace, output: Path) -> Setting:
    """Survey, plan and cache, once for all cells."""
    root = options.data or simulated(output, TINY if options.quick else PHANTOMS)
    roles = {case.role for case in read_dataset(root).cases}
    role = "test" if "test" in roles else "validation"
    data = DataSettings(
        root=str(root),
        validation_fraction=0.0 if role == "test" else 0.3,
        cache_dir=str(output / "cache"),
    )
    found = survey(data, seed=0)
    chosen = PlanOverrides(architecture=options.model)
    if options.quick:
        chosen = replace(chosen, tile_shape=(32, 32, 32), base_features=4, batch_size=2)
    plan = decide(found, chosen, options.accelerator, output / "plan")
    return Setting(
        found=_judged_as_development(found, role),
        plan=plan,
        cases=prepare_cases(found, plan, data, output),
        role=role,
        output=output,
        minutes=options.minutes,
        accelerator=options.accelerator,
        quick=options.quick,
        identity=sha256((plan.to_json() + data_hash(found.dataset)).encode()).hexdigest()[:16],
    )


def _judged_as_development(found: Survey, role: str) -> Survey:
    """The cases of `role` as validation cases: the point of 1 false positive is chosen on them."""
    roles = {
        case: "validation" if its == role else its
        for case, its in found.splits.roles.items()
        if its in (role, "train")
    }
    return replace(found, splits=replace(found.splits, roles=roles))


def caption(setting: Setting, seeds: Sequence[int]) -> str:
    """What the table's numbers are and what they were made with."""
    plan = setting.plan
    device = "gpu" if setting.accelerator == "gpu" else table.device_name()
    return (
        f"Lesion recall at 1 false positive a case (95 % interval) of a {plan.architecture.name} "
        f"on the {setting.role} cases of {Path(setting.found.dataset.root).name}; lesions are "
        f"{plan.lesion_fraction:.1e} of the voxels; {len(setting.cases)} training cases; "
        f"{setting.minutes:g} minutes a cell on {device}; tiles "
        f"{'×'.join(map(str, plan.tile_shape))}, batch {plan.batch_size}; seeds "
        f"{', '.join(map(str, seeds))}."
    )


def simulated(output: Path, how: Mapping[str, Any]) -> Path:
    """Heads with few small lesions, written once."""
    root = output / f"phantoms_{how['n_cases']}"
    if not (root / "dataset.json").is_file():
        write_mri_phantoms(root, seed=1, lesion_fraction=FRACTION, **how)
    return root


def make_cell(setting: Setting, loss: str, seed: int) -> dict[str, Any]:
    """The cell's numbers: read where they are, else trained and judged."""
    name = setting.cell(loss, seed)
    path = setting.output / "cells" / f"{name}.json"
    if path.is_file():
        cell: dict[str, Any] = read_json(path)
        if cell["identity"] != setting.identity:
            raise SystemExit(f"{path} was made with other data or another plan: use a new --output")
        log.info("%s: done before", name)
        return cell
    try:
        cell = train_and_judge(setting, loss, seed, setting.output / "runs" / name)
    except LesionsegError as error:
        raise SystemExit(f"{name}: {error}") from error
    write_json(path, cell)
    log.info("%s: recall %.3f in %d steps", name, cell["recall"] or 0, cell["steps"])
    return cell


def train_and_judge(setting: Setting, loss: str, seed: int, run: Path) -> dict[str, Any]:
    """Train with one loss and judge what came out."""
    trainer = TrainerSettings(
        max_minutes=setting.minutes,
        accelerator=setting.accelerator,
        seed=seed,
        workers=0 if setting.quick else 1,
        progress=False,
    )
    anchors = setting.plan.anchors is not None
    learning = Learning(
        loss=LOSSES["focal" if anchors else loss](),
        detection=ANCHOR_LOSSES[loss if anchors else "focal"](),
        sampling=SamplingSettings(),
        augmentation=AugmentationSettings(),
        optimiser=OptimiserSettings(),
        trainer=trainer,
    )
    fitted = learn(setting.plan, setting.cases, learning, run)
    predictor = Predictor.from_network(
        fitted.network,
        linked(setting.plan, learning.loss, learning.detection),
        device=fitted.device,
    )
    wishes = Wishes(calibration="none", replicates=100 if setting.quick else 1000)
    judged = judge_validation(predictor, setting.found, run, Rules(PRESET, wishes, {}))
    if judged is None:
        raise SystemExit(f"There is no {setting.role} case to judge.")
    shutil.rmtree(run / "checkpoints")
    scores = judged.scores
    return {
        "identity": setting.identity,
        "loss": loss,
        "seed": seed,
        "minutes": fitted.minutes,
        "steps": fitted.steps,
        "skipped": fitted.skipped,
        "device": table.device_name(fitted.device),
        "evaluated_on": setting.role,
        "recall": scores["lesion_recall"]["value"],
        "dice": scores["dice"]["mean"],
        "average_precision": scores["average_precision"],
        "cpm": scores["cpm"],
        "false_positives_per_case": scores["false_positives_per_case"],
        "lesions": [
            {
                "group": row["group"],
                "diameter_mm": float(row["diameter_mm"]),
                "found": row["detected"].lower() in ("true", "1"),
            }
            for row in read_csv(run / "lesions.csv")
        ],
    }


if __name__ == "__main__":
    main()

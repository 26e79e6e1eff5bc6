"""Focal loss against cross-entropy, weighted, mined and with Dice: who finds the small lesions?

    python benchmarks/ablate_focal.py --output runs/ablate --minutes 10 --seeds 0 1 2
    python benchmarks/ablate_focal.py --data DIR --losses ce focal --minutes 60
    python benchmarks/ablate_focal.py --quick

The library's own recipe throughout: one survey, plan, cache and split for all; cells differ by loss
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
from dataclasses import dataclass
from hashlib import sha256
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import table
import torch
from torch import nn

from lesionseg.data.augment import AugmentationSettings
from lesionseg.data.cache import CachedCase
from lesionseg.data.phantom import write_mri_phantoms
from lesionseg.data.sampling import SamplingSettings
from lesionseg.errors import LesionsegError
from lesionseg.evaluation import PRESETS
from lesionseg.evaluation.edge_cases import NO_LESION
from lesionseg.evaluation.estimates import Number, proportion
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
from lesionseg.pipeline.judge import judge
from lesionseg.pipeline.provenance import data_hash
from lesionseg.pipeline.settings import DataSettings
from lesionseg.pipeline.survey import Survey, survey
from lesionseg.pipeline.train import Learning, decide, learn, linked, prepare_cases
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
REFERENCE = "focal"  # the loss whose numbers stand as ours
PRESET = PRESETS["lesionseg"]
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
        return f"{root}__{loss}__s{seed}__{self.minutes:g}min"


@dataclass(frozen=True)
class Recall:
    """Share of lesions found with 1 false positive a case, of all or of some sizes."""

    number: Number
    n: int

    def __str__(self) -> str:
        if self.number.value is None:
            return "–"
        if self.number.ci95 is None:
            return f"{self.number.value:.2f}"
        return f"{self.number.value:.2f} ({self.number.ci95[0]:.2f}–{self.number.ci95[1]:.2f})"


@dataclass(frozen=True)
class RecallRow(table.Row):
    """A row where more is better."""

    @property
    def ratio(self) -> float:
        """How many times more of the lesions ours finds."""
        return self.ours / self.peer_value


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
        text = markdown(cells, setting)
        if options.table:
            write_text(options.table, text)
        print(f"\n{text}")
        report(cells, setting)


def arguments() -> argparse.Namespace:
    """The command line, the quick run's smaller values filled in."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="a dataset folder; default: simulated heads")
    parser.add_argument("--losses", nargs="+", choices=list(LOSSES), default=list(LOSSES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="of training a cell")
    parser.add_argument("--output", type=Path, help="default: runs/ablate_focal")
    parser.add_argument("--table", type=Path, help="where a Markdown table goes")
    parser.add_argument("--accelerator", default="auto", choices=["auto", "cpu", "gpu"])
    parser.add_argument("--quick", action="store_true", help="tiny cells, kept only with --output")
    options = parser.parse_args()
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
    chosen = PlanOverrides()
    if options.quick:
        chosen = PlanOverrides(tile_shape=(32, 32, 32), base_features=4, batch_size=2)
    plan = decide(found, chosen, options.accelerator, output / "plan")
    return Setting(
        found=found,
        plan=plan,
        cases=prepare_cases(found, plan, data, output),
        role=role,
        output=output,
        minutes=options.minutes,
        accelerator=options.accelerator,
        quick=options.quick,
        identity=sha256((plan.to_json() + data_hash(found.dataset)).encode()).hexdigest()[:16],
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
    learning = Learning(
        loss=LOSSES[loss](),
        sampling=SamplingSettings(),
        augmentation=AugmentationSettings(),
        optimiser=OptimiserSettings(),
        trainer=trainer,
    )
    fitted = learn(setting.plan, setting.cases, learning, run)
    predictor = Predictor.from_network(
        fitted.network, linked(setting.plan, learning.loss), device=fitted.device
    )
    judged = judge(
        predictor,
        setting.found,
        setting.role,
        run,
        PRESET,
        replicates=100 if setting.quick else 1000,
        points=None,
        seed=0,
        origin={},
    )
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


def pooled(
    cells: Sequence[Mapping[str, Any]], from_mm: float = 0.0, to_mm: float | None = None
) -> Recall:
    """Recall over the lesions `[from_mm, to_mm)` of all seeds, clustered by patient."""
    lesions = [
        lesion
        for cell in cells
        for lesion in cell["lesions"]
        if from_mm <= lesion["diameter_mm"] < (inf if to_mm is None else to_mm)
    ]
    groups = sorted({lesion["group"] for lesion in lesions})
    row = {group: i for i, group in enumerate(groups)}
    hits, totals = np.zeros(len(groups)), np.zeros(len(groups))
    for lesion in lesions:
        hits[row[lesion["group"]]] += lesion["found"]
        totals[row[lesion["group"]]] += 1
    # every seed judges the same lesions again, which adds no lesion: divide their weight by it
    share = max(len(cells), 1)
    return Recall(proportion(hits / share, totals / share, NO_LESION), len(lesions) // share)


def sizes(cells: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[tuple[float, float | None]]:
    """The size groups that hold a lesion."""
    edges = PRESET.size_edges_mm
    bins = list(zip(edges, (*edges[1:], None), strict=True))
    first = next(iter(cells.values()))
    return [(low, high) for low, high in bins if pooled(first, low, high).n]


def markdown(cells: Mapping[str, Sequence[Mapping[str, Any]]], setting: Setting) -> str:
    """The table, one row a loss, with what it was made with."""
    bins = sizes(cells)
    first = next(iter(cells.values()))
    names = [
        f"{low:g} mm and more" if high is None else f"{low:g} to {high:g} mm" for low, high in bins
    ]
    counts = [pooled(first, low, high).n for low, high in bins]
    titles = [f"{name} (n = {n})" for name, n in zip(names, counts, strict=True)]
    header = ["loss", f"all (n = {pooled(first).n})", *titles, "by seed", "Dice", "AP", "steps"]
    lines = [header, ["---", *["---:"] * (len(header) - 1)]]
    for loss, made in cells.items():
        recalls = [pooled(made), *(pooled(made, low, high) for low, high in bins)]
        by_seed = ", ".join(_cell(cell["recall"]) for cell in made)
        means = [_mean([cell[key] for cell in made]) for key in ("dice", "average_precision")]
        steps = " ".join(str(cell["steps"]) for cell in made)
        lines.append([loss, *map(str, recalls), by_seed, *map(_cell, means), steps])
    plan = setting.plan
    caption = (
        f"Lesion recall at 1 false positive a case (95 % interval) on the {setting.role} cases of "
        f"{Path(setting.found.dataset.root).name}; lesions are {plan.lesion_fraction:.1e} of the "
        f"voxels; {len(setting.cases)} training cases; {setting.minutes:g} minutes a cell on "
        f"{first[0]['device']}; tiles {'×'.join(map(str, plan.tile_shape))}, batch "
        f"{plan.batch_size}; seeds {', '.join(str(cell['seed']) for cell in first)}."
    )
    return "\n".join([caption, "", *(f"| {' | '.join(line)} |" for line in lines)]) + "\n"


def report(cells: Mapping[str, Sequence[Mapping[str, Any]]], setting: Setting) -> None:
    """The rows and the JSON line that every benchmark ends with."""
    rows: list[table.Row] = []
    skipped: dict[str, str] = {}
    parts = {"recall_at_1fp": (0.0, None)} | {
        f"recall_at_1fp_{low:g}mm": (low, high) for low, high in sizes(cells)
    }
    for what, (low, high) in parts.items():
        found = {loss: pooled(made, low, high).number.value or 0.0 for loss, made in cells.items()}
        for peer, value in found.items():
            if REFERENCE not in found or peer == REFERENCE:
                continue
            if value == 0:
                skipped[f"{what} against {peer}"] = (
                    f"it found nothing, focal {found[REFERENCE]:.3f}"
                )
            else:
                rows.append(RecallRow(what, found[REFERENCE], "recall", peer, value))
    table.print_report(
        "ablate_focal",
        rows,
        device=next(iter(cells.values()))[0]["device"],
        versions=table.versions("monai", "pytorch-lightning", "numba"),
        skipped=skipped,
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


if __name__ == "__main__":
    main()

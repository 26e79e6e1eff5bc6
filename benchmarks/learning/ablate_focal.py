"""Focal loss against cross-entropy, weighted, mined and with Dice: who finds the small lesions?

    python benchmarks/learning/ablate_focal.py --output runs/ablate --minutes 10 --seeds 0 1 2
    python benchmarks/learning/ablate_focal.py --data DIR --losses ce focal --minutes 60
    python benchmarks/learning/ablate_focal.py --data DIR --steps 300 \
        --overrides model.stem=space_to_depth
    python benchmarks/learning/ablate_focal.py --model retinanet --losses focal mined_ce
    python benchmarks/learning/ablate_focal.py --quick

With `--model retinanet` the losses are those of the anchors; `dice_…` are of voxels alone. The
library's own recipe throughout: one survey, plan, cache and split for all; cells differ by loss
and seed alone (a seed decides the first weights and the tiles). Without `--data` the heads are
simulated, with lesions in at most 1e-4 of the voxels. All cases of the test role are judged, or of
the validation role where there is no test role; the score from which candidates are accepted is the
lowest with 1 false positive a case on these very cases, for every loss alike.

A finished cell is not made again (see `ablation_cells.py`). Intervals are Wilson's over the lesions
of all seeds, widened by how alike the lesions of one patient are.
"""

import argparse
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from benchmarks.common.recipe import recipe
from benchmarks.learning.ablation_cells import (
    Variant,
    caption,
    cell_arguments,
    make_cell,
    planned,
    prepare,
)
from benchmarks.learning.ablation_table import markdown, report
from lesionseg.io.atomic import write_text
from lesionseg.losses import (
    CrossEntropyLoss,
    DiceCrossEntropyLoss,
    DiceFocalLoss,
    FocalLoss,
    MinedCrossEntropyLoss,
)
from lesionseg.losses.detection_loss import DetectionLoss
from lesionseg.plan.plan import Plan
from lesionseg.training.learning_settings import Learning

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


def main() -> None:
    """Make the missing cells, then print and write the table."""
    options = arguments()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("lesionseg").setLevel(logging.ERROR)
    if options.quick:
        torch.set_num_threads(1)  # tiles too small to share
    with output_folder(options) as output:
        setting = prepare(options, output, quick=options.quick)
        chosen = recipe(options.overrides, Path(setting.found.dataset.root))
        plan = planned(setting, replace(chosen.model, architecture=options.model))
        variants = {loss: variant(plan, chosen.learning, loss) for loss in options.losses}
        cells = {
            loss: [make_cell(setting, its, seed) for seed in options.seeds]
            for loss, its in variants.items()
        }
        text = markdown(cells, caption(setting, plan, options.seeds))
        if options.table:
            write_text(options.table, text)
        print(f"\n{text}")
        report(cells, REFERENCE, "ablate_focal")


def variant(plan: Plan, learning: Learning, loss: str) -> Variant:
    """The library's recipe with one loss."""
    anchors = plan.has_boxes
    learning = replace(
        learning,
        loss=LOSSES["focal" if anchors else loss](),
        detection=ANCHOR_LOSSES[loss if anchors else "focal"](),
    )
    return Variant(loss, plan, learning)


def arguments() -> argparse.Namespace:
    """The command line, the quick run's smaller values filled in."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cell_arguments(parser)
    parser.add_argument("--model", choices=["unet", "retinanet"], default="unet")
    names = sorted({*LOSSES, *ANCHOR_LOSSES})
    parser.add_argument("--losses", nargs="+", choices=names, help="default: all of the model")
    parser.add_argument("--output", type=Path, help="default: runs/ablate_focal")
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


if __name__ == "__main__":
    main()

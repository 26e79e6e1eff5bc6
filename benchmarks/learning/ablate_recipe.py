"""The recipe for small lesions, part by part: what does each one give or take?

    python benchmarks/learning/ablate_recipe.py --data DIR --seeds 0 1 2 --minutes 10
    python benchmarks/learning/ablate_recipe.py --data DIR --steps 300 \
        --variants recipe uniform_sampling
    python benchmarks/learning/ablate_recipe.py --data DIR --also wide=model.base_features=32

The recipe is that of the configuration; every other variant differs in one part, said as overrides
of `train.py` (`--also NAME=OVERRIDE,OVERRIDE` adds one). `no_prior_bias` starts the heads at p = ½.
Cells, scoring and intervals as in `ablation_cells.py`.
"""

import argparse
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.common.recipe import recipe
from benchmarks.learning.ablation_cells import (
    Setting,
    Variant,
    caption,
    cell_arguments,
    make_cell,
    planned,
    prepare,
)
from benchmarks.learning.ablation_table import markdown, report
from lesionseg.io.atomic import write_text

REFERENCE = "recipe"
NO_PRIOR = "no_prior_bias"
VARIANTS: Mapping[str, Sequence[str]] = {
    REFERENCE: (),
    "uniform_sampling": ("sampling=uniform",),
    "smaller_oftener": ("sampling.size_weight=0.5",),
    "instance_wise": ("loss=lesion_wise",),
    "dice_focal": ("loss=dice_focal",),
    "dice_cross_entropy": ("loss=dice_cross_entropy",),
    "cross_entropy": ("loss=cross_entropy",),
    "mean_over_voxels": ("+loss.reduction=mean",),
    NO_PRIOR: (),
    "no_averaged_weights": ("trainer.ema_decay=null",),
    "long_memory": ("optim.beta2=0.999",),
    "no_augmentation": ("augment=none",),
}


def main() -> None:
    """Make the missing cells, then print and write the table."""
    options = arguments()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("lesionseg").setLevel(logging.ERROR)
    known = {**VARIANTS, **dict(map(_named, options.also))}
    setting = prepare(options, options.output)
    chosen = {name: variant(setting, name, known[name]) for name in options.variants or known}
    cells = {
        name: [make_cell(setting, its, seed) for seed in options.seeds]
        for name, its in chosen.items()
    }
    text = markdown(cells, caption(setting, next(iter(chosen.values())).plan, options.seeds))
    if options.table:
        write_text(options.table, text)
    print(f"\n{text}")
    report(cells, REFERENCE, "ablate_recipe")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cell_arguments(parser)
    parser.add_argument("--variants", nargs="+", help="default: all")
    parser.add_argument("--also", nargs="+", default=[], help="NAME=OVERRIDE,OVERRIDE")
    parser.add_argument("--output", type=Path, default=Path("runs/ablate_recipe"))
    return parser.parse_args()


def _named(text: str) -> tuple[str, tuple[str, ...]]:
    name, _, overrides = text.partition("=")
    return name, tuple(overrides.split(","))


def variant(setting: Setting, name: str, overrides: Sequence[str]) -> Variant:
    """The recipe changed in one part."""
    changed = recipe([*setting.overrides, *overrides], Path(setting.found.dataset.root))
    plan = planned(setting, changed.model)
    if name == NO_PRIOR:
        plan = plan.with_(lesion_fraction=0.5)
    return Variant(name, plan, changed.learning)


if __name__ == "__main__":
    main()

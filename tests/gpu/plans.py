"""Plans of tiny 3-D networks, their settings, and tiles with lesions, for a pretend card."""

from dataclasses import replace
from functools import cache

import torch

from lesionseg.cli.compose import compose_files
from lesionseg.config import TrainConfig, read
from lesionseg.models.build import build_network
from lesionseg.plan.plan import AnchorPlan, CandidateRule
from lesionseg.training.objective import make_objective
from tests.models.plans import plan_of
from tests.noise import noise

ARCHITECTURES = ("unet", "residual_unet", "retinanet", "retina_unet")
SIDE = 16


def card_plan(name, **changes):
    """Return the plan of a network of three stages on tiles of 16³ voxels."""
    table = {"n_supervised": 2}
    if name == "residual_unet":
        table["blocks"] = 1
        table["encoder_blocks"] = (1, 1, 1)
    if name.startswith("retina"):
        sizes = (((4.0,) * 3, (6.0,) * 3), ((10.0,) * 3, (14.0,) * 3))
        source = "detection" if name == "retinanet" else "both"
        rule = replace(CandidateRule(), source=source, floor=0.001)
        anchors = AnchorPlan(stages=(1, 2), sizes=sizes, width=8, depth=1)
        changes = {"anchors": anchors, "candidate_rule": rule, **changes}
    return plan_of(name, 3, table=table, **{"tile_shape": (SIDE,) * 3, **changes})


@cache
def card_config(*overrides):
    """Return the settings of `train` for a card. The same process makes the tiles."""
    always = ("data.root=unused", "trainer.accelerator=gpu", "trainer.workers=0")
    return read(TrainConfig, compose_files("train", (*always, *overrides), resolve=True))


class Cubes:
    """Numbered tiles of noise; every second one has two bright cubes, the lesions."""

    def __getitem__(self, number):
        image = noise(1, SIDE, SIDE, SIDE, seed=number)
        instances = torch.zeros(SIDE, SIDE, SIDE, dtype=torch.int32)
        if number % 2 == 0:
            instances[2:5, 3:6, 4:8] = 1
            instances[9:13, 8:12, 9:12] = 700
        labels = (instances > 0).to(torch.uint8)
        valid = torch.ones_like(labels, dtype=torch.bool)
        valid[:2] = False
        image = image + 3 * labels
        return {"image": image, "labels": labels, "instances": instances, "valid": valid}


def make_step(plan, cfg):
    """Return the network of a plan in train mode, its objective, and the plan."""
    return build_network(plan).train(), make_objective(plan, cfg.loss, cfg.detection), plan

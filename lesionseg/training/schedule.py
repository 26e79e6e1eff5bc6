"""How long a training lasts, and the learning rate on the way."""

from math import cos, pi, prod, sqrt

from lesionseg.config import OptimConfig, TrainerConfig
from lesionseg.plan.plan import Plan

HOUR = 60.0  # minutes
# nnU-Net's 1000 epochs of 250 steps, and the voxels of such a step by number of axes
NNUNET_STEPS, NNUNET_VOXELS = 250_000, {3: 2 * 128**3, 2: 12 * 512**2}
LONG = 30.0  # minutes from which validations choose the weights
N_VALIDATIONS, VALIDATION_MINUTES = 6, 20.0
BATCHES = {3: 2, 2: 4}  # that a learning rate is stated for, by number of axes
WARMUP = 0.05  # share of the training, of AdamW; SGD begins at its full rate
WARMUP_FLOOR = 0.01  # a first step at rate 0 would be a step for nothing
POLY_POWER = 0.9  # Chen et al. 2017 (DeepLab); nnU-Net's schedule


def resolve_budget(settings: TrainerConfig, plan: Plan, device: str) -> TrainerConfig:
    """The settings with limits in place of what is open, and minutes in place of `auto`.

    Without `max_minutes` and `max_steps`: an hour on a processor; on a GPU as many voxels as
    nnU-Net sees in its 250 000 steps of 2 × 128³, in at most so many steps. Validation: six times
    in a training of more than half an hour, every 20 minutes of such a number of steps, else never.
    """
    minutes, steps, every = settings.max_minutes, settings.max_steps, None
    if minutes is None and steps is None:
        if device.startswith("cuda"):
            seen = NNUNET_VOXELS[plan.dims] / (plan.batch_size * prod(plan.tile_shape))
            steps, every = round(NNUNET_STEPS * min(seen, 1.0)), VALIDATION_MINUTES
        else:
            minutes = HOUR
    if minutes and minutes > LONG:
        every = minutes / N_VALIDATIONS
    if settings.validate_every_minutes != "auto":
        every = settings.validate_every_minutes
    resolved = {"max_minutes": minutes, "max_steps": steps, "validate_every_minutes": every}
    return settings.model_copy(update=resolved)


def batch_factor(settings: OptimConfig, plan: Plan) -> float:
    """By how much the learning rate follows the plan's batch: linear for SGD, √ for AdamW.

    Relative to 2 tiles in 3-D and 4 in 2-D (Goyal et al. 2017, arXiv 1706.02677; Malladi et al.
    2022, arXiv 2205.10287).
    """
    times = plan.batch_size / BATCHES[plan.dims]
    return times if settings.name == "sgd" else sqrt(times)


def learning_rate(progress: float, settings: OptimConfig) -> float:
    """The rate at `progress` in [0, 1] (above 1: at the end).

    AdamW: linear warm-up from a hundredth of `lr`, then cosine `lr · (1 + cos πq) / 2` (Loshchilov
    and Hutter 2017, eq. 5), q being the share done of what follows the warm-up. SGD: poly
    `lr · (1 − progress)^0.9`.

    >>> learning_rate(0.525, OptimConfig.of(lr=1.0)), learning_rate(1.2, OptimConfig.of(name="sgd"))
    (0.5, 0.0)
    """
    progress = min(max(progress, 0.0), 1.0)
    if settings.name == "sgd":
        return float(settings.lr * (1 - progress) ** POLY_POWER)
    if progress < WARMUP:
        return settings.lr * max(progress / WARMUP, WARMUP_FLOOR)
    return settings.lr * (1 + cos(pi * (progress - WARMUP) / (1 - WARMUP))) / 2

"""A Lightning module of a network, its objective, optimiser and schedule."""

import logging
import time
from collections.abc import Mapping
from math import cos, inf, pi, prod, sqrt
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from lesionseg.config import OptimConfig, TrainerConfig
from lesionseg.errors import ConfigError, TrainingError
from lesionseg.losses import PositiveAverage, VoxelLoss
from lesionseg.losses.base import own_sums
from lesionseg.models.build import set_memory_format, training_memory_format
from lesionseg.models.weights import is_head
from lesionseg.plan.plan import Plan
from lesionseg.plan.rules import NNUNET_VOXELS
from lesionseg.training.compilation import (
    compile_network_and_loss,
    keep_compiled_if_possible,
    should_compile,
)
from lesionseg.training.host_copy import HostCopy
from lesionseg.training.objective import Objective
from lesionseg.training.processes import n_processes, sum_over_processes, training_device

log = logging.getLogger(__name__)

MAX_SKIPPED_IN_A_ROW = 10
NNUNET_STEPS = 250_000  # nnU-Net's 1000 epochs of 250 steps
LONG_MINUTES = 30.0  # a longer training is validated several times to choose the weights
N_VALIDATIONS = 6  # of such a training
VALIDATION_MINUTES = 20.0  # between validations if the settings state no limit, on a GPU
TILES_OF_LR = {3: 2, 2: 4}  # tiles per step to which `optim.lr` applies, by number of axes
SGD_LR = 0.01  # of nnU-Net
ADAMW_LR = 0.003  # of all networks except detectors in 2-D
DETECTOR_2D_LR = 0.001  # benchmarks/notes/detectors.md#learning-rate-of-detectors-on-radiographs
WARMUP = 0.05  # share of a training with AdamW; SGD begins at its full rate
WARMUP_FLOOR = 0.01  # a first step with rate 0 would have no effect
POLY_POWER = 0.9  # Chen et al. 2017 (DeepLab); nnU-Net's schedule


class LesionModule(pl.LightningModule):
    """The training of `network` with `objective` until the budget of `settings` is spent.

    The memory format of the network is changed to that of the training. If `settings` states no
    budget, it is that of `resolve_budget`.

    A batch contains `plan.batch_size` tiles. Terms per positive are divided by a normaliser, the
    moving average of the number of positives in the batches of all processes. Accumulated batches
    count by their mean. Processes average their gradients, so each one divides by the normaliser
    over the number of processes. Dice and the means over lesions are computed from the sums of all
    processes. A step whose gradient is not finite does not change the weights. It is counted in the
    next step, because reading the flag at once would make a GPU wait.

    Raises:
        ConfigError: If the loss has trainable parameters.
    """

    def __init__(
        self,
        network: nn.Module,
        objective: Objective,
        settings: TrainerConfig,
        optim: OptimConfig,
    ) -> None:
        if any(weight.requires_grad for weight in objective.loss.parameters()):
            raise ConfigError(
                "loss: the custom loss has trainable parameters. Register them as buffers."
            )
        super().__init__()
        plan = objective.plan
        device = training_device(settings.accelerator)
        set_memory_format(network, training_memory_format(plan, torch.device(device)))
        self.network = network
        self.objective = objective
        self.plan = plan
        self.has_default_budget = settings.max_minutes is None and settings.max_steps is None
        self.settings = resolve_budget(settings, plan, device)
        self.optim = optim
        self.loss = objective.loss  # registered, so that its buffers move to the device
        self.normalisers = PositiveAverage(objective.expected_positives(plan.batch_size))
        self.minutes = 0.0  # of training until the last step, the same in all processes
        self.skipped = 0
        self.skipped_in_a_row = 0
        self._began = time.monotonic()
        self.recent: list[Tensor] = []  # loss terms of the batches since the last logged row
        self._counts: Tensor | None = None  # of the batches accumulated for the next step
        self.observer: Any = None  # called with the finest logits of the next batch, if set
        self._shared_minutes: HostCopy | None = None  # the sum over all processes
        # number of the last step, and True if its gradient was finite
        self._step_to_count: tuple[int, HostCopy] | None = None

    @property
    def progress(self) -> float:
        """The spent share of the budget: the larger one of the shares of steps and of minutes.

        It is 1 or more at the end of the budget, and 0 without a limit.
        """
        max_steps = self.settings.max_steps
        max_minutes = self.settings.max_minutes
        by_steps = self.global_step / max_steps if max_steps else 0.0
        return max(by_steps, self.minutes / max_minutes if max_minutes else 0.0)

    @property
    def is_logged(self) -> bool:
        """True if the numbers of the current step are logged.

        These are every `log_every_n_steps`-th step and, with a budget of steps, the last one.
        """
        step = self.global_step + 1
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        return step % every == 0 or step == self.settings.max_steps

    def setup(self, stage: str) -> None:
        """Prepare the normalisers and the sums of the loss, and compile the step if asked for.

        The normalisers start at the number of positives expected in the batches of all processes
        together. With `compile=auto`, one step is tried, and the compilation is undone if it fails.
        In this step, sums are those of this process alone, because the others would not answer.
        """
        world = self.trainer.world_size
        n_tiles = self.plan.batch_size * world
        self.normalisers = PositiveAverage(self.objective.expected_positives(n_tiles))
        voxel_loss = self.loss if isinstance(self.loss, VoxelLoss) else None
        if voxel_loss is not None:
            voxel_loss.sum_processes = own_sums
        device = self.trainer.strategy.root_device
        if should_compile(self.settings, device.type):
            self.network.to(device)
            compile_network_and_loss(
                self.network, self.objective if world == 1 else None, self.plan
            )
            if self.settings.compile == "auto":
                autocast = self.trainer.precision_plugin.forward_context
                keep_compiled_if_possible(self.network, self.objective, autocast)
        if voxel_loss is not None and world > 1:  # a trial step does not wait for other processes
            voxel_loss.sum_processes = sum_over_processes

    def on_train_start(self) -> None:
        """Start the clock, at the minutes of the checkpoint if a training is resumed."""
        self._began = time.monotonic() - 60 * self.minutes

    def elapsed_minutes(self) -> float:
        """Return the minutes of training until now by this process's clock.

        Unlike `minutes`, they differ between processes.
        """
        return (time.monotonic() - self._began) / 60

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch. In a logged step, log the means of its terms.

        Labels that a tile does not annotate are masked. `minutes` are updated if there are several
        processes. The finest logits are given to `observer`, if it is set.
        """
        targets = self.objective.targets(batch)
        world = self.trainer.world_size
        counts = targets.counts()
        if world > 1:
            counts = self._share_counts_and_minutes(counts)
        output = self.network(batch["image"])
        if "unannotated" in batch:
            output = self.objective.mask_unannotated(output, batch["unannotated"])
        if self.observer is not None:
            self.observer(self.objective.finest_logits(output, targets))
        # processes average their gradients, so each divides by its share of the normaliser
        normalisers = self._normaliser(counts, batch_idx) / world
        terms = self.objective.terms(output, targets, normalisers)
        loss = torch.stack(list(terms.values())).sum()
        named = {"loss": loss, **{f"loss_{name}": term for name, term in terms.items()}}
        named["positives"] = counts[0]  # anchors or, without them, voxels of the finest level
        self._log_terms(named, batch_idx)
        return loss

    def _share_counts_and_minutes(self, counts: Tensor) -> Tensor:
        """Return the sum of `counts` over all processes, and update `minutes`.

        All processes get the same `minutes`, the mean of their clocks, so that they end at the same
        step. The clocks are sent with the counts, and their sum is read in the next call, because a
        GPU would have to wait for it in this one.
        """
        world = self.trainer.world_size
        minutes = torch.full_like(counts[:1], self.elapsed_minutes())
        sums = self.trainer.strategy.reduce(torch.cat([counts, minutes]), reduce_op="sum")
        if self._shared_minutes is not None:  # sent in the previous call
            self.minutes = self._shared_minutes.read().item() / world
        self._shared_minutes = HostCopy(sums[-1])
        return sums[:-1]

    def _log_terms(self, terms: Mapping[str, Tensor], batch_idx: int) -> None:
        """Remember the terms of a batch. In a logged step, log their means since the last one.

        A term that is NaN is left out of its mean. Learning rate, minutes and the number of skipped
        steps are logged, too.
        """
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        is_first_batch_of_step = batch_idx % self.trainer.accumulate_grad_batches == 0
        if is_first_batch_of_step and self.global_step % every == 0:
            self.recent = []
        self.recent.append(torch.stack([value.detach().float() for value in terms.values()]))
        if self.is_logged:
            device = self.recent[-1].device
            means = torch.stack([row.to(device) for row in self.recent]).nanmean(0)
            is_distributed = self.trainer.world_size > 1
            self.log_dict(dict(zip(terms, means, strict=True)), sync_dist=is_distributed)
            lr = self.optimizers().param_groups[-1]["lr"]  # type: ignore[union-attr]
            self.log_dict({"lr": lr, "minutes": self.minutes, "skipped": float(self.skipped)})

    def _normaliser(self, counts: Tensor, batch_idx: int) -> Tensor:
        """Update the moving average with the `counts` of a batch, and return its normalisers.

        The moving average takes one step per optimiser step. With accumulated batches, each batch
        repeats this step with the mean over the batches so far.
        """
        n_before = batch_idx % self.trainer.accumulate_grad_batches
        if n_before == 0 or self._counts is None:
            self._counts = torch.zeros_like(counts)
            self._average_before_step = self.normalisers.average.clone()
        self._counts = self._counts + counts
        mean_counts = self._counts / (n_before + 1)
        self.normalisers.average.copy_(self._average_before_step)  # undo the previous batch's step
        return self.normalisers.update(mean_counts)

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradient, and make the optimiser skip the step if it is not finite.

        It is clipped by its norm, or each value with the algorithm `value`; without
        `gradient_clip_val` it is not clipped. The norm is computed once, for both. Lightning's own
        clipping refuses fused optimisers in half precision. A skipped step is counted in the next
        step, because a GPU would have to wait for the result now.
        """
        self.count_skipped()  # the previous step
        weights = [weight for weight in self.network.parameters() if weight.grad is not None]
        norm = nn.utils.get_total_norm([w.grad for w in weights if w.grad is not None])
        is_finite = torch.isfinite(norm)
        if gradient_clip_algorithm == "value":
            nn.utils.clip_grad_value_(weights, gradient_clip_val or inf)
        elif gradient_clip_val:
            nn.utils.clip_grads_with_norm_(weights, gradient_clip_val, norm)
        # A fused optimiser does nothing if `found_inf` is 1. With fp16 the optimiser is not fused
        # (`configure_optimizers`), and Lightning's gradient scaler skips the step.
        if optimizer.defaults.get("fused"):
            optimizer.found_inf = (~is_finite).float()
        self._step_to_count = (self.global_step + 1, HostCopy(is_finite))

    def count_skipped(self) -> None:
        """Count the last step if it was skipped, with a warning.

        Raise `TrainingError` after ten skipped steps in a row. A step is counted only once.
        """
        if self._step_to_count is None:
            return
        step, is_finite = self._step_to_count
        self._step_to_count = None
        if is_finite.read().item():
            self.skipped_in_a_row = 0
            return
        self.skipped += 1
        self.skipped_in_a_row += 1
        log.warning("Step %d skipped: its gradient is not finite (%d so far).", step, self.skipped)
        if self.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise TrainingError(
                f"Training has diverged: {MAX_SKIPPED_IN_A_ROW} steps in a row up to step {step} "
                "have no finite gradient. Lower optim.lr, set trainer.precision=32-true, or check "
                "the images."
            )

    def update_minutes(self) -> None:
        """Set `minutes` to those until now, unless several processes share them.

        Several processes set them in `training_step`, to the same number.
        """
        if self.trainer.world_size == 1:
            self.minutes = self.elapsed_minutes()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Update `minutes`, and end the training if the budget is spent."""
        self.update_minutes()
        if self.progress >= 1:
            self.trainer.should_stop = True

    @property
    def tiles_per_step(self) -> int:
        """The number of tiles of a step over all processes and accumulated batches."""
        trainer = self.trainer
        return self.plan.batch_size * trainer.world_size * trainer.accumulate_grad_batches

    @property
    def _fused(self) -> bool | None:
        """True for a fused optimiser. With None, torch chooses one that is not fused.

        With fp16, a fused optimiser would receive gradients that are clipped before unscaling.
        """
        return None if self.trainer.precision == "16-mixed" else True

    def configure_optimizers(self) -> Any:
        """Return the optimiser, and the schedule that follows `progress`. Log the highest rate."""
        n_tiles = self.tiles_per_step
        highest = peak_lr(self.optim, self.plan, n_tiles)
        log.info("Learning rate %.2g for %d tiles per step.", highest, n_tiles)
        optimiser = make_optimiser(self.network, self.optim, highest, fused=self._fused)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimiser, lambda _: lr_factor(self.progress, self.optim)
        )
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what a resumed training needs, after the last step is counted.

        These are minutes, skipped steps, the terms since the last logged row, and the budget,
        device and tiles of a step.
        """
        self.count_skipped()
        checkpoint |= {
            "minutes": self.minutes,
            "skipped": self.skipped,
            "skipped_in_a_row": self.skipped_in_a_row,
            "recent": self.recent,
            # the conditions of the steps, which a resumed training has to repeat
            "max_steps": self.settings.max_steps,
            "max_minutes": self.settings.max_minutes,
            "device": self.device.type,
            "tiles_per_step": self.tiles_per_step,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the additions of `on_save_checkpoint`.

        The optimiser becomes fused or not as the precision of this start needs it.
        """
        for state in checkpoint.get("optimizer_states", ()):
            for group in state["param_groups"]:
                group["fused"] = self._fused
        self.minutes = checkpoint["minutes"]
        self.skipped = checkpoint["skipped"]
        self.skipped_in_a_row = checkpoint.get("skipped_in_a_row", 0)  # 1.0 did not state it
        self.recent = checkpoint["recent"]


def make_optimiser(
    network: nn.Module, settings: OptimConfig, lr: float, *, fused: bool | None = True
) -> torch.optim.Optimizer:
    """Return AdamW, or SGD with nnU-Net's Nesterov momentum, for the trainable weights.

    `lr` is the result of `peak_lr`. The rate of all weights except those of heads is
    multiplied by `backbone_lr_scale`. Weight decay applies only to kernels, because it would not
    regularise a norm's scale or the prior bias of a head. With `fused=None`, torch chooses an
    optimiser that is not fused.
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, weight in network.named_parameters():
        if weight.requires_grad:
            has_full_lr = settings.backbone_lr_scale == 1 or is_head(name)
            has_no_decay = weight.ndim < 2  # a bias, or the scale of a norm
            groups.setdefault((has_full_lr, has_no_decay), []).append(weight)
    # False sorts before True: the last group has the full rate, which is logged as `lr`
    parts = [
        {
            "params": groups[has_full_lr, has_no_decay],
            "weight_decay": 0.0 if has_no_decay else settings.weight_decay,
            "lr": lr * (1.0 if has_full_lr else settings.backbone_lr_scale),
        }
        for has_full_lr, has_no_decay in sorted(groups)
    ]
    if settings.name == "adamw":
        # Focal loss shrinks its own gradient as the network learns. With torch's default of 0.999,
        # AdamW divides by the large first gradients for about 1000 steps and hardly moves.
        return torch.optim.AdamW(parts, lr=lr, betas=(0.9, 0.95), fused=fused)
    sgd = torch.optim.SGD(parts, lr=lr, momentum=0.99, nesterov=True, fused=fused)
    # torch fills the buffer in the first step, but not if the gradient of that step is not finite
    for group in sgd.param_groups:
        for weight in group["params"]:
            sgd.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
    return sgd


def resolve_budget(settings: TrainerConfig, plan: Plan, device: str) -> TrainerConfig:
    """Return the settings with a budget, and with the interval of validations in minutes.

    If the settings state no limit, a training takes an hour on a CPU. On a GPU it uses as many
    voxels as nnU-Net's training, in at most as many steps.

    `validate_every_minutes=auto` becomes 20 minutes with this budget of a GPU. A training whose
    limit is over half an hour validates six times. All others validate only at the end (None).
    """
    minutes = settings.max_minutes
    steps = settings.max_steps
    every = None
    has_no_limit = minutes is None and steps is None
    if has_no_limit and device.startswith("cuda"):
        steps = _steps_like_nnunet(settings, plan)
        every = VALIDATION_MINUTES
    elif has_no_limit:
        minutes = 60.0
    if minutes and minutes > LONG_MINUTES:
        every = minutes / N_VALIDATIONS
    if settings.validate_every_minutes != "auto":
        every = settings.validate_every_minutes
    resolved = {"max_minutes": minutes, "max_steps": steps, "validate_every_minutes": every}
    return settings.model_copy(update=resolved)


def _steps_like_nnunet(settings: TrainerConfig, plan: Plan) -> int:
    """Return the number of steps with as many voxels as nnU-Net's training, at most its 250 000."""
    voxels_per_step = count_tiles_per_step(settings, plan) * prod(plan.tile_shape)
    return round(NNUNET_STEPS * min(NNUNET_VOXELS[plan.dims] / voxels_per_step, 1.0))


def count_tiles_per_step(settings: TrainerConfig, plan: Plan) -> int:
    """Return the number of tiles of a step over all processes and accumulated batches."""
    batches_per_step = int(settings.lightning.get("accumulate_grad_batches", 1))
    return plan.batch_size * batches_per_step * n_processes(settings)


def budget_text(settings: TrainerConfig) -> str:
    """Return the limits of a budget as text: "5 minutes or 300 steps". It is "" without limits."""
    limits = ((settings.max_minutes, "minute"), (settings.max_steps, "step"))
    return " or ".join(f"{n:g} {unit}{'' if n == 1 else 's'}" for n, unit in limits if n)


def peak_lr(settings: OptimConfig, plan: Plan, n_tiles: int) -> float:
    """Return the highest learning rate of a training whose steps have `n_tiles` tiles.

    The rate is proportional to the number of tiles for SGD (Goyal et al. 2017, arXiv 1706.02677),
    and to its square root for AdamW (Malladi et al. 2022, arXiv 2205.10287). `optim.lr` applies to
    2 tiles in 3-D and 4 in 2-D; `auto` is lower for detectors in 2-D. `n_tiles` includes all
    processes and accumulated batches.
    """
    lr = _default_lr(settings, plan) if settings.lr == "auto" else settings.lr
    times = n_tiles / TILES_OF_LR[plan.dims]
    return lr * (times if settings.name == "sgd" else sqrt(times))


def _default_lr(settings: OptimConfig, plan: Plan) -> float:
    """Return the rate of `optim.lr=auto`, before it is scaled with the tiles of a step."""
    if settings.name == "sgd":
        return SGD_LR
    return DETECTOR_2D_LR if plan.has_boxes and plan.dims == 2 else ADAMW_LR


def lr_factor(progress: float, settings: OptimConfig) -> float:
    """Return the share of the highest learning rate at `progress` in [0, 1].

    AdamW: linear warm-up from a hundredth, then cosine `(1 + cos πq) / 2` (Loshchilov and Hutter
    2017, eq. 5), where q is the progress from the end of the warm-up (0) to the end of the training
    (1). SGD: poly `(1 − progress)^0.9`. Above a progress of 1 the share stays the same.
    """
    progress = min(max(progress, 0.0), 1.0)
    if settings.name == "sgd":
        return float((1 - progress) ** POLY_POWER)
    if progress < WARMUP:
        return max(progress / WARMUP, WARMUP_FLOOR)
    return (1 + cos(pi * (progress - WARMUP) / (1 - WARMUP))) / 2

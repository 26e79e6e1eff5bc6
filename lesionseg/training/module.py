"""Training step, learning rate, warm-up, optimiser, end by minutes or steps, divergence.

It is a Lightning module. Here are also the default budget and the interval of validations.
"""

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

    The memory format of the network is changed to the format that trains fastest. If `settings` has
    no budget, the default budget is used (`resolve_budget`).

    - A batch contains `plan.batch_size` tiles. Accumulated batches count by their mean.
    - Loss terms per positive are divided by a normaliser. It is the moving average of the number of
      positives in the batches of all processes.
    - Processes average their gradients, so each process divides by the normaliser over the number
      of processes.
    - Dice and the means over lesions are computed from the sums over all processes.
    - A step whose gradient is not finite does not change the weights. It is counted in the next
      step, because a GPU would have to wait if the host read the flag at once.

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
        # moving averages of the positives per step, by which the terms of the loss are divided
        self.normalisers = PositiveAverage(objective.expected_positives(plan.batch_size))
        self.minutes = 0.0  # of training until the last step, the same in all processes
        self.skipped = 0  # steps without a finite gradient
        self.skipped_in_a_row = 0
        self._began = time.monotonic()  # this clock minus the minutes of a resumed training
        self.recent: list[Tensor] = []  # loss terms of the batches since the last logged row
        # positives of the batches accumulated for the next step, one number per normaliser
        self._summed_counts: Tensor | None = None
        self.observer: Any = None  # called with the finest logits of the next batch, if set
        self._summed_minutes: HostCopy | None = None  # sum of the clocks of all processes
        # number of the last step, and True if its gradient was finite
        self._step_to_count: tuple[int, HostCopy] | None = None

    @property
    def progress(self) -> float:
        """The fraction of the budget that is spent, for the learning rate and the end of training.

        The fraction is the larger one of steps / `max_steps` and minutes / `max_minutes`. A limit
        that is not set counts as 0. From 1 on, the training ends.
        """
        max_steps = self.settings.max_steps
        max_minutes = self.settings.max_minutes
        by_steps = self.global_step / max_steps if max_steps else 0.0
        return max(by_steps, self.minutes / max_minutes if max_minutes else 0.0)

    @property
    def is_logged(self) -> bool:
        """True if the current step writes its numbers to the loggers, such as metrics.csv.

        This applies to every `log_every_n_steps`-th step (a setting of Lightning's trainer) and,
        with a budget of steps, to the last step.
        """
        step = self.global_step + 1  # `global_step` counts the complete steps
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        return step % every == 0 or step == self.settings.max_steps

    def setup(self, stage: str) -> None:
        """Prepare the normalisers and the loss, and compile the step if asked for.

        Lightning calls this hook before training.

        - Normalisers: a normaliser is the average number of positives per step, by which the loss
          is divided. It starts at the number that is expected in the batches of all processes.
        - Loss: a voxel loss that is a quotient of sums, such as Dice, adds its sums over all
          processes (`VoxelLoss.sum_processes`).
        - Compiling: with `compile=auto`, one trial step shows if compiling works; if not, the step
          stays uncompiled. During the trial step, the loss uses only the sums of this process,
          because the other processes may not run a trial step at the same time.
        """
        world = self.trainer.world_size
        n_tiles = self.plan.batch_size * world
        self.normalisers = PositiveAverage(self.objective.expected_positives(n_tiles))
        voxel_loss = self.loss if isinstance(self.loss, VoxelLoss) else None
        if voxel_loss is not None:
            voxel_loss.sum_processes = own_sums  # for the trial step, replaced at the end
        device = self.trainer.strategy.root_device
        if should_compile(self.settings, device.type):
            self.network.to(device)
            # losses of several processes exchange sums, and are not compiled
            compile_network_and_loss(
                self.network, self.objective if world == 1 else None, self.plan
            )
            if self.settings.compile == "auto":
                autocast = self.trainer.precision_plugin.forward_context
                keep_compiled_if_possible(self.network, self.objective, autocast)
        if voxel_loss is not None and world > 1:  # from now on, all processes run the same steps
            voxel_loss.sum_processes = sum_over_processes

    def on_train_start(self) -> None:
        """Start the clock. A resumed training continues from the minutes of its checkpoint."""
        self._began = time.monotonic() - 60 * self.minutes

    def elapsed_minutes(self) -> float:
        """Return the minutes of training until now, measured by the clock of this process.

        The result differs between processes. The attribute `minutes` is the same in all of them.
        """
        return (time.monotonic() - self._began) / 60

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch, from which Lightning computes the gradient.

        Classes that a tile does not annotate are masked (`mask_unannotated`). In a logged step, the
        means of the loss terms are logged. `observer`, if set, receives the finest logits
        (`FocalStatistics`). With several processes, `minutes` are updated here.
        """
        targets = self.objective.targets(batch)
        world = self.trainer.world_size  # number of processes
        counts = targets.counts()
        if world > 1:
            counts = self._sum_counts_and_minutes(counts)
        output = self.network(batch["image"])
        if "unannotated" in batch:
            output = self.objective.mask_unannotated(output, batch["unannotated"])
        if self.observer is not None:
            self.observer(self.objective.finest_logits(output, targets))
        # The normaliser counts the positives of all processes. Lightning divides the sum of their
        # gradients by `world`, so each process divides its loss by 1 / `world` of the normaliser.
        normalisers = self._update_normalisers(counts, batch_idx) / world
        terms = self.objective.terms(output, targets, normalisers)
        loss = torch.stack(list(terms.values())).sum()
        named = {"loss": loss, **{f"loss_{name}": term for name, term in terms.items()}}
        named["positives"] = counts[0]  # anchors or, without them, voxels of the finest level
        self._log_terms(named, batch_idx)
        return loss

    def _sum_counts_and_minutes(self, counts: Tensor) -> Tensor:
        """Return the positives per normaliser summed over all processes, and update `minutes`.

        All processes get the same `minutes`, the mean of their clocks, so that they end at the same
        step. The clocks are sent together with the counts. Their sum is read in the next call, so
        that the GPU does not wait for it now. In the first call, `minutes` does not change.

        Args:
            counts: The number of positives of this process's batch for each normaliser.
        """
        world = self.trainer.world_size
        minutes = torch.full_like(counts[:1], self.elapsed_minutes())
        sums = self.trainer.strategy.reduce(torch.cat([counts, minutes]), reduce_op="sum")
        if self._summed_minutes is not None:  # sent in the previous call
            self.minutes = self._summed_minutes.read().item() / world
        self._summed_minutes = HostCopy(sums[-1])
        return sums[:-1]

    def _log_terms(self, terms: Mapping[str, Tensor], batch_idx: int) -> None:
        """Store the loss terms of a batch, and log their means in a logged step.

        A step is an update of the weights, from one batch or several accumulated batches. The means
        are over all batches after the previous logged step. A NaN is left out of its mean. Learning
        rate, minutes and the number of skipped steps are logged as well.

        Args:
            terms: Scalars by name: the loss, its terms, and the number of positives.
            batch_idx: Lightning's number of the batch.
        """
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        is_first_batch_of_step = batch_idx % self.trainer.accumulate_grad_batches == 0
        # `global_step` counts complete steps: the previous step was logged, so the means start
        # again. `recent` is not emptied when they are logged, because each accumulated batch of a
        # logged step logs means, and the last one of them must include all batches.
        if is_first_batch_of_step and self.global_step % every == 0:
            self.recent = []
        self.recent.append(torch.stack([value.detach().float() for value in terms.values()]))
        if self.is_logged:
            device = self.recent[-1].device
            # rows of a resumed training come from the checkpoint, on the CPU
            means = torch.stack([row.to(device) for row in self.recent]).nanmean(0)
            is_distributed = self.trainer.world_size > 1
            self.log_dict(dict(zip(terms, means, strict=True)), sync_dist=is_distributed)
            # the last group has the full rate (`make_optimiser`)
            lr = self.optimizers().param_groups[-1]["lr"]  # type: ignore[union-attr]
            self.log_dict({"lr": lr, "minutes": self.minutes, "skipped": float(self.skipped)})

    def _update_normalisers(self, counts: Tensor, batch_idx: int) -> Tensor:
        """Update the moving average of positives with a batch, and return the divisors of its loss.

        The average changes once per optimiser step. With accumulated batches, each batch therefore
        undoes the change of the previous batch, and repeats it with the mean count of all batches
        so far.

        Args:
            counts: The number of positives of the batch over all processes, one per normaliser.
            batch_idx: Lightning's number of the batch.

        Returns:
            One divisor per normaliser, in the order of `counts`.
        """
        # number of earlier batches of the same optimiser step
        n_before = batch_idx % self.trainer.accumulate_grad_batches
        if n_before == 0 or self._summed_counts is None:
            self._summed_counts = torch.zeros_like(counts)
            self._average_before_step = self.normalisers.average.clone()
        self._summed_counts = self._summed_counts + counts
        mean_counts = self._summed_counts / (n_before + 1)
        self.normalisers.average.copy_(self._average_before_step)  # undo the previous batch's step
        return self.normalisers.update(mean_counts)

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradient, and make the optimiser skip the step if the gradient is not finite.

        This hook replaces Lightning's clipping, which refuses fused optimisers in half precision. A
        skipped step is counted in the next step, because a GPU would have to wait for the result
        now.

        Args:
            optimizer: The optimiser of the step.
            gradient_clip_val: Maximum norm, or maximum of each value with the algorithm "value".
                None or 0 does not clip.
            gradient_clip_algorithm: "value", or None for the norm.
        """
        self.count_skipped()  # the previous step
        weights = [weight for weight in self.network.parameters() if weight.grad is not None]
        # one norm for two purposes: to test for finite values, and to clip
        norm = nn.utils.get_total_norm([w.grad for w in weights if w.grad is not None])
        is_finite = torch.isfinite(norm)
        if gradient_clip_algorithm == "value":
            nn.utils.clip_grad_value_(weights, gradient_clip_val or inf)  # inf: no clipping
        elif gradient_clip_val:
            nn.utils.clip_grads_with_norm_(weights, gradient_clip_val, norm)
        # A fused optimiser does nothing if `found_inf` is 1. With fp16 the optimiser is not fused
        # (`configure_optimizers`), and Lightning's gradient scaler skips the step.
        if optimizer.defaults.get("fused"):
            optimizer.found_inf = (~is_finite).float()
        # `global_step` does not include this step yet
        self._step_to_count = (self.global_step + 1, HostCopy(is_finite))

    def count_skipped(self) -> None:
        """Count the last step if it was skipped, and log a warning.

        The step is counted only once, even if this method is called again before the next step.

        Raises:
            TrainingError: If ten steps in a row were skipped.
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
        """Set `minutes` to the minutes of training until now, if there is a single process.

        Several processes need the same number, which `training_step` sets.
        """
        if self.trainer.world_size == 1:
            self.minutes = self.elapsed_minutes()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Update `minutes`, and make Lightning end the training if the budget is spent."""
        self.update_minutes()
        if self.progress >= 1:
            self.trainer.should_stop = True

    @property
    def tiles_per_step(self) -> int:
        """The number of tiles of an optimiser step, over all processes and accumulated batches."""
        trainer = self.trainer
        return self.plan.batch_size * trainer.world_size * trainer.accumulate_grad_batches

    @property
    def _fused(self) -> bool | None:
        """The argument `fused` of the optimiser: True, or None with fp16.

        A fused optimiser updates all weights in one GPU kernel. With fp16, it would receive
        gradients that are clipped before Lightning unscales them. With None, torch chooses an
        optimiser that is not fused.
        """
        return None if self.trainer.precision == "16-mixed" else True

    def configure_optimizers(self) -> Any:
        """Return the optimiser and its schedule in Lightning's format.

        The highest learning rate is logged. The schedule multiplies the highest rate by `lr_factor`
        of `progress` after each step.
        """
        n_tiles = self.tiles_per_step
        highest_lr = peak_lr(self.optim, self.plan, n_tiles)
        log.info("Learning rate %.2g for %d tiles per step.", highest_lr, n_tiles)
        optimiser = make_optimiser(self.network, self.optim, highest_lr, fused=self._fused)
        # its function gets the number of steps, which is not used: the budget may be in minutes
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimiser, lambda _: lr_factor(self.progress, self.optim)
        )
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add to a checkpoint what a resumed training needs, after counting the last step.

        The entries are the minutes, the numbers of skipped steps, the loss terms since the last
        logged step, and the conditions of the training: budget, device and tiles per step.
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
        """Restore minutes, skipped steps and recent loss terms from a checkpoint.

        The optimiser becomes fused or not as the precision of the present run needs it, because the
        checkpoint may come from a run with another precision.
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

    Weight decay applies only to weights with two or more axes. It would not regularise biases and
    the scales of norms, and would change the prior bias of a head.

    Args:
        network: The network. Weights without `requires_grad` are left out.
        settings: The name of the optimiser, the weight decay and `backbone_lr_scale`. That scale
            multiplies the learning rate of all weights except those of heads.
        lr: The highest learning rate, the result of `peak_lr`.
        fused: True for one GPU kernel per step. None: torch chooses an optimiser that is not fused.
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, weight in network.named_parameters():
        if weight.requires_grad:
            has_full_lr = settings.backbone_lr_scale == 1 or is_head(name)
            has_no_decay = weight.ndim < 2  # a bias, or the scale of a norm
            groups.setdefault((has_full_lr, has_no_decay), []).append(weight)
    # False sorts before True: the last group has the full rate, which is logged as `lr`
    param_groups = [
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
        return torch.optim.AdamW(param_groups, lr=lr, betas=(0.9, 0.95), fused=fused)
    # nnU-Net's settings
    sgd = torch.optim.SGD(param_groups, lr=lr, momentum=0.99, nesterov=True, fused=fused)
    # Torch creates the buffer in the first step, but does not fill it if that step is skipped
    # because its gradient is not finite. A buffer of zeros is safe.
    for group in sgd.param_groups:
        for weight in group["params"]:
            sgd.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
    return sgd


def resolve_budget(settings: TrainerConfig, plan: Plan, device: str) -> TrainerConfig:
    """Return the settings with a budget, and with the interval of validations in minutes.

    If the settings have no limit, the default depends on the device:

    - On a CPU, a training lasts an hour.
    - On a GPU, it processes as many voxels as nnU-Net's training, in at most as many steps.

    If only minutes are limited, a network also ends after `plan.network_steps`.

    With `validate_every_minutes=auto`, a training with a limit of over half an hour validates six
    times. This includes the default of a CPU. With the default budget of a GPU, it validates every
    20 minutes. All other trainings validate only at the end (None).

    Args:
        settings: The settings, in which the limits may be None.
        plan: The size and number of tiles per step, and the steps of a network.
        device: `cpu`, or a name that begins with `cuda`.
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
    if steps is None:
        steps = plan.network_steps
    if settings.validate_every_minutes != "auto":
        every = settings.validate_every_minutes
    resolved = {"max_minutes": minutes, "max_steps": steps, "validate_every_minutes": every}
    return settings.model_copy(update=resolved)


def _steps_like_nnunet(settings: TrainerConfig, plan: Plan) -> int:
    """Return the default number of steps on a GPU.

    These steps process as many voxels as nnU-Net's training. There are at most 250 000 of them.
    """
    voxels_per_step = count_tiles_per_step(settings, plan) * prod(plan.tile_shape)
    # NNUNET_VOXELS are the voxels of one step of nnU-Net
    return round(NNUNET_STEPS * min(NNUNET_VOXELS[plan.dims] / voxels_per_step, 1.0))


def count_tiles_per_step(settings: TrainerConfig, plan: Plan) -> int:
    """Return the number of tiles of an optimiser step, over all processes and accumulated batches.

    The number is known before Lightning's trainer exists, unlike `LesionModule.tiles_per_step`.
    """
    batches_per_step = int(settings.lightning.get("accumulate_grad_batches", 1))
    return plan.batch_size * batches_per_step * n_processes(settings)


def budget_text(settings: TrainerConfig) -> str:
    """Return the limits of a budget as text for messages, such as "5 minutes or 300 steps".

    Without limits, the text is "".
    """
    limits = ((settings.max_minutes, "minute"), (settings.max_steps, "step"))
    # `:g` writes 5.0 as 5; a limit that is None is left out
    return " or ".join(f"{n:g} {unit}{'' if n == 1 else 's'}" for n, unit in limits if n)


def peak_lr(settings: OptimConfig, plan: Plan, n_tiles: int) -> float:
    """Return the highest learning rate of a training whose steps have `n_tiles` tiles.

    `optim.lr` applies to steps of 2 tiles in 3-D and of 4 tiles in 2-D. For other numbers, the rate
    is proportional to the number of tiles with SGD (Goyal et al. 2017, arXiv 1706.02677), and to
    its square root with AdamW (Malladi et al. 2022, arXiv 2205.10287).

    Args:
        settings: The optimiser and its rate. `auto` is the default rate of the optimiser, which is
            lower for detectors in 2-D.
        plan: The number of axes, and if the network is a detector.
        n_tiles: Number of tiles over all processes and accumulated batches.
    """
    lr = _default_lr(settings, plan) if settings.lr == "auto" else settings.lr
    ratio = n_tiles / TILES_OF_LR[plan.dims]  # to the number for which `optim.lr` applies
    return lr * (ratio if settings.name == "sgd" else sqrt(ratio))


def _default_lr(settings: OptimConfig, plan: Plan) -> float:
    """Return the learning rate that `optim.lr=auto` means, before it is scaled with `n_tiles`.

    The rate depends on the optimiser and, with AdamW, is lower for detectors in 2-D.
    """
    if settings.name == "sgd":
        return SGD_LR
    return DETECTOR_2D_LR if plan.has_boxes and plan.dims == 2 else ADAMW_LR


def lr_factor(progress: float, settings: OptimConfig) -> float:
    """Return the factor by which the highest learning rate is multiplied at `progress`.

    - AdamW: the factor rises linearly during the first 5 % of the budget, from 0.01 to 1. Then it
      falls as a cosine, `(1 + cos πq) / 2` (Loshchilov and Hutter 2017, eq. 5). Here q is the
      progress from the end of the warm-up (0) to the end of the training (1).
    - SGD: `(1 − progress)^0.9`, the "poly" schedule of nnU-Net.

    `progress` is limited to [0, 1].
    """
    progress = min(max(progress, 0.0), 1.0)
    if settings.name == "sgd":
        return float((1 - progress) ** POLY_POWER)
    if progress < WARMUP:
        return max(progress / WARMUP, WARMUP_FLOOR)
    return (1 + cos(pi * (progress - WARMUP) / (1 - WARMUP))) / 2

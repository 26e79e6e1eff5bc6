"""Plan of a run: new or read again, narrow network for short CPU runs, memory, loss checks."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lesionseg.config import (
    DetectionConfig,
    LossConfig,
    ModelConfig,
    Spec,
    TrainConfig,
    TrainerConfig,
    has_config,
)
from lesionseg.core import describe_sides
from lesionseg.data.augment import build_augmentation
from lesionseg.data.transforms import as_meta_tensor, check_transforms, try_on_tile
from lesionseg.errors import ConfigError
from lesionseg.host_memory import physical_bytes
from lesionseg.inference.bundle import bundle_plan
from lesionseg.io.model_files import read_model_text
from lesionseg.io.text import write_text
from lesionseg.losses import make_loss
from lesionseg.models.build import TRUSTED, build_network, fast_dtype
from lesionseg.models.custom_network import backbone_pyramid, n_logits, probe_network
from lesionseg.models.heads import DetectorOutput
from lesionseg.models.memory_formula import step_gb
from lesionseg.models.nnunet_checkpoint import (
    architecture_of,
    is_checkpoint,
    read_nnunet_checkpoint,
)
from lesionseg.models.retinanet import planned_anchors
from lesionseg.pipeline.dataset_inspection import ALL_FOLDS, may_lack, require_masks
from lesionseg.pipeline.experiment import Experiment
from lesionseg.pipeline.log import LOG
from lesionseg.pipeline.run_dir import (
    SPLITS,
    check_cases,
    config_of,
    save_config,
    save_digests,
    warn_of_seen_cases,
)
from lesionseg.plan.fingerprint import Fingerprint
from lesionseg.plan.make import make_plan, network_spec
from lesionseg.plan.plan import Architecture, FocalCorrection, Plan, heads_of, to_tuples
from lesionseg.plan.rules import Decision, network_steps
from lesionseg.training.fit import check_trainer
from lesionseg.training.module import LesionModule, count_tiles_per_step
from lesionseg.training.objective import (
    Objective,
    make_detection_loss,
    make_objective,
    noise_batch,
)
from lesionseg.training.processes import (
    broadcast_from_rank_zero,
    require_compiler,
    require_device,
    training_device,
)
from lesionseg.training.trial_steps import fit_to_memory, try_steps

log = logging.getLogger(__name__)

# Minutes of one core up to which a training on a CPU is short. The narrower network was better in
# 20 minutes of one core (benchmarks/notes/candidates.md); longer trainings were not compared.
SHORT_CORE_MINUTES = 30
NARROW_FEATURES = 8  # features of the first stage in such a training


def begin(experiment: Experiment, given: Plan | None = None) -> Plan:
    """Return a checked plan, and save the plan and the configuration in the run directory.

    The plan is `given`, or read from the run directory of an earlier start, or made from the
    inspected dataset. In a distributed training, rank 0 makes the plan and sends it to the other
    processes.

    Args:
        experiment: The training.
        given: The plan of another training to use, such as that of a cross-validation for its
            folds.

    Raises:
        ConfigError: If a setting is wrong. Nothing is saved then.
        DatasetError: If the run began with other cases, or references do not fit the model.
    """
    return broadcast_from_rank_zero(partial(_begin, experiment, given))


def _begin(experiment: Experiment, given: Plan | None) -> Plan:
    """Make, check and save the plan in a single process, for `begin`, which has the same errors.

    A new plan for a GPU is tried in training steps, and reduced if its steps do not fit into
    memory.
    """
    cfg = experiment.cfg
    run = experiment.run
    architecture = cfg.model.architecture
    inspection = experiment.inspection
    check_cases(run, inspection.splits, inspection.digests)
    require_masks(experiment.inspection, architecture)
    _warn_of_unused_losses(architecture, cfg.loss, cfg.detection)
    if cfg.data.fold != ALL_FOLDS:  # each fold has its own roles
        warn_of_seen_cases(cfg.model.init_from, inspection.splits, inspection.dataset.cases)
    # checks of the machine, then of plan and losses
    is_new = given is None and not has_config(run)
    if is_new:  # a finished run that is only scored again needs none of these
        require_device(cfg.trainer.accelerator)
        require_compiler(cfg.trainer)
        check_trainer(cfg.trainer, run, cfg.callbacks, cfg.logger)
    plan = with_focal_correction(plan_run(experiment, given), cfg.loss, cfg.detection)
    check_losses(make_objective(plan, cfg.loss, cfg.detection))
    if architecture == "custom" and cfg.optim.backbone_lr_scale != 1:
        raise ConfigError(
            "optim.backbone_lr_scale: lesionseg does not know which weights of model=custom are "
            "its backbone. Leave it at 1."
        )

    def run_steps(tried: Plan) -> None:
        """Try training steps with a plan, which shows if they fit into the memory of the GPU."""
        # a class of the user is trusted, because the settings name it
        network = build_network(tried, architectures=TRUSTED)
        objective = make_objective(tried, cfg.loss, cfg.detection)
        try_steps(LesionModule(network, objective, cfg.trainer, cfg.optim))

    if is_new and experiment.device == "cuda":  # the tile of an existing run stays as it is
        plan = fit_to_memory(plan, run_steps)
    save_run(experiment, plan)
    # the folds of a cross-validation have the same plan, which is logged once
    is_one_of_several_folds = given is not None and cfg.data.fold != ALL_FOLDS
    _log_plan(plan, experiment, logging.DEBUG if is_one_of_several_folds else logging.INFO)
    return plan


def save_run(experiment: Experiment, plan: Plan) -> None:
    """Write fingerprint, splits, plan, configuration and digests of files into the run directory.

    The function is called after all checks, so that a rejected configuration leaves no file. From
    then on, only the same configuration can use this directory. The name of the directory is logged
    if the settings do not contain it.
    """
    run = experiment.run
    inspection = experiment.inspection
    write_text(run / "fingerprint.json", inspection.fingerprint.to_json())
    write_text(run / SPLITS, inspection.splits.to_json())
    write_text(run / "plan.json", plan.to_json())
    save_config(run, config_of(experiment.cfg))
    save_digests(run, inspection.splits, inspection.digests)
    if not experiment.cfg.run_dir:  # its name contains the time, so the same command makes another
        log.info("Results go to %s; run_dir=%s resumes it.", run, run)


def _warn_of_unused_losses(architecture: str, loss: LossConfig, detection: DetectionConfig) -> None:
    """Warn of loss settings that the user changed, but that the model does not use.

    A pure detector ignores `loss`, and a model without anchors ignores `detection`.
    """
    heads = heads_of(architecture)
    if "segmentation" not in heads and loss != LossConfig.of():
        log.warning(
            "model=%s predicts boxes only, so %s is ignored. Use detection.alpha=%s and "
            "detection.gamma=%s instead.",
            architecture,
            loss.target.rpartition(".")[2],  # the name of the class
            detection.alpha,
            detection.gamma,
        )
    if "detection" not in heads and detection != DetectionConfig.of():
        log.warning(
            "model=%s has no anchors, so the detection.* settings are ignored. Use loss.* instead.",
            architecture,
        )


def _log_plan(plan: Plan, experiment: Experiment, level: int) -> None:
    """Log a line on architecture, tiles and device at this level.

    The reasons for the model and for several networks are logged, too, if there are any.
    """
    for name in ("model", "networks"):
        if name in plan.reasons:
            log.log(level, "%s: %s.", name.capitalize(), plan.reasons[name])
    log.log(
        level,
        "Plan: %s, %d tiles of %s per step, on %s; for the reasons see %s.",
        plan.architecture.name,
        plan.batch_size,
        describe_tile(plan),
        experiment.device,
        experiment.run / LOG,
    )


def describe_tile(plan: Plan) -> str:
    """Return a tile's shape and voxel size as text, such as "96 × 96 × 96 voxels of 1 × 1 × 1 mm".

    In 2-D, a pixel size of exactly 1 mm counts as unknown and is left out, because file readers
    assume 1 mm if a file does not contain the size. The size of a pixel of the tile is then in
    pixels of the image, and is left out if the two are equal.
    """
    tile = describe_sides(plan.tile_shape)
    size = describe_sides(plan.spacing_mm)
    if plan.dims == 3:
        return f"{tile} voxels of {size} mm"
    if plan.assumed_pixel_mm != 1.0:
        return f"{tile} pixels of {size} mm"
    if set(plan.spacing_mm) == {1.0}:
        return f"{tile} pixels"
    return f"{tile} pixels, each of {size} image pixels,"


def plan_run(experiment: Experiment, given: Plan | None = None, *, keeps_plan: bool = True) -> Plan:
    """Return the plan of a training: `given`, or that of the run, or a new one. Write no file.

    A resumed run keeps its plan, because a plan made on a machine with other memory could differ.
    Some entries always come from the current settings: the user's network class, the flip axes and
    the rules for reading files.

    Args:
        experiment: The training.
        given: A plan to use; None for that of the run or a new one.
        keeps_plan: False makes the plan again even if the run has one.

    Raises:
        ConfigError: If the settings of transforms, augmentation or model are wrong.
    """
    cfg = experiment.cfg
    inspection = experiment.inspection
    run = experiment.run
    if keeps_plan and given is None:
        given = plan_of_run(run)
        if given is not None:
            log.info("Resuming: the run keeps its plan.")
    check_transforms(cfg.prepare.extra, cfg.augment.extra)
    plan = given or _make_plan(experiment)
    plan = plan.with_(
        # only a class that the user's own settings name is imported, not one that a file names
        architecture=replace(plan.architecture, network=network_spec(cfg.model)),
        may_lack=may_lack(cfg.data, plan.channel_names),  # one channel of a scan
        flip_axes=cfg.augment.flip_axes,
        nan_background=inspection.dataset.nan_background,
        grid_of_image=inspection.dataset.grid_of_image,
    )
    build_augmentation(cfg.augment, plan)  # raises an error for wrong flip axes and transforms
    if not has_config(run):
        try_augmentation(plan, cfg.augment.extra)
    return plan


def plan_of_run(run: Path) -> Plan | None:
    """Return the plan in a run directory; None if the run has not begun, or has no plan file."""
    path = run / "plan.json"
    if not (has_config(run) and path.is_file()):
        return None
    return Plan.from_json(read_model_text(path), path)


def _make_plan(experiment: Experiment) -> Plan:
    """Make a new plan from the statistics of the dataset, the settings and the memory.

    The plan is for the device of this machine. With `trainer.memory_gb` and a GPU in the settings,
    it is for such a GPU on another machine. The reason for each decision is logged at level DEBUG.
    """
    inspection = experiment.inspection
    model = experiment.cfg.model
    trainer = experiment.cfg.trainer
    extra = experiment.cfg.prepare.extra
    is_for_other_machine = trainer.memory_gb is not None and trainer.accelerator in ("gpu", "cuda")
    if not is_for_other_machine:
        require_device(trainer.accelerator)  # before a plan for another device is written
    device = "cuda" if is_for_other_machine else training_device(trainer.accelerator)
    # initial weights or a pretrained backbone determine the stages of the network (`pyramid`)
    start_plan = _plan_before(model.init_from, extra)
    dims = inspection.fingerprint.dims
    pyramid = checkpoint_architecture(model, dims)
    if pyramid is None and model.backbone:
        n_channels = len(inspection.dataset.channel_names)
        pyramid = backbone_pyramid(model.architecture, network_spec(model), dims, n_channels)
    narrowed = Decision(model, "")
    if pyramid is None and start_plan is None and may_be_narrow(model, inspection.fingerprint):
        narrowed = narrow_if_short(model, trainer, device)
    plan = make_plan(
        inspection.fingerprint,
        inspection.dataset,
        # 1 GB is 1e9 bytes
        memory_gb=trainer.memory_gb or _memory_bytes(device) / 1e9,
        device=device,
        overrides=narrowed.value,
        before=start_plan,
        step_memory=step_gb,
        pyramid=pyramid,
    ).with_(prepare_extra=tuple(extra))
    if narrowed.reason:
        plan = plan.with_(reasons={**plan.reasons, "features": narrowed.reason})
    plan = probe_network(
        plan,
        by_hand=bool(model.tile_shape or start_plan),
        keeps_batch=model.batch_size is not None,
    )
    limit = limit_network(plan, experiment.cfg, len(inspection.fingerprint.diameters_mm))
    if limit.value is not None:
        plan = plan.with_(
            network_steps=limit.value, reasons={**plan.reasons, "networks": limit.reason}
        )
    for decision, reason in plan.reasons.items():
        log.debug("%s: %s.", decision.replace("_", " ").capitalize(), reason)
    if experiment.why_model:  # `_log_plan` logs it, also for a plan that is read
        why = f"{plan.architecture.name}, because {experiment.why_model}"
        plan = plan.with_(reasons={"model": why, **plan.reasons})
    return plan


def limit_network(plan: Plan, cfg: TrainConfig, n_lesions: int) -> Decision[int | None]:
    """Return the number of steps of a network in a training of several networks (`network_steps`).

    The number is None for one network, for pictures and detectors, for which it was not measured,
    and if no tile is chosen to contain a lesion.

    Args:
        plan: The plan with its number of tiles per step.
        cfg: The settings, with `max_networks` and the share of tiles with a lesion.
        n_lesions: Number of lesions of the training cases.
    """
    tiles = count_tiles_per_step(cfg.trainer, plan) * cfg.sampling.lesion_share
    is_measured = plan.dims == 3 and not plan.has_boxes
    if not (cfg.trainer.max_networks and is_measured and tiles and n_lesions):
        return Decision(None, "")
    return network_steps(n_lesions, tiles)


def may_be_narrow(model: ModelConfig, fingerprint: Fingerprint) -> bool:
    """Return True for the kinds of network that a short CPU training may make narrower.

    The kinds are those whose half-width versions were compared in benchmarks/notes: the U-Net in
    3-D, and detectors on radiographs with one channel.
    """
    if fingerprint.dims == 3:
        return model.architecture == "unet"
    is_detector = model.architecture in ("retinanet", "retina_unet")
    return is_detector and fingerprint.modality == "xray" and len(fingerprint.channels) == 1


def narrow_if_short(
    model: ModelConfig, trainer: TrainerConfig, device: str
) -> Decision[ModelConfig]:
    """Return the model settings with fewer features if a training on a CPU is short.

    In few minutes, a narrower network reaches better results, because it makes more steps. The
    settings are returned unchanged, without a reason, if one of these is true:

    - The settings name the number of features, or no duration.
    - The training runs on a GPU, or on a CPU that is fast at bf16, which makes 2 to 5 times as many
      steps.
    - Minutes times cores exceed `SHORT_CORE_MINUTES`.

    Args:
        model: The settings of the model.
        trainer: The settings with the duration.
        device: `cpu` or `cuda`.
    """
    unchanged = Decision(model, "")
    if model.base_features is not None:
        return unchanged
    is_slow_cpu = device == "cpu" and fast_dtype(torch.device("cpu")) == torch.float32
    if not is_slow_cpu or trainer.max_minutes is None:
        return unchanged
    if trainer.max_minutes * torch.get_num_threads() > SHORT_CORE_MINUTES:
        return unchanged
    reason = (
        f"{NARROW_FEATURES} in the first stage, because in {trainer.max_minutes:g} minutes on a "
        "CPU more steps are worth more than a wider network"
    )
    return Decision(model.model_copy(update={"base_features": NARROW_FEATURES}), reason)


def _plan_before(init_from: str | None, extra: Sequence[Spec]) -> Plan | None:
    """Return the plan of the bundle from whose weights a training starts (`model.init_from`).

    The new training must use its grid and architecture. Return None if the training starts from
    random weights or from a checkpoint.

    Args:
        init_from: The setting `model.init_from`.
        extra: The setting `prepare.extra`, the user's transforms.

    Raises:
        ConfigError: If the bundle's images were prepared by other transforms, or if it is an
            nnU-Net model.
    """
    if init_from is None or is_checkpoint(init_from):
        return None
    before = plan_to_start_from(init_from)
    if list(before.prepare_extra) != list(extra):
        raise ConfigError(
            f"model.init_from: the bundle's images were prepared by {before.prepare_extra}, "
            f"not by prepare.extra={list(extra)}. Set prepare.extra to the bundle's, or leave "
            "model.init_from out."
        )
    return before


def _memory_bytes(device: str) -> int:
    """Return the memory of this machine's GPU or, for `cpu`, of the machine, container or job."""
    if device == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return physical_bytes()


def plan_to_start_from(bundle: str) -> Plan:
    """Return the plan of a bundle or run, for a training that starts from its weights.

    Raises:
        ConfigError: If the bundle is an nnU-Net model, because a training cannot use its grid and
            normalisation.
    """
    plan = bundle_plan(bundle)
    if plan.nnunet is None:
        return plan
    path = Path(bundle)
    checkpoints = sorted(path.glob("**/checkpoint_final.pth")) if path.is_dir() else []
    example = f", such as {checkpoints[0]}" if checkpoints else " (fold_0/checkpoint_final.pth)"
    raise ConfigError(
        f"model.init_from={bundle} is a whole nnU-Net model with its own grid and normalisation. "
        f"Training can use only its weights: give the checkpoint of a fold{example}."
    )


def checkpoint_architecture(model: ModelConfig, dims: int) -> Architecture | None:
    """Return the architecture of the network in the nnU-Net checkpoint `model.init_from`.

    The plan uses it, so that the weights fit. Return None if `model.init_from` is not a checkpoint.

    Args:
        model: The settings of the model.
        dims: The number of spatial axes of the data.

    Raises:
        ConfigError: If the checkpoint has another number of spatial axes.
    """
    if model.init_from is None or not is_checkpoint(model.init_from):
        return None
    checkpoint = read_nnunet_checkpoint(Path(model.init_from))
    architecture = architecture_of(
        checkpoint.weights,
        model.architecture,
        model.init_from,
        is_resenc_l=checkpoint.is_resenc_l,
    )
    if len(architecture.strides[0]) != dims:
        raise ConfigError(
            f"model.init_from: the checkpoint has {len(architecture.strides[0])} spatial axes, the "
            f"data have {dims}. Give a checkpoint of a {dims}-D network."
        )
    return architecture


def with_focal_correction(plan: Plan, loss: LossConfig, detection: DetectionConfig) -> Plan:
    """Return the plan with the parameters α and γ of the focal losses of mask and boxes.

    A focal loss shifts the probabilities of a network. Inference undoes the shift by α and γ
    (`losses.focal`). They are None for a loss without such a correction.

    Args:
        plan: The plan.
        loss: The settings of the loss of masks.
        detection: The settings of the loss of boxes.
    """
    if plan.has_boxes:
        # `link` is (α, γ) of a focal loss; the loss with hard negatives has no correction
        alpha, gamma = make_detection_loss(detection).link or (None, None)
        anchors = replace(planned_anchors(plan), alpha=to_tuples(alpha), gamma=gamma)
        plan = plan.with_(anchors=anchors)
    # a loss without a correction, such as the user's own, has no attribute `link`
    link = getattr(make_loss(loss, plan.activation, has_boxes=plan.has_boxes), "link", None)
    if link is None:
        return plan.with_(link=None)
    alpha, gamma = link
    return plan.with_(link=FocalCorrection(to_tuples(alpha), gamma))


def try_augmentation(plan: Plan, extra: Sequence[Spec]) -> None:
    """Raise `ConfigError` if a transform of `augment.extra` fails on a tile of noise.

    The check finds an error in the user's transforms before the training.
    """
    if not extra:
        return
    batch = noise_batch(plan, n_tiles=1)
    affine = np.eye(plan.dims + 1)
    tile = {
        "image": as_meta_tensor(batch["image"][0], affine),
        # `labels` is [1, Z, Y, X]: its batch axis of length 1 serves as the channel axis
        "label": as_meta_tensor(batch["labels"], affine),
        "instances": batch["instances"],
        "valid": batch["valid"],
    }
    try_on_tile(extra, tile)


def check_losses(objective: Objective) -> None:
    """Raise `ConfigError` if a loss does not fit its plan, such as an α with too many labels.

    The losses are computed once, on a tile of noise and logits of zero, before the run begins.
    """
    plan = objective.plan
    targets = objective.targets(noise_batch(plan, n_tiles=1))
    voxels = torch.zeros((1, n_logits(plan), *plan.tile_shape))
    output: Any = [voxels]  # a network of masks returns a list of scales, a detector its heads
    if targets.anchors is not None:
        n_anchors = targets.anchors.labels.shape[1]
        output = DetectorOutput(
            class_logits=torch.zeros((1, n_anchors, len(plan.labels.lesion_names))),
            box_deltas=torch.zeros((1, n_anchors, 2 * plan.dims)),
            segmentation=(voxels,),
        )
    with torch.no_grad():
        # any normalisers will do, because only an error matters
        objective.terms(output, targets, torch.ones_like(targets.counts()))

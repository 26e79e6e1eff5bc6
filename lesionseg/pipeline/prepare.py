"""`prepare`: read and check every case, plan, and fill the cache."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lesionseg.config import COMMANDS, DataConfig, ModelConfig, PrepareConfig, TrainConfig
from lesionseg.core import Geometry
from lesionseg.data.cache import CachedCase, cores, fill_cache, source_hash
from lesionseg.data.transforms import check_transforms
from lesionseg.errors import ConfigError, count
from lesionseg.host_memory import default_budget, physical_bytes
from lesionseg.inference.bundle import bundle_digest, bundle_plan, read_own_bundle
from lesionseg.inference.volumes import needed_bytes
from lesionseg.io.files import locks, write_text
from lesionseg.models.foreign import backbone_pyramid, probe_network
from lesionseg.models.memory import step_gb
from lesionseg.models.weights import (
    architecture_of,
    is_checkpoint,
    new_heads,
    read_checkpoint,
    take_tensors,
    take_weights,
)
from lesionseg.pipeline.check import CheckOutcome, check_dataset
from lesionseg.pipeline.dataset import (
    CACHE,
    Survey,
    facts_folder,
    may_lack,
    open_dataset,
    take_survey,
)
from lesionseg.pipeline.log import bar, say, typed
from lesionseg.pipeline.run_dir import (
    SPLITS,
    check_config,
    default_run_dir,
    has_config,
    save_config,
)
from lesionseg.pipeline.select import unselected
from lesionseg.plan.make import make_plan, network_spec
from lesionseg.plan.plan import Architecture, Plan
from lesionseg.training.processes import require_device, training_device

log = logging.getLogger(__name__)

PAGE = "dataset_report.html"
NOT_TRIED = (
    "estimated; no step was tried. On a GPU train and tune try two first, and may go on with "
    "fewer or smaller tiles"
)


@locks("run_dir")
def prepare(cfg: PrepareConfig) -> Plan | CheckOutcome:
    """Prepare a dataset for training, or only `check` it: list every problem, and write a page."""
    name = "check" if cfg.check else cfg.model.architecture
    run = Path(cfg.run_dir or default_run_dir(cfg.data.root, name))
    if cfg.check:
        dataset = open_dataset(cfg.data, lenient=True)
        page, root = run / PAGE, cfg.data.root
        return check_dataset(dataset, page, root=root, identifiers=cfg.identifiers, cfg=cfg)
    config = config_of(cfg)
    check_config(run, config)
    survey = take_survey(cfg.data, cfg.seed, facts_folder(cfg.data, run))
    plan = plan_run(survey, cfg, run)
    before = plan.reasons.get("memory", "").removesuffix(NOT_TRIED).removesuffix("; ")
    memory = "; ".join(filter(None, (before, NOT_TRIED)))
    plan = plan.with_(reasons={**plan.reasons, "memory": memory})
    write_text(run / "plan.json", plan.to_json())
    save_config(run, config)
    if cfg.run_dir is None:  # its name holds the time: the same command would begin again
        log.info("Results go to %s; run_dir=%s resumes it.", run, run)
    cases = prepare_cases(survey, plan, cfg.data, run)
    say("\n".join(f"{name}: {reason}" for name, reason in plan.reasons.items()))
    say(f"Plan:    {run / 'plan.json'}; {count(len(cases), 'training case')} prepared")
    same = {} if cfg.run_dir is None else {"run_dir": run.parent / "NAME"}  # beside the cache
    say(f"Next:    {typed('train', **{'data.root': cfg.data.root}, **same)}")
    return plan


def config_of(cfg: TrainConfig) -> dict[str, Any]:
    """The configuration as a run directory keeps it; with more trials a search stays the same."""
    name = next(name for name, kind in COMMANDS.items() if kind is type(cfg))
    config = {"command": name, **cfg.plain()}
    config.get("tune", {}).pop("n_trials", None)
    return config


def plan_run(survey: Survey, cfg: TrainConfig, run: Path, given: Plan | None = None) -> Plan:
    """Make the plan, unless it is `given` or the run has one; write fingerprint, plan and splits.

    A resumed run keeps its plan: another machine's memory would make another one.
    """
    path = run / "plan.json"
    if given is None and has_config(run) and path.is_file():
        log.info("Resuming: the plan stays as this run first made it.")
        given = unselected(Plan.from_json(path.read_text(encoding="utf-8"), path))
    check_transforms(cfg)
    plan = given or _make_plan(survey, cfg)
    # what is imported is what the user typed, whoever wrote the file
    plan = plan.with_(architecture=replace(plan.architecture, network=network_spec(cfg.model)))
    plan = plan.with_(
        may_lack=may_lack(cfg.data, plan.channel_names),
        nan_background=survey.dataset.nan_background,
        grid_of_image=survey.dataset.grid_of_image,
    )
    write_text(run / "fingerprint.json", survey.fingerprint.to_json())
    write_text(run / SPLITS, survey.splits.to_json())
    write_text(path, plan.to_json())
    return plan


def _make_plan(survey: Survey, cfg: TrainConfig) -> Plan:
    """A plan for the device at hand, or for a GPU of `memory_gb` that is elsewhere."""
    model, trainer, extra = cfg.model, cfg.trainer, cfg.prepare.extra
    elsewhere = trainer.memory_gb is not None and trainer.accelerator in ("gpu", "cuda")
    if not elsewhere:
        require_device(trainer.accelerator)  # before a plan for another device is written
    device = "cuda" if elsewhere else training_device(trainer.accelerator)
    before = None
    if model.init_from is not None and not is_checkpoint(model.init_from):
        before = plan_to_start_from(model.init_from)
        if list(before.prepare_extra) != list(extra):
            raise ConfigError(
                f"model.init_from: the bundle's images were prepared by {before.prepare_extra}, "
                f"not by prepare.extra={list(extra)}."
            )
    dims, pyramid = survey.fingerprint.dims, checkpoint_stages(model, survey.fingerprint.dims)
    if pyramid is not None:  # the tile is planned for a network as wide
        model = model.model_copy(update={"base_features": pyramid.features[0]})
    elif model.backbone:
        n_channels = len(survey.dataset.channel_names)
        pyramid = backbone_pyramid(model.architecture, network_spec(model), dims, n_channels)
    n_bytes = physical_bytes()
    if trainer.memory_gb is None and device == "cuda":
        n_bytes = torch.cuda.get_device_properties(device).total_memory
    plan = make_plan(
        survey.fingerprint,
        survey.dataset,
        memory_gb=trainer.memory_gb or n_bytes / 1e9,
        device=device,
        overrides=model,
        before=before,
        step_memory=step_gb,
        pyramid=pyramid,
    ).with_(prepare_extra=tuple(extra))
    plan = probe_network(plan, by_hand=bool(model.tile_shape or before))
    for decision, reason in plan.reasons.items():
        log.debug("%s: %s.", decision.replace("_", " ").capitalize(), reason)
    return plan


def plan_to_start_from(bundle: str) -> Plan:
    """Return the plan of a bundle or run; raise `ConfigError` if it is an nnU-Net model.

    An nnU-Net model brings its own grid and normalisation, which training does not follow.
    """
    plan = bundle_plan(bundle)
    if plan.nnunet is None:
        return plan
    path = Path(bundle)
    checkpoints = sorted(path.glob("**/checkpoint_final.pth")) if path.is_dir() else []
    example = f", such as {checkpoints[0]}" if checkpoints else " (fold_0/checkpoint_final.pth)"
    raise ConfigError(
        f"model.init_from={bundle} is a whole nnU-Net model with its grid and normalisation. "
        f"Training starts from its weights only: give the checkpoint of a fold{example}."
    )


def checkpoint_stages(model: ModelConfig, dims: int) -> Architecture | None:
    """The stages of nnU-Net's checkpoint that training starts from; None where there is none."""
    if model.init_from is None or not is_checkpoint(model.init_from):
        return None
    weights = read_checkpoint(Path(model.init_from))
    architecture = architecture_of(weights, model.architecture, model.init_from)
    if len(architecture.strides[0]) != dims:
        raise ConfigError(
            f"model.init_from: the checkpoint has {len(architecture.strides[0])} spatial axes, the "
            f"data have {dims}."
        )
    return architecture


def prepare_cases(survey: Survey, plan: Plan, data: DataConfig, run: Path) -> list[CachedCase]:
    """The training cases on the plan's grid, from the cache where it has them.

    As many at a time as there are cores, and as the memory holds of the largest.
    """
    found = survey.fingerprint
    grids = set(zip(found.shapes, found.spacings_mm, strict=True))
    largest = max(needed_bytes(Geometry.from_spacing(*grid), plan) for grid in grids)
    with bar("Preparing cases") as advance:
        return fill_cache(
            replace(survey.dataset, cases=()),
            survey.of_role("train"),
            plan=plan,
            folder=data.cache_dir or run.parent / CACHE,
            source=lambda files: survey.sources.get(files.case) or source_hash(files),
            progress=advance,
            workers=min(cores(), max(1, default_budget() // largest)),
        )


def start_from(bundle: str, network: nn.Module, plan: Plan) -> None:
    """Copy into `network` what it has in common with the bundle's, and log what that is.

    Of an ensemble the first member is taken; of nnU-Net's checkpoint all but the heads. Raises the
    `LesionsegError` of a broken bundle.
    """
    path = Path(bundle)
    if is_checkpoint(bundle):
        source, why = f"checkpoint {path.name}", "what nnU-Net's labels mean is not known"
        done = take_tensors(network, read_checkpoint(path), new_heads(why))
        log.info("Grid and normalisation are this dataset's own, not the checkpoint's.")
    else:
        source = f"bundle {bundle_digest(path)}"
        before = read_own_bundle(path, plan.architecture.network)
        if len(before.networks) > 1:
            n_members = len(before.networks)
            log.info("The bundle is an ensemble of %d; its first network is taken.", n_members)
        done = take_weights(network, plan, before.networks[0], before.plan)
    n = len(done.taken) + len(done.fresh)
    log.info("Weights of %s: %d of %d tensors taken.", source, len(done.taken), n)
    if done.adapted:
        log.info("Of these, %s.", done.adapted)
    why = f" ({done.why_fresh})" if done.why_fresh else ""
    for what, names in ((f"Newly initialised{why}", done.fresh), ("Not used", done.unused)):
        parts = [".".join(name.split(".")[:2]) for name in names]
        if parts:
            counted = ", ".join(f"{part} ({parts.count(part)})" for part in dict.fromkeys(parts))
            log.info("%s: %s.", what, counted)

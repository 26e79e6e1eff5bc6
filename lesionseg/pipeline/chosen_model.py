"""`model=auto` in settings: replaced by the chosen name, kept when a run is resumed."""

from pathlib import Path
from typing import Literal, TypeVar

from lesionseg.config import AUTO_MODEL, CONFIG, ModelConfig, TrainConfig, dotted_items, has_config
from lesionseg.inference.bundle import bundle_plan
from lesionseg.io.text import read_yaml
from lesionseg.models.nnunet_checkpoint import is_checkpoint, read_nnunet_checkpoint
from lesionseg.models.weights import RESIDUAL_STEM
from lesionseg.plan.model_choice import ReferenceKinds, choose_model
from lesionseg.plan.plan import HEADS
from lesionseg.plan.rules import Decision

C = TypeVar("C", bound=TrainConfig)


def keep_choices_of_run(cfg: C, run: Path) -> C:
    """Return the settings with `auto` replaced by the model and learning rate of an existing run.

    A run can therefore be resumed with the same command even if a newer version would choose
    another model or rate for `auto`. A model or rate that the settings name is not replaced. If
    `run` is not a run directory yet, the settings are returned unchanged.
    """
    if not has_config(run):
        return cfg
    run_settings = dict(dotted_items(read_yaml(run / CONFIG)))  # by dotted key
    model = cfg.model.architecture
    if model == AUTO_MODEL:
        model = run_settings.get("model.architecture", model)
    lr = cfg.optim.lr
    if lr == "auto":
        lr = run_settings.get("optim.lr", lr)
    return with_choices(cfg, model, lr)


def model_for(model: ModelConfig, kinds: ReferenceKinds) -> Decision[str]:
    """Return the architecture that the settings name, or for `model=auto` the one chosen by rules.

    The returned decision has the name of the architecture and the reason for it. The reason is
    empty if the settings name the architecture. For `auto`, the choice depends on the initial
    weights (`model.init_from`):

    - None: the rules of `choose_model` decide.
    - An nnU-Net checkpoint: the rules decide, but a U-Net becomes a residual U-Net if the
      checkpoint has a residual encoder.
    - A bundle: the architecture of the bundle. The rules decide instead if that is a class of the
      user, or if it needs masks and some cases have only boxes.

    Args:
        model: The settings of the model.
        kinds: The numbers of cases with masks, boxes and lesions, from which the rules choose.
    """
    if model.architecture != AUTO_MODEL:
        return Decision(model.architecture, "")
    chosen = choose_model(kinds)
    if model.init_from is None:
        return chosen
    if is_checkpoint(model.init_from):
        # only a residual encoder has this weight
        has_stem = RESIDUAL_STEM in read_nnunet_checkpoint(Path(model.init_from)).weights
        if has_stem and chosen.value == "unet":
            return Decision("residual_unet", "the checkpoint has a residual encoder")
        return chosen
    model_of_bundle = bundle_plan(model.init_from).architecture.name
    # `HEADS` has no class of a user; a segmentation head needs masks
    is_usable = model_of_bundle in HEADS and (
        not kinds.n_boxed or "segmentation" not in HEADS[model_of_bundle]
    )
    return Decision(model_of_bundle, "it is the model of the bundle") if is_usable else chosen


def with_choices(cfg: C, model: str, lr: float | Literal["auto"]) -> C:
    """Return a copy of the settings with this architecture and this learning rate."""
    architecture = cfg.model.model_copy(update={"architecture": model})
    optim = cfg.optim.model_copy(update={"lr": lr})
    return cfg.model_copy(update={"model": architecture, "optim": optim})

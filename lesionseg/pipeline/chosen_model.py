"""Replace `model=auto` in the settings by the name of a model, and keep the choices of a run."""

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
    """Return the settings with the model and the learning rate of a run, if the run exists.

    A run can therefore be resumed after a change of the rules that choose both. A model or rate
    that the settings name stays.
    """
    if not has_config(run):
        return cfg
    before = dict(dotted_items(read_yaml(run / CONFIG)))
    model = cfg.model.architecture
    if model == AUTO_MODEL:
        model = before.get("model.architecture", model)
    lr = cfg.optim.lr
    if lr == "auto":
        lr = before.get("optim.lr", lr)
    return with_choices(cfg, model, lr)


def model_for(model: ModelConfig, kinds: ReferenceKinds) -> Decision[str]:
    """Return the model that the settings name, or the one that the rules choose.

    A training that starts from the weights of a bundle has the bundle's model, unless that is a
    class of the user, or needs masks and a case has only boxes. A U-Net that starts from a
    checkpoint has the encoder of the checkpoint. The reason is empty if the settings name the
    model.
    """
    if model.architecture != AUTO_MODEL:
        return Decision(model.architecture, "")
    chosen = choose_model(kinds)
    if model.init_from is None:
        return chosen
    if is_checkpoint(model.init_from):
        has_stem = RESIDUAL_STEM in read_nnunet_checkpoint(Path(model.init_from)).weights
        if has_stem and chosen.value == "unet":
            return Decision("residual_unet", "the checkpoint has a residual encoder")
        return chosen
    before = bundle_plan(model.init_from).architecture.name
    is_usable = before in HEADS and (not kinds.n_boxed or "segmentation" not in HEADS[before])
    return Decision(before, "it is the model of the bundle") if is_usable else chosen


def with_choices(cfg: C, model: str, lr: float | Literal["auto"]) -> C:
    """Return the settings with this model and this learning rate."""
    architecture = cfg.model.model_copy(update={"architecture": model})
    optim = cfg.optim.model_copy(update={"lr": lr})
    return cfg.model_copy(update={"model": architecture, "optim": optim})

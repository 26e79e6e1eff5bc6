"""Begin a training with the weights of a bundle, or of a checkpoint of nnU-Net's."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from lesionseg.errors import require
from lesionseg.inference.bundle import (
    PLAN,
    Bundle,
    bundle_digest,
    read_bundle,
    resolve_bundle,
)
from lesionseg.models.build import TRUSTED
from lesionseg.models.nnunet_weights import architecture_of, is_checkpoint, read_checkpoint
from lesionseg.models.transfer import Transfer, new_heads, take_tensors, take_weights
from lesionseg.plan.make import PlanOverrides
from lesionseg.plan.plan import Architecture, Plan

log = logging.getLogger(__name__)


def bundle_plan(bundle: str) -> Plan:
    """The plan of a bundle, or of a run's; raises `BundleError` when there is none."""
    path = resolve_bundle(Path(bundle)) / PLAN
    return Plan.from_json(path.read_text("utf-8", "replace"), path)


def bundle_before(init_from: str | None) -> Plan | None:
    """The plan that training follows; None without `init_from`, and for a checkpoint."""
    return None if init_from is None or is_checkpoint(init_from) else bundle_plan(init_from)


def checkpoint_stages(model: PlanOverrides, dims: int) -> Architecture | None:
    """The stages of the checkpoint that training starts from; None where there is none.

    Raises `ConfigError` for one that does not fit the data or the network asked for.
    """
    if model.init_from is None or not is_checkpoint(model.init_from):
        return None
    weights = read_checkpoint(Path(model.init_from))
    architecture = architecture_of(weights, model.architecture, model.init_from)
    require(
        len(architecture.strides[0]) == dims,
        "Training cannot start from this checkpoint: another number of spatial axes.",
        where="model.init_from",
        seen=f"{len(architecture.strides[0])} axes in the checkpoint, {dims} here",
    )
    return architecture


def read_as_typed(bundle: Path, network: Mapping[str, Any]) -> Bundle:
    """Read a bundle, trusting it where the network that it names is the one the user typed."""
    same = bundle_plan(str(bundle)).architecture.network == network
    return read_bundle(bundle, TRUSTED if same else None)


def start_from(bundle: str, network: nn.Module, plan: Plan) -> None:
    """Copy into `network` what it has in common with the bundle's, and say what that is.

    Of an ensemble the first member is taken; of a checkpoint all but the heads. Raises the
    `LesionsegError` of a broken bundle.
    """
    if is_checkpoint(bundle):
        why = new_heads("what nnU-Net's labels mean is not known")
        done = take_tensors(network, read_checkpoint(Path(bundle)), why)
        _say(f"checkpoint {Path(bundle).name}", done)
        log.info("Grid and normalisation are this dataset's own, not the checkpoint's.")
        return
    before = read_as_typed(Path(bundle), plan.architecture.network)
    if len(before.networks) > 1:
        log.info(
            "The bundle is an ensemble of %d; its first network is taken.", before.plan.n_members
        )
    done = take_weights(network, plan, before.networks[0], before.plan)
    _say(f"bundle {bundle_digest(Path(bundle))}", done)


def _say(source: str, done: Transfer) -> None:
    """Log what was taken, what is new and what was left."""
    n = len(done.taken) + len(done.fresh)
    log.info("Weights of %s: %d of %d tensors taken.", source, len(done.taken), n)
    if done.fresh:
        why = f" ({done.why_fresh})" if done.why_fresh else ""
        log.info("Newly initialised%s: %s.", why, _parts(done.fresh))
    if done.unused:
        log.info("There, but not needed: %s.", _parts(done.unused))


def _parts(names: Sequence[str]) -> str:
    """The parts of a network that tensors belong to, such as `heads.0 (2)`."""
    parts = [".".join(name.split(".")[:2]) for name in names]
    return ", ".join(f"{part} ({parts.count(part)})" for part in dict.fromkeys(parts))

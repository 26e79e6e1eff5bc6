"""Begin a training with the weights of a bundle."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from lesionseg.inference.bundles.bundle import (
    PLAN,
    Bundle,
    bundle_digest,
    read_bundle,
    resolve_bundle,
)
from lesionseg.models.build import TRUSTED
from lesionseg.models.transfer import take_weights
from lesionseg.plan.plan import Plan

log = logging.getLogger(__name__)


def bundle_plan(bundle: str) -> Plan:
    """The plan of a bundle, or of a run's; raises `BundleError` when there is none."""
    path = resolve_bundle(Path(bundle)) / PLAN
    return Plan.from_json(path.read_text("utf-8", "replace"), path)


def read_as_typed(bundle: Path, network: Mapping[str, Any]) -> Bundle:
    """Read a bundle, trusting it where the network that it names is the one the user typed."""
    same = bundle_plan(str(bundle)).architecture.network == network
    return read_bundle(bundle, TRUSTED if same else None)


def start_from(bundle: str, network: nn.Module, plan: Plan) -> None:
    """Copy into `network` what it has in common with the bundle's, and say what that is.

    Of an ensemble the first member is taken. Raises the `LesionsegError` of a broken bundle.
    """
    before = read_as_typed(Path(bundle), plan.architecture.network)
    if before.others:
        log.info(
            "The bundle is an ensemble of %d; its first network is taken.", before.plan.n_members
        )
    done = take_weights(network, plan, before.network, before.plan)
    log.info(
        "Weights of bundle %s: %d of %d tensors taken.",
        bundle_digest(Path(bundle)),
        len(done.taken),
        len(done.taken) + len(done.fresh),
    )
    if done.fresh:
        why = f" ({done.why_fresh})" if done.why_fresh else ""
        log.info("Newly initialised%s: %s.", why, _parts(done.fresh))
    if done.left:
        log.info("In the bundle, but not needed: %s.", _parts(done.left))


def _parts(names: Sequence[str]) -> str:
    """The parts of a network that tensors belong to, such as `heads.0 (2)`."""
    parts = [".".join(name.split(".")[:2]) for name in names]
    return ", ".join(f"{part} ({parts.count(part)})" for part in dict.fromkeys(parts))

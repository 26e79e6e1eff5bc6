"""`model.init_from`: copies weights of a bundle or a checkpoint that has been read, logs which.

`models.nnunet_checkpoint` recognises and reads the checkpoints of nnU-Net and nnssl.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from lesionseg.inference.bundle import bundle_digest, read_own_bundle
from lesionseg.models.nnunet_checkpoint import is_checkpoint, read_nnunet_checkpoint
from lesionseg.models.weights import give_all_heads, transfer_tensors, transfer_weights
from lesionseg.plan.plan import Plan

log = logging.getLogger(__name__)


def start_from(bundle: str, network: nn.Module, plan: Plan) -> None:
    """Copy the weights of a bundle or checkpoint that fit into `network`, and log which ones fit.

    - An ensemble gives the weights of its first network.
    - A checkpoint gives all weights except those of the heads, because the meaning of its outputs
      is unknown.
    - Input channels of the same name keep their weights. A new channel gets the mean of all
      channels (`adapt_channels`). If a checkpoint does not name its channels, they are matched by
      position.

    Args:
        bundle: Path of a bundle, a run or a checkpoint of nnU-Net or nnssl.
        network: Receives the weights, in place.
        plan: The plan of `network`.

    Raises:
        BundleError: If the bundle or checkpoint cannot be used.
    """
    path = Path(bundle)
    if is_checkpoint(bundle):
        source = f"checkpoint {path.name}"
        heads = give_all_heads("the meaning of the checkpoint's outputs is not known")
        checkpoint = read_nnunet_checkpoint(path)
        transfer = transfer_tensors(
            network,
            checkpoint.weights,
            heads,
            channels=plan.channel_names,
            channels_before=checkpoint.channel_names,
        )
        # `transfer.adapted` says how the channels were matched, if they were not simply copied
        is_by_position = not (checkpoint.channel_names or transfer.adapted)
        if is_by_position and len(plan.channel_names) > 1:
            log.info("The checkpoint does not name its channels, so they are taken by position.")
        log.info("Grid and normalisation are those of the settings, not the checkpoint's.")
    else:
        source = f"bundle {bundle_digest(path)}"
        old = read_own_bundle(path, plan.architecture.network)
        n_members = len(old.networks)
        if n_members > 1:
            log.info("The bundle is an ensemble of %d; its first network is taken.", n_members)
        transfer = transfer_weights(network, plan, old.networks[0], old.plan)
    n_copied = len(transfer.copied)
    n_tensors = n_copied + len(transfer.fresh)
    log.info("Weights of %s: %d of %d tensors taken.", source, n_copied, n_tensors)
    _log_tensor_counts("Taken", transfer.copied)
    if transfer.adapted:
        log.info("Of these, %s.", transfer.adapted)
    _log_tensor_counts("Newly initialised", transfer.fresh)
    if transfer.why_fresh:
        log.info("Heads are new because %s.", transfer.why_fresh)
    _log_tensor_counts("Not used", transfer.unused)


def _log_tensor_counts(what: str, names: Sequence[str]) -> None:
    """Log how many tensors each section of the network has among `names`.

    A section is the first two components of a name: `encoder.stages.0.0.conv.weight` belongs to
    `encoder.stages`. Nothing is logged without names.

    Args:
        what: Begins the line, such as "Newly initialised".
        names: Names of weight tensors.
    """
    sections = [".".join(name.split(".")[:2]) for name in names]
    if sections:
        # each section once, in the order of the names
        counted = ", ".join(
            f"{section} ({sections.count(section)})" for section in dict.fromkeys(sections)
        )
        log.info("%s: %s.", what, counted)

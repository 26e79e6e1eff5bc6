"""From a network's logits to probabilities and boxes, and networks that give them."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lesionseg.core import Calibration
from lesionseg.errors import ConfigError
from lesionseg.losses.focal import posterior_logits
from lesionseg.models.retinanet import planned_anchors
from lesionseg.ops.anchors import grid_anchors
from lesionseg.ops.boxes import decode_boxes
from lesionseg.plan.plan import Plan

SURE = 8.0  # log-odds: p = 0.9997


def label_probabilities(
    logits: Float[Tensor, "b k *spatial"], plan: Plan
) -> Float[Tensor, "b labels *spatial"]:
    """Probabilities float32 of the plan's labels.

    Softmax's background channel is dropped; what the focal loss did to sigmoid logits is undone
    where the plan has a `link` (`losses.focal`).
    """
    logits = logits.float()
    if plan.activation == "softmax":
        logits = _against_the_others(logits)
    elif plan.link is not None:
        logits = posterior_logits(logits, alpha=plan.link.alpha, gamma=plan.link.gamma)
    return _sigmoid(logits, plan)


def tempered(logits: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """Log-odds that grow by their logarithm beyond ±8, so that probabilities keep their order.

    Of any shape, also empty; signs are kept. float32 knows no p between 1 and 1 − 6e-8, log-odds
    of 16.6; networks that Dice teaches go beyond, and what ties at 1 cannot be ranked.

    >>> [round(float(x), 2) for x in tempered(torch.tensor([-5.0, 8.0, 16.6, 200.0]))]
    [-5.0, 8.0, 10.26, 13.26]
    """
    beyond = (logits.abs() - SURE).clamp_min(0).log1p()
    return logits.clamp(-SURE, SURE) + beyond * logits.sign()


def _sigmoid(logits: Tensor, plan: Plan) -> Tensor:
    return (tempered(logits) if plan.tempered else logits).sigmoid()


def _against_the_others(logits: Tensor) -> Tensor:
    """Log-odds of each label under softmax: itself against all other channels, background first."""
    others = [
        torch.cat((logits[:, :k], logits[:, k + 1 :]), dim=1).logsumexp(1)
        for k in range(1, logits.shape[1])
    ]
    return logits[:, 1:] - torch.stack(others, dim=1)


def box_scores(logits: Float[Tensor, "*n k"], plan: Plan) -> Float[Tensor, "*n k"]:
    """Probabilities float32 of a detector's anchors; the focal loss's effect is undone."""
    logits, anchors = logits.float(), planned_anchors(plan)
    if anchors.gamma is None:
        return _sigmoid(logits, plan)
    by_label = logits.reshape(-1, logits.shape[-1]).T[None]
    undone = posterior_logits(by_label, alpha=anchors.alpha, gamma=anchors.gamma)
    return _sigmoid(undone[0].T.reshape(logits.shape), plan)


def calibrated_voxels(p: Tensor, fit: Calibration | None) -> Tensor:
    """Probabilities as `fit` has them (`plan.voxel_calibration`); 0 stays 0, None changes none."""
    if fit is None:
        return p
    clipped = p.clamp(1e-6, 1 - 1e-6)
    line = fit.intercept + fit.slope * (clipped / (1 - clipped)).log()
    return torch.where(p > 0, line.sigmoid(), p)


class ProbabilityNetwork(nn.Module):
    """Segmentation networks whose output is the mean of what `label_probabilities` gives of each.

    The mean is put right by the plan's `voxel_calibration`.

    One tensor in, one tensor out, for programs that know neither the plan nor the focal loss. The
    networks are put into eval mode.
    """

    def __init__(self, networks: Sequence[nn.Module], plan: Plan) -> None:
        super().__init__()
        self.networks = nn.ModuleList(network.eval() for network in networks)
        self._plan = plan

    def forward(self, image: Float[Tensor, "b c *spatial"]) -> Float[Tensor, "b k *spatial"]:
        """Probabilities; raises `ConfigError` for a network that returns no list of logits."""
        total = torch.zeros((), device=image.device)
        for network in self.networks:
            outputs = network(image)
            if not isinstance(outputs, list):
                raise ConfigError(
                    f"{self._plan.architecture.name}: only a network that segments has "
                    "probabilities to export; its output must be a list of logits."
                )
            total = total + label_probabilities(outputs[0], self._plan)
        return calibrated_voxels(total / len(self.networks), self._plan.voxel_calibration)


class DetectorNetwork(nn.Module):
    """A detector that gives scores and boxes in place of logits and offsets from its anchors.

    Tensors in and out, for programs that know neither plan nor anchors. The network is put into
    eval mode.
    """

    def __init__(self, network: nn.Module, plan: Plan) -> None:
        super().__init__()
        self.network = network.eval()
        self._plan = plan
        levels = planned_anchors(plan).levels(plan.architecture.strides, plan.tile_shape)
        self.register_buffer("anchors", grid_anchors(levels))
        self.anchors: Tensor

    def forward(self, image: Float[Tensor, "b c *spatial"]) -> tuple[Tensor, ...]:
        """Scores `[B, n, K]`, boxes `[B, n, 2·dims]` in voxels of the tile; a Retina U-Net's
        probabilities `[B, K, *spatial]` after them.
        """
        output = self.network(image)
        boxes = decode_boxes(output.box_deltas, self.anchors)
        detections = (box_scores(output.class_logits, self._plan), boxes)
        if not output.segmentation:
            return detections
        voxels = label_probabilities(output.segmentation[0], self._plan)
        return (*detections, calibrated_voxels(voxels, self._plan.voxel_calibration))

"""The optimisers by name, and the running average of weights that training hands over."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from lesionseg.models.transfer import is_head
from lesionseg.training.settings import OptimiserSettings

FUSED = ("cpu", "cuda")  # devices with a fused optimiser


def make_optimiser(network: nn.Module, settings: OptimiserSettings) -> torch.optim.Optimizer:
    """AdamW, or SGD with Nesterov momentum, over the weights of `network` that learn.

    Fused, on the device that the weights lie on: few launches, and steps that the device itself
    can leave out (`step_if`). Weight decay falls on kernels only, unless `decay` is all: shrinking
    a norm's scale or the prior bias of a head towards 0 regularises nothing. All but the heads
    learn at `backbone_lr_scale` of the rate.
    """
    groups = list(_groups(network, settings))
    weights = [weight for group in groups for weight in group["params"]]
    fused = all(weight.device.type in FUSED for weight in weights)
    if settings.name == "adamw":
        betas = (settings.momentum, settings.beta2)
        optimiser: torch.optim.Optimizer = torch.optim.AdamW(
            groups, lr=settings.lr, betas=betas, fused=fused
        )
    else:
        momentum = settings.momentum
        optimiser = torch.optim.SGD(
            groups, lr=settings.lr, momentum=momentum, nesterov=momentum > 0, fused=fused
        )
        if momentum > 0:  # torch would take over unset memory if the first step were left out
            optimiser.state.update({w: {"momentum_buffer": torch.zeros_like(w)} for w in weights})
    optimiser.register_load_state_dict_post_hook(_fit_state)
    return optimiser


def _fit_state(optimiser: torch.optim.Optimizer) -> None:
    """Lay a checkpoint's moments as the weights, which may have been laid otherwise when saved."""
    for group in optimiser.param_groups:
        group["fused"] = optimiser.defaults["fused"]
        for weight in group["params"]:
            for name, value in optimiser.state[weight].items():
                if value.shape == weight.shape:
                    optimiser.state[weight][name] = torch.empty_like(weight).copy_(value)
                elif group["fused"]:  # the number of steps
                    optimiser.state[weight][name] = value.to(weight.device)


def step_if(optimiser: Any, finite: Tensor) -> None:
    """A step of the optimiser (Lightning's wrapper) that changes nothing unless `finite`, a 0-d
    bool on the device, which the host does not read.
    """
    if optimiser.optimizer.defaults["fused"]:
        optimiser.optimizer.found_inf = finite.logical_not().float()
    optimiser.step()


def _groups(network: nn.Module, settings: OptimiserSettings) -> Iterator[dict[str, Any]]:
    """Weights by decay, and by part where the parts learn at different rates."""
    named = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
    parts: Sequence[tuple[float, list[nn.Parameter]]] = [(1.0, [p for _, p in named])]
    if settings.backbone_lr_scale != 1:
        backbone = [p for name, p in named if not is_head(name)]
        heads = [p for name, p in named if is_head(name)]
        parts = [(settings.backbone_lr_scale, backbone), (1.0, heads)]
    least = 2 if settings.decay == "kernels" else 0  # axes of what decays
    for scale, learning in parts:
        for decay, params in (
            (settings.weight_decay, [p for p in learning if p.ndim >= least]),
            (0.0, [p for p in learning if p.ndim < least]),
        ):
            if params:
                yield {"params": params, "weight_decay": decay, "lr_scale": scale}


def set_learning_rate(optimiser: torch.optim.Optimizer, lr: float) -> float:
    """Set the rate of all weights, each group's at its own scale; returns `lr`."""
    for group in optimiser.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
    return lr


class WarmAverage(AveragedModel):
    """A copy of a network that holds an exponential moving average of its weights.

    After n updates the decay is min(`decay`, (1+n)/(10+n)): short trainings would otherwise end
    with an average still full of their first, random weights. Buffers follow the newest values.
    Only on a CPU does the host read n; all weights are moved by three launches elsewhere.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        super().__init__(network)
        self.decay = decay
        self.requires_grad_(False)

    @torch.no_grad()
    def update_parameters(self, model: nn.Module, finite: Tensor | None = None) -> None:
        """Move the average towards the weights of `model`; the first update takes them over.

        Where `finite` (0-d bool, on the device) is False, the average stays as it is.
        """
        n: Tensor = self.n_averaged
        old = [p.detach() for p in self.module.parameters()]
        new = [p.detach() for p in model.parameters()]
        # 1 − (1 + n) / (10 + n), and 1 where n = 0
        share = (9 / (n + n.clamp(max=1) + 9)).clamp(min=1 - self.decay)
        if finite is not None:
            share = share * finite
        if not n.is_cpu:
            change = torch._foreach_sub(new, old)
            torch._foreach_mul_(change, share)
            torch._foreach_add_(old, change)
        else:
            torch._foreach_lerp_(old, new, float(share))
        if buffers := list(self.module.buffers()):
            torch._foreach_copy_(buffers, list(model.buffers()))
        self.n_averaged += 1 if finite is None else finite

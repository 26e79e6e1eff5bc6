"""The optimisers by name, and the running average of weights that training hands over."""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from lesionseg.models.transfer import is_head
from lesionseg.training.settings import OptimiserSettings

FUSED = ("cpu", "cuda")  # devices with a fused optimiser


def make_optimiser(network: nn.Module, settings: OptimiserSettings) -> torch.optim.Optimizer:
    """AdamW, or SGD with Nesterov momentum, over the weights of `network` that learn.

    Fused, on the device that the weights lie on: few launches, and steps that the device itself
    can leave out (`clipped_step`). Weight decay falls on kernels only, unless `decay` is all:
    shrinking a norm's scale or the prior bias of a head towards 0 regularises nothing. All but the
    heads learn at `backbone_lr_scale` of the rate.
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


def gradient_norm(network: nn.Module) -> Tensor:
    """The norm of all gradients of a network together, 0-d."""
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    return nn.utils.get_total_norm(gradients)


def clipped_step(optimiser: Any, norm: Tensor, most: float, skipped: Tensor) -> None:
    """A step of the optimiser (Lightning's wrapper) by gradients of at most the norm `most`.

    Where `skipped` is 1.0 (0-d fp32 on the device, which the host does not read) nothing changes.
    `norm` is that of the gradients, which a fused optimiser divides as it reads them.
    """
    if optimiser.optimizer.defaults["fused"]:
        optimiser.optimizer.found_inf = skipped
        optimiser.optimizer.grad_scale = (norm / most).clamp(min=1)
    else:
        weights = [p for group in optimiser.optimizer.param_groups for p in group["params"]]
        nn.utils.clip_grads_with_norm_(weights, most, norm)
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


class WarmAverage(nn.Module):
    """A copy of a network that holds an exponential moving average of its weights.

    After n updates the decay is min(`decay`, (1+n)/(10+n)): short trainings would otherwise end
    with an average still full of their first, random weights. Buffers follow the newest values.
    The host counts n and reads a flag on a CPU only, so that a GPU's n has the steps left out too.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        super().__init__()
        self.module, self.decay, self.n_averaged = deepcopy(network), decay, 0
        self.requires_grad_(False)

    def get_extra_state(self) -> Tensor:
        """The number of updates."""
        return torch.tensor(self.n_averaged)

    def set_extra_state(self, state: Tensor) -> None:
        """Go on from there."""
        self.n_averaged = int(state)

    @torch.no_grad()
    def update_parameters(self, model: nn.Module, finite: Tensor | None = None) -> None:
        """Move the average towards the weights of `model`; the first update takes them over.

        Where `finite` (0-d bool, on the device) is False, the average stays as it is.
        """
        if finite is not None and finite.is_cpu and not finite:
            return
        n, old = self.n_averaged, [p.detach() for p in self.module.parameters()]
        new = [p.detach() for p in model.parameters()]
        share = max(9 / (10 + n), 1 - self.decay) if n else 1.0  # 1 − (1 + n) / (10 + n)
        if finite is None or finite.is_cpu:
            torch._foreach_lerp_(old, new, share)
        else:
            change = torch._foreach_sub(new, old)
            torch._foreach_mul_(change, finite * share)
            torch._foreach_add_(old, change)
        if buffers := list(self.module.buffers()):
            torch._foreach_copy_(buffers, list(model.buffers()))
        self.n_averaged += 1

"""What a training step takes of a GPU's memory, by exact counts, without a GPU."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from lesionseg.losses import DetectionLoss, DiceFocalLoss
from lesionseg.models.build import build_network
from lesionseg.models.heads import DetectorOutput
from lesionseg.plan.plan import Plan, total_stride
from lesionseg.training.device.memory_probe import some_batch
from lesionseg.training.settings import OptimiserSettings
from lesionseg.training.step.detection_objective import make_objective
from lesionseg.training.step.objective import Objective

# 10⁹ bytes: of the driver and its libraries, and of what convolutions work in, which is stated
# rather than known. Of nnU-Net's ResEnc L on an A100 nvidia-smi said 23.5, of which 22.6 were
# reserved and 21.5 allocated (MIC-DKFZ/nnUNet issue 2996): 5 % more is reserved than allocated.
CONTEXT_GB, WORKSPACE_GB, RESERVED = 0.9, 1.5, 1.05
AHEAD = 2  # batches on the device: the one that is learnt from and the next


def _default_objective(plan: Plan) -> Objective:
    return make_objective(DiceFocalLoss(), DetectionLoss(), plan)


@dataclass(eq=False)
class StepMemory:
    """The 10⁹ bytes of GPU memory that a training step of a plan takes, all in all.

    Counted: tensors that autograd saves in the network's forward pass (autocast to half precision
    when `half`) and in its losses, each storage once; weights, gradients, the optimiser's moments
    and averaged weights; two batches of tiles. Stated: the driver's share, workspaces of kernels
    and what the allocator reserves beyond. The network runs on fake tensors, which have shapes and
    no memory, the losses on a small tile; what is saved is linear in voxels and tiles, so that each
    shape of network is run once.
    """

    build: Callable[[Plan], nn.Module] = build_network
    teach: Callable[[Plan], Objective] = _default_objective
    optimiser: OptimiserSettings = field(default_factory=OptimiserSettings)
    averages: bool = True
    half: bool = True
    _seen: dict[Any, tuple[int, float]] = field(default_factory=dict, init=False)

    def __call__(self, plan: Plan) -> float:
        """Of a step with the plan's tiles and batch."""
        key = (plan.architecture, plan.anchors, plan.channel_names, plan.label_values)
        if key not in self._seen:
            self._seen[key] = self._counted(plan)
        n_weights, a_voxel = self._seen[key]
        return self.weights_gb(n_weights) + (
            RESERVED * a_voxel * plan.batch_size * prod(plan.tile_shape) / 1e9
        )

    def weights_gb(self, n_weights: int) -> float:
        """What does not depend on the tiles: weights in fp32 and half, and what goes with them."""
        moments = 2 if self.optimiser.name == "adamw" else 1
        a_weight = 4 * (2 + moments + self.averages) + 2 * self.half
        return CONTEXT_GB + WORKSPACE_GB + RESERVED * a_weight * n_weights / 1e9

    def _counted(self, plan: Plan) -> tuple[int, float]:
        """Weights of the plan's network, and bytes that a voxel of its tiles takes.

        A network that is not ours counts as our U-Net of the same stages, until trial steps on the
        GPU have measured it.
        """
        shape = plan.architecture
        ours = shape.name if plan.has_boxes or not shape.network else "unet"
        plan = plan.with_(architecture=replace(shape, name=ours, network={}))
        stride = total_stride(plan.architecture)
        # two cells at the coarsest stage: a norm needs them
        small = plan.with_(tile_shape=(2 * stride[0], *stride[1:]), batch_size=1)
        n_weights, saved, output = saved_by_network(self.build, small, half=self.half)
        batch = some_batch(small, 1, torch.device("cpu"))
        saved += saved_by_losses(self.teach(small), output, batch)
        saved += AHEAD * sum(tensor.nbytes for tensor in batch.values())
        return n_weights, saved / prod(small.tile_shape)


class _Saved:
    """Adds up the storages that autograd saves, but for those of `known` tensors."""

    def __init__(self, *known: Tensor) -> None:
        self._kept: list[Tensor] = []  # a storage that is gone could give its place to another
        self._known = {tensor.untyped_storage()._cdata for tensor in known}
        self.n_bytes = 0

    def hooks(self) -> saved_tensors_hooks:
        """The context in which to run the forward pass."""
        return saved_tensors_hooks(self._pack, lambda tensor: tensor)

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._known:
            self._known.add(storage._cdata)
            self._kept.append(tensor)
            self.n_bytes += storage.nbytes()
        return tensor


def saved_by_network(
    build: Callable[[Plan], nn.Module], plan: Plan, *, half: bool
) -> tuple[int, int, Any]:
    """Weights of a plan's network, bytes that its forward pass saves, and its (fake) output.

    Half copies of weights are left out. The tensors pass for a CPU's, whose autocast needs no GPU;
    group norms are widened to fp32, as autocast does on a GPU and not on a CPU.
    """
    # imported late: it takes seconds, and a processor's plan does without
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(), torch.device("cpu"):
        network = build(plan).train()
        for norm in (m for m in network.modules() if isinstance(m, nn.GroupNorm)):
            norm.register_forward_pre_hook(lambda _, inputs: tuple(x.float() for x in inputs))
        weights = list(network.parameters())
        image = torch.empty((plan.batch_size, len(plan.channel_names), *plan.tile_shape))
        saved = _Saved(image, *weights)
        with saved.hooks(), torch.autocast("cpu", torch.bfloat16, enabled=half):
            output = network(image)
    n_weights = sum(w.numel() for w in weights)
    copies = sum(2 * w.numel() for w in weights if half and w.ndim > 2)
    return n_weights, saved.n_bytes - copies, output


def saved_by_losses(objective: Objective, output: Any, batch: dict[str, Tensor]) -> int:
    """Bytes that the losses save for such an output, the output's own included."""
    output = _real(output)
    targets = objective.targets(batch)
    saved = _Saved()
    with saved.hooks():
        objective.terms(output, targets, torch.ones_like(targets.counts()))
    return saved.n_bytes


def _real(output: Any) -> Any:
    """Zeros of the same shapes, to learn from."""
    if isinstance(output, Tensor):
        return torch.zeros(output.shape, dtype=output.dtype, requires_grad=True)
    if isinstance(output, DetectorOutput):
        return DetectorOutput(
            _real(output.class_logits), _real(output.box_deltas), tuple(_real(output.segmentation))
        )
    return [_real(level) for level in output]

"""Count the memory of a training step, allocation by allocation, on tensors without numbers."""

import weakref
from unittest import mock

import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from lesionseg.models.build import TRUSTED, build_network
from lesionseg.training.objective import make_objective
from tests.gpu.pretend_cuda import Card, pretend_cards

N_POSITIVES = 100  # anchors of a batch that are assigned to lesions
STATE_BYTES = 12  # per weight: the weight in fp32, and the two moments of AdamW


class CountBytes(TorchDispatchMode):
    """A mode that counts the bytes of all living tensors of the cards, and their maximum."""

    def __init__(self):
        super().__init__()
        self.now = 0
        self.maximum = 0
        self._alive = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self._add(result)
        return result

    def _add(self, result):
        if isinstance(result, list | tuple):
            for each in result:
                self._add(each)
        if not isinstance(result, Card):
            return
        storage = result.values.untyped_storage()
        key, n_bytes = storage._cdata, storage.nbytes()
        if key in self._alive:
            return
        self._alive.add(key)
        self.now += n_bytes
        self.maximum = max(self.maximum, self.now)
        weakref.finalize(storage, self._free, key, n_bytes)

    def _free(self, key, n_bytes):
        self._alive.discard(key)
        self.now -= n_bytes


def step_bytes(plan, cfg):
    """Return the maximum bytes of tensors in a training step in bf16 with AdamW.

    Targets, network, loss and backward pass are those of a training. The context of the driver and
    the workspaces of convolutions are not counted.
    """
    with pretend_cards(numbers=False), mock.patch.object(functional, "avg_pool3d", _average):
        network = _without_numbers(plan)
        objective = make_objective(plan, cfg.loss, cfg.detection)
        with CountBytes() as counted:
            targets = objective.targets(_batch(plan, objective.batch_targets.nearest))
            counts = targets.counts()
            shape = (plan.batch_size, len(plan.channel_names), *plan.tile_shape)
            with torch.autocast("cuda", torch.bfloat16):
                output = network(_empty(torch.float32, *shape))
            terms = objective.terms(output, targets, torch.ones_like(counts))
            del output
            torch.stack(list(terms.values())).sum().backward()
            n_weights = sum(p.numel() for p in network.parameters())
    return counted.maximum + STATE_BYTES * n_weights


def _average(x, *sizes):
    """Compute `avg_pool3d` in the precision of `x`, as CUDA does. Autocast on a CPU widens it."""
    with torch.autocast("cuda", enabled=False):
        return torch._C._nn.avg_pool3d(x, *sizes)


def _without_numbers(plan):
    """Build the network with weights on a card that only have a shape."""
    with torch.device("meta"):
        network = build_network(plan, architectures=TRUSTED).train()
    for module in network.modules():
        for name, weight in list(module._parameters.items()):
            if weight is not None:
                card = Card(torch.empty(weight.shape, device="meta"))
                module._parameters[name] = nn.Parameter(card)
    return network


def _batch(plan, nearest):
    """Make the masks of a batch, and the targets of a detector, as tensors without numbers."""
    shape = (plan.batch_size, *plan.tile_shape)
    batch = {
        "labels": _empty(torch.uint8, *shape),
        "instances": _empty(torch.int32, *shape),
        "valid": _empty(torch.bool, *shape),
    }
    if nearest:  # instances are renumbered
        batch["instances"] = _empty(torch.uint8, *shape)
        batch["nearest"] = _empty(torch.uint8, *shape)
    if plan.anchors is not None:
        n = sum(level.n_anchors for level in plan.anchor_levels)
        batch["anchor_labels"] = _empty(torch.uint8, plan.batch_size, n)
        batch["anchor_valid"] = _empty(torch.bool, plan.batch_size, n)
        batch["anchor_boxes"] = _empty(torch.float32, N_POSITIVES, 2 * plan.dims)
        batch["anchor_places"] = _empty(torch.int64, N_POSITIVES)
    return batch


def _empty(dtype, *shape):
    return torch.empty(shape, dtype=dtype, device="cuda")

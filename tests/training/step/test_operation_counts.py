"""No step waits for a GPU: counted by dispatch, and run on a device that has no values to read."""

from functools import partial

import pytest
import torch
import torch._inductor.metrics

from benchmarks.speed.operation_counts import OperationCounts, as_on_a_gpu, counted_step
from lesionseg.losses import (
    DiceCrossEntropyLoss,
    DiceFocalLoss,
    FocalLoss,
    LesionWiseFocalLoss,
    TrimmedFocalLoss,
    UnifiedFocalLoss,
)
from lesionseg.plan.plan import Architecture
from lesionseg.training.callbacks.focal_balance import FocalBalance
from lesionseg.training.callbacks.hard_background import WatchBackground

KERNELS = {"_targets", "_sigmoid_sums", "_add_up", "_sigmoid_gradient"}


@pytest.mark.parametrize(
    ("operation", "waits"),
    [
        (lambda x: x.sum().item(), 1),
        (lambda x: bool(x.any()), 1),
        (lambda x: x[x > 0], 1),
        (lambda x: torch.unique(x), 1),
        (lambda x: torch.equal(x, x), 1),
        (lambda x: x.index_select(0, torch.tensor([1])), 0),
        (lambda x: torch.where(x > 0, x, 0).view(2, 2).sum(), 0),
    ],
)
def test_what_the_host_waits_for_is_counted(operation, waits):
    with OperationCounts("cpu") as counts:
        operation(torch.arange(4.0))
    assert counts.waits.total() == waits


def test_copies_between_devices_wait_unless_they_are_said_not_to():
    with OperationCounts("meta") as counts:
        torch.zeros(2).to("meta", non_blocking=True)
    assert counts.waits.total() == 0
    with OperationCounts("meta") as counts:
        torch.zeros(2).to("meta")
    assert counts.waits.total() == 1


@pytest.mark.parametrize("name", ["unet", "retinanet", "retina_unet"])
@pytest.mark.parametrize("assign", ["atss", "iou"])
def test_a_whole_step_never_waits(make_module, tmp_path, name, assign):
    """Targets, loss, clipping, optimiser, averaged weights, and the figures of the balance."""
    module, batch = make_module(name, FocalLoss())
    if name != "unet":
        module.objective.loss.assign = assign
    balance = FocalBalance(tmp_path)
    balance.terms = module.objective.focal_terms()
    hard = WatchBackground(lambda *_: None)
    watchers = [partial(balance._watch, module), partial(hard._watch, module)]
    counts = counted_step(module, batch, watchers=watchers)
    assert counts.waits == {}
    assert len(balance._balances) == len(hard._unread) == 2


@pytest.mark.parametrize(
    "loss", [LesionWiseFocalLoss(), DiceFocalLoss(), TrimmedFocalLoss(), UnifiedFocalLoss()]
)
def test_no_loss_waits(make_module, loss):
    assert counted_step(*make_module("unet", loss)).waits == {}


def test_a_step_in_fp16_with_parts_and_averaged_weights_never_waits(make_module):
    module, batch = make_module("unet", n_tiles=4, accumulate=2)
    module.use_fp16()
    assert counted_step(module, batch).waits == {}


def test_the_fused_optimiser_reads_nothing_either(make_module):
    """It is not there on a meta device; a CPU's count has the flag's reading and the labels'."""
    module, batch = make_module("unet", ema_decay=None)
    counts = counted_step(module, batch, "cpu")
    assert counts.launches["_fused_adamw_"] == 2  # with weight decay and without
    assert set(counts.waits) <= {"_local_scalar_dense"}
    n_levels = len(module.objective.strides)
    assert counts.waits.total() == 2 * n_levels  # the least and the highest label of each


def six_stages():
    strides, kernels = ((1,) * 3, *((2,) * 3,) * 5), ((3,) * 3,) * 6
    return Architecture("unet", (4,) * 6, strides, kernels, blocks=2, n_supervised=4)


@pytest.mark.parametrize("loss", [DiceFocalLoss(0.5, 0.0), DiceCrossEntropyLoss(per_tile=True)])
def test_a_step_is_its_network_and_a_few_launches(make_module, loss):
    """nnU-Net's six stages with four levels taught: all else that a step does, loss and targets
    included, is at most 40 launches more than the network's forward and backward pass.
    """
    pytest.importorskip("triton")
    module, batch = make_module("unet", loss, architecture=six_stages())
    step = counted_step(module, batch).launches
    module.zero_grad()
    image = batch["image"].to("meta")
    with as_on_a_gpu(), OperationCounts("meta") as bare:
        output = module.network(image)
        torch.autograd.backward(output, [torch.empty_like(logits) for logits in output])
    assert bare.launches.total() > 300
    kernels = {name: n for name, n in step.items() if name in KERNELS}
    assert kernels == {"_targets": 1, "_sigmoid_sums": 4, "_add_up": 1, "_sigmoid_gradient": 4}
    assert 0 < (step - bare.launches).total() <= 40


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_compiled_targets_and_loss_are_few_kernels(make_module):
    """Of four levels; a processor's kernels, which the compiler cuts much as a GPU's."""
    module, batch = make_module("unet", DiceFocalLoss(), architecture=six_stages())
    objective, shape = module.objective, module.plan.tile_shape
    objective.compile("inductor")
    torch._inductor.metrics.reset()
    targets = objective.targets(batch)
    output = [torch.zeros(2, 1, *(n // 2**level for n in shape)) for level in range(4)]
    for logits in output:
        logits.requires_grad_()
    terms = objective.terms(output, targets, torch.ones(4))
    torch.stack(list(terms.values())).sum().backward()
    assert 0 < torch._inductor.metrics.generated_kernel_count <= 40

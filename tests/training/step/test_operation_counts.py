"""No step waits for a GPU: counted by dispatch, and run on a device that has no values to read."""

import pytest
import torch

from benchmarks.operation_counts import OperationCounts, counted_step


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
def test_a_step_never_waits(make_module, name, assign):
    module, batch = make_module(name)
    if name != "unet":
        module.objective.loss.assign = assign
    assert counted_step(module, batch).waits == {}

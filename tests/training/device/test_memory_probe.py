"""A device of a few tensors' memory, and the sizes that fit it."""

import pytest
import torch
from torch import nn

from lesionseg.errors import TrainingError
from lesionseg.losses import DetectionLoss, FocalLoss
from lesionseg.models import build_network
from lesionseg.training.device.memory_probe import Probe, fitted_to_memory, step_down
from lesionseg.training.settings import OptimiserSettings, TrainerSettings
from lesionseg.training.step.detection_objective import make_objective


class Cramped(nn.Module):
    """A network that runs out of memory above so many voxels."""

    def __init__(self, network, limit):
        super().__init__()
        self.network, self.limit = network, limit

    def forward(self, image):
        if image.numel() > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.network(image)


def probe(limit):
    return Probe(
        build=lambda plan: Cramped(build_network(plan), limit),
        teach=lambda plan: make_objective(FocalLoss(), DetectionLoss(), plan),
        settings=TrainerSettings(max_steps=1),
        optimiser=OptimiserSettings(),
        device=torch.device("cpu"),
        dtype=torch.float32,
    )


@pytest.mark.parametrize(
    ("limit", "batch", "tile"),
    [
        (8 * 256, 8, (16, 16)),
        (4 * 256, 4, (16, 16)),
        (2 * 256, 2, (16, 16)),
        (2 * 14 * 16, 2, (14, 16)),
    ],
)
def test_the_largest_size_that_fits_is_taken(make_plan, caplog, limit, batch, tile):
    plan = make_plan(batch_size=8)
    fitted = fitted_to_memory(plan, probe(limit))
    assert (fitted.batch_size, fitted.tile_shape) == (batch, tile)
    if fitted is plan:
        return
    assert "ran out of memory" in caplog.text
    assert "8 tiles of 16 × 16" in fitted.reasons["batch_size"]
    assert ("tile_shape" in fitted.reasons) == (tile != (16, 16))


@pytest.mark.parametrize(("limit", "taken"), [(4 * 256, 4), (3 * 256, 2)])
def test_a_larger_plan_is_taken_where_the_peak_leaves_room_and_it_fits(make_plan, limit, taken):
    plan = make_plan(batch_size=2)
    peaks = []

    def larger(fitting, peak_gb):
        peaks.append(peak_gb)
        return fitting.with_(batch_size=4)

    assert fitted_to_memory(plan, probe(limit), larger).batch_size == taken
    assert peaks == [0.0]  # as a processor has it
    assert fitted_to_memory(plan, probe(limit), lambda *_: None) is plan


def test_after_three_smaller_sizes_it_gives_up(make_plan):
    with pytest.raises(TrainingError, match=r"down to 2 tiles of 14 × 16.*model\.tile_shape"):
        fitted_to_memory(make_plan(batch_size=8), probe(10))


def test_nothing_is_left_below_one_small_tile(make_plan):
    plan = make_plan(batch_size=2).with_(tile_shape=(4, 4))
    single = step_down(plan)
    assert single is not None
    assert single.batch_size == 1
    assert step_down(single) is None
    with pytest.raises(TrainingError, match="down to 1 tiles of 4 × 4"):
        fitted_to_memory(plan, probe(1))


def test_other_errors_pass(make_plan):
    class Broken(nn.Module):
        def forward(self, image):
            raise ValueError("wrong")

    broken = probe(1)
    object.__setattr__(broken, "build", lambda _: nn.Sequential(nn.Linear(1, 1), Broken()))
    with pytest.raises((ValueError, RuntimeError), match=r"wrong|shapes"):
        fitted_to_memory(make_plan(), broken)

import pytest
import torch
from torch import Tensor, nn

from lesionseg.models.precision import timed_memory_format


class Seen(nn.Conv3d):
    """A convolution whose passes take a stated time by layout."""

    clock, seconds = 0.0, {True: 1.0, False: 2.0}

    def forward(self, input: Tensor) -> Tensor:
        last = self.weight.is_contiguous(memory_format=torch.channels_last_3d)
        Seen.clock += self.seconds[last]
        return super().forward(input)


@pytest.mark.parametrize("last_wins", [True, False])
def test_the_faster_layout_is_taken_and_stays(
    last_wins: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.perf_counter", lambda: Seen.clock)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    monkeypatch.setattr(Seen, "seconds", {last_wins: 1.0, not last_wins: 2.0})
    network = Seen(2, 4, 3)
    form = timed_memory_format(network, torch.zeros(1, 2, 8, 8, 8), torch.float32)
    assert (form == torch.channels_last_3d) is last_wins
    assert network.weight.is_contiguous(memory_format=form)
    assert torch.backends.cudnn.benchmark

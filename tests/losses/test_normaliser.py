"""The divisor of a focal loss in training."""

import torch

from lesionseg.losses import PositiveAverage
from lesionseg.losses.base import count_positives


def test_counts_valid_lesion_voxels() -> None:
    labels = torch.tensor([[0, 1, 2, 3]], dtype=torch.uint8)
    assert count_positives(labels).item() == 3
    assert count_positives(labels, torch.tensor([[True, False, True, True]])).item() == 2


def test_follows_the_counts_slowly_and_never_falls_below_what_is_expected() -> None:
    average = PositiveAverage(expected=50, momentum=0.5)
    assert average.update(torch.tensor(150)).item() == 100
    assert average.update(torch.tensor(0)).item() == 50
    assert [average.update(torch.tensor(0)).item() for _ in range(5)] == [50] * 5
    assert PositiveAverage(expected=0).update(torch.tensor(0)).item() == 1


def test_survives_a_restart() -> None:
    first, second = PositiveAverage(expected=10), PositiveAverage(expected=10)
    first.update(torch.tensor(1000))
    second.load_state_dict(first.state_dict())
    assert second.update(torch.tensor(30)) == first.update(torch.tensor(30))


def test_all_averages_at_once_are_those_one_by_one():
    one, all_ = [PositiveAverage(expected=n) for n in (10, 100)], PositiveAverage((10.0, 100.0))
    for counts in (torch.tensor([50.0, 1000.0]), torch.zeros(2)):
        expected = [a.update(n) for a, n in zip(one, counts, strict=True)]
        assert torch.equal(all_.update(counts), torch.stack(expected))

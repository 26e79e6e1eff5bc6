"""Lists of unknown length, as a CPU makes them and as a device that is not waited for."""

import numpy as np
import pytest
import torch

from lesionseg.ops import fixed_rows
from lesionseg.ops.fixed_rows import first_places, lesion_table


@pytest.fixture(params=["cpu", "device"])
def device_path(request, monkeypatch):
    """Whether lists are made as off a CPU."""
    if request.param == "device":
        monkeypatch.setattr(fixed_rows, "readable", lambda _: False)
        monkeypatch.setattr(fixed_rows, "MOST_LESIONS", 4)
    return request.param == "device"


def test_a_table_is_that_of_a_naive_search(device_path, rng):
    instances = rng.choice([0, 0, 0, 5, 9, 2], size=(3, 4, 5, 6))
    instances[1] = 0
    instances[2][instances[2] == 2] = 0
    labels = instances % 4
    table = lesion_table(torch.from_numpy(instances), torch.from_numpy(labels))
    assert table.ids.shape == ((3, 4) if device_path else (3, 3))
    for tile, (ids, counts, of, boxes) in enumerate(
        zip(table.ids, table.counts, table.labels, table.boxes, strict=True)
    ):
        present = sorted(set(np.unique(instances[tile])) - {0})
        assert ids[ids > 0].tolist() == ids[: len(present)].tolist() == present
        for row, number in enumerate(present):
            voxels = np.argwhere(instances[tile] == number)
            assert counts[row] == len(voxels)
            assert of[row] == number % 4
            assert boxes[row].tolist() == [*voxels.min(0), *(voxels.max(0) + 1)]
        assert counts[len(present) :].sum() == boxes[len(present) :].sum() == 0
    shown = np.zeros(instances.size, dtype=np.int64)
    shown[table.voxels] = table.at_voxels(table.ids)
    assert (shown.reshape(instances.shape) == instances).all()


def test_lesions_beyond_the_rows_are_not_listed(monkeypatch):
    monkeypatch.setattr(fixed_rows, "readable", lambda _: False)
    monkeypatch.setattr(fixed_rows, "MOST_LESIONS", 2)
    tile = torch.tensor([[0, 3, 1, 2, 2]])
    table = lesion_table(tile, tile.sign())
    assert table.ids.tolist() == [[1, 2]]
    assert table.listed().tolist() == [False, False, True, True, True]


def test_no_lesion_leaves_an_empty_row(device_path):
    nothing = torch.zeros((1, 3, 3), dtype=torch.int32)
    table = lesion_table(nothing, nothing)
    assert table.boxes.shape == (1, 4 if device_path else 1, 4)
    assert table.counts.sum() == table.ids.sum() == table.listed().sum() == 0


def test_first_places(device_path):
    places, real = first_places(torch.tensor([0, 1, 0, 1, 1]).bool(), 2)
    assert (places.tolist(), real.tolist()) == ([1, 3], [True, True])
    places, real = first_places(torch.tensor([0, 1, 0]).bool(), 3)
    assert places[real].tolist() == [1]
    assert len(places) == (3 if device_path else 1)

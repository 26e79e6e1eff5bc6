"""The table of a tile's lesions against a naive search."""

import numpy as np
import torch

from lesionseg.ops.boxes import lesion_table


def test_a_table_is_that_of_a_naive_search(rng):
    instances = rng.choice([0, 0, 0, 5, 9, 2], size=(3, 4, 5, 6))
    instances[1] = 0
    instances[2][instances[2] == 2] = 0
    labels = instances % 4
    table = lesion_table(torch.from_numpy(instances), torch.from_numpy(labels))
    assert table.ids.shape == (3, 3)
    for tile, (ids, of, boxes) in enumerate(zip(table.ids, table.labels, table.boxes, strict=True)):
        present = sorted(set(np.unique(instances[tile])) - {0})
        assert ids[ids > 0].tolist() == ids[: len(present)].tolist() == present
        for row, number in enumerate(present):
            voxels = np.argwhere(instances[tile] == number)
            assert of[row] == number % 4
            assert boxes[row].tolist() == [*voxels.min(0), *(voxels.max(0) + 1)]
        assert of[len(present) :].sum() == boxes[len(present) :].sum() == 0


def test_no_lesion_leaves_an_empty_row():
    nothing = torch.zeros((1, 3, 3), dtype=torch.int32)
    table = lesion_table(nothing, nothing)
    assert table.boxes.shape == (1, 1, 4)
    assert table.labels.sum() == table.ids.sum() == 0

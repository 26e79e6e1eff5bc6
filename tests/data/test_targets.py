import numpy as np
import torch

from lesionseg.data.targets import lesion_targets


def test_boxes_and_labels_are_those_of_a_naive_search(rng):
    instances = rng.choice([0, 0, 0, 5, 9, 2], size=(6, 7, 8))
    labels = np.select([instances == 5, instances == 9, instances == 2], [1, 2, 1])
    found = lesion_targets(torch.from_numpy(instances), torch.from_numpy(labels))
    assert found.ids.tolist() == [2, 5, 9]
    assert found.labels.tolist() == [1, 1, 2]
    for box, number in zip(found.boxes, found.ids, strict=True):
        voxels = np.argwhere(instances == number.item())
        np.testing.assert_array_equal(box, [*voxels.min(0), *(voxels.max(0) + 1)])


def test_slivers_are_left_out_and_no_lesion_gives_empty_arrays():
    tile = torch.zeros((5, 5), dtype=torch.int32)
    tile[0, 0] = 3
    assert len(lesion_targets(tile, tile, min_voxels=2).ids) == 0
    none = torch.zeros((5, 5, 5), dtype=torch.int32)
    empty = lesion_targets(none, none.to(torch.uint8))
    assert empty.boxes.shape == (0, 6)
    assert empty.labels.shape == (0,)
